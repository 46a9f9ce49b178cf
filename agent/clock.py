"""This machine's clocks: boot id, time since boot, wall time, and whether the wall time can be believed.

Holds no judgement on old records: correcting them backwards is `storage`'s business.
"""

from __future__ import annotations

import ctypes
import time
from typing import Final, NamedTuple

from hw.clock import RELEASED_S

_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
_TIME_ERROR: Final = 5
"""adjtimex(2): "the system clock is not synchronized to a reliable server"."""


class Now(NamedTuple):
    """One reading of all clocks at once."""

    boottime_ms: int
    wall_ms: int
    synced: bool


class SystemClock:
    """The kernel's clocks. One per process. `trusted`: believe the wall clock without a time server's word."""

    def __init__(self, trusted: bool = False) -> None:
        self._trusted = trusted
        with open(_BOOT_ID, encoding="ascii") as file:
            self.boot_id: Final = file.read().strip()
        # glibc and musl both have it; None on a libc that does not: then only the release date judges.
        self._adjtimex = getattr(ctypes.CDLL(None, use_errno=True), "adjtimex", None)

    def boottime_ms(self) -> int:
        """Milliseconds since boot, sleep included; never steps."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

    def read(self) -> Now:
        """All clocks, read together."""
        wall_ms = time.time_ns() // 1_000_000
        return Now(self.boottime_ms(), wall_ms, self.is_synced(wall_ms))

    def is_synced(self, wall_ms: int) -> bool:
        """Has a time server set this clock? busybox ntpd, chrony and ntpd all tell the kernel so."""
        if wall_ms < RELEASED_S * 1000:
            return False
        if self._trusted or self._adjtimex is None:
            return True
        # struct timex is 208 octets on 64-bit Linux, 128 on 32-bit; `modes` = 0 at its head: only read.
        state = self._adjtimex(ctypes.create_string_buffer(256))
        return bool(state != _TIME_ERROR and state >= 0)
