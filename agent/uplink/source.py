"""The agent's side of the uplink: gives the uplink's process what is in the ring, and keeps its place there.

Asked over the control socket, word `uplink`; the rows are in docs/ring-format.md's terms, octets in base64. The
uplink is a process of its own, for TLS and MQTT cost memory and may wait; the ring has one writer, which must not.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from agent.control import BUSY, Answer, Request
from agent.uplink.wire import urgent_record
from policy.errors import ConfigError, StorageError
from policy.event import Event, Gap, Maintenance, is_critical
from policy.verdict import Verdict
from storage.batch import unpack, verdict_of
from storage.clock import Clock
from storage.cursor import Bulk, Cursor, Item, Lost, Taken
from storage.hot import Batch, Segment
from storage.retention import DAY_MS
from storage.sealed import Sealed
from storage.writer import Ring

NAME: Final = "centre"
ACTIONS: Final = ("begin", "take", "acknowledge", "poll", "fresh", "report", "gap", "note")
SILENT_MS: Final = 60_000
WARN_DAYS: Final = 7.0
"""So long before records go that the centre does not have yet somebody is told; where they are kept for less than two
weeks, half of that."""
MAX_TAKEN: Final = 4096
"""Items given out and not acknowledged."""
PASSED_BY: Final = 64
"""Batches that are too old to be looked into, between two turns of the agent's loop: 2 ms."""
MAX_FRESH: Final = 192 << 10
"""Octets of batches that go ahead of a backlog at a time."""
MAX_URGENT: Final = 256
"""Records ahead of their batches in one answer."""


class Source:
    """One uplink's place in the ring."""

    def __init__(self, ring: Ring, clock: Clock, record: Callable[[Event], None]) -> None:
        """`record`: puts an event on record, at once."""
        self._ring, self._clock, self._record = ring, clock, record
        self.report: Mapping[str, object] = {}
        """What the uplink said last about itself."""
        self._reported_ms = 0
        self._name = os.urandom(8).hex()
        """Of this life of the agent."""
        self._warning, self._expiring = "", False
        self._cursor: Cursor | None = None
        self._taken: deque[Item] = deque()

    def handle(self, request: Request) -> Answer:
        """One of ACTIONS. Raises: ConfigError, StorageError."""
        match request.get("action"):
            case "begin":
                yield from self._begin()
            case "take":
                yield from self._take(_number(request, "bytes"))
            case "acknowledge":
                self._acknowledge(_number(request, "place"))
            case "poll":
                yield from self._poll(_number(request, "after"), _number(request, "since_ms"))
            case "fresh":
                yield from self._fresh(_number(request, "after"), _number(request, "since_ms"))
            case "report":
                report = request.get("report")
                self.report = report if isinstance(report, dict) else {}
                self._reported_ms = self._clock.read().boottime_ms
            case "gap":
                from_ms, to_ms = _number(request, "from_ms"), _number(request, "to_ms")
                self._record(Gap(self._clock.read().boottime_ms, "uplink", 0, from_ms, to_ms, _text(request, "why")))
            case "note":
                said = [_text(request, name) for name in ("actor", "act", "object", "old", "new", "result", "detail")]
                self._record(Maintenance(self._clock.read().boottime_ms, *said))
            case other:
                raise ConfigError(f"uplink: expected {', '.join(ACTIONS)}, got {other!r}")

    def troubles(self) -> list[str]:
        """Why the centre cannot be reached, for `gatehouse status`; empty: it can."""
        if self._clock.read().boottime_ms - self._reported_ms > SILENT_MS:
            return ["the uplink is not there", *([self._warning] if self._warning else [])]
        why = self.report.get("why")
        return [*([f"uplink: {why}"] if why else []), *([self._warning] if self._warning else [])]

    def watch_retention(self) -> None:
        """Now and then: will records go before the centre has them? On the log once, in `troubles` all along."""
        try:
            days = self._days_left()
        except StorageError:  # told by others
            return
        was, self._expiring = self._expiring, days is not None
        if days is None:
            self._warning = ""
            return
        when = f"in {days:.1f} days" if days > 0 else "now"
        self._warning = (
            f"uplink: records that the centre does not have yet go {when}; see to the line, or keep them longer"
        )
        if not was:
            said = f"the centre does not have the oldest records, and they go {when}"
            now_ms = self._clock.read().boottime_ms
            self._record(Maintenance(now_ms, "agent", "retention-at-risk", "uplink", "", "", said))

    def _days_left(self) -> float | None:
        """Until the first record goes that is not acknowledged; None: long enough, or nothing is missing."""
        oldest, now, store = self._open().oldest(), self._clock.read(), self._ring.store()
        kept = store.expires_days(now)
        if oldest is None or oldest.last_ms is None or kept is None or not now.synced:
            return None
        left = kept - (now.wall_ms - oldest.last_ms) / DAY_MS
        return left if left < min(WARN_DAYS, kept / 2) else None

    def _begin(self) -> Iterator[Mapping[str, object]]:
        """A new uplink: everything that is not acknowledged is given out again."""
        cursor = self._open()
        cursor.rewind()
        self._taken.clear()
        yield {"row": {"source": self._name, "acknowledged": cursor.acknowledged}}

    def _take(self, most_bytes: int) -> Iterator[Mapping[str, object]]:
        cursor, given = self._open(), 0
        while given < most_bytes and len(self._taken) < MAX_TAKEN:
            item = cursor.take()
            if item is None:
                return
            # Only its place is needed afterwards.
            self._taken.append(item._replace(data=b"") if isinstance(item, Taken) else item)
            given += 512
            match item:
                case Taken():
                    given += len(item.data)
                    yield {"row": _batch_row(item)}
                case Bulk():
                    given += item.size
                    fields: dict[str, object] = {**item._asdict(), "root": item.root.hex(), "level": int(item.level)}
                    yield {"row": {"kind": "sealed", "path": self._ring.store().path_of(item.segment), **fields}}
                case Lost():
                    yield {"row": {"kind": "lost", **item._asdict()}}

    def _acknowledge(self, place: int) -> None:
        cursor = self._open()
        while self._taken and self._taken[0].next_seq <= place:
            cursor.acknowledge(self._taken.popleft())

    def _poll(self, after: int, since_ms: int) -> Answer:
        """Critical records above number `after`, since `since_ms` of this boot; then how far behind we are."""
        cursor, store = self._open(), self._ring.store()
        given, reached, after = 0, after, max(after, cursor.acknowledged - 1, 0)
        for number in store.book.numbers()[-2:]:  # a new day may have begun since the last look
            with store.book.reading(number) as segment:
                if isinstance(segment, Sealed) or segment.next_seq <= after:
                    continue
                for passed, batch in enumerate(segment.batches(after), 1):
                    reached = batch.seq + batch.records - 1
                    if batch.sample.boot == self._clock.boot_id and batch.sample.boottime_ms >= since_ms:
                        for row in _critical(segment, batch):
                            given += 1
                            yield {"row": row}
                    elif passed % PASSED_BY:
                        continue
                    if given >= MAX_URGENT:
                        break
                    yield BUSY
            if given >= MAX_URGENT:
                break
        last = store.segment
        said = {
            "behind": cursor.behind(),
            "next_seq": last.next_seq,
            "reached": max(reached, after),
            "source": self._name,
        }
        yield {"row": {"kind": "end", **said, "head": last.head.hex(), "acknowledged": cursor.acknowledged}}

    def _fresh(self, after: int, since_ms: int) -> Answer:
        """Batches of the day that runs, committed since a moment of this boot, above number `after`. They stay where
        they are: whoever takes them from the backlog gets them again.
        """
        segment, given = self._ring.store().segment, 0
        for passed, batch in enumerate(segment.batches(after), 1):
            if batch.sample.boot == self._clock.boot_id and batch.sample.boottime_ms >= since_ms:
                end = batch.seq + batch.records
                item = Taken(segment.number, batch.seq, end, batch.sample, batch.link, batch.data)
                given += len(batch.data)
                yield {"row": _batch_row(item)}
            elif not passed % PASSED_BY:
                yield BUSY
            if given > MAX_FRESH:
                return

    def _open(self) -> Cursor:
        if self._cursor is None:
            self._cursor = Cursor(self._ring, NAME)
        return self._cursor


