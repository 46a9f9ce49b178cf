"""IPv4, IPv6, TCP and UDP headers, as far as the hook needs them. Bytes in, a `Packet` out.

Rule: any bytes parse or raise PacketError; extension headers are walked at most MAX_EXTENSIONS deep.
Sources: RFC 791, RFC 8200, RFC 9293, RFC 768.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from policy.errors import PacketError

TCP: Final = 6
UDP: Final = 17
MAX_EXTENSIONS: Final = 8
"""IPv6 extension headers in a row; real packets carry one or two."""

FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10

_PORTS: Final = Struct("!HH")
_TCP: Final = Struct("!HHIIBB")
_EXTENSIONS: Final = frozenset({0, 43, 60, 135, 139, 140})  # hop-by-hop, routing, destination, mobility, HIP, shim6


class Packet(NamedTuple):
    """One packet of a flow, client to server."""

    src: bytes
    dst: bytes
    protocol: int
    sport: int
    dport: int
    seq: int
    """TCP: sequence number of the first payload octet (SYN counts one). UDP: 0."""
    ack: int
    flags: int
    """TCP flags; UDP: 0."""
    payload: bytes

    @property
    def key(self) -> bytes:
        """The flow it belongs to: 12 or 36 octets for TCP, one more for others. The hook's fast path cuts the same."""
        key = self.src + self.dst + _PORTS.pack(self.sport, self.dport)
        return key if self.protocol == TCP else key + bytes((self.protocol,))


class Ends(NamedTuple):
    """A flow's key, taken apart again."""

    src: bytes
    dst: bytes
    sport: int
    dport: int
    protocol: int


def ends_of(key: bytes) -> Ends:
    """What `Packet.key` was made of."""
    octets = 4 if len(key) < 36 else 16
    sport, dport = _PORTS.unpack_from(key, 2 * octets)
    protocol = TCP if len(key) == 2 * octets + 4 else key[-1]
    return Ends(key[:octets], key[octets : 2 * octets], sport, dport, protocol)


def parse(data: bytes) -> Packet:
    """Read a packet from its IP header on. `data` may be cut at the end (the queue copies a prefix).

    Raises: PacketError.
    """
    version = data[0] >> 4 if data else 0
    if version == 4:
        return _parse4(data)
    if version == 6:
        return _parse6(data)
    raise PacketError(f"packet: IP version {version}, expected 4 or 6")


def _parse4(data: bytes) -> Packet:
    if len(data) < 20:
        raise PacketError(f"packet: {len(data)} octets, expected an IPv4 header of 20")
    header = (data[0] & 15) * 4
    total = int.from_bytes(data[2:4], "big")
    # With GSO the total length of a super-packet may not fit and is 0 (BIG TCP): then the data themselves end it.
    end = total if total else len(data)
    if header < 20 or end < header or len(data) < header:
        raise PacketError(f"packet: IPv4 header length {header}, total length {total}")
    if int.from_bytes(data[6:8], "big") & 0x1FFF:
        raise PacketError("packet: a later fragment; its first part decided")
    return _transport(data[12:16], data[16:20], data[9], data, header, min(end, len(data)))


def _parse6(data: bytes) -> Packet:
    if len(data) < 40:
        raise PacketError(f"packet: {len(data)} octets, expected an IPv6 header of 40")
    length = int.from_bytes(data[4:6], "big")
    end = min(40 + length, len(data)) if length else len(data)
    kind, at = data[6], 40
    for _ in range(MAX_EXTENSIONS):
        if kind in (TCP, UDP):
            break
        if kind == 44:  # fragment
            if at + 8 > end or int.from_bytes(data[at + 2 : at + 4], "big") & 0xFFF8:
                raise PacketError("packet: a later fragment; its first part decided")
            kind, at = data[at], at + 8
        elif kind in _EXTENSIONS:
            if at + 8 > end:
                raise PacketError("packet: IPv6 extension header is cut")
            kind, at = data[at], at + 8 + data[at + 1] * 8
        else:
            break
    return _transport(data[8:24], data[24:40], kind, data, at, end)


def _transport(src: bytes, dst: bytes, protocol: int, data: bytes, at: int, end: int) -> Packet:
    if protocol == TCP:
        if at + 20 > end:
            raise PacketError("packet: TCP header is cut")
        sport, dport, seq, ack, offset, flags = _TCP.unpack_from(data, at)
        header = (offset >> 4) * 4
        if header < 20 or at + header > end:
            raise PacketError(f"packet: TCP header length {header}")
        first = (seq + 1) & 0xFFFFFFFF if flags & SYN else seq
        return Packet(src, dst, TCP, sport, dport, first, ack, flags, data[at + header : end])
    if protocol == UDP:
        if at + 8 > end:
            raise PacketError("packet: UDP header is cut")
        sport, dport = _PORTS.unpack_from(data, at)
        return Packet(src, dst, UDP, sport, dport, 0, 0, 0, data[at + 8 : end])
    raise PacketError(f"packet: protocol {protocol}, expected TCP or UDP")
