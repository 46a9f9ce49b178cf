"""The ring: records in, answers out; and what waits while the storage takes nothing.

Order of calls: `add` at any time; `commit` to have everything added on flash; `tick` once a second; `query` at any
time, stepped between the others; `close`.
Rule: what `commit` returned for is on flash, with the marks of the frames it came in, in one transaction. While the
storage is gone everything waits here, up to a bound; it is opened again by itself, and what may have reached it in its
last moment is not written twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from policy.errors import StorageError
from policy.event import Dns, Event, Flow, Gap
from storage import retention
from storage.batch import Columns, Who, pack
from storage.chain import link
from storage.clock import Clock, Now, Sample
from storage.filter import Filter
from storage.flood import Meter
from storage.holds import Hold
from storage.hot import FullError
from storage.layout import Level
from storage.reader import Found, Visited, Visitor
from storage.store import Known, Note, Options, Store

MAX_PENDING: Final = 200_000
"""Records that wait while the storage does not take them, some 20 MB. Beyond it the oldest accesses are given up."""
REOPEN_MS: Final = 1000
"""Between two tries at a storage that refused."""


class _Packed(NamedTuple):
    """A batch that is ready to be committed, or may have been."""

    records: int
    sample: Sample
    span: tuple[int, int]
    data: bytes
    marks: Mapping[bytes, int]


class Ring:
    """One ring directory, open for writing. Only one process may."""

    def __init__(
        self,
        directory: str,
        clock: Clock,
        *,
        budget_bytes: int = 112 << 20,
        promised_days: int = 60,
        maximum_days: int = 0,
        seal: bool = False,
        level: Level = Level.SECOND,
        segment_events: int = retention.MOST_EVENTS,
        meter: Meter | None = None,
    ) -> None:
        """`seal`: closed segments become columns at `level`; what docs/ring-format.md says is given up.

        `meter`: what one client may fill; None: as much as it likes.
        A storage that cannot be opened is no error here: records wait, `trouble` says why, and it is tried again.
        """
        self._directory = directory
        self._clock = clock
        self._options = Options(budget_bytes, promised_days, maximum_days, seal, level, segment_events)
        self._pending = Columns()
        self._meter = meter
        self._metered = 0
        """How many of the pending accesses have been counted against their clients' shares."""
        self._new_marks: dict[bytes, int] = {}
        self._given_up: tuple[int, int, int] | None = None
        """Records, from, to: lost because the storage did not take them."""
        self._unsent: _Packed | None = None
        """What the storage refused, or said that it did."""
        self._tried: bytes = b""
        """The head of the chain as it would be with that."""
        self._store: Store | None = None
        self._known: Known | None = None
        self._is_doubtful = False
        """The storage refused, and is to be opened again before anything is written; until then it may be read."""
        self._retry_at = 0
        self.trouble = ""
        """Why the storage takes nothing; empty: it does."""
        self.counters: Final = {"events": 0, "commits": 0, "committed_bytes": 0, "given_up": 0, "reopened": 0}
        try:
            self._open()
        except StorageError:
            pass  # `trouble` says it

    # --- writing -----------------------------------------------------------------------------------------------

    @property
    def head(self) -> bytes:
        """The last link of the chain: to be anchored where this router cannot reach it. Raises: StorageError."""
        return self._opened().segment.head

    @property
    def public_key(self) -> bytes:
        """What sealed segments are signed with; empty: not known."""
        return self._store.public_key if self._store is not None else b""

    def marks(self) -> Mapping[bytes, int]:
        """Source -> sequence number of the last frame that is on flash."""
        if self._store is not None:
            return self._store.segment.marks()
        return self._known.beginning.marks if self._known is not None else {}

    def forget(self, sources: list[bytes]) -> None:
        """Sources that will never send again. Raises: StorageError."""
        for source in sources:
            self._new_marks.pop(source, None)
        self._opened().segment.forget_marks(sources)

    @property
    def last_commit_ms(self) -> int:
        """Time since boot of the last commit that is on flash; 0: there is none of this boot."""
        last = self._store.segment.last_sample() if self._store is not None else None
        return last.boottime_ms if last is not None and last.boot == self._clock.boot_id else 0

    def add(self, events: Sequence[Event], source: bytes = b"", seq: int = 0) -> None:
        """Take records; `source` and `seq` name the frame they came in, if they came in one."""
        self._pending.add(events)
        self._mark(source, seq)

    def add_folded(
        self,
        templates: Sequence[Dns] | Sequence[Flow],
        which: Sequence[int],
        at_ms: Sequence[int],
        whos: Sequence[Who],
        who: Sequence[int],
        source: bytes = b"",
        seq: int = 0,
        ports: Sequence[int] = (),
    ) -> None:
        """Take look-ups (with `ports`: flows) that came as columns: which template, when, which of `whos` asked."""
        self._pending.add_folded(templates, which, at_ms, whos, who, ports)
        self._mark(source, seq)

    def mark(self, source: bytes, seq: int) -> None:
        """Remember a number with the next commit, as for a frame; readers of the ring keep their places so."""
        self._new_marks[source] = seq

    def commit(self) -> None:
        """Everything added so far is on flash when this returns. Raises: StorageError; then all of it still waits."""
        while self._unsent is not None or len(self._pending) or self._new_marks:
            store = self._writable()
            if self._unsent is None:
                self._unsent = self._take_pending()
            self._send(store, self._unsent)
            self._unsent = None

    def tick(self, now: Now) -> list[Note]:
        """Begin a new day, seal old ones, let the oldest go. Returns what was done, for the record.

        Raises: StorageError.
        """
        store = self._writable()
        if not store.is_there():
            self._doubt("its file was taken away or replaced while it was written")
            self._retry_at = 0
            store = self._writable()
        failed: StorageError | None = None
        if store.is_full(now):
            try:
                self.commit()
                store.rotate()
            except StorageError as error:
                failed = error
        notes = store.tick(now)  # a full disk is no reason not to make room
        if failed is not None:
            store.notes[:0] = notes
            raise failed
        return notes

    def is_busy(self, now: Now) -> bool:
        """Is a child at work, or has one to be begun by the next tick?"""
        return self._store is not None and self._store.is_busy(now)

    def close(self) -> None:
        """Commit and close. Raises: StorageError."""
        try:
            self._thin(self._clock.read(), is_last=True)
            self.commit()
        finally:
            store, self._store = self._store, None
            if store is not None:
                store.close()

    # --- reading -----------------------------------------------------------------------------------------------

    def query(self, wanted: Filter) -> Iterator[Found | None]:
        """As `storage.reader.Reader.query`; a segment that cannot be read is told on the maintenance log."""
        return self._opened().reader.query(wanted)

    def names(self, wanted: Filter) -> Iterator[Visited | None]:
        """As `storage.reader.Reader.names`."""
        return self._opened().reader.names(wanted)

    def visitors(self, domain: str, since_ms: int = 0, until_ms: int = 1 << 62) -> Iterator[Visitor | None]:
        """As `storage.reader.Reader.visitors`."""
        return self._opened().reader.visitors(domain, since_ms, until_ms)

    def store(self) -> Store:
        """The segments themselves, for a cursor. Raises: StorageError."""
        return self._opened()

    def verify(self) -> Iterator[int]:
        """As `storage.verify.check`, over this ring while it is open."""
        return self._opened().verify()

    def holds(self) -> tuple[Hold, ...]:
        """Orders to keep records past their time. Raises: StorageError."""
        return self._opened().holds.active

    def place_hold(self, wanted: Filter, reason: str, actor: str) -> Hold:
        """As `storage.store.Store.place_hold`."""
        return self._opened().place_hold(wanted, reason, actor)

    def lift_hold(self, number: int) -> tuple[Hold, int]:
        """As `storage.store.Store.lift_hold`."""
        return self._opened().lift_hold(number)

    def keep_days(self, promised_days: int, maximum_days: int) -> None:
        """Another configuration is in force. What is too old by it goes with the next tick."""
        self._options = self._options._replace(promised_days=promised_days, maximum_days=maximum_days)
        if self._store is not None:
            self._store.change(self._options)

    def status(self) -> dict[str, object]:
        """For people and heartbeats."""
        waiting = len(self._pending) + (self._unsent.records if self._unsent is not None else 0)
        mine = {"trouble": self.trouble, "waiting": waiting, **self.counters}
        return mine if self._store is None else {**self._store.status(), **mine, **self._store.counters}

    # --- inside ------------------------------------------------------------------------------------------------

    def _opened(self) -> Store:
        """The storage, to be read. Raises: StorageError."""
        return self._store if self._store is not None else self._writable()

    def _writable(self) -> Store:
        """The storage; tried again now and then if it refused. Raises: StorageError."""
        if self._store is not None and not self._is_doubtful:
            return self._store
        now_ms = self._clock.read().boottime_ms
        if now_ms < self._retry_at:
            raise StorageError(self.trouble)
        self._retry_at = now_ms + REOPEN_MS
        if self._store is not None:
            self._known = self._store.known()
            store, self._store = self._store, None
            try:
                store.close()
            except StorageError:
                pass  # that it is in doubt is why
        return self._open()

    def _open(self) -> Store:
        try:
            store = Store(self._directory, self._clock, self._options, self._known)
        except StorageError as error:
            self.trouble = str(error)
            raise
        if self.trouble:
            self.counters["reopened"] += 1
        self._store, self._is_doubtful, self.trouble = store, False, ""
        if self._unsent is not None and self._tried and store.segment.head == self._tried:
            # The storage said no, and yet it is there: the power of a disk may go between the two.
            self._unsent, self._tried = None, b""
        return store

    def _doubt(self, why: str) -> None:
        self.trouble, self._is_doubtful = why, True
        self._retry_at = self._clock.read().boottime_ms + REOPEN_MS

    def _send(self, store: Store, batch: _Packed) -> None:
        segment = store.segment
        self._tried = (
            link(segment.head, segment.number, segment.next_seq, batch.records, batch.sample, batch.data)
            if batch.records
            else b""
        )
        try:
            store.append(batch.records, batch.sample, *batch.span, batch.data, batch.marks)
        except FullError as error:
            self.trouble = str(error)
            raise
        except StorageError as error:
            self._doubt(str(error))
            raise
        self.trouble = ""
        self.counters["events"] += batch.records
        self.counters["commits"] += 1
        self.counters["committed_bytes"] += len(batch.data)

    def _take_pending(self) -> _Packed:
        now = self._clock.read()
        self._thin(now)
        columns = self._pending
        if self._given_up is not None:
            lost, from_ms, to_ms = self._given_up
            columns.add((Gap(now.boottime_ms, "ring", lost, from_ms, to_ms, "storage did not take them"),))
        sample = Sample(self._clock.boot_id, now.boottime_ms, now.wall_ms, now.synced)
        batch = _Packed(len(columns), sample, columns.span(), pack(columns), self._new_marks)
        self._pending, self._new_marks, self._given_up, self._metered = Columns(), {}, None, 0
        return batch

    def _mark(self, source: bytes, seq: int) -> None:
        if source:
            self._new_marks[source] = seq
        if len(self._pending) > MAX_PENDING:
            self._give_up()

    def _thin(self, now: Now, *, is_last: bool = False) -> None:
        if self._meter is None:
            return
        self._meter.thin(self._pending, self._metered, now.boottime_ms)
        self._metered = len(self._pending.who)
        self._pending.add(self._meter.floods(now.boottime_ms, is_last=is_last))

    def _give_up(self) -> None:
        """The storage has not taken anything for long: the oldest accesses go, the rest stays."""
        lost, from_ms, to_ms = self._pending.take_allowed(len(self._pending) - MAX_PENDING * 3 // 4)
        if not lost:
            return
        self._metered = min(self._metered, len(self._pending.who))
        before, first, last = self._given_up or (0, from_ms, to_ms)
        self._given_up = (before + lost, min(first, from_ms), max(last, to_ms))
        self.counters["given_up"] += lost
