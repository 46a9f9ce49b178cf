"""The promise: for months, at the rated load and at twice of it, every day that was promised is there."""

import random
from pathlib import Path

import pytest

from policy.signature import public_key
from storage.layout import Level
from storage.retention import (
    DAY_MS,
    EVENT_BYTES,
    HOT_EVENT_BYTES,
    LOG_BYTES,
    Relevel,
    Segment,
    Unlink,
    forecast,
    next_step,
    plan,
    segment_events,
    usable,
)
from storage.verify import verify
from tests.bench._ring_months import months

START_MS = 1_800_000_000_000
MEGABYTE = 1 << 20
ROUTER = 512 * MEGABYTE


class Sizes:
    """A ring of sizes: what the real one does once an hour, at the sizes that `make bench-ring` measured."""

    def __init__(self, budget: int, promised: int, maximum: int, seed: int) -> None:
        self.budget, self.promised, self.maximum = budget, promised, maximum
        self.limit = segment_events(budget, ROUTER)
        self.space = usable(budget, self.limit)
        self.segments: list[Segment] = []
        self.done: list[Unlink | Relevel] = []
        self.at_risk: list[float] = []
        self.rng = random.Random(seed)
        self.number = 0

    def day(self, day: int, events: int) -> None:
        at = START_MS + day * DAY_MS
        left = events
        while left:
            some = min(left, self.limit)
            span = DAY_MS * some // events
            self.number += 1
            # While it waits to be sealed, its unsealed form lies beside the open segment and what it becomes.
            assert sum(s.size for s in self.segments) + 2 * some * HOT_EVENT_BYTES + LOG_BYTES <= self.budget
            size = int(some * EVENT_BYTES[Level.SECOND] * self.rng.uniform(0.85, 1.0))
            self.segments.append(Segment(self.number, size, Level.SECOND, some, at, at + span))
            at += span
            left -= some
            self.settle(at)

    def settle(self, now_ms: int) -> None:
        while step := next_step(self.segments, self.space, now_ms, self.promised, self.maximum, is_sealing=False):
            self.done.append(step)
            place = next(at for at, segment in enumerate(self.segments) if segment.number == step.number)
            old = self.segments[place]
            if isinstance(step, Unlink):
                del self.segments[place]
                continue
            assert old.level is not None
            assert step.level == old.level + 1, "one step at a time"
            shrunk = int(old.size * EVENT_BYTES[step.level] / EVENT_BYTES[old.level])
            self.segments[place] = old._replace(level=step.level, size=shrunk)
        coming = forecast(self.segments, 0, self.space, now_ms, self.promised, Level.SECOND)
        if coming is not None and coming.is_at_risk:
            self.at_risk.append((now_ms - START_MS) / DAY_MS)

    def held_days(self, day: int) -> float:
        assert self.segments[0].first_ms is not None
        return (START_MS + (day + 1) * DAY_MS - self.segments[0].first_ms) / DAY_MS


def rated(budget: int, promised: int) -> int:
    """Records a day that the plan accepts for this flash."""
    low, high = 1, 100_000
    while low < high:
        middle = (low + high + 1) // 2
        if plan(middle, budget, events_a_client=1000, memory_bytes=ROUTER).days[Level.SECOND] >= promised:
            low = middle
        else:
            high = middle - 1
    return low * 1000


@pytest.mark.parametrize("budget", [64 * MEGABYTE, 128 * MEGABYTE, 256 * MEGABYTE])
@pytest.mark.parametrize(("promised", "length"), [(60, 75), (60, 200), (180, 260)])
@pytest.mark.parametrize("factor", [1, 2])
def test_the_promised_days_are_there_at_the_rated_load_and_at_twice_of_it(
    budget: int, promised: int, length: int, factor: int
) -> None:
    ring = Sizes(budget, promised, 0, seed=budget + promised)
    load = rated(budget, promised)
    for day in range(length):
        ring.day(day, load * (factor if day >= 30 else 1))
        assert sum(segment.size for segment in ring.segments) <= ring.space
        assert ring.held_days(day) >= min(day + 1, promised)
        levels = [segment.level for segment in ring.segments if segment.level is not None]
        assert max(levels) - min(levels) <= 1 or factor == 2
    if factor == 1:
        assert {segment.level for segment in ring.segments} == {Level.SECOND}, "the rated load keeps every detail"
    else:
        assert any(isinstance(step, Relevel) for step in ring.done)
    for step in ring.done:
        assert not (isinstance(step, Unlink) and "only" in step.why)


