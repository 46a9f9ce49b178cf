"""The firewall rules, from one description, for two back-ends. Text only; `nfq.firewall` applies it.

What the rules do, in the order a packet meets them:
 1. nat prerouting: LAN questions to anybody's port 53 go to the DNS hook, while its lease lives (always, if closed).
 2. mangle forward: where the legal profile asks for identity, whoever is not admitted is marked (`nfq.admission`);
    an undecided flow's first packets that carry data go to our queues.
 3. filter forward, first of all: whoever is not admitted is rejected, whatever the flow's; the verdict that came back
    as packet mark is written into the conntrack mark (the first one wins); port 853 is refused; blocked flows are
    rejected.
Every packet that is forwarded pays for the rules it is shown, so chains are trees: two questions to a packet from the
WAN, and what is asked of few packets stands where only they come by. Where `nfq.early` stands at the LAN, segments
without data come with a mark and are asked nothing more in mangle, but a SYN whether it goes to a listed address.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from nfq.admission import ADMIT as ADMIT_CHAIN
from nfq.admission import NFT_SETS, NOBODY, REFUSE, Admission, iptables_admit, iptables_refuse, nft_chain
from nfq.mark import Mark
from policy.config import Config

INSPECTED: Final = 64
"""Packets of the original direction within which a flow may come up. The hook decides within 12 packets with data; this
only keeps a flow whose mark somebody else overwrites from coming up for ever. With `closed` there is no such limit."""
SMALLEST: Final = 120
"""Octets of an IP packet that can be the first half of a hello; the last part of a write carries PSH and any length."""
LEASE_S: Final = 5
"""The agent renews the lease every second and is back within two when it dies."""
LEASE_PORT: Final = 9
"""A datagram of this machine's to its own discard port (RFC 863) renews the lease of the iptables back-end. Writing to
/proc/net/xt_recent would too, but that file belongs to the first user namespace's root."""
LEASE4: Final = "gatehouse4"
LEASE6: Final = "gatehouse6"


SHARED_PORTS: Final = "1024-2047"
"""Outside ports of clients that have no block of their own."""
SET4: Final = "gatehouse4"
SET6: Final = "gatehouse6"


class NatBlock(NamedTuple):
    """One client's outside ports (RFC 7422)."""

    client: str
    first: int
    last: int


class Plan(NamedTuple):
    """The one description."""

    lan: tuple[str, ...]
    queue_first: int
    queues: int
    mask: int
    dns_port: int
    """0: no redirect."""
    closed: bool
    devices: tuple[str, ...] = ()
    """Interfaces of a flowtable of ours; empty: none. nft only."""
    sets: bool = False
    """Sets of listed addresses are there: a SYN to one of them comes up, to be refused before it is answered."""
    nat: tuple[NatBlock, ...] = ()
    """Outside ports, client by client."""
    wan: str = ""
    """Where they hold; empty: on every interface that is not a LAN's."""
    admission: Admission | None = None
    """None: whoever is on the LAN may pass."""
    early: bool = False
    """Packets may come marked already, with a verdict or as bare segments: `nfq.early`."""

    def mark(self, mark: Mark) -> str:
        """`value/mask`, as both back-ends write it."""
        return f"{int(mark) * (self.mask & -self.mask):#x}/{self.mask:#x}"

    @property
    def verdicts(self) -> int:
        """The bits in which a verdict differs from no verdict; Mark.BARE is outside of them."""
        return (self.mask & -self.mask) * (int(Mark.BARE) - 1)

    @property
    def stopped(self) -> str:
        """The same for Mark.BLOCK and Mark.PAGE together, which differ in their lowest bit alone."""
        lowest = self.mask & -self.mask
        return f"{int(Mark.BLOCK) * lowest:#x}/{self.mask ^ lowest:#x}"


def plan_of(config: Config, nat: tuple[NatBlock, ...] = ()) -> Plan:
    """What a configuration asks for."""
    return Plan(
        lan=config.main.lan,
        queue_first=config.nfq.queue_first,
        queues=config.nfq.workers if config.nfq.enabled else 0,
        mask=config.nfq.mark_mask,
        dns_port=config.dns.port if config.dns.enabled else 0,
        closed=config.main.on_failure == "closed",
        devices=config.nfq.offload_device,
        nat=nat,
        early=config.nfq.early,
    )


