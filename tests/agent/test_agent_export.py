"""Records as a plain database: a table a kind, indexes, views; whole, or not there at all; nobody else's to read."""

import os
import sqlite3
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from agent import export
from agent.export import write_database
from policy.errors import ConfigError, StorageError
from policy.event import Dns, Flow, Gap, Maintenance, Session
from storage.rows import row

CLIENT, MAC = bytes((10, 20, 0, 11)), bytes((2, 0, 0, 0, 0, 11))
AT_MS = 1_772_500_000_000
LOOK_UP = Dns(AT_MS, CLIENT, "a.example", 1, 0, 0, 0, "", "g", (CLIENT, MAC[:4]), True, 0, MAC, "s1")
BLOCKED = LOOK_UP._replace(at_ms=AT_MS + 1000, name="casino.example", verdict=1, rule="gambling", answers=())
FLOW = Flow(AT_MS + 2000, CLIENT, MAC, 40000, CLIENT, 443, 6, "b.example", 2, 0, "", 0, 0, "", "g", session="s1")
SESSION = Session(AT_MS, "s1", "ann", b"", "7", MAC, (CLIENT,), AT_MS, 0, "", "desk")
EVENTS = (LOOK_UP, BLOCKED, FLOW, SESSION, Maintenance(AT_MS, "mei", "hold", "hold 1", "", "", "ok"),
          Gap(AT_MS, "dns/0", 1, AT_MS, AT_MS, "x"))  # fmt: skip


def rows(events: tuple[object, ...] = EVENTS) -> Iterator[Mapping[str, object]]:
    for number, event in enumerate(events):
        yield row(event, f"1:{number}", event.at_ms, "synced", int)  # type: ignore[arg-type,attr-defined]


def ask(path: Path, text: str, *values: object) -> list[tuple[object, ...]]:
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return database.execute(text, values).fetchall()
    finally:
        database.close()


def test_each_kind_is_a_table_and_the_questions_of_an_auditor_are_answered(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    assert write_database(str(path), rows()) == len(EVENTS)
    tables = {name for (name,) in ask(path, "SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables == {"lookups", "flows", "sessions", "maintenance", "gaps"}
    assert ask(path, "SELECT client, mac, session FROM lookups WHERE name = 'a.example'") == [
        ("10.20.0.11", "02:00:00:00:00:0b", "s1")
    ]
    assert ask(path, "SELECT account FROM sessions JOIN flows USING (session) WHERE name = 'b.example'") == [("ann",)]
    assert ask(path, "SELECT name, how FROM accesses ORDER BY time") == [
        ("a.example", "look-up"), ("casino.example", "look-up"), ("b.example", "flow"),
    ]  # fmt: skip
    assert ask(path, "SELECT name, rule FROM stopped") == [("casino.example", "gambling")]
    assert ask(path, "SELECT actor FROM maintenance WHERE action = 'hold'") == [("mei",)]
    (answers,) = ask(path, "SELECT json_array_length(answers) FROM lookups WHERE name = 'a.example'")
    assert answers == (2,)


@pytest.mark.parametrize("column", ["name", "client", "mac", "session", "time"])
def test_a_question_by_person_name_or_time_uses_an_index(tmp_path: Path, column: str) -> None:
    path = tmp_path / "audit.db"
    write_database(str(path), rows())
    for table in ("lookups", "flows"):
        plan = ask(path, f"EXPLAIN QUERY PLAN SELECT * FROM {table} WHERE {column} = ?", "x")
        assert "USING INDEX" in str(plan), plan


@pytest.mark.parametrize("events", [(), (SESSION,), (LOOK_UP,), (FLOW,)], ids=["none", "session", "look-up", "flow"])
def test_the_views_are_there_whatever_is(tmp_path: Path, events: tuple[object, ...]) -> None:
    path = tmp_path / "audit.db"
    write_database(str(path), rows(events))
    names = [event.name for event in events if isinstance(event, Dns | Flow)]
    assert ask(path, "SELECT name, mac, rule FROM accesses") == [(name, "02:00:00:00:00:0b", "") for name in names]
    assert ask(path, "SELECT * FROM stopped") == []


def test_a_later_releases_column_and_kind_and_more_rows_than_a_batch(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    many = [{"id": f"1:{n}", "kind": "dns", "name": f"n{n}.example", "verdict": "allow"} for n in range(2500)]
    later = [{"id": "2:0", "kind": "dns", "name": "x.example", "new": 1}, {"id": "2:1", "kind": "omen", "what": "?"}]
    assert write_database(str(path), [*many, *later]) == 2502
    assert ask(path, "SELECT count(*), count(new) FROM lookups") == [(2501, 1)]
    assert ask(path, "SELECT what FROM omen") == [("?",)]


def test_it_is_its_owners_only_even_while_it_grows(tmp_path: Path) -> None:
    path, modes = tmp_path / "audit.db", []

    def watched() -> Iterator[Mapping[str, object]]:
        for each in rows():
            modes.append(stat.S_IMODE((tmp_path / "audit.db.tmp").stat().st_mode))
            yield each

    mask = os.umask(0)
    try:
        write_database(str(path), watched())
    finally:
        os.umask(mask)
    assert {*modes, stat.S_IMODE(path.stat().st_mode)} == {0o600}
    assert [each.name for each in tmp_path.iterdir()] == ["audit.db"]


def test_a_file_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    path.write_text("mine")
    with pytest.raises(ConfigError, match=r"audit.db is there already; move it away"):
        write_database(str(path), rows())
    assert path.read_text() == "mine"


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no/such: no such directory"):
        write_database(f"{tmp_path}/no/such/audit.db", rows())


def broken_off() -> Iterator[Mapping[str, object]]:
    yield from rows()
    raise StorageError("the agent broke off")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (broken_off(), "the agent broke off"),
        ([{"id": "1:1", "name": "a.example"}], "expected rows with their kind"),
        ([{"id": "1:1", "kind": 7}], "expected rows with their kind"),
        ([{"id": "1:1", "kind": "dns", "name": 1 << 70}], "too large"),
        ([{"id": "1:1", "kind": "dns"}] * 2, "UNIQUE"),
    ],
)
def test_half_a_database_is_none(tmp_path: Path, given: Iterator[Mapping[str, object]], why: str) -> None:
    (tmp_path / "audit.db.tmp").write_text("left by an export that the power ended")
    with pytest.raises(StorageError, match=why):
        write_database(str(tmp_path / "audit.db"), given)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    insert = export._insert

    def full(database: object, kind: str, batch: list[dict[str, object]]) -> None:
        insert(database, kind, batch)  # type: ignore[arg-type]
        database.execute("PRAGMA max_page_count = 1")  # type: ignore[attr-defined]  # as SQLite sees a full disk

    monkeypatch.setattr(export, "_insert", full)
    with pytest.raises(StorageError, match="full"):
        write_database(str(tmp_path / "audit.db"), rows())
    assert list(tmp_path.iterdir()) == []
