"""Packets from NFQUEUE and verdicts back: one interface, two bindings.

`LibraryQueue` uses NetfilterQueue; `NetlinkQueue` speaks nfnetlink itself, for routers where nothing can be compiled.
Both set GSO (a packet of several segments comes up whole) and, if asked, fail-open, on the queue's own socket.
Sources: linux/netfilter/nfnetlink_queue.h, linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from struct import Struct
from typing import Final, Protocol, TypeAlias

Handle: TypeAlias = Callable[[bytes, bytes], int]
"""(packet from its IP header on, MAC or empty) -> packet mark; 0: accept without a mark."""

COPY_RANGE: Final = 3800
"""Octets copied of a packet. NetfilterQueue's buffer is 4,096 and a message beyond it is lost for ever (nfq study)."""
MAX_QUEUED: Final = 4096
RECEIVE_BUFFER: Final = 4 << 20

_NLMSG: Final = Struct("=IHHII")
_ATTR: Final = Struct("=HH")
_VERDICT: Final = Struct("=IHHIIBBHHHIIHHI")
_CONFIG: Final = (3 << 8) | 2
_VERDICT_TYPE: Final = (3 << 8) | 1
_PACKET_TYPE: Final = 3 << 8
_FAIL_OPEN: Final = 1
_GSO: Final = 4
_ACCEPT_BE: Final = int.from_bytes((1).to_bytes(4, "big"), "little")


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


class LibraryQueue:
    """NetfilterQueue."""

    def __init__(self, number: int, fail_open: bool) -> None:
        from netfilterqueue import NetfilterQueue

        self._queue = NetfilterQueue()
        self._handle: Handle = lambda data, mac: 0
        self._count = 0
        self._queue.bind(number, self._take, MAX_QUEUED, range=COPY_RANGE, sock_len=RECEIVE_BUFFER)
        with socket.socket(fileno=os.dup(self._queue.get_fd())) as link:
            link.send(flags_message(number, fail_open))

    def fileno(self) -> int:
        return int(self._queue.get_fd())

    def drain(self, handle: Handle) -> int:
        self._handle, self._count = handle, 0
        self._queue.run(block=False)
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


class NetlinkQueue:
    """nfnetlink_queue, spoken in Python: several packets, then all their verdicts in one send."""

    BATCH: Final = 32

    def __init__(self, number: int, fail_open: bool) -> None:
        self._link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 12)
        self._number_be = socket.htons(number)
        self._buffer = bytearray(COPY_RANGE + 4096)
        self._link.bind((0, 0))
        self._link.setsockopt(socket.SOL_SOCKET, 33, RECEIVE_BUFFER)  # SO_RCVBUFFORCE
        self._link.setsockopt(270, 5, 1)  # SOL_NETLINK, NETLINK_NO_ENOBUFS: full is counted by the kernel
        bind = _attribute(1, bytes((1, 0, 0, 0)))
        self._request(config_message(number, bind))
        params = _attribute(2, COPY_RANGE.to_bytes(4, "big") + b"\2")
        self._request(config_message(number, params, _attribute(3, MAX_QUEUED.to_bytes(4, "big"))))
        self._request(flags_message(number, fail_open))
        self._link.setblocking(False)

    def fileno(self) -> int:
        return self._link.fileno()

    def drain(self, handle: Handle) -> int:
        verdicts = []
        view = memoryview(self._buffer)
        for _ in range(self.BATCH):
            try:
                size = self._link.recv_into(self._buffer)
            except (BlockingIOError, OSError):
                break
            message = bytes(view[:size])
            if size < 32 or int.from_bytes(message[4:6], "little") != _PACKET_TYPE:
                continue
            identity = message[24:28]
            mark = 0
            try:
                mark = handle(*_fields(message))
            finally:
                verdicts.append(
                    _VERDICT.pack(
                        40 if mark else 32, _VERDICT_TYPE, 1, 0, 0, 0, 0, self._number_be, 12, 2, _ACCEPT_BE,
                        int.from_bytes(identity, "little"), 8, 3, int.from_bytes(mark.to_bytes(4, "big"), "little"),
                    )[: 40 if mark else 32]
                )  # fmt: skip
        if verdicts:
            self._link.send(b"".join(verdicts))
        return len(verdicts)

    def close(self) -> None:
        self._link.close()

    def _request(self, message: bytes) -> None:
        data = bytearray(message)
        data[6:8] = (5).to_bytes(2, "little")  # request, acknowledge
        self._link.send(data)
        answer = self._link.recv(4096)
        error = -int.from_bytes(answer[16:20], "little", signed=True)
        if error:
            raise OSError(error, f"nfqueue: {os.strerror(error)}; is another process bound to this queue?")


def _fields(message: bytes) -> tuple[bytes, bytes]:
    """Payload and MAC of an NFQNL_MSG_PACKET."""
    at, payload, mac = 20, b"", b""
    while at + 4 <= len(message):
        length, kind = _ATTR.unpack_from(message, at)
        if length < 4:
            break
        if kind == 10:
            payload = message[at + 4 : at + length]
        elif kind == 9 and length >= 14:
            mac = message[at + 8 : at + 14]
        at += (length + 3) & ~3
    return payload, mac


def open_queue(binding: str, number: int, fail_open: bool) -> Queue:
    """Bind a queue. Raises: OSError if it cannot be bound."""
    if binding == "netlink":
        return NetlinkQueue(number, fail_open)
    try:
        return LibraryQueue(number, fail_open)
    except ImportError:
        if binding == "netfilterqueue":
            raise
        return NetlinkQueue(number, fail_open)
