"""Sealing: a closed segment of batches becomes one of columns, a fifth of its size. Runs in a child process, niced.

Accesses that were let through are sorted by client and second, and what one client did with one name in one second
is folded into one record. Of these the milliseconds, the source port, the latency and the cache flag are given up;
everything else, and every other record whole, stays. docs/ring-format.md says it field by field.
Rule: the sealed file takes the place of the other by one rename, after fsync, and after it was read back.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import sys
from array import array
from collections.abc import Iterator
from itertools import groupby
from typing import Final

import msgpack

from policy.errors import CorruptError, StorageError
from policy.event import TAG_OF, Dns, Event, Flow
from storage import chain
from storage.batch import unpack
from storage.clock import Sample
from storage.column import Form, join, pack_numbers, pack_plain, pack_values, squeeze
from storage.hot import Segment

FORMAT: Final = 2
TEMPORARY: Final = ".tmp"
NAMES_A_PART: Final = 1024
RECORDS_A_BLOCK: Final = 60_000
"""Folded records, some 130,000 events: cut between clients, so a little more."""
HASH_SIZE: Final = 16
STEP_MS: Final = 250
"""A clock that was moved by less keeps its offset: seconds are kept, and they stay right within one."""

# An access while it is sorted is one 64-bit number: second, name and tail. What does not fit is kept whole.
_TIME_BITS: Final = 20
_NAME_BITS: Final = 22
_TAIL_BITS: Final = 64 - _TIME_BITS - _NAME_BITS

_SCHEMA: Final = """
CREATE TABLE meta(k TEXT PRIMARY KEY, v) WITHOUT ROWID;
CREATE TABLE part(id INTEGER PRIMARY KEY, kind TEXT NOT NULL, first INT NOT NULL, last INT NOT NULL, data BLOB NOT NULL)
"""


def seal(source: str, number: int, target: str) -> None:
    """Write the sealed form of a closed segment to `target`, on flash when this returns.

    Raises: StorageError; CorruptError if the source's chain does not hold: what was altered is not sealed as right.
    """
    segment = Segment(source, number, is_open=False)
    try:
        gathered = _Gathered(segment)
    finally:
        segment.close()
    try:
        if os.path.exists(target):
            os.unlink(target)
        _write(target, gathered)
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except sqlite3.Error as error:
        raise StorageError(f"{target}: {error}") from None
    except OSError as error:
        raise StorageError(f"{target}: {error.strerror}") from None


class _Gathered:
    """Everything of a segment, sorted into what is folded and what is kept whole."""

    def __init__(self, segment: Segment) -> None:
        self.number = segment.number
        self.first_seq, self.before = segment.first_seq, segment.before
        self.next_seq, self.head = segment.next_seq, segment.head
        self.epochs: list[Sample] = []
        """Clock readings: one for each stretch in which the wall clock kept its distance from the time since boot."""
        self.bases: list[int] = []
        """For each epoch the first second of its folded records."""
        self.clients: dict[tuple[bytes, bytes, str, str, int], array[int]] = {}
        self.names: dict[str, int] = {}
        self.shapes: dict[tuple[object, ...], int] = {}
        self.tails: dict[tuple[int, bytes, str], int] = {}
        self.addresses: list[dict[bytes, int]] = []
        """For each name the addresses it was answered with or reached at."""
        self.whole: dict[type[Event], list[tuple[int, int, Event]]] = {}
        self._gather(segment)

    def _gather(self, segment: Segment) -> None:
        head, next_seq = segment.before, segment.first_seq
        for batch in segment.batches():
            head = chain.link(head, segment.number, batch.seq, batch.records, batch.sample, batch.data)
            if batch.seq != next_seq or head != batch.link:
                raise CorruptError(f"segment {segment.number}: batch {batch.seq} is not what was written")
            events = unpack(batch.data)
            if len(events) != batch.records:
                raise CorruptError(f"segment {segment.number}: batch {batch.seq}: its count is not what was written")
            epoch = self._epoch(batch.sample, batch.t0)
            for seq, event in enumerate(events, batch.seq):
                if (
                    (type(event) is not Dns and type(event) is not Flow)
                    or event.verdict
                    or not self._fold(event, epoch)
                ):
                    self.whole.setdefault(type(event), []).append((seq, epoch, event))
            next_seq = batch.seq + batch.records

    def _epoch(self, sample: Sample, t0: int) -> int:
        for place in range(len(self.epochs) - 1, max(len(self.epochs) - 9, -1), -1):
            known = self.epochs[place]
            moved = sample.wall_ms - sample.boottime_ms - known.wall_ms + known.boottime_ms
            if (known.boot, known.synced) == (sample.boot, sample.synced) and abs(moved) < STEP_MS:
                return place
        self.epochs.append(sample)
        self.bases.append(max(0, t0 // 1000 - 3600))
        return len(self.epochs) - 1

    def _fold(self, event: Dns | Flow, epoch: int) -> bool:
        """False: it does not fit, and is kept whole."""
        name = self.names.get(event.name)
        if name is None:
            if len(self.names) >> _NAME_BITS:
                return False
            name = self.names[event.name] = len(self.names)
            self.addresses.append({})
        second = event.at_ms // 1000 - self.bases[epoch]
        if second < 0 or second >> _TIME_BITS or "\n" in event.name:
            return False
        if type(event) is Flow and "\n" in event.path:
            return False
        known = self.addresses[name]
        if type(event) is Dns:
            shape: tuple[object, ...] = (1, event.qtype, event.rcode, event.verdict, event.reason, event.rule)
            tail_key = (self.shapes.setdefault(shape, len(self.shapes)), b"", "")
            for address in event.answers:
                if address not in known:
                    known[address] = len(known)
        else:
            assert type(event) is Flow
            shape = (2, event.dport, event.protocol, event.seen, event.blind, event.verdict, event.reason, event.rule)
            shape += (event.agreement, event.method)
            if event.dst not in known:
                known[event.dst] = len(known)
            tail_key = (self.shapes.setdefault(shape, len(self.shapes)), event.dst, event.path)
        tail = self.tails.get(tail_key)
        if tail is None:
            if len(self.tails) >> _TAIL_BITS:
                return False
            tail = self.tails[tail_key] = len(self.tails)
        client = (event.client, event.mac, event.session, event.group, epoch)
        events = self.clients.get(client)
        if events is None:
            events = self.clients[client] = array("Q")
        events.append((second << _NAME_BITS | name) << _TAIL_BITS | tail)
        return True


class _Block:
    """Folded records of some clients, as columns."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.counts: list[int] = []
        self.steps = bytearray()
        """Seconds since the record before; 255: the next of `long_steps`."""
        self.long_steps: list[int] = []
        self.names: array[int] = array("I")
        self.folds: array[int] = array("I")
        self.places: array[int] = array("I")
        """For each flow, which of its name's addresses it went to."""
        self.paths: list[str] = []

    def packed(self) -> bytes:
        return join(
            (
                pack_numbers(self.counts),
                squeeze(bytes(self.steps), Form.BYTES),
                pack_numbers(self.long_steps),
                pack_numbers(self.names),
                pack_numbers(self.folds),
                pack_numbers(self.places),
                squeeze("\n".join(self.paths).encode("utf-8", "surrogatepass"), Form.TEXT),
            )
        )


