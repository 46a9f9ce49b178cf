"""bench-ring: a school's days in the ring, beside what a venue would keep them in otherwise, in one run.

    python -m tests.bench.ring              everything but the months; some twenty minutes on two cores
    python -m tests.bench.ring quick        a tenth of the records, and no sixty days
    python -m tests.bench.ring sixty        only the questions over sixty days; `days`: all but these
    python -m tests.bench.ring months 64    75 days with real files under 64 MB, the load doubled on day 30

A made-up school (`_ring_day`): 300 clients, bursts, Zipf, one-off names, a day's curve. Each contender runs in a
process of its own. Octets on the device are those of a loop device with ext4 on it; where one cannot be mounted, those
rows are left out. The ring of sixty days is kept in build/bench/ring60 for the next run.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench._ring_child import CLIENTS, EVENTS
from tests.bench._ring_months import months
from tests.bench.table import BUILD, Row, write

ROOT = Path(__file__).resolve().parents[2]
DAYS = 4
LONG = 60
KINDS = 4
NAIVE_SHARE = 8
"""The naive table is given an eighth of the day: at 15 kB written a record, a whole one would take an hour."""
DISK = 256 << 20
"""Of the reference router. mkfs.ext4 makes blocks of 1 KiB up to 512 MB and of 4 KiB beyond: the same commits cost
nearly twice as much there, for whole blocks of the journal are written for each change of a file's time."""
WINDOW_MS = 1000
"""As `agent.server` does: a stopped access is on flash within a second, with all that waits."""


def main(words: list[str]) -> int:
    if "months" in words:
        return run_months(int(words[words.index("months") + 1]))
    quick = "quick" in words
    events = EVENTS // 10 if quick else EVENTS
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as directory:
        bench = Bench(Path(directory), events)
        if "sixty" not in words:
            rows += bench.sizes(1 if quick else DAYS)
            rows += bench.devices()
    if not quick and "days" not in words:
        rows += sixty()
    write("ring", rows)
    return 0 if all(row.met is not False for row in rows) else 1


