"""A batch of records as it is kept: accesses as columns, the rest as rows, deflated. Records in, octets out, and back.

An access record is a *shape* (type, ports, verdict, rule...), a name, a *target* (addresses, path), a *who* (client,
MAC, session), a time and one number (source port of a flow, latency of a look-up). All but the last two come again
and again, so a batch has a table of each.
Rule: any octets unpack to records or raise CorruptError; unknown tags and additional fields of a later release are
left out, not taken for damage.
"""

from __future__ import annotations

import sys
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, Final, TypeAlias, TypeVar, cast

import msgpack

from policy.errors import CorruptError
from policy.event import TAG_OF, TAGS, Dns, Event, Flow

MAX_BATCH: Final = 64 << 20
"""Octets of an unpacked batch. A damaged length must not fill the memory."""
LEVEL: Final = 4
"""Of zlib: 6 takes 3 % less place for twice the time."""
FORM: Final = 2
"""First item of a batch's array. Form 1 was a row for each record."""

Shape: TypeAlias = "tuple[Any, ...]"
"""Of a look-up ((qtype, rcode, verdict, reason, rule, group), cached); of a flow ((dport, protocol), (seen, blind),
(verdict, reason, rule, group, agreement, method)). The number of items tells which."""
Target: TypeAlias = "tuple[Any, ...]"
"""Of a look-up its answers; of a flow (dst, path)."""
Who: TypeAlias = tuple[bytes, bytes, str]
"""Client address, hardware address, session."""

_CODES: Final = ((1, "B"), (2, "H"), (4, "I"), (8, "Q"))
_WIDTHS: Final = dict(_CODES)
_OF_LOOK_UP: Final = 2


def _parts_of(event: Dns | Flow) -> tuple[Shape, str, Target]:
    """Shape, name and target."""
    if type(event) is Flow:
        return (event[5:7], event[8:10], event[11:17]), event.name, (event.dst, event.path)
    return (event[3:9], event[10]), event.name, event[9]  # type: ignore[return-value]  # a look-up's answers


