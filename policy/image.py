"""The compiled policy image: layout, and a reader over any buffer (an mmap shared by all processes, or bytes).

Holds the file format and exact look-ups of one key. Knows no group and no verdict, and writes nothing (policy.builder).

Layout, little-endian. A header of HEADER_SIZE octets, then sections, each found through the header's table:

    RECORDS   8 octets a name: tag (octets 4..8 of the digest), combination number (3 octets). Sorted by digest.
    INDEX     u32 a bucket, and one more: file offset of the bucket's first record
    BITMAP    a bit per hash value: at most one name in eight that is not there passes
    COMBOS    u32 a combination, and one more: offset into EFFECTS
    EFFECTS   u16 each: slot << 5 | kind << 2 | scope
    V4_STARTS u32 a range; V4_COMBOS u32 a range: the ranges touch, combination 0 means "nothing here"
    V6        19 octets a range: first address (16), combination (3)
    URL_HOSTS 12 octets a host: digest (8), offset into URL_RULES (4). Sorted by digest.
    URL_RULES per host: u16 count, then each u16 effect, u16 length, pattern
    META      text: a line a slot, list TAB category TAB action TAB version; an empty line; lines of key TAB value

    digest = blake2s(salt + name), its first 9 octets; the bucket is its leading `bucket_bits` bits
    bitmap: h = crc32(name); octet h & (size - 1), bit h >> 29

The digest is salted so that nobody can prepare a list whose names collide with other people's; the crc only picks a
bit and may collide freely. With 40 bits of tag, 16 records a bucket and one eighth let through by the bitmap, a name
that is not on the list is taken for one that is once in 5 * 10^11 questions.

Rule: a file that is truncated, of another version, or altered raises ImageError when it is opened, not later.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from mmap import MADV_DONTNEED, mmap
from struct import Struct
from typing import Final, NamedTuple, TypeAlias
from zlib import crc32

from policy.digest import blake2s
from policy.errors import ImageError

Buffer: TypeAlias = bytes | mmap

MAGIC: Final = b"\x89GHP\r\n\x1a\n"  # PNG's trick: a transfer that mangles line ends shows at once
VERSION: Final = 1
SECTIONS: Final = 11
HEAD: Final = Struct("<8sHBBII16sQIIQQ")
TABLE: Final = Struct("<" + "QQ" * SECTIONS)
HEADER_SIZE: Final = 256
RECORD: Final = 8
V6_ROW: Final = 19
URL_ROW: Final = 12
MAX_SLOTS: Final = 2048
"""11 bits: one slot for each list, and for each category of a tree of lists."""
MAX_COMBOS: Final = 1 << 24
NO_COMBO: Final = b"\0\0\0"

SPLIT: Final = Struct(">I5s").unpack_from
"""A digest to the number whose leading bits are the bucket, and the tag."""
_PAIR: Final = Struct("<II").unpack_from
_U16: Final = Struct("<H")
_RULE: Final = Struct("<HH")
_CHUNK: Final = 1 << 18


class Part(IntEnum):
    """Sections, in the order of the header's table."""

    RECORDS = 0
    INDEX = 1
    BITMAP = 2
    COMBOS = 3
    EFFECTS = 4
    V4_STARTS = 5
    V4_COMBOS = 6
    V6 = 7
    URL_HOSTS = 8
    URL_RULES = 9
    META = 10


class Kind(IntEnum):
    """What an entry of a list asks for. The CANCEL_ kinds exist only while a list is compiled (`$badfilter`)."""

    BLOCK = 0
    ALLOW = 1
    IMPORTANT_BLOCK = 2
    IMPORTANT_ALLOW = 3
    CANCEL_BLOCK = 4
    CANCEL_ALLOW = 5
    CANCEL_IMPORTANT_BLOCK = 6
    CANCEL_IMPORTANT_ALLOW = 7


class Scope(IntFlag):
    """Which names an entry speaks of: itself, what is below it, or both."""

    SELF = 1
    BELOW = 2
    BOTH = 3


class Effect(NamedTuple):
    """One entry's wish, and which slot (list and category) it came from."""

    slot: int
    kind: Kind
    scope: Scope


class Slot(NamedTuple):
    """A list, or one category of a tree of lists."""

    name: str
    """As rule codes call it: `malware`, or `ut1/adult` for a category of a tree."""
    category: str
    action: str
    """`block` or `allow`: what the list was declared as. `named`: it does nothing until a profile names it."""
    version: str


class Header(NamedTuple):
    """What the first octets of the file say."""

    bucket_bits: int
    flags: int
    names: int
    combos: int
    salt: bytes
    file_size: int
    body_crc: int
    created_s: int
    generation: int
    """Version of the policy, for roll-back protection; 0: compiled here."""
    table: tuple[int, ...]


class Flag(IntFlag):
    """Header flags."""

    TOPS = 1
    """Some record is a top-level domain, so the walk has to go all the way up."""
    ALLOWS = 2
    """Some entry allows: a blocked name's parents must be asked, too."""
    IMPORTANT = 4
    """Some entry is important: it may stand above one that allows."""


