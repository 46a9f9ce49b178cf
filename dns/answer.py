"""Answers that we make ourselves: errors, blocked names, addresses of our own, truncation. No policy: told what to say.

An answer is handled as its *tail*, everything behind the id: the id is the only part in which two clients that send
the same question differ, so tails can be shared and cached.
Rule: a tail echoes the question to the letter, and carries an OPT record if, and only if, the query did (RFC 6891 7).
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from dns.wire import AD, CD, DO, OPCODE, QR, RA, RD, TC, Option, Query, Rcode, Type

UDP_SIZE: Final = 1232
"""What we announce and the most we send in a datagram: fits any path unfragmented (DNS flag day 2020)."""
MIN_SIZE: Final = 512
"""RFC 6891 6.2.3: a smaller announcement means this."""
SOA_TIMES: Final = (3600, 600, 86400)
"""Refresh, retry, expire of the SOA that only serves to carry a negative TTL (RFC 2308 3). Nobody transfers it."""

POINTER_TO_QUESTION: Final = b"\xc0\x0c"

_TAIL: Final = Struct("!HHHHH")
_RECORD: Final = Struct("!HHIH")
_OPT: Final = Struct("!BHHBBHH")
_OPTION: Final = Struct("!HH")
_SOA: Final = Struct("!IIIII")
_MNAME: Final = b"\x09localhost\0"
_RNAME: Final = b"\x06nobody\x07invalid\0"


class Ede(NamedTuple):
    """An Extended DNS Error (RFC 8914): INFO-CODE and a short text for people."""

    code: int
    text: str = ""


STALE: Final = Ede(3)
BLOCKED: Final = 15
CENSORED: Final = 16
FILTERED: Final = 17
PROHIBITED: Final = Ede(18)
NOT_SUPPORTED: Final = Ede(21)
NO_REACHABLE_AUTHORITY: Final = Ede(22, "no upstream answers")


class Body(NamedTuple):
    """What stands between question and OPT record, and the flags that go with it. Nothing is additional but OPT."""

    data: bytes = b""
    answers: int = 0
    authorities: int = 0
    flags: int = 0
    """TC and AD, where they apply."""


EMPTY: Final = Body()


def option(code: int, data: bytes) -> bytes:
    """One EDNS option."""
    return _OPTION.pack(code, len(data)) + data


def opt_record(rcode: int, flags: int, options: bytes = b"", size: int = UDP_SIZE) -> bytes:
    """An OPT record (RFC 6891 6.1.2) of version 0, which is the only one there is."""
    return _OPT.pack(0, Type.OPT, size, rcode >> 4, 0, flags, len(options)) + options


def tail(query: Query, rcode: int, body: Body = EMPTY, ede: Ede | None = None, options: bytes = b"") -> bytes:
    """The answer to `query`, without its id and without regard to its size."""
    # CD and RD are copied (RFC 4035 3.2.2, RFC 1035 4.1.1); AD was the asker's wish to see it (RFC 6840 5.7).
    flags = QR | RA | query.flags & (OPCODE | RD | CD) | body.flags | rcode & 0xF
    if query.edns is None:
        head = _TAIL.pack(flags, 1, body.answers, body.authorities, 0)
        return head + query.question + body.data
    if ede is not None:
        options += option(Option.EDE, ede.code.to_bytes(2, "big") + ede.text.encode())
    opt = opt_record(rcode, query.edns.flags & DO, options)
    head = _TAIL.pack(flags, 1, body.answers, body.authorities, 1)
    return head + query.question + body.data + opt


def fitted(query: Query, full: bytes, *, is_stream: bool) -> bytes:
    """`full` if it fits what the client can take, else an empty one that says TC: ask again over TCP."""
    if is_stream:
        return full if len(full) + 2 <= 0xFFFF else tail(query, Rcode.SERVFAIL)
    limit = MIN_SIZE if query.edns is None else min(UDP_SIZE, max(MIN_SIZE, query.edns.size))
    if len(full) + 2 <= limit:
        return full
    return tail(query, int.from_bytes(full[:2], "big") & 0xF, Body(flags=TC))


def wants_ad(query: Query) -> bool:
    """Does this client understand AD (RFC 6840 5.7)?"""
    return bool(query.flags & AD) or (query.edns is not None and bool(query.edns.flags & DO))


def record(rtype: int, ttl: int, data: bytes, owner: bytes = POINTER_TO_QUESTION) -> bytes:
    """One record of class IN."""
    return owner + _RECORD.pack(rtype, 1, ttl, len(data)) + data


def soa(ttl: int) -> bytes:
    """An SOA at the name asked, so that resolvers on the way keep the negative answer for `ttl` seconds."""
    return record(Type.SOA, ttl, _MNAME + _RNAME + _SOA.pack(1, *SOA_TIMES, ttl))


def negative(ttl: int) -> Body:
    """NXDOMAIN's and NODATA's body."""
    return Body(soa(ttl), 0, 1)


def addresses(values: tuple[bytes, ...], qtype: int, ttl: int) -> Body:
    """Those of the addresses that the type asks for; NODATA if there is none."""
    size = 4 if qtype == Type.A else 16 if qtype == Type.AAAA else 0
    fit = [record(qtype, ttl, value) for value in values if len(value) == size]
    return Body(b"".join(fit), len(fit)) if fit else negative(ttl)


def minimal_any(ttl: int = 3600) -> Body:
    """RFC 8482 4.2: one HINFO record instead of everything there is."""
    return Body(record(Type.HINFO, ttl, b"\x07RFC8482\0"), 1)


def bare(data: bytes, rcode: int) -> bytes:
    """A whole answer of only a header, to something whose question cannot be read."""
    flags = QR | RA | int.from_bytes(data[2:4], "big") & (OPCODE | RD) | rcode
    return data[:2] + _TAIL.pack(flags, 0, 0, 0, 0)
