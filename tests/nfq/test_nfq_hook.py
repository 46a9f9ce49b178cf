"""The packet hook's core: one record per flow, the first verdict wins, and nothing a peer sends stops it."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from nfq.flow import NEAR, PENDING_S
from nfq.fold import Row, fold
from nfq.hook import Hook, Now
from nfq.mark import Mark
from nfq.packet import ACK, PSH, RST, SYN
from policy.event import Blind, Flow, Seen
from policy.frame import flows_of
from policy.verdict import ALLOWED, FOREVER, Decision, Reason, Treatment, Verdict
from tests.nfq.test_nfq_parsers import HELLO, REQUEST, client_hello

MAC = b"\2\0\0\0\0\1"
NAMELESS = client_hello(None)
BLOCKED = Decision(Verdict.BLOCK, Reason.CATEGORY, "list:ads")


class Rules:
    """Blocks what it is told to, by name and by address."""

    def __init__(self, *names: bytes, addresses: tuple[bytes, ...] = (), fail: str = "open") -> None:
        self.generation = 1
        self.names, self.addresses, self.fail = names, addresses, fail

    def group_of(self, client: bytes, mac: bytes = b"") -> int:
        return 0

    def decide(self, name: bytes, group: int, now_s: float | None) -> Decision:
        return BLOCKED if name in self.names else ALLOWED

    def decide_url(self, host: bytes, path: bytes, group: int, now_s: float | None) -> Decision:
        return BLOCKED if host + path in self.names else self.decide(host, group, now_s)

    def decide_address(self, address: bytes, group: int, now_s: float | None) -> Decision:
        return BLOCKED._replace(reason=Reason.ADDRESS) if address in self.addresses else ALLOWED

    def valid_until(self, group: int, now_s: float | None) -> float:
        return FOREVER

    def treatment(self, group: int) -> Treatment:
        return Treatment("home", fail=self.fail)


def segment(payload: bytes, seq: int = 1, flags: int = PSH | ACK, sport: int = 40000) -> bytes:
    tcp = struct.pack("!HHIIBBHHH", sport, 443, seq, 9, 5 << 4, flags, 0, 0, 0) + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0)
    return head + bytes((10, 0, 0, 2, 192, 0, 2, 1)) + tcp


def at(seconds: float) -> Now:
    return Now(seconds, int(seconds * 1000), 1_800_000_000 + seconds)


class Desk:
    def __init__(self, *names: bytes, has_pages: bool = False, **options: object) -> None:
        self.records: list[Flow] = []
        rules = Rules(*names, **options)  # type: ignore[arg-type]
        self.hook = Hook(rules, self.records.append, has_pages=has_pages)

    def receive(self, data: bytes, seconds: float = 0.0) -> int:
        return self.hook.receive(data, MAC, at(seconds))


def test_a_blocked_name_is_marked_recorded_once_and_its_server_is_reset() -> None:
    desk = Desk(b"www.example.org")
    assert desk.receive(segment(HELLO)) == Mark.BLOCK
    assert desk.receive(segment(HELLO)) == Mark.BLOCK  # retransmitted before the mark was in the kernel
    (record,) = desk.records
    assert (record.name, record.seen, record.verdict, record.rule) == ("www.example.org", Seen.TLS, 1, "list:ads")
    assert (record.client, record.mac, record.dport, record.group) == (b"\x0a\0\0\2", MAC, 443, "home")
    assert len(desk.hook.resets) == 1


def test_the_first_verdict_wins_whatever_comes_behind_it() -> None:
    desk = Desk()
    assert desk.receive(segment(HELLO)) == Mark.ALLOW
    desk.hook.reload(Rules(b"www.example.org"))
    assert desk.receive(segment(HELLO, seq=5000)) == Mark.ALLOW
    assert len(desk.records) == 1
    # The same ports with numbers from elsewhere are a new connection, though its SYN never comes up.
    assert desk.receive(segment(HELLO, seq=5_000_000)) == Mark.BLOCK
    assert len(desk.records) == 2


def test_the_same_ports_again_are_a_new_flow() -> None:
    desk = Desk(b"www.example.org")
    desk.receive(segment(HELLO))
    assert desk.receive(segment(b"", flags=SYN)) == Mark.UNDECIDED
    desk.hook.reload(Rules())
    assert desk.receive(segment(HELLO)) == Mark.ALLOW
    assert [record.verdict for record in desk.records] == [1, 0]


def test_a_request_is_decided_by_its_path_and_recorded_without_its_query() -> None:
    desk = Desk(b"www.example.org/a/b")
    assert desk.receive(segment(REQUEST)) == Mark.BLOCK
    (record,) = desk.records
    assert (record.method, record.name, record.path) == ("GET", "www.example.org", "/a/b")


def test_a_path_written_otherwise_is_the_same_path_and_stands_on_record_as_it_was_sent() -> None:
    for path in (b"/%61/b", b"//a/b", b"/x/../a/b"):
        desk = Desk(b"www.example.org/a/b")
        assert desk.receive(segment(REQUEST.replace(b"/a/b", path))) == Mark.BLOCK
        assert desk.records[0].path == path.decode()


def test_a_head_longer_than_what_is_waited_for_is_decided_by_the_groups_failure_rule() -> None:
    for start in (b"GET /a HTTP/1.1\r\nX: ", b"GET /"):
        head = start + b"x" * 17_000
        for fail, mark in (("open", Mark.ALLOW), ("closed", Mark.BLOCK)):
            desk = Desk(b"www.example.org", fail=fail)
            marks = [desk.receive(segment(head[at : at + 3000], seq=1 + at)) for at in range(0, len(head), 3000)]
            assert marks == [Mark.UNDECIDED] * 5 + [mark]
            assert desk.records[0].blind == Blind.OVERLOAD


def test_an_address_is_decided_where_the_name_says_nothing() -> None:
    desk = Desk(addresses=(bytes((192, 0, 2, 1)),))
    assert desk.receive(segment(HELLO)) == Mark.BLOCK
    assert desk.records[0].reason == Reason.ADDRESS


def test_a_flow_that_falls_silent_is_on_record_as_cut() -> None:
    desk = Desk()
    assert desk.receive(segment(HELLO[:50])) == Mark.UNDECIDED
    desk.hook.handle_timer(at(60))
    (record,) = desk.records
    assert (record.name, record.blind) == ("", Blind.TRUNCATED)


def test_the_rest_of_a_hello_that_comes_after_the_patience_gets_what_the_policy_says() -> None:
    for fail, mark in (("open", Mark.ALLOW), ("closed", Mark.BLOCK)):
        desk = Desk(b"www.example.org", fail=fail)
        desk.receive(segment(HELLO[:50]))
        desk.hook.handle_timer(at(PENDING_S + 1))
        assert desk.receive(segment(HELLO[50:], seq=51), PENDING_S + 60) == mark
        assert len(desk.records) == 1


def test_a_flow_left_half_open_is_no_pass_for_all_that_come_with_its_ports() -> None:
    """UDP has no numbers to tell them apart by, and whoever builds his own segments takes the same ones again."""
    desk = Desk(b"www.example.org")
    desk.receive(segment(HELLO[:50]))
    desk.hook.handle_timer(at(PENDING_S + 1))
    for part in (50, 51):  # the second is queued before the first one's mark is in the kernel
        assert desk.receive(segment(HELLO[part:], seq=part + 1), PENDING_S + 60) == Mark.ALLOW
    for later in (120, 130):
        desk.hook.handle_timer(at(PENDING_S + later))
    assert desk.receive(segment(HELLO), PENDING_S + 150) == Mark.BLOCK
    assert [record.name for record in desk.records] == ["", "www.example.org"]


def test_a_hello_in_two_is_decided_alike_whether_its_like_was_seen_before_or_not() -> None:
    """Once a decision is remembered, the second of two segments takes the short way, which must come to the same."""
    for mac in (MAC, b""):
        rows: list[Row] = []
        seen: list[Flow] = []
        hook = Hook(Rules(), seen.append, rows.append)
        assert hook.receive(segment(HELLO), MAC, at(0)) == Mark.ALLOW
        (first,) = seen
        for cut in range(1, len(HELLO)):
            port = 41_000 + cut
            assert hook.receive(segment(HELLO[:cut], sport=port), MAC, at(1)) == Mark.UNDECIDED, cut
            assert hook.receive(segment(HELLO[cut:], seq=1 + cut, sport=port), mac, at(2)) == Mark.ALLOW, cut
            (row,) = rows
            assert flows_of(fold([row]))[0] == first._replace(at_ms=2000, sport=port), cut
            assert hook.receive(segment(HELLO[cut:], seq=1 + cut, sport=port), mac, at(2)) == Mark.ALLOW, cut
            assert hook.counters["pending"] == hook.counters["pending_bytes"] == 0
            rows.clear()
        assert seen == [first]


def test_an_octet_in_front_of_the_stream_does_not_hide_the_hello() -> None:
    desk = Desk(b"www.example.org")
    assert desk.receive(segment(HELLO[:100], seq=100)) == Mark.UNDECIDED
    assert desk.receive(segment(b"\0", seq=99)) == Mark.UNDECIDED  # a keep-alive probe, or a forgery
    assert desk.receive(segment(HELLO[100:], seq=200)) == Mark.BLOCK


def test_a_blocked_request_is_answered_with_a_page_where_pages_are_on() -> None:
    desk = Desk(b"www.example.org", has_pages=True)
    assert desk.receive(segment(REQUEST)) == Mark.PAGE
    (reset,) = desk.hook.resets
    assert (reset.page, reset.host) == (BLOCKED, "www.example.org")
    assert desk.receive(segment(HELLO, sport=40001)) == Mark.BLOCK  # no page inside TLS, ever
    assert desk.hook.resets[1].page is None


def test_decisions_are_remembered_until_the_policy_changes_or_the_hour_does() -> None:
    desk = Desk()
    asked = []
    rules = desk.hook.decider
    decide = rules.decide
    rules.decide = lambda *words: (asked.append(words), decide(*words))[1]  # type: ignore[method-assign, func-returns-value]
    rules.valid_until = lambda group, now_s: 1_800_000_010.0  # type: ignore[method-assign]
    for number in range(5):
        assert desk.receive(segment(HELLO, sport=number + 1)) == Mark.ALLOW
    assert len(asked) == 1
    desk.receive(segment(HELLO, sport=9), 11.0)
    assert len(asked) == 2
    desk.hook.reload(Rules(b"www.example.org"))
    assert desk.receive(segment(HELLO, sport=10), 11.0) == Mark.BLOCK


def test_a_syn_comes_up_for_a_listed_address_only_and_is_decided_by_it() -> None:
    desk = Desk(addresses=(bytes((192, 0, 2, 1)),))
    assert desk.receive(segment(b"", flags=SYN)) == Mark.BLOCK
    assert (desk.records[0].reason, desk.records[0].name) == (Reason.ADDRESS, "")


def test_a_syn_in_the_midst_of_a_hello_does_not_hide_it() -> None:
    for fail, mark in (("open", Mark.ALLOW), ("closed", Mark.BLOCK)):
        desk = Desk(b"www.example.org", fail=fail)
        desk.receive(segment(HELLO[:100], seq=100))
        desk.receive(segment(b"", seq=7_000_000, flags=SYN))
        assert desk.receive(segment(HELLO[100:], seq=200)) == mark
        assert [record.blind for record in desk.records] == [Blind.TRUNCATED]
    desk = Desk(b"www.example.org")
    desk.receive(segment(HELLO[:100], seq=100, flags=SYN))  # TCP Fast Open
    desk.receive(segment(b"", seq=100, flags=SYN))  # and once more without
    assert desk.receive(segment(HELLO[100:], seq=201)) == Mark.BLOCK
    assert len(desk.records) == 1


def test_each_flow_without_a_name_is_counted_as_such() -> None:
    desk = Desk()
    for sport in (40000, 40001, 40002):
        assert desk.receive(segment(NAMELESS, sport=sport)) == Mark.ALLOW
    assert [record.blind for record in desk.records] == [Blind.NO_SNI] * 3
    assert desk.hook.counters["no_name"] == 3


def test_records_made_without_their_constructor_have_all_fields() -> None:
    desk = Desk()
    for sport in (40000, 40001):  # the second on the shortest way
        desk.receive(segment(HELLO, sport=sport))
    desk.receive(segment(REQUEST, sport=40002))
    assert [len(record) for record in desk.records] == [len(Flow._fields)] * 3
    assert desk.records[1] == desk.records[0]._replace(sport=40001)


def test_a_flow_like_another_is_handed_over_as_a_row_that_says_the_same() -> None:
    records: list[Flow] = []
    rows: list[Row] = []
    hook = Hook(Rules(b"www.example.org/bad"), records.append, rows.append)
    other = REQUEST.replace(b" /", b" /other/", 1)
    packets = [HELLO, HELLO, REQUEST, REQUEST, other, NAMELESS, NAMELESS, HELLO]
    for at_s, payload in enumerate(packets):
        assert hook.receive(segment(payload, sport=40000 + at_s), MAC, at(at_s)) == Mark.ALLOW
    alone = Desk(b"www.example.org/bad")  # never gets to know what it has seen
    for at_s, payload in enumerate(packets):
        alone.hook.forget_decisions()
        alone.hook.receive(segment(payload, sport=40000 + at_s), MAC, at(at_s))
    assert [row[2] for row in rows] == [40001, 40003, 40007]
    assert sorted([*records, *flows_of(fold(rows))]) == alone.records
    assert hook.counters["flows"] == len(packets)


def test_a_hello_in_two_segments_is_a_row_too_the_second_time() -> None:
    records: list[Flow] = []
    rows: list[Row] = []
    hook = Hook(Rules(), records.append, rows.append)
    for sport in (40000, 40001):
        assert hook.receive(segment(HELLO[:60], seq=7, sport=sport), MAC, at(1)) == Mark.UNDECIDED
        assert hook.counters["pending"] == 1
        assert hook.receive(segment(HELLO[60:], seq=67, sport=sport), MAC, at(1)) == Mark.ALLOW
        assert (hook.counters["pending"], hook.counters["pending_bytes"]) == (0, 0)
    assert flows_of(fold(rows)) == [records[0]._replace(sport=40001)]


def test_a_reload_or_another_hour_forgets_what_was_allowed() -> None:
    for payload, name in ((HELLO, b"www.example.org"), (REQUEST, b"www.example.org/a")):
        records: list[Flow] = []
        rows: list[Row] = []
        hook = Hook(Rules(), records.append, rows.append)
        for sport in (40000, 40001):
            hook.receive(segment(payload, sport=sport), MAC, at(0))
        assert len(hook._templates) == 1
        blocks = Rules(*{record.name.encode() + record.path.encode() for record in records}, name)
        hook.reload(blocks)
        assert hook.receive(segment(payload, sport=40002), MAC, at(1)) == Mark.BLOCK
        assert (len(rows), records[-1].verdict) == (1, Verdict.BLOCK)


def test_a_flow_in_crumbs_is_decided_by_the_groups_failure_rule() -> None:
    for fail, mark in (("open", Mark.ALLOW), ("closed", Mark.BLOCK)):
        desk = Desk(fail=fail)
        marks = [desk.receive(segment(HELLO[n : n + 1], seq=1 + n)) for n in range(12)]
        assert marks == [Mark.UNDECIDED] * 11 + [mark]
        assert desk.records[0].blind == Blind.OVERLOAD


def test_neither_an_empty_nor_a_reset_segment_says_anything() -> None:
    desk = Desk()
    assert desk.receive(segment(b"", flags=ACK)) == Mark.UNDECIDED
    assert desk.receive(segment(b"", flags=RST)) == Mark.UNDECIDED
    assert desk.records == []


@given(st.lists(st.tuples(st.binary(max_size=60), st.integers(0, 2**32 - 1), st.integers(0, 255)), max_size=20))
def test_nothing_a_peer_sends_raises_and_a_flow_has_at_most_one_record(parts: list[tuple[bytes, int, int]]) -> None:
    desk = Desk(b"www.example.org")
    for number, (payload, seq, flags) in enumerate(parts):
        seq %= NEAR
        desk.receive(segment(payload, seq, flags & ~SYN), number * 0.01)
        desk.hook.receive(payload, b"", at(number * 0.01))
    desk.hook.handle_timer(at(100))
    assert len([record for record in desk.records if record.sport == 40000]) <= 1
