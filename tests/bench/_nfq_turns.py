"""Whose turn it is at the LAN: the program of the worker under test stands there while its turn lasts, and else nobody.

What the worker attached itself is detached at once, or peers, and "off", would have their usual connections let through
by ours. The program, its tables and the worker behind them stay; only the link is made and closed here.
"""

import ctypes
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import pack

from bpf.kernel import Kernel

_PROG_GET_FD_BY_ID, _LINK_GET_FD_BY_ID, _LINK_DETACH = 13, 30, 34
_CLONE_NEWNET = 0x40000000


class Turns:
    """Of one worker, by its process."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._kernel = Kernel()
        self._program = self._link = -1
        for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
            told = dict(re.findall(r"^(\w+):\s*(\w+)$", entry.read_text(), re.M))
            if told.get("link_type") == "tcx":
                self._program = self._call(_PROG_GET_FD_BY_ID, int(told["prog_id"]))
                link = self._call(_LINK_GET_FD_BY_ID, int(told["link_id"]))
                self._call(_LINK_DETACH, link)
                os.close(link)

    @property
    def has_program(self) -> bool:
        return self._program >= 0

    def begin(self) -> None:
        if self.has_program:
            with _in_network_of(self._pid):
                self._link = self._kernel.attach(self._program, socket.if_nametoindex("br-lan"))

    def end(self) -> None:
        if self._link >= 0:
            os.close(self._link)
            self._link = -1

    def _call(self, command: int, number: int) -> int:
        return self._kernel._call(command, pack("=IIII", number, 0, 0, 0), "bench")


@contextmanager
def _in_network_of(pid: int) -> Iterator[None]:
    libc = ctypes.CDLL(None, use_errno=True)
    own, other = (os.open(f"/proc/{which}/ns/net", os.O_RDONLY) for which in ("self", pid))
    try:
        if libc.setns(other, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        yield
    finally:
        libc.setns(own, _CLONE_NEWNET)
        os.close(own)
        os.close(other)
