"""Holds: what is named outlives its time, whole and signed; when the hold is lifted it goes."""

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import ConfigError, CorruptError
from policy.event import Dns, Event, Maintenance, Session
from storage.clock import Quality
from storage.filter import Filter
from storage.holds import Held, pack_held, unpack_held
from storage.hot import path_of
from storage.layout import Level
from storage.reader import Found
from storage.retention import DAY_MS, Relevel, Segment, next_step
from storage.writer import Ring
from tests.storage.test_storage_ring import CLIENT, MAC, FakeClock, all_of, look_up

OTHER = b"\x0a\x14\0\x0c"


def day_of_two(at_ms: int, day: int) -> list[Event]:
    mine = look_up(at_ms, f"mine{day}.example")
    theirs = look_up(at_ms, f"theirs{day}.example")._replace(client=OTHER, mac=b"\2\0\0\0\0\x0c", session="s2")
    return [mine, theirs]


def later(ring: Ring, clock: FakeClock, days: int, first: int = 0) -> None:
    for day in range(first, first + days):
        ring.add(day_of_two(clock.mono, day))
        ring.commit()
        clock.pass_ms(DAY_MS)
        ring.tick(clock.read())


def names(found: list[Found]) -> list[str]:
    return [f.event.name for f in found if isinstance(f.event, Dns)]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.mark.parametrize(
    "wanted", [Filter(client=CLIENT), Filter(mac=MAC), Filter(domain="mine0.example"), Filter(account="zhang")]
)
def test_what_is_named_outlives_its_time_until_the_hold_is_lifted(
    tmp_path: Path, clock: FakeClock, wanted: Filter
) -> None:
    ring = Ring(str(tmp_path), clock, maximum_days=3)
    ring.add([Session(clock.mono, "s1", "zhang", b"", "", MAC, (CLIENT,), clock.mono, 0, "", "portal")])
    ring.add(day_of_two(clock.mono, 0))
    ring.commit()
    before = {(f.segment, f.seq): f for f in all_of(ring)}
    hold = ring.place_hold(wanted._replace(until_ms=clock.wall + DAY_MS), "order 7", "teacher")
    clock.pass_ms(DAY_MS)
    later(ring, clock, 6, first=1)
    assert not Path(path_of(str(tmp_path), 1)).exists()
    kept = [f for f in all_of(ring) if f.segment == 1]
    assert "mine0.example" in names(kept)
    assert "theirs0.example" not in names(kept)
    assert all(before[f.segment, f.seq] == f for f in kept), "as it was, under the same id"
    assert [v.client for v in ring.visitors("mine0.example") if v] == [CLIENT]
    assert list(ring.verify())
    ring.close()

    again = Ring(str(tmp_path), clock, maximum_days=3)
    assert again.holds() == (hold._replace(sessions=again.holds()[0].sessions),)
    assert "mine0.example" in names(all_of(again, Filter(client=CLIENT)))
    lifted, gone = again.lift_hold(hold.number)
    assert (lifted.reason, gone) == ("order 7", len(kept))
    assert 1 not in {f.segment for f in all_of(again)}
    again.close()


def test_it_is_on_record_what_a_hold_kept(tmp_path: Path, clock: FakeClock) -> None:
    ring = Ring(str(tmp_path), clock, maximum_days=1)
    ring.place_hold(Filter(client=CLIENT), "order 7", "teacher")
    ring.add(day_of_two(clock.mono, 0))
    ring.commit()
    clock.pass_ms(DAY_MS)
    ring.tick(clock.read())
    clock.pass_ms(2 * DAY_MS)
    notes = [(note.action, note.result) for note in ring.tick(clock.read())]
    assert ("hold", "1 records kept past their time") in notes
    assert ("retention", "expired after 1 days") in notes
    ring.close()


