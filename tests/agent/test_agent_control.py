"""The control socket's protocol: a request, rows as fast as they are read, one end."""

import json
from collections.abc import Callable, Iterator, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.control import LOW_WATER, MAX_REQUEST, Conversation, Request
from agent.records import filter_of
from policy.errors import ConfigError, StorageError
from policy.event import Event


def count(request: Request) -> Iterator[Mapping[str, object]]:
    for number in range(int(str(request["to"]))):
        yield {"row": number}


def follow(request: Request) -> Callable[[Event], bool]:
    return lambda event: True


def fail(request: Request) -> Iterator[Mapping[str, object]]:
    yield {"row": 1}
    raise StorageError("ring: segment 7 is gone")


def answer(*lines: bytes) -> list[dict[str, object]]:
    talk = Conversation({"count": count, "fail": fail}, follow)
    for line in lines:
        talk.receive(line)
    heard = b""
    while not talk.is_done or talk.outgoing:
        talk.step()
        heard += talk.outgoing
        talk.outgoing.clear()
    return [json.loads(line) for line in heard.splitlines()]


def test_rows_then_end_however_the_request_is_cut() -> None:
    assert answer(b'{"do":"cou', b'nt","to":2}', b"\n") == [{"row": 0}, {"row": 1}, {"end": True}]


def test_an_error_in_mid_answer_is_its_last_line() -> None:
    assert answer(b'{"do":"fail"}\n') == [{"row": 1}, {"error": "ring: segment 7 is gone"}]


def test_a_slow_reader_holds_the_answer_not_the_memory() -> None:
    talk = Conversation({"count": count}, follow)
    talk.receive(b'{"do":"count","to":1000000}\n')
    for _ in range(1000):
        talk.step()
    assert LOW_WATER <= len(talk.outgoing) < LOW_WATER + 1000
    assert not talk.is_done


def test_a_request_without_end_is_refused() -> None:
    talk = Conversation({}, follow)
    talk.receive(b"x" * (MAX_REQUEST + 1))
    assert talk.is_done
    assert b"without a line end" in talk.outgoing


@given(st.binary(max_size=80))
def test_any_line_is_answered(line: bytes) -> None:
    (*_, last) = answer(line.replace(b"\n", b" ") + b"\n")
    assert "error" in last


@pytest.mark.parametrize(
    "line", [rb'{"do":"count","to":1e999}', b'{"do":"count","to":NaN}', rb'{"do":"count","to":"\ud800"}']
)
def test_what_json_does_not_know_does_not_reach_a_handler(line: bytes) -> None:
    ((_, said),) = [each.popitem() for each in answer(line + b"\n")]
    assert str(said).startswith("request: not JSON")


@pytest.mark.parametrize("number", ["1e300", "-1e300", "1" + "0" * 400, "true", "null", '"1"'])
@pytest.mark.parametrize("name", ["since_s", "until_s"])
def test_a_time_that_is_none_is_an_error_of_whoever_asks(name: str, number: str) -> None:
    with pytest.raises(ConfigError, match=f"request: {name}: expected a number"):
        filter_of(json.loads(f'{{"{name}": {number}}}'))


def test_times_beyond_the_calendar_are_refused_or_mean_for_ever() -> None:
    with pytest.raises(ConfigError, match="--since: expected a time before the year 10000"):
        filter_of({"since_s": 1 << 39})
    assert filter_of({"since_s": -28_800}).since_ms == 0, "1970-01-01 in Shanghai"
    assert filter_of({"until_s": 1 << 40}).until_ms == 1000 << 40
