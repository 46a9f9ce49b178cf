"""One segment file: batches appended, each in one transaction with the marks of who sent them. The shell around SQLite.

WAL, synchronous=FULL: a commit that returned is on flash. EXCLUSIVE locking keeps the WAL's index off the flash (it
would be 40 % of what is written) and means that only this process can read the segment while it is open.
Sources: sqlite.org/wal.html, sqlite.org/pragma.html.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from policy.errors import CorruptError, StorageError
from storage import chain
from storage.clock import Sample

FORMAT: Final = 1
LOCKED_S: Final = 1.0
"""How long another process that looks at the file is waited for."""
PREFIX: Final = "seg-"
SUFFIX: Final = ".db"
_META: Final = "CREATE TABLE meta(k TEXT PRIMARY KEY, v) WITHOUT ROWID"
_BATCHES: Final = """
CREATE TABLE batch(seq INTEGER PRIMARY KEY, n INT NOT NULL, boot TEXT NOT NULL, mono INT NOT NULL, wall INT NOT NULL,
    synced INT NOT NULL, t0 INT NOT NULL, t1 INT NOT NULL, chain BLOB NOT NULL, data BLOB NOT NULL)
"""
_MARKS: Final = "CREATE TABLE mark(source BLOB PRIMARY KEY, seq INT NOT NULL) WITHOUT ROWID"
_INSERT: Final = "INSERT INTO batch VALUES(?,?,?,?,?,?,?,?,?,?)"
_NEXT: Final = """
SELECT seq, n, boot, mono, wall, synced, t0, t1, chain, data FROM batch WHERE seq > ? ORDER BY seq LIMIT 1
"""
_DAMAGE: Final = (sqlite3.DatabaseError, UnicodeDecodeError)
"""What reading a damaged file raises; the second when SQLite's own message quotes damaged text."""
_MAX_MS: Final = 1 << 47
"""4,400 years of milliseconds: what is beyond it was never written, and a calendar could not show it."""
_MARK: Final = "INSERT OR REPLACE INTO mark VALUES(?,?)"


class Batch(NamedTuple):
    """One committed batch. `t0` and `t1`: the earliest and the latest time since boot in it."""

    seq: int
    records: int
    sample: Sample
    t0: int
    t1: int
    link: bytes
    data: bytes


def path_of(directory: str, number: int) -> str:
    """Where segment `number` lies."""
    return os.path.join(directory, f"{PREFIX}{number:06}{SUFFIX}")


def numbers_in(directory: str) -> list[int]:
    """All segments of a ring, ascending. Raises: StorageError."""
    try:
        names = os.listdir(directory)
    except OSError as error:
        raise StorageError(f"{directory}: {error.strerror}") from None
    found = [name.removeprefix(PREFIX).removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)]
    return sorted(int(number) for number in found if number.isdecimal())


class Beginning(NamedTuple):
    """What a segment takes over from the one before it."""

    first_seq: int = 1
    before: bytes = chain.START
    marks: Mapping[bytes, int] = {}


class UnbegunError(StorageError):
    """The power went before the segment's first transaction: nothing is in it, and the one before it is the last."""


class FullError(StorageError):
    """No room: nothing has changed, and the file is as good as it was."""


