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

from dns.screen import MAX_CHECKED
from dns.wire import AA, AD, CD, HEADER, IN, MAX_LABEL, MAX_NAME, QR, RA, RD, Edns, Query, Type

_HEADS: Final = {
    (RD | ad | cd).to_bytes(2, "big") + bytes((0, 1, 0, 0, 0, 0, 0, opt)): (RD | ad | cd, 4 + 11 * opt)
    for ad in (0, AD)
    for cd in (0, CD)
    for opt in (0, 1)
}
"""Octets 2 to 11 of a query: its flags, and how much follows its name: type, class, and an OPT record or none."""
_HOST: Final = b"abcdefghijklmnopqrstuvwxyz0123456789-_"
SITES: Final = 2048
"""What stands behind the first label of a name, remembered; some 400 octets each. Most sites' names come in dozens."""
_TYPE_CLASS: Final = Struct("!HH").unpack_from
_REPLY_HEADS: Final = {
    (QR | aa | rd | ra | ad | cd).to_bytes(2, "big") + b"\0\1": ad << 8
    for aa in (0, AA)
    for rd in (0, RD)
    for ra in (0, RA)
    for ad in (0, AD)
    for cd in (0, CD)
}
"""Octets 2 to 5 of a reply: an answer without TC, NOERROR, one question. To the flags of its `dns.cache.Entry`."""
_POINTED: Final = Struct("!HHHIH").unpack_from
"""A record whose owner is a pointer."""
_A, _OPT = Type.A, Type.OPT
_ADDRESSES: Final = (Type.A, Type.AAAA)
_NAMED: Final = frozenset((Type.CNAME, Type.DNAME, Type.SVCB, Type.HTTPS))
_MAYBE_INSIDE: Final = frozenset((0, 10, 100, 127, 169, 172, 192, 252, 253, 254))
"""First octets of all addresses, 4 or 16 octets long, that `screen.is_inside` may say yes to."""
_new: Final = tuple.__new__


class UsualReply(NamedTuple):
    """What a reply says."""

    flags: int
    """As `dns.cache.Entry` keeps them."""
    answers: int
    until: int
    """Where they end."""
    ttl: int
    """The shortest."""
    is_even: bool
    """It is that of all answers."""
    addresses: tuple[bytes, ...]
    is_plain: bool
    """Nothing leads to another name, no address may be one inside, and nothing else needs to be looked into."""


def read_query(data: bytes) -> tuple[Query, bytes] | None:
    """A query and its name in presentation form; None: it is not the usual one."""
    head = _HEADS.get(data[2:12])
    if head is None:
        return None
    flags, size_behind = head
    at = len(data) - size_behind
    if not HEADER + 2 < at <= HEADER + MAX_NAME:
        return None
    qtype, qclass = _TYPE_CLASS(data, at)
    edns = None
    if size_behind > 4:
        edns = _plain_edns(data[at + 4 :])
        if edns is None:
            return None
    name = data[HEADER:at].lower()  # length octets are below 65: `lower` leaves them alone
    below = 1 + name[0]
    label, text = name[1:below], _below(name[below:])
    if text is None or qclass != IN or below > 1 + MAX_LABEL or not (label.isalnum() or _is_host(label)):
        return None
    return _new(Query, (data[0] << 8 | data[1], flags, name, qtype, IN, data[HEADER : at + 4], edns)), label + text


def _is_host(label: bytes) -> bool:
    """Does a label, in lower case, hold what a host name may?"""
    return bool(label) and not label.translate(None, _HOST)


@lru_cache(maxsize=SITES)
def _below(wire: bytes) -> bytes | None:
    """Presentation form, with a dot in front, of what stands behind a name's first label; None: no host's name."""
    at, text = 0, b""
    while at < len(wire) and (length := wire[at]) and length <= MAX_LABEL:
        label = wire[at + 1 : at + 1 + length]
        if not _is_host(label):
            return None
        text += b"." + label
        at += 1 + length
    return text if wire[at:] == b"\0" else None


@lru_cache(maxsize=64)
def _plain_edns(data: bytes) -> Edns | None:
    """An OPT record of version 0 without options. There are as many as there are kinds of client."""
    if len(data) != 11 or data[:3] != b"\0\0\x29" or data[6] or data[9:] != b"\0\0":
        return None
    return Edns(data[3] << 8 | data[4], 0, data[7] << 8 | data[8], ())


def read_reply(data: bytes, end: int, qtype: int) -> UsualReply | None:
    """A reply whose question, compared already, ends at `end`; None: it is not the usual one.

    Behind the answers nothing is read, for nothing of it is passed on: `learn.read_kept`.
    """
    flags = _REPLY_HEADS.get(data[2:6])
    if flags is None:
        return None
    addresses: list[bytes] = []
    is_plain = is_even = True
    is_answered, ttl, at = False, -1, end
    try:
        answers = data[6] << 8 | data[7]
        for _ in range(answers):
            pointer, rtype, _, seconds, length = _POINTED(data, at)
            if not 0xC000 + HEADER <= pointer < 0xC000 + at or seconds >= 1 << 31:
                return None
            at += 12 + length
            if seconds != ttl:
                is_even = ttl < 0
                ttl = seconds if is_even or seconds < ttl else ttl
            if rtype == qtype:
                is_answered = True
            if rtype in _ADDRESSES:
                if length != (4 if rtype == _A else 16):
                    return None
                addresses.append(data[at - length : at])
                if data[at - length] in _MAYBE_INSIDE:
                    is_plain = False
            elif rtype in _NAMED:
                is_plain = False
            elif rtype == _OPT:
                return None
    except (IndexError, error):
        return None
    if at > len(data) or not is_answered:
        return None
    is_plain = is_plain and len(addresses) <= MAX_CHECKED
    return _new(UsualReply, (flags, answers, at, ttl, is_even, tuple(addresses), is_plain))
