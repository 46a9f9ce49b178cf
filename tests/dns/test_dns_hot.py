"""The hot cache and the two doors: the same answers as from the core, each of them on record, bounded."""

import os
import random
import socket
import time

import msgpack
import pytest
from policy_of_test import DictDecider
from questions import answers, query, read, record, reply

from dns.batch import BatchDoor
from dns.door import Admission, UdpDoor, dropped, udp_socket
from dns.hot import HotCache
from dns.mmsg import BATCH, MMsgHdr, SystemCalls
from dns.proxy import Peer, Proxy
from policy.config import DnsConfig
from policy.event import Dns

CLIENT = b"\x0a\x14\0\5"
OTHER = b"\x0a\x14\0\6"


class Book:
    """Everything that was put on record."""

    def __init__(self):
        self.events = []

    def put_folded(self, fold, *, are_blocks=False):
        at_ms = [at for at, number in fold.times for _ in range(number)]
        for which, at, who in zip(fold.which, at_ms, fold.who, strict=True):
            template = Dns(*msgpack.unpackb(fold.templates[which], use_list=False)[1:])
            assert (template.verdict == 1) == are_blocks, "blocked look-ups travel by themselves"
            self.events.append(template._replace(at_ms=at, client=fold.clients[who]))


class Bench:
    """A core and a hot cache with time in the test's hand. The upstream answers everything at once, from a table."""

    def __init__(self, policy=None, hot_bytes=1 << 20, ttl=300, kernel=None, **settings):
        self.book = Book()
        config = DnsConfig(
            upstream=(("192.0.2.1", 53),), local_server=(), hot_bytes=hot_bytes, **{"rate": 0, **settings}
        )
        self.proxy = Proxy(config, DictDecider(policy), os.urandom)
        self.proxy.wall_offset = 0.0
        self.hot = HotCache(hot_bytes, self.book.put_folded, self.proxy.limiter, kernel)
        self.ttl = ttl

    def ask(self, data, now, client=CLIENT):
        """As a door does it. Gives the answer and whether it was hot."""
        self.hot.tidy(now)
        tail = self.hot.find(client, data[2:], now)
        if tail is not None:
            return data[:2] + tail, True
        down = self.proxy.receive_query(data, Peer(client, False, None), now)
        if down is None:
            for sent in self.proxy.asks():
                self.proxy.receive_reply(
                    reply(sent.data, [record(1, b"\1\2\3\4", self.ttl)]), sent.server, sent.channel, now
                )
            (down,) = self.proxy.replies()
        if down.hot is not None:
            self.hot.put(data[2:], down, down.hot)
            self.hot.admit(client, down.hot.group)
        return down.data, False

    def ask_twice(self, data, now, client=CLIENT):
        """The first time a question is only remembered, the second time its answer is kept."""
        self.ask(data, now, client)
        return self.ask(data, now, client)

    def records(self, now=0.0):
        self.hot.hand_over(now)
        return self.book.events + self.proxy.events()


def test_hot_answers_decay_are_stamped_anew_and_end():
    bench = Bench(ttl=100)
    for now in (0.0, 0.5, 3.0, 12.0, 14.0, 40.0, 80.0, 95.0, 97.0):
        data, hot = (
            bench.ask_twice(query("www.example.org"), now) if not now else bench.ask(query("www.example.org"), now)
        )
        assert hot == (now > 0)
        ttl = read(data)[1][0].ttl
        assert ttl <= 100 - now, now
        assert ttl >= (100 - now) * 7 / 8 - 3, now
    assert bench.hot.counters["stamped"] >= 4
    assert bench.ask(query("www.example.org"), 101.0)[1] is False
    assert len(bench.records()) == 11


def test_each_answer_is_on_record_with_its_time_and_client():
    bench = Bench({"block": {"evil.example": ["list:evil"]}})
    dice = random.Random(7)
    asked = []
    for n in range(2000):
        name = dice.choice(["www.example.org", "mail.example.org", "x.evil.example", "y.evil.example"])
        client = dice.choice([CLIENT, OTHER])
        now = n / 100
        bench.ask(query(name, number=n), now, client)
        asked.append((int(now * 1000), client, name, int("evil" in name)))
        if n % 97 == 0:
            bench.hot.hand_over(now)
    recorded = [(e.at_ms, e.client, e.name, int(e.verdict)) for e in bench.records()]
    assert sorted(recorded) == sorted(asked)
    assert sum(event.cached for event in bench.book.events) > 1900


