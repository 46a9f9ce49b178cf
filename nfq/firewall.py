"""Applies, checks, renews and removes the rules of `nfq.rules`. A thin shell around iptables-restore.

Idempotent: applying twice is applying once; other people's rules are not touched.
"""

from __future__ import annotations

import subprocess
from typing import Final

from nfq import rules
from policy.errors import ConfigError

TIMEOUT_S: Final = 10
_FAMILIES: Final = ((4, "iptables", rules.LEASE4, "0.0.0.0"), (6, "ip6tables", rules.LEASE6, "::"))


class Firewall:
    """The rules of one plan in this network namespace."""

    def __init__(self, plan: rules.Plan) -> None:
        self.plan = plan

    def apply(self) -> None:
        """Put the rules in place. Raises: ConfigError with the tool's own words."""
        for family, tool, _, _ in _FAMILIES:
            _run([f"{tool}-restore", "--noflush", "--wait", "5"], rules.iptables(self.plan, family))
            for table, chain, ours in rules.JUMPS:
                if not _is_there(tool, table, chain, ours):
                    _run([tool, "-w", "5", "-t", table, "-I", chain, "1", "-j", ours])
        # Behind six rejects to one client the kernel falls silent (icmp_ratelimit), and a browser waits a second
        # instead of falling back at once: take destination-unreachable out of the limited types.
        for path, value in (
            ("/proc/sys/net/ipv4/icmp_ratemask", "6160"),
            ("/proc/sys/net/ipv6/icmp/ratemask", "0-0,3-127"),
        ):
            try:
                with open(path, "w", encoding="ascii") as file:
                    file.write(value)
            except OSError:
                pass

    def remove(self) -> None:
        """Take the rules out again; what is not there is not missed."""
        for _, tool, _, _ in _FAMILIES:
            for table, chain, ours in rules.JUMPS:
                while _is_there(tool, table, chain, ours):
                    _run([tool, "-w", "5", "-t", table, "-D", chain, "-j", ours])
            for order in ("-F", "-X"):  # first empty them all: a chain that another jumps to cannot be deleted
                for table, chain in rules.CHAINS:
                    _try([tool, "-w", "5", "-t", table, order, chain])

    def is_present(self) -> bool:
        """Are all jumps there, and the chains behind them not empty?"""
        for _, tool, _, _ in _FAMILIES:
            for table, chain, ours in rules.JUMPS:
                if not _is_there(tool, table, chain, ours):
                    return False
            saved = _run([f"{tool}-save"])
            if "NFQUEUE" not in saved or "GH-BLOCKED" not in saved:
                return False
        return True

    def renew_lease(self) -> None:
        """The DNS hook lives: questions go on being redirected for LEASE_S seconds more."""
        for _, _, name, zero in _FAMILIES:
            try:
                with open(f"/proc/net/xt_recent/{name}", "w", encoding="ascii") as file:
                    file.write(f"+{zero}\n")
            except OSError:  # the rules are not there (yet): is_present tells
                pass


def _is_there(tool: str, table: str, chain: str, ours: str) -> bool:
    return _try([tool, "-w", "5", "-t", table, "-C", chain, "-j", ours])


def _try(command: list[str]) -> bool:
    """Run a command that may well fail."""
    try:
        return subprocess.run(command, check=False, capture_output=True, timeout=TIMEOUT_S).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _run(command: list[str], text: str = "") -> str:
    try:
        result = subprocess.run(command, check=False, input=text, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"firewall: {command[0]}: {error}; is the package installed?") from None
    if result.returncode:
        raise ConfigError(f"firewall: {' '.join(command)}: {result.stderr.strip()}")
    return result.stdout
