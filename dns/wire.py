"""DNS messages as they stand on the wire (RFC 1035 4): a bounds-checked reader, names, and the parts that we look at.

Holds what a proxy must see of a message; everything else passes through unread. Holds no policy and no answer.
Rule: any bytes parse or raise WireError, in time linear in their length. Owner names are skipped, not followed; the
few names that are followed are capped in number, and a pointer must point backwards.
"""

from __future__ import annotations

from struct import Struct, error
from typing import Final, NamedTuple

from policy.errors import WireError

MAX_NAME: Final = 255
"""Octets of a name, length octets included (RFC 1035 2.3.4)."""
MAX_LABEL: Final = 63
MAX_POINTERS: Final = 127
"""A name of 255 octets has at most 127 labels, so a chain of more pointers than that is an attack."""
MAX_OPTIONS: Final = 32
"""EDNS options of one query: real ones carry two or three."""
HEADER: Final = 12

QR: Final = 0x8000
AA: Final = 0x0400
TC: Final = 0x0200
RD: Final = 0x0100
RA: Final = 0x0080
AD: Final = 0x0020
CD: Final = 0x0010
OPCODE: Final = 0x7800
DO: Final = 0x8000
"""In the flags of the OPT record (RFC 3225)."""

IN: Final = 1


class Type:
    """The types that we treat in a special way. Any other number passes as it is.

    Not an enum, here and below: on Python 3.11 an enum's member costs ten times what a class's attribute does, and the
    hook looks at some thirty of them per miss.
    """

    A: Final = 1
    NS: Final = 2
    CNAME: Final = 5
    SOA: Final = 6
    PTR: Final = 12
    HINFO: Final = 13
    TXT: Final = 16
    AAAA: Final = 28
    DNAME: Final = 39
    OPT: Final = 41
    DS: Final = 43
    SVCB: Final = 64
    HTTPS: Final = 65
    TKEY: Final = 249
    TSIG: Final = 250
    IXFR: Final = 251
    AXFR: Final = 252
    MAILB: Final = 253
    MAILA: Final = 254
    ANY: Final = 255


class Rcode:
    """Response codes."""

    NOERROR: Final = 0
    FORMERR: Final = 1
    SERVFAIL: Final = 2
    NXDOMAIN: Final = 3
    NOTIMP: Final = 4
    REFUSED: Final = 5
    BADVERS: Final = 16


class Option:
    """EDNS option codes."""

    NSID: Final = 3
    ECS: Final = 8
    COOKIE: Final = 10
    EDE: Final = 15


_HEADER: Final = Struct("!HHHHHH")
_TYPE_CLASS: Final = Struct("!HH")
_RECORD: Final = Struct("!HHIH")
_OPTION: Final = Struct("!HH")
_new: Final = tuple.__new__
"""Makes a named tuple in half the time that its own constructor takes. For what is made for every message."""


class Header(NamedTuple):
    id: int
    flags: int
    questions: int
    answers: int
    authorities: int
    additionals: int


class Edns(NamedTuple):
    """A query's OPT record (RFC 6891)."""

    size: int
    version: int
    flags: int
    options: tuple[tuple[int, bytes], ...]


class Query(NamedTuple):
    """What a client asks."""

    id: int
    flags: int
    name: bytes
    """Wire form, lower case."""
    qtype: int
    qclass: int
    question: bytes
    """Name, type and class as they were sent, to be echoed to the letter."""
    edns: Edns | None


class Record(NamedTuple):
    """Where one resource record of a message stands."""

    section: int
    """0 answer, 1 authority, 2 additional."""
    at: int
    """Of the owner name."""
    rtype: int
    rclass: int
    ttl: int
    data: int
    """Offset of RDATA; the TTL stands six octets before it."""
    length: int

    @property
    def end(self) -> int:
        return self.data + self.length


def read_header(data: bytes) -> Header:
    """Raises: WireError on less than twelve octets."""
    if len(data) < HEADER:
        raise WireError(f"header: {len(data)} octets, expected {HEADER}")
    return _new(Header, _HEADER.unpack_from(data))


