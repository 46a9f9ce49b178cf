"""Domain names as the policy knows them: folded, checked, cut into suffixes.

Holds the way from what a person or a list writes (`BÜCHER.example.`) to the form that is compared
(`xn--bcher-kva.example`), and the walk from a name to its parents. Knows no list and no verdict.
Rule: two spellings of one name give the same bytes; what is not a name raises ListError and never passes as one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from policy.errors import ListError

MAX_NAME: Final = 253
"""Octets of a name without its last dot (RFC 1035 2.3.4 counts 255 with the length octets and the root)."""
MAX_LABEL: Final = 63
"""RFC 1035 2.3.4."""

# Underscore: RFC 8552 names and real hosts. Hyphen at an edge: not a host name (RFC 952), but such names resolve.
# A last label of digits only is an address or a mistake (RFC 3696 2), not a name.
_PLAIN: Final = re.compile(rb"(?:[a-z0-9_-]{1,63}\.)*(?![0-9]+\Z)[a-z0-9_-]{1,63}").fullmatch
_DOTS: Final = str.maketrans({"\u3002": ".", "\uff0e": ".", "\uff61": "."})  # RFC 3490 3.1, UTS 46 4.5
_UNUSABLE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"})
_JOINERS: Final = "\u200c\u200d"  # RFC 5892 A.1: allowed in some scripts; whether here is the registry's business


def parse_name(raw: bytes) -> bytes:
    """Bring one written name into the form that is compared: lower-case A-labels, no dot at the end.

    Raises: ListError, whose message is the reason in two or three words (it is counted by it).
    """
    name = raw.lower()
    if _PLAIN(name) and len(name) <= MAX_NAME:
        if b"xn--" in name:
            _check_a_labels(name)
        return name
    return _parse_odd(raw)


def _parse_odd(raw: bytes) -> bytes:
    """Everything that is not plain lower-case ASCII at once; also finds the words for what is wrong."""
    if b"\0" in raw:
        raise ListError("NUL octet")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ListError("not UTF-8") from None
    if len(text) > 4 * MAX_NAME:  # before anything that costs more than linear time
        raise ListError("name too long")
    text = text.translate(_DOTS).removesuffix(".")
    if not text:
        raise ListError("empty name")
    name = b".".join([_a_label(label) for label in text.split(".")])
    if len(name) > MAX_NAME:
        raise ListError("name too long")
    if not _PLAIN(name):
        # Each label is sound, so it is the look-ahead of the pattern that refused.
        raise ListError("last label is a number")
    if b"xn--" in name:
        _check_a_labels(name)
    return name


def _a_label(label: str) -> bytes:
    """One label as an A-label: UTS 46 without transitional mappings, as browsers do (`ß` stays `ß`)."""
    if not label:
        raise ListError("empty label")
    if len(label) > MAX_LABEL:
        raise ListError("label too long")
    if not label.isascii():
        import unicodedata  # a process that never meets such a name never pays for its tables

        label = unicodedata.normalize("NFC", unicodedata.normalize("NFKC", label.lower()).lower())
        for character in label:
            if unicodedata.category(character) in _UNUSABLE and character not in _JOINERS:
                raise ListError("character not in names")
        if not label.isascii():
            label = "xn--" + label.encode("punycode").decode("ascii")
            if len(label) > MAX_LABEL:
                raise ListError("label too long")
    octets = label.lower().encode("ascii")
    if not _PLAIN(octets + b".x"):
        raise ListError("character not in names")
    return octets


def _check_a_labels(name: bytes) -> None:
    """Refuse `xn--` labels that no Unicode text can have made; a label is at most 63 octets, so this is bounded."""
    for label in name.split(b"."):
        if label.startswith(b"xn--"):
            try:
                label[4:].decode("punycode").encode("utf-8")  # a lone surrogate decodes but cannot be written
            except (UnicodeError, ValueError, OverflowError):
                raise ListError("bad punycode") from None


def to_unicode(name: bytes) -> str:
    """For the reader of a report: A-labels shown as they were meant, anything doubtful as it stands."""
    shown = []
    for label in name.decode("ascii", "backslashreplace").split("."):
        text = label
        if label.startswith("xn--"):
            try:
                text = label[4:].encode("ascii").decode("punycode")
            except (UnicodeError, ValueError, OverflowError):
                text = label
        shown.append(text if text.isprintable() else label)
    return ".".join(shown)


def suffixes(name: bytes) -> Iterator[bytes]:
    """A name in presentation form and then each of its parents, the top-level domain last.

    An escaped dot (RFC 1035 5.1) belongs to its label and is not a place to cut.
    """
    if b"\\" not in name:
        while name:
            yield name
            name = name.partition(b".")[2]
        return
    yield name
    at, end = 0, len(name)
    while at < end:
        octet = name[at]
        if octet == 0x5C:  # a backslash and what it escapes: one character, or three digits, none of them a dot
            at += 2
            continue
        at += 1
        if octet == 0x2E:
            yield name[at:]


def parent(name: bytes) -> bytes:
    """The name without its first label; empty at the top."""
    walk = suffixes(name)
    next(walk, b"")
    return next(walk, b"")


def is_public_suffix(name: bytes, known: frozenset[bytes] = frozenset()) -> bool:
    """Would a rule on this name and everything below it hit strangers' domains?

    `known` is the ICANN part of the Public Suffix List where the owner has it. Without it: top-level domains, and
    the second-level labels that country registries use for the same purpose.
    """
    if name in known:
        return True
    first, _, rest = name.partition(b".")
    if not rest:
        return True
    return not known and len(rest) == 2 and first in _SECOND_LEVEL


_SECOND_LEVEL: Final = frozenset(b"ac co com edu gob gov gouv go gv mil ne net nom or org sch k12 ltd plc nic".split())


def public_suffixes(lines: Iterator[bytes]) -> frozenset[bytes]:
    """Read the ICANN part of publicsuffix.org's list. Private suffixes (`github.io`) are somebody's, so are left out.

    `*.ck` makes each child of `ck` a suffix; no list names those, so the parent alone is kept.
    """
    found = set()
    for line in lines:
        text = line.strip()
        if text.startswith(b"// ===END ICANN DOMAINS==="):
            break
        if not text or text.startswith((b"//", b"!")):
            continue
        try:
            found.add(parse_name(text.removeprefix(b"*.")))
        except ListError:
            continue
    return frozenset(found)
