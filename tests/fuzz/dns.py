"""Any bytes parse or raise WireError, in linear time, in bounded memory; and the core raises nothing at all.

`python -m tests.fuzz.dns [--packets 10000000] [--seed 1] [--seconds 0]`. Mutates real queries and replies, feeds them
to the readers and, one in eight, to a core with flights and a clock. Prints what it did; a failure prints the octets.
"""

import argparse
import os
import random
import resource
import struct
import sys
import time

from dns import screen, usual
from dns.cache import Entry
from dns.learn import learn, read_kept
from dns.pending import MAX_FLIGHTS
from dns.proxy import Peer, Proxy
from dns.rewrite import Alias, reassemble
from dns.screen import Sight
from dns.wire import WireError, present, read_header, read_query, read_question, read_records
from policy.config import DnsConfig
from policy.verdict import ALLOWED, FOREVER, Decision, Reason, Treatment, Verdict

MAX_PACKET_S = 0.1
"""Of CPU for one message. The usual is 10 us; one of 64 KB with 1,200 records through all readers is 10 ms, most of it
in dnslib, which puts together what was taken apart. By the wall it would be the machine's other work that is measured.
"""
MAX_GROWTH_MB = 48
"""Caches of the core at their bound, and the interpreter's own slack."""


class Half:
    """Blocks half of all names, rewrites some."""

    generation = 1

    def group_of(self, client, mac=b""):
        return client[-1] & 1

    def decide(self, name, group, now_s):
        if b"d" in name:
            return Decision(Verdict.BLOCK, Reason.CATEGORY, "list:fuzz")
        if b"e" in name:
            return Decision(Verdict.REWRITE, Reason.SAFE_SEARCH, "safe", "safe.example")
        return ALLOWED

    def decide_url(self, host, path, group, now_s):
        return ALLOWED

    def decide_address(self, address, group, now_s):
        return Decision(Verdict.BLOCK, Reason.ADDRESS, "a") if address[-1] == 66 else ALLOWED

    def valid_until(self, group, now_s):
        return FOREVER

    def treatment(self, group):
        return Treatment("fuzz", ("nxdomain", "null")[group], "open", True)


def name(*labels):
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def record(owner, rtype, data, ttl=300):
    return owner + struct.pack("!HHIH", rtype, 1, ttl, len(data)) + data


def seeds():
    question = name(b"www", b"fuzz", b"org")
    pointer = b"\xc0\x0c"
    svcb = b"\0\1\0" + b"".join(
        struct.pack("!HH", key, len(value)) + value
        for key, value in (
            (0, b"\0\1\0\5"),
            (1, b"\2h2"),
            (4, b"\1\2\3\4"),
            (5, b"echecheche"),
            (6, bytes(16)),
            (65400, b"x"),
        )
    )
    bodies = [
        record(pointer, 1, b"\1\2\3\4"),
        record(pointer, 28, bytes(16)),
        record(pointer, 5, b"\5alias\xc0\x10") + record(b"\5alias\xc0\x10", 1, b"\1\2\3\4"),
        record(pointer, 65, svcb),
        record(pointer, 6, b"\2ns\xc0\x0c\4root\xc0\x0c" + bytes(20)),
        record(pointer, 15, b"\0\x0a\xc0\x0c"),
        record(pointer, 16, b"\5hello"),
        record(pointer, 46, b"\0\x41" + bytes(20)),
        record(pointer, 33, bytes(6) + question),
    ]
    opt = struct.pack("!BHHIH", 0, 41, 1232, 0x8000, 12) + b"\0\x0a\0\x08abcdefgh"
    found = []
    for qtype in (1, 28, 65, 255, 6):
        tail = question + struct.pack("!HH", qtype, 1)
        found.append(struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + tail)
        found.append(struct.pack("!HHHHHH", 7, 0x0120, 1, 0, 0, 1) + tail + opt)
        for section in range(3):
            for count in (1, 3):
                counts = [0, 0, 0]
                counts[section] = count
                for body in bodies:
                    found.append(struct.pack("!HHHHHH", 7, 0x8180, 1, *counts) + tail + body * count)
                    found.append(found[-1] + opt)
    return found


