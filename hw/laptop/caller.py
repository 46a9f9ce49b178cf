"""The laptop's end of the machine mode: one request at a time, sent again until its reply comes. Sans-I/O.

    caller.begin({"do": "status"}, b"", now); write(caller.take_output()); caller.receive(octets, now); caller.reply

Stop and wait: a serial line has no delay worth a window, and what is lost is found at once. How long a piece may be is
learned: halved when one is lost, doubled when one arrives, so a clean line carries 4 KiB a frame and a bad one 64
octets. With one octet in a hundred hurt, a piece of 64 and its reply arrive once in four tries, one of 512 never.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hw.frame import MAX_PAYLOAD, OVERHEAD, Decoder, Frame, Kind, encode
from hw.message import Message, pack, unpack
from policy.errors import SerialError

SMALLEST: Final = 64
LARGEST: Final = 4096
FIRST: Final = 256
SLACK_S: Final = 0.08
"""Besides the octets' own time: a USB adapter gathers for 16 ms, a router looks up from its work."""
PATIENCE_S: Final = 12.0
"""Nothing at all is heard for so long: the line is dead. A busy device says so every second."""
NOISY_PATIENCE_S: Final = 60.0
"""The same where octets come, and no frame that is whole."""
LONGEST_PIECE_S: Final = 0.4
"""A piece takes no longer than this on the line, whatever its speed."""


class Caller:
    """Requests of one session. `session` is random, 32 bits."""

    def __init__(self, session: int, baud: int) -> None:
        self.session = session
        self.baud = baud
        self.piece = min(FIRST, self._most())
        self.reply: Message | None = None
        self.counters = {"sent": 0, "again": 0, "busy": 0}
        self._decoder = Decoder()
        self._seq = 0
        self._frame = b""
        self._output = bytearray()
        self._due = 0.0
        self._heard = 0.0
        self._noise = 0.0
        self._tries = 0
        self._is_open = False

    def begin(self, head: Mapping[str, object], data: bytes, now: float) -> None:
        """A new request; the one before is done, or given up."""
        self._seq = self._seq % 0xFFFF + 1
        self._frame = encode(Frame(Kind.REQUEST, self.session, self._seq, pack(head, data)))
        self.reply, self._tries, self._is_open, self._heard = None, 0, True, now
        self._noise = now
        self._send(now)

    def receive(self, data: bytes, now: float) -> None:
        """What came over the line."""
        if data:
            self._noise = now
        for frame in self._decoder.receive(data)[0]:
            if frame.session != self.session or frame.seq != self._seq or not self._is_open:
                continue
            self._heard = now
            if frame.kind == Kind.BUSY:
                self.counters["busy"] += 1
                self._due = now + 2.0
            elif frame.kind == Kind.REPLY:
                self._take(frame, now)

    def handle_timer(self, now: float) -> None:
        """Send again what was not answered. Raises: SerialError, when nobody has answered for long."""
        if not self._is_open or now < self._due:
            return
        silent_s = now - max(self._heard, self._noise)
        if max(silent_s * NOISY_PATIENCE_S / PATIENCE_S, now - self._heard) > NOISY_PATIENCE_S + self._line_s(3):
            raise SerialError("the device does not answer: is the cable in, and is its power on?")
        self.piece = max(SMALLEST, self.piece // 2)
        self.counters["again"] += 1
        self._send(now)

    def next_timer(self) -> float | None:
        """When `handle_timer` is wanted; None: no request is open."""
        return self._due if self._is_open else None

    def restart(self, now: float) -> None:
        """The cable is in again: ask again at once."""
        self._decoder.abandon()
        self._due = self._heard = self._noise = now

    def take_output(self) -> bytes:
        """What is to be written."""
        output = bytes(self._output)
        self._output.clear()
        return output

    def _take(self, frame: Frame, now: float) -> None:
        try:
            self.reply = unpack(frame.payload)
        except SerialError:
            return  # the CRC held by chance: it is asked again
        self._is_open = False
        if self._tries == 1:
            self.piece = min(self._most(), self.piece * 2)

    def _send(self, now: float) -> None:
        self._tries += 1
        self.counters["sent"] += 1
        self._output += self._frame
        # There and back; the reply may carry a piece. A little slower each time: the router may have much to do.
        self._due = now + self._line_s(1) + min(0.5, SLACK_S * (1 + self._tries / 12))

    def _line_s(self, times: int) -> float:
        """What a request and its reply take on the line."""
        octets = len(self._frame) + 2 * (self.piece + 2 * OVERHEAD + 64)
        return times * octets * 10 / self.baud

    def _most(self) -> int:
        return max(SMALLEST, min(LARGEST, MAX_PAYLOAD - 512, int(self.baud * LONGEST_PIECE_S / 10)))
