"""Before the package goes: that it goes is on record, and afterwards no rule of ours is left.

    uninstall record   while the agent runs, or, where none does, straight into the ring
    uninstall rules    when everything has stopped; `on_failure=closed` leaves them in at an ordinary stop
Both are the removal script's; who removes packages is root.
"""

from __future__ import annotations

import os
import sys

from agent.clock import SystemClock
from agent.uplink.inside import AwayError, RefusedError, ask
from agent.version import VERSION
from nfq.firewall import Firewall
from nfq.rules import Plan
from policy.config import Config
from policy.errors import ConfigError, GatehouseError
from policy.event import Maintenance


def run(config: Config, what: str = "") -> int:
    """One of the two steps. Returns the exit status. Raises: ConfigError for another word."""
    match what:
        case "record":
            return _record(config)
        case "rules":
            plan = Plan(config.main.lan, config.nfq.queue_first, 1, config.nfq.mark_mask, config.dns.port, closed=True)
            Firewall(plan).remove()
            return 0
    raise ConfigError(f"uninstall: expected record or rules, got {what!r}")


def _record(config: Config) -> int:
    try:
        for _ in ask(os.path.join(config.main.run_dir, "control"), {"do": "uninstall"}):
            pass
    except RefusedError as error:
        print(f"uninstall: not on record: {error}", file=sys.stderr)
        return 1
    except AwayError:
        return _record_without_agent(config)
    return 0


def _record_without_agent(config: Config) -> int:
    if not os.path.isdir(config.ring.directory):
        return 0  # it never ran: there is nothing to add to
    from agent.records import Records

    clock = SystemClock(trusted=config.main.clock == "trusted")
    try:
        records = Records(config.ring, clock, lambda *_: None)
        records.ring.add([note(clock.boottime_ms(), "root")])
        records.ring.commit()
        records.close()
    except GatehouseError as error:
        print(f"uninstall: not on record: {error}", file=sys.stderr)
        return 1
    return 0


def note(now_ms: int, actor: str) -> Maintenance:
    """What goes on the maintenance log."""
    return Maintenance(now_ms, actor, "uninstall", "package", VERSION, "", "begun", "")
