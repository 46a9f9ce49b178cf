"""Sealing: what a person said of himself is closed to the supervising recipient before it reaches any file.

    sealer = Sealer.load(state_dir)        # recipient.pub and index.key
    sealed = sealer.seal({"phone": ..., "name": ...})    # libsodium's sealed box: X25519, XSalsa20-Poly1305
    index = sealer.index_of("+86 138 0013 8000")         # the same number, however it is written, has the same index

The router has no key that opens a sealed box. The index is Argon2id of the number, salted and keyed with a secret of
this router: whoever steals the secret too has to try numbers, at 8 MiB and some 20 ms (a router: 150 ms) each.
PyNaCl is optional on a router: without it nothing is taken in that would need sealing; it is refused, never kept plain.
"""

from __future__ import annotations

import binascii
import json
import os
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any, Final

from policy.digest import blake2b
from policy.errors import ConfigError

RECIPIENT: Final = "recipient.pub"
INDEX_KEY: Final = "index.key"
INDEX_BYTES: Final = 16
KEY_BYTES: Final = 32
_COMMENT: Final = "untrusted comment: gatehouse recipient "
_ARGON_OPS: Final = 2
_ARGON_BYTES: Final = 8 << 20
_MOBILE: Final = re.compile(r"(?:(?:\+|00)?86)?1[3-9]\d{9}|(?:\+|00)\d{8,15}").fullmatch
"""A Chinese mobile number (YD/T 1256 numbering: 11 digits from 13 on), or any number in international form (E.164)."""


class Sealer:
    """Seals to one recipient. `recipient`: X25519 public key; `key`: this router's secret of the blind index."""

    def __init__(self, recipient: bytes, key: bytes) -> None:
        self._recipient, self._key = recipient, key
        self._indexes: dict[str, bytes] = {}

    @classmethod
    def load(cls, state_dir: str) -> Sealer:
        """Read the recipient's key; make the index's on first use. Raises: ConfigError."""
        recipient = read_key(os.path.join(state_dir, RECIPIENT))
        _nacl()
        path = os.path.join(state_dir, INDEX_KEY)
        try:
            with open(path, "rb") as file:
                key = file.read()
        except FileNotFoundError:
            key = os.urandom(KEY_BYTES)
            write_private(path, key)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        if len(key) != KEY_BYTES:
            raise ConfigError(f"{path}: expected {KEY_BYTES} octets, got {len(key)}; restore it from the backup")
        return cls(recipient, key)

    def seal(self, fields: Mapping[str, str]) -> bytes:
        """Close it. Empty: there is nothing in it."""
        kept = {name: value for name, value in fields.items() if value}
        if not kept:
            return b""
        public, _ = _nacl()
        text = json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode()
        # The length must not tell names apart: to the next 64 octets, with blanks that JSON ignores.
        text = text.ljust(-(-len(text) // 64) * 64)
        return bytes(public.SealedBox(public.PublicKey(self._recipient)).encrypt(text))

    def index_of(self, phone: str) -> bytes:
        """The blind index of a number. Raises: ConfigError if it is no number."""
        number = normal_phone(phone)
        if number not in self._indexes:
            _, argon2id = _nacl()
            salt = blake2b(b"gatehouse phone salt", key=self._key, digest_size=16).digest()
            slow = argon2id.kdf(32, number.encode(), salt, opslimit=_ARGON_OPS, memlimit=_ARGON_BYTES)
            if len(self._indexes) >= 4096:
                self._indexes.clear()
            self._indexes[number] = blake2b(slow, key=self._key, digest_size=INDEX_BYTES).digest()
        return self._indexes[number]


def normal_phone(text: str) -> str:
    """Digits with the country in front: a number of one country is one number, however it is written.

    Raises: ConfigError, which does not repeat the number: messages go into logs.
    """
    digits = text.translate({ord(sign): None for sign in " -().\t"})
    if digits.startswith("00"):
        digits = "+" + digits[2:]
    if re.fullmatch(r"(86)?1[3-9]\d{9}", digits):
        digits = "+86" + digits[-11:]
    if not re.fullmatch(r"\+?\d{4,15}", digits) or not digits.isascii():
        raise ConfigError("phone: expected 4 to 15 digits, with +COUNTRY in front of one from elsewhere (E.164)")
    return digits


def is_phone(text: str) -> bool:
    """Is an account in truth a phone number? Then it must not be kept plain either."""
    return _MOBILE(text.translate({ord(sign): None for sign in " -"})) is not None


def make_keys(secret_path: str, public_path: str) -> None:
    """A key pair for the recipient, made on the recipient's machine. Raises: ConfigError."""
    public, _ = _nacl()
    for path in (secret_path, public_path):
        if os.path.exists(path):
            raise ConfigError(f"{path} is there already; a recipient's key that is overwritten opens nothing any more")
    secret = public.PrivateKey.generate()
    write_private(secret_path, f"{_COMMENT}secret key\n{b64encode(bytes(secret)).decode()}\n".encode())
    with open(public_path, "w", encoding="ascii") as file:
        file.write(f"{_COMMENT}public key\n{b64encode(bytes(secret.public_key)).decode()}\n")


def read_key(path: str) -> bytes:
    """A key file: a comment line, then base64 of 32 octets. Raises: ConfigError."""
    try:
        with open(path, encoding="ascii") as file:
            lines = [line for line in file.read(1024).splitlines() if not line.startswith("untrusted comment:")]
        key = b64decode("".join(lines), validate=True)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: not there; have the supervising recipient make it (`gatehouse registration key`), put it here"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{path}: expected a key, base64 of {KEY_BYTES} octets")
    return key


def open_sealed(secret: bytes, sealed: bytes) -> dict[str, str]:
    """What was sealed, for who has the key. Raises: ConfigError."""
    public, _ = _nacl()
    from nacl.exceptions import CryptoError

    try:
        found = json.loads(public.SealedBox(public.PrivateKey(secret)).decrypt(sealed))
    except (CryptoError, ValueError):
        raise ConfigError("registration: this key does not open it, or it is damaged") from None
    return {str(name): str(value) for name, value in found.items()}


def write_private(path: str, data: bytes) -> None:
    """A file for its owner only, whole or not at all. Raises: ConfigError."""
    unfinished = f"{path}.tmp"
    try:
        handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(handle, data)
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(unfinished, path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def _nacl() -> tuple[Any, Any]:  # two modules of a library that a router may lack
    try:
        from nacl import public
        from nacl.pwhash import argon2id
    except ImportError:
        raise ConfigError(
            "registration: PyNaCl is not installed here, so nothing can be sealed, and nothing is kept unsealed; "
            "install python3-pynacl"
        ) from None
    return public, argon2id
