"""Questions over all segments of a ring: records, names, visitors. Changes nothing.

Rule: a segment that cannot be read is left out and told of; the others answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, TypeVar

from policy.errors import CorruptError, StorageError
from policy.event import Dns, Event, Flow, Session
from storage import retention
from storage.batch import unpack
from storage.catalogue import Catalogue, Placed
from storage.clock import Quality
from storage.filter import Filter
from storage.holds import Held, Holds
from storage.layout import Level
from storage.retention import DAY_MS
from storage.sealed import Sealed, Selected, Tally

LONGEST_SESSION_MS: Final = 31 * DAY_MS
"""How long before the time asked for a session of a wanted account may have begun."""


_Answer = TypeVar("_Answer")


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
    not_after_ms: int = 0
    """Of a boot whose clock was never set: it was between `wall_ms` and this. 0: nothing is known."""


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


class Reader:
    """Asks the segments that `book` lists, and what `holds` has of those that are gone."""

    def __init__(self, book: Catalogue, holds: Holds, tell: Callable[[int, str], None]) -> None:
        """`tell`: which segment could not be read, and why."""
        self._book, self._holds, self._tell = book, holds, tell

    def query(self, wanted: Filter) -> Iterator[Found | None]:
        """Records that match, oldest first. None now and then: nothing found yet, let others have their turn."""
        if wanted.account or wanted.phone_index:
            sessions: set[str] = set()
            for begun in self._query(wanted.of_sessions(LONGEST_SESSION_MS)):
                if begun is None:
                    yield None
                elif isinstance(begun.event, Session):
                    sessions.add(begun.event.session)
            wanted = wanted._replace(sessions=frozenset(sessions))
        yield from self._query(wanted)

    def names(self, wanted: Filter) -> Iterator[Visited | None]:
        """What names the accesses that match went to, most frequent first. None now and then, as `query`."""
        found: dict[str, list[int]] = {}

        def add(name: str, times: int, first_ms: int, last_ms: int) -> None:
            entry = found.setdefault(name, [0, first_ms, last_ms])
            entry[0] += times
            entry[1], entry[2] = min(entry[1], first_ms), max(entry[2], last_ms)

        for record in self._tallied(wanted):
            if record is None:
                yield None
            elif isinstance(record, Tally):
                add(*record)
            elif isinstance(record.event, Dns | Flow):
                add(record.event.name, record.times, record.wall_ms, record.wall_ms)
        for name, (times, first_ms, last_ms) in sorted(found.items(), key=lambda item: (-item[1][0], item[0])):
            yield Visited(name, times, first_ms, last_ms)

    def visitors(self, domain: str, since_ms: int = 0, until_ms: int = 1 << 62) -> Iterator[Visitor | None]:
        """Which clients had an access to `domain` or below that was let through, by segment. None now and then.

        From the postings of sealed segments, without a look at any record; so the times are the segment's.
        """
        wanted = Filter(since_ms=since_ms, until_ms=until_ms, domain=domain, verdict=0)
        held: dict[tuple[int, bytes, bytes], list[int]] = {}
        for record in self._held(wanted):
            if record is not None and isinstance(record.event, Dns | Flow):
                times = held.setdefault((record.segment, record.event.client, record.event.mac), [])
                times.append(record.wall_ms)
        for (number, client, mac), times in held.items():
            yield Visitor(number, client, mac, min(times), max(times))
        for number in self._book.numbers():
            try:
                described = self._book.described(number)
                if number in self._book.closed and not overlaps(described, wanted):
                    continue
                with self._book.reading(number) as segment:
                    if isinstance(segment, Sealed):
                        clients = segment.visitors(domain)
                    else:
                        clients = set()
                        for found in self._of_segment(number, wanted):
                            if found is None:
                                yield None
                            elif isinstance(found.event, Dns | Flow):
                                clients.add((found.event.client, found.event.mac))
            except (CorruptError, StorageError) as error:
                self._tell(number, str(error))
                continue
            for client, mac in sorted(clients):
                yield Visitor(number, client, mac, described.first_ms, described.last_ms)
            yield None

    def of_segment(self, number: int, wanted: Filter) -> Iterator[Found]:
        """Records of one segment that match. Raises: StorageError, CorruptError."""
        return (found for found in self._of_segment(number, wanted) if found is not None)

    # --- inside ------------------------------------------------------------------------------------------------

    def _query(self, wanted: Filter) -> Iterator[Found | None]:
        yield from self._in_turn(wanted, self._of_segment)

    def _in_turn(
        self, wanted: Filter, ask: Callable[[int, Filter], Iterator[_Answer]]
    ) -> Iterator[_Answer | Found | None]:
        """What is held of segments that are gone, then each segment that can have some of it, oldest first."""
        yield from self._held(wanted)
        for number in self._book.numbers():
            try:
                if number in self._book.closed and not overlaps(self._book.described(number), wanted):
                    continue
                yield from ask(number, wanted)
            except (CorruptError, StorageError) as error:
                self._tell(number, str(error))

    def _tallied(self, wanted: Filter) -> Iterator[Found | Tally | None]:
        """As `query`, with sealed segments' folded accesses counted where that is enough for the question."""
        if (
            wanted.domain
            or wanted.verdict is not None
            or wanted.kind is not None
            or wanted.account
            or wanted.phone_index
        ):
            yield from self.query(wanted)
            return
        yield from self._in_turn(wanted, self._tallied_of)

    def _tallied_of(self, number: int, wanted: Filter) -> Iterator[Found | Tally | None]:
        with self._book.reading(number) as segment:
            timeline = self._book.timeline(segment)
            walls = (
                [self._book.placed(segment, timeline, epoch, wanted) for epoch in segment.epochs]
                if isinstance(segment, Sealed)
                else []
            )
            is_plain = not any(placed.is_anytime for placed in walls)
            if not isinstance(segment, Sealed) or segment.level == Level.EXACT or not is_plain:
                yield from self._of_segment(number, wanted)
                return
            offsets = [placed.offset_ms for placed in walls]
            yield from segment.tally(wanted, offsets)
            for kept in segment.select_kept(wanted, offsets):
                yield None if kept is None else _found(segment.number, kept, walls[kept.epoch])

    def _held(self, wanted: Filter) -> Iterator[Found | None]:
        """Records that a hold kept when their segment went."""
        present = set(self._book.numbers())
        try:
            for number, records in self._holds.kept():
                if number not in present:
                    yield from (found_of(number, held) for held in records if held.matches(wanted))
                    yield None
        except (CorruptError, StorageError) as error:
            self._tell(0, str(error))

    def _of_segment(self, number: int, wanted: Filter) -> Iterator[Found | None]:
        book = self._book
        with book.reading(number) as segment:
            timeline = book.timeline(segment)
            if isinstance(segment, Sealed):
                yield from _query_sealed(
                    segment, [book.placed(segment, timeline, e, wanted) for e in segment.epochs], wanted
                )
                return
            known: dict[tuple[str, bool], Placed] = {}
            for batch in segment.batches():
                sample = batch.sample
                placed = known.get((sample.boot, sample.synced))
                if placed is None or placed.quality != Quality.UNSYNCED:  # what has no clock is looked for once a boot
                    placed = known[sample.boot, sample.synced] = book.placed(segment, timeline, sample, wanted)
                offset = placed.offset_ms
                from_ms, to_ms = wanted.since_ms - offset, wanted.until_ms - offset
                if placed.is_anytime:
                    from_ms, to_ms = 0, 1 << 62
                if batch.t1 < from_ms or batch.t0 >= to_ms:
                    continue
                for place, event in wanted.select(unpack(batch.data), from_ms, to_ms):
                    wall_ms = event.at_ms + offset
                    yield Found(
                        number,
                        batch.seq + place,
                        wall_ms,
                        placed.quality,
                        event,
                        offset,
                        not_after_ms=placed.not_after_ms,
                    )
                yield None


