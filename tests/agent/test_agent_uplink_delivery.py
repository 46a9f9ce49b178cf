"""Delivery over a line that loses, doubles and breaks: everything is at the centre once, and the cursor never lies."""

import random
from itertools import pairwise
from pathlib import Path

import pytest

from agent.receiver.intake import Intake
from agent.receiver.reader import Centre
from agent.receiver.store import SqliteStore
from agent.uplink import wire
from agent.uplink.delivery import ACK_S, Backoff, Delivery, Load, Send
from agent.uplink.wire import Batches, Missing, Part, Piece, Row, Topics, identify
from policy.event import Dns
from storage.cursor import Bulk, Cursor, Lost, Taken
from storage.filter import Filter
from storage.retention import DAY_MS
from storage.writer import Ring
from tests.storage.test_storage_cursor import settle
from tests.storage.test_storage_ring import FakeClock, look_up

TOPICS = Topics("11010500000001", "100000001020000000001")


def test_the_place_moves_over_what_is_acknowledged_from_end_to_end() -> None:
    delivery = Delivery(lambda: 0.0)
    for number in range(3):
        delivery.put(Load(number, 10 * (number + 1), 100, 60))
    sent = []
    while (send := delivery.next_send(0.0)) is not None:
        delivery.sent(send, b"%d/%d" % (send.load.number, send.offset), send.length, 0.0)
        sent.append((send.load.number, send.offset, send.length))
    assert sent == [(n, at, length) for n in range(3) for at, length in ((0, 60), (60, 40))]
    assert delivery.acknowledged([b"1/0", b"1/60", b"0/0"]) is None
    assert delivery.acknowledged([b"0/60"]) == 20
    assert delivery.acknowledged([b"0/60", b"what?"]) is None
    assert delivery.acknowledged([b"2/0", b"2/60"]) == 30
    assert delivery.is_idle


def test_what_is_not_acknowledged_goes_again_later_and_later() -> None:
    delivery = Delivery(lambda: 0.0)
    delivery.put(Load(0, 10, 100, 100))
    times = [0.0]
    for _ in range(6):
        now = times[-1]
        delivery.handle_timer(now)
        send = delivery.next_send(now)
        assert send is not None
        delivery.sent(send, b"id", 100, now)
        assert delivery.next_send(now) is None
        times.append(delivery.next_timer())
    waits = [after - before for before, after in pairwise(times)]
    assert waits == [ACK_S, 2 * ACK_S, 4 * ACK_S, 8 * ACK_S, 300.0, 300.0]


@pytest.mark.parametrize("how", ["too late", "over a new connection"])
def test_an_acknowledgement_that_comes_late_counts_before_it_is_sent_again(how: str) -> None:
    """A line of 64 kbit/s needs a minute for a window: what it has carried must not go twice."""
    delivery = Delivery(lambda: 0.0)
    for number in range(2):
        delivery.put(Load(number, 10 * (number + 1), 100, 100))
    while (send := delivery.next_send(0.0)) is not None:
        delivery.sent(send, b"%d" % send.load.number, 100, 0.0)
    if how == "too late":
        delivery.handle_timer(2 * ACK_S)
    else:
        delivery.disconnected()
    assert delivery.acknowledged([b"0", b"0"]) == 10
    send = delivery.next_send(2 * ACK_S)
    assert send is not None
    assert send.load.number == 1
    assert delivery.acknowledged([b"1"]) == 20
    assert delivery.is_idle
    assert delivery.next_send(2 * ACK_S) is None
    assert delivery.counters["again"] == 0


def test_the_window_bounds_what_is_under_way_and_the_cap_how_fast() -> None:
    delivery = Delivery(lambda: 0.0, window=1000, bytes_s=500)
    for number in range(5):
        delivery.put(Load(number, number, 1000, 250))
    assert not delivery.wants()
    now, octets = 0.0, 0
    while now < 60.0:
        send = delivery.next_send(now)
        if send is None:
            now = max(now + 0.01, min(delivery.next_timer(), now + 1))
            continue
        delivery.sent(send, b"%d/%d" % (send.load.number, send.offset), 250, now)
        octets += 250
        delivery.acknowledged([b"%d/%d" % (send.load.number, send.offset)])
        if delivery.is_idle:
            break
    assert octets == 5000
    assert 8.0 < now < 11.0


def test_tries_are_spread_and_slow_down() -> None:
    first = {Backoff(random.Random(seed).random, stagger_s=30).next_delay_s() for seed in range(50)}
    assert len(first) == 50
    assert 0 <= min(first) < 5 < 25 < max(first) <= 30
    backoff = Backoff(random.Random(1).random, stagger_s=0)
    backoff.next_delay_s()
    delays = [backoff.next_delay_s() for _ in range(12)]
    assert delays[0] <= 1
    assert 150 <= delays[-1] <= 300
    backoff.worked()
    assert backoff.next_delay_s() <= 1


