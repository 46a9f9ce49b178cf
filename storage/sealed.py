"""A sealed segment: columns, read a part at a time, each part checked before it is believed. The shell around SQLite.

Rule: any file is read or raises CorruptError, naming the part; nothing outside the parts a question needs is unpacked.
"""

from __future__ import annotations

import heapq
import sqlite3
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, repeat
from operator import itemgetter
from typing import Any, Final, NamedTuple

import msgpack

from policy.errors import CorruptError, StorageError
from policy.event import MAX_ANSWERS, Dns, Event, Flow, Seen
from policy.signature import verify
from storage.batch import Columns, unpack_plain
from storage.clock import Sample
from storage.column import expand, split, unpack_numbers
from storage.filter import Filter
from storage.hot import Segment
from storage.layout import (
    ESCAPE,
    FLOW,
    FORMAT,
    HASH_SIZE,
    LOOK_UP,
    QUANTUM_MS,
    BlockView,
    Client,
    FlowsView,
    Level,
    NamesView,
    Small,
    hash_of,
    read_block,
    read_exact,
    registrable,
    reversed_labels,
    root_of,
)

_PART: Final = "SELECT kind, first, last, data FROM part WHERE id = ?"
_FEW_RANKS: Final = 16
"""Names up to which each is searched for by itself in a block."""
_CHUNKS: Final = 64
"""Stretches of names that are held unpacked, some 100 KiB each."""
_ADDRESSES: Final = (1, 28)
"""A and AAAA: types of look-up that are answered with addresses."""


class Selected(NamedTuple):
    """One record that matches. `epoch`: which of `Sealed.epochs` it stands in."""

    wall_ms: int
    seq: int
    part: int
    """0: a record that is kept whole, with its own number. Else it is folded: 1 + level, and `seq` counts these."""
    epoch: int
    event: Event
    times: int = 1
    """How many such events there were in the `resolution_ms` from `wall_ms` on."""
    resolution_ms: int = 1


class Tally(NamedTuple):
    """What a client's accesses to one name come to. Times are wall milliseconds."""

    name: str
    times: int
    first_ms: int
    last_ms: int