def _query_sealed(segment: Sealed, walls: Sequence[Placed], wanted: Filter) -> Iterator[Found | None]:
    anytime = frozenset(epoch for epoch, placed in enumerate(walls) if placed.is_anytime)
    for found in segment.select(wanted, [placed.offset_ms for placed in walls], anytime):
        if found is None:
            yield None
            continue
        yield _found(segment.number, found, walls[found.epoch])


def _found(number: int, found: Selected, placed: Placed) -> Found:
    return Found(
        number,
        found.seq,
        found.wall_ms,
        placed.quality,
        found.event,
        placed.offset_ms,
        found.part,
        found.times,
        found.resolution_ms,
        placed.not_after_ms,
    )


def found_of(number: int, held: Held) -> Found:
    """A held record as the ring answered it while its segment was there."""
    return Found(number, *held)


def held_of(found: Found) -> Held:
    """What is kept of a record when its segment goes."""
    return Held(*found[1:])


def overlaps(segment: retention.Segment, wanted: Filter) -> bool:
    """Can it have a record of that time? One whose age is not known can."""
    if segment.first_ms is None or segment.last_ms is None:
        return True
    # A day's record at the end of the ladder begins before the first moment that it stands for.
    slack = DAY_MS if segment.level is not None and segment.level > Level.SECOND else 1000
    return segment.first_ms - slack < wanted.until_ms and segment.last_ms + slack >= wanted.since_ms
