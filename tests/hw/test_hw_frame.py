"""Frames on a line that hurts them, and the two ends that make requests of them."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.frame import FLAG, MAX_PAYLOAD, Decoder, Frame, Kind, encode
from hw.laptop.caller import PATIENCE_S, Caller
from hw.message import pack, unpack
from policy.errors import SerialError

FRAMES = st.builds(
    Frame, st.integers(0, 255), st.integers(0, 2**32 - 1), st.integers(0, 65535), st.binary(max_size=300)
)


def hurt(data: bytes, rng: random.Random, part: float) -> bytes:
    octets = bytearray()
    for octet in data:
        if rng.random() >= part:
            octets.append(octet)
        elif (how := rng.randrange(3)) == 0:
            octets.append(octet ^ 1 << rng.randrange(8))
        elif how == 1:
            octets += bytes((octet, octet))
    return bytes(octets)


@given(st.lists(FRAMES, max_size=5), st.integers(1, 7))
def test_what_is_encoded_is_decoded_in_pieces_of_any_size(frames: list[Frame], size: int) -> None:
    line = b"".join(encode(frame) for frame in frames)
    decoder, found = Decoder(), []
    for at in range(0, len(line), size):
        more, plain = decoder.receive(line[at : at + size])
        found += more
        assert plain == b""
    assert found == frames


@given(FRAMES)
def test_no_octet_of_a_frame_is_a_key_that_does_something(frame: Frame) -> None:
    inside = encode(frame)[1:-1]
    assert all(octet >= 0x20 and octet not in (0x7E, 0x7F) for octet in inside)


def test_a_frame_of_full_length_and_of_none() -> None:
    for payload in (b"", bytes(MAX_PAYLOAD)):
        frame = Frame(Kind.REQUEST, 1, 2, payload)
        assert Decoder().receive(encode(frame)) == ([frame], b"")


@given(st.binary(max_size=2000))
def test_any_octets_are_frames_or_plain_and_the_next_frame_is_found(noise: bytes) -> None:
    decoder = Decoder()
    decoder.receive(noise)
    frame = Frame(Kind.REPLY, 7, 8, b"here")
    # Twice: noise may end in the middle of a frame, and then the first flag ends that.
    found = decoder.receive(encode(frame) + encode(frame))[0]
    assert frame in found


@settings(max_examples=50)
@given(st.integers(0, 2**32))
def test_a_hurt_frame_is_never_taken_for_another(seed: int) -> None:
    rng, decoder = random.Random(seed), Decoder()
    sent = [Frame(Kind.REQUEST, 5, number, rng.randbytes(rng.randrange(120))) for number in range(40)]
    found = decoder.receive(hurt(b"".join(map(encode, sent)), rng, 0.02))[0]
    assert set(found) <= set(sent)


def test_a_person_gets_the_line_back_after_half_a_frame() -> None:
    decoder = Decoder()
    decoder.receive(encode(Frame(1, 1, 1, b"x"))[:9])
    assert decoder.receive(b"help\r")[1] == b"\r"
    assert decoder.receive(b"help\r")[1] == b"help\r"


def test_a_torn_frame_gives_no_order() -> None:
    """Whatever is dropped of it, what is left over holds no Enter."""
    line = encode(Frame(1, 1, 1, b"x\rfactory-reset\ryes\r\n\x03\x04"))
    for at in range(len(line)):
        plain = Decoder().receive(line[at + 1 :])[1]
        assert not set(plain) & set(range(0x20))


@given(st.binary(max_size=300))
def test_any_payload_is_a_message_or_a_serial_error(payload: bytes) -> None:
    try:
        message = unpack(payload)
    except SerialError:
        return
    for name in message.head:
        for read in (message.text, message.integer, lambda key: message.octets(key, 4)):
            try:
                read(name)
            except SerialError:
                pass


def test_deep_json_is_refused() -> None:
    text = b'{"a":' + b"[" * 4000
    with pytest.raises(SerialError):
        unpack(len(text).to_bytes(2, "big") + text)


def test_a_request_is_sent_again_until_answered_and_a_late_reply_to_another_is_not_taken() -> None:
    caller = Caller(9, 115200)
    caller.begin({"do": "a"}, b"", 0.0)
    first = caller.take_output()
    due = caller.next_timer()
    assert due is not None
    caller.handle_timer(due)
    assert caller.take_output() == first
    (frame,) = Decoder().receive(first)[0]
    caller.receive(encode(Frame(Kind.REPLY, 9, frame.seq + 1, pack({"n": 1}))), due)
    caller.receive(encode(Frame(Kind.REPLY, 8, frame.seq, pack({"n": 2}))), due)
    assert caller.reply is None
    caller.receive(encode(Frame(Kind.REPLY, 9, frame.seq, pack({"n": 3}))), due)
    assert caller.reply is not None
    assert caller.reply.head == {"n": 3}


def test_a_busy_router_is_waited_for_and_a_dead_line_is_not() -> None:
    caller = Caller(9, 115200)
    caller.begin({"do": "commit"}, b"", 0.0)
    (frame,) = Decoder().receive(caller.take_output())[0]
    now = 0.0
    while now < 3 * PATIENCE_S:
        now += 1.0
        caller.receive(encode(Frame(Kind.BUSY, 9, frame.seq, b"")), now)
        caller.handle_timer(now)
    with pytest.raises(SerialError, match="does not answer"):
        while now < 5 * PATIENCE_S:
            now += 0.5
            caller.handle_timer(now)


def test_pieces_shrink_on_a_bad_line_and_grow_on_a_good_one() -> None:
    caller, now = Caller(9, 921600), 0.0
    for _ in range(8):
        caller.begin({}, b"", now)
        (frame,) = Decoder().receive(caller.take_output())[0]
        caller.receive(encode(Frame(Kind.REPLY, 9, frame.seq, pack({}))), now)
    assert caller.piece > 2000
    caller.begin({}, b"", now)
    for _ in range(8):
        now = caller.next_timer() or 0.0
        caller.handle_timer(now)
    assert caller.piece == 64


def test_the_flag_is_on_no_keyboard() -> None:
    assert FLAG == 0x1E
