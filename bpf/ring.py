"""What programs in the kernel have to tell: the ring buffer they write to, read from shared memory without a call.

Rule: records are read in the order the kernel reserved them; one that is still being written ends the reading.
Source: Documentation/bpf/ringbuf.rst; kernel/bpf/ringbuf.c.
"""

from __future__ import annotations

import mmap
import threading
import time
from typing import Final

from bpf.kernel import Kernel, MapType

HEAD: Final = 8
"""Octets before each record: its length with two flags, and where the ring's own page lies."""
_BUSY: Final = 1 << 31


class Ring:
    """A ring of `size` octets (a power of two, whole pages) for records of `record` octets each, whole 8s."""

    def __init__(self, kernel: Kernel, size: int, record: int, name: str = "") -> None:
        self.fd: Final = kernel.create_map(MapType.RINGBUF, 0, 0, size, name=name)
        self._size = size
        self._record = record
        page = mmap.PAGESIZE
        self._consumer = mmap.mmap(self.fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        # The producer's position, then the data. The kernel would give it twice over, so that no record is ever cut in
        # two, but both count as memory of this process.
        self._producer = mmap.mmap(self.fd, page + size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._read_to = memoryview(self._consumer).cast("L")
        self._written_to = memoryview(self._producer).cast("L")
        self._data = memoryview(self._producer)[page:]
        self._barrier = threading.Lock()

    def read(self, most: int) -> memoryview:
        """Up to `most` records, each of `record` octets behind 8 of its head; true until `release`."""
        start = self._read_to[0]
        end = self._written_to[0]
        with self._barrier:  # what the kernel wrote before it moved its position is seen after this
            pass
        step = HEAD + self._record
        number = min((end - start) // step, most)
        at = start & (self._size - 1)
        found = self._data[at : at + number * step]
        if at + number * step > self._size:
            found = memoryview(bytes(found) + bytes(self._data[: at + number * step - self._size]))
        heads = found.cast("I")[:: step // 4].tolist()
        if number and max(heads) >= _BUSY:
            number = next(i for i, head in enumerate(heads) if head & _BUSY)
        return found[: number * step]

    def release(self, octets: int) -> None:
        """So many octets of what `read` gave may be written over."""
        with self._barrier:
            self._read_to[0] += octets


def boottime_ms() -> int:
    """What programs tell the time by."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def whole_ms(low: list[int], now_ms: int) -> list[int]:
    """Times of which 32 bits are known, that they are past at `now_ms`, and that they are not long past."""
    if now_ms < 1 << 32:
        return low
    return [now_ms - (now_ms - each & 0xFFFFFFFF) for each in low]
