"""A record as a person or a program reads it: one flat dictionary of plain values. Pure."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Callable
from enum import IntEnum
from typing import Final

from policy.event import Agreement, Blind, Dns, Event, Flow, Gap, Maintenance, Seen, Session
from policy.verdict import Reason, Verdict

_TYPES: Final = {
    1: "A",
    2: "NS",
    5: "CNAME",
    6: "SOA",
    12: "PTR",
    15: "MX",
    16: "TXT",
    28: "AAAA",
    33: "SRV",
    64: "SVCB",
    65: "HTTPS",
    255: "ANY",
}
_RCODES: Final = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED", 16: "BADVERS"}
_PROTOCOLS: Final = {6: "tcp", 17: "udp"}


def row(
    event: Event,
    identity: str,
    wall_ms: int,
    clock: str,
    wall_of: Callable[[int], int],
    times: int = 1,
    resolution_ms: int = 1,
    not_after_ms: int = 0,
) -> dict[str, object]:
    """`wall_of` turns any other time in the record into wall milliseconds.

    `times` such events happened within `resolution_ms` from `wall_ms` on. `not_after_ms`: of a boot whose clock was
    never set; it was somewhere between. 0: not known.
    """
    base: dict[str, object] = {
        "id": identity,
        "kind": type(event).__name__.lower(),
        "time": iso(wall_ms),
        "clock": clock,
        "times": times,
        "within_s": resolution_ms / 1000 if resolution_ms > 1 else 0,
    }
    if not_after_ms:
        base["not_after"] = iso(not_after_ms)
    match event:
        case Dns():
            return base | {
                "client": address(event.client),
                "mac": event.mac.hex(":"),
                "session": event.session,
                "name": event.name,
                "type": _TYPES.get(event.qtype, f"TYPE{event.qtype}"),
                "rcode": _RCODES.get(event.rcode, f"RCODE{event.rcode}"),
                "verdict": _word(Verdict, event.verdict),
                "reason": _word(Reason, event.reason),
                "rule": event.rule,
                "group": event.group,
                "answers": [address(a) for a in event.answers],
                "cached": event.cached,
                "latency_ms": event.latency_ms,
            }
        case Flow():
            return base | {
                "client": address(event.client),
                "mac": event.mac.hex(":"),
                "session": event.session,
                "name": event.name,
                "dst": address(event.dst),
                "dport": event.dport,
                "sport": event.sport,
                "protocol": _PROTOCOLS.get(event.protocol, str(event.protocol)),
                "seen": _word(Seen, event.seen),
                "blind": _word(Blind, event.blind),
                "path": event.path,
                "method": event.method,
                "verdict": _word(Verdict, event.verdict),
                "reason": _word(Reason, event.reason),
                "rule": event.rule,
                "group": event.group,
                "agreement": _word(Agreement, event.agreement),
            }
        case Gap():
            return base | {
                "source": event.source,
                "lost": event.lost,
                "from": iso(wall_of(event.from_ms)),
                "to": iso(wall_of(event.to_ms)),
                "why": event.why,
            }
        case Maintenance():
            fields = event._asdict()
            fields.pop("at_ms")
            return base | fields
        case Session():
            return base | {
                "session": event.session,
                "account": event.account,
                "room": event.room,
                "mac": event.mac.hex(":"),
                "addresses": [address(a) for a in event.addresses],
                "login": iso(wall_of(event.login_ms)),
                "logout": iso(wall_of(event.logout_ms)) if event.logout_ms else "",
                "cause": event.cause,
                "source": event.source,
            }
        case _:
            rest = {k: _plain(v) for k, v in event._asdict().items() if k != "at_ms"}
            return base | rest


def _word(kind: type[IntEnum], number: int) -> str:
    """The word for a number; the number itself where a later release has more words than this one."""
    try:
        return kind(number).name.lower()
    except ValueError:
        return str(number)


def address(octets: bytes) -> str:
    return str(ipaddress.ip_address(octets)) if len(octets) in (4, 16) else ""


def iso(wall_ms: int) -> str:
    return datetime.datetime.fromtimestamp(wall_ms / 1000, datetime.UTC).isoformat(timespec="milliseconds")


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return address(value) if len(value) in (4, 16) else value.hex()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
