"""Ed25519 (RFC 8032) in plain Python: bundles are verified with it, chain heads are signed with it.

    public_key(secret) -> 32 octets; sign(secret, message) -> 64 octets; verify(public, message, signature) -> bool

`secret` is the 32 octets of RFC 8032 5.1.5 (the seed). No library: OpenWrt has none on every architecture, and
one signature takes milliseconds, little for what is signed once an hour. Not constant in time: whoever can
measure a router's signing to the microsecond already runs code on it.
Rule: `verify` takes any octets and never raises; what is not canonical (RFC 8032 5.1.7, 8.4) does not verify.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from policy.digest import sha512

PUBLIC_SIZE: Final = 32
SECRET_SIZE: Final = 32
SIGNATURE_SIZE: Final = 64

_P: Final = (1 << 255) - 19
_L: Final = (1 << 252) + 27742317777372353535851937790883648493
_D: Final = -121665 * pow(121666, -1, _P) % _P
_D2: Final = 2 * _D % _P
_ROOT: Final = pow(2, (_P - 1) // 4, _P)
"""A square root of -1."""

_Point: TypeAlias = tuple[int, int, int, int]
"""Extended coordinates (X, Y, Z, T), x = X/Z, y = Y/Z, x*y = T/Z (RFC 8032 5.1.4)."""
_ZERO: Final[_Point] = (0, 1, 1, 0)
_WINDOW: Final = 4


def public_key(secret: bytes) -> bytes:
    """The public key of a secret one. Raises: ValueError for a secret of another length."""
    scalar, _ = _expand(secret)
    return _pack(_multiply(_base_table(), scalar))


def sign(secret: bytes, message: bytes) -> bytes:
    """Sign. Raises: ValueError for a secret of another length."""
    scalar, prefix = _expand(secret)
    table = _base_table()
    public = _pack(_multiply(table, scalar))
    nonce = int.from_bytes(sha512(prefix + message).digest(), "little") % _L
    commitment = _pack(_multiply(table, nonce))
    challenge = int.from_bytes(sha512(commitment + public + message).digest(), "little") % _L
    return commitment + ((nonce + challenge * scalar) % _L).to_bytes(32, "little")


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Does a signature hold?"""
    if len(public) != PUBLIC_SIZE or len(signature) != SIGNATURE_SIZE:
        return False
    answer = int.from_bytes(signature[32:], "little")
    key = _unpack(public)
    if key is None or answer >= _L:
        return False
    challenge = int.from_bytes(sha512(signature[:32] + public + message).digest(), "little") % _L
    # answer * B - challenge * A, by its octets: so the commitment itself need not be unpacked, and is canonical.
    x, y, z, t = key
    minus = (_P - x, y, z, _P - t)
    found = _add(_multiply(_base_table(), answer), _multiply(_table(minus), challenge))
    return _pack(found) == signature[:32]


def _expand(secret: bytes) -> tuple[int, bytes]:
    if len(secret) != SECRET_SIZE:
        raise ValueError(f"ed25519: expected a secret of {SECRET_SIZE} octets, got {len(secret)}")
    digest = sha512(secret).digest()
    scalar = int.from_bytes(digest[:32], "little")
    return scalar & (1 << 254) - 8 | 1 << 254, digest[32:]


def _add(p: _Point, q: _Point) -> _Point:
    x1, y1, z1, t1 = p
    x2, y2, z2, t2 = q
    a = (y1 - x1) * (y2 - x2) % _P
    b = (y1 + x1) * (y2 + x2) % _P
    c = t1 * _D2 * t2 % _P
    d = 2 * z1 * z2 % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _double(p: _Point) -> _Point:
    x, y, z, _ = p
    a = x * x % _P
    b = y * y % _P
    h = a + b
    e = h - (x + y) * (x + y) % _P
    g = a - b
    f = 2 * z * z % _P + g
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _table(point: _Point) -> tuple[_Point, ...]:
    """0 to 15 times a point."""
    rows = [_ZERO, point]
    for _ in range(2, 1 << _WINDOW):
        rows.append(_add(rows[-1], point))
    return tuple(rows)


def _multiply(table: tuple[_Point, ...], scalar: int) -> _Point:
    result = _ZERO
    for shift in range(252, -1, -_WINDOW):
        result = _double(_double(_double(_double(result))))
        digit = scalar >> shift & 15
        if digit:
            result = _add(result, table[digit])
    return result


def _pack(point: _Point) -> bytes:
    x, y, z, _ = point
    inverse = pow(z, -1, _P)
    return ((y * inverse % _P) | (x * inverse % _P & 1) << 255).to_bytes(32, "little")


def _unpack(octets: bytes) -> _Point | None:
    """A point from its octets (RFC 8032 5.1.3); None if there is none, or it is written in more than one way."""
    number = int.from_bytes(octets, "little")
    sign_bit, y = number >> 255, number & (1 << 255) - 1
    if y >= _P:
        return None
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * _ROOT % _P
    if (x * x - square) % _P or (x == 0 and sign_bit):
        return None
    if x & 1 != sign_bit:
        x = _P - x
    return x, y, 1, x * y % _P


_BASE: Final = _unpack((4 * pow(5, -1, _P) % _P).to_bytes(32, "little"))
_tables: list[tuple[_Point, ...]] = []


def _base_table() -> tuple[_Point, ...]:
    if not _tables:
        assert _BASE is not None
        _tables.append(_table(_BASE))
    return _tables[0]
