"""Flows that are not yet decided, and those that just were. No sockets, no clock.

Holds each undecided flow's first octets, put together by their place, and the verdicts of the last seconds, because a
second segment can be queued before the first one's verdict has reached the conntrack mark.
Rule: every table has a bound in entries, octets and seconds; what is pushed out is reported, not forgotten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from nfq.quic import Initials

Key: TypeAlias = bytes
"""Source, destination, ports, and one octet more if the protocol is not TCP: see `nfq.packet.key_of`."""

MAX_PENDING: Final = 4096
"""Undecided flows at once: at 30 s each, 136 new half-open hellos a second for ever, or a burst of 4,096."""
MAX_HELD: Final = 4 << 20
"""Octets of all undecided flows together. A half-open post-quantum hello holds 1,400."""
PART_OCTETS: Final = 128
"""What a part that is held costs besides its octets: without it, a hello in crumbs would take fifty times MAX_HELD."""
MAX_PARTS: Final = 512
"""Of one flow. Chrome's chaos protection makes about 30 a datagram."""
MAX_OCTETS: Final = 16 << 10
"""Of one flow: the largest hello and request head that are waited for."""
MAX_PACKETS: Final = 12
PENDING_S: Final = 30.0
"""Servers close a connection that has not said what it wants after 10 s to 60 s."""
DECIDED_S: Final = 4.0
MAX_DECIDED: Final = 16384
"""Looked at twice a second: the hook's shortest way adds to the table by itself."""
MAX_LATE: Final = 8192
MAX_STARTS: Final = 4
NEAR: Final = 1 << 17
"""Octets around the deciding segment in which another one is the same connection's; a wrong guess: 1 in 16,384."""


class Stream:
    """The first octets of one direction, in any order of arrival. `start`: the number of the first one known so far."""

    __slots__ = ("_parts", "_start", "_starts", "ambiguous", "size")

    def __init__(self, start: int) -> None:
        self._start = start
        self._parts: dict[int, bytes] = {}
        self._starts: list[int] = [start]
        self.size = 0
        """Octets held."""
        self.ambiguous = False
        """Two segments gave different octets for the same place."""

    @property
    def cost(self) -> int:
        """Octets of memory, about."""
        return self.size + PART_OCTETS * len(self._parts)

    @property
    def is_full(self) -> bool:
        """No more is waited for."""
        return self.size >= MAX_OCTETS or len(self._parts) >= MAX_PARTS

    @property
    def start(self) -> int:
        """The number of the first octet."""
        return self._start

    def add(self, seq: int, payload: bytes) -> None:
        """Take a segment. What was there first counts; a contradiction is noted."""
        offset = (seq - self._start) & 0xFFFFFFFF
        if offset >= 0x80000000:
            # A segment from before the first one we saw: the stream begins earlier than we thought.
            shift = (self._start - seq) & 0xFFFFFFFF
            if shift > MAX_OCTETS:
                return
            self._parts = {at + shift: part for at, part in self._parts.items()}
            self._start, offset = seq, 0
            if len(self._starts) < MAX_STARTS:
                self._starts.append(seq)
        if offset > MAX_OCTETS:
            return
        payload = payload[: MAX_OCTETS - offset]
        held = self._parts.get(offset)
        if held is not None:
            same = min(len(held), len(payload))
            self.ambiguous = self.ambiguous or held[:same] != payload[:same]
            if len(payload) <= len(held):
                return
            self.size -= len(held)
            payload = held + payload[len(held) :]
        self._parts[offset] = payload
        self.size += len(payload)

    def data(self) -> bytes:
        """Octets from the beginning up to the first hole."""
        parts = self._parts
        if 0 not in parts:
            return b""
        if len(parts) == 1 and 0 in parts:
            return parts[0]
        whole = bytearray()
        for offset in sorted(parts):
            part, end = parts[offset], len(whole)
            if offset == end:
                whole += part
                continue
            if offset > end:
                break
            same = min(end - offset, len(part))
            if whole[offset : offset + same] != part[:same]:
                self.ambiguous = True
            whole += part[same:]
        return bytes(whole)

    def joined_with(self, seq: int, payload: bytes) -> bytes | None:
        """The octets from the beginning if this segment stands right behind the only one so far; None: it is not so
        simple. Nothing is taken in."""
        first = self._parts.get(0)
        if first is None or len(self._parts) > 1 or len(self._starts) > 1 or self.ambiguous:
            return None
        if (self._start + len(first) - seq) & 0xFFFFFFFF or len(first) + len(payload) > MAX_OCTETS:
            return None
        return first + payload

    def later_starts(self) -> list[bytes]:
        """The same octets as they would read if the stream began where it was once thought to.

        An octet in front of the first one that counts (a keep-alive probe, or a forgery meant for us) must not hide
        the hello behind it.
        """
        whole = self.data()
        return [whole[(start - self._start) & 0xFFFFFFFF :] for start in self._starts if start != self._start]


