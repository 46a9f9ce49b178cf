"""The program that lets a usual TLS connection through without a queue, as its octets. Pure: no system call, no clock.

It stands where packets come in from the LAN (tc ingress), before conntrack and the firewall. It notes the number of a
connection's first octet when the SYN goes by. If that octet then comes first of all, in a packet with one whole TLS
record with one whole ClientHello, from a client who is known, to an address and a port where this client's group was
let through under this very name, the packet goes on record in the ring and gets the mark of a verdict: the rules then
do with it as with a packet that has come back from the queue. A TCP segment without data gets a mark by which the rules
need not ask what it is, for four of five packets of a short connection are such; but not if the connection may be one
of those that were blocked, or if a SYN goes to the port of encrypted DNS. Whatever else it sees it leaves as it is.
Rule: what gets a verdict's mark is on record first, and only what `nfq.tls.parse` would read alike gets it; every doubt
takes the usual way. A ClientHello here must be exact to the octet, where the parser forgives what servers forgive.

The layouts here are the contract with `nfq.early`: all of this machine's byte order, ports in host order.
Sources: include/uapi/linux/bpf.h (struct __sk_buff); RFC 791, 8200, 9293; RFC 8446 4.1.2 and 5.1, RFC 6066 3.
"""

from __future__ import annotations

import socket
import sys
from struct import Struct
from typing import Final, NamedTuple

from bpf.assembler import R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10, Assembler, Register
from bpf.packet import ETHERNET, LEN, MARK, begin, by_family, look_up, now_ms, only_plain_ipv4, only_to_us, read, tell
from policy.bypass import ENCRYPTED_DNS_PORT

CLIENT_KEY: Final = Struct("=16s6sH")
"""Address (IPv4: four octets, then zeros), MAC, version of IP."""
CLIENT_VALUE: Final = Struct("=QII")
"""Until when (ms since boot), view: a group under one policy at one hour, the client's number."""
MAX_NAME: Final = 64
"""Octets of a host name."""
HELLO_KEY: Final = Struct(f"=IHBB16s{MAX_NAME}s")
"""View, port, octets of the name, is there an outer encrypted_client_hello, destination, name."""
HELLO_VALUE: Final = Struct("=I4x")
"""Number of the record's template."""
EVENT: Final = Struct("=IIIHH")
"""Ms since boot (32 bits of it), client's number, template's number, source port, lower half of the sequence number."""
MAX_HELLO: Final = 2048
"""Octets of a first packet's payload; a post-quantum hello has 1,900."""
MIN_HELLO: Final = 48
_CURSOR: Final = MAX_HELLO + 16
"""The last look at an extension goes so far beyond."""
_HAS_ECH, _NAME_AT, _NAME_OCTETS = _CURSOR + 4, _CURSOR + 8, _CURSOR + 12
SCRATCH: Final = _CURSOR + 16
"""Octets: a hello, and how far it has been read. That is kept there, not in registers: what a program reads from memory
the verifier knows nothing about, so it looks at each extension once, not once for each way through those before."""
MAX_EXTENSIONS: Final = 24
"""Chromium sends 18, with its GREASE."""
SLOTS4, SLOT4 = 1 << 14, Struct("=4s4sII")
SLOTS6, SLOT6 = 1 << 12, Struct("=16s16sII")
"""Connections whose first octet is awaited, and what is noted of each: addresses, ports as they stand in the packet,
the number of that octet. By a hash of the first three; a later one takes the place of an earlier one."""

BLOCKED_BITS: Final = 14
BLOCKED: Final = 1 << BLOCKED_BITS
"""Octets, one for each value of a connection's hash: not 0 if one of them was blocked lately."""

_FIN_SYN_RST_URG, _SYN, _ACK = 0x27, 0x02, 0x10
_SPREAD: Final = 0x9E3779B97F4A7C15
"""2^64 by the golden ratio: Fibonacci hashing."""
_64: Final = (1 << 64) - 1
_WORD: Final = Struct("=I")
# The stack, below r10.
_CLIENT: Final = -CLIENT_KEY.size
_HELLO: Final = _CLIENT - HELLO_KEY.size
_EVENT: Final = _HELLO - EVENT.size
_ZERO: Final = _EVENT - 8
_AT: Final = _ZERO - 8
"""Where the payload begins."""
_NOW: Final = _AT - 8
_SEQUENCE: Final = _NOW - 8
_HASH: Final = _SEQUENCE - 8