ORIGINAL: Final = "--connbytes-dir original --connbytes-mode packets"
CHAINS: Final = (
    ("nat", "GH-DNS"),
    ("nat", "GH-NAT"),
    ("mangle", "GH-QUEUE"),
    ("mangle", "GH-FIRST"),
    ("mangle", "GH-BARE"),
    ("mangle", "GH-ASK"),
    ("mangle", ADMIT_CHAIN),
    ("mangle", REFUSE),
    ("mangle", "GH-LEASE"),
    ("filter", "GH-VERDICT"),
    ("filter", "GH-LAN"),
    ("filter", "GH-STOP"),
    ("filter", "GH-PAGE"),
    ("filter", "GH-BLOCKED"),
    ("raw", "GH-INJECTED"),
)
"""iptables: (table, our chain)."""
JUMPS: Final = (
    ("nat", "PREROUTING", "GH-DNS"),
    ("nat", "POSTROUTING", "GH-NAT"),
    ("mangle", "FORWARD", "GH-QUEUE"),
    ("mangle", "OUTPUT", "GH-LEASE"),
    ("filter", "FORWARD", "GH-VERDICT"),
    ("raw", "OUTPUT", "GH-INJECTED"),
)
"""iptables: (table, built-in chain, our chain); each jump stands first in its chain. GH-NAT: IPv4 only."""
ONLY4: Final[frozenset[str]] = frozenset({"GH-NAT"})


def iptables(plan: Plan, family: int) -> str:
    """Input for `iptables-restore --noflush` (family 4) or `ip6tables-restore --noflush` (6): fills our chains."""
    listed = SET4 if family == 4 else SET6
    page = plan.mark(Mark.PAGE)
    mask = f"{plan.mask:#x}"
    queue = f"-j NFQUEUE --queue-balance {plan.queue_first}:{plan.queue_first + plan.queues - 1}"
    if plan.queues == 1:
        queue = f"-j NFQUEUE --queue-num {plan.queue_first}"
    if not plan.closed:
        queue += " --queue-bypass"
    lease = ""
    name, zero = (LEASE4, "0.0.0.0") if family == 4 else (LEASE6, "::")
    recent = f"-m recent --name {name} --rsource --mask {zero}"
    if not plan.closed:
        lease = f"{recent} --rcheck --seconds {LEASE_S} "
    unreachable = "icmp-port-unreachable" if family == 4 else "icmp6-port-unreachable"
    save = f"-j CONNMARK --save-mark --nfmask {mask} --ctmask {mask}"
    lines = ["*nat", ":GH-DNS - [0:0]"]
    if plan.dns_port:
        for lan in plan.lan:
            for protocol in ("udp", "tcp"):
                lines.append(
                    f"-A GH-DNS -i {lan} -p {protocol} --dport 53 {lease}-j REDIRECT --to-ports {plan.dns_port}"
                )
    lines += ["COMMIT", "*mangle", *(f":GH-{name} - [0:0]" for name in ("QUEUE", "FIRST", "BARE", "ASK"))]
    lines += _iptables_admission(plan, lease)
    lines += [f"-A GH-QUEUE -m mark --mark {plan.mark(Mark.BARE)} -g GH-BARE"] if plan.early and plan.queues else []
    lines += (
        [] if not plan.queues else [f"-A GH-QUEUE -i {lan} -m connmark --mark 0/{mask} -j GH-FIRST" for lan in plan.lan]
    )
    lines.append(":GH-LEASE - [0:0]")
    if not plan.closed:
        lines.append(f"-A GH-LEASE -o lo -p udp --dport {LEASE_PORT} {recent} --set -j DROP")
    lines += [
        *(
            [f"-A {chain} -p tcp --syn -m set --match-set {listed} dst -g GH-ASK" for chain in ("GH-FIRST", "GH-BARE")]
            if plan.sets
            else []
        ),
        "-A GH-FIRST -p udp -g GH-ASK",
        "-A GH-FIRST -p tcp --tcp-flags PSH PSH -g GH-ASK",
        f"-A GH-FIRST -p tcp -m length --length {SMALLEST}:65535 -g GH-ASK",
        *([] if plan.closed else [f"-A GH-ASK -m connbytes --connbytes {INSPECTED + 1}: {ORIGINAL} -j RETURN"]),
        *([f"-A GH-ASK -m mark --mark {plan.mark(Mark.ALLOW)} -j RETURN"] if plan.early else []),
        "-A GH-ASK -m conntrack --ctdir REPLY -j RETURN",
        f"-A GH-ASK {queue}",
        "COMMIT",
        "*filter",
        ":GH-VERDICT - [0:0]",
        ":GH-LAN - [0:0]",
        ":GH-STOP - [0:0]",
        ":GH-BLOCKED - [0:0]",
        ":GH-PAGE - [0:0]",
        *([f"-A GH-VERDICT -m mark --mark {plan.mark(Mark.REFUSED)} -j GH-BLOCKED"] if plan.admission else []),
        *(f"-A GH-VERDICT -i {lan} -j GH-LAN" for lan in plan.lan),
        f"-A GH-VERDICT -m connmark --mark {plan.stopped} -j GH-STOP",
        f"-A GH-LAN -m mark ! --mark 0/{plan.verdicts:#x} -m connmark --mark 0/{mask} {save}",
        "-A GH-LAN -p tcp --dport 853 -j REJECT --reject-with tcp-reset",
        f"-A GH-LAN -p udp --dport 853 -j REJECT --reject-with {unreachable}",
        f"-A GH-STOP -m connmark --mark {page} -j GH-PAGE",
        "-A GH-STOP -j GH-BLOCKED",
    ]
    lines += [
        "-A GH-BLOCKED -p tcp -j REJECT --reject-with tcp-reset",
        f"-A GH-BLOCKED -j REJECT --reject-with {unreachable}",
        # The request itself, and bare acknowledgements of the page: the server's reset in answer would destroy it.
        f"-A GH-PAGE -m mark --mark {page} -j DROP",
        "-A GH-PAGE -p tcp --tcp-flags FIN,SYN,PSH NONE -j DROP",
        "-A GH-PAGE -j GH-BLOCKED",
        "COMMIT",
        "*raw",
        ":GH-INJECTED - [0:0]",
        f"-A GH-INJECTED -m mark --mark {plan.mark(Mark.INJECTED)} -j NOTRACK",
        "COMMIT",
    ]
    lines += _iptables_nat(plan, family)
    # Last, for it names chains that are made above. Who is admitted comes by `Firewall.admit`, right afterwards.
    admit = iptables_admit(plan.admission, NOBODY, family) if plan.admission else ""
    return "\n".join(lines) + "\n" + admit


