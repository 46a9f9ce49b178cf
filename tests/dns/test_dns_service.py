"""The worker as its clients see it: a real process, a real authoritative server behind it, dig in front."""

import re
import socket
import time
from pathlib import Path

import pytest
from conftest import exchange, free_port
from policy_of_test import DictDecider
from questions import answers, query, read
from serve import FileLink

from dns.stream import Framer, framed
from dns.wire import Rcode, Type, read_header
from dns.worker import run
from policy.config import DnsConfig
from policy.errors import ConfigError

BLOCKING = {"block": {"evil.example.org": ["list:evil"]}, "networks": ["203.0.113.0/24"]}


def status(output):
    return re.search(r"status: (\w+)", output)[1]


def test_a_question_is_answered_and_put_on_record(serve):
    served = serve()
    assert answers(served.ask(query("www.example.org"))) == (0, [bytes((198, 51, 100, 20))])
    (row,) = served.rows(kind="Dns")
    assert row["name"] == "www.example.org"
    assert row["qtype"] == 1
    assert row["client"] == "7f000001"
    assert row["answers"] == ["c6336414"]
    assert row["cached"] is False
    assert row["verdict"] == 0
    now_ms = time.clock_gettime(time.CLOCK_BOOTTIME) * 1000
    assert now_ms - 5000 < row["at_ms"] <= now_ms


def test_the_third_time_it_comes_from_the_hot_cache_and_is_on_record_too(serve):
    served = serve()
    first = served.ask(query("www.example.org", number=1))
    again = [served.ask(query("www.example.org", number=n)) for n in range(2, 20)]
    assert all(reply[0] == 0 and reply[1] == n for n, reply in enumerate(again, 2))
    assert all(answers(reply) == answers(first) for reply in again)
    assert len({reply[2:] for reply in again}) == 1
    rows = served.rows(kind="Dns", name="www.example.org")
    assert len(rows) == 19
    assert [row["cached"] for row in rows] == [False] + [True] * 18
    served.stop()
    assert served.rows(kind="Closed")[0]["counters"]["hot"] == 17


def test_a_blocked_name_is_nxdomain_with_the_reason_and_is_on_record_each_time(serve):
    served = serve(BLOCKING)
    output = served.dig("tracker.evil.example.org")
    assert status(output) == "NXDOMAIN"
    assert "EDE: 17 (Filtered): (list:evil)" in output
    assert "SOA" in output
    for _ in range(3):
        reply = served.ask(query("tracker.evil.example.org"))
        assert read_header(reply).flags & 0xF == Rcode.NXDOMAIN
    rows = served.rows(kind="Dns")
    assert len(rows) == 4
    assert {(row["verdict"], row["rule"], row["rcode"]) for row in rows} == {(1, "list:evil", 3)}


@pytest.mark.parametrize(
    ("on_block", "qtype", "rcode", "data"),
    [
        ("nodata", 1, 0, []),
        ("null", 1, 0, [bytes(4)]),
        ("null", 28, 0, [bytes(16)]),
        ("null", 65, 0, []),
        ("page", 1, 0, [bytes((10, 20, 0, 1))]),
        ("page", 28, 0, []),
        ("nxdomain", 28, 3, []),
    ],
)
def test_how_blocked_names_are_answered(serve, on_block, qtype, rcode, data):
    served = serve({**BLOCKING, "groups": [{"group": "all", "on_block": on_block}]}, page=["10.20.0.1"])
    for _ in range(3):  # from the core, twice, then from the hot cache
        assert answers(served.ask(query("x.evil.example.org", qtype))) == (rcode, data)


def test_letter_case_is_echoed_to_the_letter(serve):
    served = serve(BLOCKING)
    for name in ("WwW.eXaMpLe.OrG", "www.example.org", "tRACKER.evil.Example.org", "WwW.eXaMpLe.OrG"):
        reply = served.ask(query(name))
        assert reply[12 : 12 + len(name) + 2] == query(name)[12 : 12 + len(name) + 2]
    assert answers(served.ask(query("WWW.EXAMPLE.ORG")))[1] == [bytes((198, 51, 100, 20))]
    assert {row["name"] for row in served.rows()} == {"www.example.org", "tracker.evil.example.org"}


def test_the_ttl_decays(serve):
    served = serve()
    ttls = []
    for _ in range(12):
        data = served.ask(query("short.example.org"))
        ttls.append(read(data)[1][0].ttl)
        time.sleep(0.25)
    assert max(ttls) <= 2
    assert 0 in ttls or 1 in ttls
    assert sum(not row["cached"] for row in served.rows()) >= 2  # two seconds went by: it was asked for again


def test_a_512_octet_client_is_told_to_use_tcp_and_gets_it_all(serve):
    served = serve()
    for _ in range(2):
        reply = served.ask(query("big.example.org"))
        assert len(reply) <= 512
        assert read_header(reply).flags & 0x0200
        assert read_header(reply).answers == 0
    reply = served.ask(query("big.example.org", edns=(4096, 0, b"")))
    assert len(reply) <= 1232
    assert read_header(reply).flags & 0x0200
    output = served.dig("big.example.org")
    assert len(re.findall(r"^big\.example\.org\.\s.*\sA\s198", output, re.M)) == 100
    assert "Truncated, retrying in TCP mode" in output


def test_tcp_takes_many_questions_at_once_and_in_pieces(serve):
    served = serve()
    questions = [framed(query(name, number=n)) for n, name in enumerate(["www.example.org", "txt.example.org"] * 5)]
    stream = b"".join(questions)
    with socket.create_connection(("127.0.0.1", served.port), 5) as sock:
        for at in range(0, len(stream), 7):
            sock.sendall(stream[at : at + 7])
            time.sleep(0.001)
        framer, replies = Framer(), []
        while len(replies) < len(questions):
            replies += framer.feed(sock.recv(65535))
    assert sorted(read_header(reply).id for reply in replies) == list(range(10))


