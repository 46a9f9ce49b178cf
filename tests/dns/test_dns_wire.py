"""Any bytes parse or raise WireError, in linear time, in bounded memory."""

import struct
import time

import dnslib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from questions import query, record, reply, wire_name

from dns import screen, wire
from dns.learn import full_rcode, learn
from dns.wire import WireError, present, read_header, read_name, read_query, read_question, read_records, to_wire

QUERIES = [
    query("www.example.org"),
    query("www.example.org", 28, edns=(1232, 0x8000, b"\0\x0a\0\x08abcdefgh")),
    query("", 2),
    query("a." * 127),
    query(".".join(["x" * 63] * 3 + ["y" * 61])),
]
REPLIES = [
    reply(QUERIES[0], [record(1, b"\1\2\3\4")]),
    reply(QUERIES[0], [record(5, b"\3foo\xc0\x10"), record(1, b"\1\2\3\4", owner=b"\3foo\xc0\x10")]),
    reply(QUERIES[0], [record(65, b"\0\1\0" + b"\0\1\0\3\2h2" + b"\0\4\0\4\1\2\3\4" + b"\0\5\0\2\0\0")]),
    reply(QUERIES[0], [], [record(6, b"\xc0\x0c\xc0\x0c" + bytes(20))], rcode=3),
]
labels = st.lists(st.binary(min_size=1, max_size=20), max_size=8)


def parse_all(data):
    """Everything that the proxy does with a peer's octets."""
    header = read_header(data)
    read_query(data, read_header(data))
    name, _, _, end = read_question(data)
    records, behind = read_records(data, end, header)
    screen.look(data, records)
    learn(data, name, end, header, records, behind, full_rcode(header, records), 0)


def parses(data):
    try:
        parse_all(data)
    except WireError:
        return False
    return True


@given(st.binary(max_size=600))
def test_any_octets_parse_or_raise_wire_error(data):
    parses(data)


@given(st.sampled_from(QUERIES + REPLIES), st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=6))
def test_mutated_messages_parse_or_raise_wire_error(data, changes):
    mutated = bytearray(data)
    for at, value in changes:
        mutated[at % len(mutated)] = value
    parses(bytes(mutated))


@pytest.mark.parametrize("data", QUERIES)
def test_a_query_is_read_whole_but_not_cut_and_not_with_a_tail(data):
    assert (
        read_query(data, read_header(data)).question
        == data[12 : 12 + len(read_query(data, read_header(data)).question)]
    )
    for length in range(len(data)):
        with pytest.raises(WireError):
            read_query(data[:length], read_header(data[:length]))
    with pytest.raises(WireError):
        read_query(data + b"\0", read_header(data))


@pytest.mark.parametrize("data", REPLIES)
def test_a_reply_is_read_whole_but_not_cut(data):
    name, _, _, end = read_question(data)
    learn(data, name, end, read_header(data), *read_records(data, end, read_header(data)), 0, 0)
    for length in range(len(data)):
        assert not parses(data[:length])


@given(labels)
def test_names_come_out_as_dnslib_reads_them(parts):
    if sum(len(part) + 1 for part in parts) > 254:
        return
    data = bytes(12) + b"".join(bytes((len(part),)) + part for part in parts) + b"\0"
    name, end = read_name(data, 12)
    assert end == len(data)
    assert name == data[12:].lower()
    ascii_only = all(part.isascii() for part in parts)
    if ascii_only:
        buffer = dnslib.label.DNSBuffer(data) if hasattr(dnslib.label, "DNSBuffer") else None
        if buffer is not None:
            buffer.offset = 12
            assert tuple(part.lower() for part in buffer.decode_name().label) == tuple(part.lower() for part in parts)


@given(labels)
def test_presentation_form_is_unambiguous_and_plain(parts):
    if sum(len(part) + 1 for part in parts) > 254:
        return
    text = present(b"".join(bytes((len(part),)) + part.lower() for part in parts) + b"\0")
    assert all(0x21 <= octet <= 0x7E for octet in text)
    # Undo RFC 1035 5.1's escapes: the labels come back.
    back, current, at = [], bytearray(), 0
    while at < len(text):
        if text[at : at + 1] == b"\\" and text[at + 1 : at + 2].isdigit():
            current.append(int(text[at + 1 : at + 4]))
            at += 4
        elif text[at : at + 1] == b"\\":
            current += text[at + 1 : at + 2]
            at += 2
        elif text[at : at + 1] == b".":
            back.append(bytes(current))
            current, at = bytearray(), at + 1
        else:
            current += text[at : at + 1]
            at += 1
    if text:
        back.append(bytes(current))
    assert back == [part.lower() for part in parts]


def test_configured_names():
    assert to_wire("Plex.Direct.") == b"\4plex\6direct\0"
    assert to_wire("") == b"\0"
    for bad in ("x" * 64 + ".org", ".".join(["abcdefg"] * 32), "bücher.example"):
        with pytest.raises(WireError):
            to_wire(bad)


