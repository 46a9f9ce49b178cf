"""The TCP reset that a blocked client owes its server: built from the packet that was blocked. Bytes out.

Sources: RFC 9293 3.10.7.4 and RFC 5961 3: a reset counts only if its sequence number is exactly the next one expected,
which is the blocked segment's own.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from nfq.packet import ACK, RST, Packet

_TCP: Final = Struct("!HHIIBBHHH")
_IPV4: Final = Struct("!BBHHHBBH4s4s")


def reset_segment(packet: Packet) -> bytes:
    """A whole IP packet, client to server, that resets the connection `packet` belongs to."""
    tcp = _TCP.pack(packet.sport, packet.dport, packet.seq, packet.ack, 5 << 4, RST | ACK, 0, 0, 0)
    pseudo = packet.src + packet.dst
    if len(packet.src) == 4:
        pseudo += bytes((0, 6)) + len(tcp).to_bytes(2, "big")
    else:
        pseudo += len(tcp).to_bytes(4, "big") + bytes((0, 0, 0, 6))
    checksum = _checksum(pseudo + tcp)
    tcp = tcp[:16] + checksum.to_bytes(2, "big") + tcp[18:]
    if len(packet.src) == 4:
        # The kernel fills in the header checksum and the id of a raw IPv4 packet (raw(7)).
        return _IPV4.pack(0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0, packet.src, packet.dst) + tcp
    return bytes((0x60, 0, 0, 0)) + len(tcp).to_bytes(2, "big") + bytes((6, 64)) + packet.src + packet.dst + tcp


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
