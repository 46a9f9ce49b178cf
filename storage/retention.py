"""What must go, and what must be kept less exactly, so that the promised days fit. Pure.

In this order: records past the legal maximum; days beyond the promise; detail, one step of the ladder at a time and
the oldest first; and only when nothing has any detail left to give, the oldest day, with an alarm.
Rule: nothing goes because of a clock that is not set, and the promise is never shortened while a step is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from storage.layout import Level

DAY_MS: Final = 86_400_000
RISK_DAYS: Final = 7
"""How long before the promise breaks the alarm is given."""
HOT_EVENT_BYTES: Final = 12
"""Octets of a record before it is sealed, its share of the write-ahead log aside; twice of it where few come."""
FEW_EVENTS: Final = 100_000
"""Records in a segment below which tables of names and batches of a handful weigh more."""
LOG_BYTES: Final = 2 << 20
"""Of the write-ahead log, at its largest."""
MOST_EVENTS: Final = 1_500_000
"""Records in a segment: sealing takes 13 octets of memory for each."""
FEWEST_EVENTS: Final = 50_000

EVENT_BYTES: Final = {
    Level.EXACT: 2.45,
    Level.SECOND: 1.25,
    Level.MINUTE: 1.1,
    Level.FIVE_MINUTES: 0.95,
    Level.HOUR: 0.85,
    Level.DAY: 0.6,
    Level.DOMAIN: 0.4,
}
"""Octets of a sealed record at each level, all in. Measured by `make bench-ring` on a made-up school, in segments of
half a million; a quarter added. A ring that has records of its own goes by these instead."""
_SHRINKS: Final = {level: EVENT_BYTES[Level.DOMAIN] / size for level, size in EVENT_BYTES.items()}


class Segment(NamedTuple):
    """One closed segment."""

    number: int
    size: int
    """Octets."""
    level: Level | None
    """None: not sealed yet."""
    events: int
    first_ms: int | None
    """Wall time of its earliest record; None: not known."""
    last_ms: int | None
    """Of its latest; None: not known, because no clock was ever set."""
    is_held: bool = False
    """A hold names records of it: it keeps its detail."""


class Unlink(NamedTuple):
    number: int
    why: str


class Relevel(NamedTuple):
    number: int
    level: Level


def segment_events(budget_bytes: int, memory_bytes: int) -> int:
    """Records in a segment: as many as one can afford unsealed, and seal on a small router."""
    limit = 500_000 if memory_bytes <= 300 << 20 else MOST_EVENTS
    return max(FEWEST_EVENTS, min(limit, budget_bytes // 160))


def usable(budget_bytes: int, events: int) -> int:
    """Octets for sealed segments: the open one, one that waits to be sealed and what it becomes need their place."""
    hot = HOT_EVENT_BYTES * (2 if events <= FEW_EVENTS else 1)
    reserve = 2 * events * hot + LOG_BYTES + int(events * EVENT_BYTES[Level.EXACT])
    return max(0, int(budget_bytes * 0.97) - reserve)


def next_step(
    segments: Sequence[Segment],
    space: int,
    now_ms: int,
    promised_days: int,
    maximum_days: int,
    *,
    is_sealing: bool,
) -> Unlink | Relevel | None:
    """The next thing to do, oldest segment first; None: all is well. To be asked again when it is done.

    `is_sealing`: segments that are not sealed yet will be.
    """
    if maximum_days and segments:
        # One whose age is not known is not younger than what follows it.
        following = (each.first_ms for each in segments if each.first_ms is not None)
        last_ms = segments[0].last_ms if segments[0].last_ms is not None else next(following, None)
        if last_ms is not None and now_ms - last_ms > maximum_days * DAY_MS:
            return Unlink(segments[0].number, f"expired after {maximum_days} days")
    if sum(segment.size for segment in segments) <= space or not segments:
        return None
    oldest = segments[0]
    # What is left must reach back to the promise, not what goes: between two segments there may be a quiet night.
    left_ms = segments[1].first_ms if len(segments) > 1 else oldest.last_ms
    days = None if left_ms is None else (now_ms - left_ms) / DAY_MS
    if days is not None and days > promised_days:
        return Unlink(oldest.number, "over the budget")
    sealed = [segment for segment in segments if segment.level is not None]
    if is_sealing and sum(segment.size for segment in sealed) <= space:
        return None  # what waits to be sealed will be a tenth of its size
    steps = [
        segment
        for segment in sealed
        if segment.level is not None and segment.level < Level.DOMAIN and not segment.is_held
    ]
    if steps:
        exact = min(segment.level for segment in steps if segment.level is not None)
        chosen = next(segment for segment in steps if segment.level == exact)
        return Relevel(chosen.number, Level(exact + 1))
    kept = "an unknown number" if days is None else f"{days:.1f}"
    return Unlink(oldest.number, f"over the budget: only {kept} of {promised_days} days are kept")


class Forecast(NamedTuple):
    """How long records will be kept if things go on like this."""

    events_a_day: int
    bytes_a_day: int
    """At the detail that is kept now."""
    days_at_full_detail: float
    days: float
    """With every step of the ladder taken."""
    is_at_risk: bool
    """The promise breaks within RISK_DAYS, or at the end of the ladder it cannot be kept."""


def forecast(
    segments: Sequence[Segment], open_events: int, space: int, now_ms: int, promised_days: int, level: Level
) -> Forecast | None:
    """None: less than a day of records is there, nothing can be said."""
    rates = []
    for window in (7, 28):
        since = now_ms - window * DAY_MS
        some = [s for s in segments if s.first_ms is not None and s.last_ms is not None and s.last_ms >= since]
        firsts = [s.first_ms for s in some if s.first_ms is not None]
        if firsts and now_ms - min(firsts) >= DAY_MS:
            days = (now_ms - min(firsts)) / DAY_MS
            rates.append((sum(s.events for s in some) + open_events) / days)
    if not rates:
        return None
    rate = max(rates)
    sealed = [s for s in segments if s.level is not None and s.events]
    same = [s for s in sealed if s.level == level]
    per_event = sum(s.size for s in same) / sum(s.events for s in same) if same else EVENT_BYTES[level]
    least = [s.size / s.events * _SHRINKS[s.level] for s in sealed if s.level is not None]
    floor = sum(least) / len(least) if least else EVENT_BYTES[Level.DOMAIN]
    full, longest = space / (rate * per_event), space / (rate * floor)
    # What is there now, all steps taken, and what comes in the next days, must fit beside each other.
    shrunk = sum(s.size * (_SHRINKS[s.level] if s.level is not None else 0.1) for s in segments)
    oldest = segments[0].first_ms if segments else None
    held = 0.0 if oldest is None else (now_ms - oldest) / DAY_MS
    soon = shrunk + RISK_DAYS * rate * floor > space and held < promised_days
    return Forecast(
        int(rate), int(rate * per_event), round(full, 1), round(longest, 1), soon or longest < promised_days
    )


class Plan(NamedTuple):
    """What a budget holds."""

    events_a_day: int
    space: int
    days: dict[Level, int]
    """At each level of detail."""


def plan(clients: int, budget_bytes: int, *, events_a_client: int, memory_bytes: int) -> Plan:
    """How many days of that many clients' records fit."""
    rate = max(1, clients * events_a_client)
    limit = segment_events(budget_bytes, memory_bytes)
    space = usable(budget_bytes, limit)
    more = 1.25 if min(rate, limit) < FEW_EVENTS else 1.0
    return Plan(rate, space, {level: int(space / (rate * size * more)) for level, size in EVENT_BYTES.items()})
