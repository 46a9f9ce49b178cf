"""The DNS hook's process: sockets, clocks and signals around the core."""

from __future__ import annotations

import time
from collections.abc import Callable

from dns.link import Link
from policy.config import DnsConfig
from policy.verdict import Decider


def run(
    settings: DnsConfig,
    decider_source: Callable[[], Decider],
    link: Link,
    *,
    worker: int = 0,
    lan: tuple[str, ...] = (),
    settings_source: Callable[[], DnsConfig] | None = None,
    wall_s: Callable[[], float | None] = time.time,
) -> None:
    """Serve until SIGTERM or the link's Stop, then drain and return.

    `decider_source` is called at the start and at each reload (the link's Reload, or SIGHUP); if it raises
    GatehouseError at a reload, what was there before goes on. `settings_source` likewise; None: never changes.
    `lan`: interfaces whose clients are served, besides this machine itself; empty: whoever asks.
    `wall_s` gives wall time, or None while the clock is not known to be right.
    """
    raise SystemExit("dns: not served yet")
