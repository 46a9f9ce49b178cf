"""What bench-ring measures, each in a process of its own: `python -m tests.bench._ring_child WHAT ARGUMENTS`.

Prints one JSON object. CPU is that of this process for the hot path, and of its children for sealing.
"""

import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from policy.event import Dns, Event, Flow
from storage.filter import Filter
from storage.hot import path_of
from storage.layout import Level
from storage.retention import DAY_MS, segment_events
from storage.writer import Ring
from tests.bench._ring_day import day

CLIENTS = 300
EVENTS = 1_694_000
START_MS = 1_800_000_000_000 // DAY_MS * DAY_MS
ROOT = str(Path(__file__).resolve().parents[2])
_SEAL = """
import sys
sys.path.insert(0, sys.argv[1])
from storage.upkeep import main
main(sys.argv[2:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
BUDGET = 256 << 20
MEMORY = 512 << 20


class Now(NamedTuple):
    boottime_ms: int
    wall_ms: int
    synced: bool


class Clock:
    """A router that is switched on at midnight: each day is a boot of its own, so a day's records fit any day."""

    def __init__(self, number: int = 0) -> None:
        self.boot_id, self.number, self.ms = f"boot-{number}", number, 0

    def read(self) -> Now:
        return Now(self.ms, START_MS + self.number * DAY_MS + self.ms, True)


def opened(directory: str, clock: Clock, *, level: Level = Level.SECOND, seal: bool = True, events: int = 0) -> Ring:
    limit = events or segment_events(BUDGET, MEMORY)
    return Ring(directory, clock, budget_bytes=BUDGET, seal=seal, level=level, segment_events=limit)


