"""Any octets on the serial line leave a console that works, a configuration that loads, and nobody logged in by them.

`python -m tests.fuzz.hw [--cases 100000] [--seed 1]`. Throws noise, keys, right and broken frames, at one console that
lives through all cases (a real router's files, in a directory of its own), in linear time. A failure prints the octets.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from hw.edit import Editor
from hw.frame import Decoder, Frame, encode
from hw.laptop.recognise import looks_right, recognise
from hw.message import pack
from hw.words import WORDS, complete
from policy.config import load
from policy.errors import GatehouseError
from tests.hw.simulated import Simulated, write_config

PASSWORD = b"sesame-8899"
KEYS = (
    b"\r",
    b"\n",
    b"\t",
    b"\x03",
    b"\x04",
    b"\x7f",
    b"\x1b[A",
    b"\x1b[D",
    b"\x1b[3~",
    b"\x1e",
    b"\x7d",
    b"\x1b",
    b" ",
)
TEXTS = (
    "venue",
    "场所",
    "wan",
    "static",
    "10.0.0.2/24",
    "10.0.0.1",
    "option",
    "dns.rate",
    "500",
    "11010510010001",
    "“",
    "'",
)
DO = (
    "hello",
    "more",
    "login",
    "password",
    "facts",
    "status",
    "put",
    "p",
    "set",
    "check",
    "show",
    "file",
    "call",
    "bundle",
    "policy",
)
VALUES = ("", "x", 0, -1, 1 << 70, None, [], [["venue", "x"]], {"a": "b"}, True, "00" * 16, "00" * 32, 1e308)
MAX_CASE_S = 1.0


class Line:
    """The console, its jobs done at once."""

    def __init__(self, directory: Path) -> None:
        write_config(directory)
        self.console = Simulated(directory, directory / "nowhere").console
        self.now = 0.0
        self.receive(b"\r" + PASSWORD + b"\r" + PASSWORD + b"\rexit\r")

    def receive(self, data: bytes) -> bytes:
        self.console.receive(data, self.now)
        while (job := self.console.take_job()) is not None:
            result: object
            try:
                result = job.run()
            except GatehouseError as error:
                result = error
            self.console.finish(job, result, self.now)
        return self.console.take_output()


def some_keys(rng: random.Random) -> bytes:
    words = [rng.choice((rng.choice(WORDS).name, rng.choice(WORDS).chinese, *TEXTS)) for _ in range(rng.randrange(4))]
    # Not what costs a scrypt or an fsync each time: those have tests of their own.
    line = " ".join(
        word for word in words if word not in ("commit", "提交", "password", "密码", "exit", "退出")
    ).encode()
    return line + b"".join(rng.choice(KEYS) for _ in range(rng.randrange(4)))


def some_frame(rng: random.Random) -> bytes:
    head = {"do": rng.choice(DO)}
    for name in rng.sample(("sum", "size", "at", "m", "edits", "proof", "salt", "stored", "files", "kind", "words"), 3):
        head[name] = rng.choice(VALUES)  # type: ignore[assignment]
    if head["do"] in ("password", "login"):
        head.pop("stored", None)
        head.pop("proof", None)
    frame = encode(
        Frame(rng.choice((1, 1, 1, 2, 200)), rng.choice((5, 6)), rng.randrange(6), pack(head, rng.randbytes(9)))
    )
    if rng.randrange(2):
        at = rng.randrange(len(frame))
        frame = frame[:at] + rng.randbytes(rng.randrange(3)) + frame[at + rng.randrange(3) :]
    return frame


def try_line(rng: random.Random, line: Line) -> None:
    data = b"".join(
        rng.choice((some_keys, some_frame, lambda r: r.randbytes(r.randrange(40))))(rng)
        for _ in range(rng.randrange(1, 4))
    )
    try:
        line.receive(data)
        line.now += rng.choice((0.0, 0.1, 2.0, 30.0, 400.0))
        line.console.handle_timer(line.now)
        line.receive(b"")
        assert not line.console.is_logged_in
    except Exception:
        print(f"fuzz hw: octets {data!r}", file=sys.stderr)
        raise


def try_parsers(rng: random.Random) -> None:
    data = b"".join(rng.choice((some_keys, some_frame, lambda r: r.randbytes(r.randrange(200))))(rng) for _ in range(4))
    try:
        decoder, editor = Decoder(), Editor(lambda before: complete(before, "zh"))
        frames, plain = decoder.receive(data)
        assert len(plain) + sum(len(frame.payload) for frame in frames) <= len(data)
        editor.start("> ")
        while plain:
            typed, plain = editor.receive(plain)
            if typed is not None:
                editor.start("> ")
        recognise(data.decode("utf-8", "replace"))
        looks_right(data)
    except Exception:
        print(f"fuzz hw: octets {data!r}", file=sys.stderr)
        raise


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng, slowest = random.Random(options.seed), 0.0
    with tempfile.TemporaryDirectory() as directory:
        line = Line(Path(directory))
        for number in range(options.cases):
            begun = time.process_time()
            try_parsers(rng) if number % 10 else try_line(rng, line)
            slowest = max(slowest, time.process_time() - begun)
        load(line.console.orders.staging.text("gatehouse"))
        # The files that noise has sent are bounded, and the password still lets its owner in.
        assert len(list(Path(directory, "state/console/files").glob("*"))) <= 13
        line.now += 4000
        line.console.handle_timer(line.now)
        line.receive(b"\x03")
        line.now += 100
        line.console.handle_timer(line.now)
        line.receive(b"\r")
        line.receive(PASSWORD + b"\r")
        assert line.console.is_logged_in
    print(f"fuzz hw: {options.cases} cases, slowest {slowest * 1000:.1f} ms")
    return int(slowest > MAX_CASE_S)


if __name__ == "__main__":
    raise SystemExit(main())
