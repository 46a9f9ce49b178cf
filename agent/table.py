"""Rows as a person wants to read them: columns, local time, and words instead of codes. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, TypeAlias

Row: TypeAlias = Mapping[str, object]

_HEAD: Final = ("time", "client", "what", "verdict", "name or object", "why and more")
_WIDTHS: Final = (19, 15, 11, 7, 34)


def lines(rows: Iterable[Row]) -> Iterator[str]:
    """A head line, then one line a row, as they come: an answer of 100,000 rows must not wait for its last."""
    yield _line(_HEAD)
    for row in rows:
        yield _line(cells(row))


def cells(row: Row) -> tuple[str, ...]:
    """One row's six columns."""
    kind = str(row.get("kind", ""))
    at = _local(str(row.get("time", ""))) + {"unsynced": "?", "corrected": "~"}.get(str(row.get("clock")), "")
    client = str(row.get("client", ""))
    verdict = str(row.get("verdict", ""))
    match kind:
        case "dns":
            more = _join(
                _why(row), f"-> {_some(row.get('answers'))}" if row.get("answers") else str(row.get("rcode", ""))
            )
            return at, client, f"dns {row.get('type', '')}", verdict, str(row.get("name", "")), more
        case "flow":
            seen = str(row.get("seen", "none"))
            what = seen if seen != "none" else f"{row.get('protocol')}/{row.get('dport')}"
            name = (
                f"{row.get('name')}{row.get('path', '')}" if row.get("name") else f"{row.get('dst')}:{row.get('dport')}"
            )
            blind = "" if row.get("blind") in (None, "", "not_blind") else f"no name: {row['blind']}"
            return at, client, what, verdict, name, _join(_why(row), blind)
        case "maintenance":
            more = _join(str(row.get("result", "")), str(row.get("detail", "")), f"by {row.get('actor')}")
            return at, "", "maintenance", str(row.get("action", "")), str(row.get("object", "")), more
        case "gap":
            lost = row.get("lost")
            count = "unknown number" if lost == -1 else str(lost)
            return at, "", "gap", "", str(row.get("source", "")), f"{count} lost: {row.get('why')}"
        case "flood":
            return (
                at,
                client,
                "flood",
                "",
                _some(row.get("sample")),
                f"{row.get('events')} counted, not kept one by one",
            )
        case "session":
            state = f"logout: {row.get('cause')}" if row.get("cause") else "login"
            return at, _some(row.get("addresses")), "session", "", str(row.get("account", "")), state
        case _:
            rest = {
                k: v
                for k, v in row.items()
                if k not in ("kind", "time", "clock", "client", "id") and v not in ("", None)
            }
            return at, client, kind, verdict, "", ", ".join(f"{key}={value}" for key, value in rest.items())


def _line(values: Iterable[str]) -> str:
    first = list(values)
    return "  ".join(
        [cell.ljust(width) for cell, width in zip(first, _WIDTHS, strict=False)] + first[len(_WIDTHS) :]
    ).rstrip()


def _why(row: Row) -> str:
    reason = str(row.get("reason", ""))
    return "" if reason in ("", "default") else _join(reason, str(row.get("rule", "")))


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _some(values: object) -> str:
    if not isinstance(values, list | tuple):
        return ""
    shown = ", ".join(map(str, values[:2]))
    return f"{shown}, and {len(values) - 2} more" if len(values) > 2 else shown


def _local(text: str) -> str:
    try:
        return datetime.datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return text
