"""Serial ports of this computer, whatever it calls them: /dev/ttyUSB0, /dev/cu.usbserial-110, COM3."""

from __future__ import annotations

import time
from typing import NamedTuple

from serial.tools import list_ports

from hw.laptop.trouble import TroubleError


class Port(NamedTuple):
    """One of them."""

    name: str
    what: str
    identity: tuple[object, ...]
    """Of the adapter, by which it is found again after it was pulled out; empty: it has none."""


def find_ports() -> list[Port]:
    """Those of USB first: the installer's adapter is one, the laptop's own modem is not."""
    found = []
    for port in list_ports.comports():
        identity = (port.vid, port.pid, port.serial_number, port.location) if port.vid is not None else ()
        found.append(Port(port.device, port.description or "", identity))
    return sorted(found, key=lambda port: (not port.identity, port.name))


def choose_port(name: str, wait_s: float = 0.0) -> str:
    """The one that was named, or the only one of USB there is. Raises: TroubleError."""
    if name:
        return name
    deadline = time.monotonic() + wait_s
    while True:
        usb = [port for port in find_ports() if port.identity]
        if len(usb) == 1:
            return usb[0].name
        if usb:
            names = ", ".join(f"{port.name} ({port.what})" for port in usb)
            raise TroubleError(f"several serial ports: {names}", "name one with --port")
        if time.monotonic() >= deadline:
            raise TroubleError("no serial port is there", "plug in the USB adapter; on Linux, be in the group dialout")
        time.sleep(0.3)


def renamed(name: str, identity: tuple[object, ...]) -> str:
    """How an adapter is called now: after a pull, ttyUSB0 may be ttyUSB1."""
    if identity:
        for port in find_ports():
            if port.identity == identity:
                return port.name
    return name


def identity_of(name: str) -> tuple[object, ...]:
    """Of the adapter at a port."""
    return next((port.identity for port in find_ports() if port.name == name), ())
