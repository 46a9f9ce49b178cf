"""Evidence of address translation: blocks that do not overlap, records when they change hands, conntrack's words."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.translations import LAST_PORT, Blocks, Translation, blocks_of, parse
from policy.config import NfqConfig
from policy.errors import ConfigError

CLIENT, OUTSIDE = bytes((10, 20, 0, 11)), bytes((203, 0, 113, 5))


def test_each_address_has_ports_of_its_own() -> None:
    blocks = blocks_of(["10.20.0.0/25", "10.21.0.0/26"])
    assert len(blocks) == 192
    assert blocks[0].first == 2048
    for one, next_one in itertools.pairwise(blocks):
        assert one.last + 1 == next_one.first
    assert blocks[-1].last <= LAST_PORT
    assert blocks == blocks_of(["10.20.0.0/25", "10.21.0.0/26"])


@pytest.mark.parametrize(
    ("networks", "says"),
    [(["10.0.0.0/20"], "4096 addresses leave 15 ports"), (["nonsense"], "expected an IPv4 network"), ([], "expected")],
)
def test_networks_that_cannot_be_served_are_refused_with_the_mend(networks: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        blocks_of(networks)


def test_a_block_is_on_record_once_per_hand_that_holds_it() -> None:
    nat = Blocks(NfqConfig(nat="blocks", nat_network=("10.20.0.0/24",)))
    (first,) = nat.changed(CLIENT, "ann", OUTSIDE, 1000)
    assert (first.client, first.outside, first.until_ms) == (CLIENT, OUTSIDE, 0)
    assert first.port_to - first.port_from + 1 == 248
    assert list(nat.changed(CLIENT, "ann", OUTSIDE, 2000)) == []
    closed, opened = nat.changed(CLIENT, "ben", OUTSIDE, 3000)
    assert (closed.until_ms, opened.at_ms, opened.until_ms) == (3000, 3000, 0)
    assert len(list(nat.changed(CLIENT, "ben", bytes(4), 4000))) == 2
    assert list(nat.changed(bytes((192, 168, 9, 9)), "guest", OUTSIDE, 5000)) == []


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def flow(src: bytes, dst: bytes, sport: int, dport: int, protocol: int = 6) -> bytes:
    addresses = attribute(0x8001, attribute(1, src) + attribute(2, dst))
    ports = (
        attribute(1, bytes((protocol,)))
        + attribute(2, sport.to_bytes(2, "big"))
        + attribute(3, dport.to_bytes(2, "big"))
    )
    return addresses + attribute(0x8002, ports)


def event(original: bytes, reply: bytes, kind: int = 0x100) -> bytes:
    body = bytes((2, 0, 0, 0)) + attribute(0x8001, original) + attribute(0x8002, reply)
    return struct.pack("=IHHII", 16 + len(body), kind, 0x600, 0, 0) + body


SERVER = bytes((198, 51, 100, 21))
TRANSLATED = event(flow(CLIENT, SERVER, 40000, 443), flow(SERVER, OUTSIDE, 443, 41000))


def test_conntracks_events() -> None:
    plain = event(flow(CLIENT, SERVER, 40000, 443), flow(SERVER, CLIENT, 443, 40000))
    gone = event(flow(CLIENT, SERVER, 40000, 443), flow(SERVER, OUTSIDE, 443, 41000), kind=0x102)
    icmp = event(flow(CLIENT, SERVER, 0, 0, 1), flow(SERVER, OUTSIDE, 0, 0, 1))
    assert parse(plain + TRANSLATED + gone + icmp) == [Translation(CLIENT, OUTSIDE, 41000, 6)]


@given(st.binary(max_size=100), st.integers(0, len(TRANSLATED)))
def test_any_octets_are_answered(data: bytes, at: int) -> None:
    parse(TRANSLATED[:at] + data)
    parse(data)
