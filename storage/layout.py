"""How a sealed segment is laid out: its levels, its parts and their columns, without the file around them. Pure.

docs/ring-format.md says the same for one who writes a reader.
Rule: any octets are read or raise CorruptError; whatever is written here can be read by every later release.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from enum import IntEnum
from itertools import accumulate
from typing import Any, Final, NamedTuple, TypeAlias

import msgpack

from policy.digest import blake2b
from policy.errors import CorruptError
from storage.column import Form, expand, join, pack_numbers, split, squeeze, unpack_numbers

FORMAT: Final = 2
HASH_SIZE: Final = 16
NAMES_A_PART: Final = 1024
RECORDS_A_BLOCK: Final = 30_000
"""Folded records, some 65,000 events: cut between clients, so a little more. What a question about one client reads."""
KEPT_A_PART: Final = 16_384
ESCAPE: Final = 255


class Level(IntEnum):
    """How exactly the accesses that were let through are kept. Everything else is exact at every level."""

    EXACT = 0
    """Millisecond, source port, cache flag."""
    SECOND = 1
    MINUTE = 2
    FIVE_MINUTES = 3
    """From here on without the addresses and the HTTP paths."""
    HOUR = 4
    DAY = 5
    DOMAIN = 6
    """A day, and of each name only the domain that somebody has registered (com.example of com.example.www)."""


QUANTUM_MS: Final = {
    Level.EXACT: 1000,
    Level.SECOND: 1000,
    Level.MINUTE: 60_000,
    Level.FIVE_MINUTES: 300_000,
    Level.HOUR: 3_600_000,
    Level.DAY: 86_400_000,
    Level.DOMAIN: 86_400_000,
}
"""Unit of the time steps in the blocks of a level."""

Client: TypeAlias = tuple[bytes, bytes, str, str, int]
"""Address, hardware address, session, group, epoch."""
Shape: TypeAlias = "tuple[Any, ...]"
"""Of a look-up (1, qtype, rcode, verdict, reason, rule, cached), of a flow (2, dport, protocol, seen, blind, verdict,
reason, rule, agreement, method)."""
LOOK_UP: Final = 1
FLOW: Final = 2


class Small:
    """Numbers that mostly fit an octet: 255 stands for the next of the `long` ones."""

    __slots__ = ("long", "octets")

    def __init__(self, octets: bytes | bytearray = b"", long: Sequence[int] = ()) -> None:
        self.octets = bytearray(octets)
        self.long = array("I", long)

    def append(self, value: int) -> None:
        if value < ESCAPE:
            self.octets.append(value)
        else:
            self.octets.append(ESCAPE)
            self.long.append(value)

    def packed(self, *, fast: bool = False) -> tuple[bytes, bytes]:
        """Two columns; the second is short, and LZMA would take longer to begin than deflate takes for all of it."""
        return squeeze(bytes(self.octets), Form.BYTES, fast=fast), pack_numbers(self.long, fast=fast)

    def all(self) -> list[int]:
        """Every number."""
        if not self.long:
            return list(self.octets)
        long = iter(self.long)
        return [next(long) if value == ESCAPE else value for value in self.octets]


def read_small(octets: bytes, long: bytes) -> Small:
    """What `Small.packed` gave. Raises: CorruptError."""
    small = Small(expand(octets), unpack_numbers(long))
    if small.octets.count(ESCAPE) != len(small.long):
        raise CorruptError("column: its long numbers are not all there")
    return small


class Block:
    """Folded records of some clients: who did what with a name in one unit of time, in order of client and time."""

    def __init__(self, first: int) -> None:
        self.first = first
        """The first of its clients."""
        # One for each client.
        self.records: list[int] = []
        self.events: list[int] = []
        self.flows: list[int] = []
        # One for each record.
        self.steps = Small()
        """Units of time since the client's record before; since the epoch's base for its first."""
        self.names: array[int] = array("I")
        self.folds = Small()
        self.further = Small()
        """Events beyond one for each member of the fold. Empty: there are none."""
        # One for each flow in a fold.
        self.places: array[int] = array("I")
        """Which of the name's addresses it went to. Empty: not kept."""
        self.paths: list[str] = []

    def add(self, step: int, name: int, fold: int, further: int) -> None:
        """One record."""
        self.steps.append(step)
        self.names.append(name)
        self.folds.append(fold)
        if further or self.further.octets:
            while len(self.further.octets) < len(self.names) - 1:
                self.further.append(0)
            self.further.append(further)

    def packed(self, *, fast: bool) -> bytes:
        """The part `block`. `fast`: to be unpacked fast, for a tenth more place."""
        if self.further.octets:
            while len(self.further.octets) < len(self.names):
                self.further.append(0)
        return join(
            (
                pack_numbers(self.records, fast=True),
                pack_numbers(self.events, fast=True),
                pack_numbers(self.flows, fast=True),
                *self.steps.packed(fast=fast),
                pack_numbers(self.names, fast=fast),
                *self.folds.packed(fast=fast),
                *self.further.packed(),
            )
        )

    def packed_flows(self) -> bytes:
        """The part `flows`, if addresses and paths are kept."""
        text = "\n".join(self.paths).encode("utf-8", "surrogatepass")
        return join((pack_numbers(self.places, fast=True), squeeze(text, Form.TEXT)))


