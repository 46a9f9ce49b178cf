"""The program that answers repeated questions inside the kernel, as its octets. Pure: no system call, no clock.

It stands where packets come in (tc ingress). A question from a client who is known, which was asked before, whose
answer lies in the arena and is still true, goes on record in the ring and straight back as an answer, before the IP
stack, the socket and the worker have had any work with it. Whatever else it sees it leaves as it is: an IPv4 header
with options, a fragment, a VLAN tag, a long question, an unknown client, a full ring.
Rule: what is answered is on record first; what is not on record takes the usual way and is answered there.

The layouts here are the contract with `dns.kernel`: all of this machine's byte order.
Sources: RFC 791, 8200, 768; Python's hash of octets is SipHash-1-3.
"""

from __future__ import annotations

import socket
import sys
from struct import Struct
from typing import Final, NamedTuple

from bpf.assembler import R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10, Assembler, Register
from bpf.kernel import Helper
from bpf.packet import (
    ETHERNET,
    IFINDEX,
    begin,
    by_family,
    look_up,
    now_ms,
    only_plain_ipv4,
    only_to_us,
    read,
    tell,
)

CLIENT_VALUE: Final = Struct("=QII")
"""Until when (ms since boot), view, the client's number. Key: source and destination address."""
ANSWER_KEY: Final = Struct("=qI4x")
"""Hash of the question from its third octet on, view: a group under one policy."""
ANSWER: Final = Struct("=QIHH")
"""Until when (ms since boot), place of the tail in the arena, its octets, its ones' complement sum (RFC 1071)."""
HASH_BEFORE: Final = 24
"""So many octets before a tail its question's hash stands in the arena, 64 bits."""
EVENT: Final = Struct("=IIII")
"""Ms since boot (32 bits of it), client's number, end of the tail in the arena, nothing."""
MAX_QUESTION: Final = 96
"""Octets of a query behind its id; a name of 69 letters with EDNS. Whole words of 8."""
MIN_QUESTION: Final = 15
MAX_TAIL: Final = 512 - 2
"""Octets of an answer behind its id."""

_LOOPBACK: Final = 1
"""LOOPBACK_IFINDEX, net/flow.h."""
_UDP: Final = 8
# The stack, below r10: an answer's headers first, at an address whose Ethernet header ends on a whole word.
_HEADERS: Final = -126
_QUESTION: Final = -128 - MAX_QUESTION
_CLIENT: Final = _QUESTION - 32
_KEY: Final = _CLIENT - 16
_EVENT: Final = _KEY - 16
_NOW: Final = _EVENT - 8
_UNTIL: Final = _NOW - 8


class Maps(NamedTuple):
    """Descriptors."""

    clients4: int
    clients6: int
    answers: int
    arena: int
    """An array of one element."""
    ring: int


class Layout(NamedTuple):
    """What the program is made for."""

    port: int
    """The UDP port we listen on: what comes by loopback."""
    redirected: int
    """The port whose questions the firewall sends there, where they come in from outside; 0: none is redirected."""
    arena_bytes: int
    hash_key: tuple[int, int]
    """Of this process's SipHash."""


def program(layout: Layout, maps: Maps) -> bytes:
    """The octets to load."""
    a = Assembler()
    begin(a)
    only_to_us(a)
    by_family(a)
    a.label("ipv4")
    _family(a, layout, maps, is_ipv6=False)
    a.label("ipv6")
    _family(a, layout, maps, is_ipv6=True)
    return a.code()


