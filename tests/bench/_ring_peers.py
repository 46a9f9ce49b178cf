"""What a venue would have otherwise, with the same records: rows in SQLite, lines of JSON, lines of text.

Schemas and formats as their projects document them; nothing of their code. Each takes a directory and a number of
records, commits once a minute of the day's time, and tells octets on disk, CPU, and octets that reached the device.
"""

import base64
import gzip
import json
import lzma
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from policy.event import Dns, Event, Flow
from storage.rows import address
from tests.bench._ring_day import day

MINUTE_MS = 60_000


def minutes(events: str, clients: int = 300) -> Iterator[list[Event]]:
    waiting: list[Event] = []
    due = MINUTE_MS
    for batch in day(1, clients, int(events)):
        if batch and batch[-1].at_ms >= due:
            yield waiting
            waiting, due = [], batch[-1].at_ms // MINUTE_MS * MINUTE_MS + MINUTE_MS
        waiting += batch
    yield waiting


class _Measure:
    def __init__(self, directory: str, stat: str) -> None:
        from tests.bench._ring_child import syncfs, written

        self._directory, self._stat, self._written, self._syncfs = directory, stat, written, syncfs
        self.cpu_s, self.events = 0.0, 0
        self._descriptor = os.open(directory, os.O_RDONLY)
        syncfs(self._descriptor)
        self._before = written(stat) if stat else 0

    def done(self) -> dict[str, float]:
        self._syncfs(self._descriptor)
        size = sum(path.stat().st_size for path in Path(self._directory).iterdir() if path.is_file())
        found = {"events": self.events, "bytes": size, "cpu_us": self.cpu_s / max(1, self.events) * 1e6}
        if self._stat:
            found["device"] = self._written(self._stat) - self._before
        return found


def naive(directory: str, stat: str, events: str) -> dict[str, float]:
    """sqlite-utils as its guide shows it: a table with a text column a field, and an index for each question."""
    import sqlite_utils

    measure = _Measure(directory, stat)
    database = sqlite_utils.Database(f"{directory}/audit.db")
    for batch in minutes(events):
        rows = [
            {
                "time": event.at_ms,
                "client": address(event.client),
                "mac": event.mac.hex(":"),
                "kind": type(event).__name__,
                "name": event.name,
                "type": event.qtype if isinstance(event, Dns) else event.dport,
                "verdict": event.verdict,
                "rule": event.rule,
                "answers": ",".join(map(address, event.answers if isinstance(event, Dns) else (event.dst,))),
                "path": event.path if isinstance(event, Flow) else "",
            }
            for event in batch
            if isinstance(event, Dns | Flow)
        ]
        began = time.process_time()
        table = database.table("events")
        table.insert_all(rows)
        if not measure.events and rows:
            for column in ("time", "client", "mac", "name", "verdict"):
                table.create_index([column])
        measure.cpu_s += time.process_time() - began
        measure.events += len(rows)
    database.close()
    return measure.done()


_PIHOLE = """
CREATE TABLE query_storage(id INTEGER PRIMARY KEY AUTOINCREMENT, timestamp INTEGER NOT NULL, type INTEGER NOT NULL,
    status INTEGER NOT NULL, domain INTEGER NOT NULL, client INTEGER NOT NULL, forward INTEGER, additional_info INTEGER,
    reply_type INTEGER, reply_time REAL, dnssec INTEGER, list_id INTEGER, ede INTEGER);
CREATE TABLE domain_by_id(id INTEGER PRIMARY KEY, domain TEXT NOT NULL);
CREATE TABLE client_by_id(id INTEGER PRIMARY KEY, ip TEXT NOT NULL, name TEXT);
CREATE UNIQUE INDEX domain_by_id_domain_idx ON domain_by_id(domain);
CREATE UNIQUE INDEX client_by_id_client_idx ON client_by_id(ip, name);
CREATE INDEX idx_queries_timestamps ON query_storage(timestamp);
"""


