"""Path patterns, against a plain translation into a regular expression."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.urls import matches


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("/ads/", "/ads/banner.js", True),
        ("/ads/", "/my/ads/", False),
        ("/ads/", "/ADS/x", True),
        ("/adult^", "/adult", True),
        ("/adult^", "/adult/clip", True),
        ("/adult^", "/adult.html", False),
        ("/adult^", "/adulthood", False),
        ("^*/ads/*.js", "/static/ads/x.js", True),
        ("^*/ads/*.js", "/static/x.js", False),
        ("/a*b*c|", "/a-b-c", True),
        ("/a*b*c|", "/a-b-c-d", False),
        ("/a*b*c|", "/a-b-c-bc", True),
        ("/x|", "/x", True),
        ("/x|", "/x/", False),
        ("*", "/anything", True),
        ("", "/anything", True),
    ],
)
def test_patterns_mean_what_adblock_rules_say(pattern: str, path: str, expected: bool) -> None:
    assert matches(pattern.encode(), path.encode()) is expected


def oracle(pattern: str, path: str) -> bool:
    is_anchored = pattern.endswith("|")
    words = {"*": ".*", "^": r"(?:[^a-z0-9_\-.%]|$)"}
    text = "".join(words.get(c, re.escape(c)) for c in (pattern[:-1] if is_anchored else pattern).lower())
    return re.match(text + ("$" if is_anchored else ""), path.lower(), re.DOTALL) is not None


@settings(max_examples=1500)
@given(st.text(alphabet="/ab*^.-", max_size=8), st.booleans(), st.text(alphabet="/ab.-%", max_size=10))
def test_any_pattern_agrees_with_a_regular_expression(pattern: str, anchored: bool, path: str) -> None:
    pattern += "|" if anchored else ""
    assert matches(pattern.encode(), path.encode()) is oracle(pattern, path), (pattern, path)


def test_no_pattern_runs_away() -> None:
    start = time.process_time()
    matches(b"*a" * 500 + b"|", b"/" + b"a" * 2048)
    matches(b"^*" * 500, b"/" * 2048)
    matches(b"*" + b"^a" * 500, b"/a" * 1024)
    assert time.process_time() - start < 1.0
