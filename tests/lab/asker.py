"""Asks for a fresh name every 20 ms and tells when each was answered: `asker.py SECONDS TAG`. Runs inside the lab."""

import socket
import struct
import sys
import time

until = time.monotonic() + float(sys.argv[1])
number = 0
while time.monotonic() < until:
    name = f"{sys.argv[2]}-{number}.example.org"
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    query = struct.pack("!HHHHHH", number & 65535, 0x100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.settimeout(0.5)
        link.connect(("10.20.0.1", 53))
        try:
            link.send(query)
            good = link.recv(4096)[:2] == query[:2]
        except OSError:
            good = False
    print(name if good else "-", time.time(), flush=True)
    number += 1
    time.sleep(0.02)