def test_a_record_that_two_holds_name_stays_until_both_are_lifted(tmp_path: Path, clock: FakeClock) -> None:
    ring = Ring(str(tmp_path), clock, maximum_days=1)
    first = ring.place_hold(Filter(client=CLIENT), "one", "x")
    second = ring.place_hold(Filter(domain="mine0.example"), "two", "x")
    assert second.number != first.number
    later(ring, clock, 4)
    assert "mine0.example" in names(all_of(ring))
    assert len([f for f in all_of(ring) if isinstance(f.event, Dns) and f.event.name == "mine0.example"]) == 1
    _, gone = ring.lift_hold(first.number)
    assert gone >= 1
    assert "mine0.example" in names(all_of(ring))
    assert "mine1.example" not in names(all_of(ring))
    assert ring.lift_hold(second.number)[1] == 1
    assert "mine0.example" not in names(all_of(ring))
    ring.close()


@pytest.mark.parametrize(
    ("wanted", "reason", "match"),
    [
        (Filter(), "order", "everybody"),
        (Filter(client=CLIENT), " ", "reason"),
        (Filter(client=CLIENT, kind=Maintenance), "order", "nothing else"),
    ],
)
def test_a_hold_that_names_nobody_or_no_reason_is_refused(
    tmp_path: Path, clock: FakeClock, wanted: Filter, reason: str, match: str
) -> None:
    ring = Ring(str(tmp_path), clock)
    with pytest.raises(ConfigError, match=match):
        ring.place_hold(wanted, reason, "x")
    with pytest.raises(ConfigError, match="no hold 4; there are: there is none"):
        ring.lift_hold(4)
    assert ring.holds() == ()
    ring.close()


@pytest.mark.parametrize(
    "statement", ["UPDATE kept SET data = x'00'", "UPDATE kept SET segment = 9", "UPDATE kept SET signature = x'01'"]
)
def test_whoever_changes_what_is_held_is_found_out(tmp_path: Path, clock: FakeClock, statement: str) -> None:
    ring = Ring(str(tmp_path), clock, maximum_days=1, seal=True)
    ring.place_hold(Filter(client=CLIENT), "one", "x")
    later(ring, clock, 1)
    clock.pass_ms(2 * DAY_MS)
    ring.tick(clock.read())
    while ring.is_busy(clock.read()):
        ring.tick(clock.read())
    assert list(ring.verify())
    ring.close()
    db = sqlite3.connect(tmp_path / "holds.db", isolation_level=None)
    assert db.execute("SELECT count(*) FROM kept").fetchone() == (1,)
    db.execute(statement)
    db.close()
    again = Ring(str(tmp_path), clock, seal=True)
    with pytest.raises(CorruptError, match="holds"):
        list(again.verify())
    again.close()


def test_a_damaged_file_of_holds_is_set_aside_and_told(tmp_path: Path, clock: FakeClock) -> None:
    (tmp_path / "holds.db").write_bytes(b"no database" * 500)
    ring = Ring(str(tmp_path), clock)
    ring.add([look_up(1)])
    ring.commit()
    assert (tmp_path / "holds.db.bad").exists()
    assert any(note.object == "holds.db" for note in ring.tick(clock.read()))
    ring.close()


def test_what_is_held_keeps_its_detail_while_its_segment_is_there() -> None:
    old = Segment(1, 1000, Level.SECOND, 10, 0, DAY_MS, is_held=True)
    step = next_step([old, old._replace(number=2, is_held=False)], 1500, 2 * DAY_MS, 60, 0, is_sealing=False)
    assert step == Relevel(2, Level.MINUTE)


def test_held_records_come_back() -> None:
    held = Held(4, 5, Quality.SYNCED, look_up(1), 6, 7, 8, 9, 10)
    assert unpack_held(pack_held([held])) == [held]


@given(st.binary(max_size=200))
def test_any_octets_are_held_records_or_corrupt(data: bytes) -> None:
    whole = pack_held([Held(4, 5, Quality.SYNCED, look_up(1), 6, 7, 8, 9)])
    for octets in (data, whole[: len(data)] + data, b""):
        try:
            unpack_held(octets)
        except CorruptError:
            pass
