"""What the RFCs ask of a server, probed the way RFC 8906 8 does it, and the ways of the upstreams."""

import socket
import ssl
import subprocess
import threading
import time

import pytest
from conftest import Authority
from questions import answers, query, read, record, reply

from dns.outside import Outside
from dns.pending import STREAM, Ask
from dns.stream import Framer, framed
from dns.upstream import Where
from dns.wire import Rcode, read_header
from dns.worker import now


@pytest.fixture(scope="module")
def probed(tmp_path_factory, authority):
    from conftest import Served, free_port

    settings = {"listen": ["127.0.0.1"], "port": free_port(), "upstream": [["127.0.0.1", authority.port]],
                "local_server": [], "nsid": "gatehouse-lab"}  # fmt: skip
    served = Served(tmp_path_factory.mktemp("probed"), settings)
    yield served
    assert served.stop() == 0


# RFC 8906 8.1 and 8.2, with dig's own words. (words, status, what must be in the output, what must not)
PROBES = [
    (["+noedns", "+noad", "example.org", "SOA"], "NOERROR", ["SOA"], ["OPT PSEUDO"]),
    (["+noedns", "+noad", "example.org", "TYPE1000"], "NOERROR", [], ["OPT PSEUDO"]),
    (["+noedns", "+ad", "example.org", "SOA"], "NOERROR", ["SOA"], ["OPT PSEUDO"]),
    (["+noedns", "+noad", "+zflag", "example.org", "SOA"], "NOERROR", ["SOA"], ["MBZ"]),
    (["+noedns", "+noad", "+tcp", "example.org", "SOA"], "NOERROR", ["SOA"], []),
    (["+edns=0", "+nocookie", "example.org", "SOA"], "NOERROR", ["SOA", "EDNS: version: 0"], []),
    (["+edns=100", "+noednsneg", "+nocookie", "example.org", "SOA"], "BADVERS", ["EDNS: version: 0"], ["\tSOA\tns."]),
    (["+edns=0", "+ednsopt=100", "+nocookie", "example.org", "SOA"], "NOERROR", ["SOA"], ["OPT=100"]),
    (["+edns=0", "+ednsflags=0x0080", "+nocookie", "example.org", "SOA"], "NOERROR", ["SOA"], ["MBZ"]),
    (["+edns=100", "+noednsneg", "+ednsopt=100", "+nocookie", "example.org", "SOA"], "BADVERS", [], ["OPT=100"]),
    (["+edns=100", "+noednsneg", "+ednsflags=0x80", "+nocookie", "example.org", "SOA"], "BADVERS", [], ["MBZ"]),
    (["+edns=0", "+bufsize=512", "+ignore", "+nocookie", "example.org", "SOA"], "NOERROR", ["SOA"], []),
    (["+edns=0", "+bufsize=512", "+ignore", "+nocookie", "big.example.org", "A"], "NOERROR", [" tc "], []),
    (["+edns=0", "+dnssec", "+nocookie", "example.org", "SOA"], "NOERROR", ["flags: do"], []),
    (["+edns=0", "+cookie=0123456789abcdef", "example.org", "SOA"], "NOERROR", ["SOA"], []),
    (["+edns=0", "+nsid", "+nocookie", "example.org", "SOA"], "NOERROR", ['"gatehouse-lab"'], []),
    (["+edns=0", "+subnet=10.0.0.0/8", "+nocookie", "example.org", "SOA"], "NOERROR", ["SOA"], []),
    (["+edns=0", "+expire", "+nocookie", "example.org", "SOA"], "NOERROR", ["SOA"], []),
    (["+noedns", "+opcode=15", "+header-only"], "NOTIMP", [], ["SOA"]),
    (["+noedns", "+opcode=15", "+header-only", "+tcp"], "NOTIMP", [], []),
    (["+noedns", "+header-only"], "FORMERR", [], []),
    (["+cdflag", "example.org", "SOA"], "NOERROR", [" cd"], []),
    (["-c", "CH", "version.bind", "TXT"], "REFUSED", [], []),
    (["-c", "HS", "example.org", "A"], "REFUSED", [], []),
    (["example.org", "AXFR", "+noedns"], None, ["Transfer failed"], []),
    (["nothere.example.org", "A"], "NXDOMAIN", ["SOA"], []),
    (["www.example.org", "TXT"], "NOERROR", ["SOA"], []),
]


@pytest.mark.parametrize(("words", "status", "present", "absent"), PROBES, ids=[" ".join(p[0]) for p in PROBES])
def test_rfc_8906_probes(probed, words, status, present, absent):
    for _ in range(2):
        output = probed.dig(*words)
        if status:
            assert f"status: {status}" in output, output
        assert all(text in output for text in present), output
        assert not any(text in output for text in absent), output