def skip_name(data: bytes, at: int) -> int:
    """Offset behind the name that starts at `at`; a pointer ends it and is not followed.

    Raises: WireError if it runs out of the message, is too long, or points anywhere but backwards.
    """
    start = at
    try:
        while (length := data[at]) != 0:
            if length > MAX_LABEL:
                if length < 0xC0:
                    raise WireError(f"name at {start}: label type {length >> 6:#x}, expected 0 or 3")
                target = (length & 0x3F) << 8 | data[at + 1]
                if not HEADER <= target < start:
                    raise WireError(f"name at {start}: pointer to {target}, expected backwards")
                return at + 2
            at += length + 1
            if at - start >= MAX_NAME:
                raise WireError(f"name at {start}: longer than {MAX_NAME} octets")
    except IndexError:
        raise WireError(f"name at {start}: runs out of the message") from None
    return at + 1


def read_name(data: bytes, at: int) -> tuple[bytes, int]:
    """The name at `at`, uncompressed, in lower case, and the offset behind it.

    Raises: WireError, as `skip_name`, and on a chain of pointers that is too long.
    """
    labels = bytearray()
    start, end, hops = at, 0, 0
    try:
        while (length := data[at]) != 0:
            if length > MAX_LABEL:
                if length < 0xC0:
                    raise WireError(f"name at {start}: label type {length >> 6:#x}, expected 0 or 3")
                target = (length & 0x3F) << 8 | data[at + 1]
                end = end or at + 2
                hops += 1
                # Strictly before the piece that holds the pointer: so a loop cannot be, and the chain ends.
                if not HEADER <= target < start or hops > MAX_POINTERS:
                    raise WireError(f"name at {start}: pointer to {target}, expected backwards")
                start = at = target
                continue
            label = data[at : at + length + 1]
            if len(label) <= length or len(labels) + length + 2 > MAX_NAME:
                raise WireError(f"name at {start}: runs out of the message, or is longer than {MAX_NAME} octets")
            labels += label
            at += length + 1
    except IndexError:
        raise WireError(f"name at {start}: runs out of the message") from None
    labels.append(0)
    return bytes(labels).lower(), end or at + 1  # length octets are below 64: `lower` leaves them alone


def read_question(data: bytes) -> tuple[bytes, int, int, int]:
    """The one question: name in lower case, type, class, offset behind it.

    Raises: WireError; compression has no business in a question, there is nothing before it to point to.
    """
    at = HEADER
    try:
        while length := data[at]:
            if length > MAX_LABEL:
                raise WireError(f"question: label of {length} octets, expected at most {MAX_LABEL}")
            at += length + 1
        qtype, qclass = _TYPE_CLASS.unpack_from(data, at + 1)
    except (IndexError, error):
        raise WireError("question: runs out of the message") from None
    if at >= HEADER + MAX_NAME:
        raise WireError(f"question: name longer than {MAX_NAME} octets")
    return data[HEADER : at + 1].lower(), qtype, qclass, at + 5


def read_records(data: bytes, at: int, header: Header) -> tuple[list[Record], int]:
    """All records behind the question, and the offset behind the last.

    Raises: WireError if one is cut, or a name in it malformed.
    """
    records: list[Record] = []
    append, unpack = records.append, _RECORD.unpack_from
    try:
        for section, count in enumerate(header[3:]):
            for _ in range(count):
                start = at
                if data[at] >= 0xC0:  # the usual: a pointer and nothing else
                    target = (data[at] & 0x3F) << 8 | data[at + 1]
                    if not HEADER <= target < start:
                        raise WireError(f"name at {start}: pointer to {target}, expected backwards")
                    at += 2
                else:
                    at = skip_name(data, at)
                rtype, rclass, ttl, length = unpack(data, at)
                append(_new(Record, (section, start, rtype, rclass, ttl, at + 10, length)))
                at += 10 + length
    except (IndexError, error):
        raise WireError(f"record at {start}: cut") from None
    if at > len(data):  # of the others the next one would have been cut
        raise WireError(f"record at {start}: its data run out of the message")
    return records, at


