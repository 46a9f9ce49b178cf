"""Ed25519: RFC 8032's own vectors, another implementation's word, and what must not verify."""

import time

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.signature import public_key, sign, verify

# RFC 8032 7.1: secret, public, message, signature
VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe"
            "24655141438e7a100b"
        ),
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302a"
            "eeb00d291612bb0c00"
        ),
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed2"
            "8dc027beceea1ec40a"
        ),
    ),
]


@pytest.mark.parametrize("vector", VECTORS)
def test_the_rfc_s_vectors(vector: tuple[str, ...]) -> None:
    secret, public, message, signature = map(bytes.fromhex, vector)
    assert public_key(secret) == public
    assert sign(secret, message) == signature
    assert verify(public, message, signature)
    assert not verify(public, message + b"x", signature)


@settings(max_examples=25, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=200))
def test_another_implementation_agrees(secret: bytes, message: bytes) -> None:
    theirs = Ed25519PrivateKey.from_private_bytes(secret)
    public = public_key(secret)
    assert public == theirs.public_key().public_bytes_raw()
    assert sign(secret, message) == theirs.sign(message)
    assert verify(public, message, theirs.sign(message))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 64 * 8 - 1), st.integers(0, 32 * 8 - 1))
def test_no_flipped_bit_verifies(at: int, of_key: int) -> None:
    secret, message = bytes(range(32)), b"a manifest"
    public, signature = public_key(secret), sign(secret, message)
    flip = lambda data, bit: (int.from_bytes(data, "little") ^ 1 << bit).to_bytes(len(data), "little")  # noqa: E731
    assert not verify(public, message, flip(signature, at))
    assert not verify(flip(public, of_key), message, signature)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=70), st.binary(max_size=40), st.binary(max_size=70))
def test_any_octets_are_judged_without_an_error(public: bytes, message: bytes, signature: bytes) -> None:
    assert verify(public, message, signature) is False


def test_what_is_not_canonical_does_not_verify() -> None:
    secret, message = bytes(range(32)), b"a manifest"
    public, signature = public_key(secret), sign(secret, message)
    order = (1 << 252) + 27742317777372353535851937790883648493
    larger = (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
    assert not verify(public, message, signature[:32] + larger)
    twisted = ((1 << 255) - 19 + 1).to_bytes(32, "little")  # y = p + 1, another way to write 1
    assert not verify(twisted, message, signature)
    with pytest.raises(InvalidSignature):
        Ed25519PublicKey.from_public_bytes(public).verify(signature[:32] + larger, message)


def test_a_secret_of_another_length_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="32 octets"):
        sign(b"short", b"")


def test_it_takes_milliseconds() -> None:
    secret = bytes(range(32))
    public, signature = public_key(secret), sign(secret, b"x")
    start = time.process_time()
    for _ in range(10):
        assert verify(public, b"x", signature)
    assert (time.process_time() - start) / 10 < 0.05
