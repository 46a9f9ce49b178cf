"""The kernel's neighbour table: which MAC address answers for which IP address. Parser (pure) and a thin socket.

Read over rtnetlink in 40 lines instead of with pyroute2: it is asked every few seconds for the life of the agent, and
pyroute2 costs 13 to 25 MB (DESIGN, Kernel facts). Sources: linux/rtnetlink.h, linux/neighbour.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterator
from typing import Final

_NLMSG: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_NDMSG: Final = struct.Struct("=BxxxiHBB")  # family, ifindex, state, flags, type
_RTATTR: Final = struct.Struct("=HH")  # length, type
_RTM_NEWNEIGH: Final = 28
_RTM_GETNEIGH: Final = 30
_NLM_F_REQUEST_DUMP: Final = 0x301
_NLMSG_DONE: Final = 3
_NDA_DST: Final = 1
_NDA_LLADDR: Final = 2
USABLE: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x80  # reachable, stale, delay, probe, permanent
REACHABLE: Final = 0x02
"""NUD_REACHABLE: it has answered within the last half minute or so. Stale entries stay for hours."""
_MAX_ROUNDS: Final = 256
"""Datagrams of one dump: 32 kB each, far more than gc_thresh3 lets the table grow to."""


def parse(
    data: bytes, states: int = USABLE, interfaces: Collection[int] | None = None
) -> tuple[list[tuple[bytes, bytes]], bool]:
    """One netlink datagram of a dump: (address, MAC) pairs in one of `states`, and whether the dump is complete.

    `interfaces`: only on these; None: on all.
    """
    found: list[tuple[bytes, bytes]] = []
    at = 0
    while at + _NLMSG.size <= len(data):
        length, kind, _, _, _ = _NLMSG.unpack_from(data, at)
        if length < _NLMSG.size or at + length > len(data):
            return found, True  # the kernel does not do this; do not loop on it
        if kind == _NLMSG_DONE:
            return found, True
        if kind == _RTM_NEWNEIGH and length >= _NLMSG.size + _NDMSG.size:
            _, interface, state, _, _ = _NDMSG.unpack_from(data, at + _NLMSG.size)
            attributes = dict(_attributes(data, at + _NLMSG.size + _NDMSG.size, at + length))
            address, mac = attributes.get(_NDA_DST, b""), attributes.get(_NDA_LLADDR, b"")
            is_wanted = state & states and (interfaces is None or interface in interfaces)
            if is_wanted and len(address) in (4, 16) and len(mac) == 6:
                found.append((address, mac))
        at += (length + 3) & ~3
    return found, False


def read(states: int = USABLE, interfaces: Collection[int] | None = None) -> dict[bytes, bytes]:
    """The whole table, IPv4 and IPv6, or what `parse` lets through of it. Raises: OSError."""
    table: dict[bytes, bytes] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as link:
        link.settimeout(1.0)
        body = _NDMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        link.send(_NLMSG.pack(_NLMSG.size + len(body), _RTM_GETNEIGH, _NLM_F_REQUEST_DUMP, 1, 0) + body)
        for _ in range(_MAX_ROUNDS):
            found, done = parse(link.recv(65536), states, interfaces)
            table.update(found)
            if done:
                break
    return table


def _attributes(data: bytes, at: int, end: int) -> Iterator[tuple[int, bytes]]:
    while at + _RTATTR.size <= end:
        length, kind = _RTATTR.unpack_from(data, at)
        if length < _RTATTR.size or at + length > end:
            return
        yield kind, data[at + _RTATTR.size : at + length]
        at += (length + 3) & ~3
