"""Connections that need no queue: real clients through a real router, and every doubt by the queue as before."""

import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf.kernel import KernelError
from nfq.early import Early
from tests.lab.lab import Lab
from tests.lab.test_lab_life import wait_until_protecting
from tests.lab.test_lab_venue import CURL, queued, wait_for

pytestmark = pytest.mark.lab

SITES = {4: "198.51.100.21", 6: "2001:db8:100::21"}
PIECES = """
import socket, ssl, sys, time
address, name, how = sys.argv[1:]
def hello(name):
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    secure = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=name)
    try:
        secure.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
data = hello(name)
with socket.create_connection((address, 443), 3) as link:
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.settimeout(1.5)
    parts = [data[:60], data[60:]] if how == "two" else [data[:5], data[5:]] if how == "head" else [data]
    if how == "records":
        body = data[5:]
        parts = [b"".join(b"\\x16\\3\\1" + len(part).to_bytes(2, "big") + part for part in (body[:40], body[40:]))]
    try:
        for part in parts:
            link.send(part)
            time.sleep(0.05)
        print("answered" if link.recv(5)[:1] == b"\\x16" else "closed")
    except OSError as error:
        print(type(error).__name__)
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    try:
        Early(15).close()
    except KernelError as error:
        pytest.skip(f"no programs in this kernel, or not for us: {error}")
    with Lab.running(tmp_path_factory.mktemp("early"), flush="1s") as lab:
        # The agent has told the worker to read the first policy, by which everything known is forgotten; the worker's
        # next beat is from after it did.
        early(lab)
        yield lab


def visit(lab: Lab, name: str, family: int = 4, client: str = "pupil1") -> bool:
    where = f"[{SITES[family]}]" if family == 6 else SITES[family]
    words = f"{CURL} --cacert {lab.directory}/ca.crt --resolve {name}:443:{where} https://{name}/"
    return "you asked" in lab.run(client, words).stdout


def early(lab: Lab) -> dict[str, int]:
    """The worker's counters, a beat later: it looks five times a second at what passes it by."""
    time.sleep(1.5)
    found = lab.status()["workers"]
    assert isinstance(found, dict)
    counters: dict[str, int] = found["nfq/0"]
    return counters


@pytest.mark.parametrize("family", [4, 6])
def test_the_second_visit_is_not_queued_and_on_record_like_the_first(lab: Lab, family: int) -> None:
    name = f"early{family}.example.org"
    visits = 0
    for client in ("pupil1", "pupil2"):
        before = queued(lab)
        assert visit(lab, name, family, client)
        assert queued(lab) == before + 1, "nobody knows it, or the client, yet"
        time.sleep(0.5)  # it is known when the worker looks next: 20 ms later, on a machine that has nothing else to do
        for _ in range(3):
            assert visit(lab, name, family, client)
        assert queued(lab) == before + 1
        visits += 4
    rows = wait_for(lab, visits, "--since", "20s", "--kind", "flow", "--domain", name)
    assert len(rows) == visits
    told = {(row["client"], row["mac"]) for row in rows}
    clients = ("10.20.0.11", "10.20.0.12") if family == 4 else ("2001:db8:20::11", "2001:db8:20::12")
    assert told == {(clients[0], "02:00:00:00:00:0b"), (clients[1], "02:00:00:00:00:0c")}
    for what in ("name", "dst", "dport", "seen", "blind", "verdict", "reason", "rule", "group"):
        assert len({str(row.get(what)) for row in rows}) == 1, what
    assert len({row["sport"] for row in rows}) == visits


def test_the_meter_counts_them_all(lab: Lab) -> None:
    visit(lab, "meter.example.org")
    before = early(lab)
    assert before["early_interfaces"] == 1
    for _ in range(4):
        assert visit(lab, "meter.example.org")
    after = early(lab)
    assert after["early"] - before["early"] == 4
    assert after["flows"] - before["flows"] == 4
    assert after["packets"] == before["packets"]


def test_segments_without_data_are_asked_nothing_and_leave_no_mark_on_the_connection(lab: Lab) -> None:
    def asked() -> int:
        """Packets from the LAN of which mangle asked more than their mark."""
        saved = lab.run("router", "iptables-save -c -t mangle").stdout
        (packets,) = re.findall(r"\[(\d+):\d+\] -A FORWARD -i br-lan -m mark [^\n]*-j GH-QUEUE", saved)
        return int(packets)

    def asks(say: str) -> tuple[int, str]:
        before = asked()
        connect = f"import socket; link = socket.create_connection(('198.51.100.21', 443)); {say}"
        sport = lab.run("pupil1", [sys.executable, "-c", f"{connect}; print(link.getsockname()[1])"]).stdout.strip()
        return asked() - before, sport

    found, sport = asks("0")
    assert found <= 1  # SYN, ACK, FIN: the first only where there are sets of listed addresses
    assert asks("link.send(b'x')")[0] > found  # once, if it is not said again
    listed = lab.run("router", f"conntrack -L -p tcp --sport {sport}").stdout
    assert re.search(r" mark=0 ", listed), listed


