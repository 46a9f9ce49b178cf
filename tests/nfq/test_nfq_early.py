"""The program in the kernel, shown packets by BPF_PROG_TEST_RUN: what it lets through the hook would have, too."""

import random
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from bpf.kernel import KernelError
from bpf.ring import boottime_ms as now_ms
from bpf.ring import whole_ms
from nfq import classifier, tls
from nfq.early import BLOCKED_MS, Early, Passed
from nfq.hook import Hook, Now
from nfq.mark import Mark
from nfq.packet import ACK, FIN, PSH, RST, SYN
from policy.event import Flow
from policy.frame import Client, event_bytes, flows_of
from policy.verdict import Reason, Verdict
from tests.fuzz.nfq import VECTORS, Mutator
from tests.nfq.test_nfq_hook import MAC, Rules
from tests.nfq.test_nfq_parsers import HELLO, LARGE, client_hello

ALLOW, BARE, BARE_SYN, MASK, OTHERS = 0x01000000, 0x08000000, 0x0C000000, 0x0F000000, 0x00FF0001
PQ = (VECTORS / "chromium156_pq_hello.bin").read_bytes()
URG = 0x20
NAME = b"www.example.org"
CLIENT = {4: bytes((10, 20, 0, 11)), 6: bytes.fromhex("20010db8002000000000000000000011")}
SERVER = {4: bytes((198, 51, 100, 21)), 6: bytes.fromhex("20010db8010000000000000000000021")}


def frame(
    payload: bytes = b"",
    seq: int = 1001,
    flags: int = PSH | ACK,
    *,
    family: int = 4,
    sport: int = 40000,
    dport: int = 443,
    mac: bytes = MAC,
    client: bytes = b"",
    server: bytes = b"",
    options: bytes = b"",
) -> bytes:
    """An Ethernet frame. Its destination is 00:00:00:00:00:00, which is the address of the device it seems to be on."""
    offset = 5 + len(options) // 4
    tcp = struct.pack("!HHIIBBHHH", sport, dport, seq & 0xFFFFFFFF, 9, offset << 4, flags, 0, 0, 0) + options + payload
    ends = (client or CLIENT[family]) + (server or SERVER[family])
    if family == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0)
    else:
        head = struct.pack("!IHBB", 6 << 28, len(tcp), 6, 64)
    return bytes(6) + mac + (b"\x08\0" if family == 4 else b"\x86\xdd") + head + ends + tcp


TEMPLATE = Flow(0, b"", b"", 0, SERVER[4], 443, 6, "www.example.org", 2, 0, "", 0, 0, "", "pupils")


class Bench:
    """The program with one client and one name that it knows."""

    def __init__(self) -> None:
        self.early = Early(MASK)
        self.last: list[bytes] = []
        """Templates of what the last visit put on record."""
        self.known(NAME, False)

    def known(self, name: bytes, has_ech: bool, *, left_ms: int = 60_000) -> None:
        for family in (4, 6):
            self.early.admit(CLIENT[family] + MAC, 1, now_ms() + left_ms)
            self.early.allow(1, name, SERVER[family], 443, has_ech, record_of(family, name, has_ech))
        self.early.take(now_ms())

    def show(self, data: bytes, mark: int = 0) -> int:
        """The mark it goes on with."""
        tried = self.early.kernel.try_program(self.early.program, data, mark)
        assert tried.result == -1  # whatever it is, it goes on
        return tried.mark

    def taken(self) -> list[bytes]:
        """Templates of what has passed since the last time."""
        fold = self.early.take(now_ms()).fold
        return [fold.templates[which] for which in fold.which]

    def visit(self, payload: bytes, **what: object) -> bool:
        """Is a connection that begins so let through? It is on record then, else not."""
        before = self.early.counters["early"]
        self.show(frame(b"", 1000, SYN, **{key: value for key, value in what.items() if key != "flags"}))  # type: ignore[arg-type]
        passed = self.show(frame(payload, **what)) == ALLOW  # type: ignore[arg-type]
        self.last = self.taken()
        assert self.early.counters["early"] - before == passed == len(self.last)
        return passed


