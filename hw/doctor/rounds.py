"""All checks, one after the other, each by itself: what one of them trips over does not keep the others from theirs."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from hw.doctor import box, decisions, kernel, lan, outside
from hw.doctor.bedside import Bedside, SilentError, ask
from hw.doctor.finding import Finding, absent, as_row
from nfq.aes import find_aes
from policy.config import Config
from policy.errors import GatehouseError

ALONE_S: Final = 15.0

Check = Callable[[Bedside], Iterator[Finding]]

STANDING: Final[tuple[Check, ...]] = (
    kernel.agent, kernel.standing_rules, kernel.queues, kernel.workers, kernel.modules, kernel.offload,
)  # fmt: skip
"""The rules first: the agent sets them again within seconds, and what it mends by itself is worth telling too."""
REST: Final[tuple[Check, ...]] = (
    decisions.image, decisions.health, box.storage, box.medium, box.watchdog, outside.resolvers, outside.broker,
)  # fmt: skip
ALWAYS: Final[tuple[Check, ...]] = (
    decisions.settings, box.clock, box.battery, box.flash, box.heat, box.light, outside.route, outside.certificates,
)  # fmt: skip
"""What can be told of a router on which nothing of ours runs yet."""


def run(config: Config, *, root: str = "/", now_s: float | None = None) -> list[Finding]:
    """Every check there is, in a few seconds. `root`: where sysfs and procfs are looked for.

    Needs root's rights for the LAN's checks. Raises nothing: what cannot be tried is a finding that says so.
    """
    bed = Bedside(config, root=root, now_s=time.time() if now_s is None else now_s)
    found: list[Finding] = []
    if config.main.enabled:
        for check in STANDING:
            found += _one(check, bed)
        found += _on_the_lan(config)
        for check in REST:
            found += _one(check, bed)
    else:
        found.append(absent("agent", "switched off (gatehouse.main.enabled)", "set it to 1 when the venue is known"))
    for check in ALWAYS:
        found += _one(check, bed)
    return found


def put_on_record(config: Config, findings: list[Finding], by: str) -> str:
    """Have the agent write the result down. Returns why it could not; empty: it did."""
    try:
        ask(config, {"do": "self-test", "by": by, "findings": [as_row(finding) for finding in findings]})
    except SilentError as error:
        return str(error)
    return ""


def _one(check: Check, bed: Bedside) -> list[Finding]:
    try:
        return list(check(bed))
    except (GatehouseError, OSError) as error:
        return [
            Finding(check.__name__, False, f"the check itself failed: {error}", "tell whoever looks after the router")
        ]


def _on_the_lan(config: Config) -> list[Finding]:
    """The canary names, through each LAN, over IPv4 and where the LAN has it IPv6."""
    if config.main.firewall == "none":
        return [absent("lan", "not tried: the rules are somebody else's")]
    with _alone(config.main.run_dir) as is_alone:
        if not is_alone:
            return [absent("lan", "not tried: another self-test is on the LAN")]
        return _on_each_lan(config)


@contextmanager
def _alone(run_dir: str) -> Iterator[bool]:
    """One client at a time: it has one name and one address. False: another one has not left within ALONE_S."""
    try:
        descriptor = os.open(os.path.join(run_dir, "doctor.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:  # no directory: then no agent, and nobody else either
        yield True
        return
    try:
        deadline = time.monotonic() + ALONE_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() > deadline:
                    yield False
                    return
                time.sleep(0.1)
            else:
                break
        yield True
    finally:
        os.close(descriptor)


def _on_each_lan(config: Config) -> list[Finding]:
    found: list[Finding] = []
    has_aes = find_aes() is not None
    for interface in config.main.lan:
        place = f" on {interface}" if len(config.main.lan) > 1 else ""
        for version in (4, 6) if _has_ipv6(interface) else (4,):
            if config.nfq.enabled and not has_aes:
                found.append(lan.no_quic(version))
            found += [finding if not place else _at(finding, place) for finding in _one_lan(config, interface, version)]
    return found


def _one_lan(config: Config, interface: str, version: int) -> list[Finding]:
    try:
        with lan.LanClient(interface, version) as client:
            tried = lan.trials(
                client,
                f"t{os.urandom(4).hex()}",
                has_dns=config.dns.enabled,
                has_queue=config.nfq.enabled,
                has_page=config.nfq.page,
            )
            return client.run(tried)
    except lan.CannotTryError as error:
        return lan.cannot(error, ("lan" if version == 4 else "lan6",))
    except OSError as error:
        return [Finding("lan", False, f"a client of {interface} cannot be made: {error.strerror}", "see dmesg")]


def _at(finding: Finding, place: str) -> Finding:
    return Finding(finding.name, finding.ok, finding.why + place, finding.mend, finding.seen)


def _has_ipv6(interface: str) -> bool:
    """A global address of its own: without, a client of it has none either."""
    try:
        with open("/proc/net/if_inet6", encoding="ascii") as file:
            return any(
                fields[5] == interface and fields[3] == "00" for line in file if len(fields := line.split()) == 6
            )
    except OSError:
        return False
