"""Frames of the machine mode, on the same serial line as a person's keys. Sans-I/O.

    0x1E  stuffed(version kind session:4 seq:2 length:2 payload crc32:4)  0x1E        (big-endian)

Every octet below 0x20, 0x7D, 0x7E and 0x7F is sent as 0x7D and the octet XOR 0x20, as PPP does it (RFC 1662 4.2):
no XON, no Ctrl-C and above all no Enter ever stands in a frame, so a frame that noise has torn cannot give an order
to a console or a shell. 0x1E (record separator) is on no keyboard.
Rule: any octets are frames or plain text, in linear time and bounded memory; a frame that is taken has its CRC right.
"""

from __future__ import annotations

import struct
from binascii import crc32
from typing import Final, NamedTuple

FLAG: Final = 0x1E
ESCAPE: Final = 0x7D
VERSION: Final = 1
MAX_PAYLOAD: Final = 4608
"""A piece of 4 KiB and its JSON head."""
OVERHEAD: Final = 16
"""Octets around a payload, before stuffing."""
_HEAD: Final = struct.Struct(">BBIHH")
_CRC: Final = struct.Struct(">I")
_MAX_STUFFED: Final = 2 * (MAX_PAYLOAD + OVERHEAD)
_SPECIAL: Final = frozenset({*range(0x20), ESCAPE, 0x7E, 0x7F})
_STUFFED: Final = {
    octet: bytes((ESCAPE, octet ^ 0x20)) if octet in _SPECIAL else bytes((octet,)) for octet in range(256)
}
_CONTROL: Final = frozenset(range(0x20))


class Kind:
    """What a frame is."""

    REQUEST: Final = 1
    REPLY: Final = 2
    BUSY: Final = 3
    """The request has arrived and is worked on; the reply follows. Seq is the request's."""


class Frame(NamedTuple):
    """One frame."""

    kind: int
    session: int
    """Drawn by the laptop for each run, so that what is left of an earlier one is not taken for this one's."""
    seq: int
    payload: bytes


def encode(frame: Frame) -> bytes:
    """The octets for the line. `payload` has at most MAX_PAYLOAD octets."""
    assert len(frame.payload) <= MAX_PAYLOAD
    plain = _HEAD.pack(VERSION, frame.kind, frame.session, frame.seq, len(frame.payload)) + frame.payload
    plain += _CRC.pack(crc32(plain))
    flag = bytes((FLAG,))
    return flag + b"".join(map(_STUFFED.__getitem__, plain)) + flag


class Decoder:
    """Takes a line's octets apart into frames and what a person typed (or noise)."""

    def __init__(self) -> None:
        self._inside: bytearray | None = None
        self.counters = {"frames": 0, "bad": 0}

    @property
    def is_inside(self) -> bool:
        """A frame has begun and not ended."""
        return self._inside is not None

    def abandon(self) -> None:
        """The rest of a frame did not come."""
        if self._inside:
            self.counters["bad"] += 1
        self._inside = None

    def receive(self, data: bytes) -> tuple[list[Frame], bytes]:
        """Frames whose CRC holds, and the octets outside of frames."""
        frames: list[Frame] = []
        plain = bytearray()
        for octet in data:
            if octet == FLAG:
                self._end(frames)
            elif self._inside is None:
                plain.append(octet)
            elif octet in _CONTROL or len(self._inside) >= _MAX_STUFFED:
                # None is ever inside a frame: noise, or a person after a frame that was cut off.
                self.abandon()
                plain.append(octet)
            else:
                self._inside.append(octet)
        return frames, bytes(plain)

    def _end(self, frames: list[Frame]) -> None:
        if not self._inside:  # the first flag, or two side by side
            self._inside = bytearray()
            return
        frame = _open(bytes(self._inside))
        if frame is None:
            self.counters["bad"] += 1
            self._inside = bytearray()  # its end may be the next one's beginning
        else:
            self.counters["frames"] += 1
            frames.append(frame)
            self._inside = None


def _open(stuffed: bytes) -> Frame | None:
    plain = bytearray()
    pieces = stuffed.split(bytes((ESCAPE,)))
    plain += pieces[0]
    for piece in pieces[1:]:
        if not piece:
            return None
        plain.append(piece[0] ^ 0x20)
        plain += piece[1:]
    if len(plain) < _HEAD.size + _CRC.size:
        return None
    body = bytes(plain[: -_CRC.size])
    version, kind, session, seq, length = _HEAD.unpack_from(body)
    payload = body[_HEAD.size :]
    if _CRC.pack(crc32(body)) != plain[-_CRC.size :] or version != VERSION or length != len(payload):
        return None
    return Frame(kind, session, seq, payload) if length <= MAX_PAYLOAD else None
