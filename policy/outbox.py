"""The hooks' half of the event link: what waits to be sent, and what was sent but is not yet on flash. Sans-I/O.

Order of calls: `put` and `put_folded` at any time; `flush` to make frames; `next_frame` and `sent` while the socket
takes them; `acknowledge` as acknowledgements come in; `disconnected` when the agent goes away, after which every
frame that was not acknowledged is offered again. The agent knows a repeated frame by its sequence number.

Rule: memory is bounded by `max_bytes`. What has to go is, in this order: access frames that were sent (they are with
the agent and only lose their insurance against its death), access frames never sent, critical frames. Whatever is
lost for good is counted and reported as one Gap record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import groupby, islice
from typing import Final, NamedTuple

from policy.event import Event, Gap, is_critical
from policy.frame import MAX_FRAME, MAX_FRAME_EVENTS, Fold, Stream, event_bytes, events_frame, folded_frame

DEFAULT_MAX_BYTES: Final = 4 << 20
"""4 MiB: 30 s (the usual loss window) of 8,000 folded look-ups a second at about 16 octets each."""
MAX_PENDING: Final = 1024
"""Records that wait for a frame; `put` makes one by itself beyond this."""
MAX_PACKED: Final = MAX_FRAME - 64
"""Octets of records in a frame."""


class _Held(NamedTuple):
    seq: int
    data: bytes
    events: int
    from_ms: int
    to_ms: int


class _Waiting:
    """Records of one stream, packed as they come: an object that waits is cold when its turn comes."""

    __slots__ = ("from_ms", "packed", "size", "to_ms")

    def __init__(self) -> None:
        self.packed: list[bytes] = []
        self.size = self.from_ms = self.to_ms = 0


class Outbox:
    """Frames of one hook process. `source` names it in Gap records, such as `dns/0`."""

    def __init__(self, source: str, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.source: Final = source
        self.max_bytes: Final = max_bytes
        self.counters: Final = {"events": 0, "frames": 0, "lost": 0, "uninsured": 0}
        self._waiting = (_Waiting(), _Waiting())
        self._held: tuple[deque[_Held], deque[_Held]] = (deque(), deque())
        self._sent = [0, 0]
        """How many of the leading held frames of each stream have been sent on this connection."""
        self._seq = [0, 0]
        self._bytes = 0
        self._lost: tuple[int, int, int] | None = None
        """Events, from, to: lost since the last flush."""

    @property
    def is_idle(self) -> bool:
        """Nothing waits for a frame, or to be sent."""
        is_framed = not any(waiting.packed for waiting in self._waiting)
        return is_framed and all(len(self._held[s]) == self._sent[s] for s in Stream)

    @property
    def has_room(self) -> bool:
        """Does the agent keep up? If not, who has something that can wait had better wait with it."""
        unsent = sum(len(frame.data) for s in Stream for frame in islice(self._held[s], self._sent[s], None))
        return unsent < self.max_bytes // 2

    @property
    def unacknowledged(self) -> int:
        """Frames that are not known to be on flash."""
        return len(self._held[0]) + len(self._held[1])

    def put(self, event: Event) -> None:
        """Take one record. Never blocks, never raises."""
        data = event_bytes(event)
        is_urgent = is_critical(event)
        waiting = self._waiting[is_urgent]
        packed = waiting.packed
        if packed and (waiting.size + len(data) > MAX_PACKED or len(packed) >= MAX_PENDING):
            self._make_frame(Stream(is_urgent))
            packed = waiting.packed
        at_ms = event.at_ms
        if not packed:
            waiting.from_ms = waiting.to_ms = at_ms
        elif at_ms > waiting.to_ms:
            waiting.to_ms = at_ms
        elif at_ms < waiting.from_ms:
            waiting.from_ms = at_ms
        packed.append(data)
        waiting.size += len(data)

    def put_folded(self, fold: Fold, *, are_blocks: bool = False) -> None:
        """Take many look-ups (or flows) that differ in time and client (and source port) only; all blocked, or none."""
        stream = Stream.CRITICAL if are_blocks else Stream.ACCESS
        size = sum(map(len, fold.templates)) + 5 * len(fold.templates) + 24 * len(fold.clients) + 6 * len(fold.which)
        if len(fold.which) > 1 and (size + 6 * len(fold.times) > MAX_FRAME - 256 or len(fold.which) > MAX_FRAME_EVENTS):
            for half in _halves(fold):
                self.put_folded(half, are_blocks=are_blocks)
            return
        data = folded_frame(stream, self._next_seq(stream), fold)
        first, last = min(fold.times)[0], max(fold.times)[0]
        self._keep(stream, _Held(self._seq[stream], data, len(fold.which), first, last))

    def flush(self, now_ms: int, *, is_last: bool = False) -> None:
        """Make frames of what waits. `is_last`: the process ends, so a loss is told now."""
        # One Gap for one overflow: told when there is room again, or it would itself crowd out what it reports on.
        if self._lost is not None and (is_last or self._bytes < self.max_bytes // 2):
            lost, from_ms, to_ms = self._lost
            self._lost = None
            self.put(Gap(now_ms, self.source, lost, from_ms, to_ms, "outbox full"))
        for stream in (Stream.CRITICAL, Stream.ACCESS):
            if self._waiting[stream].packed:
                self._make_frame(stream)

    def next_frame(self) -> bytes | None:
        """The frame to send next, critical ones first; None: all are sent. Call `sent` when the socket took it."""
        for stream in (Stream.CRITICAL, Stream.ACCESS):
            held, sent = self._held[stream], self._sent[stream]
            if sent < len(held):
                return held[sent].data
        return None

    def sent(self) -> None:
        """The frame that `next_frame` gave is on its way."""
        for stream in (Stream.CRITICAL, Stream.ACCESS):
            if self._sent[stream] < len(self._held[stream]):
                self._sent[stream] += 1
                return

    def acknowledge(self, stream: int, seq: int) -> None:
        """Everything up to `seq` of this stream is on flash."""
        held = self._held[stream]
        while held and held[0].seq <= seq:
            self._bytes -= len(held.popleft().data)
            self._sent[stream] = max(0, self._sent[stream] - 1)

    def disconnected(self) -> None:
        """The agent went away: whatever it has not acknowledged must be sent again."""
        self._sent[:] = [0, 0]

    def _make_frame(self, stream: Stream) -> None:
        waiting = self._waiting[stream]
        data = events_frame(stream, self._next_seq(stream), waiting.packed)
        held = _Held(self._seq[stream], data, len(waiting.packed), waiting.from_ms, waiting.to_ms)
        waiting.packed, waiting.size = [], 0
        self._keep(stream, held)

    def _keep(self, stream: Stream, held: _Held) -> None:
        self._held[stream].append(held)
        self._bytes += len(held.data)
        self.counters["frames"] += 1
        self.counters["events"] += held.events
        while self._bytes > self.max_bytes and (self._held[0] or len(self._held[1]) > 1):
            self._evict()

    def _evict(self) -> None:
        stream = Stream.ACCESS if self._held[0] else Stream.CRITICAL
        frame = self._held[stream].popleft()
        self._bytes -= len(frame.data)
        if self._sent[stream]:
            self._sent[stream] -= 1
            self.counters["uninsured"] += frame.events
            return
        self.counters["lost"] += frame.events
        lost, from_ms, to_ms = self._lost or (0, frame.from_ms, frame.to_ms)
        self._lost = (lost + frame.events, min(from_ms, frame.from_ms), max(to_ms, frame.to_ms))

    def _next_seq(self, stream: Stream) -> int:
        self._seq[stream] += 1
        return self._seq[stream]


def _halves(fold: Fold) -> list[Fold]:
    """The first half of the look-ups and the second, each with what it needs of the tables."""
    at_ms = [at for at, number in fold.times for _ in range(number)]
    middle = len(at_ms) // 2
    halves = []
    for part in (slice(0, middle), slice(middle, None)):
        templates, which = _picked(fold.templates, fold.which[part])
        clients, who = _picked(fold.clients, fold.who[part])
        times = [(at, len(list(same))) for at, same in groupby(at_ms[part])]
        halves.append(Fold(templates, which, times, clients, who, fold.ports[part]))
    return halves


def _picked(table: Sequence[bytes], column: Sequence[int]) -> tuple[list[bytes], list[int]]:
    new = {old: at for at, old in enumerate(dict.fromkeys(column))}
    return [table[old] for old in new], [new[old] for old in column]
