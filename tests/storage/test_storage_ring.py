"""The ring: what was committed is there, whatever is done to the process or the file; and only that."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.errors import CorruptError, StorageError
from policy.event import Dns, Event, Flow, Gap, Maintenance
from storage.batch import Columns, pack, pack_plain, unpack, unpack_plain
from storage.clock import Quality
from storage.filter import Filter
from storage.hot import path_of
from storage.reader import Found
from storage.retention import DAY_MS
from storage.verify import check, verify
from storage.writer import Ring

ROOT = Path(__file__).resolve().parents[2]
CLIENT = b"\x0a\x14\0\x0b"
MAC = b"\2\0\0\0\0\x0b"
START_MS = 1_800_000_000_000


class Now(NamedTuple):
    boottime_ms: int
    wall_ms: int
    synced: bool


class FakeClock:
    """Held still; moved by the test."""

    def __init__(self, *, boot: str = "boot-1", mono: int = 0, wall: int = START_MS, synced: bool = True) -> None:
        self.boot_id = boot
        self.mono, self.wall, self.synced = mono, wall, synced

    def read(self) -> Now:
        return Now(self.mono, self.wall, self.synced)

    def pass_ms(self, ms: int) -> None:
        self.mono += ms
        self.wall += ms


def look_up(at_ms: int, name: str = "a.example", verdict: int = 0) -> Dns:
    return Dns(at_ms, CLIENT, name, 1, 0, verdict, 0, "", "home", (b"\xc0\0\2\1",), False, 3, MAC, "s1")


def all_of(ring: Ring, wanted: Filter | None = None) -> list[Found]:
    return [found for found in ring.query(wanted or Filter()) if found is not None]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def ring(tmp_path: Path, clock: FakeClock) -> Iterator[Ring]:
    ring = Ring(str(tmp_path), clock)
    yield ring
    ring.close()


def test_records_come_back_whole_with_ids_and_wall_time(ring: Ring, clock: FakeClock) -> None:
    clock.pass_ms(5000)
    events: list[Event] = [look_up(4000), Maintenance(4500, "agent", "start", "agent", "", "", "ok")]
    ring.add(events)
    ring.commit()
    found = all_of(ring)
    assert [f.event for f in found] == events
    assert [(f.segment, f.seq, f.wall_ms - START_MS) for f in found] == [(1, 1, 4000), (1, 2, 4500)]


def test_nothing_is_there_before_it_is_committed(ring: Ring) -> None:
    ring.add([look_up(1)])
    assert all_of(ring) == []


def test_marks_are_committed_with_their_records_and_survive(tmp_path: Path, clock: FakeClock) -> None:
    ring = Ring(str(tmp_path), clock)
    ring.add([look_up(1)], b"dns/0:abcdefgh\0", 7)
    assert ring.marks() == {}
    ring.close()
    assert Ring(str(tmp_path), clock).marks() == {b"dns/0:abcdefgh\0": 7}


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (Filter(domain="example.org"), ["example.org", "www.example.org"]),
        (Filter(domain="www.example.org"), ["www.example.org"]),
        (Filter(client=CLIENT), ["example.org", "www.example.org", "notexample.org"]),
        (Filter(client=b"\x0a\0\0\1"), []),
        (Filter(mac=MAC, verdict=1), ["notexample.org"]),
        (Filter(sessions=frozenset({"s1"}), since_ms=START_MS + 2), ["www.example.org", "notexample.org"]),
        (Filter(until_ms=START_MS + 2), ["example.org"]),
        (Filter(kind=Flow), []),
    ],
)
def test_questions(ring: Ring, wanted: Filter, names: list[str]) -> None:
    ring.add([look_up(1, "example.org"), look_up(2, "www.example.org"), look_up(3, "notexample.org", verdict=1)])
    ring.commit()
    assert [found.event.name for found in all_of(ring, wanted)] == names  # type: ignore[union-attr]


def test_a_day_is_a_segment_and_the_oldest_is_unlinked_when_its_time_is_over(tmp_path: Path, clock: FakeClock) -> None:
    ring = Ring(str(tmp_path), clock, maximum_days=3)
    notes = []
    for day in range(6):
        notes += ring.tick(clock.read())
        ring.add([look_up(clock.mono, f"day-{day}.example")], b"dns/0:12345678\0", day + 1)
        ring.commit()
        clock.pass_ms(DAY_MS)
    notes += ring.tick(clock.read())
    assert [found.event.name for found in all_of(ring)] == [f"day-{day}.example" for day in (3, 4, 5)]  # type: ignore[union-attr]
    assert [note.object for note in notes] == ["segment 1", "segment 2", "segment 3"]
    assert {note.result for note in notes} == {"expired after 3 days"}
    assert [found.seq for found in all_of(ring)] == [4, 5, 6]
    assert ring.marks() == {b"dns/0:12345678\0": 6}
    assert list(ring.verify()) == [4, 5, 6]
    ring.close()
    assert verify(str(tmp_path)) == 3


def test_a_shorter_maximum_takes_what_is_too_old_by_it_without_a_restart(tmp_path: Path, clock: FakeClock) -> None:
    ring = Ring(str(tmp_path), clock, maximum_days=30)
    for day in range(6):
        ring.tick(clock.read())
        ring.add([look_up(clock.mono, f"day-{day}.example")])
        ring.commit()
        clock.pass_ms(DAY_MS)
    assert [note.action for note in ring.tick(clock.read())] == []
    ring.keep_days(2, 3)
    assert [note.result for note in ring.tick(clock.read())] == ["expired after 3 days"] * 3
    assert [found.event.name for found in all_of(ring)] == [f"day-{day}.example" for day in (3, 4, 5)]  # type: ignore[union-attr]
    assert ring.status()["promised_days"] == 2


def test_the_budget_holds_and_a_broken_promise_is_said(tmp_path: Path, clock: FakeClock) -> None:
    ring = Ring(str(tmp_path), clock, budget_bytes=200_000, promised_days=60)
    notes = []
    rng = random.Random(1)
    for _ in range(8):
        names = [rng.randbytes(30).hex() for _ in range(1500)]
        ring.add([look_up(clock.mono, name) for name in names])
        ring.commit()
        clock.pass_ms(DAY_MS)
        notes += ring.tick(clock.read())
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 320_000
    assert notes
    assert "over the budget: only" in notes[0].result
    assert "of 60 days are kept" in notes[0].result


def test_nothing_expires_by_a_clock_that_is_not_set(tmp_path: Path, clock: FakeClock) -> None:
    ring = Ring(str(tmp_path), clock, maximum_days=1)
    ring.add([look_up(1, "kept.example")])
    ring.commit()
    clock.synced = False
    clock.wall += 400 * DAY_MS
    clock.mono += 2 * DAY_MS
    assert ring.tick(clock.read()) == []
    assert len(all_of(ring)) == 1


def test_boot_in_1970_then_a_time_server_answers(tmp_path: Path) -> None:
    clock = FakeClock(mono=10_000, wall=12_000, synced=False)
    ring = Ring(str(tmp_path), clock)
    for number in range(300):
        ring.add([look_up(clock.mono, f"{number}.example")])
        ring.commit()
        clock.pass_ms(1000)
    assert {found.quality for found in all_of(ring)} == {Quality.UNSYNCED}
    clock.wall, clock.synced = START_MS, True  # the step
    began_ms = START_MS - clock.mono
    ring.add([look_up(clock.mono, "after.example")])
    ring.commit()
    found = all_of(ring)
    assert [f.event.name for f in found] == [f"{n}.example" for n in range(300)] + ["after.example"]  # type: ignore[union-attr]
    assert all(abs(f.wall_ms - (began_ms + 10_000 + 1000 * n)) < 1000 for n, f in enumerate(found[:-1]))
    assert [f.quality for f in found] == [Quality.CORRECTED] * 300 + [Quality.SYNCED]


def test_a_clock_that_is_put_back_an_hour_keeps_the_order(ring: Ring, clock: FakeClock) -> None:
    for number in range(3):
        ring.add([look_up(clock.mono, f"{number}.example")])
        ring.commit()
        ring.tick(clock.read())
        clock.pass_ms(60_000)
        clock.wall -= 3_600_000 if number == 1 else 0
    assert [f.event.name for f in all_of(ring)] == ["0.example", "1.example", "2.example"]  # type: ignore[union-attr]
    assert {f.segment for f in all_of(ring)} == {1}


def three_boots(directory: Path, *, seal: bool) -> Ring:
    """The one in the middle never had a clock."""
    ring = Ring(str(directory), FakeClock(boot="a", mono=1000, wall=START_MS), seal=seal)
    ring.add([look_up(900, "before.example")])
    ring.close()
    ring = Ring(str(directory), FakeClock(boot="b", mono=5000, wall=5000, synced=False), seal=seal)
    ring.add([look_up(4000, "unknown.example")])
    ring.close()
    clock = FakeClock(boot="c", mono=9000, wall=START_MS + DAY_MS)
    ring = Ring(str(directory), clock, seal=seal)
    ring.add([look_up(9000, "after.example")])
    ring.commit()
    if seal:
        clock.pass_ms(DAY_MS)
        ring.tick(clock.read())
        while ring.is_busy(clock.read()):
            ring.tick(clock.read())
            time.sleep(0.01)
        assert ring.status()["sealed"] == 1
    return ring


@pytest.mark.parametrize("seal", [False, True])
def test_a_boot_that_never_synced_is_bounded_by_its_neighbours_and_flagged(tmp_path: Path, seal: bool) -> None:
    ring = three_boots(tmp_path, seal=seal)
    before, unknown, after = all_of(ring)
    began_ms = START_MS + DAY_MS - 9000
    assert [f.event.name for f in (before, unknown, after)] == ["before.example", "unknown.example", "after.example"]  # type: ignore[union-attr]
    assert (before.quality, unknown.quality, after.quality) == (Quality.SYNCED, Quality.UNSYNCED, Quality.SYNCED)
    assert START_MS <= unknown.wall_ms <= START_MS + 4000, "as early as it can have been"
    assert unknown.not_after_ms == began_ms
    ring.close()


@pytest.mark.parametrize("seal", [False, True])
def test_a_question_about_any_time_in_which_it_may_have_been_finds_it(tmp_path: Path, seal: bool) -> None:
    ring = three_boots(tmp_path, seal=seal)
    for since, until, is_found in (
        (START_MS + 3_600_000, START_MS + 7_200_000, True),
        (START_MS - 7_200_000, START_MS - 3_600_000, False),
        (START_MS + DAY_MS, START_MS + 2 * DAY_MS, False),
    ):
        names = [f.event.name for f in all_of(ring, Filter(since_ms=since, until_ms=until))]  # type: ignore[union-attr]
        assert ("unknown.example" in names) == is_found
    ring.close()


def test_a_clock_that_is_put_back_keeps_the_order_through_the_seal(tmp_path: Path) -> None:
    clock = FakeClock()
    ring = Ring(str(tmp_path), clock, seal=True)
    for number in range(6):
        ring.add([look_up(clock.mono, f"{number}.example", verdict=number % 2)])
        ring.commit()
        ring.tick(clock.read())
        clock.pass_ms(60_000)
        clock.wall -= 3_600_000 if number == 2 else 0
    clock.pass_ms(DAY_MS)
    ring.tick(clock.read())
    while ring.is_busy(clock.read()):
        ring.tick(clock.read())
        time.sleep(0.01)
    assert ring.status()["sealed"] == 1
    assert [f.event.name for f in all_of(ring)] == [f"{number}.example" for number in range(6)]  # type: ignore[union-attr]
    ring.close()


# --- damage ----------------------------------------------------------------------------------------------------


def filled(directory: Path) -> list[str]:
    """A ring of three days; returns the names on record."""
    clock = FakeClock()
    ring = Ring(str(directory), clock)
    for day in range(3):
        ring.tick(clock.read())
        for batch in range(4):
            ring.add([look_up(clock.mono, f"{day}-{batch}-{n}.example") for n in range(20)])
            ring.commit()
            clock.pass_ms(1000)
        clock.pass_ms(DAY_MS)
    ring.close()
    return [f"{day}-{batch}-{n}.example" for day in range(3) for batch in range(4) for n in range(20)]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE batch SET data = zeroblob(10) WHERE seq = 81",
        "UPDATE batch SET wall = wall + 1 WHERE seq = 81",
        "UPDATE batch SET t0 = t0 - 1 WHERE seq = 81",
        "UPDATE batch SET n = n + 1 WHERE seq = 81",
        "DELETE FROM batch WHERE seq = 81",
        "DELETE FROM batch WHERE seq = (SELECT max(seq) FROM batch)",
        "UPDATE meta SET v = zeroblob(16) WHERE k = 'before'",
    ],
)
def test_whoever_changes_a_row_is_found_out(tmp_path: Path, statement: str) -> None:
    filled(tmp_path)
    assert verify(str(tmp_path)) == 12
    with sqlite3.connect(path_of(str(tmp_path), 2)) as db:
        db.execute(statement)
    db.close()
    with pytest.raises(CorruptError, match=r"segment [23]"):
        verify(str(tmp_path))


def test_a_ring_that_was_verified_can_be_written_again_at_once(tmp_path: Path) -> None:
    filled(tmp_path)
    assert verify(str(tmp_path)) == 12
    ring = Ring(str(tmp_path), FakeClock(mono=9 * DAY_MS, wall=START_MS + 9 * DAY_MS))
    ring.add([look_up(1)])
    ring.commit()
    assert sum(1 for _ in ring.verify()) == 13
    ring.close()


def test_a_segment_that_is_taken_away_or_swapped_is_found_out(tmp_path: Path) -> None:
    filled(tmp_path)
    first, second = path_of(str(tmp_path), 1), path_of(str(tmp_path), 2)
    os.rename(second, second + ".away")
    with pytest.raises(CorruptError, match="segment 3: does not follow the one before it"):
        verify(str(tmp_path))
    os.rename(first, second)
    os.rename(second + ".away", first)
    with pytest.raises(CorruptError):
        verify(str(tmp_path))


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 1 << 30), flip=st.integers(1, 255))
def test_any_changed_octet_is_found_out_or_harmless_and_harms_no_neighbour(
    tmp_path_factory: pytest.TempPathFactory, at: int, flip: int
) -> None:
    directory = tmp_path_factory.mktemp("ring")
    names = filled(directory)
    path = Path(path_of(str(directory), 2))
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= flip
    path.write_bytes(data)
    ring = Ring(str(directory), FakeClock(mono=9 * DAY_MS, wall=START_MS + 9 * DAY_MS))
    seen = [found.event.name for found in all_of(ring)]  # type: ignore[union-attr]
    ring.close()
    assert [name for name in seen if not name.startswith("1-")] == [name for name in names if not name.startswith("1-")]
    try:
        verify(str(directory))
    except StorageError:
        return
    assert seen == names, "the chain says all is well, and it is not"


def test_a_damaged_newest_segment_is_set_aside_and_a_new_one_begins(tmp_path: Path, clock: FakeClock) -> None:
    filled(tmp_path)
    newest = max(tmp_path.glob("seg-*.db"))
    newest.write_bytes(b"not a database at all" * 100)
    ring = Ring(str(tmp_path), clock)
    assert newest.with_suffix(".db.bad").exists()
    ring.add([look_up(1, "new.example")])
    ring.commit()
    assert "new.example" in [found.event.name for found in all_of(ring)]  # type: ignore[union-attr]
    (note,) = ring.tick(clock.read())
    assert "set aside" in note.result


@given(st.binary(max_size=200))
def test_any_octets_are_a_batch_or_corrupt(data: bytes) -> None:
    columns = Columns()
    columns.add([look_up(1), Maintenance(2, "agent", "start", "agent", "", "", "ok")])
    plain = pack_plain(columns)
    for octets in (data, pack(columns)[: len(data)] + data):
        try:
            unpack(octets)
        except CorruptError:
            pass
    for octets in (data, plain[: len(data)] + data, data + plain[len(data) :]):
        try:
            list(unpack_plain(octets).events())
        except CorruptError:
            pass


# --- the storage says no ---------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    directory = tmp_path / "small"
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(directory)], capture_output=True)
    assert mounted.returncode == 0, "this test needs to be root"
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def test_a_full_disk_loses_nothing_that_fits_in_memory_and_recovers_by_itself(
    small_disk: Path, clock: FakeClock
) -> None:
    ring = Ring(str(small_disk), clock)
    ring.add([look_up(1, "before.example")])
    ring.commit()
    (small_disk / "filler").write_bytes(bytes((os.statvfs(small_disk).f_bavail - 2) * 4096))
    rng = random.Random(2)
    names = [rng.randbytes(40).hex() for _ in range(2000)]
    ring.add([look_up(2, name) for name in names], b"dns/0:12345678\0", 1)
    for _ in range(3):
        with pytest.raises(StorageError, match="full"):
            ring.commit()
    assert ring.marks() == {}
    (small_disk / "filler").unlink()
    ring.commit()
    assert [found.event.name for found in all_of(ring)] == ["before.example", *names]  # type: ignore[union-attr]
    assert ring.marks() == {b"dns/0:12345678\0": 1}


def test_a_disk_turned_read_only_is_told_and_taken_up_again(small_disk: Path, clock: FakeClock) -> None:
    ring = Ring(str(small_disk), clock)
    ring.add([look_up(1)])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=False)
    try:
        # An open file keeps its right to write on tmpfs unless the mount refuses; then there is nothing to test here.
        ring.commit()
    except StorageError:
        pass
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    ring.commit()
    assert len(all_of(ring)) == 1


def test_when_the_storage_refuses_for_long_accesses_give_way_and_the_loss_is_on_record(
    small_disk: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.writer.MAX_PENDING", 1000)
    ring = Ring(str(small_disk), clock)
    ring.add([look_up(0, "blocked.example", verdict=1)])
    for at in range(1, 3000):
        ring.add([look_up(at)])
    ring.commit()
    found = [f.event for f in all_of(ring)]
    (gap,) = [event for event in found if isinstance(event, Gap)]
    assert len(found) - 1 + gap.lost == 3000
    assert any(isinstance(event, Dns) and event.verdict == 1 for event in found)


# --- death -----------------------------------------------------------------------------------------------------

WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
sys.path.insert(0, sys.argv[1] + "/tests/storage")
import test_storage_ring as t
# Commits batches and says so; days pass quickly, so that the death may come in a rotation or an expiry too.
clock = t.FakeClock()
ring = t.Ring(sys.argv[2], clock, maximum_days=400)
last = ring.marks().get(b"w", 0)
clock.pass_ms(last * t.DAY_MS // 3)
for number in range(last + 1, 100000):
    ring.add([t.look_up(clock.mono, f"{number}-{n}.example") for n in range(5)], b"w", number)
    ring.commit()
    print(number, flush=True)
    ring.tick(clock.read())
    clock.pass_ms(t.DAY_MS // 3)
"""


