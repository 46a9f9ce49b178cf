"""What a UDP flow is, if it is not QUIC, by its first octets: the cause that the blind-spot meter counts. Pure.

Rule: any bytes give a cause; a wrong guess costs a word in a record, never a verdict.
Sources: RFC 9147 4 and 9443 (how protocols share a port), RFC 8489 5 (STUN), RFC 7296 3.1 and RFC 3948 (IPsec),
the WireGuard protocol page 5.4.2, OpenVPN's ssl_pkt.h.
"""

from __future__ import annotations

from typing import Final

from policy.event import Blind

_STUN_COOKIE: Final = b"\x21\x12\xa4\x42"
_WIREGUARD_INITIATION: Final = 148
_OPENVPN_RESETS: Final = frozenset({0x38, 0x40, 0x50})
"""Opcode 7, 8 or 10 (client hard reset, version 2, 3 or with tls-crypt-v2), key id 0."""
_IPSEC_PORTS: Final = frozenset({500, 4500})


def classify(payload: bytes, port: int) -> Blind:
    """The cause why a datagram shows no name. `port`: where it goes."""
    if len(payload) == _WIREGUARD_INITIATION and payload[:4] == b"\1\0\0\0":
        return Blind.VPN
    if port in _IPSEC_PORTS and len(payload) >= 28:
        return Blind.VPN
    if len(payload) >= 14 and payload[0] in _OPENVPN_RESETS and port == 1194:
        return Blind.VPN
    if len(payload) >= 13 and 20 <= payload[0] <= 25 and payload[1] == 0xFE:
        return Blind.DTLS
    if len(payload) >= 20 and payload[4:8] == _STUN_COOKIE:
        return Blind.DTLS
    return Blind.OPAQUE