def _family(a: Assembler, layout: Layout, maps: Maps, *, is_ipv6: bool) -> None:
    ip = 40 if is_ipv6 else 20
    udp = ETHERNET + ip
    _check_headers(a, layout, udp, is_ipv6=is_ipv6)
    # r9: octets behind the id.
    _find_client(a, maps, is_ipv6=is_ipv6)
    now_ms(a)
    a.store("dw", R10, _NOW, R0)
    a.load("dw", R1, R10, _UNTIL)
    a.jump("jle", R1, R0, "pass")
    _load_question(a, udp + _UDP + 2)
    _hash(a, layout.hash_key)
    a.store("dw", R10, _KEY, R0)
    look_up(a, maps.answers, _KEY)
    a.jump("jeq", R0, 0, "pass")
    a.op("mov", R8, R0)
    a.load("dw", R1, R8, 0)
    a.load("dw", R2, R10, _NOW)
    a.jump("jle", R1, R2, "pass")
    a.load("h", R1, R8, 12)
    # A tail that is shorter than the question (many EDNS options) would have to cut it: not worth it.
    a.jump("jlt", R1, R9, "pass")
    a.jump("jgt", R1, MAX_TAIL, "pass")
    _write_headers(a, udp, is_ipv6=is_ipv6)
    _find_tail(a, layout, maps)
    a.op("mov", R1, R6)
    a.op("mov", R2, R9)
    a.op("add", R2, udp + _UDP + 2)
    a.op("mov", R3, 0)
    a.call(Helper.SKB_CHANGE_TAIL)
    a.jump("jne", R0, 0, "pass")
    # If the ring is full the longer packet goes its way: its headers still say where it ends.
    tell(a, maps.ring, _EVENT, EVENT.size)
    _store(a, 0, R10, _HEADERS, udp + _UDP + 2)
    _store(a, udp + _UDP + 2, R8, 0, R9)
    a.load("w", R1, R6, IFINDEX)
    a.op("mov", R2, 0)
    a.call(Helper.REDIRECT)
    a.exit()


def _check_headers(a: Assembler, layout: Layout, udp: int, *, is_ipv6: bool) -> None:
    """Is it a whole UDP datagram to one of our ports? r9: octets behind the id."""
    a.op("mov", R1, R7)
    a.op("add", R1, udp + _UDP + 2)
    a.jump("jgt", R1, R8, "pass")
    # What the firewall redirects comes in by its old port. By the new one it comes where netfilter has been before us
    # (br_netfilter), and an answer from that port would be nobody's.
    outside, matched = a.fresh("outside"), a.fresh("ours")
    a.load("h", R0, R7, udp + 2)
    a.load("w", R1, R6, IFINDEX)
    a.jump("jne", R1, _LOOPBACK, outside)
    a.jump("jeq", R0, socket.htons(layout.port), matched)
    a.go("pass")
    a.label(outside)
    a.jump("jne", R0, socket.htons(layout.redirected or layout.port), "pass")
    a.label(matched)
    a.load("b", R0, R7, ETHERNET + (6 if is_ipv6 else 9))
    a.jump("jne", R0, socket.IPPROTO_UDP, "pass")
    a.load("h", R9, R7, udp + 4)
    a.to_big(R9, 16)
    if is_ipv6:
        a.load("h", R1, R7, ETHERNET + 4)
        a.to_big(R1, 16)
    else:
        only_plain_ipv4(a)
        a.load("h", R1, R7, ETHERNET + 2)
        a.to_big(R1, 16)
        a.op("sub", R1, 20)
    a.jump("jne", R1, R9, "pass")
    a.op("sub", R9, _UDP + 2)
    a.jump("jgt", R9, MAX_QUESTION, "pass")
    a.jump("jlt", R9, MIN_QUESTION, "pass")


def _find_client(a: Assembler, maps: Maps, *, is_ipv6: bool) -> None:
    """By who asks and whom: view and number to the stack, and until when."""
    first, words = (ETHERNET + 8, 8) if is_ipv6 else (ETHERNET + 12, 2)
    for number in range(words):
        a.load("w", R0, R7, first + 4 * number)
        a.store("w", R10, _CLIENT + 4 * number, R0)
    look_up(a, maps.clients6 if is_ipv6 else maps.clients4, _CLIENT)
    a.jump("jeq", R0, 0, "pass")
    a.load("dw", R1, R0, 0)
    a.store("dw", R10, _UNTIL, R1)
    a.load("w", R1, R0, 8)
    a.store("w", R10, _KEY + 8, R1)
    a.store("w", R10, _KEY + 12, 0)
    a.load("w", R1, R0, 12)
    a.store("w", R10, _EVENT + 4, R1)


def _load_question(a: Assembler, at: int) -> None:
    for offset in range(0, MAX_QUESTION, 8):
        a.store("dw", R10, _QUESTION + offset, 0)
    a.op("mov", R2, at)
    read(a, R10, _QUESTION, R9)


