"""Event records: what the hooks and the agent put on record, field by field.

Holds the record types and their durability; their packed form is the ring's business, the frames in which
they travel between our processes are `policy.frame`'s.
Rule: fields are only ever appended, and a tag is never reused, so that an old segment stays readable.

Each record is a `NamedTuple` because a tuple goes through msgpack as it is; the hooks make thousands a second.
Times are CLOCK_BOOTTIME in milliseconds: the wall clock of a router without a battery is a guess until
NTP has answered, and the ring corrects it backwards. Addresses are 4 or 16 octets in network order.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple, TypeAlias

MAX_ANSWERS: Final = 8
"""Answer addresses kept per look-up: enough for name agreement, bounded for a peer that sends 4,000."""
MAX_NAME: Final = 1024
"""Characters of a name in presentation form: 255 octets (RFC 1035 2.3.4), each at most four when escaped."""
MAX_PATH: Final = 512
"""Characters of an HTTP path that are kept; the query string and the fragment never are."""


class Seen(IntEnum):
    """Where a flow's name was seen."""

    NONE = 0
    HTTP = 1
    TLS = 2
    QUIC = 3
    DNS_HINT = 4
    """Nowhere in the flow; our own DNS had answered this address to this client for this name."""


class Blind(IntEnum):
    """Why a flow shows no name. The blind-spot meter counts these."""

    NOT_BLIND = 0
    NO_SNI = 1
    ECH = 2
    """Encrypted Client Hello: the visible name is the front's, not the site's."""
    OPAQUE = 3
    """Neither HTTP, TLS nor QUIC."""
    OVERLOAD = 4
    """A bound was reached: packets, octets, Initials per second."""
    TRUNCATED = 5
    """The flow ended or fell silent before its name was complete."""
    AMBIGUOUS = 6
    """Overlapping segments disagree."""
    NO_CRYPTO = 7
    """QUIC, and no AES on this router."""
    ECH_UNSURE = 8
    """An ECH extension is there, and nothing tells whether it is GREASE: the visible name may be a front's."""
    VPN = 9
    """WireGuard, OpenVPN or IPsec by its first octets."""
    DTLS = 10
    """DTLS or STUN: calls and conferences."""


class Agreement(IntEnum):
    """Does the name in the flow agree with what our DNS answered to this client for this address?"""

    UNKNOWN = 0
    AGREES = 1
    MISMATCH = 2


class Dns(NamedTuple):
    """One DNS query and what it was answered. Class access, or block if the verdict is BLOCK."""

    at_ms: int
    client: bytes
    name: str
    """Lower case, presentation form, no dot at the end; empty for the root."""
    qtype: int
    rcode: int
    verdict: int
    reason: int
    rule: str
    group: str
    answers: tuple[bytes, ...]
    """At most MAX_ANSWERS addresses."""
    cached: bool
    latency_ms: int
    """Milliseconds from query to answer; 0 from the cache."""
    mac: bytes = b""
    """6 octets; empty: not known to the hook, the agent fills it in."""
    session: str = ""
    """Filled in by the agent."""


class Flow(NamedTuple):
    """One flow (connection) and the verdict on it. Class access, or block if the verdict is BLOCK."""

    at_ms: int
    client: bytes
    mac: bytes
    sport: int
    dst: bytes
    dport: int
    protocol: int
    """IANA protocol number: 6 TCP, 17 UDP."""
    name: str
    seen: int
    blind: int
    path: str
    """Clear-text HTTP only; without query string and fragment; empty elsewhere."""
    verdict: int
    reason: int
    rule: str
    group: str
    agreement: int = 0
    method: str = ""
    session: str = ""


class Session(NamedTuple):
    """A user's login, change or logout."""

    at_ms: int
    session: str
    account: str
    phone: bytes
    """Sealed to the supervising recipient, or empty."""
    room: str
    mac: bytes
    addresses: tuple[bytes, ...]
    login_ms: int
    logout_ms: int
    """0: still logged in."""
    cause: str
    """Of the logout: `idle`, `timeout`, `user`, `quota`, `admin`, `shutdown`, `lost`; empty while logged in."""
    source: str
    phone_index: bytes = b""
    """Keyed blind index of the phone number, or empty."""


class Maintenance(NamedTuple):
    """Something was done to the system, by somebody or by itself."""

    at_ms: int
    actor: str
    action: str
    """`start`, `stop`, `crash`, `gap`, `config`, `policy`, `clock`, `storage`, `retention`, `export`, ..."""
    object: str
    old: str
    new: str
    result: str
    """`ok`, or what went wrong."""
    detail: str = ""


class Registration(NamedTuple):
    """A user's registration data, sealed."""

    at_ms: int
    account: str
    sealed: bytes
    blind_index: bytes
    valid_from_s: int
    valid_to_s: int
    """0: no end."""


class Nat(NamedTuple):
    """Which outside address and ports a client had (Decree 82, Art. 8(2))."""

    at_ms: int
    client: bytes
    outside: bytes
    port_from: int
    port_to: int
    protocol: int
    until_ms: int
    """0: still in use."""
    session: str = ""


class Health(NamedTuple):
    """Counters at one moment, `name=value`."""

    at_ms: int
    counters: tuple[tuple[str, int], ...]


class Gap(NamedTuple):
    """`lost` events of `source` between two moments are not on record, and why."""

    at_ms: int
    source: str
    lost: int
    """Events; -1: not known."""
    from_ms: int
    to_ms: int
    why: str


class Flood(NamedTuple):
    """One client asked for more than its share of the ring; these are counted, not kept one by one."""

    at_ms: int
    client: bytes
    events: int
    from_ms: int
    to_ms: int
    sample: tuple[str, ...]
    mac: bytes = b""
    session: str = ""


Event: TypeAlias = Dns | Flow | Session | Maintenance | Registration | Nat | Health | Gap | Flood

TAGS: Final[dict[int, type[Event]]] = {
    1: Dns,
    2: Flow,
    3: Session,
    4: Maintenance,
    5: Registration,
    6: Nat,
    7: Health,
    8: Gap,
    9: Flood,
}
TAG_OF: Final[dict[type[Event], int]] = {kind: tag for tag, kind in TAGS.items()}

_ALWAYS_CRITICAL: Final = frozenset({Session, Maintenance, Registration, Gap})
_BLOCK: Final = 1  # Verdict.BLOCK, as a plain int: this is asked once per event


def is_critical(event: Event) -> bool:
    """Must this record be on flash before it is acknowledged? Sessions, blocks, maintenance, registrations, gaps."""
    kind = type(event)
    if kind is Dns or kind is Flow:
        return event.verdict == _BLOCK  # type: ignore[union-attr]  # `kind` has narrowed it, mypy cannot see
    return kind in _ALWAYS_CRITICAL
