"""The packet hook's process: one queue, one loop, the link to the agent."""

from __future__ import annotations

import gc
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from nfq.aes import find_aes
from nfq.fold import MAX_ROWS, Row, fold
from nfq.hook import Hook, Now, Reset
from nfq.mark import Mark
from nfq.page import Pages
from nfq.queue import open_queue
from nfq.refusals import Refusals
from nfq.reset import answer_segment, reset_segment
from nfq.turn import wait_for_turn
from policy.config import NfqConfig
from policy.errors import GatehouseError
from policy.event import Event, Flow
from policy.frame import Client, Command, Fold, Reload, Stop
from policy.verdict import Decider

if TYPE_CHECKING:
    from nfq.early import Early

TIMER_S: Final = 0.5
PUMP_S: Final = 0.02
"""Between two looks at the link while packets come: a system call each."""
HOLD_S: Final = 0.12
"""An allowed flow's record waits so long: the look-up before it comes by way of another process, at most 50 ms later,
and the agent compares the two as they arrive."""
HOLD_MS: Final = int(HOLD_S * 1000)
MAX_HELD: Final = 4096
EARLY_S: Final = 0.2
"""Between two looks at what was let through inside the kernel. It waits there as long as a record waits here, and the
more of it is read at once, the less each costs, here and at the agent."""
LOOK_S: Final = 2.0
"""Between two looks whether interfaces have come or gone."""
_NEVER: Final = float("inf")
REFUSED_LENGTH: Final = 256
"""Packets of devices without a login that may wait to be recorded; what is beyond them is refused all the same."""


class Link(Protocol):
    """What the worker asks of the event link."""

    counters: Callable[[], Mapping[str, int]]

    @property
    def has_room(self) -> bool: ...

    def put(self, event: Event) -> None: ...

    def put_folded(self, fold: Fold) -> None: ...

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
    early: Early | None = None,
    lan: Sequence[str] = (),
) -> None:
    """Serve queue `queue_first + worker` until SIGTERM or the link's Stop.

    `early`: what needs no queue goes by it, where it comes in by an interface of `lan`.
    """
    held = _Held(link)
    hook = Hook(
        decider_source(),
        held.put,
        held.put_row,
        aes=find_aes,
        initials_per_s=settings.initials_per_s,
        has_pages=settings.page,
        ahead=early,
    )
    refusals = Refusals(link.put, lambda client, mac: hook.decider.treatment(hook.decider.group_of(client, mac)).group)
    known = early.counters if early is not None else {}
    link.counters = lambda: {**hook.counters, "refused": refusals.refused, **known}
    wait_for_turn()
    queue = open_queue(settings.binding, settings.queue_first + worker, fail_open, settings.queue_length)
    # What a device without a login sends is not decided, only recorded: by the first worker, in a queue of its own.
    refused = open_queue(settings.binding, settings.refused_queue, fail_open, REFUSED_LENGTH) if not worker else None
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
    if refused is not None:
        poll.register(refused.fileno(), select.EPOLLIN)
    sender = _Sender(int(Mark.INJECTED) * lowest, Pages(settings.page_url, settings.page_appeal))
    # What is there now stays; the rest are short-lived tuples that hold no cycles.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)

    def clocks() -> Now:
        return Now(time.monotonic(), time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000, wall_s())

    now = clocks()
    receive = hook.receive

    def handle(data: bytes, mac: bytes) -> int:
        return receive(data, mac, now) * lowest

    def handle_refused(data: bytes, mac: bytes) -> int:
        return refusals.receive(data, mac, now)

    queue_fd, signals_fd = queue.fileno(), reader.fileno()
    running, timer_at, pump_at, due_at, look_at = True, 0.0, 0.0, 0.0, 0.0
    early_at = _NEVER if early is None else 0.0
    while running:
        # `now` is of the turn before: what is due waits longer by as long as that took, a batch at most.
        ready = poll.poll(min(max(due_at - now.monotonic_s, 0.0), EARLY_S))
        now = clocks()
        commands: list[Command] = []
        for fd, _ in ready:
            if fd == queue_fd:
                queue.drain(handle)
            elif fd == signals_fd:
                arrived = reader.recv(256)
                if signal.SIGTERM in arrived or signal.SIGINT in arrived:
                    commands.append(Stop())
                if signal.SIGHUP in arrived:
                    commands.append(Reload())
            elif refused is not None:
                refused.drain(handle_refused)
        if hook.resets:
            for reset in hook.resets:
                sender.send(reset)
            hook.resets.clear()
            pump_at = 0.0
        if ready and now.monotonic_s < pump_at and not commands:
            # The shortest turn, of a packet or two: all else is looked after when it is due.
            due_at = min(due_at, pump_at)
            continue
        pump_at = now.monotonic_s + PUMP_S
        if now.monotonic_s >= timer_at:
            timer_at = now.monotonic_s + TIMER_S
            hook.handle_timer(now)
        if early is not None and early.is_waiting:  # what has just been let through is to pass next time
            early.put_waiting()
        if early is not None and now.monotonic_s >= early_at:
            early_at = now.monotonic_s + EARLY_S
            if link.has_room:  # or the agent does not keep up: what has passed stays in the ring, and its lease ends
                passed = early.take(now.boottime_ms, HOLD_MS)
                if count := len(passed.fold.ports):
                    hook.count_ahead(count, passed.unsure)
                    link.put_folded(passed.fold)
                    if early.sample is not None and hook.was_queued(*early.sample):
                        early.count_lost()
                if count >= MAX_ROWS:
                    early_at = 0.0
            if now.monotonic_s >= look_at:
                look_at = now.monotonic_s + LOOK_S
                early.look(lan)
        held.release(now.monotonic_s)
        commands += link.pump(now.monotonic_s)
        due_at = min(timer_at, link.next_timer(), held.release_at, early_at)
        for command in commands:
            if isinstance(command, Stop):
                running = False
            elif isinstance(command, Reload):
                try:
                    hook.reload(decider_source())
                except GatehouseError:
                    pass  # the agent has told it; what decided until now goes on
            elif isinstance(command, Client):
                hook.set_client(command)
    queue.close()
    if early is not None:
        early.stop()
        while (passed := early.take(clocks().boottime_ms)).fold.ports:
            link.put_folded(passed.fold)
        early.close()
    if refused is not None:
        refused.close()
    held.close()
    link.close()


