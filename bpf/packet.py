"""What programs at an interface begin with and do again and again. The packet is in r6; what one of them does not
like goes to the label `pass`. Pure.

Sources: include/uapi/linux/bpf.h (struct __sk_buff); RFC 791, 8200.
"""

from __future__ import annotations

import socket
from typing import Final

from bpf.assembler import R0, R1, R2, R3, R4, R6, R7, R8, R10, Assembler, Register
from bpf.kernel import RB_NO_WAKEUP, Helper

# struct __sk_buff
LEN, PKT_TYPE, MARK, PROTOCOL, VLAN_PRESENT, IFINDEX, DATA, DATA_END = 0, 4, 8, 16, 20, 40, 76, 80
ETHERNET: Final = 14
"""Octets of the header."""
_NEXT: Final = -1
"""TCX_NEXT, to whoever is next."""


def begin(a: Assembler) -> None:
    """r6: the packet; r7: its octets; r8: the end of those."""
    a.op("mov", R6, R1)
    a.load("w", R7, R6, DATA)
    a.load("w", R8, R6, DATA_END)


def only_to_us(a: Assembler) -> None:
    """Only what is addressed to this machine's Ethernet address, and has no VLAN tag. Uses r0."""
    for field in (PKT_TYPE, VLAN_PRESENT):
        a.load("w", R0, R6, field)
        a.jump("jne", R0, 0, "pass")


def by_family(a: Assembler) -> None:
    """To `ipv4` or `ipv6`, which follow; and here is `pass`."""
    a.load("w", R0, R6, PROTOCOL)
    a.jump("jeq", R0, socket.htons(0x0800), "ipv4")
    a.jump("jeq", R0, socket.htons(0x86DD), "ipv6")
    a.label("pass")
    a.op("mov", R0, _NEXT)
    a.exit()


def only_plain_ipv4(a: Assembler) -> None:
    """Only a header without options, of a packet that is no fragment. Uses r0."""
    a.load("b", R0, R7, ETHERNET)
    a.jump("jne", R0, 0x45, "pass")
    a.load("h", R0, R7, ETHERNET + 6)
    a.jump("jset", R0, socket.htons(0x3FFF), "pass")  # more fragments, or a later one


def now_ms(a: Assembler) -> None:
    """r0: ms since boot; r1 to r5 are lost."""
    a.call(Helper.KTIME_GET_BOOT_NS)
    a.op("div", R0, 1_000_000)


def look_up(a: Assembler, fd: int, key: int) -> None:
    """r0: the value of the key that lies at `key` on the stack, or 0; r1 to r5 are lost."""
    a.map(R1, fd)
    a.op("mov", R2, R10)
    a.op("add", R2, key)
    a.call(Helper.MAP_LOOKUP_ELEM)


def read(a: Assembler, target: Register, offset: int, octets: Register) -> None:
    """So many octets of the packet, from the r2-th on, to `target + offset`; if they are not there, it goes to `pass`.
    r1 to r5 are lost."""
    a.op("mov", R1, R6)
    a.op("mov", R3, target)
    if offset:
        a.op("add", R3, offset)
    a.op("mov", R4, octets)
    a.call(Helper.SKB_LOAD_BYTES)
    a.jump("jne", R0, 0, "pass")


def tell(a: Assembler, ring: int, event: int, octets: int) -> None:
    """The event that lies at `event` on the stack goes to the ring, or the packet to `pass`: nobody is woken by it."""
    a.map(R1, ring)
    a.op("mov", R2, R10)
    a.op("add", R2, event)
    a.op("mov", R3, octets)
    a.op("mov", R4, RB_NO_WAKEUP)
    a.call(Helper.RINGBUF_OUTPUT)
    a.jump("jne", R0, 0, "pass")
