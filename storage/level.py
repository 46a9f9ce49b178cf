"""The ladder: a sealed segment made smaller by keeping its accesses less exactly. One sealed segment in, one out.

A step down merges what one client did with one name in a minute, five minutes, an hour or a day into one record with
a count; from five minutes on the addresses and the HTTP paths go too. Which client had an access to which name on
which day stays at every level, and every record that is kept whole (sessions, blocks, maintenance...) stays as it is.
Rule: the chain's links and all numbers of records kept whole survive; the old root and its signature are kept.
"""

from __future__ import annotations

import datetime
from array import array
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Final, NamedTuple, TypeAlias

from policy.errors import CorruptError, StorageError
from storage.clock import Sample
from storage.layout import (
    FLOW,
    LOOK_UP,
    NAMES_A_PART,
    QUANTUM_MS,
    RECORDS_A_BLOCK,
    Block,
    FlowsView,
    Level,
    Names,
    NamesView,
    Shape,
    pack_names,
    read_block,
    registrable,
)
from storage.seal import MEMBERS, Description, Part, names_of, tables, write
from storage.sealed import Sealed

_Member: TypeAlias = tuple[bool, int, int, str]
"""Is it a flow, new shape, place of its address, path."""
_OLD_ROOTS: Final = 2
"""Roots and signatures of former forms that are kept: of the one before, and of the first."""
_ROOT: Final = 32 + 64


class _Merged(NamedTuple):
    unit: int
    name: int
    members: list[_Member]
    further: int


def relevel(source: str, number: int, target: str, level: Level, secret: bytes = b"") -> None:
    """Write a sealed segment anew at a lower level of detail, on flash when this returns.

    Raises: StorageError; CorruptError if any part that is read is not what was sealed.
    """
    sealed = Sealed(source, number)
    try:
        if level <= sealed.level:
            raise StorageError(f"segment {number}: is at level {sealed.level.name}, cannot go to {level.name}")
        former = sealed.root + sealed.signature.ljust(64, b"\0")
        olds = [sealed.derived_from[at : at + _ROOT] for at in range(0, len(sealed.derived_from), _ROOT)]
        described = Description(
            level,
            number,
            sealed.first_seq,
            sealed.next_seq,
            sealed.before,
            sealed.head,
            (former, *olds[-1:])[:_OLD_ROOTS],
        )
        try:
            write(target, described, _Ladder(sealed, level).parts(), secret)
        except (LookupError, TypeError, ValueError, OverflowError) as error:  # whole, yet no segment: made so
            raise CorruptError(f"segment {number}: {error!r}") from None
    finally:
        sealed.close()


