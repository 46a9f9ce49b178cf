"""Answers from within the kernel: the same as from the worker, each of them on record, none that should not be.

The program is run on packets by the kernel itself (bpf(2), BPF_PROG_TEST_RUN), and for real behind a worker on
loopback. Needs Linux 6.6 and root.
"""

import os
import random
import signal
import socket
import struct
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from questions import answers, query, read
from test_dns_hot import CLIENT, Bench

from agent.hooks import kernel_hot_bytes
from bpf.kernel import KernelError
from dns.classifier import MAX_QUESTION, MIN_QUESTION
from dns.kernel import KernelAnswers, ones_complement_sum, python_hash_key, siphash13
from dns.wire import Rcode, read_header
from policy.config import DnsConfig

PORT = 5300
HERE4, HERE6 = b"\x0a\x14\0\1", bytes.fromhex("fd000000000000000000000000000001")
CLIENT6 = bytes.fromhex("fd000000000000000000000000000005")
TAIL_AT = 24
NEXT, REDIRECT = -1, 7


def refusal():
    try:
        KernelAnswers(PORT, 0, 1 << 16, ("lo",)).close()
    except OSError as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(refusal()), reason=f"no such programs in this kernel: {refusal()}")


def now_s():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def run(answers_, packet):
    """What the program says to a packet that comes in, and what has become of it."""
    tried = answers_._kernel.try_program(answers_._program, packet)
    return tried.result, tried.packet


def checksum(data):
    return ~ones_complement_sum(data) & 0xFFFF


def packet(payload, source=CLIENT, there=HERE4, port=PORT, *, partial=False):
    """An Ethernet frame with a UDP datagram; `partial`: with the sum of the pseudo header only, as from a guest."""
    udp = struct.pack("!HHHH", 40000, port, 8 + len(payload), 0) + payload
    if len(source) == 4:
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 7, 0x4000, 64, 17, 0) + source + there
        pseudo = source + there + struct.pack("!HH", 17, len(udp))
        kind = b"\x08\0"
    else:
        ip = struct.pack("!IHBB", 6 << 28, len(udp), 17, 64) + source + there
        pseudo = source + there + struct.pack("!IHBB", len(udp), 0, 0, 17)
        kind = b"\x86\xdd"
    total = ones_complement_sum(pseudo) if partial else checksum(pseudo + udp)
    udp = udp[:6] + total.to_bytes(2, sys.byteorder) + udp[8:]
    return bytes(6) + b"\2\0\0\0\0\2" + kind + ip + udp  # to loopback's own address


def taken_apart(frame):
    """Of an answer: source, destination, ports, payload, and whether the checksums are true or of the partial kind."""
    assert frame[:12] == b"\2\0\0\0\0\2" + bytes(6)
    if frame[12:14] == b"\x08\0":
        assert ones_complement_sum(frame[14:34]) == 0xFFFF
        assert struct.unpack_from("!H", frame, 16)[0] == len(frame) - 14
        source, there, udp = frame[26:30], frame[30:34], frame[34:]
        pseudo = source + there + struct.pack("!HH", 17, len(udp))
    else:
        assert struct.unpack_from("!H", frame, 18)[0] == len(frame) - 54
        source, there, udp = frame[22:38], frame[38:54], frame[54:]
        pseudo = source + there + struct.pack("!IHBB", len(udp), 0, 0, 17)
    assert struct.unpack_from("!H", udp, 4)[0] == len(udp)
    if ones_complement_sum(pseudo + udp) == 0xFFFF:
        kind = "true"
    else:
        kind = "partial" if struct.unpack_from("=H", udp, 6)[0] == ones_complement_sum(pseudo) else "false"
    return source, there, struct.unpack_from("!HH", udp), udp[8:], kind


