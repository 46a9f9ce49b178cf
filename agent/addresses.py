"""Whose address is it: what the agent knows of each LAN address at this moment. Pure.

Rule: bounded, and the entry that was used least recently goes first: a client that makes up addresses can only push out
others' MACs until the next look at the kernel's table, not fill the memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from agent.intake import Identity

MAX_ADDRESSES: Final = 16384
"""About 3 MB; a /18 of IPv4, or 2,000 clients with eight IPv6 addresses each."""
_UNKNOWN: Final = Identity()


class Addresses:
    """Address -> Identity."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, Identity] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def identify(self, address: bytes) -> Identity:
        """What is known of this address; empty fields where nothing is."""
        return self._known.get(address, _UNKNOWN)

    def learn(self, address: bytes, mac: bytes) -> None:
        """This MAC was seen to use this address just now."""
        known = self._known.get(address)
        if known is None:
            self._known[address] = Identity(mac)
            if len(self._known) > MAX_ADDRESSES:
                self._known.popitem(last=False)
        else:
            if known.mac != mac:
                # Another device has the address now: the session was the first one's.
                self._known[address] = Identity(mac)
            self._known.move_to_end(address)

    def refresh(self, table: Mapping[bytes, bytes]) -> None:
        """The kernel's neighbour table."""
        for address, mac in table.items():
            self.learn(address, mac)
