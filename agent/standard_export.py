"""`gatehouse export --standard ga`: sessions and accesses of a time as an archive of the supervising side's sets."""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from agent import standard
from policy.config import Config
from policy.errors import ConfigError, StorageError

MAX_KEPT = standard.MAX_FILES * standard.MAX_ROWS
"""Rows in one archive: what is more does not fit, and would fill a router's memory."""


class Exported(NamedTuple):
    """What came of it."""

    sessions: int
    accesses: int
    refused: Mapping[str, int]
    """Why -> rows that a table does not allow."""


def write_archive(
    path: str, config: Config, rows: Iterable[Mapping[str, object]], people: Mapping[str, Mapping[str, str]]
) -> Exported:
    """`rows` as `gatehouse query` gives them; `people`: account -> what was registered, opened. Raises: ConfigError."""
    if os.path.exists(path):
        raise ConfigError(f"--to: {path} is there already; move it away, or name another file")
    site = standard.site_of(config.main.venue, config.main.device, config.venue._asdict())
    venue = standard.check(standard.VENUE, site)
    device = standard.check(standard.DEVICE, site)
    sessions: dict[str, Mapping[str, object]] = {}
    accesses: list[list[str]] = []
    refused: dict[str, int] = {}
    for row in rows:
        if row["kind"] == "session":
            sessions[str(row["session"])] = row  # the last record of a session is its state
        elif row["kind"] in ("dns", "flow"):
            _add(accesses, standard.ACCESS, standard.access_row(site, row), refused)
        if len(accesses) > MAX_KEPT:
            raise ConfigError(f"export: more than {MAX_KEPT} accesses; ask for a shorter time")
    online: list[list[str]] = []
    for session in sessions.values():
        person = people.get(str(session.get("account")))
        _add(online, standard.ONLINE, standard.online_row(site, session, person), refused)
    tables = {
        standard.VENUE.name: [venue],
        standard.DEVICE.name: [device],
        standard.ONLINE.name: online,
        standard.ACCESS.name: accesses,
    }
    unfinished = f"{path}.tmp"
    try:
        handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, octets in standard.files(tables, config.main.venue[:6], int(time.time())):
                archive.writestr(name, octets)
        os.replace(unfinished, path)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None
    finally:
        if os.path.exists(unfinished):
            os.unlink(unfinished)
    return Exported(len(online), len(accesses), refused)


def _add(
    to: list[list[str]], record_set: standard.RecordSet, row: Mapping[str, object], refused: dict[str, int]
) -> None:
    try:
        to.append(standard.check(record_set, row))
    except ConfigError as error:
        refused[str(error)] = refused.get(str(error), 0) + 1
