"""Answers of the upstreams, for as long as their TTL says, and somewhat longer for when the upstreams are cut.

Holds packed entries by the question's hash (64 bits under a secret key, as in `dns.hot`). Does not know policy: what a
group may see of an entry is decided when it is served.
Rule: memory is bounded in octets, not entries. Two generations: a hit in the old one moves to the young one; when the
young one is half the bound, the old one goes. That is close to least-recently-used at no cost per entry.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

OVERHEAD: Final = 48 + 33 + 7 + 80
"""Octets that one entry costs besides its contents on a 64-bit CPython: an int, a bytes object's head, a dict slot."""

_HEAD: Final = Struct("!IIHHH")


class Entry(NamedTuple):
    """One answer."""

    learned_s: int
    expires_s: int
    flags: int
    """RCODE, AD."""
    answers: int
    authorities: int
    body: bytes
    """Everything behind the question; pointers in it count from the head of a message with this very question."""


def key_of(name: bytes, qtype: int, flags: int) -> bytes:
    """`name` in lower-case wire form; `flags`: DO (1), CD (2)."""
    return name + qtype.to_bytes(2, "big") + bytes((flags,))


class Cache:
    """Bounded by `max_bytes`. Times are whole seconds of the core's clock."""

    def __init__(self, max_bytes: int) -> None:
        self.counters: Final = {"hits": 0, "misses": 0, "turned": 0}
        self._half: Final = max_bytes // 2
        self._young: dict[int, bytes] = {}
        self._old: dict[int, bytes] = {}
        self._young_bytes = 0
        self._old_bytes = 0

    def __len__(self) -> int:
        """Entries; one that moved is counted in both generations."""
        return len(self._young) + len(self._old)

    @property
    def bytes_used(self) -> int:
        return self._young_bytes + self._old_bytes

    def find(self, key: bytes) -> Entry | None:
        """The entry, fresh or stale; None if there is none."""
        number = hash(key)
        packed = self._young.get(number)
        if packed is None:
            packed = self._old.get(number)
            if packed is None:
                self.counters["misses"] += 1
                return None
            self._keep(number, packed)
        self.counters["hits"] += 1
        learned, expires, flags, an, ns = _HEAD.unpack_from(packed)
        return Entry(learned, expires, flags, an, ns, packed[_HEAD.size :])

    def put(self, key: bytes, entry: Entry) -> None:
        """Keep an entry in the place of what was there."""
        packed = _HEAD.pack(*entry[:5]) + entry.body
        if len(packed) + OVERHEAD <= self._half:
            self._keep(hash(key), packed)

    def clear(self) -> None:
        self._young, self._old = {}, {}
        self._young_bytes = self._old_bytes = 0

    def _keep(self, key: int, packed: bytes) -> None:
        size = len(packed) + OVERHEAD
        if self._young_bytes + size > self._half:
            self._old, self._old_bytes = self._young, self._young_bytes
            self._young, self._young_bytes = {}, 0
            self.counters["turned"] += 1
        before = self._young.get(key)
        self._young[key] = packed
        self._young_bytes += size if before is None else len(packed) - len(before)
