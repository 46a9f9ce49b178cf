"""A place in the ring from which records are taken in order to be sent on: take, send, acknowledge.

Order of calls: `take` until it returns None, `acknowledge` what the other side has on its disk, `rewind` after a broken
link. Exactly once in effect: what is taken again has the same numbers. A batch is (segment, first number); a sealed
segment is one file and *replaces* whatever the other side has of that segment, since its folded records have numbers of
their own (`part`). The place is kept in the ring itself, in the transaction of the next commit.
"""

from __future__ import annotations

import io
import os
from typing import Final, NamedTuple, TypeAlias

from policy.errors import CorruptError, StorageError
from storage.clock import Sample
from storage.layout import Level
from storage.retention import Segment
from storage.sealed import Sealed
from storage.store import Store
from storage.writer import Ring

PREFIX: Final = b"cursor/"


class Taken(NamedTuple):
    """One committed batch, as `storage.batch.unpack` reads it."""

    segment: int
    first_seq: int
    next_seq: int
    sample: Sample
    link: bytes
    """Of the hash chain, after it."""
    data: bytes


class Bulk(NamedTuple):
    """One sealed segment: the file itself is what is sent."""

    segment: int
    first_seq: int
    next_seq: int
    level: Level
    root: bytes
    """Says which form of the segment it is: half a file of another root is of no use."""
    size: int


class Lost(NamedTuple):
    """Records that were gone, or could not be read, before they were taken; at most so many numbers."""

    segment: int
    first_seq: int
    next_seq: int
    why: str


Item: TypeAlias = Taken | Bulk | Lost


class Cursor:
    """One reader's place. The ring must be open."""

    def __init__(self, ring: Ring, name: str) -> None:
        """Raises: StorageError."""
        self._ring = ring
        self._source = PREFIX + name.encode()
        self._acknowledged = ring.marks().get(self._source, 0)
        self._next = self._acknowledged
        self._from = 0
        """The segment that was taken from last: nothing before it needs to be looked at."""

    @property
    def acknowledged(self) -> int:
        """All records below this number are acknowledged."""
        return self._acknowledged

    def take(self) -> Item | None:
        """What comes next; None: everything that is committed has been taken. Raises: StorageError."""
        item = self._find(self._ring.store())
        if item is not None:
            self._next, self._from = item.next_seq, item.segment
        return item

    def acknowledge(self, item: Item) -> None:
        """The other side has it, and everything before it. On flash with the ring's next commit."""
        if item.next_seq > self._acknowledged:
            self._acknowledged = item.next_seq
            self._ring.mark(self._source, item.next_seq)

    def rewind(self) -> None:
        """Take again what is not acknowledged."""
        self._next, self._from = self._acknowledged, 0

    def behind(self) -> int:
        """How many numbers are not acknowledged yet. Raises: StorageError."""
        segment = self._ring.store().segment
        return segment.next_seq - max(self._acknowledged, 1)

    def oldest(self) -> Segment | None:
        """The closed segment in which the first record lies that is not acknowledged; None: there is none such.

        Raises: StorageError.
        """
        book = self._ring.store().book
        for number in list(book.closed):
            try:
                with book.reading(number) as segment:
                    is_ours = segment.next_seq > max(self._acknowledged, 1)
            except CorruptError:
                continue
            if is_ours:
                return book.described(number)
        return None

    def open(self, bulk: Bulk) -> io.BufferedReader:
        """The file of a sealed segment, to be read from any place. Raises: StorageError if it has changed its form."""
        store = self._ring.store()
        path = store.path_of(bulk.segment)
        try:
            file = open(path, "rb")  # noqa: SIM115  # the caller reads it, and closes it
            found = Sealed(path, bulk.segment)
        except OSError as error:
            raise StorageError(f"segment {bulk.segment}: {error.strerror}") from None
        try:
            if found.root != bulk.root or os.fstat(file.fileno()).st_size != bulk.size:
                file.close()
                raise StorageError(f"segment {bulk.segment}: is of another form by now; take it again")
        finally:
            found.close()
        return file

    def _find(self, store: Store) -> Item | None:
        book, before = store.book, self._next
        for number in [number for number in book.numbers() if number >= self._from]:
            try:
                with book.reading(number) as segment:
                    if segment.next_seq <= before:
                        continue
                    if before and segment.first_seq > before:
                        return Lost(number, before, segment.first_seq, "gone before it was taken")
                    if isinstance(segment, Sealed):
                        size = os.stat(store.path_of(number)).st_size
                        return Bulk(number, segment.first_seq, segment.next_seq, segment.level, segment.root, size)
                    for batch in segment.batches(before - 1):
                        end = batch.seq + batch.records
                        return Taken(number, batch.seq, end, batch.sample, batch.link, batch.data)
            except (CorruptError, OSError) as error:
                after = self._after(store, number)
                if after > before:
                    return Lost(number, before, after, str(error))
        return None

    def _after(self, store: Store, number: int) -> int:
        """The first number of the next segment that can be read."""
        for later in store.book.numbers():
            if later > number:
                try:
                    with store.book.reading(later) as segment:
                        return segment.first_seq
                except CorruptError:
                    continue
        return 0
