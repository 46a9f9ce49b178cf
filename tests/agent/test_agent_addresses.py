"""Whose address: learned, corrected, bounded."""

from agent.addresses import MAX_ADDRESSES, Addresses
from agent.intake import Identity

ANN, BEN = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"


def test_an_address_that_changes_hands() -> None:
    known = Addresses()
    assert known.identify(b"\x0a\0\0\2") == Identity()
    known.learn(b"\x0a\0\0\2", ANN)
    known.refresh({b"\x0a\0\0\2": BEN})
    assert known.identify(b"\x0a\0\0\2").mac == BEN


def test_made_up_addresses_do_not_fill_the_memory() -> None:
    known = Addresses()
    for number in range(MAX_ADDRESSES + 100):
        known.learn(number.to_bytes(16, "big"), ANN)
        known.learn(b"\x0a\0\0\2", BEN)  # in use all the time
    assert len(known) == MAX_ADDRESSES
    assert known.identify(b"\x0a\0\0\2").mac == BEN