def test_a_load_that_no_step_can_hold_is_told_a_week_before_and_the_oldest_day_goes_with_an_alarm() -> None:
    ring = Sizes(64 * MEGABYTE, 60, 0, seed=1)
    load = rated(64 * MEGABYTE, 60) * 6
    lost = []
    for day in range(75):
        ring.day(day, load)
        lost += [day for step in ring.done if isinstance(step, Unlink) and "only" in step.why]
        ring.done.clear()
    assert lost, "six times the rated load cannot be held"
    assert ring.at_risk[0] <= lost[0] - 7
    assert sum(segment.size for segment in ring.segments) <= ring.space


def test_what_is_past_the_maximum_goes_and_nothing_goes_by_a_clock_that_is_not_set() -> None:
    old = Segment(1, 1000, Level.SECOND, 10, START_MS, START_MS + DAY_MS)
    unknown = old._replace(number=1, first_ms=None, last_ms=None)
    later = START_MS + 92 * DAY_MS
    step = next_step([old], 1 << 30, later, 60, 90, is_sealing=False)
    assert step == Unlink(1, "expired after 90 days")
    young = old._replace(number=2, first_ms=later - DAY_MS, last_ms=later)
    assert next_step([unknown], 1 << 30, later, 60, 90, is_sealing=False) is None
    assert next_step([unknown, young], 1 << 30, later, 60, 90, is_sealing=False) is None
    # It came before one whose time is over.
    assert next_step([unknown, old._replace(number=2)], 1 << 30, later, 60, 90, is_sealing=False) == step
    assert next_step([old], 1 << 30, later, 60, 0, is_sealing=False) is None


def test_days_beyond_the_promise_go_before_any_detail_does() -> None:
    segments = [
        Segment(n, 100, Level.SECOND, 100, START_MS + n * DAY_MS, START_MS + (n + 1) * DAY_MS) for n in range(65)
    ]
    now_ms = START_MS + 65 * DAY_MS
    assert next_step(segments, 6400, now_ms, 60, 0, is_sealing=False) == Unlink(0, "over the budget")
    # Without the fourth, what is left would not reach back sixty days.
    assert next_step(segments[4:], 6000, now_ms, 60, 0, is_sealing=False) == Relevel(4, Level.MINUTE)
    assert next_step(segments[4:], 6000, now_ms, 60, 0, is_sealing=True) == Relevel(4, Level.MINUTE)


def test_what_waits_to_be_sealed_is_not_a_reason_to_lose_anything() -> None:
    sealed = Segment(1, 100, Level.SECOND, 100, START_MS, START_MS + 1)
    waiting = Segment(2, 9000, None, 800, START_MS + 1, START_MS + 2)
    assert next_step([sealed, waiting], 200, START_MS + 3, 60, 0, is_sealing=True) is None
    assert next_step([sealed, waiting], 200, START_MS + 3, 60, 0, is_sealing=False) == Relevel(1, Level.MINUTE)


@pytest.mark.slow
def test_a_real_ring_keeps_its_promise_under_its_cap_when_the_load_doubles(tmp_path: Path) -> None:
    """The same with real files, children and clock; at full size by `python -m tests.bench.ring --months`."""
    budget, promised = 6 * MEGABYTE, 8
    steps: list[str] = []
    levels = set[str]()
    for day in months(tmp_path, budget=budget, promised=promised, length=12, clients=5, events=56_000, double_on=4):
        assert day.size <= budget
        if day.day >= promised:
            assert day.oldest_days >= promised
        assert not day.at_risk
        steps += [note.result for note in day.notes if note.action == "retention" and "kept by" in note.result]
        levels |= set(day.days_at_level)
    order = [level.name.lower() for level in Level]
    first_of = [
        next(at for at, step in enumerate(steps) if f"by {level} " in step)
        for level in order
        if level in levels and level != "second"
    ]
    assert first_of == sorted(first_of) != [], "the ladder is taken in order, and every step is told"
    public = public_key((tmp_path / "ring.key").read_bytes())
    assert verify(str(tmp_path), public) > 10