def record_of(family: int, name: bytes, has_ech: bool) -> bytes:
    return b"%d %s %d" % (family, name, has_ech)


@pytest.fixture
def bench() -> Iterator[Bench]:
    try:
        found = Bench()
    except KernelError as error:
        pytest.skip(f"no programs in this kernel, or not for us: {error}")
    yield found
    found.early.close()


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("hello", [HELLO, LARGE, PQ], ids=["openssl", "late", "chromium"])
def test_a_known_hello_passes_with_a_mark_and_is_on_record(bench: Bench, hello: bytes, family: int) -> None:
    name, has_ech = tls.parse(hello)  # type: ignore[misc]
    bench.known(name, has_ech)
    bench.show(frame(b"", 1000, SYN, family=family, sport=43210))
    assert bench.show(frame(hello, family=family, sport=43210), OTHERS | 0x03000000) == OTHERS | ALLOW
    ((template,), _, ((at_ms, _),), (client,), _, (sport,)), unsure = bench.early.take(now_ms())
    assert (template, client, sport) == (record_of(family, name, has_ech), CLIENT[family] + MAC, 43210)
    assert 0 <= now_ms() - at_ms < 1000
    assert unsure == has_ech


@pytest.mark.parametrize("hello", [HELLO, PQ], ids=["openssl", "chromium"])
def test_no_shorter_hello_and_none_with_a_tail_passes(bench: Bench, hello: bytes) -> None:
    bench.known(*tls.parse(hello))  # type: ignore[misc]
    assert bench.visit(hello)
    for length in range(1, len(hello)):
        assert not bench.visit(hello[:length])
    for tail in (b"\0", b"\x14\3\3\0\1\1", HELLO):
        assert not bench.visit(hello + tail)


def test_what_passes_is_what_the_parser_reads(bench: Bench) -> None:
    """In 40,000 mutations of real hellos, with names in capitals and the like among them."""
    bench.known(NAME, True)
    seeds = [HELLO, LARGE, PQ, *map(reordered, range(20))]
    mutator, passed = Mutator(6), 0
    for number in range(40_000):
        data = mutator.mutate(seeds) if number % 10 else seeds[number % len(seeds)]
        if data and bench.visit(data):
            passed += 1
            found = tls.parse(data)
            assert isinstance(found, tls.Hello), data.hex()
            assert bench.last == [record_of(4, *found)], data.hex()
    assert passed > 4000  # an octet of a random or of a key changes nothing


def reordered(seed: int) -> bytes:
    """Extensions in another order, two names, no name, ECH of the inner kind, empty ones, too many."""
    rng = random.Random(seed)
    host = struct.pack("!HBH", len(NAME) + 3, 0, len(NAME)) + NAME
    pool = [
        (0, host), (0, host[:2] + b"\1" + host[3:]), (0, b""), (0xFE0D, b"\0abc"), (0xFE0D, b"\1"), (0xFE0D, b""),
        (0, host + b"\0\0\1x"), (0, struct.pack("!HBH", 9, 0, 6) + b"a.test"), (0x0A0A, b""), (21, bytes(200)),
    ]  # fmt: skip
    chosen = [(0, host), *rng.choices(pool, k=rng.randrange(4)), *[(43, b"\2\3\4")] * rng.randrange(26)]
    rng.shuffle(chosen)
    extensions = b"".join(struct.pack("!HH", kind, len(value)) + value for kind, value in chosen)
    body = bytes(34) + b"\0" + b"\0\2\x13\1" + b"\1\0" + struct.pack("!H", len(extensions)) + extensions
    handshake = b"\1" + len(body).to_bytes(3, "big") + body
    return b"\x16\3\1" + struct.pack("!H", len(handshake)) + handshake


def test_ech_is_told_from_none(bench: Bench) -> None:
    name, has_ech = tls.parse(PQ)  # type: ignore[misc]
    assert has_ech
    bench.known(name, False)
    assert not bench.visit(PQ)  # its record would be another
    bench.known(name, True)
    assert bench.visit(PQ)


