"""The receiver: what was altered, forged, shown again or held back is noticed, and none of it stops what is right."""

import os
import sqlite3
import threading
import zlib
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.receiver.__main__ import Receiver
from agent.receiver.intake import Answer, Intake
from agent.receiver.reader import Centre as Reader
from agent.receiver.store import SqliteStore
from agent.uplink import wire
from agent.uplink.broker import Login
from agent.uplink.signed import seal
from agent.uplink.wire import Batches, Piece, Row, Topics, Urgent, pack_map
from policy.event import Gap
from policy.signature import public_key, sign
from storage import chain
from storage.batch import Columns, pack
from storage.clock import Sample
from storage.filter import Filter
from storage.hot import numbers_in, path_of
from storage.sealed import Sealed
from tests.agent.test_agent_uplink_wire import BOOT, MESSAGES, look_up
from tests.lab.broker import Device, Mosquitto, running, wait_until
from tests.lab.outage import expected, fill, read

TOPICS = Topics("11010500000001", "100000001020000000001")
SECRET = bytes(range(32))
PUBLIC = public_key(SECRET)
RING = PUBLIC[:8]
NOW = 1_795_000_000_000


class Side:
    """A receiver without a broker."""

    def __init__(self, directory: Path) -> None:
        self.store = SqliteStore(str(directory))
        self.intake = Intake(self.store)
        self.directory = directory

    def give(self, payload: bytes, what: str = "records", now_ms: int = NOW) -> list[Answer]:
        answers = self.intake.receive(TOPICS.of(what), payload, now_ms)
        self.store.commit()
        return answers

    def alarms(self) -> list[str]:
        return [alarm.kind for alarm in self.store.alarms()]

    def records(self) -> int:
        with Reader(str(self.directory)) as centre:
            return sum(1 for stream in centre.streams() for _ in centre.query(stream, Filter()))


def batch(first_seq: int, before: bytes, names: list[str], link: bytes = b"", *, level: int | None = None) -> Batches:
    columns = Columns()
    columns.add([look_up(5, name, 1) for name in names])
    data = pack(columns)
    if level is not None:
        data = zlib.compress(zlib.decompress(data), level)
    sample = Sample(BOOT, 1000, NOW, True)
    true = chain.link(before or chain.START, 1, first_seq, len(names), sample, data)
    row = Row(len(names), sample.boottime_ms, sample.wall_ms, True, data)
    return Batches(RING, 1, first_seq, BOOT, before, link or true, (row,))


def heartbeat(next_seq: int, head: bytes, mono_ms: int = 5000, secret: bytes = SECRET, boot: object = BOOT) -> bytes:
    public = public_key(secret)
    fields: dict[str, object] = {"k": "heartbeat", "number": 1, "wall_ms": NOW, "mono_ms": mono_ms, "boot": boot}
    fields |= {"public_key": public, "every_s": 60, "clock": "synced"}
    fields["chain"] = {"segment": 1, "next_seq": next_seq, "head": head}
    return seal(b"heartbeat", pack_map(fields), lambda octets: sign(secret, octets), public[:8])


def test_batches_that_follow_each_other_are_kept_and_acknowledged_once_each(tmp_path: Path) -> None:
    side = Side(tmp_path)
    first = batch(1, chain.START, ["a.example", "b.example"])
    second = batch(3, first.link, ["c.example"])
    for message in (second, first, second, first):
        payload = wire.write_batches(message)
        assert side.give(payload) == [Answer(TOPICS, done=wire.identify(payload))]
    assert side.records() == 3
    assert side.alarms() == []
    side.give(heartbeat(4, second.link), "heartbeat")
    assert side.alarms() == []


@pytest.mark.parametrize("what", ["data", "link", "before", "a name that is taken"])
def test_an_altered_batch_is_set_aside_and_somebody_is_told(tmp_path: Path, what: str) -> None:
    side = Side(tmp_path)
    first = batch(1, chain.START, ["a.example"])
    side.give(wire.write_batches(first))
    match what:
        case "data":
            good = batch(2, first.link, ["b.example"])
            bad = batch(2, first.link, ["x.example"], link=good.link)
        case "link":
            bad = batch(2, first.link, ["b.example"], link=b"x" * 16)
        case "before":
            bad = batch(2, b"y" * 16, ["b.example"])
        case _:
            bad = batch(1, chain.START, ["x.example"])
    (answer,) = side.give(wire.write_batches(bad, as_stored=True))
    assert answer.done, "or the device would be stuck behind it for ever"
    assert side.alarms() == (["conflict"] if what == "a name that is taken" else ["chain"])
    assert side.records() == (2 if what == "before" else 1)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_signed_head_shows_what_the_broker_has_changed(tmp_path: Path, is_first: bool) -> None:
    good, forged = (batch(1, chain.START, [name]) for name in ("casino.example", "innocent.example"))
    for sent, alarms in ((good, []), (forged, ["chain"])):
        side = Side(tmp_path / alarms[0] if alarms else tmp_path / "good")
        steps = [(wire.write_batches(sent), "records"), (heartbeat(2, good.link), "heartbeat")]
        for payload, what in reversed(steps) if is_first else steps:
            side.give(payload, what)
        assert side.alarms() == alarms


