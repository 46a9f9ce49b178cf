"""What the uplink is for, at its worst: a long outage, and then a broker that is killed, a network that drops packets,
half-open connections, an agent and an uplink that are killed, all while a backlog drains and new records come in.

    python -m tests.lab.outage --records 1000000 --broker-kills 50     # prints what it did and what it found
"""

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from agent.clock import Now
from agent.link import Link
from agent.receiver.reader import Centre as Reader
from policy.event import Dns
from storage.filter import Filter
from storage.writer import Ring
from tests.lab.broker import ROOT, Authority, Centre, Device, Mosquitto, Network, running, wait_until

BLOCK = 1
DAY_MS = 86_400_000


class Yesterday:
    """A clock that runs through the day before now in steps."""

    def __init__(self, hours: int = 24) -> None:
        self.boot_id = "0a0a0a0a-0000-4000-8000-00000000000a"
        self.mono = 100_000
        now_s = time.time()
        # A midnight must be well within the day, or nothing of it would be sealed: so at night it is one of earlier.
        early_s = 12 * 3600 if hours and time.localtime(now_s).tm_hour < 6 else 0
        self._wall = int(now_s - early_s) * 1000 - hours * 3_600_000

    def read(self) -> Now:
        return Now(self.mono, self._wall + self.mono - 100_000, True)


def record(number: int, at_ms: int) -> Dns:
    """Each fiftieth is a block, and says which one it is."""
    is_block = number % 50 == 0
    name = f"b{number:08}.casino.example" if is_block else f"n{number % 5003}.example"
    client = bytes((10, 20, 0, number % 250))
    reason = (BLOCK, 3, "gambling") if is_block else (0, 0, "")
    return Dns(at_ms, client, name, 1, 0, *reason, "pupils", (), False, 3)


