"""Frames of a client made by hand, and what the answers say: Ethernet, IPv4 and IPv6, TCP, UDP, ICMP. Pure.

Rule: `read_answer` takes any octets and gives an `Answer` or None; it raises nothing.
Sources: RFC 791, RFC 8200, RFC 9293, RFC 768, RFC 792, RFC 4443, RFC 8446 4.1.2, RFC 9001 5, RFC 1035, RFC 8914.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from nfq.aes import TAG, Aes
from nfq.packet import ACK, TCP, UDP
from nfq.quic import derive_keys
from nfq.reset import checksum, pseudo_header

ICMP, ICMP6 = 1, 58
_IPV4: Final = struct.Struct("!BBHHHBBH4s4s")
_IPV6: Final = struct.Struct("!IHBB16s16s")
_TCP: Final = struct.Struct("!HHIIBBHHH")
_UDP: Final = struct.Struct("!HHHH")
ETH4, ETH6 = b"\x08\0", b"\x86\xdd"


class Answer(NamedTuple):
    """One frame that came back to our port, or left for the outside."""

    protocol: int
    port: int
    """Ours."""
    flags: int
    """Of TCP; else 0."""
    payload: bytes
    is_unreachable: bool = False
    """ICMP said that the port (or host) cannot be reached."""


def ip_packet(src: bytes, dst: bytes, protocol: int, payload: bytes) -> bytes:
    """A whole packet; `payload` begins with its transport header, whose checksum is already right."""
    if len(src) == 4:
        values = [0x45, 0, 20 + len(payload), 0, 0x4000, 64, protocol, 0, src, dst]
        values[7] = checksum(_IPV4.pack(*values))
        return _IPV4.pack(*values) + payload
    return _IPV6.pack(6 << 28, len(payload), protocol, 64, src, dst) + payload


def udp(src: bytes, dst: bytes, sport: int, dport: int, payload: bytes) -> bytes:
    """An IP packet with one datagram."""
    size = 8 + len(payload)
    plain = _UDP.pack(sport, dport, size, 0) + payload
    total = checksum(pseudo_header(src, dst, UDP, size) + plain) or 0xFFFF
    return ip_packet(src, dst, UDP, _UDP.pack(sport, dport, size, total) + payload)


def tcp(src: bytes, dst: bytes, sport: int, dport: int, flags: int, seq: int, payload: bytes = b"") -> bytes:
    """An IP packet with one segment."""
    values = [sport, dport, seq, 1 if flags & ACK else 0, 5 << 4, flags, 0xFFFF, 0, 0]
    plain = _TCP.pack(*values) + payload
    values[7] = checksum(pseudo_header(src, dst, TCP, len(plain)) + plain)
    return ip_packet(src, dst, TCP, _TCP.pack(*values) + payload)


def frame(to: bytes, source: bytes, packet: bytes) -> bytes:
    """Ethernet II."""
    return to + source + (ETH4 if packet[0] >> 4 == 4 else ETH6) + packet


def read_answer(data: bytes, client: bytes, *, outgoing: bool = False) -> Answer | None:
    """A frame for `client`, or (`outgoing`) one of his on its way out; None: neither."""
    kind, packet = data[12:14], data[14:]
    if kind == ETH4 and len(client) == 4 and len(packet) >= 20:
        protocol, src, dst = packet[9], packet[12:16], packet[16:20]
        body = packet[(packet[0] & 15) * 4 : int.from_bytes(packet[2:4], "big")]
    elif kind == ETH6 and len(client) == 16 and len(packet) >= 40:
        protocol, src, dst, body = packet[6], packet[8:24], packet[24:40], packet[40:]
    else:
        return None
    if client != (src if outgoing else dst):
        return None
    return _read_body(protocol, body, len(client), outgoing=outgoing)


def _read_body(protocol: int, body: bytes, width: int, *, outgoing: bool) -> Answer | None:
    at = 0 if outgoing else 2
    if protocol == UDP and len(body) >= 8:
        return Answer(UDP, int.from_bytes(body[at : at + 2], "big"), 0, body[8:])
    if protocol == TCP and len(body) >= 20:
        return Answer(TCP, int.from_bytes(body[at : at + 2], "big"), body[13] & 0x1F, body[(body[12] >> 4) * 4 :])
    is_unreachable = (protocol, body[:1]) in ((ICMP, b"\3"), (ICMP6, b"\1"))
    if not is_unreachable or outgoing:
        return None
    # What it is about stands behind the eight octets of ICMP's own head.
    about = body[8:]
    if width == 4 and len(about) >= 28:
        inner, ports = about[9], about[(about[0] & 15) * 4 :]
    elif width == 16 and len(about) >= 48:
        inner, ports = about[6], about[40:]
    else:
        return None
    return Answer(inner, int.from_bytes(ports[:2], "big"), 0, b"", is_unreachable=True)


# --- what is in them ------------------------------------------------------------------------------------------------


def dns_question(name: bytes, number: int) -> bytes:
    """A question for A records, with an OPT record, so that the reason may be in the answer."""
    question = b"".join(bytes((len(label),)) + label for label in name.split(b".")) + b"\0\0\1\0\1"
    return struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 1) + question + b"\0\0\x29\x04\xd0" + bytes(6)


class DnsAnswer(NamedTuple):
    """What matters of a DNS answer."""

    number: int
    rcode: int
    ede: int
    """INFO-CODE of RFC 8914; -1: none."""


def read_dns(data: bytes) -> DnsAnswer | None:
    """None: it is no answer."""
    if len(data) < 12 or not data[2] & 0x80:
        return None
    # Not parsed to the end: the option stands in the OPT record, which is the last one, and is told by its shape.
    at = data.rfind(b"\0\0\x29")
    ede = -1
    if at > 0:
        size = int.from_bytes(data[at + 9 : at + 11], "big")
        options = data[at + 11 : at + 11 + size]
        while len(options) >= 4:
            code, length = struct.unpack_from("!HH", options)
            if code == 15 and length >= 2 and len(options) >= 6:
                ede = int.from_bytes(options[4:6], "big")
            options = options[4 + length :]
    return DnsAnswer(int.from_bytes(data[:2], "big"), data[3] & 15, ede)


def hello(name: bytes, random: bytes, *, quic: bool = False) -> bytes:
    """A handshake message: ClientHello of TLS 1.3 that asks for one name. `random`: 32 octets."""

    def extension(kind: int, body: bytes) -> bytes:
        return struct.pack("!HH", kind, len(body)) + body

    def block(body: bytes, width: int = 2) -> bytes:
        return len(body).to_bytes(width, "big") + body

    extensions = extension(0, block(b"\0" + block(name)))  # server_name
    extensions += extension(10, block(b"\0\x1d"))  # x25519
    extensions += extension(13, block(b"\x04\x03\x08\x04"))
    extensions += extension(16, block(block(b"h3" if quic else b"http/1.1", 1)))
    extensions += extension(43, block(b"\x03\x04", 1))
    extensions += extension(51, block(b"\0\x1d" + block(random)))
    if quic:
        extensions += extension(57, b"")
    body = (
        b"\x03\x03" + random + (b"\0" if quic else block(random, 1)) + block(b"\x13\x01") + b"\1\0" + block(extensions)
    )
    return b"\1" + block(body, 3)


def tls_record(message: bytes) -> bytes:
    """As a TCP client sends it."""
    return b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message


def quic_initial(aes: Aes, name: bytes, cid: bytes, random: bytes) -> bytes:
    """A client's first datagram of QUIC version 1, of 1,200 octets (RFC 9000 14.1)."""
    version, number = b"\0\0\0\1", b"\0\0\0\0"
    keys = derive_keys(aes, version, cid)
    message = hello(name, random, quic=True)
    plain = b"\x06\0" + (0x4000 | len(message)).to_bytes(2, "big") + message
    head_size = 1 + 4 + 1 + len(cid) + 1 + 1 + 2 + len(number)
    plain += bytes(1200 - head_size - len(plain) - TAG)
    length = (0x4000 | len(number) + len(plain) + TAG).to_bytes(2, "big")
    head = b"\xc3" + version + bytes((len(cid),)) + cid + b"\0\0" + length + number
    sealed = seal(aes, keys.key, keys.iv.to_bytes(12, "big"), head, plain)
    # Header protection, RFC 9001 5.4.1: the sample begins four octets behind the packet number's start.
    mask = aes.block(keys.hp, sealed[:16])
    hidden = bytes(a ^ b for a, b in zip(number, mask[1:5], strict=True))
    return bytes((head[0] ^ mask[0] & 0x0F,)) + head[1:-4] + hidden + sealed


