"""Manifests: written and read back, refused when they are not what they should be, verified before they are read."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.bundle import (
    BundlePart,
    Manifest,
    PublicKey,
    Running,
    check_successor,
    choose,
    open_manifest,
    public_key_text,
    read_public_key,
    sign_manifest,
    write_manifest,
)
from policy.errors import BundleError
from policy.signature import public_key, sign, verify

SECRET, NUMBER = bytes(range(32)), bytes(range(8))
KEYS = {NUMBER.hex(): PublicKey(NUMBER, public_key(SECRET))}
IMAGE = BundlePart(1000, bytes(32), "image.gp")
FULL = Manifest(
    "school", "stable", 7, 1_795_422_600, IMAGE, (BundlePart(80, bytes(32), "d.gpd", b"b" * 32),),
    BundlePart(5, b"r" * 32, "rules.uci"), NUMBER.hex(),
)  # fmt: skip


def opened(octets: bytes) -> Manifest:
    return open_manifest(octets, sign_manifest(octets, NUMBER, SECRET, sign), KEYS, verify)


def test_a_manifest_is_read_as_it_was_written() -> None:
    assert opened(write_manifest(FULL)) == FULL
    bare = FULL._replace(deltas=(), rules=None)
    assert opened(write_manifest(bare)) == bare


def test_words_of_a_later_format_are_left_alone() -> None:
    assert opened(write_manifest(FULL) + b"colour blue\n") == FULL


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"gatehouse-bundle 1", b"gatehouse-bundle 2", "format 1"),
        (b"version 7", b"version -7", "expected a number"),
        (b"version 7", b"version 7 8", "one value for 'version'"),
        (b"version 7\n", b"", "one value for 'version'"),
        (b"image 1000", b"image 999999999999", "expected a number"),
        (b"image.gp", b"../../etc/passwd", "plain file name"),
        (b"image.gp", b".hidden", "plain file name"),
        (b"channel stable", b"channel stable\nchannel beta", "stands twice"),
        (b"00" * 32, b"0g" * 32, "64 hexadecimal"),
    ],
)
def test_what_is_wrong_is_said(old: bytes, new: bytes, message: str) -> None:
    octets = write_manifest(FULL).replace(old, new, 1)
    with pytest.raises(BundleError, match=message):
        opened(octets)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=200))
def test_any_octets_are_refused_before_they_are_read(octets: bytes, signature: bytes) -> None:
    with pytest.raises(BundleError):
        open_manifest(octets, signature, KEYS, verify)
    with pytest.raises(BundleError):
        open_manifest(octets, b"untrusted comment: x\n" + signature, KEYS, verify)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="gatehouse-bundl 1nmvc:/\nx0", max_size=200))
def test_any_signed_text_is_a_manifest_or_a_bundle_error(text: str) -> None:
    try:
        opened(text.encode())
    except BundleError:
        pass


def test_a_signature_cut_off_anywhere_is_refused() -> None:
    octets = write_manifest(FULL)
    signature = sign_manifest(octets, NUMBER, SECRET, sign)
    for length in range(len(signature) - 1):  # without its last line end it is still whole
        with pytest.raises(BundleError):
            open_manifest(octets, signature[:length], KEYS, verify)


def test_keys_are_read_as_they_were_written_and_nothing_else() -> None:
    key = KEYS[NUMBER.hex()]
    assert read_public_key(public_key_text(key, "of a test")) == key
    for text in (b"", b"untrusted comment: x\n", public_key_text(key)[:-9], b"x" + public_key_text(key),
                 public_key_text(key) + b"more\n", sign_manifest(b"", NUMBER, SECRET, sign)):  # fmt: skip
        with pytest.raises(BundleError):
            read_public_key(text)


def test_which_version_may_follow_which() -> None:
    def may(version: int, running: Running | None, **changes: object) -> str:
        terms = {"name": "school", "channel": "stable", "force": False, **changes}
        return check_successor(FULL._replace(version=version), running, **terms)  # type: ignore[arg-type]

    assert may(7, None) == "new"
    assert may(8, Running(7, b"x")) == "new"
    assert may(7, Running(7, IMAGE.sha256)) == "same"
    assert may(6, Running(7, b"x"), force=True) == "forced"
    for arguments in ((6, Running(7, b"x")), (7, Running(7, b"x"))):
        with pytest.raises(BundleError):
            may(*arguments)
    with pytest.raises(BundleError, match="channel"):
        may(8, None, channel="beta", force=True)


def test_the_delta_that_fits_is_chosen() -> None:
    assert choose(FULL, b"b" * 32) == (FULL.deltas[0], True)
    assert choose(FULL, b"c" * 32) == (IMAGE, False)
    assert choose(FULL, None) == (IMAGE, False)
    larger = FULL._replace(deltas=(FULL.deltas[0]._replace(size=2000),))
    assert choose(larger, b"b" * 32) == (IMAGE, False)
