"""The core, by itself: time stands where the test puts it, and nothing goes over a wire."""

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_of_test import DictDecider
from questions import answers, query, read, record, reply, soa

from dns.pending import CHANNELS, MAX_FLIGHTS, STREAM
from dns.proxy import STALE_TTL_S, Peer, Proxy, stamped
from dns.wire import Rcode, read_header, read_question
from policy.config import DnsConfig
from policy.event import Dns, Flood
from policy.verdict import Reason, Verdict

A4 = record(1, b"\1\2\3\4")
CLIENT = Peer(b"\x0a\x14\0\5", False, None)
OTHER = Peer(b"\x0a\x14\0\6", False, None)
TCP = Peer(b"\x0a\x14\0\5", True, None)


def dice():
    """Random octets that are the same every time."""
    counter = itertools.count(1)
    return lambda n: b"".join(struct.pack("!Q", next(counter) * 0x9E3779B97F4A7C15 & (1 << 64) - 1) for _ in range(n))[
        :n
    ]


def core(policy=None, **settings):
    settings = {"upstream": (("192.0.2.1", 53),), "local_server": (), "rate": 0, **settings}
    proxy = Proxy(DnsConfig(**settings), DictDecider(policy), dice())
    proxy.wall_offset = 1_700_000_000.0
    return proxy


def ask(proxy, name="www.example.org", qtype=1, now=0.0, peer=CLIENT, **options):
    return proxy.receive_query(query(name, qtype, **options), peer, now)


def answered(proxy, *records, now=0.1, **options):
    """The upstream answers the one question that is on its way."""
    (sent,) = proxy.asks()
    proxy.receive_reply(reply(sent.data, records, **options), sent.server, sent.channel, now)
    return proxy.replies()


def test_a_question_goes_up_an_answer_comes_down():
    proxy = core()
    assert ask(proxy) is None
    (sent,) = proxy.asks()
    assert 0 <= sent.channel < CHANNELS
    assert read_question(sent.data)[0] == b"\3www\7example\3org\0"
    proxy.receive_reply(reply(sent.data, [A4]), sent.server, sent.channel, 0.05)
    (down,) = proxy.replies()
    assert down.peer is CLIENT
    assert down.data[:2] == b"\x12\x34"
    assert answers(down.data) == (0, [b"\1\2\3\4"])
    (event,) = proxy.events()
    assert (event.name, event.answers, event.cached, event.latency_ms) == ("www.example.org", (b"\1\2\3\4",), False, 50)


def test_what_is_made_without_its_constructor_has_all_its_fields(monkeypatch):
    """`tuple.__new__` counts nothing: a field that a record gains must be given here too, default or not."""
    made = []

    def checked(kind, values):
        made.append(kind)
        assert len(values) == len(kind._fields), kind
        return tuple.__new__(kind, values)

    for module in ("proxy", "wire", "usual", "pending"):
        monkeypatch.setattr(f"dns.{module}._new", checked)
    proxy = core()
    for qtype in (1, 16):  # the usual way, and the other
        ask(proxy, qtype=qtype)
        answered(proxy, A4)
        (event,) = proxy.events()
        assert Dns(**event._asdict()) == event
    assert {kind.__name__ for kind in made} == {
        "Ask", "Dns", "Entry", "Header", "Query", "Record", "Reply", "UsualReply", "_Waiter",
    }  # fmt: skip


def test_two_who_ask_the_same_share_one_question():
    proxy = core()
    ask(proxy)
    ask(proxy, "WWW.example.ORG", peer=OTHER)
    ask(proxy, peer=TCP)
    assert len(proxy.asks()) == 1
    (flight,) = proxy.pending
    proxy.receive_reply(reply(struct.pack("!H", flight.id) + bytes(10) + flight.question, [A4]), 0, flight.channel, 0.1)
    assert [down.peer for down in proxy.replies()] == [CLIENT, OTHER, TCP]
    assert len(proxy.events()) == 3


def test_no_answer_the_second_upstream_is_asked_then_the_first_again():
    proxy = core(upstream=(("192.0.2.1", 53), ("192.0.2.2", 53)))
    ask(proxy)
    order, now = [proxy.asks()[0].server], 0.0
    while (due := proxy.next_timer()) is not None:
        now = due
        proxy.handle_timer(now)
        order += [sent.server for sent in proxy.asks()]
    assert order[:4] == [0, 1, 0, 1]
    assert now <= 10
    (down,) = proxy.replies()
    assert read_header(down.data).flags & 0xF == Rcode.SERVFAIL
    (event,) = proxy.events()
    assert event.rcode == Rcode.SERVFAIL
    assert len(proxy.pending) == 0


