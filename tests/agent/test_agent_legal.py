"""The profile in force and the notice: only what is signed counts, and nothing is captured that was not told."""

from pathlib import Path

import pytest

from agent import notice
from agent.__main__ import main, read_config
from agent.legal import SHIPPED, Gate, load_profile, open_profile
from policy.config import Config, load
from policy.errors import ConfigError
from policy.event import Dns, Gap, Nat
from policy.legal import Capture, read_profile

LOOKUP = Dns(1, b"\x0a\0\0\1", "a.example", 1, 0, 0, 0, "", "g", (), True, 0)
GAP = Gap(1, "dns/0", 1, 0, 1, "x")


def config(tmp_path: Path, legal: str = "cn-82", ring: str = "", contact: str = "head@school.example") -> Config:
    return load(
        f"config gatehouse 'main'\n\toption state_dir '{tmp_path}'\n\toption legal '{legal}'\n"
        f"config notice 'notice'\n\toption controller 'Lab <School>'\n\toption contact '{contact}'\n"
        f"config ring 'ring'\n{ring}"
    )


def published(tmp_path: Path, settings: Config) -> Config:
    profile = load_profile(settings)
    assert profile is not None
    notice.publish(profile, settings)
    return settings


def test_without_a_profile_everything_that_is_seen_is_captured(tmp_path: Path) -> None:
    gate = Gate(config(tmp_path, ""))
    assert (gate.take((LOOKUP, GAP)), gate.trouble) == ((LOOKUP, GAP), "")


def test_nothing_is_captured_before_the_notice_is_published_and_losses_still_are(tmp_path: Path) -> None:
    gate = Gate(config(tmp_path))
    assert "notice.html is not there" in gate.trouble
    assert gate.take((LOOKUP, GAP)) == [GAP]
    assert gate.refused == 1
    published(tmp_path, config(tmp_path))
    assert gate.check()
    assert list(gate.take((LOOKUP, GAP))) == [LOOKUP, GAP]


@pytest.mark.parametrize(
    "other",
    [
        {"legal": "cn-82-180", "ring": "\toption promised_days '180'\n\toption maximum_days '0'\n"},
        {"ring": "\toption promised_days '61'\n"},
        {"contact": "somebody@else.example"},
    ],
)
def test_a_notice_that_states_something_else_does_not_count(tmp_path: Path, other: dict[str, str]) -> None:
    published(tmp_path, config(tmp_path))
    assert Gate(config(tmp_path)).trouble == ""
    assert "is not the one that goes with legal profile" in Gate(config(tmp_path, **other)).trouble


def test_a_notice_may_be_translated_but_not_lose_its_mark(tmp_path: Path) -> None:
    published(tmp_path, config(tmp_path))
    page = tmp_path / "notice.html"
    page.write_text(page.read_text().replace("What this network records", "本网络记录的内容"))
    assert Gate(config(tmp_path)).trouble == ""
    page.write_text(page.read_text() + page.read_text())
    assert Gate(config(tmp_path)).trouble != "", "two notices in one page state two things"


def test_the_notice_says_who_what_how_long_and_what_not(tmp_path: Path) -> None:
    profile = open_profile("eu-guest", str(tmp_path))
    page = notice.render(profile, config(tmp_path, "eu-guest"))
    for words in (
        "Lab &lt;School&gt;",
        "head@school.example",
        "60 days",
        "hardware address",
        "may ask for it to be erased",
    ):
        assert words in page
    kept, left = page.split("What is not recorded")
    assert "Names of the sites you visit" in left
    assert "Names of the sites you visit" not in kept
    assert "<script" not in page


def test_a_notice_without_a_controller_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"notice\.contact: expected who records"):
        published(tmp_path, config(tmp_path, contact=""))


def test_days_that_the_profile_does_not_allow_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="promised_days: expected at least 60"):
        load_profile(config(tmp_path, ring="\toption promised_days '30'\n"))
    with pytest.raises(ConfigError, match="maximum_days: expected 1 to 365"):
        load_profile(config(tmp_path, "eu-guest", ring="\toption maximum_days '0'\n"))


def test_a_profile_that_somebody_changed_captures_nothing_and_says_so(tmp_path: Path) -> None:
    own = tmp_path / "profiles"
    own.mkdir()
    text = Path(SHIPPED, "us-cipa.toml").read_bytes()
    (own / "us-cipa.toml").write_bytes(text.replace(b'keep = "blocked"', b'keep = "all"', 1))
    (own / "us-cipa.toml.sig").write_bytes(Path(SHIPPED, "us-cipa.toml.sig").read_bytes())
    gate = Gate(config(tmp_path, "us-cipa"))
    assert "does not hold" in gate.trouble
    assert gate.take((LOOKUP, GAP)) == [GAP]
    with pytest.raises(ConfigError, match="does not hold"):
        gate.change(config(tmp_path, "us-cipa"))


def test_a_venues_own_profile_signed_by_a_key_that_it_trusts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "profiles"
    own.mkdir()
    (own / "ours.toml").write_text(Path(SHIPPED, "eu-guest.toml").read_text().replace('"eu-guest"', '"ours"', 1))
    key = str(tmp_path / "signing")
    assert main(["profile", "key", "--key", key]) == 0
    fingerprint = capsys.readouterr().out.split("keys/")[1].split()[0]
    assert main(["profile", "sign", str(own / "ours.toml"), "--key", key]) == 0
    with pytest.raises(ConfigError, match="which is not trusted here"):
        open_profile("ours", str(tmp_path))
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / fingerprint).write_bytes(Path(f"{key}.pub").read_bytes())
    assert open_profile("ours", str(tmp_path)).name == "ours"


def test_a_profile_that_nobody_has_is_told_with_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no profile 'cn-83'; shipped are cn-82, cn-82-180, eu-guest"):
        open_profile("cn-83", str(tmp_path))


def test_what_is_erased_with_a_session_is_not_beside_it_in_the_evidence_of_translation(tmp_path: Path) -> None:
    profile = open_profile("eu-guest", str(tmp_path))
    (kept,) = Capture(profile).take([Nat(5, b"\x0a\0\0\2", b"\xc6\x33\x64\x02", 2048, 3071, 6, 0, "s1")])
    assert isinstance(kept, Nat)
    assert (kept.client, kept.session, kept.port_from) == (b"", "s1", 2048)
    text = Path(SHIPPED, "eu-guest.toml").read_text()
    with pytest.raises(ConfigError, match="expected no client in nat"):
        read_profile(text.replace("[nat.fields]", '[nat.fields]\nclient = "x"').encode())


def test_whoever_has_chosen_nothing_is_warned_and_whoever_chose_everything_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for legal, is_warned in (("", True), ("everything", False)):
        chosen = config(tmp_path, legal)
        assert load_profile(chosen) is None
        gate = Gate(chosen)
        assert list(gate.take((LOOKUP, GAP))) == [LOOKUP, GAP]
        assert ("warning" in gate.describe()) is is_warned
        path = tmp_path / "checked"
        path.write_text(f"config gatehouse 'main'\n\toption legal '{legal}'\n")
        assert main(["check", "--config", str(path)]) == 0
        assert ("everything that is seen is recorded" in capsys.readouterr().err) is is_warned


def test_identity_is_not_to_be_had_without_sessions(tmp_path: Path) -> None:
    path = tmp_path / "none"
    path.write_text("config gatehouse 'main'\n\toption legal 'cn-82'\nconfig session 'session'\n\toption enabled '0'\n")
    with pytest.raises(ConfigError, match=r"session\.enabled: expected 1"):
        load_profile(read_config(str(path)))