class Segment:
    """One open segment file."""

    def __init__(self, path: str, number: int, *, is_open: bool, beginning: Beginning | None = None) -> None:
        """`is_open`: the one that is written; `beginning`: make it. Raises: StorageError, Corrupt-, UnbegunError."""
        self.number = number
        self.path = path
        self._identity = (0, 0)
        try:
            self._db = sqlite3.connect(path if is_open else f"file:{path}?mode=ro", LOCKED_S, uri=not is_open)
        except sqlite3.Error as error:
            raise _translated(path, error) from None
        try:
            self._open(is_open=is_open, beginning=beginning)
        except BaseException as error:
            self._db.close()  # or its lock would be in the way of the next try
            if isinstance(error, _DAMAGE):
                raise _translated(path, error) from None
            if isinstance(error, OSError):
                raise StorageError(f"{path}: {error.strerror}") from None
            if isinstance(error, KeyError | TypeError | ValueError):
                raise CorruptError(f"{path}: no segment: {error}") from None
            raise

    def _open(self, *, is_open: bool, beginning: Beginning | None) -> None:
        path = self.path
        self._db.isolation_level = None
        if is_open:
            # Before anything is read: or what a killed writer left is opened with its index in shared memory, which
            # JFFS2 does not have, and the ring would not open again there.
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA schema_version")  # makes the file, if it is not there
            found = os.stat(path)
            self._identity = (found.st_dev, found.st_ino)
            if found.st_mode & 0o077:
                os.chmod(path, 0o600)
            # Page size first: it cannot be changed afterwards.
            for pragma in ("page_size=1024", "journal_mode=WAL", "synchronous=FULL"):
                self._db.execute(f"PRAGMA {pragma}")
            self._db.execute("PRAGMA wal_autocheckpoint=800")
            if beginning is not None:
                self._begin(beginning)
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables:
            raise UnbegunError(f"{path}: empty")
        meta = dict(self._db.execute("SELECT k, v FROM meta"))
        self.first_seq, self.before = int(meta["first_seq"]), bytes(meta["before"])
        if meta["format"] != FORMAT:
            raise StorageError(f"{path}: format {meta['format']}, expected {FORMAT}; it is of another release")
        last = self._db.execute("SELECT seq + n, chain FROM batch ORDER BY seq DESC LIMIT 1").fetchone()
        self.next_seq, self.head = (int(last[0]), bytes(last[1])) if last else (self.first_seq, self.before)

    def _begin(self, beginning: Beginning) -> None:
        """All in one transaction: a segment that exists has its place in the chain and knows what was sent already."""
        self._db.execute("BEGIN IMMEDIATE")
        for statement in (_META, _BATCHES, _MARKS):
            self._db.execute(statement)
        meta = (("format", FORMAT), ("first_seq", beginning.first_seq), ("before", beginning.before))
        self._db.executemany("INSERT INTO meta VALUES(?,?)", meta)
        self._db.executemany(_MARK, beginning.marks.items())
        self._db.execute("COMMIT")

    def append(self, count: int, sample: Sample, t0: int, t1: int, data: bytes, marks: Mapping[bytes, int]) -> None:
        """Commit one batch and its marks; on flash when this returns. Raises: StorageError, and nothing has changed."""
        linked = chain.link(self.head, self.number, self.next_seq, count, sample, data)
        try:
            self._db.execute("BEGIN IMMEDIATE")
            if count:
                row = (self.next_seq, count, sample.boot, sample.boottime_ms, sample.wall_ms, sample.synced, t0, t1)
                self._db.execute(_INSERT, (*row, linked, data))
            self._db.executemany(_MARK, marks.items())
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                try:
                    self._db.execute("ROLLBACK")
                except sqlite3.Error:  # the disk is gone; the next BEGIN will say so
                    pass
            raise _translated(self.path, error) from None
        if count:
            self.next_seq += count
            self.head = linked

    def marks(self) -> dict[bytes, int]:
        """Source -> sequence number of the last frame of it that is kept here."""
        try:
            found = dict(self._db.execute("SELECT source, seq FROM mark"))
        except _DAMAGE as error:
            raise _translated(self.path, error) from None
        # A mark that makes no sense is no mark: its source will send again what is there already, once.
        return {source: seq for source, seq in found.items() if isinstance(source, bytes) and isinstance(seq, int)}

    def forget_marks(self, sources: list[bytes]) -> None:
        """Sources that will never send again."""
        try:
            self._db.executemany("DELETE FROM mark WHERE source = ?", [(source,) for source in sources])
        except sqlite3.Error as error:
            raise _translated(self.path, error) from None

    def is_there(self) -> bool:
        """Is the file that was opened still the one of that name?"""
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._identity

    def last_sample(self) -> Sample | None:
        """The clock reading of the last batch; None: there is no batch yet."""
        try:
            row = self._db.execute("SELECT boot, mono, wall, synced FROM batch ORDER BY seq DESC LIMIT 1").fetchone()
        except _DAMAGE as error:
            raise _translated(self.path, error) from None
        return self._sample(row) if row else None

    def samples(self) -> Iterator[Sample]:
        """The clock reading of each batch, in order."""
        try:
            for row in self._db.execute("SELECT boot, mono, wall, synced FROM batch ORDER BY seq"):
                yield self._sample(row)
        except _DAMAGE as error:
            raise _translated(self.path, error) from None

    def spans(self) -> Iterator[tuple[Sample, int, int]]:
        """For each batch its clock reading and the times of its earliest and its latest record."""
        for batch in self.batches():
            yield batch.sample, batch.t0, batch.t1

    def batches(self, after: int = -1) -> Iterator[Batch]:
        """Batches that begin after a number, in order. One by one: more may be appended between two of them."""
        seq = after
        while True:
            try:
                row = self._db.execute(_NEXT, (seq,)).fetchone()
            except _DAMAGE as error:
                raise _translated(self.path, error) from None
            if row is None:
                return
            before = seq
            seq, count, boot, mono, wall, synced, t0, t1, linked, data = row
            if [type(item) for item in (seq, count, t0, t1, linked, data)] != [int] * 4 + [bytes] * 2:
                raise CorruptError(f"{self.path}: batch {seq}: a column is not what it was written as")
            # Not behind the one before it: a damaged tree would be walked in a circle for ever.
            if not (before < seq < 1 << 63 and 0 < count < 1 << 31 and 0 <= t0 <= t1 < _MAX_MS):
                raise CorruptError(f"{self.path}: batch {seq}: a column is out of range")
            yield Batch(seq, count, self._sample((boot, mono, wall, synced)), t0, t1, linked, data)

    def _sample(self, row: tuple[object, ...]) -> Sample:
        """SQLite looks at no type when it reads: a damaged row may hold anything anywhere."""
        boot, mono, wall, synced = row
        if not (isinstance(boot, str) and isinstance(mono, int) and isinstance(wall, int) and isinstance(synced, int)):
            raise CorruptError(f"{self.path}: a clock reading is not what it was written as")
        if not (0 <= mono < _MAX_MS and -_MAX_MS < wall < _MAX_MS):
            raise CorruptError(f"{self.path}: a clock reading is out of range")
        return Sample(boot, mono, wall, bool(synced))

    def close(self, *, is_final: bool = False) -> None:
        """`is_final`: nothing will be appended any more; the file becomes one plain, immutable file."""
        try:
            if is_final:
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self._db.execute("PRAGMA journal_mode=DELETE")
            self._db.close()
        except sqlite3.Error as error:
            raise _translated(self.path, error) from None


def _translated(path: str, error: sqlite3.Error | UnicodeDecodeError) -> StorageError:
    """SQLite's error as ours: damage is CorruptError, the rest (full, read-only, I/O) StorageError."""
    name = getattr(error, "sqlite_errorname", "")
    if (
        isinstance(error, UnicodeDecodeError)
        or name in ("SQLITE_CORRUPT", "SQLITE_NOTADB")
        or "no such table" in str(error)
        or "no such column" in str(error)
    ):
        return CorruptError(f"{path}: {error}")
    return (FullError if name == "SQLITE_FULL" else StorageError)(f"{path}: {error}")
