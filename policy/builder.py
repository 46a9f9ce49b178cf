"""Builds an image in bounded memory: takes entries in any order, spills them, sorts them part by part, writes the file.

Order of calls: `slot` for each list, `add` for each entry, then `write` once. Opens no file: spill and output are
binary files of the caller's (a test brings io.BytesIO). The output must be seekable and readable.
Rule: the same entries with the same salt give the same octets, in whatever order they came (slots and combinations
keep their numbers if a base image is given, so that a delta stays small).
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator
from itertools import accumulate
from struct import Struct, iter_unpack
from typing import IO, Final, NamedTuple
from zlib import crc32

from policy.digest import blake2s
from policy.errors import ListError
from policy.image import (
    HEADER_SIZE,
    MAX_COMBOS,
    MAX_SLOTS,
    RECORD,
    Flag,
    Header,
    Image,
    Kind,
    Part,
    Scope,
    Slot,
    pack_effect,
    pack_header,
)

PARTITIONS: Final = 256
"""One a value of the first octet of the digest (or of the IPv4 address): 4.75 M entries are 260 kB each."""
SPILL_BUFFER: Final = 4096
"""Octets a partition gathers before they are written out; 1 MiB in all."""
MAX_V6: Final = 200_000
"""IPv6 ranges, sorted in memory: 20 MB. The longest public lists have a tenth of it."""
MIN_V4_PREFIX: Final = 8
MIN_V6_PREFIX: Final = 16
"""A wider range is a mistake or malice: one line would cut off a continent."""
MAX_PATTERN: Final = 1024
MAX_HOST_RULES: Final = 4096
"""URL rules of one host. They are tried one by one, for clear-text HTTP only."""
RECORDS_PER_BUCKET: Final = 16
_KEY: Final = Struct("<9sIH")
_V4: Final = Struct(">IBH")
_URL: Final = Struct("<H8sH")
_EVERY_SCOPE: Final = int(Scope.BOTH)
_CANCELS: Final = Kind.CANCEL_BLOCK << 2
"""The bit of an effect that every CANCEL_ kind has."""


class Built(NamedTuple):
    """What `write` made."""

    size: int
    names: int
    rules: int
    """Name entries, before those that several lists share were joined."""
    ranges: int
    """IPv4 and IPv6 ranges."""
    urls: int
    combos: int


class _Spill:
    """Octets by partition, in one file: each partition's pieces are found again through their offsets."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._open = [bytearray() for _ in range(PARTITIONS)]
        self._pieces: list[array[int]] = [array("Q") for _ in range(PARTITIONS)]
        self._end = 0

    def flush(self, partition: int) -> None:
        """Write a partition's gathered octets out."""
        gathered = self._open[partition]
        if gathered:
            self._pieces[partition].append(self._end << 24 | len(gathered))
            self._file.seek(self._end)
            self._file.write(gathered)
            self._end += len(gathered)
            gathered.clear()

    def add(self, partition: int, data: bytes) -> None:
        gathered = self._open[partition]
        gathered += data
        if len(gathered) >= SPILL_BUFFER:
            self.flush(partition)

    def read(self, partition: int) -> bytes:
        """All of a partition, what is still in memory too."""
        parts = []
        for piece in self._pieces[partition]:
            self._file.seek(piece >> 24)
            parts.append(self._file.read(piece & 0xFFFFFF))
        parts.append(bytes(self._open[partition]))
        return b"".join(parts)


