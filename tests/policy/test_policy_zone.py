"""Local time, against the C library's own reading of the same strings."""

import datetime
import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.errors import ConfigError
from policy.zone import UTC, civil_from_days, days_from_civil, footer, parse_zone, weekday

ZONES = [
    "CET-1CEST,M3.5.0,M10.5.0/3",  # Berlin
    "EST5EDT,M3.2.0,M11.1.0",  # New York
    "AEST-10AEDT,M10.1.0,M4.1.0/3",  # Sydney: summer at the turn of the year
    "<-03>3<-02>,M3.5.0/-1,M10.5.0/0",  # Nuuk: a time before midnight
    "NST3:30NDT,M3.2.0,M11.1.0",  # St John's
    "CST-8",  # Shanghai
    "<+0545>-5:45",  # Kathmandu
    "IST-1GMT0,M10.5.0,M3.5.0/1",  # Dublin, whose summer time is the standard one
    "AAA3BBB,J60/0,J300",
    "AAA3BBB,59/1,299/25",
]


@pytest.fixture
def c_library(monkeypatch):
    before = os.environ.get("TZ")
    yield lambda text: (monkeypatch.setenv("TZ", text), time.tzset())
    monkeypatch.undo()
    if before is None:
        os.environ.pop("TZ", None)
    time.tzset()


@pytest.mark.parametrize("text", ZONES)
def test_offsets_are_those_of_the_c_library(text, c_library) -> None:
    c_library(text)
    zone = parse_zone(text)
    start = days_from_civil(2024, 1, 1) * 86400
    for step in range(4 * 366 * 24):
        moment = start + 3600 * step
        assert zone.offset_at(moment) == time.localtime(moment).tm_gmtoff, datetime.datetime.fromtimestamp(moment)


@pytest.mark.parametrize("text", ZONES)
def test_the_offset_changes_at_a_transition_and_nowhere_else(text) -> None:
    zone = parse_zone(text)
    moment = days_from_civil(2025, 1, 15) * 86400
    for _ in range(8):
        following = zone.next_transition(moment)
        if following is None:
            return
        assert following > moment
        assert zone.offset_at(following - 1) == zone.offset_at(moment)
        assert zone.offset_at(following) != zone.offset_at(following - 1)
        moment = following


@given(st.integers(-100_000, 200_000))
def test_days_and_dates_are_each_others_reverse(days: int) -> None:
    date = datetime.date(1970, 1, 1) + datetime.timedelta(days)
    assert civil_from_days(days) == (date.year, date.month, date.day)
    assert days_from_civil(date.year, date.month, date.day) == days
    assert weekday(days) == date.weekday()


def test_utc_has_many_names() -> None:
    assert parse_zone("") is UTC
    assert parse_zone("UTC") is UTC
    assert parse_zone("UTC0").local(86400.5) == (1, 0)


@pytest.mark.parametrize(
    "text", ["Berlin", "CET", "CET-1CEST,M13.1.0,M10.5.0", "CET-1CEST,M3.6.0,M1.1.0", "CET-1CEST,x,y"]
)
def test_what_is_no_zone_says_so(text: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        parse_zone(text)


@settings(max_examples=300)
@given(st.text(alphabet="CESTDM0123456789.,/+-<>:J", max_size=30))
def test_any_text_is_a_zone_or_a_config_error(text: str) -> None:
    try:
        zone = parse_zone(text)
    except ConfigError:
        return
    zone.offset_at(1.8e9)
    zone.next_transition(1.8e9)


def test_the_footer_of_a_zone_file_is_its_posix_string() -> None:
    assert footer(b"TZif2" + b"\0" * 40 + b"\nCET-1CEST,M3.5.0,M10.5.0/3\n") == "CET-1CEST,M3.5.0,M10.5.0/3"
    for data in (b"", b"TZif\0 old\n", b"text\n"):
        with pytest.raises(ConfigError):
            footer(data)