class Kernel:
    """The kernel's side with one client of each family and one answer, and no interface."""

    def __init__(self):
        self.answers = KernelAnswers(PORT, 53, 1 << 16, ())
        for client, here in ((CLIENT, HERE4), (CLIENT6, HERE6)):
            self.answers.admit(client, here, 7, now_s())
        self.end = TAIL_AT

    def put(self, question, tail, until=60):
        place = (self.end + 7 & ~7) + TAIL_AT
        struct.pack_into("=q", self.answers.arena, place - TAIL_AT, hash(question))
        self.answers.arena[place : place + len(tail)] = tail
        self.answers.put([(hash(question), 7, int(now_s()) + until, place, len(tail))])
        self.end = place + len(tail)
        return self.end


@pytest.fixture
def kernel():
    found = Kernel()
    yield found
    found.answers.close()


QUESTION = query("www.example.org")[2:]
TAIL = b"\x81\x80" + QUESTION[2:4] + b"\0\1\0\0\0\0" + QUESTION[10:] + b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\1\2\3\4"


def test_python_hashes_as_we_think():
    key = python_hash_key()
    for length in range(1, 100):
        data = os.urandom(length)
        assert siphash13(key, data) == hash(data)


def test_clients_without_end_are_numbered_anew_and_none_is_mistaken_for_another(kernel):
    kernel.put(QUESTION, TAIL)
    assert run(kernel.answers, packet(b"ID" + QUESTION))[0] == REDIRECT
    for number in range(9000):
        kernel.answers.admit(struct.pack("!I", 0x0B000000 + number), HERE4, 7, now_s())
    last = struct.pack("!I", 0x0B000000 + 8999)
    assert run(kernel.answers, packet(b"ID" + QUESTION))[0] == NEXT, "it has to come all the way again"
    assert run(kernel.answers, packet(b"ID" + QUESTION, source=last))[0] == REDIRECT
    assert [kernel.answers.clients.name(number) for number in kernel.answers.given().who] == [CLIENT, last]
    assert len(kernel.answers.clients) < 9000


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize(("client", "here"), [(CLIENT, HERE4), (CLIENT6, HERE6)])
def test_an_answer_goes_back_the_way_the_question_came_and_is_in_the_ring(kernel, client, here, partial):
    place = kernel.put(QUESTION, TAIL)
    before = now_s()
    verdict, frame = run(kernel.answers, packet(b"\x12\x34" + QUESTION, client, here, partial=partial))
    assert verdict == REDIRECT
    assert taken_apart(frame) == (here, client, (PORT, 40000), b"\x12\x34" + TAIL, "partial" if partial else "true")
    found = kernel.answers.given()
    assert [kernel.answers.clients.name(number) for number in found.who] == [client]
    assert found.places == [place]
    assert int(before * 1000) <= found.at_ms[0] <= now_s() * 1000
    kernel.answers.done()
    assert not kernel.answers.given().who


def test_every_length_of_question_and_answer(kernel):
    dice = random.Random(1)
    for length in range(MIN_QUESTION, MAX_QUESTION + 1):
        question = dice.randbytes(length)
        tail = dice.randbytes(dice.randrange(length, 510))
        kernel.put(question, tail)
        for client, here in ((CLIENT, HERE4), (CLIENT6, HERE6)):
            verdict, frame = run(kernel.answers, packet(b"ID" + question, client, here))
            assert verdict == REDIRECT, length
            assert taken_apart(frame)[3:] == (b"ID" + tail, "true")


def test_what_is_not_quite_it_goes_its_way(kernel):
    kernel.put(QUESTION, TAIL)
    good = packet(b"ID" + QUESTION)
    assert run(kernel.answers, good)[0] == REDIRECT

    def changed(at, value):
        return good[:at] + value + good[at + len(value) :]

    others = {
        "another client": packet(b"ID" + QUESTION, source=b"\x0a\x14\0\7"),
        "another address of ours": packet(b"ID" + QUESTION, there=b"\x0a\x14\0\2"),
        "another port": packet(b"ID" + QUESTION, port=54),
        "loopback's port 53 is not ours": packet(b"ID" + QUESTION, port=53),
        "another question": packet(b"ID" + QUESTION[:-1] + b"\2"),
        "more behind it": packet(b"ID" + QUESTION + b"\0"),
        "less": packet(b"ID" + QUESTION[:-1]),
        "a fragment": changed(20, b"\x20\0"),
        "a later fragment": changed(20, b"\0\1"),
        "options": changed(14, b"\x46"),
        "TCP": changed(23, b"\6"),
        "ARP": changed(12, b"\x08\6"),
        "UDP says less": changed(38, b"\0\x20"),
        "IP says more": changed(16, b"\0\xff"),
    }
    for name, frame in others.items():
        assert run(kernel.answers, frame) == (NEXT, frame), name
    assert len(kernel.answers.given().who) == 1


