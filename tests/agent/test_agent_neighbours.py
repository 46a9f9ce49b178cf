"""The neighbour table: the kernel's own answer, and bytes that are not one."""

import struct
import subprocess

from hypothesis import given
from hypothesis import strategies as st

from agent.neighbours import parse, read


def test_the_kernels_table_agrees_with_iproute2() -> None:
    said = subprocess.run(["ip", "neigh", "show"], capture_output=True, text=True, check=True).stdout
    shown = {words[words.index("lladdr") + 1] for line in said.splitlines() if "lladdr" in (words := line.split())}
    assert {mac.hex(":") for mac in read().values()} <= shown


def neighbour(address: bytes, mac: bytes, state: int = 2) -> bytes:
    body = struct.pack("=BxxxiHBB", 2, 1, state, 0, 1)
    body += struct.pack("=HH", 4 + len(address), 1) + address + struct.pack("=HH", 4 + len(mac), 2) + mac + b"\0\0"
    return struct.pack("=IHHII", 16 + len(body), 28, 0, 1, 0) + body


def test_only_usable_entries_count() -> None:
    data = neighbour(b"\x0a\0\0\2", b"\2\0\0\0\0\1") + neighbour(b"\x0a\0\0\3", b"\2\0\0\0\0\2", state=0x20)
    assert parse(data) == ([(b"\x0a\0\0\2", b"\2\0\0\0\0\1")], False)
    assert parse(data + struct.pack("=IHHII", 16, 3, 0, 1, 0)) == ([(b"\x0a\0\0\2", b"\2\0\0\0\0\1")], True)


@given(st.binary(max_size=200))
def test_any_bytes_end(data: bytes) -> None:
    parse(data)
    parse(neighbour(b"\x0a\0\0\2", b"\2\0\0\0\0\1")[: len(data)] + data)
