"""The packet hook's core: queued packets in, marks and records out. No sockets, no clock.

A packet is accepted at once, whatever it shows: a server cannot answer half a hello. The mark that goes with it says
what was decided; rules behind the queue write it into the conntrack mark and act on it.
Rule: `receive` never raises for anything a peer sends, and each flow that comes up ends in exactly one record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from struct import Struct
from typing import Final, NamedTuple, Protocol

from nfq import http, tls, udp
from nfq.aes import Aes
from nfq.flow import Flows, Key, Pending, Stream, is_near
from nfq.fold import Row, fold
from nfq.mark import Mark
from nfq.packet import RST, SYN, TCP, Packet, ends_of, parse
from nfq.quic import Budget, Initials, Outcome
from nfq.tls import Hello
from nfq.tls import parse as parse_tls
from policy.bypass import ENCRYPTED_DNS_PORT
from policy.errors import PacketError
from policy.event import MAX_NAME, MAX_PATH, Blind, Flow, Seen
from policy.frame import Client, event_bytes, flows_of
from policy.verdict import Decider, Decision, Reason, Verdict


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
    """A connection to reset at the server's side, where the client's next octet is `packet.seq`."""

    packet: Packet
    page: Decision | None = None
    """Answer the client with a page that says this, in the server's name; None: the rules reject it."""
    host: str = ""


class Ahead(Protocol):
    """What lets connections through before they come up, by what was decided here (`nfq.early`)."""

    def admit(self, client: bytes, group: int, until_ms: int) -> None: ...

    def dismiss(self, client: bytes) -> None: ...

    def allow(self, group: int, name: bytes, dst: bytes, dport: int, has_ech: bool, template: bytes) -> None: ...

    def block(self, connection: bytes) -> None: ...

    def forget(self) -> None: ...


class _Known(NamedTuple):
    """A decision as records and marks need it."""

    mark: int
    text: str
    """The name, as it is put on record."""
    verdict: int
    reason: int
    rule: str
    group: str
    decision: Decision


MAX_CACHED: Final = 2048
"""Decisions remembered per worker, a name and an address each: 0.4 MB. Most visits go where others just went."""
AHEAD_S: Final = 10.0
"""So long after a client's connection came up others of its may be let through ahead."""
MAX_AHEAD: Final = 4096
MAX_PATH_CACHED: Final = 128
"""Characters: a longer path is seldom asked for twice."""
MAX_FIRST: Final = 8192
"""Octets of a packet that surely leaves room in its flow for more."""
MAX_RESETS: Final = 1024
"""Resets and pages that wait for the shell in one batch; a batch has 32 packets."""
new_tuple: Final = tuple.__new__
_TCP4: Final = Struct("!xxH2xHxx2x4s4sHHIIBB").unpack_from
_NAME: Final = b"abcdefghijklmnopqrstuvwxyz0123456789-_.:"
_UNDECIDABLE: Final = frozenset({Blind.OVERLOAD, Blind.AMBIGUOUS, Blind.NO_CRYPTO, Blind.TRUNCATED})
_OF_OUTCOME: Final = {
    Outcome.OVERLOAD: Sight(seen=Seen.QUIC, blind=Blind.OVERLOAD),
    Outcome.NO_CRYPTO: Sight(seen=Seen.QUIC, blind=Blind.NO_CRYPTO),
    Outcome.AMBIGUOUS: Sight(seen=Seen.QUIC, blind=Blind.AMBIGUOUS),
    Outcome.NOT_QUIC: Sight(blind=Blind.OPAQUE),
}
_OVERLOAD: Final = Sight(blind=Blind.OVERLOAD)
_OPAQUE: Final = Sight(blind=Blind.OPAQUE)
_NEVER: Final = (0.0, 0)
_DOT: Final = Decision(Verdict.BLOCK, Reason.BYPASS, "bypass:dot")
_ALLOW, _BLOCK, _PAGE = int(Mark.ALLOW), int(Mark.BLOCK), int(Mark.PAGE)