def test_deadlines_of_what_was_answered_are_passed_over_and_take_no_room():
    proxy = core()
    for number in range(200):
        ask(proxy, f"a{number}.example.org", now=0.0)
    asks = proxy.asks()
    for sent in asks[:-1]:
        proxy.receive_reply(reply(sent.data, [A4]), sent.server, sent.channel, 0.1)
    due = proxy.next_timer()
    assert due is not None
    (left,) = proxy.pending.due(due)
    assert left.question == asks[-1].data[12:-11]
    assert proxy.pending.due(due + 10) == []
    proxy.pending.arm(left, due + 1)
    proxy.pending.arm(left, due + 2)
    assert proxy.pending.due(due + 1.5) == []
    assert proxy.pending.due(due + 3) == [left]
    proxy.pending.arm(left, due + 4)
    proxy.pending.close(left)
    assert proxy.next_timer() is None
    assert proxy.pending.due(due + 10) == []


def test_each_try_has_another_id_and_the_old_one_is_void():
    proxy = core()
    ask(proxy)
    (first,) = proxy.asks()
    proxy.handle_timer(proxy.next_timer())
    (second,) = proxy.asks()
    assert first.data[:2] != second.data[:2]
    proxy.receive_reply(reply(first.data, [A4]), first.server, first.channel, 1.0)
    assert proxy.replies() == []
    proxy.receive_reply(reply(second.data, [A4]), second.server, second.channel, 1.0)
    assert len(proxy.replies()) == 1


def test_an_upstream_that_fails_rests_and_comes_back():
    proxy = core(upstream=(("192.0.2.1", 53), ("192.0.2.2", 53)))
    for n in range(3):
        ask(proxy, f"n{n}.example.org", now=n)
        (sent,) = proxy.asks()
        proxy.receive_failure(sent.server, sent.channel, n, int.from_bytes(sent.data[:2], "big"))
        (again,) = proxy.asks()
        proxy.receive_reply(reply(again.data, [A4]), again.server, again.channel, n)
    ask(proxy, "later.example.org", now=2.1)
    assert proxy.asks()[0].server == 1
    ask(proxy, "much-later.example.org", now=60.0)
    assert proxy.asks()[0].server == 0


@pytest.mark.parametrize("case", ["id", "channel", "server", "question", "query"])
def test_a_forged_reply_is_not_believed(case):
    proxy = core(upstream=(("192.0.2.1", 53), ("192.0.2.2", 53)))
    ask(proxy)
    (sent,) = proxy.asks()
    data, server, channel = reply(sent.data, [A4]), sent.server, sent.channel
    if case == "id":
        data = bytes((data[0] ^ 1,)) + data[1:]
    elif case == "channel":
        channel = (channel + 1) % CHANNELS
    elif case == "server":
        server = 1
    elif case == "question":
        data = data.replace(data[12:16], b"\3abc")
    else:
        data = data[:2] + b"\1\0" + data[4:]
    proxy.receive_reply(data, server, channel, 0.1)
    assert proxy.replies() == []
    assert proxy.counters["bad_replies"] == 1
    proxy.receive_reply(reply(sent.data, [A4]), sent.server, sent.channel, 0.2)
    assert len(proxy.replies()) == 1


def test_other_letter_case_is_asked_again_over_a_stream_and_given_up_after_three():
    proxy = core()
    for n in range(4):
        ask(proxy, f"letters{n}.example.org", now=n)
        (sent,) = proxy.asks()
        end = read_question(sent.data)[3]
        mixed = sent.data[12:end]
        if n == 3:
            assert mixed == mixed.lower()
            break
        assert mixed != mixed.lower()
        proxy.receive_reply(reply(sent.data[:12] + mixed.swapcase(), [A4]), sent.server, sent.channel, n)
        (again,) = proxy.asks()
        assert again.channel == STREAM
        proxy.receive_reply(reply(again.data, [A4]), again.server, STREAM, n)
        assert len(proxy.replies()) == 1


def test_guesses_drive_the_question_to_a_stream():
    proxy = core()
    ask(proxy)
    (sent,) = proxy.asks()
    forged = reply(query("www.evil.example", number=int.from_bytes(sent.data[:2], "big")), [A4])
    for _ in range(8):
        proxy.receive_reply(forged, sent.server, sent.channel, 0.1)
    assert proxy.asks()[0].channel == STREAM


