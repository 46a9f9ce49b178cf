"""A terminal line, raw: no echo, no signals, no flow control, modem lines ignored. POSIX only; the router's end.

pyserial does the same calls, for 3 MB more in a process that lives as long as the router; the laptop uses it.
"""

from __future__ import annotations

import os
import termios
from typing import Final

from policy.errors import ConfigError, StorageError

SPEEDS: Final = (9600, 19200, 38400, 57600, 115200, 230400, 460800, 921600)


def open_line(path: str, baud: int) -> int:
    """A file descriptor, not blocking. Raises: StorageError where the line cannot be had, ConfigError for its speed."""
    try:
        # O_NONBLOCK: without it, open waits for the carrier that a cable of three wires never has.
        descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None
    try:
        make_raw(descriptor, baud)
    except (OSError, termios.error) as error:
        os.close(descriptor)
        raise StorageError(f"{path}: is no serial line: {error.args[-1]}") from None
    except ConfigError:
        os.close(descriptor)
        raise
    return descriptor


def make_raw(descriptor: int, baud: int) -> None:
    """8 data bits, no parity; CLOCAL: the line works whatever DCD and DSR say, and nobody is thrown out by them."""
    speed = getattr(termios, f"B{baud}", None)
    if speed is None:
        raise ConfigError(f"console.baud: expected one of {', '.join(map(str, SPEEDS))}, got {baud}")
    control = termios.tcgetattr(descriptor)[6]
    control[termios.VMIN], control[termios.VTIME] = 1, 0
    # IGNBRK: a break is what a laptop that is set to a lower speed looks like, and what a cable that is pulled sends.
    flags = [termios.IGNBRK, 0, termios.CS8 | termios.CREAD | termios.CLOCAL, 0, speed, speed, control]
    termios.tcsetattr(descriptor, termios.TCSANOW, flags)
