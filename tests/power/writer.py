"""What is cut: a process that adds, commits, rotates, seals, steps down the ladder and expires, under a fast clock.

Run as `python -m tests.power.writer DIRECTORY MARKS SEED STEPS SYNC FIRST`, in the tree's root. Marks go to a file
below the logged directory, so that they stand in the log in their order: `a N` acknowledges all records below N, `l N`
says that those below N may be gone, because their time is over.
"""

import os
import random
import sqlite3
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from policy.event import Dns, Event, Maintenance
from storage import hot
from storage.filter import Filter
from storage.retention import DAY_MS
from storage.writer import Ring

START_MS = 1_800_000_000_000 // DAY_MS * DAY_MS
BUDGET = 4_866_000
"""Leaves some 100 kB for what is sealed: three days before detail must go."""
PROMISED = 2
LONGEST_STEP_MS = DAY_MS // 8
"""Between two commits."""


class Now(NamedTuple):
    boottime_ms: int
    wall_ms: int
    synced: bool


class Clock:
    def __init__(self, boot: str, ms: int) -> None:
        self.boot_id, self.ms, self.began = boot, ms, ms

    def read(self) -> Now:
        return Now(self.ms - self.began, START_MS + self.ms, True)


def number_of(name: str) -> int:
    """Which record it is: each has its number in its name."""
    return int(name.split("-")[0][1:])


def events(first: int, count: int, at_ms: int, rng: random.Random) -> Iterator[Event]:
    for number in range(first, first + count):
        name = f"n{number}-{rng.randbytes(20).hex()}.example"
        client = bytes((10, 0, 0, rng.randrange(5)))
        kind = rng.randrange(10)
        if kind == 0:
            yield Maintenance(at_ms, "test", "note", name, "", "", "ok")
        else:
            verdict = int(kind < 3)
            yield Dns(at_ms, client, name, 1, 0, verdict, 0, "r", "g", (client,), False, 3, b"\2\0\0\0\0\1", "s")


def held(ring: Ring) -> list[int]:
    """The numbers of all records in the ring."""
    found = []
    for record in ring.query(Filter()):
        if record is not None and isinstance(record.event, Dns | Maintenance):
            event = record.event
            name = event.name if isinstance(event, Dns) else event.object
            if name.startswith("n"):
                found += [number_of(name)] * record.times
    return found


def open_ring(directory: str, clock: Clock) -> Ring:
    return Ring(
        directory, clock, budget_bytes=BUDGET, promised_days=PROMISED, maximum_days=4, seal=True, segment_events=50_000
    )


def with_synchronous(value: str) -> None:
    """The control: a ring that promises what it does not do."""

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *rest: object) -> sqlite3.Cursor:  # type: ignore[override]
            return super().execute(sql.replace("synchronous=FULL", f"synchronous={value}"), *rest)  # type: ignore[arg-type]

    connect = sqlite3.connect

    class Module:
        def __getattr__(self, name: str) -> object:
            return getattr(sqlite3, name)

        def connect(self, *words: object, **options: object) -> sqlite3.Connection:
            return connect(*words, factory=Connection, **options)  # type: ignore[arg-type,call-overload,no-any-return]

    hot.sqlite3 = Module()  # type: ignore[assignment,attr-defined]


def turn(ring: Ring, clock: Clock, marks: int) -> None:
    """One tick of the ring; what it let go is marked."""
    if any(note.action == "retention" and "kept by" not in note.result for note in ring.tick(clock.read())):
        os.write(marks, f"l {min(held(ring))}\n".encode())


def main() -> None:
    directory, marks_path, seed, steps, sync, first = sys.argv[1:]
    if sync != "FULL":
        with_synchronous(sync)
    rng = random.Random(int(seed))
    number, _, started = first.partition(":")
    clock, next_number = Clock(f"boot-{seed}", int(started or 0)), int(number)
    marks = os.open(marks_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    ring = open_ring(directory, clock)
    for _ in range(int(steps)):
        count = rng.choice((1, 3, 30, 200))
        ring.add(list(events(next_number, count, clock.read().boottime_ms, rng)), b"hook/0", next_number)
        ring.commit()
        next_number += count
        os.write(marks, f"a {next_number} {clock.ms}\n".encode())
        clock.ms += rng.choice((1000, 60_000, LONGEST_STEP_MS))
        turn(ring, clock, marks)
        if rng.random() < 0.3:
            until = time.monotonic() + rng.random() * 0.4
            while ring.is_busy(clock.read()) and time.monotonic() < until:
                time.sleep(0.01)
                turn(ring, clock, marks)
    ring.close()


if __name__ == "__main__":
    main()