class Columns:
    """Records in the order they came, taken apart."""

    __slots__ = ("at_ms", "name", "names", "number", "others", "shape", "shapes", "target", "targets", "who", "whos")

    def __init__(self) -> None:
        self.shapes: dict[Shape, int] = {}
        self.names: dict[str, int] = {}
        self.targets: dict[Target, int] = {}
        self.whos: dict[Who, int] = {}
        # One item for each access record.
        self.shape: list[int] = []
        self.name: list[int] = []
        self.target: list[int] = []
        self.who: list[int] = []
        self.at_ms: list[int] = []
        self.number: list[int] = []
        self.others: list[tuple[int, Event]] = []
        """Every record that is no access, after how many accesses it came."""

    def __len__(self) -> int:
        return len(self.at_ms) + len(self.others)

    def add(self, events: Iterable[Event]) -> None:
        """Take records."""
        shapes, names, targets, whos = self.shapes, self.names, self.targets, self.whos
        # Some 2 us an event, so what is looked up for each is looked up once.
        shape_at, name_at, target_at = shapes.setdefault, names.setdefault, targets.setdefault
        to_shape, to_name, to_target, to_who = self.shape.append, self.name.append, self.target.append, self.who.append
        to_at_ms, to_number, who_at = self.at_ms.append, self.number.append, whos.setdefault
        target: Target
        for event in events:
            if type(event) is Dns:
                at_ms, client, name, _, _, _, _, _, _, target, cached, number, mac, session = event
                shape: Shape = (event[3:9], cached)
            elif type(event) is Flow:
                at_ms, client, mac, number, dst, _, _, name, _, _, path, _, _, _, _, _, _, session = event
                shape = (event[5:7], event[8:10], event[11:17])
                target = (dst, path)
            else:
                self.others.append((len(self.at_ms), event))
                continue
            who = (client, mac, session)
            # A dict's own length numbers what is new; `setdefault` looks once, whether it is new or not.
            to_shape(shape_at(shape, len(shapes)))
            to_name(name_at(name, len(names)))
            to_target(target_at(target, len(targets)))
            to_who(who_at(who, len(whos)))
            to_at_ms(at_ms)
            to_number(number)

    def add_folded(
        self,
        templates: Sequence[Dns] | Sequence[Flow],
        which: Sequence[int],
        at_ms: Sequence[int],
        whos: Sequence[Who],
        who: Sequence[int],
        ports: Sequence[int] = (),
    ) -> None:
        """Take look-ups that are columns already, each like one of `templates` but for time and client.

        `ports`: it is flows instead, each with a source port of its own.
        """
        shapes, names, targets, holders = self.shapes, self.names, self.targets, self.whos
        parts = [_parts_of(event) for event in templates]
        shape = [shapes.setdefault(each, len(shapes)) for each, _, _ in parts]
        name = [names.setdefault(each, len(names)) for _, each, _ in parts]
        target = [targets.setdefault(each, len(targets)) for _, _, each in parts]
        held = [holders.setdefault(holder, len(holders)) for holder in whos]
        self.shape += map(shape.__getitem__, which)
        self.name += map(name.__getitem__, which)
        self.target += map(target.__getitem__, which)
        if ports:
            self.number += ports
        else:
            number = [event[11] for event in templates]
            self.number += map(number.__getitem__, which)
        self.who += map(held.__getitem__, who)
        self.at_ms += at_ms

    def span(self) -> tuple[int, int]:
        """The earliest and the latest time; (0, 0): there is no record."""
        times = [event.at_ms for _, event in self.others]
        if self.at_ms:
            times += (min(self.at_ms), max(self.at_ms))
        return (min(times), max(times)) if times else (0, 0)

    def events(self) -> Iterator[Event]:
        """The records, in order."""
        return (event for _, event in self.select(_any, _any, _any, _any))

    def places(self) -> list[int]:
        """For each access its place among all records."""
        places: list[int] = []
        done = 0
        for before, (after, _) in enumerate(self.others):
            places += range(done + before, after + before)
            done = after
        return places + list(range(done + len(self.others), len(self)))

    def select(
        self,
        is_shape: Callable[[Shape], bool],
        is_name: Callable[[str], bool],
        is_who: Callable[[Who], bool],
        is_other: Callable[[Event], bool],
        from_ms: int = 0,
        to_ms: int = 1 << 62,
    ) -> Iterator[tuple[int, Event]]:
        """Places and records, in order: accesses whose shape, name, who and time fit, and other records that do."""
        shapes = [shape if is_shape(shape) else None for shape in self.shapes]
        names = [is_name(name) for name in self.names]
        whos = [who if is_who(who) else None for who in self.whos]
        found: list[tuple[int, Event]] = [
            (after + place, event)
            for place, (after, event) in enumerate(self.others)
            if from_ms <= event.at_ms < to_ms and is_other(event)
        ]
        if any(shapes) and any(names) and any(whos):
            texts, targets = list(self.names), list(self.targets)
            rows = zip(
                self.places(), self.shape, self.name, self.target, self.who, self.at_ms, self.number, strict=True
            )
            for place, shape_at, name, target, who_at, at_ms, number in rows:
                who, shape = whos[who_at], shapes[shape_at]
                if who is not None and names[name] and shape is not None and from_ms <= at_ms < to_ms:
                    found.append((place, event_of(shape, texts[name], targets[target], who, at_ms, number)))
            if self.others:
                found.sort(key=lambda item: item[0])
        yield from found

    def take_allowed(self, excess: int) -> tuple[int, int, int]:
        """Forget up to `excess` of the oldest accesses that were let through. Returns how many, from, to."""
        let = [not verdict_of(shape) for shape in self.shapes]
        gone = [at for at, shape in enumerate(self.shape) if let[shape]][:excess]
        if not gone:
            return 0, 0, 0
        times = [self.at_ms[at] for at in gone]
        stays = bytearray(b"\1") * len(self.shape)
        for at in gone:
            stays[at] = 0
        self.keep(stays)
        return len(gone), min(times), max(times)

    def keep(self, stays: bytes | bytearray) -> None:
        """Forget the accesses whose octet in `stays` is 0. Their names and clients go too."""
        gone = [at for at, stay in enumerate(stays) if not stay]
        self.others = [(after - bisect_left(gone, after), event) for after, event in self.others]
        for column in (self.at_ms, self.number):
            column[:] = [value for value, stay in zip(column, stays, strict=True) if stay]
        self.shapes, self.shape = _kept(self.shapes, self.shape, stays)
        self.names, self.name = _kept(self.names, self.name, stays)
        self.targets, self.target = _kept(self.targets, self.target, stays)
        self.whos, self.who = _kept(self.whos, self.who, stays)


def event_of(shape: Shape, name: str, target: Target, who: Who, at_ms: int, number: int) -> Dns | Flow:
    """Put a record together."""
    client, mac, session = who
    first: tuple[Any, ...] = shape[0]
    if len(shape) == _OF_LOOK_UP:
        return Dns._make((at_ms, client, name, *first, target, shape[1], number, mac, session))
    _, seen, rest = shape
    return Flow._make((at_ms, client, mac, number, target[0], *first, name, *seen, target[1], *rest, session))


def is_look_up(shape: Shape) -> bool:
    """Else a flow."""
    return len(shape) == _OF_LOOK_UP


def verdict_of(shape: Shape) -> int:
    """`policy.verdict.Verdict` as a number."""
    return cast(int, shape[0][2] if len(shape) == _OF_LOOK_UP else shape[2][0])


def pack(columns: Columns) -> bytes:
    """Columns to octets."""
    return zlib.compress(pack_plain(columns), LEVEL)


def unpack(data: bytes) -> Columns:
    """Octets to columns. Raises: CorruptError."""
    try:
        engine = zlib.decompressobj()
        plain = engine.decompress(data, MAX_BATCH)
    except zlib.error as error:
        raise CorruptError(f"batch: {error}") from None
    if engine.unconsumed_tail or not engine.eof:
        raise CorruptError("batch: cut, or larger than any batch")
    return unpack_plain(plain)


