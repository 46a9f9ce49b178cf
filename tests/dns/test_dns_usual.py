"""The usual way and the general one say the same, about single messages and about whole conversations."""

import itertools
import random
import struct

import pytest
from policy_of_test import DictDecider
from questions import query, record, reply, soa

from dns import usual
from dns.proxy import Peer, Proxy
from dns.wire import present, read_header, read_query, read_question
from policy.config import DnsConfig
from tests.fuzz.dns import check_query, check_reply, mutate, seeds

CLIENT = Peer(b"\x0a\x14\0\5", False, None)
STREAM = Peer(b"\x0a\x14\0\6", True, None)


def test_the_usual_readers_and_the_general_ones_agree_on_mutated_messages():
    dice = random.Random(3)
    bases = seeds()
    queries = replies = 0
    questions = [data for data in bases if not data[2] & 0x80]
    for number in range(20_000):
        data = mutate(dice, dice.choice(bases if number & 1 else questions))
        queries += check_query(data)
        replies += check_reply(data)
    for data in bases:
        queries += check_query(data)
        replies += check_reply(data)
    assert queries > 200
    assert replies > 50


NAMES = [
    "www.example.org", "WwW.eXample.ORG", "a.b.c.d.e.example.org", "x" * 44 + ".example.org", "0" * 48 + ".org",
    "x" * 63 + ".org", "_dmarc.example-site.org", "odd name.org", "single", "router.lan",
]  # fmt: skip
EDNS = {"plain": None, "edns": (1232, 0, b""), "do": (4096, 0x8000, b"")}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("edns", EDNS)
def test_the_usual_query_is_read_like_any_other(name, edns):
    data = query(name, 28, edns=EDNS[edns])
    whole = read_query(data, read_header(data))
    assert usual.read_query(data) == ((whole, present(whole.name)) if name != "odd name.org" else None)
    for cut in range(len(data)):
        assert usual.read_query(data[:cut]) is None, cut
    assert usual.read_query(data + b"\0") is None


OPT = struct.pack("!BHHIH", 0, 41, 1232, 0, 0)
A4, A6 = record(1, b"\1\2\3\4", 100), record(28, bytes(range(16)), 70)
ALIAS = record(5, b"\5alias\xc0\x10", 50)
SVCB = record(65, b"\0\1\0" + struct.pack("!HH", 1, 3) + b"\2h2" + struct.pack("!HH", 5, 4) + b"echo", 60)
CONVERSATIONS = {
    "address": (1, [A4], {}),
    "addresses": (1, [A4] * 20, {}),
    "more than fit": (1, [A4] * 40, {}),
    "ipv6": (28, [A6], {}),
    "alias": (1, [ALIAS, A4], {}),
    "inside": (1, [record(1, b"\x0a\0\0\1")], {}),
    "blocked address": (1, [record(1, b"\6\6\6\6")], {}),
    "blocked alias": (1, [record(5, b"\3bad\7example\0", 50), A4], {}),
    "https": (65, [SVCB], {}),
    "nothing": (1, [], {}),
    "short": (1, [record(1, b"\1\2\3")], {}),
    "ttl zero": (1, [record(1, b"\1\2\3\4", 0)], {}),
    "ttl huge": (1, [record(1, b"\1\2\3\4", 1 << 31)], {}),
    "ttls differ": (1, [A4, record(1, b"\4\3\2\1", 40)], {}),
    "ttl over the bound": (1, [record(1, b"\1\2\3\4", 90_000)], {}),
    "an authority's ttl is shorter": (1, [A4], {"authority": [record(2, b"\2ns\xc0\x0c", 5)]}),
    "behind the answers it is cut": (1, [A4], {"authority": [b"\xc0\x0c\0\2"]}),
    "an opt record among the answers": (1, [A4, OPT], {}),
    "an error behind answers": (1, [A4], {"additional": [OPT], "rcode": 5}),
    "signed": (1, [A4], {"flags": 0x81A0}),
    "nxdomain": (1, [], {"rcode": 3}),
    "servfail": (1, [], {"rcode": 2}),
}


POLICY = {
    "block": {"bad.example": ["list:bad"]},
    "networks": ["6.6.6.6/32"],
    "groups": [{"group": "all", "strip_ech": True}],
}


def conversation(monkeypatch, is_usual, edns, qtype, records, options):
    with monkeypatch.context() as patch:
        if not is_usual:
            patch.setattr(usual, "read_query", lambda data: None)
            patch.setattr(usual, "read_reply", lambda data, end, qtype: None)
        counter = itertools.count(1)
        proxy = Proxy(
            DnsConfig(upstream=(("192.0.2.1", 53),), local_server=(), rate=50),
            DictDecider(POLICY),
            lambda n: b"".join(struct.pack("!Q", next(counter) * 0x9E3779B97F4A7C15 % (1 << 64)) for _ in range(n))[:n],
        )
        proxy.wall_offset = 1_700_000_000.0
        said = []
        for now, name in enumerate(("www.example.org", "WWW.example.org", "www.example.org", "www.bad.example")):
            for peer in (CLIENT, STREAM):
                said.append(proxy.receive_query(query(name, qtype, edns=EDNS[edns]), peer, now + 0.25))
            for ask in proxy.asks():
                up = reply(ask.data, records, **options)
                proxy.receive_reply(up, ask.server, ask.channel, now + 0.5)
            said += proxy.replies()
            said += proxy.events()
        said.append(len(proxy.pending))  # none, but where a reply was no good and is asked for again
        proxy.drain(9.0)
        said += proxy.replies()
        return said, {name: n for name, n in proxy.counters.items() if name != "asked"}


@pytest.mark.parametrize("case", CONVERSATIONS)
@pytest.mark.parametrize("edns", EDNS)
def test_a_conversation_is_the_same_by_either_way(monkeypatch, case, edns):
    usually = conversation(monkeypatch, True, edns, *CONVERSATIONS[case])
    assert usually == conversation(monkeypatch, False, edns, *CONVERSATIONS[case])


def test_an_alias_that_ends_nowhere_is_left_to_the_general_way():
    data = reply(query("www.example.org"), [ALIAS], authority=[soa()])
    assert usual.read_reply(data, read_question(data)[3], 1) is None
