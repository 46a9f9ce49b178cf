"""The packet hook's process: one queue, one loop, the link to the agent."""

from __future__ import annotations

import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from nfq.hook import Hook, Now
from nfq.packet import Packet
from nfq.queue import open_queue
from nfq.reset import reset_segment
from policy.config import NfqConfig
from policy.errors import GatehouseError
from policy.event import Event
from policy.frame import Command, Reload, Stop
from policy.verdict import Decider

TIMER_S: Final = 0.5


class Link(Protocol):
    """What the worker asks of the event link."""

    counters: Callable[[], Mapping[str, int]]

    def put(self, event: Event) -> None: ...

    def pump(self, now_s: float) -> list[Command]: ...

    def next_timer(self) -> float: ...

    def close(self, timeout_s: float = 2.0) -> None: ...


def run(
    settings: NfqConfig,
    decider_source: Callable[[], Decider],
    link: Link,
    *,
    worker: int = 0,
    fail_open: bool = True,
    wall_s: Callable[[], float | None] = time.time,
) -> None:
    """Serve queue `queue_first + worker` until SIGTERM or the link's Stop."""
    hook = Hook(decider_source(), link.put)
    link.counters = lambda: hook.counters
    queue = open_queue(settings.binding, settings.queue_first + worker, fail_open)
    lowest = settings.mark_mask & -settings.mark_mask
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    poll = select.epoll()
    poll.register(queue.fileno(), select.EPOLLIN)
    poll.register(reader.fileno(), select.EPOLLIN)
    resetter = _Resetter()

    def clocks() -> Now:
        return Now(time.monotonic(), time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000, wall_s())

    now = clocks()

    def handle(data: bytes, mac: bytes) -> int:
        return hook.receive(data, mac, now) * lowest

    running, timer_at = True, 0.0
    while running:
        wait = max(0.0, min(timer_at, link.next_timer()) - time.monotonic())
        commands: list[Command] = []
        for fd, _ in poll.poll(min(wait, 0.2)):
            now = clocks()
            if fd == reader.fileno():
                arrived = reader.recv(256)
                if signal.SIGTERM in arrived or signal.SIGINT in arrived:
                    commands.append(Stop())
                if signal.SIGHUP in arrived:
                    commands.append(Reload())
            else:
                queue.drain(handle)
        for reset in hook.resets:
            resetter.send(reset.packet)
        hook.resets.clear()
        now = clocks()
        if now.monotonic_s >= timer_at:
            timer_at = now.monotonic_s + TIMER_S
            hook.handle_timer(now)
        commands += link.pump(now.monotonic_s)
        for command in commands:
            if isinstance(command, Stop):
                running = False
            elif isinstance(command, Reload):
                try:
                    hook.reload(decider_source())
                except GatehouseError:
                    pass  # the agent has told it; what decided until now goes on
    queue.close()
    link.close()


class _Resetter:
    """Sends the server the reset that the client would have sent: REJECT resets the client's side only."""

    def __init__(self) -> None:
        self._sockets: dict[int, socket.socket | None] = {}

    def send(self, packet: Packet) -> None:
        family = socket.AF_INET if len(packet.src) == 4 else socket.AF_INET6
        if family not in self._sockets:
            try:
                self._sockets[family] = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
            except PermissionError:
                self._sockets[family] = None
        link = self._sockets[family]
        if link is None:
            return
        try:
            link.sendto(reset_segment(packet), (socket.inet_ntop(family, packet.dst), 0))
        except OSError:
            pass