def test_recursion_is_offered_and_authority_is_not_claimed(probed):
    flags = probed.dig("www.example.org").split("flags:")[1].split(";")[0].split()
    assert "ra" in flags
    assert "aa" not in flags


def test_negative_ttls_come_from_the_soa(probed):
    data = probed.ask(query("nothere2.example.org"))
    _, records = read(data)
    assert records[0].rtype == 6
    assert records[0].ttl <= 60  # the zone's SOA minimum


def test_stale_answers_when_the_upstream_is_cut_and_fresh_ones_when_it_is_back(serve, tmp_path):
    authority = Authority(tmp_path / "cut")
    try:
        served = serve(upstream=[["127.0.0.1", authority.port]])
        assert answers(served.ask(query("short.example.org")))[1]
        authority.stop()
        time.sleep(2.5)
        started = time.monotonic()
        output = served.dig("short.example.org")
        assert "198.51.100.21" in output
        assert "EDE: 3 (Stale Answer)" in output
        assert time.monotonic() - started < 2.5
        assert "status: SERVFAIL" in served.dig("www.example.org")
        assert "EDE: 22 (No Reachable Authority)" in served.dig("txt.example.org", "TXT")
        authority.start()
        deadline = time.monotonic() + 20
        while "EDE: 3" in (output := served.dig("short.example.org")) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert "198.51.100.21" in output
        assert "EDE: 3" not in output
    finally:
        authority.stop()


def test_a_dead_upstream_first_in_the_list_costs_little(serve, authority):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute:
        mute.bind(("127.0.0.1", 0))
        served = serve(upstream=[["127.0.0.1", mute.getsockname()[1]], ["127.0.0.1", authority.port]])
        for n in range(5):
            started = time.monotonic()
            assert answers(served.ask(query(f"nothere{n}.example.org")))[0] == Rcode.NXDOMAIN
            spent = time.monotonic() - started
        assert spent < 0.3  # it rests


def test_ports_and_ids_are_not_to_be_guessed(serve):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as upstream:
        upstream.bind(("127.0.0.1", 0))
        upstream.settimeout(5)
        served = serve(upstream=[["127.0.0.1", upstream.getsockname()[1]]])
        ids, ports, cases = set(), set(), set()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(("127.0.0.1", served.port))
            for n in range(60):
                client.send(query(f"abcdefgh{n}.example.org"))
                data, address = upstream.recvfrom(512)
                ids.add(data[:2])
                ports.add(address[1])
                cases.add(data[13:21])
                upstream.sendto(reply(data, [record(1, b"\1\2\3\4")]), address)
                client.recv(512)
    assert len(ids) >= 58
    assert len(ports) >= 12
    assert len(cases) >= 40  # 54 of 256 are expected; below 50 is one run in thirty


class Wires:
    """A poller that a test turns by hand."""

    def __init__(self):
        import select

        self.epoll, self.handlers = select.epoll(), {}

    def watch(self, fd, events, handler):
        self.handlers[fd] = handler
        self.epoll.register(fd, events)

    def change(self, fd, events):
        self.epoll.modify(fd, events)

    def forget(self, fd):
        if self.handlers.pop(fd, None):
            self.epoll.unregister(fd)

    def turn(self, seconds, done):
        deadline = time.monotonic() + seconds
        while not done() and time.monotonic() < deadline:
            for fd, events in self.epoll.poll(0.05):
                if fd in self.handlers:
                    self.handlers[fd](events)


