"""The format document holds: a reader written from docs/ring-format.md alone, and this release's, over golden files.

Nothing of `storage` is used by the first one: sqlite3, zlib, lzma, hashlib and MessagePack are what the page asks for.
"""

import hashlib
import json
import lzma
import shutil
import sqlite3
import struct
import zlib
from collections.abc import Iterator
from contextlib import closing
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgpack
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from policy.event import TAGS
from storage.verify import verify
from tests.storage.golden import VECTORS, read_rows

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/ring-format.md"
GOLDEN = json.loads((VECTORS / "rows.json").read_text())
UNIT_MS = (1000, 1000, 60_000, 300_000, 3_600_000, 86_400_000, 86_400_000)
WIDTHS = {1: "B", 2: "H", 4: "I", 8: "Q"}


def unpacked(data: bytes) -> Any:
    return msgpack.unpackb(data, use_list=False, strict_map_key=False, unicode_errors="surrogatepass")


def column(data: bytes) -> bytes:
    form, stream = data[0] & 15, data[1:]
    if data[0] & 16:
        return zlib.decompress(stream, wbits=-15)
    lc, lp, pb = ((3, 0, 0), (1, 0, 0), (0, 1, 1), (0, 2, 2))[form]
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 512 << 10, "lc": lc, "lp": lp, "pb": pb}]
    return lzma.decompress(stream, lzma.FORMAT_RAW, filters=filters)


def numbers(data: bytes) -> list[int]:
    width = {1: 1, 2: 2, 3: 4}[data[0] & 15]
    plain = column(data)
    return list(struct.unpack(f"<{len(plain) // width}{WIDTHS[width]}", plain))


def small(octets: bytes, longer: bytes) -> list[int]:
    rest = iter(numbers(longer))
    return [next(rest) if value == 255 else value for value in column(octets)]


def lines(data: bytes) -> list[str]:
    return column(data).decode("utf-8", "surrogatepass").split("\n")


def batch_rows(plain: bytes) -> list[tuple[int, list[Any]]]:
    """Tag and fields of each record, in order."""
    stream = msgpack.Unpacker(use_list=False, unicode_errors="surrogatepass")
    stream.feed(plain)
    form, shapes, names, targets, whos, others, base = stream.unpack()
    assert form == 2
    columns = []
    for _ in range(6):
        narrow = stream.unpack()
        columns.append(struct.unpack(f"<{(len(narrow) - 1) // narrow[0]}{WIDTHS[narrow[0]]}", narrow[1:]))
    rows: list[tuple[int, list[Any]]] = []
    waiting = list(others)
    for at, (shape, name, target, who, time, number) in enumerate(zip(*columns, strict=True)):
        while waiting and waiting[0][0] == at:
            _, tag, *fields = waiting.pop(0)
            rows.append((tag, fields))
        found, (client, mac, session) = shapes[shape], whos[who]
        if len(found) == 2:
            first, cached = found
            rows.append((1, [base + time, client, names[name], *first, targets[target], cached, number, mac, session]))
        else:
            ports, seen, last = found
            dst, path = targets[target]
            rows.append((2, [base + time, client, mac, number, dst, *ports, names[name], *seen, path, *last, session]))
    return rows + [(tag, list(fields)) for _, tag, *fields in waiting]


