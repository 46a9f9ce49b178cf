"""Any octets at the agent's doors are news, nothing, or that door's own error; and the session table stays itself.

`python -m tests.fuzz.agent [--cases 1000000] [--seed 1]`. Mutates real lines of scripts, leases, custom strings and
RADIUS requests (with a right authenticator every second time, or nothing behind it would ever be reached), and throws
random news at a session table. Prints what it did; a failure prints the octets.
"""

import argparse
import random
import struct
import sys
import time
from hashlib import md5

from agent.radius import read_request, response
from agent.session import MAX_ADDRESSES, RANK, Claim, Sessions
from agent.session_lines import read_custom, read_lease, read_line
from policy.errors import HookError, RadiusError

SECRET = b"testing123"
LINES = (
    b"dhcp\tadd\t02:00:00:00:01:01\t10.0.0.1",
    b"binauth\tauth_client\t02:00:00:00:01:01\t10.0.0.1\ttok\t\tYWNjb3VudD1hbm4=",
    b"binauth\tidle_deauth\t02:00:00:00:01:01\t\ttok",
    b"hostapd\twlan0\tAP-STA-CONNECTED\t02:00:00:00:01:01",
    b'{ "assoc": {"address":"02:00:00:00:01:01"} }',
    b"login\troot\t/dev/ttyS0\t10.0.0.2",
    b"1795637665 02:00:00:00:01:01 10.0.0.1 host 01:02",
)
ATTRIBUTES = (
    b"\x28\x06\0\0\0\1\x01\x05ann\x2c\x055f2\x1f\x13" + b"02-00-00-00-01-01" + b"\x08\x06\x0a\0\0\1\x20\x05ac1",
    b"\x28\x06\0\0\0\2\x31\x06\0\0\0\4\x2e\x06\0\0\1\0\x61\x14\0\x80" + b"\x20\1" + bytes(14),
)
MAX_CASE_S = 0.5


def mutated(rng: random.Random, data: bytes) -> bytes:
    octets = bytearray(data)
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(octets) + 1)
        match rng.randrange(4):
            case 0:
                octets[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 1:
                del octets[at : at + rng.randrange(1, 9)]
            case 2 if at < len(octets):
                octets[at] = rng.randrange(256)
            case 3:
                octets += octets[:at]
    return bytes(octets[:6000])


def try_line(rng: random.Random) -> None:
    data = mutated(rng, rng.choice(LINES))
    try:
        found = read_line(data)
    except HookError:
        found = None
    assert found is None or len(found.mac) in (0, 6), data
    text = data.decode("utf-8", "replace")
    read_lease(text)
    assert all(len(value) <= 64 for value in read_custom(text).values()), data


def try_radius(rng: random.Random) -> None:
    body = mutated(rng, rng.choice(ATTRIBUTES))
    head = struct.pack("!BBH", 4, rng.randrange(256), 20 + len(body))
    proof = md5(head + bytes(16) + body + SECRET).digest() if rng.randrange(2) else rng.randbytes(16)
    data = head + proof + body
    try:
        found = read_request(data, SECRET, "peer")
    except RadiusError:
        return
    assert len(found.mac) in (0, 6), data
    assert all(len(address) in (4, 16) for address in found.addresses), data
    response(found, SECRET)


class Venue:
    """A table that lives through all cases."""

    def __init__(self) -> None:
        self.number = 0
        self.sessions = Sessions(self.name, idle_ms=60_000)
        self.now_ms = 0

    def name(self) -> str:
        self.number += 1
        return f"s{self.number}"

    def step(self, rng: random.Random) -> None:
        sessions, now_ms = self.sessions, self.now_ms
        self.now_ms += rng.choice((0, 1, 10, 1000, 20_000))
        mac = b"\2\0\0\0\0" + bytes((rng.randrange(40),)) if rng.randrange(8) else rng.randbytes(rng.choice((0, 6)))
        address = b"\x0a\0\0" + bytes((rng.randrange(60),)) if rng.randrange(4) else rng.randbytes(rng.choice((4, 16)))
        source = rng.choice(list(RANK))
        match rng.randrange(8):
            case 0:
                sessions.join(mac, address, source, now_ms)
            case 1:
                token = f"t{rng.randrange(30)}" if rng.randrange(2) else ""
                claim = Claim(source, mac, (address,), f"a{rng.randrange(9)}", token=token, nas=rng.choice(("", "n")))
                sessions.login(claim, now_ms)
            case 2 if (found := sessions.of(mac, address)) is not None:
                sessions.logout(found, "user", now_ms, source)
            case 3:
                sessions.leave(address, mac, now_ms)
            case 4:
                sessions.attribute(address, mac, now_ms - rng.randrange(5000))
            case 5:
                rng.choice((sessions.associated, sessions.disassociated))(mac, now_ms)
            case 6:
                sessions.handle_timer(now_ms)
            case 7 if not rng.randrange(50):
                sessions.nas_ended("n", "lost", now_ms)
        for record in sessions.take(now_ms)[1]:
            assert len(record.addresses) <= MAX_ADDRESSES
            assert bool(record.cause) == bool(record.logout_ms)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng, venue, slowest = random.Random(options.seed), Venue(), 0.0
    tries = (try_line, try_radius, venue.step)
    for number in range(options.cases):
        begun = time.process_time()
        try:
            tries[number % 3](rng)
        except Exception:
            print(f"fuzz agent: case {number} of --seed {options.seed} fails", file=sys.stderr)
            raise
        slowest = max(slowest, time.process_time() - begun)
    print(f"fuzz agent: {options.cases} cases, {venue.number} sessions, slowest {slowest * 1000:.1f} ms")
    return int(slowest > MAX_CASE_S)


if __name__ == "__main__":
    raise SystemExit(main())
