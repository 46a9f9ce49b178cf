"""What travels between a device and the centre: topics and messages, as docs/uplink.asyncapi.yaml describes them. Pure.

Bulk travels as the ring has it: hot batches with their hash chain, and the files of sealed segments in pieces. A
message is a msgpack map with `v` (version) and `k` (kind); fields that are not known are left alone.
Rule: any octets are read or raise MessageError, in bounded memory; `read(write(message)) == message`.
"""

from __future__ import annotations

import lzma
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple, TypeAlias, cast

import msgpack

from policy.digest import blake2b
from policy.errors import CorruptError, FrameError, MessageError
from policy.event import TAG_OF, Event
from policy.frame import read_event
from storage.batch import LEVEL, Columns, narrow, pack_plain, unpack_plain, widen

VERSION: Final = 1
ROOT: Final = "gatehouse/v1"
MAX_MESSAGE: Final = 128 << 10
"""Octets of one message, its topic included: a broker of a centre may be set to refuse more."""
MAX_DATA: Final = MAX_MESSAGE - 2048
"""Octets of records in one message; the rest is for the map around them and the topic."""
MAX_PLAIN: Final = 16 << 20
"""Octets of batches that were packed together, unpacked: 128 KiB of LZMA may say 100 times as much, not more."""
MAX_WHOLE: Final = 32 << 20
"""Octets of a message that comes in parts. The ring lets 200,000 records wait for a storage that is away: 2 MB."""
MAX_SEGMENT: Final = 256 << 20
"""Octets of a sealed segment's file: it has 1.5 million records at most. The receiver puts it together in memory."""
MAX_NUMBER: Final = 1 << 62
"""Beyond all numbers of records and milliseconds; with all records of a message added, still 63 bits."""
MAX_JOINED: Final = 2 << 20
"""Octets of batches whose tables were joined, unpacked: some 60,000 records, taken apart one by one."""
MAX_BATCHES: Final = 4096
MAX_ITEMS: Final = MAX_BATCHES
"""Of one array. msgpack makes room for as many as are announced: in arrays within arrays, 5 octets each time."""
MAX_URGENT: Final = 512
ID_SIZE: Final = 8
RING_SIZE: Final = 8
"""Octets of a ring's name: the first of its public key."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}").fullmatch
_FILTERS: Final[list[dict[str, Any]]] = [
    # 256 KiB of dictionary hold what one message says, and cost the router 3 MB for a moment.
    {"id": lzma.FILTER_LZMA1, "dict_size": 1 << 18, "lc": 3, "lp": 0, "pb": 0, "mode": lzma.MODE_NORMAL, "nice_len": 64}
]
_SWIFT: Final[list[dict[str, Any]]] = [
    # The same form, looked for less hard: 8.2 octets a record instead of 7.3, at four times the speed.
    {**_FILTERS[0], "mode": lzma.MODE_FAST, "mf": lzma.MF_HC4, "depth": 8}
]
_NO_MSGPACK: Final = (msgpack.UnpackException, RecursionError)
KIND_OF: Final[dict[str, type[Event]]] = {kind.__name__.lower(): kind for kind in TAG_OF}


class Topics(NamedTuple):
    """The topics of one device."""

    venue: str
    device: str

    @property
    def identity(self) -> str:
        """Common name of the device's certificate, and its MQTT client id: what the broker's access list goes by."""
        return f"{self.venue}/{self.device}"

    def of(self, what: str) -> str:
        """`records`, `heartbeat`, `state` and `reply` go up; `ack` and `command` come down."""
        return f"{ROOT}/{self.venue}/{self.device}/{what}"


UP: Final = ("records", "heartbeat", "state", "reply")
DOWN: Final = ("ack", "command")


def is_name(text: str) -> bool:
    """May a venue or a device be called so? No blanks, no `/`, `+` and `#`: it is a level of a topic."""
    return _NAME(text) is not None


def read_topic(topic: str) -> tuple[Topics, str]:
    """Whose a topic is, and which. Raises: MessageError."""
    levels = topic.split("/")
    if (
        len(levels) != 5
        or "/".join(levels[:2]) != ROOT
        or levels[4] not in UP + DOWN
        or not all(map(is_name, levels[2:4]))
    ):
        raise MessageError(
            f"topic: expected {ROOT}/VENUE/DEVICE/ and one of {', '.join(UP + DOWN)}, got {topic!r:.120}"
        )
    return Topics(levels[2], levels[3]), levels[4]


class Row(NamedTuple):
    """One committed batch of a `Batches`."""

    records: int
    mono_ms: int
    """Time since boot when it was committed."""
    wall_ms: int
    synced: bool
    data: bytes
    """As the ring has it: what the chain was made of."""


class Batches(NamedTuple):
    """Batches that follow each other in one segment, committed in one boot."""

    ring: bytes
    segment: int
    first_seq: int
    boot: str
    before: bytes
    """The chain before the first; empty: not known to the sender, and then it is one batch alone."""
    link: bytes
    """The chain after the last."""
    rows: tuple[Row, ...]
    packed: bool = False
    """They travelled packed together, and were put back as they were stored."""

    @property
    def next_seq(self) -> int:
        """One past the last record."""
        return self.first_seq + sum(row.records for row in self.rows)


class Piece(NamedTuple):
    """A part of a sealed segment's file."""

    ring: bytes
    segment: int
    first_seq: int
    next_seq: int
    level: int
    root: bytes
    size: int
    """Octets of the whole file."""
    offset: int
    data: bytes


