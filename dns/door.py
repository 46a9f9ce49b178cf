"""Sockets that the clients come to: UDP and TCP, IPv4 and IPv6. A shell: bytes in, bytes out, who may come in.

Rule: an answer leaves from the address that was asked (packet info), through the interface the question came by, so
that the firewall's redirection of port 53 is undone on the way back and nobody else gets our answers.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Callable, Iterable
from struct import Struct, error
from typing import Final, NamedTuple, Protocol

from bpf.interface import index_of
from dns.hot import HotCache
from dns.outside import Poller
from dns.proxy import Peer, Reply
from dns.stream import Framer, framed

SLOT: Final = 512
"""Octets read of a query: RFC 1035 4.2.1 allows no more. A longer one arrives cut, and is malformed then."""
BUFFER: Final = 1 << 20
"""Socket buffers: 1,600 queries of 640 octets with the kernel's overhead; 16 ms at 100,000 a second."""
MAX_STREAMS: Final = 256
MAX_STREAMS_PER_CLIENT: Final = 16
STREAM_IDLE_S: Final = 10.0
"""RFC 7766 6.2.3: of the order of seconds."""
MAX_OUT: Final = 256 << 10
"""Octets of answers that a client does not fetch: beyond this it is gone."""
MAX_PER_TURN: Final = 64
LAN_S: Final = 5.0
"""How often interface names are looked up again: a bridge may come up after us."""

# socket.IP_PKTINFO only since Python 3.12; linux/in.h and linux/in6.h
_IP_PKTINFO: Final = 8
# asm-generic/socket.h; the same on MIPS. SO_MEMINFO gives nine u32, SK_MEMINFO_DROPS the last (linux/sock_diag.h).
_SO_SNDBUFFORCE: Final = 32 if os.uname().machine[:4] != "mips" else 31
_SO_RCVBUFFORCE: Final = 33
_SO_MEMINFO: Final = 55
_IP_PKTOPTIONS: Final = 9
_IPV6_2292PKTOPTIONS: Final = 6
_INFO4: Final = Struct("@i4s4s")
_INFO6: Final = Struct("@16sI")


class Way(Protocol):
    """The way back to a client; what stands in `Peer.route`."""

    def send(self, reply: Reply) -> None:
        """Send an answer; never blocks, never raises."""
        ...


class DatagramWay(NamedTuple):
    """To the sender of a datagram."""

    door: UdpDoor
    address: tuple[object, ...]
    info: list[tuple[int, int, bytes]]
    """Packet info, as it came."""
    client: bytes
    key: bytes
    """What the hot cache would find this question by."""

    def send(self, reply: Reply) -> None:
        self.door.keep(reply, self)
        self.transmit(reply.data)

    def transmit(self, data: bytes) -> None:
        try:
            self.door.socket.sendmsg((data,), self.info, 0, self.address)
        except OSError:  # the buffer is full, the client is gone, or the firewall forbids: as good as lost on the way
            self.door.counters["unsent"] += 1


class Admission:
    """Whose questions are answered: this machine's, and those that come in by the venue's interfaces."""

    def __init__(self, lan: Iterable[str], clock: Callable[[], float]) -> None:
        self._names: Final = tuple(lan)
        self._clock = clock
        self._indexes: frozenset[int] = frozenset()
        self._look_at = 0.0
        self.counters: Final = {"strangers": 0}

    @property
    def is_needed(self) -> bool:
        return bool(self._names)

    def admits(self, interface: int) -> bool:
        """`interface`: index, 0 where it is not known."""
        if not self._names or interface in self._indexes:
            return True
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + LAN_S
            self._indexes = frozenset(filter(None, map(index_of, ("lo", *self._names))))
            if interface in self._indexes:
                return True
        self.counters["strangers"] += 1
        return False


