"""From one version of an image to the next in kilobytes: what a publisher makes and a router applies.

The result is the new image, octet for octet, so one signed hash covers both ways of getting it. Both images must have
the same salt and dimensions (Builder's `base`); the publisher sends a full image where they have not.

A delta is a head, and a zlib stream of one edit after another:
    SPLICE  for sorted rows and text: octets to keep, octets to leave out, octets to put in
    SPARSE  for columns of a fixed size: how far to the next changed value, and by what it changes
The index, the offsets of URL rules and the like follow from the rest and are worked out again.

Rule: a delta that does not fit the image it is applied to raises BundleError before the result can be taken for an
image; memory is the touched section, never the whole file twice.
"""

from __future__ import annotations

import sys
import zlib
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import IO, Final

from policy.errors import BundleError, ImageError
from policy.image import HEADER_SIZE, RECORD, URL_ROW, V6_ROW, Buffer, Header, Image, Part, pack_header, read_header

MAGIC: Final = b"GHPD\x01\r\n\x1a"
MAX_DELTA: Final = 64 << 20
"""Octets of a delta when unpacked: beyond, a full image is shorter."""
_CHUNK: Final = 1 << 18
_RELEASE: Final = 1 << 20
"""Octets of the old image that are copied before their pages are given back."""


def make_delta(old: Image, new: Image) -> bytes:
    """The delta from one image to another.

    Raises: BundleError if they have not the same salt and dimensions.
    """
    _check_kin(old.header, new.header)
    body = bytearray()
    for edit in (
        _splice(_rows(old.section(Part.RECORDS), RECORD), _rows(new.section(Part.RECORDS), RECORD)),
        _sparse(_counts(old), _counts(new)),
        _sparse(old.section(Part.BITMAP), new.section(Part.BITMAP)),
        _splice(_rows(_ranges(old), 8), _rows(_ranges(new), 8)),
        _splice(_rows(old.section(Part.V6), V6_ROW), _rows(new.section(Part.V6), V6_ROW)),
        _splice(_url_blocks(old), _url_blocks(new)),
        *(_ends(old.section(part), new.section(part)) for part in (Part.COMBOS, Part.EFFECTS, Part.META)),
    ):
        body += _varint(len(edit)) + edit
    head = MAGIC + _fingerprint(old) + new.buffer[:HEADER_SIZE]
    return head + zlib.compress(bytes(body), 9)


def apply_delta(old: Image, delta: bytes, out: IO[bytes]) -> None:
    """Write the new image to `out` (empty, seekable, readable).

    Raises: BundleError if the delta is damaged or meant for another image.
    """
    header, edits = _open(old, delta)
    try:
        _write(old, header, edits, out)
    except (IndexError, ValueError, OverflowError, ImageError) as error:
        raise BundleError(f"policy delta: damaged: {error}") from None
    out.flush()
    if out.seek(0, 2) != header.file_size or _crc(out, header.file_size) != header.body_crc:
        raise BundleError("policy delta: the result is not the image it promised")


def _open(old: Image, delta: bytes) -> tuple[Header, Iterator[memoryview]]:
    head = len(MAGIC) + 8
    if len(delta) < head + HEADER_SIZE or delta[: len(MAGIC)] != MAGIC:
        raise BundleError("policy delta: expected a delta of format 1")
    if delta[len(MAGIC) : head] != _fingerprint(old):
        raise BundleError("policy delta: made for another image than the one that is here")
    try:
        header = read_header(delta[head : head + HEADER_SIZE])
    except ImageError as error:
        raise BundleError(f"policy delta: {error}") from None
    _check_kin(old.header, header)
    unpacker = zlib.decompressobj()
    try:
        body = unpacker.decompress(delta[head + HEADER_SIZE :], MAX_DELTA)
    except zlib.error as error:
        raise BundleError(f"policy delta: {error}") from None
    if not unpacker.eof:
        raise BundleError(f"policy delta: truncated, or more than {MAX_DELTA} octets")
    return header, _edits(body)


def _edits(body: bytes) -> Iterator[memoryview]:
    view, at = memoryview(body), 0
    while at < len(body):
        size, at = _read_varint(view, at)
        if at + size > len(body):
            raise BundleError("policy delta: an edit is cut off")
        yield view[at : at + size]
        at += size