class Part(NamedTuple):
    """A part of a message that is too long for one: of a batch that waited while the storage was away."""

    ring: bytes
    whole: bytes
    """blake2b-256 of the message."""
    size: int
    """Its octets."""
    offset: int
    data: bytes


class Missing(NamedTuple):
    """Records that the device itself cannot give any more."""

    ring: bytes
    segment: int
    first_seq: int
    next_seq: int
    why: str


class Urgent(NamedTuple):
    """Critical records ahead of the batches they are in: so that the centre sees them at once."""

    ring: bytes
    records: tuple[Mapping[str, object], ...]
    """Each with `kind`, `seq`, `segment`, `wall_ms`, `synced`, and its own fields."""


class Acks(NamedTuple):
    """What the centre has on its disk, by the ids of the messages (`identify`)."""

    done: tuple[bytes, ...]
    again: tuple[bytes, ...] = ()
    """The segment that this piece is of did not come together: all of it, please, from the start."""
    plain: tuple[bytes, ...] = ()
    """Batches that could not be put back as they were stored: send them as they are, and all others from now on."""


Message: TypeAlias = Batches | Piece | Part | Missing | Urgent | Acks


def identify(payload: bytes) -> bytes:
    """The id of a message: what an acknowledgement names."""
    return blake2b(payload, digest_size=ID_SIZE).digest()


def whole_hash(payload: bytes) -> bytes:
    """Of a message that goes in parts."""
    return blake2b(payload, digest_size=32).digest()


def write_batches(message: Batches, *, as_stored: bool = False, joined: bool = False, swift: bool = False) -> bytes:
    """Batches as octets: packed together, unless `as_stored` or that would not be smaller.

    `swift`: it is time that is short, not the line.
    `joined`: as one batch, so that a name is said once and not once a batch: a tenth smaller for twice the time.
    """
    stored = b"".join([row.data for row in message.rows])
    form, lengths, data = 0, [len(row.data) for row in message.rows], stored
    if not as_stored:
        plains = [zlib.decompress(row.data) for row in message.rows]
        lengths = [len(plain) for plain in plains]
        filters = _SWIFT if swift else _FILTERS
        form, data = 1, lzma.compress(b"".join(plains), lzma.FORMAT_RAW, filters=filters)
        whole = _joined(plains) if joined and len(plains) > 1 else b""
        packed = lzma.compress(turn(whole), lzma.FORMAT_RAW, filters=_FILTERS) if whole else data
        if len(packed) < len(data):
            form, data = 3, packed
        if len(data) >= len(stored):
            form, lengths, data = 0, [len(row.data) for row in message.rows], stored
    rows: Sequence[tuple[int, ...]] = [(*row[:4], length) for row, length in zip(message.rows, lengths, strict=True)]
    if form == 3:
        rows = _steps([row[:4] for row in message.rows])
    return _packed(
        k="batches",
        ring=message.ring,
        segment=message.segment,
        first_seq=message.first_seq,
        boot=message.boot,
        before=message.before,
        link=message.link,
        form=form,
        rows=rows,
        data=data,
    )


def write(message: Piece | Part | Missing | Urgent | Acks) -> bytes:
    """Anything else as octets."""
    match message:
        case Piece():
            return _packed(k="sealed", **message._asdict())
        case Part():
            return _packed(k="part", **message._asdict())
        case Missing():
            return _packed(k="lost", **message._asdict())
        case Urgent():
            return _packed(k="urgent", ring=message.ring, data=_write_ahead(message.records))
        case Acks():
            return _packed(k="ack", **{name: ids for name, ids in message._asdict().items() if ids})


