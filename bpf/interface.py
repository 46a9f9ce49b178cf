"""Where programs stand: interfaces by name, those that carry Ethernet. A shell."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bpf.kernel import Kernel

_SIOCGIFHWADDR: Final = 0x8927
"""linux/sockios.h; a struct ifreq, netdevice(7)."""
_ETHERNET_TYPES: Final = (1, 772)
"""ARPHRD_ETHER and ARPHRD_LOOPBACK, linux/if_arp.h: both have an Ethernet header."""


class Links:
    """One program at interfaces; it stands there until the link is closed, or this process ends."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._links: dict[int, int] = {}
        """Interface -> the link's descriptor."""

    def __len__(self) -> int:
        return len(self._links)

    def stand_at(self, program: int, names: Iterable[str]) -> None:
        """Exactly these, as far as there are such and they carry Ethernet, have the program. Raises: KernelError."""
        wanted = _ethernet(names)
        for index in self._links.keys() - wanted:
            os.close(self._links.pop(index))
        for index in wanted - self._links.keys():
            self._links[index] = self._kernel.attach(program, index)

    def is_missing(self, names: Iterable[str]) -> bool:
        """Is there one of these at which the program does not stand?"""
        return not _ethernet(names) <= self._links.keys()

    def close(self) -> None:
        for fd in self._links.values():
            os.close(fd)
        self._links.clear()


def index_of(name: str) -> int:
    """0: there is no such interface now."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def _ethernet(names: Iterable[str]) -> set[int]:
    return {index for name in names if (index := index_of(name)) and _is_ethernet(name)}


def _is_ethernet(name: str) -> bool:
    request = name.encode()[:15].ljust(40, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            found = fcntl.ioctl(sock, _SIOCGIFHWADDR, request)
        except OSError:
            return False
    return int.from_bytes(found[16:18], sys.byteorder) in _ETHERNET_TYPES
