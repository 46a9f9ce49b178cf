"""The log of `shim.c`, and what a disk may look like when the power goes at any place in it.

What was written to a file and not fsynced is kept, lost or torn, sector by sector and write by write, in any mixture;
what happened to the directory after its last fsync is kept up to some place. This is harder than ext4 or UBIFS are.
"""

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HEAD = struct.Struct("<BIQI")
CREATE, WRITE, TRUNCATE, SYNC, SYNC_DIRECTORY, RENAME, UNLINK = range(1, 8)
SECTOR = 512


class Operation(NamedTuple):
    kind: int
    path: str
    offset: int
    data: bytes


def read_log(path: Path) -> list[Operation]:
    """All operations that are whole."""
    data, at, found = path.read_bytes(), 0, []
    while at + HEAD.size <= len(data):
        kind, length, offset, size = HEAD.unpack_from(data, at)
        at += HEAD.size
        if at + length + size > len(data):
            break
        found.append(Operation(kind, data[at : at + length].decode(), offset, data[at + length : at + length + size]))
        at += length + size
    return found


class _File:
    def __init__(self) -> None:
        self.durable = bytearray()
        self.pending: list[Operation] = []

    def sync(self) -> None:
        for operation in self.pending:
            _apply(self.durable, operation)
        self.pending = []

    def after_cut(self, rng: random.Random, harm: float) -> bytes:
        """`harm`: how much of what was not fsynced is lost; 0: nothing."""
        data = bytearray(self.durable)
        for operation in self.pending:
            fate = rng.random()
            if fate >= harm:
                _apply(data, operation)
            elif operation.kind == WRITE and fate < harm / 2:
                _tear(data, operation, rng)
        return bytes(data)


def _apply(data: bytearray, operation: Operation) -> None:
    if operation.kind == TRUNCATE:
        size = operation.offset
        del data[size:]
        data.extend(bytes(size - len(data)))
        return
    end = operation.offset + len(operation.data)
    data.extend(bytes(max(0, end - len(data))))
    data[operation.offset : end] = operation.data


def _tear(data: bytearray, operation: Operation, rng: random.Random) -> None:
    for at in range(0, len(operation.data), SECTOR):
        sector = operation.data[at : at + SECTOR]
        fate = rng.random()
        if fate < 0.1:
            sector = rng.randbytes(len(sector))
        if fate < 0.6:
            _apply(data, Operation(WRITE, "", operation.offset + at, sector))


class Disk:
    """One directory, as far as the log has been followed."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._names: dict[str, _File] = {}
        """As a process sees it."""
        self._durable: dict[str, _File] = {}
        """As it was at the directory's last fsync."""
        self._since: list[tuple[int, str, str | _File]] = []

    def follow(self, operation: Operation) -> None:
        name = operation.path.removeprefix(self._root).strip("/")
        match operation.kind:
            case 1:
                if name not in self._names:  # two processes may both find that it was not there
                    self._names[name] = file = _File()
                    self._since.append((CREATE, name, file))
            case 2 | 3:
                self._names[name].pending.append(operation)
            case 4:
                # A file system that keeps the file keeps its name: ext4, F2FS and UBIFS do at fsync.
                self._names[name].sync()
            case 5:
                self._durable, self._since = dict(self._names), []
            case 6:
                to = operation.data.decode().removeprefix(self._root).strip("/")
                self._names[to] = self._names.pop(name)
                self._since.append((RENAME, name, to))
            case 7:
                self._names.pop(name, None)
                self._since.append((UNLINK, name, ""))

    def cut(self, target: Path, rng: random.Random, *, harm: float = 0.7) -> None:
        """The power goes: write what is left to `target`."""
        names = dict(self._durable)
        kept = rng.randint(0, len(self._since)) if harm else len(self._since)
        for kind, name, what in self._since[:kept]:
            if isinstance(what, _File):
                names[name] = what
            elif kind == RENAME:
                if name in names:
                    names[what] = names.pop(name)
            else:
                names.pop(name, None)
        target.mkdir(parents=True, exist_ok=True)
        for name, file in names.items():
            (target / name).write_bytes(file.after_cut(rng, harm))


def cuts(operations: list[Operation], root: str, places: list[int]) -> Iterator[tuple[int, Disk]]:
    """The disk after each of `places`, ascending, many operations."""
    disk, done = Disk(root), 0
    for place in places:
        for operation in operations[done:place]:
            disk.follow(operation)
        done = place
        yield place, disk


def main_names(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in sorted(os.listdir(directory))}
