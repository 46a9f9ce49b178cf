"""The power goes while clients surf: what was said to be on flash is there, once, and the router comes back by itself.

The disk has a volatile write cache. That this harness would see a loss is shown by a mount that does not flush it.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.qemu.conftest import Golden, Maker, Router, note
from tests.qemu.machine import Machine
from tests.qemu.network import ROUTER
from tests.qemu.volatile import VolatileDisk

ROOT = Path(__file__).resolve().parents[2]
SEED = 7
BATCH = 5
"""Cuts in one test; pytest's workers share them."""
NO_FLUSH = "mount -o remount,nobarrier /overlay"


class Cut(NamedTuple):
    """One power cut and what was left."""

    told: int
    """How many of the flood's records the agent had said to be on flash."""
    last: str
    names: list[str]
    trouble: str
    unwritten: int
    """Writes that were in the disk's cache."""

    @property
    def wrong(self) -> str:
        """Empty: no loss, nothing twice, nothing broken."""
        if self.trouble:
            return self.trouble
        if len(set(self.names)) != len(self.names):
            return f"{len(self.names) - len(set(self.names))} records are there twice"
        if len(self.names) < self.told or self.last not in self.names:
            return f"{self.told} records were on flash up to {self.last}, {len(self.names)} are there"
        return ""


@contextmanager
def flood(maker: Maker) -> Iterator[None]:
    process = maker.network.start("lan", sys.executable, "-I", str(Path(__file__).with_name("flood.py")), ROUTER)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def cut(maker: Maker, golden: Golden, overlay: Path, dice: random.Random, how: str, before: str = "true") -> Cut:
    shutil.copy(golden.overlay, overlay)
    disk = VolatileDisk(overlay, maker.work)
    machine = maker.machine(disk.address, thaw_from=golden.memory)
    try:
        machine.start().thaw()
        machine.run(before)
        with flood(maker):
            machine.console.send("python3 /tmp/stick/witness.py\n")
            machine.console.expect(rb"(?=on-flash [1-9]\d* n\d+\S*\r?\n)")
            disk.light_fuse(dice.randint(1, 40))
            said = listen(machine, 10, disk)
            unwritten = disk.cut(how, dice)
        machine.kill()
        return Cut(*said, *look(overlay), unwritten)
    finally:
        machine.kill()
        disk.close()


def listen(machine: Machine, seconds: float, disk: VolatileDisk | None = None) -> tuple[int, str]:
    """What the witness said last within this time, or before the disk was cut."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0 and not (disk and disk.blown.is_set()):
        machine.console.read(min(left, 0.1))
    found = re.findall(rb"on-flash (\d+) (\S+)\r?\n", machine.console.said)
    if not found:
        return listen(machine, 1.0)
    return int(found[-1][0]), found[-1][1].decode()


def look(overlay: Path) -> tuple[list[str], str]:
    words = ["unshare", "-m", sys.executable, "-m", "tests.qemu.after_cut", str(overlay)]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    if result.returncode:
        raise RuntimeError(result.stderr[-2000:])
    found: dict[str, Any] = json.loads(result.stdout)
    return found["names"], found["trouble"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "batch" in metafunc.fixturenames:
        cuts = int(metafunc.config.getoption("--cuts"))
        metafunc.parametrize("batch", range(0, cuts, BATCH))


def test_nothing_is_lost_at_a_power_cut(maker: Maker, golden: Golden, batch: int, cuts: int) -> None:
    """Every cut at another instant; half of them lose the cache, half of them tear it."""
    cuts = min(BATCH, cuts - batch)
    dice, overlay, wrong, told, unwritten, hits = random.Random(SEED + batch), maker.work / "cut.ext4", [], 0, 0, 0
    for number in range(batch, batch + cuts):
        found = cut(maker, golden, overlay, dice, ("drop", "tear")[number % 2])
        told += found.told
        unwritten += found.unwritten
        hits += bool(found.unwritten)
        if found.wrong:
            wrong.append((number, found.wrong))
    assert not wrong, wrong
    assert hits > cuts / 2, f"{hits} of {cuts} cuts found something in the cache: then too little was tried"
    note(f"{cuts} cuts, {hits} amid writing; {told} records told of, {unwritten} writes thrown away or torn")


def test_the_harness_sees_a_loss(maker: Maker, golden: Golden) -> None:
    """The same on a file system that does not flush the disk's cache: what was promised is not there."""
    dice, overlay = random.Random(SEED), maker.work / "cut.ext4"
    assert any(cut(maker, golden, overlay, dice, "drop", NO_FLUSH).wrong for _ in range(3))


@pytest.mark.parametrize("how", ["drop", "tear"])
def test_the_router_comes_back_by_itself(maker: Maker, golden: Golden, how: str) -> None:
    """A real boot from what the cut left; from switching on to protecting, in seconds."""
    overlay = maker.work / "cut.ext4"
    shutil.copy(golden.overlay, overlay)
    disk = VolatileDisk(overlay, maker.work)
    with maker.machine(disk.address, thaw_from=golden.memory) as machine:
        machine.start().thaw()
        with flood(maker):
            machine.console.send("python3 /tmp/stick/witness.py\n")
            machine.console.expect(rb"on-flash [1-9]\d* n\d+")
            told, last = listen(machine, 1.5)
            disk.cut(how, random.Random(SEED))
    with maker.machine(str(overlay)) as machine:
        machine.start().login()
        router = Router(machine, maker.network)
        router.wait_until_protecting()
        note(f"from power to protecting: {time.monotonic() - machine.started_at:.1f} s")
        assert "as they were written" in router.run("gatehouse verify")
        names = [row["name"] for row in router.rows("--domain flood.casino.example")]
        assert len(names) >= told
        assert last in names
        assert len(set(names)) == len(names)
        assert maker.network.resolve("www.casino.example") != "198.51.100.20"
        status, ring = router.try_run("gatehouse query --kind maintenance --format jsonl")
        assert status == 0, ring
        assert router.complaints() == "", "the kernel of the boot after the cut"
