"""What the kernel and the firewall's tools say, read: our queues' counters, rules as saved, others' flow offload.

Text in, values out. Rule: unknown lines are passed over; a counter that went back means that it began again.
Sources: net/netfilter/nfnetlink_queue.c (seq_show), iptables-save(8), nft(8), fw4's ruleset template.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

QUEUES_FILE: Final = "/proc/net/netfilter/nfnetlink_queue"


class QueueState(NamedTuple):
    """One bound queue."""

    port_id: int
    """Whose it is; another number is another socket."""
    waiting: int
    dropped: int
    """Packets that found it full, without fail-open."""
    user_dropped: int
    """Packets that found the socket's buffer full, without fail-open."""
    last_id: int
    """Packets that ever reached it."""


def read_queues(text: str) -> dict[int, QueueState]:
    """/proc/net/netfilter/nfnetlink_queue: one line a queue."""
    found: dict[int, QueueState] = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 8 and all(field.isdecimal() for field in fields[:8]):
            number, port_id, waiting, _, _, dropped, user_dropped, last_id = map(int, fields[:8])
            found[number] = QueueState(port_id, waiting, dropped, user_dropped, last_id)
    return found


class Saved(NamedTuple):
    """One look at the rules that are in the kernel."""

    ours: tuple[str, ...]
    """Our lines, without counters: as they were right after `apply`, or somebody's hand was there."""
    offered: int
    """Packets that the rules sent to our queues; those that passed by with fail-open are in it."""
    offload: bool = False
    """iptables' FLOWOFFLOAD is in use."""


_COUNTERS: Final = re.compile(r"^\[(\d+):\d+\] ")
_NFT_COUNTER: Final = re.compile(r"counter packets (\d+) bytes \d+ ?")


def read_iptables(texts: Iterable[str], prefix: str = "GH-") -> Saved:
    """`iptables-save -c` and `ip6tables-save -c`."""
    ours, offered, offload = [], 0, False
    for text in texts:
        for line in text.splitlines():
            counted = _COUNTERS.match(line)
            if counted is None:
                continue
            rule = line[counted.end() :]
            offload = offload or "-j FLOWOFFLOAD" in rule
            if f" {prefix}" not in rule:
                continue
            ours.append(rule)
            if "-j NFQUEUE" in rule and not rule.startswith("-A GH-REFUSE "):  # those are rejected, seen or not
                offered += int(counted.group(1))
    return Saved(tuple(ours), offered, offload)


def read_nft(text: str) -> Saved:
    """`nft -t list table inet gatehouse`."""
    ours, offered, chain = [], 0, ""
    for line in text.splitlines():
        words = line.split()
        chain = words[1] if words[:1] == ["chain"] else chain
        counted = _NFT_COUNTER.search(line)
        if counted is not None and chain != "admit" and " queue " in f"{line} ":
            offered += int(counted.group(1))
        ours.append(_NFT_COUNTER.sub("", line).strip())
    return Saved(tuple(ours), offered)


def find_ours(text: str, prefix: str = "GH-") -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """`iptables-save`: (table, built-in chain, rule) of what leads to our chains, and (table, chain) of those."""
    jumps, chains, table = [], [], ""
    for line in text.splitlines():
        words = line.split(" ", 2)
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(f":{prefix}"):
            chains.append((table, words[0][1:]))
        elif len(words) == 3 and words[0] == "-A" and not words[1].startswith(prefix) and f" {prefix}" in words[2]:
            jumps.append((table, words[1], words[2]))
    return jumps, chains


def find_flowtables(text: str, ours: str = "gatehouse") -> list[tuple[str, str, str]]:
    """`nft list flowtables`: (family, table, flowtable) of everybody else's."""
    found: list[tuple[str, str, str]] = []
    family = table = ""
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 4 and words[0] == "table":
            family, table = words[1], words[2]
        elif len(words) >= 2 and words[0] == "flowtable" and table and table != ours:
            found.append((family, table, words[1]))
    return found


def find_flow_rules(text: str, flowtable: str) -> list[tuple[str, int]]:
    """`nft -a list table ...`: (chain, handle) of the rules that put flows into a flowtable."""
    found: list[tuple[str, int]] = []
    chain = ""
    wanted = re.compile(rf"\bflow (?:add|offload) @{re.escape(flowtable)}\b.*# handle (\d+)")
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "chain":
            chain = words[1]
        matched = wanted.search(line)
        if matched and chain:
            found.append((chain, int(matched.group(1))))
    return found


def count_iptables(text: str, prefix: str = "GH-") -> dict[str, int]:
    """`iptables-save`, or what goes into `iptables-restore`: our chains, and how many rules each has."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        words = line.split()
        if line.startswith(f":{prefix}"):
            found.setdefault(words[0][1:], 0)
        elif len(words) > 1 and words[0] == "-A" and words[1].startswith(prefix):
            found[words[1]] = found.get(words[1], 0) + 1
    return found


def count_nft(text: str) -> dict[str, int]:
    """`nft list table`, or what goes into `nft -f`: its chains, and how many rules each has."""
    found: dict[str, int] = {}
    chain = ""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["chain"] and words[-1] == "{":
            chain = words[1]
            found[chain] = 0
        elif words == ["}"]:
            chain = ""
        elif chain and words and words[0] != "type":
            found[chain] += 1
    return found