def _iptables_admission(plan: Plan, lease: str) -> list[str]:
    if plan.admission is None:
        return []
    refused = plan.mark(Mark.REFUSED)
    return [
        f":{ADMIT_CHAIN} - [0:0]",
        f":{REFUSE} - [0:0]",
        *(f"-A GH-QUEUE -i {lan} {lease}-j {ADMIT_CHAIN}" for lan in plan.lan),
        f"-A GH-QUEUE -m mark --mark {refused} -j RETURN",
        *iptables_refuse(plan.admission, refused, plan.closed),
    ]


def _iptables_nat(plan: Plan, family: int) -> list[str]:
    """Each client leaves by ports of its own; whoever has none, as before."""
    if family == 6:
        return []
    lines = ["*nat", ":GH-NAT - [0:0]"]
    lines += [f"-A GH-NAT -o {lan} -j RETURN" for lan in plan.lan]
    out = f"-o {plan.wan} " if plan.wan else ""
    for block in plan.nat:
        for protocol in ("tcp", "udp"):
            lines.append(
                f"-A GH-NAT {out}-s {block.client}/32 -p {protocol} -j MASQUERADE --to-ports {block.first}-{block.last}"
            )
    if plan.nat:  # whoever has no block must not be taken for somebody who has
        for protocol in ("tcp", "udp"):
            shared = f"-m addrtype ! --src-type LOCAL -j MASQUERADE --to-ports {SHARED_PORTS}"
            lines.append(f"-A GH-NAT {out}-p {protocol} {shared}")
    return [*lines, "COMMIT"]


def _nft_nat(plan: Plan, lan: str) -> list[str]:
    if not plan.nat:
        return []
    out = f'oifname "{plan.wan}"' if plan.wan else f"oifname != {lan}"
    blocks = ", ".join(f"{block.client} : {block.first}-{block.last}" for block in plan.nat)
    # One look-up in a map however many clients there are; just before fw4's own masquerading.
    return [
        " chain nat {",
        "  type nat hook postrouting priority srcnat - 1; policy accept;",
        *(
            f"  {out} meta l4proto {protocol} masquerade to : ip saddr map {{ {blocks} }}"
            for protocol in ("tcp", "udp")
        ),
        f"  {out} meta l4proto {{ tcp, udp }} fib saddr type != local masquerade to :{SHARED_PORTS}",
        " }",
    ]


def _nft_offload(plan: Plan, lan: str, allow: int) -> list[str]:
    """Our own flowtable takes a flow only after its verdict: fw4's rule comes at the handshake, before any name."""
    if not plan.devices:
        return []
    devices = ", ".join(f'"{name}"' for name in plan.devices)
    return [
        f" flowtable flows {{ hook ingress priority filter; devices = {{ {devices} }}; }}",
        " chain fast {",
        "  type filter hook forward priority filter - 1; policy accept;",
        f"  ct mark & {plan.mask:#x} == {allow:#x} meta l4proto {{ tcp, udp }} flow add @flows",
        " }",
    ]