def pack_header(header: Header) -> bytes:
    """The header's octets, its own checksum last."""
    head = HEAD.pack(
        MAGIC,
        VERSION,
        header.bucket_bits,
        header.flags,
        header.names,
        header.combos,
        header.salt,
        header.file_size,
        header.body_crc,
        0,
        header.created_s,
        header.generation,
    )
    body = (head + TABLE.pack(*header.table)).ljust(HEADER_SIZE - 4, b"\0")
    return body + crc32(body).to_bytes(4, "little")


def read_header(data: bytes) -> Header:
    """Read and check the first HEADER_SIZE octets.

    Raises: ImageError.
    """
    if len(data) < HEADER_SIZE:
        raise ImageError(f"policy image: expected at least {HEADER_SIZE} octets, got {len(data)}")
    if data[:8] != MAGIC:
        raise ImageError(f"policy image: expected magic {MAGIC.hex()}, got {data[:8].hex()}")
    if crc32(data[: HEADER_SIZE - 4]) != int.from_bytes(data[HEADER_SIZE - 4 : HEADER_SIZE], "little"):
        raise ImageError("policy image: header checksum does not match")
    (_, version, bits, flags, names, combos, salt, size, body_crc, _, created, generation) = HEAD.unpack_from(data)
    if version != VERSION:
        raise ImageError(f"policy image: expected version {VERSION}, got {version}")
    table = TABLE.unpack_from(data, HEAD.size)
    for part in Part:
        start, length = table[2 * part : 2 * part + 2]
        if start < HEADER_SIZE or start + length > size:
            raise ImageError(f"policy image: section {part.name} lies outside the file")
    return Header(bits, flags, names, combos, salt, size, body_crc, created, generation, table)


def body_checksum(data: Buffer, size: int) -> int:
    """crc32 of everything behind the header, read in pieces so that no copy of the file is made."""
    crc = 0
    with memoryview(data) as view:
        for at in range(HEADER_SIZE, size, _CHUNK):
            with view[at : min(at + _CHUNK, size)] as piece:
                crc = crc32(piece, crc)
    return crc


class _Rows(Sequence[bytes]):
    """Sorted fixed-size rows of the buffer, as the keys that `bisect` wants. Copies nothing."""

    __slots__ = ("_buffer", "_count", "_key", "_row", "_start")

    def __init__(self, buffer: Buffer, start: int, length: int, row: int, key: int) -> None:
        self._buffer, self._start, self._row, self._key, self._count = buffer, start, row, key, length // row

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]  # bisect asks for single rows only
        at = self._start + index * self._row
        return self._buffer[at : at + self._key]

    def rest(self, index: int) -> bytes:
        """What stands behind the key in a row."""
        at = self._start + index * self._row
        return self._buffer[at + self._key : at + self._row]


