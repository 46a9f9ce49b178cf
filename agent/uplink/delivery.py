"""What is under way to the centre: window, acknowledgements, repeats, the cap on bandwidth. Sans-I/O.

    while delivery.wants(): delivery.put(load)               # from the ring, in order
    while (send := delivery.next_send(now)): publish; delivery.sent(send, id, octets, now)
    place = delivery.acknowledged(ids, now)                  # the cursor may move there; None: not yet
    delivery.disconnected()                                  # all that is not acknowledged goes again

A broker's PUBACK plays no part here: it says that the broker has a message, not that the centre has.
Rule: the place moves only over what is acknowledged from end to end, and what is held is bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

WINDOW: Final = 512 << 10
"""Octets sent and not acknowledged: 0.5 s of 8 Mbit/s, and what paho may hold a second time in memory."""
MAX_LOADS: Final = 32
ACK_S: Final = 20.0
"""From sending to sending again, the first time; the centre commits within a second, the rest is the line."""
MAX_ACK_S: Final = 300.0
MAX_AGAIN: Final = 3
"""How often a load may be asked for from its start before it goes slowly."""


class Load(NamedTuple):
    """Something that is delivered as a whole, in one message or many."""

    number: int
    """The caller's own name for it."""
    next_seq: int
    """Where the cursor stands when it is delivered."""
    size: int
    piece: int
    """Octets in one message, at most."""


class Send(NamedTuple):
    """A message to be made and published."""

    load: Load
    offset: int
    length: int


class _Unit:
    """One message, on its way or to be sent."""

    __slots__ = ("due", "id", "is_out", "octets", "send", "tries")

    def __init__(self, send: Send) -> None:
        self.send = send
        self.id = b""
        self.octets = 0
        self.is_out = False
        self.due = 0.0
        self.tries = 0


class _Held:
    """A load with what is left of it: cut into messages only as far as the window reaches."""

    __slots__ = ("again", "cut", "load", "open")

    def __init__(self, load: Load) -> None:
        self.load = load
        self.cut = 0
        """Octets that have been cut into messages so far."""
        self.open: set[_Unit] = set()
        self.again = 0

    @property
    def is_done(self) -> bool:
        return self.cut >= self.load.size and not self.open


