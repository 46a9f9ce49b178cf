"""The segments of a ring: one is appended to, closed ones are sealed, stepped down, unlinked; on flash at every step.

Rule: what `append` returned for is on flash, with its marks, in one transaction. A damaged segment is set aside and
harms no other. Nothing is dropped by a clock that is not set. After an `append` that raised, close this and open
another: SQLite's state after an I/O error is nothing to build on.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain as chain_of
from typing import Final, NamedTuple

from policy.errors import CorruptError, StorageError
from policy.event import Session
from policy.signature import public_key
from storage import retention
from storage.catalogue import BAD, HOLDS, Catalogue, sync_directory
from storage.clock import Clock, Now, Sample
from storage.filter import Filter
from storage.holds import Hold, Holds
from storage.hot import Beginning, Segment, UnbegunError, path_of
from storage.layout import Level
from storage.reader import Found, Reader, held_of, overlaps
from storage.retention import DAY_MS
from storage.sealed import Sealed, open_closed
from storage.upkeep import SECRET, Task, read_secret, remove_unfinished
from storage.verify import check, read_in_turn

EXPIRY_MS: Final = 3_600_000
RETRY_MS: Final = 600_000
"""After a seal that failed: a full disk is not asked every second."""


class Options(NamedTuple):
    """How a ring is to be kept."""

    budget_bytes: int = 112 << 20
    promised_days: int = 60
    maximum_days: int = 0
    seal: bool = False
    """Closed segments become columns at `level`; what docs/ring-format.md says is given up."""
    level: Level = Level.SECOND
    segment_events: int = retention.MOST_EVENTS


class Note(NamedTuple):
    """Something the ring did to itself, for the maintenance log."""

    action: str
    object: str
    result: str


class Known(NamedTuple):
    """What an agent knows of its ring while the files are away."""

    device: int
    number: int
    beginning: Beginning


class Store:
    """One ring directory, open for writing. Only one process may."""

    def __init__(self, directory: str, clock: Clock, options: Options, known: Known | None = None) -> None:
        """`known`: of the store that was open before. Raises: StorageError."""
        self._directory, self._clock, self._options = directory, clock, options
        self.notes: Final[list[Note]] = []
        self._reported: set[int] = set()
        self._expire_at = 0
        self._task: Task | None = None
        self._tasks_from = 0
        self._stuck: set[int] = set()
        """Segments that could not be sealed: they stay as they are until the next start."""
        self._space = (
            retention.usable(options.budget_bytes, options.segment_events) if options.seal else options.budget_bytes
        )
        self._held: dict[int, bool] = {}
        """Has a segment records that a hold names?"""
        self._was_at_risk = False
        self.counters: Final = {"bad_segments": 0, "sealed": 0}
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            self._device = os.stat(directory).st_dev
            if known is not None and known.device != self._device:
                raise StorageError(f"{directory}: another file system than before: is the disk mounted?")
            self._guard_directory()
            remove_unfinished(directory)
        except OSError as error:
            raise StorageError(f"{directory}: {error.strerror}") from None
        self._secret_path = os.path.join(directory, SECRET)
        secret = self._read_secret()
        self.public_key: Final = public_key(secret) if secret else b""
        self.book: Final = Catalogue(directory)
        self._tell_missing()
        self.segment = self._open_last(known)
        self.book.current = self.segment
        self.holds: Final = self._open_holds(secret)
        self.reader: Final = Reader(self.book, self.holds, self._tell_bad)
        self._day = self._last_day()
        self._opened_ms = clock.read().boottime_ms

    def append(self, count: int, sample: Sample, t0: int, t1: int, data: bytes, marks: Mapping[bytes, int]) -> None:
        """As `storage.hot.Segment.append`. Raises: StorageError."""
        self.segment.append(count, sample, t0, t1, data, marks)

    def known(self) -> Known:
        """What is to be remembered of it."""
        segment = self.segment
        marks: Mapping[bytes, int] = {}
        try:
            marks = segment.marks()
        except StorageError:
            pass
        return Known(self._device, segment.number, Beginning(segment.next_seq, segment.head, marks))

    def path_of(self, number: int) -> str:
        """Where a segment lies."""
        return path_of(self._directory, number)

    def is_there(self) -> bool:
        """Is the file that is appended to still the one that lies in the directory?"""
        return self.segment.is_there()

    def is_full(self, now: Now) -> bool:
        """Is it time for the next segment?"""
        return self._is_day_over(now)

    def tick(self, now: Now) -> list[Note]:
        """Seal old segments, let the oldest go. Returns what was done, for the record. Raises: StorageError."""
        if self._task is not None and self._task.is_done():
            self._end_task(now)
        if self._task is None and now.boottime_ms >= self._tasks_from:
            self._begin_task(now)
        if now.synced and now.boottime_ms >= self._expire_at:
            self._expire_at = now.boottime_ms + EXPIRY_MS
            self._expire(now)
        return self.take_notes()

    def take_notes(self) -> list[Note]:
        """What is to be put on record."""
        notes = list(self.notes)
        self.notes.clear()
        return notes

    def is_busy(self, now: Now) -> bool:
        """Is a child at work, or has one to be begun by the next tick?"""
        return self._task is not None or (now.boottime_ms >= self._tasks_from and self._next_task(now) is not None)

    def close(self) -> None:
        """Let go of all files. Raises: StorageError."""
        if self._task is not None:
            self._task.drop()
            self._task = None
        self.holds.close()
        self.segment.close()

    def verify(self) -> Iterator[int]:
        """As `storage.verify.check`, over this ring while it is open."""
        yield from check(chain_of(read_in_turn(self._directory, self.book.closed), (self.segment,)), self.public_key)
        yield from self.holds.check(self.public_key)

    def place_hold(self, wanted: Filter, reason: str, actor: str) -> Hold:
        """Keep what `wanted` names past its time. Raises: ConfigError, StorageError."""
        self._held.clear()
        return self.holds.place(wanted, reason, actor, self._clock.read().wall_ms)

    def lift_hold(self, number: int) -> tuple[Hold, int]:
        """Returns the hold, and how many records went that nothing else keeps. Raises: ConfigError, StorageError."""
        self._held.clear()
        self._expire_at = 0
        return self.holds.lift(number)

    def change(self, options: Options) -> None:
        """Keep the ring in another way from now on."""
        self._options, self._expire_at = options, 0

    def expires_days(self, now: Now) -> float | None:
        """How old records become here: by order, or for want of room; None: nobody can say yet."""
        coming = self._forecast(now)
        days = [self._options.maximum_days] if self._options.maximum_days else []
        return min([*days, *([coming.days] if coming is not None else [])], default=None)

    def status(self) -> dict[str, object]:
        """For people and heartbeats."""
        now = self._clock.read()
        segments = self.book.segments()
        oldest = segments[0].first_ms if segments else self.book.described(self.segment.number).first_ms
        coming = self._forecast(now)
        return {
            "segments": len(self.book.closed) + 1,
            "bytes": self.book.size(),
            "budget_bytes": self._options.budget_bytes,
            "promised_days": self._options.promised_days,
            "oldest_days": round((now.wall_ms - oldest) / DAY_MS, 2) if oldest is not None else 0,
            "days_at_level": _days_at_level(segments, now.wall_ms),
            "forecast": coming._asdict() if coming is not None else {},
            "at_risk": coming is not None and coming.is_at_risk,
            "next": f"{self.segment.number}:{self.segment.next_seq}",
            "head": self.segment.head.hex(),
            "public_key": self.public_key.hex(),
            "holds": len(self.holds.active),
            "unreadable": sorted(self._reported),
        }

    # --- opening -----------------------------------------------------------------------------------------------

    def _guard_directory(self) -> None:
        """Nobody but the agent reads records."""
        mode = os.stat(self._directory).st_mode & 0o777
        if mode & 0o077:
            os.chmod(self._directory, 0o700)
            self.notes.append(Note("storage", self._directory, f"was open to others (mode {mode:o}); closed"))

    def _read_secret(self) -> bytes:
        if not self._options.seal:
            return b""
        try:
            return read_secret(self._secret_path)
        except CorruptError as error:
            os.replace(self._secret_path, self._secret_path + BAD)
            self.notes.append(Note("storage", SECRET, f"set aside, a new key was made: {error}"))
            return read_secret(self._secret_path)

    def _open_holds(self, secret: bytes) -> Holds:
        holds_path = os.path.join(self._directory, HOLDS)
        try:
            return Holds(self._directory, secret)
        except CorruptError as error:
            os.replace(holds_path, holds_path + BAD)
            self.notes.append(Note("storage", os.path.basename(holds_path), f"set aside: {error}"))
            return Holds(self._directory, secret)

    def _tell_missing(self) -> None:
        numbers = self.book.closed
        missing = set(range(numbers[0], numbers[-1])) - set(numbers) if numbers else set()
        for number in sorted(missing)[:100]:
            aside = os.path.exists(path_of(self._directory, number) + BAD)
            self.notes.append(Note("storage", f"segment {number}", "set aside" if aside else "missing"))

    def _tell_bad(self, number: int, why: str) -> None:
        self.counters["bad_segments"] += 1
        if number not in self._reported:
            self._reported.add(number)
            self.notes.append(Note("storage", f"segment {number}", why))

    def _open_last(self, known: Known | None) -> Segment:
        """The newest segment; if it is damaged, it is set aside and a new one begins."""
        closed = self.book.closed
        if known is not None and (not closed or closed[-1] < known.number):
            # What is gone was taken away while we wrote it. The chain goes on from what we know, and shows the hole.
            self.notes.append(Note("storage", f"segment {known.number}", "was taken away while it was written"))
            return self._begun(known.number + 1, known.beginning)
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
                        os.replace(path + ending, path + BAD + ending)
                aside = f"{os.path.basename(path)}{BAD}"
                self.notes.append(Note("storage", f"segment {number}", f"set aside as {aside}: {error}"))
                # Its last sequence number cannot be known: leave room, so that no id is given twice.
                return self._begun(number + 1, Beginning(first_seq=(number + 1) << 32))
        return self._begun(1, Beginning())

    def _opened_again(self, path: str, number: int) -> Segment:
        found = open_closed(path, number) if self._is_sealed(path, number) else None
        if isinstance(found, Sealed):
            # The open segment is gone; what is sealed stays, and the chain goes on from it.
            found.close()
            self.book.closed.append(number)
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
        for number in self.book.closed:
            path = path_of(self._directory, number)
            # A journal is what is left of the change from WAL to a plain file; a reader may not roll it back.
            if os.path.exists(path + "-wal") or os.path.exists(path + "-journal"):
                try:
                    Segment(path, number, is_open=True).close(is_final=True)
                except StorageError as error:
                    self.notes.append(Note("storage", f"segment {number}", str(error)))

    def _last_day(self) -> str:
        day = ""
        for sample in self.segment.samples():
            if sample.synced:
                day = max(day, _day_of(sample.wall_ms))
        return day

    def _open_events(self) -> int:
        return self.segment.next_seq - self.segment.first_seq

    def _is_day_over(self, now: Now) -> bool:
        if not self._open_events():
            self._day = _day_of(now.wall_ms) if now.synced else self._day
            self._opened_ms = now.boottime_ms
            return False
        if self._open_events() >= self._options.segment_events:
            return True
        if not now.synced:
            return now.boottime_ms - self._opened_ms > DAY_MS
        today = _day_of(now.wall_ms)
        if not self._day:
            self._day = today
        return today > self._day  # a clock that is put back does not begin a day again

    def rotate(self) -> None:
        """Begin the next segment. Raises: StorageError; then the old one is still appended to."""
        old, number = self.segment, self.segment.number + 1
        beginning = Beginning(old.next_seq, old.head, old.marks())
        new = Segment(path_of(self._directory, number), number, is_open=True, beginning=beginning)
        sync_directory(self._directory)
        now = self._clock.read()
        self.segment = self.book.current = new
        self.book.closed.append(old.number)
        self._day = _day_of(now.wall_ms) if now.synced else ""
        self._opened_ms = now.boottime_ms
        self._expire_at = 0
        old.close(is_final=True)

    def _next_task(self, now: Now) -> tuple[int, Level, bool] | None:
        """Seal the oldest segment that is not; else, if the ring is too large, take one a step down the ladder."""
        if not self._options.seal:
            return None
        for segment in self.book.segments():
            if segment.level is None and segment.events and segment.number not in self._stuck:
                return segment.number, self._options.level, False
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
            self.notes.append(Note("storage", f"segment {number}", str(error)))

    def _end_task(self, now: Now) -> None:
        task, self._task = self._task, None
        assert task is not None
        number, what = task.number, "step down" if task.is_sealed else "seal"
        if number not in self.book.closed:  # its time was over meanwhile
            task.drop()
            return
        try:
            task.take()
            sync_directory(self._directory)
        except StorageError as error:
            self.notes.append(Note("storage", f"segment {number}", f"{what}: {error}"))
            if isinstance(error, CorruptError):
                self._stuck.add(number)  # it stays as it is; the other records in it can still be asked for
            else:
                self._tasks_from = now.boottime_ms + RETRY_MS
            return
        self.book.changed(number)
        self._expire_at = 0
        if task.is_sealed:
            self.notes.append(Note("retention", f"segment {number}", f"kept by {task.level.name.lower()} from now on"))
        else:
            self.counters["sealed"] += 1

    def _next_step(self, now: Now) -> retention.Unlink | retention.Relevel | None:
        segments = [each._replace(is_held=self._is_held(each)) for each in self.book.segments()]
        waiting = [s for s in segments if s.level is None and s.events and s.number not in self._stuck]
        return retention.next_step(
            segments,
            self._space - self.book.size_aside(),
            now.wall_ms,
            self._options.promised_days,
            self._options.maximum_days,
            is_sealing=self._options.seal and bool(waiting),
        )

    def _is_held(self, segment: retention.Segment) -> bool:
        """Does a hold name a record of it? Then it loses no detail while it is there."""
        if not self.holds.active or segment.level is None:
            return False
        if segment.number not in self._held:
            self._held[segment.number] = any(True for _ in self._named(segment.number))
        return self._held[segment.number]

    def _named(self, number: int) -> Iterator[Found]:
        """Records of a segment that any hold names. One that cannot be read names none."""
        for hold in self.holds.active:
            wanted = hold.filter()
            if not overlaps(self.book.described(number), wanted):
                continue
            try:
                yield from self.reader.of_segment(number, wanted)
            except StorageError as error:
                self._tell_bad(number, str(error))

    def _learn_sessions(self) -> None:
        """Whose sessions they are that holds on an account or a phone name."""
        learnt = {}
        for hold in self.holds.active:
            if hold.account or hold.phone_index:
                found = self.reader.query(hold.filter()._replace(kind=Session, sessions=None))
                learnt[hold.number] = [f.event.session for f in found if f and isinstance(f.event, Session)]
        if learnt:
            self.holds.learn(learnt)

    def _expire(self, now: Now) -> None:
        self._learn_sessions()
        self._forget_bad(now)
        for number in [number for number in self.book.closed if not os.path.exists(path_of(self._directory, number))]:
            self.book.unlink(number)
            self.notes.append(Note("storage", f"segment {number}", "was taken away"))
        while isinstance(step := self._next_step(now), retention.Unlink):
            kept = {(found.seq, found.part): found for found in self._named(step.number)}
            if kept:
                self.holds.keep(step.number, [held_of(found) for found in kept.values()])
                self.notes.append(Note("hold", f"segment {step.number}", f"{len(kept)} records kept past their time"))
            self.book.unlink(step.number)
            self.notes.append(Note("retention", f"segment {step.number}", step.why))
        coming = self._forecast(now)
        is_at_risk = coming is not None and coming.is_at_risk
        if is_at_risk and not self._was_at_risk and coming is not None:
            self.notes.append(Note("retention-at-risk", "ring", f"{coming.days} of {self._options.promised_days} days"))
        self._was_at_risk = is_at_risk

    def _forget_bad(self, now: Now) -> None:
        """What was set aside is kept for whoever can mend it, and no longer than a record is."""
        days = self._options.maximum_days or self._options.promised_days
        for name in self.book.names_aside():
            path = os.path.join(self._directory, name)
            try:
                if now.wall_ms - os.stat(path).st_mtime_ns // 1_000_000 <= days * DAY_MS:
                    continue
                os.unlink(path)
            except OSError:
                continue
            self.notes.append(Note("retention", name, f"set aside, expired after {days} days"))

    def _forecast(self, now: Now) -> retention.Forecast | None:
        return retention.forecast(
            self.book.segments(),
            self._open_events(),
            self._space,
            now.wall_ms,
            self._options.promised_days,
            self._options.level,
        )


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
