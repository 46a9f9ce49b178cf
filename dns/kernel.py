"""Answers that are given inside the kernel: who may have them, which there are, and what was given. A shell.

Who asks may be answered there for CLIENT_S after a question of its own has come all the way, past the firewall, to a
socket of ours. What is asked again is put into the kernel's table, by the hash that the hot cache has it under; the
answer itself is not copied, for the hot cache's arena is memory that the kernel reads in too.
Rule: a program that is there has a worker behind it, both end together. Everything given is read from the ring every
fraction of a second, and before the record it refers to can go; an answer is taken out of the table one turn before
its memory is written over.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import sys
from collections.abc import Iterable
from typing import Final, NamedTuple

from bpf.kernel import MMAPABLE, NO_PREALLOC, Kernel, KernelError, MapType
from bpf.ring import Ring
from dns.classifier import ANSWER, ANSWER_KEY, CLIENT_VALUE, EVENT, MAX_TAIL, Layout, Maps, program

CLIENT_S: Final = 10
"""So long after a question of a client's came through the firewall others of its are answered before it."""
MAX_CLIENTS: Final = 4096
MIN_ANSWER: Final = 128
"""Octets that an answer takes of the arena at least: so many fit the kernel's table."""
RING: Final = 1 << 20
"""Octets: 43,000 look-ups. A full ring is no loss: what finds no room takes the usual way."""
MAX_GIVEN: Final = 2048
"""Look-ups read at once: their records fit one frame."""
_SIOCGIFHWADDR: Final = 0x8927
"""linux/sockios.h; a struct ifreq, netdevice(7)."""
_ETHERNET_TYPES: Final = (1, 772)
"""ARPHRD_ETHER and ARPHRD_LOOPBACK, linux/if_arp.h: both have an Ethernet header."""


Ready = tuple[int, int, int, int, int]
"""An answer to be given inside the kernel: hash of the question, group, end of its truth (s), place of its tail in the
arena, and octets of that. The hash stands in the arena too, HASH_BEFORE octets before the tail."""


class Given(NamedTuple):
    """Look-ups answered in the kernel, column by column, as they came."""

    at_ms: list[int]
    who: list[int]
    """Numbers of clients."""
    places: list[int]
    """Of records in the arena."""


