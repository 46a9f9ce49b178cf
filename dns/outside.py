"""Sockets to the upstreams: UDP on ports that change, TCP and TLS streams. A shell: it knows no DNS but the framing.

Rule: an ephemeral port serves PORT_USES questions or PORT_S seconds, whichever is less, then a new one is taken
(RFC 5452 9.2); an old socket stays open long enough for its last answers.
"""

from __future__ import annotations

import errno
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Final, Protocol

from dns.mmsg import BATCH, Receiver, Sender, SystemCalls
from dns.pending import STREAM, Ask
from dns.stream import Framer, framed
from dns.upstream import Where

if TYPE_CHECKING:
    import ssl

PORT_USES: Final = 256
"""A new socket costs some 30 us."""
PORT_S: Final = 30.0
LINGER_S: Final = 6.0
"""Longer than anything is waited for."""
MAX_STREAMS: Final = 64
"""Streams to all upstreams at once; a question that finds none free is one that failed."""
IDLE_S: Final = 20.0
"""A TLS stream without questions is closed; a plain one as soon as it has answered."""
MAX_REPLIES: Final = 64
"""Datagrams read per turn and socket."""
SLOT: Final = 1536
"""Octets read of a reply where many are read at once. We announce 1,232 (RFC 6891 6.2.3)."""


class Poller(Protocol):
    """Where sockets are watched; the worker's loop."""

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None: ...

    def change(self, fd: int, events: int) -> None: ...

    def forget(self, fd: int) -> None: ...


class _Port:
    __slots__ = ("born", "channel", "server", "socket", "uses")

    def __init__(self, sock: socket.socket, server: int, channel: int, now: float) -> None:
        self.socket = sock
        self.server = server
        self.channel = channel
        self.born = now
        self.uses = 0


class _Stream:
    """One TCP or TLS connection to a server."""

    __slots__ = ("framer", "heard_at", "is_open", "out", "server", "socket", "used_at", "waiting")

    def __init__(self, sock: socket.socket, server: int, now: float) -> None:
        self.socket = sock
        self.server = server
        self.framer = Framer()
        self.out = bytearray()
        self.waiting: set[int] = set()
        """Ids of questions without an answer."""
        self.used_at = self.heard_at = now
        """`heard_at`: last answer, or last time that none was waited for."""
        self.is_open = False
        """Connected, and for TLS: the handshake is done."""


