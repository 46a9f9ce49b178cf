"""What a device without a login tried: one record a destination, whatever the bytes are."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from nfq.hook import Now
from nfq.kernel import read_iptables, read_nft
from nfq.refusals import AGAIN_S, MAX_TOLD, Refusals
from policy.event import Flow
from policy.verdict import Reason, Verdict

MAC = bytes((2, 0, 0, 0, 0, 11))


def syn(dport: int, last: int = 20) -> bytes:
    tcp = struct.pack("!HHIIBBHHH", 40000, dport, 1, 0, 0x50, 2, 1000, 0, 0)
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 40, 0, 0, 64, 6, 0, bytes((10, 20, 0, 11)), bytes((198, 51, 100, last))
    )
    return head + tcp


def at(seconds: float) -> Now:
    return Now(seconds, int(seconds * 1000), 1e9 + seconds)


def test_one_record_a_destination_and_again_after_a_while() -> None:
    told: list[Flow] = []
    refusals = Refusals(told.append, lambda client, mac: "pupils")
    for second in range(10):
        assert refusals.receive(syn(443), MAC, at(second)) == 0
    refusals.receive(syn(80), MAC, at(10))
    refusals.receive(syn(443), MAC, at(AGAIN_S + 1))
    assert [(flow.dport, flow.at_ms) for flow in told] == [(443, 0), (80, 10_000), (443, 61_000)]
    assert {(flow.verdict, flow.reason, flow.mac, flow.name, flow.group) for flow in told} == {
        (Verdict.BLOCK, Reason.IDENTITY, MAC, "", "pupils")
    }
    assert refusals.refused == 12


def test_the_table_is_bounded() -> None:
    refusals = Refusals(lambda flow: None, lambda client, mac: "")
    for number in range(MAX_TOLD + 9):
        refusals.receive(syn(number % 65536, number >> 16), MAC, at(0))
    assert len(refusals._told) <= MAX_TOLD


@given(st.binary(max_size=120), st.binary(max_size=6))
def test_any_octets_are_counted_and_nothing_is_raised(data: bytes, mac: bytes) -> None:
    refusals = Refusals(lambda flow: None, lambda client, mac: "")
    assert refusals.receive(data, mac, at(0)) == 0
    assert refusals.refused == 1


def test_packets_that_are_refused_anyway_are_none_that_pass_unseen() -> None:
    text = (
        "[7:400] -A GH-REFUSE -p udp -j NFQUEUE --queue-num 21\n[3:90] -A GH-FIRST -p udp -j NFQUEUE --queue-num 20\n"
    )
    assert read_iptables([text]).offered == 3
    table = """table inet gatehouse {
\tchain admit {
\t\tmeta l4proto udp counter packets 7 bytes 400 queue flags bypass to 21
\t}
\tchain first {
\t\tmeta l4proto udp counter packets 3 bytes 90 queue flags bypass to 20
\t}
}"""
    assert read_nft(table).offered == 3
