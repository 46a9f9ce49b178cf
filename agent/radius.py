"""RADIUS accounting (RFC 2866), the server's side: octets in, news and the octets of the answer out. Sans-I/O.

Own reader of 80 lines instead of a library: pyrad brings netaddr, six and dictionaries (9 MB here), and is in no feed
of the router's; of RADIUS we need one packet type, a dozen attributes and two MD5 sums.
Rule: nothing is believed, and nothing answered, before the request authenticator holds (RFC 2866 3); and an answer is
given only for what is on record, so that an access controller sends again what we lost.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from agent.session_lines import clean, read_mac
from policy.errors import HookError, RadiusError

if TYPE_CHECKING:
    from hashlib import md5
else:
    try:  # without OpenSSL's library beside it, as in `policy.digest`
        from _md5 import md5
    except ImportError:
        from hashlib import md5

MAX_PACKET: Final = 4096
"""RFC 2866 3."""
_HEAD: Final = struct.Struct("!BBH16s")
_ACCOUNTING_REQUEST: Final = 4
_ACCOUNTING_RESPONSE: Final = 5

_USER_NAME, _NAS_IP, _FRAMED_IP, _SESSION_TIMEOUT = 1, 4, 8, 27
_CALLING_STATION, _NAS_IDENTIFIER, _PROXY_STATE = 31, 32, 33
_STATUS_TYPE, _DELAY_TIME, _SESSION_ID, _SESSION_TIME, _TERMINATE_CAUSE = 40, 41, 44, 46, 49
_EVENT_TIMESTAMP, _NAS_IPV6, _FRAMED_IPV6_PREFIX, _FRAMED_IPV6_ADDRESS = 55, 95, 97, 168


class Status(IntEnum):
    """Acct-Status-Type (RFC 2866 5.1)."""

    START = 1
    STOP = 2
    INTERIM = 3
    ON = 7
    OFF = 8


TERMINATE: Final = {
    1: "user", 2: "lost", 3: "lost", 4: "idle", 5: "timeout", 6: "admin", 7: "shutdown", 8: "lost", 9: "lost",
    10: "admin", 11: "shutdown", 12: "lost", 13: "lost", 14: "lost", 15: "admin", 16: "user", 17: "lost", 18: "admin",
}  # fmt: skip
"""Acct-Terminate-Cause (RFC 2866 5.10) -> the cause of the logout."""


class Accounting(NamedTuple):
    """One request, read."""

    identifier: int
    authenticator: bytes
    status: int
    """A Status, or a number that we do not know."""
    token: str
    """Acct-Session-Id, with the access controller's name: it is unique there only."""
    account: str
    mac: bytes
    addresses: tuple[bytes, ...]
    nas: str
    cause: str
    session_s: int
    delay_s: int
    timeout_s: int
    proxy_states: tuple[bytes, ...]


def read_request(data: bytes, secret: bytes, peer: str) -> Accounting:
    """Read and check one datagram. `peer`: the sender, where it does not name itself. Raises: RadiusError."""
    if not _HEAD.size <= len(data):
        raise RadiusError(f"radius: expected at least {_HEAD.size} octets, got {len(data)}")
    code, identifier, length, authenticator = _HEAD.unpack_from(data)
    if code != _ACCOUNTING_REQUEST:
        raise RadiusError(f"radius: expected an accounting request (4), got code {code}")
    if not _HEAD.size <= length <= min(len(data), MAX_PACKET):
        raise RadiusError(f"radius: says {length} octets, has {len(data)}")
    data = data[:length]  # RFC 2866 3: what is behind is padding
    import hmac  # and with it OpenSSL's library: only where RADIUS is asked for

    if not hmac.compare_digest(md5(data[:4] + bytes(16) + data[20:] + secret).digest(), authenticator):
        raise RadiusError("radius: the authenticator does not hold: another secret, or not from this sender")
    found: dict[int, bytes] = {}
    proxy_states: list[bytes] = []
    addresses: list[bytes] = []
    for kind, value in _attributes(data):
        if kind == _PROXY_STATE:
            proxy_states.append(value)
        elif (kind == _FRAMED_IP and len(value) == 4) or (kind == _FRAMED_IPV6_ADDRESS and len(value) == 16):
            addresses.append(value)
        elif kind == _FRAMED_IPV6_PREFIX and len(value) == 18 and value[1] == 128:
            addresses.append(value[2:])
        else:
            found.setdefault(kind, value)
    nas = _text(found.get(_NAS_IDENTIFIER, b"")) or _name(found) or peer
    session = _text(found.get(_SESSION_ID, b""))
    return Accounting(
        identifier,
        authenticator,
        _number(found.get(_STATUS_TYPE, b"")),
        f"radius:{nas}/{session}" if session else "",
        _text(found.get(_USER_NAME, b"")),
        _mac(found.get(_CALLING_STATION, b"")),
        tuple(addresses[:8]),
        nas,
        TERMINATE.get(_number(found.get(_TERMINATE_CAUSE, b"")), "lost"),
        _number(found.get(_SESSION_TIME, b"")),
        _number(found.get(_DELAY_TIME, b"")),
        _number(found.get(_SESSION_TIMEOUT, b"")),
        tuple(proxy_states),
    )


def response(request: Accounting, secret: bytes) -> bytes:
    """The answer that says that it is on record (RFC 2866 4.2); Proxy-State comes back unchanged (RFC 2865 5.33)."""
    body = b"".join(bytes((_PROXY_STATE, len(value) + 2)) + value for value in request.proxy_states)
    head = struct.pack("!BBH", _ACCOUNTING_RESPONSE, request.identifier, _HEAD.size + len(body))
    return head + md5(head + request.authenticator + body + secret).digest() + body


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = _HEAD.size
    while at < len(data):
        if at + 2 > len(data) or not 2 <= data[at + 1] <= len(data) - at:
            raise RadiusError(f"radius: the attribute at octet {at} goes beyond the end")
        yield data[at], data[at + 2 : at + data[at + 1]]
        at += data[at + 1]


def _number(value: bytes) -> int:
    return int.from_bytes(value, "big") if len(value) == 4 else 0


def _text(value: bytes) -> str:
    return clean(value.decode("utf-8", "replace"))


def _name(found: dict[int, bytes]) -> str:
    value = found.get(_NAS_IP) or found.get(_NAS_IPV6, b"")
    return value.hex()


def _mac(value: bytes) -> bytes:
    """Calling-Station-Id: `00-10-A4-23-19-C0` (RFC 3580 3.21), and every other way in which it is written."""
    try:
        return read_mac(value.decode("ascii", "replace").partition(";")[0].strip())
    except HookError:
        return b""