def test_memory_is_bounded_and_the_oldest_answers_go_first():
    bench = Bench(hot_bytes=256 << 10)
    for n in range(20_000):
        bench.ask_twice(query(f"name{n}.example.org"), 1.0 + n / 1e6)
        assert bench.hot.bytes_used <= 256 << 10
    assert bench.hot.counters["evictions"] > 5
    assert 200 < len(bench.hot) < 2000
    assert bench.ask(query("name19999.example.org"), 2.0)[1] is True
    assert bench.ask(query("name0.example.org"), 2.0)[1] is False
    # What is left in the arena is still what it was.
    for n in range(19_000, 20_000):
        data, _ = bench.ask(query(f"name{n}.example.org", number=n), 2.0)
        assert data[12 : 12 + 5] == query(f"name{n}.example.org")[12 : 12 + 5]
        assert read(data)[0].id == n
    assert len(bench.records()) == 41_002


def test_a_question_that_differs_anywhere_is_another_question():
    bench = Bench()
    base = query("www.example.org", edns=(1232, 0, b""))
    bench.ask_twice(base, 0.0)
    for at in range(2, len(base)):
        other = base[:at] + bytes((base[at] ^ 1,)) + base[at + 1 :]
        assert bench.hot.find(CLIENT, other[2:], 0.1) is None
    assert bench.hot.find(CLIENT, base[2:], 0.1) is not None


def test_who_asks_too_much_leaves_the_hot_cache_and_is_refused():
    bench = Bench(rate=10)
    got = 0
    for n in range(500):
        now = n / 1000
        tail = bench.hot.find(CLIENT, query("localhost")[2:], now)
        if tail is None:
            down = bench.proxy.receive_query(query("localhost"), Peer(CLIENT, False, None), now)
            if down is not None and down.hot is None:
                got += 1
            elif down is not None:
                bench.hot.put(query("localhost")[2:], down, down.hot)
                bench.hot.admit(CLIENT, down.hot.group)
                got += 1
        else:
            got += 1
        if n % 10 == 0:
            bench.hot.hand_over(now)
    assert 40 <= got <= 60
    assert bench.proxy.limiter.counters["limited"] > 400
    assert bench.ask(query("localhost"), 60.0)


def test_layout_is_the_kernels():
    # x86-64, aarch64, riscv64: 64; arm, mips o32, i386: 32. include/linux/socket.h
    word = MMsgHdr.hdr.size // 7
    assert MMsgHdr.len.offset == 7 * word
    assert MMsgHdr.__class__ is not None


@pytest.fixture(params=["batch", "single"])
def door(request):
    bench = Bench({"block": {"evil.example": ["list:evil"]}})
    sock = udp_socket("0.0.0.0", 0, shared=False)
    admission = Admission(("lo",), time.monotonic)

    def receive(data, peer, _):
        return bench.proxy.receive_query(data, peer, 5.0)

    if request.param == "batch":
        found = BatchDoor(sock, SystemCalls(), admission, bench.hot, receive, lambda: 5.0)
    else:
        found = UdpDoor(sock, admission, bench.hot, receive, lambda: 5.0)
    yield bench, found, sock.getsockname()[1]
    sock.close()


def pump(bench, door):
    door.readable(0)
    for sent in bench.proxy.asks():
        bench.proxy.receive_reply(reply(sent.data, [record(1, b"\1\2\3\4")]), sent.server, sent.channel, 5.0)
    for down in bench.proxy.replies():
        down.peer.route.send(down)
    door.flush(5.0)


def test_what_the_kernel_throws_away_unread_is_counted():
    sock = udp_socket("127.0.0.1", 0, shared=False)
    with sock, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(sock.getsockname())
        for _ in range(100):
            client.send(bytes(500))
        assert dropped(sock) == 0
        for _ in range(20_000):
            client.send(bytes(500))
        received = 0
        try:
            while sock.recv(512):
                received += 1
        except BlockingIOError:
            pass
        assert received > 1000
        assert dropped(sock) == 20_100 - received