class Cost:
    """Of the hot path: what comes between records in memory and records on flash."""

    def __init__(self) -> None:
        self.cpu_s = self.wall_s = 0.0
        self.events = self.commits = 0

    def commit(self, ring: Ring, batch: Sequence[Event]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        ring.add(batch)
        ring.commit()
        self.cpu_s += time.process_time() - cpu
        self.wall_s += time.perf_counter() - wall
        self.events += len(batch)
        self.commits += 1


def write_day(ring: Ring, clock: Clock, batches: Sequence[Sequence[Event]], cost: Cost, *, wait: bool = True) -> None:
    """One day, a commit per 30 seconds of it, rotated where the ring wants it."""
    for batch in batches:
        if batch:
            clock.ms = max(clock.ms, batch[-1].at_ms)
            cost.commit(ring, batch)
            ring.tick(clock.read())
    clock.ms = DAY_MS - 1
    while wait and ring.is_busy(clock.read()):
        time.sleep(0.05)
        ring.tick(clock.read())


def settle(ring: Ring, clock: Clock) -> None:
    """Past midnight, until everything is sealed."""
    clock.ms = max(clock.ms, DAY_MS)
    ring.tick(clock.read())
    while ring.is_busy(clock.read()):
        time.sleep(0.05)
        ring.tick(clock.read())


def sealed_bytes(directory: str) -> int:
    return sum(path.stat().st_size for path in Path(directory).glob("seg-*.db"))


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def sizes(directory: str, days: str, level: str, pessimistic: str, events: str) -> dict[str, float]:
    """Days of a school written and sealed: size, CPU of the hot path and of sealing, memory of the child."""
    cost, total, hot = Cost(), 0, 0
    for number in range(int(days)):
        batches = list(day(number + 1, CLIENTS, int(events), pessimistic=pessimistic == "yes"))
        gc.freeze()  # a day of records in memory is the bench's: no agent has them to walk through
        clock = Clock(number)
        ring = opened(directory, clock, level=Level[level])
        hot = 0
        write_day(ring, clock, batches, cost, wait=False)
        hot += int(str(ring.status()["committed_bytes"]))
        settle(ring, clock)
        ring.close()
        total += sum(map(len, batches))
    return {
        "events": total,
        "bytes": sealed_bytes(directory),
        "hot_us": cost.cpu_s / total * 1e6,
        "events_a_s": total / cost.wall_s,
        "hot_bytes": hot * int(days),
        "seal_us": children_cpu_s() / total * 1e6,
    }


def memory(directory: str, events: str) -> dict[str, float]:
    """What the sealing child takes at its most; by its own word, for the kernel's counts its parent's before exec."""
    clock, secret = Clock(), os.path.join(directory, "key")
    ring = opened(directory, clock, events=1 << 30, seal=False)
    write_day(ring, clock, list(day(1, CLIENTS, int(events))), Cost())
    clock.ms = DAY_MS
    ring.tick(clock.read())
    ring.close()
    source, target = path_of(directory, 1), os.path.join(directory, "sealed")
    words = ["seal", source, "1", target, str(int(Level.SECOND)), secret]
    said = subprocess.run(
        [sys.executable, "-I", "-c", _SEAL, ROOT, *words], stdout=subprocess.PIPE, text=True, check=True
    )
    return {"seal_mb": int(said.stdout) / 1024}


def urgent_split(batch: Sequence[Event], window_ms: int) -> Iterator[list[Event]]:
    """What the agent commits: stopped accesses `window_ms` after the first of them, all else then or at the end."""
    piece: list[Event] = []
    due = 0
    for event in batch:
        if due and event.at_ms >= due:
            yield piece
            piece, due = [], 0
        piece.append(event)
        if not due and isinstance(event, Dns | Flow) and event.verdict:
            due = event.at_ms + window_ms
    if piece:
        yield piece


def device(directory: str, stat: str, events: str, window_ms: str) -> dict[str, float]:
    """Octets that reach the block device, ext4's own among them. After each commit everything lazy is flushed too:
    a day is replayed in a minute, and the kernel would put together what in a day it writes one by one.

    `window_ms`: how long after a stopped access it is committed; 0: with the others, every 30 seconds.
    """
    clock, cost = Clock(), Cost()
    descriptor = os.open(directory, os.O_RDONLY)
    ring = opened(directory + "/ring", clock)
    batches = [batch for batch in day(1, CLIENTS, int(events)) if batch]
    syncfs(descriptor)
    before = written(stat)
    for batch in batches:
        clock.ms = max(clock.ms, batch[-1].at_ms)
        for piece in urgent_split(batch, int(window_ms)) if int(window_ms) else (batch,):
            cost.commit(ring, piece)
            syncfs(descriptor)
        ring.tick(clock.read())
        while ring.is_busy(clock.read()):  # half a minute is enough for it; half a file flushed twice would count twice
            time.sleep(0.05)
            ring.tick(clock.read())
    settle(ring, clock)
    ring.close()
    syncfs(descriptor)
    return {"events": cost.events, "device": written(stat) - before, "commits": cost.commits}


def syncfs(descriptor: int) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
        raise OSError(ctypes.get_errno(), "syncfs")


def written(stat: str) -> int:
    """Octets written to a block device so far: Documentation/block/stat.rst, the seventh field, of 512 octets."""
    return int(Path(stat).read_text().split()[6]) * 512


def sixty(directory: str, days: str, kinds: str, events: str) -> dict[str, float]:
    """A long ring: so many days, made of a few generated ones in turn."""
    made = [list(day(number + 1, CLIENTS, int(events))) for number in range(int(kinds))]
    gc.freeze()
    cost, wall = Cost(), time.perf_counter()
    for number in range(int(days)):
        clock = Clock(number)
        ring = opened(directory, clock)
        write_day(ring, clock, made[number % len(made)], cost, wait=False)
        settle(ring, clock)
        ring.close()
        print(f"  day {number + 1} of {days}", file=sys.stderr, flush=True)
    return {
        "events": cost.events,
        "bytes": sealed_bytes(directory),
        "hot_us": cost.cpu_s / cost.events * 1e6,
        "seal_us": children_cpu_s() / cost.events * 1e6,
        "wall_s": time.perf_counter() - wall,
    }


def questions(directory: str, days: str, rounds: str) -> dict[str, float]:
    """The questions of an auditor, asked as the agent asks them: an open ring, files in the page cache."""
    length = int(days)
    clock = Clock(length)
    ring = opened(directory, clock)
    end = START_MS + length * DAY_MS
    some = next(batch for batch in day(1, CLIENTS, 20_000) if batch)
    mac = next(event.mac for event in some if isinstance(event, Dns))
    some_name = next(event.name for event in some if isinstance(event, Dns) and not event.verdict)
    his = [found.name for found in ring.names(Filter(mac=mac, since_ms=end - DAY_MS)) if found]
    visitors = {name: sum(1 for visitor in ring.visitors(name) if visitor) for name in his[-100:]}
    rare = min((name for name in visitors if visitors[name]), key=visitors.__getitem__)
    common = his[0]
    noon = START_MS + length // 2 * DAY_MS + DAY_MS // 2
    asked = {
        "names_6h": lambda: ring.names(Filter(mac=mac, since_ms=noon - DAY_MS // 8, until_ms=noon + DAY_MS // 8)),
        "names_60d": lambda: ring.names(Filter(mac=mac)),
        "who": lambda: ring.visitors(some_name),
        "who_rare": lambda: ring.visitors(rare),
        "when": lambda: ring.query(Filter(domain=some_name)),
        "when_common": lambda: ring.query(Filter(domain=common)),
        "when_rare": lambda: ring.query(Filter(domain=rare)),
        "one_day": lambda: ring.query(
            Filter(domain=some_name, since_ms=noon - DAY_MS // 2, until_ms=noon + DAY_MS // 2)
        ),
        "blocked_60d": lambda: ring.query(Filter(verdict=1, mac=mac)),
    }
    answer: dict[str, float] = {}
    for name, ask in asked.items():
        times = []
        for _ in range(int(rounds)):
            began, hits = time.perf_counter(), 0
            for found in ask():
                hits += found is not None
            times.append(time.perf_counter() - began)
        answer[name] = sorted(times)[len(times) // 2]
        answer[f"{name}_hits"] = hits
    ring.close()
    answer["rss_mb"] = peak_mb()
    return answer


def peak_mb() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main() -> None:
    what, *arguments = sys.argv[1:]
    answer = {"sizes": sizes, "memory": memory, "device": device, "sixty": sixty, "questions": questions}
    from tests.bench import _ring_peers

    print(json.dumps({**answer, **_ring_peers.PEERS}[what](*arguments)))  # type: ignore[operator]


if __name__ == "__main__":
    main()