def read(payload: bytes, limit: int = MAX_MESSAGE) -> Message:
    """What octets say. Raises: MessageError."""
    fields = unpack_map(payload, limit)
    kind = fields.get("k")
    read_one = _READERS.get(kind) if isinstance(kind, str) else None
    if read_one is None:
        raise MessageError(f"message: expected one of {', '.join(_READERS)}, got {kind!r:.40}")
    try:
        return read_one(fields)
    except (LookupError, TypeError, ValueError, OverflowError, lzma.LZMAError, zlib.error, *_NO_MSGPACK) as error:
        raise MessageError(f"message {kind}: {error!r:.200}") from None


def read_acks(payload: bytes) -> Acks:
    """What comes down on topic `ack`: nothing else is looked into, and so nothing unpacked. Raises: MessageError."""
    fields = unpack_map(payload)
    if fields.get("k") != "ack":
        raise MessageError(f"message: expected ack, got {fields.get('k')!r:.40}")
    try:
        return _read_acks(fields)
    except (TypeError, ValueError) as error:
        raise MessageError(f"message ack: {error!r:.200}") from None


def unpack_map(payload: bytes, limit: int = MAX_MESSAGE) -> dict[str, Any]:
    """A map of this version. Raises: MessageError."""
    if len(payload) > limit:
        raise MessageError(f"message: expected at most {limit} octets, got {len(payload)}")
    try:
        found = msgpack.unpackb(
            payload,
            use_list=False,
            strict_map_key=True,
            unicode_errors="surrogatepass",
            max_bin_len=limit,
            max_str_len=limit,
            max_array_len=MAX_ITEMS,
            max_map_len=4096,
        )
    except (ValueError, TypeError, *_NO_MSGPACK) as error:
        raise MessageError(f"message: no msgpack: {error!r:.120}") from None
    if not isinstance(found, dict) or found.get("v") != VERSION:
        raise MessageError(f"message: expected a map of version {VERSION}")
    return found


_WORDS: Final = (
    "warning", "gatehouse.main.legal: no legal profile is chosen, so everything that is seen is recorded; choose one",
    "flows", "named", "visibility", "frames", "events", "repeated", "refused", "killed", "pid", "silent_ms", "packets",
    "queries", "blocked", "dropped", "lost", "overload", "dns/0", "nfq/0", "workers", "intake", "image_bytes",
    "image_at_s", "lists", "compiling", "policy", "behind", "urgent", "sent", "sent_bytes", "again", "acknowledged",
    "timeouts", "orders", "uplink", "temperatures", "open", "logins", "logouts", "conflicts", "strangers_refused",
    "evicted", "refused_lines", "refused_radius", "refused_phones", "sessions", "profile", "version", "sha256",
    "capturing", "legal", "segments", "bytes", "budget_bytes", "promised_days", "oldest_days", "days_at_level",
    "forecast", "at_risk", "holds", "trouble", "waiting", "given_up", "bad_segments", "capacity", "segment", "next_seq",
    "head", "chain", "on_failure", "synced", "clock", "up_s", "why", "degraded", "protecting", "state", "0.1.0",
    "release", "every_s", "public_key", "boot", "mono_ms", "wall_ms", "number", "heartbeat", "k", "v",
)  # fmt: skip
"""What heartbeats say all the time. Both sides must have the same: it changes with VERSION, or with the kind's name."""
_DICTIONARY: Final = cast(bytes, msgpack.packb(_WORDS))


def deflated(octets: bytes) -> bytes:
    """A message within another, such as a heartbeat within its signature: a third of it is left."""
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=_DICTIONARY)
    return pack_map({"k": "deflated", "data": engine.compress(octets) + engine.flush()})


def inflated(octets: bytes) -> bytes:
    """What `deflated` was given; anything else as it is. Raises: MessageError."""
    fields = unpack_map(octets)
    if fields.get("k") != "deflated":
        return octets
    try:
        engine = zlib.decompressobj(-zlib.MAX_WBITS, zdict=_DICTIONARY)
        plain = engine.decompress(_octets(fields, "data"), MAX_MESSAGE)
    except (LookupError, TypeError, zlib.error) as error:
        raise MessageError(f"message deflated: {error!r:.200}") from None
    if not engine.eof:
        raise MessageError("message deflated: cut, or larger than any")
    return plain


