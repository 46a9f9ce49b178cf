"""Legal profiles: shipped ones are signed and complete; what they do not name is not kept; mistakes are told."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.bundle import check_signature, read_public_key
from policy.errors import BundleError, ConfigError
from policy.event import Dns, Flood, Flow, Gap, Maintenance, Nat, Registration, Session
from policy.legal import CLASSES, NOTHING, Capture, read_profile
from policy.signature import verify

SHIPPED = Path(__file__).resolve().parents[2] / "policy" / "profiles"
NAMES = sorted(path.stem for path in SHIPPED.glob("*.toml"))
KEY = read_public_key((SHIPPED / "release.pub").read_bytes())
CLIENT, MAC = b"\x0a\0\0\1", b"\2\0\0\0\0\1"
LOOKUP = Dns(1, CLIENT, "a.example", 1, 0, 0, 0, "", "g", (b"\xc0\0\2\1",), True, 0, MAC, "s1")
FLOW = Flow(1, CLIENT, MAC, 4000, b"\xc0\0\2\1", 80, 6, "a.example", 1, 0, "/p", 0, 0, "", "g", 0, "GET", "s1")
SESSION = Session(1, "s1", "ann", b"sealed", "7", MAC, (CLIENT,), 1, 0, "", "desk", b"index")
EVERY = (
    LOOKUP, LOOKUP._replace(verdict=1), FLOW, FLOW._replace(verdict=1), SESSION,
    Nat(1, CLIENT, b"\xc6\0\0\1", 1, 2, 6, 0, "s1"), Registration(1, "ann", b"sealed", b"index", 0, 0),
    Flood(1, CLIENT, 5, 0, 1, ("a.example",), MAC, "s1"), Maintenance(1, "a", "b", "c", "", "", "ok"),
    Gap(1, "dns/0", 1, 0, 1, "x"),
)  # fmt: skip


def profile(name: str) -> Capture:
    return Capture(read_profile((SHIPPED / f"{name}.toml").read_bytes()))


def test_all_that_the_law_paragraph_promises_are_there() -> None:
    assert NAMES == ["cn-82", "cn-82-180", "eu-guest", "tr-5651", "uk-kcsie", "us-cipa"]


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_profile_is_signed_by_the_release_and_names_a_source_for_everything(name: str) -> None:
    octets = (SHIPPED / f"{name}.toml").read_bytes()
    check_signature(octets, (SHIPPED / f"{name}.toml.sig").read_bytes(), {KEY.fingerprint: KEY}, verify)
    found = read_profile(octets)
    assert found.name == name
    assert "not legal advice" in octets.decode().lower()
    for kept in found.classes.values():
        assert len(kept.source) > 5
        assert all(len(source) > 5 for source in kept.fields.values())
    with pytest.raises(BundleError, match="does not hold"):
        proof = (SHIPPED / f"{name}.toml.sig").read_bytes()
        check_signature(octets.replace(b"all", b"ALL", 1) + b" ", proof, {KEY.fingerprint: KEY}, verify)


def test_the_six_months_differ_from_the_sixty_days_in_their_days_only() -> None:
    short, long = (read_profile((SHIPPED / f"cn-82{end}.toml").read_bytes()) for end in ("", "-180"))
    assert (short.minimum_days, long.minimum_days) == (60, 180)
    assert short.classes == long.classes


def test_cipa_keeps_what_was_blocked_and_nobodys_name() -> None:
    kept = profile("us-cipa").take(EVERY)
    assert [type(event) for event in kept] == [Dns, Flow, Maintenance, Gap]
    assert kept[0] == LOOKUP._replace(verdict=1, client=b"", mac=b"", session="", answers=())
    assert "s1" not in repr(kept)


def test_france_keeps_connections_and_never_what_was_looked_at() -> None:
    kept = profile("eu-guest").take(EVERY)
    assert [type(event) for event in kept] == [Session, Nat, Registration, Maintenance, Gap]
    assert "example" not in repr(kept)


def test_china_keeps_domains_and_no_path_but_of_what_was_blocked() -> None:
    kept = profile("cn-82").take(EVERY)
    assert len(kept) == len(EVERY)
    assert [event.path for event in kept if isinstance(event, Flow)] == ["", "/p"]


def test_a_hook_leaves_out_what_only_it_knows_and_keeps_whose_it_is() -> None:
    sieve = Capture(read_profile((SHIPPED / "us-cipa.toml").read_bytes()), at_hook=True)
    assert sieve.one(LOOKUP) is None
    blocked = sieve.one(FLOW._replace(verdict=1))
    assert isinstance(blocked, Flow)
    assert (blocked.client, blocked.mac, blocked.path, blocked.dst) == (CLIENT, MAC, "", bytes(4))


def test_nothing_is_nothing() -> None:
    assert [type(event) for event in Capture(NOTHING).take(EVERY)] == [Maintenance, Gap]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('keep = "all"', 'keep = "some"', "expected one of all, none"),
        ("account =", "acount =", "profile.session.fields.acount: no such field"),
        ("minimum = 60", 'minimum = "60"', "profile.days.minimum: expected int"),
        ("minimum = 60", "minimum = 9999", "expected 0 to 3660 days"),
        ("maximum = 0", "maximum = 30", "expected at least the minimum, 60"),
        ('sets = ["ga", "sqlite"]', 'sets = ["csv"]', "expected some of ga, sqlite"),
        ("form = 1", "form = 2", "of another release"),
        ("form = 1", "form = 1\nextra = 1", "profile.extra: nothing of that name"),
        ('identity = "required"', 'identity = "none"', "means that no session is kept"),
        ("form = 1", "form = ", "not TOML"),
    ],
)
def test_a_mistake_is_told_with_its_place(old: str, new: str, said: str) -> None:
    text = (SHIPPED / "cn-82.toml").read_text()
    assert old in text
    with pytest.raises(ConfigError, match=said):
        read_profile(text.replace(old, new, 1).encode())


def test_each_class_must_be_there() -> None:
    text = (SHIPPED / "cn-82.toml").read_text()
    for name in CLASSES:
        with pytest.raises(ConfigError, match=f"profile.{name}"):
            read_profile(text.replace(f"[{name}]", f"[other-{name}]").encode())


@given(st.binary(max_size=400))
def test_any_octets_are_a_profile_or_a_config_error(octets: bytes) -> None:
    with pytest.raises(ConfigError):
        read_profile(octets)
