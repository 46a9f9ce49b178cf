"""Where the centre keeps what devices sent. One small interface, and SQLite behind it; several receivers may share it.

Order of calls: any of the `add_…`, then `commit`; what is acknowledged to a device after that is on disk.
Rule: whatever comes twice is there once. A sealed segment replaces the batches it was made of, in one transaction.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol, cast

import msgpack

from agent.uplink.wire import Piece, Row, Topics
from policy.errors import StorageError
from storage.sealed import Sealed

BUSY_S: Final = 30.0
"""How long another receiver on the same file is waited for."""
MAX_PIECES: Final = 64 << 20
"""Octets of unfinished segments of one device; beyond it the oldest go, and are sent again."""
MAX_ASIDE: Final = 256 << 20
"""Octets that are kept of what one device sent and cannot be right: the first of it tells what happened."""
HEARTBEATS_MS: Final = 30 * 86_400_000
"""How long heartbeats are kept."""


class Stream(NamedTuple):
    """The records of one ring of one device: a new flash, or a new key, begins another."""

    number: int
    venue: str
    device: str
    ring: bytes
    public_key: bytes = b""
    """Empty: not known yet."""
    is_enrolled: bool = False
    """Somebody here has entered the key; else it is the first that was seen."""


class Heard(NamedTuple):
    """What is known of how a device is."""

    venue: str
    device: str
    received_ms: int
    every_s: int
    state: str
    """Of the retained state: online, offline, lost; empty: nothing was said."""
    heartbeat: Mapping[str, Any]


class Alarm(NamedTuple):
    """Something that a person has to look at."""

    number: int
    venue: str
    device: str
    kind: str
    """silent, chain, signature, conflict, damaged, lost, key, clock."""
    from_ms: int
    to_ms: int
    """0: it goes on."""
    text: str
    exact_from_ms: int = 0
    """As the device itself says, in a record of its own; 0: it has not said."""
    exact_to_ms: int = 0


class Batch(NamedTuple):
    """A batch as it is kept."""

    segment: int
    first_seq: int
    boot: str
    row: Row
    before: bytes
    link: bytes

    @property
    def next_seq(self) -> int:
        """One past its last record."""
        return self.first_seq + self.row.records


class Store(Protocol):
    """What the receiver asks of its storage. Raises: StorageError, all of them."""

    def stream(self, topics: Topics, ring: bytes) -> Stream: ...
    def streams(self) -> list[Stream]: ...
    def set_key(self, topics: Topics, public_key: bytes, *, enrolled: bool) -> Stream: ...
    def link_at(self, stream: Stream, seq: int) -> bytes: ...
    def before_at(self, stream: Stream, seq: int) -> bytes: ...
    def batch_at(self, stream: Stream, seq: int) -> Batch | None: ...
    def sealed_at(self, stream: Stream, seq: int) -> tuple[int, int] | None: ...
    def overlaps(self, stream: Stream, first_seq: int, next_seq: int) -> bool: ...
    def add_batch(self, stream: Stream, batch: Batch) -> None: ...
    def add_piece(self, stream: Stream, whole: bytes, size: int, offset: int, data: bytes) -> bytes | None: ...
    def drop_pieces(self, stream: Stream, whole: bytes) -> None: ...
    def unpacked(self, stream: Stream, piece: Piece, octets: bytes) -> str: ...
    def add_sealed(self, stream: Stream, sealed: Sealed, path: str, *, is_signed: bool) -> None: ...
    def unsigned(self, stream: Stream) -> list[tuple[int, bytes, bytes]]: ...
    def set_signed(self, stream: Stream, segment: int) -> None: ...
    def add_lost(self, stream: Stream, segment: int, first_seq: int, next_seq: int, why: str) -> bool: ...
    def add_urgent(self, stream: Stream, seq: int, record: Mapping[str, object]) -> None: ...
    def take_urgent(self, stream: Stream, first_seq: int, next_seq: int) -> list[tuple[int, Mapping[str, Any]]]: ...
    def urgent(self, stream: Stream) -> list[tuple[int, Mapping[str, Any]]]: ...
    def add_anchor(self, stream: Stream, seq: int, head: bytes) -> bytes: ...
    def take_anchors(self, stream: Stream, first_seq: int, next_seq: int) -> list[tuple[int, bytes]]: ...
    def set_aside(self, stream: Stream, payload: bytes, why: str) -> None: ...
    def raise_alarm(self, topics: Topics, kind: str, at_ms: int, text: str) -> bool: ...
    def close_alarm(self, topics: Topics, kind: str, at_ms: int) -> None: ...
    def explain_alarm(self, topics: Topics, kind: str, from_ms: int, to_ms: int, text: str) -> None: ...
    def alarms(self) -> list[Alarm]: ...
    def add_heartbeat(self, topics: Topics, received_ms: int, every_s: int, fields: Mapping[str, Any]) -> None: ...
    def set_state(self, topics: Topics, state: str) -> None: ...
    def is_next_beat(self, topics: Topics, boot: str, mono_ms: int) -> bool: ...
    def heard(self, topics: Topics) -> Heard | None: ...
    def devices(self) -> list[Heard]: ...
    def add_reply(self, topics: Topics, received_ms: int, payload: bytes) -> None: ...
    def commit(self) -> None: ...
    def rollback(self) -> None: ...
    def close(self) -> None: ...


_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS stream(id INTEGER PRIMARY KEY, venue TEXT NOT NULL, device TEXT NOT NULL,
    ring BLOB NOT NULL, public_key BLOB NOT NULL DEFAULT x'', enrolled INT NOT NULL DEFAULT 0,
    UNIQUE(venue, device, ring));
CREATE TABLE IF NOT EXISTS batch(stream INT NOT NULL, first_seq INT NOT NULL, n INT NOT NULL, segment INT NOT NULL,
    boot TEXT NOT NULL, mono INT NOT NULL, wall INT NOT NULL, synced INT NOT NULL, prior BLOB NOT NULL,
    link BLOB NOT NULL, data BLOB NOT NULL, PRIMARY KEY(stream, first_seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sealed(stream INT NOT NULL, segment INT NOT NULL, first_seq INT NOT NULL,
    next_seq INT NOT NULL, prior BLOB NOT NULL, head BLOB NOT NULL, root BLOB NOT NULL, signature BLOB NOT NULL,
    signed INT NOT NULL, PRIMARY KEY(stream, segment)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sealed_by_seq ON sealed(stream, first_seq);
CREATE TABLE IF NOT EXISTS piece(stream INT NOT NULL, whole BLOB NOT NULL, at INT NOT NULL, data BLOB NOT NULL,
    UNIQUE(stream, whole, at));
CREATE TABLE IF NOT EXISTS lost(stream INT NOT NULL, first_seq INT NOT NULL, next_seq INT NOT NULL,
    segment INT NOT NULL, why TEXT NOT NULL, PRIMARY KEY(stream, first_seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS urgent(stream INT NOT NULL, seq INT NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY(stream, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS anchor(stream INT NOT NULL, seq INT NOT NULL, head BLOB NOT NULL,
    PRIMARY KEY(stream, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS aside(stream INT NOT NULL, payload BLOB NOT NULL, why TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS alarm(id INTEGER PRIMARY KEY, venue TEXT NOT NULL, device TEXT NOT NULL, kind TEXT NOT NULL,
    from_ms INT NOT NULL, to_ms INT NOT NULL DEFAULT 0, text TEXT NOT NULL, exact_from INT NOT NULL DEFAULT 0,
    exact_to INT NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS device(venue TEXT NOT NULL, device TEXT NOT NULL, received_ms INT NOT NULL DEFAULT 0,
    every_s INT NOT NULL DEFAULT 60, state TEXT NOT NULL DEFAULT '', heartbeat BLOB NOT NULL DEFAULT x'80',
    PRIMARY KEY(venue, device)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS heartbeat(venue TEXT NOT NULL, device TEXT NOT NULL, received_ms INT NOT NULL,
    payload BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS boot(id INTEGER PRIMARY KEY, venue TEXT NOT NULL, device TEXT NOT NULL, boot TEXT NOT NULL,
    mono_ms INT NOT NULL, UNIQUE(venue, device, boot));
CREATE INDEX IF NOT EXISTS heartbeat_by_time ON heartbeat(received_ms);
CREATE TABLE IF NOT EXISTS reply(venue TEXT NOT NULL, device TEXT NOT NULL, received_ms INT NOT NULL,
    payload BLOB NOT NULL);
"""
_STREAM: Final = "SELECT id, venue, device, ring, public_key, enrolled FROM stream"
_BATCH: Final = "SELECT segment, first_seq, boot, n, mono, wall, synced, data, prior, link FROM batch"


