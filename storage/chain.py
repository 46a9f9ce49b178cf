"""The hash chain over batches: whoever changes, drops or swaps one is found out at that place. Pure.

chain[n] = blake2b-128(chain[n-1] | segment | first sequence number | count | clock reading | data). A segment begins
with the last link of the one before it.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from policy.digest import blake2b
from storage.clock import Sample

SIZE: Final = 16
START: Final = bytes(SIZE)
"""Before the first batch of the first segment."""
_HEAD: Final = Struct("<QQIqq?")


def link(before: bytes, segment: int, seq: int, count: int, sample: Sample, data: bytes) -> bytes:
    """The link of one batch."""
    head = _HEAD.pack(segment, seq, count, sample.boottime_ms, sample.wall_ms, sample.synced)
    digest = blake2b(before, digest_size=SIZE)
    digest.update(head)
    digest.update(sample.boot.encode())
    digest.update(data)
    return digest.digest()
