"""Answers of the upstreams, for as long as their TTL says, and somewhat longer for when the upstreams are cut.

Holds packed entries by the question's hash (64 bits under a secret key, as in `dns.hot`), without a Python object for
any of them: some 40 octets for a usual answer, where a dict of bytes needs 200. Does not know policy: what a group may
see of an entry is decided when it is served.
Rule: memory is bounded in octets, not entries. The hash says in which bucket an entry stands; a bucket is written to
its end, where the newest are, and when it is full its older half goes. One that is used in time is written anew.
"""

from __future__ import annotations

from array import array
from struct import Struct
from typing import Final, NamedTuple

BUCKET: Final = 2048
"""Octets. Some fifty entries: few enough to search in 0.2 us, so many that the older half is old."""
LARGEST: Final = BUCKET // 2
"""Entries larger than that are kept by themselves; a datagram's worth fits nearly always."""
LARGE_OVERHEAD: Final = 200

_TAG: Final = Struct("=q")
_SIZE: Final = Struct("=H")
"""Of head and body. An entry in its bucket: tag, size, head, body."""
_HEAD: Final = Struct("=IIHHH")
_ALL: Final = Struct("=qHIIHHH")
"""The three in one."""
_KEY_END: Final = Struct("!HB").pack
_PREFIX: Final = _TAG.size + _SIZE.size


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
    return name + _KEY_END(qtype, flags)


class Cache:
    """Bounded by `max_bytes`. Times are whole seconds of the core's clock."""

    def __init__(self, max_bytes: int) -> None:
        self.counters: Final = {"hits": 0, "misses": 0, "dropped": 0}
        self._large_bytes = 0
        self._most_large: Final = max_bytes // 4
        self._number: Final = (max_bytes - self._most_large) // BUCKET
        self.clear()

    def __len__(self) -> int:
        """Entries. Counts them one by one: for tests and people."""
        found: dict[bytes, int] = {}
        for bucket, used in enumerate(self._used):
            at, end = bucket * BUCKET, bucket * BUCKET + used
            while at < end:
                tag, (size,) = (
                    bytes(self._buckets[at : at + _TAG.size]),
                    _SIZE.unpack_from(self._buckets, at + _TAG.size),
                )
                found[tag] = size
                at += _PREFIX + size
        return len(self._large) + sum(map(bool, found.values()))

    @property
    def bytes_used(self) -> int:
        return sum(self._used) + self._large_bytes

    def find(self, key: bytes) -> Entry | None:
        """The entry, fresh or stale; None if there is none."""
        number = hash(key)
        bucket = number % self._number
        start, used = bucket * BUCKET, self._used[bucket]
        at = self._buckets.rfind(_TAG.pack(number), start, start + used)
        if at < 0 and not self._large:
            self.counters["misses"] += 1
            return None
        size = _SIZE.unpack_from(self._buckets, at + _TAG.size)[0] if at >= 0 else 0
        if size:
            packed = bytes(self._buckets[at + _PREFIX : at + _PREFIX + size])
            if at - start < used - BUCKET // 2:
                self._keep(number, _TAG.pack(number) + _SIZE.pack(size) + packed)
        elif (large := self._large.get(number)) is not None:
            packed = large
        else:
            self.counters["misses"] += 1
            return None
        self.counters["hits"] += 1
        learned, expires, flags, an, ns = _HEAD.unpack_from(packed)
        return Entry(learned, expires, flags, an, ns, packed[_HEAD.size :])

    def put(self, key: bytes, entry: Entry) -> None:
        """Keep an entry in the place of what was there."""
        learned, expires, flags, answers, authorities, body = entry
        number, size = hash(key), _HEAD.size + len(body)
        if self._large and (before := self._large.pop(number, None)) is not None:
            self._large_bytes -= len(before) + LARGE_OVERHEAD
        if size <= LARGEST - _PREFIX:
            self._keep(number, _ALL.pack(number, size, learned, expires, flags, answers, authorities) + body)
        else:
            self._keep(number, _TAG.pack(number) + _SIZE.pack(0))  # so that what was there is not found again
            self._keep_large(number, _HEAD.pack(learned, expires, flags, answers, authorities) + body)

    def clear(self) -> None:
        self._buckets = bytearray(self._number * BUCKET)
        self._used = array("H", bytes(2 * self._number))
        """Octets, by bucket."""
        self._large: dict[int, bytes] = {}
        self._large_bytes = 0

    def _keep(self, number: int, whole: bytes) -> None:
        """Write an entry behind the others of its bucket; one of size 0: there is none any more."""
        bucket = number % self._number
        start, used = bucket * BUCKET, self._used[bucket]
        end = used + len(whole)
        if end > BUCKET:
            used = self._halve(start, used)
            end = used + len(whole)
        self._buckets[start + used : start + end] = whole
        self._used[bucket] = end

    def _halve(self, start: int, used: int) -> int:
        """Let the older entries of a bucket go. Gives the octets that are left, not more than half."""
        at, end = start, start + used
        while end - at > BUCKET - LARGEST:
            at += _PREFIX + _SIZE.unpack_from(self._buckets, at + _TAG.size)[0]
            self.counters["dropped"] += 1
        self._buckets[start : start + end - at] = self._buckets[at:end]
        return end - at

    def _keep_large(self, number: int, packed: bytes) -> None:
        self._large[number] = packed
        self._large_bytes += len(packed) + LARGE_OVERHEAD
        while self._large_bytes > self._most_large:
            self._large_bytes -= len(self._large.pop(next(iter(self._large)))) + LARGE_OVERHEAD