def _write(target: str, gathered: _Gathered) -> None:
    db = sqlite3.connect(target, isolation_level=None)
    os.chmod(target, 0o600)
    for pragma in ("page_size=1024", "journal_mode=OFF", "synchronous=OFF"):
        db.execute(f"PRAGMA {pragma}")
    db.executescript(_SCHEMA)
    db.execute("BEGIN")
    hashes: list[bytes] = []
    for kind, first, last, data in _parts(gathered):
        db.execute("INSERT INTO part VALUES(?,?,?,?,?)", (len(hashes), kind, first, last, data))
        hashes.append(hash_of(len(hashes), kind, first, last, data))
    meta: dict[str, object] = {
        "format": FORMAT,
        "segment": gathered.number,
        "first_seq": gathered.first_seq,
        "next_seq": gathered.next_seq,
        "before": gathered.before,
        "head": gathered.head,
        "hashes": b"".join(hashes),
    }
    meta["root"] = root_of(meta)
    db.executemany("INSERT INTO meta VALUES(?,?)", meta.items())
    db.execute("COMMIT")
    db.close()


def hash_of(place: int, kind: str, first: int, last: int, data: bytes) -> bytes:
    """Of one part with its place."""
    digest = hashlib.blake2b(msgpack.packb((place, kind, first, last)), digest_size=HASH_SIZE)
    digest.update(data)
    return digest.digest()


def root_of(meta: dict[str, object]) -> bytes:
    """Of a whole sealed segment: what is signed, and anchored upstream."""
    names = ("format", "segment", "first_seq", "next_seq", "before", "head", "hashes")
    return hashlib.blake2b(msgpack.packb([meta.get(name) for name in names]), digest_size=32).digest()


def reversed_labels(name: str) -> str:
    """`www.example.com` as `com.example.www`: a domain and all below it lie side by side."""
    return ".".join(name.split(".")[::-1])


