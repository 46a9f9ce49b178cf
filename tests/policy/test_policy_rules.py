"""The policy's sections: what they become, and what a mistake is told."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.errors import ConfigError
from policy.image import Scope
from policy.rules import Action, What, load_policy, parse_match
from policy.schedule import Window
from policy.syntax import Format
from policy.uci import Section, parse


def policy_of(text: str):
    return load_policy(parse(text))


def test_nothing_written_is_a_policy_too() -> None:
    policy = policy_of("")
    assert policy.is_implicit
    assert [group.name for group in policy.groups] == ["default"]
    assert policy.profiles["default"].bypass


def test_lists_are_read_with_their_terms() -> None:
    (item,) = policy_of(
        "config list 'x'\n\toption url 'https://a.example/x'\n\toption category 'ads'\n\toption format 'adblock'\n"
        "\toption scope 'exact'\n\toption action 'allow'\n\toption important '1'\n\toption max_entries '5'\n"
        "\toption refresh '12h'\n\toption allow_public_suffix '1'\n"
    ).lists
    assert item.category == "ads"
    assert (item.format, item.scope, item.action) == (Format.ADBLOCK, Scope.SELF, "allow")
    assert (item.important, item.max_entries, item.refresh_s, item.allow_public_suffix) == (True, 5, 43200, True)


def test_windows_in_both_spellings() -> None:
    schedules = policy_of(
        "config schedule 'a'\n\tlist days 'mon'\n\tlist days 'wed-fri'\n\toption start '21:00'\n\toption end '07:00'\n"
        "config schedule 'b'\n\tlist window 'sat-sun 08:00-12:00'\n\toption window_off ''\n".replace(
            "\toption window_off ''\n", ""
        )
        + "config schedule 'c'\n\tlist window 'fri-mon 20:00-24:00'\n\tlist window '06:00-07:30'\n"
        "config schedule 'd'\n\tlist days 'sun'\n"
    ).schedules
    assert schedules["a"].windows == (Window(frozenset({0, 2, 3, 4}), 1260, 420),)
    assert schedules["b"].windows == (Window(frozenset({5, 6}), 480, 720),)
    assert schedules["c"].windows == (
        Window(frozenset({4, 5, 6, 0}), 1200, 1440),
        Window(frozenset(range(7)), 360, 450),
    )
    assert schedules["d"].windows == (Window(frozenset({6}), 0, 1440),)


def test_matches() -> None:
    assert parse_match("all", "x").what is What.ALL
    assert parse_match("domain:WWW.Bücher.example", "x").name == b"www.xn--bcher-kva.example"
    assert parse_match("domain:*.example", "x").scope == Scope.BELOW
    assert parse_match("exact:a.example", "x").scope == Scope.SELF
    assert parse_match("ip:192.0.2.0/24", "x").network == (0xC0000200, 24, 32)
    assert (parse_match("url:a.example/b/c", "x").name, parse_match("url:a.example/b/c", "x").pattern) == (
        b"a.example",
        b"/b/c",
    )
    assert Action("log") is Action.LOG


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config list 'x'\n", r"gatehouse\.x\.url: expected either url or file, got none"),
        ("config list 'x'\n\toption url 'ftp://a'\n", r"gatehouse\.x\.url: expected http"),
        ("config list\n\toption file 'a'\n", r"a list needs a name"),
        ("config list 'x'\n\toption file '../../etc/passwd'\n", r"without \.\."),
        ("config list 'x'\n\toption file 'a'\n\toption catgory 'ads'\n", r"unknown option; did you mean 'category'"),
        ("config list 'x'\n\toption file 'a'\n\toption format 'host'\n", r"gatehouse\.x\.format: expected one of"),
        (
            "config group 'g'\n\toption profile 'kid'\nconfig profile 'kids'\n",
            r"no profile is called 'kid'; did you mean 'kids'",
        ),  # noqa: E501, RUF100
        (
            "config profile 'p'\nconfig group 'g'\n\toption profile 'p'\n\tlist mac '02:00'\n",
            r"g\.mac\[0\]: expected a MAC",
        ),  # noqa: E501, RUF100
        (
            "config profile 'p'\nconfig group 'g'\n\toption profile 'p'\n\tlist ip '10.0.0.1/8'\n",
            r"g\.ip\[0\]: expected an address",
        ),  # noqa: E501, RUF100
        ("config schedule 's'\n\toption start '08:00'\n", r"s\.end: expected both start and end"),
        ("config schedule 's'\n\toption start '25:00'\n\toption end '26:00'\n", r"from 00:00 to 24:00"),
        ("config schedule 's'\n\tlist days 'mo'\n", r"expected mon, tue"),
        ("config schedule 's'\n\tlist window 'mon 08:00'\n", r"expected days and times such as"),
        ("config schedule 's'\n\tlist except 'x'\n", r"no calendar is called 'x'; there is none"),
        ("config calendar 'c'\n\tlist date '2026-02-30'\n", r"c\.date\[0\]: expected a day such as"),
        ("config calendar 'c'\n\tlist date '2026-03-02..2026-03-01'\n", r"the earlier day first"),
        ("config rule 'r'\n", r"r\.match: expected at least one"),
        ("config rule 'r'\n\tlist match 'domian:x.example'\n", r"did you mean 'domain'"),
        ("config rule 'r'\n\tlist match 'domain:a..b'\n", r"r\.match\[0\]: 'domain:a\.\.b': empty label"),
        ("config rule 'r'\n\tlist match 'url:a.example'\n", r"no / behind the host"),
        ("config rule 'r'\n\tlist match 'all'\n\toption schedule 's'\n", r"no schedule is called 's'"),
        ("config rule 'r'\n\tlist match 'all'\n\toption group 'x'\n", r"no group is called 'x'"),
        ("config rule 'r'\n\tlist match 'all'\n\toption action 'deny'\n", r"expected one of block, allow, log"),
        ("config profile 'p'\n\tlist safesearch 'youtube:hard'\n", r"youtube:strict or moderate"),
        ("config policy 'a'\n\toption default_group 'x'\n", r"no group is called 'x'"),
        ("config policy 'a'\nconfig policy 'b'\n", r"a second policy section"),
        ("config bundle 'b'\n", r"b\.key: expected the fingerprint"),
        ("config bundle 'b'\n\toption key 'xyz'\n", r"b\.key\[0\]: expected 16 hexadecimal digits"),
        ("config safesearch 's'\n\toption target 'a..b'\n", r"s\.target: expected a name"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_the_mend(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        policy_of(text)


def test_more_categories_than_the_image_has_room_for() -> None:
    text = "".join(f"config list 'l{n}'\n\toption file 'f'\n\toption category 'c{n}'\n" for n in range(129))
    with pytest.raises(ConfigError, match="at most 128 categories, got 129"):
        policy_of(text)


WORDS = st.sampled_from(
    [
        "mon",
        "08:00",
        "12:00-13:00",
        "all",
        "domain:x.example",
        "ip:1.2.3.4",
        "p",
        "x",
        "",
        "1",
        "google",
        "2026-01-01",
        "a b",
    ]
)


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["policy", "list", "bundle", "profile", "group", "schedule", "calendar", "rule", "safesearch"]
            ),  # noqa: E501, RUF100
            st.dictionaries(
                st.sampled_from(
                    [
                        "url",
                        "file",
                        "block",
                        "profile",
                        "mac",
                        "ip",
                        "days",
                        "start",
                        "end",
                        "window",
                        "match",  # noqa: E501, RUF100
                        "action",
                        "schedule",
                        "date",
                        "safesearch",
                        "name",
                        "target",
                        "key",
                        "group",
                        "only",
                    ]
                ),
                st.one_of(WORDS, st.lists(WORDS, max_size=3).map(tuple)),
                max_size=5,
            ),
        ),
        max_size=5,
    ),
)
def test_any_sections_are_a_policy_or_a_config_error(rows) -> None:
    sections = [Section(kind, f"s{n}", options, n) for n, (kind, options) in enumerate(rows)]
    try:
        policy = load_policy(sections)
    except ConfigError:
        return
    from policy.engine import Engine

    engine = Engine((), policy)
    engine.decide(b"x.example", len(policy.groups) - 1, 1.8e9)
