"""Times as people write them."""

import datetime

import pytest

from agent.when import parse_until, parse_when
from policy.errors import ConfigError

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("5m", 300), ("1h", 3600), ("7d", 604800), ("2 w", 1209600), (" 1h ", 3600)]
)
def test_ago(text: str, seconds: int) -> None:
    assert parse_when(text, NOW, "--since") == NOW - seconds


def test_a_date_is_local_and_until_includes_the_day() -> None:
    day = datetime.datetime(2026, 3, 3).timestamp()
    assert parse_when("2026-03-03", NOW, "--since") == day
    assert parse_until("2026-03-03", NOW, "--until") == day + 86400
    assert parse_until("2026-03-03T10:15", NOW, "--until") == day + 10 * 3600 + 15 * 60
    assert parse_when("2026-03-03T10:15+08:00", NOW, "--since") == 1772504100


@pytest.mark.parametrize("text", ["", "yesterday", "1y", "2026-13-01", "-1h", "9999999d"])
def test_anything_else_is_refused_with_the_mend(text: str) -> None:
    with pytest.raises(ConfigError, match="--since: expected a time ago such as 30m"):
        parse_when(text, NOW, "--since")
