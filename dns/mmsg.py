"""Many datagrams per system call: recvmmsg and sendmmsg, with the kernel's structures. Knows no DNS.

The structures are derived from ctypes, so they fit 32 and 64 bit and either byte order. The system calls are made by
number: musl, OpenWrt's libc, has the functions but loops over single messages in one of them on 64 bit.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

BATCH: Final = 64
"""Datagrams per call. 16 cost 1.2 us more each, 128 gain nothing that can be measured."""

_CALLS: Final = {
    # machine, size of a pointer: recvmmsg, sendmmsg. From the kernel's unistd.h and syscall tables.
    ("x86_64", 8): (299, 307),
    ("aarch64", 8): (243, 269),
    ("riscv64", 8): (243, 269),
    ("loongarch64", 8): (243, 269),
    ("mips64", 8): (5294, 5302),
    ("ppc64", 8): (343, 349),
    ("ppc64le", 8): (343, 349),
    ("i386", 4): (337, 345),
    ("i686", 4): (337, 345),
    ("x86_64", 4): (337, 345),
    ("armv6l", 4): (365, 374),
    ("armv7l", 4): (365, 374),
    ("aarch64", 4): (365, 374),
    ("mips", 4): (4335, 4343),
    ("mips64", 4): (4335, 4343),
    ("ppc", 4): (343, 349),
}


class IoVec(ctypes.Structure):
    """struct iovec, linux/uio.h."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class MsgHdr(ctypes.Structure):
    """struct user_msghdr, linux/socket.h: the kernel's, not the libc's."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_int),
        ("iov", ctypes.c_void_p),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_uint),
    )


class MMsgHdr(ctypes.Structure):
    """struct mmsghdr, linux/socket.h."""

    _fields_ = (("hdr", MsgHdr), ("len", ctypes.c_uint))


class SystemCalls:
    """recvmmsg and sendmmsg. They keep the GIL (PyDLL): on non-blocking sockets there is nothing to wait for."""

    def __init__(self) -> None:
        numbers = _CALLS.get((os.uname().machine, ctypes.sizeof(ctypes.c_void_p)))
        if numbers is None or ctypes.sizeof(ctypes.c_ulong) != ctypes.sizeof(ctypes.c_void_p):
            raise OSError(errno.ENOSYS, f"recvmmsg: not known on {os.uname().machine}")
        self._recv, self._send = numbers
        self._syscall = ctypes.PyDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long
        long = ctypes.c_long
        self._syscall.argtypes = (long, long, ctypes.c_void_p, long, long, ctypes.c_void_p)

    def recvmmsg(self, fd: int, headers: int, number: int) -> int:
        """Datagrams received; -1 if there are none."""
        return int(self._syscall(self._recv, fd, headers, number, socket.MSG_DONTWAIT, None))

    def sendmmsg(self, fd: int, headers: int, number: int) -> int:
        """Datagrams sent, from the first on; -1 if not even that."""
        return int(self._syscall(self._send, fd, headers, number, socket.MSG_DONTWAIT, None))


class Slots:
    """BATCH message headers with what they point to."""

    def __init__(self, slot: int, name_size: int, control_size: int, vectors: int) -> None:
        self.name_size = name_size
        self.control_size = control_size
        self.data = mmap.mmap(-1, BATCH * max(slot, 1))
        """Not a bytearray: a part of this is octets at once, with no copy of the whole before."""
        self.names = bytearray(BATCH * name_size)
        self.controls = bytearray(BATCH * control_size)
        self.vectors = bytearray(BATCH * vectors * ctypes.sizeof(IoVec))
        self.headers = bytearray(BATCH * ctypes.sizeof(MMsgHdr))
        self.at_data = address_of(self.data)
        self.at_names, self.at_controls, self.at_vectors, self.at_headers = map(
            address_of, (self.names, self.controls, self.vectors, self.headers)
        )
        self.words = memoryview(self.vectors).cast("L")
        self.ints = memoryview(self.headers).cast("I")
        self.name_view = memoryview(self.names)
        self.control_view = memoryview(self.controls)
        for i in range(BATCH):
            header = MMsgHdr.from_buffer(self.headers, i * ctypes.sizeof(MMsgHdr)).hdr
            header.name = self.at_names + i * name_size
            header.namelen = name_size
            header.iov = self.at_vectors + i * vectors * ctypes.sizeof(IoVec)
            header.iovlen = vectors
            header.control = self.at_controls + i * control_size if control_size else None
            header.controllen = control_size


class Sender:
    """Whole datagrams out, BATCH per system call, from any socket."""

    def __init__(self, calls: SystemCalls, name_size: int = 0, control_size: int = 0) -> None:
        """`name_size`, `control_size`: octets of each receiver's address and packet info; 0 for connected sockets."""
        self._calls = calls
        self._slots = Slots(0, name_size, control_size, 1)

    def send(
        self, fd: int, datas: Sequence[bytes], names: Sequence[bytes] = (), controls: Sequence[bytes] = ()
    ) -> list[tuple[int, int]]:
        """Send BATCH datagrams at most. Gives the places of those that could not be sent, and why (errno)."""
        slots, number = self._slots, len(datas)
        # One address for all: to ask for each one's own costs as much as the rest together.
        together = b"".join(datas)
        lengths = list(map(len, datas))
        starts = array("L", accumulate(lengths[:-1], initial=address_of_bytes(together)))
        slots.words[0 : 2 * number : 2] = memoryview(starts)
        slots.words[1 : 2 * number : 2] = memoryview(array("L", lengths))
        if names:
            slots.name_view[: number * slots.name_size] = b"".join(names)
        if controls:
            slots.control_view[: number * slots.control_size] = b"".join(controls)
        failed: list[tuple[int, int]] = []
        done, size = 0, ctypes.sizeof(MMsgHdr)
        while done < number:
            sent = self._calls.sendmmsg(fd, slots.at_headers + done * size, number - done)
            if sent <= 0:
                # This one cannot be sent (the buffer full, its receiver gone, forbidden): the others may.
                failed.append((done, ctypes.get_errno()))
                sent = 1
            done += sent
        return failed