def test_what_was_said_ahead_must_be_what_stands_in_the_batch(tmp_path: Path) -> None:
    for name, alarms in (("casino.example", []), ("innocent.example", ["chain"])):
        side = Side(tmp_path / name)
        record = wire.urgent_record(look_up(5, name, 1), 1, 1, NOW, True)
        assert side.give(wire.write(Urgent(RING, (record,)))) == []
        assert side.records() == 1, "it is there at once"
        side.give(wire.write_batches(batch(1, chain.START, ["casino.example"])))
        assert side.records() == 1, "and once"
        side.give(wire.write(Urgent(RING, (record,))))
        assert side.records() == 1
        assert side.alarms() == alarms


def test_a_heartbeat_is_believed_if_it_is_signed_and_new(tmp_path: Path) -> None:
    side = Side(tmp_path)
    good = heartbeat(1, chain.START)
    side.give(good, "heartbeat")
    side.give(good, "heartbeat", NOW + 1_000_000)
    (heard,) = side.store.devices()
    assert heard.received_ms == NOW, "shown again, it says nothing"
    side.give(heartbeat(1, chain.START, 6000).replace(b"synced", b"sYnced"), "heartbeat", NOW + 60_000)
    assert side.alarms() == ["damaged"]
    assert side.store.devices()[0].received_ms == NOW
    side.give(heartbeat(1, chain.START, 6000), "heartbeat", NOW + 60_000)
    assert side.store.devices()[0].received_ms == NOW + 60_000


def test_a_heartbeat_of_an_earlier_boot_hides_no_silence(tmp_path: Path) -> None:
    """Whoever keeps the heartbeats of two boots could show them in turn for ever."""
    side = Side(tmp_path)
    told = [heartbeat(1, chain.START, mono_ms, boot=boot) for boot in ("first", "second") for mono_ms in (5000, 65_000)]
    for number, payload in enumerate(told):
        side.give(payload, "heartbeat", NOW + number)
    for number in range(4, 40):
        side.give(told[number % 4], "heartbeat", NOW + number * 10_000)
    side.give(heartbeat(1, chain.START, 70_000, boot="first"), "heartbeat", NOW + 400_000)  # held back until now
    assert side.store.devices()[0].received_ms == NOW + 3
    assert side.intake.handle_timer(NOW + 400_000) == [TOPICS]
    side.give(heartbeat(1, chain.START, 10, boot="third"), "heartbeat", NOW + 500_000)
    assert side.store.devices()[0].received_ms == NOW + 500_000


@pytest.mark.parametrize("boot", ["\ud800", "x" * 65, 7])
def test_a_boot_that_is_none_stops_nothing(tmp_path: Path, boot: object) -> None:
    side = Side(tmp_path)
    side.give(heartbeat(1, chain.START, boot=boot), "heartbeat")
    side.give(heartbeat(1, chain.START, mono_ms=1 << 63), "heartbeat")
    assert set(side.alarms()) == {"damaged"}
    side.give(heartbeat(1, chain.START), "heartbeat")
    assert side.store.devices()[0].received_ms == NOW


def test_another_key_is_an_alarm_and_where_one_was_entered_it_is_refused(tmp_path: Path) -> None:
    for enrolled in (False, True):
        side = Side(tmp_path / str(enrolled))
        if enrolled:
            side.store.set_key(TOPICS, PUBLIC, enrolled=True)
        side.give(heartbeat(1, chain.START), "heartbeat")
        side.give(heartbeat(1, chain.START, 9000, secret=bytes(32)), "heartbeat", NOW + 60_000)
        assert side.alarms() == ["key"]
        assert side.store.devices()[0].received_ms == (NOW if enrolled else NOW + 60_000)