class BlockView(NamedTuple):
    """The part `block`, unpacked."""

    records: list[int]
    """For each client (and one more) where its records begin."""
    events: list[int]
    flows: list[int]
    steps: Small
    names: array[int]
    folds: Small
    further: Small


def read_block(data: bytes) -> BlockView:
    """What `Block.packed` gave. Raises: CorruptError."""
    records, events, flows, *columns = split(data, 10)
    steps, names = read_small(columns[0], columns[1]), unpack_numbers(columns[2])
    folds, further = read_small(columns[3], columns[4]), read_small(columns[5], columns[6])
    starts = [list(accumulate(unpack_numbers(column), initial=0)) for column in (records, events, flows)]
    count = len(names)
    if not starts[0][-1] == count == len(steps.octets) == len(folds.octets):
        raise CorruptError("block: columns of different lengths")
    if len(further.octets) not in (0, count) or len({len(start) for start in starts}) != 1:
        raise CorruptError("block: columns of different lengths")
    return BlockView(starts[0], starts[1], starts[2], steps, names, folds, further)


class FlowsView:
    """The part `flows`; paths, which few flows have, stay packed until one is asked for."""

    def __init__(self, data: bytes) -> None:
        """Raises: CorruptError."""
        places, self._text = split(data, 2)
        self.places = unpack_numbers(places)
        self._paths: list[str] | None = None

    def path(self, at: int) -> str:
        """Of one flow. Raises: CorruptError."""
        if self._paths is None:
            try:
                self._paths = expand(self._text).decode("utf-8", "surrogatepass").split("\n")
            except UnicodeDecodeError as error:
                raise CorruptError(f"flows: {error}") from None
        return self._paths[at]


def pack_exact(parts_ms: array[int], numbers: array[int]) -> bytes:
    """The part `exact`: for each event its millisecond, for each flow its source port."""
    return join((pack_numbers(parts_ms), pack_numbers(numbers)))


def read_exact(data: bytes) -> tuple[array[int], array[int]]:
    """What `pack_exact` gave. Raises: CorruptError."""
    parts_ms, numbers = split(data, 2)
    return unpack_numbers(parts_ms), unpack_numbers(numbers)


class Names(NamedTuple):
    """A stretch of names in order, with who had an access to each, and which addresses it had."""

    keys: list[str]
    """Labels reversed."""
    is_kept: bytes
    """For each name 1 if a record that is kept whole has it."""
    holders: list[int]
    """For each name how many clients had an access to it that is folded."""
    steps: Sequence[int]
    """Those clients, each as the difference from the one before, from 0 for each name."""
    addresses: list[list[bytes]]