def read_query(data: bytes, header: Header) -> Query:
    """A whole query with exactly one question.

    Raises: WireError. The caller has looked at QR and opcode in `header` before.
    """
    if header.questions != 1:
        raise WireError(f"query: {header.questions} questions, expected 1")
    name, qtype, qclass, end = read_question(data)
    question = data[HEADER:end]
    edns = None
    if header.answers or header.authorities or header.additionals:
        records, end = read_records(data, end, header)
        options = [record for record in records if record.rtype == Type.OPT]
        if options:
            edns = _read_edns(data, options)
    if end != len(data):
        raise WireError(f"query: {len(data) - end} octets behind its end")
    return _new(Query, (header.id, header.flags, name, qtype, qclass, question, edns))


def _read_edns(data: bytes, records: list[Record]) -> Edns:
    record = records[0]
    # RFC 6891 6.1.1: one OPT record, in the additional section, owned by the root.
    if len(records) > 1 or record.section != 2 or data[record.at] != 0:
        raise WireError("query: more than one OPT record, or one in a wrong place")
    options: list[tuple[int, bytes]] = []
    at = record.data
    while at < record.end:
        if record.end - at < 4 or len(options) >= MAX_OPTIONS:
            raise WireError("query: EDNS options cut, or too many")
        code, length = _OPTION.unpack_from(data, at)
        at += 4 + length
        if at > record.end:
            raise WireError("query: an EDNS option runs out of its record")
        options.append((code, data[at - length : at]))
    return Edns(record.rclass, record.ttl >> 16 & 0xFF, record.ttl & 0xFFFF, tuple(options))


def svcb_target(data: bytes, record: Record) -> tuple[bytes, int]:
    """An SVCB or HTTPS record's target name and the offset of its parameters (RFC 9460 2.2).

    Raises: WireError.
    """
    if record.length < 3:
        raise WireError(f"svcb at {record.at}: {record.length} octets")
    target, at = read_name(data, record.data + 2)
    if at > record.end:
        raise WireError(f"svcb at {record.at}: target runs out of the record")
    return target, at


def svcb_params(data: bytes, at: int, end: int) -> list[tuple[int, bytes]]:
    """Service parameters, in their order.

    Raises: WireError.
    """
    params = []
    while at < end:
        if end - at < 4:
            raise WireError(f"svcb parameters: cut at {at}")
        key, length = _OPTION.unpack_from(data, at)
        at += 4 + length
        if at > end:
            raise WireError(f"svcb parameters: key {key} runs out of the record")
        params.append((key, data[at - length : at]))
    return params


# RFC 1035 5.1: what a name may hold without an escape. The rest is written as \. \\ or \DDD.
_PLAIN: Final = bytes(c for c in range(0x21, 0x7F) if c not in b".\\")
_ESCAPE: Final = {c: b"\\%03d" % c for c in range(256)} | {c: bytes((c,)) for c in _PLAIN} | {46: b"\\.", 92: b"\\\\"}


def present(name: bytes) -> bytes:
    """A lower-case wire name in presentation form, without the last dot; `b""` for the root."""
    labels = []
    at = 0
    while length := name[at]:
        label = name[at + 1 : at + 1 + length]
        if label.translate(None, _PLAIN):
            label = b"".join([_ESCAPE[c] for c in label])
        labels.append(label)
        at += length + 1
    return b".".join(labels)


def to_wire(name: str) -> bytes:
    """A name in presentation form, without escapes, as lower-case wire form: for our own configuration.

    Raises: WireError if a label or the whole is too long, or not ASCII.
    """
    wire = bytearray()
    for label in filter(None, name.lower().rstrip(".").split(".")):
        if not label.isascii() or len(label) > MAX_LABEL:
            raise WireError(f"name: expected ASCII labels of at most {MAX_LABEL} octets, got {name!r}")
        wire.append(len(label))
        wire += label.encode()
    if len(wire) >= MAX_NAME:
        raise WireError(f"name: expected at most {MAX_NAME} octets, got {len(wire) + 1}")
    wire.append(0)
    return bytes(wire)


def parents(name: bytes) -> list[bytes]:
    """A wire name and all names above it, the root last."""
    found = []
    at = 0
    while length := name[at]:
        found.append(name[at:])
        at += length + 1
    found.append(b"\0")
    return found
