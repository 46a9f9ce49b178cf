"""A sealed segment: columns, read a part at a time, each part checked before it is believed. The shell around SQLite.

Rule: any file is read or raises CorruptError, naming the part; nothing outside the parts a question needs is unpacked.
"""

from __future__ import annotations

import heapq
import sqlite3
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterator, Sequence
from itertools import accumulate
from operator import itemgetter
from typing import Any, Final, NamedTuple, cast

from policy.errors import CorruptError, StorageError
from policy.event import MAX_ANSWERS, TAGS, Dns, Event, Flow
from storage.clock import Sample
from storage.column import expand, split, unpack_numbers, unpack_plain, unpack_values
from storage.filter import Filter
from storage.hot import Segment
from storage.seal import FORMAT, HASH_SIZE, hash_of, reversed_labels, root_of

_PART: Final = "SELECT kind, first, last, data FROM part WHERE id = ?"
_TURN: Final = 4096
"""Records looked at between two turns for others: some 4 ms."""


class Selected(NamedTuple):
    """One record that matches. `epoch`: which of `Sealed.epochs` it stands in."""

    wall_ms: int
    seq: int
    epoch: int
    event: Event


class _Names(NamedTuple):
    names: list[str]
    """Labels reversed."""
    holders: list[int]
    steps: array[int]
    addresses: list[list[bytes]]