def test_a_truncated_reply_is_fetched_over_a_stream():
    proxy = core()
    ask(proxy)
    (sent,) = proxy.asks()
    proxy.receive_reply(reply(sent.data, flags=0x8380), sent.server, sent.channel, 0.1)
    (again,) = proxy.asks()
    assert (again.server, again.channel) == (sent.server, STREAM)
    proxy.receive_reply(reply(again.data, [A4] * 30), again.server, STREAM, 0.2)
    assert len(proxy.replies()) == 1


@pytest.mark.parametrize("bare", [True, False])
def test_a_server_without_edns_is_asked_without(bare):
    proxy = core()
    ask(proxy)
    (sent,) = proxy.asks()
    assert read_header(sent.data).additionals == 1
    refusal = sent.data[:2] + b"\x81\x81" + bytes(8) if bare else reply(sent.data, rcode=1)
    proxy.receive_reply(refusal, sent.server, sent.channel, 0.1)
    (again,) = proxy.asks()
    assert read_header(again.data).additionals == 0
    proxy.receive_reply(reply(again.data, [A4]), again.server, again.channel, 0.2)
    assert answers(proxy.replies()[0].data) == (0, [b"\1\2\3\4"])
    ask(proxy, "next.example.org", now=1.0)
    assert read_header(proxy.asks()[0].data).additionals == 0


def test_from_the_cache_with_a_ttl_that_decays_and_never_lies():
    proxy = core()
    ask(proxy)
    answered(proxy, record(1, b"\1\2\3\4", ttl=100), now=0.0)
    for now in (1.0, 10.0, 50.0, 90.0, 98.5):
        down = ask(proxy, now=now)
        ttl = read(down.data)[1][0].ttl
        assert ttl <= 100 - now
        assert ttl >= 100 - now - max(2, (100 - now) / 8 + 1)
    assert ask(proxy, now=100.5) is None


@pytest.mark.parametrize("qtype", [1, 16])  # the usual way, and the other
def test_an_answer_just_learned_has_the_ttl_that_the_upstream_gave(qtype):
    proxy = core()
    for name, ttl in (("www.example.org", 300), ("www.example.net", 100_000)):
        ask(proxy, name, qtype, now=0.25)
        (down,) = answered(proxy, record(qtype, b"\1\2\3\4", ttl=ttl), now=0.75)
        assert read(down.data)[1][0].ttl == min(ttl, 86_400)


@pytest.mark.parametrize("qtype", [1, 16])
def test_what_stands_behind_answers_is_not_read_but_for_who_asks_for_dnssec(qtype):
    torn = record(46, bytes(20), ttl=7)[:-1]
    proxy = core()
    ask(proxy, qtype=qtype)
    (down,) = answered(proxy, record(qtype, b"\1\2\3\4"), authority=[torn])
    assert answers(down.data) == (0, [b"\1\2\3\4"])
    assert read_header(down.data).authorities == 0
    ask(proxy, qtype=qtype, edns=(1232, 0x8000, b""))
    assert answered(proxy, record(qtype, b"\1\2\3\4"), authority=[torn]) == []
    assert proxy.counters["bad_replies"] == 1


def test_a_cname_chain_lives_as_long_as_its_shortest_link():
    proxy = core()
    ask(proxy)
    answered(proxy, record(5, b"\3foo\xc0\x10", ttl=20), record(1, b"\1\2\3\4", ttl=500, owner=b"\3foo\xc0\x10"))
    assert ask(proxy, now=19.0) is not None
    assert ask(proxy, now=21.0) is None


@pytest.mark.parametrize(("minimum", "soa_ttl", "lives"), [(60, 900, 60), (900, 30, 30), (99999, 99999, 3600)])
def test_negative_answers_are_kept_by_the_soa(minimum, soa_ttl, lives):
    for rcode in (0, 3):
        proxy = core()
        ask(proxy)
        answered(proxy, rcode=rcode, authority=[soa(soa_ttl, minimum)], now=0.0)
        down = ask(proxy, now=lives - 2.0)
        assert read_header(down.data).flags & 0xF == rcode
        assert ask(proxy, now=lives + 1.0) is None


def test_a_negative_answer_without_soa_is_not_kept_and_a_ttl_of_zero_is_not_either():
    proxy = core()
    ask(proxy)
    answered(proxy, rcode=3, now=0.0)
    assert ask(proxy, now=0.1) is None
    answered(proxy, record(1, b"\1\2\3\4", ttl=0), now=0.2)
    assert ask(proxy, now=0.3) is None
    answered(proxy, record(1, b"\1\2\3\4", ttl=0x80000001), now=0.4)  # RFC 2181 8
    assert ask(proxy, now=0.5) is None


