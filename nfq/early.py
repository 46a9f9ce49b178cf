"""Connections that are let through inside the kernel: by whom, whereto, and which there were. A shell.

Whoever came by the queue and was let through is known for CLIENT_S; where to and under which name, as long as the
policy and the hour are the same. Both go into tables of the program (`nfq.classifier`), which does the rest.
Rule: what is taken away here is in force at once, and each connection that was let through is on record once, with the
record that the queue's way would have made.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from bpf.interface import Links
from bpf.kernel import MMAPABLE, NO_PREALLOC, Kernel, KernelError, MapType
from bpf.numbers import Numbers
from bpf.ring import HEAD, Ring, boottime_ms, whole_ms
from nfq.classifier import (
    BLOCKED,
    BLOCKED_BITS,
    CLIENT_KEY,
    CLIENT_VALUE,
    EVENT,
    HELLO_KEY,
    HELLO_VALUE,
    MAX_NAME,
    SCRATCH,
    SLOT4,
    SLOT6,
    SLOTS4,
    SLOTS6,
    Maps,
    Marks,
    hash_of,
    program,
)
from nfq.fold import MAX_ROWS, Row, fold_columns
from nfq.mark import Mark
from policy.frame import Fold

CLIENT_S: Final = 10
"""So long after one of a client's connections came by the queue others of its pass before it."""
LEASE_MS: Final = 1000
"""So long after the worker last looked the program lets connections pass: a worker that hangs learns of none."""
BLOCKED_MS: Final = 60_000
"""So long, and up to twice that, after a connection was blocked its segments without data are for the rules to judge.
Both ends are reset; what a client sends later still says nothing."""
MAX_CLIENTS: Final = 4096
MAX_HELLOS: Final = 2048
"""Names and addresses, each in a group: as many as the hook remembers. What nothing passes by goes for new ones."""
RING: Final = 1 << 18
"""Octets: 10,900 connections. A full ring is no loss: what finds no room takes the usual way."""
MAX_LOST: Final = 3
"""Of the one in each look that is asked about. By chance it happens once in 65,536 port pairs used again in seconds."""
_EVER: Final = 1 << 62
_STEP: Final = (HEAD + EVENT.size) // 4


class Passed(NamedTuple):
    """Connections that were let through."""

    fold: Fold
    """Their records, in order of time."""
    unsure: int = 0
    """How many of them had an outer encrypted_client_hello."""


_NONE_PASSED: Final = Passed(Fold((), (), (), (), ()))


