"""A line that fills while a router is provisioned; on something that is no terminal, a line for each step."""

from __future__ import annotations

from typing import Final, TextIO

CELLS: Final = 24


class Progress:
    """Of one router."""

    def __init__(self, stream: TextIO, head: str) -> None:
        self._stream, self._head = stream, head
        self._is_terminal = stream.isatty()
        self._step = ""

    def tell(self, what: str, part: float) -> None:
        """What is done now, and how much of the whole: 0 to 1."""
        if self._is_terminal:
            filled = int(CELLS * min(1.0, part))
            bar = "#" * filled + "." * (CELLS - filled)
            self._stream.write(f"\r{self._head} [{bar}] {part:4.0%} {what:30.30}")
        elif what.partition(":")[0] != self._step:
            self._step = what.partition(":")[0]
            self._stream.write(f"{self._head} {self._step}\n")
        self._stream.flush()

    def end(self, text: str) -> None:
        """What came of it."""
        self._stream.write(f"\r{self._head} {text:70}\n" if self._is_terminal else f"{self._head} {text}\n")
        self._stream.flush()