def test_encrypted_dns_is_refused_at_once_and_on_record(lab: Lab) -> None:
    begin = time.monotonic()
    for address in ("198.51.100.20", "2001:db8:100::20"):
        assert "refused" in lab.run("pupil1", ["bash", "-c", f"exec 3<>/dev/tcp/{address}/853"]).stderr
    assert time.monotonic() - begin < 2
    said = "link.connect(('198.51.100.20', 853)); link.send(b'x'); time.sleep(0.2); link.send(b'y')"
    code = f"import socket, time; link = socket.socket(type=socket.SOCK_DGRAM); {said}"
    assert "ConnectionRefusedError" in lab.run("pupil1", [sys.executable, "-c", code]).stderr
    rows = wait_for(lab, 3, "--since", "20s", "--kind", "flow", "--verdict", "block")
    told = {(row["dst"], row["protocol"], row["dport"], row["reason"], row["rule"]) for row in rows}
    wanted = {("198.51.100.20", "tcp"), ("198.51.100.20", "udp"), ("2001:db8:100::20", "tcp")}
    assert told >= {(*each, 853, "bypass", "bypass:dot") for each in wanted}, told


@pytest.mark.parametrize("how", ["two", "head", "records"])
def test_a_hello_in_pieces_goes_by_the_queue(lab: Lab, how: str) -> None:
    name = f"pieces-{how}.example.org"
    for said, wanted in ((name, "answered"), ("www.casino.example", "ConnectionResetError")):
        if wanted == "answered":
            assert visit(lab, said)
            assert visit(lab, said)
        before = queued(lab)
        words = [sys.executable, "-c", PIECES, SITES[4], said, how]
        assert lab.run("pupil1", words).stdout.strip() == wanted
        assert queued(lab) > before
    assert len(wait_for(lab, 3, "--since", "20s", "--kind", "flow", "--domain", name)) == 3


def test_a_reload_that_blocks_a_name_stops_the_very_next_connection(lab: Lab) -> None:
    name = "soon.example.net"
    assert visit(lab, name)
    before = queued(lab)
    assert visit(lab, name)
    assert queued(lab) == before
    lists = lab.directory / "lists" / "gambling"
    lists.write_text("casino.example\nsoon.example.net\n")
    try:
        assert lab.gatehouse("reload").returncode == 0
        deadline = time.monotonic() + 10
        # The hooks have it when the DNS hook, which is told at the same time, answers so.
        while "NXDOMAIN" not in lab.run("pupil2", f"dig {name}").stdout:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)  # the packet hook looks at what it is told five times a second
        assert not visit(lab, name)
    finally:
        lists.write_text("casino.example\n")
        lab.gatehouse("reload")
    rows = wait_for(lab, 3, "--since", "20s", "--kind", "flow", "--domain", name)
    assert [row["verdict"] for row in rows] == ["allow", "allow", "block"]


def test_a_killed_worker_takes_its_program_with_it_and_the_next_one_learns_anew(lab: Lab) -> None:
    name = "killed.example.org"
    assert visit(lab, name)
    assert visit(lab, name)
    wait_for(lab, 2, "--since", "20s", "--kind", "flow", "--domain", name)
    lab.kill("nfq/0", signal.SIGKILL)
    time.sleep(0.2)
    wait_until_protecting(lab)
    before = queued(lab)
    assert visit(lab, name)
    assert queued(lab) == before + 1
    assert visit(lab, name)
    assert queued(lab) == before + 1
    assert len(wait_for(lab, 4, "--since", "30s", "--kind", "flow", "--domain", name)) == 4


def test_a_hung_worker_lets_nobody_pass_unseen(lab: Lab) -> None:
    name = "hung.example.org"
    assert visit(lab, name)
    assert visit(lab, name)
    lab.kill("nfq/0", signal.SIGSTOP)
    time.sleep(1.2)
    before = queued(lab)
    # It waits in the queue until the worker is killed; then `open` lets it pass.
    assert visit(lab, name)
    assert queued(lab) != before
    wait_until_protecting(lab)


def test_without_it_every_visit_is_queued(tmp_path: Path) -> None:
    with Lab.running(tmp_path, flush="1s", binding="auto'\n\toption early '0") as other:
        name = "plain.example.org"
        before = queued(other)
        for _ in range(3):
            assert visit(other, name)
        assert queued(other) == before + 3
        assert "early" not in early(other)
