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
import mmap
import os
from collections.abc import Iterable
from typing import Final, NamedTuple

from bpf.interface import Links
from bpf.kernel import MMAPABLE, NO_PREALLOC, Kernel, KernelError, MapType
from bpf.numbers import Numbers
from bpf.ring import HEAD, Ring, boottime_ms, whole_ms
from dns.classifier import ANSWER, ANSWER_KEY, CLIENT_VALUE, EVENT, MAX_TAIL, Layout, Maps, program

CLIENT_S: Final = 10
"""So long after a question of a client's came through the firewall others of its are answered before it."""
MAX_CLIENTS: Final = 4096
MIN_ANSWER: Final = 128
"""Octets that an answer takes of the arena at least: so many fit the kernel's table."""
MIN_RING, MAX_RING = 1 << 17, 1 << 20
"""Octets: 5,400 and 43,000 look-ups; between them an eighth to a quarter of the arena, for a small machine asks less. A
full ring is no loss: what finds no room takes the usual way."""
MAX_GIVEN: Final = 2048
"""Look-ups read at once: their records fit one frame."""

_EVENT_BYTES: Final = HEAD + EVENT.size

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
        self.clients: Final[Numbers[bytes]] = Numbers()
        self._interfaces: Final = tuple(dict.fromkeys(interfaces))
        self._kernel = kernel = Kernel()
        self._until: dict[bytes, float] = {}
        """Client -> when it has to come all the way again."""
        self._keys: dict[bytes, set[tuple[int, bytes]]] = {}
        """Client -> the tables it stands in, and the keys: by whom it asked."""
        self._views: Numbers[int] = Numbers()
        """Of groups; others under each policy."""
        key = python_hash_key()
        size = arena_bytes + MAX_TAIL  # a tail at the very end must not look to the verifier as if it ran over
        most = max(64, arena_bytes // MIN_ANSWER)
        create = kernel.create_map
        self._clients4 = create(MapType.HASH, 8, CLIENT_VALUE.size, MAX_CLIENTS, flags=NO_PREALLOC, name="gh_clients4")
        self._clients6 = create(MapType.HASH, 32, CLIENT_VALUE.size, MAX_CLIENTS, flags=NO_PREALLOC, name="gh_clients6")
        self._answers = create(MapType.HASH, ANSWER_KEY.size, ANSWER.size, most, flags=NO_PREALLOC, name="gh_answers")
        self._arena_map = create(MapType.ARRAY, 4, size, 1, flags=MMAPABLE, name="gh_arena")
        ring = min(MAX_RING, max(MIN_RING, 1 << (arena_bytes // 8).bit_length()))
        self._ring = Ring(kernel, ring, EVENT.size, name="gh_given")
        self.arena: Final = mmap.mmap(self._arena_map, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        """For the hot cache to write in: `arena_bytes`, and a rest that stays empty."""
        self.writable_at = 0.0
        """When what was withdrawn last may be written over: until then a processor may be amid an answer from it. Set
        by the hot cache, and kept here for the one after it."""
        self._found = memoryview(b"")
        maps = Maps(self._clients4, self._clients6, self._answers, self._arena_map, self._ring.fd)
        self._program = -1
        self._links = Links(kernel)
        try:
            self._program = kernel.load(program(Layout(port, redirected, size, key), maps), "gh_dns")
            self._links.stand_at(self._program, self._interfaces)
        except OSError:  # before Linux 6.6: programs, but no tcx
            self.close()
            raise
        self.counters["kernel_interfaces"] = len(self._links)

    def is_missing(self) -> bool:
        """Is there an interface that we ought to stand at and do not?"""
        return self._links.is_missing(self._interfaces)

    def close(self) -> None:
        """Answer nothing any more."""
        self._links.close()
        for fd in (self._program, self._arena_map, self._answers, self._clients4, self._clients6, self._ring.fd):
            if fd >= 0:
                os.close(fd)

    def is_admitted(self, client: bytes, now: float) -> bool:
        """Need it not be admitted again yet?"""
        return self._until.get(client, 0.0) > now

    def admit(self, client: bytes, asked: bytes, group: int, now: float) -> None:
        """A question of `client` has come to a socket, at our address `asked`; its group's answers are its own."""
        if client not in self.clients and len(self.clients) >= 2 * MAX_CLIENTS:  # months of made-up IPv6 addresses
            self.dismiss_all()
            self.clients.start_anew()
        table = self._clients4 if len(client) == 4 else self._clients6
        value = CLIENT_VALUE.pack(int((now + CLIENT_S) * 1000), self._views.of(group), self.clients.of(client))
        try:
            self._kernel.update(table, client + asked, value)
        except KernelError:  # no room: a client more who goes all the way each time
            self.counters["kernel_full"] += 1
        else:
            self._keys.setdefault(client, set()).add((table, client + asked))
        self._until[client] = now + CLIENT_S / 2

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
        self._views.start_anew()

    def put(self, answers: Iterable[Ready]) -> None:
        """Make answers ready, as far as there is room. Those whose tail is too long are left out."""
        keys, values = [], []
        for key, group, until_s, place, length in answers:
            if length <= MAX_TAIL:
                keys.append(ANSWER_KEY.pack(key, self._views.of(group)))
                total = ones_complement_sum(self.arena[place : place + length])
                values.append(ANSWER.pack(until_s * 1000, place, length, total))
        if keys:
            done = self._kernel.update_many(self._answers, b"".join(keys), b"".join(values), len(keys))
            self.counters["kernel_ready"] += done
            self.counters["kernel_full"] += len(keys) - done

    def forget(self, key: int, group: int) -> None:
        """Take one away, if it is there."""
        self._kernel.delete(self._answers, ANSWER_KEY.pack(key, self._views.of(group)))

    def given(self) -> Given:
        """What has been answered since `done`, MAX_GIVEN at most. Their records must be there until `done`."""
        self._found = found = self._ring.read(MAX_GIVEN)
        words = found.cast("I")
        low, who, places = (words[at :: _EVENT_BYTES // 4].tolist() for at in (2, 3, 4))
        return Given(whole_ms(low, boottime_ms()), who, places)

    def done(self) -> None:
        """What `given` gave last is on record."""
        self.counters["kernel"] += len(self._found) // _EVENT_BYTES
        self._ring.release(len(self._found))


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


_M: Final = (1 << 64) - 1