class Maps(NamedTuple):
    """Descriptors."""

    slots4: int
    slots6: int
    """Arrays."""
    clients: int
    hellos: int
    """Hash tables."""
    scratch: int
    """An array of one element for each processor."""
    control: int
    """An array of one element, 64 bits: until when (ms since boot) there is a worker behind this program."""
    blocked: int
    """An array of one element, of BLOCKED octets."""
    ring: int


class Marks(NamedTuple):
    """What the bits within `mask` become."""

    allow: int
    bare: int
    syn: int
    mask: int


def hash_of(connection: bytes) -> int:
    """64 bits. `connection`: both addresses and both ports as they stand in a packet, the source's first."""
    hashed = int.from_bytes(connection[-4:], sys.byteorder)
    for (word,) in _WORD.iter_unpack(connection[:-4]):
        hashed = hashed * _SPREAD & _64 ^ word
    return hashed * _SPREAD & _64


def program(marks: Marks, maps: Maps) -> bytes:
    """The octets to load."""
    a = Assembler()
    begin(a)
    by_family(a)
    a.label("ipv4")
    _family(a, maps, is_ipv6=False)
    a.label("ipv6")
    _family(a, maps, is_ipv6=True)
    a.label("known")
    _let_through(a, marks, maps)
    for name, mark in (("bare", marks.bare), ("syn", marks.syn)):
        a.label(name)
        _only_not_blocked(a, maps)
        _mark(a, mark, marks.mask)
    return a.code()


def _family(a: Assembler, maps: Maps, *, is_ipv6: bool) -> None:
    """From the headers to the keys of both tables; goes on at `known` with r9: octets of payload."""
    tcp = ETHERNET + (40 if is_ipv6 else 20)
    _check_headers(a, tcp, is_ipv6=is_ipv6)
    # r9: octets of payload; r2: flags; r3: octets of the TCP header.
    a.op("add", R3, tcp)
    a.store("dw", R10, _AT, R3)
    a.store("dw", R10, _SEQUENCE, R2)  # flags, for the moment
    _hash(a, tcp, is_ipv6=is_ipv6)
    a.load("dw", R2, R10, _SEQUENCE)
    a.op("mov", R4, R2)
    a.op("and", R4, _SYN)
    syn = a.fresh("syn")
    a.jump("jne", R4, 0, syn)
    a.jump("jeq", R9, 0, "bare")
    _find_slot(a, maps, is_ipv6=is_ipv6)
    slot = SLOT6 if is_ipv6 else SLOT4
    # r0: the slot. Is it this connection's, and this its first octet? Whatever comes, it is no more.
    for offset, place in _addresses(is_ipv6=is_ipv6):
        a.load("w", R1, R7, offset)
        a.load("w", R2, R0, place)
        a.jump("jne", R1, R2, "pass")
    a.load("w", R1, R7, tcp)
    a.load("w", R2, R0, slot.size - 8)
    a.jump("jne", R1, R2, "pass")
    a.store("w", R0, slot.size - 8, 0)
    a.load("w", R1, R7, tcp + 4)
    a.to_big(R1, 32)
    a.load("w", R2, R0, slot.size - 4)
    a.jump("jne", R1, R2, "pass")
    a.load("dw", R2, R10, _SEQUENCE)
    a.op("and", R2, _FIN_SYN_RST_URG | _ACK)
    a.jump("jne", R2, _ACK, "pass")
    a.jump("jlt", R9, MIN_HELLO, "pass")
    a.jump("jgt", R9, MAX_HELLO, "pass")
    a.load("dw", R1, R10, _AT)
    a.op("add", R1, R9)
    a.load("w", R2, R6, LEN)
    a.jump("jne", R1, R2, "pass")
    _write_keys(a, tcp, is_ipv6=is_ipv6)
    a.go("known")
    a.label(syn)
    a.op("and", R2, 0x3F)
    a.jump("jne", R2, _SYN, "pass")
    a.load("h", R0, R7, tcp + 2)
    a.jump("jeq", R0, socket.htons(ENCRYPTED_DNS_PORT), "pass")
    _find_slot(a, maps, is_ipv6=is_ipv6)
    a.load("w", R1, R7, tcp + 4)
    a.to_big(R1, 32)
    a.op("add", R1, 1, bits=32)
    a.store("w", R0, slot.size - 4, R1)
    for offset, place in _addresses(is_ipv6=is_ipv6):
        a.load("w", R1, R7, offset)
        a.store("w", R0, place, R1)
    a.load("w", R1, R7, tcp)
    with_data = a.fresh("with_data")
    a.jump("jne", R9, 0, with_data)
    a.store("w", R0, slot.size - 8, R1)
    a.go("syn")
    a.label(with_data)  # RFC 7413: nothing is awaited
    a.store("w", R0, slot.size - 8, 0)
    a.go("pass")