def test_both_doors_give_the_same_answers_in_any_mixture(door):
    bench, found, port = door
    dice = random.Random(11)
    kinds = [
        lambda n: query("www.example.org", number=n),
        lambda n: query(f"n{n % 300}.example.org", number=n),
        lambda n: query("x.evil.example", number=n, edns=(1232, 0, b"")),
        lambda n: query("WWW.Example.org", number=n),
        lambda n: query("x.evil.example", number=n)[:-2],
        lambda n: bytes((n >> 8, n & 255)) + b"\x81\x80" + bytes(40),
    ]
    readable = unreadable = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        client.connect(("127.0.0.1", port))
        client.settimeout(2)
        for _ in range(40):
            wanted = {}
            for _ in range(dice.randrange(1, 2 * BATCH)):
                n, kind = dice.randrange(65536), dice.randrange(len(kinds))
                if n in wanted:
                    continue
                wanted[n] = (kind, kinds[kind](n))
                client.send(wanted[n][1])
            pump(bench, found)
            pump(bench, found)
            for _ in range(sum(kind != 5 for kind, _ in wanted.values())):
                data = client.recv(2048)
                kind, asked = wanted.pop(int.from_bytes(data[:2], "big"))
                if kind == 4:
                    unreadable += 1
                    assert data[3] & 0xF == 1
                    continue
                readable += 1
                assert data[12 : len(asked) - (11 if kind == 2 else 0)] == asked[12 : -11 if kind == 2 else None]
                assert answers(data) == ((3, []) if kind == 2 else (0, [b"\1\2\3\4"]))
            assert {kind for kind, _ in wanted.values()} <= {5}
    assert len(bench.records(5.0)) == readable
    assert bench.hot.counters["hot"] > readable / 3
    assert unreadable > 50


def test_each_client_of_a_batch_gets_the_answer_of_its_own_group(door):
    bench, found, port = door
    teacher = socket.inet_aton("127.0.0.2")
    policy = {"block": {"evil.example": ["list:ads"]}, "groups": [{"group": "all"}, {"group": "staff"}], "free": [1]}
    bench.proxy.set_decider(DictDecider({**policy, "clients": {"127.0.0.2": 1}}))
    bench.hot.clear(0.0)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as pupil,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as staff,
    ):
        expected = {pupil: (3, []), staff: (0, [b"\1\2\3\4"])}
        for host, client in (("127.0.0.1", pupil), ("127.0.0.2", staff)):
            client.bind((host, 0))
            client.connect(("127.0.0.1", port))
            client.settimeout(2)
        # Of one group, of the other, of both in turn: each is a look-up of its own kind in a batch.
        for askers in ((pupil,), (staff,), (pupil, staff), (staff, pupil), (pupil,), (staff,)):
            for round_ in range(3):
                for client in askers:
                    client.send(query("x.evil.example", number=round_))
                    client.send(query("y.evil.example", number=round_))
                pump(bench, found)
                pump(bench, found)
                for client in askers:
                    assert [answers(client.recv(512)) for _ in range(2)] == [expected[client]] * 2
    on_record = [(event.client == teacher, event.group, event.verdict) for event in bench.records(5.0)]
    assert bench.hot.counters["hot"] > 30
    assert len(on_record) == 48
    assert set(on_record) == {(False, "all", 1), (True, "staff", 0)}


def test_a_door_answers_from_the_address_that_was_asked(door):
    bench, found, port = door
    for host in ("127.0.0.1", "127.0.0.9"):
        for n in range(3):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.connect((host, port))
                client.settimeout(2)
                client.send(query("x.evil.example", number=n))
                pump(bench, found)
                assert answers(client.recv(512)) == (3, [])


def test_who_comes_by_another_interface_gets_no_answer(door):
    bench, found, port = door
    found._admission = Admission(("no-such-bridge",), time.monotonic)
    found._admission.admits(1)
    found._admission._indexes = frozenset()  # not even loopback
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", port))
        client.settimeout(0.2)
        client.send(query("x.evil.example"))
        pump(bench, found)
        with pytest.raises(TimeoutError):
            client.recv(512)
    assert found._admission.counters["strangers"] >= 1
    assert bench.records() == []
