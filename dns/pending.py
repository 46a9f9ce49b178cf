"""Queries in flight to the upstreams: ids, letter case, coalescing, deadlines. No sockets, no clock.

Rule: every flight has a deadline, and the number of flights and of clients that wait for one is bounded, so the table
empties itself if the network dies and stays small if somebody floods it.
Deadlines stand in buckets, TICKS a second, as the numbers of flights. Most flights are over long before theirs, and
leave an int there that its bucket passes over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from math import ceil
from struct import Struct
from typing import Final, Generic, NamedTuple, TypeVar

from dns.answer import UDP_SIZE, opt_record
from dns.wire import AD, CD, DO, RD

MAX_FLIGHTS: Final = 4096
"""The id space of one server is 65,536; a sixteenth of it keeps random ids easy to find and hard to guess."""
MAX_WAITERS: Final = 64
"""Clients that wait for one answer. More in one round trip is a flood of one name."""
CHANNELS: Final = 16
"""Sockets per server, each with a random port that the shell renews."""
RANDOM_BYTES: Final = 4096
TICKS: Final = 128
"""Per second. A deadline is kept to the next one. A power of two, so that no rounding brings a tick before it."""
STREAM: Final = -1
"""In the place of a channel: over TCP or TLS."""

_HEAD: Final = Struct("!HHHHHH")
_CLASS_IN: Final = b"\0\1"
_new: Final = tuple.__new__

W = TypeVar("W")


class Ask(NamedTuple):
    """A message for the shell to send."""

    server: int
    channel: int
    """Which of the server's sockets, or STREAM."""
    data: bytes


class Flight(Generic[W]):
    """One question on its way."""

    __slots__ = (
        "among",
        "channel",
        "deadline",
        "flags",
        "id",
        "key",
        "name",
        "qtype",
        "question",
        "sent_at",
        "server",
        "started",
        "strangers",
        "tried",
        "try_until",
        "waiters",
        "was_served_stale",
    )

    def __init__(self, key: bytes, name: bytes, qtype: int, flags: int, among: tuple[int, ...], now: float) -> None:
        self.key = key
        self.name = name
        self.qtype = qtype
        self.flags = flags
        """DO (1), CD (2)."""
        self.among = among
        """Servers that may be asked."""
        self.started = now
        self.waiters: list[W] = []
        self.tried: tuple[int, ...] = ()
        self.server = self.id = -1
        self.channel = 0
        self.question = b""
        """As it was sent, letter case included."""
        self.sent_at = self.deadline = self.try_until = now
        """`deadline`: when to look at it again (0: `due` just gave it); `try_until`: how long this try may take."""
        self.strangers = 0
        """Replies that bore our id and not our question."""
        self.was_served_stale = False


