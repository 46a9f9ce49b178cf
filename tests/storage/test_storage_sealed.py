"""What is sealed is what was committed, less what the format says is given up; and a change is named."""

import os
import random
import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.errors import CorruptError, StorageError
from policy.event import Dns, Event, Flow, Gap, Health, Maintenance, Nat, Registration, Session
from policy.signature import public_key
from storage import layout
from storage.clock import Quality, Timeline
from storage.column import expand, pack_numbers, split, squeeze, unpack_numbers
from storage.filter import Filter
from storage.hot import path_of
from storage.layout import FlowsView, Level, Names, NamesView, pack_names, read_block, read_exact, registrable
from storage.level import relevel
from storage.reader import Found
from storage.retention import DAY_MS
from storage.seal import seal
from storage.sealed import Sealed, open_closed, read_kept
from storage.writer import Ring
from tests.storage.test_storage_ring import look_up

START_MS = 1_800_000_000_000
CLIENTS = [bytes((10, 20, 0, last)) for last in range(1, 6)]


class Now(NamedTuple):
    boottime_ms: int
    wall_ms: int
    synced: bool


class FakeClock:
    def __init__(self, *, mono: int = 0, wall: int = START_MS, synced: bool = True) -> None:
        self.boot_id, self.mono, self.wall, self.synced = "boot-1", mono, wall, synced

    def read(self) -> Now:
        return Now(self.mono, self.wall, self.synced)

    def pass_ms(self, ms: int) -> None:
        self.mono += ms
        self.wall += ms


def some_events(rng: random.Random, count: int, from_ms: int = 0) -> list[Event]:
    """All kinds, in order of time, some look-ups twice in a second."""
    events: list[Event] = []
    at = from_ms
    for _ in range(count):
        at += rng.choice((0, 3, 500, 40_000, 400_000))
        client, name = rng.choice(CLIENTS), rng.choice(("", "example.org", "a.example.org", "b-example.org", "x.y"))
        mac, verdict = b"\2\0\0\0\0" + client[-1:], rng.choice((0, 0, 0, 0, 1, 2, 3))
        kind = rng.randrange(12)
        address = bytes((192, 0, 2, rng.randrange(9)))
        if kind < 6:
            qtype = rng.choice((1, 28, 65))
            events.append(Dns(at, client, name, qtype, 0, verdict, 0, "r", "g", (address,), False, 7, mac, "s"))
        elif kind < 9:
            path = rng.choice(("", "/a", "/b?"))
            flow = (address, rng.choice((80, 443)), 6, name, 1, 0, path, verdict, 0, "r", "g", 1, "GET", "s")
            events.append(Flow(at, client, mac, rng.randrange(65536), *flow))
        else:
            events.append(
                rng.choice(
                    (
                        Session(at, "s", "anna", b"\0\xff", "12", mac, (client,), at, 0, "", "portal"),
                        Maintenance(at, "agent", "config", "x", "", "new", "ok"),
                        Registration(at, "anna", b"\0\1", b"i", 1, 2),
                        Nat(at, client, address, 1, 2, 6, 0),
                        Health(at, (("queries", 5), ("blind", 0))),
                        Gap(at, "dns/0", -1, 1, 2, "crash"),
                    )
                )
            )
    return events


def closed_ring(directory: Path, events: Sequence[Event], batch: int = 40) -> Path:
    """A ring whose first segment holds `events` and is closed."""
    clock = FakeClock()
    ring = Ring(str(directory), clock)
    for at in range(0, len(events), batch):
        ring.add(events[at : at + batch])
        ring.commit()
    clock.pass_ms(DAY_MS)
    ring.tick(clock.read())
    ring.close()
    return Path(path_of(str(directory), 1))


def seal_in_place(path: Path, level: Level = Level.SECOND, secret: bytes = b"") -> None:
    seal(str(path), 1, f"{path}.x.tmp", level=min(level, Level.SECOND), secret=secret)
    os.replace(f"{path}.x.tmp", path)
    if level > Level.SECOND:
        relevel(str(path), 1, f"{path}.x.tmp", level, secret)
        os.replace(f"{path}.x.tmp", path)


def found_in(directory: Path, wanted: Filter | None = None) -> list[Found]:
    wanted = wanted or Filter()
    segment = open_closed(path_of(str(directory), 1), 1)
    if isinstance(segment, Sealed):
        timeline = Timeline()
        for sample in segment.samples():
            timeline.add(sample)
        walls = [timeline.wall(0, epoch) for epoch in segment.epochs]
        selected = [found for found in segment.select(wanted, [wall for wall, _ in walls]) if found is not None]
        segment.close()
        return [
            Found(1, f.seq, f.wall_ms, quality, f.event, offset, f.part, f.times, f.resolution_ms)
            for f in selected
            for offset, quality in (walls[f.epoch],)
        ]
    segment.close()
    ring = Ring(str(directory), FakeClock(mono=DAY_MS, wall=START_MS + DAY_MS))
    found = [found for found in ring.query(wanted) if found is not None]
    ring.close()
    return found