def test_what_has_ended_is_not_given(kernel):
    kernel.put(QUESTION, TAIL, until=-1)
    assert run(kernel.answers, packet(b"ID" + QUESTION))[0] == NEXT
    kernel.put(QUESTION, TAIL)
    assert run(kernel.answers, packet(b"ID" + QUESTION))[0] == REDIRECT
    kernel.answers.forget(hash(QUESTION), 7)
    assert run(kernel.answers, packet(b"ID" + QUESTION))[0] == NEXT
    kernel.put(QUESTION, TAIL)
    kernel.answers.dismiss(CLIENT)
    assert run(kernel.answers, packet(b"ID" + QUESTION))[0] == NEXT
    kernel.answers.admit(CLIENT, HERE4, 7, now_s() - 11)
    assert run(kernel.answers, packet(b"ID" + QUESTION))[0] == NEXT, "too long ago"
    kernel.answers.admit(CLIENT, HERE4, 8, now_s())
    assert run(kernel.answers, packet(b"ID" + QUESTION))[0] == NEXT, "another group"
    kernel.answers.dismiss_all()
    kernel.answers.end_views()
    kernel.answers.admit(CLIENT, HERE4, 7, now_s())
    assert run(kernel.answers, packet(b"ID" + QUESTION))[0] == NEXT, "another policy"


def test_memory_that_was_written_over_answers_nothing(kernel):
    end = kernel.put(QUESTION, TAIL)
    struct.pack_into("=q", kernel.answers.arena, end - len(TAIL) - TAIL_AT, hash(QUESTION) ^ 1)
    assert run(kernel.answers, packet(b"ID" + QUESTION))[0] == NEXT


def test_a_full_ring_lets_questions_go_their_way_whole(kernel):
    kernel.put(QUESTION, TAIL)
    frame = packet(b"ID" + QUESTION)
    given_ = sum(run(kernel.answers, frame)[0] == REDIRECT for _ in range(6_000))
    assert 5_000 < given_ < 5_500
    verdict, left = run(kernel.answers, frame)
    assert verdict == NEXT
    assert left[: len(frame)] == frame, "behind what its headers say may be anything"
    total = 0
    while found := kernel.answers.given().who:
        total += len(found)
        kernel.answers.done()
    assert total == given_
    assert run(kernel.answers, frame)[0] == REDIRECT


SHARED = []


@settings(deadline=None, max_examples=600)
@given(st.data())
def test_whatever_comes_in_nothing_but_that_question_is_answered(data):
    if not SHARED:
        SHARED.append(Kernel())
        SHARED[0].put(QUESTION, TAIL, until=600)
    kernel = SHARED[0]
    for client, here in ((CLIENT, HERE4), (CLIENT6, HERE6)):
        kernel.answers.admit(client, here, 7, now_s())
    ipv6 = data.draw(st.booleans())
    frame = packet(b"ID" + QUESTION, *((CLIENT6, HERE6) if ipv6 else (CLIENT, HERE4)))
    changed = bytearray(frame)
    for at, value in data.draw(st.lists(st.tuples(st.integers(12, len(frame) - 1), st.integers(0, 255)), max_size=4)):
        changed[at] = value
    changed = bytes(changed)[: data.draw(st.integers(14, len(frame)))] + data.draw(st.binary(max_size=8))
    try:
        verdict, left = run(kernel.answers, changed)
    except OSError:  # the kernel takes no such frame: it would not come in either
        return
    kernel.answers.given()
    kernel.answers.done()
    if verdict == NEXT:
        assert left == changed
        return
    udp = 54 if ipv6 else 34
    length = struct.unpack_from("!H", changed, udp + 4)[0]
    assert changed[udp + 10 : udp + length] == QUESTION
    assert left[udp + 10 :] == TAIL


