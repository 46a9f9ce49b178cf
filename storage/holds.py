"""Holds: named records that outlive their time, because somebody who may has ordered it, until he lifts the hold.

A hold says whose or what, from when to when, why and by whom. When a segment goes, the records in it that a hold names
are copied here first, with their ids, in one transaction; each copy is signed with the ring's key. When the hold is
lifted, what no other hold names goes.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import msgpack

from policy.digest import blake2b
from policy.errors import ConfigError, CorruptError, StorageError
from policy.event import TAG_OF, TAGS, Event
from policy.signature import public_key, sign, verify
from storage.catalogue import HOLDS
from storage.clock import Quality
from storage.filter import Filter

MAX_KEPT: Final = 64 << 20
"""Octets of one segment's held records, unpacked."""
_TABLES: Final = (
    """CREATE TABLE hold(id INTEGER PRIMARY KEY, since_ms INT, until_ms INT, domain TEXT, client BLOB, mac BLOB,
    account TEXT, phone_index BLOB, reason TEXT, actor TEXT, placed_ms INT, sessions TEXT)""",
    "CREATE TABLE kept(segment INTEGER PRIMARY KEY, records INT, data BLOB, signature BLOB)",
)
_DAMAGE: Final = (sqlite3.DatabaseError, UnicodeDecodeError)


class Held(NamedTuple):
    """One record, as an answer of the ring had it."""

    seq: int
    wall_ms: int
    quality: Quality
    event: Event
    offset_ms: int
    part: int
    times: int
    resolution_ms: int
    not_after_ms: int = 0

    def matches(self, wanted: Filter) -> bool:
        """Does it match, its time too?"""
        latest_ms = max(self.wall_ms + self.resolution_ms, self.not_after_ms)
        in_time = self.wall_ms < wanted.until_ms and latest_ms > wanted.since_ms
        return in_time and wanted.matches(self.event)


class Hold(NamedTuple):
    """One order to keep. Times in wall ms; what is empty does not matter, but one of the five must be given."""

    number: int
    since_ms: int
    until_ms: int
    domain: str
    client: bytes
    mac: bytes
    account: str
    phone_index: bytes
    reason: str
    actor: str
    placed_ms: int
    sessions: str = ""
    """Those of the account or phone, as far as they are known, one a line."""

    def filter(self) -> Filter:
        """What it names."""
        return Filter(
            since_ms=self.since_ms,
            until_ms=self.until_ms,
            domain=self.domain,
            client=self.client,
            mac=self.mac,
            account=self.account,
            phone_index=self.phone_index,
            sessions=frozenset(self.sessions.split()) if self.account or self.phone_index else None,
        )