class Image:
    """One open image. Keeps the buffer alive; the pages of an mmap stay shared between processes."""

    def __init__(self, buffer: Buffer, *, verify: bool = True) -> None:
        """`verify=False` leaves out the checksum of the body, for a file this process has just written itself.

        Raises: ImageError.
        """
        self.buffer: Final = buffer
        header = read_header(buffer[:HEADER_SIZE])
        self.header: Final = header
        if len(buffer) != header.file_size:
            raise ImageError(f"policy image: expected {header.file_size} octets, got {len(buffer)}")
        if verify and body_checksum(buffer, header.file_size) != header.body_crc:
            raise ImageError("policy image: body checksum does not match")
        self._check_sizes()
        self.salt: Final = header.salt
        self.shift: Final = 32 - header.bucket_bits
        self.index_at: Final = self._at(Part.INDEX)
        start, length = self.extent(Part.BITMAP)
        self.bitmap: Final = memoryview(buffer)[start : start + length]
        self.bitmap_mask: Final = length - 1
        self.has_tops: Final = bool(header.flags & Flag.TOPS)
        self.slots, self.meta = self._read_text()
        self._v4 = _u32_view(buffer, self._at(Part.V4_STARTS), self._length(Part.V4_STARTS))
        self._v6 = _Rows(buffer, self._at(Part.V6), self._length(Part.V6), V6_ROW, 16)
        self.has_ranges: Final = bool(len(self._v4) or len(self._v6))
        self._urls = _Rows(buffer, self._at(Part.URL_HOSTS), self._length(Part.URL_HOSTS), URL_ROW, 8)

    def find(self, name: bytes) -> bytes:
        """The combination number (3 octets) of one exact key, or b"" if it is not in the image."""
        crc = crc32(name)
        if not self.bitmap[crc & self.bitmap_mask] >> (crc >> 29) & 1:
            return b""
        return self.probe(name)

    def probe(self, name: bytes) -> bytes:
        """`find` behind the bitmap: for a caller that has already asked it."""
        head, tag = SPLIT(blake2s(self.salt + name).digest())
        start, end = _PAIR(self.buffer, self.index_at + 4 * (head >> self.shift))
        at = start
        while (at := self.buffer.find(tag, at, end)) >= 0:
            if (at - start) & 7 == 0:
                return self.buffer[at + 5 : at + 8]
            at += 1  # the five octets stand across two records: not a record's tag
        return b""

    def find_address(self, address: bytes) -> bytes:
        """The combination number of the range that holds an address of 4 or 16 octets; b"" if none does."""
        if len(address) == 4:
            row = bisect_right(self._v4, int.from_bytes(address, "big")) - 1
            if row < 0:
                return b""
            at = self._at(Part.V4_COMBOS) + 4 * row
            combo = self.buffer[at : at + 3]
        else:
            row = bisect_right(self._v6, address) - 1
            if row < 0:
                return b""
            combo = self._v6.rest(row)
        return b"" if combo == NO_COMBO else combo

    def find_urls(self, host: bytes) -> list[tuple[Effect, bytes]]:
        """The URL rules that name exactly this host, with their path patterns."""
        if not len(self._urls):
            return []
        digest = blake2s(self.salt + host).digest()[:8]
        row = bisect_left(self._urls, digest)
        if row == len(self._urls) or self._urls[row] != digest:
            return []
        at = self._at(Part.URL_RULES) + int.from_bytes(self._urls.rest(row), "little")
        (count,) = _U16.unpack_from(self.buffer, at)
        at += 2
        rules = []
        for _ in range(count):
            effect, length = _RULE.unpack_from(self.buffer, at)
            rules.append((unpack_effect(effect), self.buffer[at + 4 : at + 4 + length]))
            at += 4 + length
        return rules

    def effects(self, combo: bytes) -> list[Effect]:
        """What a combination number stands for."""
        number = int.from_bytes(combo, "little")
        if number >= self.header.combos:
            raise ImageError(f"policy image: combination {number} of {self.header.combos}")
        start, end = _PAIR(self.buffer, self._at(Part.COMBOS) + 4 * number)
        base = self._at(Part.EFFECTS)
        packed = self.buffer[base + start : base + end]
        return [unpack_effect(int.from_bytes(packed[i : i + 2], "little")) for i in range(0, len(packed), 2)]

    def release(self) -> None:
        """Give the pages of a mapped file back to the kernel; they come again when they are read."""
        if isinstance(self.buffer, mmap):
            self.buffer.madvise(MADV_DONTNEED)

    def section(self, part: Part) -> bytes:
        """A copy of one section: for tools and deltas, not for look-ups."""
        return self.buffer[self._at(part) : self._at(part) + self._length(part)]

    def extent(self, part: Part) -> tuple[int, int]:
        """Where a section stands: offset and length."""
        return self._at(part), self._length(part)

    def _at(self, part: Part) -> int:
        return self.header.table[2 * part]

    def _length(self, part: Part) -> int:
        return self.header.table[2 * part + 1]

    def _check_sizes(self) -> None:
        """A file with a right checksum may still have been made by somebody else's program."""
        header = self.header
        bitmap = self._length(Part.BITMAP)
        sound = (
            header.bucket_bits <= 24
            and self._length(Part.RECORDS) == RECORD * header.names
            and self._length(Part.INDEX) == 4 * ((1 << header.bucket_bits) + 1)
            and bitmap > 0
            and bitmap & (bitmap - 1) == 0
            and bitmap <= 1 << 29
            and self._length(Part.COMBOS) == 4 * (header.combos + 1)
            and self._length(Part.V4_STARTS) == self._length(Part.V4_COMBOS)
            and self._length(Part.V4_STARTS) % 4 == 0
            and self._length(Part.V6) % V6_ROW == 0
            and self._length(Part.URL_HOSTS) % URL_ROW == 0
        )
        if not sound:
            raise ImageError("policy image: the sizes of its sections contradict each other")

    def _read_text(self) -> tuple[list[Slot], dict[str, str]]:
        slots: list[Slot] = []
        try:
            head, _, tail = self.section(Part.META).decode("utf-8").partition("\n\n")
        except UnicodeDecodeError:
            raise ImageError("policy image: its list names are not UTF-8") from None
        for line in head.splitlines():
            fields = line.split("\t")
            if len(fields) != 4:
                raise ImageError(f"policy image: expected four fields for a list, got {line!r}")
            slots.append(Slot(*fields))
        meta = dict(line.partition("\t")[::2] for line in tail.splitlines())
        return slots, meta


def pack_effect(slot: int, kind: int, scope: int) -> int:
    """An effect as the u16 of the file."""
    # int(): a flag ored to a number gives a new flag, which enum remembers for ever; 15 MB for a tree of lists
    return slot << 5 | int(kind) << 2 | int(scope)


def unpack_effect(value: int) -> Effect:
    """The reverse of `pack_effect`."""
    return Effect(value >> 5, Kind(value >> 2 & 7), Scope(value & 3))


def _u32_view(buffer: Buffer, start: int, length: int) -> Sequence[int]:
    """A u32 column as a sequence: the pages themselves where the machine is little-endian, else a swapped copy."""
    if sys.byteorder == "little":
        return memoryview(buffer)[start : start + length].cast("I")
    column = array("I", buffer[start : start + length])
    column.byteswap()
    return column
