"""What segments a ring has, how old they are, and how their times are to be read. Opens files to look, changes none.

Rule: a segment that cannot be read has no age, and nothing goes because of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from policy.errors import StorageError
from storage import retention
from storage.clock import Quality, Sample, Timeline
from storage.filter import Filter
from storage.hot import Segment, numbers_in, path_of
from storage.sealed import Sealed, open_closed

SEGMENT_BYTES: Final = 512
"""What is added to a segment's size for its name and inode."""
BAD: Final = ".bad"
"""How the name of a file ends that was set aside."""
HOLDS: Final = "holds.db"


class Placed(NamedTuple):
    """How the times of a stretch of records are to be read."""

    offset_ms: int
    """Wall minus time since boot. Of a boot whose clock was never set: as early as it can have been."""
    quality: Quality
    is_anytime: bool = False
    """Its records may be of the time asked for, whatever their own says."""
    not_after_ms: int = 0
    """Of a boot whose clock was never set: a wall time that it was before. 0: not known."""


class Catalogue:
    """The segments of one ring directory."""

    def __init__(self, directory: str) -> None:
        """Raises: StorageError."""
        self.directory: Final = directory
        self.closed: Final = numbers_in(directory)
        """Numbers of closed segments, ascending."""
        self.current: Segment | None = None
        """The one that is written. Nobody else may open it, so it is read through this."""
        self._known: dict[int, retention.Segment] = {}

    @contextmanager
    def reading(self, number: int) -> Iterator[Segment | Sealed]:
        """A segment to read. Raises: StorageError, CorruptError."""
        if self.current is not None and number == self.current.number:
            yield self.current
            return
        segment = open_closed(path_of(self.directory, number), number)
        try:
            yield segment
        finally:
            segment.close()

    def timeline(self, segment: Segment | Sealed) -> Timeline:
        """The clock readings that bear on a segment: its own, and later ones', for a boot that goes on there."""
        timeline, unsynced, boot = Timeline(), False, ""
        for sample in segment.samples():
            timeline.add(sample)
            unsynced, boot = not sample.synced, sample.boot
        numbers = [number for number in self.closed if number > segment.number]
        if self.current is not None and self.current.number > segment.number:
            numbers.append(self.current.number)
        for number in numbers if unsynced else ():
            goes_on = False
            with self.reading(number) as after:
                for sample in after.samples():
                    timeline.add(sample)
                    goes_on = goes_on or sample.boot == boot
                    unsynced = unsynced and not (sample.synced and sample.boot == boot)
            if not goes_on or not unsynced:
                break
        return timeline

    def bounds(self, segment: Segment | Sealed, boot: str) -> tuple[int | None, int | None]:
        """Between what wall times a boot was whose clock was never set: after one synced reading, before another.

        The second is when a later boot began. None: there is no such reading.
        """
        before: int | None = None
        after: int | None = None
        is_past = False
        for sample in segment.samples():
            is_past = is_past or sample.boot == boot
            if sample.boot != boot and sample.synced and not is_past:
                before = sample.wall_ms
            elif sample.boot != boot and sample.synced and after is None:
                after = sample.wall_ms - sample.boottime_ms
        numbers = self.numbers()
        earlier = [number for number in reversed(numbers) if number < segment.number] if before is None else ()
        for number in earlier:
            with self.reading(number) as other:
                walls = [sample.wall_ms for sample in other.samples() if sample.synced and sample.boot != boot]
            if walls:
                before = walls[-1]
                break
        for number in [number for number in numbers if number > segment.number] if after is None else ():
            with self.reading(number) as other:
                for sample in other.samples():
                    if sample.synced and sample.boot != boot:
                        after = sample.wall_ms - sample.boottime_ms
                        break
            if after is not None:
                break
        return before, after

    def placed(self, segment: Segment | Sealed, timeline: Timeline, sample: Sample, wanted: Filter) -> Placed:
        """Where the records of a batch or an epoch stand in wall time, and whether any may be of the time asked for."""
        offset, quality = timeline.wall(0, sample)
        if quality != Quality.UNSYNCED:
            return Placed(offset, quality)
        before, after = self.bounds(segment, sample.boot)
        if before is not None:
            offset = before
        may_be = (before or 0) < wanted.until_ms and (after is None or after >= wanted.since_ms)
        return Placed(offset, quality, is_anytime=may_be, not_after_ms=after or 0)

    def described(self, number: int) -> retention.Segment:
        """One segment's size, detail and age; a closed and sealed one is looked at once."""
        found = self._known.get(number)
        if found is None:
            found = self._describe(number)
            # A clock that was not set yet may be: such a one is looked at again.
            if found.level is not None and found.last_ms is not None:
                self._known[number] = found
        return found

    def numbers(self) -> list[int]:
        """All segments, the one that is written last."""
        return [*self.closed, self.current.number] if self.current is not None else list(self.closed)

    def segments(self) -> list[retention.Segment]:
        """All closed ones, oldest first."""
        return [self.described(number) for number in self.closed]

    def changed(self, number: int) -> None:
        """Another file lies in its place."""
        self._known.pop(number, None)

    def unlink(self, number: int) -> None:
        """Let a segment go. Raises: StorageError."""
        try:
            os.unlink(path_of(self.directory, number))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError(f"segment {number}: {error.strerror}") from None
        self.closed.remove(number)
        self.changed(number)

    def names_aside(self) -> list[str]:
        """Files that were set aside because they are damaged."""
        try:
            return sorted(name for name in os.listdir(self.directory) if BAD in name)
        except OSError:
            return []

    def size_aside(self) -> int:
        """Octets of what is no segment: damaged files, and what holds keep."""
        total = 0
        for name in (*self.names_aside(), HOLDS):
            try:
                total += os.stat(os.path.join(self.directory, name)).st_size
            except OSError:
                pass
        return total

    def size(self) -> int:
        """Octets of everything in the directory."""
        total = 0
        try:
            with os.scandir(self.directory) as entries:
                for entry in entries:
                    total += entry.stat().st_size + SEGMENT_BYTES
        except OSError:
            pass
        return total

    def _describe(self, number: int) -> retention.Segment:
        path = path_of(self.directory, number)
        try:
            size = os.stat(path).st_size + SEGMENT_BYTES
        except OSError:
            size = 0
        try:
            with self.reading(number) as segment:
                timeline = self.timeline(segment)
                level = segment.level if isinstance(segment, Sealed) else None
                events = segment.next_seq - segment.first_seq
                bounds = [
                    (first + offset, last + offset)
                    for sample, first, last in segment.spans()
                    for offset, quality in (timeline.wall(0, sample),)
                    if quality != Quality.UNSYNCED
                ]
        except StorageError:
            return retention.Segment(number, size, None, 0, None, None)
        if not bounds:
            return retention.Segment(number, size, level, events, None, None)
        first, last = min(first for first, _ in bounds), max(last for _, last in bounds)
        return retention.Segment(number, size, level, events, first, last)


def sync_directory(directory: str) -> None:
    """Names made, renamed and removed in it are on flash when this returns. Raises: StorageError."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(f"{directory}: {error.strerror}") from None
