"""Downloads the lists, and refuses what is not one: truncated, empty, HTML, ten times larger, or without a usable line.

    for outcome in refresh(policy, list_dir, now_s=..., fetch=http_get): ...   # then agent.compiler.compile_policy

Runs in the compiler's child process: TLS alone is 10 MB that the agent should not keep.
Rule: the text that was there stays in force until its successor has been read to the end; a refusal gives a record.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from agent.compiler import CHUNK, chunks_of, list_path, tree_files
from policy.compile import ListReport, Terms, read_list
from policy.errors import BundleError, ListError
from policy.event import Maintenance
from policy.rules import ListConfig, Policy
from policy.syntax import Format

MAX_DOWNLOAD: Final = 256 << 20
"""Octets of one list; the largest public ones have 100 MB."""
MAX_TREE_FILE: Final = 128 << 20
MAX_TREE_MEMBERS: Final = 4096
MAX_FACTOR: Final = 10
"""A list that grows, or shrinks, by more than this at once is not the same list any more."""
SMALL: Final = 4096
"""Octets below which growth says nothing: a list of two names may well get thirty."""
TIMEOUT_S: Final = 30.0
STATE_FILE: Final = "lists.json"
USER_AGENT: Final = "gatehouse"
_GARBAGE: Final = frozenset(
    ("NUL octet", "not UTF-8", "line too long", "character not in names", "several words, not a hosts line",
     "several words in a list of names", "label too long", "name too long", "empty label", "blank in a URL")
)  # fmt: skip
"""Reasons that do not occur in lists, but do in pages, archives and error messages."""
_MARKUP: Final = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body", b"<!--", b'{"', b"PK\x03\x04", b"\x7fELF")


class Answer(NamedTuple):
    """What a server said. `pieces` is read once."""

    status: int
    headers: Mapping[str, str]
    """Lower-case names."""
    pieces: Iterator[bytes]


Fetch = Callable[[str, Mapping[str, str]], Answer]
"""URL and request headers -> answer. Raises OSError."""


class Outcome(NamedTuple):
    """What came of one list."""

    name: str
    result: str
    """`new`, `same`, `not due`, or `refused`."""
    reason: str = ""
    old: str = ""
    """Version that stays, or that was replaced."""
    new: str = ""

    @property
    def is_worth_recording(self) -> bool:
        """A change or a refusal; not that nothing happened."""
        return self.result in ("new", "refused")

    def record(self, at_ms: int) -> Maintenance:
        """For the ring."""
        result = "ok" if self.result == "new" else self.result
        return Maintenance(at_ms, "policy", "policy", f"list:{self.name}", self.old, self.new, result, self.reason)


def refresh(policy: Policy, list_dir: str, *, now_s: float, fetch: Fetch, force: bool = False) -> list[Outcome]:
    """Fetch every list that is due. Never raises for what a server sends; OSError if the directory is not writable."""
    os.makedirs(list_dir, exist_ok=True)
    state = _read_state(list_dir)
    outcomes = []
    for config in policy.lists:
        if not config.url:
            continue
        known = state.get(config.name, {})
        if not force and known.get("url") == config.url and now_s < _int(known.get("checked_s")) + config.refresh_s:
            outcomes.append(Outcome(config.name, "not due"))
            continue
        try:
            outcome, facts = _fetch_list(config, list_dir, known, now_s, fetch)
        except (ListError, OSError, http.client.HTTPException, zlib.error, EOFError, tarfile.TarError) as error:
            reason = str(error) or type(error).__name__
            outcome, facts = Outcome(config.name, "refused", reason, str(known.get("version", ""))), None
        if facts is not None:
            state[config.name] = facts
            _write_state(list_dir, state)
        outcomes.append(outcome)
    return outcomes


def check_download(config: ListConfig, path: str, old_size: int) -> ListReport:
    """Read a download to its end as what it is said to be.

    Raises: ListError with the reason why it must not be used.
    """
    if os.path.isdir(path):
        size = sum(os.path.getsize(file) for _, file, _ in tree_files(config, path))
    else:
        size = os.path.getsize(path)
        _check_head(path)
    if size == 0:
        raise ListError("empty")
    if old_size >= SMALL and size > MAX_FACTOR * old_size:
        raise ListError(f"{size} octets, more than {MAX_FACTOR} times the {old_size} of the list that is here")
    if old_size >= SMALL and size * MAX_FACTOR < old_size:
        raise ListError(f"{size} octets, less than a tenth of the {old_size} of the list that is here: truncated?")
    report = ListReport(config.name)
    for file, format_ in _files(config, path):
        include = None
        if format_ is Format.V2FLY:
            directory = os.path.dirname(file)
            include = lambda name, directory=directory: chunks_of(os.path.join(directory, name))  # noqa: E731
        terms = Terms(0, config.action, scope=config.scope, max_entries=config.max_entries)
        read_list(_Counting(), report, chunks_of(file), format_, terms, os.path.basename(file), include)
    garbage = sum(count for reason, count in report.refused.items() if reason in _GARBAGE)
    if report.in_force == 0:
        raise ListError(f"no usable entry in {report.entries}: {_commonest(report)}")
    if garbage > report.in_force:
        raise ListError(f"{garbage} of {report.entries} entries cannot be read: {_commonest(report)}")
    return report


def http_get(url: str, headers: Mapping[str, str]) -> Answer:
    """Fetch over HTTP or HTTPS, certificates checked; at most ten redirections, none of them to another scheme.

    Raises: OSError.
    """
    request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT, "Accept-Encoding": "gzip", **headers})
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.ProxyHandler(),
    ):
        opener.add_handler(handler)
    try:
        response = opener.open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, iter(()))
    if response is None:
        raise OSError(f"{url}: expected http:// or https://")
    return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, _pieces(response))


def url_source(base: str) -> Callable[[str, int], Iterator[bytes]]:
    """A bundle's directory on a server, for `agent.bundles.apply_bundle`."""

    def fetch(name: str, limit: int) -> Iterator[bytes]:
        answer = http_get(base.rstrip("/") + "/" + name, {})
        if answer.status != 200:
            raise BundleError(f"bundle: {name}: the server says {answer.status}")
        return _inflated(answer)

    return fetch