def _batch_row(item: Taken) -> Mapping[str, object]:
    fields: dict[str, object] = item._asdict()
    fields |= {"link": item.link.hex(), "data": b64encode(item.data).decode(), **item.sample._asdict()}
    del fields["sample"]
    return {"kind": "batch", **fields}


def _critical(segment: Segment, batch: Batch) -> Iterator[Mapping[str, object]]:
    columns, sample = unpack(batch.data), batch.sample
    found = columns.select(lambda shape: verdict_of(shape) == Verdict.BLOCK, _any, _any, is_critical)
    for place, event in found:
        wall_ms = event.at_ms + sample.wall_ms - sample.boottime_ms
        record = urgent_record(event, batch.seq + place, segment.number, wall_ms, sample.synced)
        yield {"kind": "urgent", "record": {name: to_json(value) for name, value in record.items()}}


def _any(_: object) -> bool:
    return True


def to_json(value: object) -> object:
    """Octets in a map of their own."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, tuple):
        return [to_json(one) for one in value]
    return value


def from_json(value: object) -> object:
    """What `to_json` was given."""
    if isinstance(value, dict):
        return bytes.fromhex(value["hex"])
    if isinstance(value, list):
        return tuple(from_json(one) for one in value)
    return value


def _number(request: Request, name: str) -> int:
    value = request.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"uplink: {name}: expected a number from 0, got {value!r}")
    return value


def _text(request: Request, name: str) -> str:
    value = request.get(name, "")
    if not isinstance(value, str):
        raise ConfigError(f"uplink: {name}: expected text, got {value!r}")
    return value
