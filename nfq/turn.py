"""When the processor is busy, a process that waits its turn: packets gather meanwhile and go in one batch.

Woken for each packet, the worker would push aside whoever sent it, decide one packet, and sleep again: two context
switches a packet. With SCHED_BATCH it still has its fair share, and at once where a processor is idle.
Source: sched(7). musl (OpenWrt's libc) refuses the call by itself, so there the kernel is asked directly.
"""

from __future__ import annotations

import os
from typing import Final

_SCHED_SETSCHEDULER: Final = {"x86_64": 144, "aarch64": 119, "riscv64": 119, "armv7l": 156, "mips": 4160}
"""System call numbers: arch/*/entry/syscalls/syscall*.tbl and asm-generic/unistd.h."""


def wait_for_turn() -> bool:
    """Give up wakeup preemption. False: the system does not let us, which costs speed and nothing else."""
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except (OSError, AttributeError):
        return _ask_kernel()
    return True


def _ask_kernel() -> bool:
    import ctypes  # half a megabyte, where it is needed at all

    number = _SCHED_SETSCHEDULER.get(os.uname().machine)
    if number is None:
        return False
    try:
        call = ctypes.CDLL(None).syscall
        return bool(call(number, 0, 3, ctypes.byref(ctypes.c_int(0))) == 0)
    except (OSError, AttributeError):
        return False
