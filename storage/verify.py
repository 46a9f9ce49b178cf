"""Is the ring what was written? Follows the chain through all segments and names the first bad place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from policy.errors import CorruptError
from storage import chain
from storage.batch import unpack
from storage.hot import Batch, Segment, numbers_in, path_of
from storage.sealed import Sealed, open_closed


def verify(directory: str, public: bytes = b"") -> int:
    """Check a ring that no agent has open. Returns how many batches and parts it has, all of them right.

    `public`: the key that sealed segments were signed with; empty: signatures are not looked at.
    Raises: CorruptError, naming the first bad place; StorageError if it cannot be read at all.
    """
    return sum(1 for _ in check(read_in_turn(directory, numbers_in(directory)), public))


def read_in_turn(directory: str, numbers: Iterable[int]) -> Iterator[Segment | Sealed]:
    """Closed segments, each shut before the next is opened: one left open would lock the ring's next writer out."""
    for number in tuple(numbers):
        segment = open_closed(path_of(directory, number), number)
        try:
            yield segment
        finally:
            segment.close()


def check(segments: Iterable[Segment | Sealed], public: bytes = b"") -> Iterator[int]:
    """Follow the chain through segments, oldest first; yields once for each batch or part that is right.

    Raises: CorruptError, naming the first bad place.
    """
    head: bytes | None = None
    next_seq = 0
    for segment in segments:
        where = f"segment {segment.number}"
        if head is not None and (segment.before != head or segment.first_seq != next_seq):
            raise CorruptError(f"{where}: does not follow the one before it")
        if isinstance(segment, Sealed):
            yield from segment.check(public)
            head, next_seq = segment.head, segment.next_seq
            continue
        head, next_seq = segment.before, segment.first_seq
        for batch in segment.batches():
            if batch.seq != next_seq:
                raise CorruptError(f"{where}: expected record {next_seq}, found {batch.seq}")
            head = _checked(head, segment.number, batch)
            next_seq = batch.seq + batch.records
            yield batch.seq


def _checked(head: bytes, number: int, batch: Batch) -> bytes:
    linked = chain.link(head, number, batch.seq, batch.records, batch.sample, batch.data)
    if linked != batch.link:
        raise CorruptError(f"segment {number}: batch {batch.seq} is not what was written")
    columns = unpack(batch.data)
    if len(columns) != batch.records or columns.span() != (batch.t0, batch.t1):
        raise CorruptError(f"segment {number}: batch {batch.seq}: its time span or count is not what was written")
    return linked