class Receiver:
    """Datagrams in, BATCH per system call, from any connected socket."""

    def __init__(self, calls: SystemCalls, slot: int) -> None:
        """`slot`: octets of the largest datagram, and one more."""
        self._calls = calls
        self._slot = slot
        self._slots = slots = Slots(slot, 0, 0, 1)
        for i in range(BATCH):
            vector = IoVec.from_buffer(slots.vectors, i * ctypes.sizeof(IoVec))
            vector.base, vector.length = slots.at_data + i * slot, slot
        self._view = memoryview(slots.data)
        self._sizes = slots.ints[MMsgHdr.len.offset // 4 :: ctypes.sizeof(MMsgHdr) // 4]

    def receive(self, fd: int) -> list[bytes]:
        """What is there, BATCH datagrams at most; one that is `slot` octets long may have been longer.

        Raises: OSError, an ICMP error for something that was sent before.
        """
        number = self._calls.recvmmsg(fd, self._slots.at_headers, BATCH)
        if number <= 0:
            code = ctypes.get_errno()
            if number == 0 or code in (errno.EAGAIN, errno.EINTR):
                return []
            raise OSError(code, os.strerror(code))
        slot, view = self._slot, self._view
        return [view[at : at + length].tobytes() for at, length in enumerate_slots(self._sizes[:number].tolist(), slot)]


def enumerate_slots(lengths: Sequence[int], slot: int) -> zip[tuple[int, int]]:
    """Where each datagram starts, and its length."""
    return zip(range(0, slot * len(lengths), slot), lengths, strict=True)


def address_of(buffer: bytearray | mmap.mmap) -> int:
    """Where a buffer lies; it must not be resized from then on."""
    return ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer)) if buffer else 0


def address_of_bytes(data: bytes) -> int:
    """Where octets lie, for as long as somebody holds them."""
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
