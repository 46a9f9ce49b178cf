"""Settings staged and committed; and the power cut at every single change of the flash."""

import os
from pathlib import Path

import pytest

from hw import flash
from hw.settings import Edit, change, edits_of, unset_edits
from hw.staging import Staging
from policy.config import load
from policy.errors import ConfigError

OLD = "config gatehouse 'main'\n\toption venue 'old'\n"
NEW = Edit("gatehouse", "gatehouse", "main", "venue", "new")
NETWORK_NEW = Edit("network", "interface", "wan", "proto", "static")


class CutError(Exception):
    """The power went."""


def make(directory: Path, life: str = "1") -> Staging:
    paths = {"gatehouse": str(directory / "gatehouse"), "network": str(directory / "network")}
    return Staging(paths, str(directory / "state"), life)


@pytest.fixture
def router(tmp_path: Path) -> Path:
    (tmp_path / "gatehouse").write_text(OLD)
    (tmp_path / "network").write_text("config interface 'wan'\n\toption proto 'dhcp'\n")
    return tmp_path


def contents(staging: Staging) -> dict[str, bytes]:
    return {staging.paths[name]: text.encode() for name, text in staging.candidate().items()}


def files_of(router: Path) -> tuple[bytes | None, ...]:
    return tuple(flash.read(str(router / name)) for name in ("gatehouse", "network", "ca.pem"))


def test_what_is_staged_survives_and_changes_nothing(router: Path) -> None:
    before = files_of(router)
    make(router).add([NEW, NETWORK_NEW])
    staging = make(router, "2")
    assert files_of(router) == before
    assert "'new'" in staging.candidate()["gatehouse"]
    assert any(line == "+\toption venue 'new'" for line in staging.differences())
    staging.discard()
    assert make(router).is_empty


def commit(router: Path, life: str, how: str) -> None:
    staging = make(router, life)
    staging.add([NEW, NETWORK_NEW])
    staging.begin(contents(staging) | {str(router / "ca.pem"): b"authority"}, 60)
    if how == "undo":
        staging.undo()
    elif how == "confirm":
        staging.keep(is_confirmed=False)
        staging.keep(is_confirmed=True)
    else:
        staging.keep(is_confirmed=how == "keep")


@pytest.mark.parametrize("how", ["keep", "confirm", "wait", "undo"])
def test_a_cut_at_any_change_of_the_flash_leaves_all_of_the_old_or_all_of_the_new(
    router: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(router)
    changes = ("open", "replace", "fsync", "unlink")
    real = {name: getattr(os, name) for name in changes}
    left = [10**9]

    def counted(name: str) -> object:
        def call(*arguments: object, **more: object) -> object:
            if name == "open" and not int(str(arguments[1])) & os.O_CREAT:
                return real[name](*arguments, **more)
            left[0] -= 1
            if left[0] < 0:
                raise CutError
            return real[name](*arguments, **more)

        return call

    for name in changes:
        monkeypatch.setattr(os, name, counted(name))

    def restored() -> None:
        left[0] = 10**9
        for name, octets in zip(("gatehouse", "network", "ca.pem"), before, strict=True):
            path = router / name
            path.unlink(missing_ok=True) if octets is None else path.write_bytes(octets)
        for path in (router / "state").glob("*"):
            path.unlink()

    left[0] = 10**9
    commit(router, "1", how)
    steps = 10**9 - left[0]
    after = files_of(router)
    assert (after == before) == (how == "undo")
    seen = set()
    for step in range(steps):
        restored()
        left[0] = step
        with pytest.raises(CutError):
            commit(router, "1", how)
        left[0] = 10**9
        staging = make(router, "2")
        staging.recover()
        found = files_of(router)
        assert found in (before, after), (step, found)
        assert staging.state in ("", "done")
        seen.add(found)
        if step % 5 == 0:  # and it can be used again, whatever it was
            commit(router, "3", "keep")
            assert b"'new'" in (files_of(router)[0] or b"")
    assert before in seen
    if how in ("keep", "confirm"):
        assert after in seen


def test_a_cut_while_it_is_undone_is_undone_to_the_end(router: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_of(router)
    commit(router, "1", "wait")
    real, left = os.replace, [2]

    def replace(*arguments: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise CutError
        real(*arguments)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(CutError):
        make(router, "2").recover()
    assert files_of(router) != before
    left[0] = 100
    assert make(router, "3").recover()
    assert files_of(router) == before


def test_rollback_after_it_was_kept(router: Path) -> None:
    before = files_of(router)
    commit(router, "1", "keep")
    assert files_of(router) != before
    staging = make(router, "2")
    assert staging.recover() == []
    staging.undo()
    assert files_of(router) == before
    with pytest.raises(ConfigError, match="nothing was committed"):
        staging.undo()


def test_a_file_keeps_its_mode_and_secrets_are_not_for_others(router: Path) -> None:
    (router / "network").chmod(0o644)
    commit(router, "1", "keep")
    assert (router / "network").stat().st_mode & 0o777 == 0o644
    assert (router / "state" / "old0").stat().st_mode & 0o777 == 0o600


def test_words_to_edits() -> None:
    def value(name: str, *words: str) -> dict[str, str | None]:
        return {edit.option: edit.value for edit in edits_of(name, words, "02FC00000001", "123456789")}

    assert value("venue", "11010510010001") == {"venue": "11010510010001"}
    assert value("设备", "自动") == {"device": "12345678902FC00000001"}
    static = value("wan", "static", "10.0.0.2/24", "10.0.0.1", "9.9.9.9")
    assert (static["ipaddr"], static["netmask"], static["password"]) == ("10.0.0.2", "255.255.255.0", None)
    assert value("uplink", "off") == {"enabled": "0"}
    assert value("启用", "开") == {"enabled": "on"}
    assert value("option", "dns.rate", "500") == {"rate": "500"}
    assert unset_edits("venue")[0].value is None


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("nothing", ["x"], "unknown setting"),
        ("venue", [], "expected a value"),
        ("wan", ["static", "10.0.0.2", "10.0.0.1", "9.9.9.9"], "ADDRESS/LENGTH"),
        ("wan", ["static", "10.0.0.2/24", "10.0.9.1", "9.9.9.9"], "gateway within it"),
        ("wan", ["static", "10.0.0.2/99", "10.0.9.1", "9.9.9.9"], "set wan static"),
        ("wan", ["smoke"], "expected dhcp"),
        ("option", ["rate", "5"], "SECTION.OPTION"),
        ("option", ["list.file", "/etc/passwd"], "SECTION.OPTION"),
        ("device", ["auto"], "vendor"),
    ],
)
def test_a_wrong_word_is_told_with_the_mend(name: str, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        edits_of(name, words, "02FC00000001", "")


def test_a_change_goes_into_the_section_that_is_there_whatever_it_is_called() -> None:
    text = change("config gatehouse\n\toption enabled '0'\n", [NEW], "gatehouse")
    assert text.count("config gatehouse") == 1
    with pytest.raises(ConfigError, match="venue code"):
        load(text)