class Holds:
    """The holds of one ring, and what they keep. There is no file before the first hold."""

    def __init__(self, directory: str, secret: bytes = b"") -> None:
        """`secret`: the ring's key; empty: copies are not signed. Raises: StorageError, CorruptError."""
        self.path: Final = os.path.join(directory, HOLDS)
        self._secret = secret
        self._db: sqlite3.Connection | None = None
        self.active: tuple[Hold, ...] = ()
        if os.path.exists(self.path):
            self._open()

    def place(self, wanted: Filter, reason: str, actor: str, now_ms: int) -> Hold:
        """Keep what `wanted` names. On flash when this returns. Raises: ConfigError, StorageError."""
        if not (wanted.domain or wanted.client or wanted.mac or wanted.account or wanted.phone_index):
            raise ConfigError("hold: expected whose records, or of what domain: everybody's are not held")
        if wanted.sessions is not None or wanted.kind is not None or wanted.verdict is not None:
            raise ConfigError("hold: expected a domain, client, MAC, account or phone, and times, and nothing else")
        if not reason.strip():
            raise ConfigError("hold: expected a reason, such as the number of the order")
        number = max((hold.number for hold in self.active), default=0) + 1
        hold = Hold(
            number, wanted.since_ms, min(wanted.until_ms, 1 << 62), wanted.domain, wanted.client, wanted.mac,
            wanted.account, wanted.phone_index, reason, actor, now_ms,
        )  # fmt: skip
        db = self._db or self._open()
        with _errors(self.path):
            db.execute(f"INSERT INTO hold VALUES({','.join('?' * len(hold))})", hold)
        self.active = (*self.active, hold)
        return hold

    def lift(self, number: int) -> tuple[Hold, int]:
        """Keep it no longer. Returns the hold, and how many records went. Raises: ConfigError, StorageError."""
        found = [hold for hold in self.active if hold.number == number]
        if not found or self._db is None:
            numbers = ", ".join(str(hold.number) for hold in self.active) or "there is none"
            raise ConfigError(f"hold: no hold {number}; there are: {numbers}")
        left = tuple(hold for hold in self.active if hold.number != number)
        gone = 0
        kept = list(self.kept())
        with _errors(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for segment, records in kept:
                    stay = [held for held in records if any(held.matches(hold.filter()) for hold in left)]
                    gone += len(records) - len(stay)
                    if len(stay) != len(records):
                        self._put(segment, stay)
                self._db.execute("DELETE FROM hold WHERE id = ?", (number,))
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
        self.active = left
        return found[0], gone

    def keep(self, segment: int, records: Sequence[Held]) -> None:
        """Copy what is held of a segment that goes. On flash when this returns. Raises: StorageError."""
        with _errors(self.path):
            self._put(segment, records)

    def learn(self, sessions: Mapping[int, Iterable[str]]) -> None:
        """More sessions of the accounts that holds name, by hold. Raises: StorageError."""
        for hold in self.active:
            known = set(hold.sessions.split())
            if self._db is not None and not known.issuperset(found := set(sessions.get(hold.number, ()))):
                text = "\n".join(sorted(known | found))
                with _errors(self.path):
                    self._db.execute("UPDATE hold SET sessions = ? WHERE id = ?", (text, hold.number))
                self.active = tuple(each._replace(sessions=text) if each is hold else each for each in self.active)

    def kept(self) -> Iterator[tuple[int, list[Held]]]:
        """Segments that are gone, and what is held of each. Raises: CorruptError, StorageError."""
        if self._db is None:
            return
        with _errors(self.path):
            rows = self._db.execute("SELECT segment, data FROM kept ORDER BY segment").fetchall()
        for segment, data in rows:
            yield segment, unpack_held(data)

    def check(self, public: bytes) -> Iterator[int]:
        """Follow all copies; yields the segment of each that is right. Raises: CorruptError, naming the first bad."""
        if self._db is None:
            return
        with _errors(self.path):
            rows = self._db.execute("SELECT segment, records, data, signature FROM kept ORDER BY segment").fetchall()
        for segment, count, data, signature in rows:
            if type(data) is not bytes or type(signature) is not bytes or type(segment) is not int:
                raise CorruptError(f"{self.path}: a row is not what was written")
            if public and not verify(public, _message(segment, data), signature):
                raise CorruptError(f"{self.path}: what is held of segment {segment} is not what was kept")
            if len(unpack_held(data)) != count:
                raise CorruptError(f"{self.path}: what is held of segment {segment} is not {count} records")
            yield segment

    def close(self) -> None:
        """Let go of the file."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _put(self, segment: int, records: Sequence[Held]) -> None:
        assert self._db is not None, "nothing is held before there is a hold"
        if not records:
            self._db.execute("DELETE FROM kept WHERE segment = ?", (segment,))
            return
        data = pack_held(records)
        signature = sign(self._secret, _message(segment, data)) if self._secret else b""
        self._db.execute("INSERT OR REPLACE INTO kept VALUES(?,?,?,?)", (segment, len(records), data, signature))

    def _open(self) -> sqlite3.Connection:
        with _errors(self.path):
            db = sqlite3.connect(self.path, isolation_level=None)
            db.execute("PRAGMA synchronous=FULL")
            if os.stat(self.path).st_mode & 0o077:
                os.chmod(self.path, 0o600)
            if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                db.execute("BEGIN")
                for statement in _TABLES:
                    db.execute(statement)
                db.execute("COMMIT")
            try:
                self.active = tuple(Hold(*row) for row in db.execute("SELECT * FROM hold ORDER BY id"))
            except TypeError:
                raise CorruptError(f"{self.path}: no table of holds") from None
        self._db = db
        return db

    def public_key(self) -> bytes:
        """What copies are checked with."""
        return public_key(self._secret) if self._secret else b""


def pack_held(records: Iterable[Held]) -> bytes:
    """Records to octets."""
    rows = [
        (
            held.seq, held.wall_ms, int(held.quality), held.offset_ms, held.part, held.times, held.resolution_ms,
            held.not_after_ms, TAG_OF[type(held.event)], *held.event,
        )
        for held in records
    ]  # fmt: skip
    return zlib.compress(msgpack.packb(rows, unicode_errors="surrogatepass"), 9)


def unpack_held(data: object) -> list[Held]:
    """What `pack_held` was given. Raises: CorruptError."""
    try:
        engine = zlib.decompressobj()
        plain = engine.decompress(data, MAX_KEPT)  # type: ignore[arg-type]  # other types raise TypeError
        if engine.unconsumed_tail or not engine.eof:
            raise CorruptError("held records: cut, or more than any segment has")
        rows: Any = msgpack.unpackb(plain, use_list=False, unicode_errors="surrogatepass")
        records = []
        for seq, wall_ms, quality, offset_ms, part, times, resolution_ms, not_after_ms, tag, *fields in rows:
            numbers = (seq, wall_ms, quality, offset_ms, part, times, resolution_ms, not_after_ms)
            if {type(number) for number in numbers} != {int}:
                raise CorruptError("held records: a number is none")
            kind = TAGS[tag]
            event = kind(*fields[: len(kind._fields)])
            records.append(Held(seq, wall_ms, Quality(quality), event, *numbers[3:]))
    except (ValueError, TypeError, LookupError, zlib.error, msgpack.UnpackException, RecursionError) as error:
        raise CorruptError(f"held records: {error!r}") from None
    return records


def _message(segment: int, data: bytes) -> bytes:
    return b"held" + segment.to_bytes(8, "little") + blake2b(data, digest_size=32).digest()


@contextmanager
def _errors(path: str) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except _DAMAGE as error:
        is_damage = getattr(error, "sqlite_errorname", "") in ("SQLITE_CORRUPT", "SQLITE_NOTADB", "")
        damaged = is_damage or "no such" in str(error)
        raise (CorruptError if damaged else StorageError)(f"{path}: {error}") from None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None