class SqliteStore:
    """The embedded default: one SQLite file, and a directory of sealed segments beside it."""

    def __init__(self, directory: str) -> None:
        """Raises: StorageError."""
        self.directory: Final = directory
        self._streams: dict[tuple[str, str, bytes], Stream] = {}
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            self._db = sqlite3.connect(os.path.join(directory, "centre.db"), BUSY_S, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"{directory}: {error}") from None

    # --- whose --------------------------------------------------------------------------------------------------

    def stream(self, topics: Topics, ring: bytes) -> Stream:
        """Of one ring; made, if it is new."""
        found = self._streams.get((*topics, ring))
        if found is None:
            self._run("INSERT OR IGNORE INTO stream(venue, device, ring) VALUES(?,?,?)", (*topics, ring))
            row = self._one(f"{_STREAM} WHERE venue = ? AND device = ? AND ring = ?", (*topics, ring))
            assert row is not None
            found = _stream(row)
            if found.public_key:  # another receiver may enter one that is not there yet
                self._streams[(*topics, ring)] = found
        return found

    def streams(self) -> list[Stream]:
        """All of them."""
        return [_stream(row) for row in self._all(f"{_STREAM} ORDER BY venue, device, id")]

    def set_key(self, topics: Topics, public_key: bytes, *, enrolled: bool) -> Stream:
        """The key that a ring's roots and heartbeats are signed with."""
        ring = public_key[:8]
        self.stream(topics, ring)
        self._run(
            "UPDATE stream SET public_key = ?, enrolled = max(enrolled, ?) WHERE venue = ? AND device = ? AND ring = ?",
            (public_key, enrolled, *topics, ring),
        )
        self._streams.pop((*topics, ring), None)
        return self.stream(topics, ring)

    # --- the chain ----------------------------------------------------------------------------------------------

    def link_at(self, stream: Stream, seq: int) -> bytes:
        """The chain after what ends just before record `seq`; empty: not known."""
        for sql in (
            "SELECT first_seq + n, link FROM batch WHERE stream = ? AND first_seq < ? ORDER BY first_seq DESC LIMIT 1",
            "SELECT next_seq, head FROM sealed WHERE stream = ? AND first_seq < ? ORDER BY first_seq DESC LIMIT 1",
        ):
            row = self._one(sql, (stream.number, seq))
            if row is not None and row[0] == seq:
                return bytes(row[1])
        return b""

    def before_at(self, stream: Stream, seq: int) -> bytes:
        """The chain as it was before what begins with record `seq`, as its own sender said; empty: not known."""
        for sql in (
            "SELECT prior FROM batch WHERE stream = ? AND first_seq = ?",
            "SELECT prior FROM sealed WHERE stream = ? AND first_seq = ?",
        ):
            row = self._one(sql, (stream.number, seq))
            if row is not None and row[0]:
                return bytes(row[0])
        return b""

    def batch_at(self, stream: Stream, seq: int) -> Batch | None:
        """The batch that record `seq` is in, unless it is here in a sealed segment, or not at all."""
        row = self._one(
            f"{_BATCH} WHERE stream = ? AND first_seq <= ? ORDER BY first_seq DESC LIMIT 1", (stream.number, seq)
        )
        return _batch(row) if row is not None and row[1] + row[3] > seq else None

    def sealed_at(self, stream: Stream, seq: int) -> tuple[int, int] | None:
        """The sealed segment that record `seq` is in: its number, and one past its last record.

        From the book, not from the file: one that is damaged here must not keep others from coming in.
        """
        row = self._one(
            "SELECT segment, next_seq FROM sealed WHERE stream = ? AND first_seq <= ? ORDER BY first_seq DESC LIMIT 1",
            (stream.number, seq),
        )
        return (int(row[0]), int(row[1])) if row is not None and row[1] > seq else None

    def overlaps(self, stream: Stream, first_seq: int, next_seq: int) -> bool:
        """Is anything of these records here?"""
        for sql in (
            "SELECT first_seq + n FROM batch WHERE stream = ? AND first_seq < ? ORDER BY first_seq DESC LIMIT 1",
            "SELECT next_seq FROM sealed WHERE stream = ? AND first_seq < ? ORDER BY first_seq DESC LIMIT 1",
        ):
            # What is here does not overlap itself, so the last that begins before the end says it.
            row = self._one(sql, (stream.number, next_seq))
            if row is not None and row[0] > first_seq:
                return True
        return False

    # --- records ------------------------------------------------------------------------------------------------

    def add_batch(self, stream: Stream, batch: Batch) -> None:
        """A batch that is not here yet."""
        row = batch.row
        self._run(
            "INSERT OR IGNORE INTO batch VALUES(?,?,?,?,?,?,?,?,?,?,?)",
            (
                stream.number,
                batch.first_seq,
                row.records,
                batch.segment,
                batch.boot,
                row.mono_ms,
                row.wall_ms,
                row.synced,
                batch.before,
                batch.link,
                row.data,
            ),
        )

    def batches(self, stream: Stream, segment: int, after: int = -1) -> Iterator[Batch]:
        """Of one segment, in order."""
        while rows := self._all(
            f"{_BATCH} WHERE stream = ? AND segment = ? AND first_seq > ? ORDER BY first_seq LIMIT 64",
            (stream.number, segment, after),
        ):
            for row in rows:
                yield _batch(row)
            after = rows[-1][1]

    def bounds(self, stream: Stream, segment: int) -> tuple[int, int]:
        """First record of the batches of a segment, and one past the last."""
        sql = "SELECT min(first_seq), max(first_seq + n) FROM batch WHERE stream = ? AND segment = ?"
        row = self._one(sql, (stream.number, segment))
        return (int(row[0]), int(row[1])) if row and row[0] is not None else (0, 0)

    def segments(self, stream: Stream) -> dict[int, bool]:
        """Number -> is it sealed; ascending."""
        loose = self._all("SELECT DISTINCT segment FROM batch WHERE stream = ?", (stream.number,))
        sealed = self._all("SELECT segment FROM sealed WHERE stream = ?", (stream.number,))
        found = {int(row[0]): False for row in loose} | {int(row[0]): True for row in sealed}
        return dict(sorted(found.items()))

    def add_piece(self, stream: Stream, whole: bytes, size: int, offset: int, data: bytes) -> bytes | None:
        """A part of something; all of it, once it is complete."""
        self._run("INSERT OR REPLACE INTO piece VALUES(?,?,?,?)", (stream.number, whole, offset, data))
        row = self._one("SELECT sum(length(data)) FROM piece WHERE stream = ? AND whole = ?", (stream.number, whole))
        if row is None or row[0] < size:
            self._bound_pieces(stream, whole)
            return None
        rows = self._all(
            "SELECT at, data FROM piece WHERE stream = ? AND whole = ? ORDER BY at", (stream.number, whole)
        )
        octets = bytearray(size)
        for at, part in rows:  # parts of another try may have been cut elsewhere
            octets[at : at + len(part)] = part
        return bytes(octets[:size])

    def drop_pieces(self, stream: Stream, whole: bytes) -> None:
        """It is complete, or of no use."""
        self._run("DELETE FROM piece WHERE stream = ? AND whole = ?", (stream.number, whole))

    def unpacked(self, stream: Stream, piece: Piece, octets: bytes) -> str:
        """Write a segment's file beside its place, to be looked at. Returns its path."""
        path = self.path_of(stream, piece.segment) + f".{os.getpid()}.tmp"
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            with open(path, "wb") as file:
                file.write(octets)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from None
        return path

    def add_sealed(self, stream: Stream, sealed: Sealed, path: str, *, is_signed: bool) -> None:
        """A segment that is whole; its batches go. `path`: as `unpacked` gave it."""
        target = self.path_of(stream, sealed.number)
        self._run(
            "INSERT OR REPLACE INTO sealed VALUES(?,?,?,?,?,?,?,?,?)",
            (
                stream.number,
                sealed.number,
                sealed.first_seq,
                sealed.next_seq,
                sealed.before,
                sealed.head,
                sealed.root,
                sealed.signature,
                is_signed,
            ),
        )
        self._run("DELETE FROM batch WHERE stream = ? AND segment = ?", (stream.number, sealed.number))
        try:
            os.replace(path, target)
            descriptor = os.open(os.path.dirname(target), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StorageError(f"{target}: {error.strerror}") from None

    def unsigned(self, stream: Stream) -> list[tuple[int, bytes, bytes]]:
        """Segments whose signature could not be checked yet: number, root, signature."""
        sql = "SELECT segment, root, signature FROM sealed WHERE stream = ? AND signed = 0"
        return [(int(row[0]), bytes(row[1]), bytes(row[2])) for row in self._all(sql, (stream.number,))]

    def set_signed(self, stream: Stream, segment: int) -> None:
        """Its signature holds."""
        self._run("UPDATE sealed SET signed = 1 WHERE stream = ? AND segment = ?", (stream.number, segment))

    def add_lost(self, stream: Stream, segment: int, first_seq: int, next_seq: int, why: str) -> bool:
        """Records that never come. True: that is news."""
        values = (stream.number, first_seq, next_seq, segment, why)
        return self._run("INSERT OR IGNORE INTO lost VALUES(?,?,?,?,?)", values).rowcount > 0

    def add_urgent(self, stream: Stream, seq: int, record: Mapping[str, object]) -> None:
        """A record ahead of its batch."""
        packed = msgpack.packb(record, unicode_errors="surrogatepass")
        self._run("INSERT OR IGNORE INTO urgent VALUES(?,?,?)", (stream.number, seq, packed))

    def take_urgent(self, stream: Stream, first_seq: int, next_seq: int) -> list[tuple[int, Mapping[str, Any]]]:
        """Those whose batch has come: they go."""
        where = "FROM urgent WHERE stream = ? AND seq >= ? AND seq < ?"
        values = (stream.number, first_seq, next_seq)
        found = [
            (int(seq), _map(packed)) for seq, packed in self._all(f"SELECT seq, record {where} ORDER BY seq", values)
        ]
        if found:
            self._run(f"DELETE {where}", values)
        return found

    def urgent(self, stream: Stream) -> list[tuple[int, Mapping[str, Any]]]:
        """Those whose batch has not come yet."""
        rows = self._all("SELECT seq, record FROM urgent WHERE stream = ? ORDER BY seq", (stream.number,))
        return [(int(seq), _map(packed)) for seq, packed in rows]

    def add_anchor(self, stream: Stream, seq: int, head: bytes) -> bytes:
        """A signed head whose records have not come yet. Returns the one that is known for that number."""
        self._run("INSERT OR IGNORE INTO anchor VALUES(?,?,?)", (stream.number, seq, head))
        row = self._one("SELECT head FROM anchor WHERE stream = ? AND seq = ?", (stream.number, seq))
        return bytes(row[0])

    def take_anchors(self, stream: Stream, first_seq: int, next_seq: int) -> list[tuple[int, bytes]]:
        """Signed heads within records that have come: they go."""
        where = "FROM anchor WHERE stream = ? AND seq > ? AND seq <= ?"
        values = (stream.number, first_seq, next_seq)
        found = [(int(seq), bytes(head)) for seq, head in self._all(f"SELECT seq, head {where}", values)]
        if found:
            self._run(f"DELETE {where}", values)
        return found

    def set_aside(self, stream: Stream, payload: bytes, why: str) -> None:
        """What cannot be right is kept as it came, for whoever looks into the alarm; so much of one device."""
        sql = "SELECT total(length(payload)) FROM aside JOIN stream ON stream.id = aside.stream"
        row = self._one(f"{sql} WHERE venue = ? AND device = ?", (stream.venue, stream.device))
        if row is not None and row[0] + len(payload) > MAX_ASIDE:
            return
        self._run("INSERT INTO aside VALUES(?,?,?)", (stream.number, payload, _clean(why)))

    # --- how devices are ----------------------------------------------------------------------------------------

    def raise_alarm(self, topics: Topics, kind: str, at_ms: int, text: str) -> bool:
        """False: the same is open already."""
        self._begin()
        values = (*topics, kind, _clean(text))
        if self._one("SELECT 1 FROM alarm WHERE venue=? AND device=? AND kind=? AND text=? AND to_ms=0", values):
            return False
        self._run("INSERT INTO alarm(venue, device, kind, text, from_ms) VALUES(?,?,?,?,?)", (*values, at_ms))
        return True

    def close_alarm(self, topics: Topics, kind: str, at_ms: int) -> None:
        """It is over."""
        self._run("UPDATE alarm SET to_ms=? WHERE venue=? AND device=? AND kind=? AND to_ms=0", (at_ms, *topics, kind))

    def explain_alarm(self, topics: Topics, kind: str, from_ms: int, to_ms: int, text: str) -> None:
        """The device's own record of what an alarm was about: exact bounds."""
        row = self._one(
            "SELECT id FROM alarm WHERE venue=? AND device=? AND kind=? AND exact_to=0 "
            "AND (to_ms=0 OR to_ms>=?) AND from_ms<=? "
            "ORDER BY id DESC LIMIT 1",
            (*topics, kind, from_ms, to_ms),
        )
        if row is not None:
            self._run(
                "UPDATE alarm SET exact_from=?, exact_to=?, text=text || ? WHERE id=?",
                (from_ms, to_ms, f"; the device: {_clean(text)}", row[0]),
            )

    def alarms(self) -> list[Alarm]:
        """All, the oldest first."""
        sql = "SELECT id, venue, device, kind, from_ms, to_ms, text, exact_from, exact_to FROM alarm ORDER BY id"
        return [Alarm(*row) for row in self._all(sql)]

    def add_heartbeat(self, topics: Topics, received_ms: int, every_s: int, fields: Mapping[str, Any]) -> None:
        """One that is signed as it should be."""
        packed = msgpack.packb(fields, unicode_errors="surrogatepass")
        self._run(
            "INSERT INTO device(venue, device, received_ms, every_s, heartbeat) VALUES(?,?,?,?,?) "
            "ON CONFLICT DO UPDATE SET received_ms=excluded.received_ms, every_s=excluded.every_s, "
            "heartbeat=excluded.heartbeat",
            (*topics, received_ms, every_s, packed),
        )
        self._run("INSERT INTO heartbeat VALUES(?,?,?,?)", (*topics, received_ms, packed))
        self._run("DELETE FROM heartbeat WHERE received_ms < ?", (received_ms - HEARTBEATS_MS,))

    def is_next_beat(self, topics: Topics, boot: str, mono_ms: int) -> bool:
        """Does it come after all that were taken? False: it was, or is of a boot that another has followed."""
        sql = "SELECT id, boot, mono_ms FROM boot WHERE venue = ? AND device = ?"
        same = self._one(f"{sql} AND boot = ?", (*topics, boot))
        last = self._one(f"{sql} ORDER BY id DESC LIMIT 1", topics)
        if same is not None and (same[0] != last[0] or same[2] >= mono_ms):
            return False
        self._run(
            "INSERT INTO boot(venue, device, boot, mono_ms) VALUES(?,?,?,?) "
            "ON CONFLICT DO UPDATE SET mono_ms=excluded.mono_ms",
            (*topics, boot, mono_ms),
        )
        return True

    def set_state(self, topics: Topics, state: str) -> None:
        """What the broker says of it."""
        self._run(
            "INSERT INTO device(venue, device, state) VALUES(?,?,?) ON CONFLICT DO UPDATE SET state=excluded.state",
            (*topics, state),
        )

    def heard(self, topics: Topics) -> Heard | None:
        """One device; None: never heard of."""
        found = self._heard("WHERE venue = ? AND device = ?", topics)
        return found[0] if found else None

    def devices(self) -> list[Heard]:
        """All of them."""
        return self._heard("ORDER BY venue, device")

    def add_reply(self, topics: Topics, received_ms: int, payload: bytes) -> None:
        """An answer to an order, for the record."""
        self._run("INSERT INTO reply VALUES(?,?,?,?)", (*topics, received_ms, payload))

    # --- inside -------------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """All that was added is on disk."""
        if self._db.in_transaction:
            self._execute("COMMIT", ())

    def rollback(self) -> None:
        """Nothing of it is."""
        if self._db.in_transaction:
            self._execute("ROLLBACK", ())
        self._streams.clear()

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def path_of(self, stream: Stream, segment: int) -> str:
        """Where a sealed segment lies."""
        return os.path.join(self.directory_of(stream), f"seg-{segment:06}.db")

    def directory_of(self, stream: Stream) -> str:
        """Of one ring's sealed segments. Its name is ours: what a device calls itself never names a file."""
        return os.path.join(self.directory, "sealed", str(stream.number))

    def _heard(self, where: str, values: tuple[object, ...] = ()) -> list[Heard]:
        rows = self._all(f"SELECT venue, device, received_ms, every_s, state, heartbeat FROM device {where}", values)
        return [
            Heard(venue, device, at, every_s, state, _map(beat)) for venue, device, at, every_s, state, beat in rows
        ]

    def _bound_pieces(self, stream: Stream, whole: bytes) -> None:
        row = self._one("SELECT total(length(data)) FROM piece WHERE stream = ?", (stream.number,))
        if row is not None and row[0] > MAX_PIECES:
            self._run("DELETE FROM piece WHERE stream = ? AND whole <> ?", (stream.number, whole))

    def _begin(self) -> None:
        if not self._db.in_transaction:
            self._execute("BEGIN IMMEDIATE", ())

    def _run(self, sql: str, values: tuple[object, ...]) -> sqlite3.Cursor:
        self._begin()
        return self._execute(sql, values)

    def _all(self, sql: str, values: tuple[object, ...] = ()) -> list[Any]:
        return self._execute(sql, values).fetchall()

    def _one(self, sql: str, values: tuple[object, ...]) -> Any:
        return self._execute(sql, values).fetchone()

    def _execute(self, sql: str, values: tuple[object, ...]) -> sqlite3.Cursor:
        try:
            return self._db.execute(sql, values)
        except sqlite3.Error as error:
            raise StorageError(f"{self.directory}: {error}") from None


def _stream(row: Any) -> Stream:
    number, venue, device, ring, public, enrolled = row
    return Stream(number, venue, device, ring, public, bool(enrolled))


def _batch(row: Any) -> Batch:
    segment, first_seq, boot, records, mono, wall, synced, data, before, link = row
    return Batch(segment, first_seq, boot, Row(records, mono, wall, bool(synced), data), bytes(before), bytes(link))


def _clean(text: str) -> str:
    """Without halves of surrogate pairs, which a device may send and SQLite does not take."""
    return text.encode("utf-8", "backslashreplace").decode()


def _map(packed: bytes) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", msgpack.unpackb(packed, use_list=False, unicode_errors="surrogatepass"))
