"""The DNS hook's process: one loop over sockets, clocks, signals and the link to the agent, around the core.

Rule: one thread, nothing blocks but the poll; whatever arrives on the network, the process goes on.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Final

from dns.batch import BatchDoor
from dns.door import Admission, TcpDoor, UdpDoor, Way, dropped, tcp_socket, udp_socket
from dns.hot import HotCache
from dns.link import Link
from dns.mmsg import SystemCalls
from dns.outside import Outside
from dns.proxy import Proxy
from policy.config import DnsConfig
from policy.errors import ConfigError, GatehouseError
from policy.frame import Client, Command, Reload, Stop
from policy.verdict import Decider

if TYPE_CHECKING:
    from dns.kernel import KernelAnswers

TURN_S: Final = 0.2
"""The longest poll: the link wants to be pumped."""
PUMP_S: Final = 0.02
"""Between two visits to the link: each costs a system call, and under load we turn a thousand times a second."""
TIDY_S: Final = 1.0
HAND_OVER_S: Final = 0.05
"""How long look-ups may wait to be put on record in one go."""
REST_S: Final = 0.002
LOOK_S: Final = 10.0
"""How often is looked for interfaces that have come."""
DRAIN_S: Final = 1.0
"""What is in flight at SIGTERM may take so long to come home."""


class _End(Enum):
    STOP = 0
    SETTINGS = 1
    """Other settings: start again with them."""


def run(
    settings: DnsConfig,
    decider_source: Callable[[], Decider],
    link: Link,
    *,
    worker: int = 0,
    lan: tuple[str, ...] = (),
    settings_source: Callable[[], DnsConfig] | None = None,
    wall_s: Callable[[], float | None] = time.time,
    kernel: KernelAnswers | None = None,
) -> None:
    """Serve until SIGTERM or the link's Stop, then drain and return.

    `decider_source` is called at the start and at each reload (the link's Reload, or SIGHUP); if it raises
    GatehouseError at a reload, what was there before goes on. `settings_source` likewise; None: never changes.
    `lan`: interfaces whose clients are served, besides this machine itself; empty: whoever asks.
    `wall_s` gives wall time, or None while the clock is not known to be right.
    `kernel`: answers what is asked again before it comes to a socket; made by whoever still had the privileges.
    Raises: ConfigError if nothing can be listened on; GatehouseError from the sources, at the start.
    """
    with _signals() as (reader, seen):
        # The loop alone holds the decider: one that has been replaced must go, with the image that it maps.
        loop = _Loop(settings, decider_source(), link, lan, wall_s, reader, seen, kernel)
        while True:
            try:
                end = loop.serve(decider_source, settings_source)
            finally:
                loop.close()
            if end is _End.STOP:
                link.close()
                if kernel is not None:
                    kernel.close()
                return
            loop = _Loop(loop.next_settings, loop.decider, link, lan, wall_s, reader, seen, kernel)


@contextmanager
def _signals() -> Iterator[tuple[int, set[int]]]:
    """A descriptor that becomes readable at a signal, and the set that the signal's number is put in."""
    seen: set[int] = set()
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = [signal.signal(number, lambda number, _: seen.add(number)) for number in numbers]
    try:
        yield reader, seen
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)


