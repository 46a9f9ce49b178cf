"""The centre's questions to what devices sent: the reader library. Changes nothing.

    with Centre("/srv/centre") as centre:
        for stream in centre.streams():
            for found in centre.query(stream, Filter(domain="example.org")): ...

A device's records are read as its own ring would read them, with the same filter and the same honest times; records
that came ahead of their batches are among them, and each is there once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from agent.receiver.store import SqliteStore, Stream
from agent.uplink.wire import event_of
from policy.event import Event
from storage.batch import unpack
from storage.catalogue import Catalogue
from storage.clock import Quality, Sample
from storage.filter import Filter
from storage.holds import Held
from storage.hot import Batch
from storage.hot import Segment as HotSegment
from storage.reader import Found, Reader, Visited, Visitor
from storage.sealed import Sealed

AHEAD: Final = -1
"""`part` of a record that came ahead of its batch."""


class Centre:
    """What one receiver's directory holds."""

    def __init__(self, directory: str) -> None:
        """Raises: StorageError."""
        self._store = SqliteStore(directory)
        self.troubles: Final[list[str]] = []
        """Segments that could not be read; the others answered."""

    def __enter__(self) -> Centre:
        return self

    def __exit__(self, *reason: object) -> None:
        self._store.close()

    @property
    def store(self) -> SqliteStore:
        """For devices, alarms and keys."""
        return self._store

    def streams(self, venue: str = "", device: str = "") -> list[Stream]:
        """Whose records there are."""
        return [
            one
            for one in self._store.streams()
            if venue in ("", one.venue)
            and device in ("", one.device)
            and (self._store.segments(one) or self._store.urgent(one))
        ]

    def query(self, stream: Stream, wanted: Filter) -> Iterator[Found]:
        """Records that match, oldest first within a segment; those ahead of their batches last."""
        yield from (found for found in self._reader(stream).query(wanted) if found is not None)
        yield from self._ahead(stream, wanted)

    def names(self, stream: Stream, wanted: Filter) -> Iterator[Visited]:
        """Where the clients that match went."""
        yield from (found for found in self._reader(stream).names(wanted) if found is not None)

    def visitors(self, stream: Stream, domain: str, since_ms: int = 0, until_ms: int = 1 << 62) -> Iterator[Visitor]:
        """Who was at a domain."""
        found = self._reader(stream).visitors(domain, since_ms, until_ms)
        yield from (visitor for visitor in found if visitor is not None)

    def _reader(self, stream: Stream) -> Reader:
        def tell(number: int, why: str) -> None:
            self.troubles.append(f"{stream.venue}/{stream.device} segment {number}: {why}")

        return Reader(_Book(self._store, stream), _NoHolds(), tell)  # type: ignore[arg-type]  # all that it asks of them

    def _ahead(self, stream: Stream, wanted: Filter) -> Iterator[Found]:
        for seq, record in self._store.urgent(stream):
            event: Event = event_of(record)
            wall_ms, segment = int(record["wall_ms"]), int(record["segment"])
            if wanted.since_ms <= wall_ms < wanted.until_ms and wanted.matches(event):
                quality = Quality.SYNCED if record.get("synced") else Quality.UNSYNCED
                yield Found(segment, seq, wall_ms, quality, event, wall_ms - event.at_ms, AHEAD)


class _Book(Catalogue):
    """One stream's segments, as if they lay in a ring's directory."""

    def __init__(self, store: SqliteStore, stream: Stream) -> None:
        os.makedirs(store.directory_of(stream), mode=0o700, exist_ok=True)
        super().__init__(store.directory_of(stream))
        self._store, self._stream = store, stream
        self._sealed = store.segments(stream)
        self.closed[:] = list(self._sealed)

    @contextmanager
    def reading(self, number: int) -> Iterator[HotSegment | Sealed]:
        """A segment, whichever way it came."""
        if not self._sealed[number]:
            yield _Loose(self._store, self._stream, number)  # type: ignore[misc]  # what a reader asks of one
            return
        segment = Sealed(self._store.path_of(self._stream, number), number)
        try:
            yield segment
        finally:
            segment.close()


class _Loose:
    """The batches of a segment that has not been sealed yet; gaps between them may still be filled."""

    def __init__(self, store: SqliteStore, stream: Stream, number: int) -> None:
        self.number = number
        self._store, self._stream = store, stream
        self.first_seq, self.next_seq = store.bounds(stream, number)

    def batches(self, after: int = -1) -> Iterator[Batch]:
        """In order, read as they are asked for."""
        for one in self._store.batches(self._stream, self.number, after):
            row = one.row
            sample = Sample(one.boot, row.mono_ms, row.wall_ms, row.synced)
            yield Batch(one.first_seq, row.records, sample, *unpack(row.data).span(), one.link, row.data)

    def samples(self) -> Iterator[Sample]:
        """Their clock readings."""
        for one in self._store.batches(self._stream, self.number):
            yield Sample(one.boot, one.row.mono_ms, one.row.wall_ms, one.row.synced)

    def spans(self) -> Iterator[tuple[Sample, int, int]]:
        """As `storage.hot.Segment.spans`."""
        return ((batch.sample, batch.t0, batch.t1) for batch in self.batches())


class _NoHolds:
    """A centre lets nothing go, so nothing has to be held back."""

    def kept(self) -> Iterator[tuple[int, Iterator[Held]]]:
        return iter(())
