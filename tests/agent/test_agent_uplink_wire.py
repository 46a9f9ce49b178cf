"""Messages of the uplink: what is written is read, and what is not a message raises nothing but MessageError."""

import lzma
import random
import tracemalloc
import zlib
from collections.abc import Sequence
from itertools import islice
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.uplink import wire
from agent.uplink.signed import open_sealed, seal
from agent.uplink.wire import Acks, Batches, Missing, Part, Piece, Row, Urgent
from policy.errors import MessageError
from policy.event import Dns, Event, Flow, Gap, Maintenance, Session
from policy.signature import public_key, sign, verify
from storage import chain
from storage.batch import Columns, narrow, pack
from storage.clock import Sample
from tests.bench._ring_day import day

RING = b"ringring"
BOOT = "0f0f0f0f-0000-4000-8000-000000000001"


def look_up(at_ms: int, name: str, verdict: int = 0) -> Dns:
    return Dns(at_ms, b"\x0a\x14\0\x0b", name, 1, 0, verdict, 0, "", "pupils", (b"\x01\x02\x03\x04",), False, 3)


def batches(count: int = 5, records: int = 40) -> Batches:
    rng = random.Random(7)
    return batches_of(
        [
            [look_up(number * 1000 + n, f"n{rng.randrange(500)}.example") for n in range(records)]
            for number in range(count)
        ]
    )


def batches_of_a_school() -> Batches:
    return batches_of([list(some) for some in islice(day(3, 30, 60_000), 1200, 1230) if some])


def batches_of(groups: Sequence[Sequence[Event]]) -> Batches:
    rows, link, seq = [], chain.START, 100
    for number, events in enumerate(groups):
        columns = Columns()
        columns.add(events)
        row = Row(len(events), number * 1000, 1_795_000_000_000 + number, True, pack(columns))
        link = chain.link(link, 3, seq, len(events), Sample(BOOT, row.mono_ms, row.wall_ms, True), row.data)
        seq += len(events)
        rows.append(row)
    return Batches(RING, 3, 100, BOOT, chain.START, link, tuple(rows))


def messages() -> dict[str, bytes]:
    record = wire.urgent_record(look_up(5, "casino.example", 1), 7, 1, 1_795_000_000_000, True)
    return {
        "packed": wire.write_batches(batches()),
        "joined": wire.write_batches(batches_of_a_school(), joined=True),
        "stored": wire.write_batches(batches(), as_stored=True),
        "sealed": wire.write(Piece(RING, 2, 1, 900, 1, b"r" * 32, 5000, 1000, b"x" * 2000)),
        "part": wire.write(Part(RING, b"w" * 32, 5000, 0, b"x" * 2000)),
        "lost": wire.write(Missing(RING, 2, 5, 9, "gone before it was taken")),
        "urgent": wire.write(Urgent(RING, (record,))),
        "ack": wire.write(Acks((b"12345678",), (b"abcdefgh",), (b"ABCDEFGH",))),
    }


MESSAGES = messages()


def test_batches_come_back_as_they_were_stored_and_travel_smaller() -> None:
    sent = batches()
    packed, stored = wire.write_batches(sent), wire.write_batches(sent, as_stored=True)
    assert len(packed) < 0.7 * len(stored)
    assert wire.read(packed) == sent._replace(packed=True)
    assert wire.read(stored) == sent


@pytest.mark.parametrize("kind", sorted(MESSAGES))
def test_cut_anywhere_it_is_an_error_of_the_peer(kind: str) -> None:
    payload = MESSAGES[kind]
    wire.read(payload)
    for end in range(0, len(payload), max(1, len(payload) // 300)):
        with pytest.raises(MessageError):
            wire.read(payload[:end])
    with pytest.raises(MessageError):
        wire.read(payload + b"\0")


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(MESSAGES)), st.integers(0, 1 << 20), st.integers(0, 255), st.binary(max_size=4))
def test_with_octets_changed_it_is_read_or_refused(kind: str, place: int, octet: int, more: bytes) -> None:
    payload = bytearray(MESSAGES[kind])
    place %= len(payload)
    payload[place] = octet
    payload[place:place] = more
    try:
        wire.read(bytes(payload))
    except MessageError:
        pass


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_octets_are_read_or_refused(octets: bytes) -> None:
    for prefix in (b"", b"\x82\xa1v\x01\xa1k"):
        try:
            wire.read(prefix + octets)
        except MessageError:
            pass


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.binary(max_size=40) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(sorted(MESSAGES)), st.data())
def test_with_any_field_changed_to_anything_it_is_read_or_refused(kind: str, data: st.DataObject) -> None:
    fields = msgpack.unpackb(MESSAGES[kind])
    name = data.draw(st.sampled_from(sorted(fields)))
    fields[name] = data.draw(VALUES)
    try:
        wire.read(msgpack.packb(fields))
    except MessageError:
        pass


