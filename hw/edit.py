"""A line editor for a terminal of any sort at the other end of a wire: octets in, lines and echo out. Sans-I/O.

UTF-8, also where a character's octets come one by one; Chinese characters take two columns. Arrows, Home, End, Delete,
Ctrl-A E B F P N K U W L, history, completion by Tab. What noise makes of a line is told from what a person types.
Rule: a secret is neither echoed nor in the history; a line has at most MAX_LINE characters.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

MAX_LINE: Final = 1000
MAX_HISTORY: Final = 50
WIDTH: Final = 79
"""Columns that are used; what is longer moves sideways. A serial terminal cannot be asked in a way that all know."""
_WIDE: Final = (
    (0x1100, 0x115F), (0x2E80, 0x303E), (0x3041, 0x33FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA000, 0xA4CF),
    (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0xFE30, 0xFE6F), (0xFF00, 0xFF60), (0xFFE0, 0xFFE6), (0x1F300, 0x1FAFF),
    (0x20000, 0x3FFFD),
)  # fmt: skip
"""East Asian Width W and F (UAX 11), in blocks: Python's own table is another package of OpenWrt's."""
_ESCAPE: Final = 0x1B
_MAX_SEQUENCE: Final = 16
_KEYS: Final = {
    b"[A": 0x10, b"[B": 0x0E, b"[C": 0x06, b"[D": 0x02, b"[H": 0x01, b"[F": 0x05, b"[1~": 0x01, b"[7~": 0x01,
    b"[4~": 0x05, b"[8~": 0x05, b"OA": 0x10, b"OB": 0x0E, b"OC": 0x06, b"OD": 0x02, b"OH": 0x01, b"OF": 0x05,
}  # fmt: skip
"""ESC sequences (ECMA-48, xterm, VT220) to the control key that does the same."""


class What(enum.Enum):
    """What came of some keys."""

    LINE = enum.auto()
    NOISE = enum.auto()
    """A line end after octets that no keyboard sends."""
    CANCEL = enum.auto()
    """Ctrl-C."""
    END = enum.auto()
    """Ctrl-D on an empty line."""


class Typed(NamedTuple):
    """One of them."""

    what: What
    text: str = ""


Complete = Callable[[str], tuple[str, Sequence[str]]]
"""What stands before the cursor -> what to add, and else the choices to show."""


def width_of(text: str) -> int:
    """Columns on a terminal."""
    if text.isascii():
        return len(text)
    return sum(2 if any(low <= ord(c) <= high for low, high in _WIDE) else 1 for c in text)


class Editor:
    """One line after another. Order of calls: `start(prompt)`, `receive` until it gives a line, `start` again."""

    def __init__(self, complete: Complete) -> None:
        self.history: list[str] = []
        self._complete = complete
        self._output: list[str] = []
        self._prompt = ""
        self._is_secret = False
        self._is_shown = False
        self._text: list[str] = []
        self._at = 0
        self._recalled = 0
        self._kept = ""
        self._octets = b""
        self._sequence: bytearray | None = None
        self._had_return = False
        self._is_noisy = False

    def start(self, prompt: str, *, is_secret: bool = False, is_shown: bool = True) -> None:
        """A new line. `is_shown` False: neither prompt nor echo."""
        self._prompt, self._is_secret, self._is_shown = prompt, is_secret, is_shown
        self.clear()
        if is_shown:
            self._output.append(prompt)

    def clear(self) -> None:
        """Whatever was typed is forgotten."""
        self._text, self._at, self._octets, self._sequence, self._is_noisy = [], 0, b"", None, False
        self._recalled, self._kept = len(self.history), ""

    def remember(self, line: str) -> None:
        """Into the history; whoever calls knows that it holds no secret."""
        if line and self.history[-1:] != [line]:
            self.history = [*self.history, line][-MAX_HISTORY:]

    def take_output(self) -> bytes:
        """Octets for the terminal."""
        text = "".join(self._output)
        self._output.clear()
        return text.encode("utf-8", "replace")

    def receive(self, data: bytes) -> tuple[Typed | None, bytes]:
        """Take octets up to the end of a line. Returns it (None: it has not ended), and the octets behind it."""
        for index, octet in enumerate(data):
            typed = self._receive(octet)
            if typed is not None:
                return typed, data[index + 1 :]
        return None, b""

    def _receive(self, octet: int) -> Typed | None:
        had_return, self._had_return = self._had_return, octet == 0x0D
        if octet == 0x0A and had_return:
            return None
        if self._sequence is not None:
            return self._in_sequence(octet)
        if octet in (0x0D, 0x0A):
            return self._end_line()
        if octet == _ESCAPE:
            self._sequence = bytearray()
            return None
        if octet >= 0x20 and octet != 0x7F:
            self._insert_octet(octet)
            return None
        return self._control(octet)

    def _end_line(self) -> Typed:
        text, is_noisy = "".join(self._text), self._is_noisy or bool(self._octets)
        if self._is_shown:
            self._output.append("\r\n")
        self.clear()
        return Typed(What.NOISE if is_noisy else What.LINE, text)

    def _in_sequence(self, octet: int) -> Typed | None:
        assert self._sequence is not None
        if octet in (0x0D, 0x0A, _ESCAPE):
            self._sequence = None
            return self._receive(octet)
        self._sequence.append(octet)
        first = self._sequence[0]
        if first not in b"[O" or len(self._sequence) > _MAX_SEQUENCE:
            self._sequence = None
        elif len(self._sequence) > 1 and 0x40 <= octet <= 0x7E:
            key, self._sequence = bytes(self._sequence), None
            if key == b"[3~":
                self._delete()
            elif key in _KEYS:
                return self._control(_KEYS[key])
        return None

    def _insert_octet(self, octet: int) -> None:
        self._octets += bytes((octet,))
        try:
            character = self._octets.decode()
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data" or len(self._octets) > 3:
                self._octets, self._is_noisy = b"", True
            return
        self._octets = b""
        if not character.isprintable():
            self._is_noisy = True
        else:
            self._insert(character)

    def _insert(self, text: str) -> None:
        if len(self._text) + len(text) > MAX_LINE:
            self._is_noisy = True
            return
        was_at_end = self._at == len(self._text)
        self._text[self._at : self._at] = text
        self._at += len(text)
        if not self._is_echoed():
            return
        if was_at_end and len(self._text) < WIDTH and width_of(self._prompt + "".join(self._text)) < WIDTH:
            self._output.append(text)
        else:
            self._redraw()

    def _is_echoed(self) -> bool:
        return self._is_shown and not self._is_secret

    def _control(self, octet: int) -> Typed | None:
        match octet:
            case 0x03:
                if self._is_shown:
                    self._output.append("^C\r\n")
                self.clear()
                return Typed(What.CANCEL)
            case 0x04 if not self._text:
                return Typed(What.END)
            case 0x04:
                self._delete()
            case 0x08 | 0x7F if self._at:
                self._at -= 1
                self._delete()
            case 0x08 | 0x7F | 0x00 | 0x11 | 0x13 | 0x07:  # XON and XOFF that a terminal sent, NUL of a break
                pass
            case 0x09 if not self._is_secret:
                self._tab()
            case 0x01:
                self._move(0)
            case 0x05:
                self._move(len(self._text))
            case 0x02:
                self._move(max(0, self._at - 1))
            case 0x06:
                self._move(min(len(self._text), self._at + 1))
            case 0x0B:
                self._replace(self._text[: self._at], self._at)
            case 0x15:
                self._replace(self._text[self._at :], 0)
            case 0x17:
                head = "".join(self._text[: self._at]).rstrip()
                head = head[: head.rfind(" ") + 1]
                self._replace([*head, *self._text[self._at :]], len(head))
            case 0x0C:
                if self._is_echoed():
                    self._output.append("\x1b[2J\x1b[H")
                    self._redraw()
            case 0x10 | 0x0E if not self._is_secret:
                self._recall(-1 if octet == 0x10 else 1)
            case _:
                self._is_noisy = True
        return None

    def _delete(self) -> None:
        if self._at < len(self._text):
            del self._text[self._at]
            self._redraw()

    def _move(self, at: int) -> None:
        self._at = at
        self._redraw()

    def _replace(self, text: list[str], at: int) -> None:
        self._text, self._at = text, at
        self._redraw()

    def _recall(self, step: int) -> None:
        if not self._is_shown:
            return
        if self._recalled == len(self.history):
            self._kept = "".join(self._text)
        self._recalled = min(max(0, self._recalled + step), len(self.history))
        is_own = self._recalled == len(self.history)
        text = list(self._kept if is_own else self.history[self._recalled])
        self._replace(text, len(text))

    def _tab(self) -> None:
        if not self._is_shown:
            return
        more, choices = self._complete("".join(self._text[: self._at]))
        if more:
            self._insert(more)
        elif choices:
            self._output.append("\r\n" + "  ".join(choices) + "\r\n")
            self._redraw()

    def _redraw(self) -> None:
        """The whole line again, the part of it around the cursor where it is too long."""
        if not self._is_echoed():
            return
        room = max(20, WIDTH - width_of(self._prompt))
        begin, used = self._at, 0
        while begin and (used := used + width_of(self._text[begin - 1])) < room:
            begin -= 1
        if begin:  # it does not fit: show what is before the cursor, and something behind it
            while begin < self._at and used > 3 * room // 4:
                used -= width_of(self._text[begin])
                begin += 1
        end, used = begin, 0
        while end < len(self._text) and (used := used + width_of(self._text[end])) < room:
            end += 1
        shown, behind = "".join(self._text[begin:end]), "".join(self._text[self._at : end])
        self._output.append(f"\r{self._prompt}{shown}\x1b[K")
        if behind:
            self._output.append(f"\x1b[{width_of(behind)}D")