@pytest.mark.parametrize("family", [4, 6])
def test_only_the_very_first_data_of_a_connection_passes(bench: Bench, family: int) -> None:
    syn = frame(b"", 1000, SYN, family=family)
    hello = frame(HELLO, family=family)
    assert bench.show(hello) == 0  # no SYN was seen
    for before in (
        [frame(HELLO[:100], family=family)],  # in two segments
        [frame(b"x", 1000, family=family)],  # a keep-alive probe in front
        [frame(b"decoy", 5000, family=family)],
        [hello],  # repeated
        [frame(b"", 2000, SYN, family=family)],  # another SYN
        [frame(b"early", 1000, SYN, family=family)],  # with data, RFC 7413
    ):
        bench.show(syn)
        for each in before:
            bench.show(each)
        assert bench.show(hello) == 0
    for between in (frame(b"", 1001, ACK, family=family), frame(b"", 9, SYN | ACK, family=family, sport=40001)):
        bench.show(syn)
        bench.show(between)
        assert bench.show(hello) == ALLOW
        assert bench.show(hello) == 0
    wrapped = bench.show(frame(b"", 0xFFFFFFFF, SYN, family=family)), bench.show(frame(HELLO, 0, family=family))
    assert wrapped == (BARE_SYN, ALLOW)


@pytest.mark.parametrize("family", [4, 6])
def test_segments_without_data_are_marked_as_such_whoever_sends_them(bench: Bench, family: int) -> None:
    for flags in (SYN, ACK, ACK | FIN, ACK | RST, RST, 0, SYN | 0xC0):
        for mac in (MAC, b"\2\0\0\0\0\x99"):
            for options in (b"", bytes((1, 1, 8, 10)) + bytes(8)):
                bare = frame(b"", 1000, flags, family=family, mac=mac, options=options)
                # Below 60 octets the last ones of a frame are padding.
                wanted = BARE_SYN if flags & SYN else BARE
                assert bench.show(bare + bytes(6), OTHERS | 0x03000000) == OTHERS | wanted
                assert bench.show(frame(b"x", 1000, flags, family=family, mac=mac, options=options), OTHERS) == OTHERS
    assert bench.show(frame(b"", 1000, SYN | ACK, family=family)) == 0, "an answer: the server is here"
    for what in ("ip options", "a fragment", "a later fragment", "a vlan tag", "udp", "somebody else's frame"):
        if family == 4:
            assert bench.show(ODD[what](frame(b"", 1000, ACK))) == 0


@pytest.mark.parametrize("family", [4, 6])
def test_segments_without_data_of_a_connection_that_was_blocked_are_for_the_rules(bench: Bench, family: int) -> None:
    def marks(sport: int) -> list[int]:
        return [bench.show(frame(b"", 1000, flags, family=family, sport=sport)) for flags in (SYN, ACK, ACK | FIN, RST)]

    records: list[Flow] = []
    hook = Hook(Rules(b"bad.example.org"), records.append, ahead=bench.early)
    assert marks(40_000) == [BARE_SYN, BARE, BARE, BARE]
    blocked = frame(client_hello("bad.example.org"), family=family)
    assert hook.receive(blocked[14:], MAC, now()) == Mark.BLOCK
    assert marks(40_000) == [0, 0, 0, 0]
    assert [mark for sport in range(41_000, 41_500) for mark in marks(sport)].count(0) <= 4, "who shares its place"
    later = now_ms() + BLOCKED_MS
    bench.early.take(later)
    assert marks(40_000) == [0, 0, 0, 0]
    hook.receive(blocked[14:], MAC, now())  # said again of the same connection, it changes nothing
    bench.early.take(later + BLOCKED_MS)
    assert marks(40_000) == [BARE_SYN, BARE, BARE, BARE]