def test_ttl_bounds_of_the_owner():
    proxy = core(min_ttl_s=30, max_ttl_s=60)
    ask(proxy)
    answered(proxy, record(1, b"\1\2\3\4", ttl=1), now=0.0)
    assert ask(proxy, now=28.0) is not None
    ask(proxy, "long.example.org")
    answered(proxy, record(1, b"\1\2\3\4", ttl=99999), now=0.0)
    assert read(ask(proxy, "long.example.org", now=0.0).data)[1][0].ttl <= 60
    assert ask(proxy, "long.example.org", now=61.0) is None


def test_servfail_is_kept_for_two_seconds_and_another_server_is_tried_first():
    proxy = core(upstream=(("192.0.2.1", 53), ("192.0.2.2", 53)))
    ask(proxy)
    assert answered(proxy, rcode=2, now=0.0) == []
    (down,) = answered(proxy, rcode=2, now=0.1)
    assert read_header(down.data).flags & 0xF == Rcode.SERVFAIL
    assert ask(proxy, now=1.0) is not None
    assert ask(proxy, now=3.0) is None


def test_stale_answers_when_the_upstream_is_cut():
    proxy = core(stale_s=3600)
    ask(proxy)
    answered(proxy, record(1, b"\1\2\3\4", ttl=10), now=0.0)
    proxy.events()
    assert ask(proxy, now=100.0, edns=(1232, 0, b"")) is None
    now = 100.0
    while not (down := proxy.replies()):
        now = proxy.next_timer()
        proxy.handle_timer(now)
    assert 101.7 <= now <= 101.9  # RFC 8767 5: 1.8 seconds
    assert answers(down[0].data)[1] == [b"\1\2\3\4"]
    assert read(down[0].data)[1][0].ttl == STALE_TTL_S
    assert down[0].data.endswith(b"\0\x0f\0\2\0\3")  # RFC 8914 4.4: Stale Answer
    assert proxy.events()[0].cached is True
    # The next one does not wait: the question is on its way, and known to be slow.
    assert ask(proxy, now=102.0) is not None
    # When the upstream is back, its answer counts.
    sent = proxy.asks()[-1]
    proxy.receive_reply(reply(sent.data, [record(1, b"\5\6\7\x08")]), sent.server, sent.channel, 102.5)
    assert answers(ask(proxy, now=103.0).data)[1] == [b"\5\6\7\x08"]


def test_stale_answers_end_too_and_can_be_switched_off():
    for stale_s, now in ((0, 100.0), (60, 200.0)):
        proxy = core(stale_s=stale_s)
        ask(proxy)
        answered(proxy, record(1, b"\1\2\3\4", ttl=10), now=0.0)
        ask(proxy, now=now)
        while proxy.next_timer() is not None:
            proxy.handle_timer(proxy.next_timer())
            proxy.asks()
        assert read_header(proxy.replies()[0].data).flags & 0xF == Rcode.SERVFAIL


def test_a_failure_to_refresh_is_no_reason_to_forget():
    proxy = core()
    ask(proxy)
    answered(proxy, record(1, b"\1\2\3\4", ttl=10), now=0.0)
    ask(proxy, now=100.0)
    (down,) = answered(proxy, rcode=2, now=100.1)
    assert answers(down.data)[1] == [b"\1\2\3\4"]


def test_what_is_in_flight_is_bounded():
    proxy = core()
    for n in range(MAX_FLIGHTS + 50):
        ask(proxy, f"n{n}.example.org")
    assert len(proxy.pending) == MAX_FLIGHTS
    assert proxy.counters["overload"] == 50
    for n in range(100):
        ask(proxy, "n1.example.org", peer=Peer(bytes((10, 0, 0, n)), False, None))
    assert proxy.counters["overload"] > 50
    while (due := proxy.next_timer()) is not None:
        proxy.handle_timer(due)
        proxy.asks()
    assert len(proxy.pending) == 0
    assert len(proxy.replies()) == MAX_FLIGHTS + 63
    assert len(proxy.events()) == MAX_FLIGHTS + 50 + 100