class _Loop:
    """One set of settings' worth of service."""

    def __init__(
        self,
        settings: DnsConfig,
        decider: Decider,
        link: Link,
        lan: tuple[str, ...],
        wall_s: Callable[[], float | None],
        signal_reader: int,
        signals: set[int],
        kernel: KernelAnswers | None,
    ) -> None:
        self.next_settings = self.settings = settings
        self.decider = decider
        self._link = link
        self._wall_s = wall_s
        self._signals = signals
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self.watch(signal_reader, select.EPOLLIN, lambda _: _empty(signal_reader))
        self.proxy = Proxy(settings, decider, os.urandom)
        self._calls = _system_calls()
        self._outside = Outside(
            [server.where for server in self.proxy.servers],
            self,
            self.proxy.receive_replies,
            self.proxy.receive_failure,
            now,
            calls=self._calls,
        )
        self._admission = Admission(lan, now)
        # It was made for one port; with another it just answers nothing.
        self._kernel = kernel if kernel is not None and kernel.port == settings.port else None
        self._hot = HotCache(settings.hot_bytes, link.put_folded, self.proxy.limiter, self._kernel)
        self._udp: list[UdpDoor | BatchDoor] = []
        self._tcp: list[TcpDoor] = []
        self._open()
        self._tidy_at = self._hand_over_at = self._pump_at = 0.0
        self._look_at = now() + LOOK_S
        self._is_elsewhere = False
        """Is there an interface to serve at which the kernel does not answer? To stand there takes privileges."""
        self._set_clock()
        link.counters = self.counters

    # What `Outside` and the doors ask of the loop.

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def counters(self) -> Mapping[str, int]:
        """For the heartbeat."""
        found = dict(self.proxy.counters)
        parts = [self.proxy.cache.counters, self._hot.counters, self.proxy.limiter.counters, self._admission.counters]
        parts += [door.counters for door in self._udp]
        if self._kernel is not None:
            parts.append(self._kernel.counters)
        parts += [door.counters for door in self._tcp]
        for part in parts:
            for name, value in part.items():
                found[name] = found.get(name, 0) + value
        found["dropped"] = sum(dropped(door.socket) for door in self._udp)
        found["hot_bytes"] = self._hot.bytes_used
        found["hot_entries"] = len(self._hot)
        found["cache_bytes"] = self.proxy.cache.bytes_used
        found["pending"] = len(self.proxy.pending)
        return found

    def serve(self, decider_source: Callable[[], Decider], settings_source: Callable[[], DnsConfig] | None) -> _End:
        """Until the end, or until the settings change."""
        gc.collect()
        gc.freeze()  # what lives now lives on: never look at it again
        # We make no cycles; a full collection in the midst of a burst would be a millisecond that somebody waits.
        gc.set_threshold(100_000, 50, 100)
        while True:
            self._turn(self._timeout())
            if not self._hot.takes:
                # The agent is behind, and perhaps for want of the core that we sit on. Questions wait in the socket.
                time.sleep(REST_S)
                self._hot.takes = self._link.has_room
            commands = self._pump()
            if not (commands or self._signals or self._is_elsewhere):
                continue
            for command in commands:
                if isinstance(command, Client):
                    self.proxy.learn_client(command)
                    self._hot.dismiss(command.address)
            if (
                signal.SIGTERM in self._signals
                or signal.SIGINT in self._signals
                or any(isinstance(command, Stop) for command in commands)
            ):
                self._drain()
                return _End.STOP
            if self._is_elsewhere:
                print("dns: an interface has come: starts again, to answer there in the kernel too", file=sys.stderr)
                self._drain()
                return _End.STOP
            if signal.SIGHUP in self._signals or any(isinstance(command, Reload) for command in commands):
                self._signals.discard(signal.SIGHUP)
                if self._reload(decider_source, settings_source):
                    self._drain()
                    return _End.SETTINGS

    def close(self) -> None:
        """Give everything back."""
        for door in self._udp:
            self.forget(door.socket.fileno())
            door.socket.close()
        for stream_door in self._tcp:
            stream_door.close()
        self._outside.close()
        self._epoll.close()

    def _open(self) -> None:
        shared = self.settings.workers > 1
        for host in self.settings.listen:
            try:
                udp = udp_socket(host, self.settings.port, shared=shared)
                tcp = tcp_socket(host, self.settings.port, shared=shared)
            except OSError as error:  # a kernel without IPv6, or an address that this router does not have (yet)
                print(f"dns: cannot listen on {host} port {self.settings.port}: {error}", file=sys.stderr)
                continue
            door = self._udp_door(udp)
            self._udp.append(door)
            self.watch(udp.fileno(), select.EPOLLIN, door.readable)
            stream_door = TcpDoor(tcp, self, self._admission, self.proxy.receive_query, now)
            self._tcp.append(stream_door)
            self.watch(tcp.fileno(), select.EPOLLIN, stream_door.readable)
        if not self._udp:
            raise ConfigError(f"dns.listen: cannot listen on any of {', '.join(self.settings.listen)}")

    def _udp_door(self, sock: socket.socket) -> UdpDoor | BatchDoor:
        if self._calls is None:
            return UdpDoor(sock, self._admission, self._hot, self.proxy.receive_query, now)
        return BatchDoor(sock, self._calls, self._admission, self._hot, self.proxy.receive_query, now)

    def _pump(self) -> list[Command]:
        monotonic = time.monotonic()
        if monotonic < self._pump_at:
            return []
        self._pump_at = monotonic + PUMP_S
        return self._link.pump(monotonic)

    def _timeout(self) -> float:
        due = self.proxy.next_timer()
        wait = min(TURN_S, max(self._pump_at, self._link.next_timer()) - time.monotonic())
        if due is not None:
            wait = min(wait, due - now())
        if self._hot.gives:
            wait = min(wait, self._hand_over_at - now())
        return max(0.0, wait)

    def _turn(self, timeout_s: float) -> None:
        """Wait for something, and do all that follows from it."""
        for fd, events in self._epoll.poll(timeout_s):
            handler = self._handlers.get(fd)
            if handler is not None:  # an earlier handler of this turn may have closed it
                handler(events)
        at = now()
        due = self.proxy.next_timer()
        if due is not None and due <= at:
            self.proxy.handle_timer(at)
        if at >= self._tidy_at:
            self._tidy(at)
        self._send(at)

    def _send(self, at: float) -> None:
        if self.proxy.has_results:
            self._send_results(at)
        if (self._hot.noted or self._kernel is not None) and at >= self._hand_over_at:
            self._hand_over_at = at + HAND_OVER_S
            self._hot.take_given(at, lambda: self._link.has_room)
            self._hot.hand_over_noted(at)

    def _send_results(self, at: float) -> None:
        while asks := self.proxy.asks():
            self._outside.send_all(asks, at)
        for reply in self.proxy.replies():
            way: Way = reply.peer.route  # type: ignore[assignment]  # the doors put it there; the core does not look
            way.send(reply)
        for door in self._udp:
            door.flush(at)
        for event in self.proxy.events():
            self._link.put(event)

    def _tidy(self, at: float) -> None:
        self._tidy_at = at + TIDY_S
        self._outside.tidy(at)
        for door in self._tcp:
            door.tidy(at)
        self.proxy.fold(at)
        self._set_clock()
        if self._kernel is not None and at >= self._look_at:
            self._look_at = at + LOOK_S
            self._is_elsewhere = self._kernel.is_missing()

    def _set_clock(self) -> None:
        wall = self._wall_s()
        self.proxy.wall_offset = None if wall is None else wall - now()

    def _reload(self, decider_source: Callable[[], Decider], settings_source: Callable[[], DnsConfig] | None) -> bool:
        """Read everything again. True: the settings are others."""
        try:
            decider = decider_source()
            settings = settings_source() if settings_source is not None else self.settings
        except GatehouseError as error:
            print(f"dns: not reloaded, what was there before goes on: {error}", file=sys.stderr)
            return False
        self.decider = decider
        self.proxy.set_decider(decider)
        self._hot.clear(now())
        self.next_settings = settings
        return settings != self.settings

    def _drain(self) -> None:
        """No more questions; wait a little for the answers to those that are in flight."""
        if self._kernel is not None:
            self._kernel.dismiss_all()
        for door in self._udp:
            self.forget(door.socket.fileno())
        deadline = now() + DRAIN_S
        while len(self.proxy.pending) and now() < deadline:
            self._turn(min(0.05, self._timeout()))
            self._link.pump(time.monotonic())
        self.proxy.drain(now())
        self._send(now())
        self._hot.hand_over(now())


def now() -> float:
    """Seconds since boot, sleep included: what records are timed by."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _system_calls() -> SystemCalls | None:
    try:
        return SystemCalls()
    except OSError:  # an architecture whose numbers we do not know: one datagram at a time, then
        return None


def _empty(fd: int) -> None:
    try:
        os.read(fd, 4096)
    except BlockingIOError:
        pass