def udp_socket(host: str, port: int, *, shared: bool) -> socket.socket:
    """A listening UDP socket that tells and takes packet info.

    Raises: OSError.
    """
    sock = _listening(host, port, socket.SOCK_DGRAM, shared=shared)
    for option, forced in ((socket.SO_RCVBUF, _SO_RCVBUFFORCE), (socket.SO_SNDBUF, _SO_SNDBUFFORCE)):
        try:
            # Beyond net.core.rmem_max, which is 208 KiB on a router; root may.
            sock.setsockopt(socket.SOL_SOCKET, forced, BUFFER)
        except OSError:
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER)
    return sock


def dropped(sock: socket.socket) -> int:
    """Datagrams that the kernel threw away because nobody read them in time: unanswered, and on nobody's record."""
    try:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36)[32:36], sys.byteorder)
    except OSError:  # before Linux 4.12
        return 0


def tcp_socket(host: str, port: int, *, shared: bool) -> socket.socket:
    """A listening TCP socket.

    Raises: OSError.
    """
    sock = _listening(host, port, socket.SOCK_STREAM, shared=shared)
    sock.listen(128)
    return sock


def _listening(host: str, port: int, kind: socket.SocketKind, *, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


class UdpDoor:
    """One UDP socket, one datagram per system call: for where recvmmsg is not to be had, and for few queries."""

    def __init__(
        self,
        sock: socket.socket,
        admission: Admission,
        hot: HotCache,
        receive: Callable[[bytes, Peer, float], Reply | None],
        clock: Callable[[], float],
    ) -> None:
        self.socket: Final = sock
        self._is_ipv6 = sock.family == socket.AF_INET6
        self._admission = admission
        self._hot = hot
        self._receive = receive
        self._clock = clock
        self.counters: Final = {"unsent": 0}

    def readable(self, _: int) -> None:
        """Take in what is there, MAX_PER_TURN at most."""
        recvmsg, size = self.socket.recvmsg, socket.CMSG_SPACE(_INFO6.size)
        for _ in range(MAX_PER_TURN):
            try:
                data, info, _, address = recvmsg(SLOT, size)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error for an answer we sent; the next datagram has nothing to do with it
                continue
            now = self._clock()
            client, key = packed_address(self._is_ipv6, address[0]), data[2:]
            way = DatagramWay(self, address, info, client, key)
            self._hot.tidy(now)
            tail = self._hot.find(client, key, now)
            if tail is not None:
                way.transmit(data[:2] + tail)
                continue
            if self._admission.is_needed and not self._admission.admits(interface_of(info)):
                continue
            reply = self._receive(data, Peer(client, False, way), now)
            if reply is not None:
                way.send(reply)

    def keep(self, reply: Reply, way: DatagramWay) -> None:
        """The next one who asks this need not wait for the core."""
        if reply.hot is not None:
            self._hot.put(way.key, reply, reply.hot)
            self._hot.admit(way.client, reply.hot.group)

    def flush(self, now: float) -> None:
        """Nothing is kept back here."""


class _Connection:
    """One TCP connection; the way back for all its questions."""

    __slots__ = ("_door", "address", "framer", "out", "socket", "used_at")

    def __init__(self, door: TcpDoor, sock: socket.socket, address: bytes, now: float) -> None:
        self._door = door
        self.socket = sock
        self.address = address
        self.framer = Framer()
        self.out = bytearray()
        self.used_at = now

    def send(self, reply: Reply) -> None:
        self._door.send(reply.data, self)


class TcpDoor:
    """One listening TCP socket and its connections."""

    def __init__(
        self,
        sock: socket.socket,
        poller: Poller,
        admission: Admission,
        receive: Callable[[bytes, Peer, float], Reply | None],
        clock: Callable[[], float],
    ) -> None:
        self.socket: Final = sock
        self._is_ipv6 = sock.family == socket.AF_INET6
        self._poller = poller
        self._admission = admission
        self._receive = receive
        self._clock = clock
        self._connections: dict[int, _Connection] = {}
        self.counters: Final = {"streams": 0, "streams_refused": 0}

    def readable(self, _: int) -> None:
        """Somebody connects."""
        for _ in range(MAX_PER_TURN):
            try:
                sock, address = self.socket.accept()
            except BlockingIOError:
                return
            except OSError:  # it went away again, or we are out of descriptors
                return
            packed = packed_address(self._is_ipv6, address[0])
            theirs = sum(connection.address == packed for connection in self._connections.values())
            if (
                len(self._connections) >= MAX_STREAMS
                or theirs >= MAX_STREAMS_PER_CLIENT
                or (self._admission.is_needed and not self._admission.admits(self._interface(sock)))
            ):
                self.counters["streams_refused"] += 1
                sock.close()
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.counters["streams"] += 1
            self._welcome(_Connection(self, sock, packed, self._clock()))

    def send(self, data: bytes, connection: _Connection) -> None:
        """Send an answer, if its connection is still there."""
        if connection.socket.fileno() < 0:
            return
        connection.out += framed(data)
        connection.used_at = self._clock()
        if len(connection.out) > MAX_OUT:
            self._close(connection)
        else:
            self._flush(connection)

    def tidy(self, now: float) -> None:
        """Close connections on which nothing happens."""
        for connection in list(self._connections.values()):
            if now - connection.used_at > STREAM_IDLE_S:
                self._close(connection)

    def close(self) -> None:
        for connection in list(self._connections.values()):
            self._close(connection)
        self._poller.forget(self.socket.fileno())
        self.socket.close()

    def _welcome(self, connection: _Connection) -> None:
        fd = connection.socket.fileno()
        self._connections[fd] = connection
        self._poller.watch(fd, select.EPOLLIN, lambda events: self._step(connection, events))

    def _step(self, connection: _Connection, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush(connection)
        elif events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            self._read(connection)

    def _interface(self, sock: socket.socket) -> int:
        """Index of the interface by which the connection came: the kernel keeps it from the SYN (ip(7), ipv6(7))."""
        try:
            if self._is_ipv6:
                data = sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_2292PKTOPTIONS, 128)
                return int(_INFO6.unpack_from(data, socket.CMSG_LEN(0))[1])
            data = sock.getsockopt(socket.IPPROTO_IP, _IP_PKTOPTIONS, 128)
            return int(_INFO4.unpack_from(data, socket.CMSG_LEN(0))[0])
        except (OSError, error):
            return 0

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(0xFFFF)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(connection)
            return
        for message in connection.framer.feed(data):
            connection.used_at = now = self._clock()
            reply = self._receive(message, Peer(connection.address, True, connection), now)
            if reply is not None:
                self.send(reply.data, connection)

    def _flush(self, connection: _Connection) -> None:
        try:
            while connection.out:
                del connection.out[: connection.socket.send(connection.out)]
        except BlockingIOError:
            pass
        except OSError:
            self._close(connection)
            return
        # While it does not take what it asked for, it need not ask for more.
        self._poller.change(connection.socket.fileno(), select.EPOLLOUT if connection.out else select.EPOLLIN)

    def _close(self, connection: _Connection) -> None:
        fd = connection.socket.fileno()
        if self._connections.pop(fd, None) is not None:
            self._poller.forget(fd)
            connection.socket.close()


def interface_of(info: list[tuple[int, int, bytes]]) -> int:
    """The interface's index, out of packet info; 0 if it says nothing."""
    for level, _, data in info:
        if level == socket.IPPROTO_IP and len(data) >= _INFO4.size:
            return int(_INFO4.unpack_from(data)[0])
        if level == socket.IPPROTO_IPV6 and len(data) >= _INFO6.size:
            return int(_INFO6.unpack_from(data)[1])
    return 0


def packed_address(is_ipv6: bool, text: str) -> bytes:
    """4 or 16 octets of what the kernel gave as text."""
    if is_ipv6:
        return socket.inet_pton(socket.AF_INET6, text.partition("%")[0])  # link-local comes with its interface
    return socket.inet_aton(text)