def _fetch_list(
    config: ListConfig, list_dir: str, known: Mapping[str, object], now_s: float, fetch: Fetch
) -> tuple[Outcome, dict[str, object] | None]:
    path = list_path(config, list_dir)
    old_version = str(known.get("version", ""))
    is_here = os.path.exists(path) and known.get("url") == config.url
    answer = fetch(config.url, _conditions(known) if is_here else {})
    checked = {**known, "checked_s": int(now_s)}
    if answer.status == 304 and is_here:
        return Outcome(config.name, "same", old=old_version, new=old_version), checked
    if answer.status != 200:
        raise ListError(f"the server says {answer.status}")
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        size = _save(answer, temporary)
        if config.format in (Format.TREE, Format.V2FLY_TREE):
            _unpack(temporary, temporary + ".d")
            os.unlink(temporary)
            os.rename(temporary + ".d", temporary)
        old_size = _int(known.get("size")) if is_here else 0
        report = check_download(config, temporary, old_size)
        _put_in_place(temporary, path)
    finally:
        _remove(temporary)
        _remove(temporary + ".d")
    version = answer.headers.get("last-modified") or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s))
    facts: dict[str, object] = {
        "url": config.url, "version": version, "size": _size_of(config, path), "fetched": size,
        "entries": report.entries, "etag": answer.headers.get("etag", ""),
        "last_modified": answer.headers.get("last-modified", ""), "checked_s": int(now_s),
    }  # fmt: skip
    refused = report.entries - report.in_force
    reason = f"{report.in_force} entries, {refused} not in force" if refused else f"{report.in_force} entries"
    return Outcome(config.name, "new", reason, old_version, version), facts


def _conditions(known: Mapping[str, object]) -> dict[str, str]:
    headers = {}
    if known.get("etag"):
        headers["If-None-Match"] = str(known["etag"])
    if known.get("last_modified"):
        headers["If-Modified-Since"] = str(known["last_modified"])
    return headers


def _save(answer: Answer, path: str) -> int:
    """Write the answer's body to a file. Raises: ListError if it is truncated or too long."""
    expected = answer.headers.get("content-length", "")
    received = size = 0

    def counted() -> Iterator[bytes]:
        nonlocal received
        for piece in answer.pieces:
            received += len(piece)
            yield piece

    with open(path, "wb") as out:
        for piece in _inflated(answer._replace(pieces=counted())):
            size += len(piece)
            if size > MAX_DOWNLOAD:
                raise ListError(f"more than {MAX_DOWNLOAD} octets")
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())
    if expected.isdecimal() and received != int(expected):
        raise ListError(f"truncated: {received} of {expected} octets")
    return size


