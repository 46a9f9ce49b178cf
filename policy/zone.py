"""Local time from a POSIX TZ string (`CET-1CEST,M3.5.0,M10.5.0/3`), which is what a router has: no zone database.

Holds offsets and transitions. Knows no schedule and no clock. Source: POSIX.1-2017 8.3, RFC 8536 3.3.1.
Rule: `offset_at` is constant between two transitions, and `next_transition` names the next one.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from policy.errors import ConfigError

DAY_S: Final = 86400
_NAME: Final = r"(?:<[A-Za-z0-9+-]{3,}>|[A-Za-z]{3,})"
_OFFSET: Final = r"[+-]?\d{1,3}(?::\d{1,2}(?::\d{1,2})?)?"
_TZ: Final = re.compile(
    rf"{_NAME}(?P<std>{_OFFSET})(?:{_NAME}(?P<dst>{_OFFSET})?(?:,(?P<start>[^,]+),(?P<end>[^,]+))?)?"
).fullmatch
_RULE: Final = re.compile(rf"(?P<day>M\d{{1,2}}\.[1-5]\.[0-6]|J\d{{1,3}}|\d{{1,3}})(?:/(?P<time>{_OFFSET}))?").fullmatch
_USA: Final = ("M3.2.0", "M11.1.0")
"""What everybody takes where the rules are left out, such as `EST5EDT`."""


class _Change(NamedTuple):
    """One rule of the two: which day, and how many seconds after its local midnight."""

    day: str
    time_s: int


class Zone:
    """A time zone with at most one summer time a year."""

    def __init__(self, std_s: int, dst_s: int | None = None, start: _Change | None = None, end: _Change | None = None):
        self._std_s, self._dst_s, self._start, self._end = std_s, std_s if dst_s is None else dst_s, start, end
        self._years: dict[int, tuple[int, int]] = {}

    def offset_at(self, utc_s: float) -> int:
        """Seconds to add to UTC."""
        if self._start is None:
            return self._std_s
        begin, end = self._summer(_year_of(int(utc_s) + self._std_s))
        is_summer = begin <= utc_s < end if begin < end else not end <= utc_s < begin
        return self._dst_s if is_summer else self._std_s

    def next_transition(self, utc_s: float) -> float | None:
        """The next moment at which the offset may change; None: never."""
        if self._start is None:
            return None
        year = _year_of(int(utc_s) + self._std_s)
        moments = [m for y in (year, year + 1) for m in self._summer(y) if m > utc_s]
        return min(moments)

    def local(self, utc_s: float) -> tuple[int, int]:
        """Local day since 1970-01-01 and second of that day."""
        return divmod(int(utc_s) + self.offset_at(utc_s), DAY_S)

    def _summer(self, year: int) -> tuple[int, int]:
        """Begin and end of summer time in UTC; south of the equator it ends before it begins."""
        found = self._years.get(year)
        if found is None:
            assert self._start is not None
            assert self._end is not None
            begin = _day_of(self._start.day, year) * DAY_S + self._start.time_s - self._std_s
            end = _day_of(self._end.day, year) * DAY_S + self._end.time_s - self._dst_s
            if len(self._years) > 16:
                self._years.clear()
            found = self._years[year] = (begin, end)
        return found


UTC: Final = Zone(0)


def parse_zone(text: str, place: str = "timezone") -> Zone:
    """A zone from its POSIX string; empty and `UTC` are UTC.

    Raises: ConfigError.
    """
    if text in ("", "UTC", "GMT"):
        return UTC
    found = _TZ(text)
    if not found:
        raise ConfigError(f"{place}: expected a POSIX time zone such as 'CET-1CEST,M3.5.0,M10.5.0/3', got {text!r}")
    std_s = -_seconds(found["std"])
    rest = text[found.end("std") :]
    if not rest:
        return Zone(std_s)
    dst_s = -_seconds(found["dst"]) if found["dst"] else std_s + 3600
    start, end = (found["start"], found["end"]) if found["start"] else _USA
    return Zone(std_s, dst_s, _change(start, text, place), _change(end, text, place))


def footer(tzif: bytes) -> str:
    """The POSIX string at the end of a compiled zone file (RFC 8536 3.3), version 2 or later.

    Raises: ConfigError.
    """
    if not tzif.startswith(b"TZif") or tzif[4:5] < b"2" or not tzif.endswith(b"\n"):
        raise ConfigError("timezone: expected a TZif file of version 2 or later")
    return tzif[tzif.rindex(b"\n", 0, -1) + 1 : -1].decode("ascii", "replace")


def days_from_civil(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 of a date of the Gregorian calendar."""
    year -= month <= 2
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468


def civil_from_days(days: int) -> tuple[int, int, int]:
    """The reverse: year, month, day."""
    days += 719468
    era = days // 146097
    of_era = days - era * 146097
    year = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    day = of_year - (153 * month + 2) // 5 + 1
    month += 3 if month < 10 else -9
    return year + era * 400 + (month <= 2), month, day


def weekday(days: int) -> int:
    """0 Monday … 6 Sunday. 1970-01-01 was a Thursday."""
    return (days + 3) % 7


def _year_of(local_s: int) -> int:
    return civil_from_days(local_s // DAY_S)[0]


def _seconds(text: str) -> int:
    sign = -1 if text.startswith("-") else 1
    parts = [int(part) for part in text.lstrip("+-").split(":")]
    return sign * sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))


def _change(text: str, whole: str, place: str) -> _Change:
    found = _RULE(text)
    if not found or (text[0] == "M" and not 1 <= int(found["day"][1:].split(".")[0]) <= 12):
        raise ConfigError(f"{place}: expected a rule such as M3.5.0/2, got {text!r} in {whole!r}")
    return _Change(found["day"], _seconds(found["time"] or "2"))


def _day_of(rule: str, year: int) -> int:
    """The day a rule speaks of, since 1970-01-01."""
    if rule[0] == "M":  # month.week.day: week 5 is the last
        month, week, day = map(int, rule[1:].split("."))
        first = days_from_civil(year, month, 1)
        found = first + (day - (weekday(first) + 1)) % 7 + 7 * (week - 1)  # theirs: 0 is Sunday
        end = days_from_civil(year + month // 12, month % 12 + 1, 1)
        return found - 7 if found >= end else found
    first = days_from_civil(year, 1, 1)
    if rule[0] == "J":  # 1 to 365, 29 February is never counted
        number = int(rule[1:])
        is_leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        return first + number - 1 + (is_leap and number >= 60)
    return first + int(rule)