class Hook:
    """All flows of one worker. `aes`: None where there is none; `initials_per_s`: QUIC packets decrypted at most."""

    def __init__(
        self,
        decider: Decider,
        put: Callable[[Flow], None],
        put_row: Callable[[Row], None] | None = None,
        *,
        aes: Callable[[], Aes | None] = lambda: None,
        initials_per_s: int = 400,
        has_pages: bool = False,
        ahead: Ahead | None = None,
    ) -> None:
        """`put` takes records one by one, `put_row` those of flows that are like others; None: `put` takes them too."""
        self.decider = decider
        self._put = put
        self._put_row = put_row or (lambda row: put(flows_of(fold([row]))[0]))
        self._flows = Flows()
        self._find_aes = aes
        self._aes: Aes | None = None
        self._has_aes: bool | None = None
        """None: not asked yet; a venue without QUIC need not load it."""
        self._budget = Budget(initials_per_s)
        self._has_pages = has_pages
        self._cache: dict[tuple[bytes, bytes, int], _Known] = {}
        self._cache_until: dict[int, float] = {}
        self._templates: dict[tuple[object, ...], bytes] = {}
        """Records of what was allowed, packed but for time, client and source port: by all that they depend on. They
        hold as long as the cached decisions do."""
        self._ahead = ahead
        self._admitted: dict[bytes, tuple[float, int]] = {}
        """Client (address and MAC) -> when it is to be admitted ahead again, group."""
        self.resets: list[Reset] = []
        """Taken and cleared by the shell."""
        self._packets = self._fast = self._flows_seen = self._ahead_flows = 0
        self._counts = {"blocked": 0, "bad_packets": 0, "repeated": 0, "expired": 0, "resets_lost": 0}
        self._blind: dict[int, int] = {}

    @property
    def counters(self) -> Mapping[str, int]:
        """For the heartbeat. `blind_CAUSE` and `flows` make the blind-spot meter."""
        blind = {f"blind_{Blind(cause).name.lower()}": count for cause, count in self._blind.items()}
        return {
            "packets": self._packets,
            "flows": self._flows_seen + self._fast + self._ahead_flows,
            **self._counts,
            "no_name": sum(self._blind.values()),
            "pending": len(self._flows),
            "pending_bytes": self._flows.held,
            **blind,
        }

    def receive(self, data: bytes, mac: bytes, now: Now) -> int:
        """Decide one queued packet. `data` from its IP header on; `mac` of the sender, 6 octets or empty."""
        # The usual packet first, written out: IPv4 without options, no fragment, TCP, a whole TLS hello in it, and a
        # decision on its name that is remembered. Everything else, and everything odd, goes the long way.
        if len(data) > 60 and data[0] == 0x45 and data[9] == 6:
            total, fragment, src, dst, sport, dport, seq, _, offset, flags = _TCP4(data)
            start = 20 + (offset >> 4 << 2)
            key = data[12:24]
            flows = self._flows
            if (
                40 <= start < len(data)
                and total == len(data)
                and not fragment & 0x3FFF
                and not flags & 6
                and key not in flows.late
                # Ports used again within seconds are a new connection if its numbers begin elsewhere.
                and not ((entry := flows.decided.get(key) or flows.older.get(key)) and is_near(entry, seq))
            ):
                pending = flows.pending.get(key)
                if pending is None:
                    if data[start] != 0x16:
                        return self._receive_request(data, start, key, mac, now)
                    hello = parse_tls(data, start)
                else:
                    hello = _completed(pending, seq, data[start:])
                if type(hello) is Hello:
                    name, has_ech = hello
                    if pending is not None:
                        mac = mac or pending.mac
                    group = self.decider.group_of(src, mac)
                    wall_s = now[2]
                    # Without a name it is a blind spot, which is counted on the long way: it never gets a template.
                    if wall_s is not None and wall_s < self._cache_until.get(group, 0.0):
                        template = self._templates.get((name, dst, dport, group, has_ech))
                        if template is not None:
                            self._packets += 1
                            self._fast += 1
                            if pending is not None:
                                flows.decide(key, 1, seq)
                            else:
                                flows.decided[key] = seq << 4 | 1
                            if has_ech:
                                self._blind[8] = self._blind.get(8, 0) + 1
                            who = src + mac
                            self._put_row((template, who, sport, now[1]))
                            if self._ahead is not None and self._admitted.get(who, _NEVER)[0] < now[0]:
                                self._admit(who, group, now)
                            return 1
                elif pending is None and hello == tls.NEED_MORE and len(data) < MAX_FIRST:
                    # The first segment of a hello in several, as the long way would take it in.
                    self._packets += 1
                    stream = Stream(seq)
                    stream.add(seq, data[start:])
                    pending = Pending(now[0], mac, stream, None)
                    pending.packets = 1
                    flows.begin(key, pending)
                    flows.grew(pending.size)
                    if flows.is_crowded:
                        self.handle_timer(now)
                    return 0
        self._packets += 1
        return self._receive(data, mac, now)

    def _receive_request(self, data: bytes, start: int, key: Key, mac: bytes, now: Now) -> int:
        """The first segment of a TCP flow that is not TLS: mostly a whole HTTP request."""
        self._packets += 1
        request = http.parse(data[start:])
        if not isinstance(request, http.Request) or not request.host or request.host.translate(None, _NAME):
            return self._receive(data, mac, now)
        src, dst = data[12:16], data[16:20]
        group = self.decider.group_of(src, mac)
        wall_s = now.wall_s
        what = (request, dst, data[22:24], group)
        if wall_s is not None and wall_s < self._cache_until.get(group, 0.0):
            template = self._templates.get(what)
            if template is not None:
                self._fast += 1
                self._flows.decided[key] = int.from_bytes(data[24:28], "big") << 4 | _ALLOW
                self._put_row((template, src + mac, data[20] << 8 | data[21], now.boottime_ms))
                return _ALLOW
        sight = Sight(request.host, Seen.HTTP, Blind.NOT_BLIND, request.method, request.path)
        known = self._judge_request(sight, dst, group, wall_s)
        if known.mark != _ALLOW:
            return self._decide(key, parse(data), mac, sight, now)
        self._flows.decided[key] = int.from_bytes(data[24:28], "big") << 4 | _ALLOW
        flow = self._record(key, mac, sight, known, now)
        if len(request.path) <= MAX_PATH_CACHED:
            self._remember(what, flow, group, wall_s)
        return _ALLOW

    def _receive(self, data: bytes, mac: bytes, now: Now) -> int:
        """Any packet."""
        try:
            packet = parse(data)
        except PacketError:
            self._counts["bad_packets"] += 1
            return 0
        key = packet.key
        if packet.protocol == TCP and packet.flags & RST:
            return 0
        if packet.dport == ENCRYPTED_DNS_PORT:
            return self._flows.find_mark(key, packet.seq) or self._receive_dot(key, packet, mac, now)
        if packet.protocol == TCP:
            if packet.flags & SYN and not self._flows.began_at(key, packet.seq):
                left = self._flows.forget(key)
                if left is not None:
                    # A SYN in the midst of a hello, forged by the client: its rest must not pass for something else.
                    self._flows.give_up(key, left, self._record_undecided(key, left, now))
            if packet.flags & SYN and not packet.payload:
                return self._receive_bare(key, packet, mac, now)
        mark = self._flows.find_mark(key, packet.seq)
        if mark:
            self._counts["repeated"] += 1
            return mark
        if not packet.payload:
            return 0
        pending = self._flows.pending.get(key)
        if pending is None:
            pending = self._begin(key, packet, now)
        pending.mac = mac or pending.mac
        pending.packets += 1
        before = pending.size
        sight = self._look(pending, packet, now)
        self._flows.grew(pending.size - before)
        if sight is None:
            if not pending.is_full:
                if self._flows.is_crowded:
                    self.handle_timer(now)
                return 0
            sight = _OVERLOAD
        return self._decide(key, packet, pending.mac, sight, now)

    def _receive_bare(self, key: Key, packet: Packet, mac: bytes, now: Now) -> int:
        """A SYN comes up only for an address that somebody's list names: the rules know which, not for whom."""
        group = self.decider.group_of(packet.src, mac)
        decision = self.decider.decide_address(packet.dst, group, now.wall_s)
        if decision.verdict != Verdict.BLOCK:
            return 0
        return self._refuse(key, packet, mac, decision, group, now)

    def _receive_dot(self, key: Key, packet: Packet, mac: bytes, now: Now) -> int:
        """The first packet to the port of encrypted DNS: the rules refuse it to everybody. Here it goes on record."""
        return self._refuse(key, packet, mac, _DOT, self.decider.group_of(packet.src, mac), now)

    def _refuse(self, key: Key, packet: Packet, mac: bytes, decision: Decision, group: int, now: Now) -> int:
        """Block a flow at its first packet, for where it goes. A SYN has left nothing at the server to be reset."""
        self._flows.decide(key, _BLOCK, packet.seq)
        self._record(key, mac, Sight(), self._known(b"", decision, group), now)
        if packet.payload:
            self._block(packet, Sight(), decision)
        else:
            self._counts["blocked"] += 1
        return _BLOCK

    def handle_timer(self, now: Now) -> None:
        """Put flows on record that fell silent before their name was complete, or that are too many."""
        for key, pending in self._flows.expire(now.monotonic_s):
            self._counts["expired"] += 1
            mark = self._record_undecided(key, pending, now)
            self._flows.give_up(key, pending, mark)

    def reload(self, decider: Decider) -> None:
        """Decide by another policy from now on."""
        self.decider = decider
        self.forget_decisions()

    def set_client(self, client: Client) -> None:
        """Whose address it is. An engine keeps that; a decider of another kind need not."""
        set_client = getattr(self.decider, "set_client", None)
        if set_client is not None:
            _, account, interface, ssid = client[1:]
            set_client(client.address, mac=client.mac, account=account, interface=interface, ssid=ssid)
            self._dismiss_changed(client.address)

    def _dismiss_changed(self, address: bytes) -> None:
        """Whoever has this address and is in another group now is known no longer."""
        if self._ahead is None:
            return
        for who in [who for who in self._admitted if who[:-6] == address]:
            if self.decider.group_of(address, who[-6:]) != self._admitted[who][1]:
                del self._admitted[who]
                self._ahead.dismiss(who)

    def count_ahead(self, flows: int, unsure: int) -> None:
        """So many flows were let through ahead of us, and of them so many with an encrypted_client_hello."""
        self._ahead_flows += flows
        if unsure:
            self._blind[Blind.ECH_UNSURE] = self._blind.get(Blind.ECH_UNSURE, 0) + unsure

    def was_queued(self, row: Row, half: int) -> bool:
        """Was a connection that was let through ahead of us decided here too? `half`: of its first octet's number."""
        flow = flows_of(fold([row]))[0]
        key = flow.client + flow.dst + row[2].to_bytes(2, "big") + flow.dport.to_bytes(2, "big")
        entry = self._flows.decided.get(key) or self._flows.older.get(key)
        return entry is not None and entry >> 4 & 0xFFFF == half

    def forget_decisions(self) -> None:
        """The policy, or what it knows of clients, has changed."""
        self._forget_ahead()
        self._cache.clear()
        self._cache_until.clear()
        self._templates.clear()

    def _begin(self, key: Key, packet: Packet, now: Now) -> Pending:
        if packet.protocol == TCP:
            pending = Pending(now.monotonic_s, b"", Stream(packet.seq), None)
        else:
            if self._has_aes is None:
                self._aes = self._find_aes()
                self._has_aes = self._aes is not None
            pending = Pending(now.monotonic_s, b"", None, Initials(self._aes))
        self._flows.begin(key, pending)
        return pending

    def _look(self, pending: Pending, packet: Packet, now: Now) -> Sight | None:
        """What this flow shows by now; None: not enough."""
        if pending.stream is not None:
            pending.stream.add(packet.seq, packet.payload)
            return look(pending.stream)
        assert pending.initials is not None
        found = pending.initials.receive(packet.payload, packet.src, self._budget, now.monotonic_s)
        if isinstance(found, tls.Hello):
            return _sight_of(found, Seen.QUIC)
        if found in (Outcome.NEED_MORE, Outcome.OTHER_VERSION):
            return None
        if found == Outcome.NOT_QUIC:
            # Behind the first datagrams of a QUIC flow, short headers and the like say nothing new.
            return Sight(blind=udp.classify(packet.payload, packet.dport)) if pending.packets == 1 else None
        return _OF_OUTCOME[found]

    def _decide(self, key: Key, packet: Packet, mac: bytes, sight: Sight, now: Now) -> int:
        decider = self.decider
        group = decider.group_of(packet.src, mac)
        what = None
        if sight.seen == Seen.TLS and sight.name and sight.blind not in _UNDECIDABLE:
            what = (sight.name, packet.dst, packet.dport, group, bool(sight.blind))
            if now.wall_s is not None and now.wall_s < self._cache_until.get(group, 0.0):
                template = self._templates.get(what)
                if template is not None:
                    self._flows_seen += 1
                    if sight.blind:
                        self._blind[sight.blind] = self._blind.get(sight.blind, 0) + 1
                    self._flows.decide(key, _ALLOW, packet.seq)
                    self._put_row((template, packet.src + mac, packet.sport, now.boottime_ms))
                    self._admit(packet.src + mac, group, now)
                    return _ALLOW
        if sight.blind in _UNDECIDABLE:
            known = self._fail(sight, group)
        elif sight.seen == Seen.HTTP and sight.name:
            known = self._judge_request(sight, packet.dst, group, now.wall_s)
        else:  # without a name too: a window may close everything at this hour
            known = self._judge(sight.name, packet.dst, group, now.wall_s)
        mark = known.mark
        if mark == _BLOCK and sight.seen == Seen.HTTP and self._has_pages:
            mark = _PAGE
        self._flows.decide(key, mark, packet.seq)
        flow = self._record(key, mac, sight, known, now)
        if mark != _ALLOW:
            self._block(packet, sight, known.decision)
        elif what is not None:
            template = self._remember(what, flow, group, now.wall_s)
            if template and self._ahead is not None:
                name, dst, dport, _, has_ech = what
                self._ahead.allow(group, name, dst, dport, has_ech, template)
                self._admit(packet.src + mac, group, now)
        return mark

    def _remember(self, what: tuple[object, ...], flow: Flow, group: int, wall_s: float | None) -> bytes:
        """Keep the record of an allowed flow for those that will be like it, until the policy or the hour changes.

        Empty: it is not kept.
        """
        if flow.verdict != Verdict.ALLOW or wall_s is None:
            return b""
        if wall_s >= self._cache_until.get(group, 0.0) and not self._turn(group, wall_s):
            return b""
        if len(self._templates) >= MAX_CACHED:
            self._templates.clear()
        template = self._templates[what] = event_bytes(flow._replace(at_ms=0, client=b"", mac=b"", sport=0))
        return template

    def _admit(self, who: bytes, group: int, now: Now) -> None:
        """A connection of this client was let through as others before it: more may be, ahead of us, for a while."""
        wall_s = now.wall_s
        if self._ahead is None or wall_s is None or self._admitted.get(who, _NEVER)[0] >= now.monotonic_s:
            return
        left_s = min(AHEAD_S, self._cache_until.get(group, 0.0) - wall_s)
        if left_s <= 0:
            return
        if len(self._admitted) >= MAX_AHEAD:
            self._forget_ahead()
        self._admitted[who] = now.monotonic_s + left_s / 2, group
        self._ahead.admit(who, group, now.boottime_ms + int(left_s * 1000))

    def _forget_ahead(self) -> None:
        if self._ahead is not None:
            self._admitted.clear()
            self._ahead.forget()

    def _block(self, packet: Packet, sight: Sight, decision: Decision) -> None:
        self._counts["blocked"] += 1
        if packet.protocol != TCP:
            return
        if len(self.resets) >= MAX_RESETS:
            self._counts["resets_lost"] += 1
            return
        is_page = self._has_pages and sight.seen == Seen.HTTP
        self.resets.append(Reset(packet, decision if is_page else None, sight.name.decode("ascii", "replace")))

    def _judge(self, name: bytes, dst: bytes, group: int, wall_s: float | None) -> _Known:
        """The decision on a name and an address. Remembered while it holds."""
        until = self._cache_until.get(group, 0.0)
        if wall_s is None or wall_s >= until:
            until = self._turn(group, wall_s)
        key = (name, dst, group)
        found = self._cache.get(key)
        if found is not None:
            return found
        decision = self.decider.decide(name, group, wall_s)
        if decision.verdict == Verdict.ALLOW and decision.reason == Reason.DEFAULT:
            decision = self._by_address(dst, group, decision, wall_s)
        found = self._known(name, decision, group)
        if until and wall_s is not None:
            if len(self._cache) >= MAX_CACHED:
                self._cache.clear()
            self._cache[key] = found
        return found

    def _judge_request(self, sight: Sight, dst: bytes, group: int, wall_s: float | None) -> _Known:
        """The same for a request in clear text, path and all."""
        decision = self.decider.decide_url(sight.name, sight.path.encode(), group, wall_s)
        if decision.verdict == Verdict.ALLOW and (path := http.resolve(sight.path)) != sight.path:
            # As rules are written, so paths are typed, or in any other way that the server takes for the same.
            decision = self.decider.decide_url(sight.name, path.encode(), group, wall_s)
        if decision.verdict == Verdict.ALLOW and decision.reason == Reason.DEFAULT:
            decision = self._by_address(dst, group, decision, wall_s)
        return self._known(sight.name, decision, group)

    def _known(self, name: bytes, decision: Decision, group: int) -> _Known:
        mark = _BLOCK if decision.verdict == Verdict.BLOCK else _ALLOW
        text = name.decode("ascii", "backslashreplace")[:MAX_NAME]
        verdict, reason = int(decision.verdict), int(decision.reason)
        return _Known(mark, text, verdict, reason, decision.rule, self.decider.treatment(group).group, decision)

    def _turn(self, group: int, wall_s: float | None) -> float:
        """Another hour of the schedule, or no clock: what was remembered of this group holds no more."""
        for key in [key for key in self._cache if key[2] == group]:
            del self._cache[key]
        self._templates.clear()
        self._forget_ahead()
        if wall_s is None:
            return 0.0
        until = self._cache_until[group] = self.decider.valid_until(group, wall_s)
        return until

    def _by_address(self, dst: bytes, group: int, decision: Decision, wall_s: float | None) -> Decision:
        by_address = self.decider.decide_address(dst, group, wall_s)
        return by_address if by_address.verdict == Verdict.BLOCK else decision

    def _fail(self, sight: Sight, group: int) -> _Known:
        """What the group's policy says of that which cannot be decided."""
        reason = Reason.AMBIGUOUS if sight.blind == Blind.AMBIGUOUS else None
        if self.decider.treatment(group).fail == "closed":
            return self._known(sight.name, Decision(Verdict.BLOCK, reason or Reason.FAIL_CLOSED), group)
        return self._known(sight.name, Decision(Verdict.ALLOW, reason or Reason.FAIL_OPEN), group)

    def _record_undecided(self, key: Key, pending: Pending, now: Now) -> int:
        ambiguous = pending.stream is not None and pending.stream.ambiguous
        sight = Sight(
            seen=Seen.QUIC if pending.initials is not None and pending.initials.size else Seen.NONE,
            blind=Blind.AMBIGUOUS if ambiguous else Blind.TRUNCATED,
        )
        known = self._fail(sight, self.decider.group_of(ends_of(key).src, pending.mac))
        self._record(key, pending.mac, sight, known, now)
        return known.mark

    def _record(self, key: Key, mac: bytes, sight: Sight, known: _Known, now: Now) -> Flow:
        src, dst, sport, dport, protocol = ends_of(key)
        if known.mark != _ALLOW and protocol == TCP and self._ahead is not None:
            self._ahead.block(key)
        _, seen, blind, method, path = sight
        self._flows_seen += 1
        if blind:
            self._blind[blind] = self._blind.get(blind, 0) + 1
        values = (
            now.boottime_ms, src, mac, sport, dst, dport, protocol, known.text, int(seen), int(blind), path[:MAX_PATH],
            known.verdict, known.reason, known.rule, known.group, 0, method, "",
        )  # fmt: skip
        flow = new_tuple(Flow, values)  # its own constructor takes the fields by name, at three times the price
        self._put(flow)
        return flow


