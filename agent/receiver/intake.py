"""Takes in what devices sent: checks the chain and the signatures, keeps, acknowledges, raises alarms. Sans-I/O but for
the store.

    acks = intake.receive(topic, payload, now_ms)        # for any number of messages
    store.commit()                                       # then, and only then:
    publish(acks)

What cannot be right is set aside, raises an alarm, and is acknowledged all the same: a device must not be stuck for
ever behind one bad batch, and a person has to look at it anyway.
Rule: any message from any device is taken in or counted as bad; none of them stops the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from agent.receiver.store import Batch, Store, Stream
from agent.uplink import wire
from agent.uplink.signed import open_sealed, split
from agent.uplink.wire import Acks, Batches, Missing, Part, Piece, Topics, Urgent, event_of, identify
from policy.errors import CorruptError, MessageError
from policy.event import Event, Gap
from policy.signature import verify
from storage import chain
from storage.batch import unpack
from storage.clock import Sample
from storage.sealed import Sealed

MAX_TRIES: Final = 3
"""How often a segment that does not come together is asked for again."""
SILENT_BEATS: Final = 2.5
"""Heartbeats that may be missing before a router counts as silent: before the third is over."""
CLOCK_MS: Final = 60_000
"""How far a router's clock that says it is set may be from ours."""


class Answer(NamedTuple):
    """An acknowledgement to be published once everything is committed."""

    topics: Topics
    done: bytes = b""
    again: bytes = b""
    plain: bytes = b""


