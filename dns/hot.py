"""Answers ready to send, found by the very octets of the question, and the counting of those who got them.

The hash of a query from its third octet on (flags, counts, question, EDNS) is the key, one table per group; the value
is three machine words: where the answer's tail lies, how long it is, and until when its TTL is true; its record lies
behind the tail. A batch of queries is looked up by one expression and answered by one gather list; nothing is copied.
The hash is Python's own: 64 bits of SipHash under a key that is new in each process, so nobody can make two questions
meet, and by chance they do once in 10^14 questions at 100,000 answers; the questions themselves would be a third of
all memory here.
Rule: bounded in octets. The arena is filled part by part; when the last one is full the first is emptied for the next
answers, so an eighth of them goes at a time, the oldest. What is put on record refers to the arena: it is handed over
before any part is emptied.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import compress, count, groupby
from operator import add
from struct import Struct, calcsize
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, cast

from dns.limit import Limiter
from dns.proxy import Hot, Reply, stamped
from dns.wire import Type, read_header, read_question, read_records
from policy.errors import WireError
from policy.frame import Fold, event_bytes
from policy.verdict import Verdict

if TYPE_CHECKING:
    from dns.kernel import KernelAnswers, Ready

ENTRY: Final = Struct("@LLL")
"""Tail's address and length, deadline: `unsigned long` has the size of a pointer on Linux."""
WORDS: Final = 3
NEVER: Final = (1 << 32) - 1
"""A deadline that does not come: 136 years of uptime. It fits 32 bits, as an `unsigned long` must on many routers."""

MAX_CLIENTS: Final = 4096
MAX_NOTED: Final = 2048
"""Look-ups noted until they must be handed over: their records fit one frame, and it takes 1 ms."""
MIN_NOTED: Final = 128
"""The same where queries come one by one: then nobody is kept waiting for longer than 0.1 ms."""
PER_ENTRY: Final = 48 + (33 + ENTRY.size + 7) + 60 + 12
"""Octets besides the arena: an int, a bytes object, a dict slot, and its place in the part's list."""
PARTS: Final = 8

TURN_S: Final = 0.05
"""From taking answers out of the kernel's table to writing over them: what it had just looked up it has long sent."""
MAX_READIED: Final = 256
"""Answers made ready for the kernel at once: 1 ms."""

_META: Final = Struct("@qIIII")
"""In the arena before each tail: the question's hash, expiry (s, or NEVER), policy's end (s), group, and the deadline
with which it was made ready for the kernel, 0 if it is not."""
_READY_AT: Final = 20
_RECORD: Final = Struct("=H")
"""Behind it, before the record: octets of the record, and (lowest bit) whether it is a block's."""
_OPPOSITE: Final = b"\1\0" + bytes(254)

Get = Callable[[int], bytes | None]
_Item = TypeVar("_Item")


class _Part:
    """A part of the arena, and what stands in it: hashes of questions, and their groups, in the same order."""

    __slots__ = ("end", "groups", "keys")

    def __init__(self, start: int) -> None:
        self.end = start
        self.keys = array("q")
        self.groups = array("I")


class PutFolded(Protocol):
    """`dns.link.Link.put_folded`."""

    def __call__(self, fold: Fold, *, are_blocks: bool = False) -> None: ...


def _nothing(_: int) -> bytes | None:
    return None