def _write(old: Image, header: Header, edits: Iterator[memoryview], out: IO[bytes]) -> None:
    table = header.table
    out.write(bytes(HEADER_SIZE))

    def put(part: Part, data: bytes | bytearray | Iterator[bytes]) -> None:
        start, left = table[2 * part], table[2 * part + 1]
        out.seek(start)
        for piece in [data] if isinstance(data, (bytes, bytearray)) else data:
            left -= len(piece)
            if left < 0:
                break
            out.write(piece)
        if left:
            raise BundleError(f"policy delta: section {part.name} has another size than promised")

    def edit() -> memoryview:
        found = next(edits, None)
        if found is None:
            raise BundleError("policy delta: an edit is missing")
        return found

    put(Part.RECORDS, _spliced(old, Part.RECORDS, edit()))
    counts = _counts(old)
    _unsparse(counts, edit())
    put(Part.INDEX, _column(array("I", (HEADER_SIZE + RECORD * n for n in accumulate(counts, initial=0)))))
    bitmap = bytearray(old.section(Part.BITMAP))
    _unsparse(bitmap, edit())
    put(Part.BITMAP, bitmap)
    del bitmap, counts
    pairs = _column_of(b"".join(_spliced_octets(_ranges(old), edit())))
    put(Part.V4_STARTS, _column(pairs[0::2]))
    put(Part.V4_COMBOS, _column(pairs[1::2]))
    del pairs
    put(Part.V6, _spliced(old, Part.V6, edit()))
    hosts, rules = _split_urls(b"".join(_spliced_octets(b"".join(_url_blocks(old)), edit())))
    put(Part.URL_HOSTS, hosts)
    put(Part.URL_RULES, rules)
    for part in (Part.COMBOS, Part.EFFECTS, Part.META):
        put(part, _spliced(old, part, edit()))
    out.seek(0, 2)
    if out.tell() < header.file_size:
        out.truncate(header.file_size)
    out.seek(0)
    out.write(_header_octets(header, edits))


def _header_octets(header: Header, edits: Iterator[memoryview]) -> bytes:
    if next(edits, None) is not None:
        raise BundleError("policy delta: expected no further edit")
    return pack_header(header)


# --- edits ---------------------------------------------------------------------------------------------------------


def _splice(old: list[bytes], new: list[bytes]) -> bytes:
    """Rows that stay keep their order, so one walk finds what came and what went."""
    ours, theirs = set(old), set(new)
    edit = bytearray()
    at = kept = skipped = 0
    inserted = bytearray()

    def flush() -> None:
        nonlocal kept, skipped
        if kept or skipped or inserted:
            edit.extend(_varint(kept) + _varint(skipped) + _varint(len(inserted)) + inserted)
        kept = skipped = 0
        inserted.clear()

    for row in new:
        while at < len(old) and old[at] != row and (old[at] not in theirs or row in ours):
            skipped += len(old[at])
            at += 1
        if at < len(old) and old[at] == row:
            if skipped or inserted:
                flush()
            kept += len(row)
            at += 1
        else:
            inserted += row
    skipped += sum(map(len, old[at:]))
    flush()
    return bytes(edit)


def _ends(old: bytes, new: bytes) -> bytes:
    """What is alike at both ends is kept, the middle is replaced."""
    limit = min(len(old), len(new))
    front = next((i for i in range(limit) if old[i] != new[i]), limit)
    limit -= front
    back = next((i for i in range(limit) if old[-1 - i] != new[-1 - i]), limit)
    middle = new[front : len(new) - back]
    edit = _varint(front) + _varint(len(old) - front - back) + _varint(len(middle)) + middle
    return edit + _varint(back) + _varint(0) + _varint(0)


def _spliced(old: Image, part: Part, edit: memoryview) -> Iterator[bytes]:
    """Gives the old image's pages back as it goes: an update must not hold two images in memory."""
    start, length = old.extent(part)
    written = 0
    for piece in _pieces(old.buffer, start, length, edit):
        yield piece
        written += len(piece)
        if written >= _RELEASE:
            old.release()
            written = 0
    old.release()


def _spliced_octets(data: bytes, edit: memoryview) -> Iterator[bytes]:
    return _pieces(data, 0, len(data), edit)


def _pieces(buffer: Buffer, start: int, length: int, edit: memoryview) -> Iterator[bytes]:
    """The new octets of a section, in pieces no larger than what is kept in one run."""
    at, end, read = start, start + length, 0
    while read < len(edit):
        kept, read = _read_varint(edit, read)
        skipped, read = _read_varint(edit, read)
        inserted, read = _read_varint(edit, read)
        if at + kept + skipped > end or read + inserted > len(edit):
            raise BundleError("policy delta: an edit goes beyond its section")
        for begin in range(at, at + kept, _CHUNK):
            yield bytes(buffer[begin : min(begin + _CHUNK, at + kept)])
        at += kept + skipped
        yield bytes(edit[read : read + inserted])
        read += inserted
    if at != end:
        raise BundleError("policy delta: an edit does not reach the end of its section")


