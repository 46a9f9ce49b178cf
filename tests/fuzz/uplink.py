"""Any octets on any topic are taken in, set aside or refused by the receiver and by a device, in bounded time.

`python -m tests.fuzz.uplink [--seconds 60] [--seed 1]`. Mutates sound messages of each kind, also below a signature
that holds. Prints what it did; a failure prints topic and octets.
"""

import argparse
import collections
import random
import tempfile
import time
from pathlib import Path

from agent.uplink import wire
from agent.uplink.order import Order, open_order, write_order
from agent.uplink.signed import seal
from agent.uplink.wire import DOWN, UP, Topics
from policy.errors import MessageError
from storage import chain
from tests.agent.test_agent_receiver import PUBLIC, RING, SECRET, Side, heartbeat, sign
from tests.agent.test_agent_uplink_wire import messages

MAX_CASE_S = 2.0
TOPICS = Topics("11010500000001", "100000001020000000001")


def signed(octets: bytes) -> bytes:
    return SECRET and sign(SECRET, octets)


def specimens() -> list[bytes]:
    order = Order(*TOPICS, 1, "query", {"warrant": "1", "by": "x", "domain": "a.example"}, "anna")
    return [*messages().values(), heartbeat(1, chain.START), write_order(order, signed, RING)]


def mutated(rng: random.Random, sound: list[bytes]) -> bytes:
    data = bytearray(rng.choice(sound))
    for _ in range(rng.choice((1, 1, 2, 5))):
        match rng.randrange(5):
            case 0:
                data[rng.randrange(len(data))] = rng.randrange(256)
            case 1:
                del data[rng.randrange(len(data)) :]
            case 2:
                other = rng.choice(sound)
                at = rng.randrange(len(other))
                data += other[at : at + rng.randrange(64)]
            case 3:
                at = rng.randrange(len(data))
                data[at:at] = rng.choice(
                    (
                        b"\xc0",
                        b"\xcf" + b"\xff" * 8,
                        b"\xd3\x80" + bytes(7),
                        b"\xdf\xff\xff\xff\xff",
                        b"\xc6\xff\xff\xff\xff",
                    )
                )
            case 4:
                at = rng.randrange(len(data))
                data[at : at + rng.randrange(16)] = rng.randbytes(rng.randrange(16))
        if not data:
            return b""
    return bytes(data)


def run(seconds: float, seed: int) -> None:
    rng, sound = random.Random(seed), specimens()
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as directory:
        side = Side(Path(directory))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            topic, payload = rng.choice(UP + DOWN), mutated(rng, sound)
            if rng.random() < 0.2:  # below a signature that holds
                payload = seal(rng.choice((b"heartbeat", b"order")), payload, signed, RING)
            began = time.monotonic()
            try:
                side.intake.receive(TOPICS.of(topic), payload, rng.randrange(1 << 41))
                try:
                    wire.read(payload)
                    counts["read"] += 1
                except MessageError:
                    counts["refused"] += 1
                try:
                    open_order(payload, TOPICS, {RING: PUBLIC}, lambda *_: True)
                    counts["order"] += 1
                except MessageError:
                    pass
                if counts.total() % 500 == 0:
                    side.store.commit()
            except Exception:
                print(f"seed {seed}: {topic}: {payload.hex()}")
                raise
            took = time.monotonic() - began
            assert took < MAX_CASE_S, f"{took:.1f} s: {topic}: {payload.hex()}"
            counts["cases"] += 1
    print(dict(counts), side.intake.counters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    run(options.seconds, options.seed)


if __name__ == "__main__":
    main()
