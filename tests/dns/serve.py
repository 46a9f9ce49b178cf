"""A DNS worker as a process of its own, for tests: settings, policy and place of the records come as JSON.

`python serve.py FILE`: the file may be rewritten and SIGHUP sent, as a reload. Records go to `events`, one JSON line
each, as they leave the worker.
"""

import itertools
import json
import sys
import time
from pathlib import Path

import msgpack

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "dns")]

from policy_of_test import DictDecider  # noqa: E402

from dns.hot import arena_bytes  # noqa: E402
from dns.kernel import KernelAnswers  # noqa: E402
from dns.worker import run  # noqa: E402
from policy.config import DnsConfig  # noqa: E402
from policy.event import Dns  # noqa: E402
from policy.frame import Client, Reload, Stop  # noqa: E402


class FileLink:
    """Records to a file; commands from another, one JSON line each."""

    def __init__(self, events, commands):
        self.counters = dict
        self._events = open(events, "a", buffering=1)  # noqa: SIM115
        self._commands = Path(commands)
        self._read = 0

    def put(self, event):
        row = {k: v.hex() if isinstance(v, bytes) else v for k, v in event._asdict().items()}
        if "answers" in row:
            row["answers"] = [a.hex() for a in event.answers]
        self._events.write(json.dumps({"kind": type(event).__name__, **row}) + "\n")

    def put_folded(self, fold, *, are_blocks=False):
        at_ms = [at for at, number in fold.times for _ in range(number)]
        for which, at, who in zip(fold.which, at_ms, fold.who, strict=True):
            template = Dns(*msgpack.unpackb(fold.templates[which], use_list=False)[1:])
            self.put(template._replace(at_ms=at, client=fold.clients[who]))

    def pump(self, now_s):
        if not self._commands.exists():
            return []
        lines = self._commands.read_text().splitlines()
        new, self._read = lines[self._read :], len(lines)
        kinds = {
            "reload": Reload,
            "stop": Stop,
            "client": lambda a, m: Client(bytes.fromhex(a), bytes.fromhex(m), "", "", ""),
        }
        return [kinds[words[0]](*words[1:]) for words in map(str.split, new)]

    has_room = True

    def next_timer(self):
        return time.monotonic() + 0.05

    def close(self, timeout_s=2.0):
        self._events.write(json.dumps({"kind": "Closed", "counters": dict(self.counters())}) + "\n")
        self._events.close()


def load(path):
    spec = json.loads(Path(path).read_text())
    deep = lambda v: tuple(map(deep, v)) if isinstance(v, list) else v  # noqa: E731
    return DnsConfig(**{key: deep(value) for key, value in spec["settings"].items()}), spec


if __name__ == "__main__":
    path = sys.argv[1]
    settings, spec = load(path)
    generations = itertools.count(1)

    def decider():
        return DictDecider(load(path)[1]["policy"], next(generations))

    kernel = None
    if settings.kernel:
        kernel = KernelAnswers(settings.port, 0, arena_bytes(settings.hot_bytes), ("lo",))
    run(settings, decider, FileLink(spec["events"], spec["events"] + ".commands"), lan=tuple(spec.get("lan", ())),
        settings_source=lambda: load(path)[0], kernel=kernel)  # fmt: skip