def _completed(pending: Pending, seq: int, payload: bytes) -> Hello | None:
    """The hello that this segment completes, if it is as simple as that: the second of two, in order."""
    stream = pending.stream
    octets = stream.joined_with(seq, payload) if stream is not None else None
    hello = parse_tls(octets) if octets is not None else None
    return hello if isinstance(hello, Hello) else None


def look(stream: Stream) -> Sight | None:
    """What a TCP flow's first octets show; None: not enough of them yet."""
    data = stream.data()
    if stream.ambiguous:
        return Sight(blind=Blind.AMBIGUOUS)
    sight = _look_at(data)
    if sight is _OPAQUE:
        for later in stream.later_starts():
            found = _look_at(later)
            if found is None or found is not _OPAQUE:
                return found
    return sight


def _look_at(data: bytes) -> Sight | None:
    hello = tls.parse(data)
    if isinstance(hello, tls.Hello):
        return _sight_of(hello, Seen.TLS)
    if hello == tls.NEED_MORE and data:
        return None
    if hello == tls.TOO_LONG:
        return Sight(seen=Seen.TLS, blind=Blind.OVERLOAD)
    request = http.parse(data)
    if isinstance(request, http.Request):
        if request.is_ambiguous:
            return Sight(seen=Seen.HTTP, blind=Blind.AMBIGUOUS, method=request.method)
        if not request.host or request.host.translate(None, _NAME):
            return Sight(seen=Seen.HTTP, blind=Blind.NO_SNI, method=request.method, path=request.path)
        return Sight(request.host, Seen.HTTP, method=request.method, path=request.path)
    if request == http.NEED_MORE:
        return None
    return _OPAQUE


def _sight_of(hello: tls.Hello, seen: Seen) -> Sight:
    if not hello.name or hello.name.translate(None, _NAME):
        return Sight(seen=seen, blind=Blind.NO_SNI)
    return Sight(hello.name, seen, Blind.ECH_UNSURE if hello.ech else Blind.NOT_BLIND)