def test_silence_is_an_alarm_before_the_third_heartbeat_is_missed_and_ends_with_the_next(tmp_path: Path) -> None:
    side = Side(tmp_path)
    side.give(heartbeat(1, chain.START), "heartbeat")
    assert side.intake.handle_timer(NOW + 149_000) == []
    assert side.intake.handle_timer(NOW + 151_000) == [TOPICS]
    assert side.intake.handle_timer(NOW + 200_000) == [], "once"
    side.give(heartbeat(1, chain.START, 9000), "heartbeat", NOW + 300_000)
    (alarm,) = [one for one in side.store.alarms() if one.kind != "clock"]  # its wall clock stands still here
    assert (alarm.kind, alarm.from_ms, alarm.to_ms) == ("silent", NOW, NOW + 300_000)


def test_a_segment_that_does_not_come_together_is_asked_for_again_and_then_set_aside(tmp_path: Path) -> None:
    fill(tmp_path / "ring", 4000)
    number = numbers_in(str(tmp_path / "ring"))[0]
    path = path_of(str(tmp_path / "ring"), number)
    octets, sealed = Path(path).read_bytes(), Sealed(path, number)
    level = int(sealed.level)
    whole = Piece(RING, number, sealed.first_seq, sealed.next_seq, level, sealed.root, len(octets), 0, b"")

    def give(side: Side, data: bytes) -> list[Answer]:
        answers: list[Answer] = []
        for offset in range(0, len(data), 10_000):
            piece = whole._replace(offset=offset, data=data[offset : offset + 10_000])
            answers += side.give(wire.write(piece))
        return answers

    side = Side(tmp_path / "centre")
    bad = bytearray(octets)
    with closing(sqlite3.connect(path)) as database:
        (largest,) = database.execute("SELECT data FROM part ORDER BY length(data) DESC").fetchone()
    bad[octets.index(largest[:16]) + 20] ^= 1  # within records: between them a page has room that says nothing
    for _ in range(2):
        assert give(side, bytes(bad))[-1].again
    assert side.alarms() == []
    assert all(answer.done for answer in give(side, octets)), "the third time it came as it was"
    assert side.records() > 0
    assert all(answer.done for answer in give(side, octets)), "and once more: it is here"
    (stream,) = side.store.streams()
    assert side.store.unsigned(stream), "no key is known yet"
    other = Side(tmp_path / "other")
    for _ in range(2):
        assert give(other, bytes(bad))[-1].again
    assert give(other, bytes(bad))[-1].done
    assert other.alarms() == ["damaged"]
    assert not any(name.endswith(".tmp") for _, _, names in os.walk(tmp_path / "other") for name in names)


@pytest.mark.parametrize(("first_seq", "count"), [(1, 3), (2, 2), (4, 1), (1, 9)])
def test_a_batch_that_overlaps_what_is_here_is_never_dropped_without_a_word(
    tmp_path: Path, first_seq: int, count: int
) -> None:
    side = Side(tmp_path)
    side.give(wire.write_batches(batch(3, b"b" * 16, ["c.example", "d.example"])))
    other = batch(first_seq, b"a" * 16, ["x.example"] * count)
    assert side.give(wire.write_batches(other, as_stored=True))[0].done
    assert "conflict" in side.alarms()
    assert side.store._one("SELECT count(*) FROM aside", ()) == (1,)
    assert side.records() == 2


def test_what_is_set_aside_of_one_device_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.receiver.store.MAX_ASIDE", 10_000)
    side = Side(tmp_path)
    for number in range(100):
        side.give(b"rubbish %d " % number + bytes(1000))
    assert 1 <= side.store._one("SELECT count(*) FROM aside", ())[0] <= 9


def sealed_day(directory: Path) -> tuple[Piece, bytes, bytes, list[Batches]]:
    """The first segment of a ring: as a message without octets, its octets, its router's key, what it is made of."""
    fill(directory / "ring", 4000)
    secret = (directory / "ring" / "ring.key").read_bytes()
    number = numbers_in(str(directory / "ring"))[0]
    path = path_of(str(directory / "ring"), number)
    octets, sealed = Path(path).read_bytes(), Sealed(path, number)
    ring = public_key(secret)[:8]
    piece = Piece(
        ring, number, sealed.first_seq, sealed.next_seq, int(sealed.level), sealed.root, len(octets), 0, octets
    )
    half = batch(sealed.first_seq, chain.START, ["a.example", "b.example"])
    sealed.close()
    return piece, octets, secret, [half._replace(ring=ring, segment=number)]