class _Held:
    """Records on their way to the link: blocked ones at once, the others after HOLD_S to twice that."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._older: list[Flow] = []
        self._newer: list[Flow] = []
        self._older_rows: list[Row] = []
        self._newer_rows: list[Row] = []
        self.release_at = _NEVER

    def put(self, event: Flow) -> None:
        if event.verdict or len(self._newer) >= MAX_HELD:
            self._link.put(event)
            return
        if self.release_at == _NEVER:
            self.release_at = time.monotonic() + HOLD_S
        self._newer.append(event)

    def put_row(self, row: Row) -> None:
        rows = self._newer_rows
        rows.append(row)
        if len(rows) > 1:
            if len(rows) >= MAX_ROWS:
                self._link.put_folded(fold(rows))
                rows.clear()
        elif self.release_at == _NEVER:
            self.release_at = time.monotonic() + HOLD_S

    def release(self, now_s: float) -> None:
        """Hand over what has waited long enough; `release_at` says when there will be something again."""
        if now_s < self.release_at:
            return
        self._hand_over(self._older, self._older_rows)
        self._older, self._newer = self._newer, []
        self._older_rows, self._newer_rows = self._newer_rows, []
        self.release_at = now_s + HOLD_S if self._older or self._older_rows else _NEVER

    def close(self) -> None:
        """Everything, at once."""
        self._hand_over(self._older, self._older_rows)
        self._hand_over(self._newer, self._newer_rows)

    def _hand_over(self, events: list[Flow], rows: list[Row]) -> None:
        for event in events:
            self._link.put(event)
        if rows:
            self._link.put_folded(fold(rows))


class _Sender:
    """Sends the server the reset that the client would have sent, for REJECT resets the client's side only; and the
    client, the page in the server's name."""

    def __init__(self, injected: int, pages: Pages) -> None:
        self._injected = injected
        self._pages = pages
        self._sockets: dict[tuple[int, int], socket.socket | None] = {}

    def send(self, reset: Reset) -> None:
        packet = reset.packet
        family = socket.AF_INET if len(packet.src) == 4 else socket.AF_INET6
        if reset.page is not None:
            answer = self._pages.answer(reset.host, reset.page, is_head=packet.payload[:5] == b"HEAD ")
            self._send(family, self._injected, answer_segment(packet, answer), packet.src)
        self._send(family, 0, reset_segment(packet), packet.dst)

    def _send(self, family: int, mark: int, data: bytes, to: bytes) -> None:
        link = self._sockets.get((family, mark))
        if link is None:
            if (family, mark) in self._sockets:  # no right to it: in vain the first time, in vain now
                return
            try:
                # What goes to a client that is not there waits for its MAC in this socket's buffer: three seconds, if
                # this blocked.
                kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
                link = socket.socket(family, kind, socket.IPPROTO_RAW)
                if mark:
                    link.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            except OSError:  # of which PermissionError is the usual one
                link = None
            self._sockets[family, mark] = link
            if link is None:
                return
        try:
            link.sendto(data, (socket.inet_ntop(family, to), 0))
        except OSError:
            pass
