"""Nobody without a login: the rules that stop a device which is not admitted. Text only; `nfq.firewall` applies it.

Where the legal profile asks for identity, a packet from the LAN passes only if its MAC (or, behind a router of the
venue's own, its address) is admitted, or if it goes to the portal. All others carry Mark.REFUSED from here on and are
rejected by `nfq.rules`, whatever the conntrack mark says: a logout ends what was under way. Their first packets go to
a queue of their own, for the record (`nfq.refusals`); whether anybody serves it changes nothing for the packet.
What goes to the router itself (DHCP, DNS, the login page) is not forwarded, and so not asked.
Rule: with `on_failure=open` it holds only while the agent renews the lease; with `closed` always.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network
from typing import Final, NamedTuple

ADMIT, REFUSE = "GH-ADMIT", "GH-REFUSE"
"""iptables' chains: who passes, and what happens to the others."""


class Admission(NamedTuple):
    """The part of a plan that is known beforehand."""

    queue: int
    """Where refused packets go to be recorded; -1: nowhere."""
    portal: tuple[str, ...] = ()
    """Networks that anybody may reach: a login page outside, its certificate's authority."""


class Admitted(NamedTuple):
    """Who may pass now."""

    macs: frozenset[bytes] = frozenset()
    addresses: frozenset[bytes] = frozenset()
    """Of devices whose MAC is not seen here."""


NOBODY: Final = Admitted()


def iptables_admit(admission: Admission, admitted: Admitted, family: int) -> str:
    """Input for `iptables-restore --noflush`: who passes, in place of who did."""
    text = _numeric4 if family == 4 else _numeric6
    size = 4 if family == 4 else 16
    lines = ["*mangle", f":{ADMIT} - [0:0]"]
    lines += [f"-A {ADMIT} -m mac --mac-source {mac.hex(':')} -j RETURN" for mac in sorted(admitted.macs)]
    lines += [f"-A {ADMIT} -s {text(each)} -j RETURN" for each in sorted(admitted.addresses) if len(each) == size]
    lines += [f"-A {ADMIT} -d {net} -j RETURN" for net in _of(admission.portal, family)]
    return "\n".join([*lines, f"-A {ADMIT} -g {REFUSE}", "COMMIT"]) + "\n"


def iptables_refuse(admission: Admission, refused: str, closed: bool) -> list[str]:
    """The chain of those that do not pass, within the mangle table. `refused`: the mark and its mask."""
    lines = [f"-A {REFUSE} -j MARK --set-xmark {refused}"]
    if admission.queue >= 0:
        queue = f"-j NFQUEUE --queue-num {admission.queue}" + ("" if closed else " --queue-bypass")
        lines += [f"-A {REFUSE} -p tcp --syn {queue}", f"-A {REFUSE} -p udp {queue}"]
    return lines


NFT_SETS: Final = (
    " set admitted { type ether_addr; }",
    " set admitted4 { type ipv4_addr; }",
    " set admitted6 { type ipv6_addr; }",
    " set admission { type ifname; flags timeout; }",
)


def nft_chain(admission: Admission, lan: str, refused: int, mask: int, closed: bool) -> list[str]:
    """The same as a chain of our nft table, in front of the one that queues."""
    portal = [f"  {word} daddr {{ {', '.join(nets)} }} accept" for word, nets in _portal(admission) if nets]
    queue = f"counter queue {'' if closed else 'flags bypass '}to {admission.queue}"
    return [
        " chain admit {",
        "  type filter hook forward priority mangle - 1; policy accept;",
        f"  iifname != {lan} accept",
        *([] if closed else ["  iifname != @admission accept"]),
        "  ether saddr @admitted accept",
        "  ip saddr @admitted4 accept",
        "  ip6 saddr @admitted6 accept",
        *portal,
        f"  meta mark set meta mark & {0xFFFFFFFF ^ mask:#x} | {refused:#x}",
        *([f"  tcp flags & (syn | ack) == syn {queue}", f"  meta l4proto udp {queue}"] if admission.queue >= 0 else []),
        " }",
    ]


def nft_admit(admitted: Admitted) -> str:
    """Input for `nft -f`: the sets' elements, in one transaction."""
    lines = []
    for name, elements in (
        ("admitted", [mac.hex(":") for mac in sorted(admitted.macs)]),
        ("admitted4", [_numeric4(each) for each in sorted(admitted.addresses) if len(each) == 4]),
        ("admitted6", [_numeric6(each) for each in sorted(admitted.addresses) if len(each) == 16]),
    ):
        lines.append(f"flush set inet gatehouse {name}")
        for at in range(0, len(elements), 1000):
            lines.append(f"add element inet gatehouse {name} {{ {', '.join(elements[at : at + 1000])} }}")
    return "\n".join(lines) + "\n"


def _portal(admission: Admission) -> Iterable[tuple[str, list[str]]]:
    return (("ip", _of(admission.portal, 4)), ("ip6", _of(admission.portal, 6)))


def _of(networks: Iterable[str], family: int) -> list[str]:
    return [str(net) for net in map(ip_network, networks) if net.version == family]


def _numeric4(address: bytes) -> str:
    return ".".join(map(str, address))


def _numeric6(address: bytes) -> str:
    return address.hex(":", 2)
