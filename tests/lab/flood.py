"""Hostile bytes until the time is up: `flood.py SECONDS SEED`. Runs inside the lab, on a client.

To the DNS port over UDP and TCP, and to ports 80 and 443 beyond the router, over IPv4 and IPv6: random, truncated and
mangled messages, pointer loops, 64 KB of noise. Prints how many it sent.
"""

import random
import socket
import sys
import time

rng = random.Random(int(sys.argv[2]))
LOOP = bytes.fromhex("123401000001000000000000c00c00010001")
QUERY = (
    bytes.fromhex("123401000001000000000001")
    + b"\3www\7example\3org\0\0\1\0\1"
    + bytes.fromhex("00002904d0000000000000")
)
HELLO = bytes.fromhex("16030100c8010000c40303") + rng.randbytes(200)
REQUEST = b"GET / HTTP/1.1\r\nHost: www.example.org\r\n\r\n"
QUIC = bytes.fromhex("c300000001088394c8f03e5157080000449e") + rng.randbytes(1200)
WAYS = (
    (socket.AF_INET, "10.20.0.1", "198.51.100.20"),
    (socket.AF_INET6, "2001:db8:20::1", "2001:db8:100::20"),
)


def mangle(seed: bytes) -> bytes:
    data = bytearray(seed)
    for _ in range(rng.randrange(1, 8)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data[: rng.randrange(1, len(data) + 1)]) if rng.random() < 0.5 else bytes(data)


def payload(seed: bytes) -> bytes:
    match rng.randrange(6):
        case 0:
            return rng.randbytes(rng.randrange(1, 1400))
        case 1:
            return LOOP + rng.randbytes(rng.randrange(40))
        case 2:
            return seed[: rng.randrange(1, len(seed))]
        case 3:
            return b"\xc0\x0c" * 700
        case _:
            return mangle(seed)


def datagrams(family: int, router: str, far: str) -> int:
    with socket.socket(family, socket.SOCK_DGRAM) as link:
        sent = 0
        for _ in range(50):
            try:
                link.sendto(payload(QUERY), (router, 53))
                link.sendto(payload(QUIC), (far, 443))
                sent += 2
            except OSError:
                pass
        try:
            link.sendto(rng.randbytes(65000), (router, 53))
        except OSError:
            pass
    return sent


def streams(router: str, far: str) -> int:
    sent = 0
    for address, port, seed in (
        (router, 53, len(QUERY).to_bytes(2, "big") + QUERY),
        (far, 443, HELLO),
        (far, 80, REQUEST),
    ):
        try:
            with socket.create_connection((address, port), timeout=0.5) as link:
                for _ in range(rng.randrange(1, 5)):
                    link.sendall(payload(seed) if rng.random() < 0.9 else rng.randbytes(65536))
                    sent += 1
        except OSError:
            pass
    return sent


until = time.monotonic() + float(sys.argv[1])
total = 0
while time.monotonic() < until:
    for family, router, far in WAYS:
        total += datagrams(family, router, far) + streams(router, far)
print(total)
