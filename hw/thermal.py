"""Thermal zones: how hot, and from where on too hot. Source: Documentation/ABI/testing/sysfs-class-thermal."""

from __future__ import annotations

import os
from typing import Final, NamedTuple

THERMAL: Final = "/sys/class/thermal"
MAX_ZONES: Final = 8
MAX_TRIPS: Final = 12
"""THERMAL_MAX_TRIPS, as it was until the limit went away."""
DEFAULT_LIMIT: Final = 95_000
"""Where a zone names no trip point: just below what most chips of routers are rated for (105 C)."""
_HOT: Final = frozenset({"hot", "critical"})
MARGIN: Final = 5_000


class Zone(NamedTuple):
    """One sensor, in thousandths of a degree Celsius."""

    name: str
    """`zone0`."""
    type: str
    """`cpu-thermal`; the driver's word."""
    millidegrees: int
    limit: int
    """A little below the lowest trip point that stops the machine, or throttles it as the last resort."""


def read_zones(directory: str = THERMAL) -> list[Zone]:
    """All sensors that answer; empty where the kernel has none."""
    found: list[Zone] = []
    try:
        names = sorted(name for name in os.listdir(directory) if name.startswith("thermal_zone"))
    except OSError:
        return found
    for name in names[:MAX_ZONES]:
        where = os.path.join(directory, name)
        try:
            heat = int(_read(where, "temp"))
        except (OSError, ValueError):  # a sensor that is asleep
            continue
        found.append(Zone(name.removeprefix("thermal_"), _type(where), heat, _limit(where)))
    return found


def read_temperatures(directory: str = THERMAL) -> dict[str, int]:
    """Thousandths of a degree, by zone: what a heartbeat carries."""
    return {zone.name: zone.millidegrees for zone in read_zones(directory)}


def _type(where: str) -> str:
    try:
        return _read(where, "type")
    except OSError:
        return ""


def _limit(where: str) -> int:
    limits = []
    for number in range(MAX_TRIPS):
        try:
            if _read(where, f"trip_point_{number}_type") in _HOT:
                limits.append(int(_read(where, f"trip_point_{number}_temp")) - MARGIN)
        except (OSError, ValueError):
            continue
    return min((limit for limit in limits if limit > 0), default=DEFAULT_LIMIT)


def _read(where: str, name: str) -> str:
    with open(os.path.join(where, name), encoding="ascii", errors="replace") as file:
        return file.read(128).strip()
