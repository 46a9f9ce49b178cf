"""The firewall rules, from one description, for two back-ends. Text only; `nfq.firewall` applies it.

What the rules do, in the order a packet from the LAN meets them:
 1. nat prerouting: questions to anybody's port 53 go to the DNS hook, while its lease lives (always, if closed).
 2. mangle forward: where the legal profile asks for identity, whoever is not admitted is marked (`nfq.admission`);
    an undecided flow's first packets that carry data go to our queues, and so does a SYN to a listed address; a flow to
    port 853 is blocked from its first packet on, which goes to our queues for the record; of a flow that is blocked
    each packet is marked.
 3. filter forward, first of all, for packets with such a mark alone: whoever is not admitted is rejected, whatever the
    flow's; the verdict that came back as packet mark is written into the conntrack mark (the first one wins); blocked
    flows are rejected.
Every packet that is forwarded pays for the rules it is shown, and what it costs to ask depends: for a mark next to
nothing, for an interface's name five times that, for a conntrack mark (iptables) twenty times. So a packet from the WAN
is asked two things, whence it comes and whether it has a mark; and where `nfq.early` stands at the LAN, so is a segment
without data, which comes with a mark. Of a blocked flow what the client sends is rejected: nothing reaches the server,
whose own end was reset, and what that had sent before can be let through.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from nfq.admission import ADMIT as ADMIT_CHAIN
from nfq.admission import NFT_SETS, NOBODY, REFUSE, Admission, iptables_admit, iptables_refuse, nft_chain
from nfq.mark import Mark
from policy.bypass import ENCRYPTED_DNS_PORT
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
        """The bits of which one is set in each mark that filter has to act upon, and none in Mark.BARE or Mark.SYN."""
        return (self.mask & -self.mask) * (int(Mark.ALLOW) | int(Mark.BLOCK))

    @property
    def asks_marked(self) -> bool:
        """Has mangle questions for packets that come with a mark, too?"""
        return self.admission is not None or (self.early and self.sets)

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


def jumps(plan: Plan, family: int) -> list[tuple[str, str, str]]:
    """iptables: (table, built-in chain, rule), as `iptables-save` writes it. They stand first, in this order."""
    if plan.admission is not None:
        marked = ""
    elif plan.asks_marked:
        marked = f"-m mark ! --mark {plan.mark(Mark.BARE)} "
    else:
        marked = f"-m mark --mark 0x0/{plan.mask:#x} "
    found = [
        ("nat", "PREROUTING", "-j GH-DNS"),
        ("nat", "POSTROUTING", "-j GH-NAT"),
        *(("mangle", "FORWARD", f"-i {lan} {marked}-j GH-QUEUE") for lan in plan.lan),
        ("mangle", "OUTPUT", "-j GH-LEASE"),
        ("filter", "FORWARD", f"-m mark ! --mark 0x0/{plan.verdicts:#x} -j GH-VERDICT"),
        ("raw", "OUTPUT", "-j GH-INJECTED"),
    ]
    return [jump for jump in found if family == 4 or jump[2] != "-j GH-NAT"]  # no NAT for IPv6


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
    lines += ["COMMIT", "*mangle", *(f":GH-{name} - [0:0]" for name in ("QUEUE", "FIRST", "SYN", "DOT", "ASK"))]
    lines += _iptables_admission(plan, lease)
    if plan.asks_marked:
        lines += [
            *([f"-A GH-QUEUE -m mark --mark {plan.mark(Mark.SYN)} -g GH-SYN"] if plan.early else []),
            f"-A GH-QUEUE -m mark ! --mark 0/{mask} -j RETURN",
        ]
    lines += [
        f"-A GH-QUEUE -m connmark --mark 0/{mask} -g GH-FIRST",
        f"-A GH-QUEUE -m connmark --mark {plan.stopped} -j MARK --set-xmark {plan.mark(Mark.STOPPED)}",
    ]
    lines.append(":GH-LEASE - [0:0]")
    if not plan.closed:
        lines.append(f"-A GH-LEASE -o lo -p udp --dport {LEASE_PORT} {recent} --set -j DROP")
    lines += [f"-A GH-FIRST -p {protocol} --dport {ENCRYPTED_DNS_PORT} -g GH-DOT" for protocol in ("tcp", "udp")]
    lines += [
        f"-A GH-DOT -j CONNMARK --set-xmark {plan.mark(Mark.BLOCK)}",
        f"-A GH-DOT -j MARK --set-xmark {plan.mark(Mark.STOPPED)}",
    ]
    if plan.queues:
        lines += ["-A GH-DOT -g GH-ASK"]
        if plan.sets:
            to_listed = f"-m set --match-set {listed} dst -g GH-ASK"
            lines += [f"-A GH-FIRST -p tcp --syn {to_listed}", f"-A GH-SYN {to_listed}"]
        lines += [
            "-A GH-FIRST -p udp -g GH-ASK",
            "-A GH-FIRST -p tcp --tcp-flags PSH PSH -g GH-ASK",
            f"-A GH-FIRST -p tcp -m length --length {SMALLEST}:65535 -g GH-ASK",
            *([] if plan.closed else [f"-A GH-ASK -m connbytes --connbytes {INSPECTED + 1}: {ORIGINAL} -j RETURN"]),
            "-A GH-ASK -m conntrack --ctdir REPLY -j RETURN",
            f"-A GH-ASK {queue}",
        ]
    lines += [
        "COMMIT",
        "*filter",
        ":GH-VERDICT - [0:0]",
        ":GH-STOP - [0:0]",
        ":GH-BLOCKED - [0:0]",
        ":GH-PAGE - [0:0]",
        *([f"-A GH-VERDICT -m mark --mark {plan.mark(Mark.REFUSED)} -g GH-BLOCKED"] if plan.admission else []),
        f"-A GH-VERDICT -m connmark --mark 0/{mask} {save}",
        f"-A GH-VERDICT -m connmark --mark {plan.stopped} -g GH-STOP",
        # The server's end was reset once, and if that was lost, the client's own reset does it.
        "-A GH-STOP -p tcp --tcp-flags RST RST -j RETURN",
        f"-A GH-STOP -m connmark --mark {page} -g GH-PAGE",
        "-A GH-STOP -g GH-BLOCKED",
        "-A GH-BLOCKED -p tcp -j REJECT --reject-with tcp-reset",
        f"-A GH-BLOCKED -j REJECT --reject-with {unreachable}",
        # The request itself, and bare acknowledgements of the page: the server's reset in answer would destroy it.
        f"-A GH-PAGE -m mark --mark {page} -j DROP",
        "-A GH-PAGE -p tcp --tcp-flags FIN,SYN,PSH NONE -j DROP",
        "-A GH-PAGE -g GH-BLOCKED",
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
    refused, stopped, syn = (int(mark) * lowest for mark in (Mark.REFUSED, Mark.STOPPED, Mark.SYN))
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
    lines += [
        " }",
        " chain first {",
        "  type filter hook forward priority mangle; policy accept;",
        f"  iifname != {lan} return",
        *([f"  meta mark & {plan.mask:#x} == {syn:#x} goto listed"] if plan.early else []),
        f"  meta mark & {plan.mask:#x} != 0 return",
        f"  ct mark & {plan.mask:#x} == {allow:#x} return",
        f"  ct mark & {plan.mask:#x} != 0 goto stopped",
        f"  meta l4proto {{ tcp, udp }} th dport {ENCRYPTED_DNS_PORT} goto dot",
    ]
    if plan.queues:
        lines += [
            "  jump listed",
            "  meta l4proto udp goto ask",
            "  tcp flags & psh == psh goto ask",
            f"  meta l4proto tcp meta length >= {SMALLEST} goto ask",
        ]
    lines += [
        " }",
        " chain stopped {",
        f"  meta mark set meta mark & {keep:#x} | {stopped:#x}",
        " }",
        " chain dot {",
        f"  ct mark set ct mark & {keep:#x} | {block:#x}",
        "  jump stopped",
        "  goto ask",
        " }",
        " chain listed {",
        "  tcp flags & (syn | ack) == syn ip daddr @blocked4 goto ask",
        "  tcp flags & (syn | ack) == syn ip6 daddr @blocked6 goto ask",
        " }",
        " chain ask {",
    ]
    if plan.queues:
        lines += [
            "  ct direction reply return",
            *([] if plan.closed else [f"  ct original packets > {INSPECTED} return"]),
            f"  {queue}",
        ]
    lines += [
        " }",
        " chain verdict {",
        "  type filter hook forward priority mangle + 1; policy accept;",
        f"  meta mark & {plan.verdicts:#x} == 0 return",
        *([f"  meta mark & {plan.mask:#x} == {refused:#x} goto blocked"] if plan.admission else []),
        f"  ct mark & {plan.mask:#x} == 0 jump save",
        f"  ct mark & {plan.mask ^ lowest:#x} == {block:#x} goto stop",  # Mark.PAGE too: `Plan.stopped`
        " }",
        " chain save {",
        # One line for each value: an OR of two registers needs a very new kernel.
        *(
            f"  meta mark & {plan.mask:#x} == {mark:#x} ct mark set ct mark & {keep:#x} | {mark:#x}"
            for mark in (allow, block, page)
        ),
        " }",
        " chain stop {",
        "  tcp flags & rst == rst return",
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
