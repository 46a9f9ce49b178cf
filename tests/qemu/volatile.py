"""A disk with a volatile write cache, over NBD: a write is on the medium only after a flush, or with FUA.

Killing QEMU alone is a poor power cut, for this machine's page cache lives on. Here `cut` throws away what was not
flushed (`drop`), or keeps any of its sectors in any order (`tear`), as a disk that reorders does.
Protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md, fixed newstyle, one connection.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
from pathlib import Path

SECTOR = 512
OPTION_EXPORT_NAME, OPTION_ABORT, OPTION_INFO, OPTION_GO = 1, 2, 6, 7
REPLY_ACK, REPLY_INFO, REPLY_UNSUPPORTED = 1, 3, 0x80000001
REPLY_MAGIC = 0x3E889045565A9
READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6
FUA = 1
HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_WRITE_ZEROES = 1, 4, 8, 64


class VolatileDisk(threading.Thread):
    """Serves `image` at `address` until `cut` or `close`."""

    def __init__(self, image: Path, directory: Path) -> None:
        super().__init__(daemon=True)
        path = directory / "disk.nbd"
        path.unlink(missing_ok=True)
        self.address = f"nbd+unix:///?socket={path}"
        self.writes = self.flushes = 0
        self._medium = os.open(image, os.O_RDWR)
        self._size = os.fstat(self._medium).st_size
        self._seen = bytearray(os.pread(self._medium, self._size, 0))
        """The disk as the guest sees it: medium and cache."""
        self._cache: list[tuple[int, bytes]] = []
        self._lock = threading.Lock()
        self._is_cut = False
        self._fuse = 0
        self.blown = threading.Event()
        """Set when the fuse has burnt down."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._link: socket.socket | None = None
        self.start()

    def run(self) -> None:
        try:
            self._link, _ = self._listener.accept()
            if self._negotiate(self._link):
                while self._answer(self._link):
                    pass
        except (EOFError, OSError):  # the machine was killed, or we were cut
            pass

    def light_fuse(self, writes: int) -> None:
        """The power goes at the so-manieth write from now, with that write in the cache; `cut` settles the rest."""
        with self._lock:
            self._fuse = writes

    def cut(self, how: str, dice: random.Random) -> int:
        """The power goes. Returns how many writes were in the cache."""
        with self._lock:
            self._is_cut = True
            lost = len(self._cache)
            if how == "tear":
                sectors = [
                    (offset + at, data[at : at + SECTOR])
                    for offset, data in self._cache
                    for at in range(0, len(data), SECTOR)
                ]
                dice.shuffle(sectors)
                for offset, data in sectors[: dice.randint(0, len(sectors))]:
                    os.pwrite(self._medium, data, offset)
            self._cache = []
            self._shut()
        return lost

    def close(self) -> None:
        """Orderly: what is in the cache goes to the medium."""
        with self._lock:
            if not self._is_cut:
                self._is_cut = True
                self._write_back()
                self._shut()

    def _shut(self) -> None:
        for link in (self._link, self._listener):
            if link is not None:
                link.close()
        os.close(self._medium)

    def _write_back(self) -> None:
        for offset, data in self._cache:
            os.pwrite(self._medium, data, offset)
        self._cache = []

    def _negotiate(self, link: socket.socket) -> bool:
        link.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 1))  # fixed newstyle
        _read(link, 4)
        flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_WRITE_ZEROES
        while True:
            _, option, length = struct.unpack(">8sII", _read(link, 16))
            _read(link, length)
            if option in (OPTION_INFO, OPTION_GO):
                self._reply(link, option, REPLY_INFO, struct.pack(">HQH", 0, self._size, flags))
                self._reply(link, option, REPLY_ACK)
                if option == OPTION_GO:
                    return True
            elif option == OPTION_ABORT:
                self._reply(link, option, REPLY_ACK)
                return False
            else:
                self._reply(link, option, REPLY_UNSUPPORTED)

    @staticmethod
    def _reply(link: socket.socket, option: int, kind: int, data: bytes = b"") -> None:
        link.sendall(struct.pack(">QIII", REPLY_MAGIC, option, kind, len(data)) + data)

    def _answer(self, link: socket.socket) -> bool:
        _, flags, command, handle, offset, length = struct.unpack(">IHHQQI", _read(link, 28))
        data = _read(link, length) if command == WRITE else bytes(length) if command == WRITE_ZEROES else b""
        answer = b""
        with self._lock:
            if self._is_cut or command == DISCONNECT:
                return False
            if command == READ:
                answer = bytes(self._seen[offset : offset + length])
            elif command in (WRITE, WRITE_ZEROES):
                self.writes += 1
                self._seen[offset : offset + length] = data
                if flags & FUA:  # this write is on the medium; older ones to the same place must not come after it
                    self._write_back()
                    os.pwrite(self._medium, data, offset)
                else:
                    self._cache.append((offset, data))
                self._fuse -= 1
                if self._fuse == 0:
                    self._is_cut = True
                    self.blown.set()
                    return False
            elif command == FLUSH:
                self.flushes += 1
                self._write_back()
        link.sendall(struct.pack(">IIQ", 0x67446698, 0, handle) + answer)
        return True


def _read(link: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        more = link.recv(length - len(data))
        if not more:
            raise EOFError
        data += more
    return bytes(data)
