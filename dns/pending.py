"""Queries in flight to the upstreams: ids, letter case, coalescing, deadlines. No sockets, no clock.

Rule: every flight has a deadline, and the number of flights and of clients that wait for one is bounded, so the table
empties itself if the network dies and stays small if somebody floods it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heappop, heappush
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
STREAM: Final = -1
"""In the place of a channel: over TCP or TLS."""

_HEAD: Final = Struct("!HHHHHH")

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
        self.tried: list[int] = []
        self.server = self.id = -1
        self.channel = 0
        self.question = b""
        """As it was sent, letter case included."""
        self.sent_at = self.deadline = self.try_until = now
        """`deadline`: when to look at it again; `try_until`: how long this try may take."""
        self.strangers = 0
        """Replies that bore our id and not our question."""
        self.was_served_stale = False


class Pending(Generic[W]):
    """All flights. `random_bytes(n)` must be fit for secrets: an off-path attacker guesses against it (RFC 5452)."""

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_source = random_bytes
        self._dice = memoryview(b"")
        self._channel = 0
        self._by_key: dict[bytes, Flight[W]] = {}
        self._by_id: dict[tuple[int, int], Flight[W]] = {}
        self._timers: list[tuple[float, int, Flight[W]]] = []
        self._order = 0

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Flight[W]]:
        return iter(list(self._by_key.values()))

    def find(self, key: bytes) -> Flight[W] | None:
        """The flight that asks this already."""
        return self._by_key.get(key)

    def find_reply(self, server: int, channel: int, id: int) -> Flight[W] | None:
        """The flight that a reply with this id, from this server, on this socket, belongs to."""
        flight = self._by_id.get((server, id))
        return flight if flight is not None and flight.channel == channel else None

    @property
    def is_full(self) -> bool:
        return len(self._by_key) >= MAX_FLIGHTS

    def add(self, flight: Flight[W]) -> None:
        self._by_key[flight.key] = flight

    def send(
        self, flight: Flight[W], server: int, now: float, timeout_s: float, *, stream: bool, case: bool, edns: bool
    ) -> Ask:
        """Give the flight a new id (and letter case, and socket) and the message to send."""
        self._by_id.pop((flight.server, flight.id), None)
        dice = self._random(2 + len(flight.name))
        number = dice[0] << 8 | dice[1]
        while (server, number) in self._by_id:
            number = int.from_bytes(self._random(2), "big")
        name = mixed_case(flight.name, dice[2:]) if case else flight.name
        flight.server, flight.id = server, number
        flight.channel = STREAM if stream else self._channel
        flight.question = name + flight.qtype.to_bytes(2, "big") + b"\0\1"
        flight.tried.append(server)
        flight.sent_at = now
        self._by_id[server, number] = flight
        self.arm(flight, now + timeout_s)
        # AD: we want to know (RFC 6840 5.7); who among the clients sees it is decided when the answer is served.
        flags = RD | AD | (CD if flight.flags & 2 else 0)
        head = _HEAD.pack(number, flags, 1, 0, 0, int(edns))
        opt = opt_record(0, DO if flight.flags & 1 else 0, size=UDP_SIZE) if edns else b""
        return Ask(server, flight.channel, head + flight.question + opt)

    def change_channel(self) -> None:
        """The next questions go by another socket: one for all that are sent in one go, so that few are to be read."""
        self._channel = self._random(1)[0] % CHANNELS

    def _random(self, size: int) -> bytes:
        """Random octets, each given once. The kernel is asked for many at a time: a system call costs 2 us."""
        if len(self._dice) < size:
            self._dice = memoryview(self._random_source(RANDOM_BYTES))
        found, self._dice = self._dice[:size], self._dice[size:]
        return found.tobytes()

    def arm(self, flight: Flight[W], deadline: float) -> None:
        """Wake the flight up at `deadline`, and no earlier."""
        flight.deadline = deadline
        self._order += 1
        heappush(self._timers, (deadline, self._order, flight))

    def close(self, flight: Flight[W]) -> None:
        """The flight is over."""
        self._by_key.pop(flight.key, None)
        self._by_id.pop((flight.server, flight.id), None)
        flight.deadline = 0.0

    def next_timer(self) -> float | None:
        """When `due` has something to say; None: nothing is in flight."""
        while self._timers and self._timers[0][0] != self._timers[0][2].deadline:
            heappop(self._timers)  # closed, or armed anew since
        return self._timers[0][0] if self._timers else None

    def due(self, now: float) -> list[Flight[W]]:
        """Flights whose deadline has passed; each must be armed or closed now."""
        found = []
        while (at := self.next_timer()) is not None and at <= now:
            flight = heappop(self._timers)[2]
            flight.deadline = 0.0  # so that it is not found twice if it was armed twice for the same moment
            found.append(flight)
        return found


def mixed_case(name: bytes, dice: bytes) -> bytes:
    """draft-vixie-dnsext-dns0x20: random letter case, which an honest answer echoes and a forger must guess."""
    # 0x20 is the bit in which a letter's two cases differ. Length octets are below 64, so never taken for a letter.
    letters = int.from_bytes(name.translate(_LETTER_BIT), "big")
    mixed = int.from_bytes(name, "big") ^ (letters & int.from_bytes(dice, "big"))
    return mixed.to_bytes(len(name), "big")


_LETTER_BIT: Final = bytes(0x20 if 97 <= octet <= 122 else 0 for octet in range(256))