def arena_bytes(max_bytes: int) -> int:
    """Whole parts of it; as much again is for what the entries cost outside of it."""
    return (max_bytes // 2 // PARTS & ~7) * PARTS


class HotCache:
    """One worker's. `put_folded` is the link's; `limiter` is the core's; `kernel` answers what is asked again."""

    def __init__(
        self,
        max_bytes: int,
        put_folded: PutFolded,
        limiter: Limiter,
        kernel: KernelAnswers | None = None,
    ) -> None:
        self.counters: Final = {"hot": 0, "stamped": 0, "evictions": 0}
        self.clients: Final[dict[bytes, Get]] = {}
        """Client's address -> look-up in its group's table. Who is not in it takes the slow path."""
        self.nothing: Final = _nothing
        self._put_folded = put_folded
        self._limiter = limiter
        # The kernel's has another size if settings have changed since it was made.
        size = arena_bytes(max_bytes) if kernel is None else kernel.arena_bytes
        self._part_bytes = size // PARTS
        self._arena = mmap.mmap(-1, size) if kernel is None else kernel.arena
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._arena))
        self._tables: dict[int, dict[int, bytes]] = {}
        self._gets: dict[int, Get] = {}
        """The look-ups in them: one object a group, so that those of a batch are seen to be one."""
        self._group_of: dict[Get, int] = {}
        self.kernel: Final = kernel
        self.takes = True
        """Was there room for what the kernel has answered?"""
        self.gives = False
        """Did the kernel have something to tell the last time?"""
        self._begin()
        self._noted: list[bytes] = []
        """Entries, those of a batch in one piece; and who was answered from each."""
        self._clients: list[bytes] = []
        self._most = MIN_NOTED
        """How many may be noted, after the size of the batches: larger folds are cheaper, smaller ones are quicker."""
        self._times: list[tuple[int, int]] = []
        """Milliseconds, and how many look-ups."""

    def __len__(self) -> int:
        return sum(map(len, self._tables.values()))

    @property
    def bytes_used(self) -> int:
        starts = range(0, PARTS * self._part_bytes, self._part_bytes)
        return sum(
            part.end - start + PER_ENTRY * len(part.keys) for part, start in zip(self._parts, starts, strict=True)
        )

    def admit(self, client: bytes, group: int) -> None:
        """Questions of this client may be looked up here."""
        if len(self.clients) >= MAX_CLIENTS:
            self.clients.clear()
        get = self._gets.get(group)
        if get is None:
            get = self._gets[group] = self._tables.setdefault(group, {}).get
            self._group_of[get] = group
        self.clients[client] = get

    def knock(self, client: bytes, asked: bytes, now: float) -> None:
        """A question of this client's has come to our address `asked`: the next may be answered by the kernel."""
        get = self.clients.get(client)
        if get is not None and self.kernel is not None:
            self.kernel.admit(client, asked, self._group_of[get], now)

    def dismiss(self, client: bytes) -> None:
        """No longer: its group has changed, or it asks too much."""
        self.clients.pop(client, None)
        if self.kernel is not None:
            self.kernel.dismiss(client)

    def clear(self, now: float) -> None:
        """Forget all answers and clients: another policy."""
        if self.kernel is not None:
            self.kernel.dismiss_all()
        self.hand_over(now)
        if self.kernel is not None:
            for number in range(PARTS):
                self._withdraw(number)
            self.kernel.end_views()
        self._tables.clear()
        self._gets.clear()
        self._group_of.clear()
        self.clients.clear()
        if self.kernel is not None:
            self.kernel.writable_at = now + TURN_S
        self._begin()

    def _begin(self) -> None:
        """An empty arena."""
        self._parts = [_Part(number * self._part_bytes) for number in range(PARTS)]
        # With a kernel that reads in it: as if the last part were full and the first just withdrawn.
        self._is_full = self.kernel is not None
        self._now, self._withdrawn = (PARTS - 1, 0) if self._is_full else (0, -1)
        """The part that is being filled; the part that the kernel answers nothing from any more."""

    def put(self, key: bytes, reply: Reply, hot: Hot) -> bytes | None:
        """Keep an answer. Gives its entry; None: there is no room before `tidy`."""
        tail = memoryview(reply.data)[2:]
        record = event_bytes(hot.record)
        size = (_META.size + len(tail) + _RECORD.size + len(record) + 15) & ~7
        part = self._parts[self._now]
        start = part.end
        end = (self._now + 1) * self._part_bytes
        if self._is_full or start + size > end or PER_ENTRY * (len(part.keys) + 1) > self._part_bytes:
            self._is_full = True
            return None
        part.end = start + size
        part.keys.append(key_hash := hash(key))
        part.groups.append(hot.group)
        expires = min(NEVER, int(hot.expires))
        policy_end = min(NEVER, int(hot.valid_until))
        deadline = policy_end if expires == NEVER else min(policy_end, hot.true_until)
        at = start + _META.size
        is_block = hot.record.verdict == Verdict.BLOCK
        _META.pack_into(self._arena, start, key_hash, expires, policy_end, hot.group, 0)
        self._arena[at : at + len(tail)] = tail
        end = at + len(tail)
        _RECORD.pack_into(self._arena, end, len(record) << 1 | is_block)
        self._arena[end + _RECORD.size : end + _RECORD.size + len(record)] = record
        entry = ENTRY.pack(self._base + at, len(tail), deadline)
        table = self._tables.setdefault(hot.group, {})
        old = table.get(key_hash)
        if old is not None:
            self._forget(key_hash, hot.group, old)
        table[key_hash] = entry
        return entry

    def renew(self, client: bytes, key: bytes, entry: bytes, now: float) -> bytes | None:
        """An entry whose deadline has passed: stamped anew, or forgotten. Gives the entry to use."""
        address, length, _ = ENTRY.unpack(entry)
        at = address - self._base
        _, expires, policy_end, _, _ = _META.unpack_from(self._arena, at - _META.size)
        get = self.clients.get(client)
        if get is None:
            return None
        key_hash = hash(key)
        table = cast("dict[int, bytes]", get.__self__)  # type: ignore[attr-defined]  # it is a dict's
        found = table.get(key_hash)
        if found is not None and found is not entry:
            return found  # renewed by an earlier query of the same batch
        if now >= policy_end or expires - now < 2:
            self._drop(table, key_hash, entry)
            return None
        ttl, deadline = stamped(expires, now)
        if not self._stamp(at, length, ttl):
            self._drop(table, key_hash, entry)
            return None
        self.counters["stamped"] += 1
        entry = table[key_hash] = ENTRY.pack(address, length, min(policy_end, deadline))
        return entry

    def _drop(self, table: dict[int, bytes], key_hash: int, entry: bytes) -> None:
        if table.pop(key_hash, None) is not None:
            *_, group, _ = _META.unpack_from(self._arena, ENTRY.unpack(entry)[0] - self._base - _META.size)
            self._forget(key_hash, group, entry)

    def find(self, client: bytes, key: bytes, now: float) -> bytes | None:
        """One look-up: the answer's tail. Noted, if there is one."""
        entry = self.clients.get(client, _nothing)(hash(key))
        if entry is not None and ENTRY.unpack(entry)[2] < now:
            entry = self.renew(client, key, entry, now)
        if entry is None:
            return None
        address, length, _ = ENTRY.unpack(entry)
        self.note(entry, (client,), now)
        at = address - self._base
        return self._arena[at : at + length]

    def note(self, entries: bytes, clients: Sequence[bytes], now: float) -> None:
        """These clients were answered from these entries, in the same order.

        In one piece, for by the time they are put on record the processor's cache has long forgotten each of them.
        """
        self._noted.append(entries)
        self._clients += clients
        self._times.append((int(now * 1000), len(clients)))
        self._most += (MIN_NOTED * len(clients) - self._most) >> 3

    @property
    def noted(self) -> int:
        return len(self._clients)

    def tidy(self, now: float) -> None:
        """Between two batches, when no pointer into the arena is in use: make room, if there is need."""
        if len(self._clients) >= max(MIN_NOTED, min(MAX_NOTED, self._most)):
            self.hand_over_noted(now)  # the kernel's come in larger folds, a few times a second
        if not self._is_full:
            return
        following = (self._now + 1) % PARTS
        if self.kernel is not None:
            if self._withdrawn != following and self._parts[following].keys:
                self._withdraw(following)
                self._withdrawn, self.kernel.writable_at = following, now + TURN_S
            if now < self.kernel.writable_at:
                return
        self.hand_over(now)
        self._is_full = False
        self.counters["evictions"] += bool(self._parts[following].keys)
        self._now, self._withdrawn = following, -1
        for key, group, _ in self._entries_of(self._now):
            del self._tables[group][key]
        self._parts[self._now] = _Part(self._now * self._part_bytes)

    def _entries_of(self, number: int) -> Iterator[tuple[int, int, bytes]]:
        """What is kept in a part of the arena: hash of the question, group, entry."""
        first = self._base + number * self._part_bytes
        last = first + self._part_bytes
        part = self._parts[number]
        for key, group in zip(part.keys, part.groups, strict=True):
            entry = self._tables[group].get(key)
            # It may have been put anew since, in another part.
            if entry is not None and first <= int.from_bytes(entry[:_WORD], _ORDER) < last:
                yield key, group, entry

    def hand_over(self, now: float) -> None:
        """Put everything on record: what was noted, and what the kernel has answered."""
        self.take_given(now, lambda: True)
        self.hand_over_noted(now)

    def hand_over_noted(self, now: float) -> None:
        """Put on record what was noted, and count it against the clients' rates."""
        noted, clients, times = self._noted, self._clients, self._times
        if not clients:
            return
        self._noted, self._clients, self._times = [], [], []
        self.counters["hot"] += len(clients)
        queries_of = Counter(clients)
        self._charge(queries_of, now)
        who = list(map(_numbered(queries_of).__getitem__, clients))
        words = memoryview(b"".join(noted)).cast("L")
        ends = list(map(add, words[0::WORDS].tolist(), words[1::WORDS].tolist()))
        self._record(_read_records(self._arena, self._base, dict.fromkeys(ends)), ends, times, list(queries_of), who)
        if self.kernel is not None:
            self._make_ready(self.kernel, words)

    def _charge(self, queries_of: Mapping[bytes, int], now: float) -> None:
        for client, queries in queries_of.items():
            if not self._limiter.charge(client, queries, now):
                self.dismiss(client)

    def take_given(self, now: float, has_room: Callable[[], bool]) -> None:
        """Put on record what the kernel has answered, as far as there is room for it.

        The rest may wait where it is; when its ring is full the kernel leaves the answers to us.
        """
        kernel = self.kernel
        self.gives, self.takes = False, True
        if kernel is None:
            return
        while True:
            if not has_room():
                self.takes = False
                break
            at_ms, numbers, places = kernel.given()
            if not numbers:
                break
            self.gives = True
            count_of = Counter(numbers)
            clients = list(map(kernel.clients.name, count_of))
            self._charge(dict(zip(clients, count_of.values(), strict=True)), now)
            who = list(map(_numbered(count_of).__getitem__, numbers))
            times = [(ms, sum(1 for _ in run)) for ms, run in groupby(at_ms)]
            self._record(_read_records(kernel.arena, 0, dict.fromkeys(places)), places, times, clients, who)
            kernel.done()

    def _make_ready(self, kernel: KernelAnswers, words: memoryview) -> None:
        """What was asked again is answered in the kernel from now on, until its TTL must be stamped anew."""
        answers: list[Ready] = []
        first, size = self._withdrawn * self._part_bytes, self._part_bytes
        for address, length, deadline in {*zip(*(words[i::WORDS].tolist() for i in range(WORDS)), strict=True)}:
            at = address - self._base
            key, _, _, group, ready = _META.unpack_from(self._arena, at - _META.size)
            if ready != deadline and len(answers) < MAX_READIED and not 0 <= at - first < size:
                _WORD32.pack_into(self._arena, at - _META.size + _READY_AT, deadline)
                answers.append((key, group, deadline, at, length))
        kernel.put(answers)

    def _withdraw(self, number: int) -> None:
        """The kernel shall answer nothing any more from this part of the arena."""
        for key, group, entry in self._entries_of(number):
            self._forget(key, group, entry)

    def _forget(self, key: int, group: int, entry: bytes) -> None:
        """The same for one answer."""
        at = ENTRY.unpack(entry)[0] - self._base - _META.size + _READY_AT
        if self.kernel is not None and _WORD32.unpack_from(self._arena, at)[0]:
            _WORD32.pack_into(self._arena, at, 0)
            self.kernel.forget(key, group)

    def _record(
        self,
        records: tuple[dict[int, bytes], dict[int, bytes]],
        places: list[int],
        times: list[tuple[int, int]],
        clients: list[bytes],
        who: list[int],
    ) -> None:
        """Whole columns at a time, by functions that loop in C.

        Per look-up this costs less than half of what the look-up does.
        """
        passed, stopped = records
        if not stopped:
            which = list(map(_numbered(passed).__getitem__, places))
            self._put_folded(Fold(list(passed.values()), which, times, clients, who))
            return
        # A blocked look-up is on flash before it is acknowledged, so these travel by themselves.
        which = list(map((_numbered(passed) | _numbered(stopped)).__getitem__, places))
        are_stopped = bytes(map(stopped.__contains__, places))
        for found, wanted in ((passed, are_stopped.translate(_OPPOSITE)), (stopped, are_stopped)):
            if found:
                fold = Fold(
                    list(found.values()),
                    list(compress(which, wanted)),
                    _times_of(times, wanted),
                    clients,
                    list(compress(who, wanted)),
                )
                self._put_folded(fold, are_blocks=found is stopped)

    def _stamp(self, at: int, length: int, ttl: int) -> bool:
        data = b"\0\0" + self._arena[at : at + length]
        try:
            header = read_header(data)
            records, _ = read_records(data, read_question(data)[3], header)
        except WireError:  # cannot be: we have put it together ourselves
            return False
        text = ttl.to_bytes(4, "big")
        for record in records:
            if record.rtype != Type.OPT:
                place = at + record.data - 8
                self._arena[place : place + 4] = text
        return True


def _read_records(arena: mmap.mmap, base: int, places: Iterable[int]) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """What lies at these addresses behind tails: packed records by place, of what passed, and of blocks."""
    passed: dict[int, bytes] = {}
    stopped: dict[int, bytes] = {}
    unpack, head = _RECORD.unpack_from, _RECORD.size
    for place in places:
        at = place - base
        (size,) = unpack(arena, at)
        (stopped if size & 1 else passed)[place] = arena[at + head : at + head + (size >> 1)]
    return passed, stopped


def _numbered(items: Iterable[_Item]) -> dict[_Item, int]:
    return dict(zip(items, count()))


def _times_of(times: list[tuple[int, int]], wanted: bytes) -> list[tuple[int, int]]:
    """How many of the wanted look-ups came at each time."""
    found = []
    at = 0
    for ms, number in times:
        if kept := wanted.count(1, at, at + number):
            found.append((ms, kept))
        at += number
    return found


_WORD: Final = calcsize("@L")
_WORD32: Final = Struct("@I")
_ORDER: Final = sys.byteorder
