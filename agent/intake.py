"""The agent's half of the event link: which hook speaks, what is new, what must be acknowledged. Sans-I/O.

Frames in; records to the ring; acknowledgements, kills and maintenance records out.
Order of calls: `connected`, then `receive` for each frame, `disconnected`; `committed` after each flush to flash;
`handle_timer` about twice a second.
Rule: an acknowledgement is given only for what `committed` has been told is on flash, so that a frame a hook forgets is
a frame the ring holds. A frame that comes again, because we or the link died in between, is dropped by its number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import add
from typing import Final, NamedTuple, Protocol, TypeAlias, overload

from policy.errors import FrameError, StorageError
from policy.event import Dns, Event, Flood, Flow, Gap, Maintenance, Nat
from policy.frame import Ack, Beat, Bye, Events, Folded, FoldedFlows, Hello, Stream, read_up, unfold

SILENCE_MS: Final = 2_000
"""A worker that has said nothing for so long hangs: it would hold its queue's packets for ever, bypass or not."""
START_MS: Final = 5_000
"""A connection that has not said who it is for so long is closed."""
MAX_PEERS: Final = 64

Who: TypeAlias = tuple[bytes, bytes, str]
"""Client address, hardware address, session."""


class SessionOf(Protocol):
    """Whose an address (of a MAC) was at a time; `is_own`: the MAC is the packet's own, not the neighbour table's."""

    def __call__(self, address: bytes, mac: bytes, at_ms: int, *, is_own: bool = False) -> str: ...


class Visibility(Protocol):
    """What intake asks of `agent.visibility.Visibility`."""

    def learn(self, device: bytes, dns: Dns) -> None: ...

    def learn_all(self, device: bytes, look_ups: Iterable[Dns], at_ms: int) -> None: ...

    def settle(self, device: bytes, flow: Flow, times: int = 1) -> Flow: ...


class Ring(Protocol):
    """What intake asks of `storage.writer.Ring`."""

    def add(self, events: Sequence[Event], source: bytes = b"", seq: int = 0) -> None: ...

    def add_folded(
        self,
        templates: Sequence[Dns] | Sequence[Flow],
        which: Sequence[int],
        at_ms: Sequence[int],
        whos: Sequence[Who],
        who: Sequence[int],
        source: bytes = b"",
        seq: int = 0,
        ports: Sequence[int] = (),
    ) -> None: ...

    def marks(self) -> Mapping[bytes, int]: ...

    def forget(self, sources: list[bytes]) -> None: ...

    @property
    def last_commit_ms(self) -> int: ...


class Identity(NamedTuple):
    """Whose address it is, as far as the agent knows."""

    mac: bytes = b""
    session: str = ""


class _Peer:
    """One connection. `hello` is None until the hook has said who it is."""

    __slots__ = ("counters", "heard_ms", "hello", "left", "pid")

    def __init__(self, pid: int, now_ms: int) -> None:
        self.pid = pid
        self.heard_ms = now_ms
        self.hello: Hello | None = None
        self.left = False
        """It said goodbye."""
        self.counters: dict[str, int] = {}


class WorkerState(NamedTuple):
    """One worker as status shows it."""

    name: str
    pid: int
    silent_ms: int
    counters: Mapping[str, int]


