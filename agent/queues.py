"""Watches the kernel's end of the packet queues: who is bound, what was dropped, what passed unseen.

    Text of /proc/net/netfilter/nfnetlink_queue and the rules' counters in; records, and workers to restart, out.
Rule: what is told is never more than what happened. The rules' counters are read before the queue's, so a packet
between the two counts as seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from nfq.kernel import QueueState, read_queues
from policy.config import NfqConfig
from policy.event import Gap

UNBOUND_MS = 4_000
"""A worker that lives and says so for that long without its queue has lost it."""


class Watch(NamedTuple):
    """What one look came to."""

    records: list[Gap]
    lost: list[str]
    """Workers that live and are not bound to their queue: kill them, and they bind it again when they are back."""


class Queues:
    """The queues of one configuration. `look` every few seconds."""

    def __init__(self, nfq: NfqConfig, closed: bool) -> None:
        self._numbers = {nfq.queue_first + worker: f"nfq/{worker}" for worker in range(nfq.workers)}
        self._closed = closed
        self._known: dict[int, QueueState] = {}
        self._looked_ms = 0
        self._missing_ms: dict[int, int] = {}
        self._ever: set[int] = set()
        self._base: int | None = None
        """What the rules had offered when counting began; None: it has not."""
        self._last = 0
        self._reached = 0
        """Packets that reached a queue, or were dropped by it, since then; those of the look before it, too."""
        self._told = 0
        self.dropped = 0
        """Packets that a full queue cost, since the agent started."""
        self.passed = 0
        """Packets that a full queue let by, with fail-open."""

    def look(self, text: str, offered: int, alive: Mapping[str, int], now_ms: int) -> Watch:
        """`offered`: packets that the rules sent to the queues, -1 if they were not looked at since the last time.

        `alive`: worker -> process id.
        """
        states = read_queues(text)
        records: list[Gap] = []
        lost: list[str] = []
        began_again = False
        reached = 0
        for number, name in self._numbers.items():
            state, before = states.get(number), self._known.get(number)
            if state is None:
                began_again = began_again or number in self._ever
                self._known.pop(number, None)
                since = self._missing_ms.setdefault(number, now_ms) if name in alive else now_ms
                if name not in alive:
                    self._missing_ms.pop(number, None)
                elif now_ms - since >= UNBOUND_MS:
                    del self._missing_ms[number]
                    lost.append(name)
                continue
            self._missing_ms.pop(number, None)
            if before is None or before.port_id != state.port_id:
                began_again = began_again or number in self._ever
                self._ever.add(number)
                before = QueueState(state.port_id, 0, 0, 0, 0)
            reached += state.last_id - before.last_id
            fell = state.dropped + state.user_dropped - before.dropped - before.user_dropped
            reached += fell
            if fell > 0:
                self.dropped += fell
                what = "dropped" if self._closed else "dropped in spite of fail-open"
                records.append(Gap(now_ms, name, fell, self._looked_ms, now_ms, f"queue {number} full: packets {what}"))
            self._known[number] = state
        if unseen := self._count_unseen(offered, reached, began_again=began_again):
            self.passed += unseen
            why = "queue full: packets passed unseen"
            records.append(Gap(now_ms, "nfq", unseen, self._looked_ms, now_ms, why))
        self._looked_ms = now_ms
        return Watch(records, lost)

    def _count_unseen(self, offered: int, reached: int, *, began_again: bool) -> int:
        """Packets offered that no queue has counted, beyond those already told."""
        if began_again or self._base is None or 0 <= offered < self._last:
            self._base, self._reached, self._told = None, 0, 0
        self._reached += reached
        if offered < 0 or began_again:
            return 0
        if self._base is None:
            self._base = 0 if offered < self._last or not self._last else offered
        self._last = offered
        unseen = offered - self._base - self._reached - self._told
        self._told += max(unseen, 0)
        return max(unseen, 0)

    def describe(self) -> Mapping[str, object]:
        """For status."""
        return {
            "dropped": self.dropped,
            "passed_unseen": self.passed,
            "waiting": sum(state.waiting for state in self._known.values()),
            "bound": sorted(self._known),
        }