def test_ipv6_alike(serve):
    served = serve(listen=["127.0.0.1", "::1"])
    for _ in range(2):
        assert answers(served.ask(query("www.example.org"), host="::1"))[1] == [bytes((198, 51, 100, 20))]
    assert [row["client"] for row in served.rows()] == ["0" * 31 + "1"] * 2


def test_the_answer_comes_from_the_address_that_was_asked(serve):
    served = serve(listen=["0.0.0.0"])
    for host in ("127.0.0.1", "127.0.0.2", "127.9.9.9"):
        for _ in range(2):  # `exchange` connects its socket: an answer from elsewhere would not reach it
            assert answers(exchange(query("www.example.org"), served.port, host))[1]
    served.ask(query("www.example.org"), source="127.0.0.77")
    assert served.rows(client="7f00004d")


def test_who_comes_from_outside_the_venue_gets_nothing(serve):
    # `lan` names an interface that is not there; this machine itself is always served.
    served = serve(lan=["br-none"])
    assert answers(served.ask(query("www.example.org")))[1]


def test_groups_see_their_own_answers_hot_or_not(serve):
    policy = {
        **BLOCKING,
        "groups": [{"group": "pupils"}, {"group": "staff"}],
        "free": [1],
        "clients": {"127.0.0.5": 1},
    }
    served = serve(policy)
    for _ in range(3):
        assert answers(served.ask(query("tracker.evil.example.org"), source="127.0.0.4"))[0] == 3
        assert answers(served.ask(query("tracker.evil.example.org"), source="127.0.0.5"))[0] == 0
    assert {(row["client"], row["group"], row["verdict"]) for row in served.rows()} == {
        ("7f000004", "pupils", 1),
        ("7f000005", "staff", 0),
    }


def test_a_reload_leaves_no_stale_verdict(serve):
    served = serve()
    for _ in range(3):
        assert answers(served.ask(query("www.example.org")))[0] == 0
    served.reload(block={"www.example.org": ["list:new"]})
    assert answers(served.ask(query("www.example.org")))[0] == 3
    served.reload()
    assert answers(served.ask(query("www.example.org")))[0] == 0


def test_the_link_reloads_stops_and_tells_who_is_who(serve):
    served = serve({**BLOCKING, "groups": [{"group": "pupils"}, {"group": "staff"}], "free": [1],
                    "macs": {"02:00:00:00:00:05": 1}})  # fmt: skip
    for _ in range(2):
        assert answers(served.ask(query("tracker.evil.example.org")))[0] == 3
    served.command("client", "7f000001", "020000000005")
    assert answers(served.ask(query("tracker.evil.example.org")))[0] == 0
    assert served.rows()[-1]["group"] == "staff"
    served.command("stop")
    assert served.process.wait(5) == 0


def test_sigterm_tells_those_who_wait_and_puts_them_on_record(serve):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute:
        mute.bind(("127.0.0.1", 0))
        served = serve(upstream=[["127.0.0.1", mute.getsockname()[1]]])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(("127.0.0.1", served.port))
            client.settimeout(5)
            client.send(query("www.example.org"))
            mute.recv(512)
            started = time.monotonic()
            assert served.stop() == 0
            assert time.monotonic() - started < 5
            assert read_header(client.recv(512)).flags & 0xF == Rcode.SERVFAIL
    assert [row["rcode"] for row in served.rows(kind="Dns")] == [Rcode.SERVFAIL]


def test_any_is_answered_by_hinfo_and_zone_transfers_are_refused(serve):
    served = serve()
    assert 'HINFO\t"RFC8482" ""' in served.dig("www.example.org", "ANY", "+notcp")
    assert answers(served.ask(query("example.org", Type.AXFR)))[0] == Rcode.REFUSED
    assert "Transfer failed" in served.dig("example.org", "AXFR")
    assert answers(served.ask(query("version.bind", Type.TXT, qclass=3)))[0] == Rcode.REFUSED
    assert answers(served.ask(query("www.example.org", qclass=4)))[0] == Rcode.REFUSED
    assert answers(served.ask(query("www.example.org", qclass=255)))[0] == Rcode.REFUSED


def test_types_that_we_do_not_know_pass_unharmed(serve):
    served = serve()
    for _ in range(2):
        assert answers(served.ask(query("unknown.example.org", 65333)))[1] == [b"\x0a\x0b\x0c\x0d"]
    assert "mail" not in served.dig("mx.example.org", "MX")
    assert "10 www.example.org." in served.dig("mx.example.org", "MX")


def test_a_busy_port_ends_with_a_sentence(serve, tmp_path):
    served = serve()
    settings = DnsConfig(listen=("127.0.0.1",), port=served.port)
    with pytest.raises(ConfigError, match=r"dns\.listen: cannot listen on any of 127\.0\.0\.1"):
        run(settings, DictDecider, FileLink(tmp_path / "events", tmp_path / "commands"))


def test_two_workers_share_a_port(serve):
    port = free_port()
    both = [serve(port=port, workers=2) for _ in range(2)]
    deadline = time.monotonic() + 10
    while Path("/proc/net/udp").read_text().count(f":{port:04X} ") < 2:
        assert time.monotonic() < deadline, "the second worker does not listen"
        time.sleep(0.02)
    for n in range(200):
        # Each from a port of its own: the kernel spreads them by address and port.
        assert answers(exchange(query("www.example.org", number=n), port))[1]
    counts = [len(served.rows(kind="Dns")) for served in both]
    assert sum(counts) == 200
    assert min(counts) > 30