def _parts(gathered: _Gathered) -> Iterator[tuple[str, int, int, bytes]]:
    clients = sorted(gathered.clients)
    events = [len(gathered.clients[client]) for client in clients]
    order = sorted((reversed_labels(name), place) for name, place in gathered.names.items())
    rank = array("I", bytes(4 * len(order)))
    for at, (_, place) in enumerate(order):
        rank[place] = at
    tails = list(gathered.tails)
    postings: list[array[int]] = [array("H" if len(clients) < 1 << 16 else "I") for _ in order]
    folds: dict[tuple[int, ...], int] = {}
    blocks = _blocks(gathered, clients, rank, tails, postings, folds)
    for block in blocks:
        yield "block", block.first, block.first + len(block.counts) - 1, block.packed()
    for first in range(0, len(order), NAMES_A_PART):
        some = order[first : first + NAMES_A_PART]
        yield "names", first, first + len(some) - 1, _names(gathered, some, postings[first : first + len(some)])
    for kind, kept in sorted(gathered.whole.items(), key=lambda item: TAG_OF[item[0]]):
        columns = zip(*((seq, epoch, *event) for seq, epoch, event in kept), strict=True)
        yield "whole", TAG_OF[kind], len(kept), join([pack_values(column) for column in columns])
    tables = {
        "clients": clients,
        "shapes": list(gathered.shapes),
        "folds": list(folds),
        "epochs": gathered.epochs,
        "bases": gathered.bases,
        "first_names": [order[first][0] for first in range(0, len(order), NAMES_A_PART)],
        "events": events,
    }
    yield "tables", 0, 0, pack_plain(tables)


def _blocks(
    gathered: _Gathered,
    clients: list[tuple[bytes, bytes, str, str, int]],
    rank: array[int],
    tails: list[tuple[int, bytes, str]],
    postings: list[array[int]],
    folds: dict[tuple[int, ...], int],
) -> Iterator[_Block]:
    flow_shapes = {place for shape, place in gathered.shapes.items() if shape[0] == 2}
    is_flow = [shape in flow_shapes for shape, _, _ in tails]
    alone = [folds.setdefault((shape,), len(folds)) for shape, _, _ in tails]
    name_mask, tail_mask = (1 << _NAME_BITS) - 1, (1 << _TAIL_BITS) - 1
    block = _Block(0)
    for number, client in enumerate(clients):
        before, records, seen = 0, 0, set()
        for key, group in groupby(sorted(gathered.clients.pop(client)), key=_TAIL_BITS.__rrshift__):
            second, name = key >> _NAME_BITS, key & name_mask
            members = [member & tail_mask for member in group]
            if len(members) == 1:
                fold = alone[members[0]]
            else:
                members.sort(key=lambda tail: tails[tail][0])
                shape_ids = tuple([tails[tail][0] for tail in members])
                fold = folds.setdefault(shape_ids, len(folds))
            step = second - before
            before = second
            if step < 255:
                block.steps.append(step)
            else:
                block.steps.append(255)
                block.long_steps.append(step)
            block.names.append(rank[name])
            block.folds.append(fold)
            for tail in members:
                if is_flow[tail]:
                    _, address, path = tails[tail]
                    block.places.append(gathered.addresses[name][address])
                    block.paths.append(path)
            seen.add(rank[name])
            records += 1
        block.counts.append(records)
        for at in seen:
            postings[at].append(number)
        if len(block.names) >= RECORDS_A_BLOCK:
            yield block
            block = _Block(number + 1)
    if block.counts:
        yield block


def _names(gathered: _Gathered, some: list[tuple[str, int]], postings: list[array[int]]) -> bytes:
    """A stretch of names, with who asked for each and which addresses it had."""
    text = "\n".join([name for name, _ in some])
    steps: list[int] = []
    for clients in postings:
        before = 0
        for client in clients:
            steps.append(client - before)
            before = client
    addresses = [list(gathered.addresses[place]) for _, place in some]
    packed = b"".join([bytes((len(address),)) + address for known in addresses for address in known])
    return join(
        (
            squeeze(text.encode("utf-8", "surrogatepass"), Form.TEXT),
            pack_numbers([len(clients) for clients in postings]),
            pack_numbers(steps),
            pack_numbers([len(known) for known in addresses]),
            squeeze(packed, Form.TEXT),
        )
    )


def main(arguments: list[str]) -> None:
    """The child: SOURCE NUMBER TARGET. Says what was wrong on standard error."""
    from storage.sealed import Sealed

    source, number, target = arguments
    os.nice(19)
    try:
        seal(source, int(number), target)
        sealed = Sealed(target, int(number))
        for _ in sealed.check():
            pass
        sealed.close()
    except StorageError as error:
        sys.exit(str(error))