def _check_headers(a: Assembler, tcp: int, *, is_ipv6: bool) -> None:
    """Is it a TCP segment for this machine to pass on? r9: octets of payload, r2: flags, r3: octets of the header."""
    a.op("mov", R1, R7)
    a.op("add", R1, tcp + 20)
    a.jump("jgt", R1, R8, "pass")
    a.load("b", R0, R7, ETHERNET + (6 if is_ipv6 else 9))
    a.jump("jne", R0, socket.IPPROTO_TCP, "pass")
    only_to_us(a)
    if is_ipv6:
        a.load("h", R9, R7, ETHERNET + 4)
        a.to_big(R9, 16)
    else:
        only_plain_ipv4(a)
        a.load("h", R9, R7, ETHERNET + 2)
        a.to_big(R9, 16)
        a.jump("jlt", R9, 20, "pass")
        a.op("sub", R9, 20)
    a.load("b", R3, R7, tcp + 12)
    a.op("rsh", R3, 4)
    a.op("lsh", R3, 2)
    a.jump("jlt", R3, 20, "pass")
    a.jump("jlt", R9, R3, "pass")
    a.op("sub", R9, R3)
    a.load("b", R2, R7, tcp + 13)


def _addresses(*, is_ipv6: bool) -> list[tuple[int, int]]:
    """Where the addresses' words stand: in the packet, in the slot."""
    first, words = (ETHERNET + 8, 8) if is_ipv6 else (ETHERNET + 12, 2)
    return [(first + 4 * number, 4 * number) for number in range(words)]


def _hash(a: Assembler, tcp: int, *, is_ipv6: bool) -> None:
    """What `hash_of` says of this connection, to the stack."""
    a.load("w", R1, R7, tcp)
    a.constant(R2, _SPREAD)
    for offset, _ in _addresses(is_ipv6=is_ipv6):
        a.op("mul", R1, R2)
        a.load("w", R3, R7, offset)
        a.op("xor", R1, R3)
    a.op("mul", R1, R2)
    a.store("dw", R10, _HASH, R1)


def _find_slot(a: Assembler, maps: Maps, *, is_ipv6: bool) -> None:
    """r0: the slot of this connection."""
    a.load("dw", R1, R10, _HASH)
    a.op("rsh", R1, 64 - ((SLOTS6 if is_ipv6 else SLOTS4) - 1).bit_length())
    a.store("w", R10, _ZERO, R1)
    look_up(a, maps.slots6 if is_ipv6 else maps.slots4, _ZERO)
    a.jump("jeq", R0, 0, "pass")


def _only_not_blocked(a: Assembler, maps: Maps) -> None:
    a.load("dw", R1, R10, _HASH)
    a.op("rsh", R1, 64 - BLOCKED_BITS)
    a.map_value(R2, maps.blocked)
    a.op("add", R2, R1)
    a.load("b", R0, R2, 0)
    a.jump("jne", R0, 0, "pass")


