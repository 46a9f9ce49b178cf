"""Applies, checks, renews and removes the rules of `nfq.rules`. A thin shell around nft and iptables-restore.

Idempotent: applying twice is applying once; other people's rules are not touched.
"""

from __future__ import annotations

import re
import socket
import subprocess
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias

from nfq import kernel, rules
from nfq.admission import ADMIT, Admitted, iptables_admit, nft_admit
from policy.errors import ConfigError

TIMEOUT_S: Final = 10
_FAMILIES: Final = ((4, "iptables"), (6, "ip6tables"))
# Behind six rejects to one client the kernel falls silent (icmp_ratelimit), and a browser waits a second instead of
# falling back at once: take destination-unreachable out of the limited types.
_RATE_MASKS: Final = (
    ("/proc/sys/net/ipv4/icmp_ratemask", "6160"),
    ("/proc/sys/net/ipv6/icmp/ratemask", "0-0,3-127"),
)


_Jump: TypeAlias = tuple[str, str, str]
"""Table, chain, rule."""


class Listed(NamedTuple):
    """A network that a list or a rule names."""

    text: str
    """CIDR."""
    bits: int
    """32 or 128."""
    timeout_s: int = 0
    """0: until the policy changes."""


class Backend(Protocol):
    """One way to put rules into the kernel."""

    def apply(self) -> None:
        """Put the rules in place. Raises: ConfigError with the tool's own words."""
        ...

    def remove(self) -> None:
        """Take them out again; what is not there is not missed."""
        ...

    def look(self) -> kernel.Saved:
        """What is in the kernel now. Raises: ConfigError."""
        ...

    def is_whole(self, saved: kernel.Saved) -> bool:
        """Is that what `apply` left?"""
        ...

    def fill_sets(self, networks: Sequence[Listed]) -> None:
        """Put these networks, and no others, into the sets of listed addresses. Raises: ConfigError."""
        ...

    def admit(self, admitted: Admitted) -> None:
        """These may pass, and nobody else, where the plan asks for identity. Raises: ConfigError."""
        ...

    def renew_lease(self) -> None:
        """The DNS hook lives: questions go on being redirected for LEASE_S seconds more."""
        ...


class Firewall:
    """The rules of one plan in this network namespace. `backend`: `nft`, `iptables`, or `auto`."""

    def __init__(self, plan: rules.Plan, backend: str = "auto") -> None:
        self.plan = plan
        self._wanted = backend
        self._backend: Nft | Iptables | None = None
        self._has_flowoffload = False

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

    def look(self) -> kernel.Saved | None:
        """Our rules as they are now; None: they are not as `apply` left them. Raises: ConfigError."""
        if self._backend is None:
            return None
        saved = self._backend.look()
        self._has_flowoffload = saved.offload
        return saved if self._backend.is_whole(saved) else None

    def is_present(self) -> bool:
        """Are they all there?"""
        return self.look() is not None

    def fill_sets(self, networks: Sequence[Listed]) -> None:
        """Listed addresses: a SYN to one of them comes up to be decided. Raises: ConfigError."""
        if self._backend is not None:
            self._backend.fill_sets(networks)

    def admit(self, admitted: Admitted) -> None:
        """These may pass, and nobody else. Raises: ConfigError."""
        if self._backend is not None:
            self._backend.admit(admitted)

    def find_offload(self) -> list[str]:
        """Whose flow offload would take flows past us: `table inet fw4, flowtable ft`."""
        found = ["iptables FLOWOFFLOAD"] if self._has_flowoffload else []
        return found + [f"table {family} {table}, flowtable {name}" for family, table, name in self._flowtables()]

    def stop_offload(self) -> bool:
        """Take the rules out that put flows into other people's flowtables. False: some are left."""
        for family, table, name in self._flowtables():
            listed = _run(["nft", "-a", "list", "table", family, table])
            for chain, handle in kernel.find_flow_rules(listed, name):
                _try(["nft", "delete", "rule", family, table, chain, "handle", str(handle)])
        return not self._has_flowoffload and not self._flowtables()

    def _flowtables(self) -> list[tuple[str, str, str]]:
        """Flowtables with rules that fill them: the table alone does no harm."""
        try:
            named = kernel.find_flowtables(_run(["nft", "list", "flowtables"]))
            return [
                (family, table, name)
                for family, table, name in named
                if kernel.find_flow_rules(_run(["nft", "-a", "list", "table", family, table]), name)
            ]
        except ConfigError:  # no nft: then nobody has a flowtable
            return []

    def renew_lease(self) -> None:
        """The DNS hook lives."""
        if self._backend is not None:
            self._backend.renew_lease()

    def _choose(self) -> Nft | Iptables:
        if self._wanted == "iptables":
            return Iptables(self.plan)
        if self._wanted == "nft" or _try(["nft", "-c", "-f", "-"], rules.nft(self.plan)):
            return Nft(self.plan)
        return Iptables(self.plan)  # older OpenWrt, or a kernel without nft_queue


