"""`gatehouse export`: records as a plain, indexed SQLite database, for any tool that reads one.

Through sqlite-utils, on whatever machine the command runs on: it takes 20 MB and is no part of the router's data path.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from policy.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from sqlite_utils import Database

TABLES: Final = {
    "dns": "lookups",
    "flow": "flows",
    "session": "sessions",
    "maintenance": "maintenance",
    "registration": "registrations",
    "nat": "nat",
    "health": "health",
    "gap": "gaps",
    "flood": "floods",
}
"""Kind -> table."""
_INDEXES: Final = ("time", "client", "mac", "name", "session", "verdict", "account", "action")
_BATCH: Final = 1000
_ACCESSES: Final = (("lookups", "look-up"), ("flows", "flow"))
_ACCESS: Final = ("id", "time", "client", "mac", "session", "name", "verdict", "reason", "rule")
"""Columns of the views `accesses`, and `stopped` of those of them that were not let through."""


def write_database(path: str, rows: Iterable[Mapping[str, object]]) -> int:
    """Write rows as `gatehouse query` gives them. Returns how many. Raises: ConfigError, StorageError."""
    try:
        import sqlite_utils
    except ImportError:
        raise ConfigError("export: sqlite-utils is not installed here; `pip install sqlite-utils`") from None
    if os.path.exists(path):
        raise ConfigError(f"--to: {path} is there already; move it away, or name another file")
    directory = os.path.dirname(path) or "."
    if not os.path.isdir(directory):
        raise ConfigError(f"--to: {directory}: no such directory")
    unfinished = f"{path}.tmp"
    try:
        _clear(unfinished)
        # Made before SQLite opens it: it must not be readable by others while it is being filled either.
        os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        database = sqlite_utils.Database(unfinished)
        try:
            count = _fill(database, rows)
        finally:
            database.close()
        os.replace(unfinished, path)
    except (OSError, sqlite3.Error, OverflowError) as error:
        raise StorageError(f"{path}: {getattr(error, 'strerror', '') or error}") from None
    finally:
        _clear(unfinished)
    return count


def _clear(unfinished: str) -> None:
    for leftover in ("", "-journal"):
        if os.path.exists(unfinished + leftover):
            os.unlink(unfinished + leftover)


def _fill(database: Database, rows: Iterable[Mapping[str, object]]) -> int:
    waiting: dict[str, list[dict[str, Any]]] = {}
    count = 0
    for row in rows:
        kind = row.get("kind")
        if not isinstance(kind, str) or not kind:
            raise StorageError(f"export: expected rows with their kind, got {row!r:.120}")
        batch = waiting.setdefault(kind, [])
        batch.append(dict(_plain(row)))
        count += 1
        if len(batch) >= _BATCH:
            _insert(database, kind, batch)
            batch.clear()
    for kind, batch in waiting.items():
        _insert(database, kind, batch)
    for name in database.table_names():
        table = database.table(name)
        for column in _INDEXES:
            if column in table.columns_dict:
                table.create_index([column], if_not_exists=True)
    for name, where in (("accesses", ""), ("stopped", "WHERE verdict != 'allow'")):
        database.execute(f"CREATE VIEW {name} AS {_union(database)} {where}")
    database.vacuum()
    return count


def _union(database: Database) -> str:
    """Look-ups and flows in one, also where the profile or the question left nothing of either."""
    parts = []
    for table, how in _ACCESSES:
        there = database.table(table).columns_dict if table in database.table_names() else {}
        columns = ", ".join(name if name in there else f"NULL AS {name}" for name in _ACCESS)
        parts.append(f"SELECT {columns}, '{how}' AS how" + (f" FROM {table}" if there else " WHERE 0"))
    return f"SELECT * FROM ({' UNION ALL '.join(parts)})"


def _insert(database: Database, kind: str, batch: list[dict[str, Any]]) -> None:
    if batch:
        # A record that is folded and a whole one have the same columns; a later release's may have more.
        database.table(TABLES.get(kind, kind)).insert_all(batch, pk="id", alter=True, batch_size=_BATCH)


def _plain(row: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for key, value in row.items():
        if key != "kind":
            yield key, json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple | dict) else value
