"""A piece of memory that is written in a circle, by one who knows that others still read in it. Pure.

Before anything is written over, what lies there is given up, and a turn passes: whoever had just looked it up has
finished with it by then.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final

HEAD: Final = Struct("=qII")
"""Before each item: its key, view, octets from here to the next head. View 0: nothing, up to the end of the memory."""
CLEARED_SHARE: Final = 8
"""One part in so many is given up ahead: so much can be written in one turn."""


class Circle:
    """`memory` of `size` octets, a multiple of 8. `give_up` is told key, view and place of what is to go."""

    def __init__(self, memory: memoryview, give_up: Callable[[int, int, int], None]) -> None:
        self._memory = memory
        self._size = len(memory)
        self._give_up = give_up
        # All three count on for ever; modulo the size they are places.
        self._next = 0
        self._safe = self._size
        """So far may be written."""
        self._cleared = self._size
        """So far everything has been given up."""

    def put(self, key: int, view: int, data: bytes) -> int | None:
        """Write an item down. Gives the place of its data; None: not in this turn, or never."""
        size = (HEAD.size + len(data) + 7) & ~7
        if size > self._size // CLEARED_SHARE:
            return None
        place = self._next % self._size
        left = self._size - place
        if left < size:
            if self._next + left + size > self._safe:
                return None
            if left >= HEAD.size:
                HEAD.pack_into(self._memory, place, 0, 0, left)
            self._next += left
            place = 0
        elif self._next + size > self._safe:
            return None
        HEAD.pack_into(self._memory, place, key, view, size)
        at = place + HEAD.size
        self._memory[at : at + len(data)] = data
        self._next += size
        return at

    def turn(self) -> None:
        """A turn has passed: what was given up before it may be written over. Gives up more, if there is need."""
        self._safe = self._cleared
        while self._cleared < self._next + self._size // CLEARED_SHARE:
            self._clear_one()

    def clear(self) -> None:
        """Give everything up."""
        while self._cleared < self._next + self._size:
            self._clear_one()

    def _clear_one(self) -> None:
        place = self._cleared % self._size
        left = self._size - place
        if left < HEAD.size:
            self._cleared += left
            return
        key, view, size = HEAD.unpack_from(self._memory, place)
        if view:
            self._give_up(key, view, place + HEAD.size)
        self._cleared += size if view else left
