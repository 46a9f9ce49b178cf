"""What the hook and the firewall's rules say to each other: four bits of the packet and conntrack mark."""

from __future__ import annotations

from enum import IntEnum


class Mark(IntEnum):
    """The hook's nibble of the packet and conntrack mark."""

    UNDECIDED = 0
    ALLOW = 1
    BLOCK = 2
    PAGE = 3
    """Blocked, and answered with a page: this packet is dropped, and what follows must not destroy the page."""
    INJECTED = 4
    """On our own answers, which belong to no connection that conntrack knows."""
    REFUSED = 5
    """On packets of a device that is not admitted (`nfq.admission`); never in the conntrack mark."""
    STOPPED = 6
    """On what a client sends of a flow that was blocked before; never in the conntrack mark."""
    BARE = 8
    """On TCP segments without data, which nothing can be learnt from (`nfq.early`); never in the conntrack mark."""
    SYN = 12
    """On the first of them, of which only the destination can matter; never in the conntrack mark."""