class Builder:
    """Collects the entries of all lists of one image."""

    def __init__(
        self,
        salt: bytes,
        spills: tuple[IO[bytes], IO[bytes], IO[bytes]],
        *,
        base: Image | None = None,
        created_s: int = 0,
        generation: int = 0,
    ) -> None:
        """`spills`: temporary files for names, IPv4 ranges and URL rules. `base`: the image a delta shall start from;
        then `salt` must be its salt."""
        if len(salt) != 16:
            raise ValueError("builder: expected a salt of 16 octets")
        if base is not None and base.salt != salt:
            raise ValueError("builder: expected the base image's salt")
        self.salt: Final = salt
        self._base = base
        self._names, self._v4, self._urls = map(_Spill, spills)
        self._v6: list[tuple[int, int, int]] = []
        self._slots: list[Slot] = list(base.slots) if base else []
        self._slot_of: dict[tuple[str, str, str], int] = {
            (s.name, s.category, s.action): i for i, s in enumerate(self._slots)
        }
        self._combos: dict[bytes, int] = {b"": 0}
        if base is not None:
            for number in range(base.header.combos):
                packed = _pack_effects(pack_effect(*e) for e in base.effects(number.to_bytes(3, "little")))
                self._combos.setdefault(packed, number)
        self._combo_list: list[bytes] = [b""] * len(self._combos)
        for packed, number in self._combos.items():
            self._combo_list[number] = packed
        self._flags = 0
        self._rules = 0
        self._created_s, self._generation = created_s, generation

    def slot(self, name: str, category: str, action: str, version: str = "") -> int:
        """The number of a list (or a tree's category) in effects.

        Raises: ListError when there are more than MAX_SLOTS.
        """
        for text in (name, category, action, version):
            if "\t" in text or "\n" in text:
                raise ListError(f"list {name!r}: expected no tab and no line end in its name")
        key = (name, category, action)
        number = self._slot_of.get(key)
        if number is None:
            number = len(self._slots)
            if number >= MAX_SLOTS:
                raise ListError(f"list {name!r}: expected at most {MAX_SLOTS} lists and categories")
            self._slot_of[key] = number
            self._slots.append(Slot(name, category, action, version))
        else:
            self._slots[number] = Slot(name, category, action, version)
        return number

    def add_name(self, name: bytes, effect: int) -> None:
        """A name entry; `effect` is packed (image.pack_effect)."""
        digest = blake2s(self.salt + name).digest()[:9]
        spill = self._names
        gathered = spill._open[digest[0]]  # _Spill.add, written out: this runs once for each of millions of lines
        gathered += _KEY.pack(digest, crc32(name), effect)
        if len(gathered) >= SPILL_BUFFER:
            spill.flush(digest[0])
        self._rules += 1
        if b"." not in name:
            self._flags |= Flag.TOPS

    def add_range(self, address: int, prefix: int, bits: int, effect: int) -> None:
        """An address range: its first address, its prefix length, 32 or 128.

        Raises: ListError if it is too wide, or there are too many.
        """
        if bits == 32:
            if prefix < MIN_V4_PREFIX:
                raise ListError("address range too wide")
            self._v4.add(address >> 24, _V4.pack(address, prefix, effect))
            return
        if prefix < MIN_V6_PREFIX:
            raise ListError("address range too wide")
        if len(self._v6) >= MAX_V6:
            raise ListError("too many IPv6 ranges")
        self._v6.append((address, prefix, effect))

    def add_url(self, host: bytes, pattern: bytes, effect: int) -> None:
        """A URL rule: host, and the pattern its path must match (policy.urls).

        Raises: ListError if the pattern is too long.
        """
        if len(pattern) > MAX_PATTERN:
            raise ListError("URL pattern too long")
        digest = blake2s(self.salt + host).digest()[:8]
        self._urls.add(digest[0], _URL.pack(len(pattern), digest, effect) + pattern)

    def write(self, out: IO[bytes], meta: dict[str, str] | None = None) -> Built:
        """Sort, join, and write the whole image to `out`, which must be empty."""
        unique = sum(self._count_unique(p) for p in range(PARTITIONS))
        bucket_bits, bitmap_bits = _dimensions(unique)
        if self._base is not None and _fits(self._base, unique):
            bucket_bits = self._base.header.bucket_bits
            bitmap_bits = self._base.extent(Part.BITMAP)[1].bit_length() + 2
        table = [0] * (2 * len(Part))
        writer = _Writer(out, table)
        counts, bitmap = self._write_records(writer, bucket_bits, bitmap_bits)
        writer.section(Part.INDEX, _column(HEADER_SIZE + RECORD * n for n in accumulate(counts, initial=0)))
        writer.section(Part.BITMAP, bitmap)
        del counts, bitmap
        ranges = self._write_ranges(writer)
        urls = self._write_urls(writer)
        self._flags |= _kinds_of(self._combo_list)
        ends = accumulate(map(len, self._combo_list), initial=0)
        writer.section(Part.COMBOS, _column(ends))
        writer.section(Part.EFFECTS, b"".join(self._combo_list))
        slots = "\n".join("\t".join(slot) for slot in self._slots)
        facts = "\n".join(f"{key}\t{value}" for key, value in (meta or {}).items())
        writer.section(Part.META, f"{slots}\n\n{facts}\n".encode())
        size = writer.end
        header = Header(
            bucket_bits, self._flags, unique, len(self._combo_list), self.salt, size,
            _checksum(out, size), self._created_s, self._generation, tuple(table),
        )  # fmt: skip
        out.seek(0)
        out.write(pack_header(header))
        return Built(size, unique, self._rules, ranges, urls, len(self._combo_list))

    def _count_unique(self, partition: int) -> int:
        return len({digest for (digest,) in iter_unpack("<9s6x", self._names.read(partition))})

    def _write_records(self, writer: _Writer, bucket_bits: int, bitmap_bits: int) -> tuple[array[int], bytearray]:
        counts = array("I", bytes(4 << bucket_bits))
        bitmap = bytearray(1 << (bitmap_bits - 3))
        mask = len(bitmap) - 1
        shift = 32 - bucket_bits
        from_bytes = int.from_bytes
        writer.open(Part.RECORDS)
        for partition in range(PARTITIONS):
            rows = sorted([row for (row,) in iter_unpack("15s", self._names.read(partition))])
            records = []
            at, end = 0, len(rows)
            while at < end:
                row = rows[at]
                digest = row[:9]
                packed = row[13:]
                at += 1
                if at < end and rows[at][:9] == digest:
                    effects = {from_bytes(packed, "little")}
                    while at < end and rows[at][:9] == digest:
                        effects.add(from_bytes(rows[at][13:], "little"))
                        at += 1
                    packed = _join(effects)
                elif packed[0] & _CANCELS:
                    packed = b""
                records.append(digest[4:] + self._combo(packed).to_bytes(3, "little"))
                counts[from_bytes(digest[:4], "big") >> shift] += 1
                crc = from_bytes(row[9:13], "little")
                bitmap[crc & mask] |= 1 << (crc >> 29)
            writer.write(b"".join(records))
        writer.close()
        return counts, bitmap

    def _write_ranges(self, writer: _Writer) -> int:
        starts, combos = array("I"), array("I")
        for partition in range(PARTITIONS):
            rows = sorted(set(_V4.iter_unpack(self._v4.read(partition))))
            for start, packed in _flatten(rows, 32):
                if start < 1 << 32:
                    starts.append(start)
                    combos.append(self._combo(packed))
        writer.section(Part.V4_STARTS, _column(starts))
        writer.section(Part.V4_COMBOS, _column(combos))
        rows6 = [
            start.to_bytes(16, "big") + self._combo(packed).to_bytes(3, "little")
            for start, packed in _flatten(sorted(set(self._v6)), 128)
            if start < 1 << 128
        ]
        writer.section(Part.V6, b"".join(rows6))
        return len(starts) + len(rows6)

    def _write_urls(self, writer: _Writer) -> int:
        hosts, total, at = bytearray(), 0, 0
        writer.open(Part.URL_RULES)
        for partition in range(PARTITIONS):
            by_host: dict[bytes, set[tuple[bytes, int]]] = {}
            data = self._urls.read(partition)
            read = 0
            while read < len(data):
                length, digest, effect = _URL.unpack_from(data, read)
                read += _URL.size
                by_host.setdefault(digest, set()).add((data[read : read + length], effect))
                read += length
            for digest in sorted(by_host):
                rules = _cancel_urls(by_host[digest])[:MAX_HOST_RULES]
                if not rules:
                    continue
                hosts += digest + at.to_bytes(4, "little")
                block = len(rules).to_bytes(2, "little") + b"".join(
                    effect.to_bytes(2, "little") + len(pattern).to_bytes(2, "little") + pattern
                    for pattern, effect in rules
                )
                writer.write(block)
                at += len(block)
                total += len(rules)
        writer.close()
        writer.section(Part.URL_HOSTS, bytes(hosts))
        return total

    def _combo(self, packed: bytes) -> int:
        number = self._combos.get(packed)
        if number is None:
            number = self._combos[packed] = len(self._combo_list)
            if number >= MAX_COMBOS:
                raise ListError(f"more than {MAX_COMBOS} combinations of lists")
            self._combo_list.append(packed)
        return number