@pytest.mark.parametrize("family", [4, 6])
def test_a_syn_to_encrypted_dns_is_for_the_rules(bench: Bench, family: int) -> None:
    assert bench.show(frame(b"", 1000, SYN, family=family, dport=853)) == 0
    records: list[Flow] = []
    hook = Hook(Rules(), records.append, ahead=bench.early)
    assert hook.receive(frame(b"", 1000, SYN, family=family, dport=853)[14:], MAC, now()) == Mark.BLOCK
    (flow,) = records
    assert (flow.dport, flow.verdict, flow.reason, flow.rule) == (853, Verdict.BLOCK, Reason.BYPASS, "bypass:dot")
    assert not hook.resets, "there is nothing at the server yet"
    # Again at once, as a client does that got no answer: it is on record already.
    assert hook.receive(frame(b"", 1000, SYN, family=family, dport=853)[14:], MAC, now()) == Mark.BLOCK
    assert len(records) == 1


def test_where_others_block_too_segments_without_data_have_no_mark(bench: Bench) -> None:
    one_of_several = Early(MASK, marks_bare=False)
    for flags in (SYN, ACK):
        tried = one_of_several.kernel.try_program(one_of_several.program, frame(b"", 1000, flags), OTHERS)
        assert tried.mark == OTHERS
    one_of_several.close()


ODD: dict[str, Callable[[bytes], bytes]] = {
    "ip options": lambda data: data[:14] + b"\x46" + data[15:],
    "a fragment": lambda data: data[:20] + b"\x20\0" + data[22:],
    "a later fragment": lambda data: data[:20] + b"\0\1" + data[22:],
    "longer than it says": lambda data: data + b"\0",
    "shorter than it says": lambda data: data[:-1],
    "a header beyond the end": lambda data: data[:46] + b"\xf0" + data[47:],
    "a header of nothing": lambda data: data[:46] + b"\x10" + data[47:],
    "a vlan tag": lambda data: data[:12] + b"\x81\0\0\5" + data[12:],
    "udp": lambda data: data[:23] + b"\x11" + data[24:],
    "somebody else's frame": lambda data: b"\2\0\0\0\0\x77" + data[6:],
    "nothing": lambda data: data[:60],
}


@pytest.mark.parametrize("what", ODD)
def test_an_odd_packet_is_left_alone(bench: Bench, what: str) -> None:
    bench.show(frame(b"", 1000, SYN))
    assert bench.show(ODD[what](frame(HELLO))) == 0


def test_any_bytes_are_left_alone(bench: Bench) -> None:
    mutator = Mutator(7)
    seeds = [frame(HELLO), frame(HELLO, family=6), frame(b"", 1000, SYN)]
    for _ in range(5000):
        data = mutator.mutate(seeds)
        if data[12:14] == b"\x86\xdd" and len(data) < 54:
            continue
        if 34 <= len(data) < 3000:  # what the kernel takes for a test
            bench.show(data)


def test_flags_and_options(bench: Bench) -> None:
    for flags in (PSH | ACK | FIN, PSH | ACK | RST, PSH | ACK | URG, PSH, 0):
        assert not bench.visit(HELLO, flags=flags)
    for flags in (ACK, PSH | ACK, PSH | ACK | 0x80):
        assert bench.visit(HELLO, flags=flags)
    assert bench.visit(HELLO, options=bytes((1, 1, 8, 10)) + bytes(8))


def test_whom_it_does_not_know_it_leaves_alone(bench: Bench) -> None:
    assert bench.visit(HELLO)
    for what in (
        {"mac": b"\2\0\0\0\0\2"},
        {"client": bytes((10, 20, 0, 12))},
        {"server": bytes((198, 51, 100, 22))},
        {"dport": 8443},
    ):
        assert not bench.visit(HELLO, **what)
    assert not bench.visit(client_hello("www.example.com"))
    assert not bench.visit(HELLO.replace(NAME, b"WWW.example.org"))
    assert not bench.visit(client_hello("www.example.or"))
    long = b"a" * (classifier.MAX_NAME - 4) + b".org"
    for name in (long, b"a" + long):
        hello = client_hello(name.decode().replace("a" * 60, "a" * 29 + "." + "a" * 30))
        bench.known(tls.parse(hello).name, False)  # type: ignore[union-attr]
        assert bench.visit(hello) is (len(name) == classifier.MAX_NAME)