class Bench:
    """One run."""

    def __init__(self, directory: Path, events: int) -> None:
        self.directory, self.events = directory, events
        self._number = 0

    def fresh(self) -> str:
        self._number += 1
        path = self.directory / str(self._number)
        path.mkdir()
        return str(path)

    def sizes(self, days: int) -> list[Row]:
        say(f"{days} days, sealed by seconds")
        plain = child("sizes", self.fresh(), days, "SECOND", "no", self.events)
        say("a pessimistic day: every name drawn by itself")
        worst = child("sizes", self.fresh(), 1, "SECOND", "yes", self.events)
        say("a day with milliseconds, ports and cache flags kept")
        exact = child("sizes", self.fresh(), 1, "EXACT", "no", self.events)
        say("half a million records sealed at once")
        memory = child("memory", self.fresh(), 490_000)
        say("peers on disk")
        naive = child("naive", self.fresh(), "", self.events // NAIVE_SHARE)
        pihole = child("pihole", self.fresh(), "", self.events)
        adguard = child("adguard", self.fresh(), "", self.events)
        text = child("text", self.fresh(), "", self.events)
        ours = plain["bytes"] / plain["events"]
        peers = {
            "sqlite-utils": each(naive),
            "pi-hole": each(pihole),
            "adguard": each(adguard),
            "adguard gzip -9": adguard["gzip"] / adguard["events"],
            "text gzip -9": text["gzip"] / text["events"],
            "text xz -9e": each(text),
        }
        rows = [at_most("size, sealed", "B/event", ours, 1.5, peers)]
        rows += [Row(metric=f"smaller than {name}", unit="times", ours=size / ours) for name, size in peers.items()]
        rows += [
            at_most("size, sealed, pessimistic", "B/event", each(worst), 2.5),
            at_most("size, sealed exactly", "B/event", each(exact), 2.7),
            Row(metric="size, not sealed yet", unit="B/event", ours=plain["hot_bytes"] / plain["events"]),
            at_most("hot path", "us CPU/event", plain["hot_us"], 3.0, {
                "sqlite-utils": naive["cpu_us"], "pi-hole": pihole["cpu_us"], "adguard": adguard["cpu_us"],
            }),
            at_least("hot path, sustained", "events/s", plain["events_a_s"], 100_000),
            at_most("sealing", "us CPU/event", plain["seal_us"], 6.0, {"text xz -9e": text["cpu_us"]}),
            at_most("sealing 0.5 M events, peak", "MB RSS", memory["seal_mb"], 60),
        ]  # fmt: skip
        return rows

    def devices(self) -> list[Row]:
        if os.geteuid() != 0:
            say("not root: nothing can be mounted, what reaches a device is not measured")
            return []
        found: dict[str, float] = {}
        commits: dict[str, float] = {}
        contenders: tuple[tuple[str, str, int, int, tuple[object, ...]], ...] = (
            ("ours", "device", 1, DISK, (0,)),
            ("ours, stopped accesses within 1 s", "device", 1, DISK, (WINDOW_MS,)),
            ("ours, blocks of 4 KiB", "device", 1, 8 * DISK, (0,)),
            ("pi-hole", "pihole", 1, DISK, ()),
            ("adguard", "adguard", 1, 2 * DISK - (1 << 20), ()),
            ("sqlite-utils", "naive", NAIVE_SHARE, DISK, ()),
        )
        for name, what, share, size, more in contenders:
            say(f"on a device: {name}")
            with disk(self.directory / "disk.img", size) as (mount, stat):
                said = child(what, mount, stat, self.events // share, *more)
            found[name] = said["device"] / said["events"]
            commits[name] = said.get("commits", 0)
        ours = found.pop("ours")
        urgent, large = found.pop("ours, stopped accesses within 1 s"), found.pop("ours, blocks of 4 KiB")
        return [
            at_most("written to the device, 30 s", "B/event", ours, 45, found),
            Row(metric="the same, stopped accesses within 1 s", unit="B/event", ours=urgent),
            Row(metric="the same, file system with blocks of 4 KiB", unit="B/event", ours=large),
            Row(metric="commits a day, 30 s", unit="", ours=commits["ours"]),
            Row(metric="commits a day, stopped within 1 s", unit="", ours=commits["ours, stopped accesses within 1 s"]),
        ]


def sixty() -> list[Row]:
    """A ring of sixty days, made once, and an auditor's questions to it."""
    directory, told = BUILD / "ring60", BUILD / "ring60.json"
    if not told.exists():
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        say(f"{LONG} days of {CLIENTS} clients")
        told.write_text(json.dumps(child("sixty", str(directory), LONG, KINDS, EVENTS)))
    made = json.loads(told.read_text())
    say("questions")
    said = child("questions", str(directory), LONG, 5)

    def asked(metric: str, key: str, most: float | None) -> Row:
        row = f"{metric} ({said[f'{key}_hits']:.0f} found)"
        return at_most(row, "s", said[key], most) if most else Row(metric=row, unit="s", ours=said[key])

    return [
        Row(metric="60 days", unit="events", ours=made["events"]),
        Row(metric="60 days, all in", unit="MB", ours=made["bytes"] / 1e6),
        at_most("60 days, sealed", "B/event", made["bytes"] / made["events"], 1.5),
        asked("one client's names, 6 h", "names_6h", 0.1),
        asked("one client's names, 60 days", "names_60d", 3.0),
        asked("who visited, 60 days, a name", "who", 0.3),
        asked("who visited, 60 days, rare", "who_rare", 0.3),
        asked("with exact times, a name", "when", 1.5),
        asked("with exact times, rare", "when_rare", 1.5),
        asked("with exact times, what a client asks for most", "when_common", None),
        asked("with exact times, one day, a name", "one_day", None),
        asked("what was blocked for one client", "blocked_60d", None),
        at_most("memory while asking", "MB RSS", said["rss_mb"], 64),
    ]


def run_months(megabytes: int) -> int:
    """75 days at the rated load, doubled on day 30, with real files."""
    from tests.storage.test_storage_retention import rated

    load = rated(megabytes << 20, 60)
    clients = max(1, load // 5650)
    say(f"{megabytes} MB: {load} records a day, {clients} clients, twice of it from day 30 on")
    worst, broken = 0, 0
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as directory:
        for day in months(
            Path(directory),
            budget=megabytes << 20,
            promised=60,
            length=75,
            clients=clients,
            events=load,
            double_on=30,
        ):
            worst = max(worst, day.size)
            wrong = day.size > megabytes << 20 or (day.day >= 60 and day.oldest_days < 60)
            broken += wrong
            levels = ", ".join(f"{days:.1f} by {level}" for level, days in day.days_at_level.items())
            say(f"day {day.day + 1}: {day.events} records, {day.size / 1e6:.1f} MB, {day.oldest_days} days: {levels}")
    print(f"largest {worst / (1 << 20):.1f} of {megabytes} MB, {broken} days not as promised")
    return 1 if broken else 0


def child(what: str, *arguments: object) -> dict[str, float]:
    words = [sys.executable, "-m", "tests.bench._ring_child", what, *map(str, arguments)]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    said: dict[str, float] = json.loads(done.stdout)
    return said


@contextmanager
def disk(image: Path, size: int) -> Iterator[tuple[str, str]]:
    """A file system of its own: where it is mounted, and the statistics of its block device."""
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    mount = image.with_suffix(".mount")
    mount.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
    try:
        source = next(line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if str(mount) in line)
        yield str(mount), f"/sys/block/{Path(source).name}/stat"
    finally:
        subprocess.run(["umount", str(mount)], check=True)
        image.unlink()


def each(said: dict[str, float]) -> float:
    return said["bytes"] / said["events"]


def at_most(metric: str, unit: str, ours: float, most: float, peers: dict[str, float] | None = None) -> Row:
    return Row(metric=metric, unit=unit, ours=ours, peers=peers or {}, target=f"<= {most:g}", met=ours <= most)


def at_least(metric: str, unit: str, ours: float, least: float) -> Row:
    return Row(metric=metric, unit=unit, ours=ours, target=f">= {least:g}", met=ours >= least)


def say(text: str) -> None:
    print(f"bench-ring: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