class Sealed:
    """One sealed segment file, open for reading. Any process may."""

    def __init__(self, path: str, number: int) -> None:
        """Raises: StorageError, CorruptError."""
        self.path, self.number = path, number
        self._tables: dict[str, Any] | None = None
        self._chunks: dict[int, _Names] = {}
        try:
            self._db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
            meta = dict(self._db.execute("SELECT k, v FROM meta"))
            self._parts = list(self._db.execute("SELECT id, kind, first, last FROM part ORDER BY id"))
        except (sqlite3.DatabaseError, ValueError) as error:  # ValueError: a text that is none
            raise CorruptError(f"{path}: {error}") from None
        try:
            if meta["format"] != FORMAT:
                raise StorageError(f"{path}: format {meta['format']}, expected {FORMAT}")
            self.first_seq, self.next_seq = int(meta["first_seq"]), int(meta["next_seq"])
            self.before, self.head = bytes(meta["before"]), bytes(meta["head"])
            self.root = bytes(meta["root"])
            self._hashes = bytes(meta["hashes"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(f"{path}: no sealed segment: {error}") from None
        if root_of(meta) != self.root or meta["segment"] != number:
            raise CorruptError(f"segment {number}: its description is not what was sealed")
        if len(self._parts) * HASH_SIZE != len(self._hashes):
            raise CorruptError(
                f"segment {number}: {len(self._parts)} parts, sealed with {len(self._hashes) // HASH_SIZE}"
            )

    def check(self) -> Iterator[int]:
        """Follow all parts; yields the number of each that is right. Raises: CorruptError, naming the first bad one."""
        for place in range(len(self._parts)):
            self._load(place)
            yield place

    @property
    def epochs(self) -> list[Sample]:
        """Clock readings, one for each stretch of an even clock."""
        return [Sample(boot, mono, wall, bool(synced)) for boot, mono, wall, synced in self._table("epochs")]

    def samples(self) -> Iterator[Sample]:
        """As `Segment.samples`."""
        yield from self.epochs

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def visitors(self, domain: str) -> set[tuple[bytes, bytes]]:
        """Address and hardware address of every client with an access to `domain` or below. Touches no block."""
        clients = self._table("clients")
        return {clients[number][:2] for number in self._visitors(self._ranks(domain))}

    def select(self, wanted: Filter, offsets: Sequence[int]) -> Iterator[Selected | None]:
        """Records that match, oldest first; None now and then. `offsets`: wall minus time since boot, by epoch.

        Raises: CorruptError.
        """
        try:
            yield from _merged((yield from self._streams(wanted, offsets)))
        except (LookupError, TypeError, ValueError) as error:  # whole, and yet no segment: it was made so
            raise CorruptError(f"segment {self.number}: {error!r}") from None

    def _streams(
        self, wanted: Filter, offsets: Sequence[int]
    ) -> Generator[None, None, list[Iterator[Selected | None]]]:
        streams = [self._whole(wanted, offsets, place) for place in self._places("whole")]
        if wanted.verdict in (None, 0) and (wanted.kind is None or wanted.kind in (Dns, Flow)):
            ranks = self._ranks(wanted.domain) if wanted.domain else None
            chosen = self._chosen(wanted, ranks)
            free = self._free_numbers()
            for place in self._places("block"):
                _, _, first, last = self._parts[place]
                here = [client for client in chosen if first <= client <= last]
                if here:
                    block = _Block(self, place)
                    streams += [block.records(client, wanted, ranks, offsets, free) for client in here]
                    yield None
        return streams

    # --- inside ------------------------------------------------------------------------------------------------

    def _places(self, kind: str) -> list[int]:
        return [place for place, (_, found, _, _) in enumerate(self._parts) if found == kind]

    def _load(self, place: int) -> bytes:
        try:
            row = self._db.execute(_PART, (place,)).fetchone()
        except (sqlite3.DatabaseError, ValueError) as error:  # ValueError: a text that is none
            raise CorruptError(f"segment {self.number}: part {place}: {error}") from None
        wanted = self._hashes[place * HASH_SIZE : (place + 1) * HASH_SIZE]
        if row is None or type(row[3]) is not bytes or hash_of(place, *row) != wanted:
            raise CorruptError(f"segment {self.number}: part {place} is not what was sealed")
        return row[3]

    def _table(self, name: str) -> Any:
        if self._tables is None:
            found = unpack_plain(self._load(len(self._parts) - 1))
            if not isinstance(found, dict):
                raise CorruptError(f"segment {self.number}: no tables")
            self._tables = found
        return self._tables[name]

    def _chunk(self, number: int) -> _Names:
        found = self._chunks.get(number)
        if found is None:
            text, holders, steps, counts, packed = split(self._load(self._places("names")[number]), 5)
            plain, at, addresses = expand(packed), 0, []
            for count in unpack_numbers(counts):
                mine = []
                for _ in range(count):
                    mine.append(plain[at + 1 : at + 1 + plain[at]])
                    at += 1 + plain[at]
                addresses.append(mine)
            names = expand(text).decode("utf-8", "surrogatepass").split("\n")
            found = _Names(names, list(unpack_numbers(holders)), unpack_numbers(steps), addresses)
            self._chunks[number] = found
        return found

    def name(self, rank: int) -> tuple[str, list[bytes]]:
        """A name and its addresses."""
        first_names = self._table("first_names")
        if not first_names:
            raise CorruptError(f"segment {self.number}: no names")
        number, at = divmod(rank, _names_a_part(self._parts, self._places("names")[0]))
        chunk = self._chunk(number)
        return reversed_labels(chunk.names[at]), chunk.addresses[at]

    def _rank_of(self, key: str) -> int:
        """Of the first name that is not before `key`."""
        first_names = self._table("first_names")
        number = max(0, bisect_right(first_names, key) - 1)
        if not first_names:
            return 0
        place = self._places("names")[number]
        return int(self._parts[place][2]) + bisect_left(self._chunk(number).names, key)

    def _ranks(self, domain: str) -> list[range]:
        """Where `domain` and all below it lie."""
        key = reversed_labels(domain)
        at = self._rank_of(key)
        total = sum(self._parts[place][3] - self._parts[place][2] + 1 for place in self._places("names"))
        ranges = [range(self._rank_of(key + "."), self._rank_of(key + "/"))]
        if at < total and self.name(at)[0] == domain:
            ranges.append(range(at, at + 1))
        return [found for found in ranges if found]

    def _visitors(self, ranks: list[range]) -> set[int]:
        found: set[int] = set()
        places = self._places("names")
        for wanted in ranks:
            for number, place in enumerate(places):
                _, _, first, last = self._parts[place]
                if last < wanted.start or first >= wanted.stop:
                    continue
                chunk = self._chunk(number)
                ends = list(accumulate(chunk.holders, initial=0))
                for rank in range(max(first, wanted.start), min(last + 1, wanted.stop)):
                    found.update(accumulate(chunk.steps[ends[rank - first] : ends[rank - first + 1]]))
        return found

    def _chosen(self, wanted: Filter, ranks: list[range] | None) -> list[int]:
        """Clients that can have a record that matches."""
        clients = self._table("clients")
        chosen = range(len(clients)) if ranks is None else sorted(self._visitors(ranks))
        return [
            number
            for number in chosen
            if (not wanted.client or clients[number][0] == wanted.client)
            and (not wanted.mac or clients[number][1] == wanted.mac)
            and (not wanted.session or clients[number][2] == wanted.session)
        ]

    def _free_numbers(self) -> list[int]:
        """Sequence numbers of records kept whole, each less its place: folded records have the numbers between."""
        taken = sorted(
            cast(int, seq) for place in self._places("whole") for seq in unpack_values(split(self._load(place), 0)[0])
        )
        return [seq - self.first_seq - place for place, seq in enumerate(taken)]

    def _whole(self, wanted: Filter, offsets: Sequence[int], place: int) -> Iterator[Selected | None]:
        tag = self._parts[place][2]
        kind = TAGS.get(tag)
        if kind is None or (wanted.kind is not None and wanted.kind is not kind):
            return
        columns = [unpack_values(column) for column in split(self._load(place), 0)]
        yield None
        found = []
        for seq, epoch, *fields in zip(*columns, strict=True):
            event = kind(*fields[: len(kind._fields)])
            wall_ms = event.at_ms + offsets[cast(int, epoch)]
            if wanted.since_ms <= wall_ms < wanted.until_ms and wanted.matches(event):
                found.append(Selected(wall_ms, cast(int, seq), cast(int, epoch), event))
        yield from sorted(found, key=itemgetter(0, 1))


class _Block:
    """Folded records of some clients."""

    def __init__(self, sealed: Sealed, place: int) -> None:
        self._sealed = sealed
        _, _, self._first, _ = sealed._parts[place]
        counts, steps, long_steps, names, folds, places, paths = split(sealed._load(place), 7)
        self._ends = list(accumulate(unpack_numbers(counts), initial=0))
        self._steps, self._long_steps = expand(steps), unpack_numbers(long_steps)
        self._names, self._folds = unpack_numbers(names), unpack_numbers(folds)
        self._places = unpack_numbers(places)
        self._paths = expand(paths).decode("utf-8", "surrogatepass").split("\n")
        self._shapes, self._members = sealed._table("shapes"), sealed._table("folds")
        flows = [sum(self._shapes[shape][0] == 2 for shape in fold) for fold in self._members]
        starts = list(accumulate(map(flows.__getitem__, self._folds), initial=0))
        self._flow_starts = [starts[end] for end in self._ends]

    def records(
        self, client: int, wanted: Filter, ranks: list[range] | None, offsets: Sequence[int], free: list[int]
    ) -> Iterator[Selected | None]:
        """One client's, oldest first."""
        sealed, shapes = self._sealed, self._shapes
        address, mac, session, group, epoch = sealed._table("clients")[client]
        at, end = self._ends[client - self._first], self._ends[client - self._first + 1]
        flow = self._flow_starts[client - self._first]
        long_at = self._steps[:at].count(255)
        second, number = sealed._table("bases")[epoch], sum(sealed._table("events")[:client])
        since, until = (wanted.since_ms - offsets[epoch]) // 1000, (wanted.until_ms - offsets[epoch]) // 1000
        for record in range(at, end):
            if not (record - at) % _TURN:
                yield None
            step = self._steps[record]
            if step == 255:
                step = self._long_steps[long_at]
                long_at += 1
            second += step
            fold = self._members[self._folds[record]]
            rank = self._names[record]
            if not since <= second <= until or (ranks is not None and not any(rank in found for found in ranks)):
                number += len(fold)
                flow += sum([shapes[shape][0] == 2 for shape in fold])
                continue
            name, addresses = sealed.name(rank)
            wall_ms = second * 1000 + offsets[epoch]
            for shape_id in fold:
                shape = shapes[shape_id]
                event: Event
                if shape[0] == 1:
                    _, qtype, rcode, verdict, reason, rule = shape
                    answers = tuple(addresses[:MAX_ANSWERS]) if qtype in (1, 28) else ()
                    event = Dns(
                        second * 1000, address, name, qtype, rcode, verdict, reason, rule, group, answers, False, 0,
                        mac, session,
                    )  # fmt: skip
                else:
                    _, dport, protocol, seen, blind, verdict, reason, rule, agreement, method = shape
                    event = Flow(
                        second * 1000, address, mac, 0, addresses[self._places[flow]], dport, protocol, name, seen,
                        blind, self._paths[flow], verdict, reason, rule, group, agreement, method, session,
                    )  # fmt: skip
                    flow += 1
                seq = sealed.first_seq + number + bisect_right(free, number)
                number += 1
                if wanted.since_ms <= wall_ms < wanted.until_ms and (wanted.kind is None or type(event) is wanted.kind):
                    yield Selected(wall_ms, seq, epoch, event)


def _merged(streams: list[Iterator[Selected | None]]) -> Iterator[Selected | None]:
    """Streams that are in order as one that is, passing on their turns for others."""
    heap: list[tuple[int, int, int, Selected, Iterator[Selected | None]]] = []
    for place, stream in enumerate(streams):
        for found in stream:
            if found is None:
                yield None
                continue
            heap.append((found.wall_ms, found.seq, place, found, stream))
            break
    heapq.heapify(heap)
    while heap:
        _, _, place, first, stream = heap[0]
        yield first
        for found in stream:
            if found is None:
                yield None
                continue
            heapq.heapreplace(heap, (found.wall_ms, found.seq, place, found, stream))
            break
        else:
            heapq.heappop(heap)


def open_closed(path: str, number: int) -> Segment | Sealed:
    """A closed segment, sealed or not yet. Raises: StorageError, CorruptError."""
    try:
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
        try:
            row = db.execute("SELECT v FROM meta WHERE k = 'format'").fetchone()
        finally:
            db.close()
    except (sqlite3.DatabaseError, ValueError):
        row = None  # the constructor below says what is wrong
    return Sealed(path, number) if row and row[0] == FORMAT else Segment(path, number, is_open=False)


def _names_a_part(parts: list[tuple[int, str, int, int]], place: int) -> int:
    return parts[place][3] - parts[place][2] + 1