def pack_names(names: Names) -> bytes:
    """The part `names`."""
    text = "\n".join(names.keys).encode("utf-8", "surrogatepass")
    packed = b"".join([bytes((len(address),)) + address for known in names.addresses for address in known])
    return join(
        (
            squeeze(text, Form.TEXT, fast=True),
            squeeze(names.is_kept, Form.BYTES),
            pack_numbers(names.holders, fast=True),
            pack_numbers(names.steps),
            pack_numbers([len(known) for known in names.addresses]),
            squeeze(packed, Form.TEXT, fast=True),
        )
    )


class NamesView:
    """The part `names`; what a question does not need stays packed."""

    def __init__(self, data: bytes) -> None:
        """Raises: CorruptError."""
        text, self._is_kept, self._holders, self._steps, self._counts, self._packed = split(data, 6)
        try:
            self.keys = expand(text).decode("utf-8", "surrogatepass").split("\n")
        except UnicodeDecodeError as error:
            raise CorruptError(f"names: {error}") from None
        self._ends: list[int] | None = None
        self._plain = b""
        self._places: list[int] | None = None
        """Addresses, each after its length, and where those of each name begin. Of names without any, too."""
        self._kept: bytes | None = None
        self._all_steps: array[int] = array("B")

    def is_kept(self, at: int) -> bool:
        """Has a record that is kept whole this name?"""
        if self._kept is None:
            self._kept = expand(self._is_kept)
        return bool(self._kept[at])

    def clients(self, at: int) -> list[int]:
        """Who had an access to it that is folded."""
        if self._ends is None:
            self._ends = list(accumulate(unpack_numbers(self._holders), initial=0))
            self._all_steps = unpack_numbers(self._steps)
        return list(accumulate(self._all_steps[self._ends[at] : self._ends[at + 1]]))

    def addresses(self, at: int) -> list[bytes]:
        """What it was answered with, or reached at."""
        if self._places is None:
            self._plain = expand(self._packed)
            self._places = self._begins()
        found, place, end = [], self._places[at], self._places[at + 1]
        while place < end:
            found.append(self._plain[place + 1 : place + 1 + self._plain[place]])
            place += 1 + self._plain[place]
        return found

    def _begins(self) -> list[int]:
        plain, begins, place = self._plain, [0], 0
        for count in unpack_numbers(self._counts):
            for _ in range(count):
                place += 1 + plain[place]
            begins.append(place)
        return begins + [place] * (len(self.keys) + 1 - len(begins))

    def whole(self) -> Names:
        """All of it."""
        first = [self.addresses(at) for at in range(len(self.keys))]
        self.is_kept(0)
        self.clients(0)
        assert self._kept is not None
        holders = list(unpack_numbers(self._holders))
        return Names(self.keys, self._kept, holders, self._all_steps, first)


def reversed_labels(name: str) -> str:
    """`www.example.com` as `com.example.www`: a domain and all below it lie side by side."""
    return ".".join(name.split(".")[::-1])


_SECOND_LEVEL: Final = frozenset(
    ("ac", "co", "com", "edu", "gob", "gov", "gub", "mil", "net", "nom", "or", "org", "sch")
)


def registrable(key: str) -> str:
    """The first two labels of a reversed name, three under a country's own com, co, net...

    A rule of thumb for the last step of the ladder, not the Public Suffix List, which would be a megabyte that ages.
    """
    labels = key.split(".", 3)
    below_country = len(labels) > 2 and len(labels[0]) == 2 and labels[1] in _SECOND_LEVEL
    return ".".join(labels[: 3 if below_country else 2])


def hash_of(place: int, kind: str, first: int, last: int, data: bytes) -> bytes:
    """Of one part with its place."""
    digest = blake2b(msgpack.packb((place, kind, first, last)), digest_size=HASH_SIZE)
    digest.update(data)
    return digest.digest()


SIGNED: Final = ("format", "level", "segment", "first_seq", "next_seq", "before", "head", "derived_from", "hashes")
"""What the root is made of, in order."""


def root_of(meta: Mapping[str, object]) -> bytes:
    """Of a whole sealed segment: what is signed, and anchored upstream."""
    return blake2b(msgpack.packb([meta.get(name) for name in SIGNED]), digest_size=32).digest()