def pack_map(fields: Mapping[str, object]) -> bytes:
    """A map of this version as octets."""
    return cast(bytes, msgpack.packb({"v": VERSION, **fields}, unicode_errors="surrogatepass"))


def urgent_record(event: Event, seq: int, segment: int, wall_ms: int, synced: bool) -> dict[str, object]:
    """A record as a map that a stranger can read."""
    said = {"kind": type(event).__name__.lower(), "seq": seq, "segment": segment, "wall_ms": wall_ms, "synced": synced}
    return {**said, **event._asdict()}


def event_of(record: Mapping[str, object]) -> Event:
    """The record in such a map. Raises: MessageError."""
    kind = KIND_OF.get(str(record.get("kind")))
    if kind is None:
        raise MessageError(f"urgent record: expected one of {', '.join(KIND_OF)}, got {record.get('kind')!r:.40}")
    # A device of an earlier release has fewer fields: the later ones have defaults.
    defaults: Mapping[str, object] = kind._field_defaults
    try:
        return read_event((TAG_OF[kind], *(record[f] if f in record else defaults[f] for f in kind._fields)))
    except (FrameError, KeyError) as error:
        raise MessageError(f"urgent record: {error!r:.200}") from None


def _packed(**fields: object) -> bytes:
    return pack_map(fields)


def _read_batches(fields: Mapping[str, Any]) -> Batches:
    rows, form, data = fields["rows"], fields["form"], _octets(fields, "data")
    if not 0 < len(rows) <= MAX_BATCHES:
        raise ValueError(f"expected 1 to {MAX_BATCHES} batches, got {len(rows)}")
    restore: Callable[[bytes], bytes] = bytes
    if form in (1, 2, 3):
        if form == 3:
            rows = _rows_of(rows)
        engine = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)
        data = engine.decompress(data, MAX_PLAIN if form == 1 else MAX_JOINED)
        if form == 3:
            data = turn(data, back=True)
        if form != 1:
            # Their lengths are what comes of it here; should that not be what was sent, `link` shows it.
            parts = _parted(data, [row[0] for row in rows])
            rows = [(*row[:4], len(part)) for row, part in zip(rows, parts, strict=True)]
            data = b"".join(parts)
        # What the ring does to a batch, done again: `link` shows whether this machine's zlib does just the same.
        restore = _deflate
    elif form != 0:
        raise ValueError(f"form {form!r:.20}")
    if sum(row[4] for row in rows) != len(data):
        raise ValueError("lengths that do not add up")
    found, place = [], 0
    for row in rows:
        records, mono_ms, wall_ms, synced, length = row
        if not all(type(number) is int for number in row[:3] + row[4:]) or type(synced) is not bool:
            raise TypeError("a batch whose numbers are none")
        if not 0 < records < 1 << 32 or length <= 0 or not _is_64(mono_ms) or not _is_64(wall_ms):
            raise ValueError("a batch without records, or with a time beyond all times")
        found.append(Row(records, mono_ms, wall_ms, synced, restore(data[place : place + length])))
        place += length
    before, link = _octets(fields, "before"), _octets(fields, "link")
    if len(link) != 16 or len(before) not in (0, 16) or (not before and len(found) > 1):
        raise ValueError("links of the wrong length")
    first_seq = _number(fields, "first_seq")
    return Batches(
        _ring(fields),
        _number(fields, "segment"),
        first_seq,
        _text(fields, "boot", 64),
        before,
        link,
        tuple(found),
        form != 0,
    )


def turn(plain: bytes, *, back: bool = False) -> bytes:
    """A batch, inflated, with its times as steps and its targets as steps back from what is new: a tenth less to send.

    A step of time: twice how much later than the record before, minus one if it is earlier (zigzag). A target: 0, new;
    n, what was new n - 1 times ago. `back`: as it was. Raises: ValueError, TypeError, LookupError.
    """
    unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=MAX_JOINED, unicode_errors="surrogatepass")
    unpacker.feed(plain)
    unpacker.skip()
    head = plain[: unpacker.tell()]
    columns = [widen(unpacker.unpack()) for _ in range(6)]
    if unpacker.tell() != len(plain):
        raise ValueError("something after the columns")
    columns[2] = _unaged(columns[2]) if back else _aged(columns[2])
    columns[4] = _summed(columns[4]) if back else _stepped(columns[4])
    return head + b"".join([cast(bytes, msgpack.packb(narrow(column))) for column in columns])