def _hash(a: Assembler, key: tuple[int, int]) -> None:
    """r0 = SipHash-1-3 of the question. v0 to v3 are r1 to r4."""
    seeds = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
    for register, seed, half in zip((R1, R2, R3, R4), seeds, (0, 1, 0, 1), strict=True):
        a.constant(register, seed ^ key[half])
    last = a.fresh("last")
    for offset in range(0, MAX_QUESTION, 8):
        a.load("dw", R5, R10, _QUESTION + offset)
        _to_little(a, R5)
        a.jump("jlt", R9, offset + 8, last)
        a.op("xor", R4, R5)
        _round(a)
        a.op("xor", R1, R5)
    a.op("mov", R5, 0)
    a.label(last)  # r5: what is left of the question, zeros behind it
    a.op("mov", R0, R9)
    a.op("lsh", R0, 56)
    a.op("or", R5, R0)
    a.op("xor", R4, R5)
    _round(a)
    a.op("xor", R1, R5)
    a.op("xor", R3, 0xFF)
    for _ in range(3):
        _round(a)
    a.op("mov", R0, R1)
    for register in (R2, R3, R4):
        a.op("xor", R0, register)


def _round(a: Assembler) -> None:
    for v0, v2, left, right in ((R1, R3, 13, 16), (R3, R1, 17, 21)):
        a.op("add", v0, R2)
        a.op("add", v2, R4)
        _rotate(a, R2, left)
        a.op("xor", R2, v0)
        _rotate(a, R4, right)
        a.op("xor", R4, v2)
        _rotate(a, v0, 32)


def _rotate(a: Assembler, register: Register, bits: int) -> None:
    a.op("mov", R0, register)
    a.op("lsh", register, bits)
    a.op("rsh", R0, 64 - bits)
    a.op("or", register, R0)


def _to_little(a: Assembler, register: Register) -> None:
    if sys.byteorder == "big":
        a.to_little(register, 64)


def _write_headers(a: Assembler, udp: int, *, is_ipv6: bool) -> None:
    """An answer's headers and id to the stack. r7: the packet; r1: octets of the tail; r8: the answer's entry."""
    a.op("mov", R5, R1)
    a.op("add", R5, _UDP + 2)
    a.to_big(R5, 16)  # r5: the answer's UDP length, as the network has it
    for offset in (0, 2, 4):
        a.load("h", R0, R7, 6 + offset)
        a.store("h", R10, _HEADERS + offset, R0)
        a.load("h", R0, R7, offset)
        a.store("h", R10, _HEADERS + 6 + offset, R0)
    a.load("h", R0, R7, 12)
    a.store("h", R10, _HEADERS + 12, R0)
    # r3: sum of both addresses and the protocol, the same there and back.
    a.op("mov", R3, socket.htons(socket.IPPROTO_UDP))
    source, words = (ETHERNET + 8, 4) if is_ipv6 else (ETHERNET + 12, 1)
    for number in range(words):
        for there, back in ((0, words), (words, 0)):
            a.load("w", R0, R7, source + 4 * (there + number))
            a.store("w", R10, _HEADERS + source + 4 * (back + number), R0)
            a.op("add", R3, R0)
    if is_ipv6:
        a.store("w", R10, _HEADERS + ETHERNET, socket.htonl(0x6000_0000))
        a.store("h", R10, _HEADERS + ETHERNET + 4, R5)
        a.store("h", R10, _HEADERS + ETHERNET + 6, socket.htons(socket.IPPROTO_UDP << 8 | 64))
    else:
        _write_ipv4(a)
    _write_udp(a, udp)


def _write_ipv4(a: Assembler) -> None:
    """Version to protocol, with `don't fragment` and no id, and the header's checksum. r1: octets of the tail."""
    at = _HEADERS + ETHERNET
    a.op("mov", R0, R1)
    a.op("add", R0, 20 + _UDP + 2)
    a.to_big(R0, 16)
    a.store("h", R10, at, socket.htons(0x4500))
    a.store("h", R10, at + 2, R0)
    a.store("w", R10, at + 4, socket.htonl(0x4000))
    a.store("h", R10, at + 8, socket.htons(64 << 8 | socket.IPPROTO_UDP))
    constant = socket.htons(0x4500) + socket.htons(0x4000) + socket.htons(64 << 8 | socket.IPPROTO_UDP)
    a.op("add", R0, constant)
    for offset in (12, 16):
        a.load("w", R2, R10, at + offset)
        a.op("add", R0, R2)
    _fold(a, R0, R2)
    a.op("xor", R0, 0xFFFF)
    a.store("h", R10, at + 10, R0)


