"""Makes tests/vectors/ring: `python -m tests.storage.golden`. For a new format that is added, never to mend a test.

A ring of nine segments: sealed at each level of the ladder, sealed with a clock that was set late, and one of batches;
records that a hold keeps of one that is gone. `rows.json` is what a person reads of it.
"""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from agent.records import as_row
from policy.event import Dns, Event, Flow, Gap, Health, Maintenance, Nat, Registration, Session
from policy.signature import public_key
from storage.filter import Filter
from storage.hot import path_of
from storage.layout import Level
from storage.level import relevel
from storage.retention import DAY_MS
from storage.seal import seal
from storage.writer import Ring

VECTORS = Path(__file__).resolve().parents[1] / "vectors/ring"
START_MS = 1_772_496_000_000  # 2026-03-03 00:00 UTC
SECRET = bytes(range(32))
LEVELS = (*Level, Level.SECOND)


class Now(NamedTuple):
    boottime_ms: int
    wall_ms: int
    synced: bool


class Clock:
    boot_id = "0a1b2c3d"

    def __init__(self) -> None:
        self.ms, self.offset_ms, self.synced = 5_000, START_MS, True

    def read(self) -> Now:
        return Now(self.ms, self.ms + self.offset_ms, self.synced)

    def begin_boot(self, boot_id: str) -> None:
        self.boot_id, self.ms, self.offset_ms, self.synced = boot_id, 5_000, 0, False

    def set(self, day: int) -> None:
        self.offset_ms, self.synced = START_MS + day * DAY_MS, True


NAMES = ("www.example.com", "cdn.example.com", "example.org", "a.b.school.edu.tr", "bücher.example", "casino.example")


def accesses(rng: random.Random, from_ms: int) -> Iterator[Event]:
    for number in range(40):
        at_ms = from_ms + number * 700 + rng.randrange(300)
        who = rng.randrange(3)
        client = (bytes((10, 20, 0, 11 + who)), bytes((0xFD,)) + bytes(14) + bytes((who,)))[rng.randrange(2)]
        mac, session = b"\2\0\0\0\0" + bytes((who,)), f"s{who}"
        name = rng.choice(NAMES)
        verdict = int(name.startswith("casino"))
        rule, reason = ("gambling:1", 6) if verdict else ("", 0)
        address = bytes((198, 51, 100, rng.randrange(3)))
        if rng.random() < 0.6:
            qtype = rng.choice((1, 28, 65))
            answers = (address,) if qtype == 1 and not verdict else ()
            yield Dns(
                at_ms, client, name, qtype, 0, verdict, reason, rule, "pupils", answers, rng.random() < 0.5, 12,
                mac, session,
            )  # fmt: skip
        else:
            path, seen = (f"/page/{rng.randrange(3)}", 1) if rng.random() < 0.4 else ("", 2)
            yield Flow(
                at_ms, client, mac, 40_000 + number, address, 80 if path else 443, 6, name, seen, 0, path,
                verdict, reason, rule, "pupils", 1, "GET" if path else "", session,
            )  # fmt: skip
            if rng.random() < 0.2:
                yield Flow(
                    at_ms + 1, client, mac, 1, address, 443, 17, name, 3, 0, "", 0, 0, "", "pupils", 1, "", session
                )


def others(at_ms: int) -> list[Event]:
    mac, client = b"\2\0\0\0\0\1", bytes((10, 20, 0, 12))
    return [
        Session(
            at_ms, "s1", "pupil-17", b"sealed", "room 4", mac, (client,), at_ms - 60_000, at_ms, "idle", "dhcp",
            b"\7" * 16,
        ),
        Maintenance(at_ms, "agent", "policy", "lists", "old", "new", "ok", "by hand"),
        Registration(at_ms, "pupil-17", b"sealed", b"\7" * 16, 1_772_000_000, 0),
        Nat(at_ms, client, bytes((203, 0, 113, 5)), 41_000, 41_063, 6, 0, "s1"),
        Health(at_ms, (("queries", 17), ("flows", 4))),
        Gap(at_ms, "dns/0", -1, at_ms - 500, at_ms, "process died"),
    ]  # fmt: skip


def main() -> None:
    shutil.rmtree(VECTORS, ignore_errors=True)
    VECTORS.mkdir(parents=True)
    directory, rng, clock = VECTORS, random.Random(82), Clock()
    (directory / "ring.key").write_bytes(SECRET)
    ring = Ring(str(directory), clock, maximum_days=400)
    ring.tick(clock.read())
    for number in range(len(LEVELS) + 1):
        if number == len(LEVELS) - 1:  # switched off, and on again; a time server answers late
            clock.begin_boot("4e5f6071")
        if number == len(LEVELS):  # and again, without one at all
            clock.begin_boot("8899aabb")
        for half in range(2):
            ring.add([*accesses(rng, clock.ms), *others(clock.ms + 30_000)])
            clock.ms += 31_000
            if number == len(LEVELS) - 1 and half:
                clock.set(number)
            ring.commit()
            if number == len(LEVELS) and not half:
                clock.begin_boot("ccddeeff")
                clock.set(number)
        clock.ms += DAY_MS
        ring.tick(clock.read())
    ring.close()
    for number, level in enumerate(LEVELS, 1):
        path, target = path_of(str(directory), number), str(directory / "target")
        seal(path, number, target, level=min(level, Level.SECOND), secret=SECRET)
        Path(target).replace(path)
        for step in range(Level.MINUTE, level + 1):
            relevel(path, number, target, Level(step), SECRET)
            Path(target).replace(path)
    _hold_and_lose(directory, clock)
    (directory / "ring.key").unlink()  # a secret, even one of an example, is no example
    rows = read_rows(directory)
    described = {"public_key": public_key(SECRET).hex(), "rows": rows}
    (directory / "rows.json").write_text(json.dumps(described, indent=0, ensure_ascii=False) + "\n")


def _hold_and_lose(directory: Path, clock: Clock) -> None:
    """The first segment's time is over; one name of it is held."""
    clock.ms += DAY_MS // 2
    days = (clock.read().wall_ms - START_MS) // DAY_MS
    ring = Ring(str(directory), clock, maximum_days=days, seal=True)
    ring.place_hold(Filter(domain="school.edu.tr"), "order 17/2026", "auditor")
    ring.tick(clock.read())
    ring.close()


def read_rows(directory: Path) -> list[dict[str, object]]:
    """All of it, as `gatehouse query` prints it."""
    clock = Clock()
    ring = Ring(str(directory), clock)
    rows = [as_row(found) for found in ring.query(Filter()) if found is not None]
    ring.close()
    return rows


if __name__ == "__main__":
    main()
