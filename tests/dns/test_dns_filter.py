"""The duties of a filter, with a real authoritative server behind the worker: what it answers is what is looked at."""

import struct
import time

import dnslib
import pytest
from conftest import ECH
from questions import answers, query, read

from dns.wire import Rcode, svcb_params, svcb_target
from policy.verdict import Reason, Verdict

POLICY = {"block": {"evil.example.org": ["list:evil"]}, "networks": ["203.0.113.0/24", "198.51.100.66/32"]}


def last(served):
    return served.rows(kind="Dns")[-1]


@pytest.mark.parametrize(
    ("name", "qtype", "reason"),
    [
        ("cloaked.example.org", 1, Reason.CNAME),
        ("cloaked.example.org", 28, Reason.CNAME),
        ("svcalias.example.org", 65, Reason.CNAME),
        ("badip.example.org", 1, Reason.ADDRESS),
        ("hintbad.example.org", 65, Reason.ADDRESS),
        ("rebind.example.org", 1, Reason.REBIND),
        ("rebind6.example.org", 28, Reason.REBIND),
        ("mapped.example.org", 28, Reason.REBIND),
    ],
)
def test_what_an_answer_hides_is_found_and_recorded(serve, name, qtype, reason):
    served = serve(POLICY)
    for _ in range(4):  # asked for, from the cache, from the hot cache
        assert answers(served.ask(query(name, qtype))) == (Rcode.NXDOMAIN, [])
    rows = served.rows(kind="Dns", name=name)
    assert [(row["verdict"], row["reason"]) for row in rows] == [(Verdict.BLOCK, reason)] * 4


def test_an_allowed_name_is_allowed_with_its_alias_but_may_not_rebind(serve):
    served = serve({**POLICY, "allow": ["cloaked.example.org", "badip.example.org", "rebind.example.org"]})
    assert len(answers(served.ask(query("cloaked.example.org")))[1]) == 2
    assert answers(served.ask(query("badip.example.org"))) == (0, [bytes((203, 0, 113, 66))])
    assert answers(served.ask(query("rebind.example.org")))[0] == Rcode.NXDOMAIN


def test_exceptions_from_rebinding_protection(serve):
    served = serve(rebind_domain=["rebind.example.org"])
    assert answers(served.ask(query("rebind.example.org"))) == (0, [bytes((192, 168, 1, 1))])
    assert answers(served.ask(query("local.example.org")))[0] == Rcode.NXDOMAIN
    served = serve(rebind_protection=False)
    assert answers(served.ask(query("local.example.org"))) == (0, [bytes((192, 168, 7, 7))])


def params_of(data):
    _, records = read(data)
    (found,) = [r for r in records if r.rtype == 65]
    target, at = svcb_target(data, found)
    return data[found.data : found.data + 2], target, svcb_params(data, at, found.end)


def test_ech_is_taken_out_and_everything_else_is_left(serve, authority):
    plain, strict = serve(), serve({"groups": [{"group": "all", "strip_ech": True}]})
    before = params_of(plain.ask(query("https.example.org", 65, edns=(1232, 0, b""))))
    assert 5 in dict(before[2])
    for _ in range(3):
        after = params_of(strict.ask(query("https.example.org", 65, edns=(1232, 0, b""))))
        assert after[:2] == before[:2]
        assert after[2] == [(key, value) for key, value in before[2] if key != 5]
    assert dict(after[2])[65400] == b"unknown"
    output = strict.dig("https.example.org", "HTTPS")
    assert 'alpn="h2,h3"' in output
    assert "ipv4hint=198.51.100.20" in output
    assert ECH[:20] not in output
    flags = output.split("flags:")[1].split(";")[0].split()
    assert "ad" not in flags


def test_mandatory_keys_lose_ech_too(serve):
    served = serve({"groups": [{"group": "all", "strip_ech": True}]})
    assert params_of(served.ask(query("mandatory.example.org", 65)))[2] == [(0, b"\0\1"), (1, b"\2h2")]
    assert params_of(served.ask(query("onlyech.example.org", 65)))[2] == []
    # An HTTPS record without `ech`, and other types, are not touched.
    assert answers(served.ask(query("https.example.org", 1)))[1] == [bytes((198, 51, 100, 20))]


def test_safe_search_answers_with_another_names_records(serve):
    served = serve({"rewrite": {"www.example.org": "forcesafe.example.org"}})
    for _ in range(3):
        output = served.dig("www.example.org")
        assert "www.example.org." in output
        assert "CNAME\tforcesafe.example.org." in output
        assert "198.51.100.99" in output
        assert "198.51.100.20" not in output
    assert answers(served.ask(query("www.example.org", 65)))[0] == 0
    rows = served.rows(kind="Dns", name="www.example.org")
    assert {(row["verdict"], row["reason"], row["rule"]) for row in rows} == {
        (Verdict.REWRITE, Reason.SAFE_SEARCH, "safesearch")
    }
    parsed = dnslib.DNSRecord.parse(served.ask(query("www.example.org")))
    assert [str(rr.rname) for rr in parsed.rr] == ["www.example.org.", "forcesafe.example.org."]


def test_safe_search_for_a_type_that_the_target_has_not(serve):
    served = serve({"rewrite": {"www.example.org": "forcesafe.example.org"}})
    rcode, data = answers(served.ask(query("www.example.org", 28)))
    assert rcode == 0
    assert len(data) == 1  # the alias alone, and the zone's SOA behind it
    assert read(served.ask(query("www.example.org", 28)))[0].authorities == 1


def test_chains_come_whole(serve):
    served = serve()
    assert served.dig("+short", "chain1.example.org").split() == [
        "chain2.example.org.",
        "chain3.example.org.",
        "198.51.100.22",
    ]
    assert last(served)["answers"] == ["c6336416"]


def test_answer_addresses_on_record_are_bounded(serve):
    served = serve()
    served.dig("+tcp", "big.example.org")
    assert len(last(served)["answers"]) == 8


def test_a_schedule_edge_ends_a_verdict(serve):
    # The policy holds until two seconds from now, by the wall clock: no answer may outlive that in the hot cache.
    served = serve({"until": time.time() + 2})
    for _ in range(4):
        served.ask(query("www.example.org"))
    time.sleep(3.2)
    served.ask(query("www.example.org"))
    served.stop()
    (closed,) = served.rows(kind="Closed")
    assert closed["counters"]["hot"] == 2
    assert closed["counters"]["queries"] == 3


def test_upstream_gets_no_client_subnet_no_cookie_no_mac(serve):
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as upstream:
        upstream.bind(("127.0.0.1", 0))
        upstream.settimeout(5)
        served = serve(upstream=[["127.0.0.1", upstream.getsockname()[1]]])
        options = struct.pack("!HHHBB", 8, 7, 1, 24, 0) + b"\x0a\x14\0" + struct.pack("!HH", 10, 8) + b"COOKIE!!"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(("127.0.0.1", served.port))
            client.send(query("www.example.org", edns=(1232, 0x8000, options)))
            data, _ = upstream.recvfrom(512)
    _, records = read(data)
    (opt,) = records
    assert opt.length == 0
    assert opt.ttl == 0x8000  # DO travels
    assert b"COOKIE" not in data
