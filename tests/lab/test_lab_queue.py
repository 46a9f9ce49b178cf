"""The queue at its limits: full, unbound, its rules gone; addresses that lists name. The kernel's own counters."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nfq.kernel import QueueState, read_queues
from nfq.queue import config_message
from tests.lab.lab import ROOT, Lab
from tests.lab.test_lab_life import wait_until_protecting
from tests.lab.test_lab_venue import CURL
from tests.nfq.test_nfq_parsers import client_hello, padded

pytestmark = pytest.mark.lab

PACKETS = 100
SEND = f"""
import socket
for number in range({PACKETS}):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.bind(("", 30000 + number))
        link.sendto(b"packet", ("198.51.100.21", 7777))
"""
LISTEN = """
import socket, sys
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
# The usual buffer has room for 256 small datagrams; a worker that goes on lets them by faster than they are read.
link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
link.bind(("198.51.100.21", 7777))
print("ready", flush=True)
link.settimeout(float(sys.argv[1]))
count = 0
try:
    while True:
        link.recv(100)
        count += 1
        print(count, flush=True)
except TimeoutError:
    pass
"""


def queue_of(lab: Lab, number: int = 20) -> QueueState | None:
    return read_queues(lab.run("router", "cat /proc/net/netfilter/nfnetlink_queue").stdout).get(number)


def wait_for(what: Callable[[], object], timeout: float = 10) -> object:
    deadline = time.monotonic() + timeout
    while not (found := what()):
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.2)
    return found


@pytest.mark.parametrize("on_failure", ["open", "closed"])
@pytest.mark.parametrize("binding", ["netlink", "netfilterqueue"])
def test_a_queue_of_four_and_a_hundred_packets(tmp_path: Path, on_failure: str, binding: str) -> None:
    with Lab.running(
        tmp_path, on_failure=on_failure, flush="1s", binding=f"{binding}'\n\toption queue_length '4"
    ) as lab:
        before = queue_of(lab)
        assert before is not None
        pid = lab.processes()["nfq/0"]
        with lab.popen("internet", [sys.executable, "-c", LISTEN, "2.5"], stdout=subprocess.PIPE) as listener:
            assert listener.stdout is not None
            assert listener.stdout.readline() == "ready\n"
            os.kill(pid, signal.SIGSTOP)
            lab.run("pupil1", [sys.executable, "-c", SEND], check=True)
            time.sleep(0.5)
            full = queue_of(lab)
            os.kill(pid, signal.SIGCONT)
            arrived = listener.communicate(timeout=20)[0].split()
        assert full is not None
        assert full.waiting == 4
        lost = PACKETS - 4
        if on_failure == "open":
            assert arrived[-1] == str(PACKETS)
            assert full.dropped == before.dropped == 0
            assert wait_for(lambda: status(lab)["passed_unseen"]) == lost
        else:
            # What was in the queue is decided and passes when the worker goes on; of the rest, nothing.
            assert arrived[-1] == "4"
            assert full.dropped - before.dropped == lost
            assert wait_for(lambda: status(lab)["dropped"]) == lost
        (gap,) = wait_for(lambda: [row for row in lab.rows("--since", "1m", "--kind", "gap") if row["lost"] == lost])  # type: ignore[misc]
        assert ("passed unseen" in str(gap["why"])) is (on_failure == "open")


def status(lab: Lab) -> dict[str, int]:
    found = lab.status()["queues"]
    assert isinstance(found, dict)
    return found


def told(lab: Lab, action: str) -> list[dict[str, object]]:
    return [row for row in lab.rows("--since", "1m", "--kind", "maintenance") if row["action"] == action]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    rule = """
