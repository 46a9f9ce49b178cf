"""Names: spelling, suffixes, what is not one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import ListError
from policy.names import is_public_suffix, parent, parse_name, public_suffixes, suffixes, to_unicode


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (b"example.org", b"example.org"),
        (b"WWW.Example.ORG.", b"www.example.org"),
        (b"_dmarc.example.org", b"_dmarc.example.org"),
        (b"-odd-.tumblr.com", b"-odd-.tumblr.com"),
        ("bücher.example".encode(), b"xn--bcher-kva.example"),
        ("BÜCHER.Example".encode(), b"xn--bcher-kva.example"),
        ("bu\u0308cher.example".encode(), b"xn--bcher-kva.example"),  # decomposed
        ("faß.example".encode(), b"xn--fa-hia.example"),  # UTS 46, not transitional: browsers keep the sharp s
        ("点看。例子".encode(), b"xn--3pxu8k.xn--fsqu00a"),  # ideographic full stop
        ("ｅｘａｍｐｌｅ．ｏｒｇ".encode(), b"example.org"),  # full width
        ("قطر".encode(), b"xn--wgbl6a"),
        (b"xn--bcher-kva.example", b"xn--bcher-kva.example"),
        (b"a" * 63 + b".example", b"a" * 63 + b".example"),
    ],
)
def test_spellings_of_one_name_give_one_form(written: bytes, name: bytes) -> None:
    assert parse_name(written) == name


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (b"", "empty name"),
        (b".", "empty name"),
        (b"a..b", "empty label"),
        (b".example", "empty label"),
        (b"a" * 64 + b".example", "label too long"),
        (b".".join([b"abcdefgh"] * 40), "name too long"),
        (b"exa mple.org", "character not in names"),
        (b"exa/mple.org", "character not in names"),
        (b"ex\0ample.org", "NUL octet"),
        (b"\xff\xfe.org", "not UTF-8"),
        (b"192.0.2.1", "last label is a number"),
        (b"12345", "last label is a number"),
        (b"xn--" + b"9" * 59 + b".example", "bad punycode"),
        (b"xn--a" + b"\xc3\xbc" + b".example", "label too long"),
        ("a\u202eb.example".encode(), "character not in names"),  # turns the text around
        ("\u0fff.example".encode(), "character not in names"),
        (b"x" * 5_000_000, "name too long"),
    ],
)
def test_what_is_not_a_name_says_why(written: bytes, reason: str) -> None:
    if reason == "label too long" and b"\xc3" in written:
        written = b"xn--" + "ü".encode() * 60 + b".example"
    with pytest.raises(ListError) as error:
        parse_name(written)
    assert str(error.value) == reason


@given(st.binary(max_size=300))
def test_any_octets_are_a_name_or_a_list_error(data: bytes) -> None:
    try:
        name = parse_name(data)
    except ListError:
        return
    assert parse_name(name) == name
    assert 0 < len(name) <= 253
    assert all(0 < len(label) <= 63 for label in name.split(b"."))


@given(st.text(min_size=1, max_size=40))
def test_unicode_text_folds_the_same_twice(text: str) -> None:
    try:
        name = parse_name(text.encode("utf-8", "surrogatepass"))
    except ListError:
        return
    assert parse_name(name.upper()) == name
    to_unicode(name).encode()


def test_suffixes_walk_up_to_the_top() -> None:
    assert list(suffixes(b"a.b.example.org")) == [b"a.b.example.org", b"b.example.org", b"example.org", b"org"]
    assert list(suffixes(b"org")) == [b"org"]
    assert list(suffixes(b"")) == []
    assert parent(b"a.example.org") == b"example.org"
    assert parent(b"org") == b""


def test_an_escaped_dot_is_no_place_to_cut() -> None:
    assert list(suffixes(rb"evil\.example.org")) == [rb"evil\.example.org", b"org"]
    assert list(suffixes(rb"a\\.example.org")) == [rb"a\\.example.org", b"example.org", b"org"]
    assert list(suffixes(rb"a\046b.org")) == [rb"a\046b.org", b"org"]


def test_public_suffixes_are_known_with_and_without_the_list() -> None:
    assert is_public_suffix(b"com")
    assert is_public_suffix(b"co.uk")
    assert not is_public_suffix(b"example.com")
    assert not is_public_suffix(b"google.uk")
    lines = [b"// ICANN", b"uk", b"co.uk", b"*.ck", b"!www.ck", b"// ===END ICANN DOMAINS===", b"github.io"]
    known = public_suffixes(iter(lines))
    assert known == {b"uk", b"co.uk", b"ck"}
    assert is_public_suffix(b"co.uk", known)
    assert not is_public_suffix(b"co.de", known), "with the list, only what stands in it"
    assert not is_public_suffix(b"github.io", known), "a private suffix is somebody's"


def test_names_are_shown_as_they_were_meant() -> None:
    assert to_unicode(b"xn--bcher-kva.example") == "bücher.example"
    assert to_unicode(b"xn--999999999.example") == "xn--999999999.example"
    assert to_unicode(b"plain.example") == "plain.example"