# Behind a worker.


def test_the_same_answers_on_record_as_often_as_asked(serve):
    policy = {"block": {"evil.example.org": ["list:evil"]}}
    plain = serve(policy, listen=["127.0.0.1", "::1"])
    quick = serve(policy, listen=["127.0.0.1", "::1"], kernel=True)
    edns = (1232, 0, b"")
    asked = [
        query("www.example.org"),
        query("WwW.example.org"),
        query("www.example.org", 28, edns=edns),
        query("www.example.org", edns=edns),
        query("nobody.example.org"),
        query("tracker.evil.example.org", edns=edns),
        query("https.example.org", 65),
        query("chain1.example.org"),
    ]
    for turn in range(8):
        for number, question in enumerate(asked):
            for host in ("127.0.0.1", "::1"):
                data = struct.pack("!H", turn * 100 + number) + question[2:]
                ours, theirs = quick.ask(data, host=host), plain.ask(data, host=host)
                assert ours[:2] == theirs[:2] == data[:2]
                assert answers(ours) == answers(theirs)
                assert len(ours) == len(theirs)
                assert ours[12 : len(data)][: len(data) - 12] == theirs[12 : len(data)][: len(data) - 12]
        time.sleep(0.3 if turn < 3 else 0)
    time.sleep(0.3)
    mine, others = [
        sorted((row["name"].lower(), row["qtype"], row["client"], row["verdict"], row["rule"], row["rcode"])
               for row in served.rows(kind="Dns"))
        for served in (quick, plain)
    ]  # fmt: skip
    assert len(mine) == 8 * len(asked) * 2
    assert mine == others
    quick.stop()
    counters = quick.rows(kind="Closed")[0]["counters"]
    assert counters["kernel"] >= 4 * len(asked) * 2
    assert counters["kernel"] + counters["hot"] + counters["queries"] == len(mine)


def warm(served, name, qtype=1):
    """Ask until the kernel knows it."""
    for _ in range(3):
        served.ask(query(name, qtype))
        time.sleep(0.3)


def test_a_reload_holds_for_the_very_next_question(serve):
    served = serve(kernel=True)
    warm(served, "www.example.org")
    assert answers(served.ask(query("www.example.org")))[0] == 0
    served.reload(block={"www.example.org": ["list:new"]})
    assert read_header(served.ask(query("www.example.org"))).flags & 0xF == Rcode.NXDOMAIN
    warm(served, "www.example.org")
    assert read_header(served.ask(query("www.example.org"))).flags & 0xF == Rcode.NXDOMAIN
    served.reload()
    assert answers(served.ask(query("www.example.org")))[0] == 0
    rows = served.rows(kind="Dns", name="www.example.org")
    assert [row["verdict"] for row in rows] == [0] * 4 + [1] * 5 + [0]


