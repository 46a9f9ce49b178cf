"""The server name in a TLS ClientHello, over any split into records. Bytes in, a `Hello` out.

Rule: any bytes give a `Hello`, NEED_MORE or None ("this is not TLS"), in linear time, and raise nothing.
Sources: RFC 8446 4.1.2 and 5.1, RFC 6066 3, RFC 9849 (encrypted_client_hello, 0xfe0d).
"""

from __future__ import annotations

from typing import Final, NamedTuple

NEED_MORE: Final = 0
MAX_HELLO: Final = 16 << 10
"""Octets of a ClientHello that are waited for; a post-quantum one has 1,900."""
MAX_RECORDS: Final = 64
_SERVER_NAME: Final = 0
_ECH: Final = 0xFE0D


class Hello(NamedTuple):
    """What a ClientHello shows."""

    name: bytes
    """Lower case; empty: there is no server_name."""
    ech: bool
    """An encrypted_client_hello of the outer kind is there, real or GREASE: from outside they look alike."""


def parse(data: bytes) -> Hello | int | None:
    """Read the TLS records of a client's first flight."""
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
        if not 0 < length <= 16384 + 256 or records > MAX_RECORDS:
            return None
        hello += data[at + 5 : at + 5 + length]
        if hello and hello[0] != 1:
            return None
        if len(hello) >= 4:
            wanted = 4 + int.from_bytes(hello[1:4], "big")
            if wanted > MAX_HELLO:
                return None
            if len(hello) >= wanted:
                return _client_hello(bytes(hello[4:wanted]))
        at += 5 + length
        if at >= len(data):
            return NEED_MORE


def _client_hello(body: bytes) -> Hello | None:
    """A whole ClientHello without its handshake header. Shared by TLS and QUIC."""
    at = 34  # version, random
    for width in (1, 2, 1):  # session id, cipher suites, compression methods
        if at + width > len(body):
            return None
        at += width + int.from_bytes(body[at : at + width], "big")
    if at == len(body):
        return Hello(b"", False)  # no extensions at all: legal before TLS 1.3
    if at + 2 > len(body):
        return None
    end = at + 2 + int.from_bytes(body[at : at + 2], "big")
    if end > len(body):
        return None
    at += 2
    name, ech = b"", False
    while at + 4 <= end:
        kind = int.from_bytes(body[at : at + 2], "big")
        length = int.from_bytes(body[at + 2 : at + 4], "big")
        value = body[at + 4 : at + 4 + length]
        at += 4 + length
        if at > end:
            return None
        if kind == _SERVER_NAME and not name:
            # server_name_list: length, then type 0 (host_name), length, name
            if len(value) >= 5 and value[2] == 0:
                size = int.from_bytes(value[3:5], "big")
                if size == 0 or 5 + size > len(value):
                    return None
                name = value[5 : 5 + size].rstrip(b".").lower()
        elif kind == _ECH and value[:1] == b"\0":
            ech = True
    return Hello(name, ech)


client_hello = _client_hello