def _aged(values: Sequence[int]) -> list[int]:
    found, new = [], 0
    for value in values:
        found.append(new - value)  # 0: it is the new one itself
        new = max(new, value + 1)
    return found


def _unaged(values: Sequence[int]) -> list[int]:
    found, new = [], 0
    for value in values:
        found.append(new - value)
        if value > new:
            raise ValueError("a target from before the first")
        new += not value
    return found


def _stepped(values: Sequence[int]) -> list[int]:
    before, found = 0, []
    for value in values:
        step = value - before
        found.append(step * 2 if step >= 0 else -step * 2 - 1)
        before = value
    return found


def _summed(values: Sequence[int]) -> list[int]:
    before, found = 0, []
    for value in values:
        before += -(value + 1 >> 1) if value & 1 else value >> 1
        if not 0 <= before < 1 << 63:
            raise ValueError("a time before the first")
        found.append(before)
    return found


def _steps(rows: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Each as (records, how much later, how much its wall clock is ahead of that, synced)."""
    found: list[tuple[int, ...]] = []
    before = (0, 0)
    for records, mono_ms, wall_ms, synced in rows:
        found.append((records, mono_ms - before[0], wall_ms - mono_ms - before[1], synced))
        before = (mono_ms, wall_ms - mono_ms)
    return found


def _rows_of(rows: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """What `_steps` was given, and a length that is not known yet. Raises: ValueError, TypeError."""
    found: list[tuple[int, ...]] = []
    mono_ms = ahead_ms = 0
    for records, later_ms, more_ms, synced in rows:
        if type(later_ms) is not int or type(more_ms) is not int:
            raise TypeError("a batch whose numbers are none")
        mono_ms, ahead_ms = mono_ms + later_ms, ahead_ms + more_ms
        found.append((records, mono_ms, mono_ms + ahead_ms, synced, 1))
    return found


def _joined(plains: Sequence[bytes]) -> bytes:
    """Batches as one, unpacked; empty: they could not be told apart again just as they were."""
    whole = Columns()
    counts = []
    for plain in plains:
        columns = unpack_plain(plain)
        counts.append(len(columns))
        whole.add(columns.events())
    found = pack_plain(whole)
    return found if len(found) <= MAX_JOINED and _parted(found, counts) == list(plains) else b""


def _parted(whole: bytes, counts: Sequence[int]) -> list[bytes]:
    """The batches again, of so many records each. Raises: ValueError."""
    try:
        columns = unpack_plain(whole)
        if not all(type(count) is int and count > 0 for count in counts) or sum(counts) != len(columns):
            raise ValueError("numbers of records that do not add up")
        events, parts = iter(columns.events()), []
        for count in counts:
            part = Columns()
            part.add(islice(events, count))
            parts.append(pack_plain(part))
    except CorruptError as error:
        raise ValueError(str(error)) from None
    return parts


def _deflate(plain: bytes) -> bytes:
    return zlib.compress(plain, LEVEL)


def _read_piece(fields: Mapping[str, Any]) -> Piece:
    piece = Piece(
        _ring(fields),
        _number(fields, "segment"),
        _number(fields, "first_seq"),
        _number(fields, "next_seq"),
        _number(fields, "level"),
        _octets(fields, "root"),
        _number(fields, "size"),
        _number(fields, "offset"),
        _octets(fields, "data"),
    )
    if len(piece.root) != 32 or not piece.data or piece.offset + len(piece.data) > piece.size:
        raise ValueError("a piece that is not within its file")
    if piece.size > MAX_SEGMENT or piece.next_seq < piece.first_seq:
        raise ValueError("a segment that is larger than any, or ends before it begins")
    return piece


def _read_part(fields: Mapping[str, Any]) -> Part:
    size, offset, data = _number(fields, "size"), _number(fields, "offset"), _octets(fields, "data")
    part = Part(_ring(fields), _octets(fields, "whole"), size, offset, data)
    if len(part.whole) != 32 or not data or offset + len(data) > size or size > MAX_WHOLE:
        raise ValueError("a part that is not within its message, or of one that is too long")
    return part


def _read_missing(fields: Mapping[str, Any]) -> Missing:
    first, last = _number(fields, "first_seq"), _number(fields, "next_seq")
    if last < first:
        raise ValueError("it ends before it begins")
    return Missing(_ring(fields), _number(fields, "segment"), first, last, _text(fields, "why", 1000))


def _write_ahead(records: Sequence[Mapping[str, object]]) -> bytes:
    """Records as rows of numbers that differ little from those of the row before, deflated.

    A row: tag, then how much more than in the row before are seq, segment, wall_ms - at_ms and at_ms; synced; the
    other fields in their order.
    """
    rows, before = [], (0, 0, 0, 0)
    for record in records:
        kind = KIND_OF[str(record["kind"])]
        at_ms = cast(int, record["at_ms"])
        here = (cast(int, record["seq"]), cast(int, record["segment"]), cast(int, record["wall_ms"]) - at_ms, at_ms)
        steps = [number - last for number, last in zip(here, before, strict=True)]
        rows.append((TAG_OF[kind], *steps, record["synced"], *(record[name] for name in kind._fields[1:])))
        before = here
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return engine.compress(cast(bytes, msgpack.packb(rows, unicode_errors="surrogatepass"))) + engine.flush()


def _read_ahead(data: bytes) -> tuple[Mapping[str, object], ...]:
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = engine.decompress(data, MAX_JOINED)
    if not engine.eof:
        raise ValueError("cut, or larger than any")
    rows = msgpack.unpackb(plain, use_list=False, unicode_errors="surrogatepass", max_array_len=MAX_URGENT)
    if type(rows) is not tuple or len(rows) > MAX_URGENT:
        raise ValueError(f"expected 1 to {MAX_URGENT} records")
    records, before = [], (0, 0, 0, 0)
    for tag, *more in rows:
        steps, synced, others = more[:4], more[4], more[5:]
        if not all(type(step) is int for step in steps) or type(synced) is not bool:
            raise TypeError("a row whose numbers are none")
        seq, segment, offset_ms, at_ms = (last + step for last, step in zip(before, steps, strict=True))
        before = (seq, segment, offset_ms, at_ms)
        try:
            event = read_event((tag, at_ms, *others))
        except FrameError as error:
            raise ValueError(str(error)) from None
        records.append(urgent_record(event, seq, segment, at_ms + offset_ms, synced))
    return tuple(records)


def _read_urgent(fields: Mapping[str, Any]) -> Urgent:
    records = _read_ahead(_octets(fields, "data")) if "data" in fields else fields["records"]
    if type(records) is not tuple or not 0 < len(records) <= MAX_URGENT:
        raise ValueError(f"expected 1 to {MAX_URGENT} records")
    for record in records:
        if not isinstance(record, dict) or not all(isinstance(name, str) for name in record):
            raise TypeError("a record is no map")
        for name in ("seq", "segment", "wall_ms"):
            _number(record, name)
        event_of(record)
    return Urgent(_ring(fields), records)


def _read_acks(fields: Mapping[str, Any]) -> Acks:
    return Acks(*(_ids(fields.get(name, ())) for name in Acks._fields))


_READERS: Final[Mapping[str, Callable[[Mapping[str, Any]], Message]]] = {
    "batches": _read_batches,
    "sealed": _read_piece,
    "part": _read_part,
    "lost": _read_missing,
    "urgent": _read_urgent,
    "ack": _read_acks,
}


def _ids(values: Sequence[object]) -> tuple[bytes, ...]:
    if type(values) is not tuple or not all(type(one) is bytes and len(one) == ID_SIZE for one in values):
        raise ValueError(f"expected ids of {ID_SIZE} octets")
    return cast("tuple[bytes, ...]", values)


def _is_64(number: int) -> bool:
    return -(1 << 63) <= number < 1 << 63


def _number(fields: Mapping[str, Any], name: str) -> int:
    value = fields[name]
    if type(value) is not int or not 0 <= value < MAX_NUMBER:
        raise ValueError(f"{name}: expected a number from 0, got {value!r:.40}")
    return value


def _octets(fields: Mapping[str, Any], name: str) -> bytes:
    value = fields[name]
    if type(value) is not bytes:
        raise TypeError(f"{name}: expected octets")
    return value


def _ring(fields: Mapping[str, Any]) -> bytes:
    ring = _octets(fields, "ring")
    if len(ring) != RING_SIZE:
        raise ValueError(f"ring: expected {RING_SIZE} octets, got {len(ring)}")
    return ring


def _text(fields: Mapping[str, Any], name: str, limit: int) -> str:
    value = fields[name]
    if type(value) is not str or len(value) > limit:
        raise ValueError(f"{name}: expected text of at most {limit} characters")
    value.encode()  # half a surrogate pair is nothing that a database takes
    return value