def seal(aes: Aes, key: bytes, nonce: bytes, head: bytes, plain: bytes) -> bytes:
    """AES-128-GCM (NIST SP 800-38D), out of single blocks: the hooks only ever open, so their provider only opens."""
    blocks = range(2, 2 + (len(plain) + 15) // 16)
    stream = b"".join(aes.block(key, nonce + number.to_bytes(4, "big")) for number in blocks)
    sealed = bytes(a ^ b for a, b in zip(plain, stream, strict=False))
    subkey = int.from_bytes(aes.block(key, bytes(16)), "big")
    lengths = struct.pack("!QQ", 8 * len(head), 8 * len(sealed))
    state = 0
    for part in (head, sealed, lengths):
        for at in range(0, len(part), 16):
            state = _multiply(state ^ int.from_bytes(part[at : at + 16].ljust(16, b"\0"), "big"), subkey)
    last = int.from_bytes(aes.block(key, nonce + b"\0\0\0\1"), "big")
    return sealed + (state ^ last).to_bytes(16, "big")


def _multiply(left: int, right: int) -> int:
    """In GF(2^128), bits reversed, as GCM counts them."""
    found = 0
    for bit in range(127, -1, -1):
        if left >> bit & 1:
            found ^= right
        right = right >> 1 ^ (0xE1 << 120 if right & 1 else 0)
    return found