def reduced(event: Event) -> Event:
    """What docs/ring-format.md says is left of an event."""
    if isinstance(event, Dns) and not event.verdict:
        return event._replace(at_ms=event.at_ms // 1000 * 1000, latency_ms=0, cached=False, answers=())
    if isinstance(event, Flow) and not event.verdict:
        return event._replace(at_ms=event.at_ms // 1000 * 1000, sport=0)
    return event


def without_answers(event: Event) -> Event:
    return event._replace(answers=()) if isinstance(event, Dns) and not event.verdict else event


def test_what_is_sealed_is_what_was_committed(tmp_path: Path) -> None:
    events = some_events(random.Random(1), 3000)
    path = closed_ring(tmp_path, events)
    before = found_in(tmp_path)
    size = path.stat().st_size
    seal_in_place(path)
    after = found_in(tmp_path)
    assert Counter(without_answers(f.event) for f in after) == Counter(map(reduced, events))
    assert [f.wall_ms for f in after] == sorted(f.wall_ms for f in after)
    assert len({(f.seq, f.part) for f in after}) == len(before), "no two records have one id"
    whole = {f.seq: f.event for f in before if reduced(f.event) is f.event}
    assert {f.seq: f.event for f in after if not f.part} == whole, "a record kept whole has its number"
    assert path.stat().st_size < size / 3
    answers = {a for f in after if isinstance(f.event, Dns) for a in f.event.answers}
    assert answers <= {bytes((192, 0, 2, last)) for last in range(9)}
    assert answers


QUESTIONS = [
    Filter(domain="example.org"),
    Filter(domain="org"),
    Filter(domain="nowhere.example"),
    Filter(client=CLIENTS[2]),
    Filter(mac=b"\2\0\0\0\0\3", kind=Flow),
    Filter(sessions=frozenset({"s"}), verdict=0),
    Filter(verdict=1),
    Filter(kind=Session),
    Filter(since_ms=START_MS + 30_000_000, until_ms=START_MS + 90_000_000),
    Filter(domain="a.example.org", client=CLIENTS[0], kind=Dns, verdict=0),
]


@pytest.mark.parametrize("wanted", QUESTIONS, ids=str)
def test_a_question_has_the_same_answer_before_and_after(tmp_path: Path, wanted: Filter) -> None:
    path = closed_ring(tmp_path, some_events(random.Random(2), 1500))
    before = Counter(reduced(f.event) for f in found_in(tmp_path, wanted))
    seal_in_place(path)
    assert Counter(without_answers(f.event) for f in found_in(tmp_path, wanted)) == before


def test_an_exact_segment_keeps_milliseconds_ports_and_the_cache_flag(tmp_path: Path) -> None:
    events = some_events(random.Random(4), 2000)
    seal_in_place(closed_ring(tmp_path, events), Level.EXACT)
    after = found_in(tmp_path)

    def lasting(event: Event) -> Event:
        if isinstance(event, Dns) and not event.verdict:
            return event._replace(latency_ms=0, answers=())
        return event

    assert Counter(map(without_answers, (f.event for f in after))) == Counter(map(lasting, events))
    assert [f.wall_ms for f in after] == sorted(f.wall_ms for f in after)
    assert {f.resolution_ms for f in after} == {1}


@pytest.mark.parametrize("level", [level for level in Level if level > Level.SECOND], ids=lambda level: level.name)
def test_a_step_down_the_ladder_keeps_who_what_and_how_often(tmp_path: Path, level: Level) -> None:
    events = some_events(random.Random(int(level)), 2000)
    path = closed_ring(tmp_path, events)
    kept = [f for f in found_in(tmp_path) if reduced(f.event) is f.event]
    size = path.stat().st_size
    seal_in_place(path, level)
    after = found_in(tmp_path)
    assert path.stat().st_size < size
    assert [f.wall_ms for f in after] == sorted(f.wall_ms for f in after)
    assert len({(f.seq, f.part) for f in after}) == len(after)
    assert [(f.seq, f.event) for f in after if not f.part] == [(f.seq, f.event) for f in kept], "these stay whole"

    def name_of(event: Dns | Flow) -> str:
        if level < Level.DOMAIN:
            return event.name
        return ".".join(registrable(".".join(event.name.split(".")[::-1])).split(".")[::-1])

    folded = [f for f in after if f.part]
    assert {f.part for f in folded} == {1 + level}
    wanted: Counter[tuple[object, ...]] = Counter()
    for event in events:
        if isinstance(event, Dns | Flow) and not event.verdict:
            wanted[type(event), event.client, name_of(event)] += 1
            near = [f for f in folded if f.event.client == event.client and f.event.name == name_of(event)]  # type: ignore[union-attr]
            at = START_MS + event.at_ms
            assert any(f.wall_ms <= at < f.wall_ms + f.resolution_ms for f in near), "within its stretch of time"
    found: Counter[tuple[object, ...]] = Counter()
    for f in folded:
        assert isinstance(f.event, Dns | Flow)
        found[f.event.client, f.event.name] += f.times
    by_name: Counter[tuple[object, ...]] = Counter()
    for (_, client, name), times in wanted.items():
        by_name[client, name] += times
    assert found == by_name


def test_the_root_of_every_form_is_signed_and_the_former_roots_are_kept(tmp_path: Path) -> None:
    secret = bytes(range(32))
    path = closed_ring(tmp_path, some_events(random.Random(9), 400))
    seal_in_place(path, Level.SECOND, secret)
    first = Sealed(str(path), 1)
    list(first.check(public_key(secret)))
    with pytest.raises(CorruptError, match="segment 1: its signature"):
        list(first.check(public_key(bytes(32))))
    for level in (Level.MINUTE, Level.HOUR, Level.DOMAIN):
        relevel(str(path), 1, f"{path}.x.tmp", level, secret)
        os.replace(f"{path}.x.tmp", path)
    last = Sealed(str(path), 1)
    list(last.check(public_key(secret)))
    assert (last.before, last.head) == (first.before, first.head)
    assert last.derived_from[-96:] == first.root + first.signature, "what was first sealed can still be proven"
    with pytest.raises(StorageError, match="is at level DOMAIN"):
        relevel(str(path), 1, f"{path}.x.tmp", Level.DAY, secret)


def test_a_client_that_asks_a_thousand_times_in_a_second_is_counted_right(tmp_path: Path) -> None:
    events: list[Event] = [Dns(5000, CLIENTS[0], "x.y", 1, 0, 0, 0, "", "", (), False, 0) for _ in range(1000)]
    path = closed_ring(tmp_path, [*events, Dns(7000, CLIENTS[0], "z.y", 1, 0, 0, 0, "", "", (), False, 0)])
    for level in (Level.SECOND, Level.DAY):
        if level == Level.SECOND:
            seal_in_place(path)
        else:
            relevel(str(path), 1, f"{path}.x.tmp", level)
            os.replace(f"{path}.x.tmp", path)
        found = Counter[str]()
        for f in found_in(tmp_path):
            found[f.event.name] += f.times  # type: ignore[union-attr]
        assert found == {"x.y": 1000, "z.y": 1}


def test_who_visited_a_domain(tmp_path: Path) -> None:
    events = some_events(random.Random(3), 800)
    path = closed_ring(tmp_path, events)
    seal_in_place(path)
    wanted = {
        (e.client, e.mac)
        for e in events
        if isinstance(e, Dns | Flow) and not e.verdict and (e.name == "example.org" or e.name.endswith(".example.org"))
    }
    assert Sealed(str(path), 1).visitors("example.org") == wanted != set()


def test_a_boot_in_1970_is_corrected_through_the_seal(tmp_path: Path) -> None:
    clock = FakeClock(wall=0, synced=False)
    ring = Ring(str(tmp_path), clock)
    name = Dns(1000, CLIENTS[0], "early.example", 1, 0, 0, 0, "", "", (), False, 0)
    clock.pass_ms(5000)
    ring.add([name])
    ring.commit()
    clock.wall, clock.synced = START_MS + clock.mono, True
    ring.add([name._replace(at_ms=5000, name="late.example")])
    ring.commit()
    clock.pass_ms(DAY_MS)
    ring.tick(clock.read())
    clock.pass_ms(DAY_MS)
    ring.tick(clock.read())
    ring.close()
    seal_in_place(Path(path_of(str(tmp_path), 1)))
    early, late = found_in(tmp_path)
    assert (early.wall_ms, early.quality) == (START_MS + 1000, Quality.CORRECTED)
    assert (late.wall_ms, late.quality) == (START_MS + 5000, Quality.SYNCED)


def test_what_was_altered_is_not_sealed_as_right(tmp_path: Path) -> None:
    path = closed_ring(tmp_path, some_events(random.Random(5), 200))
    with sqlite3.connect(path) as db:
        db.execute("UPDATE batch SET wall = wall + 1 WHERE seq = 41")
    db.close()
    with pytest.raises(CorruptError, match="segment 1: batch 41"):
        seal(str(path), 1, f"{path}.x.tmp")


@pytest.fixture(scope="module")
def sealed_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = closed_ring(tmp_path_factory.mktemp("sealed"), some_events(random.Random(6), 300))
    seal_in_place(path)
    return path.read_bytes()


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 1 << 30), flip=st.integers(1, 255), cut=st.booleans())
def test_any_changed_or_missing_octet_is_found_out_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, sealed_file: bytes, at: int, flip: int, cut: bool
) -> None:
    path = tmp_path_factory.mktemp("flip") / "seg-000001.db"
    data = bytearray(sealed_file)
    at %= len(data)
    data[at] ^= flip
    path.write_bytes(data[:at] if cut else data)
    try:
        sealed = Sealed(str(path), 1)
        list(sealed.check())
    except StorageError:
        return
    offsets = [0] * len(sealed.epochs)
    good = path.with_name("good.db")
    good.write_bytes(sealed_file)
    assert list(sealed.select(Filter(), offsets)) == list(Sealed(str(good), 1).select(Filter(), offsets))


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM part WHERE id = 1",
        "UPDATE part SET last = last + 1 WHERE id = 0",
        "UPDATE part SET data = (SELECT data FROM part WHERE id = 2) WHERE id = 1",
        "UPDATE meta SET v = v + 1 WHERE k = 'next_seq'",
        "UPDATE meta SET v = x'00' WHERE k = 'hashes'",
        "INSERT INTO part VALUES(99, 'block', 0, 0, x'00')",
    ],
)
def test_whoever_changes_a_part_is_found_out(tmp_path: Path, sealed_file: bytes, statement: str) -> None:
    path = tmp_path / "seg-000001.db"
    path.write_bytes(sealed_file)
    with sqlite3.connect(path) as db:
        db.execute(statement)
    db.close()
    with pytest.raises(CorruptError, match="segment 1"):
        list(Sealed(str(path), 1).check())


