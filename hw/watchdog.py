"""The hardware watchdog: fed by the agent's loop, so that a loop that stands still ends in a fresh start.

On OpenWrt procd feeds /dev/watchdog; only one process can have it open. `option watchdog` asks procd to hand it over
(`ubus call system watchdog`), and at an orderly stop it goes back. Left empty, procd keeps it, and a hung agent is
restarted by procd, not the router.
Rule: an orderly stop never resets the router: the magic close `V` is written first.
Sources: Documentation/watchdog/watchdog-api.rst, linux/watchdog.h; procd's system.c (the ubus method).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import struct
import subprocess
from collections.abc import Callable
from typing import Final

_INT: Final = struct.Struct("i")
SETTIMEOUT: Final = 0xC0045706
"""_IOWR('W', 6, int)."""
MAGIC_CLOSE: Final = b"V"
UBUS_S: Final = 3


def tell_procd(request: dict[str, object]) -> bool:
    """`ubus call system watchdog REQUEST`. False: there is no procd here, or it refuses."""
    try:
        command = ["ubus", "call", "system", "watchdog", json.dumps(request)]
        return subprocess.run(command, check=False, capture_output=True, timeout=UBUS_S).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


class Watchdog:
    """One device. Order of calls: `open`, then `feed` at least every `timeout_s`, then `close`."""

    def __init__(
        self,
        path: str,
        timeout_s: int,
        *,
        set_timeout: Callable[[int, int, bytes], bytes] = fcntl.ioctl,
        tell: Callable[[dict[str, object]], bool] = tell_procd,
    ) -> None:
        self.path = path
        self.timeout_s = timeout_s
        self.trouble = ""
        """Why it does not run; empty: it does."""
        self._set_timeout = set_timeout
        self._tell = tell
        self._descriptor = -1
        self._is_borrowed = False

    @property
    def is_running(self) -> bool:
        return self._descriptor >= 0

    def open(self) -> None:
        """Start it. `trouble` says if that failed."""
        try:
            self._descriptor = self._open()
        except FileNotFoundError:
            self.trouble = f"{self.path}: absent"
            return
        except OSError as error:
            self.trouble = f"{self.path}: {error.strerror}"
            return
        try:
            # The driver rounds to what its hardware can do, and says to what.
            (self.timeout_s,) = _INT.unpack(self._set_timeout(self._descriptor, SETTIMEOUT, _INT.pack(self.timeout_s)))
        except OSError:  # WDIOF_SETTIMEOUT is optional
            self.trouble = f"{self.path}: its timeout cannot be set; the driver's own holds"
            return
        self.trouble = ""

    def feed(self) -> None:
        """The loop has turned."""
        if self._descriptor >= 0:
            try:
                os.write(self._descriptor, b"\0")
            except OSError as error:
                self.trouble = f"{self.path}: {error.strerror}"

    def close(self) -> None:
        """An orderly stop: the machine stays up, and procd has its watchdog again."""
        if self._descriptor >= 0:
            try:
                os.write(self._descriptor, MAGIC_CLOSE)
            except OSError:  # then it is as if we had died, which is what the watchdog is for
                pass
            os.close(self._descriptor)
            self._descriptor = -1
        if self._is_borrowed:
            self._is_borrowed = False
            self._tell({"stop": False})

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        self._tell({"magicclose": True})
        self._is_borrowed = self._tell({"stop": True})
        return os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