def test_a_pointer_must_point_backwards():
    head = struct.pack("!HHHHHH", 1, 0x8180, 1, 1, 0, 0) + wire_name("a") + b"\0\1\0\1"
    for pointer in (len(head), len(head) + 2, 0x3FFF, 0, 11):
        data = head + struct.pack("!H", 0xC000 | pointer) + b"\0\1\0\1\0\0\0\1\0\4\1\2\3\4"
        with pytest.raises(WireError):
            read_records(data, len(head), read_header(data))
    with pytest.raises(WireError, match="label type"):
        read_name(bytes(12) + b"\x80abc", 12)


def chain_of_pointers(number):
    """A CNAME whose target goes through `number` pointers, in a TXT record's data before it."""
    head = struct.pack("!HHHHHH", 1, 0x8180, 1, 2, 0, 0) + wire_name("a") + b"\0\1\0\1"
    start = len(head) + 12
    chain = b"\1a\0" + b"".join(
        struct.pack("!H", 0xC000 | (start if i == 0 else start + 3 + 2 * (i - 1))) for i in range(number)
    )
    last = start + 3 + 2 * (number - 1)
    return head + record(16, chain) + record(5, struct.pack("!H", 0xC000 | last))


def test_pointer_chains_end():
    assert parses_reply(chain_of_pointers(100))
    assert not parses_reply(chain_of_pointers(1500))


def parses_reply(data):
    try:
        records, _ = read_records(data, read_question(data)[3], read_header(data))
        screen.look(data, records)
    except WireError:
        return False
    return True


def hostile_64k():
    """64 KB messages that are as dear as we can make them."""
    head = struct.pack("!HHHHHH", 1, 0x8180, 1, 0xFFFF, 0xFFFF, 0xFFFF) + wire_name("a.b.c") + b"\0\1\0\1"
    small = record(1, b"\1\2\3\4")
    yield head + small * ((65535 - len(head)) // len(small))
    long_owner = b"\x01a" * 120 + b"\xc0\x0c"
    wide = record(16, b"", owner=long_owner)
    yield head + wide * ((65535 - len(head)) // len(wide))
    many = (65535 - len(head) - 14) // len(small)
    fits = struct.pack("!HHHHHH", 1, 0x8180, 1, many, 0, 0) + head[12:]
    yield fits + small * many
    params = b"\0\1\0" + b"\xff\x00\0\0" * 16000
    yield struct.pack("!HHHHHH", 1, 0x8180, 1, 1, 0, 0) + head[12:] + record(65, params)
    yield struct.pack("!HHHHHH", 1, 0x8180, 1, 5000, 0, 0) + head[12:] + record(5, b"\xc0\x0c") * 4600
    yield b"\xc0\x0c" * 32767
    yield bytes(65535)
    yield b"\x3f" * 65535


def test_64_kilobytes_take_no_more_than_linear_time():
    for data in hostile_64k():
        started = time.process_time()
        parses(data)
        parses_reply(data) if len(data) > 12 else None
        assert time.process_time() - started < 0.5, data[:60]


@settings(max_examples=300)
@given(st.binary(max_size=64), st.integers(0, 0xFFFF))
def test_svcb_parameters_parse_or_raise(params, priority):
    data = REPLIES[0][:33] + record(65, struct.pack("!H", priority) + params)
    records, _ = read_records(data, 33, wire.Header(0, 0, 1, 1, 0, 0))
    try:
        screen.look(data, records)
    except WireError:
        pass


@pytest.mark.parametrize(
    ("place", "value"),
    [(4, b"\0\0"), (4, b"\0\2"), (6, b"\0\1"), (10, b"\0\1")],
)
def test_counts_that_lie_are_malformed(place, value):
    data = bytearray(QUERIES[0])
    data[place : place + 2] = value
    with pytest.raises(WireError):
        read_query(bytes(data), read_header(bytes(data)))


def test_opt_records_in_odd_places_are_malformed():
    opt = struct.pack("!BHHIH", 0, 41, 1232, 0, 0)
    base = query("www.example.org")
    for counts, tail in (((0, 0, 2), opt * 2), ((1, 0, 0), opt), ((0, 1, 0), opt)):
        data = base[:6] + struct.pack("!HHH", *counts) + base[12:] + tail
        with pytest.raises(WireError):
            read_query(data, read_header(data))
    owned = base[:6] + struct.pack("!HHH", 0, 0, 1) + base[12:] + b"\1a" + opt
    with pytest.raises(WireError):
        read_query(owned, read_header(owned))
    for options in (b"\0", b"\0\x0a\0\5abc", b"\0\x0a\0\0" * 40):
        with pytest.raises(WireError):
            read_query(bad := query("www.example.org", edns=(512, 0, options)), read_header(bad))
