"""The child process that seals a segment or takes it a step down the ladder, niced, while the ring goes on writing.

The child writes a temporary file beside the segment, fsyncs it and reads it back; the parent renames it over the
segment. So there is one whole file at any moment, whoever dies.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

from policy.errors import CorruptError, StorageError
from storage.layout import Level
from storage.level import relevel
from storage.seal import seal
from storage.sealed import Sealed

TEMPORARY: Final = ".tmp"
SECRET: Final = "ring.key"
LIMIT_S: Final = 3600
"""A child that takes longer hangs: a day of 1.7 M records takes ten seconds here, some minutes on a router."""
_HOME: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_CHILD: Final = "import sys; sys.path.insert(0, sys.argv[1]); from storage.upkeep import main; main(sys.argv[2:])"
_CORRUPT: Final = 65  # EX_DATAERR of sysexits.h


class Task:
    """One child at its work."""

    def __init__(self, path: str, number: int, level: Level, secret: str, *, is_sealed: bool) -> None:
        """Raises: StorageError."""
        self.number, self.path, self.level, self.is_sealed = number, path, level, is_sealed
        # A child whose agent was killed goes on for a while: no two may ever write the same file.
        self._target = f"{path}.{os.urandom(6).hex()}{TEMPORARY}"
        self._until_s = time.monotonic() + LIMIT_S
        what = "relevel" if is_sealed else "seal"
        words = [sys.executable, "-I", "-c", _CHILD, _HOME, what, path, str(number), self._target, str(int(level))]
        try:
            # Its last words are short: a pipe that nobody reads until the end will not fill.
            self._child = subprocess.Popen(
                [*words, secret], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
        except OSError as error:
            raise StorageError(f"segment {number}: no child process: {error.strerror}") from None

    def is_done(self) -> bool:
        """Has it ended? It is killed when it takes too long."""
        if self._child.poll() is not None:
            return True
        if time.monotonic() > self._until_s:
            self._child.kill()
        return False

    def take(self) -> None:
        """Put its work in the segment's place, on flash. Raises: StorageError; CorruptError: the segment is damaged."""
        _, words = self._child.communicate()
        if self._child.returncode:
            said = words[-300:].decode(errors="replace").strip() or f"ended with {self._child.returncode}"
            self._forget()
            raise (CorruptError if self._child.returncode == _CORRUPT else StorageError)(said)
        try:
            os.replace(self._target, self.path)
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}") from None

    def drop(self) -> None:
        """Its work is not wanted any more."""
        if self._child.poll() is None:
            self._child.kill()
        self._child.communicate()
        self._forget()

    def _forget(self) -> None:
        try:
            os.unlink(self._target)
        except OSError:
            pass


def remove_unfinished(directory: str) -> None:
    """What a child had not finished when the power went."""
    for name in os.listdir(directory):
        if name.endswith(TEMPORARY):
            os.unlink(os.path.join(directory, name))


def read_secret(path: str) -> bytes:
    """The key that roots are signed with; made on the first day. Raises: StorageError."""
    try:
        if not os.path.exists(path):
            descriptor = os.open(path + TEMPORARY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                os.write(descriptor, os.urandom(32))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(path + TEMPORARY, path)
        with open(path, "rb") as file:
            secret = file.read()
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None
    if len(secret) != 32:
        raise CorruptError(f"{path}: {len(secret)} octets, expected 32: move it away, and a new key will be made")
    return secret


def main(arguments: list[str], nice: Callable[[int], int] = os.nice) -> None:
    """The child: seal|relevel SOURCE NUMBER TARGET LEVEL SECRET. Says what was wrong on standard error."""
    what, source, number, target, level, secret_path = arguments
    nice(19)
    try:
        secret = read_secret(secret_path)
        if what == "seal":
            seal(source, int(number), target, level=Level(int(level)), secret=secret)
        else:
            relevel(source, int(number), target, Level(int(level)), secret)
        sealed = Sealed(target, int(number))
        for _ in sealed.check():
            pass
        sealed.close()
    except StorageError as error:
        print(error, file=sys.stderr)
        sys.exit(_CORRUPT if isinstance(error, CorruptError) else 1)
