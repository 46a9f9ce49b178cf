"""Path patterns of URL rules, for clear-text HTTP. Knows no host and no verdict.

A pattern is matched from the beginning of the path: `*` is any run of characters, `^` a separator or the end, a last
`|` the end. It is what is left of an Adblock rule behind its host; other syntaxes are brought into it.
Rule: time is bounded by pattern times path, whatever both are (no backtracking).
"""

from __future__ import annotations

from typing import Final

MAX_PATH: Final = 2048
"""Octets of a path that are looked at."""

# Adblock Plus, "Separator characters": anything but a letter, a digit, or one of _ - . %
_WORD: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.%")


def matches(pattern: bytes, path: bytes) -> bool:
    """Does a path (with its leading slash, without query) match? Case is folded, as in Adblock rules."""
    path = path[:MAX_PATH].lower()
    is_anchored = pattern.endswith(b"|")
    parts = (pattern[:-1] if is_anchored else pattern).lower().split(b"*")
    at = _end_of(parts[0], path, 0)
    if at < 0:
        return False
    if len(parts) == 1:
        return not is_anchored or at == len(path)
    for part in parts[1:-1]:
        at = _find(part, path, at)
        if at < 0:
            return False
    if not is_anchored:
        return _find(parts[-1], path, at) >= 0
    last = parts[-1]
    return any(_end_of(last, path, start) == len(path) for start in range(at, len(path) + 1))


def _find(part: bytes, path: bytes, start: int) -> int:
    """End of the first match of a part at or behind `start`, -1 if there is none."""
    if b"^" not in part:
        found = path.find(part, start)
        return found + len(part) if found >= 0 else -1
    for at in range(start, len(path) + 1):
        end = _end_of(part, path, at)
        if end >= 0:
            return end
    return -1


def _end_of(part: bytes, path: bytes, at: int) -> int:
    """End of the match of a part exactly at `at`, -1 if it does not match there."""
    if b"^" not in part:
        return at + len(part) if path.startswith(part, at) else -1
    size = len(path)
    for octet in part:
        if octet == 0x5E:
            if at < size:
                if path[at] in _WORD:
                    return -1
                at += 1
        elif at < size and path[at] == octet:
            at += 1
        else:
            return -1
    return at
