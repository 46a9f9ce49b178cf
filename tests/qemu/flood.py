"""On the client: asks for ever new names of a blocked domain, forty a second. `python flood.py SERVER`."""

import itertools
import socket
import struct
import sys
import time


def question(number: int) -> bytes:
    name = b"".join(bytes([len(part)]) + part for part in (b"n%06d" % number, b"flood", b"casino", b"example"))
    return struct.pack(">HHHHHH", number & 0xFFFF, 0x0100, 1, 0, 0, 0) + name + b"\0\0\1\0\1"


def main(server: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        for number in itertools.count():
            link.sendto(question(number), (server, 53))
            time.sleep(0.025)


main(sys.argv[1])
