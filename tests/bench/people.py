"""What identity costs: a session looked up, an access attributed and redacted, a guest sealed.

In one process, contenders in turn. The peer of the look-up is the ring itself, asked for the same session.
"""

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from agent.addresses import Addresses
from agent.clock import Now
from agent.identity import Sealer, make_keys
from agent.session import Sessions
from policy.event import Dns, Session
from policy.legal import Capture, read_profile
from storage.filter import Filter
from storage.register import Register, Registered, Row
from storage.writer import Ring
from tests.bench.table import Row as Figure
from tests.bench.table import median, write

SESSIONS = 30_000
"""Sixty days of five hundred logins."""
ROUNDS = 30
PROFILES = Path(__file__).resolve().parents[2] / "policy" / "profiles"


class Still:
    """A clock that the bench moves."""

    boot_id = "bench"

    def __init__(self) -> None:
        self.now_ms = 0

    def read(self) -> Now:
        return Now(self.now_ms, 1_790_000_000_000 + self.now_ms, True)


def timed(do: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median milliseconds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        do()
        times.append((time.perf_counter() - start) * 1000)
    return median(times)


def look_ups(directory: str) -> list[Figure]:
    clock, register = Still(), Register(directory)
    ring = Ring(f"{directory}/ring", clock)  # type: ignore[arg-type]
    rows = []
    for number in range(SESSIONS):
        clock.now_ms = number * 172_800
        mac, account = number.to_bytes(6, "big"), f"a{number % 500}"
        record = Session(
            clock.now_ms, f"s{number}", account, b"", "", mac, (mac[2:],), clock.now_ms, 0, "", "desk", b"i" * 16
        )
        ring.add([record])
        at_ms = clock.now_ms
        person = (account, b"", b"i" * 16, "", mac, b"")
        rows.append(
            Row(
                f"s{number}", "bench", 1_790_000_000_000, 1, *person, at_ms, at_ms, at_ms + 1, "idle", "desk", 0, "", ""
            )
        )
        if number % 500 == 499:
            ring.commit()
    register.save(rows)
    register.register([Registered(f"a{number}", bytes(300), b"i" * 16, "", 0, 0) for number in range(500)])
    rng = random.Random(1)

    def by_register() -> None:
        found = register.session(f"s{rng.randrange(SESSIONS)}")
        assert found is not None
        assert register.registration(found.account) is not None

    def by_ring() -> None:
        wanted = Filter(kind=Session, sessions=frozenset({f"s{rng.randrange(SESSIONS)}"}))
        assert any(found is not None for found in ring.query(wanted))

    ours, theirs = [], []
    for _ in range(5):
        ours.append(timed(by_register, 20))
        theirs.append(timed(by_ring, 2))
    figure = median(ours)
    ring.close()
    return [Figure(metric=f"session and its registration, of {SESSIONS:,}", unit="ms", ours=figure,
                   peers={"asking the ring": median(theirs)}, target="< 50", met=figure < 50)]  # fmt: skip


def per_event() -> list[Figure]:
    count = 100_000
    clients = [b"\x0a\0" + number.to_bytes(2, "big") for number in range(300)]
    known = Addresses()
    numbers = iter(range(1 << 30))
    sessions = Sessions(lambda: f"s{next(numbers)}", idle_ms=1 << 40)
    for number, client in enumerate(clients):
        known.learn(client, number.to_bytes(6, "big"))
        sessions.join(number.to_bytes(6, "big"), client, "dhcp", 0)
    asked = [clients[number % 300] for number in range(count)]
    events = [Dns(1, client, "a.example", 1, 0, 0, 0, "", "g", (), True, 0, b"\2" * 6, "s1") for client in asked]
    captures = {name: Capture(read_profile((PROFILES / f"{name}.toml").read_bytes())) for name in ("cn-82", "uk-kcsie")}

    def identify() -> None:
        for client in asked:
            known.identify(client)

    def attribute() -> None:
        for client in asked:
            sessions.attribute(client, b"", 5)

    plain, ours = [], []
    sieved: dict[str, list[float]] = {name: [] for name in captures}
    for _ in range(5):
        plain.append(timed(identify, 1))
        ours.append(timed(attribute, 1))
        for name, capture in captures.items():
            sieved[name].append(timed(lambda capture=capture: capture.take(events), 1))  # type: ignore[misc]
    scale = 1000 / count
    return [
        Figure(metric="attribute an access to its session", unit="us", ours=median(ours) * scale,
               peers={"look its MAC up": median(plain) * scale}),
        *(
            Figure(metric=f"redact a look-up, {name}", unit="us", ours=median(times) * scale)
            for name, times in sieved.items()
        ),
    ]  # fmt: skip


def sealing(directory: str) -> list[Figure]:
    make_keys(f"{directory}/secret", f"{directory}/recipient.pub")
    sealer = Sealer.load(directory)
    phones = iter(f"139{number:08d}" for number in range(100_000))
    person = {"name": "Guest", "phone": "+8613800138000", "document_number": "110105199001010000"}
    return [
        Figure(metric="seal a guest", unit="ms", ours=timed(lambda: sealer.seal(person))),
        Figure(metric="blind index of a phone number", unit="ms", ours=timed(lambda: sealer.index_of(next(phones)))),
    ]


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        rows = look_ups(directory) + per_event() + sealing(directory)
    write("people", rows)


if __name__ == "__main__":
    main()
