"""The policy's sources joined: configuration, bundles, lists, overrides; and the child process that compiles.

The hooks open what is there (`agent.decider`); the agent has it fetched and compiled in a child process, niced, and
tells the hooks when it is done. While that runs, and if it fails, the old image decides.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from typing import Final

from agent import decider, listed
from agent.bundles import apply_bundle
from agent.compiler import compile_policy
from agent.decider import sections
from nfq.firewall import Listed
from policy.config import Config
from policy.digest import sha256
from policy.errors import ConfigError
from policy.event import Maintenance
from policy.override import Override
from policy.rules import Policy, load_policy

REFRESH_S: Final = 3600.0
"""Between two looks at which downloads are due; each list says how often it wants to be fetched."""
MAX_REPORT: Final = 1 << 20
"""Characters of a compiler's report that are read: sixty lists with all their examples have 190,000."""
_ROOT: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_RECORD: Final = "record "
"""The compiler's child prints what must go on the maintenance log behind this word, one JSON array a line."""
_HASH: Final = "image sha256 "
"""Before the first 16 digits of the hash of what it has made."""


def check(config: Config) -> None:
    """Read everything that can be wrong in the policy's part of the configuration. Raises: ConfigError."""
    load_policy(sections(config))
    notes: list[str] = []
    decider.read_zone(config.main.timezone, notes)
    if notes:
        raise ConfigError(f"gatehouse.main.{notes[0]}")


class Keeper:
    """Has lists fetched and the image compiled when they should be. `poll` once a second."""

    def __init__(self, config: Config, path: str) -> None:
        self._path = path
        self._child: subprocess.Popen[bytes] | None = None
        self._again = False
        self._is_first = False
        """Nothing was there yet: it is being made, and until its compiler has ended no hook was told of it."""
        self._due_s = 0.0
        self._trouble = ""
        self._actor = "agent"
        self._hash = ""
        """Of the image in force, as the last compiler told it."""
        self.report = ""
        """What the last compiler said."""
        self.change(config)

    @property
    def is_busy(self) -> bool:
        """A compiler runs."""
        return self._child is not None

    def change(self, config: Config) -> None:
        """Take a new configuration. Raises: ConfigError, and then nothing has changed."""
        check(config)
        self._policy: Policy = load_policy(sections(config))

    def compile_soon(self, actor: str = "agent") -> None:
        """Start a compiler; if one runs, another follows it, for the lists may have changed behind its back.

        `actor`: who wants it, for the record.
        """
        self._actor = actor
        self._due_s = time.monotonic() + REFRESH_S
        if self._child is not None:
            self._again = True
            return
        self._is_first |= not os.path.exists(self._policy.table)
        # A file, not a pipe: a report on large lists is larger than a pipe holds, and nobody reads while it runs.
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  # `poll` reads and closes it
        self._child = subprocess.Popen(
            [sys.executable, "-I", _ROOT, "compile", "--config", self._path],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.STDOUT,
        )

    def poll(self, at_ms: int) -> list[Maintenance]:
        """What is to go on record since the last call; after any of it the hooks must reload."""
        if self._child is None:
            if time.monotonic() > self._due_s:
                self.compile_soon()
            return []
        if self._child.poll() is None:
            return []
        status, self._child, self._is_first = self._child.returncode, None, False
        self._said.seek(0)
        lines = self._said.read(MAX_REPORT).splitlines()
        self._said.close()
        records = [Maintenance(*json.loads(line.removeprefix(_RECORD))) for line in lines if line.startswith(_RECORD)]
        told = [line for line in lines if not line.startswith(_RECORD)]
        self.report = "\n".join(line for line in told if not line.startswith(_HASH))
        self._trouble = "" if status == 0 else f"policy: {told[-1] if told else f'compiler ended with {status}'}"
        result = "ok" if status == 0 else f"the old image decides: {self._trouble}"
        old, self._hash = self._hash, next((line[len(_HASH) :] for line in told if line.startswith(_HASH)), self._hash)
        records.append(Maintenance(at_ms, self._actor, "policy", "image", old, self._hash, result))
        if self._again:
            self._again = False
            self.compile_soon()
        return records

    def networks(self, overrides: Iterable[Override], now_s: float) -> list[Listed]:
        """Every network that is blocked for somebody. Raises: ConfigError."""
        image = decider.open_image(self._policy.table, [])
        return listed.networks([image] if image is not None else [], self._policy, overrides, now_s)

    def troubles(self) -> list[str]:
        """What is wrong now, in words for a person."""
        if self._is_first or not os.path.exists(self._policy.table):
            return [self._trouble or "policy: not compiled yet"]
        return [self._trouble] if self._trouble else []

    def describe(self) -> Mapping[str, object]:
        """For status."""
        try:
            size, at = os.path.getsize(self._policy.table), int(os.path.getmtime(self._policy.table))
        except OSError:
            size = at = 0
        return {"image_bytes": size, "image_at_s": at, "lists": len(self._policy.lists), "compiling": self.is_busy}


def compile_now(config: Config) -> int:
    """The role `compile`: fetch what is due, lists to image, report to standard output. Returns the exit status."""
    os.nice(10)  # packets and questions go first
    policy = load_policy(sections(config))
    at_ms, now_s = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000, time.time()
    records: list[Maintenance] = []
    if any(item.url for item in policy.lists) or any(bundle.url for bundle in policy.bundles):
        from agent import lists  # TLS is 10 MB, and most venues of ours have lists on a stick

        outcomes = lists.refresh(policy, policy.list_dir, now_s=now_s, fetch=lists.http_get)
        records += [outcome.record(at_ms) for outcome in outcomes if outcome.is_worth_recording]
        for bundle in policy.bundles:
            found = apply_bundle(
                bundle,
                lists.url_source(bundle.url),
                config.main.state_dir,
                os.path.join(config.main.state_dir, "keys"),
                now_s=int(now_s),
                at_ms=at_ms,
            )
            if found.record.result != "same":
                records.append(found.record)
    report = compile_policy(sections(config), policy.list_dir, policy.table)
    for record in records:
        print(_RECORD + json.dumps(record))
    print(_HASH + image_hash(policy.table))
    print(report.text())
    failed = [f"{item.name}: {item.failure}" for item in report.lists if item.failure]
    if failed:
        print("; ".join(failed))
    return 1 if failed or report.built is None else 0


def image_hash(path: str) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256; empty: there is none."""
    digest = sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(1 << 18):
                digest.update(piece)
    except OSError:
        return ""
    return digest.hexdigest()[:16]
