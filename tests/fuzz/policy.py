"""Any bytes are a list, an image, a delta, a bundle or a UCI policy, or raise that one's own error, in bounded time.

`python -m tests.fuzz.policy [--seconds 60] [--seed 1]`. Mutates sound specimens of each; an image with a right checksum
over nonsense is asked for names and addresses, too. Prints what it did; a failure prints kind and octets.
"""

import argparse
import io
import random
import sys
import time
from collections.abc import Callable

from policy.bundle import BundlePart, Manifest, PublicKey, open_manifest, sign_manifest, write_manifest
from policy.compile import compile_in_memory
from policy.delta import apply_delta, make_delta
from policy.engine import Engine
from policy.errors import BundleError, ConfigError, ImageError
from policy.image import HEADER_SIZE, Image, body_checksum, pack_header
from policy.override import Overrides, dump, load
from policy.rules import load_policy
from policy.syntax import Format
from policy.uci import parse
from policy.urls import matches
from policy.zone import parse_zone

MAX_CASE_S = 2.0
TEXTS = {
    Format.AUTO: b"a.example\n0.0.0.0 b.example # x\n||c.example^$important\n10.0.0.0/8\nd.example/path\n",
    Format.ADBLOCK: b"! t\n||a.example^\n@@||b.example^$document\n##.ad\n/re/\n|https://c.example/x*y^|\n",
    Format.DNSMASQ: b"address=/a.example/b.example/0.0.0.0\nserver=/c.example/#\nbogus-nxdomain=1.2.3.4\n",
    Format.RPZ: b"$ORIGIN r.example.\n@ SOA a b ( 1 2\n3 4 5 )\nx CNAME .\n*.y CNAME rpz-passthru.\n"
    b"24.0.2.0.192.rpz-ip CNAME .\n",
    Format.V2FLY: b"full:a.example @x\ninclude:b\nregexp:^a\nkeyword:k\n",
    Format.IP: b"1.2.3.0/24\n2001:db8::/32\n1.2.3.4-1.2.3.9\n",
    Format.URLS: b"http://a.example/b\n1.2.3.4/x\n",
}
OLD, _ = compile_in_memory({"a": TEXTS[Format.AUTO], "b": [f"{n}.example" for n in range(400)]})
NEW, _ = compile_in_memory({"a": TEXTS[Format.AUTO], "b": [f"{n}.example" for n in range(9, 405)]})
DELTA = make_delta(Image(OLD), Image(NEW))
MANIFEST = write_manifest(Manifest("n", "c", 1, 2, BundlePart(3, bytes(32), "i"), (), None, ""))
SIGNATURE = sign_manifest(MANIFEST, bytes(8), b"", lambda secret, message: bytes(64))
KEYS = {bytes(8).hex(): PublicKey(bytes(8), bytes(32))}
CONFIG = b"""config policy 'main'
config list 'x'
	option file 'a'
config profile 'p'
	list block 'x'
	list safesearch 'google'
config group 'g'
	option profile 'p'
	list ip '10.0.0.0/8'
config schedule 's'
	list window 'mon-fri 08:00-12:00'
config rule 'r'
	option schedule 's'
	list match 'domain:a.example'
"""


def mutated(rnd: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rnd.choice((1, 1, 2, 8, 64))):
        at = rnd.randrange(len(out) + 1)
        match rnd.randrange(6):
            case 0:
                out[at : at + 1] = bytes([rnd.randrange(256)])
            case 1:
                out[at:at] = rnd.randbytes(rnd.randrange(9))
            case 2:
                del out[at : at + rnd.randrange(1, 40)]
            case 3:
                out[at:at] = out[at : at + rnd.randrange(1, 400)]
            case 4:
                out[at:at] = rnd.choice(
                    (b"\n", b"*", b"||", b"^", b"\0", b"\xff" * 4, b"xn--", b"(", b"\\", b"'", b"\t")
                )
            case 5:
                out[at:at] = bytes([rnd.choice(b"a0./:*^|$")]) * rnd.choice((10, 300, 20_000))
    return bytes(out)