def test_the_rate_limit_folds_a_flood_into_one_record():
    proxy = core(rate=10, policy=None)
    answered_at_once = [ask(proxy, "localhost", now=0.0) for _ in range(100)]
    assert sum(down is not None for down in answered_at_once) == 40  # four seconds' worth
    assert ask(proxy, "localhost", peer=OTHER, now=0.0) is not None
    assert sum(isinstance(event, Dns) for event in proxy.events()) == 41
    proxy.fold(20.0)
    (flood,) = proxy.events()
    assert isinstance(flood, Flood)
    assert (flood.client, flood.events, flood.sample) == (CLIENT.address, 60, ("localhost",))
    assert ask(proxy, "localhost", now=30.0) is not None


def test_queries_that_are_none_get_what_they_deserve():
    proxy = core()
    assert proxy.receive_query(b"", CLIENT, 0.0) is None
    assert proxy.receive_query(b"\0" * 11, CLIENT, 0.0) is None
    assert proxy.receive_query(reply(query("a"), [A4]), CLIENT, 0.0) is None  # an answer is never answered
    assert proxy.receive_query(b"\0\1\1\0" + bytes(8), CLIENT, 0.0).data[3] & 0xF == Rcode.FORMERR
    notify = b"\0\1\x20\0" + query("a")[4:]
    assert proxy.receive_query(notify, CLIENT, 0.0).data[:4] == b"\0\1\xa0\x84"
    assert proxy.counters["malformed"] == 5
    assert proxy.events() == []


def test_a_verdict_holds_no_longer_than_the_policy_says():
    proxy = core()
    proxy._decider.until = 1_700_000_100.0  # wall time; the core's clock is at 0
    ask(proxy)
    (down,) = answered(proxy, record(1, b"\1\2\3\4", ttl=1000), now=0.0)
    assert down.hot is None  # asked once: most questions are never asked again
    down = ask(proxy)
    assert down.hot.valid_until == pytest.approx(100.0)
    assert down.hot.expires == 1000


def test_what_must_not_be_shared_is_not_offered_to_the_hot_cache():
    proxy = core({"block": {"evil.example": ["list:evil"]}})
    for options in ({}, {"edns": (1232, 0, b"")}, {"peer": TCP}, {"edns": (1232, 0, b"\0\x0a\0\x08abcdefgh")}):
        assert ask(proxy, "x.evil.example", **options).hot is None
    ask(proxy, "X.evil.example")
    assert ask(proxy, "x.evil.example").hot is not None
    assert ask(proxy, "X.evil.example").hot is None
    assert ask(proxy, "x.evil.example", peer=TCP).hot is None
    assert ask(proxy, "x.evil.example", edns=(1232, 0, b"\0\x0a\0\x08abcdefgh")).hot is None
    assert ask(proxy, "x.evil.example", edns=(1232, 0, b"")).hot is not None


def test_behind_dnsmasq_the_client_is_whom_dnsmasq_tells():
    loopback = Peer(b"\x7f\0\0\1", False, None)
    mac = struct.pack("!HH", 65001, 6) + b"\2\0\0\0\0\5"
    subnet = struct.pack("!HHHBB", 8, 8, 1, 32, 0) + b"\x0a\x14\0\x63"
    policy = {"block": {"evil.example": ["list:evil"]}, "groups": [{"group": "pupils"}, {"group": "staff"}],
              "free": [1], "macs": {"02:00:00:00:00:05": 1}}  # fmt: skip
    proxy = core(policy, behind_dnsmasq=True)
    assert ask(proxy, "x.evil.example", peer=loopback, edns=(1232, 0, subnet)).data[3] & 0xF == 3
    assert ask(proxy, "x.evil.example", peer=loopback, edns=(1232, 0, subnet + mac)) is None
    (event,) = proxy.events()
    assert event.client == b"\x0a\x14\0\x63"
    # Nobody else is believed.
    assert ask(proxy, "x.evil.example", edns=(1232, 0, subnet + mac)).data[3] & 0xF == 3
    assert proxy.events()[0].client == CLIENT.address
    # Upstream sees nothing of it.
    assert subnet not in proxy.asks()[0].data


def test_local_names_go_to_the_local_server_and_nowhere_else():
    proxy = core(local_server=(("192.0.2.9", 53),))
    for name, qtype in (("printer.lan", 1), ("5.0.20.10.in-addr.arpa", 12), ("nas", 1), ("x.home.arpa", 28),
                        ("1.0.0.0.d.f.ip6.arpa", 12)):  # fmt: skip
        assert ask(proxy, name, qtype) is None
        assert proxy.asks()[0].server == 1, name
    for name, qtype in (("www.example.org", 1), ("8.8.8.8.in-addr.arpa", 12), ("org", 43), ("", 2)):
        assert ask(proxy, name, qtype) is None
        assert proxy.asks()[0].server == 0, name
    # dnsmasq's own questions do not go back to dnsmasq.
    assert ask(proxy, "printer.lan", peer=Peer(b"\x7f\0\0\1", False, None)).data[3] & 0xF == 3


