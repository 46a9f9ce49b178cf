"""The control socket: one JSON request a line in, JSON lines out. Sans-I/O.

A request is `{"do": NAME, ...}`. An answer is any number of `{"row": ...}` lines and then one `{"end": ...}` or
`{"error": "..."}`. Answers are generators: they are stepped while the client reads, so that a question over sixty days
neither fills the memory nor holds up the intake. `BUSY` and `IDLE` are not sent: nothing to say yet, go on or wait.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeAlias

from policy.errors import ConfigError, GatehouseError
from policy.event import Event

MAX_REQUEST: Final = 64 << 10
"""Octets of one request line; the longest real one is an override with a list of names."""
LOW_WATER: Final = 64 << 10
"""Octets that may wait for the client before its answer is stepped again."""
MAX_STEPS: Final = 256
"""Rows made in one go, between two looks at the other sockets."""

BUSY: Final[Mapping[str, object]] = {"busy": True}
"""Nothing found yet: step again, after the other sockets had their turn."""
IDLE: Final[Mapping[str, object]] = {"idle": True}
"""Waits for something outside: step again in a moment."""

Request: TypeAlias = Mapping[str, object]
Answer: TypeAlias = Iterator[Mapping[str, object]]
Wanted: TypeAlias = Callable[[Event], bool]
Handler: TypeAlias = Callable[[Request], Answer]


class Conversation:
    """One client of the control socket. `outgoing` is what waits to be written to it."""

    def __init__(
        self, handlers: Mapping[str, Handler], follow: Callable[[Request], Wanted], uid: int | None = None
    ) -> None:
        """`uid`: of whoever is at the other end, as the kernel says."""
        self._uid = uid
        self._handlers = handlers
        self._follow = follow
        self._incoming = bytearray()
        self._answer: Answer | None = None
        self.outgoing = bytearray()
        self.is_done = False
        self.follows: Wanted | None = None
        """Set by `tail`: new records that match it are pushed as they come."""
        self.is_idle = False
        """The last step had nothing to say yet: it waits for something outside."""

    @property
    def is_waiting(self) -> bool:
        """An answer is under way and there is room for more of it."""
        return self._answer is not None and len(self.outgoing) < LOW_WATER

    def receive(self, data: bytes) -> None:
        """Take what the client wrote."""
        self._incoming += data
        if self._answer is not None or self.is_done or self.follows is not None:
            return
        line, newline, _ = self._incoming.partition(b"\n")
        if newline:
            try:
                self._start(bytes(line))
            except GatehouseError as error:
                self._end(str(error))
        elif len(self._incoming) > MAX_REQUEST:
            self._say({"error": f"request: over {MAX_REQUEST} octets without a line end"})
            self.is_done = True

    def step(self) -> None:
        """Make some more of the answer."""
        self.is_idle = False
        for _ in range(MAX_STEPS):
            if self._answer is None or len(self.outgoing) >= LOW_WATER:
                return
            try:
                line = next(self._answer)
                if line is BUSY:
                    return
                if line is IDLE:
                    self.is_idle = True
                    return
                self._say(line)
            except StopIteration:
                self._end(None)
            except GatehouseError as error:
                self._end(str(error))

    def push(self, row: Mapping[str, object]) -> None:
        """A row that nobody asked for just now (tail)."""
        self._say({"row": row})

    def close(self) -> None:
        """The client is gone; let the answer put away what it holds open."""
        answer, self._answer = self._answer, None
        if answer is not None and hasattr(answer, "close"):
            answer.close()
        self.is_done = True

    def _start(self, line: bytes) -> None:
        try:
            request = json.loads(line)
            # Half a surrogate pair is no text that a record could hold, and infinity no time: RFC 8259 knows neither.
            json.dumps(request, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"request: not JSON: {error}") from None
        if not isinstance(request, dict):
            raise ConfigError("request: expected a JSON object")
        request["uid"] = self._uid  # whatever it says of itself
        if request.get("do") == "tail":
            self.follows = self._follow(request)
            return
        handler = self._handlers.get(str(request.get("do")))
        if handler is None:
            known = ", ".join(sorted((*self._handlers, "tail")))
            raise ConfigError(f"request: unknown word {request.get('do')!r}; known: {known}")
        self._answer = handler(request)

    def _say(self, line: Mapping[str, object]) -> None:
        self.outgoing += json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

    def _end(self, error: str | None) -> None:
        self._say({"end": True} if error is None else {"error": error})
        self._answer = None
        self.is_done = True