class KernelAnswers:
    """One worker's. Raises: KernelError at the start, where the kernel has or allows nothing of this."""

    def __init__(self, port: int, redirected: int, arena_bytes: int, interfaces: Iterable[str]) -> None:
        """`redirected`: another port whose questions are for us where they come in from outside; 0: none."""
        self.counters: Final = {"kernel": 0, "kernel_ready": 0, "kernel_full": 0, "kernel_interfaces": 0}
        self.port: Final = port
        self.arena_bytes: Final = arena_bytes
        self.clients: dict[int, bytes] = {}
        """By number; none is used twice."""
        self._old_clients: dict[int, bytes] = {}
        """For what had been given to those who were numbered before."""
        self._last_number = 0
        self._interfaces: Final = tuple(dict.fromkeys(interfaces))
        self._kernel = kernel = Kernel()
        self._links: dict[int, int] = {}
        self._numbers: dict[bytes, int] = {}
        self._until: dict[bytes, float] = {}
        """Client -> when it has to come all the way again."""
        self._keys: dict[bytes, set[tuple[int, bytes]]] = {}
        """Client -> the tables it stands in, and the keys: by whom it asked."""
        self._views: dict[int, int] = {}
        """Group -> view; another one under each policy."""
        self._last_view = 0
        key = python_hash_key()
        size = arena_bytes + MAX_TAIL  # a tail at the very end must not look to the verifier as if it ran over
        most = max(64, arena_bytes // MIN_ANSWER)
        create = kernel.create_map
        self._clients4 = create(MapType.HASH, 8, CLIENT_VALUE.size, MAX_CLIENTS, flags=NO_PREALLOC, name="gh_clients4")
        self._clients6 = create(MapType.HASH, 32, CLIENT_VALUE.size, MAX_CLIENTS, flags=NO_PREALLOC, name="gh_clients6")
        self._answers = create(MapType.HASH, ANSWER_KEY.size, ANSWER.size, most, flags=NO_PREALLOC, name="gh_answers")
        self._arena_map = create(MapType.ARRAY, 4, size, 1, flags=MMAPABLE, name="gh_arena")
        self._ring = Ring(kernel, RING, EVENT.size, name="gh_given")
        self.arena: Final = mmap.mmap(self._arena_map, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        """For the hot cache to write in: `arena_bytes`, and a rest that stays empty."""
        self._found = memoryview(b"")
        maps = Maps(self._clients4, self._clients6, self._answers, self._arena_map, self._ring.fd)
        self._program = -1
        try:
            self._program = kernel.load(program(Layout(port, redirected, size, key), maps), "gh_dns")
            self._attach()
        except OSError:  # before Linux 6.6: programs, but no tcx
            self.close()
            raise

    def is_missing(self) -> bool:
        """Is there an interface that we ought to stand at and do not?"""
        return any(
            (index := _index(name)) and index not in self._links and _is_ethernet(name) for name in self._interfaces
        )

    def _attach(self) -> None:
        for name in self._interfaces:
            index = _index(name)
            if index and _is_ethernet(name):
                self._links[index] = self._kernel.attach(self._program, index)
        self.counters["kernel_interfaces"] = len(self._links)

    def close(self) -> None:
        """Answer nothing any more."""
        for fd in self._links.values():
            os.close(fd)
        self._links.clear()
        for fd in (self._program, self._arena_map, self._answers, self._clients4, self._clients6, self._ring.fd):
            if fd >= 0:
                os.close(fd)

    def is_admitted(self, client: bytes, now: float) -> bool:
        """Need it not be admitted again yet?"""
        return self._until.get(client, 0.0) > now

    def admit(self, client: bytes, asked: bytes, group: int, now: float) -> None:
        """A question of `client` has come to a socket, at our address `asked`; its group's answers are its own."""
        number = self._numbers.get(client)
        if number is None:
            if len(self.clients) >= 2 * MAX_CLIENTS:  # of months of made-up IPv6 addresses, mostly
                self.dismiss_all()
                self._old_clients, self.clients = self.clients, {}
                self._numbers.clear()
            self._last_number += 1
            number = self._numbers[client] = self._last_number
            self.clients[number] = client
        table = self._clients4 if len(client) == 4 else self._clients6
        value = CLIENT_VALUE.pack(int((now + CLIENT_S) * 1000), self._view(group), number)
        try:
            self._kernel.update(table, client + asked, value)
        except KernelError:  # no room: a client more who goes all the way each time
            self.counters["kernel_full"] += 1
        else:
            self._keys.setdefault(client, set()).add((table, client + asked))
        self._until[client] = now + CLIENT_S / 2

    def client(self, number: int) -> bytes:
        """Whose number it is, or was."""
        return self.clients.get(number) or self._old_clients[number]

    def dismiss(self, client: bytes) -> None:
        """No longer."""
        self._until.pop(client, None)
        for table, key in self._keys.pop(client, ()):
            self._kernel.delete(table, key)

    def dismiss_all(self) -> None:
        """Nobody is admitted any more; what has been given until now is still to be read."""
        for client in list(self._keys):
            self.dismiss(client)

    def end_views(self) -> None:
        """Nothing that is ready is found any more."""
        self._views.clear()

    def put(self, answers: Iterable[Ready]) -> None:
        """Make answers ready, as far as there is room. Those whose tail is too long are left out."""
        keys, values = [], []
        for key, group, until_s, place, length in answers:
            if length <= MAX_TAIL:
                keys.append(ANSWER_KEY.pack(key, self._view(group)))
                total = ones_complement_sum(self.arena[place : place + length])
                values.append(ANSWER.pack(until_s * 1000, place, length, total))
        if keys:
            done = self._kernel.update_many(self._answers, b"".join(keys), b"".join(values), len(keys))
            self.counters["kernel_ready"] += done
            self.counters["kernel_full"] += len(keys) - done

    def forget(self, key: int, group: int) -> None:
        """Take one away, if it is there."""
        self._kernel.delete(self._answers, ANSWER_KEY.pack(key, self._view(group)))

    def given(self, now: float) -> Given:
        """What has been answered since `done`, MAX_GIVEN at most. Their records must be there until `done`."""
        self._found = found = self._ring.read(MAX_GIVEN)
        words = found.cast("I")
        step = 2 + EVENT.size // 4
        low = words[2::step].tolist()
        return Given(_whole(low, int(now * 1000)), words[3::step].tolist(), words[4::step].tolist())

    def done(self) -> None:
        """What `given` gave last is on record."""
        self.counters["kernel"] += len(self._found) // (8 + EVENT.size)
        self._ring.release(len(self._found))

    def _view(self, group: int) -> int:
        view = self._views.get(group)
        if view is None:
            self._last_view += 1
            view = self._views[group] = self._last_view
        return view


def ones_complement_sum(data: bytes) -> int:
    """Of 16 bit words in this machine's order, zeros behind (RFC 1071)."""
    total = sum(memoryview(data + bytes(len(data) & 1)).cast("H"))
    total = (total & 0xFFFF) + (total >> 16)
    return (total & 0xFFFF) + (total >> 16)


def python_hash_key() -> tuple[int, int]:
    """The key of this process's `hash` of octets.

    Raises: KernelError if this Python hashes in another way than SipHash-1-3.
    """
    try:
        secret = bytes((ctypes.c_ubyte * 16).in_dll(ctypes.pythonapi, "_Py_HashSecret"))
    except (ValueError, AttributeError):
        secret = bytes(16)
    key = int.from_bytes(secret[:8], "little"), int.from_bytes(secret[8:], "little")
    if any(siphash13(key, sample) != hash(sample) for sample in (b"gatehouse", bytes(range(64)))):
        raise KernelError(errno.ENOSYS, "bpf: this Python's hash of octets is not SipHash-1-3")
    return key


def siphash13(key: tuple[int, int], data: bytes) -> int:
    """As `hash` gives it, signed. To hold the program's against."""
    v0, v1 = key[0] ^ 0x736F6D6570736575, key[1] ^ 0x646F72616E646F6D
    v2, v3 = key[0] ^ 0x6C7967656E657261, key[1] ^ 0x7465646279746573
    words = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data) & ~7, 8)]
    words.append(int.from_bytes(data[len(data) & ~7 :], "little") | (len(data) & 0xFF) << 56)
    for at, word in enumerate((*words, None, None, None)):
        if word is None:
            v2 ^= 0xFF if at == len(words) else 0
        v3 ^= word or 0
        v0, v2 = (v0 + v1) & _M, (v2 + v3) & _M
        v1, v3 = _rotated(v1, 13) ^ v0, _rotated(v3, 16) ^ v2
        v0 = _rotated(v0, 32)
        v2, v0 = (v2 + v1) & _M, (v0 + v3) & _M
        v1, v3 = _rotated(v1, 17) ^ v2, _rotated(v3, 21) ^ v0
        v2 = _rotated(v2, 32)
        v0 ^= word or 0
    result = v0 ^ v1 ^ v2 ^ v3
    result = result - (1 << 64) if result >> 63 else result
    return -2 if result == -1 else result


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> (64 - bits)) & _M


def _whole(low: list[int], now_ms: int) -> list[int]:
    """Times of which 32 bits are known, and that they are not long past."""
    if now_ms + 1000 < 1 << 32:
        return low
    latest = now_ms + 1000  # the kernel has gone on since we looked at the clock
    return [latest - (latest - each & 0xFFFFFFFF) for each in low]


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def _is_ethernet(name: str) -> bool:
    request = name.encode()[:15].ljust(40, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            found = fcntl.ioctl(sock, _SIOCGIFHWADDR, request)
        except OSError:
            return False
    return int.from_bytes(found[16:18], sys.byteorder) in _ETHERNET_TYPES


_M: Final = (1 << 64) - 1
