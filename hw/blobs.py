"""Files that come over the line in pieces, and go on where they stopped: after noise, a cable, a power cut.

A file is called by its BLAKE2b (16 octets, in hexadecimal digits), which is also its check: a whole one is right.
Rule: at most KEPT files and MAX_SIZE octets each; the oldest make room.
"""

from __future__ import annotations

import os
from typing import Final

from hw import flash
from policy.digest import blake2b
from policy.errors import SerialError, StorageError

SUM_SIZE: Final = 16
MAX_SIZE: Final = 16 << 20
KEPT: Final = 12
_PART: Final = ".part"


def sum_of(octets: bytes) -> str:
    """How a file is called."""
    return blake2b(octets, digest_size=SUM_SIZE).hexdigest()


class Blobs:
    """One directory of them."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def put(self, name: str, size: int, at: int, piece: bytes) -> tuple[int, bool]:
        """Take a piece. Returns how many octets are there now, and is it whole. Raises: SerialError, StorageError.

        A piece that does not follow on what is there is not taken: the sender goes on from the number it is told.
        """
        if not 0 <= size <= MAX_SIZE:
            raise SerialError(f"put: expected at most {MAX_SIZE} octets, got {size}")
        path = self._path(name)
        if os.path.exists(path):
            return size, True
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            descriptor = os.open(path + _PART, os.O_RDWR | os.O_CREAT, 0o600)
            with open(descriptor, "r+b") as file:
                have = os.fstat(descriptor).st_size
                if have == 0:
                    self._make_room(name)
                if at == have and piece:
                    file.seek(have)
                    file.write(piece[: size - have])
                    file.flush()
                    have += len(piece[: size - have])
                if have < size:
                    return have, False
                file.seek(0)
                if sum_of(file.read()) != name:
                    file.truncate(0)
                    return 0, False
                os.fsync(descriptor)
            os.replace(path + _PART, path)
            flash.sync_directory(self.directory)
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from None
        return size, True

    def keep(self, octets: bytes) -> str:
        """A file of our own, to be fetched. Returns its name."""
        name = sum_of(octets)
        self._make_room(name)
        flash.write(self._path(name), octets)
        return name

    def get(self, name: str) -> bytes:
        """A whole file. Raises: SerialError, StorageError."""
        found = flash.read(self._path(name), MAX_SIZE)
        if found is None:
            raise SerialError(f"file {name}: is not here, or not whole; send it first")
        return found

    def clear(self) -> None:
        """None is needed any more."""
        for _, path in self._listed():
            flash.remove(path)

    def _path(self, name: str) -> str:
        if len(name) != 2 * SUM_SIZE or not all(c in "0123456789abcdef" for c in name):
            raise SerialError(f"file: expected a sum of {2 * SUM_SIZE} hexadecimal digits")
        return os.path.join(self.directory, name)

    def _listed(self) -> list[tuple[float, str]]:
        try:
            return sorted((entry.stat().st_mtime, entry.path) for entry in os.scandir(self.directory))
        except FileNotFoundError:
            return []

    def _make_room(self, name: str) -> None:
        others = [path for _, path in self._listed() if not os.path.basename(path).startswith(name)]
        for path in others[: max(0, len(others) - KEPT + 1)]:
            flash.remove(path)
