"""Sealing: only the recipient opens; one number has one index, however it is written; a missing part refuses."""

import builtins
import os
from pathlib import Path

import pytest

from agent.identity import (
    INDEX_KEY,
    RECIPIENT,
    Sealer,
    is_phone,
    make_keys,
    normal_phone,
    open_sealed,
    read_key,
)
from policy.errors import ConfigError


@pytest.fixture
def sealer(tmp_path: Path) -> Sealer:
    make_keys(str(tmp_path / "secret"), str(tmp_path / RECIPIENT))
    return Sealer.load(str(tmp_path))


def test_the_recipient_opens_and_nobody_else(sealer: Sealer, tmp_path: Path) -> None:
    sealed = sealer.seal({"name": "王小明", "phone": "+8613800138000", "room": ""})
    assert b"138" not in sealed
    assert open_sealed(read_key(str(tmp_path / "secret")), sealed) == {"name": "王小明", "phone": "+8613800138000"}
    with pytest.raises(ConfigError, match="does not open it"):
        open_sealed(bytes(31) + b"\1", sealed)
    with pytest.raises(ConfigError, match="does not open it"):
        open_sealed(read_key(str(tmp_path / "secret")), sealed[:-1] + bytes((sealed[-1] ^ 1,)))
    assert sealer.seal({"name": ""}) == b""


def test_the_length_does_not_tell_names_apart(sealer: Sealer) -> None:
    assert len(sealer.seal({"name": "Li"})) == len(sealer.seal({"name": "Alexandra"}))


def test_the_same_number_in_every_form_has_one_index_and_another_router_has_another(
    sealer: Sealer, tmp_path: Path
) -> None:
    forms = ("13800138000", "+86 138 0013 8000", "0086-138-0013-8000", "(86)13800138000")
    assert len({sealer.index_of(form) for form in forms}) == 1
    assert sealer.index_of("13800138000") != sealer.index_of("13800138001")
    assert Sealer.load(str(tmp_path)).index_of(forms[0]) == sealer.index_of(forms[0]), "the key is kept"
    assert Sealer(bytes(32), bytes(32)).index_of(forms[0]) != sealer.index_of(forms[0])
    assert os.stat(tmp_path / INDEX_KEY).st_mode & 0o777 == 0o600


def test_what_is_no_number_is_refused_and_not_repeated() -> None:
    for text in ("", "12", "Q7", "+86x", "1" * 16, "１３８００１３８０００"):
        with pytest.raises(ConfigError) as caught:
            normal_phone(text)
        assert text == "" or text not in str(caught.value)
    assert [is_phone(t) for t in ("13800138000", "+447700900123", "20260042", "ann", "1380013800")] == [
        True, True, False, False, False,
    ]  # fmt: skip


def test_without_a_recipient_or_the_library_nothing_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="have the supervising recipient make it"):
        Sealer.load(str(tmp_path))
    make_keys(str(tmp_path / "secret"), str(tmp_path / RECIPIENT))
    with pytest.raises(ConfigError, match="is there already"):
        make_keys(str(tmp_path / "secret"), str(tmp_path / "other"))
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name.startswith("nacl"):
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="nothing is kept unsealed"):
        Sealer.load(str(tmp_path))


@pytest.mark.parametrize("text", ["", "not base64!", "AAAA", "untrusted comment: x\nAAAA\n"])
def test_a_key_file_that_is_none_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text)
    with pytest.raises(ConfigError, match="expected a key, base64 of 32 octets"):
        read_key(str(tmp_path / "key"))
