"""bpf(2): maps, programs, and links that hold a program where packets come in. The system call by number; no library.

Rule: all of it lives as long as its descriptor. Whoever dies leaves no program behind.
Sources: include/uapi/linux/bpf.h; bpf(2); tcx since Linux 6.6.
"""

from __future__ import annotations

import ctypes
import errno
import os
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

_CALLS: Final = {
    # machine, size of a pointer. From the kernel's unistd.h and syscall tables.
    ("x86_64", 8): 321,
    ("aarch64", 8): 280,
    ("riscv64", 8): 280,
    ("loongarch64", 8): 280,
    ("mips64", 8): 5315,
    ("ppc64", 8): 361,
    ("ppc64le", 8): 361,
    ("i386", 4): 357,
    ("i686", 4): 357,
    ("x86_64", 4): 357,
    ("armv6l", 4): 386,
    ("armv7l", 4): 386,
    ("aarch64", 4): 386,
    ("mips", 4): 4355,
    ("mips64", 4): 4355,
    ("ppc", 4): 361,
}
_LICENSE: Final = b"GPL"
"""Told to the kernel, which lends some of its functions to such programs only."""
_LOG_BYTES: Final = 1 << 20
_ROOM: Final = 1 << 12
"""For a packet that a program was tried with; a page, as the kernel takes none that is longer."""


