"""The battery clock, if there is one, and whether a wall clock can be right at all.

Source: Documentation/ABI/testing/sysfs-class-rtc (`since_epoch`, `hctosys`).
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

RTC: Final = "/sys/class/rtc"
RELEASED_S: Final = 1_790_000_000
"""September 2026, before this release: a wall clock that shows less has certainly not been set."""


class Rtc(NamedTuple):
    """One battery clock."""

    name: str
    seconds: int
    """Since 1970, by that clock."""


def read_rtc(root: str = "/") -> Rtc | None:
    """The first one that answers; None: there is none, as in most routers."""
    top = os.path.join(root, RTC.lstrip("/"))
    try:
        names = sorted(os.listdir(top))
    except OSError:
        return None
    for name in names:
        try:
            with open(os.path.join(top, name, "since_epoch"), encoding="ascii") as file:
                return Rtc(name, int(file.read(32)))
        except (OSError, ValueError):  # its battery is empty: the driver reads EINVAL
            continue
    return None