@given(st.lists(st.integers(0, (1 << 32) - 1)))
def test_numbers_come_back(values: list[int]) -> None:
    assert list(unpack_numbers(pack_numbers(values))) == values


def whole_names(data: bytes) -> object:
    view = NamesView(data)
    return [view.addresses(at) for at in range(len(view.keys))] if view.whole() else None


@given(st.binary(max_size=300))
def test_any_octets_are_a_column_or_corrupt(data: bytes) -> None:
    parts = (expand, unpack_numbers, lambda octets: split(octets, 2), read_block, FlowsView, read_exact, read_kept)
    for read in (*parts, whole_names):
        for octets in (data, bytes((1,)) + data, squeeze(b"abc", 1)[: len(data)] + data):  # type: ignore[arg-type]
            try:
                read(octets)
            except CorruptError:
                pass


@pytest.mark.parametrize("level", [Level.EXACT, Level.SECOND, Level.MINUTE, Level.DAY])
def test_names_counted_in_columns_are_those_of_the_records(tmp_path: Path, level: Level) -> None:
    clock = FakeClock()
    ring = Ring(str(tmp_path), clock, seal=True, level=min(level, Level.SECOND))
    ring.tick(clock.read())
    rng = random.Random(level)
    for _ in range(3):
        first = clock.mono
        events = [look_up(first + rng.randrange(60_000), f"n{rng.randrange(9)}.example") for _ in range(200)]
        ring.add([event._replace(client=bytes((10, 0, 0, rng.randrange(3)))) for event in events])
        ring.add([look_up(first, "blocked.example")._replace(verdict=1)])
        ring.commit()
        clock.pass_ms(600_000)
    clock.pass_ms(DAY_MS)
    ring.tick(clock.read())
    while ring.is_busy(clock.read()):
        ring.tick(clock.read())
    if level > Level.SECOND:
        path = path_of(str(tmp_path), 1)
        relevel(path, 1, path + ".new", level)
        Path(path + ".new").replace(path)
        ring.close()
        ring = Ring(str(tmp_path), clock, seal=True)
    for wanted in (Filter(), Filter(client=bytes((10, 0, 0, 1))), Filter(since_ms=START_MS + 300_000)):
        counted = {found.name: found[1:] for found in ring.names(wanted) if found is not None}
        put_together: dict[str, tuple[int, int, int]] = {}
        for found in ring.query(wanted):
            if found is not None and isinstance(found.event, Dns):
                times, first, last = put_together.get(found.event.name, (0, found.wall_ms, found.wall_ms))
                now = found.wall_ms
                put_together[found.event.name] = (times + found.times, min(first, now), max(last, now))
        assert counted == put_together != {}
    ring.close()


def test_names_without_addresses_are_read_once_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a profile leaves answers out, nobody has any: a question took the square of its records' number."""
    view = NamesView(pack_names(Names(["example.a", "example.b"], b"\1\1", [0, 0], [], [[], []])))
    assert view.addresses(0) == []
    read = []
    monkeypatch.setattr(layout, "unpack_numbers", read.append)
    assert [view.addresses(at) for at in (0, 1, 1)] == [[], [], []]
    assert read == []