config rule 'bad_net'
\toption action 'block'
\tlist match 'ip:198.51.100.20/31'
\tlist match 'ip:2001:db8:100::20/127'
"""
    with Lab.running(tmp_path_factory.mktemp("queue"), flush="1s", extra=rule) as lab:
        yield lab


def test_a_queue_that_a_living_worker_has_lost_is_seen_recorded_and_bound_again(lab: Lab) -> None:
    before = queue_of(lab)
    assert before is not None
    unbind(lab.processes()["nfq/0"])
    assert queue_of(lab) is None
    begin = time.monotonic()
    wait_for(lambda: queue_of(lab) is not None)
    assert time.monotonic() - begin < 10
    after = queue_of(lab)
    assert after is not None
    assert after.port_id != before.port_id
    (row,) = wait_for(lambda: told(lab, "queue"))  # type: ignore[misc]
    assert (row["object"], row["result"]) == ("nfq/0", "unbound: the worker is started again")
    wait_until_protecting(lab)


def unbind(pid: int) -> None:
    """Take the worker's own socket, as a debugger would, and unbind the queue with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.pidfd_open(pid)
    for name in os.listdir(f"/proc/{pid}/fd"):
        if "socket:" not in os.readlink(f"/proc/{pid}/fd/{name}"):
            continue
        number = libc.syscall(438, handle, int(name), 0)  # pidfd_getfd
        if number < 0:
            continue
        import socket

        with socket.socket(fileno=number) as link:
            if link.family == socket.AF_NETLINK:
                link.send(config_message(20, bytes((8, 0, 1, 0, 2, 0, 0, 0))))  # NFQNL_CFG_CMD_UNBIND
    os.close(handle)


@pytest.mark.parametrize(
    "damage", ["iptables -t mangle -F GH-FIRST", "ip6tables -D FORWARD -m mark ! --mark 0/0x3000000 -j GH-VERDICT"]
)
def test_rules_removed_by_hand_are_back_within_ten_seconds_and_on_record(lab: Lab, damage: str) -> None:
    repaired = lab.status()["rules"]["repaired"]  # type: ignore[index, call-overload]
    assert lab.run("router", damage).returncode == 0
    begin = time.monotonic()
    wait_for(lambda: lab.status()["rules"]["repaired"] > repaired)  # type: ignore[index, call-overload, operator]
    assert time.monotonic() - begin < 10
    assert any(row["result"] == "were removed, applied again" for row in told(lab, "rules"))


@pytest.mark.parametrize("address", ["198.51.100.20", "2001:db8:100::20"])
def test_a_listed_address_is_refused_at_the_first_packet_whatever_the_protocol(lab: Lab, address: str) -> None:
    listed = "gatehouse6" if ":" in address else "gatehouse4"
    wait_for(lambda: address in lab.run("router", f"ipset list {listed}").stdout.replace("/31", "").replace("/127", ""))
    begin = time.monotonic()
    result = lab.run("pupil1", ["bash", "-c", f"exec 3<>/dev/tcp/{address}/80"])  # no data is ever sent
    assert "refused" in result.stderr
    assert time.monotonic() - begin < 1
    neighbour = address.replace("20", "22") if ":" not in address else "[2001:db8:100::22]"
    if ":" not in neighbour:
        neighbour = "198.51.100.22"
    assert "you asked" in lab.run("pupil1", f"{CURL} http://{neighbour}/").stdout
    rows = wait_for(lambda: lab.rows("--since", "20s", "--kind", "flow", "--verdict", "block"))
    assert {(row["dst"], row["reason"], row["rule"]) for row in rows} >= {(address, "rule", "rule:bad_net")}  # type: ignore[union-attr, attr-defined]


FORGE = f"""
import socket, sys
sys.path.insert(0, {str(ROOT)!r})
from nfq.packet import ACK, PSH
from nfq.reset import _TCP, _whole
link = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
request = b"GET / HTTP/1.1\\r\\nHost: www.casino.example\\r\\n\\r\\n"
for number in range(600):
    tcp = _TCP.pack(20000 + number, 80, 1, 1, 5 << 4, ACK | PSH, 65535, 0, 0) + request
    packet = _whole(bytes((10, 20, 0, 100 + number % 100)), bytes((198, 51, 100, 21)), tcp)
    link.sendto(packet, ("198.51.100.21", 0))
"""


