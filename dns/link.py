"""What the DNS hook asks of the event link to the agent. The real one is the agent's; a test brings its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from policy.event import Event
from policy.frame import Command, Fold


class Link(Protocol):
    """Where records go and commands come from. Nothing here ever blocks or raises."""

    counters: Callable[[], Mapping[str, int]]
    """Set by the worker: what the heartbeat tells."""

    def put(self, event: Event) -> None:
        """Take one record."""
        ...

    def put_folded(self, fold: Fold, *, are_blocks: bool = False) -> None:
        """Take many look-ups that differ in time and client only; all of them blocked, or none."""
        ...

    @property
    def has_room(self) -> bool:
        """Does the agent keep up? If not, look-ups that can wait where they are had better."""
        ...

    def pump(self, now_s: float) -> list[Command]:
        """Send what waits, take in what came. `now_s` is monotonic."""
        ...

    def next_timer(self) -> float:
        """Monotonic second at which `pump` wants to be called again."""
        ...

    def close(self, timeout_s: float = 2.0) -> None:
        """Send everything and say goodbye."""
        ...