class Delivery:
    """One device's bulk lane."""

    def __init__(self, random: Callable[[], float], *, window: int = WINDOW, bytes_s: int = 0) -> None:
        """`random`: from 0 to 1. `bytes_s`: cap on what is sent a second; 0: none."""
        self._random, self._window, self._bytes_s = random, window, bytes_s
        self._held: deque[_Held] = deque()
        self._waiting: deque[_Unit] = deque()
        """To be sent again, before anything new."""
        self._out: dict[bytes, _Unit] = {}
        self._out_octets = 0
        self._may_send_at = 0.0
        self.counters: Final = {"sent": 0, "sent_bytes": 0, "again": 0, "acknowledged": 0, "timeouts": 0, "refused": 0}

    def wants(self) -> bool:
        """Is there room for another load?"""
        return len(self._held) < MAX_LOADS and sum(held.load.size - held.cut for held in self._held) < self._window

    @property
    def is_behind(self) -> bool:
        """Is much of what was sent still to be acknowledged? Then the line is what is slow."""
        return self._out_octets * 2 > self._window

    @property
    def is_idle(self) -> bool:
        """Nothing is held."""
        return not self._held

    @property
    def until(self) -> int:
        """One past the last record that is held; 0: none is."""
        return self._held[-1].load.next_seq if self._held else 0

    def put(self, load: Load) -> None:
        """Take a load; it follows the one before it."""
        self._held.append(_Held(load))

    def spend(self, octets: int, now: float) -> None:
        """Something else went over the line: it counts against the cap, but never waits for it."""
        if self._bytes_s:
            self._may_send_at = max(self._may_send_at, now - 1.0) + octets / self._bytes_s

    def next_send(self, now: float) -> Send | None:
        """What to send; None: nothing, or not now."""
        if now < self._may_send_at or (self._out and self._out_octets >= self._window):
            return None
        unit = self._next_unit()
        return unit.send if unit is not None else None

    def sent(self, send: Send, identity: bytes, octets: int, now: float) -> None:
        """It is with the broker's client; `identity` is what an acknowledgement will name."""
        unit = self._next_unit()
        assert unit is not None
        assert unit.send == send
        self._waiting.popleft()
        self._out.pop(unit.id, None)
        unit.id, unit.octets, unit.is_out = identity, octets, True
        wait = min(MAX_ACK_S, ACK_S * 2**unit.tries)
        unit.due = now + wait * (1 + self._random() / 2)
        unit.tries += 1
        self._out[identity] = unit
        self._out_octets += octets
        self.counters["sent"] += 1
        self.counters["sent_bytes"] += octets
        self.counters["again"] += unit.tries > 1
        self.spend(octets, now)

    def acknowledged(self, ids: Iterable[bytes]) -> int | None:
        """The centre has these on its disk. Returns the place up to which it has everything, if that has moved."""
        late = {unit.id: unit for unit in self._waiting if unit.id} if self._waiting else {}
        for identity in ids:
            unit = self._out.get(identity) or late.pop(identity, None)
            if unit is None:
                continue  # said twice, or of what was begun anew
            if not unit.is_out:  # on a slow line it was given up too early: it need not go again
                self._waiting.remove(unit)
            self._forget(unit)
            self.counters["acknowledged"] += 1
            for held in self._held:
                held.open.discard(unit)
        place = None
        while self._held and self._held[0].is_done:
            place = self._held.popleft().load.next_seq
        return place

    def rejected(self, identity: bytes) -> Load | None:
        """The centre wants all of what this message was part of again. Returns what it was part of."""
        for held in self._held:
            if any(unit.id == identity for unit in held.open):
                self.counters["refused"] += 1
                held.again += 1
                self._restart(held)
                return held.load
        return None

    def replace(self, load: Load, size: int, piece: int) -> None:
        """It is of another size now; it goes from its start."""
        for held in self._held:
            if held.load.number == load.number:
                held.load = load._replace(size=size, piece=piece)
                self._restart(held)

    def clear(self) -> None:
        """Forget all of it: it is to be taken again."""
        self._held.clear()
        self.disconnected()

    def is_stubborn(self, load: Load) -> bool:
        """Has it been asked for from its start too often?"""
        return any(held.again > MAX_AGAIN for held in self._held if held.load.number == load.number)

    def disconnected(self) -> None:
        """What is not acknowledged goes again, in order."""
        self._waiting.clear()
        self._out.clear()
        self._out_octets = 0
        for held in self._held:
            for unit in held.open:
                unit.is_out = False
                unit.tries = 0
            self._waiting.extend(sorted(held.open, key=lambda unit: unit.send.offset))

    def handle_timer(self, now: float) -> None:
        """Send again what was not acknowledged in time."""
        late = [unit for unit in self._out.values() if now >= unit.due]
        for unit in sorted(late, key=lambda unit: (unit.send.load.number, unit.send.offset)):
            self._forget(unit)
            self._waiting.append(unit)
            self.counters["timeouts"] += 1

    def next_timer(self) -> float:
        """When `handle_timer` or `next_send` have something to do, if nothing else happens before; inf: never."""
        times = [unit.due for unit in self._out.values()]
        has_more = bool(self._waiting) or any(held.cut < held.load.size for held in self._held)
        if has_more and self._out_octets < self._window:
            times.append(self._may_send_at)
        return min(times, default=float("inf"))

    # --- inside ------------------------------------------------------------------------------------------------

    def _next_unit(self) -> _Unit | None:
        if self._waiting:
            return self._waiting[0]
        for held in self._held:
            load = held.load
            if held.cut < load.size:
                unit = _Unit(Send(load, held.cut, min(load.piece, load.size - held.cut)))
                held.cut += unit.send.length
                held.open.add(unit)
                self._waiting.append(unit)
                return unit
        return None

    def _forget(self, unit: _Unit) -> None:
        if self._out.pop(unit.id, None) is not None:
            self._out_octets -= unit.octets
        unit.is_out = False

    def _clear(self, held: _Held) -> None:
        for unit in held.open:
            self._forget(unit)
        self._waiting = deque(unit for unit in self._waiting if unit not in held.open)
        held.open.clear()

    def _restart(self, held: _Held) -> None:
        self._clear(held)
        held.cut = 0


class Backoff:
    """When to try again: at once it never is, and no two routers of a venue do it at the same time."""

    def __init__(
        self, random: Callable[[], float], *, stagger_s: float, first_s: float = 1.0, most_s: float = 300.0
    ) -> None:
        """`stagger_s`: the first try comes somewhere within it, for all routers of a town boot at once after a cut."""
        self._random, self._stagger_s, self._first_s, self._most_s = random, stagger_s, first_s, most_s
        self._failures = -1

    def next_delay_s(self) -> float:
        """Seconds until the next try."""
        self._failures += 1
        if self._failures == 0:
            return self._stagger_s * self._random()
        longest = min(self._most_s, self._first_s * float(1 << min(self._failures - 1, 30)))
        return longest * (0.5 + self._random() / 2)

    def worked(self) -> None:
        """Something came through: the next failure is a first one."""
        self._failures = 0
