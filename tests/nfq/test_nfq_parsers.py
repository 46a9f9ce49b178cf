"""The packet hook's parsers: real hellos and requests, cut, split, shuffled and mangled."""

import itertools
import ssl
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq import http, tls, udp
from nfq.flow import MAX_DECIDED, MAX_HELD, MAX_OCTETS, MAX_PARTS, MAX_PENDING, NEAR, PENDING_S, Flows, Pending, Stream
from nfq.hook import look
from nfq.packet import ACK, PSH, TCP, UDP, ends_of, parse
from nfq.page import MAX_ANSWER, Pages
from nfq.reset import answer_segment, reset_segment
from policy.errors import PacketError
from policy.event import Blind, Seen
from policy.verdict import Decision, Reason, Verdict


def client_hello(name: str | None = "www.example.org") -> bytes:
    """What OpenSSL really sends first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    secure = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        secure.do_handshake()
    return outgoing.read()


def padded(hello: bytes, octets: int) -> bytes:
    """A hello as large as a post-quantum one: the key share's octets, in an extension of their own."""
    body = bytearray(hello[9:])
    at = 34
    for width in (1, 2, 1):
        at += width + int.from_bytes(body[at : at + width], "big")
    extensions = int.from_bytes(body[at : at + 2], "big")
    share = struct.pack("!HH", 0xFAFA, octets) + bytes(octets)
    body[at : at + 2] = struct.pack("!H", extensions + len(share))
    body[at + 2 : at + 2] = share  # in front, so that the name comes late
    handshake = b"\1" + len(body).to_bytes(3, "big") + bytes(body)
    return b"\x16\3\1" + struct.pack("!H", len(handshake)) + handshake


HELLO = client_hello()
LARGE = padded(HELLO, 1200)
REQUEST = b"GET /a/b?secret=1#frag HTTP/1.1\r\nAccept: */*\r\nHost: WWW.Example.org:8080\r\n\r\nbody"


def test_the_name_in_a_real_hello() -> None:
    assert tls.parse(HELLO) == tls.Hello(b"www.example.org", False)
    assert tls.parse(LARGE) == tls.Hello(b"www.example.org", False)
    assert tls.parse(client_hello(None)) == tls.Hello(b"", False)
    assert tls.parse(HELLO[:9] + HELLO, 9) == tls.Hello(b"www.example.org", False)


@pytest.mark.parametrize("hello", [HELLO, LARGE], ids=["plain", "large"])
def test_every_shorter_hello_wants_more(hello: bytes) -> None:
    for length in range(len(hello)):
        assert tls.parse(hello[:length]) == tls.NEED_MORE


@pytest.mark.parametrize("size", [1, 7, 100, 512])
def test_a_hello_over_several_records(size: int) -> None:
    body = HELLO[5:]
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    if len(parts) > tls.MAX_RECORDS:
        parts = [*parts[: tls.MAX_RECORDS - 1], b"".join(parts[tls.MAX_RECORDS - 1 :])]
    data = b"".join(b"\x16\3\1" + struct.pack("!H", len(part)) + part for part in parts)
    assert tls.parse(data) == tls.Hello(b"www.example.org", False)
    for length in range(0, len(data), 13):
        assert tls.parse(data[:length]) == tls.NEED_MORE


def records_of(handshake: bytes, size: int) -> bytes:
    parts = [handshake[at : at + size] for at in range(0, len(handshake), size)]
    return b"".join(b"\x16\3\1" + struct.pack("!H", len(part)) + part for part in parts)


