"""Flows that are not yet decided, and those that just were. No sockets, no clock.

Holds each undecided flow's first octets, put together by sequence number, and the verdicts of the last seconds, because
a second segment can be queued before the first one's verdict has reached the conntrack mark.
Rule: every table has a bound in entries, octets and seconds; what is pushed out is reported, not forgotten.
"""

from __future__ import annotations

from typing import Final, TypeAlias

Key: TypeAlias = tuple[bytes, bytes, int, int, int]

MAX_PENDING: Final = 4096
"""Undecided flows at once: at 5 s each, 800 new half-open hellos a second."""
MAX_OCTETS: Final = 16 << 10
MAX_PACKETS: Final = 12
PENDING_S: Final = 5.0
DECIDED_S: Final = 4.0
MAX_DECIDED: Final = 16384


class Stream:
    """The first octets of one direction of a TCP connection, in any order of arrival."""

    __slots__ = ("_parts", "_start", "ambiguous", "client_mac", "first_s", "packets")

    def __init__(self, start: int, now_s: float) -> None:
        self._start = start
        self._parts: dict[int, bytes] = {}
        self.packets = 0
        self.first_s = now_s
        self.ambiguous = False
        """Two segments gave different octets for the same place."""
        self.client_mac = b""

    def add(self, seq: int, payload: bytes) -> None:
        """Take a segment. What was there first counts; a contradiction is noted."""
        self.packets += 1
        offset = (seq - self._start) & 0xFFFFFFFF
        if offset >= 0x80000000:
            # A segment from before the first one we saw: the stream begins earlier than we thought.
            shift = (self._start - seq) & 0xFFFFFFFF
            if shift > MAX_OCTETS:
                return
            self._parts = {at + shift: part for at, part in self._parts.items()}
            self._start, offset = seq, 0
        if offset > MAX_OCTETS:
            return
        payload = payload[: MAX_OCTETS - offset]
        held = self._parts.get(offset)
        if held is not None:
            same = min(len(held), len(payload))
            self.ambiguous = self.ambiguous or held[:same] != payload[:same]
            if len(payload) <= len(held):
                return
            payload = held + payload[len(held) :]
        self._parts[offset] = payload

    def data(self) -> bytes:
        """Octets from the beginning up to the first hole."""
        whole = b""
        for offset in sorted(self._parts):
            part = self._parts[offset]
            if offset > len(whole):
                break
            overlap = whole[offset:]
            same = min(len(overlap), len(part))
            if overlap[:same] != part[:same]:
                self.ambiguous = True
            whole += part[len(overlap) :]
        return whole

    @property
    def is_full(self) -> bool:
        return self.packets >= MAX_PACKETS or sum(map(len, self._parts.values())) >= MAX_OCTETS


class Flows:
    """All streams under way, and the recent verdicts as marks."""

    def __init__(self) -> None:
        self._pending: dict[Key, Stream] = {}
        self._decided: dict[Key, int] = {}
        self._older: dict[Key, int] = {}
        self._turn_s = 0.0

    def __len__(self) -> int:
        return len(self._pending)

    def stream(self, key: Key, start: int, now_s: float) -> Stream:
        """The flow's stream, a new one if need be."""
        found = self._pending.get(key)
        if found is None:
            found = self._pending[key] = Stream(start, now_s)
        return found

    def find_mark(self, key: Key) -> int | None:
        """The mark this flow was given a moment ago; None: it was not."""
        mark = self._decided.get(key)
        return self._older.get(key) if mark is None else mark

    def decide(self, key: Key, mark: int) -> None:
        """The flow is decided: forget its octets, remember its mark for a few seconds."""
        self._pending.pop(key, None)
        if len(self._decided) >= MAX_DECIDED:
            self._older, self._decided = self._decided, {}
        self._decided[key] = mark

    def forget(self, key: Key) -> None:
        """A new connection with the same addresses and ports begins."""
        self._decided.pop(key, None)
        self._older.pop(key, None)
        self._pending.pop(key, None)

    def expire(self, now_s: float) -> list[tuple[Key, Stream]]:
        """Streams that fell silent, or that are too many: the oldest go."""
        if now_s - self._turn_s > DECIDED_S:
            self._turn_s = now_s
            self._older, self._decided = self._decided, {}
        gone: list[tuple[Key, Stream]] = []
        excess = len(self._pending) - MAX_PENDING
        for key, stream in self._pending.items():  # in order of arrival
            if excess <= len(gone) and now_s - stream.first_s <= PENDING_S:
                break
            gone.append((key, stream))
        for key, _ in gone:
            del self._pending[key]
        return gone
