"""The worker lets others finish first: asked through libc, and of the kernel itself where libc refuses."""

import os
from collections.abc import Callable

import pytest

from nfq import turn


@pytest.mark.parametrize("ask", [turn.wait_for_turn, turn._ask_kernel])
def test_the_process_is_in_the_batch_class_afterwards(ask: Callable[[], bool]) -> None:
    child = os.fork()
    if not child:
        os._exit(0 if ask() and os.sched_getscheduler(0) == os.SCHED_BATCH else 1)
    assert os.waitpid(child, 0)[1] == 0