EMPTY = b"\x16\3\1\0\0"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (EMPTY + HELLO, b"www.example.org"),
        (records_of(HELLO[5:9], 4) + EMPTY + records_of(HELLO[9:], 2000), b"www.example.org"),
        (records_of(HELLO[5:], 1), b"www.example.org"),
        (records_of(padded(HELLO, 1200)[5:], 1), b""),
        (records_of(padded(HELLO, 17_000)[5:], 16_000), b""),
        (EMPTY * (tls.MAX_RECORDS + 1) + HELLO, b""),
    ],
    ids=["empty first", "empty between", "one octet each", "large, one octet each", "17 kB", "many empty"],
)
def test_what_a_server_reads_is_read_or_cannot_be_decided_but_is_never_taken_for_no_tls(
    data: bytes, name: bytes
) -> None:
    found = tls.parse(data)
    assert found == (tls.Hello(name, False) if name else tls.TOO_LONG)
    stream = Stream(1)
    stream.add(1, data[:MAX_OCTETS])
    sight = look(stream)
    assert sight is not None
    assert (sight.name, sight.blind) == ((name, Blind.NOT_BLIND) if name else (b"", Blind.OVERLOAD))


@pytest.mark.parametrize("hello", [HELLO, LARGE], ids=["plain", "large"])
def test_split_in_two_at_every_octet_in_both_orders(hello: bytes) -> None:
    for cut in range(1, len(hello)):
        for order in ((0, 1), (1, 0)):
            pieces = ((1000, hello[:cut]), (1000 + cut, hello[cut:]))
            stream = Stream(pieces[order[0]][0])
            for place in order:
                stream.add(*pieces[place])
            sight = look(stream)
            assert sight is not None
            assert sight.name == b"www.example.org", (cut, order)


def test_three_segments_in_all_orders_with_a_retransmission() -> None:
    for first, second in itertools.combinations(range(40, len(LARGE), 97), 2):
        pieces = [(0xFFFFFFF0, LARGE[:first]), (first, LARGE[first:second]), (second, LARGE[second:])]
        pieces = [
            ((0xFFFFFFF0 + offset) & 0xFFFFFFFF if at else offset, part) for at, (offset, part) in enumerate(pieces)
        ]
        for order in itertools.permutations(range(3)):
            stream = Stream(pieces[order[0]][0])
            for place in (*order[:2], order[0], order[2]):
                stream.add(*pieces[place])
            sight = look(stream)
            assert sight is not None
            assert (sight.name, sight.seen) == (b"www.example.org", Seen.TLS)


def test_overlapping_segments_that_disagree_are_ambiguous() -> None:
    stream = Stream(0)
    stream.add(0, HELLO[:200])
    stream.add(100, b"X" * 50 + HELLO[150:])
    sight = look(stream)
    assert sight is not None
    assert sight.blind == Blind.AMBIGUOUS


def test_overlapping_segments_that_agree_are_one() -> None:
    stream = Stream(0)
    stream.add(0, HELLO[:200])
    stream.add(100, HELLO[100:])
    sight = look(stream)
    assert sight is not None
    assert sight.name == b"www.example.org"


@pytest.mark.parametrize(
    ("data", "host", "path", "method"),
    [
        (REQUEST, b"www.example.org", "/a/b", "GET"),
        (b"GET http://other.example/x?y HTTP/1.1\r\nHost: www.example.org\r\n\r\n", b"other.example", "/x", "GET"),
        (b"CONNECT a.example:443 HTTP/1.1\r\nHost: b.example\r\n\r\n", b"a.example", "", "CONNECT"),
        (b"GET / HTTP/1.0\r\n\r\n", b"", "/", "GET"),
        (b"OPTIONS * HTTP/1.1\r\nhost:a.example.\r\n\r\n", b"a.example", "*", "OPTIONS"),
        (b"GET / HTTP/1.1\nHost: [2001:db8::1]:80\n\n", b"2001:db8::1", "/", "GET"),
        (b"GET http://u:p@a.example/ HTTP/1.1\r\n\r\n", b"a.example", "/", "GET"),
    ],
)
def test_requests(data: bytes, host: bytes, path: str, method: str) -> None:
    assert http.parse(data) == http.Request(method, host, path)


