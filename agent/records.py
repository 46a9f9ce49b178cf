"""The ring as the agent uses it: questions from the control socket, records for those who follow. Wiring only."""

from __future__ import annotations

import time
from collections.abc import Mapping

from agent.clock import SystemClock
from agent.control import Answer, Request
from policy.config import RingConfig
from policy.errors import ConfigError
from policy.event import Event
from storage.rows import row
from storage.writer import Ring


class Records:
    """One open ring."""

    def __init__(self, config: RingConfig, clock: SystemClock, key: bytes) -> None:
        self._clock = clock
        self.ring = Ring(config.directory, clock)

    def query(self, request: Request) -> Answer:
        since_s = _number(request, "since_s", 0.0)
        until_s = _number(request, "until_s", time.time() + 60)
        for found in self.ring.rows(
            since_s, until_s, lambda r: self.matches(request, r), int(_number(request, "limit", 0))
        ):
            yield {"row": found}

    def describe(self, event: Event) -> Mapping[str, object] | None:
        now = self._clock.read()
        return row(event, "", now.wall_ms, "synced" if now.synced else "unsynced", lambda ms: now.wall_ms)

    def matches(self, request: Request, found: Mapping[str, object]) -> bool:
        """Does a row answer the filters of a request?"""
        domain = str(request.get("domain", "")).lower().rstrip(".")
        name = str(found.get("name", ""))
        if domain and name != domain and not name.endswith("." + domain):
            return False
        return all(
            found.get(key) == request[key] for key in ("client", "mac", "session", "verdict", "kind") if key in request
        )

    def tick(self) -> None:
        self.ring.tick(self._clock.read())

    def status(self) -> Mapping[str, object]:
        return self.ring.status()

    def close(self) -> None:
        self.ring.close()


def _number(request: Request, name: str, default: float) -> float:
    value = request.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"request: {name}: expected a number, got {value!r}")
    return float(value)
