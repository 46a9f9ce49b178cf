"""The self-test's side in the agent: when it runs, what it said, and that its traces are nobody's.

The test itself (`hw.doctor`) runs in a child of its own, niced: it waits for answers, and the agent's loop must not.
Whoever runs it, the agent or a person, hands its findings in by the control socket (`self-test`); the dated result goes
on the maintenance log.
Rule: one child at a time, and none for longer than LONGEST_S.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final

from agent.control import Answer, Request
from agent.intake import SessionOf
from hw.doctor.finding import Finding, detail_of, faults, from_row, result_of
from policy import canary
from policy.errors import ConfigError

FIRST_S: Final = 180.0
"""After the start: everything should be there by then, on a slow router too."""
AGAIN_S: Final = 600.0
"""After a test that found faults: what was mended should not go on showing as degraded."""
LONGEST_S: Final = 120.0
MAX_FINDINGS: Final = 200
HELD_S: Final = range(2, 5)
"""A button held for so long starts a self-test: OpenWrt's own reset script acts below one second and from five."""
_ROOT: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

Note = Callable[[str, str, str, str, str], None]


def apart(session_of: SessionOf) -> SessionOf:
    """The same, but that the self-test's addresses are nobody's."""

    def attribute(address: bytes, mac: bytes, at_ms: int, *, is_own: bool = False) -> str:
        return "" if address in canary.CLIENTS else session_of(address, mac, at_ms, is_own=is_own)

    return attribute


class SelfTest:
    """`poll` once a second; `take` and `button` are handlers of the control socket."""

    def __init__(self, every_s: int, config_path: str, note: Note, now_s: Callable[[], float] = time.monotonic) -> None:
        """`every_s`: 0: it does not run by itself. `note(action, object, result, detail, actor)`."""
        self._every_s = every_s
        self._path = config_path
        self._note = note
        self._now_s = now_s
        self._due_s = now_s() + FIRST_S if every_s else float("inf")
        self._child: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0
        self._said: list[Finding] = []
        self._at_s = 0
        """Wall seconds of the last result; 0: there is none."""

    def change(self, every_s: int) -> None:
        """A new configuration."""
        if every_s != self._every_s:
            self._every_s = every_s
            self._due_s = self._now_s() + FIRST_S if every_s else float("inf")

    def poll(self) -> None:
        """Start it when it is due, reap it when it is done, kill it when it takes too long."""
        now_s = self._now_s()
        if self._child is not None:
            if self._child.poll() is not None:
                self._child = None
            elif now_s - self._started_s > LONGEST_S:
                self._child.kill()
                self._child.wait()
                self._child = None
                self._note("self-test", "doctor", f"killed: not done within {LONGEST_S:.0f} s", "", "agent")
        elif now_s >= self._due_s:
            self._due_s = now_s + self._every_s if self._every_s else float("inf")
            self.start()

    def start(self) -> None:
        """Begin one now, unless one is under way."""
        if self._child is not None:
            return
        self._started_s = self._now_s()
        command = [sys.executable, "-I", _ROOT, "doctor", "--json", "--by", "agent", "--config", self._path]
        try:
            self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        except OSError as error:
            self._note("self-test", "doctor", f"not started: {error.strerror}", "", "agent")

    def close(self) -> None:
        """The agent stops."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def take(self, request: Request) -> Answer:
        """Findings that are handed in: on record, and in the status from now on. Raises: ConfigError."""
        rows = request.get("findings")
        found = [from_row(row) for row in rows] if isinstance(rows, list) and len(rows) <= MAX_FINDINGS else []
        if not found or None in found:
            raise ConfigError(f"self-test: expected a list of 1 to {MAX_FINDINGS} findings")
        self._said = [finding for finding in found if finding is not None]
        self._at_s = int(time.time())
        if faults(self._said) and self._every_s:
            self._due_s = min(self._due_s, self._now_s() + AGAIN_S)
        actor = str(request.get("by") or "operator")[:64]
        self._note("self-test", "doctor", result_of(self._said), detail_of(self._said), actor)
        yield {"row": {"result": result_of(self._said)}}

    def button(self, request: Request) -> Answer:
        """A button was pressed or let go: on record at once, for a factory reset may follow. Raises: ConfigError."""
        name, action, seconds = request.get("name"), request.get("action"), request.get("seconds", 0)
        if not isinstance(name, str) or action not in ("pressed", "released") or not isinstance(seconds, int):
            raise ConfigError("button: expected name, action (pressed or released) and seconds")
        is_test = action == "released" and seconds in HELD_S
        detail = f"held for {seconds} s" if action == "released" else ""
        self._note("button", name[:40], str(action), detail, "button")
        if is_test:
            self.start()
        yield {"row": {"text": "a self-test begins" if is_test else "on record"}}

    def troubles(self) -> list[str]:
        """What the last test found, for the status."""
        return [f"self-test: {finding.name}: {finding.why}" for finding in faults(self._said)]

    def describe(self) -> Mapping[str, object]:
        """For the status."""
        return {
            "at_s": self._at_s,
            "result": result_of(self._said) if self._said else "",
            "running": self._child is not None,
        }