class Pending:
    """One undecided flow."""

    __slots__ = ("first_s", "initials", "mac", "packets", "stream")

    def __init__(self, now_s: float, mac: bytes, stream: Stream | None, initials: Initials | None) -> None:
        self.first_s = now_s
        self.mac = mac
        self.packets = 0
        self.stream = stream
        """TCP."""
        self.initials = initials
        """QUIC."""

    @property
    def size(self) -> int:
        """Octets of memory that its parts take, about."""
        if self.stream is not None:
            return self.stream.cost
        return self.initials.stream.cost if self.initials is not None else 0

    @property
    def is_full(self) -> bool:
        stream = self.stream if self.initials is None else self.initials.stream
        return self.packets >= MAX_PACKETS or (stream is not None and stream.is_full)


def is_near(entry: int, seq: int) -> bool:
    """Does `seq` belong to the connection that was decided? Another one's numbers begin elsewhere (RFC 6528)."""
    return (seq - (entry >> 4) + NEAR) & 0xFFFFFFFF < 2 * NEAR


class Flows:
    """All flows under way, and the recent verdicts as marks (never 0)."""

    def __init__(self) -> None:
        self.pending: dict[Key, Pending] = {}
        self.decided: dict[Key, int] = {}
        """Sequence number and mark of the packet that decided, as `entry` packs them."""
        self.older: dict[Key, int] = {}
        """`decided` of a few seconds ago: the hot path reads both without a call."""
        self.late: dict[Key, int] = {}
        """Flows that fell silent undecided, and what their rest gets if it comes after all; once."""
        self._held = 0
        self._turn_s = 0.0

    def __len__(self) -> int:
        return len(self.pending)

    @property
    def held(self) -> int:
        """Octets of all undecided flows."""
        return self._held

    def find_mark(self, key: Key, seq: int) -> int:
        """The mark this flow was given a while ago; 0: it was not, or the ports are a new connection's now."""
        found = self.decided.get(key) or self.older.get(key)
        if not found and key in self.late and is_near(self.late[key], seq):
            # Now the mark gets into the conntrack mark. Whoever comes with these ports later is somebody else.
            found = self.decided[key] = self.late.pop(key)
        return found & 15 if found and is_near(found, seq) else 0

    def begin(self, key: Key, pending: Pending) -> None:
        """A new undecided flow."""
        self.pending[key] = pending

    def grew(self, octets: int) -> None:
        """An undecided flow holds so much more."""
        self._held += octets

    def decide(self, key: Key, mark: int, seq: int) -> None:
        """The flow is decided: forget its octets, remember its mark for a few seconds."""
        found = self.pending.pop(key, None)
        if found is not None:
            self._held -= found.size
        if len(self.decided) >= MAX_DECIDED:
            self.older, self.decided = self.decided, {}
        self.decided[key] = seq << 4 | mark

    def began_at(self, key: Key, seq: int) -> bool:
        """Is this an undecided TCP flow whose first octet has this number? Then a SYN is its own, sent again."""
        pending = self.pending.get(key)
        return pending is not None and pending.stream is not None and pending.stream.start == seq

    def forget(self, key: Key) -> Pending | None:
        """A new connection with the same addresses and ports begins. Returns what was left undecided of the old one."""
        self.decided.pop(key, None)
        self.older.pop(key, None)
        self.late.pop(key, None)
        found = self.pending.pop(key, None)
        if found is not None:
            self._held -= found.size
        return found

    def give_up(self, key: Key, pending: Pending, mark: int) -> None:
        """A flow that `expire` gave: what still comes of it, however late, gets this mark."""
        if len(self.late) >= MAX_LATE:
            self.late.pop(next(iter(self.late)))
        self.late[key] = (pending.stream.start if pending.stream else 0) << 4 | mark

    def expire(self, now_s: float) -> list[tuple[Key, Pending]]:
        """Flows that fell silent, or that are too many: the oldest go."""
        if now_s - self._turn_s > DECIDED_S or len(self.decided) >= MAX_DECIDED:
            self._turn_s = now_s
            self.older, self.decided = self.decided, {}
        gone: list[tuple[Key, Pending]] = []
        excess = len(self.pending) - MAX_PENDING
        held = self._held
        for key, pending in self.pending.items():  # in order of arrival
            if excess <= len(gone) and held <= MAX_HELD and now_s - pending.first_s <= PENDING_S:
                break
            gone.append((key, pending))
            held -= pending.size
        self._held = held
        for key, _ in gone:
            del self.pending[key]
        return gone

    @property
    def is_crowded(self) -> bool:
        """A bound is passed: call `expire` before the next timer."""
        return len(self.pending) > MAX_PENDING or self._held > MAX_HELD