@pytest.mark.parametrize(
    "line",
    [
        b"\r\n\r\nGET /a HTTP/1.1",  # RFC 9112 2.2
        b"\nGET /a HTTP/1.1",
        b"GET /a HTTP/1.1 ",  # RFC 9112 3, and so on
        b"GET\t/a\tHTTP/1.1",
        b" GET  /a \x0b HTTP/1.1",
    ],
)
def test_a_request_line_that_lenient_servers_take_is_a_request_from_its_first_octet_on(line: bytes) -> None:
    data = line + b"\r\nHost: example.org\r\n\r\n"
    assert http.parse(data) == http.Request("GET", b"example.org", "/a")
    for length in range(1, data.index(b"example.org") + 11):
        assert http.parse(data[:length]) == http.NEED_MORE, data[:length]


@pytest.mark.parametrize(
    ("path", "resolved"),
    [
        ("/a/b", "/a/b"),
        ("/%61/%7e%2F%zz%6", "/a/~%2F%zz%6"),
        ("//a///b//", "/a/b/"),
        ("/x/../a/./b/.", "/a/b/"),
        ("/../../a", "/a"),
        ("/%2e%2e/a", "/a"),
        ("/.well-known/x", "/.well-known/x"),
        ("/", "/"),
        ("", ""),
        ("*", "*"),
    ],
)
def test_the_path_that_a_server_looks_up(path: str, resolved: str) -> None:
    assert http.resolve(path) == resolved


@given(st.text(alphabet="/.%2eEfF4a\xb2\u0664"))
def test_any_path_is_resolved_and_grows_by_no_more_than_its_slash(path: str) -> None:
    assert len(http.resolve(path)) <= len(path) + 1


def test_two_hosts_that_disagree_are_ambiguous_and_two_that_agree_are_not() -> None:
    for second, blind in ((b"b.example", Blind.AMBIGUOUS), (b"a.example", Blind.NOT_BLIND)):
        stream = Stream(0)
        stream.add(0, b"GET / HTTP/1.1\r\nHost: a.example\r\nX: y\r\nHOST : " + second + b"\r\n\r\n")
        sight = look(stream)
        assert sight is not None
        assert sight.blind == blind
    body = http.parse(b"POST / HTTP/1.1\r\nHost: a.example\r\n\r\nHost: b.example\r\n")
    assert body == http.Request("POST", b"a.example", "/")


def test_every_shorter_request_wants_more_and_never_shows_the_query() -> None:
    for length in range(1, REQUEST.index(b"Host") + 5):
        assert http.parse(REQUEST[:length]) == http.NEED_MORE, length
    found = http.parse(REQUEST)
    assert isinstance(found, http.Request)
    assert "secret" not in found.path


@pytest.mark.parametrize("data", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x00\x01", b"EHLO a.example\r\n", b"\x16\x03", b""])
def test_what_is_no_request(data: bytes) -> None:
    assert http.parse(data) in (None, http.NEED_MORE)
    assert not isinstance(http.parse(data + b"\r\n\r\n"), http.Request)


@given(st.binary(max_size=400), st.integers(0, 400))
def test_any_octets_are_answered_by_each_parser(data: bytes, at: int) -> None:
    for seed in (b"", HELLO[:at], REQUEST[:at]):
        for parser in (tls.parse, http.parse):
            parser(seed + data)
        stream = Stream(5)
        stream.add(5, seed)
        stream.add(5 + len(seed), data)
        look(stream)


@given(st.data())
def test_a_hello_with_changed_octets_never_raises(data: st.DataObject) -> None:
    hello = bytearray(HELLO)
    for _ in range(data.draw(st.integers(1, 6))):
        hello[data.draw(st.integers(0, len(hello) - 1))] = data.draw(st.integers(0, 255))
    tls.parse(bytes(hello))


def ipv4(payload: bytes, protocol: int = TCP, fragment: int = 0) -> bytes:
    if protocol == TCP:
        payload = struct.pack("!HHIIBBHHH", 40000, 443, 7, 9, 5 << 4, PSH | ACK, 0, 0, 0) + payload
    else:
        payload = struct.pack("!HHHH", 40000, 443, 8 + len(payload), 0) + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, fragment, 64, protocol, 0)
    return head + bytes((10, 0, 0, 2)) + bytes((192, 0, 2, 1)) + payload


