"""The server name in a TLS ClientHello, over any split into records. Bytes in, a `Hello` out.

Rule: any bytes give a `Hello`, NEED_MORE, TOO_LONG or None ("this is not TLS"), in linear time, and raise nothing.
What a server would read and we do not is TOO_LONG, never None: else a few octets of padding would hide a name.
Sources: RFC 8446 4.1.2 and 5.1, RFC 6066 3, RFC 9849 (encrypted_client_hello, 0xfe0d).
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

NEED_MORE: Final = 0
TOO_LONG: Final = 1
"""A hello beyond our bounds: it cannot be decided, and the group's policy says what becomes of such."""
MAX_HELLO: Final = 16 << 10
"""Octets of a ClientHello that are waited for; a post-quantum one has 1,900."""
MAX_RECORDS: Final = 1024
"""OpenSSL reads a hello that comes in records of one octet, and empty ones between them."""
_SERVER_NAME: Final = 0
_ECH: Final = 0xFE0D
_ECH_OCTETS: Final = b"\xfe\x0d"
_PAIR: Final = Struct("!HH").unpack_from


class Hello(NamedTuple):
    """What a ClientHello shows."""

    name: bytes
    """Lower case; empty: there is no server_name."""
    ech: bool
    """An encrypted_client_hello of the outer kind is there, real or GREASE: made to look alike from outside."""


def parse(data: bytes, at: int = 0) -> Hello | int | None:
    """Read the TLS records of a client's first flight, which begins at `at`."""
    # The usual case first: one record, whole, with the whole hello in it.
    if len(data) > at + 47 and data[at] == 0x16 and data[at + 1] == 3 and data[at + 5] == 1:
        length = data[at + 6] << 16 | data[at + 7] << 8 | data[at + 8]
        end = at + 9 + length
        if end <= len(data) and length + 4 <= data[at + 3] << 8 | data[at + 4] <= 16384:
            return _client_hello(data, at + 9, end)
    return _parse_records(data[at:])


def _parse_records(data: bytes) -> Hello | int | None:
    hello = bytearray()
    at = records = 0
    while True:
        head = data[at : at + 5]
        if head[:1] != b"\x16"[: len(head)] or (len(head) > 1 and head[1] != 3):
            return None
        if len(head) < 5:
            return NEED_MORE
        length = int.from_bytes(head[3:5], "big")
        records += 1
        if length > 16384 + 256:
            return None
        if records > MAX_RECORDS:
            return TOO_LONG
        hello += data[at + 5 : at + 5 + length]
        at += 5 + length
        if at >= len(data):
            return parse_handshake(bytes(hello))
        if len(hello) >= 4 and len(hello) >= 4 + int.from_bytes(hello[1:4], "big"):
            return parse_handshake(bytes(hello))


def parse_handshake(data: bytes) -> Hello | int | None:
    """Read handshake octets as they stand in records, or in QUIC's CRYPTO frames."""
    if data[:1] not in (b"", b"\1"):
        return None
    if len(data) < 4:
        return NEED_MORE
    end = 4 + (data[1] << 16 | data[2] << 8 | data[3])
    if end > MAX_HELLO:
        return TOO_LONG
    return _client_hello(data, 4, end) if len(data) >= end else NEED_MORE


def _client_hello(data: bytes, at: int, last: int) -> Hello | None:
    """The ClientHello between `at` and `last`, which is within `data`."""
    at += 34  # version, random
    if at + 1 > last:
        return None
    at += 1 + data[at]  # session id
    if at + 2 > last:
        return None
    at += 2 + (data[at] << 8 | data[at + 1])  # cipher suites
    if at + 1 > last:
        return None
    at += 1 + data[at]  # compression methods
    if at >= last:
        return Hello(b"", False) if at == last else None  # no extensions at all: legal before TLS 1.3
    if at + 2 > last:
        return None
    end = at + 2 + (data[at] << 8 | data[at + 1])
    if end > last:
        return None
    at += 2
    name, ech = b"", False
    last_head, pair = end - 4, _PAIR
    while at <= last_head:
        kind, length = pair(data, at)
        at += 4 + length
        if kind and kind != _ECH:  # most of a browser's twenty
            continue
        if at > end:
            return None
        value = at - length
        if kind == _SERVER_NAME:
            # server_name_list: length, then type 0 (host_name), length, name
            if length >= 5 and not data[value + 2] and not name:
                size = data[value + 3] << 8 | data[value + 4]
                if size == 0 or 5 + size > length:
                    return None
                name = data[value + 5 : value + 5 + size].rstrip(b".").lower()
                # Without its two octets in the rest there is no ECH, and nothing more to look for.
                if ech or data.find(_ECH_OCTETS, at, end) < 0:
                    break
        elif kind == _ECH and length and not data[value]:
            ech = True
            if name:
                break
    else:
        if at > end:
            return None
    return Hello(name, ech)