def fill(directory: Path, records: int, reboots: int = 0) -> None:
    """A day's records, in a ring that nobody has asked for anything yet."""
    clock = Yesterday()
    ring = Ring(str(directory), clock, seal=True, budget_bytes=512 << 20)
    step = max(1, DAY_MS // (records // 500))
    for first in range(0, records, 500):
        ring.tick(clock.read())
        count = min(500, records - first)
        ring.add([record(first + n, clock.mono + n * step // 500) for n in range(count)])
        ring.commit()
        clock.mono += step
        if reboots and first and first % (records // (reboots + 1)) < 500:
            ring.close()
            clock.boot_id = f"{first % 10**8:08}" + clock.boot_id[8:]
            ring = Ring(str(directory), clock, seal=True, budget_bytes=512 << 20)
    # What of it is of the day before is sealed, as it would be by now.
    while ring.is_busy(clock.read()):
        ring.tick(clock.read())
        time.sleep(0.01)
    ring.close()


class Found(NamedTuple):
    """What the centre has of the records that were made here."""

    total: int
    names: collections.Counter[str]
    blocks: list[str]
    alarms: list[str]


def read(directory: Path) -> Found:
    names: collections.Counter[str] = collections.Counter()
    blocks: list[str] = []
    with Reader(str(directory)) as centre:
        for stream in centre.streams():
            for found in centre.query(stream, Filter(kind=Dns)):
                assert isinstance(found.event, Dns)
                names[found.event.name] += found.times
                if found.event.verdict == BLOCK:
                    blocks.append(found.event.name)
        assert centre.troubles == [], centre.troubles
        alarms = [f"{alarm.kind}: {alarm.text}" for alarm in centre.store.alarms() if alarm.kind != "silent"]
    return Found(sum(names.values()), names, blocks, alarms)


def held(directory: Path) -> collections.Counter[str]:
    """What the ring itself has, once its agent has ended."""
    ring = Ring(str(directory), Yesterday(0), budget_bytes=512 << 20)
    names: collections.Counter[str] = collections.Counter()
    for one in ring.query(Filter(kind=Dns)):
        if one is not None and isinstance(one.event, Dns):
            names[one.event.name] += one.times
    ring.close()
    return names


def expected(records: int) -> Found:
    events = [record(number, 0) for number in range(records)]
    names = collections.Counter(event.name for event in events)
    return Found(records, names, [event.name for event in events if event.verdict == BLOCK], [])


class Hook:
    """A hook that makes records, one after the other: a process of its own, for the agent kills hooks that hang."""

    def __init__(self, device: Device, first: int) -> None:
        command = [sys.executable, "-m", "tests.lab.outage", "--feed", str(device.directory / "run" / "events")]
        self._process = subprocess.Popen([*command, "--records", str(first)], cwd=ROOT, stdout=subprocess.PIPE)

    def close(self) -> int:
        """Number of the next record that it would have made; all before it are with the agent."""
        self._process.terminate()
        said, _ = self._process.communicate(timeout=30)
        return int(said)


def feed(path: str, first: int) -> None:
    """Forty records a second, until SIGTERM."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
    link, number = Link(path, "dns", 0), first
    while not stopping:
        now_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
        for _ in range(2):
            link.put(record(number, now_ms))
            number += 1
        link.pump(time.monotonic())
        # Now and then it is busy elsewhere, and leaves an acknowledgement unread; not for so long that it is killed.
        time.sleep(1.2 if number % 200 == 0 else 0.05)
    link.close(10)
    print(number)


def events(rng: random.Random, broker_kills: int, others: int) -> Iterator[str]:
    """What happens, in a random order."""
    kinds = ["cut", "half-open", "kill agent", "kill uplink", "kill receiver", "restart agent"]
    line = ["kill broker"] * broker_kills + [kinds[n % len(kinds)] for n in range(others)]
    rng.shuffle(line)
    yield from line


def run(
    directory: Path, *, records: int, broker_kills: int, others: int, seed: int, bandwidth: str
) -> dict[str, object]:
    """Returns what was found; raises AssertionError if a record is missing, doubled or out of order."""
    rng = random.Random(seed)
    fill(directory / "device" / "ring", records, reboots=1)
    authority = Authority(directory / "authority")
    began = time.monotonic()
    done: collections.Counter[str] = collections.Counter()
    with Network(f"u{os.getpid() % 100000}") as network, ExitStack() as stack:
        mosquitto = Mosquitto(
            directory / "mosquitto", authority, ("10.98.0.1", "localhost"), "10.98.0.1", network.inside(network.centre)
        )
        centre = Centre(directory / "centre", mosquitto.centre_port, authority, prefix=network.inside(network.centre))
        device = Device(
            directory / "device",
            mosquitto.port,
            authority=authority,
            host="10.98.0.1",
            more=f"\toption bandwidth '{bandwidth}'\n",
            prefix=network.inside(network.device),
        )
        stack.enter_context(running(mosquitto, centre, device))
        wait_until((directory / "device/run/events").exists, 20, device.log)
        hook = Hook(device, records)
        for event in events(rng, broker_kills, others):
            time.sleep(rng.uniform(0.2, 2.5))
            done[event] += 1
            match event:
                case "kill broker":
                    mosquitto.kill()
                    time.sleep(rng.uniform(0.0, 1.0))
                    mosquitto.start()
                case "cut":
                    network.cut()
                    time.sleep(rng.uniform(0.5, 4.0))
                    network.mend()
                case "half-open":  # the broker's end is gone, and the device cannot know
                    network.cut()
                    mosquitto.kill()
                    mosquitto.start()
                    time.sleep(rng.uniform(0.5, 8.0))
                    network.mend()
                case "kill agent":
                    device.kill("agent")
                case "kill uplink":
                    device.kill("uplink")
                case "kill receiver":
                    centre.kill()
                    time.sleep(rng.uniform(0.0, 1.0))
                    centre.start()
                case "restart agent":
                    device.stop()
                    device.start()
        time.sleep(2)
        records = hook.close()
        wanted = expected(records)

        def has_all() -> bool:
            told = device.status().get("ring", {})
            assert isinstance(told, dict)
            after = int(str(told.get("next", "0:0")).partition(":")[2])
            return after > records and centre.until() >= after - 2

        wait_until(
            has_all, 240, lambda: f"{centre.until()} {device.status()}\n{device.log()[-3000:]}\n{centre.log()[-2000:]}"
        )
        status = device.status()
        seconds = time.monotonic() - began
    found = read(directory / "centre")
    own = held(directory / "device" / "ring")
    assert own == wanted.names, f"the ring itself has something else: {own - wanted.names}, {wanted.names - own}"
    assert found.names == wanted.names, {
        name: (found.names[name], wanted.names[name])
        for name in found.names | wanted.names
        if found.names[name] != wanted.names[name]
    }
    assert found.blocks == wanted.blocks, "out of order"
    assert found.alarms == []
    uplink = status.get("uplink")
    return {
        "records": records,
        "found": found.total,
        "seconds": round(seconds, 1),
        "happened": dict(done),
        "uplink": uplink,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--broker-kills", type=int, default=50)
    parser.add_argument("--others", type=int, default=18)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bandwidth", default="30k")
    parser.add_argument("--feed", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.feed:
        feed(options.feed, options.records)
        return
    with tempfile.TemporaryDirectory() as directory:
        found = run(
            Path(directory),
            records=options.records,
            broker_kills=options.broker_kills,
            others=options.others,
            seed=options.seed,
            bandwidth=options.bandwidth,
        )
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
