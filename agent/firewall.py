"""Keeps the rules in place while the hooks live: applies, watches, repairs, renews the lease. Knows no rule itself.

Rule: with `on_failure=open` the rules go in only when the hooks answer, and the lease of the port-53 redirect is
renewed only while they do; with `closed` they go in at once and stay, whoever is dead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Final

from nfq.admission import NOBODY, Admission, Admitted
from nfq.firewall import Firewall, Listed
from nfq.rules import NatBlock, plan_of
from policy.config import Config
from policy.errors import GatehouseError

CHECK_S: Final = 5.0
"""Rules removed by hand are back within ten seconds."""


class Guard:
    """The rules of this router. `handle_timer` once a second."""

    def __init__(
        self, config: Config, now_s: Callable[[], float] = time.monotonic, nat: tuple[NatBlock, ...] = ()
    ) -> None:
        self._enabled = config.main.firewall != "none"
        self._closed = config.main.on_failure == "closed"
        self._wanted = {f"dns/{n}" for n in range(config.dns.workers)} if config.dns.enabled else set()
        self._wanted |= {f"nfq/{n}" for n in range(config.nfq.workers)} if config.nfq.enabled else set()
        self._dns = {name for name in self._wanted if name.startswith("dns/")}
        self._may_repair = config.nfq.offload == "repair"
        self._offload = ""
        self._networks: Sequence[Listed] = ()
        self._fill = False
        self.offered = -1
        """Packets that the rules have sent to our queues; -1: not looked at since `take_offered`."""
        self._backend = config.main.firewall
        self._firewall = Firewall(plan_of(config, nat), self._backend)
        self._admitted = NOBODY
        self._admit = False
        """Who is admitted is to be told to the kernel."""
        self._now_s = now_s
        self._check_at = 0.0
        self._is_applied = False
        self._trouble = ""
        self._repaired = 0

    def handle_timer(self, alive: Set[str]) -> list[tuple[str, str]]:
        """Do what is due; `alive` names the workers that were heard just now. Returns (action, text) for the record."""
        if not self._enabled:
            return []
        told: list[tuple[str, str]] = []
        now_s = self._now_s()
        if not self._is_applied and (self._closed or alive >= self._wanted):
            self._apply(told, "applied")
            self._check_at = now_s + CHECK_S
        if self._is_applied and now_s >= self._check_at:
            self._check_at = now_s + CHECK_S
            if not self._is_there():
                self._repaired += 1
                self._apply(told, "were removed, applied again")
            self._look_for_offload(told)
        if self._is_applied and self._fill:
            self._fill_sets(told)
        if self._is_applied and self._admit:
            self._tell_admitted(told)
        # The lease holds the redirect, and the door for those who are not admitted.
        if self._is_applied and (self._dns or self._firewall.plan.admission) and alive >= self._dns:
            self._firewall.renew_lease()
        return told

    def look_soon(self) -> None:
        """Somebody has loaded rules anew: look at the next `handle_timer`."""
        self._check_at = 0.0

    def remove(self) -> None:
        """An orderly stop. With `closed` the rules stay: only an uninstall takes them out."""
        if not self._enabled or self._closed:
            return
        try:
            self._firewall.remove()
        except GatehouseError as error:
            self._trouble = str(error)

    def take_offered(self) -> int:
        """How many packets the rules had sent to our queues by the last look at them; once a look, else -1."""
        offered, self.offered = self.offered, -1
        return offered

    def list_networks(self, networks: Sequence[Listed]) -> None:
        """Networks that the policy blocks for somebody: into the firewall's sets with the next `handle_timer`."""
        if networks != self._networks:
            self._networks = networks
            self._fill = True

    def ask_for_identity(self, admission: Admission | None) -> None:
        """From the next `handle_timer` on nobody passes who is not admitted; None: everybody does."""
        plan = self._firewall.plan
        if plan.admission != admission:
            self._firewall = Firewall(plan._replace(admission=admission), self._backend)
            self._is_applied = False

    def admit(self, admitted: Admitted) -> None:
        """These may pass: into the kernel with the next `handle_timer`."""
        if admitted != self._admitted:
            self._admitted = admitted
            self._admit = self._firewall.plan.admission is not None

    def admit_now(self) -> list[tuple[str, str]]:
        """The same, without waiting for the next second. Returns (action, text) for the record."""
        told: list[tuple[str, str]] = []
        if self._enabled and self._is_applied and self._admit:
            self._tell_admitted(told)
        return told

    def _tell_admitted(self, told: list[tuple[str, str]]) -> None:
        try:
            self._firewall.admit(self._admitted)
        except GatehouseError as error:  # tried again every second
            if str(error) != self._trouble:
                told.append(("rules", f"who is admitted: {error}"))
            self._trouble = str(error)
            return
        self._admit, self._trouble = False, ""

    def _fill_sets(self, told: list[tuple[str, str]]) -> None:
        self._fill = False
        try:
            self._firewall.fill_sets(self._networks)
        except GatehouseError as error:
            told.append(("rules", f"listed addresses: {error}"))

    def _look_for_offload(self, told: list[tuple[str, str]]) -> None:
        """Somebody else's flow offload takes flows at their handshake, before any name: we would see nothing."""
        found = ", ".join(self._firewall.find_offload())
        if found and self._may_repair and self._firewall.stop_offload():
            told.append(("offload", f"{found}: taken out; set firewall.@defaults[0].flow_offloading to 0"))
            found = ""
        elif found and found != self._offload:
            told.append(("offload", f"degraded: {found} takes flows past us"))
        elif self._offload and not found:
            told.append(("offload", f"{self._offload}: gone"))
        self._offload = found

    def troubles(self) -> list[str]:
        """What is wrong now, in words for a person."""
        if not self._enabled:
            has_duty = self._firewall.plan.admission is not None
            return ["identity: the legal profile lets nobody pass without a login, and `firewall none` lets everybody"
                    ] if has_duty else []  # fmt: skip
        if self._offload:
            words = "set firewall.@defaults[0].flow_offloading to 0"
            return [
                f"offload: {self._offload} takes flows past us; {words}",
                *([self._trouble] if self._trouble else []),
            ]
        if self._trouble:
            return [self._trouble]
        return [] if self._is_applied else ["rules are not applied yet"]

    def describe(self) -> Mapping[str, object]:
        return {
            "backend": self._firewall.name,
            "applied": self._is_applied,
            "repaired": self._repaired,
            "offload": self._offload,
            "listed": len(self._networks),
            "admission": "identity" if self._firewall.plan.admission else "anybody",
            "admitted": len(self._admitted.macs) + len(self._admitted.addresses),
            "enabled": self._enabled,
        }

    def _apply(self, told: list[tuple[str, str]], text: str) -> None:
        try:
            self._firewall.apply()
        except GatehouseError as error:
            if str(error) != self._trouble:  # once, not every second
                told.append(("rules", str(error)))
            self._trouble = str(error)
            return
        self._trouble = ""
        self._is_applied = True
        self.offered = 0  # new chains count from nothing
        self._fill = bool(self._networks)
        self._admit = self._firewall.plan.admission is not None
        told.append(("rules", f"{text}; nobody passes without a login" if self._admit else text))

    def _is_there(self) -> bool:
        try:
            saved = self._firewall.look()
            self.offered = saved.offered if saved is not None else -1
            return saved is not None
        except GatehouseError as error:
            self._trouble = str(error)
            return False
