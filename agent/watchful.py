"""What happens to the machine beside what it is told: a clock that steps, another release, another configuration,
a storage that refuses. Each becomes a line of the maintenance log, once. Nearly pure: two small files.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from agent.clock import Now
from policy.digest import sha256
from storage.rows import iso

STEP_MS: Final = 1500
"""Wall clock against time since boot, from one second to the next. Slewing is 0.5 ms a second at most (adjtime(3))."""
STATE: Final = "last-start"


class Change(NamedTuple):
    """One line for the log."""

    action: str
    object: str
    result: str
    detail: str = ""
    old: str = ""
    new: str = ""


class Watch:
    """Remembers how things were. `begin` once, then `look` every second."""

    def __init__(self, state_dir: str, config_path: str, release: str) -> None:
        self._path = os.path.join(state_dir, STATE)
        self._config_path, self._release = config_path, release
        self._offset_ms: int | None = None
        self._storage = ""
        self._config = ""

    def begin(self) -> list[Change]:
        """What is another one than at the last start."""
        now = (self._release, config_hash(self._config_path))
        before = ("", "")
        try:
            with open(self._path, encoding="ascii") as file:
                release, config, *_ = (*file.read(1024).split("\n"), "", "")
                before = (release, config)
        except (OSError, UnicodeDecodeError):
            pass
        self._config = now[1]
        found = []
        if before[0] != now[0]:
            action = "upgrade" if before[0] else "install"
            found.append(Change(action, "release", "ok", old=before[0], new=now[0]))
        if before[1] and before[1] != now[1]:
            found.append(Change("config", "configuration", "changed while stopped", old=before[1], new=now[1]))
        if before != now:
            self._write()
        return found

    def take_config(self, new: str) -> tuple[str, str]:
        """Another configuration is in force: its hash and the one before it."""
        old, self._config = self._config, new
        if old != new:
            self._write()
        return old, new

    def look(self, now: Now, storage_trouble: str) -> list[Change]:
        """Has the clock stepped, has the storage begun or ceased to refuse?"""
        found = []
        offset_ms = now.wall_ms - now.boottime_ms
        if self._offset_ms is not None and abs(offset_ms - self._offset_ms) >= STEP_MS:
            step_s = (offset_ms - self._offset_ms) / 1000
            old, new = iso(now.boottime_ms + self._offset_ms), iso(now.wall_ms)
            found.append(Change("clock", "wall clock", f"stepped by {step_s:+.1f} s", old=old, new=new))
        self._offset_ms = offset_ms
        if bool(storage_trouble) != bool(self._storage):
            result = storage_trouble or "works again"
            found.append(Change("storage", "ring", result, old=self._storage, new=storage_trouble))
        self._storage = storage_trouble
        return found

    def _write(self) -> None:
        unfinished = f"{self._path}.tmp"
        try:
            with open(unfinished, "w", encoding="ascii") as file:
                file.write(f"{self._release}\n{self._config}\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, self._path)
        except OSError:  # then the next start tells it again
            pass


def config_hash(path: str) -> str:
    """The first 16 hexadecimal digits of the file's SHA-256; empty: it cannot be read."""
    try:
        with open(path, "rb") as file:
            return sha256(file.read()).hexdigest()[:16]
    except OSError:
        return ""