class Intake:
    """One receiver."""

    def __init__(self, store: Store, *, check: Callable[[bytes, bytes, bytes], bool] = verify) -> None:
        self._store, self._verify = store, check
        self._tries: dict[tuple[int, bytes], int] = {}
        self.counters: Final = {"records": 0, "messages": 0, "doubles": 0, "bad": 0, "segments": 0, "heartbeats": 0}

    def receive(self, topic: str, payload: bytes, now_ms: int) -> list[Answer]:
        """One message. `now_ms`: our wall clock. Raises: StorageError; never for what a device sent."""
        self.counters["messages"] += 1
        try:
            topics, what = wire.read_topic(topic)
        except MessageError:
            self.counters["bad"] += 1
            return []
        try:
            match what:
                case "records":
                    return self._records(topics, payload, identify(payload), now_ms)
                case "heartbeat":
                    self._heartbeat(topics, payload, now_ms)
                case "state":
                    self._state(topics, payload, now_ms)
                case "reply":
                    self._store.add_reply(topics, now_ms, payload)
        except MessageError as error:
            self.counters["bad"] += 1
            self._alarm(topics, "damaged", now_ms, f"{what}: {error}")
        return []

    def handle_timer(self, now_ms: int) -> list[tuple[str, str]]:
        """Now and then: who is silent? Returns venue and device of each that has just become so."""
        found = []
        for heard in self._store.devices():
            if not heard.received_ms or now_ms - heard.received_ms <= SILENT_BEATS * heard.every_s * 1000:
                continue
            topics = Topics(heard.venue, heard.device)
            if self._store.raise_alarm(topics, "silent", heard.received_ms, "no heartbeat"):
                found.append((heard.venue, heard.device))
        return found

    # --- records ------------------------------------------------------------------------------------------------

    def _records(self, topics: Topics, payload: bytes, identity: bytes, now_ms: int) -> list[Answer]:
        try:
            message = wire.read(payload)
        except MessageError as error:
            return [self._put_aside(topics, bytes(wire.RING_SIZE), payload, identity, str(error), now_ms)]
        return self._take(topics, message, payload, identity, now_ms)

    def _take(
        self, topics: Topics, message: wire.Message, payload: bytes, identity: bytes, now_ms: int
    ) -> list[Answer]:
        done = Answer(topics, done=identity)
        match message:
            case Batches():
                return self._batches(topics, message, payload, identity, now_ms)
            case Piece():
                return self._piece(topics, message, identity, now_ms)
            case Part():
                return self._part(topics, message, identity, now_ms)
            case Missing():
                stream = self._store.stream(topics, message.ring)
                if self._store.add_lost(stream, message.segment, message.first_seq, message.next_seq, message.why):
                    span = f"records {message.first_seq} to {message.next_seq - 1}"
                    self._alarm(topics, "lost", now_ms, f"{span} of segment {message.segment}: {message.why}")
                return [done]
            case Urgent():
                self._urgent(topics, message)
                return []
            case Acks():
                raise MessageError("an acknowledgement from a device")

    def _batches(self, topics: Topics, message: Batches, payload: bytes, identity: bytes, now_ms: int) -> list[Answer]:
        stream = self._store.stream(topics, message.ring)
        try:
            batches = _linked(message, self._store.link_at(stream, message.first_seq))
        except CorruptError as error:
            if message.packed:
                # Perhaps it is only that our zlib makes other octets of the same records than the router's.
                return [Answer(topics, plain=identity)]
            return [self._put_aside(topics, message.ring, payload, identity, str(error), now_ms)]
        before = self._store.link_at(stream, message.first_seq)
        if message.before and before and before != message.before:
            self._alarm(topics, "chain", now_ms, f"record {message.first_seq}: does not follow what came before it")
        after = self._store.before_at(stream, message.next_seq)
        if after and after != message.link:
            self._alarm(topics, "chain", now_ms, f"record {message.next_seq}: does not follow what comes before it")
        new, conflict = 0, 0
        for batch in batches:
            if not self._store.overlaps(stream, batch.first_seq, batch.next_seq):
                self._keep(topics, stream, batch, now_ms)
                new += 1
            elif not self._is_here(stream, batch):
                conflict = conflict or batch.first_seq
        if conflict:
            self._store.set_aside(stream, payload, "conflict")
            self._alarm(topics, "conflict", now_ms, f"record {conflict}: another batch of this number came")
        self.counters["doubles"] += not new
        self._check_anchors(topics, stream, message.first_seq, message.next_seq, now_ms)
        return [Answer(topics, done=identity)]

    def _is_here(self, stream: Stream, batch: Batch) -> bool:
        """All of this batch, as itself or in its sealed segment."""
        present = self._store.batch_at(stream, batch.first_seq)
        if present is not None:
            return (present.first_seq, present.link) == (batch.first_seq, batch.link)
        sealed = self._store.sealed_at(stream, batch.first_seq)
        return sealed is not None and sealed[0] == batch.segment and sealed[1] >= batch.next_seq

    def _keep(self, topics: Topics, stream: Stream, batch: Batch, now_ms: int) -> None:
        """One batch that is not here."""
        try:
            columns = unpack(batch.row.data)
            if len(columns) != batch.row.records:
                raise CorruptError(f"batch {batch.first_seq}: {len(columns)} records, announced {batch.row.records}")
        except CorruptError as error:
            # It is what was written, says the chain: so it is kept, and somebody is told.
            self._alarm(topics, "damaged", now_ms, str(error))
        else:
            self._compare_urgent(topics, stream, batch, columns.events, now_ms)
            # What went ahead may have been lost on its way: nobody acknowledges it.
            for _, event in columns.others:
                self._explain(topics, event, batch.row.wall_ms - batch.row.mono_ms)
        self._store.add_batch(stream, batch)
        self.counters["records"] += batch.row.records

    def _compare_urgent(
        self, topics: Topics, stream: Stream, batch: Batch, events: Callable[[], Any], now_ms: int
    ) -> None:
        """What was said ahead must be what stands in the chain."""
        ahead = self._store.take_urgent(stream, batch.first_seq, batch.next_seq)
        if not ahead:
            return
        records = list(events())
        for seq, record in ahead:
            try:
                is_same = event_of(record) == records[seq - batch.first_seq]
            except (MessageError, IndexError):
                is_same = False
            if not is_same:
                self._alarm(topics, "chain", now_ms, f"record {seq}: was said to be another before its batch came")

    def _piece(self, topics: Topics, piece: Piece, identity: bytes, now_ms: int) -> list[Answer]:
        stream, done = self._store.stream(topics, piece.ring), Answer(topics, done=identity)
        if self._store.sealed_at(stream, piece.first_seq) == (piece.segment, piece.next_seq):
            self.counters["doubles"] += 1
            self._store.drop_pieces(stream, piece.root)
            return [done]
        octets = self._store.add_piece(stream, piece.root, piece.size, piece.offset, piece.data)
        if octets is None:
            return [done]
        self._store.drop_pieces(stream, piece.root)
        path = self._store.unpacked(stream, piece, octets)
        try:
            self._seal(topics, stream, piece, path, now_ms)
        except CorruptError as error:
            os.unlink(path)
            tries = self._tries[stream.number, piece.root] = self._tries.get((stream.number, piece.root), 0) + 1
            if tries < MAX_TRIES:
                return [Answer(topics, again=identity)]
            return [self._put_aside(topics, piece.ring, octets, identity, str(error), now_ms)]
        self._tries.pop((stream.number, piece.root), None)
        return [done]

    def _seal(self, topics: Topics, stream: Stream, piece: Piece, path: str, now_ms: int) -> None:
        """A whole segment: all of its parts must be what its root says. Raises: CorruptError."""
        sealed = Sealed(path, piece.segment)
        try:
            for _ in sealed.check():
                pass
            announced = (piece.root, piece.first_seq, piece.next_seq)
            if (sealed.root, sealed.first_seq, sealed.next_seq) != announced:
                raise CorruptError(f"segment {piece.segment}: is not the one that was announced")
            is_signed = bool(stream.public_key) and self._verify(stream.public_key, sealed.root, sealed.signature)
            if stream.public_key and not is_signed:
                self._alarm(topics, "signature", now_ms, f"segment {piece.segment}: not signed by this router's key")
                if self._store.overlaps(stream, sealed.first_seq, sealed.next_seq):
                    raise CorruptError(f"segment {piece.segment}: not signed, so it replaces nothing that is here")
            before = self._store.link_at(stream, sealed.first_seq)
            if before and before != sealed.before:
                self._alarm(topics, "chain", now_ms, f"segment {piece.segment}: does not follow the one before it")
            last = self._store.link_at(stream, sealed.next_seq)
            after = self._store.before_at(stream, sealed.next_seq)
            if (after and after != sealed.head) or (last and last != sealed.head):
                self._alarm(topics, "chain", now_ms, f"segment {piece.segment}: its end is not what was sent before")
            self._store.take_urgent(stream, sealed.first_seq, sealed.next_seq)
            self._store.add_sealed(stream, sealed, path, is_signed=is_signed)
            self._check_anchors(topics, stream, sealed.first_seq, sealed.next_seq, now_ms)
            self.counters["segments"] += 1
            self.counters["records"] += sealed.next_seq - sealed.first_seq
        finally:
            sealed.close()

    def _part(self, topics: Topics, part: Part, identity: bytes, now_ms: int) -> list[Answer]:
        stream = self._store.stream(topics, part.ring)
        octets = self._store.add_piece(stream, part.whole, part.size, part.offset, part.data)
        if octets is None:
            return [Answer(topics, done=identity)]
        self._store.drop_pieces(stream, part.whole)
        if wire.whole_hash(octets) != part.whole:
            return [Answer(topics, again=identity)]
        try:
            message = wire.read(octets, wire.MAX_WHOLE)
        except MessageError as error:
            return [self._put_aside(topics, part.ring, octets, identity, str(error), now_ms)]
        if isinstance(message, Part):
            return [self._put_aside(topics, part.ring, octets, identity, "a part of a part", now_ms)]
        return self._take(topics, message, octets, identity, now_ms)

    def _urgent(self, topics: Topics, message: Urgent) -> None:
        stream = self._store.stream(topics, message.ring)
        for record in message.records:
            seq = int(str(record["seq"]))
            present = self._store.overlaps(stream, seq, seq + 1)
            if not present:
                self._store.add_urgent(stream, seq, record)
            event = event_of(record)
            self._explain(topics, event, int(str(record["wall_ms"])) - event.at_ms)

    def _explain(self, topics: Topics, event: Event, offset_ms: int) -> None:
        """A device's own word on when it was not to be heard, for the alarm about it."""
        if isinstance(event, Gap) and event.source in ("uplink", "agent"):
            bounds = [min(max(0, at_ms + offset_ms), wire.MAX_NUMBER) for at_ms in (event.from_ms, event.to_ms)]
            self._store.explain_alarm(topics, "silent", bounds[0], bounds[1], event.why)

    def _put_aside(self, topics: Topics, ring: bytes, payload: bytes, identity: bytes, why: str, now_ms: int) -> Answer:
        self.counters["bad"] += 1
        self._store.set_aside(self._store.stream(topics, ring), payload, why)
        self._alarm(topics, "chain" if "chain" in why else "damaged", now_ms, why)
        return Answer(topics, done=identity)

    # --- heartbeat ----------------------------------------------------------------------------------------------

    def _heartbeat(self, topics: Topics, payload: bytes, now_ms: int) -> None:
        _, ring, _ = split(payload)
        stream = self._known(topics, ring, payload, now_ms)
        if stream is None:
            return
        octets, _ = open_sealed(b"heartbeat", payload, {ring: stream.public_key}, self._verify)
        fields = wire.unpack_map(wire.inflated(octets))
        mono_ms, boot, every_s = fields.get("mono_ms"), fields.get("boot"), fields.get("every_s")
        wall_ms, chain_of = fields.get("wall_ms"), fields.get("chain")
        numbers = (mono_ms, every_s, wall_ms)
        if not all(type(one) is int for one in numbers) or type(boot) is not str or not isinstance(chain_of, dict):
            raise MessageError("heartbeat: expected mono_ms, wall_ms, every_s, boot and chain")
        assert isinstance(mono_ms, int)
        assert isinstance(every_s, int)
        assert isinstance(wall_ms, int)
        if not 0 <= mono_ms < wire.MAX_NUMBER or not boot.isascii() or len(boot) > 64:
            raise MessageError("heartbeat: expected a time since boot, and the name of one")
        if not self._store.is_next_beat(topics, boot, mono_ms):
            return  # sent twice by the broker, or shown again by somebody: of this boot, or of one long ago
        self.counters["heartbeats"] += 1
        self._store.add_heartbeat(topics, now_ms, min(max(every_s, 1), 86_400), fields)
        self._store.close_alarm(topics, "silent", now_ms)
        self._check_head(topics, stream, chain_of, now_ms)
        if fields.get("clock") == "synced" and abs(wall_ms - now_ms) > CLOCK_MS:
            self._alarm(topics, "clock", now_ms, "says that its clock is set, but it is not ours")
        else:
            self._store.close_alarm(topics, "clock", now_ms)

    def _check_head(self, topics: Topics, stream: Stream, said: Mapping[str, Any], now_ms: int) -> None:
        """The signed head of the chain, against what came: an anchor that nobody on the way can move."""
        seq, head = said.get("next_seq"), said.get("head")
        if type(seq) is not int or not 0 <= seq < wire.MAX_NUMBER or type(head) is not bytes:
            raise MessageError("heartbeat: expected next_seq and head")
        link = self._store.link_at(stream, seq)
        if not link and seq > 1:  # its records are still to come
            link = self._store.add_anchor(stream, seq, head)
        if link and link != head:
            self._alarm(topics, "chain", now_ms, f"record {seq}: the router's signed head is another than what came")

    def _check_anchors(self, topics: Topics, stream: Stream, first_seq: int, next_seq: int, now_ms: int) -> None:
        """Heads that were signed before their records came. Within a sealed segment only its end has a link."""
        for seq, head in self._store.take_anchors(stream, first_seq, next_seq):
            link = self._store.link_at(stream, seq)
            if link and link != head:
                self._alarm(topics, "chain", now_ms, f"record {seq}: is not what the router's signed head says")

    def _known(self, topics: Topics, ring: bytes, payload: bytes, now_ms: int) -> Stream | None:
        """Whose heartbeat it is; the first key that a device shows is believed, a second one is an alarm."""
        stream = self._store.stream(topics, ring)
        if stream.public_key:
            return stream
        octets, _, _ = split(payload)
        public = wire.unpack_map(wire.inflated(octets)).get("public_key")
        if type(public) is not bytes or len(public) != 32 or public[:8] != ring:
            raise MessageError("heartbeat: expected the public key that it names")
        open_sealed(b"heartbeat", payload, {ring: public}, self._verify)
        others = [one for one in self._store.streams() if one[1:3] == topics and one.public_key and one.ring != ring]
        if others:
            self._alarm(topics, "key", now_ms, f"its records are signed by another key since: {ring.hex()}")
            if any(one.is_enrolled for one in others):
                return None  # somebody has entered a key: another needs somebody, too
        stream = self._store.set_key(topics, public, enrolled=False)
        for segment, root, signature in self._store.unsigned(stream):
            if self._verify(public, root, signature):
                self._store.set_signed(stream, segment)
            else:
                self._alarm(topics, "signature", now_ms, f"segment {segment}: not signed by this router's key")
        return stream

    def _state(self, topics: Topics, payload: bytes, now_ms: int) -> None:
        if not payload:
            return
        state = wire.unpack_map(payload).get("state")
        if state not in ("online", "offline", "lost"):
            raise MessageError(f"state: expected online, offline or lost, got {state!r:.40}")
        self._store.set_state(topics, str(state))

    def _alarm(self, topics: Topics, kind: str, now_ms: int, text: str) -> None:
        self._store.raise_alarm(topics, kind, now_ms, text[:500])


def _linked(message: Batches, known: bytes) -> list[Batch]:
    """Each batch with its links. Raises: CorruptError if the last is not what was announced."""
    before, seq, found = message.before or known, message.first_seq, []
    for row in message.rows:
        sample = Sample(message.boot, row.mono_ms, row.wall_ms, row.synced)
        link = chain.link(before, message.segment, seq, row.records, sample, row.data) if before else message.link
        found.append(Batch(message.segment, seq, message.boot, row, before, link))
        before, seq = link, seq + row.records
    if before != message.link:
        raise CorruptError(f"record {message.first_seq}: its batches do not give the chain that was announced")
    return found
