"""The usual query and the usual reply, each read in one pass: what nine of ten messages are, in a third of the time.

A query of one host name, class IN, with nothing or a plain OPT record behind it; a reply of NOERROR with answers
whose owners are all compressed. Holds no rule of its own: what is read here comes out exactly as
`dns.wire`, `dns.learn` and `dns.screen` would read it, and everything else is left to them.
Rule: nothing is raised; None means "look closer", never "refuse".
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct, error
from typing import Final, NamedTuple

from dns.wire import AD, CD, HEADER, MAX_NAME, RD, Edns, Query, Record, Type, present

_HEADS: Final = {
    (RD | ad | cd).to_bytes(2, "big") + bytes((0, 1, 0, 0, 0, 0, 0, opt)): (RD | ad | cd, bool(opt))
    for ad in (0, AD)
    for cd in (0, CD)
    for opt in (0, 1)
}
"""Octets 2 to 11 of a query: its flags, and whether something additional follows the question."""
_LONGEST: Final = 44
"""Of a label: then no length octet is one of those that a host name may hold, of which 45, the hyphen, is the first."""
_HOST: Final = b"abcdefghijklmnopqrstuvwxyz0123456789-_"
_TEXT: Final = bytes(octet if octet in _HOST else 0x2E for octet in range(256))
_CLASS_IN: Final = b"\0\1"
_COUNTS: Final = Struct("!HHH").unpack_from
_POINTED: Final = Struct("!HHHIH").unpack_from
"""A record whose owner is a pointer."""
_RECORD: Final = Struct("!HHIH").unpack_from
_A, _OPT = Type.A, Type.OPT
_ADDRESSES: Final = (Type.A, Type.AAAA)
_NAMED: Final = frozenset((Type.CNAME, Type.DNAME, Type.SVCB, Type.HTTPS))
_new: Final = tuple.__new__


class UsualReply(NamedTuple):
    """What a reply says."""

    records: list[Record]
    """Of the answer section."""
    until: int
    """Where that ends."""
    ttl: int
    """The shortest, as `dns.learn` counts it."""
    addresses: tuple[bytes, ...]
    is_plain: bool
    """Nothing leads to another name, and nothing else in it needs to be looked into."""


def read_query(data: bytes) -> tuple[Query, bytes] | None:
    """A query and its name in presentation form; None: it is not the usual one."""
    head = _HEADS.get(data[2:12])
    if head is None:
        return None
    at, labels = HEADER, 1
    try:
        while length := data[at]:
            if length > _LONGEST:
                return None
            at += length + 1
            labels += 1
    except IndexError:
        return None
    end = at + 5
    if labels == 1 or at >= HEADER + MAX_NAME or data[at + 3 : end] != _CLASS_IN:
        return None
    flags, has_opt = head
    edns = None
    if has_opt:
        edns = _plain_edns(data[end:])
        if edns is None:
            return None
    elif len(data) != end:
        return None
    name = data[HEADER : at + 1].lower()
    text = name.translate(_TEXT)
    # As many dots as length octets: then nothing else became one.
    text = text[1:-1] if text.count(b".") == labels else present(name)
    number, qtype = data[0] << 8 | data[1], data[at + 1] << 8 | data[at + 2]
    return _new(Query, (number, flags, name, qtype, 1, data[HEADER:end], edns)), text


@lru_cache(maxsize=64)
def _plain_edns(data: bytes) -> Edns | None:
    """An OPT record without options that ends the message. There are as many as there are kinds of client."""
    if len(data) != 11 or data[:3] != b"\0\0\x29" or data[9:] != b"\0\0":
        return None
    return Edns(data[3] << 8 | data[4], data[6], data[7] << 8 | data[8], ())


def read_reply(data: bytes, end: int, qtype: int) -> UsualReply | None:
    """A reply whose question, compared already, ends at `end`; None: it is not the usual one."""
    # QR and nothing of opcode or TC; NOERROR; one question.
    if data[2] & 0xFA != 0x80 or data[3] & 0xF or data[4:6] != b"\0\1":
        return None
    answers, authorities, additionals = _COUNTS(data, 6)
    records: list[Record] = []
    addresses: list[bytes] = []
    is_plain, is_answered, ttl, at = True, False, 1 << 31, end
    try:
        for _ in range(answers):
            pointer, rtype, rclass, seconds, length = _POINTED(data, at)
            if not 0xC000 + HEADER <= pointer < 0xC000 + at:
                return None
            records.append(_new(Record, (0, at, rtype, rclass, seconds, at + 12, length)))
            at += 12 + length
            if seconds < ttl:
                ttl = seconds
            is_answered = is_answered or rtype == qtype
            if rtype in _ADDRESSES:
                if length != (4 if rtype == _A else 16):
                    return None
                addresses.append(data[at - length : at])
            elif rtype in _NAMED:
                is_plain = False
            elif rtype == _OPT:
                return None
            if seconds >= 1 << 31:
                return None
        until = at
        for number in range(authorities + additionals):
            if data[at] >= 0xC0:
                pointer, rtype, _, seconds, length = _POINTED(data, at)
                if not HEADER <= pointer & 0x3FFF < at or rtype == _OPT:
                    return None
                at += 12 + length
            elif data[at] == 0:
                rtype, _, seconds, length = _RECORD(data, at + 1)
                at += 11 + length
                if rtype == _OPT and (seconds >> 24 or number < authorities):
                    return None
            else:
                return None
            if number < authorities and seconds < ttl:
                ttl = seconds
            if number < authorities and seconds >= 1 << 31:
                return None
    except (IndexError, error):
        return None
    if at > len(data) or not is_answered:
        return None
    return _new(UsualReply, (records, until, ttl, tuple(addresses), is_plain))