class Pending(Generic[W]):
    """All flights. `random_bytes(n)` must be fit for secrets: an off-path attacker guesses against it (RFC 5452)."""

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_source = random_bytes
        self._dice = memoryview(b"")
        self._channel = 0
        self.by_key: Final[dict[bytes, Flight[W]]] = {}
        """For others to look at, and to put one in while there are less than MAX_FLIGHTS."""
        self._by_id: dict[int, Flight[W]] = {}
        """By `server << 16 | id`."""
        self._wheel: dict[int, list[int]] = {}
        """Those numbers by tick. One of a flight that is over, or armed anew, is passed over when its tick comes."""
        self._ticks: list[int] = []
        """Those that have a bucket; a heap."""
        self.find_id: Final = self._by_id.get

    def __len__(self) -> int:
        return len(self.by_key)

    def __iter__(self) -> Iterator[Flight[W]]:
        return iter(list(self.by_key.values()))

    def find_reply(self, server: int, channel: int, id: int) -> Flight[W] | None:
        """The flight that a reply with this id, from this server, on this socket, belongs to."""
        flight = self._by_id.get(server << 16 | id)
        return flight if flight is not None and flight.channel == channel else None

    def send(
        self, flight: Flight[W], server: int, now: float, timeout_s: float, *, stream: bool, case: bool, edns: bool
    ) -> Ask:
        """Give the flight a new id (and letter case, and socket) and the message to send."""
        self._by_id.pop(flight.server << 16 | flight.id, None)
        (ask,) = self.send_all((flight,), server, now, timeout_s, case=case, edns=edns)
        if stream:
            flight.channel = STREAM
            return ask._replace(channel=STREAM)
        return ask

    def send_all(
        self, flights: Sequence[Flight[W]], server: int, now: float, timeout_s: float, *, case: bool, edns: bool
    ) -> list[Ask]:
        """The same for flights that have not been sent before, all to one server; their letters are mixed in one go."""
        by_id, base, channel = self._by_id, server << 16, self._channel
        names = b"".join([flight.name for flight in flights])
        if case:
            names = mixed_case(names, self._random(len(names)))
        ids = self._random(2 * len(flights))
        deadline = now + timeout_s
        # AD: we want to know (RFC 6840 5.7); who among the clients sees it is decided when the answer is served.
        heads = [_HEAD.pack(0, RD | AD | cd, 1, 0, 0, int(edns))[2:] for cd in (0, CD)]
        opts = [opt_record(0, do, size=UDP_SIZE) if edns else b"" for do in (0, DO)]
        asks: list[Ask] = []
        numbers: list[int] = []
        at = id_at = 0
        for flight in flights:
            id_bytes = ids[id_at : id_at + 2]
            id = id_bytes[0] << 8 | id_bytes[1]
            while base | id in by_id:
                id_bytes = self._random(2)
                id = id_bytes[0] << 8 | id_bytes[1]
            id_at += 2
            until = at + len(flight.name)
            flight.question = question = names[at:until] + flight.key[-3:-1] + _CLASS_IN
            at = until
            flight.server, flight.id, flight.channel = server, id, channel
            flight.tried += (server,)
            flight.sent_at, flight.try_until, flight.deadline = now, deadline, deadline
            by_id[base | id] = flight
            numbers.append(base | id)
            flags = flight.flags
            asks.append(_new(Ask, (server, channel, id_bytes + heads[flags >> 1] + question + opts[flags & 1])))
        self._bucket(deadline).extend(numbers)
        return asks

    def change_channel(self) -> None:
        """The next questions go by another socket: one for all that are sent in one go, so that few are to be read."""
        self._channel = self._random(1)[0] % CHANNELS

    def _random(self, size: int) -> bytes:
        """Random octets, each given once. The kernel is asked for many at a time: a system call costs 2 us."""
        if len(self._dice) < size:
            self._dice = memoryview(self._random_source(max(size, RANDOM_BYTES)))
        found, self._dice = self._dice[:size], self._dice[size:]
        return found.tobytes()

    def arm(self, flight: Flight[W], deadline: float) -> None:
        """Wake the flight up at `deadline` (the next tick), and no earlier."""
        flight.deadline = deadline
        self._bucket(deadline).append(flight.server << 16 | flight.id)

    def close(self, flight: Flight[W]) -> None:
        """The flight is over."""
        self.by_key.pop(flight.key, None)
        self._by_id.pop(flight.server << 16 | flight.id, None)

    def next_timer(self) -> float | None:
        """When to call `due`, which need not have anything to say; None: nothing is in flight."""
        if not self._by_id:
            self._wheel.clear()
            self._ticks.clear()
        return self._ticks[0] / TICKS if self._ticks else None

    def due(self, now: float) -> list[Flight[W]]:
        """Flights whose deadline has passed; each must be armed or closed now."""
        found: list[Flight[W]] = []
        while self._ticks and self._ticks[0] <= now * TICKS:
            for number in self._wheel.pop(heappop(self._ticks)):
                flight = self._by_id.get(number)
                if flight is not None and 0.0 < flight.deadline <= now:
                    flight.deadline = 0.0
                    found.append(flight)
        return found

    def _bucket(self, deadline: float) -> list[int]:
        tick = ceil(deadline * TICKS)
        bucket = self._wheel.get(tick)
        if bucket is None:
            bucket = self._wheel[tick] = []
            heappush(self._ticks, tick)
        return bucket


def mixed_case(name: bytes, dice: bytes) -> bytes:
    """draft-vixie-dnsext-dns0x20: random letter case, which an honest answer echoes and a forger must guess."""
    # 0x20 is the bit in which a letter's two cases differ. Length octets are below 64, so never taken for a letter.
    letters = int.from_bytes(name.translate(_LETTER_BIT), "big")
    mixed = int.from_bytes(name, "big") ^ (letters & int.from_bytes(dice, "big"))
    return mixed.to_bytes(len(name), "big")


_LETTER_BIT: Final = bytes(0x20 if 97 <= octet <= 122 else 0 for octet in range(256))
