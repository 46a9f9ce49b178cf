"""Signed bundles on disk: taken in when signed, whole and newer; refused, with a record, when not."""

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agent.bundles import apply_bundle, directory_source, publish, read_running
from agent.compiler import compile_policy
from agent.decider import map_image, sections_of
from policy.bundle import PublicKey, open_manifest, public_key_text, read_public_key, sign_manifest
from policy.engine import Engine
from policy.errors import BundleError
from policy.rules import BundleConfig
from policy.uci import parse
from policy.verdict import Verdict

NUMBER = bytes.fromhex("6744adedbcd2546a")
SECRET = bytes(range(32))
CONFIG = BundleConfig("school", "", (NUMBER.hex(),), "stable")
RULES = b"config profile 'kids'\n\tlist block 'ads'\n"


def sign(secret: bytes, message: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(secret).sign(message)


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def public_of(secret: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


class Site(NamedTuple):
    """A centre that publishes, and a router that takes in."""

    centre: Path
    state: Path
    keys: Path

    def image(self, version: int) -> str:
        return str(self.centre / f"v{version}.gp")

    def publish(
        self, version: int, names: int, bases: tuple[int, ...] = (), *, secret: bytes = SECRET, **changes
    ) -> str:
        lists = self.centre / "lists"
        lists.mkdir(exist_ok=True)
        (lists / "ads.txt").write_text("".join(f"{n}.example\n" for n in range(version, version + names)))
        sections = parse("config list 'ads'\n\toption file 'ads.txt'\n")
        compile_policy(
            sections,
            str(lists),
            self.image(version),
            generation=version,
            base_path=self.image(bases[0]) if bases else "",
        )
        directory = str(self.centre / f"bundle{version}")
        terms = {"name": "school", "channel": "stable", "version": version, "created_s": 5, "rules": RULES}
        publish(
            directory,
            image_path=self.image(version),
            base_paths=[self.image(b) for b in bases],
            number=NUMBER,
            secret=secret,
            sign=sign,
            **{**terms, **changes},
        )
        return directory

    def take(self, directory: str, **changes):
        terms = {"now_s": 9, "at_ms": 7}
        return apply_bundle(
            CONFIG, directory_source(directory), str(self.state), str(self.keys), **{**terms, **changes}
        )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path / "centre", tmp_path / "state", tmp_path / "keys")
    for directory in made:
        directory.mkdir()
    (made.keys / NUMBER.hex()).write_bytes(public_key_text(PublicKey(NUMBER, public_of(SECRET))))
    return made


def running(site: Site) -> bytes | None:
    path = site.state / "school.bundle.gp"
    return path.read_bytes() if path.exists() else None


def test_a_bundle_comes_whole_then_by_delta(site: Site) -> None:
    first = site.take(site.publish(1, 5000))
    assert (first.changed, first.is_delta, first.record.result, first.record.new) == (True, False, "ok", "1")
    second = site.take(site.publish(2, 5000, (1,)))
    assert (second.changed, second.is_delta, second.record.old) == (True, True, "1")
    assert second.fetched < 2000 < first.fetched
    assert running(site) == Path(site.image(2)).read_bytes(), "octet for octet"
    engine = Engine([map_image(str(site.state / "school.bundle.gp"))])
    assert engine.decide(b"5001.example", 0, 0).verdict is Verdict.BLOCK
    assert engine.decide(b"1.example", 0, 0).verdict is Verdict.ALLOW
    assert [section.name for section in sections_of(["school", "absent"], str(site.state))] == ["kids"]
    again = site.take(str(site.centre / "bundle2"))
    assert (again.changed, again.record.result) == (False, "same")


def test_a_router_that_missed_a_version_takes_the_whole_image(site: Site) -> None:
    site.take(site.publish(1, 2000))
    site.publish(2, 2000, (1,))
    third = site.take(site.publish(3, 2000, (2,)))
    assert (third.changed, third.is_delta) == (True, False)
    assert running(site) == Path(site.image(3)).read_bytes()


def test_a_damaged_delta_costs_a_full_image_and_nothing_else(site: Site) -> None:
    site.take(site.publish(1, 2000))
    directory = Path(site.publish(2, 2000, (1,)))
    (delta,) = directory.glob("*.gpd")
    delta.write_bytes(delta.read_bytes()[:-1] + b"\0")
    outcome = site.take(str(directory))
    assert (outcome.changed, outcome.is_delta) == (True, False)
    assert running(site) == Path(site.image(2)).read_bytes()


def test_a_roll_back_is_refused_unless_forced_here_and_both_are_on_record(site: Site) -> None:
    old, new = site.publish(1, 100), site.publish(2, 100)
    site.take(new)
    refused = site.take(old)
    assert (refused.changed, refused.record.result) == (False, "refused")
    assert "older than 2" in refused.record.detail
    assert running(site) == Path(site.image(2)).read_bytes()
    (site.state / "school.bundle.json").unlink()
    assert site.take(old).record.result == "refused", "the image itself says its version, too"
    forced = site.take(old, force=True, actor="installer")
    assert (forced.changed, forced.record.actor, forced.record.result) == (True, "installer", "ok, roll-back forced")
    assert running(site) == Path(site.image(1)).read_bytes()


def test_the_same_version_with_another_image_is_refused(site: Site) -> None:
    site.take(site.publish(2, 100))
    refused = site.take(site.publish(2, 200))
    assert refused.record.result == "refused"
    assert "again, with another image" in refused.record.detail


@pytest.mark.parametrize("file", ["manifest", "manifest.sig", "image-2.gp", "rules-2.uci"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "more"])
def test_whatever_is_damaged_nothing_changes(site: Site, file: str, damage: str) -> None:
    site.take(site.publish(1, 300))
    before = running(site)
    directory = Path(site.publish(2, 300))
    path = directory / file
    data = path.read_bytes()
    match damage:
        case "flip":
            path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
        case "cut":
            path.write_bytes(data[:-20])
        case "gone":
            path.unlink()
        case "more":
            path.write_bytes(data + b"\nx" * 2000)
    outcome = site.take(str(directory))
    assert outcome.record.result == "refused", outcome
    assert running(site) == before
    assert (site.state / "school.bundle.uci").read_bytes() == RULES
    assert not list(site.state.glob("*.tmp*"))


def test_a_stranger_s_signature_is_refused_before_the_manifest_is_read(site: Site) -> None:
    refused = site.take(site.publish(1, 100, secret=bytes(32)))
    assert refused.record.result == "refused"
    assert "does not hold" in refused.record.detail
    (site.keys / NUMBER.hex()).unlink()
    assert "not trusted" in site.take(site.publish(1, 100)).record.detail
    reading: list[bytes] = []

    def never(public: bytes, message: bytes, signature: bytes) -> bool:
        reading.append(message)
        return False

    signature = sign_manifest(b"not a manifest", NUMBER, SECRET, sign)
    with pytest.raises(BundleError, match="does not hold"):
        open_manifest(b"not a manifest", signature, {NUMBER.hex(): PublicKey(NUMBER, bytes(32))}, never)
    assert reading == [b"not a manifest"]


def test_a_bundle_brings_no_groups_and_no_paths(site: Site) -> None:
    directory = site.publish(1, 100, rules=b"config policy 'main'\n\toption table '/etc/passwd'\n")
    outcome = site.take(directory)
    assert outcome.record.result == "refused"
    assert "venue's own" in outcome.record.detail


def test_another_channel_is_refused(site: Site) -> None:
    assert "channel" in site.take(site.publish(1, 100, channel="beta")).record.detail
    assert "school" in site.take(site.publish(1, 100, name="hotel")).record.detail


def test_an_image_under_a_false_version_is_refused(site: Site) -> None:
    with pytest.raises(BundleError, match="the image says version 1"):
        site.publish(1, 100)
        publish(str(site.centre / "b"), name="school", channel="stable", version=5, created_s=1,
                image_path=site.image(1), base_paths=[], rules=b"", number=NUMBER, secret=SECRET, sign=sign)  # fmt: skip  # noqa: E501


def test_signify_reads_what_we_sign_and_we_read_what_it_signs(site: Site, tmp_path: Path) -> None:
    """Against OpenBSD's own program: the form is usign's, too."""
    message = tmp_path / "m"
    message.write_bytes(b"gatehouse-bundle 1\n")
    subprocess.run(["signify-openbsd", "-G", "-n", "-p", tmp_path / "k.pub", "-s", tmp_path / "k.sec"], check=True)
    subprocess.run(
        ["signify-openbsd", "-S", "-s", tmp_path / "k.sec", "-m", message, "-x", tmp_path / "m.sig"], check=True
    )
    key = read_public_key((tmp_path / "k.pub").read_bytes())
    with pytest.raises(BundleError, match="expected one value for 'name'"):  # signature good, manifest short
        open_manifest(message.read_bytes(), (tmp_path / "m.sig").read_bytes(), {key.fingerprint: key}, verify)
    (tmp_path / "our.pub").write_bytes(public_key_text(PublicKey(NUMBER, public_of(SECRET))))
    (tmp_path / "our.sig").write_bytes(sign_manifest(message.read_bytes(), NUMBER, SECRET, sign))
    checked = subprocess.run(
        ["signify-openbsd", "-V", "-p", tmp_path / "our.pub", "-m", message, "-x", tmp_path / "our.sig"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


def test_what_runs_is_told(site: Site) -> None:
    assert read_running("school", str(site.state)) is None
    site.take(site.publish(3, 50))
    found = read_running("school", str(site.state))
    assert found is not None
    assert found.version == 3
    os.unlink(site.state / "school.bundle.json")
    assert read_running("school", str(site.state)) == found
