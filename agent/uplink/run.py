"""The role `uplink`: its loop, wired. Ring to broker by `delivery`, orders by `orders`, the shell around both."""

from __future__ import annotations

import os
import random
import select
import signal
import sys
import time
from base64 import b64decode
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final

from agent.clock import SystemClock
from agent.uplink import wire
from agent.uplink.broker import Broker, LinkError, Login, UnsupportedVersionError, Will
from agent.uplink.delivery import Backoff, Delivery, Load, Send
from agent.uplink.heartbeat import build, what_matters
from agent.uplink.inside import AwayError, RefusedError, ask
from agent.uplink.orders import Orders, Reply
from agent.uplink.signed import seal
from agent.uplink.source import from_json
from agent.uplink.wire import MAX_DATA, Batches, Missing, Part, Piece, Row, Topics, identify
from hw.thermal import read_temperatures
from policy.config import Config
from policy.errors import ConfigError, GatehouseError, MessageError
from policy.signature import public_key, sign

POLL_S: Final = 1.0
"""Between two looks at the ring: how late a block may reach the centre."""
AHEAD_S: Final = 5.0
"""Between two messages of critical records: the first goes at once, and in a stream of them those of five seconds share
one message, for a message by itself costs more than the record in it."""
STATUS_S: Final = 5.0
"""Between two looks at the agent's status, for what has changed."""
LIVE_RECORDS: Final = 16_384
"""So many records go at once, however young: they fill a message."""
TAKE_BYTES: Final = 256 << 10
OUTAGE_MS: Final = 1000
"""An interruption from this length on is put on record."""
MAX_UNSAID: Final = 64
"""Notes for the maintenance log that wait for an agent that is away; the last are kept."""
GROUP_BYTES: Final = 96 << 10
"""Octets of batches, as stored, that are packed into one message."""
JOINED_BYTES: Final = 192 << 10
"""The same where nothing hurries, and their tables are joined: half of it is left."""


