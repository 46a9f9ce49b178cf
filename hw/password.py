"""The console's password: what is stored, what is proved over the line, and the lock after five failures. Pure.

As SCRAM does it (RFC 5802 3) with scrypt (RFC 7914): stored is a hash of a key that is made from the password, proved
is the key, masked by a hash over a nonce. A script's password never crosses the line, and what is stored opens nothing.
Rule: a failure is counted, and on flash, before its attempt is judged, so that pulling the plug gains no attempt; a
lock that was on when the power went is on again from the beginning.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final, NamedTuple

from policy.digest import sha256
from policy.errors import ConfigError

SALT_SIZE: Final = 16
KEY_SIZE: Final = 32
WORK: Final = 1 << 13
"""scrypt's N with r = 8: 8 MiB, some 0.2 s on a Cortex-A53."""
LEAST: Final = 8
"""Characters of a password."""
FAILURES: Final = 5
LOCK_S: Final = 60
LONGEST_LOCK_S: Final = 3600
_PURPOSE: Final = b"Gatehouse console"


class Verifier(NamedTuple):
    """What is stored of a password."""

    salt: bytes
    stored: bytes


def derive(password: str, salt: bytes) -> bytes:
    """The key that is proved: 32 octets."""
    # OpenSSL is 4 MB in a process that sleeps nearly always: it comes with the first password.
    import hashlib
    import hmac

    salted = hashlib.scrypt(password.encode(), salt=salt, n=WORK, r=8, p=1, maxmem=32 << 20, dklen=KEY_SIZE)
    return hmac.digest(salted, _PURPOSE, "sha256")


def make_verifier(password: str, salt: bytes) -> Verifier:
    """Raises: ConfigError for a password that is too weak to be one."""
    check(password)
    return Verifier(salt, sha256(derive(password, salt)).digest())


def check(password: str) -> None:
    """Raises: ConfigError."""
    if len(password) < LEAST or len(password) > 128 or len(set(password)) < 4:
        raise ConfigError(f"password: expected {LEAST} to 128 characters, four of them different")
    if not password.isprintable():
        raise ConfigError("password: expected characters that a keyboard has")


def prove(key: bytes, nonce: bytes) -> bytes:
    """What the laptop sends: the key, masked."""
    return _masked(key, sha256(key).digest(), nonce)


def is_proof(proof: bytes, nonce: bytes, verifier: Verifier) -> bool:
    """Was it made from the right key?"""
    return is_key(_masked(proof, verifier.stored, nonce), verifier)


def is_key(key: bytes, verifier: Verifier) -> bool:
    """Is it the right one?"""
    import hmac

    return hmac.compare_digest(sha256(key).digest(), verifier.stored)


def _masked(octets: bytes, stored: bytes, nonce: bytes) -> bytes:
    import hmac

    mask = hmac.digest(stored, nonce, "sha256")
    return bytes(one ^ other for one, other in zip(octets, mask, strict=True))


class Access:
    """Who may come in. `load()` gives what `save(text)` kept, empty at first; `save` is on flash when it returns."""

    def __init__(self, load: Callable[[], str], save: Callable[[str], None], now: float) -> None:
        """Raises: ConfigError, where what was kept cannot be read: nobody comes in by a broken file."""
        self._save = save
        self.verifier: Verifier | None = None
        self.failures = 0
        self._locks = 0
        self._until: float | None = None
        text = load()
        if text:
            self._read(text)
        if self.failures >= FAILURES:
            self._until = now + self._lock_s()

    def locked_s(self, now: float) -> float:
        """Seconds until somebody may try again; 0: he may."""
        if self._until is None:
            return 0.0
        if now < self._until:
            return self._until - now
        self._until, self.failures = None, 0
        self._keep()
        return 0.0

    def set_password(self, verifier: Verifier) -> None:
        """From now on this one."""
        self.verifier, self.failures, self._locks, self._until = verifier, 0, 0, None
        self._keep()

    def forget(self) -> None:
        """As at first use."""
        self.verifier, self.failures, self._locks, self._until = None, 0, 0, None
        self._keep()

    def admit(self, is_right: Callable[[Verifier], bool], now: float) -> bool:
        """One attempt. With FAILURES of them in a row the door is locked, each time for twice as long."""
        assert self.verifier is not None
        if self.locked_s(now):
            return False
        self.failures += 1
        if self.failures >= FAILURES:
            self._locks += 1
        self._keep()
        if is_right(self.verifier):
            self.failures = self._locks = 0
            self._keep()
            return True
        if self.failures >= FAILURES:
            self._until = now + self._lock_s()
        return False

    def _lock_s(self) -> float:
        return float(min(LONGEST_LOCK_S, LOCK_S << min(max(self._locks - 1, 0), 16)))

    def _keep(self) -> None:
        kept = {"failures": self.failures, "locks": self._locks}
        if self.verifier:
            kept |= {"salt": self.verifier.salt.hex(), "stored": self.verifier.stored.hex()}  # type: ignore[dict-item]
        self._save(json.dumps(kept))

    def _read(self, text: str) -> None:
        try:
            kept = json.loads(text)
            self.failures, self._locks = int(kept["failures"]), int(kept["locks"])
            if "stored" in kept:
                self.verifier = Verifier(bytes.fromhex(kept["salt"]), bytes.fromhex(kept["stored"]))
                if len(self.verifier.stored) != KEY_SIZE:
                    raise ValueError("size")
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                "console: what was kept of the password cannot be read; a factory reset by the button makes a new one"
            ) from None
