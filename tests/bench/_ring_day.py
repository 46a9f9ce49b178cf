"""A school's day, seeded: clients with their own tastes, bursts of look-ups and the flows they lead to, Zipf, one-offs.

Not real traffic. The pessimistic variant draws every name on its own, so that nothing foretells the next one.
"""

import random
from collections.abc import Iterator
from itertools import accumulate

from policy.event import Dns, Event, Flow

DAY_MS = 86_400_000
BY_HOUR = (1, 1, 1, 1, 1, 2, 6, 20, 40, 45, 48, 46, 40, 42, 44, 40, 30, 20, 14, 12, 10, 8, 4, 2)
SITES, THIRD_PARTIES, POLLED = 8000, 1500, 60


def day(seed: int, clients: int, events: int, *, pessimistic: bool = False) -> Iterator[list[Event]]:
    """About `events` records, a list per 30 seconds, in order of time."""
    world, rng = random.Random(1), random.Random(seed)
    suffixes = ("com", "com", "com", "org", "net", "example", "com.tr", "de", "io")
    word = ["".join(world.choice("bcdfghjklmnprstvz") + world.choice("aeiou") for _ in range(3)) for _ in range(4000)]
    hosts = ("www", "api", "cdn", "static", "img", "m", "edge-1", "auth")

    def site() -> str:
        return world.choice(word) + world.choice(("", "", world.choice(word))) + "." + world.choice(suffixes)

    third = [f"{world.choice(hosts)}.{site()}" for _ in range(THIRD_PARTIES)]
    pages = []
    for _ in range(SITES):
        own = site()
        names = [f"{host}.{own}" for host in world.sample(hosts, world.randint(1, 4))]
        pages.append(names + world.sample(third[:300], 3) + world.sample(third, world.randint(0, 5)))
    polled = third[:POLLED]
    flat = [name for page in pages for name in page]
    address = {name: (bytes((world.randrange(1, 224),)) + world.randbytes(3)) for name in {*flat, *third}}
    site_weights = list(accumulate(1 / (rank + 3) for rank in range(SITES)))
    flat_weights = list(accumulate(1 / (rank + 3) for rank in range(len(flat))))
    weights = list(accumulate(world.lognormvariate(0, 0.6) for _ in range(clients)))
    tastes = [world.sample(range(SITES), 40) for _ in range(clients)]
    macs = [b"\2\0" + world.randbytes(4) for _ in range(clients)]
    blocked = {name for name in third if world.random() < 0.02}
    hour_weights, total = list(accumulate(BY_HOUR)), 0
    starts: list[int] = []
    per_burst = 22 if not pessimistic else 3
    while total < events:
        hour = rng.choices(range(24), cum_weights=hour_weights)[0]
        starts.append(hour * 3_600_000 + rng.randrange(3_600_000))
        total += per_burst
    starts.sort()
    waiting: list[Event] = []
    out: list[Event] = []
    edge = 30_000
    for start in starts:
        while start >= edge:
            waiting.sort(key=lambda event: event.at_ms)
            split = next((at for at, event in enumerate(waiting) if event.at_ms >= edge), len(waiting))
            out, waiting = waiting[:split], waiting[split:]
            yield out
            edge += 30_000
        who = rng.choices(range(clients), cum_weights=weights)[0]
        client, mac, session = bytes((10, 20, who >> 8, who & 255)), macs[who], f"s{who:04}"
        if pessimistic:
            names = rng.choices(flat, cum_weights=flat_weights)
            if rng.random() < 0.05:
                names = [f"{rng.randbytes(8).hex()}.{names[0]}"]
        elif rng.random() < 0.25:
            names = rng.sample(polled, 4)
        else:
            page = (
                rng.choice(tastes[who])
                if rng.random() < 0.7
                else rng.choices(range(SITES), cum_weights=site_weights)[0]
            )
            names = list(pages[page])
            if rng.random() < 0.1:
                names.append(f"{rng.randbytes(6).hex()}.{names[0]}")
        at = start
        for name in names:
            at += rng.randrange(80)
            where = address.get(name) or rng.randbytes(4)
            verdict = 1 if name in blocked else 0
            rule = "ads:1" if verdict else ""
            for qtype in (1, 28, 65) if rng.random() < 0.7 else (1, 28):
                answers = (where,) if qtype == 1 and not verdict else ()
                cached = rng.random() < 0.4
                latency = 0 if cached else rng.randrange(5, 60)
                waiting.append(
                    Dns(
                        at + qtype % 3,
                        client,
                        name,
                        qtype,
                        0,
                        verdict,
                        6 * verdict,
                        rule,
                        "pupils",
                        answers,
                        cached,
                        latency,
                        mac,
                        session,
                    )
                )
            if not verdict and rng.random() < 0.5:
                plain = rng.random() < 0.08
                path = f"/{rng.choice(word)}/{rng.randrange(100)}.html" if plain else ""
                waiting.append(
                    Flow(
                        at + rng.randrange(20, 300),
                        client,
                        mac,
                        rng.randrange(32768, 61000),
                        where,
                        80 if plain else 443,
                        6 if rng.random() < 0.7 or plain else 17,
                        name,
                        1 if plain else 2,
                        0,
                        path,
                        0,
                        0,
                        "",
                        "pupils",
                        1,
                        "GET" if plain else "",
                        session,
                    )
                )
    waiting.sort(key=lambda event: event.at_ms)
    yield waiting
