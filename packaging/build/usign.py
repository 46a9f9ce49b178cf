"""Signatures as OpenWrt's usign and OpenBSD's signify write them: Ed25519, two lines, base64.

    key = new_key(os.urandom(32), fingerprint); sign(key, octets) -> text of a .sig file
Source: usign's main.c (struct pubkey, seckey, sig). Secret keys are written without a passphrase, as usign's are.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from hashlib import sha512
from typing import Final, NamedTuple

from policy import signature

_KIND: Final = b"Ed"
_NO_PASSPHRASE: Final = b"BK" + bytes(4 + 16)
"""Key derivation `bcrypt_pbkdf` with no rounds: none; and its salt."""


class SecretError(Exception):
    """Not a secret key of usign's."""


class Key(NamedTuple):
    """A secret key."""

    seed: bytes
    fingerprint: bytes
    """8 octets; which key it was, for /etc/opkg/keys/FINGERPRINT."""


def read_key(text: str) -> Key:
    """Read a secret key file. Raises: SecretError."""
    lines = text.splitlines()
    try:
        data = b64decode(lines[1], validate=True)
    except (IndexError, ValueError):
        raise SecretError("expected a comment line and a line of base64") from None
    if len(data) != 104 or data[:4] != _KIND + b"BK":
        raise SecretError("expected a secret key of usign's: 104 octets that begin with EdBK")
    if any(data[4:8]):
        raise SecretError("the key has a passphrase; usign's have none")
    seed, both = data[40:72], data[40:104]
    if sha512(both).digest()[:8] != data[24:32]:
        raise SecretError("its checksum is wrong")
    return Key(seed, data[32:40])


def secret_text(key: Key) -> str:
    """What a secret key file holds."""
    both = key.seed + signature.public_key(key.seed)
    data = _KIND + _NO_PASSPHRASE + sha512(both).digest()[:8] + key.fingerprint + both
    return _lines(f"gatehouse secret key {key.fingerprint.hex()}", data)


def public_text(key: Key) -> str:
    """What a public key file holds."""
    public = signature.public_key(key.seed)
    return _lines(f"gatehouse public key {key.fingerprint.hex()}", _KIND + key.fingerprint + public)


def sign(key: Key, octets: bytes) -> str:
    """What a .sig file holds."""
    made = signature.sign(key.seed, octets)
    return _lines(f"signed by key {key.fingerprint.hex()}", _KIND + key.fingerprint + made)


def _lines(comment: str, data: bytes) -> str:
    return f"untrusted comment: {comment}\n{b64encode(data).decode()}\n"
