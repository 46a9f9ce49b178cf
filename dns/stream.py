"""DNS over a stream: messages with two octets of length in front (RFC 1035 4.2.2, RFC 7766). No sockets."""

from __future__ import annotations

from typing import Final

MAX_BUFFER: Final = 2 + 0xFFFF
"""One whole message; a peer that pipelines more waits until we have read it."""


def framed(message: bytes) -> bytes:
    """A message as it goes onto the stream."""
    return len(message).to_bytes(2, "big") + message


class Framer:
    """Takes octets as they come, gives whole messages."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Messages that are whole now. At most one message, unfinished, is kept."""
        buffer = self._buffer
        buffer += data
        messages = []
        at = 0
        while len(buffer) - at >= 2:
            end = at + 2 + (buffer[at] << 8 | buffer[at + 1])
            if end > len(buffer):
                break
            messages.append(bytes(buffer[at + 2 : end]))
            at = end
        del buffer[:at]
        return messages