def _write_keys(a: Assembler, tcp: int, *, is_ipv6: bool) -> None:
    """Whose it is and where it goes: all of the keys but view, name and what the hello says."""
    first, words = (ETHERNET + 8, 4) if is_ipv6 else (ETHERNET + 12, 1)
    for number in range(4):
        for start, at in ((first, _CLIENT), (first + 4 * words, _HELLO + 8)):
            if number < words:
                a.load("w", R0, R7, start + 4 * number)
                a.store("w", R10, at + 4 * number, R0)
            else:
                a.store("w", R10, at + 4 * number, 0)
    for offset in (0, 2, 4):
        a.load("h", R0, R7, 6 + offset)
        a.store("h", R10, _CLIENT + 16 + offset, R0)
    a.store("h", R10, _CLIENT + 22, 6 if is_ipv6 else 4)
    a.load("h", R0, R7, tcp + 2)
    a.to_big(R0, 16)
    a.store("h", R10, _HELLO + 4, R0)
    a.load("h", R0, R7, tcp)
    a.to_big(R0, 16)
    a.store("h", R10, _EVENT + 12, R0)
    a.load("h", R0, R7, tcp + 6)
    a.to_big(R0, 16)
    a.store("h", R10, _EVENT + 14, R0)


def _let_through(a: Assembler, marks: Marks, maps: Maps) -> None:
    """r6: the packet, r9: octets of payload; the keys, and where the payload begins, on the stack."""
    _find_client(a, maps)
    a.store("dw", R10, _ZERO, 0)
    look_up(a, maps.scratch, _ZERO)
    a.jump("jeq", R0, 0, "pass")
    a.op("mov", R8, R0)
    a.load("dw", R2, R10, _AT)
    read(a, R8, 0, R9)
    _read_hello(a)
    # r4: is there ECH; r5: where the name begins; r9: its octets.
    a.store("b", R10, _HELLO + 6, R9)
    a.store("b", R10, _HELLO + 7, R4)
    for offset in range(0, MAX_NAME, 8):
        a.store("dw", R10, _HELLO + 24 + offset, 0)
    a.load("dw", R2, R10, _AT)
    a.op("add", R2, R5)
    read(a, R10, _HELLO + 24, R9)
    look_up(a, maps.hellos, _HELLO)
    a.jump("jeq", R0, 0, "pass")
    a.load("w", R1, R0, 0)
    a.store("w", R10, _EVENT + 8, R1)
    tell(a, maps.ring, _EVENT, EVENT.size)
    _mark(a, marks.allow, marks.mask)


def _mark(a: Assembler, value: int, mask: int) -> None:
    a.load("w", R0, R6, MARK)
    a.op("and", R0, ~mask & 0xFFFFFFFF, bits=32)
    a.op("or", R0, value, bits=32)
    a.store("w", R6, MARK, R0)
    a.go("pass")


def _find_client(a: Assembler, maps: Maps) -> None:
    """View and number to the stack, if they still hold and a worker is there."""
    look_up(a, maps.clients, _CLIENT)
    a.jump("jeq", R0, 0, "pass")
    a.op("mov", R7, R0)
    now_ms(a)
    a.load("dw", R1, R7, 0)
    a.jump("jle", R1, R0, "pass")
    a.map_value(R1, maps.control)
    a.load("dw", R1, R1, 0)
    a.jump("jle", R1, R0, "pass")
    a.store("w", R10, _EVENT, R0)
    a.load("w", R1, R7, 8)
    a.store("w", R10, _HELLO, R1)
    a.load("w", R1, R7, 12)
    a.store("w", R10, _EVENT + 4, R1)


