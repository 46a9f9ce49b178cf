"""A disk after a power cut. `unshare -m python -m tests.qemu.after_cut IMAGE`; JSON on standard output.

In a mount namespace of its own, so that no mount is left behind. Mounting replays the file system's journal,
opening the ring does what the agent does after a boot.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from typing import NamedTuple

from agent.clock import SystemClock
from agent.records import Records
from policy.config import load
from policy.errors import GatehouseError
from storage.filter import Filter


class Found(NamedTuple):
    """What was left."""

    trouble: str
    """Empty: file system, chain and settings are whole."""
    names: list[str]
    """The flood's look-ups, in the ring's order."""


def look(image: str) -> Found:
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    with tempfile.TemporaryDirectory() as place:
        mounted = subprocess.run(["mount", "-o", "loop,noatime", image, place], capture_output=True, text=True)
        if mounted.returncode:
            return Found(f"mount: {mounted.stderr.strip()}", [])
        try:
            return _look(f"{place}/upper")
        except (GatehouseError, OSError, ValueError) as error:
            return Found(f"{type(error).__name__}: {error}", [])
        finally:
            subprocess.run(["umount", place], check=False)


def _look(root: str) -> Found:
    with open(f"{root}/etc/config/gatehouse", encoding="utf-8") as file:
        config = load(file.read())
    ring = config.ring._replace(directory=f"{root}{config.ring.directory}")
    noted: list[str] = []
    records = Records(ring, SystemClock(trusted=True), lambda *words: noted.append(" ".join(map(str, words))))
    try:
        for _ in records.ring.verify():
            pass
        wanted = Filter(domain="flood.casino.example")
        names = [str(found.event.name) for found in records.ring.query(wanted) if found is not None]
    finally:
        records.close()
    bad = [words for words in noted if "corrupt" in words or "lost" in words]
    return Found("; ".join(bad), names)


if __name__ == "__main__":
    print(json.dumps(look(sys.argv[1])._asdict()))