class Intake:
    """All connections of the event socket. `identify` gives what is known of an address."""

    def __init__(
        self,
        ring: Ring,
        identify: Callable[[bytes], Identity],
        learn: Callable[[bytes, bytes], None],
        *,
        session_of: SessionOf | None = None,
        capture: Callable[[Sequence[Event]], Sequence[Event]] | None = None,
        takes_all: Callable[[], bool] | None = None,
        visibility: Visibility | None = None,
    ) -> None:
        """`session_of`: whose an address (of a MAC) was at a time; `capture`: what may be kept of records.

        `takes_all`: does `capture` give everything back as it is, now? Then look-ups in columns stay in columns.
        """
        self._ring = ring
        self._identify = identify
        self._learn = learn
        self._session_of = session_of
        self._capture = capture or _everything
        self._takes_all = takes_all or (lambda: capture is None)
        self._visibility = visibility
        self._peers: dict[int, _Peer] = {}
        self._marks: dict[bytes, int] = dict(ring.marks())
        self._since_ms = ring.last_commit_ms
        """When this agent's predecessor was last known to hear its hooks; 0: before this boot."""
        self._unacknowledged: dict[tuple[int, int], int] = {}
        """(connection, stream) -> highest sequence number added to the ring."""
        self._ended: dict[str, tuple[bytes, int]] = {}
        """Worker -> (incarnation, last heard) of one that ended without goodbye, until its successor speaks."""
        self.urgent = False
        """A critical record was added since the last `committed`."""
        self.pending = 0
        """Records added since the last `committed`."""
        self.counters: Final = {"frames": 0, "events": 0, "repeated": 0, "refused": 0, "killed": 0}

    def connected(self, connection: int, pid: int, now_ms: int) -> bool:
        """A hook connected; `pid` as the kernel tells it (SO_PEERCRED). False: too many, close it."""
        if len(self._peers) >= MAX_PEERS:
            return False
        self._peers[connection] = _Peer(pid, now_ms)
        return True

    def receive(self, connection: int, data: bytes, now_ms: int) -> Sequence[Event]:
        """Take one frame. Returns the records it brought that were new, completed, for whoever watches.

        Raises: FrameError; the caller closes the connection.
        """
        peer = self._peers[connection]
        try:
            frame = read_up(data)
        except FrameError:
            self.counters["refused"] += 1
            raise
        peer.heard_ms = now_ms
        self.counters["frames"] += 1
        if isinstance(frame, Hello):
            if peer.hello is not None:
                raise FrameError(f"hello: {peer.hello.role}/{peer.hello.worker} said hello twice")
            peer.hello = frame
            return self._greet(frame, now_ms)
        if peer.hello is None:
            raise FrameError("frame: expected hello first")
        match frame:
            case Beat(counters):
                peer.counters = counters
                return ()
            case Bye():
                peer.left = True
                self._forget([_source(peer.hello, stream) for stream in Stream])
                return self._note(now_ms, "stop", _name(peer.hello), "ok", f"pid {peer.pid}")
            case Events() | Folded() | FoldedFlows():
                return self._take(connection, peer.hello, frame)

    def disconnected(self, connection: int) -> None:
        """The connection is gone."""
        peer = self._peers.pop(connection)
        for stream in Stream:
            self._unacknowledged.pop((connection, stream), None)
        if peer.hello is not None and not peer.left:
            self._ended[_name(peer.hello)] = (peer.hello.incarnation, peer.heard_ms)

    def committed(self) -> list[tuple[int, Ack]]:
        """Everything added so far is on flash: the acknowledgements to send, by connection."""
        acks = [(connection, Ack(stream, seq)) for (connection, stream), seq in self._unacknowledged.items()]
        self._unacknowledged.clear()
        self.urgent = False
        self.pending = 0
        return acks

    def handle_timer(self, now_ms: int) -> list[tuple[int, int, str]]:
        """Connections that hang: (connection, pid, name); the caller kills the process and closes the connection."""
        hung = []
        for connection, peer in self._peers.items():
            limit = START_MS if peer.hello is None else SILENCE_MS
            if now_ms - peer.heard_ms > limit:
                hung.append((connection, peer.pid, _name(peer.hello) if peer.hello else "unknown"))
        return hung

    def record_kill(self, name: str, now_ms: int) -> Sequence[Event]:
        """A hung worker was killed: put it on record."""
        self.counters["killed"] += 1
        return self._note(now_ms, "kill", name, "ok", f"silent for more than {SILENCE_MS} ms")

    def record(self, event: Event) -> Sequence[Event]:
        """The agent's own record."""
        kept = self._capture((event,))
        if kept:
            self._ring.add(kept)
            self.urgent = True
            self.pending += 1
        return kept

    def record_later(self, event: Event) -> None:
        """The same for what need not be on flash at once: with the next flush."""
        if kept := self._capture((event,)):
            self._ring.add(kept)
            self.pending += 1

    def workers(self, now_ms: int) -> list[WorkerState]:
        """Who is connected now."""
        return sorted(
            WorkerState(_name(peer.hello), peer.pid, now_ms - peer.heard_ms, peer.counters)
            for peer in self._peers.values()
            if peer.hello is not None
        )

    def connections(self, role: str) -> list[int]:
        """Connections of one kind of hook, to send it a command."""
        return [c for c, peer in self._peers.items() if peer.hello is not None and peer.hello.role == role]

    def _greet(self, hello: Hello, now_ms: int) -> Sequence[Event]:
        name = _name(hello)
        marks = [source for source in self._marks if source.startswith(name.encode() + b":")]
        if any(source[len(name) + 1 : -1] == hello.incarnation for source in marks):
            # The link or this agent died, the hook did not: what it sends again is known by its number.
            self._ended.pop(name, None)
            return self._note(now_ms, "reconnect", name, "ok", f"pid {hello.pid}")
        started = self._note(now_ms, "start", name, "ok", f"pid {hello.pid}")
        ended = self._ended.pop(name, None)
        if ended is not None and ended[0] == hello.incarnation:  # it lost the link before its first record
            return started
        # What is left is of processes that are no more: nothing of it can be sent again. That one said no goodbye, or
        # its marks would be gone; if this agent did not see it end, it ended while no agent was there.
        self._forget(marks)
        from_ms = ended[1] if ended is not None else self._since_ms if marks else None
        if from_ms is None:
            return started
        gap = Gap(now_ms, name, -1, from_ms, now_ms, "process died")
        return (
            *started,
            *self.record(gap),
            *self._note(now_ms, "crash", name, "restarted", f"after {now_ms - from_ms} ms"),
        )

    def _take(self, connection: int, hello: Hello, frame: Events | Folded | FoldedFlows) -> Sequence[Event]:
        source = _source(hello, frame.stream)
        if frame.seq <= self._marks.get(source, 0):
            self.counters["repeated"] += 1
            self._unacknowledged[connection, frame.stream] = max(
                frame.seq, self._unacknowledged.get((connection, frame.stream), 0)
            )
            return ()
        self._marks[source] = frame.seq
        self._unacknowledged[connection, frame.stream] = frame.seq
        self.urgent = self.urgent or frame.stream == Stream.CRITICAL
        if isinstance(frame, Events):
            events: Sequence[Event] = self._capture([self._complete(event) for event in frame.events])
            self._ring.add(events, source, frame.seq)
        elif isinstance(frame, FoldedFlows):
            events = self._take_flows(frame, source)
        else:
            events = self._take_folded(frame, source)
        self.pending += len(events)
        self.counters["events"] += len(events)
        return events

    def _learn_folded(self, frame: Folded) -> None:
        """Who was answered what, each pair once however often it was asked."""
        if self._visibility is None:
            return
        asked: dict[int, set[int]] = {}
        if len(frame.clients) == 1:
            asked[0] = set(frame.which)
        else:
            for who, which in set(zip(frame.who, frame.which, strict=True)):
                asked.setdefault(who, set()).add(which)
        templates = frame.templates
        for who, wanted in asked.items():
            client = frame.clients[who]
            device = self._identify(client).mac or client
            self._visibility.learn_all(device, map(templates.__getitem__, wanted), frame.at_ms[-1])

    def _complete(self, event: Event) -> Event:
        """Fill in whose address it is."""
        if isinstance(event, Flow) and event.mac:
            self._learn(event.client, event.mac)
        if isinstance(event, Dns | Flow | Flood):
            known = self._identify(event.client)
            mac = event.mac or known.mac
            is_own = bool(event.mac)
            session = self._session(event.client, mac, known, event.at_ms, is_own=is_own)
            event = event._replace(mac=mac, session=session)
            if self._visibility is not None:
                if isinstance(event, Flow):
                    return self._visibility.settle(mac or event.client, event)
                if isinstance(event, Dns):
                    self._visibility.learn(mac or event.client, event)
            return event
        if isinstance(event, Nat):
            known = self._identify(event.client)
            return event._replace(session=self._session(event.client, known.mac, known, event.at_ms))
        return event

    def _session(self, address: bytes, mac: bytes, known: Identity, at_ms: int, *, is_own: bool = False) -> str:
        if self._session_of is None:
            return known.session
        return self._session_of(address, mac, at_ms, is_own=is_own)

    def _whos_of(self, frame: Folded) -> list[Who | None]:
        """Whose the look-ups of a frame are, by client; None: he had more than one session in the time of the frame."""
        if self._session_of is None:
            return [(client, *self._identify(client)) for client in frame.clients]
        first_ms, last_ms = min(frame.at_ms), max(frame.at_ms)
        whos: list[Who | None] = []
        for client in frame.clients:
            mac = self._identify(client).mac
            session = self._session_of(client, mac, first_ms)
            whos.append((client, mac, session) if self._session_of(client, mac, last_ms) == session else None)
        return whos

    def _take_folded(self, frame: Folded, source: bytes) -> Sequence[Event]:
        whos = self._whos_of(frame)
        self._learn_folded(frame)
        one_each = [who for who in whos if who is not None]
        if self._takes_all() and len(one_each) == len(whos):
            self._ring.add_folded(frame.templates, frame.which, frame.at_ms, one_each, frame.who, source, frame.seq)
            return _Unfolded(frame, one_each)
        events = [
            frame.templates[which]._replace(at_ms=at_ms, client=client, mac=mac, session=session)
            for which, at_ms, (client, mac, session) in zip(
                frame.which, frame.at_ms, self._who_each(frame, whos), strict=True
            )
        ]
        kept = self._capture(events)
        self._ring.add(kept, source, frame.seq)
        return kept

    def _take_flows(self, frame: FoldedFlows, source: bytes) -> Sequence[Event]:
        """Flows that are alike but for time and source port are compared with the look-ups once."""
        first_ms, last_ms = min(frame.at_ms), max(frame.at_ms)
        whos: list[Who] = []
        is_one_each = True
        for client, seen_mac in frame.clients:
            if seen_mac:
                self._learn(client, seen_mac)
            known = self._identify(client)
            mac = seen_mac or known.mac
            is_own = bool(seen_mac)
            session = self._session(client, mac, known, last_ms, is_own=is_own)
            is_one_each = is_one_each and session == self._session(client, mac, known, first_ms, is_own=is_own)
            whos.append((client, mac, session))
        if not (is_one_each and self._takes_all()):
            events = self._capture([self._complete(flow) for flow in unfold(frame)])
            self._ring.add(events, source, frame.seq)
            return events
        # Numbers for pairs of template and client: cheaper than the pairs.
        number = len(whos)
        pairs = frame.which if number == 1 else list(map(add, map(number.__mul__, frame.which), frame.who))
        settled: list[Flow] = []
        place: dict[int, int] = {}
        for pair, times in Counter(pairs).items():
            template, who = divmod(pair, number)
            client, mac, session = whos[who]
            # What `_replace` would make, in a fourth of its time.
            flow = Flow._make((last_ms, client, mac, *frame.templates[template][3:-1], session))
            if self._visibility is not None:
                flow = self._visibility.settle(mac or client, flow, times)
            place[pair] = len(settled)
            settled.append(flow)
        which = list(map(place.__getitem__, pairs))
        self._ring.add_folded(settled, which, frame.at_ms, whos, frame.who, source, frame.seq, frame.ports)
        return _UnfoldedFlows(settled, which, frame.at_ms, frame.ports)

    def _who_each(self, frame: Folded, whos: Sequence[Who | None]) -> Iterator[Who]:
        for at_ms, place in zip(frame.at_ms, frame.who, strict=True):
            who = whos[place]
            if who is None:
                client = frame.clients[place]
                known = self._identify(client)
                who = (client, known.mac, self._session(client, known.mac, known, at_ms))
            yield who

    def _note(self, now_ms: int, action: str, what: str, result: str, detail: str = "") -> Sequence[Event]:
        return self.record(Maintenance(now_ms, "agent", action, what, "", "", result, detail))

    def _forget(self, sources: list[bytes]) -> None:
        for source in sources:
            self._marks.pop(source, None)
        try:
            self._ring.forget(sources)
        except StorageError:  # then the next start takes an orderly end for a death: a record too many, none too few
            pass


