"""What the box shows and feeds while the agent lives: status LED and hardware watchdog. A thin shell over `hw`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hw.led import State, find_led
from hw.thermal import read_temperatures
from hw.watchdog import Watchdog
from hw.wear import Mmc, Ubi, read_mmc, read_ubi
from policy.config import HardwareConfig

AGAIN: Final = 12
"""Every so many times it is written although nothing changed: the system's own boot script sets the same LED, late."""


class Outward:
    """Order of calls: `begin`, then `feed` once a second and `show` every few seconds, then `end`."""

    def __init__(self, config: HardwareConfig, root: str = "/") -> None:
        self._root = root
        self._shown = 0
        self._led = find_led(config.led, root)
        self._watchdog = Watchdog(config.watchdog, config.watchdog_s) if config.watchdog else None

    def begin(self) -> None:
        """The agent is there; the hooks are not yet."""
        self.show(State.BOOTING)
        if self._watchdog is not None:
            self._watchdog.open()

    def feed(self) -> None:
        """The loop has turned."""
        if self._watchdog is not None:
            self._watchdog.feed()

    @property
    def has_led(self) -> bool:
        """Is there one to show anything on?"""
        return self._led is not None

    def show(self, state: State) -> None:
        """On the LED, if there is one."""
        if self._led is not None:
            self._shown += 1
            self._led.show(state, again=self._shown % AGAIN == 0)

    def end(self) -> None:
        """An orderly stop: nobody protects the venue now."""
        self.show(State.DEGRADED)
        if self._watchdog is not None:
            self._watchdog.close()

    def troubles(self) -> list[str]:
        """For the status: what the configuration asks for and the box does not do. A worn flash is one, too."""
        found = [trouble for device in _flash(self._root) if (trouble := device.trouble())]
        if self._watchdog is not None and not self._watchdog.is_running:
            found.append(f"watchdog: {self._watchdog.trouble}")
        return found

    def describe(self) -> Mapping[str, object]:
        """For the status; what is not there is called absent."""
        watchdog = self._watchdog
        fed = "not ours" if watchdog is None else watchdog.trouble or f"fed, {watchdog.timeout_s} s"
        return {
            "led": self._led.name if self._led is not None else "absent",
            "watchdog": fed if watchdog is None or watchdog.trouble == "" else watchdog.trouble,
            "flash": "; ".join(device.text() for device in _flash(self._root)) or "absent",
            "heat": read_temperatures() or "absent",
        }


def _flash(root: str) -> list[Ubi | Mmc]:
    return [*read_ubi(root), *read_mmc(root)]
