"""The packet hook's core: queued packets in, marks and records out. No sockets, no clock.

A packet is accepted at once, whatever it shows: a server cannot answer half a hello. The mark that goes with it says
what was decided; rules behind the queue write it into the conntrack mark and act on it.
Rule: `receive` never raises for anything a peer sends, and each flow that comes up ends in exactly one record.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Final, NamedTuple

from nfq import http, tls
from nfq.flow import Flows, Key, Stream
from nfq.packet import RST, SYN, TCP, Packet, parse
from policy.errors import PacketError
from policy.event import MAX_NAME, MAX_PATH, Blind, Flow, Seen
from policy.verdict import ALLOWED, Decider, Decision, Reason, Verdict


class Mark(IntEnum):
    """The hook's nibble of the packet and conntrack mark. Shared with `nfq.rules`."""

    UNDECIDED = 0
    ALLOW = 1
    BLOCK = 2


class Now(NamedTuple):
    """All clocks, read once per batch."""

    monotonic_s: float
    boottime_ms: int
    wall_s: float | None


class Sight(NamedTuple):
    """What the first octets of a flow showed."""

    name: bytes = b""
    seen: Seen = Seen.NONE
    blind: Blind = Blind.NOT_BLIND
    method: str = ""
    path: str = ""


class Reset(NamedTuple):
    """A connection to reset at the server's side: the client's next octet as the server expects it."""

    packet: Packet


_NAME: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_.:")


class Hook:
    """All flows of one worker."""

    def __init__(self, decider: Decider, put: Callable[[Flow], None]) -> None:
        self.decider = decider
        self._put = put
        self._flows = Flows()
        self.resets: list[Reset] = []
        """Taken and cleared by the shell."""
        self.counters: Final = {"packets": 0, "flows": 0, "blocked": 0, "bad_packets": 0, "no_name": 0, "repeated": 0}

    def receive(self, data: bytes, mac: bytes, now: Now) -> Mark:
        """Decide one queued packet. `data` from its IP header on; `mac` of the sender, 6 octets or empty."""
        self.counters["packets"] += 1
        try:
            packet = parse(data)
        except PacketError:
            self.counters["bad_packets"] += 1
            return Mark.UNDECIDED
        key = packet.key
        if packet.protocol == TCP:
            if packet.flags & SYN:
                self._flows.forget(key)
                if not packet.payload:
                    return Mark.UNDECIDED
            if packet.flags & RST:
                return Mark.UNDECIDED
        mark = self._flows.find_mark(key)
        if mark is not None:
            self.counters["repeated"] += 1
            return Mark(mark)
        if packet.protocol != TCP:
            sight = Sight(blind=Blind.OPAQUE)
            return self._decide(key, packet, mac, sight, now)
        if not packet.payload:
            return Mark.UNDECIDED
        stream = self._flows.stream(key, packet.seq, now.monotonic_s)
        stream.client_mac = mac or stream.client_mac
        stream.add(packet.seq, packet.payload)
        found = look(stream)
        if found is None:
            if not stream.is_full:
                return Mark.UNDECIDED
            found = Sight(blind=Blind.OVERLOAD)
        return self._decide(key, packet, stream.client_mac, found, now)

    def handle_timer(self, now: Now) -> None:
        """Put flows on record that fell silent before their name was complete."""
        for key, stream in self._flows.expire(now.monotonic_s):
            sight = Sight(blind=Blind.AMBIGUOUS if stream.ambiguous else Blind.TRUNCATED)
            self._record(key, stream.client_mac, sight, ALLOWED, self.decider.group_of(key[0], stream.client_mac), now)

    def reload(self, decider: Decider) -> None:
        """Decide by another policy from now on."""
        self.decider = decider

    def _decide(self, key: Key, packet: Packet, mac: bytes, sight: Sight, now: Now) -> Mark:
        group = self.decider.group_of(packet.src, mac)
        decision = self._ask(packet, sight, group, now)
        mark = Mark.BLOCK if decision.verdict == Verdict.BLOCK else Mark.ALLOW
        self._flows.decide(key, mark)
        self._record(key, mac, sight, decision, group, now)
        if mark == Mark.BLOCK:
            self.counters["blocked"] += 1
            if packet.protocol == TCP:
                self.resets.append(Reset(packet))
        return mark

    def _ask(self, packet: Packet, sight: Sight, group: int, now: Now) -> Decision:
        decider = self.decider
        if sight.blind in (Blind.OVERLOAD, Blind.AMBIGUOUS):
            closed = decider.treatment(group).fail == "closed"
            reason = Reason.AMBIGUOUS if sight.blind == Blind.AMBIGUOUS else None
            if closed:
                return Decision(Verdict.BLOCK, reason or Reason.FAIL_CLOSED)
            return Decision(Verdict.ALLOW, reason or Reason.FAIL_OPEN)
        if sight.seen == Seen.HTTP and sight.name:
            decision = decider.decide_url(sight.name, sight.path.encode(), group, now.wall_s)
        else:  # without a name too: a window may close everything at this hour
            decision = decider.decide(sight.name, group, now.wall_s)
        if decision is ALLOWED or (decision.verdict == Verdict.ALLOW and decision.reason == Reason.DEFAULT):
            by_address = decider.decide_address(packet.dst, group, now.wall_s)
            if by_address.verdict == Verdict.BLOCK:
                return by_address
        return decision

    def _record(self, key: Key, mac: bytes, sight: Sight, decision: Decision, group: int, now: Now) -> None:
        src, dst, sport, dport, protocol = key
        self.counters["flows"] += 1
        if not sight.name:
            self.counters["no_name"] += 1
        name = sight.name.decode("ascii", "backslashreplace")[:MAX_NAME]
        self._put(
            Flow(
                now.boottime_ms,
                src,
                mac,
                sport,
                dst,
                dport,
                protocol,
                name,
                int(sight.seen),
                int(sight.blind),
                sight.path[:MAX_PATH],
                int(decision.verdict),
                int(decision.reason),
                decision.rule,
                self.decider.treatment(group).group,
                0,
                sight.method,
            )
        )


def look(stream: Stream) -> Sight | None:
    """What a TCP flow's first octets show; None: not enough of them yet."""
    data = stream.data()
    if stream.ambiguous:
        return Sight(blind=Blind.AMBIGUOUS)
    hello = tls.parse(data)
    if isinstance(hello, tls.Hello):
        if not hello.name or not _NAME.issuperset(hello.name):
            return Sight(seen=Seen.TLS, blind=Blind.NO_SNI)
        return Sight(hello.name, Seen.TLS)
    if hello == tls.NEED_MORE and data:
        return None
    request = http.parse(data)
    if isinstance(request, http.Request):
        if not request.host or not _NAME.issuperset(request.host):
            return Sight(seen=Seen.HTTP, blind=Blind.NO_SNI, method=request.method, path=request.path)
        return Sight(request.host, Seen.HTTP, method=request.method, path=request.path)
    if request == http.NEED_MORE:
        return None
    return Sight(blind=Blind.OPAQUE)
