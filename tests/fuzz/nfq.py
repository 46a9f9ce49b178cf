"""Any bytes parse or raise PacketError, in linear time, in bounded memory; and the packet hook's core raises nothing.

`python -m tests.fuzz.nfq [--target tls] [--inputs 10000000] [--seed 1]`. Targets: packet, tls, http, quic, frames (what
stands inside an Initial), stream (reassembly), hook (all of it, with a clock) and early (the program in the kernel);
all of them unless one is named.
Mutates real hellos, requests and Initials, Chromium's post-quantum ones among them. A failure prints the octets.
"""

import argparse
import os
import random
import resource
import ssl
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bpf.ring import boottime_ms
from nfq import http, quic, tls, udp
from nfq.aes import find_aes
from nfq.early import Early
from nfq.flow import MAX_HELD, MAX_OCTETS, MAX_PENDING, Stream
from nfq.hook import Hook, Now, look
from nfq.packet import parse
from nfq.quic import Budget, Initials
from policy.errors import PacketError
from policy.verdict import ALLOWED, FOREVER, Decision, Reason, Treatment, Verdict

VECTORS = Path(__file__).parents[1] / "vectors" / "nfq"
MAX_INPUT_S = 0.5
"""For one input; the usual is 5 us. The machine may be busy."""
MAX_GROWTH_MB = 48
BLOCKED = Decision(Verdict.BLOCK, Reason.CATEGORY, "list:fuzz")


class Half:
    """Blocks half of all names."""

    generation = 1

    def group_of(self, client, mac=b""):
        return client[-1] & 1

    def decide(self, name, group, now_s):
        return BLOCKED if b"d" in name else ALLOWED

    def decide_url(self, host, path, group, now_s):
        return BLOCKED if b"d" in host else ALLOWED

    def decide_address(self, address, group, now_s):
        return BLOCKED if address[-1] == 66 else ALLOWED

    def valid_until(self, group, now_s):
        return FOREVER

    def treatment(self, group):
        return Treatment("fuzz", fail=("open", "closed")[group])


def hello():
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    secure = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="www.example.org")
    try:
        secure.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


HELLOS = [hello(), (VECTORS / "chromium156_pq_hello.bin").read_bytes()]
REQUESTS = [
    b"GET /a/b?secret=1#frag HTTP/1.1\r\nAccept: */*\r\nHost: WWW.Example.org:8080\r\n\r\nbody",
    b"CONNECT a.example:443 HTTP/1.1\r\nHost: b.example\r\n\r\n",
    b"GET http://u:p@a.example/x?y HTTP/1.1\nhost : [2001:db8::1]:80\n folded\n\n",
    http.PREFACE + b"\r\nSM\r\n\r\n",
]
INITIALS = [path.read_bytes() for path in sorted(VECTORS.glob("*initial.bin")) + sorted(VECTORS.glob("*quic_*.bin"))]


def ip4(payload, protocol=6, sport=40000, seq=1, flags=0x18):
    if protocol == 6:
        payload = struct.pack("!HHIIBBHHH", sport, 443, seq & 0xFFFFFFFF, 9, 5 << 4, flags, 0, 0, 0) + payload
    else:
        payload = struct.pack("!HHHH", sport, 443, 8 + len(payload), 0) + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0)
    return head + bytes((10, 0, 0, 2, 192, 0, 2, 1)) + payload


def ip6(payload, extensions=b"", first=6):
    payload = struct.pack("!HHIIBBHHH", 40000, 443, 7, 9, 5 << 4, 0x18, 0, 0, 0) + payload
    head = struct.pack("!IHBB", 6 << 28, len(extensions) + len(payload), first, 64)
    return head + bytes(15) + b"\2" + bytes(15) + b"\1" + extensions + payload


PACKETS = [
    *(ip4(data) for data in HELLOS + REQUESTS),
    *(ip4(data, 17) for data in INITIALS),
    ip6(HELLOS[0]),
    ip6(HELLOS[0], bytes((60, 0)) + bytes(6) + bytes((6, 0)) + bytes(6), 0),
]


class Mutator:
    def __init__(self, seed):
        self.rng = random.Random(seed)

    def mutate(self, seeds):
        rng, pick = self.rng, self.rng.random
        data = bytearray(seeds[int(pick() * len(seeds))])
        for _ in range(1 + int(pick() * 4)):
            at = int(pick() * len(data)) if data else 0
            # Heads decide more than bodies: every other change is in the first 64 octets.
            if pick() < 0.5:
                at = min(at, int(pick() * 64))
            what = pick()
            if not data:
                data += os.urandom(3)
            elif what < 0.45:
                data[at] = int(pick() * 256)
            elif what < 0.55:
                data[at] ^= 1 << int(pick() * 8)
            elif what < 0.65:
                del data[at : at + 1 + int(pick() * 40)]
            elif what < 0.75:
                data[at:at] = data[at : at + int(pick() * 40)]
            elif what < 0.85:
                del data[at:]
            elif what < 0.95:
                data[at : at + 2] = (0xFFFF, 0, 1, 0x4000)[int(pick() * 4)].to_bytes(2, "big")
            else:
                data[at:at] = rng.randbytes(int(pick() * 30))
        return bytes(data)


def fuzz_packet(mutator):
    def one():
        data = mutator.mutate(PACKETS)
        yield data
        parse(data)

    return one


def fuzz_tls(mutator):
    def one():
        data = mutator.mutate(HELLOS)
        yield data
        found = tls.parse(data)
        assert found is None or found in (tls.NEED_MORE, tls.TOO_LONG) or len(found.name) <= len(data)

    return one