def test_local_names_may_have_inside_addresses_outside_names_may_not():
    proxy = core(local_server=(("192.0.2.9", 53),), rebind_domain=("plex.direct",))
    inside = record(1, bytes((192, 168, 1, 5)))
    for name, passes in (("printer.lan", True), ("a.plex.direct", True), ("evil.example", False)):
        ask(proxy, name)
        (down,) = answered(proxy, inside)
        assert answers(down.data) == ((0, [bytes((192, 168, 1, 5))]) if passes else (3, [])), name
        event = proxy.events()[-1]
        assert (event.verdict, event.reason) == ((0, 0) if passes else (Verdict.BLOCK, Reason.REBIND))


@pytest.mark.parametrize(
    ("name", "qtype", "rcode", "data"),
    [
        ("localhost", 1, 0, [b"\x7f\0\0\1"]),
        ("a.b.localhost", 28, 0, [bytes(15) + b"\1"]),
        ("localhost", 15, 0, []),
        ("x.invalid", 1, 3, []),
        ("x.test", 1, 3, []),
        ("abcdefghij.onion", 1, 3, []),
        ("x.alt", 1, 3, []),
        ("printer.local", 1, 3, []),
        ("printer.lan", 1, 3, []),
        ("nas", 1, 3, []),
        ("_dns.resolver.arpa", 64, 0, []),
        ("5.1.168.192.in-addr.arpa", 12, 3, []),
        ("1.0.0.127.in-addr.arpa", 12, 3, []),
        ("b.a.8.e.f.ip6.arpa", 12, 3, []),
        ("home.arpa", 6, 3, []),
    ],
)
def test_special_names_never_leave(name, qtype, rcode, data):
    proxy = core()
    down = ask(proxy, name, qtype)
    assert answers(down.data) == (rcode, data)
    assert proxy.asks() == []
    assert proxy.events()[0].reason == Reason.SPECIAL_USE


def test_example_is_not_special_and_172_32_is_not_private():
    proxy = core()
    for name in ("www.example", "1.0.32.172.in-addr.arpa", "1.128.100.in-addr.arpa", "localhost.example.org"):
        assert ask(proxy, name, 12 if name.endswith("arpa") else 1) is None


def test_bypass_signals_are_nxdomain_whatever_the_group_says():
    proxy = core({"block": {"use-application-dns.net": ["bypass:canary", "BYPASS"]},
                  "groups": [{"group": "all", "on_block": "null"}]})  # fmt: skip
    assert answers(ask(proxy, "use-application-dns.net").data) == (3, [])


@given(st.floats(1.0, 1e6), st.floats(0, 1e6))
def test_a_stamped_ttl_is_never_longer_than_the_truth(left, now):
    ttl, until = stamped(int(now + left), now)
    assert until > now
    assert ttl <= max(0, int(now + left) - now)
    # ... for as long as it may be told.
    assert ttl + until <= max(int(now + left), until)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["query", "reply", "mutated", "timer"]), st.binary(max_size=200),
                          st.integers(0, 255)), max_size=30))  # fmt: skip
def test_whatever_comes_the_core_raises_nothing_and_ends_empty(steps):
    proxy = core({"block": {"evil": ["list:evil"]}})
    now, sent = 0.0, []
    for kind, data, number in steps:
        now += number / 100
        if kind == "query":
            proxy.receive_query(data, TCP if number & 1 else CLIENT, now)
        elif kind == "reply" and sent:
            target = sent[number % len(sent)]
            proxy.receive_reply(target.data[:2] + data, target.server, target.channel, now)
        elif kind == "mutated":
            base = bytearray(query("www.example.org", number, edns=(1232, 0, b"")))
            for at, value in enumerate(data[:6]):
                base[(value * 7 + at) % len(base)] ^= value
            proxy.receive_query(bytes(base), CLIENT, now)
        else:
            proxy.handle_timer(now)
        sent += proxy.asks()
    while (due := proxy.next_timer()) is not None:
        proxy.handle_timer(due)
        proxy.asks()
    assert len(proxy.pending) == 0
    proxy.replies()
    proxy.events()
