"""Checks of the packet path's standing parts: modules, queues, rules, flow offload, and the processes behind them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from hw.doctor.bedside import Bedside
from hw.doctor.finding import Finding, absent
from nfq import firewall, rules
from nfq.kernel import QUEUES_FILE, read_queues
from policy.errors import GatehouseError

CONNTRACK: Final = "/proc/sys/net/netfilter/nf_conntrack_max"
SILENT_MS: Final = 1_500
"""As the agent counts it: a worker that says nothing for so long is not alive."""


def agent(bed: Bedside) -> Iterator[Finding]:
    """Does it answer?"""
    if bed.silence:
        yield Finding("agent", False, bed.silence, "/etc/init.d/gatehouse start; then look into logread -e gatehouse")
    else:
        yield Finding("agent", True, f"release {bed.status.get('release')}, up {bed.status.get('up_s')} s")


def workers(bed: Bedside) -> Iterator[Finding]:
    """Is each one there, and does it say so?"""
    if bed.silence:
        yield absent("workers", "not tried: only the agent knows them")
        return
    config, found = bed.config, bed.status.get("workers", {})
    wanted = [f"dns/{n}" for n in range(config.dns.workers)] if config.dns.enabled else []
    wanted += [f"nfq/{n}" for n in range(config.nfq.workers)] if config.nfq.enabled else []
    if not wanted:
        yield absent("workers", "neither DNS nor packets are filtered, says the configuration")
        return
    wrong = [f"{name} is not there" for name in wanted if name not in found]
    wrong += [
        f"{name} has been silent for {found[name]['silent_ms']} ms"
        for name in wanted
        if name in found and found[name].get("silent_ms", 0) > SILENT_MS
    ]
    if wrong:
        yield Finding(
            "workers", False, "; ".join(wrong), "/etc/init.d/gatehouse restart; logread -e gatehouse says why"
        )
    else:
        yield Finding("workers", True, ", ".join(wanted))


def modules(bed: Bedside) -> Iterator[Finding]:
    """What the configuration needs of the kernel, tried where it can be tried."""
    config = bed.config
    missing = []
    if config.nfq.enabled and bed.read(QUEUES_FILE) is None:
        missing.append(("nfnetlink_queue", "kmod-nfnetlink-queue"))
    if bed.read(CONNTRACK) is None:
        missing.append(("nf_conntrack", "kmod-nf-conntrack"))
    if missing:
        names, packages = (" ".join(words) for words in zip(*missing, strict=True))
        yield Finding("modules", False, f"not in this kernel: {names}", f"opkg install {packages}")
        return
    if config.main.firewall != "none":
        try:
            backend = firewall.rehearse(rules.plan_of(config), config.main.firewall)
        except GatehouseError as error:
            packages = "kmod-nft-queue kmod-nft-core (iptables: iptables-mod-nfqueue iptables-mod-conntrack-extra)"
            yield Finding("modules", False, f"the rules cannot be loaded: {error}", f"opkg install {packages}")
            return
        yield Finding("modules", True, f"all there; rules by {backend}")
        return
    yield Finding("modules", True, "all there")


def queues(bed: Bedside) -> Iterator[Finding]:
    """Is each queue bound, and does it move?"""
    nfq = bed.config.nfq
    if not nfq.enabled:
        yield absent("queues", "packets are not filtered, says the configuration")
        return
    text = bed.read(QUEUES_FILE)
    states = read_queues(text) if text is not None else {}
    numbers = range(nfq.queue_first, nfq.queue_first + nfq.workers)
    wrong = [f"queue {number} is bound by nobody" for number in numbers if number not in states]
    wrong += [
        f"queue {number} is full: {states[number].waiting} packets wait"
        for number in numbers
        if number in states and states[number].waiting >= nfq.queue_length * 9 // 10
    ]
    if wrong:
        yield Finding("queues", False, "; ".join(wrong), "/etc/init.d/gatehouse restart; is another program on it?")
    else:
        yield Finding("queues", True, f"{len(numbers)} bound, {sum(states[n].waiting for n in numbers)} packets wait")


def standing_rules(bed: Bedside) -> Iterator[Finding]:
    """Are ours there, whole, and first in their chains?"""
    main = bed.config.main
    if main.firewall == "none":
        yield absent("rules", "somebody else sets them, says the configuration")
        return
    missing = firewall.missing_parts(rules.plan_of(bed.config), main.firewall)
    repaired = bed.status.get("rules", {}).get("repaired", 0)
    if missing:
        why = f"not as they were set: {', '.join(missing[:4])}"
        yield Finding("rules", False, why, "they come back within ten seconds; if not: /etc/init.d/gatehouse restart")
    else:
        again = f"; they had to be set again {repaired} times" if repaired else ""
        yield Finding("rules", True, f"all in place{again}")


def offload(bed: Bedside) -> Iterator[Finding]:
    """Does somebody take flows past us?"""
    if bed.config.main.firewall == "none" or not bed.config.nfq.enabled:
        yield absent("offload", "not looked for: the rules are somebody else's")
        return
    found = firewall.find_any_offload(rules.plan_of(bed.config))
    if found:
        yield Finding(
            "offload", False, f"{', '.join(found)} takes flows past us",
            "uci set firewall.@defaults[0].flow_offloading=0; uci commit firewall; service firewall restart",
        )  # fmt: skip
    else:
        yield Finding("offload", True, "nobody's flow offload is on")
