"""An erasure is on record and done, or neither, wherever the power goes: real register, real ring."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.clock import Now
from agent.legal import open_profile
from agent.people import ERASED, People
from policy.errors import ConfigError, StorageError
from policy.event import Maintenance
from storage.filter import Filter
from storage.register import Register, Row
from storage.writer import Ring

SESSION = "s6b07412976f6f4a9"


class Clock:
    boot_id = "one"

    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def read(self) -> Now:
        self.now_ms += 1000
        return Now(self.now_ms, 1_795_000_000_000 + self.now_ms, True)


class PowerCutError(BaseException):
    """Nothing of ours catches it."""


class Life:
    """The agent from one start to the next, over the same files."""

    def __init__(self, directory: Path) -> None:
        self.register = Register(str(directory))
        self.ring = Ring(str(directory / "ring"), Clock())
        self.fails: BaseException | None = None
        desk = SimpleNamespace(commit=self.commit, sessions=SimpleNamespace(find=lambda name: None))
        gate = SimpleNamespace(profile=open_profile("eu-guest", str(directory)))
        self.people = People(self.ring, self.register, desk, gate, self.note)  # type: ignore[arg-type]

    def note(self, action: str, what: str, result: str, detail: str, actor: str) -> None:
        self.ring.add([Maintenance(1_000_000, actor, action, what, "", "", result, detail)])

    def commit(self) -> None:
        if self.fails is not None:
            raise self.fails
        self.ring.commit()

    def erase(self) -> None:
        for _ in self.people.erase({"session": SESSION, "by": "mei", "reason": "she asks"}):
            pass

    def told(self) -> list[str]:
        found = self.ring.query(Filter(0, 1 << 62))
        return [one.event.result for one in found if one is not None and isinstance(one.event, Maintenance)]

    def end(self) -> None:
        self.register.close()
        self.ring.close()


def begin(directory: Path) -> Life:
    life = Life(directory)
    life.register.save([Row(SESSION, "one", 0, 1, "ann", b"", b"", "", b"", b"", 1, 2, 3, "user", "desk", 9, "", "")])
    life.register.put_session_key(SESSION, bytes(32))
    return life


def test_a_power_cut_before_the_record_and_one_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    life = begin(tmp_path)
    life.fails = PowerCutError()
    with pytest.raises(PowerCutError):
        life.erase()
    life.register.close()
    life.ring.store().segment.close()  # as its last commit left it
    second = Life(tmp_path)
    assert (second.register.session_key(SESSION), second.told()) == (bytes(32), [])
    # Now the record gets on flash, and the power goes before the key does.
    monkeypatch.setattr(second.register, "erase_session", lambda name: (_ for _ in ()).throw(PowerCutError()))
    with pytest.raises(PowerCutError):
        second.people.finish_erasing()
    second.end()
    third = Life(tmp_path)
    assert (third.register.session_key(SESSION), third.register.erasing()) == (
        bytes(32),
        [(SESSION, "mei", "she asks")],
    )
    third.people.finish_erasing()
    assert (third.register.session_key(SESSION), third.register.session(SESSION)) == (b"", None)
    assert third.register.erasing() == []
    assert [said.startswith(ERASED) for said in third.told()] == [True, True]
    third.people.finish_erasing()
    assert len(third.told()) == 2, "what is done is done"
    third.end()


def test_a_flash_that_takes_nothing_delays_it_and_is_told_once(tmp_path: Path) -> None:
    life = begin(tmp_path)
    life.fails = StorageError("ring: no space left on device")
    for _ in range(3):
        with pytest.raises(StorageError):
            life.erase() if life.register.erasing() == [] else life.people.finish_erasing()
    assert life.register.session_key(SESSION) == bytes(32), "not on record, so not gone"
    life.fails = None
    life.people.finish_erasing()
    assert life.told() == [ERASED]
    assert life.register.session_key(SESSION) == b""
    with pytest.raises(ConfigError, match="no session"):
        life.erase()
    life.end()
