"""The door to the records: whoever names somebody says why, and that he asked is on flash before the answer."""

from collections.abc import Iterator, Mapping

import pytest

from agent.audit import Audit
from policy.errors import ConfigError, DeniedError, StorageError
from policy.people import Role

ROOT, TEACHER, INSTALLER, STRANGER = 0, 1001, 1002, 1003
NAMES = {TEACHER: "teacher", INSTALLER: "fitter", STRANGER: "stranger"}


class Log:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.is_full = False

    def note(self, action: str, what: str, result: str, detail: str, actor: str) -> None:
        self.said.append(f"{actor}: {action} {what}: {result} {detail}".rstrip())

    def commit(self) -> None:
        if self.is_full:
            raise StorageError("full")
        self.said.append("on flash")

    def answer(self, request: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
        self.said.append("answered")
        yield {"row": {"name": "a.example", "mac": "02:00", "session": "s1", "by": request.get("by")}}


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def audit(log: Log) -> Audit:
    roles = (Role("operator", ("teacher",)), Role("installer", ("fitter",)))
    return Audit(roles, log.note, log.commit, 500, NAMES.__getitem__)


def test_the_record_is_on_flash_before_the_first_line(audit: Audit, log: Log) -> None:
    answer = audit.guard("query", log.answer)({"uid": ROOT, "by": "mei", "mac": "02:00", "reason": "order 7"})
    assert log.said == [], "nothing happens before it is asked for"
    next(iter(answer))
    assert log.said == ["mei (root): query mac 02:00: answered order 7", "on flash", "answered"]


@pytest.mark.parametrize("name", ["client", "mac", "account", "phone_index", "session"])
@pytest.mark.parametrize("word", ["query", "names", "show", "who"])
def test_whoever_names_somebody_says_why(audit: Audit, log: Log, word: str, name: str) -> None:
    for reason in ("", "  "):
        with pytest.raises(ConfigError, match="say why with --reason"):
            list(audit.guard(word, log.answer)({"uid": ROOT, name: "x", "reason": reason}))
    assert log.said == []


def test_what_cannot_be_put_on_record_is_not_answered(audit: Audit, log: Log) -> None:
    log.is_full = True
    with pytest.raises(StorageError):
        list(audit.guard("query", log.answer)({"uid": ROOT}))
    assert "answered" not in log.said


def test_a_follower_is_on_record_too(audit: Audit, log: Log) -> None:
    follow = audit.guard_follow(lambda request: lambda event: True)
    with pytest.raises(ConfigError, match="--reason"):
        follow({"uid": ROOT, "do": "tail", "account": "ann"})
    follow({"uid": ROOT, "do": "tail"})
    assert log.said == ["root (root): tail everybody: answered", "on flash"]


def test_a_stranger_is_refused_and_what_he_says_of_himself_does_not_matter(audit: Audit, log: Log) -> None:
    with pytest.raises(DeniedError, match="has no role here"):
        list(audit.guard("status", log.answer)({"uid": STRANGER, "do": "status", "by": "root"}))
    assert log.said == ["stranger: denied status: refused has no role here", "on flash"]


def test_the_operator_sees_what_was_blocked_without_device_and_session(audit: Audit, log: Log) -> None:
    query = audit.guard("query", log.answer)
    (line,) = query({"uid": TEACHER, "verdict": "block", "by": "somebody else"})
    assert line == {"row": {"name": "a.example", "by": "teacher"}}
    for request in ({}, {"verdict": "allow"}, {"verdict": "block", "account": "ann", "reason": "r"}):
        with pytest.raises(DeniedError):
            list(query({"uid": TEACHER, **request}))
    for word in ("names", "who", "show", "hold", "registration", "erase"):
        with pytest.raises(DeniedError):
            list(audit.guard(word, log.answer)({"uid": TEACHER}))


def test_the_installer_sees_how_it_is_and_nobodys_records(audit: Audit, log: Log) -> None:
    assert list(audit.guard("status", log.answer)({"uid": INSTALLER}))
    for word in ("query", "names", "who", "show", "session", "override", "hold"):
        with pytest.raises(DeniedError):
            list(audit.guard(word, log.answer)({"uid": INSTALLER, "verdict": "block"}))


def test_the_maintenance_log_is_read_without_a_record_of_its_own(audit: Audit, log: Log) -> None:
    list(audit.guard("query", log.answer)({"uid": ROOT, "kind": "maintenance"}))
    assert log.said == ["answered"]


@pytest.mark.parametrize("word", ["show", "who", "names", "registration", "session"])
def test_a_kind_that_a_request_does_not_look_at_opens_no_way_round_the_record(
    audit: Audit, log: Log, word: str
) -> None:
    request = {"uid": ROOT, "kind": "maintenance", "action": "list", "session": "s1"}
    with pytest.raises(ConfigError, match="say why with --reason"):
        list(audit.guard(word, log.answer)(request))
    assert log.said == []
    list(audit.guard(word, log.answer)({**request, "reason": "order 7"}))
    assert log.said == [f"root (root): {word} session s1: answered order 7", "on flash", "answered"]


@pytest.mark.parametrize("kind", ["", "maintenance", "gap"])
def test_an_export_is_on_record_whatever_kind_of_records_leaves(audit: Audit, log: Log, kind: str) -> None:
    request = {"uid": ROOT, "by": "mei", "purpose": "export", "set": "sqlite", "kind": kind}
    list(audit.guard("query", log.answer)(request))
    assert log.said == ["mei (root): export sqlite: everybody: answered", "on flash", "answered"]


@pytest.mark.parametrize("words", [{}, {"set": "everything"}, {"set": ["ga"]}])
def test_an_export_says_which_record_set(audit: Audit, log: Log, words: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected set to be one of sqlite, ga"):
        list(audit.guard("query", log.answer)({"uid": ROOT, "purpose": "export", **words}))
    assert log.said == []


def test_the_agent_keeps_in_what_the_profile_does_not_let_leave(log: Log) -> None:
    audit = Audit((), log.note, log.commit, 500, NAMES.__getitem__, lambda name: "not ga" if name == "ga" else "")
    query = audit.guard("query", log.answer)
    with pytest.raises(DeniedError, match="export: refused: not ga"):
        list(query({"uid": ROOT, "by": "mei", "purpose": "export", "set": "ga"}))
    assert log.said == ["mei: denied export: refused not ga", "on flash"]
    assert list(query({"uid": ROOT, "purpose": "export", "set": "sqlite"}))


def test_an_auditor_may_export_and_an_operator_not(log: Log) -> None:
    roles = (Role("operator", ("teacher",)), Role("auditor", ("fitter",)))
    query = Audit(roles, log.note, log.commit, 500, NAMES.__getitem__).guard("query", log.answer)
    request = {"purpose": "export", "set": "sqlite", "verdict": "block"}
    with pytest.raises(DeniedError, match="the role operator does not allow it"):
        list(query({"uid": TEACHER, **request}))
    assert list(query({"uid": INSTALLER, **request}))


@pytest.mark.parametrize("word", ["query", "names", "tail", "hold", "erase"])
@pytest.mark.parametrize("name", ["account", "reason"])
def test_no_telephone_number_comes_into_the_log_by_a_question(audit: Audit, log: Log, word: str, name: str) -> None:
    request = {"uid": ROOT, "reason": "r", name: "+86 138 0013 8000"}
    with pytest.raises(ConfigError, match="--phone-index") as refused:
        if word == "tail":
            audit.guard_follow(lambda request: lambda event: True)(request)
        else:
            list(audit.guard(word, log.answer)(request))
    assert "8000" not in str(refused.value)
    assert log.said == []
