"""A serial cable between two pseudo-terminals, in a thread: noise, wrong speeds, a pace, and a plug that comes out.

A pty has no speed, so the wire looks at both ends' termios and garbles when they differ, as a UART would. Both ends
have names that stay (`laptop`, `router`, symbolic links) while the pty behind them is another after each plugging in.
"""

import os
import random
import select
import termios
import threading
import time
import tty
from pathlib import Path

SPEEDS = {getattr(termios, name): int(name[1:]) for name in dir(termios) if name[:1] == "B" and name[1:].isdecimal()}


class Wire:
    """`noise`: part of the octets that are hurt. `is_paced`: octets take the time they take at that speed."""

    def __init__(self, directory: Path, *, noise: float = 0.0, is_paced: bool = False, seed: int = 1) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.laptop, self.router = directory / "laptop", directory / "router"
        self.noise, self.is_paced = noise, is_paced
        self.carried = 0
        self._random = random.Random(seed)
        self._ends: dict[int, tuple[int, bytes]] = {}
        self._free_at = [0.0, 0.0]
        self._lock = threading.Lock()
        self._is_over = False
        self._woken, self._waker = os.pipe()
        self.plug_in()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        os.write(self._waker, b".")
        self._thread.join()
        self.pull_out()
        os.close(self._woken)
        os.close(self._waker)

    def plug_in(self, *, laptop_only: bool = False) -> None:
        with self._lock:
            for number, path in enumerate((self.laptop, self.router)):
                if number in self._ends or (number == 1 and laptop_only):
                    continue
                master, slave = os.openpty()
                tty.setraw(slave)
                beside = path.with_suffix(".new")
                beside.unlink(missing_ok=True)
                beside.symlink_to(os.ttyname(slave))
                os.replace(beside, path)
                os.close(slave)
                os.set_blocking(master, False)
                self._ends[number] = (master, b"")
        os.write(self._waker, b".")

    def pull_out(self, *, laptop_only: bool = False) -> None:
        """Both ends see it, as with a USB gadget; or the laptop alone, as when its adapter is pulled."""
        with self._lock:
            for number, path in ((0, self.laptop), (1, self.router)):
                if number in self._ends and not (number == 1 and laptop_only):
                    path.unlink(missing_ok=True)
                    os.close(self._ends.pop(number)[0])

    def _carry(self) -> None:
        while not self._is_over:
            with self._lock:
                masters = {master: number for number, (master, _) in self._ends.items()}
            try:
                ready, _, _ = select.select([*masters, self._woken], [], [], 1.0)
                if self._woken in ready:
                    os.read(self._woken, 64)
                    ready.remove(self._woken)
            except (OSError, ValueError):
                continue
            idle = True
            for master in ready:
                with self._lock:
                    if self._ends.get(masters[master], (-1,))[0] == master and self._take(masters[master]):
                        idle = False
            if ready and idle:  # a slave that nobody has open is always "ready"
                time.sleep(0.03)

    def _take(self, number: int) -> bool:
        master, _ = self._ends[number]
        now = time.monotonic()
        if self.is_paced and now < self._free_at[number]:
            return False
        speeds = [self._speed(end) for end in (0, 1)]
        try:
            data = os.read(master, max(1, min(speeds) // 1000) if self.is_paced else 4096)  # some 10 ms of it
        except OSError:
            return False
        if not data or 1 - number not in self._ends:
            return bool(data)
        self.carried += len(data)
        self._free_at[number] = max(now, self._free_at[number]) + len(data) * 10 / speeds[number]
        if speeds[0] != speeds[1]:
            data = self._garbled(data, speeds)
        if self.noise:
            data = self._hurt(data)
        try:
            os.write(self._ends[1 - number][0], data)
        except OSError:  # nobody reads: as on a wire, it is gone
            pass
        return True

    def _speed(self, number: int) -> int:
        if number not in self._ends:
            return 115200
        try:
            return SPEEDS.get(termios.tcgetattr(self._ends[number][0])[5], 115200) or 115200
        except termios.error:
            return 115200

    def _garbled(self, data: bytes, speeds: list[int]) -> bytes:
        count = max(1, len(data) * min(4, max(1, speeds[1] // speeds[0])) // max(1, min(4, speeds[0] // speeds[1])))
        return self._random.randbytes(count)

    def _hurt(self, data: bytes) -> bytes:
        octets = bytearray()
        for octet in data:
            if self._random.random() >= self.noise:
                octets.append(octet)
                continue
            match self._random.randrange(3):
                case 0:
                    octets.append(octet ^ 1 << self._random.randrange(8))
                case 1:
                    octets += bytes((octet, octet))
        return bytes(octets)
