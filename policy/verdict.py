"""The words of a decision: what was decided, why, by which rule, and who can decide.

Holds enums, the `Decision`, and the `Decider` that both hooks ask. Holds no rule and no list.
Rule: the numbers are written into records that live for years, so a number is never reused.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, Protocol


class Verdict(IntEnum):
    """What happened to the query or the flow."""

    ALLOW = 0
    BLOCK = 1
    REWRITE = 2
    """Answered with another name's records (safe search)."""
    REFUSE = 3
    """Not a matter of policy: the peer broke a rule of the protocol or its rate limit."""


class Reason(IntEnum):
    """Why. In the order in which the engine asks, where it is the engine that answers."""

    DEFAULT = 0
    """No rule had anything to say."""
    NEVER_BLOCK = 1
    """Our own names, captive-portal probes, NTP, update hosts."""
    OVERRIDE = 2
    """A timed exception opened (or closed) by a person."""
    RULE = 3
    """An explicit rule of the group."""
    IMPORTANT = 4
    """A list entry marked `important`."""
    ALLOW_LIST = 5
    CATEGORY = 6
    """A blocked category, by a list."""
    LOG_ONLY = 7
    WINDOW = 8
    """A schedule closes everything at this hour."""
    SAFE_SEARCH = 9
    BYPASS = 10
    """A signal that would take the client around the filter: canary, DDR, DoH host, port 853."""
    CNAME = 11
    """The answer's CNAME target is blocked."""
    ADDRESS = 12
    """The address is on a blocked list."""
    REBIND = 13
    """An outside name answered with an inside address."""
    SPECIAL_USE = 14
    """RFC 6761 and RFC 8375: the name never leaves the venue."""
    RATE = 15
    """The client asked more often than allowed."""
    FAIL_OPEN = 16
    """Could not be decided (overload, out of bounds); the policy says: let it pass."""
    FAIL_CLOSED = 17
    """Could not be decided; the policy says: stop it."""
    PROTOCOL = 18
    """Malformed or not spoken here (class, opcode, zone transfer)."""
    AMBIGUOUS = 19
    """Overlapping segments or records disagree about the name: an evasion."""
    URL = 20
    """A URL rule, clear-text HTTP only."""
    IDENTITY = 21
    """Nobody has logged in on the device, and the legal profile lets nobody pass without."""


class Decision(NamedTuple):
    """One answer of the engine. Shared and compared by identity where it can be: treat as constant."""

    verdict: Verdict
    reason: Reason
    rule: str = ""
    """Stable code of what decided, `list:NAME`, `rule:SECTION`, `override:ID`; empty for the default."""
    target: str = ""
    """REWRITE only: the name whose records to answer with."""


ALLOWED = Decision(Verdict.ALLOW, Reason.DEFAULT)


class Treatment(NamedTuple):
    """How one group's blocked and doubtful traffic is handled."""

    group: str
    on_block: str = "nxdomain"
    """`nxdomain`, `nodata`, `null` (0.0.0.0 and ::) or `page` (the block page's address)."""
    fail: str = "open"
    """`open` or `closed`: what to do with what cannot be decided."""
    strip_ech: bool = False
    """Take `ech` out of HTTPS and SVCB answers (RFC 9460), so that the server name stays visible."""


FOREVER = 1 << 62
"""A `valid_until` that never comes, in seconds."""


class Decider(Protocol):
    """What the hooks ask. Implemented by `policy.engine.Engine`; a test may bring its own.

    Names are `bytes`: lower-case ASCII presentation form (RFC 1035 5.1 escapes), labels joined by dots, no
    dot at the end, `b""` for the root. Addresses are 4 or 16 octets in network order. `now_s` is wall time in
    seconds since 1970, or None while the clock is not known to be right.
    """

    generation: int
    """Goes up with each image or rule change. A cache keyed by it cannot serve a stale verdict."""

    def group_of(self, client: bytes, mac: bytes = b"") -> int:
        """Index of the client's group; `mac` is 6 octets, or empty where it is not known."""
        ...

    def decide(self, name: bytes, group: int, now_s: float | None) -> Decision:
        """Decide a domain name, parents included."""
        ...

    def decide_url(self, host: bytes, path: bytes, group: int, now_s: float | None) -> Decision:
        """Decide a clear-text HTTP request: the host first, then URL rules. `path` without query."""
        ...

    def decide_address(self, address: bytes, group: int, now_s: float | None) -> Decision:
        """Decide an address by IP and CIDR lists."""
        ...

    def valid_until(self, group: int, now_s: float | None) -> float:
        """Wall seconds up to which decisions for this group hold (schedule edge, override's end)."""
        ...

    def treatment(self, group: int) -> Treatment:
        """How this group's blocked traffic is answered."""
        ...
