"""Applies, checks, renews and removes the rules of `nfq.rules`. A thin shell around nft and iptables-restore.

Idempotent: applying twice is applying once; other people's rules are not touched.
"""

from __future__ import annotations

import socket
import subprocess
from typing import Final, Protocol

from nfq import rules
from policy.errors import ConfigError

TIMEOUT_S: Final = 10
_FAMILIES: Final = ((4, "iptables"), (6, "ip6tables"))
# Behind six rejects to one client the kernel falls silent (icmp_ratelimit), and a browser waits a second instead of
# falling back at once: take destination-unreachable out of the limited types.
_RATE_MASKS: Final = (
    ("/proc/sys/net/ipv4/icmp_ratemask", "6160"),
    ("/proc/sys/net/ipv6/icmp/ratemask", "0-0,3-127"),
)


class Backend(Protocol):
    """One way to put rules into the kernel."""

    def apply(self) -> None:
        """Put the rules in place. Raises: ConfigError with the tool's own words."""
        ...

    def remove(self) -> None:
        """Take them out again; what is not there is not missed."""
        ...

    def is_present(self) -> bool:
        """Are they all there?"""
        ...

    def renew_lease(self) -> None:
        """The DNS hook lives: questions go on being redirected for LEASE_S seconds more."""
        ...


class Firewall:
    """The rules of one plan in this network namespace. `backend`: `nft`, `iptables`, or `auto`."""

    def __init__(self, plan: rules.Plan, backend: str = "auto") -> None:
        self.plan = plan
        self._wanted = backend
        self._backend: Backend | None = None

    @property
    def name(self) -> str:
        """Which back-end is in use; `auto` before the first `apply`."""
        return type(self._backend).__name__.lower() if self._backend else self._wanted

    def apply(self) -> None:
        """Put the rules in place. Raises: ConfigError with the tool's own words."""
        if self._backend is None:
            self._backend = self._choose()
        self._backend.apply()
        for path, value in _RATE_MASKS:
            try:
                with open(path, "w", encoding="ascii") as file:
                    file.write(value)
            except OSError:  # a container without that file: rejects are then fewer, not wrong
                pass

    def remove(self) -> None:
        """Take the rules out again, whichever back-end they came by."""
        for backend in (self._backend,) if self._backend else (Nft(self.plan), Iptables(self.plan)):
            backend.remove()

    def is_present(self) -> bool:
        """Are they all there?"""
        return self._backend is not None and self._backend.is_present()

    def renew_lease(self) -> None:
        """The DNS hook lives."""
        if self._backend is not None:
            self._backend.renew_lease()

    def _choose(self) -> Backend:
        if self._wanted == "iptables":
            return Iptables(self.plan)
        if self._wanted == "nft" or _try(["nft", "-c", "-f", "-"], rules.nft(self.plan)):
            return Nft(self.plan)
        return Iptables(self.plan)  # older OpenWrt, or a kernel without nft_queue


class Nft:
    """nftables: OpenWrt 22.03 and later."""

    def __init__(self, plan: rules.Plan) -> None:
        self._plan = plan

    def apply(self) -> None:
        text = rules.nft(self._plan)
        # Checked first: a ruleset that the kernel cannot take must not cost the one that is there.
        _run(["nft", "-c", "-f", "-"], text)
        _run(["nft", "-f", "-"], text)

    def remove(self) -> None:
        _try(["nft", "delete", "table", "inet", "gatehouse"])

    def is_present(self) -> bool:
        try:
            listed = _run(["nft", "list", "table", "inet", "gatehouse"])
        except ConfigError:
            return False
        return all(f"chain {chain} {{" in listed for chain in ("dns", "first", "verdict", "blocked")) and (
            not self._plan.queues or "queue" in listed
        )

    def renew_lease(self) -> None:
        # Deleted and added again in one transaction: adding an element that is there does not renew its timeout.
        lease = "element inet gatehouse lease { 53"
        text = f"add {lease} }}\ndelete {lease} }}\nadd {lease} timeout {rules.LEASE_S}s }}\n"
        _try(["nft", "-f", "-"], text)


class Iptables:
    """iptables: older OpenWrt, and kernels without nft_queue."""

    def __init__(self, plan: rules.Plan) -> None:
        self._plan = plan

    def apply(self) -> None:
        for family, tool in _FAMILIES:
            _run([f"{tool}-restore", "--noflush", "--wait", "5"], rules.iptables(self._plan, family))
            for table, chain, ours in rules.JUMPS:
                if not _is_there(tool, table, chain, ours):
                    _run([tool, "-w", "5", "-t", table, "-I", chain, "1", "-j", ours])

    def remove(self) -> None:
        for _, tool in _FAMILIES:
            for table, chain, ours in rules.JUMPS:
                while _is_there(tool, table, chain, ours):
                    _run([tool, "-w", "5", "-t", table, "-D", chain, "-j", ours])
            for order in ("-F", "-X"):  # first empty them all: a chain that another jumps to cannot be deleted
                for table, chain in rules.CHAINS:
                    _try([tool, "-w", "5", "-t", table, order, chain])

    def is_present(self) -> bool:
        for _, tool in _FAMILIES:
            if not all(_is_there(tool, table, chain, ours) for table, chain, ours in rules.JUMPS):
                return False
            saved = _run([f"{tool}-save"])
            if ("NFQUEUE" not in saved and self._plan.queues) or "-A GH-BLOCKED" not in saved:
                return False
        return True

    def renew_lease(self) -> None:
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            try:
                with socket.socket(family, socket.SOCK_DGRAM) as link:
                    link.sendto(b"gatehouse lives", (address, rules.LEASE_PORT))
            except OSError:  # EPERM says that our rule has taken it; anything else, that this family is not here
                pass


def _is_there(tool: str, table: str, chain: str, ours: str) -> bool:
    return _try([tool, "-w", "5", "-t", table, "-C", chain, "-j", ours])


def _try(command: list[str], text: str = "") -> bool:
    """Run a command that may well fail."""
    try:
        result = subprocess.run(command, check=False, input=text, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return result.returncode == 0


def _run(command: list[str], text: str = "") -> str:
    try:
        result = subprocess.run(command, check=False, input=text, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"firewall: {command[0]}: {error}; is the package installed?") from None
    if result.returncode:
        raise ConfigError(f"firewall: {' '.join(command)}: {result.stderr.strip()}")
    return result.stdout
