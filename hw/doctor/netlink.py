"""Pairs of virtual interfaces, host routes and neighbours for them: six requests of rtnetlink, a shell.

By hand, as agent/neighbours.py does, because a router needs no pyroute2 (13 to 25 MB) for six requests, and busybox's
`ip` cannot make a veth. Sources: linux/rtnetlink.h, if_link.h, veth.h, neighbour.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Final

_NLMSG: Final = struct.Struct("=IHHII")
_IFINFO: Final = struct.Struct("=BxHiII")  # family, type, index, flags, change
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_NDMSG: Final = struct.Struct("=BxxxiHBB")
_RTATTR: Final = struct.Struct("=HH")
_U32: Final = struct.Struct("=I")
_NEWLINK, _DELLINK, _SETLINK, _NEWROUTE, _DELROUTE, _NEWNEIGH, _DELNEIGH = 16, 17, 19, 24, 25, 28, 29
_ERROR: Final = 2
_REQUEST_ACK: Final = 0x5
_CREATE: Final = 0x400
_EXCLUSIVE: Final = 0x200
_REPLACE: Final = 0x100
_UP: Final = 1
_PERMANENT: Final = 0x80
_MAIN, _STATIC, _LINK, _UNICAST = 254, 4, 253, 1


def _attribute(kind: int, value: bytes) -> bytes:
    return _RTATTR.pack(_RTATTR.size + len(value), kind) + value + bytes(-len(value) % 4)


class Netlink:
    """One socket. Everything raises OSError with the kernel's own reason."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(2.0)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def add_pair(self, name: str, peer: str) -> None:
        """Two interfaces with a wire between them."""
        inside = _attribute(1, _IFINFO.pack(0, 0, 0, 0, 0) + _attribute(3, peer.encode() + b"\0"))
        info = _attribute(1, b"veth\0") + _attribute(2, inside)
        body = _IFINFO.pack(0, 0, 0, 0, 0) + _attribute(3, name.encode() + b"\0") + _attribute(18, info)
        self._ask(_NEWLINK, _CREATE | _EXCLUSIVE, body)

    def set_up(self, name: str, bridge: str = "") -> None:
        """Switch on, as a port of a bridge if one is named."""
        index = socket.if_nametoindex(name)
        if bridge:
            master = _attribute(10, _U32.pack(socket.if_nametoindex(bridge)))
            self._ask(_SETLINK, 0, _IFINFO.pack(0, 0, index, 0, 0) + master)
        self._ask(_SETLINK, 0, _IFINFO.pack(0, 0, index, _UP, _UP))

    def remove(self, name: str) -> None:
        """An interface, and its other end with it; what is not there is not missed."""
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            return
        self._ask(_DELLINK, 0, _IFINFO.pack(0, 0, index, 0, 0))

    def add_host(self, address: bytes, interface: str, mac: bytes) -> None:
        """This one address is behind that interface, and has that hardware address."""
        self._ask(_NEWROUTE, _CREATE | _REPLACE, self._route(address, interface))
        self._ask(_NEWNEIGH, _CREATE | _REPLACE, self._neighbour(address, interface) + _attribute(2, mac))

    def remove_host(self, address: bytes, interface: str) -> None:
        """No more; what is not there is not missed."""
        for kind, body in (
            (_DELNEIGH, self._neighbour(address, interface)),
            (_DELROUTE, self._route(address, interface)),
        ):
            try:
                self._ask(kind, 0, body)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ESRCH):
                    raise

    def _route(self, address: bytes, interface: str) -> bytes:
        family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        head = _RTMSG.pack(family, 8 * len(address), 0, 0, _MAIN, _STATIC, _LINK, _UNICAST, 0)
        return head + _attribute(1, address) + _attribute(4, _U32.pack(socket.if_nametoindex(interface)))

    def _neighbour(self, address: bytes, interface: str) -> bytes:
        family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        return _NDMSG.pack(family, socket.if_nametoindex(interface), _PERMANENT, 0, 0) + _attribute(1, address)

    def _ask(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        head = _NLMSG.pack(_NLMSG.size + len(body), kind, _REQUEST_ACK | flags, self._sequence, 0)
        self._socket.send(head + body)
        while True:
            answer = self._socket.recv(65536)
            _, kind, _, sequence, _ = _NLMSG.unpack_from(answer)
            if sequence == self._sequence and kind == _ERROR:
                (number,) = struct.unpack_from("=i", answer, _NLMSG.size)
                if number:
                    raise OSError(-number, os.strerror(-number))
                return
