"""What stands in a frame: a JSON object and, behind it, octets. Pure.

Rule: any octets are a message or a SerialError.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from policy.errors import SerialError

_LENGTH: Final = struct.Struct(">H")


class Message(NamedTuple):
    """A request or a reply."""

    head: Mapping[str, object]
    data: bytes = b""

    def text(self, name: str, most: int = 4096) -> str:
        """A string of the head; empty: not there. Raises: SerialError."""
        value = self.head.get(name, "")
        if not isinstance(value, str) or len(value) > most:
            raise SerialError(f"{name}: expected text of at most {most} characters")
        return value

    def integer(self, name: str, most: int = 1 << 40) -> int:
        """A number of the head, from 0; 0: not there. Raises: SerialError."""
        value = self.head.get(name, 0)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise SerialError(f"{name}: expected a whole number from 0 to {most}")
        return value

    def octets(self, name: str, size: int) -> bytes:
        """So many octets, in hexadecimal digits. Raises: SerialError."""
        try:
            found = bytes.fromhex(self.text(name))
        except ValueError:
            found = b""
        if len(found) != size:
            raise SerialError(f"{name}: expected {size} octets in hexadecimal digits")
        return found


def pack(head: Mapping[str, object], data: bytes = b"") -> bytes:
    """To octets."""
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return _LENGTH.pack(len(text)) + text + data


def unpack(payload: bytes) -> Message:
    """From octets. Raises: SerialError."""
    if len(payload) < _LENGTH.size:
        raise SerialError("message: shorter than its own length")
    (length,) = _LENGTH.unpack_from(payload)
    text = payload[_LENGTH.size : _LENGTH.size + length]
    if len(text) != length:
        raise SerialError("message: its head is cut off")
    return Message(read_object(text), payload[_LENGTH.size + length :])


def read_object(text: bytes) -> Mapping[str, object]:
    """One JSON object. Raises: SerialError."""
    try:
        head = json.loads(text)
    except (ValueError, RecursionError):
        raise SerialError("message: expected a JSON object") from None
    if not isinstance(head, dict):
        raise SerialError("message: expected a JSON object")
    return head
