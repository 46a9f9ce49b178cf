"""What an upstream's answer shows, and whether a filter may pass it on: CNAME cloaking, blocked addresses, rebinding.

Holds no cache and no message building. Names are decided by the `Decider`, like the question itself was.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from dns.wire import Record, Type, present, read_name, svcb_params, svcb_target
from policy.errors import WireError
from policy.verdict import ALLOWED, Decider, Decision, Reason, Verdict

MAX_TARGETS: Final = 16
"""CNAME and SVCB targets followed per answer. unbound stops at 11 links of a chain."""
MAX_CHECKED: Final = 256
"""Addresses decided per answer: 1,232 octets carry 76 A records; more of them serves no browser."""

EXPLICIT: Final = frozenset({Reason.NEVER_BLOCK, Reason.OVERRIDE, Reason.RULE, Reason.ALLOW_LIST})
"""Somebody allowed this very name: then its aliases and addresses are allowed with it."""

_IPV4_HINT: Final = 4
_ECH: Final = 5
_IPV6_HINT: Final = 6
# Plain ints: an enum's attribute costs a tenth of a microsecond on Python 3.11, and this runs for every record.
_A, _AAAA, _CNAME, _DNAME = int(Type.A), int(Type.AAAA), int(Type.CNAME), int(Type.DNAME)
_BLOCK: Final = Verdict.BLOCK
_NAMED: Final = frozenset(map(int, (Type.CNAME, Type.DNAME, Type.SVCB, Type.HTTPS)))


class Sight(NamedTuple):
    """What matters of one answer."""

    targets: tuple[bytes, ...]
    """Names that it leads to, presentation form."""
    addresses: tuple[bytes, ...]
    """Of A and AAAA records in the answer section."""
    hints: tuple[bytes, ...]
    """Addresses inside of SVCB and HTTPS records."""
    has_ech: bool


NOTHING: Final = Sight((), (), (), False)


def look(data: bytes, records: Iterable[Record]) -> Sight:
    """Read what matters.

    Raises: WireError on a malformed record of a type that we read, or on more targets than anyone needs.
    """
    targets: list[bytes] = []
    addresses: list[bytes] = []
    hints: list[bytes] = []
    has_ech = False
    for record in records:
        rtype = record.rtype
        if rtype in (_A, _AAAA):
            start, length = record.data, record.length
            if length != (4 if rtype == _A else 16):
                raise WireError(f"address at {record.at}: {length} octets")
            addresses.append(data[start : start + length])
        elif rtype not in _NAMED:
            continue
        elif rtype in (_CNAME, _DNAME):
            name, end = read_name(data, record.data)
            if end != record.end:
                raise WireError(f"alias at {record.at}: {record.length} octets, the name ends at {end}")
            targets.append(present(name))
        else:
            name, at = svcb_target(data, record)
            if name != b"\0":
                targets.append(present(name))
            for key, value in svcb_params(data, at, record.end):
                has_ech = has_ech or key == _ECH
                if key in (_IPV4_HINT, _IPV6_HINT):
                    size = 4 if key == _IPV4_HINT else 16
                    if not value or len(value) % size:
                        raise WireError(f"svcb at {record.at}: address hint of {len(value)} octets")
                    hints += [value[at : at + size] for at in range(0, len(value), size)]
        if len(targets) > MAX_TARGETS:
            raise WireError(f"answer: more than {MAX_TARGETS} aliases")
    if not addresses and not targets and not hints and not has_ech:
        return NOTHING
    return Sight(tuple(targets), tuple(addresses), tuple(hints), has_ech)


def objection(sight: Sight, decider: Decider, group: int, now_s: float | None) -> Decision | None:
    """The first thing in an answer that this group may not have; None: pass it on."""
    for target in sight.targets:
        decision = decider.decide(target, group, now_s)
        if decision.verdict is _BLOCK:
            return Decision(Verdict.BLOCK, Reason.CNAME, decision.rule)
        if decision is not ALLOWED and decision.reason in EXPLICIT:
            return None
    for address in (sight.addresses + sight.hints)[:MAX_CHECKED]:
        decision = decider.decide_address(address, group, now_s)
        if decision.verdict is _BLOCK:
            return Decision(Verdict.BLOCK, Reason.ADDRESS, decision.rule)
    return None


def rebinds(sight: Sight) -> bool:
    """Does an answer from outside point inside?"""
    return any(is_inside(address) for address in (*sight.addresses, *sight.hints))


def is_inside(address: bytes) -> bool:
    """Is this an address that no outside name has any business to point to? 4 or 16 octets."""
    if len(address) == 4:
        a, b = address[0], address[1]
        return (
            a in (0, 10, 127)
            or (a == 172 and 16 <= b < 32)
            or (a == 192 and b == 168)
            or (a == 169 and b == 254)
            or (a == 100 and 64 <= b < 128)  # RFC 6598
        )
    if address[:12] in _MAPPED:
        return address == bytes(16) or address == _LOOPBACK or is_inside(address[12:])
    # fc00::/7, fe80::/10, fec0::/10
    return address[0] & 0xFE == 0xFC or (address[0] == 0xFE and address[1] & 0x80 == 0x80)


_LOOPBACK: Final = bytes(15) + b"\1"
_MAPPED: Final = (bytes(10) + b"\xff\xff", bytes(12), b"\0\x64\xff\x9b" + bytes(8))
"""IPv4 inside of IPv6: mapped, compatible, and NAT64's well-known prefix (RFC 6052 2.1)."""
