"""Many queries per system call: recvmmsg in, one look-up, sendmmsg out. A shell.

Rule: pointers that are handed to the kernel point into buffers that this object holds, into the hot cache's arena, or
into `_held`; no arena is tidied while a batch is in hand.
"""

from __future__ import annotations

import ctypes
import socket
import sys
from array import array
from collections.abc import Callable
from itertools import repeat
from operator import add
from struct import Struct
from typing import Final, NamedTuple, TypeVar

from dns.door import SLOT, Admission
from dns.hot import ENTRY, WORDS, HotCache
from dns.mmsg import BATCH, IoVec, MMsgHdr, MsgHdr, Sender, Slots, SystemCalls, address_of, address_of_bytes
from dns.proxy import Peer, Reply

MAX_BATCHES: Final = 16
"""In a row, until the loop looks at everything else again: 1,024 queries, some 6 ms."""
MAX_TURN_S: Final = 0.02
"""The same where they are misses, on a router that has other work: who is silent for two seconds is taken for hung."""


class _BatchWay(NamedTuple):
    """The way back of a question that has to wait."""

    door: BatchDoor
    client: bytes
    name: bytes
    control: bytes
    key: bytes

    def send(self, reply: Reply) -> None:
        self.door.send_later(reply, self)


class BatchDoor:
    """One UDP socket, BATCH datagrams per system call."""

    def __init__(
        self,
        sock: socket.socket,
        calls: SystemCalls,
        admission: Admission,
        hot: HotCache,
        receive: Callable[[bytes, Peer, float], Reply | None],
        clock: Callable[[], float],
    ) -> None:
        self.socket: Final = sock
        self.counters: Final = {"unsent": 0, "batches": 0}
        self._fd = sock.fileno()
        self._calls = calls
        self._admission = admission
        self._hot = hot
        self._receive = receive
        self._clock = clock
        is_ipv6 = sock.family == socket.AF_INET6
        # struct sockaddr_in6 and in6_pktinfo, struct sockaddr_in and in_pktinfo
        name_size, info_size, self._interface_at, self._asked_at = (28, 20, 16, 0) if is_ipv6 else (16, 12, 0, 8)
        name_at, name_length = (8, 16) if is_ipv6 else (4, 4)
        self._interface_at += socket.CMSG_LEN(0)
        self._asked_at += socket.CMSG_LEN(0)
        control_size = socket.CMSG_SPACE(info_size)
        self._in = Slots(SLOT, name_size, control_size, 1)
        self._out = Slots(2, name_size, control_size, 2)
        """Answers at once: they share the names, controls and ids of `_in`."""
        self._later = Sender(calls, name_size, control_size)
        """Answers to those who had to wait."""
        self._admitted = b""
        """The interface that a query was last let in by: mostly there is one."""
        self._queue: list[tuple[Reply, _BatchWay]] = []
        self._held: list[bytes] = []
        """Answers whose octets the kernel is about to read."""
        self._starts = [i * SLOT for i in range(BATCH)]
        self._keys_at = [i * SLOT + 2 for i in range(BATCH)]
        address = f"{name_at}x{name_length}s{name_size - name_at - name_length}x"
        self._who = [Struct("=" + address * number) for number in range(BATCH + 1)]
        """By number of datagrams: their senders' addresses, 20 ns each; cut out one by one they would cost 60."""
        self._prepare()

    def readable(self, _: int) -> None:
        """Answer what is there."""
        started = now = self._clock()
        for _ in range(MAX_BATCHES):
            self._hot.tidy(now)
            self._in_lengths[:] = self._full_lengths  # the kernel wrote over them
            number = self._calls.recvmmsg(self._fd, self._in.at_headers, BATCH)
            if number <= 0:
                return
            now = self._clock()
            self.counters["batches"] += 1
            who = self._who[number].unpack_from(self._in.names)
            if number == 1:
                self._serve_one(now, who)
            else:
                self._serve(number, now, who)
            self._knock(who, now)
            if number < BATCH or now - started > MAX_TURN_S:
                return

    def _serve_one(self, now: float, who: tuple[bytes, ...]) -> None:
        """As `_serve`, without columns: where little is asked, most batches are one datagram."""
        hot = self._hot
        length = self._in_sizes[0]
        entry = hot.clients.get(who[0], hot.nothing)(hash(self._in.data[2:length])) or _NO_ENTRY
        address, octets, deadline = ENTRY.unpack(entry)
        if deadline < now:
            self._serve_mixed(1, now, who, [length], [entry], [0])
            return
        words = self._out.words
        words[2], words[3] = address, octets
        self._hand_to_kernel(self._out.at_headers, 1)
        hot.note(entry, who, now)

    def _serve(self, number: int, now: float, who: tuple[bytes, ...]) -> None:
        hot = self._hot
        data = self._in.data
        lengths = self._in_sizes[:number].tolist()
        ends = map(add, self._starts, lengths)
        gets = list(map(hot.clients.get, who, repeat(hot.nothing)))
        if len({*gets}) == 1:  # all of one group: so it is mostly, and a third cheaper
            get = gets[0]
            entries = [get(hash(data[a:b])) or _NO_ENTRY for a, b in zip(self._keys_at, ends, strict=False)]
        else:
            entries = [get(hash(data[a:b])) or _NO_ENTRY for get, a, b in zip(gets, self._keys_at, ends, strict=False)]
        together = b"".join(entries)
        words = memoryview(together).cast("L")
        deadlines = words[2::WORDS].tolist()
        if min(deadlines) >= now:
            self._send(words, number, self._out.at_headers, number)
            hot.note(together, who, now)
        else:
            late = [i for i, deadline in enumerate(deadlines) if deadline < now]
            self._serve_mixed(number, now, who, lengths, entries, late)

    def _knock(self, who: tuple[bytes, ...], now: float) -> None:
        """The firewall has let these in: the kernel may answer them for a while."""
        kernel = self._hot.kernel
        if kernel is None:
            return
        for client in {*who}:
            if not kernel.is_admitted(client, now):
                at = who.index(client) * self._in.control_size + self._asked_at
                asked = self._in.control_view[at : at + len(client)].tobytes()
                self._hot.knock(client, asked, now)

    def _serve_mixed(
        self,
        number: int,
        now: float,
        who: tuple[bytes, ...],
        lengths: list[int],
        entries: list[bytes],
        late: list[int],
    ) -> None:
        """A batch in which something is not at hand, or no longer: at the places `late`."""
        hot, data = self._hot, self._in.data
        unnoted: list[int] = []
        silent: list[int] = []
        for i in late:
            key = data[self._keys_at[i] : self._starts[i] + lengths[i]]
            entry: bytes | None = entries[i]
            if entry is _NO_ENTRY:
                # An earlier query of this batch may have brought it.
                entry = hot.clients.get(who[i], hot.nothing)(hash(key))
            else:
                entry = hot.renew(who[i], key, entries[i], now)
            if entry is None:
                unnoted.append(i)  # the core puts it on record
                entry = self._ask_core(i, who[i], data[self._starts[i] : self._starts[i] + lengths[i]], key, now)
            if entry is None:
                silent.append(i)
            entries[i] = entry or _NO_ENTRY
        together = b"".join(entries)
        words = memoryview(together).cast("L")
        if not silent:
            self._send(words, number, self._out.at_headers, number)
        elif len(silent) < number:
            size = ctypes.sizeof(MMsgHdr)
            live = _without(self._out_headers[:number], silent)
            self._some[: len(live) * size] = b"".join(live)
            self._send(words, number, self._at_some, len(live))
        self._held.clear()
        if not unnoted:
            hot.note(together, who, now)
        elif len(unnoted) < number:
            noted = _without(entries, unnoted)
            hot.note(b"".join(noted), _without(list(who), unnoted), now)

    def _ask_core(self, slot: int, client: bytes, data: bytes, key: bytes, now: float) -> bytes | None:
        """The slow path of one query. Gives an entry to answer with now; None: not now, or never."""
        at = slot * self._in.control_size
        control = self._in.control_view[at : at + self._in.control_size].tobytes()
        interface = control[self._interface_at : self._interface_at + 4]
        if interface != self._admitted:
            if self._admission.is_needed and not self._admission.admits(int.from_bytes(interface, _ORDER)):
                return None
            self._admitted = interface
        at = slot * self._in.name_size
        name = self._in.name_view[at : at + self._in.name_size].tobytes()
        way = _new(_BatchWay, (self, client, name, control, key))
        reply = self._receive(data, _new(Peer, (client, False, way)), now)
        if reply is None:
            return None
        if reply.hot is not None:
            self._keep(reply, client, key)
        self._held.append(reply.data)
        return ENTRY.pack(address_of_bytes(reply.data) + 2, len(reply.data) - 2, 0)

    def _keep(self, reply: Reply, client: bytes, key: bytes) -> None:
        assert reply.hot is not None
        self._hot.put(key, reply, reply.hot)
        self._hot.admit(client, reply.hot.group)

    def send_later(self, reply: Reply, way: _BatchWay) -> None:
        """Take an answer for the next `flush`."""
        self._queue.append((reply, way))

    def flush(self, now: float) -> None:
        """Send the answers to those who had to wait."""
        queue, self._queue = self._queue, []
        for first in range(0, len(queue), BATCH):
            replies, ways = zip(*queue[first : first + BATCH], strict=True)
            datas = [reply.data for reply in replies]
            failed = self._later.send(self._fd, datas, [way.name for way in ways], [way.control for way in ways])
            self.counters["unsent"] += len(failed)
            for reply, way in zip(replies, ways, strict=True):
                if reply.hot is not None:
                    self._keep(reply, way.client, way.key)

    def _send(self, words: memoryview, number: int, headers: int, count: int) -> None:
        out = self._out.words
        out[2 : 4 * number : 4] = words[0::WORDS]
        out[3 : 4 * number : 4] = words[1::WORDS]
        self._hand_to_kernel(headers, count)

    def _hand_to_kernel(self, headers: int, count: int) -> None:
        done = 0
        while done < count:
            sent = self._calls.sendmmsg(self._fd, headers + done * ctypes.sizeof(MMsgHdr), count - done)
            if sent <= 0:
                # This one cannot be sent (its buffer full, its client gone, forbidden): the others may.
                self.counters["unsent"] += 1
                sent = 1
            done += sent

    def _prepare(self) -> None:
        inside, out = self._in, self._out
        size, vector = ctypes.sizeof(MMsgHdr), ctypes.sizeof(IoVec)
        for i in range(BATCH):
            IoVec.from_buffer(inside.vectors, i * vector).base = inside.at_data + i * SLOT
            IoVec.from_buffer(inside.vectors, i * vector).length = SLOT
            # Two octets of id from the query, the tail from wherever it lies.
            IoVec.from_buffer(out.vectors, 2 * i * vector).base = inside.at_data + i * SLOT
            IoVec.from_buffer(out.vectors, 2 * i * vector).length = 2
            header = MMsgHdr.from_buffer(out.headers, i * size).hdr
            header.name = inside.at_names + i * inside.name_size
            header.control = inside.at_controls + i * inside.control_size
        self._out_headers = [bytes(out.headers[i * size : (i + 1) * size]) for i in range(BATCH)]
        self._some = bytearray(BATCH * size)
        self._at_some = address_of(self._some)
        step = size // 4
        self._in_sizes = inside.ints[MMsgHdr.len.offset // 4 :: step]
        word = ctypes.sizeof(ctypes.c_size_t)
        self._in_lengths = memoryview(inside.headers).cast("L")[MsgHdr.controllen.offset // word :: size // word]
        self._full_lengths = array("L", [inside.control_size] * BATCH)


_T = TypeVar("_T")


def _without(items: list[_T], places: list[int]) -> list[_T]:
    """The items but for those at `places`, which ascend. The list itself is used up."""
    for at in reversed(places):
        del items[at]
    return items


_new: Final = tuple.__new__
_NO_ENTRY: Final = bytes(ENTRY.size)
_ORDER: Final = sys.byteorder