class _MadeLate(Sequence[Event]):
    """Events of a frame one by one, made only if somebody wants to see them: most of the time nobody does."""

    def __init__(self, which: Sequence[int]) -> None:
        """`which`: of each event its template."""
        self._which = which

    def _made(self, at: int) -> Event:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._which)

    @overload
    def __getitem__(self, at: int) -> Event: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Event]: ...
    def __getitem__(self, at: int | slice) -> Event | Sequence[Event]:
        if isinstance(at, slice):
            return [self._made(i) for i in range(*at.indices(len(self)))]
        return self._made(at)


class _Unfolded(_MadeLate):
    """Look-ups."""

    def __init__(self, frame: Folded, whos: Sequence[Who]) -> None:
        super().__init__(frame.which)
        self._frame = frame
        self._whos = whos

    def _made(self, at: int) -> Event:
        frame = self._frame
        client, mac, session = self._whos[frame.who[at]]
        template = frame.templates[frame.which[at]]
        return template._replace(at_ms=frame.at_ms[at], client=client, mac=mac, session=session)


class _UnfoldedFlows(_MadeLate):
    """Flows."""

    def __init__(
        self, settled: Sequence[Flow], which: Sequence[int], at_ms: Sequence[int], ports: Sequence[int]
    ) -> None:
        super().__init__(which)
        self._settled, self._at_ms, self._ports = settled, at_ms, ports

    def _made(self, at: int) -> Event:
        return self._settled[self._which[at]]._replace(at_ms=self._at_ms[at], sport=self._ports[at])


def _everything(events: Sequence[Event]) -> Sequence[Event]:
    return events


def _name(hello: Hello) -> str:
    return f"{hello.role}/{hello.worker}"


def _source(hello: Hello, stream: int) -> bytes:
    """How the ring's marks call one stream of one process: `dns/0:` + incarnation + stream."""
    return _name(hello).encode() + b":" + hello.incarnation + bytes((stream,))