@pytest.fixture
def tls_server(tmp_path):
    """A DNS-over-TLS server that answers everything with 1.2.3.4."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-keyout", tmp_path / "key", "-out", tmp_path / "cert", "-subj", "/CN=dot.example",
         "-addext", "subjectAltName=DNS:dot.example"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    listener = socket.create_server(("127.0.0.1", 0))
    connections = []

    def serve_one(sock):
        try:
            with context.wrap_socket(sock, server_side=True) as stream:
                connections.append(stream)
                framer = Framer()
                while data := stream.recv(65535):
                    for message in framer.feed(data):
                        stream.sendall(framed(reply(message, [record(1, b"\1\2\3\4")])))
        except OSError:
            pass

    def accept():
        try:
            while True:
                sock, _ = listener.accept()
                threading.Thread(target=serve_one, args=(sock,), daemon=True).start()
        except OSError:
            pass

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1], tmp_path / "cert", connections
    listener.close()


@pytest.mark.parametrize(("name", "works"), [("dot.example", True), ("other.example", False)])
def test_dns_over_tls_keeps_one_connection_and_checks_the_name(tls_server, name, works):
    port, certificate, connections = tls_server
    trusting = ssl.create_default_context(cafile=str(certificate))
    got, failed, wires = [], [], Wires()
    outside = Outside(
        [Where("127.0.0.1", port, name)],
        wires,
        lambda datas, *a: got.extend((data, *a) for data in datas),
        lambda *a: failed.append(a),
        now,
        trusting,
    )
    for number in range(5):
        outside.send(Ask(0, STREAM, query("www.example.org", number=number)), now())
    wires.turn(5, lambda: len(got) == 5 or len(failed) == 5)
    if works:
        assert sorted(int.from_bytes(data[:2], "big") for data, *_ in got) == list(range(5))
        assert all(answers(data)[1] == [b"\1\2\3\4"] for data, *_ in got)
        outside.send(Ask(0, STREAM, query("www.example.org", number=9)), now())
        wires.turn(5, lambda: len(got) == 6)
        assert len(got) == 6
        assert len(connections) == 1
    else:
        assert got == []
        assert len(failed) == 5
    outside.close()


def test_dns_over_tls_end_to_end_refuses_a_certificate_that_nobody_signed(serve, tls_server):
    port, _, _ = tls_server
    served = serve(upstream=[], upstream_tls=[["127.0.0.1", port, "dot.example"]])
    assert answers(served.ask(query("www.example.org"), timeout=8))[0] == Rcode.SERVFAIL


HOSTILE = [
    b"",
    b"\0",
    b"\0" * 11,
    b"\0" * 12,
    b"\xff" * 512,
    b"\xff" * 60000,
    bytes(range(256)) * 200,
    b"\0\1\1\0\0\1\0\0\0\0\0\0" + b"\xc0\x0c" * 250,
    b"\0\1\1\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1",
    b"\0\1\1\0\xff\xff\xff\xff\xff\xff\xff\xff" + b"\1a" * 200,
    b"\0\1\1\0\0\1\0\0\0\0\0\1\1a\0\0\1\0\1\0\0\x29\xff\xff\0\0\0\0\xff\xff",
    query("www.example.org")[:-1],
    query("www.example.org") + b"\0",
    query("a." * 127)[:300],
]


def test_hostile_octets_never_stop_a_worker(serve):
    served = serve()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", served.port))
        for data in HOSTILE * 20:
            client.send(data)
    for data in HOSTILE:
        with socket.create_connection(("127.0.0.1", served.port), 5) as stream:
            stream.settimeout(5)
            stream.sendall(framed(data)[: len(data) + 2])
            stream.sendall(data[:100])
    time.sleep(0.5)  # twelve hundred kilobytes came at once; the socket's buffer must have room for one more question
    assert answers(served.ask(query("www.example.org")))[1]
    assert len(served.rows(kind="Dns", name="www.example.org")) >= 1
    assert served.process.poll() is None


def test_hostile_upstreams_never_stop_a_worker(serve):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as upstream:
        upstream.bind(("127.0.0.1", 0))
        upstream.settimeout(5)
        served = serve(upstream=[["127.0.0.1", upstream.getsockname()[1]]])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(("127.0.0.1", served.port))
            client.settimeout(8)
            client.send(query("www.example.org"))
            data, address = upstream.recvfrom(512)
            for hostile in HOSTILE:
                upstream.sendto(hostile, address)
                upstream.sendto(data[:2] + hostile[2:], address)
                upstream.sendto(data[:2] + b"\x81\x80" + data[4:] + hostile[:1000], address)
            header = read_header(client.recv(65535))
            assert header.flags & 0xF in (Rcode.SERVFAIL, Rcode.NOERROR, Rcode.FORMERR)
        assert served.process.poll() is None


def test_a_client_that_never_reads_is_dropped(serve):
    served = serve(rate=0)  # the limit would silence this address for the question below, too
    with socket.create_connection(("127.0.0.1", served.port), 5) as stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stream.settimeout(2)
        question = framed(query("big.example.org"))
        try:
            for _ in range(2000):
                stream.sendall(question)
        except OSError:
            pass
    assert answers(served.ask(query("www.example.org")))[1]


def test_connections_are_bounded_per_client(serve):
    served = serve()
    streams = []
    try:
        for _ in range(20):
            streams.append(socket.create_connection(("127.0.0.1", served.port), 5))
        time.sleep(0.3)
        closed = 0
        for stream in streams:
            stream.setblocking(False)
            try:
                closed += stream.recv(1) == b""
            except BlockingIOError:
                pass
        assert closed in (4, 5)  # the connection by which the fixture saw that it listens may still be counted
    finally:
        for stream in streams:
            stream.close()