class _Writer:
    """Sections one after another, each beginning at a multiple of 8 so that a column can be read in place."""

    def __init__(self, out: IO[bytes], table: list[int]) -> None:
        self._out, self._table = out, table
        self.end = HEADER_SIZE
        self._part = Part.RECORDS
        out.seek(0)
        out.write(bytes(HEADER_SIZE))

    def open(self, part: Part) -> None:
        padding = -self.end % 8
        self._out.write(bytes(padding))
        self.end += padding
        self._part = part
        self._table[2 * part] = self.end

    def write(self, data: bytes | bytearray) -> None:
        self._out.write(data)
        self.end += len(data)

    def close(self) -> None:
        self._table[2 * self._part + 1] = self.end - self._table[2 * self._part]

    def section(self, part: Part, data: bytes | bytearray) -> None:
        self.open(part)
        self.write(data)
        self.close()


def _kinds_of(combos: Iterable[bytes]) -> int:
    """Which kinds of entries there are at all, as flags of the header."""
    kinds = {Kind(packed[at] >> 2 & 7) for packed in combos for at in range(0, len(packed), 2)}
    flags = Flag.ALLOWS if kinds & {Kind.ALLOW, Kind.IMPORTANT_ALLOW} else Flag(0)
    return int(flags | (Flag.IMPORTANT if kinds & {Kind.IMPORTANT_BLOCK, Kind.IMPORTANT_ALLOW} else Flag(0)))