def test_the_ttl_is_never_longer_than_the_truth(serve):
    served = serve(kernel=True)
    served.ask(query("short.example.org"))
    learned = time.monotonic()
    seen = []
    while time.monotonic() < learned + 5:
        ttl = read(served.ask(query("short.example.org")))[1][0].ttl
        seen.append(ttl)
        assert ttl <= 2
        time.sleep(0.02)
    assert seen[-1] == 1 or 1 in seen[len(seen) // 2 :], "after two seconds it was asked for again"
    rows = served.rows(kind="Dns", name="short.example.org")
    assert len(rows) == len(seen) + 1


def test_with_a_hung_worker_all_that_was_answered_is_on_record_in_the_end(serve):
    served = serve(kernel=True, rate=0)
    warm(served, "www.example.org")
    served.process.send_signal(signal.SIGSTOP)
    got = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", served.port))
        sock.settimeout(1)
        for number in range(20_000):
            sock.send(query("www.example.org", number=number & 0xFFFF))
            assert sock.recv(512)[:2] == struct.pack("!H", number & 0xFFFF)
            got += 1
    served.process.send_signal(signal.SIGCONT)
    time.sleep(1)
    assert len(served.rows(kind="Dns")) == got + 3


def test_a_killed_worker_leaves_nothing_behind(serve):
    served = serve(kernel=True)
    warm(served, "www.example.org")
    served.process.kill()
    served.process.wait()
    with pytest.raises(ConnectionRefusedError):
        served.ask(query("www.example.org"))
    served.process.returncode = 0  # the fixture need not mourn it


def test_who_asks_too_much_is_refused_here_too(serve):
    served = serve(kernel=True, rate=50)
    warm(served, "www.example.org")
    for number in range(3000):
        try:
            reply = served.ask(query("www.example.org", number=number), timeout=0.2)
        except TimeoutError:  # beyond some refusals it is not even told
            break
        if read_header(reply).flags & 0xF == Rcode.REFUSED:
            break
        if number % 30 == 0:
            time.sleep(0.01)
    assert 100 < number < 2500


# With the hot cache.


def test_an_answer_is_withdrawn_before_its_memory_is_written_over():
    kernel = KernelAnswers(PORT, 0, 128 << 10, ())
    bench = Bench(hot_bytes=256 << 10, kernel=kernel)
    now = now_s()
    frame = packet(b"ID" + query("n0.example.org")[2:])
    for number in range(40):
        bench.ask_twice(query(f"n{number}.example.org"), now)
        bench.ask(query(f"n{number}.example.org"), now)
    bench.hot.knock(CLIENT, HERE4, now)
    bench.hot.hand_over(now)
    verdict, given_ = run(kernel, frame)
    assert verdict == REDIRECT
    assert answers(taken_apart(given_)[3]) == (0, [b"\1\2\3\4"])
    number = 40
    while bench.hot.counters["evictions"] < 9:
        now += 0.06
        bench.hot.tidy(now)
        bench.ask_twice(query(f"n{number}.example.org"), now)
        number += 1
        if run(kernel, frame)[0] == NEXT:
            break
    assert bench.hot.counters["evictions"] < 8 + 1
    names = [event.name for event in bench.records(now)]
    assert names.count("n0.example.org") >= 3
    assert run(kernel, frame)[0] == NEXT
    kernel.close()


def test_at_a_reload_too_memory_is_written_over_a_turn_later():
    """What a processor was amid of just then goes on record a moment later, under its own name."""
    kernel = KernelAnswers(PORT, 0, 128 << 10, ())
    bench = Bench(hot_bytes=256 << 10, kernel=kernel)
    now = now_s()
    question = query("before.example.org")
    bench.ask_twice(question, now)
    bench.ask(question, now)
    bench.hot.knock(CLIENT, HERE4, now)
    bench.hot.hand_over(now)
    assert run(kernel, packet(b"ID" + question[2:]))[0] == REDIRECT
    bench.hot.clear(now)
    before = bytes(kernel.arena)
    assert run(kernel, packet(b"ID" + question[2:]))[0] == NEXT
    other = query("after.example.org")
    bench.ask_twice(other, now + 0.01)
    assert not bench.ask(other, now + 0.04)[1]
    assert bytes(kernel.arena) == before
    assert [event.name for event in bench.records(now + 0.04)].count("before.example.org") == 4
    bench.ask(other, now + 0.06)
    assert bench.ask(other, now + 0.06)[1], "and then it is kept as before"
    assert bytes(kernel.arena) != before
    kernel.close()


def test_the_default_is_less_where_memory_is_scarce_and_a_setting_is_what_was_set():
    default = DnsConfig().hot_bytes
    assert kernel_hot_bytes(default, 240 << 20) == 240 << 14
    assert kernel_hot_bytes(default, 4 << 30) == default
    assert kernel_hot_bytes(default // 2, 16 << 20) == default // 2
    assert kernel_hot_bytes(64 << 20, 240 << 20) == 64 << 20


def test_without_leave_the_worker_goes_on_without(monkeypatch):
    monkeypatch.setattr("dns.kernel.python_hash_key", lambda: (_ for _ in ()).throw(KernelError(38, "bpf: no")))
    with pytest.raises(OSError, match="bpf: no"):
        KernelAnswers(PORT, 0, 1 << 16, ())