class Nft:
    """nftables: OpenWrt 22.03 and later."""

    def __init__(self, plan: rules.Plan) -> None:
        self._plan = plan
        self._reference: tuple[str, ...] = ()

    def apply(self) -> None:
        text = rules.nft(self._plan)
        # Checked first: a ruleset that the kernel cannot take must not cost the one that is there.
        _run(["nft", "-c", "-f", "-"], text)
        _run(["nft", "-f", "-"], text)
        self._reference = self.look().ours

    def remove(self) -> None:
        _try(["nft", "delete", "table", "inet", "gatehouse"])

    def look(self) -> kernel.Saved:
        try:
            return kernel.read_nft(_run(["nft", "-t", "list", "table", "inet", "gatehouse"]))
        except ConfigError:
            return kernel.Saved((), 0)

    def is_whole(self, saved: kernel.Saved) -> bool:
        return bool(saved.ours) and saved.ours == self._reference

    def renew_lease(self) -> None:
        # Deleted and added again in one transaction: adding an element that is there does not renew its timeout.
        lease = "element inet gatehouse lease { 53"
        text = f"add {lease} }}\ndelete {lease} }}\nadd {lease} timeout {rules.LEASE_S}s }}\n"
        if self._plan.admission is not None:
            for name in self._plan.lan:
                lease = f'element inet gatehouse admission {{ "{name}"'
                text += f"add {lease} }}\ndelete {lease} }}\nadd {lease} timeout {rules.LEASE_S}s }}\n"
        _try(["nft", "-f", "-"], text)

    def admit(self, admitted: Admitted) -> None:
        if self._plan.admission is not None:
            _run(["nft", "-f", "-"], nft_admit(admitted))

    def fill_sets(self, networks: Sequence[Listed]) -> None:
        lines = []
        for name, bits in (("blocked4", 32), ("blocked6", 128)):
            lines.append(f"flush set inet gatehouse {name}")
            elements = [_element(net) for net in networks if net.bits == bits]
            for at in range(0, len(elements), 1000):
                lines.append(f"add element inet gatehouse {name} {{ {', '.join(elements[at : at + 1000])} }}")
        _run(["nft", "-f", "-"], "\n".join(lines) + "\n")


def _element(net: Listed) -> str:
    return f"{net.text} timeout {net.timeout_s}s" if net.timeout_s else net.text


class Iptables:
    """iptables: older OpenWrt, and kernels without nft_queue."""

    def __init__(self, plan: rules.Plan) -> None:
        # Sets need another tool and another kernel module; without, an address is decided at the first data.
        self._plan = plan._replace(sets=self._make_sets())
        self._reference: tuple[str, ...] = ()

    def apply(self) -> None:
        for family, tool in _FAMILIES:
            _run([f"{tool}-restore", "--noflush", "--wait", "5"], rules.iptables(self._plan, family))
            there, _ = kernel.find_ours(_run([f"{tool}-save"]))
            wanted = rules.jumps(self._plan, family)
            # What another plan, or another version of this program, has left would show packets to our chains twice.
            lines = [(table, f"-D {chain} {rule}") for table, chain, rule in _without(there, wanted)]
            lines += [(table, f"-I {chain} 1 {rule}") for table, chain, rule in reversed(_without(wanted, there))]
            _restore(tool, lines)
        self._reference = self.look().ours

    def remove(self) -> None:
        for _, tool in _FAMILIES:
            jumps, chains = kernel.find_ours(_said([f"{tool}-save"]))
            lines = [(table, f"-D {chain} {rule}") for table, chain, rule in jumps]
            # First empty them all: a chain that another jumps to cannot be deleted.
            lines += [(table, f"{order} {chain}") for order in ("-F", "-X") for table, chain in chains]
            _restore(tool, lines)
        for name in (rules.SET4, rules.SET6):
            _try(["ipset", "destroy", name])

    def look(self) -> kernel.Saved:
        # Two processes for all rules of all tables; asking for each rule by itself took a dozen.
        saved = kernel.read_iptables([_run([f"{tool}-save", "-c"]) for _, tool in _FAMILIES])
        # Who is admitted changes all the time, and is put in anew with every change.
        return saved._replace(ours=tuple(line for line in saved.ours if not line.startswith(f"-A {ADMIT} ")))

    def is_whole(self, saved: kernel.Saved) -> bool:
        return bool(saved.ours) and saved.ours == self._reference

    def renew_lease(self) -> None:
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            try:
                with socket.socket(family, socket.SOCK_DGRAM) as link:
                    link.sendto(b"gatehouse lives", (address, rules.LEASE_PORT))
            except OSError:  # EPERM says that our rule has taken it; anything else, that this family is not here
                pass

    def admit(self, admitted: Admitted) -> None:
        if self._plan.admission is not None:
            for family, tool in _FAMILIES:
                text = iptables_admit(self._plan.admission, admitted, family)
                _run([f"{tool}-restore", "--noflush", "--wait", "5"], text)

    def fill_sets(self, networks: Sequence[Listed]) -> None:
        if not self._plan.sets:
            return
        lines = []
        for name, bits in ((rules.SET4, 32), (rules.SET6, 128)):
            lines.append(f"flush {name}")
            for net in networks:
                if net.bits == bits:
                    lines.append(f"add {name} {net.text} timeout {net.timeout_s}")
        _run(["ipset", "restore", "-exist"], "\n".join(lines) + "\n")

    @staticmethod
    def _make_sets() -> bool:
        made = [
            _try(["ipset", "create", "-exist", name, "hash:net", "family", family, "maxelem", "131072", "timeout", "0"])
            for name, family in ((rules.SET4, "inet"), (rules.SET6, "inet6"))
        ]
        return all(made)