def pihole(directory: str, stat: str, events: str) -> dict[str, float]:
    """Pi-hole FTL's schema of version 6: ids for names and clients, an index over time; look-ups only."""
    measure = _Measure(directory, stat)
    db = sqlite3.connect(f"{directory}/pihole-FTL.db", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.executescript(_PIHOLE)
    domains: dict[str, int] = {}
    clients: dict[str, int] = {}
    for batch in minutes(events):
        look_ups = [event for event in batch if isinstance(event, Dns)]
        texts = [address(event.client) for event in look_ups]
        began = time.process_time()
        db.execute("BEGIN")
        rows = []
        for event, client in zip(look_ups, texts, strict=True):
            domain = domains.get(event.name)
            if domain is None:
                domain = domains[event.name] = len(domains) + 1
                db.execute("INSERT INTO domain_by_id VALUES(?,?)", (domain, event.name))
            who = clients.get(client)
            if who is None:
                who = clients[client] = len(clients) + 1
                db.execute("INSERT INTO client_by_id VALUES(?,?,NULL)", (who, client))
            status = 1 if event.verdict else 3 if event.cached else 2
            rows.append((event.at_ms // 1000, event.qtype, status, domain, who, event.latency_ms / 1e3))
        db.executemany("INSERT INTO query_storage VALUES(NULL,?,?,?,?,?,1,NULL,3,?,0,NULL,-1)", rows)
        db.execute("COMMIT")
        measure.cpu_s += time.process_time() - began
        measure.events += len(look_ups)
    db.close()
    return measure.done()


def adguard(directory: str, stat: str, events: str) -> dict[str, float]:
    """AdGuard Home's query log: a line of JSON a look-up, flushed every thousand; then gzipped, as rotations are."""
    measure = _Measure(directory, stat)
    path = Path(directory, "querylog.json")
    lines: list[str] = []

    def flush() -> None:
        with path.open("a") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())
        lines.clear()

    for batch in minutes(events):
        began = time.process_time()
        for event in batch:
            if isinstance(event, Dns):
                lines.append(_adguard_line(event))
                measure.events += 1
                if len(lines) >= 1000:
                    flush()
        measure.cpu_s += time.process_time() - began
    flush()
    found = measure.done()
    found["gzip"] = len(gzip.compress(path.read_bytes(), 9))
    return found


def _adguard_line(event: Dns) -> str:
    answer = b"\0\1\x81\x80" + event.name.encode() + b"".join(event.answers)
    line: dict[str, object] = {
        "T": f"2026-03-03T{event.at_ms / 3.6e6:.9f}+01:00",
        "QH": event.name,
        "QT": {1: "A", 28: "AAAA"}.get(event.qtype, "HTTPS"),
        "QC": "IN",
        "CP": "",
        "Upstream": "" if event.cached else "https://dns.example:443/dns-query",
        "Answer": base64.b64encode(answer).decode(),
        "IP": address(event.client),
        "Result": {"IsFiltered": True, "Reason": 3, "Rules": [{"FilterListID": 1, "Text": event.rule}]}
        if event.verdict
        else {},
        "Elapsed": event.latency_ms * 1_000_000,
        "Cached": event.cached,
    }
    return json.dumps(line, separators=(",", ":")) + "\n"


def text(directory: str, stat: str, events: str) -> dict[str, float]:
    """Lines of text with what a sealed segment keeps, in order of time: `xz -9e` and `gzip -9` of a whole day."""
    lines: list[str] = []
    for batch in minutes(events):
        for event in batch:
            second, who = event.at_ms // 1000, f"{address(event.client)} {event.mac.hex()} {event.session}"  # type: ignore[union-attr]
            if isinstance(event, Dns):
                rest = (
                    f"{event.name} {event.qtype} {event.verdict} {event.rule} {','.join(map(address, event.answers))}"
                )
            else:
                assert isinstance(event, Flow)
                rest = f"{event.name} {address(event.dst)} {event.dport} {event.protocol} {event.verdict} {event.path}"
            lines.append(f"{second} {who} {rest}\n")
    plain = "".join(lines).encode()
    began = time.process_time()
    packed = lzma.compress(plain, preset=9 | lzma.PRESET_EXTREME)
    cpu_s = time.process_time() - began
    return {
        "events": len(lines),
        "bytes": len(packed),
        "gzip": len(gzip.compress(plain, 9)),
        "cpu_us": cpu_s / len(lines) * 1e6,
    }


PEERS = {"naive": naive, "pihole": pihole, "adguard": adguard, "text": text}