def test_a_bomb_is_refused_before_it_has_gone_off() -> None:
    fields = msgpack.unpackb(wire.write_batches(batches()))
    import lzma

    fields["data"] = lzma.compress(bytes(40 << 20), lzma.FORMAT_RAW, filters=wire._FILTERS)
    assert len(fields["data"]) < wire.MAX_MESSAGE
    with pytest.raises(MessageError):
        wire.read(msgpack.packb(fields))


@pytest.mark.parametrize(
    "event",
    [
        look_up(5, "casino.example", 1),
        Flow(5, b"\x0a\0\0\1", b"\2" * 6, 1025, b"\1\2\3\4", 443, 6, "x.example", 2, 0, "", 1, 2, "r", "g"),
        Session(5, "s", "anna", b"", "12", b"\2" * 6, (b"\x0a\0\0\1",), 4, 0, "", "radius"),
        Maintenance(5, "agent", "start", "agent", "", "", "ok"),
        Gap(5, "dns/0", 3, 1, 4, "killed"),
    ],
)
def test_an_urgent_record_is_the_record(event: Dns) -> None:
    record = wire.urgent_record(event, 7, 1, 9, True)
    again = wire.read(wire.write(Urgent(RING, (record,))))
    assert isinstance(again, Urgent)
    assert wire.event_of(again.records[0]) == event
    later = {name: value for name, value in again.records[0].items() if name not in ("detail", "phone_index")}
    assert wire.event_of({**later, "unheard_of": 1}) == event, "a release before or after ours"


def test_topics_belong_to_one_device() -> None:
    topics = wire.Topics("11010500000001", "100000001020000000001")
    assert wire.read_topic(topics.of("records")) == (topics, "records")
    for bad in (
        "gatehouse/v1/a/b",
        "gatehouse/v2/a/b/records",
        "gatehouse/v1/a/b/c/records",
        "gatehouse/v1/+/b/records",
    ):
        with pytest.raises(MessageError):
            wire.read_topic(bad)


def test_what_is_signed_for_one_use_is_nothing_for_another() -> None:
    secret = bytes(range(32))
    public = public_key(secret)
    keys = {public[:8]: public}
    sealed = seal(b"heartbeat", b"alive", lambda octets: sign(secret, octets), public[:8])
    assert open_sealed(b"heartbeat", sealed, keys, verify) == (b"alive", public[:8])
    with pytest.raises(MessageError, match="does not hold"):
        open_sealed(b"order", sealed, keys, verify)
    with pytest.raises(MessageError, match="not trusted"):
        open_sealed(b"heartbeat", sealed, {}, verify)
    with pytest.raises(MessageError, match="does not hold"):
        open_sealed(b"heartbeat", sealed.replace(b"alive", b"aLive"), keys, verify)


def test_a_batch_is_what_zlib_makes_of_it_again() -> None:
    """What the packed form rests on; where it does not hold, the receiver asks for batches as they are stored."""
    for row in batches().rows:
        assert zlib.compress(zlib.decompress(row.data), 4) == row.data


def test_what_comes_down_costs_a_router_little_whoever_sends_it() -> None:
    """Neither room for what arrays announce within each other, nor anything unpacked: those are for the centre."""
    nested = b"\x82\xa1v\x01\xa1k" + b"\xdd\x00\x01\xff\x00" * 900
    bomb = MESSAGES["packed"]
    tracemalloc.start()
    try:
        for payload in (nested, bomb):
            with pytest.raises(MessageError):
                wire.read_acks(payload)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    acks = Acks((b"12345678",), (), (b"87654321",))
    assert wire.read_acks(wire.write(acks)) == acks


def test_batches_that_travel_as_one_come_back_as_they_were_stored_and_are_smaller_still() -> None:
    sent = batches_of_a_school()
    joined = wire.write_batches(sent, joined=True)
    assert len(joined) < 0.95 * len(wire.write_batches(sent))
    assert wire.unpack_map(joined)["form"] == 3
    assert wire.read(joined) == sent._replace(packed=True)