def test_a_segment_that_is_not_signed_replaces_nothing(tmp_path: Path) -> None:
    piece, _, secret, (own,) = sealed_day(tmp_path)
    for is_known in (True, False):
        side = Side(tmp_path / str(is_known))
        side.intake = Intake(side.store, check=lambda _key, octets, _signature: len(octets) != 32)  # no root's holds
        if is_known:
            side.give(heartbeat(1, b"", secret=secret), "heartbeat")
            link = chain.link(
                chain.START, piece.segment, own.first_seq, 2, Sample(BOOT, 1000, NOW, True), own.rows[0].data
            )
            side.give(wire.write_batches(own._replace(link=link), as_stored=True))
            assert side.records() == 2
        answers = [side.give(wire.write(piece))[-1] for _ in range(3)]
        if is_known:
            assert [bool(answer.again) for answer in answers] == [True, True, False]
            assert side.records() == 2, "what came with the chain is still here"
            assert "signature" in side.alarms()
        else:
            assert answers[0].done, "no key is known yet: its signature is looked at when there is one"
            assert side.records() > 2


def test_a_file_that_is_damaged_at_the_centre_keeps_nothing_else_from_coming_in(tmp_path: Path) -> None:
    piece, _, _, (own,) = sealed_day(tmp_path)
    side = Side(tmp_path / "centre")
    assert side.give(wire.write(piece))[0].done
    (stream,) = side.store.streams()
    Path(side.store.path_of(stream, piece.segment)).write_bytes(b"rubbish")
    for payload in (wire.write(piece), wire.write_batches(own, as_stored=True), wire.write_batches(own)):
        (answer,) = side.give(payload)
        assert answer.done or answer.plain


def test_numbers_and_texts_that_no_database_takes_are_refused_or_made_harmless(tmp_path: Path) -> None:
    side = Side(tmp_path)
    first = batch(1, chain.START, ["a.example"])
    for bad in (
        first._replace(first_seq=(1 << 63) - 1),
        first._replace(segment=(1 << 64) - 1),
        first._replace(boot="\ud800"),
    ):
        side.give(wire.write_batches(bad, as_stored=True))
    side.give(wire.write(wire.Missing(RING, 1, 1, 2, "\udfff")))
    side.give(wire.write(wire.Missing(RING, 1, (1 << 64) - 1, (1 << 64) - 1, "")))
    gap = Gap(5, "uplink", 0, -(1 << 63), (1 << 63) - 1, "\ud800")
    side.give(wire.write(Urgent(RING, (wire.urgent_record(gap, 7, 1, NOW, True),))))
    side.give(heartbeat(1 << 63, b"x"), "heartbeat")
    assert set(side.alarms()) <= {"damaged"}
    side.give(wire.write_batches(first))
    assert side.records() == 2, "the gap, and what was right"


_SIDES: dict[str, Side] = {}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["records", "heartbeat", "state", "reply", "ack", "x"]),
    st.sampled_from([*sorted(MESSAGES), "heartbeat", ""]),
    st.integers(0, 1 << 20),
    st.binary(max_size=6),
)
def test_no_device_can_stop_the_receiver(
    tmp_path_factory: pytest.TempPathFactory, what: str, kind: str, place: int, more: bytes
) -> None:
    side = _SIDES.get("one") or _SIDES.setdefault("one", Side(tmp_path_factory.mktemp("hostile")))
    payload = bytearray(heartbeat(1, chain.START) if kind == "heartbeat" else MESSAGES.get(kind, b""))
    place %= len(payload) + 1
    payload[place : place + len(more)] = more
    side.give(bytes(payload), what)


def test_a_receiver_whose_zlib_makes_other_octets_gets_batches_as_they_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_deflate", partial(zlib.compress, level=9))
    fill(tmp_path / "device" / "ring", 3000)
    mosquitto = Mosquitto(tmp_path / "mosquitto", None)
    device = Device(tmp_path / "device", mosquitto.port)
    reader, writer = os.pipe()
    counters: dict[str, Any] = {}

    def receive() -> None:
        store = SqliteStore(str(tmp_path / "centre"))
        receiver = Receiver(store, ("127.0.0.1", mosquitto.port), Login("receiver", tls=False), "all")
        receiver.run(reader)
        counters.update(receiver.intake.counters)
        store.close()

    with running(mosquitto):
        thread = threading.Thread(target=receive)
        thread.start()
        with running(device):
            wait_until((tmp_path / "centre" / "centre.db").exists, 20)
            wait_until(lambda: read(tmp_path / "centre").total >= 3000, 30, device.log)
        os.write(writer, b"x")
        thread.join(10)
    found = read(tmp_path / "centre")
    assert found.names == expected(3000).names
    assert found.alarms == []
