"""The console's loop over one line: reads, writes, does jobs in a thread, opens the line again when it went away."""

from __future__ import annotations

import errno
import os
import select
import sys
import threading
import time

from hw import tty
from hw.console import Console
from hw.machine import Job
from policy.errors import GatehouseError, StorageError

REOPEN_S = 0.2
"""Between two tries for a line that is away: a USB gadget without a host."""
STEP_S = 60.0


class Loop:
    """One console on one line. `path` empty: `descriptor` is the line, and its end is ours."""

    def __init__(self, console: Console, path: str, baud: int, descriptor: int = -1) -> None:
        self._console, self._path, self._baud = console, path, baud
        self._line = descriptor
        self._waker, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._done: list[tuple[Job, object]] = []
        self._out = bytearray()
        self._is_stopped = False
        self.leaves = False
        """Ends when whoever was in has left: on a line that the login console gets back."""
        self._said = ""

    def stop(self) -> None:
        """From another thread or a signal."""
        self._is_stopped = True
        os.write(self._woken, b".")

    def run(self) -> None:
        """Until `stop`, or the end of a line that is not ours to open again."""
        try:
            while not self._is_stopped and self._have_line():
                self._step()
                if self.leaves and self._console.has_left and not self._out:
                    return
        finally:
            if self._line >= 0 and self._path:
                os.close(self._line)
            os.close(self._waker)
            os.close(self._woken)

    def _have_line(self) -> bool:
        while self._line < 0:
            if not self._path:
                return False
            try:
                self._line = tty.open_line(self._path, self._baud)
                self._said = ""
            except StorageError as error:
                if str(error) != self._said:
                    self._said = str(error)
                    print(f"console: {error}; it is tried again", file=sys.stderr, flush=True)
                self._wait(REOPEN_S)
                if self._is_stopped:
                    return False
        return True

    def _wait(self, most_s: float) -> None:
        """Without a line, time goes on: a commit that nobody can confirm any more is taken back."""
        console = self._console
        due = console.next_timer(time.monotonic())
        wait = most_s if due is None else min(most_s, due - time.monotonic())
        select.select([self._waker], [], [], max(0.0, wait))
        self._take_done()
        console.handle_timer(time.monotonic())
        self._begin_job()
        console.take_output()

    def _step(self) -> None:
        console = self._console
        self._out += console.take_output()
        self._begin_job()
        due = console.next_timer(time.monotonic())
        wait = STEP_S if due is None else max(0.0, due - time.monotonic())
        wanted = [self._line] if self._out else []
        try:
            ready, writable, _ = select.select([self._line, self._waker], wanted, [], wait)
            if self._line in ready:
                self._read()
            if writable and self._line >= 0:
                self._write()
        except OSError as error:
            self._lose(error)
        self._take_done()
        console.handle_timer(time.monotonic())
        self._out += console.take_output()

    def _read(self) -> None:
        try:
            data = os.read(self._line, 4096)
        except BlockingIOError:
            return
        if not data:
            raise OSError(errno.EIO, "end of file")
        self._console.receive(data, time.monotonic())

    def _write(self) -> None:
        try:
            del self._out[: os.write(self._line, self._out)]
        except BlockingIOError:
            pass

    def _lose(self, error: OSError) -> None:
        """Pulled out. The console logs out whoever was in."""
        if self._path:
            os.close(self._line)
        self._line = -1
        self._out.clear()
        self._console.line_lost()
        if self._path:
            self._wait(REOPEN_S)

    def _begin_job(self) -> None:
        job = self._console.take_job()
        if job is not None:
            threading.Thread(target=self._do, args=(job,), daemon=True).start()

    def _do(self, job: Job) -> None:
        result: object
        try:
            result = job.run()
        except GatehouseError as error:
            result = error
        except Exception as error:  # the thread's edge: a mistake of ours must not leave the line busy for ever
            print(f"console: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            result = StorageError(f"a mistake of Gatehouse's own: {type(error).__name__}")
        self._done.append((job, result))
        try:
            os.write(self._woken, b".")
        except OSError:  # the loop has ended
            pass

    def _take_done(self) -> None:
        try:
            os.read(self._waker, 4096)
        except BlockingIOError:
            pass
        while self._done:
            self._console.finish(*self._done.pop(0), time.monotonic())