class _Ladder:
    """One step down, or several at once."""

    def __init__(self, sealed: Sealed, level: Level) -> None:
        self._sealed, self._level = sealed, level
        self._keeps_addresses = level < Level.FIVE_MINUTES
        self._shapes: dict[Shape, int] = {}
        self._new_shape = [
            self._shapes.setdefault(_reduced(shape), len(self._shapes)) for shape in sealed.table("shapes")
        ]
        self._is_flow = [shape[0] == FLOW for shape in sealed.table("shapes")]
        self._folds: dict[tuple[int, ...], int] = {}
        self._names, self._first_names = self._renamed() if level == Level.DOMAIN else self._as_they_are()
        self._bases = [
            _aligned(base, sample, QUANTUM_MS[level])
            for base, sample in zip(sealed.table("bases"), sealed.epochs, strict=True)
        ]

    def parts(self) -> Iterator[Part]:
        """Every part of the new segment."""
        sealed, starts, seq = self._sealed, [], 0
        for block in self._blocks():
            last = block.first + len(block.records) - 1
            starts.append(seq)
            seq += sum(block.events)
            yield Part("block", block.first, last, block.packed(fast=False))
            if self._keeps_addresses:
                yield Part("flows", block.first, last, block.packed_flows())
        yield from self._names
        for place in sealed.places("kept"):
            yield Part("kept", *sealed.bounds(place), sealed.load(place))
        yield tables(
            clients=sealed.table("clients"),
            shapes=list(self._shapes),
            folds=list(self._folds),
            epochs=[tuple(epoch) for epoch in sealed.epochs],
            bases=self._bases,
            spans=sealed.table("spans"),
            first_names=self._first_names,
            starts=starts,
        )

    def _as_they_are(self) -> tuple[Iterator[Part], list[str]]:
        self._rank: Sequence[int] | None = None
        return self._unaddressed(), self._sealed.table("first_names")

    def _unaddressed(self) -> Iterator[Part]:
        for place in self._sealed.places("names"):
            data = self._sealed.load(place)
            if not self._keeps_addresses:
                names = NamesView(data).whole()
                data = pack_names(Names(*names[:4], [[] for _ in names.keys]))
            yield Part("names", *self._sealed.bounds(place), data)

    def _renamed(self) -> tuple[Iterator[Part], list[str]]:
        """Names cut to what is registered; those of records kept whole stay, or these could not be found any more."""
        views = [NamesView(self._sealed.load(place)) for place in self._sealed.places("names")]
        keys = [key for view in views for key in view.keys]
        clients = [view.clients(at) for view in views for at in range(len(view.keys))]
        kept = {view.keys[at] for view in views for at in range(len(view.keys)) if view.is_kept(at)}
        ordered = sorted({*map(registrable, keys), *kept})
        place_of = {key: at for at, key in enumerate(ordered)}
        self._rank = [place_of[registrable(key)] for key in keys]
        holders: list[set[int]] = [set() for _ in ordered]
        for rank, some in zip(self._rank, clients, strict=True):
            holders[rank].update(some)
        firsts = range(0, len(ordered), NAMES_A_PART)
        parts = []
        for first in firsts:
            some_keys = ordered[first : first + NAMES_A_PART]
            postings = [sorted(found) for found in holders[first : first + NAMES_A_PART]]
            names = names_of(some_keys, postings, [[] for _ in some_keys], kept)
            parts.append(Part("names", first, first + len(some_keys) - 1, pack_names(names)))
        return iter(parts), [ordered[first] for first in firsts]

    def _blocks(self) -> Iterator[Block]:
        block, clients = Block(0), self._sealed.table("clients")
        for number, records in enumerate(self._clients()):
            unit, count, events, flows_before = 0, 0, 0, len(block.places)
            for merged in self._merged(records, clients[number][4]):
                members = merged.members
                fold = tuple([shape for _, shape, _, _ in members])
                block.add(
                    merged.unit - unit, merged.name, self._folds.setdefault(fold, len(self._folds)), merged.further
                )
                for is_flow, _, place, path in members:
                    if is_flow:
                        block.places.append(place)
                        block.paths.append(path)
                unit = merged.unit
                count += 1
                events += len(members) + merged.further
            block.records.append(count)
            block.events.append(events)
            block.flows.append(len(block.places) - flows_before)
            if not self._keeps_addresses:
                block.places, block.paths = array("I"), []
            if len(block.names) >= RECORDS_A_BLOCK:
                yield block
                block = Block(number + 1)
        if block.records:
            yield block

    def _clients(self) -> Iterator[Iterator[tuple[int, int, list[_Member], int]]]:
        """For each client its records: unit, name, members, further."""
        sealed = self._sealed
        flows_at = sealed.places("flows")
        for number, place in enumerate(sealed.places("block")):
            view = read_block(sealed.load(place))
            flows = FlowsView(sealed.load(flows_at[number])) if flows_at else None
            columns = (view.steps.all(), view.folds.all(), view.further.all() or [0] * len(view.names))
            for at in range(len(view.records) - 1):
                rows = slice(view.records[at], view.records[at + 1])
                steps, folds, further = (column[rows] for column in columns)
                yield self._records(steps, list(view.names[rows]), folds, further, flows, view.flows[at])

    def _records(
        self,
        steps: list[int],
        names: list[int],
        folds: list[int],
        further: list[int],
        flows: FlowsView | None,
        flow: int,
    ) -> Iterator[tuple[int, int, list[_Member], int]]:
        table, unit = self._sealed.table("folds"), 0
        keeps, is_flow, new_shape = self._keeps_addresses and flows is not None, self._is_flow, self._new_shape
        for step, name, fold, more in zip(steps, names, folds, further, strict=True):
            unit += step
            members: list[_Member] = []
            for shape in table[fold]:
                if is_flow[shape] and keeps and flows is not None:
                    members.append((True, new_shape[shape], flows.places[flow], flows.path(flow)))
                    flow += 1
                else:
                    members.append((is_flow[shape], new_shape[shape], 0, ""))
            yield unit, name, members, more

    def _merged(self, records: Iterator[tuple[int, int, list[_Member], int]], epoch: int) -> Iterator[_Merged]:
        old_ms, new_ms = QUANTUM_MS[self._sealed.level], QUANTUM_MS[self._level]
        shift = self._sealed.table("bases")[epoch] - self._bases[epoch]
        now, bucket = -1, {}  # type: tuple[int, dict[int, tuple[set[_Member], list[int]]]]
        rank = self._rank
        for unit, old_name, members, further in records:
            name = old_name if rank is None else rank[old_name]
            then = (unit * old_ms + shift) // new_ms
            if then != now:
                yield from self._closed(now, bucket)
                now, bucket = then, {}
            seen, total = bucket.setdefault(name, (set(), [0]))
            seen.update(members)
            total[0] += len(members) + further
        yield from self._closed(now, bucket)

    def _closed(self, unit: int, bucket: dict[int, tuple[set[_Member], list[int]]]) -> Iterator[_Merged]:
        # Up to a minute the order of a page and what it leads to says something; later a sorted list is smaller.
        order = bucket.items() if self._keeps_addresses else sorted(bucket.items(), key=itemgetter(0))
        for name, (seen, (total,)) in order:
            members = sorted(seen)
            further = total - len(members)
            for at in range(0, len(members), MEMBERS):
                yield _Merged(unit, name, members[at : at + MEMBERS], further)
                further = 0


def _reduced(shape: Shape) -> Shape:
    """Without what only an exact segment tells."""
    return (*shape[:6], False) if shape[0] == LOOK_UP else shape


def _aligned(base_ms: int, sample: Sample, quantum_ms: int) -> int:
    """Time since boot, not after `base_ms`, at which a minute, an hour or a local day begins on the wall clock."""
    offset = sample.wall_ms - sample.boottime_ms
    zone_ms = 0
    if quantum_ms > 3_600_000 and sample.wall_ms > 0:
        zone = datetime.datetime.fromtimestamp(sample.wall_ms / 1000).astimezone().utcoffset()
        zone_ms = int(zone.total_seconds() * 1000) if zone is not None else 0
    return (base_ms + offset + zone_ms) // quantum_ms * quantum_ms - offset - zone_ms