class MapType(IntEnum):
    """enum bpf_map_type."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    RINGBUF = 27


class Helper(IntEnum):
    """enum bpf_func_id, what our programs call."""

    MAP_LOOKUP_ELEM = 1
    SKB_STORE_BYTES = 9
    REDIRECT = 23
    SKB_LOAD_BYTES = 26
    SKB_CHANGE_TAIL = 38
    KTIME_GET_BOOT_NS = 125
    RINGBUF_OUTPUT = 130


NO_PREALLOC: Final = 1 << 0
MMAPABLE: Final = 1 << 10
RB_NO_WAKEUP: Final = 1

_MAP_CREATE, _UPDATE, _DELETE, _PROG_LOAD, _PROG_TEST_RUN, _LINK_CREATE = 0, 2, 3, 5, 10, 28
_UPDATE_BATCH, _DELETE_BATCH = 26, 27
_SCHED_CLS: Final = 3
_TCX_INGRESS: Final = 46
_CREATE: Final = Struct("=5I2I16s")
"""Type, sizes of key and value, entries, flags; inner map; numa node; name."""
_ELEMENT: Final = Struct("=I4xQQQ")
_BATCH: Final = Struct("=QQQQIIQQ")
_LOAD: Final = Struct("=IIQQIIQII16s")
_LINK: Final = Struct("=5I4xQ")
_TEST_RUN: Final = Struct("=4I2Q4I2Q")
"""Program, result, octets in and out, packet in and out, times, ns, octets of context in and out, both contexts."""
_SKB: Final = Struct("=12I148x")
"""struct __sk_buff: octets, kind, mark, and what else there is."""


class KernelError(OSError):
    """The kernel refused; says what."""


class Tried(NamedTuple):
    """What a program has said to a packet, and made of it."""

    result: int
    packet: bytes
    mark: int
    taken_ns: int
    """The mean of all times."""


class Kernel:
    """The system call. Raises: KernelError from everything, EPERM or ENOSYS where a kernel has or allows nothing."""

    def __init__(self) -> None:
        number = _CALLS.get((os.uname().machine, ctypes.sizeof(ctypes.c_void_p)))
        if number is None:
            raise KernelError(errno.ENOSYS, f"bpf: not known on {os.uname().machine}")
        self._number = number
        self._syscall = ctypes.PyDLL(None, use_errno=True).syscall  # keeps the GIL: nothing here waits
        self._syscall.restype = ctypes.c_long
        self._syscall.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_ulong)

    def create_map(self, kind: MapType, key: int, value: int, entries: int, *, flags: int = 0, name: str = "") -> int:
        """A map's descriptor. `key`, `value`: octets; `name`: 15 letters."""
        attributes = _CREATE.pack(kind, key, value, entries, flags, 0, 0, name.encode()[:15])
        return self._call(_MAP_CREATE, attributes, f"map {name}")

    def load(self, code: bytes, name: str) -> int:
        """A classifier's descriptor. What the kernel's verifier does not like stands in the error."""
        held, license_ = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(_LICENSE)
        at = ctypes.addressof(held), ctypes.addressof(license_)
        plain = (_SCHED_CLS, len(code) // 8, *at, 0, 0, 0, 0, 0, name.encode()[:15])
        try:
            return self._call(_PROG_LOAD, _LOAD.pack(*plain), f"program {name}")
        except KernelError as error:
            if error.errno not in (errno.EACCES, errno.EINVAL, errno.E2BIG):
                raise
        log = ctypes.create_string_buffer(_LOG_BYTES)
        told = (*plain[:4], 1, len(log), ctypes.addressof(log), 0, 0, plain[-1])
        try:
            return self._call(_PROG_LOAD, _LOAD.pack(*told), f"program {name}")
        except KernelError as error:
            said = log.value.decode("utf-8", "replace").splitlines()
            raise KernelError(error.errno, f"{error.strerror}: {' / '.join(said[-12:])}") from None

    def attach(self, program: int, interface: int) -> int:
        """A link: what comes in by this interface (index) is shown to the program, until the link is closed."""
        return self._call(_LINK_CREATE, _LINK.pack(program, interface, _TCX_INGRESS, 0, 0, 0), "link")

    def try_program(self, program: int, packet: bytes, mark: int = 0, times: int = 1) -> Tried:
        """Show it a packet, Ethernet header first, that comes from nowhere; so many `times`."""
        held, left = ctypes.create_string_buffer(packet, len(packet)), ctypes.create_string_buffer(_ROOM)
        context = ctypes.create_string_buffer(_SKB.pack(0, 0, mark, *[0] * 9), _SKB.size)
        data, out, at = map(ctypes.addressof, (held, left, context))
        wanted = _TEST_RUN.pack(program, 0, len(packet), _ROOM, data, out, times, 0, _SKB.size, _SKB.size, at, at)
        attributes = ctypes.create_string_buffer(wanted, len(wanted))
        if self._syscall(self._number, _PROG_TEST_RUN, attributes, len(attributes)) < 0:
            raise self._error("test run")
        _, result, _, octets, _, _, _, taken_ns, *_ = _TEST_RUN.unpack(attributes.raw)
        signed = (result ^ 1 << 31) - (1 << 31)
        return Tried(signed, left.raw[:octets], _SKB.unpack(context.raw)[2], taken_ns)

    def update(self, fd: int, key: bytes, value: bytes) -> None:
        """Put one."""
        self._element(_UPDATE, fd, key, value)

    def delete(self, fd: int, key: bytes) -> None:
        """Take one away, if it is there."""
        try:
            self._element(_DELETE, fd, key, b"")
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise

    def update_many(self, fd: int, keys: bytes, values: bytes, number: int) -> int:
        """Put so many, all in one call. Gives how many there was room for."""
        return self._many(_UPDATE_BATCH, fd, keys, values, number, (errno.E2BIG, errno.ENOMEM))

    def delete_many(self, fd: int, keys: bytes, number: int) -> int:
        """Take so many away, all in one call, up to the first that is not there. Gives how many that were."""
        return self._many(_DELETE_BATCH, fd, keys, b"", number, (errno.ENOENT,))

    def _element(self, command: int, fd: int, key: bytes, value: bytes) -> None:
        self._call(command, _ELEMENT.pack(fd, _address(key), _address(value), 0), "element")

    def _many(self, command: int, fd: int, keys: bytes, values: bytes, number: int, ends: tuple[int, ...]) -> int:
        """Gives how many were done until the last, or until an error among `ends`."""
        wanted = _BATCH.pack(0, 0, _address(keys), _address(values), number, fd, 0, 0)
        attributes = ctypes.create_string_buffer(wanted, len(wanted))
        result = self._syscall(self._number, command, attributes, len(attributes))
        if result < 0 and ctypes.get_errno() not in ends:
            raise self._error("elements")
        return int(_BATCH.unpack_from(attributes)[4])

    def _call(self, command: int, attributes: bytes, what: str) -> int:
        # The kernel takes shorter attributes than its own, and longer ones if the rest is zero.
        result = int(self._syscall(self._number, command, attributes, len(attributes)))
        if result < 0:
            raise self._error(what)
        if command in (_MAP_CREATE, _PROG_LOAD, _LINK_CREATE):
            os.set_inheritable(result, False)
        return result

    @staticmethod
    def _error(what: str) -> KernelError:
        number = ctypes.get_errno()
        return KernelError(number, f"bpf: {what}: {os.strerror(number)}")


def _address(data: bytes) -> int:
    """Where octets lie, for as long as somebody holds them; 0 for none."""
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0 if data else 0