def _restore(tool: str, lines: Sequence[tuple[str, str]]) -> None:
    """Each line in its table, in this order."""
    for table in dict.fromkeys(table for table, _ in lines):
        text = "".join(f"{line}\n" for where, line in lines if where == table)
        _run([f"{tool}-restore", "--noflush", "--wait", "5"], f"*{table}\n{text}COMMIT\n")


def _without(some: Sequence[_Jump], others: Sequence[_Jump]) -> list[_Jump]:
    """Those of `some` that are not in `others`, each as often as it is there oftener."""
    counts = Counter(others)
    left = []
    for each in some:
        if counts[each]:
            counts[each] -= 1
        else:
            left.append(each)
    return left


def _plain(jumps: Sequence[_Jump]) -> list[_Jump]:
    """Without the marks for which they are: those depend on what the agent alone knows."""
    return [(table, chain, re.sub(r"-m mark (! )?--mark \S+ ", "", rule)) for table, chain, rule in jumps]


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


def rehearse(plan: rules.Plan, backend: str = "auto") -> str:
    """Have the kernel say whether it could take these rules, without setting them. Returns the back-end's name.

    Raises: ConfigError with the tool's own words.
    """
    if backend != "iptables":
        if _try(["nft", "-c", "-f", "-"], rules.nft(plan)):
            return "nft"
        if backend == "nft":
            _run(["nft", "-c", "-f", "-"], rules.nft(plan))
    for family, tool in _FAMILIES:
        _run([f"{tool}-restore", "--test", "--noflush", "--wait", "5"], rules.iptables(plan, family))
    return "iptables"


def missing_parts(plan: rules.Plan, backend: str = "auto") -> list[str]:
    """What of these rules is not in the kernel, chain by chain, for whoever did not set them; empty: all is there."""
    if backend != "iptables":
        listed = kernel.count_nft(_said(["nft", "-t", "list", "table", "inet", "gatehouse"]))
        if listed or backend == "nft":
            wanted = kernel.count_nft(rules.nft(plan))
            return [f"chain {name}" for name, lines in wanted.items() if listed.get(name, -1) < lines]
    missing = []
    for family, tool in _FAMILIES:
        said = _said([f"{tool}-save"])
        there = kernel.count_iptables(said)
        wanted = kernel.count_iptables(rules.iptables(plan, family))
        missing += [f"{tool} {chain}" for chain, lines in wanted.items() if there.get(chain, -1) < lines]
        jumps, _ = kernel.find_ours(said)
        missing += [
            f"{tool} {chain} {rule}" for _, chain, rule in _without(_plain(rules.jumps(plan, family)), _plain(jumps))
        ]
    return missing


def find_any_offload(plan: rules.Plan) -> list[str]:
    """As `Firewall.find_offload`, for whoever did not set the rules."""
    saved = kernel.read_iptables([_said([f"{tool}-save", "-c"]) for _, tool in _FAMILIES])
    found = Firewall(plan).find_offload()
    return (["iptables FLOWOFFLOAD"] if saved.offload else []) + found


def _said(command: list[str]) -> str:
    """What a command prints; nothing where it fails."""
    try:
        return _run(command)
    except ConfigError:
        return ""
