"""Frames between our processes: there and back, and anything at all from a hook that has been taken over."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy import frame as frames
from policy.errors import FrameError
from policy.event import Dns, Event, Flood, Flow, Gap, Health, Maintenance, Nat, Registration, Session
from policy.frame import (
    MAX_FRAME,
    VERSION,
    Ack,
    Beat,
    Bye,
    Client,
    Down,
    Events,
    Fold,
    Folded,
    FoldedFlows,
    Hello,
    Hint,
    Reload,
    Stop,
    beat_frame,
    bye_frame,
    down_frame,
    event_bytes,
    events_frame,
    flows_of,
    folded_frame,
    hello_frame,
    read_down,
    read_up,
)

LOOKUP = Dns(7, b"\x0a\0\0\2", "a.example", 1, 0, 0, 0, "", "home", (b"\xc0\0\2\1",), True, 0)
EVERY_KIND: list[Event] = [
    LOOKUP,
    Flow(8, b"\x0a\0\0\2", b"\2\0\0\0\0\1", 40000, b"\xc0\0\2\1", 443, 6, "a.example", 2, 0, "", 0, 0, "", "home"),
    Session(9, "s1", "ann", b"", "12", b"\2\0\0\0\0\1", (b"\x0a\0\0\2",), 1, 0, "", "dhcp"),
    Maintenance(10, "agent", "start", "agent", "", "", "ok"),
    Registration(11, "ann", b"sealed", b"index", 0, 0),
    Nat(12, b"\x0a\0\0\2", b"\xcb\0\x71\5", 1024, 2047, 6, 0),
    Health(13, (("drops", 0),)),
    Gap(14, "dns/0", 3, 1, 2, "outbox full"),
    Flood(15, b"\x0a\0\0\2", 1000, 1, 2, ("x.example",)),
]


def test_every_record_survives_the_way_up() -> None:
    frame = read_up(events_frame(1, 5, [event_bytes(event) for event in EVERY_KIND]))
    assert frame == Events(1, 5, EVERY_KIND)


def test_folded_columns_come_back_in_order() -> None:
    templates = [LOOKUP._replace(at_ms=0, client=b""), LOOKUP._replace(at_ms=0, client=b"", name="b.example")]
    clients = [b"\x0a\0\0\2", b"\xfd" + bytes(15)]
    fold = Fold([event_bytes(t) for t in templates], [1, 0, 1], [(1002, 1), (1000, 2)], clients, [0, 1, 0])
    frame = read_up(folded_frame(0, 9, fold))
    assert isinstance(frame, Folded)
    assert (list(frame.which), frame.at_ms, list(frame.who)) == ([1, 0, 1], [1002, 1000, 1000], [0, 1, 0])
    assert (frame.templates, frame.clients) == (templates, tuple(clients))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"templates": [b"\xc1"]}, "not msgpack"),
        ({"templates": [event_bytes(EVERY_KIND[1])]}, "expected look-ups"),
        ({"templates": [event_bytes(LOOKUP)[:-1]]}, "not msgpack"),
        ({"which": [1]}, "past its table"),
        ({"who": [1]}, "past its table"),
        ({"who": [0, 0]}, "columns of"),
        ({"times": [(1, 2)]}, "columns of"),
        ({"clients": [b"123"]}, "not an address"),
        ({"times": [(1 << 48, 1)]}, "base time"),
    ],
)
def test_a_folded_frame_is_believed_in_nothing(change: dict[str, object], why: str) -> None:
    right = Fold([event_bytes(LOOKUP)], [0], [(1, 1)], [b"\x0a\0\0\2"], [0])
    read_up(folded_frame(0, 1, right))
    with pytest.raises(FrameError, match=why):
        read_up(folded_frame(0, 1, right._replace(**change)))  # type: ignore[arg-type]


MAYBE_WRONG = {
    0: st.sampled_from([0, 1, 9, -1]),
    1: st.sampled_from([0, 5, -1, 1 << 48]),
    2: st.sampled_from([b"", b"\x0a\0\0\2", "x"]),
    3: st.sampled_from(["", "a.example", "a" * 255, "a" * 256, b"x", None]),
    4: st.sampled_from([0, 65, 65535, 65536, -1, True]),
    5: st.sampled_from([0, 3, 4095, 4096, -1]),
    6: st.sampled_from([0, 1, 15, 16, -1]),
    7: st.sampled_from([0, 255, 256, -1]),
    8: st.sampled_from(["", "rule", b"rule"]),
    9: st.sampled_from(["", "home", 1]),
    10: st.sampled_from([(), (b"1234", bytes(16)), (b"12345",), ("1234",), (b"1234",) * 99, b"1234"]),
    11: st.sampled_from([True, False, 1]),
    12: st.sampled_from([0, 7, -1]),
    13: st.sampled_from([b"", b"123456", b"1"]),
    14: st.sampled_from(["", "s1", b""]),
}


@given(st.lists(st.integers(0, 14), max_size=3), st.data())
def test_the_short_reader_of_templates_believes_nothing_that_the_long_one_does_not(
    places: list[int], data: st.DataObject
) -> None:
    row = list(msgpack.unpackb(event_bytes(LOOKUP._replace(at_ms=0, client=b"")), use_list=False))
    usual = frames._usual_look_up(tuple(row))
    assert type(usual) is Dns
    assert usual == frames.read_event(tuple(row))
    for place in places:
        row[place] = data.draw(MAYBE_WRONG[place])
    short = frames._usual_look_up(tuple(row))
    if short is not None:
        assert short == frames.read_event(tuple(row))


FLOW = next(event for event in EVERY_KIND if isinstance(event, Flow))
ALIKE = FLOW._replace(at_ms=0, client=b"", mac=b"", sport=0)


def test_folded_flows_come_back_each_with_its_own_client_time_and_port() -> None:
    clients = [b"\x0a\0\0\2" + b"\2" * 6, b"\xfd" + bytes(15)]
    fold = Fold([event_bytes(ALIKE)], [0, 0, 0], [(1000, 2), (1005, 1)], clients, [0, 1, 0], [40000, 1, 65535])
    one = ALIKE._replace(at_ms=1000, client=clients[0][:4], mac=b"\2" * 6, sport=40000)
    assert flows_of(fold) == [
        one,
        one._replace(client=clients[1], mac=b"", sport=1),
        one._replace(at_ms=1005, sport=65535),
    ]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"templates": [event_bytes(LOOKUP)]}, "no flows"),
        ({"ports": [1, 2]}, "source ports of"),
        ({"clients": [bytes(11)]}, "a MAC of 6"),
        ({"which": [1]}, "past its table"),
    ],
)
def test_folded_flows_are_believed_in_nothing(change: dict[str, object], why: str) -> None:
    right = Fold([event_bytes(ALIKE)], [0], [(1, 1)], [b"\x0a\0\0\2"], [0], [1])
    assert isinstance(read_up(folded_frame(0, 1, right)), FoldedFlows)
    with pytest.raises(FrameError, match=why):
        read_up(folded_frame(0, 1, right._replace(**change)))  # type: ignore[arg-type]


def test_a_folded_frame_with_any_octet_changed_is_read_or_refused() -> None:
    look_ups = Fold([event_bytes(LOOKUP)] * 2, [0, 1], [(1, 2)], [b"\x0a\0\0\2"], [0, 0])
    flows = look_ups._replace(templates=[event_bytes(ALIKE)] * 2, ports=[1, 2])
    for whole in (folded_frame(0, 1, look_ups), folded_frame(0, 1, flows)):
        for at in range(len(whole)):
            for octet in (0, 0x7F, 0xC1, 0xFF, whole[at] ^ 1):
                try:
                    read_up(whole[:at] + bytes((octet,)) + whole[at + 1 :])
                except FrameError:
                    pass


def test_the_small_frames() -> None:
    hello = Hello("dns", 0, 42, b"12345678")
    assert read_up(hello_frame(hello)) == hello
    assert read_up(beat_frame({"queries": 3})) == Beat({"queries": 3})
    assert read_up(bye_frame()) == Bye()


@pytest.mark.parametrize(
    "message",
    [Ack(0, 4), Reload(), Stop(), Client(b"\x0a\0\0\2", b"", "ann", "br-lan", ""), Hint(b"1234", "a.b", (b"1234",), 9)],
)
def test_every_message_survives_the_way_down(message: Down) -> None:
    assert read_down(down_frame(message)) == message


@given(st.binary(max_size=300))
def test_any_bytes_are_a_frame_or_a_frame_error(data: bytes) -> None:
    for read in (read_up, read_down):
        try:
            read(data)
        except FrameError:
            pass


ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.binary(max_size=20) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=14) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=40,
)


@given(st.integers(0, 22), st.lists(ODD, max_size=9))
def test_well_formed_msgpack_of_the_wrong_shape_is_a_frame_error(kind: int, body: list[object]) -> None:
    data = msgpack.packb([VERSION, kind, *body])
    for read in (read_up, read_down):
        try:
            read(data)
        except FrameError:
            pass


@given(st.data())
def test_a_record_with_one_odd_field_is_taken_whole_or_refused(data: st.DataObject) -> None:
    event = data.draw(st.sampled_from(EVERY_KIND))
    at = data.draw(st.integers(0, len(event) - 1))
    row = msgpack.unpackb(event_bytes(event))
    row[1 + at] = data.draw(ODD)
    try:
        frame = read_up(events_frame(0, 1, [msgpack.packb(row)]))
    except FrameError:
        return
    assert isinstance(frame, Events)
    assert type(frame.events[0]) is type(event)


def test_a_frame_that_is_cut_is_refused_at_every_length() -> None:
    whole = events_frame(1, 5, [event_bytes(event) for event in EVERY_KIND])
    for length in range(len(whole)):
        with pytest.raises(FrameError):
            read_up(whole[:length])


def test_bounds() -> None:
    with pytest.raises(FrameError, match="octets, expected at most"):
        read_up(bytes(MAX_FRAME + 1))
    with pytest.raises(FrameError, match="two releases are running"):
        read_up(msgpack.packb([VERSION + 1, 4]))
    with pytest.raises(FrameError, match="out of range"):
        read_up(events_frame(0, 1, [event_bytes(EVERY_KIND[1]._replace(sport=70000))]))  # type: ignore[call-arg]
