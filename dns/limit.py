"""How much each client may ask: a token bucket per address, and what went over it, folded into one record.

Rule: bounded in clients; a flood from ever new addresses costs memory for MAX_CLIENTS of them and no more.
"""

from __future__ import annotations

from typing import Final

from policy.event import Flood

MAX_CLIENTS: Final = 4096
"""A /20 of clients on one router. Beyond it the table starts anew: fresh buckets for all, and nobody is locked out."""
BURST_S: Final = 4
"""Seconds' worth of queries at once: a browser that restores forty tabs asks some 600 names within two seconds."""
SAMPLE: Final = 4
"""Names kept of a flood."""
FOLD_S: Final = 10.0
"""One record per client and so many seconds of flood."""


class _Flood:
    __slots__ = ("events", "from_ms", "sample", "to_ms")

    def __init__(self, from_ms: int) -> None:
        self.events = 0
        self.from_ms = self.to_ms = from_ms
        self.sample: list[str] = []


class Limiter:
    """`rate` queries per second and client; 0: no limit."""

    def __init__(self, rate: int) -> None:
        self._rate: Final = rate
        self._burst: Final = float(rate * BURST_S)
        self._buckets: dict[bytes, tuple[float, float]] = {}
        """Client -> tokens, and when they were counted."""
        self._floods: dict[bytes, _Flood] = {}
        self._fold_at = 0.0
        self.counters: Final = {"limited": 0}

    def charge(self, client: bytes, queries: int, now: float) -> bool:
        """Count queries of one client. False: it has asked too much; this is to be told to `refuse`."""
        if not self._rate:
            return True
        bucket = self._buckets.get(client)
        if bucket is None:
            if len(self._buckets) >= MAX_CLIENTS:
                self._buckets.clear()
            bucket = self._burst, now
        tokens = bucket[0] + (now - bucket[1]) * self._rate
        if tokens > self._burst:
            tokens = self._burst
        tokens -= queries
        if tokens >= 0:
            self._buckets[client] = (tokens, now)
            return True
        # No deeper than one second of debt: a client that stops is served again after at most that.
        self._buckets[client] = (max(tokens, -float(self._rate)), now)
        return False

    def is_over(self, client: bytes, now: float) -> bool:
        """Is this client in debt?"""
        bucket = self._buckets.get(client)
        return bucket is not None and bucket[0] + (now - bucket[1]) * self._rate < 0

    def refuse(self, client: bytes, name: str, now: float) -> None:
        """One query was not answered."""
        self.counters["limited"] += 1
        flood = self._floods.get(client)
        if flood is None:
            if len(self._floods) >= MAX_CLIENTS:
                return
            flood = self._floods[client] = _Flood(int(now * 1000))
        flood.events += 1
        flood.to_ms = int(now * 1000)
        if len(flood.sample) < SAMPLE and name not in flood.sample:
            flood.sample.append(name)

    def floods(self, now: float, *, is_last: bool = False) -> list[Flood]:
        """Records that are due."""
        if not self._floods or (now < self._fold_at and not is_last):
            return []
        self._fold_at = now + FOLD_S
        floods, self._floods = self._floods, {}
        return [
            Flood(flood.to_ms, client, flood.events, flood.from_ms, flood.to_ms, tuple(flood.sample))
            for client, flood in floods.items()
        ]
