"""What fits on the flash: the capacity contract in words, for the installer before he promises anything."""

from __future__ import annotations

import re
from typing import Final

from agent.records import memory_bytes
from policy.errors import ConfigError
from storage.layout import Level
from storage.retention import plan

_SIZE: Final = re.compile(r"(\d+)([kMG]?)")
_UNITS: Final = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_size(option: str, text: str) -> int:
    """Octets of `128M`, `64k`, `1G`. Raises: ConfigError."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ConfigError(f"{option}: expected a size such as 128M, got {text!r}")
    return int(found[1]) * _UNITS[found[2]]


def judge(clients: int, days: int, flash_bytes: int, events_a_client: int, detail: str) -> tuple[bool, str]:
    """Does it fit at this level of detail? And the answer in words. Raises: ConfigError."""
    for option, value in (("--clients", clients), ("--days", days), ("--events", events_a_client)):
        if value < 1:
            raise ConfigError(f"{option}: expected at least 1, got {value}")
    level = Level[detail.upper()]
    found = plan(clients, flash_bytes, events_a_client=events_a_client, memory_bytes=memory_bytes())
    fits = found.days[level] >= days
    lines = [
        f"{clients} clients, {events_a_client} records a day each: {found.events_a_day:,} records a day",
        f"{flash_bytes / (1 << 20):.0f} MiB of flash: {found.space / (1 << 20):.0f} MiB for what is sealed",
    ]
    for each, many in found.days.items():
        mark = "  <- asked for" if each == level else ""
        lines.append(f"  kept by {each.name.lower().replace('_', ' '):14} {many:6} days{mark}")
    if fits:
        lines.append(f"fits: {days} days")
    else:
        needed = _flash_for(clients, days, events_a_client, level)
        lines.append(f"does not fit: {days} days asked for, {found.days[level]} fit; {days} days need {needed} MiB")
    return fits, "\n".join(lines)


def _flash_for(clients: int, days: int, events_a_client: int, level: Level) -> int:
    """Mebibytes that would do."""
    mebibytes = 4
    while True:
        found = plan(clients, mebibytes << 20, events_a_client=events_a_client, memory_bytes=memory_bytes())
        if found.days[level] >= days:
            return mebibytes
        mebibytes += max(1, mebibytes // 32)