class Uplink:
    """Everything that one uplink process holds."""

    def __init__(self, config: Config, path: str) -> None:
        self.config, self._settings = config, config.uplink
        self.topics = Topics(config.main.venue, config.main.device)
        self.clock = SystemClock(trusted=config.main.clock == "trusted")
        self._control = os.path.join(config.main.run_dir, "control")
        self._random = random.SystemRandom().random
        stagger_s = config.uplink.stagger_s
        self._backoff = Backoff(self._random, stagger_s=stagger_s, first_s=max(1.0, stagger_s / 10))
        self._delivery = Delivery(self._random, bytes_s=config.uplink.bandwidth)
        self._files: dict[int, _File] = {}
        """By the number of the load."""
        self._bodies: dict[int, _Body] = {}
        self._numbers = 0
        self._last_link = b""
        self._last_seq = 0
        self._as_stored = False
        self._ring_key = _Key(os.path.join(config.ring.directory, "ring.key"))
        self._is_begun = False
        self._urgent_after = 0
        self._urgent_sent = 0
        self._ahead: list[Mapping[str, object]] = []
        """Critical records that wait until the last ones are AHEAD_S ago."""
        self._ahead_at = 0.0
        self._fresh_at, self._fresh_seq, self._fresh_link = 0.0, 0, b""
        self._behind = 0
        self._is_draining = False
        """There was a backlog, and it has not been taken to its end."""
        self._link: Broker | None = None
        self._linked_at = 0.0
        self._retry_at = time.monotonic() + self._backoff.next_delay_s()
        self._server = 0
        self._version = 4 if config.uplink.protocol == "3.1.1" else 5
        self._why = "not connected yet"
        self._said_why = ""
        self._alive = _Alive(os.path.join(config.main.run_dir, "uplink.alive"))
        self._down_since = self._alive.read(self.clock.boottime_ms())
        self._down_why = "the uplink ended"
        self._beats = 0
        self._beat_at = self._poll_at = self._status_at = self._take_at = 0.0
        self._matters: tuple[object, ...] = ()
        self._stamps = self._stamp_files()
        self._stopping = False
        self._unsaid: deque[dict[str, object]] = deque(maxlen=MAX_UNSAID)
        self._outages: deque[tuple[int, int, str]] = deque(maxlen=MAX_UNSAID)
        self._source = ""
        """Which of its lives the agent is in."""
        self._orders = Orders(config, path, self.clock, self._note, restart=self._stop)

    def run(self) -> None:
        """Until SIGTERM."""
        reader = _catch_signals()
        while not self._stopping:
            now = time.monotonic()
            if self._link is None and now >= self._retry_at:
                self._connect()
                continue
            if self._link is None and now >= self._status_at:
                self._status_at = now + STATUS_S
                self._report()  # the agent may have started since
            try:
                self._wait(reader, now)
                self._turn(time.monotonic())
            except LinkError as error:
                self._lose(str(error))
            except (AwayError, RefusedError, OSError) as error:
                # A segment is of another form by now; or the agent is away, or restarts. Everything that is not
                # acknowledged is taken again.
                self._is_begun = False
                self._poll_at = self._status_at = time.monotonic() + POLL_S
                if not isinstance(error, AwayError):
                    _say(f"the agent: {error}")
        self._say_goodbye()

    # --- the connection ----------------------------------------------------------------------------------------

    def _connect(self) -> None:
        settings = self._settings
        server = settings.server[self._server % len(settings.server)]
        login = Login(
            self.topics.identity,
            settings.tls,
            settings.ca,
            settings.certificate,
            settings.key,
            settings.keepalive_s,
        )
        will = Will(self.topics.of("state"), self._state("lost"))
        wanted = [(self.topics.of("ack"), 0), (self.topics.of("command"), 1)]
        try:
            self._link = Broker(server, login, wanted, version=self._version, will=will)
        except UnsupportedVersionError as error:
            if settings.protocol == "auto":
                self._version = 4
                self._retry_at = time.monotonic() + 0.5
                return
            self._fail(str(error))
            return
        except (LinkError, ConfigError) as error:
            self._version = 4 if settings.protocol == "3.1.1" else 5
            self._fail(str(error))
            return
        self._linked_at = time.monotonic()
        self._why = self._said_why = ""
        self._stamps = self._stamp_files()
        self._link.publish(self.topics.of("state"), self._state("online"), retain=True)
        self._beat_at = self._poll_at = self._status_at = self._take_at = 0.0
        self._is_begun = False
        _say(f"connected to {server[0]}, MQTT {'5' if self._version == 5 else '3.1.1'}")
        self._end_outage()

    def _fail(self, why: str) -> None:
        """No connection; the next server, after a while."""
        self._server += 1
        delay = self._backoff.next_delay_s()
        self._retry_at = time.monotonic() + delay
        self._why = why
        if why != self._said_why:
            self._said_why = why
            _say(f"{why}; again in {delay:.0f} s")
            self._note("connect", "uplink", f"refused: {why}")
        self._report()

    def _lose(self, why: str) -> None:
        """The connection is over."""
        assert self._link is not None
        self._note_good(self._link)
        self._link.abandon()
        self._link = None
        self._delivery.disconnected()
        self._down_since, self._down_why = self._alive.at_ms, why
        self._fail(why)

    def _end_outage(self) -> None:
        """There is a link again: what the centre did not hear has its bounds now."""
        now_ms, since_ms = self.clock.boottime_ms(), self._down_since
        self._down_since = 0
        if since_ms and now_ms - since_ms >= OUTAGE_MS:
            self._outages.append((since_ms, now_ms, f"no link to the centre: {self._down_why}"))
        self._alive.at_ms = now_ms

    def _tell_outages(self) -> None:
        """As records of their own. Until the agent has them, the file on tmpfs keeps the first moment."""
        while self._outages:
            from_ms, to_ms, why = self._outages[0]
            self._agent("gap", from_ms=from_ms, to_ms=to_ms, why=why)
            self._outages.popleft()

    def _say_goodbye(self) -> None:
        if self._link is None:
            return
        try:
            self._link.publish(self.topics.of("state"), self._state("offline"), retain=True)
            deadline = time.monotonic() + 1.0
            while self._link.wants_write and time.monotonic() < deadline:
                self._link.flush()
        except (LinkError, OSError, ValueError):
            pass
        self._note_good(self._link)
        self._link.close()

    def _state(self, state: str) -> bytes:
        now = self.clock.read()
        return wire.pack_map(
            {
                "k": "state",
                "state": state,
                "boot": self.clock.boot_id,
                "mono_ms": now.boottime_ms,
                "wall_ms": now.wall_ms,
            }
        )

    # --- one turn ----------------------------------------------------------------------------------------------

    def _wait(self, reader: int, now: float) -> None:
        link = self._link
        if link is None:
            wake = min(self._retry_at, self._status_at or now + 1)
            ready, _, _ = select.select([reader], [], [], max(0.0, min(wake - now, 1.0)))
        else:
            due = min(self._poll_at, self._status_at, self._delivery.next_timer(), now + 1.0)
            writing = [link.socket] if link.wants_write else []
            ready, _, _ = select.select([reader, link.socket], writing, [], max(0.0, due - now))
            if link.socket in ready:
                link.has_heard = True
        if reader in ready and signal.SIGTERM in os.read(reader, 4096):
            self._stopping = True

    def _turn(self, now: float) -> None:
        link = self._link
        if link is None:
            return
        link.work()
        self._note_good(link)
        inbound, link.inbound[:] = list(link.inbound), []
        for message in inbound:
            self._receive(message.topic, message.payload)
        self._delivery.handle_timer(now)
        if now >= self._poll_at:
            self._poll_at = now + POLL_S
            self._poll(link, now)
            self._watch_files()
        if now >= self._status_at:
            self._status_at = now + min(STATUS_S, self._settings.heartbeat_s / 2)
            self._beat(link, now)
        self._fill(now)
        self._send_fresh(link, now)
        self._send(link, now)
        link.flush()

    def _note_good(self, link: Broker) -> None:
        """While something is unanswered, the link was good until it was sent; else it is good now."""
        if link.has_heard:
            link.has_heard, link.unanswered_s = False, 0.0
        waiting_ms = int((time.monotonic() - link.unanswered_s) * 1000) if link.unanswered_s else 0
        self._alive.good_until(self.clock.boottime_ms() - waiting_ms, may_write=not self._outages)

    def _receive(self, topic: str, payload: bytes) -> None:
        try:
            _, what = wire.read_topic(topic)
            if what == "command":
                for reply in self._orders.receive(payload):
                    self._answer(reply)
                return
            acks = wire.read_acks(payload)
        except MessageError as error:
            _say(f"from the centre: {error}")
            return
        place = self._delivery.acknowledged(acks.done)
        for identity in acks.plain:
            self._send_as_stored(identity)
        for identity in acks.again:
            load = self._delivery.rejected(identity)
            if load is not None and self._delivery.is_stubborn(load):
                _say(f"the centre asks for segment after segment again, at record {load.next_seq}")
        if acks.done:
            self._backoff.worked()  # from end to end: whatever breaks now is a first failure
        if place is not None:
            self._agent("acknowledge", place=place)
            self._forget_delivered(place)

    def _answer(self, reply: Reply) -> None:
        if self._link is not None:
            signed = seal(b"reply", reply.payload, self._ring_key.sign, self._ring_key.ring)
            self._link.publish(self.topics.of("reply"), signed)
            self._link.flush()
        if reply.then is not None:
            reply.then()

    def _poll(self, link: Broker, now: float) -> None:
        """Critical records go at once; how far behind we are says whether bulk is due."""
        if not self._is_begun:
            self._begin()
        self._tell_outages()
        since_ms = max(0, self.clock.boottime_ms() - self._settings.urgent_s * 1000)
        records: list[Mapping[str, object]] = []
        for row in self._ask("poll", after=self._urgent_after, since_ms=since_ms):
            if row["kind"] == "urgent":
                records.append({name: from_json(value) for name, value in row["record"].items()})
                continue
            if row["source"] != self._source:
                self._is_begun = False  # the agent has started again, and does not know what we took
                self._poll_at = 0.0
                return
            self._behind = row["behind"]
            self._urgent_after = row["reached"]
        self._ahead += records
        if self._ahead and now >= self._ahead_at:
            records, self._ahead, self._ahead_at = self._ahead, [], now + AHEAD_S
            for at in range(0, len(records), wire.MAX_URGENT // 4):
                self._publish_urgent(link, tuple(records[at : at + wire.MAX_URGENT // 4]), now)

    def _publish_urgent(self, link: Broker, records: tuple[Mapping[str, object], ...], now: float) -> None:
        payload = wire.write(wire.Urgent(self._ring_key.ring, records))
        if len(payload) > wire.MAX_MESSAGE and len(records) > 1:
            half = len(records) // 2
            self._publish_urgent(link, records[:half], now)
            self._publish_urgent(link, records[half:], now)
            return
        link.publish(self.topics.of("records"), payload, is_often=True)
        self._urgent_sent += len(records)
        self._delivery.spend(len(payload), now)

    def _begin(self) -> None:
        """A new agent, or a new us: what was taken and not acknowledged is taken again."""
        for row in self._ask("begin"):
            self._source = row["source"]
        self._delivery.clear()
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._bodies.clear()
        self._last_link = b""
        self._urgent_after = 0
        self._ahead = []
        self._is_begun = True
        self._take_at = 0.0

    def _fill(self, now: float) -> None:
        """Take from the ring: at once if there is a backlog, else now and then."""
        while self._is_begun and self._delivery.wants():
            waiting = self._behind - self._held()
            # A backlog goes to its end, not to where the rest would wait for company again.
            self._is_draining = waiting >= LIVE_RECORDS or (self._is_draining and waiting > 0)
            if waiting <= 0 or (not self._is_draining and now < self._take_at):
                return
            self._take_at = now + self._settings.live_s
            if not self._take(is_live=not self._is_draining):
                self._is_draining = False
                return

    def _held(self) -> int:
        """Records that are taken and not acknowledged."""
        loads = [one.records for one in self._files.values()] + [one.records for one in self._bodies.values()]
        return sum(loads)

    def _take(self, *, is_live: bool) -> bool:
        rows: list[Mapping[str, Any]] = list(self._ask("take", bytes=TAKE_BYTES))
        group: list[Mapping[str, Any]] = []
        size = 0
        for row in rows:
            octets = len(row.get("data", "")) * 3 // 4
            is_full = size + octets > (JOINED_BYTES if is_live else GROUP_BYTES) or len(group) >= wire.MAX_BATCHES
            if group and (row["kind"] != "batch" or is_full or not _follows(group[-1], row)):
                self._put_batches(group, is_live)
                group, size = [], 0
            match row["kind"]:
                case "batch":
                    if not group and (self._last_link == b"" or self._last_seq != row["first_seq"]):
                        self._put_batches([row], is_live)  # what is before it is not known: it goes alone
                    else:
                        group.append(row)
                        size += octets
                case "sealed":
                    self._put_file(row)
                case _:
                    missing = Missing(
                        self._ring_key.ring, row["segment"], row["first_seq"], row["next_seq"], str(row["why"])[:1000]
                    )
                    self._put_body(wire.write(missing), missing.next_seq, 0, None)
                    self._last_link = b""
        if group:
            self._put_batches(group, is_live)
        return bool(rows)

    def _put_batches(self, rows: list[Mapping[str, Any]], is_live: bool) -> None:
        first, last = rows[0], rows[-1]
        batches = self._batches_of(rows, self._last_link if self._last_seq == first["first_seq"] else b"")
        self._last_link, self._last_seq = batches.link, last["next_seq"]
        swift = not is_live and not self._delivery.is_behind and not self._settings.bandwidth
        payload = wire.write_batches(batches, as_stored=self._as_stored, joined=is_live, swift=swift)
        self._put_body(payload, batches.next_seq, batches.next_seq - batches.first_seq, batches)

    def _batches_of(self, rows: list[Mapping[str, Any]], before: bytes) -> Batches:
        """Rows of the agent's that follow each other, as a message. `before`: the chain's link before them."""
        first = rows[0]
        packed = tuple(
            Row(
                row["next_seq"] - row["first_seq"],
                row["boottime_ms"],
                row["wall_ms"],
                row["synced"],
                b64decode(row["data"]),
            )
            for row in rows
        )
        names = (self._ring_key.ring, first["segment"], first["first_seq"], first["boot"])
        return Batches(*names, before, bytes.fromhex(rows[-1]["link"]), packed)

    def _send_fresh(self, link: Broker, now: float) -> None:
        """What clients do now, ahead of a backlog. Copies: should one be lost on its way, the backlog has it."""
        has_backlog = self._is_begun and self._behind >= LIVE_RECORDS
        if not self._settings.fresh or not has_backlog or now < self._fresh_at:
            return
        self._fresh_at = now + self._settings.live_s
        since_ms = max(0, self.clock.boottime_ms() - 2000 * self._settings.live_s)
        group: list[Mapping[str, Any]] = []
        for row in self._ask("fresh", after=max(self._fresh_seq - 1, 0), since_ms=since_ms):
            if group and not _follows(group[-1], row):
                self._publish_fresh(link, group, now)
                group = []
            if not group and self._fresh_seq != row["first_seq"]:
                self._fresh_link = b""
                self._publish_fresh(link, [row], now)  # what is before it is not known: it goes alone
            else:
                group.append(row)
        if group:
            self._publish_fresh(link, group, now)

    def _publish_fresh(self, link: Broker, rows: list[Mapping[str, Any]], now: float) -> None:
        batches = self._batches_of(rows, self._fresh_link)
        self._fresh_link, self._fresh_seq = batches.link, batches.next_seq
        payload = wire.write_batches(batches, as_stored=self._as_stored, joined=True)
        if len(payload) <= wire.MAX_MESSAGE - 256:
            link.publish(self.topics.of("records"), payload, is_often=True)
            self._delivery.spend(len(payload), now)

    def _put_body(self, payload: bytes, next_seq: int, records: int, batches: Batches | None) -> None:
        load = Load(self._numbers, next_seq, len(payload), _cut(payload))
        self._numbers += 1
        self._bodies[load.number] = _Body(load, payload, records, batches)
        self._delivery.put(load)

    def _put_file(self, row: Mapping[str, Any]) -> None:
        piece = Piece(
            self._ring_key.ring,
            row["segment"],
            row["first_seq"],
            row["next_seq"],
            row["level"],
            bytes.fromhex(row["root"]),
            row["size"],
            0,
            b"",
        )
        load = Load(self._numbers, piece.next_seq, piece.size, MAX_DATA)
        self._numbers += 1
        self._files[load.number] = _File(load, row["path"], piece)
        self._delivery.put(load)
        self._last_link = b""

    def _send_as_stored(self, identity: bytes) -> None:
        self._as_stored = True
        load = self._delivery.rejected(identity)
        body = self._bodies.get(load.number) if load is not None else None
        if load is None or body is None or body.batches is None:
            return
        body.payload = wire.write_batches(body.batches, as_stored=True)
        self._delivery.replace(load, len(body.payload), _cut(body.payload))
        body.load = load._replace(size=len(body.payload), piece=_cut(body.payload))

    def _send(self, link: Broker, now: float) -> None:
        while (send := self._delivery.next_send(now)) is not None:
            try:
                payload = self._payload(send)
            except OSError as error:
                # The segment is of another form by now, or gone: the cursor says what is to be had instead.
                _say(f"segment: {error}")
                self._is_begun = False
                self._poll_at = 0.0
                return
            if not link.publish(self.topics.of("records"), payload, is_often=True):
                return
            self._delivery.sent(send, identify(payload), len(payload), now)
            link.flush()

    def _payload(self, send: Send) -> bytes:
        file = self._files.get(send.load.number)
        if file is not None:
            return wire.write(file.piece._replace(offset=send.offset, data=file.read(send.offset, send.length)))
        body = self._bodies[send.load.number]
        if send.length == len(body.payload):
            return body.payload
        whole = wire.whole_hash(body.payload)
        data = body.payload[send.offset : send.offset + send.length]
        return wire.write(Part(self._ring_key.ring, whole, len(body.payload), send.offset, data))

    def _forget_delivered(self, place: int) -> None:
        for number in [number for number, file in self._files.items() if file.load.next_seq <= place]:
            self._files.pop(number).close()
        for number in [number for number, body in self._bodies.items() if body.load.next_seq <= place]:
            self._behind -= self._bodies.pop(number).records

    # --- heartbeat ---------------------------------------------------------------------------------------------

    def _beat(self, link: Broker, now: float) -> None:
        (status,) = ask(self._control, {"do": "status"})
        matters = what_matters(status)
        self._report()
        if now < self._beat_at and matters == self._matters:
            return
        self._matters = matters
        self._beat_at = now + self._settings.heartbeat_s - min(STATUS_S, self._settings.heartbeat_s / 2) / 2
        self._beats += 1
        clock = self.clock.read()
        octets = build(
            status,
            number=self._beats,
            wall_ms=clock.wall_ms,
            mono_ms=clock.boottime_ms,
            boot=self.clock.boot_id,
            public_key=self._ring_key.public_key,
            uplink=self._counters(),
            temperatures=read_temperatures(),
            every_s=self._settings.heartbeat_s,
        )
        said = seal(b"heartbeat", wire.deflated(octets), self._ring_key.sign, self._ring_key.ring)
        link.publish(self.topics.of("heartbeat"), said)

    def _counters(self) -> dict[str, object]:
        counters = {"behind": self._behind, "urgent": self._urgent_sent, **self._delivery.counters}
        return {**counters, **self._orders.counters}

    def _stop(self) -> None:
        """The launcher starts us again, with the configuration as it then is."""
        self._stopping = True

    def _report(self) -> None:
        report = {
            "why": self._why,
            "since_s": int(time.time() - time.monotonic() + self._linked_at),
            **self._counters(),
        }
        try:
            self._agent("report", report=report)
            self._say_notes()
        except (AwayError, RefusedError):
            pass

    # --- the agent ---------------------------------------------------------------------------------------------

    def _ask(self, action: str, **fields: object) -> Iterator[Any]:
        return ask(self._control, {"do": "uplink", "action": action, **fields})

    def _agent(self, action: str, **fields: object) -> None:
        for _ in self._ask(action, **fields):
            pass

    def _note(
        self, act: str, what: str, result: str, detail: str = "", actor: str = "uplink", old: str = "", new: str = ""
    ) -> None:
        """On the maintenance log."""
        fields: dict[str, object] = {
            "actor": actor,
            "act": act,
            "object": what,
            "old": old,
            "new": new,
            "result": result,
            "detail": detail,
        }
        self._unsaid.append(fields)
        self._say_notes()

    def _say_notes(self) -> None:
        """What an agent that was away has not heard yet."""
        try:
            while self._unsaid:
                self._agent("note", **self._unsaid[0])
                self._unsaid.popleft()
        except (AwayError, RefusedError):
            pass

    def _stamp_files(self) -> tuple[tuple[int, int], ...]:
        found = []
        for path in (self._settings.ca, self._settings.certificate, self._settings.key):
            try:
                stat = os.stat(path)
            except OSError:
                continue
            found.append((stat.st_mtime_ns, stat.st_ino))
        return tuple(found)

    def _watch_files(self) -> None:
        """A renewed certificate is used at once, not when the old one has expired in the middle of a night."""
        if self._settings.tls and self._stamp_files() != self._stamps:
            self._backoff.worked()
            raise LinkError("the certificate was renewed")


class _Body:
    """A message, held until it is acknowledged."""

    __slots__ = ("batches", "load", "payload", "records")

    def __init__(self, load: Load, payload: bytes, records: int, batches: Batches | None) -> None:
        self.load, self.payload, self.records, self.batches = load, payload, records, batches


class _File:
    """A sealed segment on its way, read a piece at a time."""

    __slots__ = ("_file", "load", "piece")

    def __init__(self, load: Load, path: str, piece: Piece) -> None:
        self.load, self.piece = load, piece
        # Kept open: should the segment be stepped down meanwhile, this is still what was announced.
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        if os.fstat(self._file.fileno()).st_size != piece.size:
            self._file.close()
            raise OSError(f"{path}: is of another form by now")

    @property
    def records(self) -> int:
        return self.piece.next_seq - self.piece.first_seq

    def read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._file.fileno(), length, offset)
        if len(data) != length:
            raise OSError("shorter than it was")
        return data

    def close(self) -> None:
        self._file.close()


class _Key:
    """The ring's own key, with which heartbeats are signed: the agent makes it on the first day."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._secret = self._ring = self._public = b""

    @property
    def public_key(self) -> bytes:
        """32 octets; zeros: there is none yet."""
        return self._public if self.ring.strip(b"\0") else bytes(32)

    @property
    def ring(self) -> bytes:
        """The ring's name: the first octets of its public key. Zeros: it has none yet."""
        if not self._ring:
            try:
                with open(self._path, "rb") as file:
                    secret = file.read()
            except OSError:
                return bytes(wire.RING_SIZE)
            if len(secret) != 32:
                return bytes(wire.RING_SIZE)
            self._secret, self._public = secret, public_key(secret)
            self._ring = self._public[: wire.RING_SIZE]
        return self._ring

    def sign(self, octets: bytes) -> bytes:
        """64 octets; zeros: there is no key."""
        return sign(self._secret, octets) if self._secret else bytes(64)


class _Alive:
    """Until when the link was good: what was sent before was answered. On tmpfs, for a killed uplink's successor."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.at_ms = 0
        self._written_ms = 0

    def read(self, now_ms: int) -> int:
        """0: nobody knows."""
        try:
            with open(self._path, encoding="ascii") as file:
                self.at_ms = int(file.read())
        except (OSError, ValueError):
            return 0
        return self.at_ms if self.at_ms <= now_ms else 0

    def good_until(self, at_ms: int, *, may_write: bool) -> None:
        self.at_ms = at_ms
        if not may_write or 0 <= at_ms - self._written_ms < 500:
            return
        self._written_ms = at_ms
        try:
            with open(self._path, "w", encoding="ascii") as file:
                file.write(str(at_ms))
        except OSError:
            pass


def _follows(last: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    is_same = row["segment"] == last["segment"] and row["boot"] == last["boot"]
    return bool(is_same and row["first_seq"] == last["next_seq"])


def _cut(payload: bytes) -> int:
    """Octets in one message."""
    return len(payload) if len(payload) <= wire.MAX_MESSAGE - 256 else MAX_DATA


def _catch_signals() -> int:
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return reader


def _say(text: str) -> None:
    print(f"uplink: {text}", file=sys.stderr, flush=True)


def run(config: Config, path: str) -> int:
    """The role `uplink`. Returns the exit status."""
    if not config.uplink.enabled:
        raise ConfigError("gatehouse.uplink.enabled: expected 1 for this process to run")
    try:
        Uplink(config, path).run()
    except GatehouseError as error:
        _say(str(error))
        return 1
    return 0
