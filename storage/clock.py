"""Honest time: what the wall clock said, when, and whether it could be believed. Pure.

A router without a battery starts in 1970, or where it was switched off, until a time server answers. Records carry
time since boot, which never lies within one boot; each batch carries one reading of all clocks. From these the wall
time of every record follows, for an unsynced stretch backwards from the first synced reading of the same boot.
Rule: order is (boot, time since boot); the wall clock only labels it.
"""

from __future__ import annotations

from bisect import bisect_left
from enum import IntEnum
from typing import Final, NamedTuple, Protocol


class Quality(IntEnum):
    """How far a record's wall time can be believed."""

    UNSYNCED = 0
    """The clock had not been set in this boot, and never was."""
    CORRECTED = 1
    """It was set later in the same boot; this is counted back from there."""
    SYNCED = 2


class Now(Protocol):
    """One reading of all clocks at once; `agent.clock.Now` is one."""

    @property
    def boottime_ms(self) -> int: ...

    @property
    def wall_ms(self) -> int: ...

    @property
    def synced(self) -> bool: ...


class Clock(Protocol):
    """The machine's clocks."""

    @property
    def boot_id(self) -> str: ...

    def read(self) -> Now: ...


class Sample(NamedTuple):
    """One reading, as it is kept with a batch."""

    boot: str
    boottime_ms: int
    wall_ms: int
    synced: bool


class Timeline:
    """Turns time since boot into wall time, by all samples that are known."""

    def __init__(self) -> None:
        self._synced: Final[dict[str, list[tuple[int, int]]]] = {}
        """Boot -> (boottime, wall minus boottime), ascending."""

    def add(self, sample: Sample) -> None:
        """Take a reading; in any order, but cheap only if ascending."""
        if not sample.synced:
            return
        samples = self._synced.setdefault(sample.boot, [])
        entry = (sample.boottime_ms, sample.wall_ms - sample.boottime_ms)
        # A hundred thousand equal readings say no more than the first and the last of them.
        if len(samples) > 1 and samples[-1][1] == samples[-2][1] == entry[1] and entry >= samples[-1]:
            samples[-1] = entry
        elif not samples or entry >= samples[-1]:
            samples.append(entry)
        else:
            samples.insert(bisect_left(samples, entry), entry)

    def wall(self, at_ms: int, sample: Sample) -> tuple[int, Quality]:
        """Wall milliseconds of a moment of `sample`'s boot, `sample` being the reading of the batch it stands in."""
        if sample.synced:
            return at_ms + sample.wall_ms - sample.boottime_ms, Quality.SYNCED
        samples = self._synced.get(sample.boot)
        if not samples:
            return at_ms + sample.wall_ms - sample.boottime_ms, Quality.UNSYNCED
        place = min(bisect_left(samples, (sample.boottime_ms, -(1 << 62))), len(samples) - 1)
        return at_ms + samples[place][1], Quality.CORRECTED
