"""Gives orders to devices: signs, numbers, sends, waits for the answers.

Whoever holds the secret may order what `agent.uplink.orders` obeys, on any device that trusts the key: keep it away
from the broker and from the receiver, which need it for nothing.
"""

from __future__ import annotations

import fcntl
import os
import select
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from agent.uplink.broker import Broker, Login, UnsupportedVersionError
from agent.uplink.order import Order, write_order
from agent.uplink.signed import open_sealed, split
from agent.uplink.wire import Topics, unpack_map
from policy.bundle import PublicKey, public_key_text
from policy.errors import ConfigError, MessageError
from policy.signature import public_key, sign, verify

PIECE: Final = 96 << 10
"""Octets of a file in one order: with what is around it, within a message."""


class Secret:
    """A secret key in a file, and beside it the number of the last order that it signed."""

    def __init__(self, path: str) -> None:
        """Raises: ConfigError."""
        self._path = path
        try:
            with open(path, "rb") as file:
                self._secret = file.read()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        if len(self._secret) != 32:
            raise ConfigError(f"{path}: expected a key of 32 octets, as `key` makes it; got {len(self._secret)}")
        self.public: Final = public_key(self._secret)
        self.number: Final = self.public[:8]
        """Of the key."""

    def sign(self, octets: bytes) -> bytes:
        """64 octets."""
        return sign(self._secret, octets)

    def next_number(self) -> int:
        """Greater than any before, also for two operators at once."""
        with open(self._path + ".number", "a+", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            number = int(file.read() or 0) + 1
            file.seek(0)
            file.truncate()
            file.write(str(number))
            file.flush()
            os.fsync(file.fileno())
        return number


def make_key(path: str) -> str:
    """A new secret, and its public part in usign's form. Returns the fingerprint."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        secret = os.urandom(32)
        os.write(descriptor, secret)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    public = public_key(secret)
    key = PublicKey(public[:8], public)
    with open(path + ".pub", "wb") as file:
        file.write(public_key_text(key, "orders to devices"))
    return key.fingerprint


class Operator:
    """One connection."""

    def __init__(
        self, server: tuple[str, int], login: Login, secret: Secret, keys: Mapping[bytes, bytes] | None = None
    ) -> None:
        """`keys` of the devices, by number: an answer that none of them has signed is none. None: all are believed."""
        self._keys = keys
        self._server, self._login, self._secret = server, login._replace(clean=True), secret
        self._link: Broker | None = None

    def __enter__(self) -> Operator:
        return self

    def __exit__(self, *reason: object) -> None:
        if self._link is not None:
            self._link.close()

    def order(
        self,
        topics: Topics,
        kind: str,
        arguments: Mapping[str, Any],
        by: str = "",
        *,
        wait_s: float = 30.0,
        expires_s: int = 0,
    ) -> Iterator[Mapping[str, Any]]:
        """Give one; yields the parts of the answer as they come. Raises: ConfigError, LinkError."""
        number = self._secret.next_number()
        order = Order(*topics, number, kind, arguments, by, expires_s)
        yield from self.send(topics, write_order(order, self._secret.sign, self._secret.number), number, wait_s)

    def bring(
        self, topics: Topics, name: str, directory: str, by: str = "", *, wait_s: float = 30.0, expires_s: int = 0
    ) -> Iterator[Mapping[str, Any]]:
        """A signed bundle, as it lies in a directory: its files in pieces, then the order to apply it.

        Yields the answer to the piece that was refused, or to the last order. Raises: ConfigError, LinkError.
        """
        try:
            files = sorted(entry.name for entry in os.scandir(directory) if entry.is_file())
            for file in files:
                with open(os.path.join(directory, file), "rb") as source:
                    offset = 0
                    while (data := source.read(PIECE)) or not offset:
                        piece = {"name": name, "file": file, "offset": offset, "data": data}
                        *_, reply = self.order(topics, "policy", piece, by, wait_s=wait_s, expires_s=expires_s)
                        if reply.get("result") != "ok":
                            yield reply
                            return
                        offset += len(data) or 1
        except OSError as error:
            raise ConfigError(f"{directory}: {error.strerror}") from None
        yield from self.order(topics, "policy", {"name": name}, by, wait_s=wait_s, expires_s=expires_s)

    def send(self, topics: Topics, payload: bytes, number: int, wait_s: float) -> Iterator[Mapping[str, Any]]:
        """Publish what is signed already, and wait for the answer to `number`."""
        link = self._connected(topics)
        link.publish(topics.of("command"), payload)
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            select.select([link.socket], [link.socket] if link.wants_write else [], [], 0.5)
            link.work()
            inbound, link.inbound[:] = list(link.inbound), []
            for message in inbound:
                reply = self._reply_in(message.payload)
                if reply is not None and reply.get("number") == number:
                    yield reply
                    if reply.get("last"):
                        return
        raise ConfigError(f"order {number}: no answer from {topics.identity} within {wait_s:g} s; it may still come")

    def _connected(self, topics: Topics) -> Broker:
        if self._link is None:
            wanted = [(topics.of("reply"), 1)]
            try:
                self._link = Broker(self._server, self._login, wanted, version=5)
            except UnsupportedVersionError:
                self._link = Broker(self._server, self._login, wanted, version=4)
        return self._link

    def _reply_in(self, payload: bytes) -> Mapping[str, Any] | None:
        try:
            if self._keys is None:
                octets, _, _ = split(payload)
            else:
                octets, _ = open_sealed(b"reply", payload, self._keys, verify)
            return unpack_map(octets)
        except MessageError:
            return None
