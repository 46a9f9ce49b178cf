"""Any frame, any DNS message, any certificate, any tree of /sys is read or refused, in bounded time, and nothing else.

`python -m tests.fuzz.doctor [--seconds 60] [--seed 1]`. Mutates sound specimens; a failure prints the octets.
"""

import argparse
import collections
import datetime
import random
import tempfile
import time
from pathlib import Path

from hw.clock import read_rtc
from hw.doctor import wires
from hw.doctor.certificate import read_validity
from hw.doctor.finding import from_row
from hw.led import State, find_led
from hw.thermal import read_zones
from hw.wear import read_mmc, read_ubi
from nfq.packet import RST
from policy import canary
from policy.errors import ConfigError
from tests.hw.test_hw_doctor import certificate
from tests.hw.trees import FILOGIC, ROCKCHIP, lay

MAX_CASE_S = 1.0


def specimens() -> list[bytes]:
    found = []
    for me, server in ((canary.CLIENT4, canary.SERVER4), (canary.CLIENT6, canary.SERVER6)):
        sent = wires.udp(me, server, 1234, 443, b"x" * 40)
        icmp = bytes((3 if len(me) == 4 else 1, 3)) + bytes(6) + sent
        packets = (
            wires.tcp(server, me, 443, 1234, RST, 1, b"y"),
            wires.udp(server, me, 53, 1234, wires.dns_question(canary.NAME, 7)),
            wires.ip_packet(server, me, wires.ICMP if len(me) == 4 else wires.ICMP6, icmp),
            sent,
        )
        found += [wires.frame(bytes(6), bytes(6), packet) for packet in packets]
    now = datetime.datetime.now(datetime.UTC)
    return [*found, certificate(now, now + datetime.timedelta(days=9)), wires.dns_question(canary.NAME, 1)]


def mutated(rng: random.Random, sound: list[bytes]) -> bytes:
    data = bytearray(rng.choice(sound))
    for _ in range(rng.choice((1, 1, 2, 6))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0:
                data[at : at + 1] = bytes((rng.randrange(256),))
            case 1:
                del data[at:]
            case 2:
                data[at:at] = rng.randbytes(rng.randrange(20))
            case 3:
                data[at : at + rng.randrange(9)] = b"\xff" * rng.randrange(9)
    return bytes(data)


def read_all(data: bytes, counts: collections.Counter[str]) -> None:
    for client in (canary.CLIENT4, canary.CLIENT6):
        for outgoing in (False, True):
            counts["frames read"] += wires.read_answer(data, client, outgoing=outgoing) is not None
    counts["answers read"] += wires.read_dns(data) is not None
    try:
        read_validity(data)
        counts["certificates read"] += 1
    except ConfigError:
        counts["certificates refused"] += 1
    assert from_row({"name": data}) is None


def read_tree(rng: random.Random, root: Path) -> None:
    """One file of a board's tree holds something else."""
    tree = rng.choice((FILOGIC, ROCKCHIP))
    name = rng.choice(sorted(tree))
    path = lay(root, {name: mutated(rng, [b"0x01 0x02\n", b"42\n", b"/leds/led-0\0", b"-9999999999999999999\n"])})
    where = str(path)
    for device in (*read_ubi(where), *read_mmc(where)):
        device.trouble(), device.text()
    read_zones(f"{where}/sys/class/thermal")
    read_rtc(where)
    led = find_led("auto", where)
    if led is not None:
        led.show(rng.choice(list(State)))
    lay(root, {name: tree[name]})


def run(seconds: float, seed: int) -> None:
    rng, sound = random.Random(seed), specimens()
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as directory:
        root = lay(lay(Path(directory), FILOGIC), ROCKCHIP)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            data, began = mutated(rng, sound), time.monotonic()
            try:
                read_all(data, counts)
            except Exception:
                print(f"seed {seed}: {data.hex()}")
                raise
            if not counts["cases"] % 50:
                read_tree(rng, root)
                counts["trees"] += 1
            took = time.monotonic() - began
            assert took < MAX_CASE_S, f"{took:.1f} s: {data.hex()}"
            counts["cases"] += 1
    print(dict(counts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    run(options.seconds, options.seed)


if __name__ == "__main__":
    main()
