"""Packets from NFQUEUE and verdicts back: one interface, two bindings.

`LibraryQueue` uses NetfilterQueue; `NetlinkQueue` speaks nfnetlink itself, for routers where nothing can be compiled.
Both set GSO (a packet of several segments comes up whole) and, if asked, fail-open, on the queue's own socket.
Sources: linux/netfilter/nfnetlink_queue.h, linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Callable
from struct import Struct
from struct import error as struct_error
from typing import Final, NamedTuple, Protocol, TypeAlias

Handle: TypeAlias = Callable[[bytes, bytes], int]
"""(packet from its IP header on, MAC or empty) -> packet mark; 0: accept without a mark."""

COPY_RANGE: Final = (16 << 10) + 256
"""Octets copied of a packet: with offload a whole hello comes up as one, and what is cut off never comes again."""
LIBRARY_COPY_RANGE: Final = 3800
"""NetfilterQueue's buffer is 4,096, and a message beyond it is lost for ever. A longer hello in one packet cannot be
decided with this binding."""
MAX_QUEUED: Final = 4096
RECEIVE_BUFFER: Final = 4 << 20

_NLMSG: Final = Struct("=IHHII")
_ATTR: Final = Struct("=HH")
_CONFIG: Final = (3 << 8) | 2
_VERDICT_TYPE: Final = (3 << 8) | 1
_PACKET_OCTETS: Final = (3 << 8).to_bytes(2, sys.byteorder)
_RECEIVE: Final = COPY_RANGE + 1024
_FAIL_OPEN: Final = 1
_GSO: Final = 4


class Queue(Protocol):
    """One bound queue."""

    def fileno(self) -> int:
        """To wait on."""
        ...

    def drain(self, handle: Handle) -> int:
        """Handle what is there, at most a few dozen packets. Returns how many."""
        ...

    def close(self) -> None: ...


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTR.pack(4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def config_message(queue: int, *attributes: bytes) -> bytes:
    """An NFQNL_MSG_CONFIG for one queue."""
    body = bytes((0, 0)) + queue.to_bytes(2, "big") + b"".join(attributes)
    return _NLMSG.pack(16 + len(body), _CONFIG, 1, 0, 0) + body


def flags_message(queue: int, fail_open: bool) -> bytes:
    """Set GSO, and fail-open or not."""
    flags = _GSO | (_FAIL_OPEN if fail_open else 0)
    mask = _GSO | _FAIL_OPEN
    return config_message(queue, _attribute(5, flags.to_bytes(4, "big")), _attribute(4, mask.to_bytes(4, "big")))


class _EnoughError(Exception):
    """The budget of one `drain` is spent."""


class LibraryQueue:
    """NetfilterQueue."""

    BUDGET: Final = 64

    def __init__(self, number: int, fail_open: bool, max_queued: int = MAX_QUEUED) -> None:
        from netfilterqueue import NetfilterQueue

        self._queue = NetfilterQueue()
        self._handle: Handle = lambda data, mac: 0
        self._count = 0
        self._queue.bind(number, self._take, max_queued, range=LIBRARY_COPY_RANGE, sock_len=RECEIVE_BUFFER)
        with socket.socket(fileno=os.dup(self._queue.get_fd())) as link:
            link.send(flags_message(number, fail_open))

    def fileno(self) -> int:
        return int(self._queue.get_fd())

    def drain(self, handle: Handle) -> int:
        self._handle, self._count = handle, 0
        try:
            self._queue.run(block=False)
        except _EnoughError:
            pass
        return self._count

    def close(self) -> None:
        self._queue.unbind()

    def _take(self, packet) -> None:  # type: ignore[no-untyped-def]  # NetfilterQueue has no types
        self._count += 1
        mark = 0
        try:
            hardware = packet.get_hw()
            mark = self._handle(packet.get_payload(), hardware[:6] if hardware else b"")
        finally:
            # Whatever happens above: a packet without a verdict stays in the queue for ever.
            if mark:
                packet.set_mark(mark)
            packet.accept()
        if self._count >= self.BUDGET:
            # `run` goes on while packets come: under a flood it would never return, and a hook that says nothing for
            # two seconds is killed. An exception is the only way out, and this packet has its verdict.
            raise _EnoughError


class NetlinkQueue:
    """nfnetlink_queue, spoken in Python: several packets, then all their verdicts in one send."""

    BATCH: Final = 32

    def __init__(self, number: int, fail_open: bool, max_queued: int = MAX_QUEUED) -> None:
        self._link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 12)
        self._layout = _NO_LAYOUT
        # A verdict is the same octets each time but for the packet's number and, behind it, the mark.
        family_and_queue = bytes((0, 0)) + number.to_bytes(2, "big")
        head = _ATTR.pack(12, 2) + (1).to_bytes(4, "big")  # NFQA_VERDICT_HDR: NF_ACCEPT, and then the number
        self._plain = _NLMSG.pack(32, _VERDICT_TYPE, 1, 0, 0) + family_and_queue + head
        self._marked = _NLMSG.pack(40, _VERDICT_TYPE, 1, 0, 0) + family_and_queue + head
        self._marks: dict[int, bytes] = {}
        self._link.bind((0, 0))
        self._link.setsockopt(socket.SOL_SOCKET, 33, RECEIVE_BUFFER)  # SO_RCVBUFFORCE
        self._link.setsockopt(270, 5, 1)  # SOL_NETLINK, NETLINK_NO_ENOBUFS: full is counted by the kernel
        bind = _attribute(1, bytes((1, 0, 0, 0)))
        self._request(config_message(number, bind))
        params = _attribute(2, COPY_RANGE.to_bytes(4, "big") + b"\2")
        self._request(config_message(number, params, _attribute(3, max_queued.to_bytes(4, "big"))))
        self._request(flags_message(number, fail_open))
        self._link.setblocking(False)
        self._more = select.poll()
        self._more.register(self._link, select.POLLIN)

    def fileno(self) -> int:
        return self._link.fileno()

    def drain(self, handle: Handle) -> int:
        verdicts: list[bytes] = []
        receive = self._link.recv
        count = 0
        try:
            for _ in range(self.BATCH):
                try:
                    message = receive(_RECEIVE)
                except OSError:  # BlockingIOError: that was all
                    break
                if len(message) < 32 or message[4:6] != _PACKET_OCTETS:
                    continue
                count += 1
                mark = 0
                try:
                    payload, mac = self._fields(message)
                    mark = handle(payload, mac)
                finally:
                    # Whatever happens above: a packet without a verdict stays in the queue for ever.
                    if mark:
                        verdicts += (self._marked, message[24:28], self._marks.get(mark) or self._mark(mark))
                    else:
                        verdicts += (self._plain, message[24:28])
                # Mostly it was the only one, and to ask costs a third of an exception that says so.
                if count == 1 and not self._more.poll(0):
                    break
        finally:
            if verdicts:
                self._link.send(b"".join(verdicts))
        return count

    def close(self) -> None:
        self._link.close()

    def _mark(self, mark: int) -> bytes:
        packed = self._marks[mark] = _attribute(3, mark.to_bytes(4, "big"))  # NFQA_MARK
        return packed

    def _fields(self, message: bytes) -> tuple[bytes, bytes]:
        """Payload and MAC of an NFQNL_MSG_PACKET: by the last message's layout if it is the same, as it mostly is."""
        layout = self._layout
        try:
            if layout.heads(message, 20) == layout.expected:
                at = layout.payload_at
                if _ATTR.unpack_from(message, at) == (len(message) - at, 10):
                    mac_at = layout.mac_at
                    return message[at + 4 :], message[mac_at : mac_at + 6] if mac_at else b""
        except struct_error:
            pass
        return self._walk(message)

    def _walk(self, message: bytes) -> tuple[bytes, bytes]:
        at, payload, mac, mac_at = 20, b"", b"", 0
        form = "="
        expected: list[int] = []
        while at + 4 <= len(message):
            length, kind = _ATTR.unpack_from(message, at)
            if length < 4:
                break
            if kind == 10:
                payload = message[at + 4 : at + length]
                self._layout = _Layout(Struct(form).unpack_from, tuple(expected), at, mac_at)
                break
            if kind == 9 and length >= 14:
                mac_at = at + 8
                mac = message[mac_at : mac_at + 6]
            padded = (length + 3) & ~3
            form += f"HH{padded - 4}x"
            expected += (length, kind)
            at += padded
        return payload, mac

    def _request(self, message: bytes) -> None:
        data = bytearray(message)
        data[6:8] = (5).to_bytes(2, sys.byteorder)  # request, acknowledge
        self._link.send(data)
        answer = self._link.recv(4096)
        error = -int.from_bytes(answer[16:20], sys.byteorder, signed=True)
        if error:
            raise OSError(error, f"nfqueue: {os.strerror(error)}; is another process bound to this queue?")


class _Layout(NamedTuple):
    """Where things are in a packet message: lengths and kinds of all attributes in front of the payload."""

    heads: Callable[[bytes, int], tuple[int, ...]]
    expected: tuple[int, ...]
    payload_at: int
    mac_at: int
    """0: there is none."""


_NO_LAYOUT: Final = _Layout(Struct("=HH").unpack_from, (), 0, 0)


def open_queue(binding: str, number: int, fail_open: bool, max_queued: int = MAX_QUEUED) -> Queue:
    """Bind a queue. `auto` is netlink: all verdicts of a batch in one send, and nothing to compile.

    Raises: OSError if it cannot be bound, ImportError for `netfilterqueue` where it is not installed.
    """
    if binding == "netfilterqueue":
        return LibraryQueue(number, fail_open, max_queued)
    return NetlinkQueue(number, fail_open, max_queued)
