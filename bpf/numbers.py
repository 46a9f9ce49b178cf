"""Numbers by which a program in the kernel knows things. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

_Item = TypeVar("_Item", bound=Hashable)


class Numbers(Generic[_Item]):
    """None is used twice, so what a program tells late of somebody forgotten is never taken for another's."""

    def __init__(self) -> None:
        self.named: dict[int, _Item] = {}
        self.before: dict[int, _Item] = {}
        """Those that were known until `start_anew`."""
        self._number: dict[_Item, int] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._number)

    def __contains__(self, item: _Item) -> bool:
        return item in self._number

    def __iter__(self) -> Iterator[_Item]:
        return iter(self._number)

    def of(self, item: _Item) -> int:
        """Its number, from 1 on; a new one if it has none."""
        number = self._number.get(item)
        if number is None:
            number = self._last = self._last + 1
            self._number[item] = number
            self.named[number] = item
        return number

    def name(self, number: int) -> _Item:
        """Whose number it is, or was."""
        return self.named[number] if number in self.named else self.before[number]

    def start_anew(self) -> None:
        """Nothing has a number any more."""
        self.before, self.named = self.named, {}
        self._number.clear()
