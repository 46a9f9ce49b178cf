"""Packets that we send in somebody's name: the reset a blocked client owes its server, and the page in the server's.

Built from the packet that was blocked. Bytes out, no sockets.
Sources: RFC 9293 3.10.7.4 and RFC 5961 3 (a reset counts only if its sequence number is exactly the next one expected,
which is the blocked segment's own), RFC 1071 (checksum), raw(7).
"""

from __future__ import annotations

from struct import Struct, unpack
from typing import Final

from nfq.packet import ACK, FIN, PSH, RST, TCP, Packet

_TCP: Final = Struct("!HHIIBBHHH")
_IPV4: Final = Struct("!BBHHHBBH4s4s")
_WINDOW: Final = 0xFFFF


def reset_segment(packet: Packet) -> bytes:
    """A whole IP packet, client to server, that resets the connection `packet` belongs to."""
    tcp = _TCP.pack(packet.sport, packet.dport, packet.seq, packet.ack, 5 << 4, RST | ACK, 0, 0, 0)
    return _whole(packet.src, packet.dst, tcp)


def answer_segment(packet: Packet, answer: bytes) -> bytes:
    """A whole IP packet, server to client, that answers the request in `packet` and ends the connection.

    `answer` must fit in one segment.
    """
    acknowledged = (packet.seq + len(packet.payload)) & 0xFFFFFFFF
    tcp = _TCP.pack(packet.dport, packet.sport, packet.ack, acknowledged, 5 << 4, ACK | PSH | FIN, _WINDOW, 0, 0)
    return _whole(packet.dst, packet.src, tcp + answer)


def _whole(src: bytes, dst: bytes, tcp: bytes) -> bytes:
    summed = checksum(pseudo_header(src, dst, TCP, len(tcp)) + tcp)
    tcp = tcp[:16] + summed.to_bytes(2, "big") + tcp[18:]
    if len(src) == 4:
        # The kernel fills in the header checksum and the id of a raw IPv4 packet (raw(7)).
        return _IPV4.pack(0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0, src, dst) + tcp
    return bytes((0x60, 0, 0, 0)) + len(tcp).to_bytes(2, "big") + bytes((6, 64)) + src + dst + tcp


def pseudo_header(src: bytes, dst: bytes, protocol: int, size: int) -> bytes:
    """What a checksum of `size` octets of TCP, UDP or ICMPv6 begins with (RFC 9293 3.1, RFC 8200 8.1)."""
    if len(src) == 4:
        return src + dst + bytes((0, protocol)) + size.to_bytes(2, "big")
    return src + dst + size.to_bytes(4, "big") + bytes((0, 0, 0, protocol))


def checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
