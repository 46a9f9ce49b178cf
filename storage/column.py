"""Columns of a sealed segment: lists of integers and of plain values as few octets, and back. Pure.

Rule: any octets unpack to a column or raise CorruptError, within a bound of memory.
"""

from __future__ import annotations

import lzma
import sys
import zlib
from array import array
from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import Any, Final

import msgpack

from policy.errors import CorruptError

MAX_COLUMN: Final = 64 << 20
"""Octets of an unpacked column. A damaged length must not fill the memory."""
_DICTIONARY: Final = 512 << 10
"""Octets that LZMA looks back: more gains under 1 % and costs the sealing child eleven times as much memory."""

_SHORT: Final = 16
"""Octets of a column that is mostly the same one again: an empty one. Making LZMA's tables for it takes 50 us."""
_DEFLATED: Final = 16
"""Set in a column's first octet: zlib's, larger by a seventh and unpacked five times as fast."""


class Form(IntEnum):
    """What the octets are, so that LZMA's contexts fit: literal context, literal position and position bits."""

    TEXT = 0
    BYTES = 1
    WORDS = 2
    LONGS = 3


_BITS: Final = {Form.TEXT: (3, 0, 0), Form.BYTES: (1, 0, 0), Form.WORDS: (0, 1, 1), Form.LONGS: (0, 2, 2)}
_FORMS: Final = {1: Form.BYTES, 2: Form.WORDS, 4: Form.LONGS}
_WIDTHS: Final = {int(form): width for width, form in _FORMS.items()}
_CODES: Final = {1: "B", 2: "H", 4: "I"}


def _filters(form: Form) -> list[dict[str, int]]:
    lc, lp, pb = _BITS[form]
    return [{"id": lzma.FILTER_LZMA1, "preset": 6, "dict_size": _DICTIONARY, "lc": lc, "lp": lp, "pb": pb}]


def squeeze(data: bytes, form: Form, *, fast: bool = False) -> bytes:
    """Raw LZMA1, or raw deflate if it is to be unpacked `fast`; before it one octet that says which."""
    if fast:
        engine = zlib.compressobj(9, wbits=-15)
        return bytes((form | _DEFLATED,)) + engine.compress(data) + engine.flush()
    return bytes((form,)) + lzma.compress(data, lzma.FORMAT_RAW, filters=_filters(form))


def expand(data: bytes) -> bytes:
    """What `squeeze` was given. Raises: CorruptError."""
    return _expanded_short(data) if len(data) <= _SHORT else _expanded(data)


def _expanded(data: bytes) -> bytes:
    try:
        engine = _engine(data[0])
        plain: bytes = engine.decompress(data[1:], MAX_COLUMN)
    except (IndexError, ValueError, lzma.LZMAError, zlib.error, EOFError) as error:
        raise CorruptError(f"column: {error}") from None
    if not engine.eof or engine.unused_data:
        raise CorruptError("column: cut, with a tail, or larger than any column")
    return plain


_expanded_short: Final = lru_cache(maxsize=256)(_expanded)


_FILTERS: Final = {int(form): _filters(form) for form in Form}
_FORMS_DEFLATED: Final = frozenset(form | _DEFLATED for form in Form)


def _engine(octet: int) -> Any:  # zlib's and LZMA's have no type in common
    if octet in _FORMS_DEFLATED:
        return zlib.decompressobj(wbits=-15)
    if octet not in _FILTERS:
        raise ValueError(f"{octet} is no form of a column")
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS[octet])


def pack_numbers(values: Sequence[int], *, fast: bool = False) -> bytes:
    """Numbers from 0 to 2^32 - 1, each as wide as the greatest."""
    greatest = max(values, default=0)
    width = 1 if greatest < 1 << 8 else 2 if greatest < 1 << 16 else 4
    column = array(_CODES[width], values)
    if sys.byteorder == "big":
        column.byteswap()
    return squeeze(column.tobytes(), _FORMS[width], fast=fast)


def unpack_numbers(data: bytes) -> array[int]:
    """What `pack_numbers` was given. Raises: CorruptError."""
    plain = expand(data)
    width = _WIDTHS.get(data[0] & ~_DEFLATED)
    if width is None or len(plain) % width:
        raise CorruptError("column: expected whole numbers")
    column = array(_CODES[width])
    column.frombytes(plain)
    if sys.byteorder == "big":
        column.byteswap()
    return column


def pack_plain(value: object) -> bytes:
    """Any value that msgpack knows."""
    return squeeze(msgpack.packb(value), Form.TEXT)


def unpack_plain(data: bytes) -> object:
    """What `pack_plain` was given, lists as tuples. Raises: CorruptError."""
    return _plain(expand(data))


def join(parts: Iterable[bytes]) -> bytes:
    """Several packed columns as one piece."""
    return bytes(msgpack.packb(list(parts)))


def split(data: bytes, count: int) -> list[bytes]:
    """What `join` was given, `count` columns; 0: as many as there are. Raises: CorruptError."""
    parts = _plain(data)
    if (
        not isinstance(parts, tuple)
        or (count and len(parts) != count)
        or not all(type(part) is bytes for part in parts)
    ):
        raise CorruptError(f"block: expected {count} columns")
    return list(parts)


def _plain(data: bytes) -> object:
    try:
        return msgpack.unpackb(data, use_list=False, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise CorruptError(f"column: {error}") from None