def mutate(dice, data):
    mutated = bytearray(data)
    for _ in range(dice.randrange(1, 5)):
        kind, at = dice.randrange(8), dice.randrange(len(mutated)) if mutated else 0
        if not mutated:
            mutated += b"\0"
        elif kind == 0:
            mutated[at] = dice.randrange(256)
        elif kind == 1:
            mutated[at] ^= 1 << dice.randrange(8)
        elif kind == 2:
            del mutated[at:]
        elif kind == 3:
            mutated[at:at] = mutated[dice.randrange(len(mutated)) :][: dice.randrange(40)]
        elif kind == 4:
            mutated[at : at + 2] = struct.pack("!H", 0xC000 | dice.randrange(min(0x4000, len(mutated) + 4)))
        elif kind == 5:
            mutated[at : at + 2] = dice.choice((b"\0\0", b"\xff\xff", b"\0\1", b"\x3f\xff"))
        elif kind == 6 and len(mutated) > 12:
            mutated[4 + 2 * dice.randrange(4) + 1] = dice.randrange(6)
        else:
            del mutated[at : at + dice.randrange(8)]
    if dice.randrange(20_000) == 0:
        mutated += mutated[12:] * (65535 // max(1, len(mutated)))
        mutated[6:12] = b"\xff" * 6
    return bytes(mutated[:65535])


def check_query(data):
    """What is read in one pass is what the general reader reads. Gives whether it was."""
    found = usual.read_query(data)
    if found is not None:
        whole = read_query(data, read_header(data))
        assert found == (whole, present(whole.name))
    return found is not None


def check_reply(data):
    """The same for a reply."""
    try:
        name, qtype, _, end = read_question(data)
    except WireError:
        return False
    found = usual.read_reply(data, end, qtype)
    if found is not None:
        header = read_header(data)
        records, behind, rcode = read_kept(data, end, header, is_signed=False)
        entry = learn(data, name, end, header, records, behind, rcode, 0)
        assert entry == Entry(0, min(found.ttl, 86400), found.flags, found.answers, 0, data[end : found.until])
        assert found.is_even == (len({r.ttl for r in records}) == 1)
        if found.is_plain:
            sight = screen.look(data, records)
            assert sight == Sight((), found.addresses, (), False)
            assert not screen.rebinds(sight)
    return found is not None


def read_all(data):
    """As the proxy reads, every reader, and those that read in one pass against the others. Raises: WireError."""
    check_query(data)
    check_reply(data)
    header = read_header(data)
    try:
        read_query(data, read_header(data))
    except WireError:
        pass
    asked, _, _, end = read_question(data)
    is_signed = bool(len(data) & 1)
    learn(data, asked, end, header, *read_kept(data, end, header, is_signed=is_signed), 0, is_signed=is_signed)
    records, _ = read_records(data, end, header)
    screen.look(data, records)
    kept = [r for r in records if r.section < 2]
    reassemble(data, kept, asked, strip_ech=True, alias=Alias(asked, b"\4safe\0", 30), ttl=30)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packets", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0, help="stop after so long; 0: only by packets")
    words = parser.parse_args()
    dice = random.Random(words.seed)
    bases = seeds()
    questions = [data for data in bases if not data[2] & 0x80]
    proxy = Proxy(
        DnsConfig(upstream=(("192.0.2.1", 53), ("192.0.2.2", 53)), cache_bytes=4 << 20, rate=0), Half(), os.urandom
    )
    peers = [Peer(bytes((10, 0, 0, n)), bool(n & 2), None) for n in range(8)]
    done = parsed = refused = 0
    slowest, slowest_data = 0.0, b""
    sent, now = [], 0.0
    started = time.monotonic()
    base_kb = 0
    while done < words.packets and (not words.seconds or time.monotonic() - started < words.seconds):
        data = mutate(dice, dice.choice(bases))
        before = time.process_time()
        try:
            try:
                read_all(data)
                parsed += 1
            except WireError:
                refused += 1
            if done & 7 == 0:
                now += dice.random() / 50
                asked = dice.choice(questions)
                asked = mutate(dice, asked) if dice.random() < 0.5 else asked.replace(b"fuzz", dice.randbytes(4))
                proxy.receive_query(dice.choice((data, asked)), peers[done >> 3 & 7], now)
                if sent:
                    ask = dice.choice(sent)
                    end = read_question(ask.data)[3]
                    forged = ask.data[:2] + data[2:12] + ask.data[12:end] + data[end:]
                    proxy.receive_reply(
                        dice.choice((data, ask.data[:2] + data[2:], forged)), ask.server, ask.channel, now
                    )
                due = proxy.next_timer()
                if due is not None and due <= now:
                    proxy.handle_timer(now)
                sent = (sent + proxy.asks())[-64:]
                proxy.replies()
                proxy.events()
        except Exception:
            print(f"packet {done}, seed {words.seed}: {data.hex()}", file=sys.stderr)
            raise
        spent = time.process_time() - before
        if spent > slowest:
            slowest, slowest_data = spent, data
        done += 1
        if done == 200_000:
            base_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if done % 1_000_000 == 0:
            print(f"{done:,} packets, {parsed:,} parsed, {time.monotonic() - started:.0f} s", flush=True)
    assert len(proxy.pending) <= MAX_FLIGHTS
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base_kb) / 1024 if base_kb else 0.0
    print(f"{done:,} packets: {parsed:,} parsed, {refused:,} refused; slowest {slowest * 1000:.1f} ms of CPU "
          f"({len(slowest_data)} octets); grown by {grown:.1f} MB; core {proxy.counters}")  # fmt: skip
    if slowest > MAX_PACKET_S or grown > MAX_GROWTH_MB:
        raise SystemExit("a bound was broken")


if __name__ == "__main__":
    main()