def try_list(rnd: random.Random) -> bytes:
    format_ = rnd.choice(list(TEXTS))
    data = mutated(rnd, TEXTS[format_])
    image, report = compile_in_memory({"x": data}, formats={"x": rnd.choice((format_, Format.AUTO))})
    (item,) = report.lists
    assert item.entries == item.in_force + sum(item.refused.values()), "an entry is lost"
    Image(image)
    return data


def try_image(rnd: random.Random) -> bytes:
    data = mutated(rnd, OLD)
    if rnd.random() < 0.7 and len(data) > HEADER_SIZE:  # behind a head that fits it
        size = len(data)
        head = Image(OLD).header._replace(file_size=size, body_crc=body_checksum(data, size))
        data = pack_header(head) + data[HEADER_SIZE:]
    try:
        engine = Engine([data])
    except ImageError:
        return data
    for name in (b"1.example", b"x.399.example", b"a.example", b"q.example"):
        try:
            engine.decide(name, 0, 1.8e9)
            engine.decide_url(name, b"/path", 0, 1.8e9)
        except ImageError:
            pass  # signed and checked files only reach an engine; here it must not crash, and it says why
    try:
        engine.decide_address(bytes([10, 0, 0, 1]), 0, 1.8e9)
        engine.decide_address(bytes(16), 0, 1.8e9)
    except ImageError:
        pass
    return data


def try_delta(rnd: random.Random) -> bytes:
    data = mutated(rnd, DELTA)
    out = io.BytesIO()
    try:
        apply_delta(Image(OLD), data, out)
    except BundleError:
        return data
    assert out.getvalue() == NEW, "another image than the promised one"
    return data


def try_bundle(rnd: random.Random) -> bytes:
    data = mutated(rnd, MANIFEST)
    signature = mutated(rnd, SIGNATURE) if rnd.random() < 0.3 else SIGNATURE
    try:
        open_manifest(data, signature, KEYS, lambda key, message, proof: True)
    except BundleError:
        pass
    return data


def try_config(rnd: random.Random) -> bytes:
    data = mutated(rnd, CONFIG)
    try:
        Engine([OLD], load_policy(parse(data.decode("utf-8", "replace")))).decide(b"www.a.example", 0, 1.8e9)
    except ConfigError:
        pass
    return data


def try_small(rnd: random.Random) -> bytes:
    zone, state = mutated(rnd, b"CET-1CEST,M3.5.0,M10.5.0/3"), mutated(rnd, dump(Overrides()).encode())
    for read, data in ((parse_zone, zone), (load, state)):
        try:
            read(data.decode("utf-8", "replace"))
        except ConfigError:
            pass
    matches(mutated(rnd, b"/a*b^c|")[:1024], mutated(rnd, b"/path/a/b"))
    return zone + state


TRIES: tuple[Callable[[random.Random], bytes], ...] = (
    try_list, try_image, try_delta, try_bundle, try_config, try_small,
)  # fmt: skip


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--seed", type=int, default=1)
    chosen = options.parse_args()
    end = time.monotonic() + chosen.seconds
    done = dict.fromkeys((attempt.__name__ for attempt in TRIES), 0)
    slowest = 0.0
    seed = chosen.seed << 32
    while time.monotonic() < end:
        for attempt in TRIES:
            seed += 1
            begun = time.process_time()
            try:
                attempt(random.Random(seed))
            except Exception:
                print(f"fuzz policy: {attempt.__name__} fails with --seed of random.Random({seed})", file=sys.stderr)
                raise
            slowest = max(slowest, time.process_time() - begun)
            done[attempt.__name__] += 1
            if slowest > MAX_CASE_S:
                print(f"fuzz policy: {attempt.__name__} took {slowest:.1f} s at random.Random({seed})", file=sys.stderr)
                return 1
    print(f"fuzz policy: {done}, slowest case {slowest * 1000:.0f} ms")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
