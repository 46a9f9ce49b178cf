"""The line to this terminal: what the router writes is shown, what is typed goes there. Ctrl-] ends it.

Says what it recognises, and what to do; comes back by itself when the cable was out.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Final

import serial

from hw.laptop import ports
from hw.laptop.line import open_port
from hw.laptop.recognise import Known, recognise

END: Final = "\x1d"


class Monitor:
    """`show(text)` and `tell(text)`: of the router, and our own."""

    def __init__(self, port: str, baud: int, show: Callable[[bytes], None], tell: Callable[[str], None]) -> None:
        self._port, self._baud, self._show, self._tell = port, baud, show, tell
        self._identity = ports.identity_of(port)
        self._stream: serial.Serial | None = None
        self._recent = ""
        self._known: Known | None = None
        self.is_over = False

    def send(self, octets: bytes) -> None:
        """Keys."""
        stream = self._stream
        if stream is not None:
            try:
                stream.write(octets)
            except (OSError, serial.SerialException):
                pass  # the reader notices, and says so

    def run(self) -> None:
        """Until `is_over`."""
        said = ""
        while not self.is_over:
            if self._stream is None:
                try:
                    self._port = ports.renamed(self._port, self._identity)
                    self._stream = open_port(self._port, self._baud)  # type: ignore[assignment]  # a Serial it is
                    self._tell(f"{self._port} at {self._baud}; Ctrl-] ends")
                    said = ""
                except (OSError, serial.SerialException) as error:
                    if str(error) != said:
                        said = str(error)
                        self._tell(f"{error}; it is tried again")
                    time.sleep(0.3)
                    continue
            self._read()

    def _read(self) -> None:
        assert self._stream is not None
        try:
            data = self._stream.read(max(1, self._stream.in_waiting))
        except (OSError, TypeError, serial.SerialException) as error:
            self._tell(f"the cable is out ({error})")
            self._stream.close()
            self._stream = None
            return
        if not data:
            return
        self._show(data)
        self._recent = (self._recent + data.decode("utf-8", "replace"))[-2000:]
        known = recognise(self._recent)
        if known is not None and known is not self._known:
            self._known = known
            self._tell(f"{known.what}: {known.mend}")


def run(port: str, baud: int) -> int:
    """At this terminal. Returns the exit status."""
    from serial.tools.miniterm import Console  # pyserial's own: knows the keyboards of POSIX and of Windows

    keyboard = Console()
    keyboard.setup()
    monitor = Monitor(
        port, baud, keyboard.write_bytes, lambda text: print(f"\r\n[{text}]\r", file=sys.stderr, flush=True)
    )
    threading.Thread(target=_type, args=(keyboard, monitor), daemon=True).start()
    try:
        monitor.run()
    except KeyboardInterrupt:
        pass
    finally:
        keyboard.cleanup()
    return 0


def _type(keyboard: Console, monitor: Monitor) -> None:  # type: ignore[name-defined]  # noqa: F821
    while not monitor.is_over:
        key = keyboard.getkey()
        if key == END:
            monitor.is_over = True
        else:
            monitor.send(key.encode())
