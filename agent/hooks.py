"""Wires a hook's worker to its link and its policy. The only place where a hook meets the roof."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from agent import privileges, shared
from agent.__main__ import read_config
from agent.clock import SystemClock
from agent.decider import engine_of
from agent.link import Link
from policy.config import Config, DnsConfig
from policy.engine import Engine
from policy.errors import ConfigError
from policy.verdict import Decider

if TYPE_CHECKING:
    from dns.kernel import KernelAnswers
    from nfq.early import Early
    from policy.legal import Capture

MEMORY_SHARE: Final = 64
"""No larger a part of the machine's memory goes to answers that the kernel reads, unless it was asked for: 3.4 MB of
256, 8 of 512."""


def run(role: str, config: Config, path: str, worker: int) -> int:
    """Run one worker until it is told to stop. Returns the exit status."""
    link = Link(event_path(config), role, worker, sieve=_sieve(config))

    # Read with root's eyes, for the agent may not have handed over anything yet.
    engine: Engine = engine_of(config)
    is_new = True
    kernel = _kernel_answers(config) if role == "dns" and worker == 0 else None
    early = _open_early(config) if role == "nfq" and not worker else None
    if privileges.drop(role, config) is not None:
        path = shared.config_path(config)

    def decider() -> Decider:
        nonlocal engine, is_new
        if is_new:
            is_new = False
            return engine
        now = read_config(path)
        link.sieve = _sieve(now)
        engine = engine_of(now, engine)
        return engine

    if role == "dns":
        from dns import worker as dns_worker

        dns_worker.run(
            config.dns,
            decider,
            link,
            worker=worker,
            lan=config.main.lan,
            settings_source=lambda: read_config(path).dns,
            wall_s=_wall_clock(config),
            kernel=kernel,
        )
    else:
        from nfq import worker as nfq_worker

        nfq_worker.run(
            config.nfq,
            decider,
            link,
            worker=worker,
            fail_open=config.main.on_failure == "open",
            wall_s=_wall_clock(config),
            early=early,
            lan=config.main.lan,
        )
    return 0


def _kernel_answers(config: Config) -> KernelAnswers | None:
    """What answers repeated questions inside the kernel. Made while we still have the privileges that it takes."""
    if not config.dns.kernel:
        return None
    from dns.hot import arena_bytes
    from dns.kernel import KernelAnswers

    redirected = 53 if config.main.firewall != "none" and config.dns.port != 53 else 0
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    arena = arena_bytes(kernel_hot_bytes(config.dns.hot_bytes, memory))
    try:
        return KernelAnswers(config.dns.port, redirected, arena, ("lo", *config.main.lan))
    except OSError as error:
        print(f"dns: no answers from within the kernel, every question goes the usual way: {error}", file=sys.stderr)
        return None


def kernel_hot_bytes(hot_bytes: int, memory: int) -> int:
    """`hot_cache` where the kernel reads in it: all of that is taken at the start, other memory as it fills.

    So the default is less on a machine with little memory; what somebody has set is what he gets.
    """
    return min(hot_bytes, memory // MEMORY_SHARE) if hot_bytes == DnsConfig().hot_bytes else hot_bytes


def _open_early(config: Config) -> Early | None:
    """What is made while we still may: maps and a program."""
    if not config.nfq.early:
        return None
    from nfq.early import open_early

    return open_early(config.nfq.mark_mask, config.main.lan, marks_bare=config.nfq.workers == 1)


def _sieve(config: Config) -> Capture | None:
    """What the legal profile leaves out already here. A mistake in it is the agent's to tell, and lets nothing out."""
    if not config.main.legal:
        return None
    from agent.legal import load_profile
    from policy.legal import NOTHING, Capture

    try:
        profile = load_profile(config)
    except ConfigError:
        profile = NOTHING
    sieve = Capture(profile, at_hook=True) if profile is not None else None
    return None if sieve is None or sieve.is_everything else sieve


def event_path(config: Config) -> str:
    """Where hooks and agent meet."""
    return os.path.join(config.main.run_dir, "events")


def _wall_clock(config: Config) -> Callable[[], float | None]:
    """Wall seconds, or None while the clock is not known to be right. Judged once a second, asked more often."""
    clock = SystemClock(trusted=config.main.clock == "trusted")
    synced, judged_s = False, -1.0

    def wall_s() -> float | None:
        nonlocal synced, judged_s
        now_s = time.time()
        if abs(now_s - judged_s) > 1.0:
            synced, judged_s = clock.is_synced(int(now_s * 1000)), now_s
        return now_s if synced else None

    return wall_s
