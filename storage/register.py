"""The register: who is registered (sealed), and the sessions that go on or are young enough to be asked for.

One small SQLite file beside the keys. The ring is the record; this is what must be found at once, and what a restart
or a power cut must not forget: open sessions with the moment at which each was last seen.
Rule: nothing here is readable that the ring would not hold, phone numbers and names are sealed before they come, and
what is deleted is overwritten (`secure_delete`). A file that is damaged is put aside and begun anew.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

import msgpack

from policy.errors import CorruptError, StorageError

REGISTER: Final = "register"
MAX_SESSIONS: Final = 500_000
"""Rows; 60 days of 2,000 guests with four logins a day. Beyond it the oldest ended ones go."""
_TABLES: Final = (
    """CREATE TABLE session(id TEXT PRIMARY KEY, boot TEXT, offset_ms INT, is_synced INT, account TEXT, phone BLOB,
    phone_index BLOB, room TEXT, mac BLOB, addresses BLOB, login_ms INT, seen_ms INT, logout_ms INT, cause TEXT,
    source TEXT, expires_ms INT, token TEXT, nas TEXT) WITHOUT ROWID""",
    "CREATE INDEX session_open ON session(id) WHERE cause = ''",
    "CREATE INDEX session_phone ON session(phone_index) WHERE phone_index != x''",
    "CREATE INDEX session_account ON session(account) WHERE account != ''",
    """CREATE TABLE registration(account TEXT PRIMARY KEY, sealed BLOB, blind_index BLOB, room TEXT, valid_from_s INT,
    valid_to_s INT) WITHOUT ROWID""",
    # In one row, not in those of the sessions: these lie on many pages, each of which would be written each time.
    "CREATE TABLE seen(one INTEGER PRIMARY KEY CHECK(one = 1), data BLOB)",
    "CREATE TABLE session_key(id TEXT PRIMARY KEY, key BLOB) WITHOUT ROWID",
)
_ERASING: Final = "CREATE TABLE IF NOT EXISTS erasing(id TEXT PRIMARY KEY, actor TEXT, reason TEXT) WITHOUT ROWID"
"""Later than the others: a register of an earlier release has none yet."""


class Row(NamedTuple):
    """A session. Times in milliseconds since its boot; plus `offset_ms` they are wall times."""

    session: str
    boot: str
    offset_ms: int
    is_synced: int
    account: str
    phone: bytes
    phone_index: bytes
    room: str
    mac: bytes
    addresses: bytes
    """Each with an octet of its length in front."""
    login_ms: int
    seen_ms: int
    logout_ms: int
    cause: str
    """Empty: it goes on."""
    source: str
    expires_ms: int
    token: str
    nas: str


class Registered(NamedTuple):
    """A registration, as far as a router can read it."""

    account: str
    sealed: bytes
    blind_index: bytes
    room: str
    valid_from_s: int
    valid_to_s: int
    """0: no end."""


class Register:
    """The file, open. Only one process may write it."""

    def __init__(self, directory: str) -> None:
        """`directory` empty: in memory. A damaged file is moved to `register.damaged`, and `was_damaged` says so.

        Raises: StorageError.
        """
        self.path: Final = os.path.join(directory, REGISTER) if directory else ":memory:"
        self.was_damaged = False
        try:
            self._db = self._open()
        except CorruptError:
            self.was_damaged = True
            try:
                os.replace(self.path, f"{self.path}.damaged")
                for leftover in ("-wal", "-shm", "-journal"):
                    if os.path.exists(self.path + leftover):
                        os.unlink(self.path + leftover)
            except OSError as error:
                raise StorageError(f"{self.path}: {error.strerror}") from None
            self._db = self._open()

    def save(self, rows: Iterable[Row]) -> None:
        """Sessions that began, changed, ended, or were seen. On flash when this returns. Raises: StorageError."""
        with _errors(self.path), self._transaction():
            self._db.executemany(f"INSERT OR REPLACE INTO session VALUES({','.join('?' * len(Row._fields))})", rows)

    def open_sessions(self) -> list[Row]:
        """Those without an end. Raises: StorageError."""
        with _errors(self.path):
            rows = [Row(*row) for row in self._db.execute("SELECT * FROM session WHERE cause = ''")]
            seen = self._db.execute("SELECT data FROM seen").fetchone()
        try:
            later: dict[str, int] = dict(msgpack.unpackb(seen[0])) if seen else {}
        except (ValueError, TypeError, msgpack.UnpackException):
            later = {}
        return [row._replace(seen_ms=max(row.seen_ms, later.get(row.session, row.seen_ms))) for row in rows]

    def save_seen(self, seen: Mapping[str, int]) -> None:
        """When each open session was last seen, in its boot's milliseconds. On flash then. Raises: StorageError."""
        with _errors(self.path), self._transaction():
            self._db.execute("INSERT OR REPLACE INTO seen VALUES(1, ?)", (msgpack.packb(dict(seen)),))

    def session(self, session: str) -> Row | None:
        """One session. Raises: StorageError."""
        with _errors(self.path):
            found = self._db.execute("SELECT * FROM session WHERE id = ?", (session,)).fetchone()
        return Row(*found) if found else None

    def sessions_of(self, account: str = "", phone_index: bytes = b"", limit: int = 1000) -> list[Row]:
        """Sessions of an account or a phone, or all, the latest first. Raises: StorageError."""
        where, values = ["1"], list[object]()
        if account:
            where, values = [*where, "account = ?"], [*values, account]
        if phone_index:
            where, values = [*where, "phone_index = ?", "phone_index != x''"], [*values, phone_index]
        text = f"SELECT * FROM session WHERE {' AND '.join(where)} ORDER BY login_ms + offset_ms DESC LIMIT ?"
        with _errors(self.path):
            return [Row(*row) for row in self._db.execute(text, (*values, limit))]

    def forget_sessions(self, before_wall_ms: int) -> int:
        """Ended sessions of before a moment go. Returns how many. Raises: StorageError."""
        with _errors(self.path), self._transaction():
            gone = self._db.execute(
                "DELETE FROM session WHERE cause != '' AND logout_ms + offset_ms < ?", (before_wall_ms,)
            ).rowcount
            gone += self._db.execute(
                """DELETE FROM session WHERE id IN (SELECT id FROM session WHERE cause != ''
                ORDER BY login_ms + offset_ms DESC LIMIT -1 OFFSET ?)""",
                (MAX_SESSIONS,),
            ).rowcount
            self._db.execute("DELETE FROM session_key WHERE id NOT IN (SELECT id FROM session)")
            return gone

    def session_key(self, session: str) -> bytes:
        """What opens a session's fields in the ring; empty: erased, or they are not closed. Raises: StorageError."""
        with _errors(self.path):
            row = self._db.execute("SELECT key FROM session_key WHERE id = ?", (session,)).fetchone()
        return bytes(row[0]) if row else b""

    def has_keys(self) -> bool:
        """Are there sessions whose fields in the ring are closed? Raises: StorageError."""
        with _errors(self.path):
            return self._db.execute("SELECT 1 FROM session_key LIMIT 1").fetchone() is not None

    def put_session_key(self, session: str, key: bytes) -> None:
        """Remember it. On flash when this returns. Raises: StorageError."""
        with _errors(self.path), self._transaction():
            self._db.execute("INSERT OR REPLACE INTO session_key VALUES(?,?)", (session, key))

    def begin_erasing(self, session: str, actor: str, reason: str) -> None:
        """This session is to go, whatever happens next. On flash when this returns. Raises: StorageError."""
        with _errors(self.path), self._transaction():
            self._db.execute("INSERT OR REPLACE INTO erasing VALUES(?,?,?)", (session, actor, reason))

    def erasing(self) -> list[tuple[str, str, str]]:
        """(session, actor, reason) of those that are to go, and have not gone yet. Raises: StorageError."""
        with _errors(self.path):
            return list(self._db.execute("SELECT id, actor, reason FROM erasing ORDER BY id"))

    def erase_session(self, session: str) -> bool:
        """One session goes, and with its key what the ring has of it. False: there is none. Raises: StorageError."""
        with _errors(self.path), self._transaction():
            self._db.execute("DELETE FROM erasing WHERE id = ?", (session,))
            self._db.execute("DELETE FROM session_key WHERE id = ?", (session,))
            return self._db.execute("DELETE FROM session WHERE id = ?", (session,)).rowcount > 0

    def register(self, found: Sequence[Registered]) -> None:
        """New or changed registrations, all or none. On flash when this returns. Raises: StorageError."""
        with _errors(self.path), self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO registration VALUES(?,?,?,?,?,?)", found)

    def registration(self, account: str) -> Registered | None:
        """Who has this account. Raises: StorageError."""
        with _errors(self.path):
            row = self._db.execute("SELECT * FROM registration WHERE account = ?", (account,)).fetchone()
        return Registered(*row) if row else None

    def registrations(self) -> list[Registered]:
        """All of them, by account. Raises: StorageError."""
        with _errors(self.path):
            return [Registered(*row) for row in self._db.execute("SELECT * FROM registration ORDER BY account")]

    def forget_registrations(self, before_s: int) -> int:
        """Those that ended before a moment go. Returns how many. Raises: StorageError."""
        with _errors(self.path), self._transaction():
            return self._db.execute(
                "DELETE FROM registration WHERE valid_to_s != 0 AND valid_to_s < ?", (before_s,)
            ).rowcount

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _open(self) -> sqlite3.Connection:
        with _errors(self.path):
            mask = os.umask(0o177)
            try:
                db = sqlite3.connect(self.path, isolation_level=None)
                # A rollback journal: readers from outside there are none, and WAL would keep old pages in its file.
                db.execute("PRAGMA secure_delete=ON")
                db.execute("PRAGMA synchronous=FULL")
                if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    db.execute("BEGIN")
                    for statement in _TABLES:
                        db.execute(statement)
                    db.execute("COMMIT")
                db.execute(_ERASING)
                for name, width in (("session", len(Row._fields)), ("registration", len(Registered._fields))):
                    if len(db.execute(f"PRAGMA table_info({name})").fetchall()) != width:
                        raise CorruptError(f"{self.path}: no table of {name}s")
            finally:
                os.umask(mask)
        return db


@contextmanager
def _errors(path: str) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        damaged = getattr(error, "sqlite_errorname", "") in ("SQLITE_CORRUPT", "SQLITE_NOTADB", "")
        raise (CorruptError if damaged or "no such" in str(error) else StorageError)(f"{path}: {error}") from None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None
