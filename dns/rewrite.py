"""Answers taken apart and put together anew: `ech` out of HTTPS and SVCB, an alias in front.

We read, dnslib writes: its buffer compresses names, so that a rewritten answer still fits a datagram. It is not given
a peer's bytes to read, for there it is slow, recurses, and raises what it likes.
Rule: every record that is not meant comes out as it went in; types that we do not know are not looked into
(RFC 3597 3: only the types of RFC 1035 may compress the names inside).
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import Final, NamedTuple

from dnslib.label import DNSBuffer, DNSLabel

from dns.answer import Body
from dns.wire import HEADER, Record, Type, read_name, svcb_params, svcb_target
from policy.errors import WireError

MAX_MESSAGE: Final = 0x3FFF
"""Where pointers end (14 bits); dnslib would write wrong ones beyond it. Also bounds hostile compression expanded."""

_MANDATORY: Final = 0
_ECH: Final = 5
_RRSIG: Final = 46
_HEAD: Final = Struct("!HHI")
_LENGTH: Final = Struct("!H")

# Octets before the first name, and how many names; whatever follows them is copied.
# RFC 1035's types, and those of RFC 3597 4 that a receiver must expand if it meets them.
_NAMES: Final = {
    2: (0, 1), 3: (0, 1), 4: (0, 1), 5: (0, 1), 6: (0, 2), 7: (0, 1), 8: (0, 1), 9: (0, 1), 12: (0, 1), 14: (0, 2),
    15: (2, 1), 17: (0, 2), 18: (2, 1), 21: (2, 1), 33: (6, 1), 39: (0, 1),
}  # fmt: skip
_COMPRESSED: Final = frozenset({2, 3, 4, 5, 6, 7, 8, 9, 12, 14, 15})
"""Of these, the ones whose names may be compressed on the way out (RFC 3597 4)."""


class Alias(NamedTuple):
    """A CNAME to put in front: the answer belongs to `target`, the question was `name`. Wire form, lower case."""

    name: bytes
    target: bytes
    ttl: int


def reassemble(
    data: bytes,
    records: Iterable[Record],
    question: bytes,
    *,
    strip_ech: bool = False,
    alias: Alias | None = None,
    ttl: int | None = None,
) -> Body:
    """What stands behind the question of a message that asks `question` (wire form, lower case).

    Signatures over records that change are left out. `ttl` replaces every TTL.
    Raises: WireError.
    """
    out = DNSBuffer()
    out.append(bytes(HEADER))
    out.encode_name(_label(question))
    out.append(bytes(4))
    start = out.offset
    counts = [0, 0]
    if alias is not None:
        _write(out, alias.name, Type.CNAME, 1, alias.ttl)
        _write_data(out, ((b"", alias.target),), b"", compress=True)
        counts[0] += 1
    for record in records:
        if strip_ech and _signs_svcb(data, record):
            continue
        owner, _ = read_name(data, record.at)
        _write(out, owner, record.rtype, record.rclass, record.ttl if ttl is None else ttl)
        if strip_ech and record.rtype in (Type.SVCB, Type.HTTPS):
            _write_data(out, (), _without_ech(data, record), compress=False)
        else:
            names, rest = _split(data, record)
            _write_data(out, names, rest, compress=record.rtype in _COMPRESSED)
        counts[record.section] += 1
        if out.offset > MAX_MESSAGE:
            raise WireError(f"answer: more than {MAX_MESSAGE} octets when put together again")
    return Body(bytes(out.data[start:]), *counts)


def _write(out: DNSBuffer, owner: bytes, rtype: int, rclass: int, ttl: int) -> None:
    out.encode_name(_label(owner))
    out.append(_HEAD.pack(rtype, rclass, ttl))


def _write_data(out: DNSBuffer, names: Iterable[tuple[bytes, bytes]], rest: bytes, *, compress: bool) -> None:
    at = out.offset
    out.append(b"\0\0")
    for before, name in names:
        out.append(before)
        if compress:
            out.encode_name(_label(name))
        else:
            out.append(name)
    out.append(rest)
    out.update(at, "!H", out.offset - at - 2)


def _split(data: bytes, record: Record) -> tuple[list[tuple[bytes, bytes]], bytes]:
    before, count = _NAMES.get(record.rtype, (0, 0))
    names: list[tuple[bytes, bytes]] = []
    at = record.data + before
    for _ in range(count):
        name, end = read_name(data, at)
        names.append((data[record.data : at] if not names else b"", name))
        at = end
    if at > record.end:
        raise WireError(f"record at {record.at}: a name runs out of its data")
    return names, data[at : record.end] if names else data[record.data : record.end]


def _without_ech(data: bytes, record: Record) -> bytes:
    target, at = svcb_target(data, record)
    kept = []
    for key, value in svcb_params(data, at, record.end):
        if key == _MANDATORY:
            # RFC 9460 8: a mandatory key must be there, so the list loses `ech` with it; an empty list is not allowed.
            value = b"".join(value[i : i + 2] for i in range(0, len(value), 2) if value[i : i + 2] != b"\0\5")
            if not value:
                continue
        if key != _ECH:
            kept.append(_LENGTH.pack(key) + _LENGTH.pack(len(value)) + value)
    return data[record.data : record.data + 2] + target + b"".join(kept)


def _signs_svcb(data: bytes, record: Record) -> bool:
    covered = data[record.data : record.data + 2]
    return record.rtype == _RRSIG and covered in (b"\0\x40", b"\0\x41")


def _label(name: bytes) -> DNSLabel:
    labels = []
    at = 0
    while length := name[at]:
        labels.append(name[at + 1 : at + 1 + length])
        at += length + 1
    return DNSLabel(labels)