class Sealed:
    """One sealed segment file, open for reading. Any process may."""

    def __init__(self, path: str, number: int, db: sqlite3.Connection | None = None) -> None:
        """`db`: the file, opened already. Raises: StorageError, CorruptError."""
        self.path, self.number = path, number
        self._tables: dict[str, Any] | None = None
        self._chunks: dict[int, NamesView] = {}
        try:
            self._db = db or opened(path)
            meta = dict(self._db.execute("SELECT k, v FROM meta"))
            self._parts = list(self._db.execute("SELECT id, kind, first, last FROM part ORDER BY id"))
        except (sqlite3.DatabaseError, ValueError) as error:  # ValueError: a text that is none
            raise CorruptError(f"{path}: {error}") from None
        try:
            if meta["format"] != FORMAT:
                raise StorageError(f"{path}: format {meta['format']}, expected {FORMAT}")
            self.level = Level(meta["level"])
            self.first_seq, self.next_seq = int(meta["first_seq"]), int(meta["next_seq"])
            self.before, self.head = bytes(meta["before"]), bytes(meta["head"])
            self.root, self.signature = bytes(meta["root"]), bytes(meta["signature"])
            self.derived_from = bytes(meta["derived_from"])
            self._hashes = bytes(meta["hashes"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(f"{path}: no sealed segment: {error}") from None
        if root_of(meta) != self.root or meta["segment"] != number:
            raise CorruptError(f"segment {number}: its description is not what was sealed")
        if len(self._parts) * HASH_SIZE != len(self._hashes):
            raise CorruptError(
                f"segment {number}: {len(self._parts)} parts, sealed with {len(self._hashes) // HASH_SIZE}"
            )
        self._places_of: dict[str, list[int]] = {}
        for place, (_, kind, _, _) in enumerate(self._parts):
            self._places_of.setdefault(kind, []).append(place)

    def check(self, public: bytes = b"") -> Iterator[int]:
        """Follow all parts; yields the number of each that is right. `public`: the key its root was signed with.

        Raises: CorruptError, naming the first bad one.
        """
        if public and not verify(public, self.root, self.signature):
            raise CorruptError(f"segment {self.number}: its signature is not this router's")
        for place in range(len(self._parts)):
            self.load(place)
            yield place

    @property
    def epochs(self) -> list[Sample]:
        """Clock readings, one for each stretch of an even clock."""
        return [Sample(boot, mono, wall, bool(synced)) for boot, mono, wall, synced in self.table("epochs")]

    def samples(self) -> Iterator[Sample]:
        """As `Segment.samples`."""
        yield from self.epochs

    def spans(self) -> Iterator[tuple[Sample, int, int]]:
        """For each epoch its clock reading and the times of its earliest and its latest record."""
        for sample, (first, last) in zip(self.epochs, self.table("spans"), strict=True):
            yield sample, first, last

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def visitors(self, domain: str) -> set[tuple[bytes, bytes]]:
        """Address and MAC of each client with an access to `domain` or below that was let through. Reads no block."""
        clients = self.table("clients")
        return {clients[number][:2] for number in self._visitors(self._ranks(domain))}

    def select(
        self, wanted: Filter, offsets: Sequence[int], anytime: frozenset[int] = frozenset()
    ) -> Iterator[Selected | None]:
        """Records that match, oldest first; None now and then. `offsets`: wall minus time since boot, by epoch.

        `anytime`: epochs that may be of the time asked for whatever their own says, as no clock was set in them.

        Raises: CorruptError.
        """
        try:
            yield from _merged((yield from self._streams(wanted, offsets, anytime)))
        except (LookupError, TypeError, ValueError, OverflowError) as error:  # whole, yet no segment: made so
            raise CorruptError(f"segment {self.number}: {error!r}") from None

    def tally(self, wanted: Filter, offsets: Sequence[int]) -> Iterator[Tally | None]:
        """Per name what the folded accesses of `wanted` come to, in no order, a name perhaps more than once.

        None now and then. As `select`, without putting a single record together: for filters that ask for a client, a
        MAC, sessions and times only. Raises: CorruptError.
        """
        try:
            chosen, starts = self._chosen(wanted, None), self.table("starts")
            for at, place in enumerate(self.places("block")):
                first, last = self.bounds(place)
                here = chosen[bisect_left(chosen, first) : bisect_right(chosen, last)]
                if not here:
                    continue
                reader = _Reader(self, place, at, starts[at], wanted, None, offsets, frozenset())
                found: dict[int, list[int]] = {}
                for client in here:
                    reader.count(client, found)
                for rank, (times, first_ms, last_ms) in found.items():
                    view, in_view = self.name(rank)
                    yield Tally(reversed_labels(view.keys[in_view]), times, first_ms, last_ms)
                yield None
        except (LookupError, TypeError, ValueError, OverflowError) as error:  # whole, yet no segment: made so
            raise CorruptError(f"segment {self.number}: {error!r}") from None

    def select_kept(self, wanted: Filter, offsets: Sequence[int]) -> Iterator[Selected | None]:
        """As `select`, of the records that are kept whole only. Raises: CorruptError."""
        for place in self.places("kept"):
            yield from self._kept(wanted, offsets, frozenset(), place)

    def places(self, kind: str) -> list[int]:
        """Numbers of the parts of one kind."""
        return self._places_of.get(kind, [])

    def load(self, place: int) -> bytes:
        """One part, checked. Raises: CorruptError."""
        try:
            row = self._db.execute(_PART, (place,)).fetchone()
        except (sqlite3.DatabaseError, ValueError) as error:  # ValueError: a text that is none
            raise CorruptError(f"segment {self.number}: part {place}: {error}") from None
        wanted = self._hashes[place * HASH_SIZE : (place + 1) * HASH_SIZE]
        if row is None or type(row[3]) is not bytes or hash_of(place, *row) != wanted:
            raise CorruptError(f"segment {self.number}: part {place} is not what was sealed")
        return row[3]

    def bounds(self, place: int) -> tuple[int, int]:
        """First and last of a part."""
        _, _, first, last = self._parts[place]
        return first, last

    def table(self, name: str) -> Any:
        """One of the tables of docs/ring-format.md."""
        if self._tables is None:
            plain = expand(self.load(len(self._parts) - 1))
            try:
                found = msgpack.unpackb(plain, use_list=False, strict_map_key=True, unicode_errors="surrogatepass")
            except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
                raise CorruptError(f"segment {self.number}: tables: {error}") from None
            if not isinstance(found, dict):
                raise CorruptError(f"segment {self.number}: no tables")
            self._tables = found
        try:
            return self._tables[name]
        except KeyError:
            raise CorruptError(f"segment {self.number}: no table {name}") from None

    @cached_property
    def fold_sizes(self) -> tuple[Weights, Weights]:
        """For each fold how many accesses it has, and how many of them are flows."""
        folds, shapes = self.table("folds"), self.table("shapes")
        is_flow = [shape[0] == FLOW for shape in shapes]
        return Weights(list(map(len, folds))), Weights([sum(map(is_flow.__getitem__, fold)) for fold in folds])

    def name(self, rank: int) -> tuple[NamesView, int]:
        """The stretch a name is in, and its place there."""
        first, last = self.bounds(self.places("names")[0])
        number, at = divmod(rank, last - first + 1)
        return self._chunk(number), at

    # --- inside ------------------------------------------------------------------------------------------------

    def _streams(
        self, wanted: Filter, offsets: Sequence[int], anytime: frozenset[int]
    ) -> Generator[None, None, list[Iterator[Selected | None]]]:
        ranks = self._ranks(wanted.domain) if wanted.domain else None
        streams: list[Iterator[Selected | None]] = []
        if ranks is None or any(view.is_kept(at) for rank in ranks for view, at in map(self.name, rank)):
            streams += [self._kept(wanted, offsets, anytime, place) for place in self.places("kept")]
        if wanted.verdict not in (None, 0) or wanted.kind not in (None, Dns, Flow):
            return streams
        chosen = self._chosen(wanted, ranks)
        starts = self.table("starts")
        for at, place in enumerate(self.places("block")):
            first, last = self.bounds(place)
            here = chosen[bisect_left(chosen, first) : bisect_right(chosen, last)]
            if here:
                reader = _Reader(self, place, at, starts[at], wanted, ranks, offsets, anytime)
                streams += [reader.records(client) for client in here]
                yield None
        return streams

    def _chunk(self, number: int) -> NamesView:
        found = self._chunks.get(number)
        if found is None:
            if len(self._chunks) >= _CHUNKS:
                self._chunks.pop(next(iter(self._chunks)))
            found = self._chunks[number] = NamesView(self.load(self.places("names")[number]))
        return found

    def _rank_of(self, key: str) -> int:
        """Of the first name that is not before `key`."""
        first_names = self.table("first_names")
        if not first_names:
            return 0
        number = max(0, bisect_right(first_names, key) - 1)
        return self.bounds(self.places("names")[number])[0] + bisect_left(self._chunk(number).keys, key)

    def _ranks(self, domain: str) -> list[range]:
        """Where `domain` and all below it lie."""
        key = reversed_labels(domain)
        names = self.places("names")
        total = self.bounds(names[-1])[1] + 1 if names else 0
        ranges = [range(self._rank_of(key + "."), self._rank_of(key + "/"))]
        exact = [key]
        if self.level == Level.DOMAIN and registrable(key) != key:
            exact.append(registrable(key))  # all that is still known of it
        for one in exact:
            at = self._rank_of(one)
            if at < total:
                view, place = self.name(at)
                if view.keys[place] == one:
                    ranges.append(range(at, at + 1))
        return [found for found in ranges if found]

    def _visitors(self, ranks: list[range]) -> set[int]:
        found: set[int] = set()
        for wanted in ranks:
            for rank in wanted:
                view, at = self.name(rank)
                found.update(view.clients(at))
        return found

    def _chosen(self, wanted: Filter, ranks: list[range] | None) -> Sequence[int]:
        """Clients that can have a record that matches, ascending."""
        clients = self.table("clients")
        chosen: Sequence[int] = range(len(clients)) if ranks is None else sorted(self._visitors(ranks))
        if wanted.client or wanted.mac or wanted.sessions is not None:
            return [number for number in chosen if wanted.is_of(*clients[number][:3])]
        return chosen

    def _kept(
        self, wanted: Filter, offsets: Sequence[int], anytime: frozenset[int], place: int
    ) -> Iterator[Selected | None]:
        columns, seqs, epochs = read_kept(self.load(place), self.bounds(place)[0])
        yield None
        found = []
        for at, event in wanted.select(columns):
            wall_ms = event.at_ms + offsets[epochs[at]]
            if wanted.since_ms <= wall_ms < wanted.until_ms or epochs[at] in anytime:
                found.append(Selected(wall_ms, seqs[at], 0, epochs[at], event))
        yield from sorted(found, key=itemgetter(3, 0, 1))


def read_kept(data: bytes, first_seq: int = 0) -> tuple[Columns, list[int], array[int]]:
    """What `seal.pack_kept` gave: the records, and for each its number and its epoch. Raises: CorruptError.

    `first_seq`: the part's `first`.
    """
    plain, steps, epochs = split(data, 3)
    columns, numbers, places = unpack_plain(expand(plain)), unpack_numbers(steps), unpack_numbers(epochs)
    if not len(columns) == len(numbers) == len(places):
        raise CorruptError("kept: columns of different lengths")
    return columns, [first_seq + step for step in accumulate(numbers)], places


class _Reader:
    """Folded records of the clients of one block."""

    def __init__(
        self,
        sealed: Sealed,
        place: int,
        number: int,
        start: int,
        wanted: Filter,
        ranks: list[range] | None,
        offsets: Sequence[int],
        anytime: frozenset[int],
    ) -> None:
        self._anytime = anytime
        self._sealed, self._wanted, self._offsets, self._start, self._number = sealed, wanted, offsets, start, number
        self._first, _ = sealed.bounds(place)
        self._block: BlockView = read_block(sealed.load(place))
        self._flow_view: FlowsView | None = None
        self._exact_columns: tuple[array[int], array[int]] | None = None
        self._quantum_ms = QUANTUM_MS[sealed.level]
        self._shapes, self._members = sealed.table("shapes"), sealed.table("folds")
        self._events_of, self._flows_of = sealed.fold_sizes
        self._find = self._finder(ranks)

    def records(self, client: int) -> Iterator[Selected | None]:
        """One client's, oldest first."""
        block, sealed, offsets = self._block, self._sealed, self._offsets
        row: Client = sealed.table("clients")[client]
        epoch = row[4]
        at = client - self._first
        begin, end = block.records[at], block.records[at + 1]
        unit_ms, offset = self._quantum_ms, offsets[epoch]
        time = _Running(block.steps, begin)
        events = _Running(block.folds, begin, self._events_of)
        flows = _Running(block.folds, begin, self._flows_of)
        further = _Running(block.further, begin) if block.further.octets else None
        base = sealed.table("bases")[epoch]
        since, until = self._wanted.since_ms - offset, self._wanted.until_ms - offset
        if epoch in self._anytime:
            since, until = -1 << 62, 1 << 62
        waiting: list[Selected] = []
        for record in self._find(begin, end):
            unit = time.upto(record + 1)
            at_ms = base + unit * unit_ms
            if at_ms + unit_ms <= since:
                continue
            if at_ms >= until:
                break
            seq = self._start + block.events[at] + events.upto(record)
            more = 0
            if further is not None:
                before = further.upto(record)
                more = further.upto(record + 1) - before
                seq += before
            flow = block.flows[at] + flows.upto(record)
            place = block.events[at] + events.upto(record)
            found = self._of_record(row, record, at_ms, seq, flow, more, place)
            if self._sealed.level != Level.EXACT:
                yield from found
                continue
            # Within a second records stand in order of their names.
            if waiting and waiting[0].wall_ms // 1000 != (at_ms + offset) // 1000:
                yield from sorted(waiting, key=itemgetter(0, 1))
                waiting = []
            waiting += found
        yield from sorted(waiting, key=itemgetter(0, 1))

    def count(self, client: int, found: dict[int, list[int]]) -> None:
        """Add one client's accesses to [how many, first, last] of each name."""
        block, at = self._block, client - self._first
        rows = slice(block.records[at], block.records[at + 1])
        epoch = self._sealed.table("clients")[client][4]
        start_ms, unit_ms = self._sealed.table("bases")[epoch] + self._offsets[epoch], self._quantum_ms
        events_of, further = self._events_of.all, self._further[rows] if self._further else repeat(0)
        for unit, name, fold, more in zip(
            accumulate(self._steps[rows]), block.names[rows], self._folds[rows], further, strict=False
        ):
            wall_ms = start_ms + unit * unit_ms
            if not self._overlaps(wall_ms, unit_ms):
                continue
            entry = found.get(name)
            if entry is None:
                found[name] = [events_of[fold] + more, wall_ms, wall_ms]
            else:
                entry[0] += events_of[fold] + more
                entry[1], entry[2] = min(entry[1], wall_ms), max(entry[2], wall_ms)

    @cached_property
    def _steps(self) -> list[int]:
        return self._block.steps.all()

    @cached_property
    def _folds(self) -> list[int]:
        return self._block.folds.all()

    @cached_property
    def _further(self) -> list[int]:
        return self._block.further.all()

    def _of_record(
        self, row: Client, record: int, at_ms: int, seq: int, flow: int, further: int, exact: int
    ) -> Iterator[Selected]:
        address, mac, session, group, epoch = row
        wanted, sealed = self._wanted, self._sealed
        view, place = sealed.name(self._block.names[record])
        name = reversed_labels(view.keys[place])
        level, unit_ms = sealed.level, self._quantum_ms
        is_exact = level == Level.EXACT
        offset = self._offsets[epoch]
        for at, shape_id in enumerate(self._members[self._fold(record)]):
            shape = self._shapes[shape_id]
            when = at_ms + (self._exact()[0][exact + at] if is_exact else 0)
            event: Event
            if shape[0] == LOOK_UP:
                _, qtype, rcode, verdict, reason, rule, cached = shape
                known = tuple(view.addresses(place)[:MAX_ANSWERS]) if qtype in _ADDRESSES else ()
                event = Dns(
                    when, address, name, qtype, rcode, verdict, reason, rule, group, known, cached, 0, mac, session
                )
            else:
                _, dport, protocol, seen, blind, verdict, reason, rule, agreement, method = shape
                flows = self._flows()
                dst = view.addresses(place)[flows.places[flow]] if flows is not None else b""
                sport = self._exact()[1][flow] if is_exact else 0
                path = flows.path(flow) if flows is not None and (method or seen == Seen.HTTP) else ""
                event = Flow(
                    when, address, mac, sport, dst, dport, protocol, name, seen, blind, path, verdict, reason, rule,
                    group, agreement, method, session,
                )  # fmt: skip
                flow += 1
            wall_ms = when + offset
            is_in_time = epoch in self._anytime or self._overlaps(wall_ms, 1 if is_exact else unit_ms)
            if is_in_time and wanted.kind in (None, type(event)):
                times = 1 + further if at == 0 else 1
                part = 1 + level
                yield Selected(wall_ms, seq + at, part, epoch, event, times, 1 if is_exact else unit_ms)

    def _overlaps(self, wall_ms: int, length_ms: int) -> bool:
        """Whole seconds are taken as their beginning; what stands for longer is asked for by any part of it."""
        wanted = self._wanted
        if length_ms <= 1000:
            return wanted.since_ms <= wall_ms < wanted.until_ms
        return wall_ms < wanted.until_ms and wall_ms + length_ms > wanted.since_ms

    def _fold(self, record: int) -> int:
        folds = self._block.folds
        fold = folds.octets[record]
        return fold if fold != ESCAPE else int(folds.long[folds.octets.count(ESCAPE, 0, record)])

    def _finder(self, ranks: list[range] | None) -> Callable[[int, int], Sequence[int]]:
        """Records between two places whose names are wanted, ascending."""
        if ranks is None:
            return range
        names = self._block.names
        wanted = {rank for found in ranks for rank in found}
        if len(wanted) > _FEW_RANKS:
            return lambda begin, end: [at for at in range(begin, end) if names[at] in wanted]
        octets, size = names.tobytes(), names.itemsize
        patterns = [array(names.typecode, (rank,)).tobytes() for rank in wanted if rank < 1 << (8 * size)]

        def find(begin: int, end: int) -> list[int]:
            hits: list[int] = []
            for pattern in patterns:
                at = octets.find(pattern, begin * size, end * size)
                while at >= 0:
                    if not at % size:
                        hits.append(at // size)
                        at += size - 1
                    at = octets.find(pattern, at + 1, end * size)
            hits.sort()
            return hits

        return find

    def _flows(self) -> FlowsView | None:
        if self._flow_view is None:
            places = self._sealed.places("flows")
            self._flow_view = FlowsView(self._sealed.load(places[self._number])) if places else None
        return self._flow_view

    def _exact(self) -> tuple[array[int], array[int]]:
        if self._exact_columns is None:
            self._exact_columns = read_exact(self._sealed.load(self._sealed.places("exact")[self._number]))
        return self._exact_columns


class Weights:
    """What each number of a column stands for when a stretch of it is summed up."""

    __slots__ = ("all", "table")

    def __init__(self, weights: list[int]) -> None:
        self.all = weights
        # The octet that says "see there" counts for nothing, what is there is added by itself.
        small = [min(weight, 255) for weight in weights[:ESCAPE]]
        self.table = bytes(small + [0] * (256 - len(small)))


_WITHOUT_ESCAPE: Final = bytes((*range(ESCAPE), 0))


class _Running:
    """The sum of a column from one place on, up to places further and further on; in steps that C does."""

    __slots__ = ("_at", "_column", "_extra", "_long", "_octets", "_table", "_total", "_weights")

    def __init__(self, column: Small, begin: int, weights: Weights | None = None) -> None:
        """`weights`: what each number stands for; None: itself."""
        self._octets, self._long, self._at, self._total = column.octets, column.long, begin, 0
        self._extra = column.octets.count(ESCAPE, 0, begin) if column.long else 0
        self._weights = weights.all if weights is not None else None
        self._table = weights.table if weights is not None else _WITHOUT_ESCAPE if column.long else None

    def upto(self, end: int) -> int:
        """The sum of what is before `end`."""
        if end > self._at:
            piece = self._octets[self._at : end]
            self._total += sum(piece.translate(self._table)) if self._table is not None else sum(piece)
            if self._long:
                for _ in range(piece.count(ESCAPE)):
                    value = self._long[self._extra]
                    self._total += value if self._weights is None else self._weights[value]
                    self._extra += 1
            self._at = end
        return self._total


def _merged(streams: list[Iterator[Selected | None]]) -> Iterator[Selected | None]:
    """Streams that are in order as one that is, passing on their turns for others."""
    # By stretches of an even clock first: where it was put back, time goes on and the wall clock does not.
    heap: list[tuple[int, int, int, int, Selected, Iterator[Selected | None]]] = []
    for place, stream in enumerate(streams):
        for found in stream:
            if found is None:
                yield None
                continue
            heap.append((found.epoch, found.wall_ms, found.seq, place, found, stream))
            break
        yield None
    heapq.heapify(heap)
    while heap:
        _, _, _, place, first, stream = heap[0]
        yield first
        for found in stream:
            if found is None:
                yield None
                continue
            heapq.heapreplace(heap, (found.epoch, found.wall_ms, found.seq, place, found, stream))
            break
        else:
            heapq.heappop(heap)


def open_closed(path: str, number: int) -> Segment | Sealed:
    """A closed segment, sealed or not yet. Raises: StorageError, CorruptError."""
    row = db = None
    try:
        db = opened(path)
        row = db.execute("SELECT v FROM meta WHERE k = 'format'").fetchone()
    except (sqlite3.DatabaseError, ValueError):
        pass  # the constructor below says what is wrong
    if db is not None and row and row[0] == FORMAT:
        return Sealed(path, number, db)
    if db is not None:
        db.close()
    return Segment(path, number, is_open=False)


def opened(path: str) -> sqlite3.Connection:
    """A file that nobody writes any more. Raises: sqlite3.DatabaseError."""
    return sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True, isolation_level=None)
