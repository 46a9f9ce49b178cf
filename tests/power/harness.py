"""Runs the writer under the shim, cuts the power at many places of its log, and opens what is left."""

import os
import random
import shutil
import subprocess
import sys
import time
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from policy.errors import GatehouseError
from storage.retention import DAY_MS
from storage.verify import verify
from tests.power.replay import WRITE, Operation, cuts, read_log
from tests.power.writer import LONGEST_STEP_MS, Clock, held, open_ring

ROOT = Path(__file__).resolve().parents[2]
LOSS, CORRUPT, DOUBLE = "lost", "corrupt", "doubled"


class Result(NamedTuple):
    """How many cuts there were, and what was wrong after which of them."""

    cuts: int
    wrong: list[tuple[int, str, str]]
    """Place in the log, LOSS, CORRUPT or DOUBLE, and in words."""

    def count(self, kind: str) -> int:
        return sum(found == kind for _, found, _ in self.wrong)


def build_shim(directory: Path) -> Path:
    """The shared object, made by the C compiler of this machine."""
    target = directory / "shim.so"
    source = ROOT / "tests/power/shim.c"
    words = ["gcc", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", str(target), str(source), "-ldl"]
    subprocess.run(words, check=True, timeout=60)
    return target


def record(work: Path, shim: Path, *, seed: int, steps: int, sync: str = "FULL", first: str = "0") -> None:
    """Run the writer once; its ring is `work/ring`, its log `work/log`."""
    ring = work / "ring"
    ring.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "LD_PRELOAD": str(shim), "POWER_ROOT": str(ring), "POWER_LOG": str(work / "log")}
    words = [
        sys.executable,
        "-m",
        "tests.power.writer",
        str(ring),
        str(ring / "marks"),
        str(seed),
        str(steps),
        sync,
        first,
    ]
    subprocess.run(words, cwd=ROOT, env=environment, check=True, timeout=300)


def judge(work: Path, count: int, seed: int, *, scratch: Path) -> Result:
    """Cut `count` times at random places, and open each."""
    operations = read_log(work / "log")
    root = str(work / "ring")
    rng = random.Random(seed)
    places = sorted(rng.randrange(1, len(operations) + 1) for _ in range(count))
    acknowledged, allowed = _marks(operations, root)
    wrong = []
    for at, disk in cuts(operations, root, places):
        target = scratch / "cut"
        shutil.rmtree(target, ignore_errors=True)
        disk.cut(target, rng)
        if found := _look(target, acknowledged.at(at), allowed.after(at)):
            wrong.append((at, *found))
    return Result(count, wrong)


def kill(work: Path, count: int, seed: int) -> Result:
    """Kill the writer `count` times at random moments, each time going on with the same ring, and open what is left."""
    ring, marks = work / "ring", work / "marks"
    ring.mkdir(parents=True, exist_ok=True)
    rng, wrong, number, started = random.Random(seed), [], 0, 0
    for turn in range(count):
        words = [sys.executable, "-m", "tests.power.writer", str(ring), str(marks), str(seed + turn), "100000", "FULL"]
        with subprocess.Popen([*words, f"{number}:{started}"], cwd=ROOT) as writer:
            time.sleep(0.3 + rng.random() * 1.2)
            writer.kill()
        told = [line.split() for line in marks.read_text().splitlines()] if marks.exists() else []
        times = [(int(words[1]), int(words[2])) for words in told if words[0] == "a" and len(words) == 3]
        acknowledged, started = times[-1] if times else (0, 0)
        # The oldest segment may have gone in the step that was not marked any more, beyond the promise or with an
        # alarm; but it is never of the last day, and nothing after the oldest record may be missing.
        old = [end for end, ms in times if ms <= started + LONGEST_STEP_MS - DAY_MS]
        opened = open_ring(str(ring), Clock("before", 1 << 40))
        there = held(opened)
        opened.close()
        may_be_gone = min(max(old, default=0), min(there, default=0))
        if found := _look(ring, acknowledged, may_be_gone):
            wrong.append((turn, *found))
        number = max([acknowledged, *[found + 1 for found in there]])
    return Result(count, wrong)


class _Marks:
    """Numbers that grow along the log."""

    def __init__(self, places: list[int], values: list[int]) -> None:
        self._places, self._values = places, values

    def at(self, place: int) -> int:
        """The last one before `place`."""
        found = bisect_right(self._places, place)
        return self._values[found - 1] if found else 0

    def after(self, place: int) -> int:
        """The first one from `place` on, or the last there is: what it tells of may have been done already."""
        found = bisect_right(self._places, place)
        return self._values[min(found, len(self._values) - 1)] if self._values else 0


def _marks(operations: Sequence[Operation], root: str) -> tuple[_Marks, _Marks]:
    found: dict[str, tuple[list[int], list[int]]] = {"a": ([], []), "l": ([], [])}
    for place, operation in enumerate(operations, 1):
        if operation.kind == WRITE and operation.path == f"{root}/marks":
            for line in operation.data.decode().splitlines():
                word, number = line.split()[:2]
                found[word][0].append(place)
                found[word][1].append(int(number))
    return _Marks(*found["a"]), _Marks(*found["l"])


def _look(directory: Path, acknowledged: int, may_be_gone: int) -> tuple[str, str] | None:
    """None: all is there that was acknowledged, once."""
    (directory / "marks").unlink(missing_ok=True)
    try:
        ring = open_ring(str(directory), Clock("after", 1 << 40))
        numbers = held(ring)
        key = ring.public_key
        bad = ring.status()["bad_segments"]
        ring.close()
        verify(str(directory), key)
    except GatehouseError as error:
        return CORRUPT, str(error)
    if bad or list(directory.glob("*.bad")):
        return CORRUPT, "a segment was set aside"
    if len(numbers) != len(set(numbers)):
        return DOUBLE, f"{len(numbers) - len(set(numbers))} records are there twice"
    missing = set(range(may_be_gone, acknowledged)) - set(numbers)
    if missing:
        return LOSS, f"{len(missing)} acknowledged records are gone, the first is {min(missing)}"
    return None