def test_pages_for_clients_that_are_not_there_do_not_hold_the_worker(lab: Lab) -> None:
    pid = lab.processes()["nfq/0"]
    before = lab.status()["workers"]["nfq/0"]["blocked"]  # type: ignore[index, call-overload]
    lab.run("pupil2", [sys.executable, "-I", "-c", FORGE], check=True)
    begin = time.monotonic()
    assert "you asked" in lab.run("pupil1", f"{CURL} http://198.51.100.22/").stdout
    assert time.monotonic() - begin < 2.5  # a MAC is waited for three seconds long
    wait_for(lambda: lab.status()["workers"]["nfq/0"]["blocked"] >= before + 500)  # type: ignore[index, call-overload, operator]
    assert lab.processes()["nfq/0"] == pid


SAY = """
import socket, sys
with socket.create_connection(("198.51.100.22", 443), timeout=2) as link:
    link.sendall(bytes.fromhex(sys.stdin.read()))
    try:
        print("answered" if link.recv(100) else "closed")
    except ConnectionResetError:
        print("reset")
"""


@pytest.mark.parametrize("octets", [100, 6000, 14_000])
def test_a_large_hello_in_one_packet_is_read_to_its_end(lab: Lab, octets: int) -> None:
    # veth passes it on as one packet, as GRO makes one on a router.
    for name, said in (("n1.example.org", "answered"), ("n1.casino.example", "reset")):
        hello = padded(client_hello(name), octets)
        assert lab.run("pupil1", [sys.executable, "-c", SAY], input=hello.hex()).stdout.strip() == said


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_of_workers(lab: Lab, seconds: float = 3) -> dict[str, float]:
    workers = {name: pid for name, pid in lab.processes().items() if name.startswith(("dns/", "nfq/"))}
    assert {"dns/0", "nfq/0"} <= workers.keys()
    before = {name: cpu_s(pid) for name, pid in workers.items()}
    time.sleep(seconds)
    return {name: cpu_s(pid) - before[name] for name, pid in workers.items()}


def test_a_worker_without_work_sleeps_with_an_agent_and_without(lab: Lab) -> None:
    wait_until_protecting(lab)
    taken = cpu_of_workers(lab)
    assert max(taken.values()) < 0.2, taken
    lab.kill("launch", signal.SIGSTOP)  # else there is another agent at once
    try:
        lab.kill("agent/0" if "agent/0" in lab.processes() else "agent")
        taken = cpu_of_workers(lab)
        assert max(taken.values()) < 0.2, taken
    finally:
        lab.kill("launch", signal.SIGCONT)
    wait_until_protecting(lab)


FLOOD = """
import socket
links = []
for number in range(400):
    link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    link.bind(("", 20000 + number))
    link.sendto(b"packet", ("198.51.100.21", 7777))
    links.append(link)
"""


def test_the_library_stops_at_its_budget_and_loses_nothing(tmp_path: Path) -> None:
    with Lab.running(tmp_path, flush="1s", binding="netfilterqueue") as lab:
        pid = lab.processes()["nfq/0"]
        with lab.popen("internet", [sys.executable, "-c", LISTEN, "2.5"], stdout=subprocess.PIPE) as listener:
            assert listener.stdout is not None
            assert listener.stdout.readline() == "ready\n"
            os.kill(pid, signal.SIGSTOP)
            lab.run("pupil1", [sys.executable, "-c", FLOOD], check=True)
            os.kill(pid, signal.SIGCONT)
            arrived = listener.communicate(timeout=20)[0].split()
        assert arrived[-1] == "400"
        queue = wait_for(lambda: queue_of(lab))
        assert isinstance(queue, QueueState)
        assert queue.waiting == 0
        assert lab.processes()["nfq/0"] == pid
