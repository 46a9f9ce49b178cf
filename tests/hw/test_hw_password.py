"""Who comes in: proofs, five failures, and a lock that pulling the plug does not open."""

import pytest

from hw.password import FAILURES, LOCK_S, LONGEST_LOCK_S, Access, derive, is_key, is_proof, make_verifier, prove
from policy.errors import ConfigError

SALT = bytes(16)


class Kept:
    """What would be on flash."""

    def __init__(self) -> None:
        self.text = ""

    def save(self, text: str) -> None:
        self.text = text

    def open(self, now: float = 0.0) -> Access:
        return Access(lambda: self.text, self.save, now)


def opened() -> tuple[Kept, Access]:
    kept = Kept()
    access = kept.open()
    access.set_password(make_verifier("sesame-8899", SALT))
    return kept, access


def fail(access: Access, times: int, now: float) -> None:
    for _ in range(times):
        assert not access.admit(lambda verifier: False, now)


def test_a_proof_is_of_one_nonce_and_one_password() -> None:
    verifier = make_verifier("sesame-8899", SALT)
    proof = prove(derive("sesame-8899", SALT), b"nonce")
    assert is_proof(proof, b"nonce", verifier)
    assert not is_proof(proof, b"other", verifier)
    assert not is_proof(prove(derive("sesame-8898", SALT), b"nonce"), b"nonce", verifier)
    assert not is_proof(prove(verifier.stored, b"nonce"), b"nonce", verifier)  # what is on flash opens nothing
    assert is_key(derive("sesame-8899", SALT), verifier)


@pytest.mark.parametrize("weak", ["", "short", "aaaaaaaaaaaa", "x" * 200, "abcd\nefgh"])
def test_weak_passwords_are_refused(weak: str) -> None:
    with pytest.raises(ConfigError, match="password"):
        make_verifier(weak, SALT)


def test_five_failures_lock_and_each_lock_is_longer() -> None:
    _, access = opened()
    now = 0.0
    for wait in (LOCK_S, 2 * LOCK_S, 4 * LOCK_S):
        fail(access, FAILURES, now)
        assert access.locked_s(now) == wait
        assert not access.admit(lambda verifier: True, now)  # the right one, too early
        now += wait
        assert access.locked_s(now) == 0
    for _ in range(20):
        fail(access, FAILURES, now)
        now += access.locked_s(now)
    fail(access, FAILURES, now)
    assert access.locked_s(now) == LONGEST_LOCK_S
    assert access.admit(lambda verifier: True, now + LONGEST_LOCK_S)
    fail(access, FAILURES, now + LONGEST_LOCK_S)
    assert access.locked_s(now + LONGEST_LOCK_S) == LOCK_S


def test_a_right_one_in_between_begins_the_count_anew() -> None:
    _, access = opened()
    for _ in range(4):
        fail(access, FAILURES - 1, 0.0)
        assert access.admit(lambda verifier: True, 0.0)


def test_pulling_the_plug_gains_nothing() -> None:
    kept, access = opened()
    fail(access, 3, 0.0)
    access = kept.open()
    assert access.failures == 3

    def cut(verifier: object) -> bool:
        raise KeyboardInterrupt  # the power goes while the attempt is judged

    with pytest.raises(KeyboardInterrupt):
        access.admit(cut, 0.0)
    access = kept.open()
    assert access.failures == 4
    fail(access, 1, 0.0)
    access = kept.open(now=5000.0)
    assert access.locked_s(5000.0) == LOCK_S


def test_a_broken_file_lets_nobody_in() -> None:
    kept, _ = opened()
    for text in (kept.text[:-5], "[]", '{"failures": 0, "locks": 0, "salt": "00", "stored": "00"}'):
        kept.text = text
        with pytest.raises(ConfigError, match="cannot be read"):
            kept.open()


def test_what_is_kept_does_not_hold_the_password() -> None:
    kept, _ = opened()
    assert "sesame" not in kept.text
    assert derive("sesame-8899", SALT).hex() not in kept.text
