"""Times as people write them: `1h`, `2 d` ago; `2026-03-03`, `2026-03-03 10:15`, with or without zone. Pure."""

from __future__ import annotations

import datetime
import re
from typing import Final

from policy.errors import ConfigError

_AGO: Final = re.compile(r"(\d{1,6}) ?(s|m|h|d|w)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_when(text: str, now_s: float, option: str) -> float:
    """Wall seconds since 1970. A date without zone is the venue's local time.

    Raises: ConfigError, naming `option`.
    """
    if ago := _AGO.fullmatch(text.strip()):
        return now_s - int(ago[1]) * _SECONDS[ago[2]]
    try:
        return datetime.datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ConfigError(
            f"{option}: expected a time ago such as 30m, 1h, 7d, or a date such as 2026-03-03 or 2026-03-03T10:15, "
            f"got {text!r}"
        ) from None


def stamp(at_s: float) -> str:
    """A moment, as records show it: local time with its offset."""
    return datetime.datetime.fromtimestamp(int(at_s)).astimezone().isoformat()


def parse_until(text: str, now_s: float, option: str) -> float:
    """As `parse_when`, but a bare date means its end: `--until 2026-03-03` includes that day."""
    at = parse_when(text, now_s, option)
    return at + 86400 if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text.strip()) else at