def ipv6(payload: bytes, extensions: bytes = b"", first: int = TCP) -> bytes:
    payload = struct.pack("!HHIIBBHHH", 40000, 443, 7, 9, 5 << 4, PSH | ACK, 0, 0, 0) + payload
    head = struct.pack("!IHBB", 6 << 28, len(extensions) + len(payload), first, 64)
    return head + bytes(15) + b"\2" + bytes(15) + b"\1" + extensions + payload


def test_headers() -> None:
    packet = parse(ipv4(b"data"))
    assert (packet.sport, packet.dport, packet.seq, packet.ack, packet.payload) == (40000, 443, 7, 9, b"data")
    assert parse(ipv4(b"data", UDP)).payload == b"data"
    for data in (ipv4(b"data"), ipv4(b"data", UDP), ipv6(b"data")):
        packet = parse(data)
        assert ends_of(packet.key) == (packet.src, packet.dst, packet.sport, packet.dport, packet.protocol)
    assert parse(ipv4(b"data") + b"ethernet padding").payload == b"data"
    assert parse(ipv6(b"data")).payload == b"data"
    hop_by_hop = bytes((TCP, 0)) + bytes(6)
    assert parse(ipv6(b"data", hop_by_hop, first=0)).payload == b"data"


@pytest.mark.parametrize("data", [ipv4(b"data"), ipv4(b"data", UDP), ipv6(b"data")])
def test_a_packet_cut_before_its_payload_is_refused(data: bytes) -> None:
    for length in range(len(data) - 4):
        with pytest.raises(PacketError):
            parse(data[:length])


def test_later_fragments_and_long_chains_of_headers_are_refused() -> None:
    with pytest.raises(PacketError, match="fragment"):
        parse(ipv4(b"data", fragment=5))
    chain = b"".join(bytes((60, 0)) + bytes(6) for _ in range(20))
    with pytest.raises(PacketError):
        parse(ipv6(b"data", chain, first=60))


@given(st.binary(max_size=120), st.sampled_from([b"", b"\x45", b"\x60", ipv4(b"x")[:20], ipv6(b"x")[:40]]))
def test_any_octets_are_a_packet_or_packet_error(data: bytes, head: bytes) -> None:
    try:
        parse(head + data)
    except PacketError:
        pass


@pytest.mark.parametrize("data", [ipv4(b"data"), ipv6(b"data")])
def test_a_reset_is_a_packet_of_the_same_flow_with_a_right_checksum(data: bytes) -> None:
    blocked = parse(data)
    reset = reset_segment(blocked)
    found = parse(reset)
    assert found.key == blocked.key
    assert (found.seq, found.flags & 0x04) == (blocked.seq, 0x04)
    segment = reset[-20:]
    pseudo = blocked.src + blocked.dst + struct.pack("!II", len(segment), TCP)
    total = sum(struct.unpack(f"!{(len(pseudo) + len(segment)) // 2}H", pseudo + segment))
    assert (total & 0xFFFF) + (total >> 16) in (0xFFFF, 0x1FFFE - 0xFFFF)


def test_a_stream_is_bounded_whatever_comes() -> None:
    stream = Stream(0)
    for number in range(20):
        stream.add(number * 4000, bytes(4000))
    assert stream.size <= MAX_OCTETS
    stream = Stream(0)
    stream.add(0xFFFFFFFF - MAX_OCTETS * 2, b"far before")
    stream.add(MAX_OCTETS * 2, b"far behind")
    assert stream.data() == b""


def test_half_open_flows_are_bounded_and_expire() -> None:
    flows = Flows()
    for number in range(MAX_PENDING + 10):
        flows.begin(number.to_bytes(12, "big"), Pending(0.0, b"", Stream(0), None))
    assert len(flows.expire(1.0)) == 10
    assert len(flows) == MAX_PENDING
    assert len(flows.expire(PENDING_S + 1)) == MAX_PENDING
    assert len(flows) == 0