def nft(plan: Plan) -> str:
    """Input for `nft -f`: our own table, replaced as a whole in one transaction. fw4 flushes only `table inet fw4`."""
    lowest = plan.mask & -plan.mask
    allow, block, page, injected = (int(mark) * lowest for mark in (Mark.ALLOW, Mark.BLOCK, Mark.PAGE, Mark.INJECTED))
    keep = 0xFFFFFFFF ^ plan.mask
    lan = "{ " + ", ".join(f'"{name}"' for name in plan.lan) + " }"
    last = plan.queue_first + plan.queues - 1
    queues = str(plan.queue_first) if plan.queues == 1 else f"{plan.queue_first}-{last}"
    queue = f"counter queue {'' if plan.closed else 'flags bypass '}to {queues}"
    lines = ["add table inet gatehouse", "delete table inet gatehouse", "table inet gatehouse {"]
    lines += [
        " set lease { type inet_service; flags timeout; }",
        # Addresses that a list or a rule of somebody's names: a SYN to one comes up. Exceptions for a time are elements
        # with a timeout.
        " set blocked4 { type ipv4_addr; flags interval, timeout; auto-merge; }",
        " set blocked6 { type ipv6_addr; flags interval, timeout; auto-merge; }",
    ]
    refused, bare = int(Mark.REFUSED) * lowest, int(Mark.BARE) * lowest
    if plan.admission is not None:
        lines += [*NFT_SETS, *nft_chain(plan.admission, lan, refused, plan.mask, plan.closed)]
    lines += _nft_offload(plan, lan, allow)
    lines += _nft_nat(plan, lan)
    lines.append(" chain dns {")
    lines.append("  type nat hook prerouting priority dstnat - 1; policy accept;")
    if plan.dns_port:
        for protocol in ("udp", "tcp"):
            lease = "" if plan.closed else f" {protocol} dport @lease"
            lines.append(f"  iifname {lan} {protocol} dport 53{lease} redirect to :{plan.dns_port}")
    lines += [" }", " chain first {", "  type filter hook forward priority mangle; policy accept;"]
    if plan.queues:
        lines += [
            f"  iifname != {lan} return",
            *([f"  meta mark & {plan.mask:#x} == {bare:#x} goto listed"] if plan.early else []),
            f"  ct mark & {plan.mask:#x} != 0 return",
            *([f"  meta mark & {plan.mask:#x} == {refused:#x} return"] if plan.admission else []),
            "  jump listed",
            "  meta l4proto udp goto ask",
            "  tcp flags & psh == psh goto ask",
            f"  meta l4proto tcp meta length >= {SMALLEST} goto ask",
        ]
    lines += [
        " }",
        " chain listed {",
        "  tcp flags & (syn | ack) == syn ip daddr @blocked4 goto ask",
        "  tcp flags & (syn | ack) == syn ip6 daddr @blocked6 goto ask",
        " }",
        " chain ask {",
    ]
    if plan.queues:
        lines += [
            *([f"  meta mark & {plan.mask:#x} == {allow:#x} return"] if plan.early else []),
            "  ct direction reply return",
            *([] if plan.closed else [f"  ct original packets > {INSPECTED} return"]),
            f"  {queue}",
        ]
    lines += [" }", " chain verdict {", "  type filter hook forward priority mangle + 1; policy accept;"]
    if plan.admission is not None:
        lines.append(f"  meta mark & {plan.mask:#x} == {refused:#x} goto blocked")
    lines += [
        f"  iifname {lan} jump lan",
        f"  ct mark & {plan.mask ^ lowest:#x} == {block:#x} goto stop",  # Mark.PAGE too: `Plan.stopped`
        " }",
        " chain lan {",
        f"  meta mark & {plan.verdicts:#x} != 0 ct mark & {plan.mask:#x} == 0 jump save",
        "  tcp dport 853 reject with tcp reset",
        "  udp dport 853 reject with icmpx type port-unreachable",
        " }",
        " chain save {",
        # One line for each value: an OR of two registers needs a very new kernel.
        *(
            f"  meta mark & {plan.mask:#x} == {mark:#x} ct mark set ct mark & {keep:#x} | {mark:#x}"
            for mark in (allow, block, page)
        ),
        " }",
        " chain stop {",
        f"  ct mark & {plan.mask:#x} == {page:#x} goto page",
        "  goto blocked",
        " }",
        " chain blocked {",
        "  meta l4proto tcp reject with tcp reset",
        "  reject with icmpx type port-unreachable",
        " }",
        " chain page {",
        f"  meta mark & {plan.mask:#x} == {page:#x} drop",
        "  tcp flags & (fin | syn | psh) == 0x0 drop",
        "  goto blocked",
        " }",
        " chain injected {",
        "  type filter hook output priority raw; policy accept;",
        f"  meta mark & {plan.mask:#x} == {injected:#x} notrack",
        " }",
        "}",
    ]
    return "\n".join(lines) + "\n"