def test_what_is_taken_away_is_gone_at_once(bench: Bench) -> None:
    assert bench.visit(HELLO)
    bench.early.dismiss(CLIENT[4] + MAC)
    assert not bench.visit(HELLO)
    bench.known(NAME, False)
    assert bench.visit(HELLO)
    bench.show(frame(b"", 1000, SYN))
    assert bench.show(frame(HELLO)) == ALLOW
    bench.early.forget()
    assert len(bench.taken()) == 1
    assert not bench.visit(HELLO)
    bench.known(NAME, False)
    assert bench.visit(HELLO)
    bench.early.admit(CLIENT[4] + MAC, 1, now_ms())
    assert not bench.visit(HELLO)
    bench.early.admit(CLIENT[4] + MAC, 2, now_ms() + 60_000)  # another group now
    assert not bench.visit(HELLO)


def test_what_had_passed_before_all_was_forgotten_keeps_its_record(bench: Bench) -> None:
    bench.show(frame(b"", 1000, SYN))
    bench.show(frame(HELLO))
    bench.early.forget()
    assert bench.taken() == [record_of(4, NAME, False)]
    assert not bench.taken()


def test_without_a_worker_that_looks_nothing_passes(bench: Bench) -> None:
    bench.early.take(now_ms() - 1100)
    assert not bench.visit(HELLO)
    assert bench.visit(HELLO)  # whose end was a look


def test_a_full_ring_leaves_everything_alone_and_loses_nothing(bench: Bench) -> None:
    passed = 0
    for number in range(12_000):
        sport = 10_000 + number
        bench.show(frame(b"", 1000, SYN, sport=sport))
        passed += bench.show(frame(HELLO, sport=sport)) == ALLOW
        if number % 1000 == 0:
            bench.early._until[0] = now_ms() + 1000
    assert 10_000 < passed < 12_000
    ports: list[int] = []
    while (fold := bench.early.take(now_ms()).fold).ports:
        ports += fold.ports
    assert ports == list(range(10_000, 10_000 + passed))
    assert bench.visit(HELLO)


def test_all_that_the_hook_allows_passes_next_time_with_the_record_it_would_have_made(bench: Bench) -> None:
    records: list[Flow] = []
    hook = Hook(Rules(b"bad.example.org", addresses=(bytes((198, 51, 100, 66)),)), records.append, ahead=bench.early)
    bench.early.forget()
    for number, hello in enumerate((HELLO, PQ, LARGE)):
        data = frame(hello, sport=51_000 + number)
        hook.forget_decisions()
        assert not bench.visit(hello)
        assert hook.receive(data[14:], MAC, now()) == Mark.ALLOW
        bench.early.take(now_ms())
        bench.show(frame(b"", 1000, SYN, sport=50_001))
        assert bench.show(frame(hello, sport=50_001)) == ALLOW
        fold, unsure = bench.early.take(now_ms())
        (flow,) = flows_of(fold)
        assert flow == records[-1]._replace(sport=50_001, at_ms=flow.at_ms)
        flows, blind = hook.counters["flows"], hook.counters.get("blind_ech_unsure", 0)
        hook.count_ahead(1, unsure)
        assert hook.counters["flows"] == flows + 1
        assert hook.counters.get("blind_ech_unsure", 0) == blind + (hello is PQ)
    for hello, server in ((client_hello("bad.example.org"), SERVER[4]), (HELLO, bytes((198, 51, 100, 66)))):
        assert hook.receive(frame(hello, sport=50_002, server=server)[14:], MAC, now()) == Mark.BLOCK
        assert not bench.visit(hello, server=server)