def _write_udp(a: Assembler, udp: int) -> None:
    """r3: sum of addresses and protocol; r5: the answer's UDP length; r8: the answer's entry.

    A packet from this machine itself, or from a guest on it, has no checksum yet but only the sum of the pseudo header,
    and somebody further on will complete it (CHECKSUM_PARTIAL): then ours must be of the same kind. Nothing tells but
    the field itself, so where it looks like that the true checksum is tried.
    """
    at, partial, done = _HEADERS + udp, a.fresh("partial"), a.fresh("summed")
    a.load("w", R4, R7, udp)  # the ports, and what they add to the sum
    a.load("h", R0, R7, udp)
    a.store("h", R10, at + 2, R0)
    a.load("h", R0, R7, udp + 2)
    a.store("h", R10, at, R0)
    a.store("h", R10, at + 4, R5)
    a.load("h", R1, R7, udp + _UDP)
    a.store("h", R10, at + _UDP, R1)
    a.op("add", R4, R1)
    # r4: ports and id.
    a.load("h", R2, R7, udp + 4)
    a.op("add", R2, R3)
    a.op("mov", R1, R2)
    _fold(a, R1, R0)
    a.load("h", R0, R7, udp + 6)
    whole = a.fresh("whole")
    a.jump("jne", R1, R0, whole)
    # r2 + length + r4 + checksum + question: all ones if the checksum is true.
    a.op("add", R2, R0)
    a.op("add", R2, R4)
    a.load("h", R0, R7, udp + 4)
    a.op("add", R2, R0)
    for offset in range(0, MAX_QUESTION, 8):
        for half in (0, 4):
            a.load("w", R0, R10, _QUESTION + offset + half)
            a.op("add", R2, R0)
    _fold(a, R2, R0)
    a.jump("jne", R2, 0xFFFF, partial)
    a.label(whole)
    a.op("add", R4, R3)
    a.op("add", R4, R5)
    a.op("add", R4, R5)
    a.load("h", R0, R8, 14)
    a.op("add", R4, R0)
    _fold(a, R4, R0)
    a.op("xor", R4, 0xFFFF)
    a.jump("jne", R4, 0, done)
    a.op("mov", R4, 0xFFFF)  # zero would say that there is none
    a.go(done)
    a.label(partial)
    a.op("mov", R4, R3)
    a.op("add", R4, R5)
    _fold(a, R4, R0)
    a.label(done)
    a.store("h", R10, at + 6, R4)


def _fold(a: Assembler, register: Register, spare: Register) -> None:
    """A sum of 16 and 32 bit words to 16 bits (RFC 1071)."""
    for bits in (32, 16, 16, 16):
        a.op("mov", spare, register)
        a.op("rsh", spare, bits)
        if bits == 32:
            a.op("mov", register, register, bits=32)
        else:
            a.op("and", register, 0xFFFF)
        a.op("add", register, spare)


def _find_tail(a: Assembler, layout: Layout, maps: Maps) -> None:
    """r8: the tail in the arena; r9: its octets. The event is ready."""
    a.load("h", R9, R8, 12)
    a.load("w", R7, R8, 8)
    a.load("w", R1, R10, _NOW if sys.byteorder == "little" else _NOW + 4)
    a.store("w", R10, _EVENT, R1)
    a.op("mov", R1, R7)
    a.op("add", R1, R9)
    a.store("w", R10, _EVENT + 8, R1)
    a.store("w", R10, _EVENT + 12, 0)
    # What the verifier wants to know; it holds of all that is in the table.
    a.jump("jgt", R9, MAX_TAIL, "pass")
    a.jump("jlt", R9, 1, "pass")
    a.jump("jlt", R7, HASH_BEFORE, "pass")
    a.jump("jgt", R7, layout.arena_bytes - MAX_TAIL, "pass")
    a.map_value(R8, maps.arena)
    a.op("add", R8, R7)
    # Is it still this answer that lies there?
    a.load("dw", R1, R8, -HASH_BEFORE)
    a.load("dw", R2, R10, _KEY)
    a.jump("jne", R1, R2, "pass")


def _store(a: Assembler, at: int, base: Register, offset: int, octets: int) -> None:
    """Over the packet's octets from `at` on."""
    a.op("mov", R1, R6)
    a.op("mov", R2, at)
    a.op("mov", R3, base)
    if offset:
        a.op("add", R3, offset)
    a.op("mov", R4, octets)
    a.op("mov", R5, 1)
    a.call(Helper.SKB_STORE_BYTES)