class Line:
    """Ring, cursor and delivery on one side, a receiver on the other, and between them what happens to messages."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        self.directory, self.rng = directory, rng
        self.clock = FakeClock()
        self.store = SqliteStore(str(directory / "centre"))
        self.intake = Intake(self.store)
        self.now = 0.0
        self.number = 0
        self.doubled = 0
        self.boot()

    def boot(self) -> None:
        self.ring = Ring(str(self.directory / "ring"), self.clock, seal=True)
        self.key = self.ring.public_key[:8]
        self.cursor = Cursor(self.ring, "centre")
        self.start_uplink()

    def start_uplink(self) -> None:
        self.cursor.rewind()
        self.delivery = Delivery(self.rng.random)
        self.items: dict[int, Taken | Bulk | Lost] = {}
        self.bodies: dict[int, bytes] = {}
        self.last = (0, b"")

    def fill(self) -> None:
        while self.delivery.wants() and (item := self.cursor.take()) is not None:
            number = len(self.items)
            self.items[number] = item
            match item:
                case Taken():
                    before = self.last[1] if self.last[0] == item.first_seq else b""
                    sample = item.sample
                    row = Row(
                        item.next_seq - item.first_seq,
                        sample.boottime_ms,
                        sample.wall_ms,
                        sample.synced,
                        item.data,
                    )
                    message = Batches(self.key, item.segment, item.first_seq, sample.boot, before, item.link, (row,))
                    self.last = (item.next_seq, item.link)
                    body = wire.write_batches(message, as_stored=self.rng.random() < 0.5)
                    piece = len(body) if self.rng.random() < 0.8 else 64
                case Bulk():
                    with self.cursor.open(item) as file:
                        body = file.read()
                    piece = 5000
                case Lost():
                    body = wire.write(Missing(self.key, *item))
                    piece = len(body)
            self.bodies[number] = body
            self.delivery.put(Load(number, item.next_seq, len(body), piece))

    def payload(self, send: Send) -> bytes:
        item, body = self.items[send.load.number], self.bodies[send.load.number]
        data = body[send.offset : send.offset + send.length]
        if isinstance(item, Bulk):
            where = (item.segment, item.first_seq, item.next_seq, int(item.level), item.root)
            return wire.write(Piece(self.key, *where, len(body), send.offset, data))
        if len(data) == len(body):
            return body
        return wire.write(Part(self.key, wire.whole_hash(body), len(body), send.offset, data))

    def pump(self, loss: float) -> None:
        """One round trip, more or less."""
        self.now += 5.0
        self.delivery.handle_timer(self.now)
        self.fill()
        messages = []
        while (send := self.delivery.next_send(self.now)) is not None and len(messages) < 20:
            payload = self.payload(send)
            self.delivery.sent(send, identify(payload), len(payload), self.now)
            if self.rng.random() >= loss:
                messages.append(payload)
            if self.rng.random() < 0.15:
                messages.append(payload)  # QoS 1: at least once
                self.doubled += 1
        if self.rng.random() < 0.3:
            self.rng.shuffle(messages)  # several receivers share the work
        answers = [answer for payload in messages for answer in self.intake.receive(TOPICS.of("records"), payload, 1)]
        if self.rng.random() < 0.1:
            self.store.rollback()  # the receiver died before its commit: nothing is acknowledged
            return
        self.store.commit()
        for answer in answers:
            assert not answer.plain
            if answer.again:
                self.delivery.rejected(answer.again)
            elif self.rng.random() >= loss:
                place = self.delivery.acknowledged([answer.done])
                if place is not None:
                    for item in list(self.items.values()):
                        if item.next_seq <= place:
                            self.cursor.acknowledge(item)

    def write(self, count: int) -> None:
        self.ring.add([look_up(self.clock.mono, f"n{self.number + n:06}.example") for n in range(count)])
        self.ring.commit()
        self.number += count

    def names(self) -> list[str]:
        with Centre(str(self.directory / "centre")) as centre:
            found = [
                one.event.name
                for stream in centre.streams()
                for one in centre.query(stream, Filter())
                if isinstance(one.event, Dns)
                for _ in range(one.times)
            ]
            assert centre.troubles == []
        return found


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_the_centre_has_everything_once(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    line = Line(tmp_path, rng)
    for _ in range(80):
        match rng.randrange(12):
            case 0 | 1 | 2:
                line.write(rng.choice((1, 25, 200)))
            case 3 | 4 | 5 | 6:
                line.pump(loss=rng.choice((0.0, 0.3, 0.9)))
            case 7:
                line.delivery.disconnected()
            case 8:
                line.start_uplink()
            case 9:
                line.clock.pass_ms(DAY_MS // 3)
                settle(line.ring, line.clock)
            case 10:  # the agent dies
                line.ring.store().close()
                line.boot()
            case 11:
                line.ring.commit()
        line.clock.pass_ms(1000)
    for _ in range(400):
        if line.cursor.behind() == 0 and line.delivery.is_idle:
            break
        line.now += 300
        line.pump(loss=0.2)
    assert line.cursor.behind() == 0
    names = line.names()
    assert sorted(names) == [f"n{n:06}.example" for n in range(line.number)]
    assert line.store.alarms() == [], "nothing was altered, so nothing may be said to be"
    line.ring.close()