def test_what_passed_just_now_waits_in_the_ring(bench: Bench) -> None:
    def passes(sport: int, family: int) -> None:
        bench.show(frame(b"", 1000, SYN, sport=sport, family=family))
        assert bench.show(frame(HELLO, sport=sport, family=family)) == ALLOW

    def told(passed: Passed) -> list[tuple[int, bytes]]:
        fold = passed.fold
        return [(port, fold.clients[who]) for port, who in zip(fold.ports, fold.who, strict=True)]

    template = event_bytes(TEMPLATE)
    bench.early.forget()
    for family in (4, 6):
        bench.early.admit(CLIENT[family] + MAC, 1, now_ms() + 60_000)
        bench.early.allow(1, NAME, SERVER[family], 443, False, template)
    bench.early.take(now_ms())
    for number in range(3):
        passes(1001 + number, 4)
    at_ms = now_ms()
    time.sleep(0.005)
    for number in range(2):
        passes(1004 + number, 6)
    first = bench.early.take(at_ms)
    assert told(first) == [(1001 + number, CLIENT[4] + MAC) for number in range(3)]
    assert first.fold.templates == [template], "each once"
    assert all(flow.at_ms <= at_ms for flow in flows_of(first.fold))
    assert not bench.early.take(at_ms + 1000, 1000).fold.ports
    passes(1006, 4)
    second = bench.early.take(now_ms())
    assert told(second) == [(1004, CLIENT[6] + MAC), (1005, CLIENT[6] + MAC), (1006, CLIENT[4] + MAC)]
    assert all(at_ms < flow.at_ms <= now_ms() for flow in flows_of(second.fold))


def test_another_policy_and_another_group_are_asked_at_once(bench: Bench) -> None:
    records: list[Flow] = []
    groups = {CLIENT[4]: 0}
    rules = Rules()
    rules.group_of = lambda client, mac=b"": groups[client]  # type: ignore[method-assign]
    rules.set_client = lambda address, **_: groups.update({address: 1})  # type: ignore[attr-defined]
    hook = Hook(rules, records.append, ahead=bench.early)

    def learn(sport: int) -> bool:
        hook.receive(frame(HELLO, sport=sport)[14:], MAC, now())
        bench.early.take(now_ms())
        return bench.visit(HELLO)

    bench.early.forget()
    assert learn(50_000)
    hook.set_client(Client(CLIENT[4], MAC, "", "", ""))
    assert not bench.visit(HELLO)
    assert learn(50_001)
    hook.reload(Rules(NAME))
    assert not bench.visit(HELLO)
    assert hook.receive(frame(HELLO, sport=50_003)[14:], MAC, now()) == Mark.BLOCK
    assert not bench.visit(HELLO)


def test_a_mark_that_somebody_takes_away_is_noticed(bench: Bench) -> None:
    hook = Hook(Rules(), lambda _: None, ahead=bench.early)
    bench.early.forget()
    hook.receive(frame(HELLO, sport=50_000)[14:], MAC, now())
    bench.early.take(now_ms())
    for number in range(4):
        sport = 50_100 + number
        bench.show(frame(b"", 1000, SYN, sport=sport))
        assert bench.show(frame(HELLO, sport=sport)) == ALLOW
        bench.early.take(now_ms())
        assert bench.early.sample is not None
        assert not hook.was_queued(*bench.early.sample)
        hook.receive(frame(HELLO, 1001 + (number == 0), sport=sport)[14:], MAC, now())
        assert hook.was_queued(*bench.early.sample) is (number != 0)
        bench.early.count_lost()
    assert bench.early.counters["early_lost"] == 4
    assert bench.early.counters["early_interfaces"] == 0


def test_the_hour_and_a_clock_that_is_not_known_end_it(bench: Bench) -> None:
    rules = Rules()
    rules.valid_until = lambda group, now_s: (now_s or 0) + 0.3  # type: ignore[method-assign]
    hook = Hook(rules, lambda _: None, ahead=bench.early)
    bench.early.forget()
    hook.receive(frame(HELLO)[14:], MAC, now())
    bench.early.take(now_ms())
    assert bench.visit(HELLO)
    time.sleep(0.31)
    assert not bench.visit(HELLO)
    hook = Hook(Rules(), lambda _: None, ahead=bench.early)
    bench.early.forget()
    hook.receive(frame(HELLO)[14:], MAC, now()._replace(wall_s=None))
    bench.early.take(now_ms())
    assert not bench.visit(HELLO)


def now() -> Now:
    return Now(time.monotonic(), now_ms(), time.time())


def test_times_of_which_32_bits_are_known() -> None:
    assert whole_ms([5, 7], 10) == [5, 7]
    assert whole_ms([0xFFFFFFFF, 3], (5 << 32) + 4) == [(5 << 32) - 1, (5 << 32) + 3]