def pack_plain(columns: Columns) -> bytes:
    """As `pack`, for one who deflates by himself."""
    base = min(columns.at_ms, default=0)
    head = msgpack.packb(
        (
            FORM,
            list(columns.shapes),
            list(columns.names),
            list(columns.targets),
            list(columns.whos),
            [(after, TAG_OF[type(event)], *event) for after, event in columns.others],
            base,
        ),
        unicode_errors="surrogatepass",
    )
    times = [at - base for at in columns.at_ms]
    numbers = (columns.shape, columns.name, columns.target, columns.who, times, columns.number)
    return cast(bytes, head) + b"".join([cast(bytes, msgpack.packb(narrow(values))) for values in numbers])


def unpack_plain(plain: bytes) -> Columns:
    """What `pack_plain` was given. Raises: CorruptError."""
    columns = Columns()
    try:
        unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=MAX_BATCH, unicode_errors="surrogatepass")
        unpacker.feed(plain)
        form, shapes, names, targets, whos, others, base = unpacker.unpack()
        numbers = [widen(unpacker.unpack()) for _ in range(6)]
        if form != FORM or unpacker.tell() != len(plain) or type(base) is not int:
            raise CorruptError(f"batch: form {form!r:.20}, expected {FORM}, and nothing after it")
        columns.shapes = _table(shapes, _is_shape)
        columns.names = _table(names, lambda name: type(name) is str)
        columns.targets = _table(targets, lambda target: type(target) is tuple)
        columns.whos = _table(whos, lambda who: tuple(map(type, who)) == (bytes, bytes, str))
        columns.others = [(after, event) for after, *row in others if (event := _event(row)) is not None]
        columns.shape, columns.name, columns.target, columns.who, offsets, columns.number = numbers
        columns.at_ms = [base + offset for offset in offsets]
        _check(columns)
    except (ValueError, TypeError, LookupError, msgpack.UnpackException, RecursionError, MemoryError) as error:
        raise CorruptError(f"batch: {error!r}") from None
    return columns


def _table(rows: Sequence[Any], is_right: Callable[[Any], bool]) -> dict[Any, int]:
    table = {row: at for at, row in enumerate(rows)}
    if len(table) != len(rows) or not all(map(is_right, rows)):
        raise ValueError("a table says something twice, or something else")
    return table


def _is_shape(row: object) -> bool:
    lengths = tuple(len(part) if type(part) is tuple else -1 for part in row) if type(row) is tuple else ()
    return lengths in ((6, -1), (2, 2, 6))


def _check(columns: Columns) -> None:
    numbers = (columns.shape, columns.name, columns.target, columns.who, columns.at_ms, columns.number)
    if len({len(column) for column in numbers}) != 1:
        raise ValueError("columns of different lengths")
    tables: tuple[Sized, ...] = (columns.shapes, columns.names, columns.targets, columns.whos)
    if any(max(column, default=-1) >= len(table) for column, table in zip(numbers, tables, strict=False)):
        raise ValueError("an index beyond its table")
    afters = [after for after, _ in columns.others]
    if afters != sorted(afters) or (afters and not 0 <= afters[0] <= afters[-1] <= len(columns.at_ms)):
        raise ValueError("records out of order")
    # A flow has an address and a path; a look-up may have answered nothing.
    flows = [not is_look_up(shape) for shape in columns.shapes]
    reached = [tuple(map(type, target)) == (bytes, str) for target in columns.targets]
    if list(map(flows.__getitem__, columns.shape)) != list(map(reached.__getitem__, columns.target)):
        raise ValueError("a flow without an address, or a look-up with a path")


def narrow(values: Sequence[int]) -> bytes:
    """Numbers from 0 to 2^64 - 1: one octet of width (1, 2, 4, 8), then each, little-endian."""
    try:
        return b"\1" + bytes(values)  # most columns, and a few times faster than looking for the greatest
    except ValueError:
        pass
    greatest = max(values)
    width, code = next(found for found in _CODES if greatest < 1 << (8 * found[0]))
    column = array(code, values)
    if sys.byteorder == "big":
        column.byteswap()
    return bytes((width,)) + column.tobytes()


def widen(data: object) -> list[int]:
    """What `narrow` was given. Raises: ValueError, TypeError, IndexError."""
    if type(data) is not bytes:
        raise TypeError("a column is no octets")
    code = _WIDTHS.get(data[0])
    if code is None:
        raise ValueError(f"a column of width {data[0]}")
    column = array(code, data[1:])
    if sys.byteorder == "big":
        column.byteswap()
    return column.tolist()


_Key = TypeVar("_Key")


def _kept(table: dict[_Key, int], column: list[int], stays: bytes | bytearray) -> tuple[dict[_Key, int], list[int]]:
    rows, kept = list(table), dict[_Key, int]()
    places = [kept.setdefault(rows[at], len(kept)) for at, stay in zip(column, stays, strict=True) if stay]
    return kept, places


def _any(_: object) -> bool:
    return True


def _event(row: list[Any]) -> Event | None:
    kind = TAGS.get(row[0])
    if kind is None:
        return None
    # A record of an earlier release has fewer fields: the later ones have defaults.
    return kind(*row[1 : 1 + len(kind._fields)])