def test_a_new_syn_forgets_the_verdict_of_an_earlier_flow_with_the_same_ports() -> None:
    flows = Flows()
    key = bytes(12)
    flows.decide(key, 2, 1000)
    assert flows.find_mark(key, 1400) == 2
    assert flows.find_mark(key, 900) == 2
    assert flows.find_mark(key, 1000 + 2 * NEAR) == 0  # the SYN never comes up: its numbers tell it
    flows.forget(key)
    assert flows.find_mark(key, 1400) == 0


def test_the_octets_of_half_open_flows_are_bounded_all_together() -> None:
    flows = Flows()
    for number in range(1000):
        pending = Pending(0.0, b"", Stream(0), None)
        flows.begin(number.to_bytes(12, "big"), pending)
        pending.stream.add(0, bytes(MAX_OCTETS))  # type: ignore[union-attr]
        flows.grew(pending.size)
        if flows.is_crowded:
            flows.expire(1.0)
    assert flows.held == sum(pending.size for pending in flows.pending.values()) <= MAX_HELD


def test_parts_of_one_octet_count_as_what_they_take() -> None:
    flows = Flows()
    taken = 0
    for number in range(200):
        pending = Pending(0.0, b"", Stream(0), None)
        flows.begin(number.to_bytes(12, "big"), pending)
        for at in range(MAX_PARTS):
            assert not pending.is_full
            pending.stream.add(2 * at, b"x" * (at % 2))  # type: ignore[union-attr]
        assert pending.is_full
        flows.grew(pending.size)
        taken += 1
        if flows.is_crowded:
            break
    assert taken < 100
    assert len(flows.expire(1.0)) == 1


def test_verdicts_given_on_the_shortest_way_are_bounded_too() -> None:
    flows = Flows()
    for round_of in range(3):
        for number in range(MAX_DECIDED):
            flows.decided[b"%d %d" % (round_of, number)] = 1
        flows.expire(0.5)
        assert len(flows.decided) + len(flows.older) <= MAX_DECIDED


def test_what_still_comes_of_a_flow_that_was_given_up_gets_its_mark() -> None:
    flows = Flows()
    flows.begin(bytes(12), Pending(0.0, b"", Stream(1000), None))
    ((key, pending),) = flows.expire(PENDING_S + 1)
    flows.give_up(key, pending, 2)
    flows.expire(PENDING_S + 20)
    assert flows.find_mark(key, 1100) == 2


VECTORS = Path(__file__).parents[1] / "vectors" / "nfq"
CHROMIUM = (VECTORS / "chromium156_pq_hello.bin").read_bytes()
"""Captured from Debian's Chromium 156: 1.9 kB, X25519MLKEM768, an ECH extension (GREASE), its name near the end."""
SEEN_IN_IT = tls.Hello(b"www.example.org", True)


def test_a_captured_post_quantum_hello_split_at_every_octet_in_both_orders_with_retransmission() -> None:
    assert tls.parse(CHROMIUM) == SEEN_IN_IT
    for cut in range(1, len(CHROMIUM)):
        pieces = ((0xFFFFFC00, CHROMIUM[:cut]), ((0xFFFFFC00 + cut) & 0xFFFFFFFF, CHROMIUM[cut:]))
        for order in ((0, 1), (1, 0), (0, 0, 1), (1, 1, 0)):
            stream = Stream(pieces[order[0]][0])
            for place in order:
                stream.add(*pieces[place])
            sight = look(stream)
            assert sight is not None, (cut, order)
            assert (sight.name, sight.seen) == (b"www.example.org", Seen.TLS), (cut, order)


