"""Starts the processes and keeps them running, where there is no procd to do it: the lab, a plain Linux box.

Mirrors what packaging/openwrt's init script tells procd: one instance per process, respawn for ever, SIGHUP to reload,
SIGTERM and a limit to stop. Hooks stop before the agent, so that their last records are taken in.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from typing import Final

from policy.config import Config

RESPAWN_S: Final = 0.2
"""Wait before a process is started again."""
RESPAWN_SLOW_S: Final = 5.0
"""The same for one that died within SHORT_LIFE_S of its start, five times in a row: it will not get better by haste."""
SHORT_LIFE_S: Final = 5.0
STOP_S: Final = 5.0
"""From SIGTERM to SIGKILL."""


class _Child:
    """One process that should be running."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self.command = command
        self.process: subprocess.Popen[bytes] | None = None
        self.start_at = 0.0
        self.started = 0.0
        self.short_lives = 0

    def start(self, now: float) -> None:
        # A session of its own: a terminal's Ctrl-C reaches the launcher only, which then stops them in order.
        self.process = subprocess.Popen(self.command, start_new_session=True)
        self.started = now
        _say(f"{self.name}: started as {self.process.pid}")

    def died(self, now: float, status: int) -> None:
        self.process = None
        self.short_lives = self.short_lives + 1 if now - self.started < SHORT_LIFE_S else 0
        wait = RESPAWN_SLOW_S if self.short_lives >= 5 else RESPAWN_S
        self.start_at = now + wait
        _say(f"{self.name}: ended with {status}, starts again in {wait:g} s")


def roles(config: Config) -> list[tuple[str, int]]:
    """Every process that this configuration asks for, the agent first: (role, worker)."""
    wanted = [("agent", 0)]
    if config.dns.enabled:
        wanted += [("dns", worker) for worker in range(config.dns.workers)]
    if config.nfq.enabled:
        wanted += [("nfq", worker) for worker in range(config.nfq.workers)]
    if config.uplink.enabled:
        wanted.append(("uplink", 0))
    if config.console.tty:
        wanted.append(("console", 0))
    return wanted


def run(config: Config, config_path: str, root: str) -> int:
    """Start everything, restart what dies, until SIGTERM or SIGINT. Returns the exit status."""
    children = [
        _Child(f"{role}/{worker}", [sys.executable, "-I", root, role, "--config", config_path, "--worker", str(worker)])
        for role, worker in roles(config)
    ]
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)  # the wake-up pipe carries them; a handler must exist for that
    os.makedirs(config.main.run_dir, mode=0o755, exist_ok=True)
    while True:
        now = time.monotonic()
        for child in children:
            if child.process is not None and (status := child.process.poll()) is not None:
                child.died(now, status)
            if child.process is None and now >= child.start_at:
                child.start(now)
        waits = [child.start_at - now for child in children if child.process is None]
        ready, _, _ = select.select([reader], [], [], max(0.01, min(waits)) if waits else None)
        arrived = os.read(reader, 4096) if ready else b""
        if signal.SIGTERM in arrived or signal.SIGINT in arrived:
            break
        if signal.SIGHUP in arrived:
            _say("reload")
            for child in children:
                if child.process is not None:
                    child.process.send_signal(signal.SIGHUP)
    _stop([child for child in children if not child.name.startswith("agent")])
    _stop([child for child in children if child.name.startswith("agent")])
    return 0


def _stop(children: list[_Child]) -> None:
    running = [(child.name, child.process) for child in children if child.process is not None]
    for _, process in running:
        process.terminate()
    deadline = time.monotonic() + STOP_S
    for name, process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _say(f"{name}: did not stop within {STOP_S:g} s, killed")
            process.kill()
            process.wait()


def _say(text: str) -> None:
    print(f"launch: {text}", file=sys.stderr, flush=True)