def fuzz_http(mutator):
    def one():
        data = mutator.mutate(REQUESTS)
        yield data
        found = http.parse(data)
        assert not isinstance(found, http.Request) or ("?" not in found.path and "#" not in found.path)

    return one


def fuzz_quic(mutator):
    aes, budget = find_aes(), Budget(1 << 60)

    def one():
        data = mutator.mutate(INITIALS)
        yield data
        initials = Initials(aes)
        initials.receive(data, b"c", budget, 0.0)
        assert initials.size <= MAX_OCTETS * 2
        udp.classify(data, 443)

    return one


def fuzz_frames(mutator):
    first = HELLOS[1][5:]
    plain = [
        b"\6\0" + (0x4000 | len(first)).to_bytes(2, "big") + first,
        b"".join(b"\6" + (0x4000 | at).to_bytes(2, "big") + b"\x20" + first[at : at + 32] for at in range(0, 800, 32)),
        b"\2\5\0\1\0\1\1\3\5\0\0\0\0\0\0\1" + bytes(40) + b"\6\0\x20" + first[:32],
    ]

    def one():
        data = mutator.mutate(plain)
        yield data
        stream = Stream(0)
        quic._add_frames(stream, data)
        assert stream.size <= MAX_OCTETS * 2
        tls.parse_handshake(stream.data())

    return one


def fuzz_stream(mutator):
    rng = mutator.rng

    def one():
        data = mutator.mutate(HELLOS[:1])
        yield data
        stream = Stream(rng.getrandbits(32))
        for _ in range(int(rng.random() * 6)):
            at = int(rng.random() * (len(data) + 1))
            near = rng.random() < 0.9
            stream.add((stream.start + at - 50) & 0xFFFFFFFF if near else rng.getrandbits(32), data[at : at + 400])
        look(stream)
        assert stream.size <= 8 * MAX_OCTETS

    return one


def fuzz_hook(mutator):
    rng = mutator.rng
    records = []
    hook = Hook(Half(), records.append, aes=find_aes, initials_per_s=1 << 40, has_pages=True)
    clock = [0.0]

    def one():
        data = mutator.mutate(PACKETS)
        if rng.random() < 0.7 and len(data) > 24:  # another flow, so that tables fill
            data = data[:20] + rng.randbytes(2) + data[22:]
        yield data
        clock[0] += rng.random() * 0.01
        now = Now(clock[0], int(clock[0] * 1000), None if rng.random() < 0.01 else 1.8e9 + clock[0])
        assert hook.receive(data, b"\2\0\0\0\0\1", now) in (0, 1, 2, 3)
        if rng.random() < 0.01:
            hook.handle_timer(now)
            hook.resets.clear()
            counters = hook.counters
            assert counters["pending"] <= MAX_PENDING + 1
            assert counters["pending_bytes"] <= MAX_HELD + MAX_OCTETS
            records.clear()

    return one


def fuzz_early(mutator):
    """What the program in the kernel lets through is what the parser reads; needs root and Linux 6.6."""
    early, client, mac, to = Early(0x0F000000), bytes((10, 0, 0, 2)), b"\2\0\0\0\0\1", bytes((192, 0, 2, 1))
    head = bytes(6) + mac + b"\x08\0"
    for has_ech in (False, True):
        early.allow(1, b"www.example.org", to, 443, has_ech, b"%d" % has_ech)

    def one():
        data = mutator.mutate(HELLOS)[:3000]
        yield data
        now_ms = boottime_ms()
        early.admit(client + mac, 1, now_ms + 1000)
        early.take(now_ms)
        for packet in (ip4(b"", seq=0, flags=2), ip4(data)):
            early.kernel.try_program(early.program, head + packet)
        for template in early.take(now_ms).fold.templates:
            assert tls.parse(data) == tls.Hello(b"www.example.org", template == b"1")

    return one


TARGETS = {
    "packet": fuzz_packet,
    "tls": fuzz_tls,
    "http": fuzz_http,
    "quic": fuzz_quic,
    "frames": fuzz_frames,
    "stream": fuzz_stream,
    "hook": fuzz_hook,
    "early": fuzz_early,
}


def memory_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(name: str, make: Callable, inputs: int, seed: int) -> None:
    one = make(Mutator(seed))
    for _ in range(min(inputs, 20_000)):  # caches and arenas at their usual size before memory is looked at
        steps(one)
    before, begin, slowest = memory_mb(), time.monotonic(), 0.0
    for number in range(inputs):
        start = time.thread_time()  # not the clock on the wall: others use the machine too
        steps(one)
        taken = time.thread_time() - start
        if taken > slowest:
            slowest = taken
            if taken > MAX_INPUT_S:
                sys.exit(f"{name}: one input took {taken:.2f} s (number {number}, seed {seed})")
    grown, spent = memory_mb() - before, time.monotonic() - begin
    print(
        f"{name}: {inputs:,} inputs, {spent:.0f} s, {spent / inputs * 1e6:.1f} us each, slowest {slowest * 1e3:.1f} ms,"
        f" memory +{grown:.1f} MB",
        flush=True,
    )
    if grown > MAX_GROWTH_MB:
        sys.exit(f"{name}: memory grew by {grown:.0f} MB")


def steps(one) -> None:
    generator = one()
    data = next(generator)
    try:
        next(generator)
    except (StopIteration, PacketError):
        pass
    except BaseException:
        print(f"failed on {data.hex()}", file=sys.stderr)
        raise


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.nfq", description=__doc__)
    parser.add_argument("--target", choices=sorted(TARGETS))
    parser.add_argument("--inputs", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for name, make in TARGETS.items():
        if options.target in (None, name):
            run(name, make, options.inputs, options.seed)


if __name__ == "__main__":
    main()
