"""From the lines of lists to a builder, with a report in which each entry is in force or counted with its reason.

Holds the report and the loop. Opens no file: chunks of octets come in, an image goes out through `policy.builder`.
Rule: `entries == in_force + sum(refused.values())` for each list, always.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple, Protocol

from policy.builder import Builder, Built
from policy.errors import ListError
from policy.image import Kind, Scope, pack_effect
from policy.names import is_public_suffix
from policy.syntax import Entry, Format, Include, Lines, Parser, guess

MAX_EXAMPLES: Final = 5
"""Lines a reason is illustrated with; what is beyond is counted only."""
MAX_REASONS: Final = 100
"""Reasons are constants, so this is never reached; it bounds the report if one day they are not."""
MAX_EXCERPT: Final = 60
MAX_INCLUDES: Final = 16
"""Depth of v2fly includes. Theirs is 4."""


class Example(NamedTuple):
    """One refused line."""

    file: str
    line: int
    reason: str
    text: str


class ListReport:
    """What became of one list."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.format = ""
        self.lines = 0
        self.comments = 0
        """Lines that say nothing: blank, comments, a zone's own records, entries an include did not ask for."""
        self.entries = 0
        self.names = 0
        self.ranges = 0
        self.urls = 0
        self.refused: dict[str, int] = {}
        self.examples: list[Example] = []
        self.failure = ""
        """Why the whole list is out of force; empty: it is not."""

    @property
    def in_force(self) -> int:
        """Entries that the image holds; a line with several names has several."""
        return self.names + self.ranges + self.urls

    def refuse(self, reason: str, file: str, line: int, text: bytes) -> None:
        """Count an entry that is not in force."""
        if reason not in self.refused and len(self.refused) >= MAX_REASONS:
            reason = "other"
        seen = self.refused.get(reason, 0)
        self.refused[reason] = seen + 1
        self.entries += 1
        if seen < MAX_EXAMPLES:
            excerpt = text[:MAX_EXCERPT].decode("utf-8", "backslashreplace")
            shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in excerpt)
            self.examples.append(Example(file, line, reason, shown))

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "list": self.name, "format": self.format, "lines": self.lines, "comments": self.comments,
            "entries": self.entries, "in_force": self.in_force, "names": self.names, "ranges": self.ranges,
            "urls": self.urls, "refused": dict(self.refused), "failure": self.failure,
            "examples": [example._asdict() for example in self.examples],
        }  # fmt: skip


class Report(NamedTuple):
    """What became of all lists, and of the image."""

    lists: tuple[ListReport, ...]
    built: Built | None
    """None: nothing was written."""

    def text(self) -> str:
        """A table for people."""
        rows = [f"{'list':<34}{'format':<10}{'lines':>9}{'entries':>9}{'in force':>9}{'refused':>9}"]
        for item in self.lists:
            refused = item.entries - item.in_force
            rows.append(
                f"{item.name[:33]:<34}{item.format:<10}{item.lines:>9}{item.entries:>9}{item.in_force:>9}{refused:>9}"
            )
            if item.failure:
                rows.append(f"    not in force: {item.failure}")
            rows += [f"    {n:>8}  {reason}" for reason, n in sorted(item.refused.items(), key=lambda x: -x[1])]
            rows += [f"              {e.file}:{e.line}: {e.reason}: {e.text}" for e in item.examples]
        if self.built:
            rows.append(
                f"image: {self.built.size} octets, {self.built.names} names, {self.built.ranges} ranges, "
                f"{self.built.urls} URL rules, {self.built.combos} combinations"
            )
        else:
            rows.append("image: not written, for a list that the present one holds has failed; the old image decides")
        return "\n".join(rows)


class Terms(NamedTuple):
    """On what terms a list's entries are taken."""

    slot: int
    action: str = "block"
    """`block`: as the list says. `allow`: each entry allows."""
    important: bool = False
    scope: Scope | None = None
    """None: as the syntax means it."""
    max_entries: int = 0
    """0: no limit."""
    public_suffixes: frozenset[bytes] = frozenset()
    allow_public_suffix: bool = False
    """Take rules on whole top-level domains too."""


class Sink(Protocol):
    """What takes entries: a builder, or something that only looks whether they are sound."""

    def add_name(self, name: bytes, effect: int) -> None:
        """A name entry."""

    def add_range(self, address: int, prefix: int, bits: int, effect: int) -> None:
        """An address range. Raises: ListError."""

    def add_url(self, host: bytes, pattern: bytes, effect: int) -> None:
        """A URL rule. Raises: ListError."""


Chunks = Iterable[bytes]
OpenInclude = Callable[[str], Chunks]


def read_list(
    builder: Sink,
    report: ListReport,
    chunks: Chunks,
    format_: Format,
    terms: Terms,
    file: str = "",
    include: OpenInclude | None = None,
) -> None:
    """Take one file into the builder.

    Raises: ListError if the list must not be used at all (too many entries). Single lines only count.
    """
    _Reading(builder, report, terms, include).file(chunks, format_, file or report.name, ())


def entries_of(chunks: Chunks, format_: Format, scope: Scope | None = None) -> Iterator[tuple[int, Entry | Include]]:
    """Line numbers and entries of one file, refused lines left out: how `explain` finds the line of a rule."""
    format_, chunks = _settle(chunks, format_)
    parser = Parser(format_, scope)
    for number, line in _numbered(chunks):
        if line is None:
            continue
        try:
            for entry in parser.parse(line):
                yield number, entry
        except ListError:
            continue


