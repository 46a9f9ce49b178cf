"""What the DNS hook asks of the event link to the agent. The real one is the agent's; a test brings its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from policy.event import Dns, Event
from policy.frame import Command


class Link(Protocol):
    """Where records go and commands come from. Nothing here ever blocks or raises."""

    counters: Callable[[], Mapping[str, int]]
    """Set by the worker: what the heartbeat tells."""

    def put(self, event: Event) -> None:
        """Take one record."""
        ...

    def put_folded(
        self,
        templates: Sequence[Dns] | Sequence[bytes],
        index: Sequence[int],
        at_ms: Sequence[int],
        clients: list[bytes],
    ) -> None:
        """Take many look-ups that differ in time and client only; none of them a blocked one.

        A template is a record without time and client, or what `policy.frame.event_bytes` made of it.
        """
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