def _inflated(answer: Answer) -> Iterator[bytes]:
    """The body, unpacked if the server has packed it, in bounded pieces."""
    if answer.headers.get("content-encoding", "").lower() not in ("gzip", "x-gzip"):
        yield from answer.pieces
        return
    unpacker = zlib.decompressobj(wbits=31)
    for piece in answer.pieces:
        while piece and not unpacker.eof:
            yield unpacker.decompress(piece, CHUNK)
            piece = unpacker.unconsumed_tail
    if not unpacker.eof:
        raise ListError("truncated: the packed body has no end")


def _pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Raises http.client.IncompleteRead when the connection ends before its time."""
    with response:
        while piece := response.read(CHUNK):
            yield piece


def _check_head(path: str) -> None:
    with open(path, "rb") as file:
        head = file.read(512).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if any(head.startswith(mark.lower()) for mark in _MARKUP):
        raise ListError("HTML or an archive, not a list")


def _unpack(archive: str, directory: str) -> None:
    """A tree of lists out of a tar archive: only the files that are lists, under names of ours."""
    os.mkdir(directory)
    left = MAX_DOWNLOAD
    with tarfile.open(archive, "r|*") as tar:
        for number, member in enumerate(tar):
            if number > MAX_TREE_MEMBERS:
                raise ListError(f"more than {MAX_TREE_MEMBERS} files in the archive")
            category, name = os.path.split(os.path.normpath(member.name))
            category = os.path.basename(category)
            if not member.isfile() or name not in ("domains", "urls", "expressions", "ips", "usage") or not category:
                continue
            left -= member.size
            if member.size > MAX_TREE_FILE or left < 0:
                raise ListError("the archive unpacks to too much")
            source = tar.extractfile(member)
            assert source is not None
            os.makedirs(os.path.join(directory, category), exist_ok=True)
            with source, open(os.path.join(directory, category, name), "wb") as out:
                shutil.copyfileobj(source, out, CHUNK)


def _files(config: ListConfig, path: str) -> Iterator[tuple[str, Format]]:
    if os.path.isdir(path):
        yield from ((file, format_) for _, file, format_ in tree_files(config, path))
    else:
        yield path, config.format


def _put_in_place(new: str, path: str) -> None:
    if not os.path.isdir(new):
        os.replace(new, path)
        return
    aside = path + ".old"  # a directory cannot be replaced in one step
    _remove(aside)
    if os.path.exists(path):
        os.rename(path, aside)
    os.rename(new, path)
    _remove(aside)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _size_of(config: ListConfig, path: str) -> int:
    if os.path.isdir(path):
        return sum(os.path.getsize(file) for _, file, _ in tree_files(config, path))
    return os.path.getsize(path)


def _commonest(report: ListReport) -> str:
    if not report.refused:
        return "only comments"
    reason, count = max(report.refused.items(), key=lambda item: item[1])
    example = next((e for e in report.examples if e.reason == reason), None)
    place = f" ({example.file}:{example.line}: {example.text!r})" if example else ""
    return f"{count} times {reason}{place}"


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0


def _read_state(list_dir: str) -> dict[str, dict[str, object]]:
    try:
        with open(os.path.join(list_dir, STATE_FILE), encoding="utf-8") as file:
            state = json.load(file)
        return {str(name): dict(facts) for name, facts in state.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # then everything is fetched anew


def _write_state(list_dir: str, state: Mapping[str, Mapping[str, object]]) -> None:
    with tempfile.NamedTemporaryFile("w", dir=list_dir, delete=False, encoding="utf-8") as file:
        json.dump(state, file, indent=1)
    os.replace(file.name, os.path.join(list_dir, STATE_FILE))


class _Counting:
    """Takes the place of a builder: counts nothing itself, the report does."""

    def add_name(self, name: bytes, effect: int) -> None:
        """A name: fine."""

    def add_range(self, address: int, prefix: int, bits: int, effect: int) -> None:
        """A range: fine."""

    def add_url(self, host: bytes, pattern: bytes, effect: int) -> None:
        """A URL rule: fine."""
