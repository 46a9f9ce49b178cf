"""The uplink beside what people usually do: a JSON message for each record, QoS 1, over paho. One broker, one run.

Wire bytes are all that goes over TCP both ways: TLS, MQTT, acknowledgements, heartbeats, handshakes. `--live` seconds
of a school's busiest hour are lived through in real time, as records come and blocks go at once.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from agent.clock import Now
from policy.errors import StorageError
from storage.hot import Beginning, Segment
from storage.layout import Level
from storage.seal import Description, Part, write
from storage.sealed import Sealed
from storage.upkeep import read_secret
from storage.writer import Ring
from tests.bench import table
from tests.bench._ring_day import day
from tests.bench._uplink_wire import Wire
from tests.bench.table import Row
from tests.lab.broker import ROOT, Authority, Centre, Device, Mosquitto, running, wait_until

DAYS = 60
USUAL = "paho, JSON a record, QoS 1"
EVENTS = 1_200_000
"""Asked of the generator, which gives 1.69 million for it: a day of a school of 300 clients."""
DAY_MS = 86_400_000


class Yesterday:
    def __init__(self) -> None:
        self.boot_id = "0b0b0b0b-0000-4000-8000-00000000000b"
        self.mono = 0
        self._wall = (time.time_ns() // 1_000_000 - 70 * DAY_MS) // DAY_MS * DAY_MS

    def read(self) -> Now:
        return Now(self.mono, self._wall + self.mono, True)


def make_day(directory: Path, events: int) -> int:
    """One day, sealed as a ring seals it. Returns how many records."""
    clock = Yesterday()
    ring = Ring(str(directory), clock, seal=True, budget_bytes=1 << 30)
    total = 0
    for some in day(3, 300, events):
        if not some:
            continue
        clock.mono = max(clock.mono + 1, some[-1].at_ms)
        ring.tick(clock.read())
        ring.add(some)
        ring.commit()
        total += len(some)
    clock.mono = DAY_MS + 60_000
    ring.tick(clock.read())
    while ring.is_busy(clock.read()):
        time.sleep(0.05)
        ring.tick(clock.read())
    ring.close()
    return total


def multiply(source: Path, target: Path, days: int) -> int:
    """The same day again and again, numbered, chained and signed as if each had been lived. Returns records."""
    target.mkdir(parents=True)
    secret = read_secret(str(source / "ring.key"))
    (target / "ring.key").write_bytes(secret)
    (target / "ring.key").chmod(0o600)
    sealed = []
    for path in sorted(source.glob("seg-*.db")):
        try:
            sealed.append(Sealed(str(path), int(path.name[4:10])))
        except StorageError:  # the segment of the next day, empty
            continue
    number, seq, head = 0, 1, bytes(16)
    for _ in range(days):
        for one in sealed:
            number += 1
            parts = []
            for place in range(len(one._parts)):
                _, kind, first, last = one._parts[place]
                shift = seq - one.first_seq if kind == "kept" else 0
                parts.append(Part(kind, first + shift, last + shift, one.load(place)))
            after = os.urandom(16)
            size = one.next_seq - one.first_seq
            described = Description(Level(one.level), number, seq, seq + size, head, after)
            write(str(target / f"seg-{number:06}.db"), described, parts, secret)
            seq, head = seq + size, after
    for one in sealed:
        one.close()
    today = Segment(str(target / f"seg-{number + 1:06}.db"), number + 1, is_open=True, beginning=Beginning(seq, head))
    today.close()
    return seq - 1


class Memory:
    """The most resident octets of some processes while a `with` block runs, above what they had before it."""

    def __init__(self, pids: dict[str, int]) -> None:
        self.before = {name: rss(pid) for name, pid in pids.items()}
        self.most = dict(self.before)
        self._pids, self._done = pids, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            for name, pid in self._pids.items():
                self.most[name] = max(self.most[name], rss(pid))

    def grown(self, name: str) -> float:
        return (self.most[name] - self.before[name]) / 1e6


def rss(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("VmRSS")), 0)


def drain(directory: Path, authority: Authority, records: int) -> dict[str, float]:
    """Everything in the ring of `directory` goes to a centre."""
    mosquitto = Mosquitto(directory / "mosquitto", authority)
    centre = Centre(directory / "centre", mosquitto.centre_port, authority)
    with Wire(mosquitto.port) as wire:
        device = Device(directory, wire.port, authority=authority, live="2s", heartbeat="60s")
        with running(device):
            time.sleep(4.0)  # away: it has tried, and failed
            pids = {role: device.pids(role)[0] for role in ("agent", "uplink")}
            with Memory(pids) as memory, running(mosquitto, centre):
                wait_until(lambda: "connected" in centre.log(), 20)
                wait_until(lambda: centre.until() > 1, 60, lambda: device.log() + centre.log())
                began, from_octets, first = time.monotonic(), wire.octets, centre.until()
                wait_until(lambda: centre.until() > records, 400, lambda: device.log() + centre.log())
                seconds, octets = time.monotonic() - began, wire.octets - from_octets
                alarms = centre.sql("SELECT text FROM alarm WHERE kind <> 'silent'")
                assert alarms == [], alarms
            assert pids["uplink"] == device.pids("uplink")[0], device.log()
    return {
        "records_s": (records + 1 - first) / seconds,
        "octets": octets / (records + 1 - first),
        "agent_mb": memory.grown("agent"),
        "uplink_mb": memory.grown("uplink"),
        "uplink_rss_mb": memory.most["uplink"] / 1e6,
        "seconds": seconds,
    }


def live(directory: Path, authority: Authority, seconds: float, *, warm: bool) -> dict[str, float]:
    """Some minutes of the busiest hour, with the settings as they are shipped."""
    mosquitto = Mosquitto(directory / "mosquitto", authority)
    centre = Centre(directory / "centre", mosquitto.centre_port, authority)
    with Wire(mosquitto.port) as wire:
        device = Device(directory, wire.port, authority=authority, live="300s", heartbeat="60s")
        text = (
            device.config.read_text().replace("flush '1s'", "flush '30s'").replace("keepalive '5s'", "keepalive '30s'")
        )
        device.config.write_text(text)
        command = [sys.executable, "-m", "tests.bench._uplink_feed", str(directory / "run" / "events"), str(seconds)]
        with running(device):
            # In the midst of a day: whoever is there has a session, and what a start tells is told before we count.
            wait_until((directory / "run" / "events").exists, 20)
            if warm:
                subprocess.run([*command, "warm"], cwd=ROOT, capture_output=True, check=True)
                time.sleep(2)
            mosquitto.start()
            centre.start()
            wait_until(lambda: "connected" in device.log(), 60)
            time.sleep(2)
            from_octets = wire.octets
            said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
            records, critical = int(said[0]), int(said[1])
            wait_until(lambda: centre.until() > records, 200, lambda: device.log() + centre.log())
            time.sleep(1.5)
            octets = wire.octets - from_octets
            alarms = centre.sql("SELECT text FROM alarm WHERE kind <> 'silent'")
            assert alarms == [], alarms
            time.sleep(6)  # the uplink tells its counters every five seconds
            urgent = device.status()["uplink"]["urgent"]  # type: ignore[index]
            payload = device.status()["uplink"]["sent_bytes"]  # type: ignore[index]
            centre.stop()
            mosquitto.stop()
    return {
        "octets": octets / records,
        "bulk": payload / records,
        "records": records,
        "critical": critical,
        "urgent": urgent,
    }


def peer(directory: Path, authority: Authority, count: int, how: str) -> dict[str, float]:
    mosquitto = Mosquitto(directory / f"mosquitto-{how}", authority)
    pem, key = authority.issue("peer", "11010500000001/peer")
    with running(mosquitto), Wire(mosquitto.port) as wire:
        command = [sys.executable, "-m", "tests.bench._uplink_peer", str(wire.port), str(authority.path), str(pem)]
        done = subprocess.run(
            [*command, str(key), str(count), how], cwd=ROOT, capture_output=True, text=True, check=True
        )
        found: dict[str, float] = json.loads(done.stdout)
        found["octets"] = wire.octets / found["records"]
    return found


def backlog(directory: Path, authority: Authority, days: int, online: dict[str, float]) -> list[Row]:
    """Days that are sealed, and the day that runs."""
    offline = peer(directory, authority, 100_000, "offline")
    a_day = make_day(directory / "day", EVENTS)
    records = multiply(directory / "day", directory / "sealed" / "ring", days)
    sealed = drain(directory / "sealed", authority, records)
    hot = _hot(directory, authority)
    of_days = sealed["octets"] * a_day * DAYS * 8 / 1e6 / 60
    return [
        Row(
            metric="wire, backlog of sealed days",
            unit="octets a record",
            ours=sealed["octets"],
            peers={USUAL: online["octets"]},
            target="<= 2",
            met=sealed["octets"] <= 2,
        ),
        Row(
            metric="drain, sealed days",
            unit="records/s",
            ours=sealed["records_s"],
            peers={USUAL: online["records"] / online["seconds"]},
            target=">= 100,000",
            met=sealed["records_s"] >= 100_000,
        ),
        Row(metric="wire, backlog not sealed yet", unit="octets a record", ours=hot["octets"]),
        Row(metric="drain, not sealed yet", unit="records/s", ours=hot["records_s"]),
        Row(
            metric=f"{DAYS} days of {a_day:,} records at 1 Mbit/s",
            unit="minutes, by octets",
            ours=of_days,
            peers={USUAL: online["octets"] * a_day * DAYS * 8 / 1e6 / 60},
            target="<= 20",
            met=of_days <= 20,
        ),
        Row(
            metric=f"memory of the agent, {days} days draining",
            unit="MB grown",
            ours=sealed["agent_mb"],
            target="<= 15",
            met=sealed["agent_mb"] <= 15,
        ),
        Row(
            metric=f"memory of the uplink, {days} days draining",
            unit="MB grown",
            ours=sealed["uplink_mb"],
            peers={"paho, 100,000 records queued": offline["grown"] / 1e6},
            target="<= 15",
            met=sealed["uplink_mb"] <= 15,
        ),
        Row(metric="memory of the uplink, in all", unit="MB RSS", ours=sealed["uplink_rss_mb"]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--live", type=float, default=295.0, help="seconds of real time, just under `live`; 0: leave it out"
    )
    parser.add_argument("--days", type=int, default=DAYS, help="of backlog; 0: leave it out")
    parser.add_argument("--cold", action="store_true", help="live: count the beginning of everybody's session, too")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        authority = Authority(directory / "authority")
        online = peer(directory, authority, 20_000, "online")
        if options.days:
            rows += backlog(directory, authority, options.days, online)
        if options.live:
            now = live(directory / "live", authority, options.live, warm=not options.cold)
            rows += [
                Row(
                    metric=f"wire, live, everything{', and every session begins' if options.cold else ''}",
                    unit="octets a record",
                    ours=now["octets"],
                    peers={USUAL: online["octets"]},
                    target="<= 8",
                    met=now["octets"] <= 8,
                ),
                Row(metric="wire, live, the records' own messages", unit="octets a record", ours=now["bulk"]),
                Row(
                    metric="records that went ahead, at once",
                    unit="% of all",
                    ours=100 * now["urgent"] / now["records"],
                ),
            ]
    table.write("uplink", rows)


def _hot(directory: Path, authority: Authority) -> dict[str, float]:
    """Batches of the day that runs: what an outage of hours leaves."""
    clock = Yesterday()
    clock._wall = time.time_ns() // 1_000_000 - 60_000  # of today: a day that is over would be sealed at once
    ring = Ring(str(directory / "hot" / "ring"), clock, seal=True, budget_bytes=1 << 30)
    total = 0
    for events in day(4, 300, 200_000):
        if events:
            clock.mono += 10
            ring.add(events)
            ring.commit()
            total += len(events)
    ring.close()
    return drain(directory / "hot", authority, total)


if __name__ == "__main__":
    main()