def batches(db: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    yield from db.execute("SELECT seq, n, boot, mono, wall, synced, t0, t1, chain, data FROM batch ORDER BY seq")


def read_batches(number: int, db: sqlite3.Connection, meta: dict[str, Any]) -> Iterator[tuple[str, int, list[Any]]]:
    chain = meta["before"]
    for seq, count, boot, mono, wall, synced, first, last, link, data in batches(db):
        head = struct.pack("<QQIqq?", number, seq, count, mono, wall, bool(synced))
        chain = hashlib.blake2b(chain + head + boot.encode() + data, digest_size=16).digest()
        assert chain == link
        rows = batch_rows(zlib.decompress(data))
        assert len(rows) == count
        assert {min(fields[0] for _, fields in rows), max(fields[0] for _, fields in rows)} == {first, last}
        yield from ((f"{number}:{seq + place}", tag, fields) for place, (tag, fields) in enumerate(rows))


def read_sealed(
    number: int, db: sqlite3.Connection, meta: dict[str, Any], public: Ed25519PublicKey
) -> Iterator[tuple[str, int, list[Any]]]:
    fields = ("format", "level", "segment", "first_seq", "next_seq", "before", "head", "derived_from", "hashes")
    root = hashlib.blake2b(msgpack.packb([meta[name] for name in fields]), digest_size=32).digest()
    assert root == meta["root"]
    public.verify(meta["signature"], root)
    parts = db.execute("SELECT id, kind, first, last, data FROM part ORDER BY id").fetchall()
    for place, kind, first, last, data in parts:
        digest = hashlib.blake2b(msgpack.packb([place, kind, first, last]) + data, digest_size=16).digest()
        assert meta["hashes"][16 * place : 16 * place + 16] == digest
    tables = unpacked(column(parts[-1][4]))
    level, names, addresses = meta["level"], [], []
    for data in (part[4] for part in parts if part[1] == "names"):
        text, _, _, _, counts, packed = unpacked(data)
        names += [".".join(reversed(key.split("."))) for key in lines(text)]
        plain, at = column(packed), 0
        for count in numbers(counts):
            addresses.append([])
            for _ in range(count):
                addresses[-1].append(plain[at + 1 : at + 1 + plain[at]])
                at += 1 + plain[at]
    flows = [part[4] for part in parts if part[1] == "flows"]
    exact = [part[4] for part in parts if part[1] == "exact"]
    for place, (_, _, first, _, data) in enumerate(part for part in parts if part[1] == "block"):
        records, events, _, a, b, ranks, c, d, e, f = unpacked(data)
        steps, folds, further = small(a, b), small(c, d), small(e, f) or [0] * len(numbers(ranks))
        where, paths = (numbers(unpacked(flows[place])[0]), lines(unpacked(flows[place])[1])) if flows else ([], [])
        parts_ms, ports = map(numbers, unpacked(exact[place])) if exact else ([], [])
        count, flow, in_block = tables["starts"][place], 0, 0
        clients = [first + at for at, many in enumerate(numbers(records)) for _ in range(many)]
        before, unit = -1, 0
        for client, step, rank, fold, more in zip(clients, steps, numbers(ranks), folds, further, strict=True):
            address, mac, session, group, epoch = tables["clients"][client]
            unit = step if client != before else unit + step
            before, here = client, count
            for at, shape in enumerate(tables["folds"][fold]):
                kind, *rest = tables["shapes"][shape]
                time = tables["bases"][epoch] + unit * UNIT_MS[level] + (parts_ms[in_block + at] if exact else 0)
                known = addresses[rank]
                if kind == 1:
                    *first_fields, cached = rest
                    answers = tuple(known[:8]) if rest[0] in (1, 28) else ()
                    row = [time, address, names[rank], *first_fields, group, answers, cached, 0, mac, session]
                else:
                    dport, protocol, seen, blind, verdict, reason, rule, agreement, method = rest
                    dst, path = (known[where[flow]], paths[flow]) if flows else (b"", "")
                    port = ports[flow] if exact else 0
                    row = [time, address, mac, port, dst, dport, protocol, names[rank], seen, blind, path, verdict,
                           reason, rule, group, agreement, method, session]  # fmt: skip
                    flow += 1
                yield f"{number}:{here + at}/{1 + level}", kind, row
            count += len(tables["folds"][fold]) + more
            in_block += len(tables["folds"][fold])
        assert sum(numbers(events)) == count - tables["starts"][place]
    for _, _, first, last, data in (part for part in parts if part[1] == "kept"):
        plain, steps, _ = unpacked(data)
        seqs = [first + step for step in accumulate(numbers(steps))]
        assert seqs[-1] == last
        rows = batch_rows(column(plain))
        yield from ((f"{number}:{seq}", tag, row) for seq, (tag, row) in zip(seqs, rows, strict=True))


def read_by_the_page() -> dict[str, tuple[int, list[Any]]]:
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(GOLDEN["public_key"]))
    found: dict[str, tuple[int, list[Any]]] = {}
    for path in sorted(VECTORS.glob("seg-*.db")):
        number = int(path.stem.removeprefix("seg-"))
        with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as db:
            meta = dict(db.execute("SELECT k, v FROM meta"))
            rows = read_batches(number, db, meta) if meta["format"] == 1 else read_sealed(number, db, meta, public)
            found.update({name: (tag, fields) for name, tag, fields in rows})
    with closing(sqlite3.connect(f"file:{VECTORS / 'holds.db'}?immutable=1", uri=True)) as db:
        for segment, data, signature in db.execute("SELECT segment, data, signature FROM kept"):
            digest = hashlib.blake2b(data, digest_size=32).digest()
            public.verify(signature, b"held" + segment.to_bytes(8, "little") + digest)
            for number, _, _, _, part, _, _, _, tag, *fields in unpacked(zlib.decompress(data)):
                found[f"{segment}:{number}" + (f"/{part}" if part else "")] = (tag, fields)
    return found