def _read_hello(a: Assembler) -> None:
    """One record, one ClientHello, both ending with the payload. r8: its octets, r9: how many.

    Then r4: 1 if there is an outer encrypted_client_hello, r5: where the name begins, r9: its octets.
    """
    a.load("b", R0, R8, 0)
    a.jump("jne", R0, 0x16, "pass")
    a.load("b", R0, R8, 1)
    a.jump("jne", R0, 3, "pass")
    a.load("b", R0, R8, 5)
    a.jump("jne", R0, 1, "pass")
    a.load("b", R0, R8, 6)
    a.jump("jne", R0, 0, "pass")
    for at, before in ((3, 5), (7, 9)):
        _load_pair(a, R0, at)
        a.op("add", R0, before)
        a.jump("jne", R0, R9, "pass")
    a.op("mov", R7, 9 + 34)  # version, random
    _skip(a, 1)  # session id
    _skip(a, 2)  # cipher suites
    _skip(a, 1)  # compression methods
    _reach(a, 2)
    _load_pair_at(a, R0, R1, 0)
    a.op("add", R7, 2)
    a.op("add", R0, R7)
    a.jump("jne", R0, R9, "pass")
    a.store("w", R8, _CURSOR, R7)
    for place in (_HAS_ECH, _NAME_AT, _NAME_OCTETS):
        a.store("w", R8, place, 0)
    for _ in range(MAX_EXTENSIONS):
        _read_extension(a)
    a.load("w", R7, R8, _CURSOR)
    a.jump("jne", R7, R9, "pass")
    a.label("read")
    a.load("w", R4, R8, _HAS_ECH)
    a.load("w", R5, R8, _NAME_AT)
    a.load("w", R9, R8, _NAME_OCTETS)
    a.jump("jeq", R5, 0, "pass")
    a.jump("jgt", R5, MAX_HELLO, "pass")
    a.jump("jlt", R9, 1, "pass")
    a.jump("jgt", R9, MAX_NAME, "pass")


def _read_extension(a: Assembler) -> None:
    """The one at the cursor, which then is at the next."""
    done, name = a.fresh("extension"), a.fresh("name")
    a.load("w", R7, R8, _CURSOR)
    a.jump("jeq", R7, R9, "read")
    _reach(a, 4)
    _load_pair_at(a, R0, R1, 0)
    _load_pair_at(a, R2, R1, 2)
    a.op("add", R7, 4)
    a.op("mov", R3, R7)
    a.op("add", R3, R2)
    a.store("w", R8, _CURSOR, R3)
    a.jump("jeq", R0, 0, name)
    a.jump("jne", R0, 0xFE0D, done)
    a.jump("jeq", R2, 0, done)
    a.load("b", R0, R1, 4)
    a.jump("jne", R0, 0, done)
    a.store("w", R8, _HAS_ECH, 1)
    a.go(done)
    a.label(name)
    a.load("w", R0, R8, _NAME_AT)
    a.jump("jne", R0, 0, "pass")
    a.jump("jlt", R2, 6, "pass")
    _load_pair_at(a, R0, R1, 0)  # server_name_list, and one name of type host_name in it
    a.op("add", R0, 2)
    a.jump("jne", R0, R2, "pass")
    a.load("b", R0, R1, 2)
    a.jump("jne", R0, 0, "pass")
    _load_pair_at(a, R0, R1, 3)
    a.store("w", R8, _NAME_OCTETS, R0)
    a.op("add", R0, 5)
    a.jump("jne", R0, R2, "pass")
    a.op("add", R7, 5)
    a.store("w", R8, _NAME_AT, R7)
    a.label(done)


def _skip(a: Assembler, octets: int) -> None:
    """r7 goes behind a field with a length of so many octets before it."""
    _reach(a, octets)
    if octets == 1:
        a.op("mov", R1, R8)
        a.op("add", R1, R7)
        a.load("b", R0, R1, 0)
    else:
        _load_pair_at(a, R0, R1, 0)
    a.op("add", R7, octets)
    a.op("add", R7, R0)


def _reach(a: Assembler, octets: int) -> None:
    """Are so many octets left from r7 on?"""
    a.jump("jgt", R7, MAX_HELLO - octets, "pass")  # for the verifier
    a.op("mov", R0, R7)
    a.op("add", R0, octets)
    a.jump("jgt", R0, R9, "pass")


def _load_pair(a: Assembler, target: Register, at: int) -> None:
    a.load("b", target, R8, at)
    a.load("b", R1, R8, at + 1)
    a.op("lsh", target, 8)
    a.op("or", target, R1)


def _load_pair_at(a: Assembler, target: Register, base: Register, offset: int) -> None:
    """`target`: 16 bits at r7 + offset; `base`: r8 + r7. Uses r3."""
    a.op("mov", base, R8)
    a.op("add", base, R7)
    a.load("b", target, base, offset)
    a.load("b", R3, base, offset + 1)
    a.op("lsh", target, 8)
    a.op("or", target, R3)