def test_a_captured_post_quantum_hello_in_three_segments_in_all_orders() -> None:
    # Every first cut, and a second one that walks along with another stride: each octet is a cut many times.
    for first in range(1, len(CHROMIUM) - 1):
        second = first + 1 + (first * 131) % (len(CHROMIUM) - first - 1)
        pieces = ((0, CHROMIUM[:first]), (first, CHROMIUM[first:second]), (second, CHROMIUM[second:]))
        for order in itertools.permutations(range(3)):
            stream = Stream(pieces[order[0]][0])
            for place in (order[0], order[1], order[0], order[2]):  # one is sent again
                stream.add(*pieces[place])
            sight = look(stream)
            assert sight is not None, (first, second, order)
            assert sight.name == b"www.example.org", (first, second, order)


def test_a_captured_post_quantum_hello_cut_into_records_and_segments_elsewhere() -> None:
    body = CHROMIUM[5:]
    for cut in range(1, len(body), 3):
        parts = (body[:cut], body[cut:])
        data = b"".join(b"\x16\3\1" + struct.pack("!H", len(part)) + part for part in parts)
        assert tls.parse(data) == SEEN_IN_IT, cut
        middle = (cut * 7) % len(data)
        stream = Stream(middle)
        stream.add(middle, data[middle:])
        stream.add(0, data[:middle])
        sight = look(stream)
        assert sight is not None, cut
        assert sight.name == b"www.example.org", cut


def test_every_prefix_of_a_captured_hello_wants_more() -> None:
    for length in range(len(CHROMIUM)):
        assert tls.parse(CHROMIUM[:length]) == tls.NEED_MORE, length


@pytest.mark.parametrize(
    ("payload", "port", "cause"),
    [
        (b"\1\0\0\0" + bytes(144), 51820, Blind.VPN),
        (b"\x38" + bytes(13), 1194, Blind.VPN),
        (bytes(28), 4500, Blind.VPN),
        (b"\x16\xfe\xfd" + bytes(60), 3478, Blind.DTLS),
        (b"\0\1\0\0\x21\x12\xa4\x42" + bytes(12), 3478, Blind.DTLS),
        (b"\x1b" + bytes(47), 123, Blind.OPAQUE),
        (b"", 1, Blind.OPAQUE),
    ],
)
def test_what_a_udp_flow_is_if_it_is_not_quic(payload: bytes, port: int, cause: Blind) -> None:
    assert udp.classify(payload, port) == cause


def test_a_page_says_what_it_must_and_echoes_nothing_unescaped() -> None:
    decision = Decision(Verdict.BLOCK, Reason.CATEGORY, "list:<b>")
    answer = Pages(appeal="Ask <Ms. Lin>").answer("www.example.org", decision)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert b"Content-Length: %d\r\n" % len(body) in head
    for words in (b"www.example.org", b"on a list of blocked sites", b"list:&lt;b&gt;", b"Ask &lt;Ms. Lin&gt;"):
        assert words in body
    assert len(Pages(appeal="字" * 500).answer("a" * 300, decision)) <= MAX_ANSWER
    assert Pages().answer("a.example", decision, is_head=True).endswith(b"\r\n\r\n")
    there = Pages("http://10.0.0.1/blocked?lang=en").answer("a.example", decision)
    assert b"Location: http://10.0.0.1/blocked?lang=en&host=a.example&reason=category&rule=list%3A%3Cb%3E\r\n" in there


@pytest.mark.parametrize("data", [ipv4(REQUEST), ipv6(REQUEST)])
def test_an_answer_is_a_segment_of_the_servers_with_a_right_checksum(data: bytes) -> None:
    request = parse(data)
    answer = parse(answer_segment(request, b"HTTP/1.1 403 \r\n\r\n"))
    assert (answer.src, answer.dst, answer.sport, answer.dport) == (
        request.dst, request.src, request.dport, request.sport,
    )  # fmt: skip
    assert (answer.seq, answer.ack) == (request.ack, request.seq + len(REQUEST))
    assert answer.payload == b"HTTP/1.1 403 \r\n\r\n"
