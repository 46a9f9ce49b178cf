"""A client's load, run inside the lab: `load.py dns ADDRESS COUNT` or `load.py tls ADDRESS NAME COUNT CA`.

One request after another, as a browser's thread would; prints JSON: seconds, median and p99 in microseconds, failures.
Standard library only, because it runs isolated from the project.
"""

import json
import random
import socket
import ssl
import statistics
import struct
import sys
import time


def dns(address: str, count: int) -> list[float]:
    """Look-ups over 64 names of the lab: nearly all are answered from somebody's cache."""
    taken = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.settimeout(2)
        link.connect((address, 53))
        for number in range(count):
            name = f"h{random.randrange(64)}.example.org"
            labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
            query = struct.pack("!HHHHHH", number & 0xFFFF, 0x0100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"
            start = time.perf_counter()
            link.send(query)
            answer = link.recv(4096)
            taken.append(time.perf_counter() - start)
            if answer[:2] != query[:2] or answer[3] & 15:
                raise SystemExit(f"bad answer for {name}: {answer[:12].hex()}")
    return taken


def tls(address: str, name: str, count: int, ca: str) -> list[float]:
    """Connections: TCP, TLS 1.3, one request, close."""
    context = ssl.create_default_context(cafile=ca)
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        with (
            socket.create_connection((address, 443), timeout=5) as link,
            context.wrap_socket(link, server_hostname=name) as secure,
        ):
            secure.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            if not secure.recv(4096).startswith(b"HTTP/1.1 200"):
                raise SystemExit("bad answer")
            taken.append(time.perf_counter() - start)
    return taken


def main() -> None:
    start = time.perf_counter()
    if sys.argv[1] == "dns":
        taken = dns(sys.argv[2], int(sys.argv[3]))
    else:
        taken = tls(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
    spent = time.perf_counter() - start
    ordered = sorted(taken)
    print(
        json.dumps(
            {
                "seconds": spent,
                "count": len(taken),
                "p50_us": statistics.median(ordered) * 1e6,
                "p99_us": ordered[len(ordered) * 99 // 100] * 1e6,
            }
        )
    )


main()
