"""The self-test from the agent's side: when it runs, what is taken, what goes on record, and whose its traces are."""

import json
import stat
import time
from pathlib import Path

import pytest

from agent import selftest
from agent.selftest import AGAIN_S, FIRST_S, SelfTest, apart
from hw.doctor.finding import Finding, as_row
from policy import canary
from policy.errors import ConfigError

GOOD = Finding("rules", True, "all in place")
BAD = Finding("clock", False, "it shows 1970", "ntp")


class Desk:
    """A self-test with a clock and a log of its own, and a child that a test writes."""

    def __init__(self, directory: Path, every_s: int = 3600, script: str = "exit 0") -> None:
        self.now_s = 1000.0
        self.notes: list[tuple[str, str, str, str, str]] = []
        self.ran = directory / "ran"
        tool = directory / "python"
        tool.write_text(f'#!/bin/sh\necho "$@" >>{self.ran}\n{script}\n')
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        self.test = SelfTest(every_s, "/etc/config/gatehouse", self.note, lambda: self.now_s)

    def note(self, action: str, what: str, result: str, detail: str, actor: str) -> None:
        self.notes.append((action, what, result, detail, actor))

    def hand_in(self, *findings: Finding) -> None:
        request = {"findings": [json.loads(json.dumps(as_row(finding))) for finding in findings], "by": "agent"}
        list(self.test.take(request))

    def wait(self) -> None:
        deadline = time.monotonic() + 10
        while self.test.describe()["running"]:
            assert time.monotonic() < deadline
            self.test.poll()
            time.sleep(0.01)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(selftest.sys, "executable", str(tmp_path / "python"))
    return Desk(tmp_path)


def runs(desk: Desk) -> list[str]:
    return desk.ran.read_text().splitlines() if desk.ran.exists() else []


def test_it_runs_some_time_after_the_start_and_then_every_so_often(desk: Desk) -> None:
    desk.test.poll()
    assert not desk.test.describe()["running"]
    desk.now_s += FIRST_S
    desk.test.poll()
    desk.wait()
    assert runs(desk)[0].endswith("doctor --json --by agent --config /etc/config/gatehouse")
    desk.now_s += 3599
    desk.test.poll()
    assert len(runs(desk)) == 1
    desk.now_s += 2
    desk.test.poll()
    desk.wait()
    assert len(runs(desk)) == 2


def test_with_zero_it_never_runs_by_itself_and_a_new_configuration_may_begin_it(desk: Desk) -> None:
    desk.test.change(0)
    desk.now_s += 1e6
    desk.test.poll()
    assert not desk.test.describe()["running"]
    desk.test.change(60)
    desk.now_s += FIRST_S
    desk.test.poll()
    desk.wait()
    assert len(runs(desk)) == 1


def test_one_that_does_not_end_is_killed_and_that_is_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest.sys, "executable", str(tmp_path / "python"))
    desk = Desk(tmp_path, script="exec sleep 600")
    desk.test.start()
    desk.test.start()
    desk.now_s += selftest.LONGEST_S + 1
    desk.test.poll()
    assert not desk.test.describe()["running"]
    assert desk.notes == [("self-test", "doctor", "killed: not done within 120 s", "", "agent")]
    desk.test.start()
    desk.test.close()
    assert not desk.test.describe()["running"]


def test_findings_that_are_handed_in_are_a_dated_record_and_show_in_the_status(desk: Desk) -> None:
    desk.hand_in(GOOD, BAD)
    assert desk.notes == [("self-test", "doctor", "not ok: clock", "clock: it shows 1970", "agent")]
    assert desk.test.troubles() == ["self-test: clock: it shows 1970"]
    assert abs(int(str(desk.test.describe()["at_s"])) - time.time()) < 5
    desk.now_s += AGAIN_S
    desk.test.poll()
    desk.wait()
    assert len(runs(desk)) == 1, "a fault is looked at again soon"
    desk.hand_in(GOOD)
    assert desk.test.troubles() == []
    assert desk.notes[-1][2] == "ok"


@pytest.mark.parametrize("findings", [None, [], [{}], ["x"], [{"name": "a", "ok": 1}], [as_row(GOOD)] * 201])
def test_nonsense_is_refused_and_leaves_nothing(desk: Desk, findings: object) -> None:
    with pytest.raises(ConfigError):
        list(desk.test.take({"findings": findings}))
    assert desk.notes == []


def test_a_button_is_on_record_and_held_a_while_starts_a_test(desk: Desk) -> None:
    list(desk.test.button({"name": "reset", "action": "pressed", "seconds": 0}))
    assert desk.notes == [("button", "reset", "pressed", "", "button")]
    assert not desk.test.describe()["running"]
    list(desk.test.button({"name": "reset", "action": "released", "seconds": 3}))
    desk.wait()
    assert len(runs(desk)) == 1
    list(desk.test.button({"name": "reset", "action": "released", "seconds": 7}))
    assert len(runs(desk)) == 1
    assert desk.notes[-1] == ("button", "reset", "released", "held for 7 s", "button")
    with pytest.raises(ConfigError):
        list(desk.test.button({"name": "reset", "action": "eaten"}))


def test_the_canarys_addresses_are_nobodys() -> None:
    asked = []

    def session_of(address: bytes, mac: bytes, at_ms: int, *, is_own: bool = False) -> str:
        asked.append(address)
        return "s1"

    attribute = apart(session_of)
    assert attribute(canary.CLIENT4, b"", 0) == attribute(canary.CLIENT6, b"", 0) == ""
    assert attribute(b"\x0a\0\0\1", b"", 0) == "s1"
    assert asked == [b"\x0a\0\0\1"]
