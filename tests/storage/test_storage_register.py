"""The register: what was saved is there after a restart, old things go, damage is put aside."""

import sqlite3
from pathlib import Path

import pytest

from policy.errors import StorageError
from storage.register import REGISTER, Register, Registered, Row

ROW = Row(
    "s1", "boot", 1_000, 1, "ann", b"sealed", b"i" * 16, "7", b"\2" * 6, b"\4\x0a\0\0\1", 5, 6, 0, "", "desk", 9, "", ""
)


def test_what_was_saved_is_there_again(tmp_path: Path) -> None:
    register = Register(str(tmp_path))
    register.save([ROW, ROW._replace(session="s2", cause="idle", logout_ms=6)])
    register.register([Registered("ann", b"sealed", b"i" * 16, "7", 0, 0)])
    register.close()
    again = Register(str(tmp_path))
    assert again.open_sessions() == [ROW]
    assert again.session("s2") is not None
    assert again.session("s3") is None
    assert {row.session for row in again.sessions_of(account="ann")} == {"s1", "s2"}
    assert {row.session for row in again.sessions_of(phone_index=b"i" * 16)} == {"s1", "s2"}
    assert again.sessions_of(phone_index=b"j" * 16) == []
    assert again.registration("ann") == Registered("ann", b"sealed", b"i" * 16, "7", 0, 0)
    assert (tmp_path / REGISTER).stat().st_mode & 0o777 == 0o600


def test_what_is_old_goes_and_its_octets_with_it(tmp_path: Path) -> None:
    register = Register(str(tmp_path))
    old = ROW._replace(session="s2", account="somebody-unforgettable", cause="idle", logout_ms=6)
    register.save([ROW, old])
    register.put_session_key("s2", b"k" * 32)
    register.register([Registered("gone", b"sealed-of-gone", b"", "", 0, 50), Registered("stays", b"", b"", "", 0, 0)])
    assert register.forget_sessions(1_006) == 0
    assert register.forget_sessions(1_007) == 1
    assert register.forget_registrations(51) == 1
    assert [found.account for found in register.registrations()] == ["stays"]
    assert register.session_key("s2") == b""
    register.close()
    raw = (tmp_path / REGISTER).read_bytes()
    assert b"somebody-unforgettable" not in raw
    assert b"k" * 32 not in raw


def test_damage_is_put_aside_and_the_register_begins_anew(tmp_path: Path) -> None:
    (tmp_path / REGISTER).write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    register = Register(str(tmp_path))
    assert register.was_damaged
    assert register.open_sessions() == []
    assert (tmp_path / "register.damaged").exists()


def test_a_register_of_another_form_is_put_aside_too(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / REGISTER)
    database.execute("CREATE TABLE session(id)")
    database.commit()
    database.close()
    assert Register(str(tmp_path)).was_damaged


def test_a_directory_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        Register(str(tmp_path / "nowhere"))
