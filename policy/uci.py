"""UCI's grammar: the text of `/etc/config/gatehouse` to sections, and back. No meaning, no files.

Source: libuci `file.c` and the OpenWrt wiki page "The UCI system"; libuci is not to be had off the router.
Covered: `package`, `config TYPE [NAME]`, `option`, `list`; bare, 'single' and "double" quoted words, words glued
together (`a'b c'"d"`), backslashes, values over several lines, `#` comments, `;` between commands.
Rule: `parse(render(sections)) == sections`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeAlias

from policy.errors import ConfigError

Value: TypeAlias = str | tuple[str, ...]

MAX_TEXT = 1 << 20
"""Characters of one configuration file. A venue with 2,000 rooms stays under 200 kB; a binary does not."""

_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_SPACE = " \t\r\v\f"


class Section(NamedTuple):
    """One `config TYPE 'NAME'` and what stands below it."""

    type: str
    name: str
    """As written; an anonymous section is called `@TYPE[INDEX]`, the way `uci show` can be asked for it."""
    options: Mapping[str, Value]
    """`option` gives a str, `list` a tuple of str."""
    line: int
    anonymous: bool = False


def parse(text: str, place: str = "gatehouse") -> list[Section]:
    """Read a UCI file. `place` is how error messages call it.

    Raises: ConfigError, naming place and line.
    """
    if len(text) > MAX_TEXT:
        raise ConfigError(f"{place}: {len(text)} characters, expected at most {MAX_TEXT}")
    sections: list[Section] = []
    by_name: dict[str, Section] = {}
    counts: dict[str, int] = {}
    options: dict[str, Value] | None = None
    for line, words in _commands(text, place):
        where = f"{place}:{line}"
        match words:
            case ["package", _]:
                continue
            case ["config", kind]:
                _check_type(kind, where)
                index = counts.get(kind, 0)
                counts[kind] = index + 1
                options = {}
                sections.append(Section(kind, f"@{kind}[{index}]", options, line, anonymous=True))
            case ["config", kind, name]:
                _check_type(kind, where)
                _check_name(name, "section name", where)
                earlier = by_name.get(name)
                if earlier is not None:
                    # libuci merges a named section that is opened again; with another type it is a mistake.
                    if earlier.type != kind:
                        raise ConfigError(
                            f"{where}: section {name!r} was a {earlier.type!r} on line {earlier.line}, "
                            f"expected the same type here, got {kind!r}"
                        )
                    options = dict(earlier.options)
                    merged = earlier._replace(options=options)
                    sections[sections.index(earlier)] = by_name[name] = merged
                    continue
                counts[kind] = counts.get(kind, 0) + 1
                options = {}
                by_name[name] = Section(kind, name, options, line)
                sections.append(by_name[name])
            case ["option" | "list" as command, name, value]:
                if options is None:
                    raise ConfigError(f"{where}: {command} {name!r} before any `config` line")
                _check_name(name, "option name", where)
                if command == "option":
                    options[name] = value
                else:
                    held = options.get(name, ())
                    options[name] = ((held,) if isinstance(held, str) else held) + (value,)
            case ["package" | "config" | "option" | "list" as command, *rest]:
                wanted = {"package": "1 word", "config": "1 or 2 words", "option": "2 words", "list": "2 words"}
                raise ConfigError(f"{where}: {command}: expected {wanted[command]} after it, got {len(rest)}")
            case [word, *_]:
                raise ConfigError(f"{where}: expected config, option, list or package, got {word!r}")
    return sections


def render(sections: list[Section]) -> str:
    """Write sections the way `uci export` does, without the package line."""
    lines: list[str] = []
    for section in sections:
        name = "" if section.anonymous else f" {_quote(section.name)}"
        lines.append(f"config {section.type}{name}")
        for key, value in section.options.items():
            if isinstance(value, str):
                lines.append(f"\toption {key} {_quote(value)}")
            else:
                lines.extend(f"\tlist {key} {_quote(item)}" for item in value)
        lines.append("")
    return "\n".join(lines)


def _quote(value: str) -> str:
    # Inside single quotes nothing is special, so a quote itself must be written outside: 'it'\''s'.
    return "'" + value.replace("'", "'\\''") + "'"


def _check_name(name: str, what: str, where: str) -> None:
    if not name or not _NAME.issuperset(name):
        raise ConfigError(f"{where}: {what}: expected letters, digits and _, got {name!r}")


def _check_type(kind: str, where: str) -> None:
    if not kind or any(not "!" <= character <= "~" for character in kind):
        raise ConfigError(f"{where}: section type: expected printable ASCII without spaces, got {kind!r}")


def _commands(text: str, place: str) -> Iterator[tuple[int, list[str]]]:
    """Split a file into commands: the line each begins on, and its words."""
    if "\0" in text:
        raise ConfigError(f"{place}:{text.count(chr(10), 0, text.index(chr(0))) + 1}: NUL octet, expected a text file")
    at, line, end = 0, 1, len(text)
    words: list[str] = []
    word: list[str] | None = None  # None: between words; [] is an empty quoted word
    first_line = 1

    def close_word() -> None:
        nonlocal word
        if word is not None:
            words.append("".join(word))
            word = None

    while at < end:
        character = text[at]
        if character == "\n" or character == ";":
            close_word()
            if words:
                yield first_line, words
                words = []
            line += character == "\n"
            at += 1
            continue
        if character in _SPACE:
            close_word()
            at += 1
            continue
        if character == "#" and word is None:
            at = text.find("\n", at)
            if at < 0:
                break
            continue
        if not words and word is None:
            first_line = line
        if word is None:
            word = []
        if character == "'":
            close = text.find("'", at + 1)
            if close < 0:
                raise ConfigError(f"{place}:{line}: a ' is opened and never closed")
            word.append(text[at + 1 : close])
            line += text.count("\n", at, close)
            at = close + 1
        elif character == '"':
            opened = line
            at += 1
            while at < end and text[at] != '"':
                if text[at] == "\\" and at + 1 < end:
                    at += 1
                word.append(text[at])
                line += text[at] == "\n"
                at += 1
            if at >= end:
                raise ConfigError(f'{place}:{opened}: a " is opened and never closed')
            at += 1
        elif character == "\\":
            if at + 1 >= end:
                raise ConfigError(f"{place}:{line}: a backslash ends the file")
            if text[at + 1] == "\n":  # continuation: the line goes on below
                line += 1
            else:
                word.append(text[at + 1])
            at += 2
        else:
            word.append(character)
            at += 1
    close_word()
    if words:
        yield first_line, words