class Outside:
    """All sockets to all upstreams. `deliver` and `fail` are the core's `receive_replies` and `receive_failure`."""

    def __init__(
        self,
        places: list[Where],
        poller: Poller,
        deliver: Callable[[Sequence[bytes], int, int, float], None],
        fail: Callable[[int, int, float, int | None], None],
        clock: Callable[[], float],
        tls_context: ssl.SSLContext | None = None,
        calls: SystemCalls | None = None,
    ) -> None:
        """`calls`: many datagrams per system call; None: one."""
        self._places = places
        self._poller = poller
        self._deliver = deliver
        self._fail = fail
        self._clock = clock
        self._tls = tls_context
        self._sender = Sender(calls) if calls is not None else None
        self._receiver = Receiver(calls, SLOT) if calls is not None else None
        self._ports: dict[tuple[int, int], _Port] = {}
        self._old: deque[tuple[float, _Port]] = deque()
        self._streams: list[_Stream] = []

    def send(self, ask: Ask, now: float) -> None:
        """Send one question. What cannot be sent comes back through `fail`, at once."""
        if ask.channel == STREAM:
            self._send_stream(ask, now)
            return
        try:
            port = self._port(ask.server, ask.channel, now)
            port.uses += 1
            port.socket.send(ask.data)
        except BlockingIOError:
            pass  # our own buffer is full: as good as lost on the way
        except OSError:
            self._fail(ask.server, ask.channel, now, int.from_bytes(ask.data[:2], "big"))

    def send_all(self, asks: Sequence[Ask], now: float) -> None:
        """Send many; those that stand together and go by one socket go in one system call."""
        for (server, channel), same in groupby(asks, _socket_of):
            group = list(same)
            if self._sender is None or channel == STREAM or len(group) == 1:
                for ask in group:
                    self.send(ask, now)
                continue
            for first in range(0, len(group), BATCH):
                datas = [ask.data for ask in group[first : first + BATCH]]
                try:
                    port = self._port(server, channel, now)
                except OSError:
                    failed = [(at, errno.ENETUNREACH) for at in range(len(datas))]
                else:
                    port.uses += len(datas)
                    failed = self._sender.send(port.socket.fileno(), datas)
                for at, code in failed:
                    if code != errno.EAGAIN:
                        self._fail(server, channel, now, int.from_bytes(datas[at][:2], "big"))

    def tidy(self, now: float) -> None:
        """Close what has been out of use for long enough. Call about once a second."""
        while self._old and self._old[0][0] <= now:
            self._close_port(self._old.popleft()[1])
        for stream in list(self._streams):
            is_dead = bool(stream.waiting) and now - stream.heard_at > LINGER_S
            if is_dead or now - stream.used_at > IDLE_S:
                self._close_stream(stream, now)

    def close(self) -> None:
        """Close everything."""
        for port in [*self._ports.values(), *(port for _, port in self._old)]:
            self._close_port(port)
        self._ports.clear()
        self._old.clear()
        for stream in self._streams:
            self._poller.forget(stream.socket.fileno())
            stream.socket.close()
        self._streams.clear()

    def _port(self, server: int, channel: int, now: float) -> _Port:
        port = self._ports.get((server, channel))
        if port is not None:
            if port.uses < PORT_USES and now - port.born < PORT_S:
                return port
            self._old.append((now + LINGER_S, port))
        where = self._places[server]
        sock = socket.socket(_family(where.host), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            # The kernel picks an unused port at random; connected, so that it drops what comes from anybody else.
            sock.connect((where.host, where.port))
        except OSError:
            sock.close()
            raise
        port = self._ports[server, channel] = _Port(sock, server, channel, now)
        self._poller.watch(sock.fileno(), select.EPOLLIN, lambda _: self._read_port(port))
        return port

    def _read_port(self, port: _Port) -> None:
        if self._receiver is not None:
            try:
                datas = self._receiver.receive(port.socket.fileno())
            except OSError:  # ICMP: nobody listens there
                self._fail(port.server, port.channel, self._clock(), None)
                return
            if datas:
                if max(map(len, datas)) >= SLOT:
                    datas = list(map(_marked, datas))
                self._deliver(datas, port.server, port.channel, self._clock())
            return
        for _ in range(MAX_REPLIES):
            try:
                data = port.socket.recv(0xFFFF)
            except BlockingIOError:
                return
            except OSError:  # ICMP: nobody listens there
                self._fail(port.server, port.channel, self._clock(), None)
                return
            self._deliver((data,), port.server, port.channel, self._clock())

    def _close_port(self, port: _Port) -> None:
        self._poller.forget(port.socket.fileno())
        port.socket.close()

    # Streams.

    def _send_stream(self, ask: Ask, now: float) -> None:
        number = int.from_bytes(ask.data[:2], "big")
        try:
            stream = self._stream(ask.server, now)
        except OSError:
            self._fail(ask.server, STREAM, now, number)
            return
        if not stream.waiting:
            stream.heard_at = now
        stream.waiting.add(number)
        stream.used_at = now
        stream.out += framed(ask.data)
        if stream.is_open:
            self._flush(stream)

    def _stream(self, server: int, now: float) -> _Stream:
        where = self._places[server]
        if where.tls_name:  # worth keeping: a handshake costs a hundred questions
            for stream in self._streams:
                if stream.server == server:
                    return stream
        if len(self._streams) >= MAX_STREAMS:
            raise OSError("too many streams")
        sock = socket.socket(_family(where.host), socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect((where.host, where.port))
        except BlockingIOError:
            pass
        except OSError:
            sock.close()
            raise
        stream = _Stream(sock, server, now)
        self._streams.append(stream)
        self._poller.watch(sock.fileno(), select.EPOLLIN | select.EPOLLOUT, lambda events: self._step(stream, events))
        return stream

    def _step(self, stream: _Stream, events: int) -> None:
        try:
            if not stream.is_open and not self._open(stream):
                return
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                self._read_stream(stream)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # ssl.SSLError is one
            self._close_stream(stream, self._clock())
            return
        if stream in self._streams:
            self._flush(stream)

    def _open(self, stream: _Stream) -> bool:
        error = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, "connect")
        where = self._places[stream.server]
        if where.tls_name:
            return self._shake_hands(stream, where)
        stream.is_open = True
        return True

    def _shake_hands(self, stream: _Stream, where: Where) -> bool:
        import ssl  # 3 MB that only those pay who ask over TLS

        if not isinstance(stream.socket, ssl.SSLSocket):
            if self._tls is None:
                self._tls = ssl.create_default_context()
            self._poller.forget(stream.socket.fileno())
            stream.socket = self._tls.wrap_socket(
                stream.socket, server_hostname=where.tls_name, do_handshake_on_connect=False
            )
            wanted = select.EPOLLIN | select.EPOLLOUT
            self._poller.watch(stream.socket.fileno(), wanted, lambda events: self._step(stream, events))
        try:
            stream.socket.do_handshake()
        except ssl.SSLWantReadError:
            self._poller.change(stream.socket.fileno(), select.EPOLLIN)
            return False
        except ssl.SSLWantWriteError:
            self._poller.change(stream.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)
            return False
        stream.is_open = True
        return True

    def _read_stream(self, stream: _Stream) -> None:
        while stream in self._streams:
            try:
                data = stream.socket.recv(0xFFFF)
            except OSError as error:
                if _would_block(error):
                    return
                raise
            now = self._clock()
            if not data:
                self._close_stream(stream, now)
                return
            for message in stream.framer.feed(data):
                stream.waiting.discard(int.from_bytes(message[:2], "big"))
                stream.used_at = stream.heard_at = now
                self._deliver((message,), stream.server, STREAM, now)
            if not stream.waiting and not self._places[stream.server].tls_name:
                self._close_stream(stream, now)

    def _flush(self, stream: _Stream) -> None:
        try:
            while stream.out:
                del stream.out[: stream.socket.send(stream.out)]
        except OSError as error:
            if not _would_block(error):
                self._close_stream(stream, self._clock())
                return
        wanted = select.EPOLLIN | (select.EPOLLOUT if stream.out else 0)
        self._poller.change(stream.socket.fileno(), wanted)

    def _close_stream(self, stream: _Stream, now: float) -> None:
        if stream not in self._streams:
            return
        self._streams.remove(stream)
        self._poller.forget(stream.socket.fileno())
        stream.socket.close()
        for number in stream.waiting:
            self._fail(stream.server, STREAM, now, number)


_socket_of: Final = itemgetter(0, 1)
"""Server and channel of an Ask."""


def _marked(data: bytes) -> bytes:
    """A reply that may have been cut on its way in, marked as one that its server has cut: TC."""
    return data if len(data) < SLOT else data[:2] + bytes((data[2] | 2,)) + data[3:]


def _would_block(error: OSError) -> bool:
    # ssl's "want read" and "want write" are OSErrors of their own; by name, so as not to import ssl for them.
    return isinstance(error, BlockingIOError) or type(error).__name__ in ("SSLWantReadError", "SSLWantWriteError")


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
