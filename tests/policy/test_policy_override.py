"""Timed overrides and codes; each change is on record."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import ConfigError
from policy.override import (
    CODE_LENGTH,
    MAX_FAILURES,
    MAX_OVERRIDES,
    Overrides,
    close_override,
    dump,
    expire,
    issue_code,
    load,
    open_override,
    redeem_code,
)

NOW = 1_795_422_600
EMPTY = Overrides()
RANDOM = bytes(range(100, 124))


def opened(state: Overrides = EMPTY, **changes):  # noqa: B008, RUF100
    terms = {
        "match": "domain:Game.Example",
        "group": "class5",
        "until_s": NOW + 2700,
        "by": "ms. k",
        "now_s": NOW,
        "at_ms": 5,
    }
    return open_override(state, **{**terms, **changes})


def test_opening_gives_an_override_and_a_record() -> None:
    change = opened()
    assert change.override is not None
    assert (change.override.match, change.override.group, change.override.code) == (
        "domain:game.example",
        "class5",
        "override:1",
    )
    record = change.record
    assert (record.actor, record.action, record.object, record.result) == (
        "ms. k",
        "override-open",
        "domain:game.example",
        "ok",
    )
    assert opened(change.state).override.number == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"match": "domain:"}, "expected all"),
        ({"match": "url:a.example/b"}, "URLs cannot be opened"),
        ({"until_s": NOW}, "expected an end"),
        ({"until_s": NOW + 8 * 86400}, "within 7 days"),
        ({"action": "log"}, "allow or block"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        opened(**changes)


def test_there_is_a_bound_and_time_makes_room() -> None:
    state = Overrides()
    for _ in range(MAX_OVERRIDES):
        state = opened(state).state
    with pytest.raises(ConfigError, match="at most 256"):
        opened(state)
    assert expire(state, NOW + 2700).active == ()
    assert len(opened(state, now_s=NOW + 2700, until_s=NOW + 3000).state.active) == 1


def test_closing_before_time_is_on_record() -> None:
    state = opened().state
    change = close_override(state, 1, by="head", at_ms=9)
    assert change.state.active == ()
    assert (change.record.action, change.record.actor, change.record.detail) == ("override-close", "head", "override:1")
    with pytest.raises(ConfigError, match="no override 7; 1"):
        close_override(state, 7, by="head", at_ms=9)


def issued(state: Overrides = EMPTY, **changes):  # noqa: B008, RUF100
    terms = {
        "match": "",
        "group": "class5",
        "duration_s": 1800,
        "expires_s": NOW + 86400,
        "uses": 1,
        "by": "ms. k",
        "now_s": NOW,
        "at_ms": 5,
    }
    return issue_code(state, RANDOM, **{**terms, **changes})


def test_a_code_opens_a_name_for_its_class_once() -> None:
    change, code = issued()
    assert len(code) == CODE_LENGTH
    assert code not in dump(change.state), "only a salted hash is kept"
    assert code not in repr(change.record)
    used = redeem_code(
        change.state,
        code.lower()[:4] + "-" + code[4:],
        domain="game.example",
        by="10.1.0.9",
        now_s=NOW + 60,  # noqa: E501, RUF100
        at_ms=6,
    )
    assert used.override is not None
    assert (used.override.match, used.override.group, used.override.until_s) == (
        "domain:game.example",
        "class5",
        NOW + 60 + 1800,
    )
    assert used.record.actor == "10.1.0.9 with a code of ms. k"
    again = redeem_code(used.state, code, domain="game.example", by="x", now_s=NOW + 61, at_ms=7)
    assert again.override is None
    assert again.record.result == "wrong code"


def test_a_code_for_a_class_can_be_used_as_often_as_it_says() -> None:
    change, code = issued(uses=3, match="category:games")
    state = change.state
    for _ in range(3):
        used = redeem_code(state, code, by="x", now_s=NOW, at_ms=7)
        assert used.override is not None
        state = used.state
    assert redeem_code(state, code, by="x", now_s=NOW, at_ms=7).override is None


def test_an_old_code_opens_nothing() -> None:
    change, code = issued()
    assert redeem_code(change.state, code, domain="a.example", by="x", now_s=NOW + 86400, at_ms=7).override is None


def test_guessing_is_stopped_for_the_right_code_too_and_for_a_minute_only() -> None:
    change, code = issued()
    state = change.state
    for _ in range(MAX_FAILURES):
        wrong = redeem_code(state, "AAAAAAAA", domain="a.example", by="x", now_s=NOW, at_ms=7)
        assert wrong.record.result == "wrong code"
        state = wrong.state
    shut = redeem_code(state, code, domain="a.example", by="x", now_s=NOW + 30, at_ms=7)
    assert shut.override is None
    assert shut.record.result == "too many wrong codes"
    assert redeem_code(shut.state, code, domain="a.example", by="x", now_s=NOW + 61, at_ms=7).override is not None


def test_a_code_for_any_domain_wants_one() -> None:
    change, code = issued()
    with pytest.raises(ConfigError, match="say which"):
        redeem_code(change.state, code, by="x", now_s=NOW, at_ms=7)


def test_the_state_survives_its_file() -> None:
    state = opened(issued()[0].state).state
    state = redeem_code(state, "WRONG", domain="a.example", by="x", now_s=NOW, at_ms=1).state
    assert load(dump(state)) == state
    assert load(dump(Overrides())) == Overrides()


@given(
    st.one_of(
        st.text(max_size=200),
        st.recursive(
            st.one_of(st.none(), st.integers(), st.text(max_size=5)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3),
                st.dictionaries(
                    st.sampled_from(["format", "active", "codes", "failures", "next_number", "match", "number"]),
                    inner,
                    max_size=5,
                ),
            ),  # noqa: E501, RUF100
            max_leaves=10,
        ).map(__import__("json").dumps),
    )
)
def test_any_text_is_a_state_or_a_config_error(text: str) -> None:
    try:
        load(text)
    except ConfigError:
        pass


def test_a_state_somebody_has_edited_is_checked() -> None:
    text = dump(opened().state)
    for old, new in (('"until_s": 17', '"until_s": "17'), ('"allow"', '"permit"'), ("domain:game.example", "domian:x")):
        assert old in text
        with pytest.raises(ConfigError):
            load(text.replace(old, new))
