"""Compiles the configured lists into one image: opens the files, lends `policy.builder` its temporary space, swaps.

    report = compile_policy(config.policy, list_dir, out_path)     # Report.text() for people, .lists for programs

`main` is the same as a process of its own: the agent starts it as a child, so that what a compilation needs (25 MB for
a million names) is given back when it ends.
Rule: `out_path` is at every moment either the old image, whole, or the new one, whole; the old one is kept as
`out_path.old`. A list that cannot be used is reported; if the image that serves holds it, that image goes on serving,
and if not, the others are compiled without it.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Final

from agent.decider import OLD_SUFFIX
from policy.builder import Builder
from policy.compile import ListReport, Report, Terms, read_list
from policy.errors import ImageError, ListError
from policy.image import Image
from policy.names import public_suffixes
from policy.rules import ListConfig, load_policy
from policy.syntax import Format
from policy.uci import Section

CHUNK: Final = 1 << 16
REPORT_SUFFIX: Final = ".report"
MAX_TREE: Final = 4096
"""Entries of one directory of lists that are looked at."""
_TREE_FILES: Final = (
    ("domains", Format.DOMAINS),
    ("urls", Format.URLS),
    ("expressions", Format.EXPRESSIONS),
    ("ips", Format.IP),
)


def compile_policy(
    sections: Iterable[Section],
    list_dir: str,
    out_path: str,
    *,
    base_path: str = "",
    generation: int = 0,
    spill_dir: str | None = None,
    salt: bytes = b"",
    clock: Callable[[], float] = time.time,
) -> Report:
    """Compile every list of the configuration.

    `base_path`: an image to stay close to, so that a delta from it is small. `spill_dir`: for temporary files, 15
    octets an entry; None: beside the image (on routers the system's own directory is memory).
    The report's `built` is None if nothing was written, because a list would have been lost.
    Raises: ConfigError for the configuration, OSError for the files written. Lists that fail are in the report.
    """
    policy = load_policy(sections)
    os.makedirs(os.path.dirname(os.path.abspath(out_path)), exist_ok=True)
    suffixes = _public_suffixes(policy.public_suffix_list, list_dir)
    base = _open_base(base_path)
    spill = spill_dir or os.path.dirname(os.path.abspath(out_path))
    excluded: dict[str, str] = {}
    while True:
        try:
            return _compile(policy.lists, list_dir, out_path, base, generation, spill, salt, suffixes, excluded, clock)
        except _UnusableError as unusable:
            # What it had spilled already is among the others', so all begins anew, without it.
            excluded[unusable.name] = str(unusable)


def _spill_file(directory: str, name: str) -> IO[bytes]:
    """A file without a name, gone when it is closed. (`tempfile` would bring OpenSSL: 4 MB for a random name.)"""
    path = os.path.join(directory, f".spill-{name}.{os.getpid()}")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.unlink(path)
    return os.fdopen(descriptor, "w+b")


class _UnusableError(ListError):
    """A whole list turned out to be unusable half way through."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


def _compile(
    lists: tuple[ListConfig, ...],
    list_dir: str,
    out_path: str,
    base: Image | None,
    generation: int,
    spill_dir: str,
    salt: bytes,
    suffixes: frozenset[bytes],
    excluded: dict[str, str],
    clock: Callable[[], float],
) -> Report:
    reports: list[ListReport] = []
    with (
        _spill_file(spill_dir, "names") as names,
        _spill_file(spill_dir, "ranges") as ranges,
        _spill_file(spill_dir, "urls") as urls,
    ):
        builder = Builder(
            base.salt if base else salt or os.urandom(16),
            (names, ranges, urls),
            base=base,
            created_s=int(clock()),
            generation=generation,
        )
        for config in lists:
            if config.name in excluded:
                reports.append(_failed(config.name, excluded[config.name]))
            else:
                reports += _read_config(builder, config, list_dir, suffixes)
        if _would_lose_a_list(out_path, [report.name for report in reports if report.failure]):
            report = Report(tuple(reports), None)
            _write_report(out_path + REPORT_SUFFIX, report)
            return report
        temporary = f"{out_path}.{os.getpid()}.tmp"
        try:
            with open(temporary, "w+b") as out:
                built = builder.write(out)
                out.flush()
                os.fsync(out.fileno())
            report = Report(tuple(reports), built)
            swap_in(temporary, out_path)
        finally:
            _unlink(temporary)
    _write_report(out_path + REPORT_SUFFIX, report)
    return report


def _would_lose_a_list(path: str, failed: list[str]) -> bool:
    """Does the image that is here hold a list that has failed now? Then it goes on serving, whole."""
    if not failed:
        return False
    try:
        with open(path, "rb") as file:
            slots = Image(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)).slots
    except (OSError, ValueError, ImageError):
        return False  # nothing that could be lost
    held = {slot.name.partition("/")[0] for slot in slots}
    return any(name in held for name in failed)