def _dimensions(names: int) -> tuple[int, int]:
    """Bits of the bucket number, and of the bitmap's size in bits: 5.7 to 11.3 bits a name."""
    bucket_bits = min(24, max(0, (names // RECORDS_PER_BUCKET).bit_length() - 1))
    if names >> bucket_bits > RECORDS_PER_BUCKET * 1.42:
        bucket_bits = min(24, bucket_bits + 1)
    wanted = max(64, 8 * names)
    bitmap_bits = wanted.bit_length() - 1
    if wanted > 1.42 * (1 << bitmap_bits):  # the nearer power of two, by ratio
        bitmap_bits += 1
    return bucket_bits, min(32, bitmap_bits)


def _fits(base: Image, names: int) -> bool:
    """May a new version keep the base's dimensions? Half to twice its size: beyond that, a new full image."""
    return base.header.names // 2 <= names <= base.header.names * 2


def _join(effects: set[int]) -> bytes:
    """The effects of all lists that hold one name: scopes of equal wishes united, cancelled ones taken out."""
    scopes: dict[int, int] = {}
    for effect in effects:
        scopes[effect >> 2] = scopes.get(effect >> 2, 0) | effect & _EVERY_SCOPE
    for wish in [w for w in scopes if w & 7 >= Kind.CANCEL_BLOCK]:
        # AdGuard, `$badfilter`: takes back the rule of the same text, which here is one list's same wish.
        scopes.pop(wish - Kind.CANCEL_BLOCK, None)
        del scopes[wish]
    return _pack_effects(wish << 2 | scope for wish, scope in scopes.items())


def _pack_effects(effects: Iterable[int]) -> bytes:
    return b"".join(effect.to_bytes(2, "little") for effect in sorted(effects))


def _cancel_urls(rules: set[tuple[bytes, int]]) -> list[tuple[bytes, int]]:
    cancelled = {(p, e - (Kind.CANCEL_BLOCK << 2)) for p, e in rules if e >> 2 & 7 >= Kind.CANCEL_BLOCK}
    return sorted((p, e) for p, e in rules if e >> 2 & 7 < Kind.CANCEL_BLOCK and (p, e) not in cancelled)


def _flatten(rows: Iterable[tuple[int, int, int]], bits: int) -> Iterator[tuple[int, bytes]]:
    """Nested ranges to touching ones: where each begins, and all effects that hold there (b"": none).

    `rows`: (first address, prefix length, effect), sorted. Prefixes are nested or apart, never crossing, so a stack
    of those that are open is enough.
    """
    stack: list[tuple[int, set[int]]] = []  # last address, effects
    pending: tuple[int, set[int]] | None = None
    held = b""

    def emit(start: int, effects: set[int]) -> Iterator[tuple[int, bytes]]:
        nonlocal pending, held
        if pending is not None and pending[0] != start:
            packed = _join(pending[1]) if pending[1] else b""
            if packed != held:
                held = packed
                yield pending[0], packed
        pending = (start, effects)

    for start, prefix, effect in rows:
        last = start + (1 << (bits - prefix)) - 1
        while stack and stack[-1][0] < start:
            ended = stack.pop()[0]
            yield from emit(ended + 1, stack[-1][1] if stack else set())
        inside = (stack[-1][1] if stack else set()) | {effect}
        if stack and stack[-1][0] == last and pending is not None and pending[0] == start:
            stack[-1] = (last, inside)
        else:
            stack.append((last, inside))
        yield from emit(start, inside)
    while stack:
        ended = stack.pop()[0]
        yield from emit(ended + 1, stack[-1][1] if stack else set())
    yield from emit(-1, set())


def _column(values: Iterable[int]) -> bytes:
    """A column of u32, little-endian."""
    column = array("I", values)
    if sys.byteorder != "little":
        column.byteswap()
    return column.tobytes()


def _checksum(out: IO[bytes], size: int) -> int:
    out.seek(HEADER_SIZE)
    crc, left = 0, size - HEADER_SIZE
    while left > 0:
        piece = out.read(min(left, 1 << 18))
        crc = crc32(piece, crc)
        left -= len(piece)
    return crc
