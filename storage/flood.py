"""The share of the ring that one client may fill. What goes beyond it is counted, not kept one by one. Pure.

A program gone mad, or a pupil who looks up random names all day, would otherwise shorten everybody's sixty days and
fill the dictionary with names that nobody will ask for again. Each client has two token buckets, one for accesses
that were let through and one for those that were stopped.
Rule: memory is bounded; a client that keeps to its share never notices.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from policy.event import Flood
from storage.batch import Columns, Who, verdict_of

EVENTS_AN_HOUR: Final = 1000
"""24,000 a day; of 300 clients of a school the busiest fifteen make 12,000."""
BURST: Final = 20_000
REPORT_MS: Final = 10_000
"""How often a flood that goes on is told: so long its count may be lost with the power."""
SAMPLE: Final = 5
MAX_CLIENTS: Final = 4096
"""Buckets; a full one is forgotten, and clients beyond these share one."""
_HOUR_MS: Final = 3_600_000


class _Bucket:
    __slots__ = ("at_ms", "tokens")

    def __init__(self, at_ms: int, burst: int) -> None:
        self.at_ms, self.tokens = at_ms, float(burst)


class _Excess:
    __slots__ = ("events", "from_ms", "names", "to_ms", "who")

    def __init__(self, who: Who, at_ms: int) -> None:
        self.who, self.events, self.from_ms, self.to_ms = who, 0, at_ms, at_ms
        self.names: list[str] = []


class Meter:
    """All clients' shares."""

    def __init__(self, events_an_hour: int = EVENTS_AN_HOUR, burst: int = BURST) -> None:
        """`events_an_hour` 0: no limit."""
        self._rate, self._burst = events_an_hour, burst
        self._buckets: dict[tuple[bytes, bool], _Bucket] = {}
        self._excess: dict[bytes, _Excess] = {}
        self._reported_ms = 0

    def thin(self, columns: Columns, start: int, now_ms: int) -> None:
        """Take what is too much out of the accesses from place `start` on."""
        if not self._rate or start >= len(columns.who):
            return
        stopped = [bool(verdict_of(shape)) for shape in columns.shapes]
        rows = list(zip(columns.who, map(stopped.__getitem__, columns.shape), strict=True))[start:]
        whos = list(columns.whos)
        left: dict[tuple[int, bool], int] = {}
        for (who, is_stopped), wanted in Counter(rows).items():
            granted = self._take(_key(whos[who]), is_stopped, wanted, now_ms)
            if granted < wanted:
                left[who, is_stopped] = granted
        if left:
            self._cut(columns, start, rows, left, whos)

    def floods(self, now_ms: int, *, is_last: bool = False) -> list[Flood]:
        """What is to be told: one record for each client that went beyond its share since the last time."""
        if not self._excess or (now_ms - self._reported_ms < REPORT_MS and not is_last):
            return []
        self._reported_ms = now_ms
        found = [
            Flood(now_ms, e.who[0], e.events, e.from_ms, e.to_ms, tuple(e.names), e.who[1], e.who[2])
            for e in self._excess.values()
        ]
        self._excess = {}
        return found

    def _take(self, key: bytes, is_stopped: bool, wanted: int, now_ms: int) -> int:
        bucket = self._buckets.get((key, is_stopped))
        if bucket is None:
            if len(self._buckets) >= MAX_CLIENTS:
                self._forget(now_ms)
            if len(self._buckets) >= MAX_CLIENTS:
                key = b""
            bucket = self._buckets.setdefault((key, is_stopped), _Bucket(now_ms, self._burst))
        self._refill(bucket, now_ms)
        granted = min(wanted, int(bucket.tokens))
        bucket.tokens -= granted
        return granted

    def _refill(self, bucket: _Bucket, now_ms: int) -> None:
        passed = max(0, now_ms - bucket.at_ms)
        bucket.tokens = min(float(self._burst), bucket.tokens + passed * self._rate / _HOUR_MS)
        bucket.at_ms = now_ms

    def _forget(self, now_ms: int) -> None:
        for key, bucket in list(self._buckets.items()):
            self._refill(bucket, now_ms)
            if bucket.tokens >= self._burst:
                del self._buckets[key]

    def _cut(
        self,
        columns: Columns,
        start: int,
        rows: list[tuple[int, bool]],
        left: dict[tuple[int, bool], int],
        whos: list[Who],
    ) -> None:
        stays = bytearray(b"\1") * len(columns.who)
        names = list(columns.names)
        for at, row in enumerate(rows, start):
            tokens = left.get(row)
            if tokens is None:
                continue
            if tokens:
                left[row] = tokens - 1
                continue
            stays[at] = 0
            who, at_ms = whos[row[0]], columns.at_ms[at]
            excess = self._excess.setdefault(_key(who), _Excess(who, at_ms))
            excess.events += 1
            excess.from_ms, excess.to_ms = min(excess.from_ms, at_ms), max(excess.to_ms, at_ms)
            name = names[columns.name[at]]
            if len(excess.names) < SAMPLE and name not in excess.names:
                excess.names.append(name)
        columns.keep(stays)


def _key(who: Who) -> bytes:
    """One who changes his address is known by his hardware, if that is known."""
    client, mac, _ = who
    return mac or client
