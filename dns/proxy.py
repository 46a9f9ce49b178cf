"""The DNS hook's core: queries and replies in, answers, questions to upstreams and records out. Sans-I/O.

Order of calls: `receive_query`, `receive_replies`, `receive_failure` as things come in; `handle_timer` when
`next_timer` says so; after each of them `asks`, `replies` and `events` give what there is to do. `now` is seconds of
CLOCK_BOOTTIME.
Rule: every query that can be read gets exactly one record, when it is answered or given up (what a client asks beyond
its rate is folded into one); whatever a peer sends, nothing is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from struct import Struct
from typing import Final, NamedTuple, Protocol, runtime_checkable

from dns import answer, screen, usual
from dns.answer import Ede
from dns.cache import Cache, Entry, key_of
from dns.learn import learn, read_kept
from dns.limit import Limiter
from dns.pending import MAX_FLIGHTS, MAX_WAITERS, STREAM, Ask, Flight, Pending
from dns.screen import Sight
from dns.special import Fate, SpecialNames
from dns.upstream import STREAM_TIMEOUT_S, Server, Where, choose
from dns.wire import (
    AD,
    CD,
    HEADER,
    IN,
    OPCODE,
    QR,
    RA,
    RD,
    TC,
    Header,
    Option,
    Query,
    Rcode,
    Record,
    Type,
    parents,
    present,
    read_header,
    read_query,
    read_question,
    read_records,
    to_wire,
)
from policy.config import DnsConfig
from policy.errors import WireError
from policy.event import MAX_ANSWERS, Dns, Event
from policy.frame import Client
from policy.verdict import ALLOWED, FOREVER, Decider, Decision, Reason, Treatment, Verdict

MAX_TRIES: Final = 6
GIVE_UP_S: Final = 5.0
"""The usual stub (glibc, Windows) has asked again by then."""
STALE_AFTER_S: Final = 1.8
"""RFC 8767 5: the client response timer."""
STALE_TTL_S: Final = 30
"""RFC 8767 4."""
MAX_STRANGERS: Final = 8
"""Replies with our id but another question: somebody is guessing, so ask again where guessing does not help."""
MAX_CLIENTS: Final = 4096
KNOWN_BITS: Final = 21
"""Of a hash, to tell a question's second time from its first: a bitmap of 256 KiB."""
MAX_KNOWN: Final = 1 << 18
"""Then the bitmap starts anew. By then one stranger in eight is taken for known, which costs a place and no more."""
LOCAL_TTL_S: Final = 3600
"""Of what the RFCs fix: localhost, `.onion`, RFC 8482."""
STAMP_MAX_S: Final = 600
"""How much too short the TTL of a ready answer may be told, so that it need not be stamped anew all the time."""
_ADD_MAC: Final = 65001
"""dnsmasq's option for `--add-mac`, from the range for local use."""
_REFUSED_TYPES: Final = frozenset(
    map(int, (Type.AXFR, Type.IXFR, Type.MAILA, Type.MAILB, Type.TKEY, Type.TSIG, Type.OPT, 0))
)
_ANY: Final = int(Type.ANY)
_ADDRESS_TYPES: Final = (Type.A, Type.AAAA, Type.HTTPS)
"""What browsers ask for."""
_HEAD: Final = Struct("!HHHHHH")
_PLAIN_OPT: Final = answer.opt_record(0, 0)
# An enum's members are slow to get at on Python 3.11.
_BLOCK, _REFUSE, _REWRITE = Verdict.BLOCK, Verdict.REFUSE, Verdict.REWRITE
_ALLOW, _DEFAULT = ALLOWED.verdict, ALLOWED.reason
_ORDINARY, _LOCAL = Fate.ORDINARY, Fate.LOCAL
_ANSWERS: Final = (Rcode.NOERROR, Rcode.NXDOMAIN)
_DISLIKES_EDNS: Final = (Rcode.FORMERR, Rcode.NOTIMP, Rcode.BADVERS)
_new: Final = tuple.__new__


class Peer(NamedTuple):
    """Who asked, and the way back."""

    address: bytes
    is_stream: bool
    route: object
    """The shell's own; the core hands it back as it came."""


class Hot(NamedTuple):
    """Leave to give this very answer to this very question again, without asking the core."""

    group: int
    valid_until: float
    """No longer than that, whatever the TTL: a schedule may change."""
    expires: float
    """Stamp the TTL anew until then. FOREVER: it is the same at any time."""
    true_until: int
    """How long the TTL in the answer is not longer than the truth."""
    record: Dns
    """What to put on record each time, but for time and client."""


@runtime_checkable
class KnowsClients(Protocol):
    """A decider that takes more into account than address and MAC."""

    def set_client(
        self, address: bytes, *, mac: bytes = b"", account: str = "", interface: str = "", ssid: str = ""
    ) -> None:
        """All that is known about an address."""
        ...