class _Reading:
    """One list on its way in, with the files it includes."""

    def __init__(self, builder: Sink, report: ListReport, terms: Terms, include: OpenInclude | None) -> None:
        self._builder, self._report, self._terms, self._include = builder, report, terms, include
        self._effects = {
            (kind, scope): pack_effect(terms.slot, _on_terms(kind, terms), scope)
            for kind in Kind
            for scope in (Scope.SELF, Scope.BELOW, Scope.BOTH)
        }

    def file(
        self,
        chunks: Chunks,
        format_: Format,
        file: str,
        above: tuple[str, ...],
        wanted: frozenset[bytes] = frozenset(),
        unwanted: frozenset[bytes] = frozenset(),
    ) -> None:
        report, limit = self._report, self._terms.max_entries
        format_, chunks = _settle(chunks, format_)
        report.format = report.format or format_.value
        parse = Parser(format_, self._terms.scope, wanted=wanted, unwanted=unwanted).parse
        add_name, effects, terms = self._builder.add_name, self._effects, self._terms
        for number, line in _numbered(chunks):
            report.lines += 1
            if line is None:
                report.refuse("line too long", file, number, b"")
                continue
            try:
                entries = parse(line)
            except ListError as error:
                report.refuse(str(error), file, number, line)
                continue
            if not entries:
                report.comments += 1
                continue
            for entry in entries:
                if isinstance(entry, Include):
                    self._follow(entry, format_, file, number, (*above, file))
                    continue
                try:
                    if entry.network is not None:
                        self._builder.add_range(*entry.network, effects[entry.kind, entry.scope])
                        report.ranges += 1
                    elif entry.pattern is not None:
                        self._builder.add_url(entry.name, entry.pattern, effects[entry.kind, entry.scope])
                        report.urls += 1
                    else:
                        name = entry.name
                        if entry.scope != Scope.SELF and name.count(b".") < 2 and not terms.allow_public_suffix:
                            _check_public_suffix(name, terms)
                        add_name(name, effects[entry.kind, entry.scope])
                        report.names += 1
                    report.entries += 1
                except ListError as error:
                    report.refuse(str(error), file, number, line)
            if limit and report.entries > limit:
                raise ListError(f"more than {limit} entries")

    def _follow(self, entry: Include, format_: Format, file: str, number: int, above: tuple[str, ...]) -> None:
        report = self._report
        if self._include is None:
            report.refuse("include, and no directory to look in", file, number, entry.name.encode())
        elif entry.name in above or len(above) > MAX_INCLUDES:
            report.refuse("include of itself", file, number, entry.name.encode())
        else:
            try:
                chunks = self._include(entry.name)
                self.file(chunks, format_, entry.name, above, entry.wanted, entry.unwanted)
            except FileNotFoundError:
                report.refuse("include of a missing file", file, number, entry.name.encode())
                return
            report.comments += 1


def _check_public_suffix(name: bytes, terms: Terms) -> None:
    if is_public_suffix(name, terms.public_suffixes):
        raise ListError("public suffix")


def _on_terms(kind: Kind, terms: Terms) -> int:
    cancel, wish = kind & 4, kind & 3
    if terms.action == "allow":
        wish |= Kind.ALLOW
    if terms.important:
        wish |= Kind.IMPORTANT_BLOCK
    return cancel | wish


def _settle(chunks: Chunks, format_: Format) -> tuple[Format, Chunks]:
    """Guess the format if it is open; gives back the chunks with the first one in its place."""
    walk = iter(chunks)
    first = next(walk, b"").removeprefix(b"\xef\xbb\xbf")
    if format_ is Format.AUTO:
        format_ = guess(first)

    def again() -> Iterator[bytes]:
        yield first
        yield from walk

    return format_, again()


def _numbered(chunks: Chunks) -> Iterator[tuple[int, bytes | None]]:
    lines = Lines()
    for chunk in chunks:
        yield from lines.feed(chunk)
    yield from lines.end()


def compile_in_memory(
    lists: Mapping[str, bytes | str | Iterable[str]],
    *,
    allow: Iterable[str] = (),
    important: Iterable[str] = (),
    categories: Mapping[str, str] | None = None,
    formats: Mapping[str, Format] | None = None,
    scope: Scope | None = None,
    salt: bytes = b"gatehouse-memory",
    generation: int = 0,
) -> tuple[bytes, Report]:
    """An image of small lists, without a file: for tests, and for the rules of a venue that has no lists.

    `lists`: name -> text or lines. `allow`: names of those that allow. A list's category is its name, or as in
    `categories`.
    """
    builder = Builder(salt, (io.BytesIO(), io.BytesIO(), io.BytesIO()), generation=generation)
    reports = []
    for name, content in lists.items():
        data = content if isinstance(content, bytes) else (
            content if isinstance(content, str) else "\n".join(content)
        ).encode()  # fmt: skip
        action = "allow" if name in allow else "block"
        slot = builder.slot(name, (categories or {}).get(name, name), action)
        report = ListReport(name)
        terms = Terms(slot, action, name in important, scope)
        read_list(builder, report, [data], (formats or {}).get(name, Format.AUTO), terms)
        reports.append(report)
    out = io.BytesIO()
    built = builder.write(out)
    return out.getvalue(), Report(tuple(reports), built)
