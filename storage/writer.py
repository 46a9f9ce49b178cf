"""The ring: one writer of records, a segment file per day, the oldest unlinked when its time is over.

Order of calls: `add` at any time; `commit` to have everything added on flash; `tick` once a second; `query` at any
time, stepped between the others; `close`.
Rule: what `commit` returned for is on flash, with the marks of the frames it came in, in one transaction. A segment
that is damaged is set aside and harms no other. Nothing is dropped by a clock that is not set.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain as chain_of
from typing import Final, NamedTuple

from policy.errors import CorruptError, StorageError
from policy.event import Dns, Event, Flow, Gap
from storage import chain
from storage.batch import pack, unpack
from storage.clock import Clock, Now, Quality, Sample, Timeline
from storage.filter import Filter
from storage.hot import Batch, Beginning, Segment, UnbegunError, numbers_in, path_of

DAY_MS: Final = 86_400_000
MAX_PENDING: Final = 100_000
"""Records that wait while the storage does not take them, some 30 MB. Beyond it the oldest accesses are given up."""
EXPIRY_MS: Final = 3_600_000
SEGMENT_BYTES: Final = 512
"""What is added to a segment's size for its name and inode."""


class Found(NamedTuple):
    """One record of an answer."""

    segment: int
    seq: int
    wall_ms: int
    quality: Quality
    event: Event
    offset_ms: int
    """Wall minus time since boot, for the other times in the record."""