class Reply(NamedTuple):
    """An answer for the shell to send."""

    data: bytes
    peer: Peer
    hot: Hot | None = None


class _Client:
    __slots__ = ("group", "mac", "name", "on_block", "strip_ech")

    def __init__(self, group: int, treatment: Treatment, mac: bytes) -> None:
        self.group = group
        self.name = treatment.group
        """Of the group."""
        self.on_block = treatment.on_block
        self.strip_ech = treatment.strip_ech
        self.mac = mac


class _Waiter(NamedTuple):
    """One client's question, decided and not yet answered."""

    query: Query
    peer: Peer
    client: _Client
    who: bytes
    """The client's address: the peer's, or the one that dnsmasq told."""
    name: bytes
    """Presentation form."""
    decision: Decision
    asked_at: float
    is_hot: bool
    """Its answer depends on nothing but the message behind the id, and the group, and is not fetched just for this."""


class _Read(NamedTuple):
    """An upstream's reply, already taken apart: a message's octets, and the records in it that are passed on."""

    data: bytes
    records: list[Record]


class Proxy:
    """One worker's core. `random_bytes` must be fit for secrets."""

    def __init__(self, settings: DnsConfig, decider: Decider, random_bytes: Callable[[int], bytes]) -> None:
        self.settings: Final = settings
        self.wall_offset: float | None = None
        """Wall time minus `now`; None while the clock is not known to be right. The shell keeps it."""
        self.cache: Final = Cache(settings.cache_bytes)
        self.limiter: Final = Limiter(settings.rate)
        self.pending: Final[Pending[_Waiter]] = Pending(random_bytes)
        self.counters: Final = dict.fromkeys(
            ("queries", "malformed", "blocked", "asked", "stale", "failed", "bad_replies", "truncated", "overload"), 0
        )
        places = [Where(host, port, name) for host, port, name in settings.upstream_tls]
        places += [Where(host, port) for host, port in settings.upstream]
        self._outside: Final = tuple(range(len(places)))
        places += [Where(host, port, is_local=True) for host, port in settings.local_server]
        self._inside: Final = tuple(range(len(self._outside), len(places)))
        self.servers: Final = [Server(place) for place in places]
        self._special: Final = SpecialNames(settings.local_domain)
        self._may_rebind: Final = frozenset(map(to_wire, settings.rebind_domain))
        self._page: Final = tuple(_packed(text) for text in settings.page)
        self._decider = decider
        self._clients: dict[bytes, _Client] = {}
        self._macs: dict[bytes, bytes] = {}
        self._known = bytearray((1 << KNOWN_BITS) // 8)
        """A bit for the hash of each question that we answered by ourselves."""
        self._known_count = 0
        self._events: list[Event] = []
        self._fresh: list[Flight[_Waiter]] = []
        """Flights that have not been sent yet: all of a turn go in one go."""
        self._asks: list[Ask] = []
        self._replies: list[Reply] = []

    # What there is to do.

    @property
    def has_results(self) -> bool:
        """Would any of `asks`, `replies` and `events` give something?"""
        return bool(self._events or self._fresh or self._asks or self._replies)

    def events(self) -> list[Event]:
        """Records since the last call."""
        events, self._events = self._events, []
        return events

    def asks(self) -> list[Ask]:
        """Messages for the upstreams since the last call."""
        if self._fresh:
            fresh, self._fresh = self._fresh, []
            for among in {flight.among for flight in fresh}:
                self._start([flight for flight in fresh if flight.among is among])
        asks, self._asks = self._asks, []
        if asks:
            self.pending.change_channel()
        return asks

    def replies(self) -> list[Reply]:
        """Answers, to those who had to wait, since the last call."""
        replies, self._replies = self._replies, []
        return replies

    def next_timer(self) -> float | None:
        """When `handle_timer` wants to be called; None: nothing is in flight."""
        return self._fresh[0].started if self._fresh else self.pending.next_timer()

    # Policy.

    @property
    def generation(self) -> int:
        return self._decider.generation

    def set_decider(self, decider: Decider) -> None:
        """Another policy. Whoever keeps ready answers must forget them."""
        self._decider = decider
        self._clients.clear()

    def learn_client(self, client: Client) -> None:
        """The agent told what it knows of an address: its group may be another now."""
        if len(self._macs) >= MAX_CLIENTS:
            self._macs.clear()
        self._macs[client.address] = client.mac
        if isinstance(self._decider, KnowsClients):
            self._decider.set_client(
                client.address, mac=client.mac, account=client.account, interface=client.interface, ssid=client.ssid
            )
        self._clients.pop(client.address, None)

    def group_of(self, address: bytes) -> int:
        """Index of a client's group."""
        return self._client(address, self._macs.get(address, b"")).group

    def _client(self, address: bytes, mac: bytes) -> _Client:
        client = self._clients.get(address)
        if client is None or client.mac != mac:
            if len(self._clients) >= MAX_CLIENTS:
                self._clients.clear()
            group = self._decider.group_of(address, mac)
            client = self._clients[address] = _Client(group, self._decider.treatment(group), mac)
        return client

    def _wall(self, now: float) -> float | None:
        return None if self.wall_offset is None else now + self.wall_offset

    # Queries.

    def receive_query(self, data: bytes, peer: Peer, now: float) -> Reply | None:
        """One message from a client. None: it must wait for an upstream, or gets no answer at all."""
        self.counters["queries"] += 1
        if (read := usual.read_query(data)) is None:
            return self._receive_unusual(data, peer, now)
        who, is_stream, _ = peer
        if not self.limiter.charge(who, 1, now):
            self._over_limit(data, peer, now)
            return None
        query, name = read
        mac = self._macs.get(who, b"")
        client = self._clients.get(who)
        if client is None or client.mac != mac:
            client = self._client(who, mac)
        _, flags, wire_name, qtype, _, _, edns = query
        offset = self.wall_offset
        decision = self._decider.decide(name, client.group, None if offset is None else now + offset)
        # As in `_waiter`: a message like this one has no options, and its name is in lower case or it is not.
        is_hot = not is_stream and data.startswith(wire_name, HEADER)
        if decision is ALLOWED and qtype in _ADDRESS_TYPES and self._special.is_ordinary(name):
            # As in `_resolve`, for what nobody has asked before.
            flags = (0 if edns is None else edns.flags >> 15) | flags >> 3 & 2  # DO, CD
            key = key_of(wire_name, qtype, flags)
            flights = self.pending.by_key
            if key not in flights and len(flights) < MAX_FLIGHTS and self.cache.find(key) is None:
                flight: Flight[_Waiter] = Flight(key, wire_name, qtype, flags, self._outside, now)
                flights[key] = flight
                flight.waiters.append(_new(_Waiter, (query, peer, client, who, name, decision, now, False)))
                self._fresh.append(flight)
                return None
        return self._serve(_new(_Waiter, (query, peer, client, who, name, decision, now, is_hot)), now)

    def _receive_unusual(self, data: bytes, peer: Peer, now: float) -> Reply | None:
        try:
            header = read_header(data)
            if header.flags & QR:
                raise WireError("query: it is an answer")  # never answered: two servers would play ping-pong
        except WireError:
            self.counters["malformed"] += 1
            return None
        if not self.limiter.charge(peer.address, 1, now):
            self._over_limit(data, peer, now)
            return None
        if header.flags & OPCODE:
            self.counters["malformed"] += 1
            return Reply(answer.bare(data, Rcode.NOTIMP), peer)
        try:
            query = read_query(data, header)
        except WireError:
            self.counters["malformed"] += 1
            return Reply(answer.bare(data, Rcode.FORMERR), peer)
        return self._serve(self._waiter(query, data, peer, now), now)

    def _over_limit(self, data: bytes, peer: Peer, now: float) -> None:
        try:
            name = present(read_question(data)[0]).decode("ascii")
        except WireError:
            name = ""
        self.limiter.refuse(peer.address, name, now)

    def _waiter(self, query: Query, data: bytes, peer: Peer, now: float) -> _Waiter:
        who, mac = peer.address, self._macs.get(peer.address, b"")
        if self.settings.behind_dnsmasq and _is_loopback(peer.address):
            who, mac = _told_client(query, who, mac)
        client = self._client(who, mac)
        name = present(query.name)
        plain = query.qclass == IN and (query.edns is None or query.edns.version == 0)
        decision = self._decider.decide(name, client.group, self._wall(now)) if plain else _UNDECIDED
        is_hot = (
            not peer.is_stream
            and (query.edns is None or not query.edns.options)
            and query.question[:-4] == query.name  # other letter case: each client's own, not worth a place
        )
        return _new(_Waiter, (query, peer, client, who, name, decision, now, is_hot))

    def _is_known(self, query: Query) -> bool:
        """Has this very question, to which we have an answer of our own, been asked lately?

        Most are asked once, and not worth a place among the ready ones. Of what upstreams answer, the cache knows.
        """
        key = hash((query.flags, query.question, query.edns))
        place, bit = (key & ((1 << KNOWN_BITS) - 1)) >> 3, 1 << (key & 7)
        if self._known[place] & bit:
            return True
        if self._known_count >= MAX_KNOWN:
            self._known = bytearray(len(self._known))
            self._known_count = 0
        self._known[place] |= bit
        self._known_count += 1
        return False

    def _serve(self, waiter: _Waiter, now: float) -> Reply | None:
        query, decision = waiter.query, waiter.decision
        if query.edns is not None and query.edns.version != 0:
            return self._own(waiter, now, Rcode.BADVERS, reason=Reason.PROTOCOL)
        if query.qclass != IN or query.qtype in _REFUSED_TYPES:
            return self._own(waiter, now, Rcode.REFUSED, ede=answer.NOT_SUPPORTED, reason=Reason.PROTOCOL)
        if decision.verdict is _BLOCK:
            return self._block(waiter, decision, now)
        if decision.verdict is _REFUSE:
            return self._own(waiter, now, Rcode.REFUSED, ede=answer.PROHIBITED, reason=decision.reason)
        if query.qtype == _ANY:
            return self._own(
                waiter,
                now,
                Rcode.NOERROR,
                answer.minimal_any(LOCAL_TTL_S),
                reason=decision.reason,
                verdict=decision.verdict,
                rule=decision.rule,
            )
        fate = self._special.fate_of(query.name, waiter.name, query.qtype)
        if fate is _ORDINARY:
            return self._resolve(waiter, self._outside, now)
        # dnsmasq asks us for what it does not know: to ask it back would go round in circles.
        if fate is _LOCAL and self._inside and not _is_loopback(waiter.peer.address):
            return self._resolve(waiter, self._inside, now)
        return self._special_answer(waiter, fate, now)

    def _special_answer(self, waiter: _Waiter, fate: Fate, now: float) -> Reply:
        rcode, body = Rcode.NXDOMAIN, answer.negative(LOCAL_TTL_S)
        if fate is Fate.LOOPBACK:
            rcode, body = Rcode.NOERROR, answer.addresses(_LOOPBACKS, waiter.query.qtype, LOCAL_TTL_S)
        elif fate is Fate.NODATA:
            rcode = Rcode.NOERROR
        return self._own(waiter, now, rcode, body, reason=Reason.SPECIAL_USE, verdict=Verdict.ALLOW)

    def _block(self, waiter: _Waiter, decision: Decision, now: float) -> Reply:
        self.counters["blocked"] += 1
        ttl = self.settings.block_ttl_s
        rcode, body = Rcode.NOERROR, answer.negative(ttl)
        # 0.0.0.0 for Firefox's canary means "go on with DNS over HTTPS"; only NXDOMAIN, or no address, means "do not".
        match "nxdomain" if decision.reason == Reason.BYPASS else waiter.client.on_block:
            case "nodata":
                pass
            case "null":
                body = answer.addresses(_NULLS, waiter.query.qtype, ttl)
            case "page":
                body = answer.addresses(self._page, waiter.query.qtype, ttl)
            case _:
                rcode = Rcode.NXDOMAIN
        ede = Ede(_BLOCK_CODES.get(decision.reason, answer.BLOCKED), decision.rule) if self.settings.explain else None
        return self._own(waiter, now, rcode, body, ede=ede, reason=decision.reason, verdict=decision.verdict,
                         rule=decision.rule)  # fmt: skip

    def _own(
        self,
        waiter: _Waiter,
        now: float,
        rcode: int,
        body: answer.Body = answer.EMPTY,
        *,
        ede: Ede | None = None,
        reason: Reason,
        verdict: Verdict = Verdict.REFUSE,
        rule: str = "",
    ) -> Reply:
        """An answer of our own making: its TTLs are short enough to stay as they are."""
        full = answer.tail(waiter.query, rcode, body, ede, self._options(waiter.query))
        decision = Decision(verdict, reason, rule)
        is_hot = waiter.is_hot and self._is_known(waiter.query)
        return self._finish(waiter, full, rcode, decision, (), now, cached=False, expires=FOREVER if is_hot else 0.0)

    # Resolving.

    def _resolve(self, waiter: _Waiter, among: tuple[int, ...], now: float) -> Reply | None:
        query, decision = waiter.query, waiter.decision
        name = query.name
        if decision.verdict is _REWRITE:
            try:
                name = to_wire(decision.target)
            except WireError:  # a target that is no name is a mistake in the policy; it must not open the gate
                return self._own(waiter, now, Rcode.SERVFAIL, reason=decision.reason, rule=decision.rule)
        edns = query.edns
        flags = (0 if edns is None else edns.flags >> 15) | query.flags >> 3 & 2  # DO, CD
        key = key_of(name, query.qtype, flags)
        entry = self.cache.find(key)
        if entry is not None and entry.expires_s > now:
            return self._deliver(waiter, entry, now, cached=True)
        flight = self.pending.by_key.get(key)
        if flight is None:
            if len(self.pending) >= MAX_FLIGHTS:
                self.counters["overload"] += 1
                return self._give_up(waiter, entry, now)
            flight = self.pending.by_key[key] = Flight(key, name, query.qtype, flags, among, now)
            self._ask(flight, now)
            if entry is None:  # asked for the first time, and most likely for the last
                waiter = waiter._replace(is_hot=False)
        if self._is_stale(entry, now) and (
            flight.was_served_stale or all(self.servers[i].is_resting(now) for i in among)
        ):
            flight.was_served_stale = True
            return self._give_up(waiter, entry, now)
        if len(flight.waiters) >= MAX_WAITERS:
            self.counters["overload"] += 1
            return self._give_up(waiter, entry, now)
        flight.waiters.append(waiter)
        if len(flight.waiters) == 1 and self._is_stale(entry, now):
            self.pending.arm(flight, min(flight.deadline, now + STALE_AFTER_S))
        return None

    def _start(self, flights: list[Flight[_Waiter]]) -> None:
        """Send questions for the first time, all to the server whose turn it is."""
        now = flights[-1].started
        at = choose(self.servers, flights[0].among, (), now)
        server = self.servers[at]
        if server.where.tls_name:
            for flight in flights:
                self._ask(flight, now)
            return
        self.counters["asked"] += len(flights)
        self._asks += self.pending.send_all(
            flights, at, now, server.timeout_s, case=server.keeps_case, edns=server.has_edns
        )

    def _ask(self, flight: Flight[_Waiter], now: float, *, stream: bool = False) -> None:
        """Send the question, to the server whose turn it is, or again to the same one over a stream."""
        at = flight.server if stream else choose(self.servers, flight.among, flight.tried, now)
        server = self.servers[at]
        stream = stream or bool(server.where.tls_name)
        # Twice as long at each try: on a satellite link the first ones fall short, and only an answer tells us so.
        wait = STREAM_TIMEOUT_S if stream else server.timeout_s * (1 << min(2, len(flight.tried)))
        flight.try_until = now + wait
        self.counters["asked"] += 1
        self._asks.append(
            self.pending.send(
                flight, at, now, wait, stream=stream, case=server.keeps_case and not stream, edns=server.has_edns
            )
        )

    def receive_replies(self, datas: Sequence[bytes], server: int, channel: int, now: float) -> None:
        """Messages from an upstream, as many as there were on the socket `channel` (or STREAM)."""
        find, read, base, settings = self.pending.find_id, usual.read_reply, server << 16, self.settings
        decide, wall, second, now_ms = self._decider.decide_address, self._wall(now), int(now), int(now * 1000)
        sent_at = -1.0
        for data in datas:
            flight = find(base | data[0] << 8 | data[1]) if len(data) > HEADER else None
            # DNSSEC's askers are given more than answers.
            if (
                flight is None
                or flight.channel != channel
                or flight.flags & 1
                or not data.startswith(flight.question, HEADER)
                or (found := read(data, end := HEADER + len(flight.question), flight.qtype)) is None
            ):
                self._receive_unusual_reply(data, server, channel, now)
                continue
            flags, answers, until, ttl, is_even, addresses, is_plain = found
            sight = None
            if not is_plain:
                try:
                    sight = screen.look(data, _answers_of(data, end, answers))
                except WireError:
                    self._receive_unusual_reply(data, server, channel, now)
                    continue
            if not settings.min_ttl_s <= ttl <= settings.max_ttl_s:
                ttl, is_even = min(max(ttl, settings.min_ttl_s), settings.max_ttl_s), False
            body = data[end:until]
            entry = _new(Entry, (second, second + ttl, flags, answers, 0, body))
            if ttl:
                self.cache.put(flight.key, entry)
            sent_at = flight.sent_at
            self.pending.close(flight)
            if not is_even:
                body = _stamped(body, _answers_of(data, end, answers), end, ttl.to_bytes(4, "big"))
            waiters, flight.waiters = flight.waiters, []
            for waiter in waiters:
                _, _, client, _, _, decision, _, is_hot = waiter
                if decision is not ALLOWED or is_hot:
                    is_fine = False
                elif sight is not None:
                    is_fine = not (sight.has_ech and client.strip_ech) and self._objection(waiter, sight, now) is None
                else:
                    is_fine = True
                    for address in addresses:
                        if decide(address, client.group, wall).verdict is _BLOCK:
                            is_fine = False
                            break
                if is_fine:
                    self._hand_on(waiter, entry, body, addresses, now, now_ms)
                else:
                    whole = _Read(data[:until], _answers_of(data, end, answers))
                    self._replies.append(self._deliver(waiter, entry, now, cached=False, read=whole))
        if sent_at >= 0:
            self.servers[server].answered(now - sent_at)

    def _hand_on(
        self, waiter: _Waiter, entry: Entry, body: bytes, addresses: tuple[bytes, ...], now: float, now_ms: int
    ) -> None:
        """An answer just learned, to one who asked for it, with nothing to be changed in it: `_shape` and `_finish`."""
        query, peer, client, who, name, _, asked_at, _ = waiter
        number, asked_flags, _, qtype, _, question, edns = query
        flags = QR | RA | asked_flags & (RD | CD)
        if entry.flags and answer.wants_ad(query):
            flags |= AD
        if edns is None:
            data = _HEAD.pack(number, flags, 1, entry.answers, 0, 0) + question + body
        else:
            opt = answer.opt_record(0, 0, self._options(query)) if edns.options else _PLAIN_OPT
            data = _HEAD.pack(number, flags, 1, entry.answers, 0, 1) + question + body + opt
        if len(data) > answer.MIN_SIZE:
            data = data[:2] + answer.fitted(query, data[2:], is_stream=peer.is_stream)
        kept = addresses if len(addresses) <= MAX_ANSWERS else addresses[:MAX_ANSWERS]
        latency_ms = int((now - asked_at) * 1000)
        self._events.append(
            _new(
                Dns,
                (now_ms, who, name.decode("ascii"), qtype, 0, _ALLOW, _DEFAULT, "", client.name, kept, False,
                 latency_ms if latency_ms > 0 else 0, client.mac, ""),
            )
        )  # fmt: skip
        self._replies.append(_new(Reply, (data, peer, None)))

    def receive_reply(self, data: bytes, server: int, channel: int, now: float) -> None:
        """One message from an upstream, on the socket `channel` (or STREAM)."""
        self.receive_replies((data,), server, channel, now)

    def _receive_unusual_reply(self, data: bytes, server: int, channel: int, now: float) -> None:
        try:
            header = read_header(data)
            flight = self.pending.find_reply(server, channel, header.id)
            if flight is None or not header.flags & QR or header.flags & OPCODE:
                raise WireError("reply: nobody waits for it")
            end = HEADER + len(flight.question)
            if not self._is_ours(data, header, flight, end, now):
                return
            if header.flags & TC and channel != STREAM:
                self.counters["truncated"] += 1
                self._ask(flight, now, stream=True)
                return
            self._take(data, header, flight, end, now)
        except WireError:
            self.counters["bad_replies"] += 1

    def _is_ours(self, data: bytes, header: Header, flight: Flight[_Waiter], end: int, now: float) -> bool:
        question = data[HEADER:end]
        if question == flight.question and header.questions == 1:
            return True
        if header.questions == 0 and header.flags & 0xF in (Rcode.FORMERR, Rcode.NOTIMP):
            return self._is_ours_bare(flight, now)
        if question.lower() == flight.question.lower():
            # Either it does not keep letter case, or somebody guesses: a stream tells without a doubt.
            self.servers[flight.server].case_failures += 1
            self._ask(flight, now, stream=True)
            return False
        flight.strangers += 1
        if flight.strangers == MAX_STRANGERS:
            self._ask(flight, now, stream=True)
        raise WireError("reply: to another question")

    def _is_ours_bare(self, flight: Flight[_Waiter], now: float) -> bool:
        """FORMERR with nothing behind the header: how old servers answer EDNS (RFC 6891 7)."""
        server = self.servers[flight.server]
        if server.has_edns:
            server.has_edns = False
            self._ask(flight, now, stream=flight.channel == STREAM)
        else:
            self._try_again(flight, now)
        return False

    def _take(self, data: bytes, header: Header, flight: Flight[_Waiter], end: int, now: float) -> None:
        server = self.servers[flight.server]
        settings = self.settings
        try:
            is_signed = bool(flight.flags & 1)
            records, behind, rcode = read_kept(data, end, header, is_signed=is_signed)
            if rcode in _DISLIKES_EDNS and server.has_edns:
                self._is_ours_bare(flight, now)
                return
            entry = learn(
                data,
                flight.name,
                end,
                header,
                records,
                behind,
                rcode,
                int(now),
                is_signed=is_signed,
                min_ttl_s=settings.min_ttl_s,
                max_ttl_s=settings.max_ttl_s,
            )
        except WireError:
            self.counters["bad_replies"] += 1
            self._try_again(flight, now)
            return
        server.answered(now - flight.sent_at)
        rcode = entry.flags & 0xFFF
        if rcode not in _ANSWERS:
            if any(i not in flight.tried for i in flight.among):
                self._ask(flight, now)
                return
            before = self.cache.find(flight.key)
            if self._is_stale(before, now):  # RFC 8767 5: a failure to refresh is no reason to forget
                self._finish_flight(flight, None, now)
                return
        if entry.expires_s > entry.learned_s:
            self.cache.put(flight.key, entry)
        kept = entry.answers + entry.authorities
        # The same octets that `_shape` would put together, and the same records that it would find in them.
        read = _Read(data[:end] + entry.body, records if kept == len(records) else records[:kept])
        self._finish_flight(flight, entry, now, read)

    def receive_failure(self, server: int, channel: int, now: float, id: int | None = None) -> None:
        """A socket told that this server is not there (ICMP), or a stream to it broke. `id`: of the one question."""
        self.servers[server].failed(now)
        for flight in self.pending:
            if flight.server == server and flight.channel == channel and (id is None or flight.id == id):
                self._try_again(flight, now)

    def handle_timer(self, now: float) -> None:
        """Something that was in flight did not come back in time."""
        for flight in self.pending.due(now):
            if flight.waiters and now >= flight.waiters[0].asked_at + STALE_AFTER_S:
                entry = self.cache.find(flight.key)
                if self._is_stale(entry, now):
                    flight.was_served_stale = True
                    waiters, flight.waiters = flight.waiters, []
                    self._replies += [self._give_up(waiter, entry, now) for waiter in waiters]
            if now >= flight.try_until:
                self.servers[flight.server].failed(now)
                self._try_again(flight, now)
            else:
                self.pending.arm(flight, flight.try_until)

    def fold(self, now: float, *, is_last: bool = False) -> None:
        """Put what was folded on record: call about once a second, and at the end."""
        self._events += self.limiter.floods(now, is_last=is_last)

    def drain(self, now: float) -> None:
        """The end: whoever still waits is told, and put on record."""
        for flight in self.pending:
            self._finish_flight(flight, None, now)
        self.fold(now, is_last=True)

    def _try_again(self, flight: Flight[_Waiter], now: float) -> None:
        if len(flight.tried) >= MAX_TRIES or now - flight.started >= GIVE_UP_S:
            self._finish_flight(flight, None, now)
            return
        self._ask(flight, now)
        if flight.waiters and not flight.was_served_stale and self._is_stale(self.cache.find(flight.key), now):
            self.pending.arm(flight, min(flight.deadline, flight.waiters[0].asked_at + STALE_AFTER_S))

    def _finish_flight(
        self, flight: Flight[_Waiter], entry: Entry | None, now: float, read: _Read | None = None
    ) -> None:
        self.pending.close(flight)
        if entry is None:
            stale = self.cache.find(flight.key)
            self._replies += [self._give_up(waiter, stale, now) for waiter in flight.waiters]
        else:
            self._replies += [self._deliver(waiter, entry, now, cached=False, read=read) for waiter in flight.waiters]
        flight.waiters = []

    def _is_stale(self, entry: Entry | None, now: float) -> bool:
        """May this entry be served, out of date as it is?"""
        if entry is None or entry.flags & 0xFFF not in _ANSWERS:
            return False
        return entry.expires_s + self.settings.stale_s > now

    def _give_up(self, waiter: _Waiter, entry: Entry | None, now: float) -> Reply:
        """No upstream helps: what we knew, or SERVFAIL."""
        if entry is not None and self._is_stale(entry, now):
            self.counters["stale"] += 1
            return self._deliver(waiter, entry, now, cached=True, is_stale=True)
        self.counters["failed"] += 1
        return self._fail(waiter, waiter.decision, now, answer.NO_REACHABLE_AUTHORITY)

    def _fail(self, waiter: _Waiter, decision: Decision, now: float, ede: Ede | None = None) -> Reply:
        full = answer.tail(waiter.query, Rcode.SERVFAIL, ede=ede, options=self._options(waiter.query))
        return self._finish(waiter, full, Rcode.SERVFAIL, decision, (), now, cached=False, expires=0.0)

    # Serving an entry.

    def _deliver(
        self,
        waiter: _Waiter,
        entry: Entry,
        now: float,
        *,
        cached: bool,
        is_stale: bool = False,
        read: _Read | None = None,
    ) -> Reply:
        try:
            return self._shape(waiter, entry, now, cached, is_stale, read)
        except WireError:  # of a type that we look into, and malformed there: nothing a filter could pass on
            self.counters["bad_replies"] += 1
            return self._fail(waiter, waiter.decision, now)

    def _shape(
        self, waiter: _Waiter, entry: Entry, now: float, cached: bool, is_stale: bool, read: _Read | None
    ) -> Reply:
        query, decision, client = waiter.query, waiter.decision, waiter.client
        is_alias = decision.verdict is _REWRITE
        name = to_wire(decision.target) if is_alias else query.name
        question = name + query.question[-4:] if is_alias else query.question
        end = HEADER + len(question)
        counts = entry.answers, entry.authorities
        if read is None:
            data = bytes(HEADER) + question + entry.body
            records, _ = read_records(data, end, Header(0, 0, 1, *counts, 0))
        else:
            data, records = read
        sight = screen.look(data, records)
        objection = self._objection(waiter, sight, now)
        if objection is not None:
            return self._block(waiter, objection, now)
        left = entry.expires_s - (now if cached else entry.learned_s)
        expires: float = entry.expires_s
        if is_stale:
            left, expires = STALE_TTL_S, 0.0
        elif not records:
            expires = entry.expires_s  # nothing to stamp, but not for ever either
        ttl = max(0, int(left))
        if waiter.is_hot and expires:
            ttl = stamped(entry.expires_s, now)[0]
        flags = AD if entry.flags >> 8 & AD and answer.wants_ad(query) else 0
        strip = client.strip_ech and sight.has_ech
        if strip or is_alias:
            from dns.rewrite import Alias, reassemble  # brings dnslib, 2 MB that most venues need not pay

            alias = Alias(query.name, name, ttl) if is_alias else None
            body = reassemble(data, records, query.name, strip_ech=client.strip_ech, alias=alias, ttl=ttl)
        else:
            body = answer.Body(_stamped(data[end:], records, end, ttl.to_bytes(4, "big")), *counts, flags)
        rcode = entry.flags & 0xFFF
        ede = answer.STALE if is_stale else None
        full = answer.tail(query, rcode, body, ede, self._options(query))
        return self._finish(waiter, full, rcode, decision, sight.addresses, now, cached=cached, expires=expires)

    def _objection(self, waiter: _Waiter, sight: Sight, now: float) -> Decision | None:
        if sight is screen.NOTHING:
            return None
        query = waiter.query
        if (
            self.settings.rebind_protection
            and screen.rebinds(sight)
            and self._special.fate_of(query.name, waiter.name, query.qtype) is _ORDINARY
            and self._may_rebind.isdisjoint(parents(query.name))
        ):
            return _REBIND
        if waiter.decision is not ALLOWED and waiter.decision.reason in screen.EXPLICIT:
            return None
        return screen.objection(sight, self._decider, waiter.client.group, self._wall(now))

    def _options(self, query: Query) -> bytes:
        """EDNS options that the client asked for and that we have."""
        if query.edns is None or not self.settings.nsid:
            return b""
        if any(code == Option.NSID for code, _ in query.edns.options):
            return answer.option(Option.NSID, self.settings.nsid.encode())
        return b""

    def _finish(
        self,
        waiter: _Waiter,
        full: bytes,
        rcode: int,
        decision: Decision,
        addresses: tuple[bytes, ...],
        now: float,
        *,
        cached: bool,
        expires: float,
    ) -> Reply:
        """The answer, cut to the client's size, and the record of it."""
        query, peer, client = waiter.query, waiter.peer, waiter.client
        record = _new(
            Dns,
            (
                int(now * 1000),
                waiter.who,
                waiter.name.decode("ascii"),
                query.qtype,
                rcode,
                decision.verdict,
                decision.reason,
                decision.rule,
                client.name,
                addresses[:MAX_ANSWERS],
                cached,
                max(0, int((now - waiter.asked_at) * 1000)),
                client.mac,
                "",
            ),
        )
        self._events.append(record)
        tail = answer.fitted(query, full, is_stream=peer.is_stream)
        hot = None
        if waiter.is_hot and expires > now + 1:
            wall = self._wall(now)
            until = self._decider.valid_until(client.group, wall)
            valid_until = float(FOREVER) if wall is None or until >= FOREVER else now + until - wall
            again = record._replace(at_ms=0, client=b"", mac=b"", cached=True, latency_ms=0)
            hot = Hot(client.group, valid_until, expires, stamped(expires, now)[1], again)
        return Reply(query.id.to_bytes(2, "big") + tail, peer, hot)


def stamped(expires_s: float, now: float) -> tuple[int, int]:
    """The TTL to tell from now on, and until when: it is the truth at the end of that time, never too long."""
    until = int(now + min(STAMP_MAX_S, (expires_s - now) / 8)) + 1
    return max(0, int(expires_s - until)), until


def _stamped(body: bytes, records: Iterable[Record], start: int, ttl: bytes) -> bytes:
    """Octets that stood at `start` of a message, with another TTL in all records."""
    found = bytearray(body)
    for record in records:
        at = record.data - start
        found[at - 6 : at - 2] = ttl
    return bytes(found)


def _answers_of(data: bytes, end: int, answers: int) -> list[Record]:
    """The answer section's records, of a message whose question ends at `end`. Raises: WireError."""
    return read_records(data, end, _new(Header, (0, 0, 1, answers, 0, 0)))[0]


def _told_client(query: Query, who: bytes, mac: bytes) -> tuple[bytes, bytes]:
    """The client that dnsmasq asks for: its `add-mac` and `add-subnet=32,128` options."""
    for code, data in query.edns.options if query.edns is not None else ():
        if code == _ADD_MAC and len(data) == 6:
            mac = data
        elif code == Option.ECS and (data[:3], len(data)) in _WHOLE_SUBNETS:
            who = data[4:]
    return who, mac


def _is_loopback(address: bytes) -> bool:
    return address[:1] == b"\x7f" if len(address) == 4 else address == _LOOPBACKS[1]


def _packed(text: str) -> bytes:
    from ipaddress import ip_address  # once, at the start

    return ip_address(text).packed


_LOOPBACKS: Final = (b"\x7f\0\0\1", bytes(15) + b"\1")
_NULLS: Final = (bytes(4), bytes(16))
_REBIND: Final = Decision(Verdict.BLOCK, Reason.REBIND, "rebind")
_UNDECIDED: Final = Decision(Verdict.REFUSE, Reason.PROTOCOL)
_WHOLE_SUBNETS: Final = ((b"\0\1\x20", 8), (b"\0\2\x80", 20))
"""RFC 7871 6: family and source prefix of one whole address, and the option's length."""
_BLOCK_CODES: Final = {Reason.CATEGORY: answer.FILTERED, Reason.RULE: answer.FILTERED, Reason.WINDOW: answer.FILTERED}
"""RFC 8914 4.16-4.18: 15 by the operator, 16 imposed from outside, 17 by what the client's side asked for."""
