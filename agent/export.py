"""`gatehouse export`: records as a plain, indexed SQLite database, for any tool that reads one.

Through sqlite-utils, on whatever machine the command runs on: it takes 20 MB and is no part of the router's data path.
"""

from __future__ import annotations

import json
import os
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
_VIEW: Final = """
CREATE VIEW {name} AS SELECT id, time, client, mac, session, name, verdict, reason, rule, 'look-up' AS how FROM lookups
{where} UNION ALL
SELECT id, time, client, mac, session, name, verdict, reason, rule, 'flow' AS how FROM flows {where}
"""


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
        if os.path.exists(unfinished):
            os.unlink(unfinished)
        database = sqlite_utils.Database(unfinished)
        try:
            count = _fill(database, rows)
        finally:
            database.close()
        os.chmod(unfinished, 0o600)
        os.replace(unfinished, path)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None
    finally:
        if os.path.exists(unfinished):
            os.unlink(unfinished)
    return count


def _fill(database: Database, rows: Iterable[Mapping[str, object]]) -> int:
    waiting: dict[str, list[dict[str, Any]]] = {}
    count = 0
    for row in rows:
        kind = str(row["kind"])
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
    if {"lookups", "flows"} <= set(database.table_names()):
        database.execute(_VIEW.format(name="accesses", where=""))
        database.execute(_VIEW.format(name="stopped", where="WHERE verdict != 'allow'"))
    database.vacuum()
    return count


def _insert(database: Database, kind: str, batch: list[dict[str, Any]]) -> None:
    if batch:
        # A record that is folded and a whole one have the same columns; a later release's may have more.
        database.table(TABLES.get(kind, kind)).insert_all(batch, pk="id", alter=True, batch_size=_BATCH)


def _plain(row: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for key, value in row.items():
        if key != "kind":
            yield key, json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple | dict) else value
