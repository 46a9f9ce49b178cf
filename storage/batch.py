"""A batch of records as it is kept: msgpack rows, deflated. Bytes in, records out, and back.

Rule: any bytes unpack to records or raise CorruptError; unknown tags and additional fields of a later release are
left out, not taken for damage.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final, cast

import msgpack

from policy.errors import CorruptError
from policy.event import TAG_OF, TAGS, Event

MAX_BATCH: Final = 64 << 20
"""Octets of an unpacked batch: 200,000 records. A damaged length must not fill the memory."""
LEVEL: Final = 6


def pack(events: Sequence[Event]) -> bytes:
    """Records to octets."""
    rows = b"".join([cast(bytes, msgpack.packb((TAG_OF[type(event)], *event))) for event in events])
    return zlib.compress(rows, LEVEL)


def unpack(data: bytes) -> list[Event]:
    """Octets to records. Raises: CorruptError."""
    try:
        engine = zlib.decompressobj()
        rows = engine.decompress(data, MAX_BATCH)
        if engine.unconsumed_tail or not engine.eof:
            raise CorruptError("batch: cut, or larger than any batch")
        unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=MAX_BATCH)
        unpacker.feed(rows)
        return [event for row in unpacker if (event := _event(row)) is not None]
    except (zlib.error, ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise CorruptError(f"batch: {error}") from None


def _event(row: object) -> Event | None:
    if type(row) is not tuple or not row:
        raise CorruptError(f"batch: expected a record, got {row!r:.60}")
    kind = TAGS.get(row[0])
    if kind is None:
        return None
    # A record of an earlier release has fewer fields: the later ones have defaults.
    return kind(*row[1 : 1 + len(kind._fields)])
