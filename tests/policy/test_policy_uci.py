"""UCI's grammar: what OpenWrt's own files use, what people type wrong, and text that means nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import ConfigError
from policy.uci import Section, parse, render


def test_a_file_as_openwrt_writes_it() -> None:
    text = """
package dhcp

config dnsmasq
\toption domainneeded '1'
\tlist server '/pool.ntp.org/'   # a comment
\tlist server "9.9.9.9#53"

config dhcp 'lan'
\toption interface lan; option start 100
"""
    anonymous, lan = parse(text)
    assert anonymous == Section(
        "dnsmasq", "@dnsmasq[0]", {"domainneeded": "1", "server": ("/pool.ntp.org/", "9.9.9.9#53")}, 4, anonymous=True
    )
    assert lan.name == "lan"
    assert lan.options == {"interface": "lan", "start": "100"}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("'it'\\''s'", "it's"),
        ('"say \\"hi\\""', 'say "hi"'),
        ("plain", "plain"),
        ("a'b c'\"d\"", "ab cd"),
        ("back\\ slash", "back slash"),
        ("'two\nlines'", "two\nlines"),
        ("''", ""),
        ("con\\\ntinued", "continued"),
        ("a#b", "a#b"),
    ],
)
def test_quoting(written: str, meant: str) -> None:
    assert parse(f"config t 'n'\noption o {written}\n")[0].options == {"o": meant}


def test_a_named_section_opened_twice_is_one_section() -> None:
    (only,) = parse("config t 'n'\noption a 1\nconfig t 'n'\noption b 2\n")
    assert only.options == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("option a b", "gatehouse:1: option 'a' before any `config` line"),
        ("config", "gatehouse:1: config: expected 1 or 2 words after it, got 0"),
        ("config t\noption a", "gatehouse:2: option: expected 2 words after it, got 1"),
        ("config t\noption a 'b", "gatehouse:2: a ' is opened and never closed"),
        ('config t\noption a "b', 'gatehouse:2: a " is opened and never closed'),
        ("config t\noption a-b c", "gatehouse:2: option name: expected letters, digits and _, got 'a-b'"),
        ("config t 'n'\nconfig u 'n'", "section 'n' was a 't' on line 1"),
        ("confg t", "gatehouse:1: expected config, option, list or package, got 'confg'"),
        ("config t\n\0", "gatehouse:2: NUL octet"),
    ],
)
def test_a_mistake_names_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert message in str(caught.value)


NAMES = st.text("abcz_09", min_size=1, max_size=6)
VALUES = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=12)


@given(
    st.dictionaries(
        NAMES,
        st.dictionaries(NAMES, VALUES | st.lists(VALUES, min_size=1, max_size=3).map(tuple), max_size=4),
        max_size=4,
    )
)
def test_parse_of_render_is_the_same(tree: dict[str, dict[str, str | tuple[str, ...]]]) -> None:
    sections = [Section("t", name, options, 0) for name, options in tree.items()]
    again = [section._replace(line=0) for section in parse(render(sections))]
    assert again == sections


@given(st.text(max_size=200))
def test_any_text_parses_or_raises_config_error(text: str) -> None:
    try:
        parse(text)
    except ConfigError:
        pass
