"""From when until when a certificate holds: two times out of its DER. Pure.

By hand, because Python's `ssl` shows only a peer's certificate, and a router has neither `openssl` nor `cryptography`.
Rule: any bytes give a `Validity` or raise ConfigError. Sources: RFC 5280 4.1, X.690 8.1 and 11.7, RFC 7468.
"""

from __future__ import annotations

import base64
import binascii
import calendar
import re
from typing import Final, NamedTuple

from policy.errors import ConfigError

MAX_PEM: Final = 64 << 10
_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE, _INTEGER, _VERSION, _UTC, _GENERAL = 0x30, 0x02, 0xA0, 0x17, 0x18


class Validity(NamedTuple):
    """Seconds since 1970."""

    begins_s: int
    ends_s: int


def read_validity(pem: bytes) -> Validity:
    """Of the first certificate in a PEM file. Raises: ConfigError."""
    found = _PEM.search(pem[:MAX_PEM])
    if found is None:
        raise ConfigError("expected a certificate in PEM")
    try:
        der = base64.b64decode(b"".join(found[1].split()), validate=True)
    except binascii.Error:
        raise ConfigError("the certificate's base64 is damaged") from None
    outer, _ = _take(der, 0, _SEQUENCE)
    inner, _ = _take(outer, 0, _SEQUENCE)
    at = _skip(inner, 0) if inner[:1] == bytes((_VERSION,)) else 0
    for _ in range(3):  # serial number, signature's algorithm, issuer
        at = _skip(inner, at)
    times, _ = _take(inner, at, _SEQUENCE)
    at = _skip(times, 0)
    return Validity(_seconds(times[:at]), _seconds(times[at:]))


def _head(data: bytes, at: int) -> tuple[int, int, int]:
    """Tag, where the content begins, where it ends."""
    if at + 2 > len(data):
        raise ConfigError("the certificate is cut short")
    tag, length, at = data[at], data[at + 1], at + 2
    if length & 0x80:
        width = length & 0x7F
        if not 0 < width <= 4 or at + width > len(data):
            raise ConfigError("the certificate is no DER")
        length, at = int.from_bytes(data[at : at + width], "big"), at + width
    if at + length > len(data):
        raise ConfigError("the certificate is cut short")
    return tag, at, at + length


def _take(data: bytes, at: int, wanted: int) -> tuple[bytes, int]:
    tag, begin, end = _head(data, at)
    if tag != wanted:
        raise ConfigError(f"the certificate is no X.509: expected tag {wanted:#x}, got {tag:#x}")
    return data[begin:end], end


def _skip(data: bytes, at: int) -> int:
    return _head(data, at)[2]


def _seconds(data: bytes) -> int:
    tag, begin, end = _head(data, 0)
    text = data[begin:end].decode("ascii", "replace")
    if tag == _UTC and re.fullmatch(r"\d{12}Z", text, re.ASCII):
        text = ("20" if int(text[:2]) < 50 else "19") + text  # RFC 5280 4.1.2.5.1
    elif tag != _GENERAL or not re.fullmatch(r"\d{14}Z", text, re.ASCII):
        raise ConfigError(f"the certificate's times are no times: {text[:20]!r}")
    year, month, day, hour, minute, second = (int(text[:4]), *(int(text[at : at + 2]) for at in range(4, 14, 2)))
    if not 1 <= month <= 12 or not 1 <= day <= 31 or year < 1:
        raise ConfigError(f"the certificate's times are no times: {text!r}")
    return calendar.timegm((year, month, day, hour, minute, second))