class Note(NamedTuple):
    """Something the ring did to itself, for the maintenance log."""

    action: str
    object: str
    result: str


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
    ) -> None:
        """Raises: StorageError."""
        self._directory = directory
        self._clock = clock
        self._budget = budget_bytes
        self._promised_days = promised_days
        self._maximum_days = maximum_days
        self._pending: list[Event] = []
        self._new_marks: dict[bytes, int] = {}
        self._given_up: tuple[int, int, int] | None = None
        """Records, from, to: lost because the storage did not take them."""
        self._notes: list[Note] = []
        self._expire_at = 0
        self._ages: dict[int, tuple[int, Quality]] = {}
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._closed = numbers_in(directory)
        self._segment = self._open_last()
        self._day = self._last_day()
        self._opened_ms = clock.read().boottime_ms
        self.counters: Final = {"events": 0, "commits": 0, "bytes": 0, "given_up": 0, "bad_segments": 0}

    # --- writing -----------------------------------------------------------------------------------------------

    @property
    def head(self) -> bytes:
        """The last link of the chain: to be anchored where this router cannot reach it."""
        return self._segment.head

    def marks(self) -> Mapping[bytes, int]:
        """Source -> sequence number of the last frame that is on flash."""
        return self._segment.marks()

    def forget(self, sources: list[bytes]) -> None:
        """Sources that will never send again. Raises: StorageError."""
        for source in sources:
            self._new_marks.pop(source, None)
        self._segment.forget_marks(sources)

    @property
    def last_commit_ms(self) -> int:
        """Time since boot of the last commit that is on flash; 0: there is none of this boot."""
        last = self._segment.last_sample()
        return last.boottime_ms if last is not None and last.boot == self._clock.boot_id else 0

    def add(self, events: Sequence[Event], source: bytes = b"", seq: int = 0) -> None:
        """Take records; `source` and `seq` name the frame they came in, if they came in one."""
        self._pending += events
        if source:
            self._new_marks[source] = seq
        if len(self._pending) > MAX_PENDING:
            self._give_up()

    def commit(self) -> None:
        """Everything added so far is on flash when this returns. Raises: StorageError; then all of it still waits."""
        if not self._pending and not self._new_marks:
            return
        now = self._clock.read()
        events = self._pending
        if self._given_up is not None:
            lost, from_ms, to_ms = self._given_up
            events = [*events, Gap(now.boottime_ms, "ring", lost, from_ms, to_ms, "storage did not take them")]
        sample = Sample(self._clock.boot_id, now.boottime_ms, now.wall_ms, now.synced)
        times = [event.at_ms for event in events]
        data = pack(events)
        t0, t1 = (min(times), max(times)) if times else (0, 0)
        self._segment.append(len(events), sample, t0, t1, data, self._new_marks)
        self._pending, self._new_marks, self._given_up = [], {}, None
        self.counters["events"] += len(events)
        self.counters["commits"] += 1
        self.counters["bytes"] += len(data)

    def tick(self, now: Now) -> list[Note]:
        """Begin a new day, let old ones go. Returns what was done, for the record. Raises: StorageError."""
        if self._is_day_over(now):
            self._rotate()
        if now.synced and now.boottime_ms >= self._expire_at:
            self._expire_at = now.boottime_ms + EXPIRY_MS
            self._expire(now)
        notes, self._notes = self._notes, []
        return notes

    def close(self) -> None:
        """Commit and close. Raises: StorageError."""
        self.commit()
        self._segment.close()

    # --- reading -----------------------------------------------------------------------------------------------

    def query(self, wanted: Filter) -> Iterator[Found | None]:
        """Records that match, oldest first. None now and then: nothing found yet, let others have their turn.

        A segment that cannot be read is left out, and told on the maintenance log.
        """
        numbers = [*self._closed, self._segment.number]
        for place, number in enumerate(numbers):
            successor = numbers[place + 1] if place + 1 < len(numbers) else None
            try:
                yield from self._query_segment(number, successor, wanted)
            except (CorruptError, StorageError) as error:
                self.counters["bad_segments"] += 1
                self._notes.append(Note("storage", f"segment {number}", str(error)))

    def verify(self) -> Iterator[int]:
        """As `check`, over this ring while it is open."""
        yield from check(chain_of(_read_in_turn(self._directory, self._closed), (self._segment,)))

    def status(self) -> dict[str, object]:
        """For people and heartbeats."""
        oldest = self._age_of(self._closed[0] if self._closed else self._segment.number)
        now = self._clock.read()
        return {
            "segments": len(self._closed) + 1,
            "bytes": self._size(),
            "budget_bytes": self._budget,
            "promised_days": self._promised_days,
            "oldest_days": round((now.wall_ms - oldest[0]) / DAY_MS, 2) if oldest else 0,
            "next": f"{self._segment.number}:{self._segment.next_seq}",
            "head": self._segment.head.hex(),
            "waiting": len(self._pending),
            **self.counters,
        }

    # --- inside ------------------------------------------------------------------------------------------------

    def _open_last(self) -> Segment:
        """The newest segment; if it is damaged, it is set aside and a new one begins."""
        while self._closed:
            number = self._closed.pop()
            path = path_of(self._directory, number)
            try:
                segment = Segment(path, number, is_open=True)
            except UnbegunError:
                _remove(path)
                continue
            except CorruptError as error:
                for ending in ("", "-wal", "-shm"):
                    if os.path.exists(path + ending):
                        os.replace(path + ending, path + ".bad" + ending)
                aside = f"{os.path.basename(path)}.bad"
                self._notes.append(Note("storage", f"segment {number}", f"set aside as {aside}: {error}"))
                # Its last sequence number cannot be known: leave room, so that no id is given twice.
                beginning = Beginning(first_seq=(number + 1) << 32)
                segment = Segment(path_of(self._directory, number + 1), number + 1, is_open=True, beginning=beginning)
            self._finish_closing()
            return segment
        return Segment(path_of(self._directory, 1), 1, is_open=True, beginning=Beginning())

    def _finish_closing(self) -> None:
        """The power may have gone between the beginning of a segment and the closing of the one before it."""
        for number in self._closed:
            path = path_of(self._directory, number)
            # A journal is what is left of the change from WAL to a plain file; a reader may not roll it back.
            if os.path.exists(path + "-wal") or os.path.exists(path + "-journal"):
                try:
                    Segment(path, number, is_open=True).close(is_final=True)
                except StorageError as error:
                    self._notes.append(Note("storage", f"segment {number}", str(error)))

    def _last_day(self) -> str:
        day = ""
        for sample in self._segment.samples():
            if sample.synced:
                day = max(day, _day_of(sample.wall_ms))
        return day

    def _is_day_over(self, now: Now) -> bool:
        if self._segment.next_seq == self._segment.first_seq:
            self._day = _day_of(now.wall_ms) if now.synced else self._day
            self._opened_ms = now.boottime_ms
            return False
        if not now.synced:
            return now.boottime_ms - self._opened_ms > DAY_MS
        today = _day_of(now.wall_ms)
        if not self._day:
            self._day = today
        return today > self._day  # a clock that is put back does not begin a day again

    def _rotate(self) -> None:
        self.commit()
        old, number = self._segment, self._segment.number + 1
        beginning = Beginning(old.next_seq, old.head, old.marks())
        new = Segment(path_of(self._directory, number), number, is_open=True, beginning=beginning)
        _sync_directory(self._directory)
        now = self._clock.read()
        self._segment = new
        self._closed.append(old.number)
        self._day = _day_of(now.wall_ms) if now.synced else ""
        self._opened_ms = now.boottime_ms
        old.close(is_final=True)

    def _expire(self, now: Now) -> None:
        while self._closed:
            oldest = self._closed[0]
            age = self._age_of(oldest, last=True)
            if age is None or age[1] == Quality.UNSYNCED:
                return  # its age is not known: it stays until the budget needs its place
            days = (now.wall_ms - age[0]) / DAY_MS
            if self._maximum_days and days > self._maximum_days:
                self._unlink(oldest, f"expired after {self._maximum_days} days")
            elif self._size() > self._budget:
                short = (
                    "" if days > self._promised_days else f": only {days:.1f} of {self._promised_days} days are kept"
                )
                self._unlink(oldest, f"over the budget{short}")
            else:
                return

    def _unlink(self, number: int, why: str) -> None:
        try:
            os.unlink(path_of(self._directory, number))
        except OSError as error:
            raise StorageError(f"segment {number}: {error.strerror}") from None
        self._closed.remove(number)
        self._ages.pop(number, None)
        self._notes.append(Note("retention", f"segment {number}", why))

    def _query_segment(self, number: int, successor: int | None, wanted: Filter) -> Iterator[Found | None]:
        with self._reading(number) as segment:
            timeline = self._timeline(segment, successor)
            for batch in segment.batches():
                offset, quality = timeline.wall(0, batch.sample)
                if batch.t1 + offset < wanted.since_ms or batch.t0 + offset >= wanted.until_ms:
                    continue
                for place, event in enumerate(unpack(batch.data)):
                    wall_ms = event.at_ms + offset
                    if wanted.since_ms <= wall_ms < wanted.until_ms and wanted.matches(event):
                        yield Found(number, batch.seq + place, wall_ms, quality, event, offset)
                yield None

    @contextmanager
    def _reading(self, number: int) -> Iterator[Segment]:
        """A segment to read: the open one through its own connection, for nobody else may open it."""
        if number == self._segment.number:
            yield self._segment
            return
        segment = Segment(path_of(self._directory, number), number, is_open=False)
        try:
            yield segment
        finally:
            segment.close()

    def _timeline(self, segment: Segment, successor: int | None) -> Timeline:
        """The clock readings that bear on a segment: its own, and the next one's, for a boot that goes on there."""
        timeline, unsynced = Timeline(), False
        for sample in segment.samples():
            timeline.add(sample)
            unsynced = unsynced or not sample.synced
        if unsynced and successor is not None:
            is_current = successor == self._segment.number
            after = (
                self._segment if is_current else Segment(path_of(self._directory, successor), successor, is_open=False)
            )
            for sample in after.samples():
                timeline.add(sample)
            if not is_current:
                after.close()
        return timeline

    def _age_of(self, number: int, *, last: bool = False) -> tuple[int, Quality] | None:
        """Wall time of a segment's first (or last) batch. None: it is empty or cannot be read."""
        if number in self._ages and last:
            return self._ages[number]
        timeline, chosen = Timeline(), None
        try:
            with self._reading(number) as segment:
                for sample in segment.samples():
                    timeline.add(sample)
                    if last or chosen is None:
                        chosen = sample
        except (CorruptError, StorageError):
            return None
        if chosen is None:
            return None
        found = timeline.wall(chosen.boottime_ms, chosen)
        if last and number != self._segment.number:
            self._ages[number] = found
        return found

    def _size(self) -> int:
        total = 0
        try:
            with os.scandir(self._directory) as entries:
                for entry in entries:
                    total += entry.stat().st_size + SEGMENT_BYTES
        except OSError:
            pass
        return total

    def _give_up(self) -> None:
        """The storage has not taken anything for long: the oldest accesses go, the rest stays."""
        kept: list[Event] = []
        excess = len(self._pending) - MAX_PENDING * 3 // 4
        lost, from_ms, to_ms = self._given_up or (0, self._pending[0].at_ms, self._pending[0].at_ms)
        for event in self._pending:
            if excess > 0 and isinstance(event, Dns | Flow) and event.verdict == 0:
                excess -= 1
                lost, from_ms, to_ms = lost + 1, min(from_ms, event.at_ms), max(to_ms, event.at_ms)
            else:
                kept.append(event)
        self._pending = kept
        self._given_up = (lost, from_ms, to_ms)
        self.counters["given_up"] = lost