def _sparse(old: Sequence[int], new: Sequence[int]) -> bytes:
    edit, last = bytearray(), 0
    for place, (a, b) in enumerate(zip(old, new, strict=True)):
        if a != b:
            step = b - a
            edit += _varint(place - last) + _varint(2 * step if step >= 0 else -2 * step - 1)
            last = place
    return bytes(edit)


def _unsparse(column: bytearray | array[int], edit: memoryview) -> None:
    place = read = 0
    while read < len(edit):
        gap, read = _read_varint(edit, read)
        step, read = _read_varint(edit, read)
        place += gap
        column[place] += step >> 1 if not step & 1 else -(step + 1 >> 1)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        octet = data[at]  # IndexError at the end: the caller says "damaged"
        at += 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value, at
        shift += 7
        if shift > 35:
            raise ValueError("a number of more than 36 bits")


# --- sections ------------------------------------------------------------------------------------------------------


def _rows(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def _column_of(data: bytes) -> array[int]:
    column = array("I", data)
    if sys.byteorder != "little":
        column.byteswap()
    return column


def _column(column: array[int]) -> bytes:
    if sys.byteorder != "little":
        column = array("I", column)
        column.byteswap()
    return column.tobytes()


def _counts(image: Image) -> array[int]:
    """Records of each bucket."""
    index = _column_of(image.section(Part.INDEX))
    return array("I", ((b - a) // RECORD for a, b in pairwise(index)))


def _ranges(image: Image) -> bytes:
    """IPv4 ranges as rows of start and combination."""
    pairs = array("I", bytes(2 * image.extent(Part.V4_STARTS)[1]))
    pairs[0::2] = _column_of(image.section(Part.V4_STARTS))
    pairs[1::2] = _column_of(image.section(Part.V4_COMBOS))
    return _column(pairs)


def _url_blocks(image: Image) -> list[bytes]:
    """A host's digest and its rules, host by host."""
    hosts, rules = image.section(Part.URL_HOSTS), image.section(Part.URL_RULES)
    starts = [int.from_bytes(hosts[at + 8 : at + URL_ROW], "little") for at in range(0, len(hosts), URL_ROW)]
    ends = [*starts[1:], len(rules)]
    return [hosts[URL_ROW * n : URL_ROW * n + 8] + rules[starts[n] : ends[n]] for n in range(len(starts))]


def _split_urls(data: bytes) -> tuple[bytes, bytes]:
    """The reverse of `_url_blocks`."""
    hosts, rules, at = bytearray(), bytearray(), 0
    while at < len(data):
        if at + 10 > len(data):
            raise BundleError("policy delta: URL rules are cut off")
        hosts += data[at : at + 8] + len(rules).to_bytes(4, "little")
        count = int.from_bytes(data[at + 8 : at + 10], "little")
        end = at + 10
        for _ in range(count):
            end += 4 + int.from_bytes(data[end + 2 : end + 4], "little")
        if end > len(data):
            raise BundleError("policy delta: URL rules are cut off")
        rules += data[at + 8 : end]
        at = end
    return bytes(hosts), bytes(rules)


def _check_kin(old: Header, new: Header) -> None:
    bitmaps = old.table[2 * Part.BITMAP + 1], new.table[2 * Part.BITMAP + 1]
    if old.salt != new.salt or old.bucket_bits != new.bucket_bits or bitmaps[0] != bitmaps[1]:
        raise BundleError("policy delta: the two images have not the same salt and dimensions; send a full one")


def _fingerprint(image: Image) -> bytes:
    """Which image: its body's checksum and its size. Who is to be trusted is the signature's business."""
    return image.header.body_crc.to_bytes(4, "little") + (image.header.file_size & 0xFFFFFFFF).to_bytes(4, "little")


def _crc(out: IO[bytes], size: int) -> int:
    out.seek(HEADER_SIZE)
    crc, left = 0, size - HEADER_SIZE
    while left > 0:
        piece = out.read(min(left, _CHUNK))
        if not piece:
            return -1
        crc = zlib.crc32(piece, crc)
        left -= len(piece)
    return crc
