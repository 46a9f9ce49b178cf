"""The status LED: what it shows, and how /sys/class/leds is told. Absent LEDs are no fault.

Sources: Documentation/ABI/testing/sysfs-class-led, sysfs-class-led-trigger-timer (the files `delay_on` and `delay_off`
are there only after `timer` was written to `trigger`); OpenWrt's /lib/functions/leds.sh for which LED is meant.
Rule: the kernel blinks, not we: a state is written when it changes, and now and then in case somebody else wrote.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import Enum
from typing import Final

LEDS: Final = "/sys/class/leds"
DEVICE_TREE: Final = "/proc/device-tree"
ALIASES: Final = ("led-running", "led-boot", "led-failsafe", "led-upgrade")
"""OpenWrt's aliases in the device tree: the same LED on nearly every board, with a name for each use."""
FUNCTIONS: Final = ("status", "sys", "system", "power")
"""Last parts of `colour:function` names, where no alias says which."""


class State(Enum):
    """What a person should be able to see from across the room."""

    BOOTING = "booting"
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    NOT_PROVISIONED = "not provisioned"


BLINK: Final[Mapping[State, tuple[int, int]]] = {
    State.BOOTING: (100, 100),
    State.HEALTHY: (0, 0),
    State.DEGRADED: (1000, 1000),
    State.NOT_PROVISIONED: (100, 1900),
}
"""Milliseconds on and off; (0, 0): steadily on."""


class Led:
    """One LED. `show` never raises: a router without its LED goes on."""

    def __init__(self, name: str, root: str = "/") -> None:
        self.name = name
        self._directory = os.path.join(root, LEDS.lstrip("/"), name)
        self._shown: State | None = None
        self.trouble = ""
        """Why it could not be set; empty: it was."""

    def show(self, state: State, *, again: bool = False) -> None:
        """Let it be seen from now on. `again`: also if it should be shown already, for somebody else may have come."""
        if state is self._shown and not again:
            return
        on_ms, off_ms = BLINK[state]
        try:
            if off_ms:
                self._write("trigger", "timer")
                self._write("delay_on", str(on_ms))
                self._write("delay_off", str(off_ms))
            else:
                self._write("trigger", "none")
                self._write("brightness", self._read("max_brightness") or "1")
        except OSError as error:
            self.trouble = f"{error.filename}: {error.strerror}"
            return
        self.trouble = ""
        self._shown = state

    def _write(self, name: str, text: str) -> None:
        # No O_CREAT: a file that sysfs does not have must be an error, not a new file in a test's tree.
        descriptor = os.open(os.path.join(self._directory, name), os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)

    def _read(self, name: str) -> str:
        with open(os.path.join(self._directory, name), encoding="ascii", errors="replace") as file:
            return file.read(64).strip()


def find_led(wanted: str = "auto", root: str = "/") -> Led | None:
    """The LED that `option led` means; None: there is none, or it is to be left alone."""
    names = _names(root)
    if wanted == "none" or not names:
        return None
    if wanted != "auto":
        return Led(wanted, root) if wanted in names else None
    for alias in ALIASES:
        name = _name_of(alias, root)
        if name in names:
            return Led(name, root)
    for function in FUNCTIONS:
        for name in names:
            # `green:status`, `board:green:status`, and with an index `green:status-1` (leds-class.rst).
            if name.rpartition(":")[2].partition("-")[0] == function:
                return Led(name, root)
    return None


def _names(root: str) -> list[str]:
    try:
        return sorted(os.listdir(os.path.join(root, LEDS.lstrip("/"))))
    except OSError:
        return []


def _name_of(alias: str, root: str) -> str:
    """As get_dt_led() in leds.sh: the alias' node, then `label`, or `colour:function` made of its properties."""
    node = _text(os.path.join(root, DEVICE_TREE.lstrip("/"), "aliases", alias))
    if not node.startswith("/") or ".." in node:
        return ""
    where = os.path.join(root, DEVICE_TREE.lstrip("/"), node.lstrip("/"))
    label = _text(os.path.join(where, "label"))
    if label:
        return label
    function = _text(os.path.join(where, "function"))
    try:
        with open(os.path.join(where, "color"), "rb") as file:
            colour = int.from_bytes(file.read(4), "big")
    except OSError:
        return ""
    return f"{_COLOURS[colour]}:{function}" if colour < len(_COLOURS) and function else ""


_COLOURS: Final = ("white", "red", "green", "blue", "amber", "violet", "yellow", "ir", "multicolor", "rgb")
"""include/dt-bindings/leds/common.h: LED_COLOR_ID_*, in order."""


def _text(path: str) -> str:
    """A string property: it ends in a NUL."""
    try:
        with open(path, "rb") as file:
            return file.read(256).rstrip(b"\0").decode("ascii", "replace")
    except OSError:
        return ""