def test_a_reader_written_from_the_document_finds_every_record() -> None:
    found = read_by_the_page()
    rows = {row["id"]: row for row in GOLDEN["rows"]}
    assert found.keys() == rows.keys()
    kinds = {tag: kind.__name__.lower() for tag, kind in TAGS.items()}
    for name, (tag, fields) in found.items():
        row = rows[name]
        assert row["kind"] == kinds[tag]
        if tag in (1, 2):
            event = dict(zip(TAGS[tag]._fields, fields, strict=True))
            assert (row["name"], row["session"], row["group"]) == (event["name"], event["session"], event["group"])
            assert row["mac"] == event["mac"].hex(":")
            if tag == 2:
                assert (row["path"], row["sport"], row["dport"]) == (event["path"], event["sport"], event["dport"])
            else:
                assert (len(row["answers"]), row["cached"]) == (len(event["answers"]), event["cached"])


def test_this_release_reads_the_golden_files_and_finds_them_right(tmp_path: Path) -> None:
    ring = tmp_path / "ring"
    shutil.copytree(VECTORS, ring)
    assert read_rows(ring) == GOLDEN["rows"]
    shutil.rmtree(ring)
    shutil.copytree(VECTORS, ring)
    assert verify(str(ring), bytes.fromhex(GOLDEN["public_key"])) > 20


def test_the_golden_files_have_one_of_everything() -> None:
    rows = GOLDEN["rows"]
    assert {row["kind"] for row in rows} == {kind.__name__.lower() for kind in TAGS.values()} - {"flood"}
    assert {row["clock"] for row in rows} == {"synced", "corrected", "unsynced"}
    parts = {row["id"].partition("/")[2] for row in rows}
    assert parts == {"", *map(str, range(1, 8))}, "every level, and records that are kept whole"
    assert any(row["times"] > 1 for row in rows)


def test_another_key_has_not_signed_them() -> None:
    path = next(VECTORS.glob("seg-000004.db"))
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as db:
        meta = dict(db.execute("SELECT k, v FROM meta"))
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(GOLDEN["public_key"]))
    with pytest.raises(InvalidSignature):
        public.verify(meta["signature"], meta["head"] * 2)


def test_the_document_names_every_record_and_field() -> None:
    text = DOCUMENT.read_text()
    for tag, kind in TAGS.items():
        assert f"| {tag} | {kind.__name__} | {', '.join(kind._fields)} |" in text
