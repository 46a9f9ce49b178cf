"""Sealing: a closed segment of batches becomes one of columns, a tenth of its size.

Accesses that were let through are sorted by client and second, and what one client did with one name in one second
is folded into one record. docs/ring-format.md says field by field what is given up; every other record stays whole.
Rule: the sealed file takes the place of the other by one rename, after fsync, and after it was read back.
"""

from __future__ import annotations

import os
import sqlite3
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import msgpack

from policy.errors import CorruptError, StorageError
from policy.event import Event
from policy.signature import sign
from storage import chain
from storage.batch import Columns, event_of, is_look_up, pack_plain, unpack, verdict_of
from storage.batch import Shape as BatchShape
from storage.clock import Sample
from storage.column import Form, join, pack_numbers, squeeze
from storage.hot import Batch, Segment
from storage.layout import (
    FLOW,
    FORMAT,
    KEPT_A_PART,
    LOOK_UP,
    NAMES_A_PART,
    RECORDS_A_BLOCK,
    Block,
    Client,
    Level,
    Names,
    Shape,
    hash_of,
    pack_exact,
    pack_names,
    reversed_labels,
    root_of,
)

STEP_MS: Final = 250
"""A clock that was moved by less keeps its offset: seconds are kept, and they stay right within one."""
MEMBERS: Final = 64
"""Events folded into one record: a client that asks a hundred times in a second makes two."""
_SLACK_S: Final = 3600
"""How much older than its batch's first record a record of the same epoch may be and still be folded."""

# An access while it is sorted is one number: second, name and tail, and in an exact segment two more below them.
_TIME_BITS: Final = 20
_NAME_BITS: Final = 22
_TAIL_BITS: Final = 22
_MS_BITS: Final = 10
_NUMBER_BITS: Final = 16
_FIRST_FLOW: Final = 1 << 16
"""Tails of look-ups are below it, those of flows from here on: so a look-up comes before the flow it led to."""

_SCHEMA: Final = """
CREATE TABLE meta(k TEXT PRIMARY KEY, v) WITHOUT ROWID;
CREATE TABLE part(id INTEGER PRIMARY KEY, kind TEXT NOT NULL, first INT NOT NULL, last INT NOT NULL, data BLOB NOT NULL)
"""


class Part(NamedTuple):
    """One row of a sealed segment."""

    kind: str
    first: int
    last: int
    data: bytes


class Description(NamedTuple):
    """What a sealed segment says of itself."""

    level: Level
    number: int
    first_seq: int
    next_seq: int
    before: bytes
    head: bytes
    derived_from: tuple[bytes, ...] = ()
    """Roots and signatures of the forms it had before, newest first."""


def seal(source: str, number: int, target: str, *, level: Level = Level.SECOND, secret: bytes = b"") -> None:
    """Write the sealed form of a closed segment to `target`, on flash when this returns.

    `level`: EXACT or SECOND. `secret`: signs the root; empty: it stays unsigned.
    Raises: StorageError; CorruptError if the source's chain does not hold: what was altered is not sealed as right.
    """
    segment = Segment(source, number, is_open=False)
    try:
        gathered = _Gathered(segment, is_exact=level == Level.EXACT)
        described = Description(level, number, segment.first_seq, segment.next_seq, segment.before, segment.head)
    finally:
        segment.close()
    write(target, described, _parts(gathered), secret)


def write(target: str, described: Description, parts: Iterable[Part], secret: bytes) -> None:
    """A sealed segment, on flash when this returns. Raises: StorageError."""
    try:
        if os.path.exists(target):
            os.unlink(target)
        db = sqlite3.connect(target, isolation_level=None)
        try:
            _fill(db, target, described, parts, secret)
        finally:
            db.close()
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except sqlite3.Error as error:
        raise StorageError(f"{target}: {error}") from None
    except OSError as error:
        raise StorageError(f"{target}: {error.strerror}") from None


def _fill(db: sqlite3.Connection, target: str, described: Description, parts: Iterable[Part], secret: bytes) -> None:
    os.chmod(target, 0o600)
    # Nothing is lost with a temporary file: its one fsync comes at the end.
    for pragma in ("page_size=1024", "journal_mode=OFF", "synchronous=OFF"):
        db.execute(f"PRAGMA {pragma}")
    db.executescript(_SCHEMA)
    db.execute("BEGIN")
    hashes: list[bytes] = []
    for part in parts:
        db.execute("INSERT INTO part VALUES(?,?,?,?,?)", (len(hashes), *part))
        hashes.append(hash_of(len(hashes), *part))
    meta: dict[str, object] = {
        "format": FORMAT,
        "level": int(described.level),
        "segment": described.number,
        "first_seq": described.first_seq,
        "next_seq": described.next_seq,
        "before": described.before,
        "head": described.head,
        "derived_from": b"".join(described.derived_from),
        "hashes": b"".join(hashes),
    }
    root = root_of(meta)
    meta["root"], meta["signature"] = root, sign(secret, root) if secret else b""
    db.executemany("INSERT INTO meta VALUES(?,?)", meta.items())
    db.execute("COMMIT")


