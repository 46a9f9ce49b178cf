"""The agent's loop over real sockets: a hook that hangs is killed, one that was merely not listened to is not."""

import os
import signal
import socket
from pathlib import Path

import pytest

from agent import server as server_module
from agent.intake import SILENCE_MS, Identity, Intake
from agent.server import Server
from policy.event import Event, Maintenance
from policy.frame import Hello, beat_frame, hello_frame
from tests.agent.test_agent_intake import FakeRing


class Ring(FakeRing):
    last_commit_ms = 0

    def commit(self) -> None:
        pass


@pytest.mark.parametrize("spoke", [True, False], ids=["spoke", "silent"])
def test_what_a_hook_said_while_the_loop_was_busy_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoke: bool
) -> None:
    now, killed, ring = [10_000], list[tuple[int, int]](), Ring()
    monkeypatch.setattr(server_module.os, "kill", lambda pid, number: killed.append((pid, number)))
    intake = Intake(ring, lambda address: Identity(), lambda address, mac: None)
    server = Server(
        event_path=str(tmp_path / "events"), control_path=str(tmp_path / "control"), ring=ring, intake=intake,
        clock_ms=lambda: now[0], handlers={}, describe=lambda event: {}, follow=lambda request: lambda event: True,
        flush_s=1.0, flush_events=100, reload=lambda: None,
    )  # fmt: skip
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as hook:
        hook.connect(str(tmp_path / "events"))
        hook.send(hello_frame(Hello("dns", 0, 1, b"12345678")))
        for _ in range(3):
            server._turn(0.0)
        assert [worker.name for worker in intake.workers(now[0])] == ["dns/0"]
        # Something took the loop longer than a hook may be silent; the hook beat all the while.
        if spoke:
            hook.send(beat_frame({"queries": 7}))
        now[0] += 2 * SILENCE_MS
        server._watch()
        kills: list[Event] = [e for e in ring.events if isinstance(e, Maintenance) and e.action == "kill"]
        if spoke:
            assert (killed, kills) == ([], [])
            assert [worker.counters for worker in intake.workers(now[0])] == [{"queries": 7}]
            now[0] += 2 * SILENCE_MS
            server._watch()
        assert killed == [(os.getpid(), signal.SIGKILL)], "and one that says nothing is"
        assert intake.workers(now[0]) == []
