"""From an upstream's reply to a cache entry: what to keep, and for how long (RFC 1035 7.3, RFC 2308, RFC 2181 8)."""

from __future__ import annotations

from typing import Final

from dns.cache import Entry
from dns.wire import AD, Header, Rcode, Record, Type, read_records, skip_name
from policy.errors import WireError

NEGATIVE_MAX_S: Final = 3600
"""RFC 2308 5: one to three hours have been found to work well."""
FAILURE_S: Final = 2
"""SERVFAIL and the like. RFC 9520 3.2: at least one second, so that a broken zone is not asked for in a storm."""


def full_rcode(header: Header, records: list[Record]) -> int:
    """RCODE with the upper bits that an OPT record carries (RFC 6891 6.1.3)."""
    low = header.flags & 0xF
    for record in records:
        if record.rtype == Type.OPT:
            return low | record.ttl >> 24 << 4
    return low


def read_kept(data: bytes, end: int, header: Header, *, is_signed: bool) -> tuple[list[Record], int, int]:
    """Records of a reply whose question ends at `end`, the offset behind them, and its RCODE.

    All of them, but behind answers that answer: what stands there is then neither kept nor passed on, unless the client
    asked for DNSSEC, so it is not read.
    Raises: WireError if what is read is malformed.
    """
    if not is_signed and not header.flags & 0xF:
        records, behind = read_records(data, end, header._replace(authorities=0, additionals=0))
        types = [record.rtype for record in records]
        if int.from_bytes(data[end - 4 : end - 2], "big") in types and Type.OPT not in types:
            return records, behind, Rcode.NOERROR
    records, behind = read_records(data, end, header)
    return records, behind, full_rcode(header, records)


def learn(
    data: bytes,
    name: bytes,
    end: int,
    header: Header,
    records: list[Record],
    behind: int,
    rcode: int,
    now_s: int,
    *,
    is_signed: bool = False,
    min_ttl_s: int = 0,
    max_ttl_s: int = 86400,
) -> Entry:
    """The entry for a reply whose question, which ends at `end`, has been checked; `read_kept` gave its records, where
    they end, and its RCODE.

    Kept is what the client needs: answers, with `is_signed` (it asked for DNSSEC) also the proofs in the authority
    section, and that section where there are no answers. What is additional nobody needs, and a filter would have to
    look after it; the upstream's own OPT record goes with it (RFC 6891 6.1.1: never cached).
    Raises: WireError if the reply is malformed.
    """
    ttl = _lifetime(data, end - 4, records, rcode)
    if rcode == Rcode.NOERROR and header.answers:
        ttl = max(ttl, min_ttl_s)
    ttl = min(ttl, max_ttl_s)
    kept = header.answers if header.answers and not is_signed else header.answers + header.authorities
    until = records[kept].at if kept < len(records) else behind
    flags = rcode & 0xFFF | (header.flags & AD) << 8
    body = _plain_case(data, data[end:until], end, records[:kept], name)
    return Entry(now_s, now_s + ttl, flags, header.answers, kept - header.answers, body)


def _lifetime(data: bytes, type_at: int, records: list[Record], rcode: int) -> int:
    """Seconds. All records of an entry live as long as the one that lives shortest."""
    if rcode != Rcode.NOERROR and rcode != Rcode.NXDOMAIN:
        return FAILURE_S
    asked = int.from_bytes(data[type_at : type_at + 2], "big")
    # RFC 2181 8: a TTL with its top bit set is zero.
    shortest, is_answered = 1 << 31, False
    for record in records:
        if record.section < 2:
            shortest = min(shortest, record.ttl if record.ttl < 1 << 31 else 0)
            is_answered = is_answered or (record.section == 0 and record.rtype == asked)
    if is_answered and rcode == Rcode.NOERROR:
        return shortest
    for record in records:
        if record.section == 1 and record.rtype == Type.SOA:
            return min(shortest, _soa_minimum(data, record), NEGATIVE_MAX_S)
    return 0  # RFC 2308 5: without an SOA a negative answer is not kept


def _soa_minimum(data: bytes, record: Record) -> int:
    at = skip_name(data, skip_name(data, record.data)) + 16
    if at + 4 != record.end:
        raise WireError(f"soa at {record.at}: {record.length} octets")
    return int.from_bytes(data[at : at + 4], "big")


def _plain_case(data: bytes, body: bytes, start: int, records: list[Record], name: bytes) -> bytes:
    """The body with our random letter case (0x20) taken out of owner names that are not compressed.

    Some servers repeat the name as they were asked; a client that compares letter by letter would not know it.
    """
    plain: bytearray | None = None
    for record in records:
        if data[record.at] >= 0xC0:
            continue
        owner = data[record.at : record.at + len(name)]
        if owner != name and owner.lower() == name:
            plain = plain or bytearray(body)
            plain[record.at - start : record.at - start + len(name)] = name
    return bytes(plain) if plain is not None else body