def verify(directory: str) -> int:
    """Check a ring that no agent has open. Returns how many batches it has, all of them right.

    Raises: CorruptError, naming the first bad place; StorageError if it cannot be read at all.
    """
    return sum(1 for _ in check(_read_in_turn(directory, numbers_in(directory))))


def _read_in_turn(directory: str, numbers: Iterable[int]) -> Iterator[Segment]:
    """Closed segments, each shut before the next is opened: one left open would lock the ring's next writer out."""
    for number in tuple(numbers):
        segment = Segment(path_of(directory, number), number, is_open=False)
        try:
            yield segment
        finally:
            segment.close()


def check(segments: Iterable[Segment]) -> Iterator[int]:
    """Follow the chain through segments, oldest first; yields the sequence number of each batch that is right.

    Raises: CorruptError, naming the first bad place.
    """
    head: bytes | None = None
    next_seq = 0
    for segment in segments:
        where = f"segment {segment.number}"
        if head is not None and (segment.before != head or segment.first_seq != next_seq):
            raise CorruptError(f"{where}: does not follow the one before it")
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
    times = [event.at_ms for event in unpack(batch.data)]
    if len(times) != batch.records or (min(times), max(times)) != (batch.t0, batch.t1):
        raise CorruptError(f"segment {number}: batch {batch.seq}: its time span or count is not what was written")
    return linked


def _day_of(wall_ms: int) -> str:
    """The local day: people ask by it."""
    return datetime.datetime.fromtimestamp(wall_ms / 1000).strftime("%Y-%m-%d")


def _remove(path: str) -> None:
    for ending in ("-wal", "-shm", "-journal", ""):
        try:
            os.unlink(path + ending)
        except FileNotFoundError:
            pass


def _sync_directory(directory: str) -> None:
    try:
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(f"{directory}: {error.strerror}") from None