@pytest.mark.slow
def test_killed_at_any_moment_every_acknowledged_record_is_there_once(tmp_path: Path) -> None:
    rng = random.Random(3)
    acknowledged = 0
    for _ in range(25):
        command = [sys.executable, "-c", WRITER, str(ROOT), str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            first = writer.stdout.readline()
            time.sleep(rng.random() * 0.15)
            writer.send_signal(signal.SIGKILL)
            acknowledged = int((first + writer.stdout.read()).split()[-1])
        ring = Ring(str(tmp_path), FakeClock())
        found = all_of(ring)
        names = [f.event.name for f in found]  # type: ignore[union-attr]
        last = int(names[-1].partition("-")[0])
        assert acknowledged <= last <= acknowledged + 1
        assert names == [f"{number}-{n}.example" for number in range(1, last + 1) for n in range(5)]
        assert len({f.seq for f in found}) == len(found)
        assert ring.marks()[b"w"] == last
        assert sum(1 for _ in ring.verify()) == last
        ring.close()


def test_check_is_a_generator_that_stops_at_the_first_bad_place(tmp_path: Path) -> None:
    filled(tmp_path)
    ring = Ring(str(tmp_path), FakeClock(mono=9 * DAY_MS, wall=START_MS + 9 * DAY_MS))
    assert len(list(ring.verify())) == 12
    assert list(check(())) == []
    ring.close()
