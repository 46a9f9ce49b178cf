"""Timed overrides by word of mouth: the requests of `gatehouse override`, kept in their file, each on record."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

from agent import decider
from agent.control import Answer, Request
from policy import override
from policy.errors import ConfigError, StorageError
from policy.event import Maintenance

MAX_WHOLE: Final = 1 << 40
"""In a request: seconds, and what a frame to the hooks can hold."""


class Exceptions:
    """The overrides of this router. `tell` puts a record on the log and has the hooks reload."""

    def __init__(self, state_dir: str, clock_ms: Callable[[], int], tell: Callable[[Maintenance], None]) -> None:
        self._state_dir = state_dir
        self._clock_ms = clock_ms
        self._tell = tell

    def handle(self, request: Request) -> Answer:
        """One request: `action` is open, close, code, redeem or list."""
        now_s, at_ms = int(time.time()), self._clock_ms()
        state = override.expire(decider.read_overrides(self._state_dir, []), now_s)
        by, group, match = _text(request, "by"), _text(request, "group"), _text(request, "match")
        action = _text(request, "action")
        if action == "list":
            for found in state.active:
                yield {"row": found._asdict()}
            return
        if action == "open":
            change = override.open_override(
                state,
                match=match,
                group=group,
                until_s=_whole(request, "until_s"),
                by=by,
                now_s=now_s,
                at_ms=at_ms,
                action=_text(request, "verdict") or "allow",
            )
        elif action == "close":
            change = override.close_override(state, _whole(request, "number"), by=by, at_ms=at_ms)
        elif action == "code":
            change, code = override.issue_code(
                state,
                os.urandom(24),
                match=match,
                group=group,
                duration_s=_whole(request, "duration_s"),
                expires_s=_whole(request, "expires_s"),
                uses=_whole(request, "uses"),
                by=by,
                now_s=now_s,
                at_ms=at_ms,
            )
        elif action == "redeem":
            domain = _text(request, "domain")
            change = override.redeem_code(state, _text(request, "code"), domain=domain, by=by, now_s=now_s, at_ms=at_ms)
        else:
            raise ConfigError(f"override: expected open, close, code, redeem or list, got {action!r}")
        try:
            decider.write_overrides(self._state_dir, change.state)
        except OSError as error:
            raise StorageError(f"override: cannot be kept: {error.strerror}") from None
        self._tell(change.record)
        if action == "code":
            yield {"row": {"code": code}}
        if change.record.result != "ok":
            raise ConfigError(f"override: {change.record.result}")
        if change.override is not None:
            yield {"row": change.override._asdict()}


def _text(request: Request, name: str) -> str:
    value = request.get(name, "")
    if not isinstance(value, str):
        raise ConfigError(f"request: {name}: expected text, got {value!r}")
    return value


def _whole(request: Request, name: str) -> int:
    value = request.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_WHOLE:
        raise ConfigError(f"request: {name}: expected a whole number up to {MAX_WHOLE}, got {value!r:.60}")
    return value
