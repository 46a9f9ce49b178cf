"""Weekly windows in local time, and the calendars (holidays, exam weeks) that switch them.

Holds whether a window is open and when that changes next. Knows no clock: `utc_s` comes in.
Rule: a window belongs to the local day on which it begins; overnight ones (end before start) run into the next. In the
hour that summer time skips nothing happens; the hour that comes twice counts twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from policy.zone import DAY_S, Zone, weekday

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class Calendar(NamedTuple):
    """Named days: holidays, an exam week."""

    name: str
    spans: tuple[tuple[int, int], ...]
    """First and last day, since 1970-01-01."""

    def holds(self, day: int) -> bool:
        """Is this one of the days?"""
        return any(first <= day <= last for first, last in self.spans)


class Window(NamedTuple):
    """From `start_min` to `end_min` (minutes after midnight) on some weekdays."""

    days: frozenset[int]
    """0 Monday … 6 Sunday."""
    start_min: int
    end_min: int
    """Not after `start_min`: the window ends on the next day."""


class Schedule(NamedTuple):
    """A named set of windows."""

    name: str
    windows: tuple[Window, ...]
    only: tuple[Calendar, ...] = ()
    """The windows count on days of these only; empty: on any day."""
    never: tuple[Calendar, ...] = ()
    """They do not count on days of these."""

    def is_open(self, day: int, second: int) -> bool:
        """Is a window open in this second of this local day?"""
        minute = second // 60
        for window in self.windows:
            if window.start_min < window.end_min:
                if window.start_min <= minute < window.end_min and self._counts(window, day):
                    return True
            elif (minute >= window.start_min and self._counts(window, day)) or (
                minute < window.end_min and self._counts(window, day - 1)
            ):
                return True
        return False

    def _counts(self, window: Window, day: int) -> bool:
        if weekday(day) not in window.days:
            return False
        if self.only and not any(calendar.holds(day) for calendar in self.only):
            return False
        return not any(calendar.holds(day) for calendar in self.never)


def open_schedules(schedules: Iterable[Schedule], zone: Zone, utc_s: float) -> tuple[frozenset[str], float]:
    """Names of the schedules with an open window, and the UTC second up to which that holds.

    The second is never later than the next local midnight, so no calendar has to be searched for its next day.
    """
    day, second = zone.local(utc_s)
    edge_s = DAY_S
    found = set()
    for schedule in schedules:
        if schedule.is_open(day, second):
            found.add(schedule.name)
        for window in schedule.windows:
            for minute in (window.start_min, window.end_min):
                if second < 60 * minute < edge_s:
                    edge_s = 60 * minute
    until = int(utc_s) + edge_s - second
    transition = zone.next_transition(utc_s)
    if transition is not None and transition < until:
        until = int(transition)
    return frozenset(found), until
