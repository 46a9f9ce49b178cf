"""The ring: one writer of records, a segment file per day, sealed when it is over, unlinked when its time is.

Order of calls: `add` at any time; `commit` to have everything added on flash; `tick` once a second; `query` at any
time, stepped between the others; `close`.
Rule: what `commit` returned for is on flash, with the marks of the frames it came in, in one transaction. A segment
that is damaged is set aside and harms no other. Nothing is dropped by a clock that is not set.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain as chain_of
from typing import Final, NamedTuple

from policy.errors import CorruptError, StorageError
from policy.event import Dns, Event, Flow, Gap
from policy.signature import public_key
from storage import retention
from storage.batch import Columns, Who, pack, unpack
from storage.catalogue import Catalogue, sync_directory
from storage.clock import Clock, Now, Quality, Sample, Timeline
from storage.filter import Filter
from storage.flood import Meter
from storage.hot import Beginning, Segment, UnbegunError, path_of
from storage.layout import Level
from storage.retention import DAY_MS
from storage.sealed import Sealed, open_closed
from storage.upkeep import SECRET, Task, read_secret, remove_unfinished
from storage.verify import check, read_in_turn

MAX_PENDING: Final = 200_000
"""Records that wait while the storage does not take them, some 20 MB. Beyond it the oldest accesses are given up."""
EXPIRY_MS: Final = 3_600_000
RETRY_MS: Final = 600_000
"""After a seal that failed: a full disk is not asked every second."""
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
    part: int = 0
    """0: `seq` is the number it was committed with. Else 1 + level: it is folded, and `seq` counts these."""
    times: int = 1
    """So many such events in the `resolution_ms` from `wall_ms` on."""
    resolution_ms: int = 1


class Visited(NamedTuple):
    """One name of an answer to "where did he go"."""

    name: str
    times: int
    first_ms: int
    last_ms: int


class Visitor(NamedTuple):
    """One client of an answer to "who was there"."""

    segment: int
    client: bytes
    mac: bytes
    from_ms: int | None
    to_ms: int | None


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
        seal: bool = False,
        level: Level = Level.SECOND,
        segment_events: int = retention.MOST_EVENTS,
        meter: Meter | None = None,
    ) -> None:
        """`seal`: closed segments become columns at `level`; what docs/ring-format.md says is given up.

        `meter`: what one client may fill; None: as much as it likes.

        Raises: StorageError.
        """
        self._directory = directory
        self._clock = clock
        self._budget = budget_bytes
        self._promised_days = promised_days
        self._maximum_days = maximum_days
        self._seals, self._level, self._segment_events = seal, level, segment_events
        self._space = retention.usable(budget_bytes, segment_events) if seal else budget_bytes
        self._pending = Columns()
        self._meter = meter
        self._metered = 0
        """How many of the pending accesses have been counted against their clients' shares."""
        self._new_marks: dict[bytes, int] = {}
        self._given_up: tuple[int, int, int] | None = None
        """Records, from, to: lost because the storage did not take them."""
        self._notes: list[Note] = []
        self._expire_at = 0
        self._task: Task | None = None
        self._tasks_from = 0
        self._stuck: set[int] = set()
        """Segments that could not be sealed: they stay as they are until the next start."""
        self._was_at_risk = False
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            remove_unfinished(directory)
        except OSError as error:
            raise StorageError(f"{directory}: {error.strerror}") from None
        self._secret_path = os.path.join(directory, SECRET)
        self.public_key: Final = public_key(read_secret(self._secret_path)) if seal else b""
        self._book = Catalogue(directory)
        self._segment = self._open_last()
        self._book.current = self._segment
        self._day = self._last_day()
        self._opened_ms = clock.read().boottime_ms
        self.counters: Final = {
            "events": 0,
            "commits": 0,
            "committed_bytes": 0,
            "given_up": 0,
            "bad_segments": 0,
            "sealed": 0,
        }

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
        self._pending.add(events)
        self._mark(source, seq)

    def add_folded(
        self,
        templates: Sequence[Dns],
        which: Sequence[int],
        at_ms: Sequence[int],
        whos: Sequence[Who],
        who: Sequence[int],
        source: bytes = b"",
        seq: int = 0,
    ) -> None:
        """Take look-ups that came as columns: which template, when, and which of `whos` asked."""
        self._pending.add_folded(templates, which, at_ms, whos, who)
        self._mark(source, seq)

    def _mark(self, source: bytes, seq: int) -> None:
        if source:
            self._new_marks[source] = seq
        if len(self._pending) > MAX_PENDING:
            self._give_up()

    def commit(self) -> None:
        """Everything added so far is on flash when this returns. Raises: StorageError; then all of it still waits."""
        if not len(self._pending) and not self._new_marks:
            return
        now = self._clock.read()
        columns = self._pending
        self._thin(now)
        gap = None
        if self._given_up is not None:
            lost, from_ms, to_ms = self._given_up
            gap = Gap(now.boottime_ms, "ring", lost, from_ms, to_ms, "storage did not take them")
            columns.add((gap,))
        sample = Sample(self._clock.boot_id, now.boottime_ms, now.wall_ms, now.synced)
        data = pack(columns)
        try:
            self._segment.append(len(columns), sample, *columns.span(), data, self._new_marks)
        except StorageError:
            if gap is not None:
                columns.others.pop()
            raise
        self._pending, self._new_marks, self._given_up, self._metered = Columns(), {}, None, 0
        self.counters["events"] += len(columns)
        self.counters["commits"] += 1
        self.counters["committed_bytes"] += len(data)

    def _thin(self, now: Now, *, is_last: bool = False) -> None:
        if self._meter is None:
            return
        self._meter.thin(self._pending, self._metered, now.boottime_ms)
        self._metered = len(self._pending.who)
        self._pending.add(self._meter.floods(now.boottime_ms, is_last=is_last))

    def tick(self, now: Now) -> list[Note]:
        """Begin a new day, seal old ones, let the oldest go. Returns what was done, for the record.

        Raises: StorageError.
        """
        if self._is_day_over(now):
            self._rotate()
        if self._task is not None and self._task.is_done():
            self._end_task(now)
        if self._task is None and now.boottime_ms >= self._tasks_from:
            self._begin_task(now)
        if now.synced and now.boottime_ms >= self._expire_at:
            self._expire_at = now.boottime_ms + EXPIRY_MS
            self._expire(now)
        notes, self._notes = self._notes, []
        return notes

    def is_busy(self, now: Now) -> bool:
        """Is a child at work, or has one to be begun by the next tick?"""
        return self._task is not None or (now.boottime_ms >= self._tasks_from and self._next_task(now) is not None)

    def close(self) -> None:
        """Commit and close. Raises: StorageError."""
        if self._task is not None:
            self._task.drop()
            self._task = None
        self._thin(self._clock.read(), is_last=True)
        self.commit()
        self._segment.close()

    # --- reading -----------------------------------------------------------------------------------------------

    def query(self, wanted: Filter) -> Iterator[Found | None]:
        """Records that match, oldest first. None now and then: nothing found yet, let others have their turn.

        A segment that cannot be read is left out, and told on the maintenance log.
        """
        for number in [*self._book.closed, self._segment.number]:
            try:
                if number != self._segment.number and not _overlaps(self._book.described(number), wanted):
                    continue
                yield from self._query_segment(number, wanted)
            except (CorruptError, StorageError) as error:
                self.counters["bad_segments"] += 1
                self._notes.append(Note("storage", f"segment {number}", str(error)))

    def names(self, wanted: Filter) -> Iterator[Visited | None]:
        """What names the accesses that match went to, most frequent first. None now and then, as `query`."""
        found: dict[str, list[int]] = {}
        for record in self.query(wanted):
            if record is None:
                yield None
            elif isinstance(record.event, Dns | Flow):
                entry = found.setdefault(record.event.name, [0, record.wall_ms, record.wall_ms])
                entry[0] += record.times
                entry[1], entry[2] = min(entry[1], record.wall_ms), max(entry[2], record.wall_ms)
        for name, (times, first_ms, last_ms) in sorted(found.items(), key=lambda item: (-item[1][0], item[0])):
            yield Visited(name, times, first_ms, last_ms)

    def visitors(self, domain: str, since_ms: int = 0, until_ms: int = 1 << 62) -> Iterator[Visitor | None]:
        """Which clients had an access to `domain` or below that was let through, by segment. None now and then.

        From the postings of sealed segments, without a look at any record; so the times are the segment's.
        """
        wanted = Filter(since_ms=since_ms, until_ms=until_ms, domain=domain, verdict=0)
        for number in [*self._book.closed, self._segment.number]:
            try:
                described = self._book.described(number)
                if number != self._segment.number and not _overlaps(described, wanted):
                    continue
                with self._book.reading(number) as segment:
                    if isinstance(segment, Sealed):
                        clients = segment.visitors(domain)
                    else:
                        clients = set()
                        for found in self._query_segment(number, wanted):
                            if found is None:
                                yield None
                            elif isinstance(found.event, Dns | Flow):
                                clients.add((found.event.client, found.event.mac))
            except (CorruptError, StorageError) as error:
                self.counters["bad_segments"] += 1
                self._notes.append(Note("storage", f"segment {number}", str(error)))
                continue
            for client, mac in sorted(clients):
                yield Visitor(number, client, mac, described.first_ms, described.last_ms)
            yield None

    def verify(self) -> Iterator[int]:
        """As `storage.verify.check`, over this ring while it is open."""
        yield from check(chain_of(read_in_turn(self._directory, self._book.closed), (self._segment,)), self.public_key)

    def status(self) -> dict[str, object]:
        """For people and heartbeats."""
        now = self._clock.read()
        segments = self._book.segments()
        oldest = segments[0].first_ms if segments else self._book.described(self._segment.number).first_ms
        coming = self._forecast(now)
        return {
            "segments": len(self._book.closed) + 1,
            "bytes": self._book.size(),
            "budget_bytes": self._budget,
            "promised_days": self._promised_days,
            "oldest_days": round((now.wall_ms - oldest) / DAY_MS, 2) if oldest is not None else 0,
            "days_at_level": _days_at_level(segments, now.wall_ms),
            "forecast": coming._asdict() if coming is not None else {},
            "at_risk": coming is not None and coming.is_at_risk,
            "next": f"{self._segment.number}:{self._segment.next_seq}",
            "head": self._segment.head.hex(),
            "public_key": self.public_key.hex(),
            "waiting": len(self._pending),
            **self.counters,
        }

    # --- inside ------------------------------------------------------------------------------------------------

    def _open_last(self) -> Segment:
        """The newest segment; if it is damaged, it is set aside and a new one begins."""
        closed = self._book.closed
        while closed:
            number = closed.pop()
            path = path_of(self._directory, number)
            try:
                return self._opened_again(path, number)
            except UnbegunError:
                _remove(path)
            except CorruptError as error:
                for ending in ("", "-wal", "-shm"):
                    if os.path.exists(path + ending):
                        os.replace(path + ending, path + ".bad" + ending)
                aside = f"{os.path.basename(path)}.bad"
                self._notes.append(Note("storage", f"segment {number}", f"set aside as {aside}: {error}"))
                # Its last sequence number cannot be known: leave room, so that no id is given twice.
                return self._begun(number + 1, Beginning(first_seq=(number + 1) << 32))
        return self._begun(1, Beginning())

    def _opened_again(self, path: str, number: int) -> Segment:
        found = open_closed(path, number) if self._is_sealed(path, number) else None
        if isinstance(found, Sealed):
            # The open segment is gone; what is sealed stays, and the chain goes on from it.
            found.close()
            self._book.closed.append(number)
            return self._begun(number + 1, Beginning(found.next_seq + (1 << 32), found.head))
        segment = Segment(path, number, is_open=True)
        self._finish_closing()
        return segment

    def _begun(self, number: int, beginning: Beginning) -> Segment:
        segment = Segment(path_of(self._directory, number), number, is_open=True, beginning=beginning)
        self._finish_closing()
        return segment

    def _is_sealed(self, path: str, number: int) -> bool:
        if os.path.exists(path + "-wal"):
            return False  # a file with a log was being written: only its writer may look at it
        try:
            found = open_closed(path, number)
        except StorageError:
            return False
        found.close()
        return isinstance(found, Sealed)

    def _finish_closing(self) -> None:
        """The power may have gone between the beginning of a segment and the closing of the one before it."""
        for number in self._book.closed:
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

    def _open_events(self) -> int:
        return self._segment.next_seq - self._segment.first_seq

    def _is_day_over(self, now: Now) -> bool:
        if not self._open_events():
            self._day = _day_of(now.wall_ms) if now.synced else self._day
            self._opened_ms = now.boottime_ms
            return False
        if self._open_events() >= self._segment_events:
            return True
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
        sync_directory(self._directory)
        now = self._clock.read()
        self._segment = self._book.current = new
        self._book.closed.append(old.number)
        self._day = _day_of(now.wall_ms) if now.synced else ""
        self._opened_ms = now.boottime_ms
        self._expire_at = 0
        old.close(is_final=True)

    def _next_task(self, now: Now) -> tuple[int, Level, bool] | None:
        """Seal the oldest segment that is not; else, if the ring is too large, take one a step down the ladder."""
        if not self._seals:
            return None
        for segment in self._book.segments():
            if segment.level is None and segment.events and segment.number not in self._stuck:
                return segment.number, self._level, False
        step = self._next_step(now) if now.synced else None
        return (step.number, step.level, True) if isinstance(step, retention.Relevel) else None

    def _begin_task(self, now: Now) -> None:
        wanted = self._next_task(now)
        if wanted is None:
            return
        number, level, is_sealed = wanted
        path = path_of(self._directory, number)
        if os.path.exists(path + "-wal") or os.path.exists(path + "-journal"):
            self._stuck.add(number)  # a log that is left over must not meet another file; the next start looks again
            return
        try:
            self._task = Task(path, number, level, self._secret_path, is_sealed=is_sealed)
        except StorageError as error:
            self._tasks_from = now.boottime_ms + RETRY_MS
            self._notes.append(Note("storage", f"segment {number}", str(error)))

    def _end_task(self, now: Now) -> None:
        task, self._task = self._task, None
        assert task is not None
        number, what = task.number, "step down" if task.is_sealed else "seal"
        if number not in self._book.closed:  # its time was over meanwhile
            task.drop()
            return
        try:
            task.take()
            sync_directory(self._directory)
        except StorageError as error:
            self._notes.append(Note("storage", f"segment {number}", f"{what}: {error}"))
            if isinstance(error, CorruptError):
                self._stuck.add(number)  # it stays as it is; the other records in it can still be asked for
            else:
                self._tasks_from = now.boottime_ms + RETRY_MS
            return
        self._book.changed(number)
        self._expire_at = 0
        if task.is_sealed:
            self._notes.append(Note("retention", f"segment {number}", f"kept by {task.level.name.lower()} from now on"))
        else:
            self.counters["sealed"] += 1

    def _next_step(self, now: Now) -> retention.Unlink | retention.Relevel | None:
        segments = self._book.segments()
        waiting = [s for s in segments if s.level is None and s.events and s.number not in self._stuck]
        return retention.next_step(
            segments,
            self._space,
            now.wall_ms,
            self._promised_days,
            self._maximum_days,
            is_sealing=self._seals and bool(waiting),
        )

    def _expire(self, now: Now) -> None:
        while isinstance(step := self._next_step(now), retention.Unlink):
            self._book.unlink(step.number)
            self._notes.append(Note("retention", f"segment {step.number}", step.why))
        coming = self._forecast(now)
        is_at_risk = coming is not None and coming.is_at_risk
        if is_at_risk and not self._was_at_risk and coming is not None:
            self._notes.append(Note("retention-at-risk", "ring", f"{coming.days} of {self._promised_days} days"))
        self._was_at_risk = is_at_risk

    def _forecast(self, now: Now) -> retention.Forecast | None:
        return retention.forecast(
            self._book.segments(), self._open_events(), self._space, now.wall_ms, self._promised_days, self._level
        )

    def _query_segment(self, number: int, wanted: Filter) -> Iterator[Found | None]:
        with self._book.reading(number) as segment:
            timeline = self._book.timeline(segment)
            if isinstance(segment, Sealed):
                yield from _query_sealed(segment, timeline, wanted)
                return
            for batch in segment.batches():
                offset, quality = timeline.wall(0, batch.sample)
                if batch.t1 + offset < wanted.since_ms or batch.t0 + offset >= wanted.until_ms:
                    continue
                from_ms, to_ms = wanted.since_ms - offset, wanted.until_ms - offset
                for place, event in wanted.select(unpack(batch.data), from_ms, to_ms):
                    yield Found(number, batch.seq + place, event.at_ms + offset, quality, event, offset)
                yield None

    def _give_up(self) -> None:
        """The storage has not taken anything for long: the oldest accesses go, the rest stays."""
        lost, from_ms, to_ms = self._pending.take_allowed(len(self._pending) - MAX_PENDING * 3 // 4)
        if not lost:
            return
        self._metered = min(self._metered, len(self._pending.who))
        before, first, last = self._given_up or (0, from_ms, to_ms)
        self._given_up = (before + lost, min(first, from_ms), max(last, to_ms))
        self.counters["given_up"] = before + lost


def _query_sealed(segment: Sealed, timeline: Timeline, wanted: Filter) -> Iterator[Found | None]:
    walls = [timeline.wall(0, epoch) for epoch in segment.epochs]
    for found in segment.select(wanted, [wall for wall, _ in walls]):
        if found is None:
            yield None
            continue
        offset, quality = walls[found.epoch]
        yield Found(
            segment.number,
            found.seq,
            found.wall_ms,
            quality,
            found.event,
            offset,
            found.part,
            found.times,
            found.resolution_ms,
        )


def _overlaps(segment: retention.Segment, wanted: Filter) -> bool:
    """Can it have a record of that time? One whose age is not known can."""
    if segment.first_ms is None or segment.last_ms is None:
        return True
    # A day's record at the end of the ladder begins before the first moment that it stands for.
    slack = DAY_MS if segment.level is not None and segment.level > Level.SECOND else 1000
    return segment.first_ms - slack < wanted.until_ms and segment.last_ms + slack >= wanted.since_ms


def _days_at_level(segments: Sequence[retention.Segment], now_ms: int) -> dict[str, float]:
    """For each level how many days are kept like that."""
    days: dict[str, float] = {}
    for segment in segments:
        if segment.first_ms is not None and segment.last_ms is not None and segment.level is not None:
            name = segment.level.name.lower()
            days[name] = round(days.get(name, 0) + (segment.last_ms - segment.first_ms) / DAY_MS, 2)
    return days


def _day_of(wall_ms: int) -> str:
    """The local day: people ask by it."""
    return datetime.datetime.fromtimestamp(wall_ms / 1000).strftime("%Y-%m-%d")


def _remove(path: str) -> None:
    for ending in ("-wal", "-shm", "-journal", ""):
        try:
            os.unlink(path + ending)
        except FileNotFoundError:
            pass
