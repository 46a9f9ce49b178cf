"""Where a policy comes from: the configuration's rules, the compiled image, the time zone; and the child that compiles.

The hooks open what is there; the agent has it compiled anew in a child process, niced, and tells the hooks when it is
done. While it compiles, and if it fails, the old image decides.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Final

from policy.config import Config
from policy.engine import Engine
from policy.errors import ImageError
from policy.rules import load_policy
from policy.zone import Zone, footer, parse_zone

_ROOT: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_ZONEINFO: Final = "/usr/share/zoneinfo"


def check(config: Config) -> None:
    """Read everything that can be wrong in the policy's part of the configuration. Raises: ConfigError."""
    load_policy(config.policy)
    zone_of(config)


def zone_of(config: Config) -> Zone:
    """The venue's time zone. Raises: ConfigError."""
    text = config.main.timezone
    path = os.path.join(_ZONEINFO, text) if text else "/etc/localtime"
    if text and (".." in text or not os.path.isfile(path)):
        return parse_zone(text, "gatehouse.main.timezone")
    try:
        with open(path, "rb") as file:
            return parse_zone(footer(file.read(1 << 16)), "gatehouse.main.timezone")
    except OSError:
        pass
    try:
        with open("/etc/TZ", encoding="ascii") as file:  # OpenWrt's way
            return parse_zone(file.read().strip(), "/etc/TZ")
    except OSError:
        return parse_zone("")


def open_engine(config: Config, before: Engine | None = None) -> Engine:
    """The engine for this configuration over the image that is there; without one, the written rules alone.

    `before` is the engine it replaces: what that knew of clients is kept, and the generation goes up.
    Raises: ConfigError, ImageError.
    """
    policy = load_policy(config.policy)
    buffers = []
    try:
        with open(policy.table, "rb") as file:
            buffers.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise ImageError(f"{policy.table}: {error}") from None
    return Engine(
        buffers,
        policy,
        zone=zone_of(config),
        generation=before.generation + 1 if before else 1,
        clients=before.clients if before else None,
    )


class Keeper:
    """Has the image compiled when it should be. `poll` once a second."""

    def __init__(self, config: Config, path: str) -> None:
        self._path = path
        self._child: subprocess.Popen[str] | None = None
        self._again = False
        self._trouble = ""
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
        self._policy = load_policy(config.policy)

    def compile_soon(self) -> None:
        """Start a compiler; if one runs, another follows it, for the lists may have changed behind its back."""
        if self._child is not None:
            self._again = True
            return
        self._child = subprocess.Popen(
            [sys.executable, "-I", _ROOT, "compile", "--config", self._path],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def poll(self) -> list[str]:
        """What was finished since the last call, in words for the record; after each the hooks must reload."""
        if self._child is None or self._child.poll() is None:
            return []
        said, _ = self._child.communicate()
        status, self._child = self._child.returncode, None
        self.report = said.strip()
        self._trouble = "" if status == 0 else f"policy: {self.report.splitlines()[-1] if self.report else status}"
        if self._again:
            self._again = False
            self.compile_soon()
        return ["compiled" if status == 0 else f"refused, the old image decides: {self._trouble}"]

    def troubles(self) -> list[str]:
        if not os.path.exists(self._policy.table):
            return [self._trouble or "policy: not compiled yet"]
        return [self._trouble] if self._trouble else []

    def describe(self) -> Mapping[str, object]:
        try:
            size, at = os.path.getsize(self._policy.table), int(os.path.getmtime(self._policy.table))
        except OSError:
            size = at = 0
        return {"image_bytes": size, "image_at_s": at, "lists": len(self._policy.lists), "compiling": self.is_busy}


def compile_now(config: Config) -> int:
    """The role `compile`: lists to image, report to standard output. Returns the exit status."""
    from agent.compiler import compile_policy

    os.nice(10)  # packets and questions go first
    policy = load_policy(config.policy)
    report = compile_policy(config.policy, policy.list_dir, policy.table)
    print(report.text())
    return 1 if report.built is None else 0