def swap_in(new_path: str, path: str) -> None:
    """Make a finished file the image, keep the image that was there, and have both on flash when it returns."""
    old = path + OLD_SUFFIX
    _unlink(old)
    try:
        os.link(path, old)
    except FileNotFoundError:
        pass
    except OSError:  # a file system without hard links (vfat): then two renames, and a moment with the old one only
        os.replace(path, old)
    os.replace(new_path, path)
    directory = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def list_path(config: ListConfig, list_dir: str) -> str:
    """Where the text of a list lies: downloads under the list's own name."""
    return os.path.join(list_dir, config.file or f"{config.name}.list")


def chunks_of(path: str) -> Iterator[bytes]:
    """A file, piece by piece. It stays open no longer than it is read."""
    with open(path, "rb", buffering=0) as file:
        yield from iter(lambda: file.read(CHUNK), b"")


def tree_files(config: ListConfig, path: str) -> Iterator[tuple[str, str, Format]]:
    """Category, path and format of each file of a directory of lists, in the order of their names."""
    with os.scandir(path) as scan:
        entries = sorted((entry for entry in scan if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in entries[:MAX_TREE]:
        if config.format is Format.V2FLY_TREE:
            if entry.is_file():
                yield entry.name, entry.path, Format.V2FLY
        elif entry.is_dir(follow_symlinks=False):  # UT1 has links, such as `porn` to `adult`: once is enough
            for name, format_ in _TREE_FILES:
                file = os.path.join(entry.path, name)
                if os.path.isfile(file):
                    yield entry.name, file, format_


def _read_config(builder: Builder, config: ListConfig, list_dir: str, suffixes: frozenset[bytes]) -> list[ListReport]:
    path = list_path(config, list_dir)
    try:
        if os.path.isdir(path):
            return _read_tree(builder, config, path, suffixes)
        slot = builder.slot(config.name, config.category, config.action, _version(path))
        report = ListReport(config.name)
        _read_file(builder, report, config, slot, path, config.format, suffixes)
        return [report]
    except OSError as error:
        return [_failed(config.name, f"{path}: {error.strerror}")]


def _read_tree(builder: Builder, config: ListConfig, path: str, suffixes: frozenset[bytes]) -> list[ListReport]:
    reports: dict[str, ListReport] = {}
    for category, file, format_ in tree_files(config, path):
        name = f"{config.name}/{category}"
        action = config.action
        if action == "block" and _is_white(os.path.join(os.path.dirname(file), "usage")):
            action = "named"
        slot = builder.slot(name, category, action, _version(file))
        report = reports.setdefault(name, ListReport(name))
        _read_file(builder, report, config, slot, file, format_, suffixes)
    if not reports:
        return [_failed(config.name, f"{path}: no category directory with domains or urls in it")]
    return list(reports.values())


def _is_white(path: str) -> bool:
    """UT1 says in a category's `usage` file whether it is meant to be blocked, allowed, or either.

    One that is meant to be allowed (`liste_blanche`) does nothing until a profile names it, to block or to allow.
    """
    try:
        with open(path, "rb") as file:
            uses = {line.strip() for line in file.read(4096).splitlines()}
    except OSError:
        return False
    return b"white" in uses and b"black" not in uses


def _read_file(
    builder: Builder,
    report: ListReport,
    config: ListConfig,
    slot: int,
    path: str,
    format_: Format,
    suffixes: frozenset[bytes],
) -> None:
    terms = Terms(
        slot, config.action, config.important, config.scope, config.max_entries, suffixes, config.allow_public_suffix
    )
    directory = os.path.dirname(path)
    include = (lambda name: chunks_of(os.path.join(directory, name))) if format_ is Format.V2FLY else None
    try:
        read_list(builder, report, chunks_of(path), format_, terms, os.path.relpath(path, directory + "/.."), include)
    except ListError as error:
        raise _UnusableError(config.name, str(error)) from None


def _failed(name: str, reason: str) -> ListReport:
    report = ListReport(name)
    report.failure = reason
    return report


def _version(path: str) -> str:
    """Which version of a list: when its file was last changed."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(os.stat(path).st_mtime))


def _public_suffixes(name: str, list_dir: str) -> frozenset[bytes]:
    if not name:
        return frozenset()
    try:
        with open(os.path.join(list_dir, name), "rb") as file:
            return public_suffixes(iter(file))
    except OSError:
        return frozenset()  # not downloaded yet: the built-in rule holds


def _open_base(path: str) -> Image | None:
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            return Image(file.read())
    except (OSError, ImageError):
        return None


def _write_report(path: str, report: Report) -> None:
    data = {
        "lists": [item.as_dict() for item in report.lists],
        "image": report.built._asdict() if report.built else None,
    }
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        json.dump(data, file, indent=1)
    os.replace(path + ".tmp", path)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def main(arguments: list[str], out: IO[str] = sys.stdout) -> int:
    """`CONFIG [LIST_DIR [OUT]]`: compile, print the report. Exit status 1 if a list is out of force."""
    from policy.config import load

    with open(arguments[0], encoding="utf-8") as file:
        config = load(file.read(), os.path.basename(arguments[0]))
    policy = load_policy(config.policy)
    list_dir = arguments[1] if len(arguments) > 1 else policy.list_dir
    table = arguments[2] if len(arguments) > 2 else policy.table
    report = compile_policy(config.policy, list_dir, table)
    print(report.text(), file=out)
    return 1 if any(item.failure for item in report.lists) else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
