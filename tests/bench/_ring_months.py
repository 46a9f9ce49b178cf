"""Months of a venue in minutes: the real ring, its real children and files, under a clock that is told what time it is.

One generated day comes again and again, each time with names of its own for a twentieth of its records.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from policy.event import Dns, Event, Flow
from storage.layout import Level
from storage.retention import DAY_MS, segment_events
from storage.writer import Note, Ring
from tests.bench._ring_day import day

START_MS = 1_800_000_000_000 // DAY_MS * DAY_MS
STEP_MS = 300_000


class Now(NamedTuple):
    boottime_ms: int
    wall_ms: int
    synced: bool


class Clock:
    """Stands still until it is moved."""

    boot_id = "boot-1"

    def __init__(self) -> None:
        self.ms = 0

    def read(self) -> Now:
        return Now(self.ms, START_MS + self.ms, True)


class Day(NamedTuple):
    """How the ring stands at the end of a day."""

    day: int
    events: int
    size: int
    """Octets of everything in the directory, at its largest in this day."""
    oldest_days: float
    days_at_level: dict[str, float]
    at_risk: bool
    notes: list[Note]


def months(
    directory: Path, *, budget: int, promised: int, length: int, clients: int, events: int, double_on: int
) -> Iterator[Day]:
    """A ring's life, a report a day."""
    clock = Clock()
    limit = segment_events(budget, 512 << 20)
    ring = Ring(str(directory), clock, budget_bytes=budget, promised_days=promised, seal=True, segment_events=limit)
    once = list(day(7, clients, events))
    for number in range(length):
        notes: list[Note] = []
        size = total = 0
        for half in range(2 if number >= double_on else 1):
            waiting: list[Event] = []
            due = 0
            for batch in _again(once, number, half):
                waiting += batch
                if not batch or batch[-1].at_ms < number * DAY_MS + due + STEP_MS // 2:
                    continue
                # Two halves of a doubled day, one after the other in half of the time each.
                share = (batch[-1].at_ms - number * DAY_MS) / DAY_MS
                span = 0.5 if number >= double_on else 1.0
                clock.ms = max(clock.ms, int((number + (half + share) * span) * DAY_MS))
                ring.add([event._replace(at_ms=clock.ms) for event in waiting])
                total += len(waiting)
                waiting = []
                due += STEP_MS
                ring.commit()
                notes += settle(ring, clock)
                size = max(size, int(str(ring.status()["bytes"])))
        clock.ms = max(clock.ms, (number + 1) * DAY_MS)
        notes += settle(ring, clock)
        status = ring.status()
        levels = status["days_at_level"]
        assert isinstance(levels, dict)
        oldest = float(str(status["oldest_days"]))
        yield Day(number, total, max(size, int(str(status["bytes"]))), oldest, levels, bool(status["at_risk"]), notes)
    ring.close()


def settle(ring: Ring, clock: Clock) -> list[Note]:
    """Ticks until the ring has nothing more to do: a child takes seconds, a made-up hour none."""
    notes = ring.tick(clock.read())
    while ring.is_busy(clock.read()):
        time.sleep(0.005)
        notes += ring.tick(clock.read())
    return notes


def _again(once: list[list[Event]], number: int, half: int) -> Iterator[list[Event]]:
    for batch in once:
        again: list[Event] = []
        for at, event in enumerate(batch):
            assert isinstance(event, Dns | Flow)
            name = event.name if at % 20 else f"d{number}-{half}.{event.name}"
            again.append(event._replace(at_ms=event.at_ms + number * DAY_MS, name=name))
        yield again


def full_detail(levels: dict[str, float]) -> bool:
    return set(levels) <= {Level.SECOND.name.lower()}
