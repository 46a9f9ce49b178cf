"""What a mistyped word may have meant."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """The one of `known` that looks most like `word`; empty if none does."""
    import difflib  # a fifth of a megabyte in each process, for a mistake that few make

    return next(iter(difflib.get_close_matches(word, list(known), 1)), "")
