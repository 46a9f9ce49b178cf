"""Whose address is it: what the agent knows of each LAN address at this moment.

An address that is not known is looked for in the kernel's table, at most once every half second, and so are few others
in that time: whoever has just talked to the router stands in it.
Rule: bounded, and the entry that was used least recently goes first: a client that makes up addresses can only push out
others' MACs until the next look at the kernel's table, not fill the memory.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from agent.intake import Identity

MAX_ADDRESSES: Final = 16384
"""About 3 MB; a /18 of IPv4, or 2,000 clients with eight IPv6 addresses each."""
LOOK_S: Final = 0.5
MAX_LOOKS: Final = 4
"""In that time: one stranger is not to leave the next one's first record without a MAC, and a flood of made-up
addresses is not to have the table read for each."""
_UNKNOWN: Final = Identity()


class Addresses:
    """Address -> Identity."""

    def __init__(
        self, read_table: Callable[[], Mapping[bytes, bytes]] = dict, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._known: OrderedDict[bytes, Identity] = OrderedDict()
        self._read_table = read_table
        self._now_s = now_s
        self._forget_at = 0.0
        self._looked_for: set[bytes] = set()
        """Since LOOK_S ago at most, found or not."""
        self._changed: dict[bytes, Identity] = {}

    def __len__(self) -> int:
        return len(self._known)

    def identify(self, address: bytes) -> Identity:
        """What is known of this address; empty fields where nothing is."""
        found = self._known.get(address)
        if found is None and self._may_look(address):
            self.refresh(self._read_table())
            found = self._known.get(address)
        return found or _UNKNOWN

    def peek(self, address: bytes) -> Identity:
        """The same, without a look at the kernel's table."""
        return self._known.get(address) or _UNKNOWN

    def notice(self, address: bytes, mac: bytes) -> None:
        """A packet with this MAC came from this address. It may be borrowed: where the kernel's table has said whose it
        is, that stands until the table says otherwise.
        """
        if address in self._known:
            self._known.move_to_end(address)
        else:
            self.learn(address, mac)

    def learn(self, address: bytes, mac: bytes) -> None:
        """This address is this MAC's."""
        known = self._known.get(address)
        if known is None:
            self._known[address] = self._changed[address] = Identity(mac)
            if len(self._known) > MAX_ADDRESSES:
                self._known.popitem(last=False)
        else:
            if known.mac != mac:
                # Another device has the address now: the session was the first one's.
                self._known[address] = self._changed[address] = Identity(mac)
            self._known.move_to_end(address)

    def items(self) -> Iterable[tuple[bytes, Identity]]:
        """All that is known."""
        return self._known.items()

    def take_changes(self) -> Mapping[bytes, Identity]:
        """What changed since the last call."""
        changed, self._changed = self._changed, {}
        return changed

    def _may_look(self, address: bytes) -> bool:
        if (now_s := self._now_s()) >= self._forget_at:
            self._forget_at = now_s + LOOK_S
            self._looked_for.clear()
        if address in self._looked_for or len(self._looked_for) >= MAX_LOOKS:
            return False
        self._looked_for.add(address)
        return True

    def refresh(self, table: Mapping[bytes, bytes]) -> None:
        """The kernel's neighbour table."""
        for address, mac in table.items():
            self.learn(address, mac)