class _Kept:
    """Records that are kept whole, with their numbers and epochs, in the order they came."""

    def __init__(self) -> None:
        self.columns = Columns()
        self.seqs: list[int] = []
        self.epochs: list[int] = []


class _Gathered:
    """Everything of a segment, sorted into what is folded and what is kept whole."""

    def __init__(self, segment: Segment, *, is_exact: bool) -> None:
        self.is_exact = is_exact
        self.first_seq = segment.first_seq
        self.epochs: list[Sample] = []
        """Clock readings: one for each stretch in which the wall clock kept its distance from the time since boot."""
        self.bases: list[int] = []
        """For each epoch the time since boot, in ms, that its folded records are counted from."""
        self.spans: list[tuple[int, int]] = []
        """For each epoch its earliest and its latest record, in ms since boot."""
        self.clients: dict[Client, array[int] | list[int]] = {}
        self.names: dict[str, int] = {}
        self.kept_names: set[str] = set()
        self.shapes: dict[Shape, int] = {}
        self.look_ups: dict[int, int] = {}
        """Shape -> tail."""
        self.flows: dict[tuple[int, bytes, str], int] = {}
        """Shape, address, path -> tail less _FIRST_FLOW."""
        self.addresses: list[dict[bytes, int]] = []
        """For each name the addresses it was answered with or reached at."""
        self.kept: list[_Kept] = [_Kept()]
        head, next_seq = segment.before, segment.first_seq
        for batch in segment.batches():
            head = chain.link(head, segment.number, batch.seq, batch.records, batch.sample, batch.data)
            if batch.seq != next_seq or head != batch.link:
                raise CorruptError(f"segment {segment.number}: batch {batch.seq} is not what was written")
            columns = unpack(batch.data)
            if len(columns) != batch.records:
                raise CorruptError(f"segment {segment.number}: batch {batch.seq}: its count is not what was written")
            self._take(batch, columns)
            next_seq = batch.seq + batch.records

    def _epoch(self, batch: Batch) -> int:
        sample = batch.sample
        for place in range(len(self.epochs) - 1, max(len(self.epochs) - 9, -1), -1):
            known = self.epochs[place]
            moved = sample.wall_ms - sample.boottime_ms - known.wall_ms + known.boottime_ms
            if (known.boot, known.synced) == (sample.boot, sample.synced) and abs(moved) < STEP_MS:
                return place
        self.epochs.append(sample)
        self.spans.append((batch.t0, batch.t1))
        self.bases.append(max(0, batch.t0 // 1000 - _SLACK_S) * 1000)
        return len(self.epochs) - 1

    def _take(self, batch: Batch, columns: Columns) -> None:
        epoch = self._epoch(batch)
        earliest, latest = self.spans[epoch]
        self.spans[epoch] = min(earliest, batch.t0), max(latest, batch.t1)
        base = self.bases[epoch] // 1000
        names = [self._name(name) for name in columns.names]
        fits = base * 1000 <= batch.t0 and batch.t1 // 1000 - base < 1 << _TIME_BITS
        fits = fits and max(names, default=0) < 1 << _NAME_BITS
        shapes, targets, whos = list(columns.shapes), list(columns.targets), list(columns.whos)
        folded = [fits and not verdict_of(shape) for shape in shapes]
        self._note_addresses(columns, shapes, folded, names, targets)
        tails = [
            self._tails(shape, targets) if is_folded else None for shape, is_folded in zip(shapes, folded, strict=True)
        ]
        put = [
            self._appenders(shape, whos, epoch) if is_folded else []
            for shape, is_folded in zip(shapes, folded, strict=True)
        ]
        # The loop that every access passes: nothing is looked up here that a table above can give.
        kept: list[int] = []
        rows = zip(columns.at_ms, columns.shape, columns.name, columns.target, columns.who, strict=True)
        if self.is_exact:
            for at, (at_ms, shape, name, target, who) in enumerate(rows):
                tail_of, number = tails[shape], columns.number[at]
                if tail_of is None or number >> _NUMBER_BITS:
                    kept.append(at)
                    continue
                key = ((at_ms // 1000 - base) << _NAME_BITS | names[name]) << _TAIL_BITS | tail_of(target)
                put[shape][who]((key << _MS_BITS | at_ms % 1000) << _NUMBER_BITS | number)
        else:
            for at, (at_ms, shape, name, target, who) in enumerate(rows):
                tail_of = tails[shape]
                if tail_of is None:
                    kept.append(at)
                    continue
                put[shape][who](((at_ms // 1000 - base) << _NAME_BITS | names[name]) << _TAIL_BITS | tail_of(target))
        if kept or columns.others:
            self._keep(batch, columns, kept, epoch)

    def _name(self, name: str) -> int:
        name = _line(name)
        place = self.names.get(name)
        if place is None:
            place = self.names[name] = len(self.names)
            self.addresses.append({})
        return place

    def _note_addresses(
        self,
        columns: Columns,
        shapes: Sequence[BatchShape],
        folded: Sequence[bool],
        names: Sequence[int],
        targets: Sequence[tuple[object, ...]],
    ) -> None:
        answering = [is_look_up(shape) and is_folded for shape, is_folded in zip(shapes, folded, strict=True)]
        for shape, name, target in set(zip(columns.shape, columns.name, columns.target, strict=True)):
            if folded[shape]:
                known = self.addresses[names[name]]
                for address in targets[target] if answering[shape] else targets[target][:1]:
                    known.setdefault(address, len(known))  # type: ignore[arg-type]  # octets, as `unpack` has checked

    def _tails(self, shape: BatchShape, targets: Sequence[tuple[object, ...]]) -> Callable[[int], int]:
        """Place of a target in its batch -> tail. A tail is what a record has beyond client, second and name."""
        if is_look_up(shape):
            (qtype, rcode, verdict, reason, rule, _), cached = shape
            row: Shape = (LOOK_UP, qtype, rcode, verdict, reason, rule, bool(cached) and self.is_exact)
            place = self.shapes.setdefault(row, len(self.shapes))
            tail = self.look_ups.setdefault(place, len(self.look_ups))
            return lambda _: tail
        ports, seen, (verdict, reason, rule, _, agreement, method) = shape
        row = (FLOW, *ports, *seen, verdict, reason, rule, agreement, method)
        place = self.shapes.setdefault(row, len(self.shapes))
        flows: list[int | None] = [None] * len(targets)

        def tail_of(target: int) -> int:
            found = flows[target]
            if found is None:
                address, path = targets[target]
                key = (place, address, _line(str(path)))
                found = flows[target] = _FIRST_FLOW + self.flows.setdefault(key, len(self.flows))  # type: ignore[arg-type]
            return found

        return tail_of

    def _appenders(
        self, shape: BatchShape, whos: Sequence[tuple[bytes, bytes, str]], epoch: int
    ) -> list[Callable[[int], None]]:
        group = shape[0][5] if is_look_up(shape) else shape[2][3]
        found = []
        for who in whos:
            client = (*who, group, epoch)
            events = self.clients.get(client)
            if events is None:
                events = self.clients[client] = [] if self.is_exact else array("Q")
            found.append(events.append)
        return found

    def _keep(self, batch: Batch, columns: Columns, accesses: Sequence[int], epoch: int) -> None:
        kept = self.kept[-1]
        if len(kept.seqs) >= KEPT_A_PART:
            kept = _Kept()
            self.kept.append(kept)
        shapes, names = list(columns.shapes), list(columns.names)
        targets, whos = list(columns.targets), list(columns.whos)
        places = columns.places()
        rows: list[tuple[int, Event]] = [(after + at, event) for at, (after, event) in enumerate(columns.others)]
        for at in accesses:
            name = names[columns.name[at]]
            target, who = targets[columns.target[at]], whos[columns.who[at]]
            event = event_of(shapes[columns.shape[at]], name, target, who, columns.at_ms[at], columns.number[at])
            rows.append((places[at], event))
            self.kept_names.add(_line(name))
            self._name(name)
        rows.sort(key=lambda row: row[0])
        kept.columns.add(event for _, event in rows)
        kept.seqs += [batch.seq + place for place, _ in rows]
        kept.epochs += [epoch] * len(rows)


def _line(text: str) -> str:
    """A name or path as one line: neither can have a line feed in it, unless somebody means harm."""
    return text.replace("\n", "%0A") if "\n" in text else text


def _parts(gathered: _Gathered) -> Iterator[Part]:
    clients = sorted(gathered.clients)
    order = sorted((reversed_labels(name), place) for name, place in gathered.names.items())
    rank = array("I", bytes(4 * len(order)))
    for at, (_, place) in enumerate(order):
        rank[place] = at
    postings: list[array[int]] = [array("H" if len(clients) < 1 << 16 else "I") for _ in order]
    folds: dict[tuple[int, ...], int] = {}
    starts, seq = [], 0
    for block, exact in _blocks(gathered, clients, rank, postings, folds):
        last = block.first + len(block.records) - 1
        starts.append(seq)
        seq += sum(block.events)
        yield Part("block", block.first, last, block.packed(fast=True))
        yield Part("flows", block.first, last, block.packed_flows())
        if exact:
            yield Part("exact", block.first, last, pack_exact(*exact))
    for first in range(0, len(order), NAMES_A_PART):
        some = order[first : first + NAMES_A_PART]
        last = first + len(some) - 1
        names = names_of(
            [name for name, _ in some],
            postings[first : last + 1],
            [list(gathered.addresses[place]) for _, place in some],
            {reversed_labels(name) for name in gathered.kept_names},
        )
        yield Part("names", first, last, pack_names(names))
    for kept in gathered.kept:
        if kept.seqs:
            yield Part("kept", kept.seqs[0], kept.seqs[-1], pack_kept(kept.columns, kept.seqs, kept.epochs))
    yield tables(
        clients=clients,
        shapes=list(gathered.shapes),
        folds=list(folds),
        epochs=[tuple(epoch) for epoch in gathered.epochs],
        bases=gathered.bases,
        spans=gathered.spans,
        first_names=[order[first][0] for first in range(0, len(order), NAMES_A_PART)],
        starts=starts,
    )


def names_of(keys: list[str], postings: Sequence[Sequence[int]], addresses: list[list[bytes]], kept: set[str]) -> Names:
    """A stretch of names, with who asked for each."""
    steps: list[int] = []
    for clients in postings:
        before = 0
        for client in clients:
            steps.append(client - before)
            before = client
    is_kept = bytes(key in kept for key in keys)
    return Names(keys, is_kept, [len(clients) for clients in postings], steps, addresses)


def pack_kept(columns: Columns, seqs: Sequence[int], epochs: Sequence[int]) -> bytes:
    """The part `kept`."""
    steps = [after - before for before, after in zip([seqs[0], *seqs[:-1]], seqs, strict=True)]
    return join((squeeze(pack_plain(columns), Form.TEXT), pack_numbers(steps), pack_numbers(epochs)))


def tables(**values: object) -> Part:
    """The last part: what every question reads first."""
    return Part("tables", 0, 0, squeeze(msgpack.packb(values, unicode_errors="surrogatepass"), Form.TEXT, fast=True))


def _blocks(
    gathered: _Gathered,
    clients: list[Client],
    rank: array[int],
    postings: list[array[int]],
    folds: dict[tuple[int, ...], int],
) -> Iterator[tuple[Block, tuple[array[int], array[int]] | None]]:
    shape_of = {tail: shape for shape, tail in gathered.look_ups.items()}
    flows = list(gathered.flows)
    low = _MS_BITS + _NUMBER_BITS if gathered.is_exact else 0
    tail_mask, name_mask = (1 << _TAIL_BITS) - 1, (1 << _NAME_BITS) - 1
    block, exact = Block(0), (array("H"), array("H"))
    for number, client in enumerate(clients):
        second, records, events, flows_before = 0, 0, 0, len(block.places)
        seen = set()
        keys = sorted(gathered.clients.pop(client))
        for head, members in _grouped(keys, low + _TAIL_BITS):
            tails = [member >> low & tail_mask for member in members] if low else [m & tail_mask for m in members]
            if tails[-1] < _FIRST_FLOW:
                shapes = [shape_of[tail] for tail in tails]
            else:
                name_at = gathered.addresses[head & name_mask]
                shapes = []
                for tail in tails:
                    if tail < _FIRST_FLOW:
                        shapes.append(shape_of[tail])
                        continue
                    shape, address, path = flows[tail - _FIRST_FLOW]
                    shapes.append(shape)
                    block.places.append(name_at[address])
                    block.paths.append(path)
            if low:
                exact[0].extend([member >> _NUMBER_BITS & 1023 for member in members])
                exact[1].extend([m & 0xFFFF for m, tail in zip(members, tails, strict=True) if tail >= _FIRST_FLOW])
            now, name = head >> _NAME_BITS, rank[head & name_mask]
            fold = folds.setdefault(tuple(shapes), len(folds))
            block.add(now - second, name, fold, 0)
            second = now
            seen.add(name)
            records += 1
            events += len(members)
        block.records.append(records)
        block.events.append(events)
        block.flows.append(len(block.places) - flows_before)
        for name in seen:
            postings[name].append(number)
        if len(block.names) >= RECORDS_A_BLOCK:
            yield block, exact if low else None
            block, exact = Block(number + 1), (array("H"), array("H"))
    if block.records:
        yield block, exact if low else None


def _grouped(keys: list[int], bits: int) -> Iterator[tuple[int, list[int]]]:
    """Sorted keys with the same upper part, together."""
    before, members = -1, list[int]()
    for key in keys:
        head = key >> bits
        if head == before and len(members) < MEMBERS:
            members.append(key)
            continue
        if members:
            yield before, members
        before, members = head, [key]
    if members:
        yield before, members