def test_batches_that_could_not_be_told_apart_again_travel_as_before() -> None:
    """A later release's batch, say, with a field that this one does not know: nothing of it may be lost."""
    sent = batches_of_a_school()
    plain = zlib.decompress(sent.rows[0].data)
    unpacker = msgpack.Unpacker(use_list=False)
    unpacker.feed(plain)
    form, shapes, names, targets, whos, others, base = unpacker.unpack()
    head = msgpack.packb((form, shapes, (*names, "nobody.asked"), targets, whos, others, base))
    other = zlib.compress(head + plain[unpacker.tell() :], 4)
    odd = sent._replace(rows=(sent.rows[0]._replace(data=other), *sent.rows[1:]))
    payload = wire.write_batches(odd, joined=True)
    assert wire.unpack_map(payload)["form"] != 3
    assert wire.read(payload) == odd._replace(packed=wire.unpack_map(payload)["form"] != 0)


@pytest.mark.parametrize("counts", [(), (0, 5), (3, 3), (-1, 6), (5, 1 << 40), (True, 4), ("1", 4)])
def test_records_that_do_not_add_up_are_no_message(counts: tuple[Any, ...]) -> None:
    sent = batches_of_a_school()
    fields = wire.unpack_map(wire.write_batches(sent, joined=True))
    assert fields["form"] == 3
    fields["rows"] = tuple((count, *row[1:]) for count, row in zip(counts, fields["rows"], strict=False))
    with pytest.raises(MessageError):
        wire.read(wire.pack_map(fields))


def test_records_that_go_ahead_are_small_and_none_is_changed() -> None:
    gap = Gap(9, "uplink", 0, 3, 8, "no link")
    events = [look_up(5, "casino.example", 1), look_up(7, "www.casino.example", 1), gap, look_up(6, "\ud800", 1)]
    records = tuple(
        wire.urgent_record(event, 70 + 2 * place, 3 - place % 2, 1_795_000_000_000 + place, place % 2 == 0)
        for place, event in enumerate(events)
    )
    sent = Urgent(RING, records)
    payload = wire.write(sent)
    assert wire.read(payload) == sent
    plain = wire.pack_map({"k": "urgent", "ring": RING, "records": records})
    assert wire.read(plain) == sent, "as maps, too"
    assert len(payload) < 0.4 * len(plain)


@given(st.binary(max_size=60) | st.recursive(st.integers() | st.binary(max_size=4) | st.text(max_size=4), st.lists))
def test_what_goes_ahead_and_makes_no_sense_is_no_message(said: object) -> None:
    try:
        octets = said if isinstance(said, bytes) else msgpack.packb(said, unicode_errors="surrogatepass")
    except (OverflowError, ValueError):
        return
    for plain in (octets, b"\x91" + octets):
        data = zlib.compress(plain, wbits=-15)
        try:
            found = wire.read(wire.pack_map({"k": "urgent", "ring": RING, "data": data}))
        except MessageError:
            continue
        assert isinstance(found, Urgent)


@given(st.lists(st.integers(0, 1 << 40), max_size=40), st.lists(st.integers(0, 30), max_size=40))
def test_columns_that_are_turned_turn_back(times: list[int], targets: list[int]) -> None:
    known: dict[int, int] = {}
    places = [known.setdefault(target, len(known)) for target in targets]
    columns = ([0], [1], places, [2], times, [70_000])
    plain = msgpack.packb(("any", "head")) + b"".join(msgpack.packb(narrow(column)) for column in columns)
    assert wire.turn(wire.turn(plain), back=True) == plain


@given(st.binary(max_size=80))
def test_octets_that_do_not_turn_back_are_no_message(data: bytes) -> None:
    fields = {"k": "batches", "ring": RING, "segment": 1, "first_seq": 1, "boot": "b", "before": bytes(16)}
    packed = lzma.compress(data, lzma.FORMAT_RAW, filters=wire._FILTERS)
    for rows in (((1, 2, 3, True),), ((1, 2, 3, True, 4),), ((1, -5, "x", True),), (())):
        with pytest.raises(MessageError):
            wire.read(wire.pack_map({**fields, "link": bytes(16), "form": 3, "rows": rows, "data": packed}))


@given(st.binary(max_size=300))
def test_what_was_deflated_comes_back_and_anything_else_is_told(data: bytes) -> None:
    assert wire.inflated(wire.deflated(data)) == data
    plain = wire.pack_map({"k": "heartbeat", "x": data})
    assert wire.inflated(plain) == plain
    try:
        wire.inflated(wire.pack_map({"k": "deflated", "data": data}))
    except MessageError:
        pass


def test_a_heartbeat_that_inflates_without_end_is_no_message() -> None:
    bomb = wire.deflated(bytes(wire.MAX_MESSAGE + 1))
    with pytest.raises(MessageError, match="larger than any"):
        wire.inflated(bomb)
