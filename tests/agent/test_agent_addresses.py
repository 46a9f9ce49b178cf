"""Whose address: learned, corrected, bounded."""

from agent.addresses import LOOK_S, MAX_ADDRESSES, MAX_LOOKS, Addresses
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


def test_a_stranger_is_looked_for_in_the_kernels_table_but_not_on_every_packet() -> None:
    table, looks, now = {b"\x0a\0\0\2": ANN}, [], 10.0

    def read() -> dict[bytes, bytes]:
        looks.append(now)
        return table

    known = Addresses(read, lambda: now)
    assert known.identify(b"\x0a\0\0\2").mac == ANN
    for _ in range(100):
        assert known.identify(b"\x0a\0\0\3") == Identity()
    assert looks == [10.0, 10.0]
    table[b"\x0a\0\0\4"] = BEN
    assert known.identify(b"\x0a\0\0\4").mac == BEN, "though another was looked for in vain just now"
    for number in range(100):
        known.identify(bytes((10, 0, 1, number)))
    assert looks == [10.0] * MAX_LOOKS
    table[b"\x0a\0\0\3"] = BEN
    now += LOOK_S
    assert known.identify(b"\x0a\0\0\3").mac == BEN


def test_a_packet_does_not_say_whose_an_address_is_where_the_kernel_has() -> None:
    known = Addresses()
    known.notice(b"\x0a\0\0\2", ANN)
    assert known.identify(b"\x0a\0\0\2").mac == ANN, "better than nothing"
    known.notice(b"\x0a\0\0\2", BEN)
    assert known.identify(b"\x0a\0\0\2").mac == ANN
    known.refresh({b"\x0a\0\0\2": BEN})
    assert known.identify(b"\x0a\0\0\2").mac == BEN