class Early:
    """One worker's. Raises: KernelError at the start, where the kernel has or allows nothing of this."""

    def __init__(self, mask: int, *, marks_bare: bool = True) -> None:
        """`mask`: where in a packet's mark ours stands.

        `marks_bare`: on segments without data, too; only if no other worker blocks connections.
        """
        self.counters: Final = {
            "early": 0,
            "early_interfaces": 0,
            "early_known": 0,
            "early_full": 0,
            "early_lost": 0,
            "early_unknown": 0,
        }
        self.kernel: Final = Kernel()
        kernel = self.kernel
        self._links = Links(kernel)
        self._views: Numbers[int] = Numbers()
        """Of groups."""
        self._clients: Numbers[bytes] = Numbers()
        self._last_template = 0
        """Counted on for ever. A template's number is twice that, and one more if the hello has ECH."""
        self._keys: dict[bytes, int] = {}
        """Of the table of hellos -> the template's number."""
        self._waiting: dict[bytes, tuple[bytes, bool]] = {}
        """Hellos to be put into the table at the next look, all at once: template, is there ECH."""
        self._used: set[int] = set()
        """Numbers of templates by which something has passed since there was no more room."""
        self._templates: dict[int, bytes] = {}
        self._old_templates: dict[int, bytes] = {}
        """For what a processor was about to write when everything was forgotten."""
        self._blocked: set[int] = set()
        """Places in the table of connections that were blocked."""
        self._blocked_before: set[int] = set()
        self._blocked_turn_ms = 0
        self._left: list[Passed] = []
        self._is_over = False
        self.sample: tuple[Row, int] | None = None
        """One of those that were read last, and the lower half of its first octet's number."""
        create = kernel.create_map
        self._slots4 = create(MapType.ARRAY, 4, SLOT4.size, SLOTS4, name="gh_slots4")
        self._slots6 = create(MapType.ARRAY, 4, SLOT6.size, SLOTS6, name="gh_slots6")
        size = CLIENT_KEY.size, CLIENT_VALUE.size
        self._client_map = create(MapType.HASH, *size, MAX_CLIENTS, flags=NO_PREALLOC, name="gh_tls_clients")
        size = HELLO_KEY.size, HELLO_VALUE.size
        self._hello_map = create(MapType.HASH, *size, MAX_HELLOS, flags=NO_PREALLOC, name="gh_hellos")
        self._scratch = create(MapType.PERCPU_ARRAY, 4, SCRATCH, 1, name="gh_scratch")
        self._control_map = create(MapType.ARRAY, 4, 8, 1, flags=MMAPABLE, name="gh_control")
        self._blocked_map = create(MapType.ARRAY, 4, BLOCKED, 1, flags=MMAPABLE, name="gh_blocked")
        self._ring = Ring(kernel, RING, EVENT.size, name="gh_passed")
        page = mmap.mmap(self._control_map, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._until = memoryview(page).cast("Q")
        self._blocked_table = mmap.mmap(self._blocked_map, BLOCKED, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        maps = Maps(
            self._slots4, self._slots6, self._client_map, self._hello_map, self._scratch, self._control_map,
            self._blocked_map, self._ring.fd,
        )  # fmt: skip
        lowest = mask & -mask
        bare, syn = (Mark.BARE, Mark.SYN) if marks_bare else (Mark.UNDECIDED, Mark.UNDECIDED)
        marks = Marks(Mark.ALLOW * lowest, bare * lowest, syn * lowest, mask)
        self.program: Final = kernel.load(program(marks, maps), "gh_tls")

    def attach(self, interfaces: Iterable[str]) -> None:
        """Stand at these interfaces, those that there are and that carry Ethernet, and at no others.

        To be called again now and then, for interfaces come and go: CAP_NET_ADMIN is enough. Raises: KernelError.
        """
        if self._is_over:
            return
        self._links.stand_at(self.program, interfaces)
        self.counters["early_interfaces"] = len(self._links)

    def look(self, interfaces: Iterable[str]) -> None:
        """`attach`, by a worker that goes on without."""
        try:
            self.attach(interfaces)
        except KernelError:
            self.counters["early_full"] += 1

    def count_lost(self) -> None:
        """One that passed was queued all the same: somebody's rule takes our mark away. Then each is on record twice,
        so this ends."""
        self.counters["early_lost"] += 1
        if self.counters["early_lost"] >= MAX_LOST:
            self.stop()

    def stop(self) -> None:
        """Let nothing pass any more, for good. What has passed may still be taken."""
        self._is_over = True
        self.counters["early_interfaces"] = 0
        self._links.close()

    def close(self) -> None:
        self.stop()
        fds = (self.program, self._slots4, self._slots6, self._client_map, self._hello_map, self._scratch,
               self._control_map, self._blocked_map, self._ring.fd)  # fmt: skip
        for fd in fds:
            os.close(fd)

    def admit(self, client: bytes, group: int, until_ms: int) -> None:
        """A connection of `client` (address and MAC) was let through by the queue: until then its group's names are
        its own."""
        if client not in self._clients:
            if len(client) not in (10, 22):  # no MAC was seen: it cannot be told from others
                return
            if len(self._clients) >= MAX_CLIENTS:
                self.forget()
        value = CLIENT_VALUE.pack(until_ms, self._views.of(group), self._clients.of(client))
        try:
            self.kernel.update(self._client_map, _client_key(client), value)
        except KernelError:  # no room: a client more who goes by the queue each time
            self.counters["early_full"] += 1

    def dismiss(self, client: bytes) -> None:
        """It is known no longer."""
        if client in self._clients:
            self.kernel.delete(self._client_map, _client_key(client))

    def allow(self, group: int, name: bytes, dst: bytes, dport: int, has_ech: bool, template: bytes) -> None:
        """Connections of this group's to there under this name may pass, with this record."""
        if len(name) > MAX_NAME:
            return
        key = HELLO_KEY.pack(self._views.of(group), dport, len(name), has_ech, dst, name)
        if key not in self._keys and key not in self._waiting and len(self._waiting) < MAX_HELLOS // 8:
            self._waiting[key] = template, has_ech

    def put_waiting(self) -> None:
        """What was allowed since may pass now."""
        waiting, self._waiting = self._waiting, {}
        if len(self._keys) + len(waiting) > MAX_HELLOS:
            self._make_room()
        numbers = range(self._last_template + 1, self._last_template + 1 + len(waiting))
        self._last_template += len(waiting)
        numbered = {key: 2 * number + ech for number, (key, (_, ech)) in zip(numbers, waiting.items(), strict=True)}
        # Known here before it is there: something may pass by it at once.
        self._templates.update(zip(numbered.values(), (template for template, _ in waiting.values()), strict=True))
        values = b"".join(map(HELLO_VALUE.pack, numbered.values()))
        put = self.kernel.update_many(self._hello_map, b"".join(numbered), values, len(numbered))
        self._keys.update(list(numbered.items())[:put])
        self.counters["early_known"] += put
        self.counters["early_full"] += len(numbered) - put

    @property
    def is_waiting(self) -> bool:
        """Is there something for the next look to put into the kernel's table?"""
        return bool(self._waiting)

    def block(self, connection: bytes) -> None:
        """It was blocked: what its client still sends is for the rules to judge, data or none.

        `connection`: as `hash_of` takes it.
        """
        at = hash_of(connection) >> 64 - BLOCKED_BITS
        self._blocked.add(at)
        self._blocked_table[at] = 1

    def _turn_blocked(self, now_ms: int) -> None:
        self._blocked_turn_ms = now_ms + BLOCKED_MS
        for at in self._blocked_before - self._blocked:
            self._blocked_table[at] = 0
        self._blocked_before, self._blocked = self._blocked, set()

    def forget(self) -> None:
        """Another policy or another hour: nobody and nothing is known any more, from now on."""
        if not self._clients and not self._keys and not self._waiting:
            return
        self._until[0] = 0
        for client in self._clients:
            self.kernel.delete(self._client_map, _client_key(client))
        self._clients.start_anew()
        self._waiting.clear()
        self._take_out(list(self._keys))
        self._views.start_anew()

    def _make_room(self) -> None:
        gone = [key for key, number in self._keys.items() if number not in self._used]
        if len(gone) < MAX_HELLOS // 8:  # all in use: they are learnt anew soon enough
            gone = list(self._keys)
        self._take_out(gone)
        self._used.clear()

    def _take_out(self, keys: list[bytes]) -> None:
        if keys:
            gone = self.kernel.delete_many(self._hello_map, b"".join(keys), len(keys))
            for key in keys[gone:]:  # one was missing, which cannot be: none must stay whose record is gone
                self.kernel.delete(self._hello_map, key)
        while (passed := self._read(_EVER)).fold.ports:
            self._left.append(passed)
        numbers = map(self._keys.pop, keys)
        self._old_templates = {number: self._templates.pop(number) for number in numbers}

    def take(self, now_ms: int, hold_ms: int = 0) -> Passed:
        """What has passed since the last time, but for the last `hold_ms`; MAX_ROWS at most.

        The worker lives: the lease begins anew, and what was allowed since may pass.
        """
        self._until[0] = now_ms + LEASE_MS
        if now_ms >= self._blocked_turn_ms:
            self._turn_blocked(now_ms)
        if self._waiting:
            self.put_waiting()
        return self._left.pop(0) if self._left else self._read(now_ms - hold_ms)

    def _read(self, until_ms: int) -> Passed:
        found = self._ring.read(MAX_ROWS)
        if not found:
            return _NONE_PASSED
        words = found.cast("I")
        times = whole_ms(words[2::_STEP].tolist(), boottime_ms())
        # Two processors write in the order in which they reserved, not in that of their clocks: nearly in order.
        count = len(times) if times[-1] <= until_ms else bisect_right(times, until_ms)
        if not count:
            return _NONE_PASSED
        del times[count:]
        who, which = (words[at::_STEP][:count].tolist() for at in (3, 4))
        halves = found.cast("H")
        ports = halves[10 :: 2 * _STEP][:count].tolist()
        half = halves[11]
        self._ring.release(count * 4 * _STEP)
        self.counters["early"] += count
        self._used.update(which)
        clients: Mapping[int, bytes] = self._clients.named
        templates: Mapping[int, bytes] = self._templates
        if not (clients.keys() >= set(who) and templates.keys() >= set(which)):
            clients = {**self._clients.before, **clients}
            templates = {**self._old_templates, **templates}
            known = [at for at in range(count) if who[at] in clients and which[at] in templates]
            self.counters["early_unknown"] += count - len(known)
            if not known:
                return _NONE_PASSED
            times, who, which, ports = ([column[at] for at in known] for column in (times, who, which, ports))
        else:
            self.sample = (templates[which[0]], clients[who[0]], ports[0], times[0]), half
        if sorted(times) != times:
            order = sorted(range(len(times)), key=times.__getitem__)
            times, who, which, ports = ([column[at] for at in order] for column in (times, who, which, ports))
        fold = fold_columns(which, who, ports, times, templates.__getitem__, clients.__getitem__)
        return Passed(fold, sum(map((1).__and__, which)))


def open_early(mask: int, interfaces: Iterable[str], *, marks_bare: bool = True) -> Early | None:
    """None where the kernel has or allows nothing of this; then all connections go by the queue."""
    try:
        early = Early(mask, marks_bare=marks_bare)
    except (OSError, ValueError):  # a KernelError mostly; or there is no memory to map
        return None
    try:
        early.attach(interfaces)
    except KernelError:  # before Linux 6.6: programs, but no tcx
        early.close()
        return None
    return early


def _client_key(client: bytes) -> bytes:
    size = len(client) - 6
    return CLIENT_KEY.pack(client[:size], client[size:], 4 if size == 4 else 6)
