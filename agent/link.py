"""The socket under a hook's outbox: connects, sends, takes in acknowledgements and commands.

One non-blocking SEQPACKET socket to the agent. A hook never waits for the agent: if it is away, records wait in the
outbox, which is bounded, and the next `pump` tries again.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import msgpack

from policy.errors import FrameError
from policy.event import Dns, Event, Flow
from policy.frame import (
    MAX_FRAME,
    Ack,
    Command,
    Fold,
    Hello,
    beat_frame,
    bye_frame,
    event_bytes,
    flows_of,
    hello_frame,
    read_down,
)
from policy.outbox import Outbox

if TYPE_CHECKING:
    from policy.legal import Capture

RETRY_S: Final = 0.25
"""Between two attempts to connect: the agent is back within two seconds, and a refused connect costs 10 us."""
BEAT_S: Final = 0.5
"""The agent kills a worker that has been silent for two seconds."""
FLUSH_S: Final = 0.05
MAX_READS: Final = 64
"""Messages taken in per `pump`, so that a stream of them cannot keep the hook from its packets."""


class Link:
    """A hook's connection to the agent. `counters` gives what the heartbeat should tell."""

    def __init__(
        self,
        path: str,
        role: str,
        worker: int,
        counters: Callable[[], Mapping[str, int]] | None = None,
        sieve: Capture | None = None,
    ) -> None:
        """`sieve`: what the legal profile lets out of this process; None: everything."""
        self.sieve = sieve
        self.counters: Callable[[], Mapping[str, int]] = counters or dict
        self._path = path
        self._hello = Hello(role, worker, os.getpid(), os.urandom(8))
        self._outbox = Outbox(f"{role}/{worker}")
        self._socket: socket.socket | None = None
        self._retry_at = self._beat_at = self._flush_at = 0.0

    def put(self, event: Event) -> None:
        """Take one record; never blocks."""
        if self.sieve is not None and (event := self.sieve.one(event)) is None:  # type: ignore[assignment]
            return
        self._outbox.put(event)

    def put_folded(self, fold: Fold, *, are_blocks: bool = False) -> None:
        """Take many look-ups that differ in time and client only; never blocks."""
        if fold.ports:
            self._put_flows(fold)
            return
        if self.sieve is not None and not self.sieve.passes(Dns, is_blocked=are_blocks):
            if not self.sieve.keeps(Dns, is_blocked=are_blocks):
                return
            sieve = self.sieve
            fold = fold._replace(templates=[sieved(each, sieve) for each in fold.templates])
        self._outbox.put_folded(fold, are_blocks=are_blocks)

    def _put_flows(self, fold: Fold) -> None:
        """The same for flows: whole, one by one where the legal profile takes something out, or not at all."""
        if self.sieve is None or self.sieve.passes(Flow):
            self._outbox.put_folded(fold)
        elif self.sieve.keeps(Flow):
            for flow in flows_of(fold):
                self.put(flow)

    @property
    def has_room(self) -> bool:
        """Does the agent keep up?"""
        return self._outbox.has_room

    def next_timer(self) -> float:
        """Monotonic second at which `pump` wants to be called again."""
        if self._socket is None:
            return self._retry_at
        return self._beat_at if self._outbox.is_idle else min(self._beat_at, self._flush_at)

    def pump(self, now_s: float) -> list[Command]:
        """Send what waits, take in what came. `now_s` is monotonic. Never raises for anything the agent does."""
        if self._socket is None and now_s >= self._retry_at:
            self._retry_at = now_s + RETRY_S
            self._connect(now_s)
        if now_s >= self._flush_at:
            self._flush_at = now_s + FLUSH_S
            self._outbox.flush(_boottime_ms())
        if self._socket is None:
            return []
        if now_s >= self._beat_at:
            self._beat_at = now_s + BEAT_S
            self._send(beat_frame({**self._outbox.counters, **self.counters()}))
        while self._socket is not None and (data := self._outbox.next_frame()) is not None:
            if not self._send(data):
                break
            self._outbox.sent()
        return self._receive()

    def close(self, timeout_s: float = 2.0) -> None:
        """Send everything and say goodbye; give up after `timeout_s`, for then the agent itself is in trouble."""
        self._outbox.flush(_boottime_ms(), is_last=True)
        deadline = time.monotonic() + timeout_s
        while (now_s := time.monotonic()) < deadline:
            self.pump(now_s)
            if self._socket is not None and self._outbox.next_frame() is None:
                self._socket.setblocking(True)
                self._send(bye_frame())
                break
            time.sleep(0.01)
        self._drop(time.monotonic())

    def _connect(self, now_s: float) -> None:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            link.connect(self._path)
            link.send(hello_frame(self._hello))
        except OSError:  # not there yet, or its backlog is full
            link.close()
            return
        self._socket = link
        self._beat_at = now_s

    def _send(self, data: bytes) -> bool:
        if self._socket is None:
            return False
        try:
            self._socket.send(data)
        except BlockingIOError:
            return False
        except OSError:
            self._drop(time.monotonic())
            return False
        return True

    def _receive(self) -> list[Command]:
        commands: list[Command] = []
        for _ in range(MAX_READS):
            if self._socket is None:
                break
            try:
                data = self._socket.recv(MAX_FRAME)
                if not data:
                    raise ConnectionResetError
                message = read_down(data)
            except BlockingIOError:
                break
            except (OSError, FrameError):  # gone, or of another release: reconnect and find out
                self._drop(time.monotonic())
                break
            if isinstance(message, Ack):
                self._outbox.acknowledge(message.stream, message.seq)
            else:
                commands.append(message)
        return commands

    def _drop(self, now_s: float) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._retry_at = now_s + RETRY_S
        self._outbox.disconnected()


def sieved(template: bytes, sieve: Capture) -> bytes:
    """A packed template with what may leave of it."""
    kept = sieve.one(Dns(*msgpack.unpackb(template, use_list=False)[1:]))
    assert kept is not None, "the caller has asked whether such are kept"
    return event_bytes(kept)


def _boottime_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
