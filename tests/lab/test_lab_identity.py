"""Nobody without a login, where the legal profile asks for identity: on real traffic, and what is open to all."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.lab import Lab
from tests.lab.test_lab_life import kill_everything
from tests.lab.test_lab_profiles import EXTRA, main_of, prepare
from tests.lab.test_lab_venue import wait_for

pytestmark = pytest.mark.lab

PORTAL = "198.51.100.22"
PAGE = "curl -sS --max-time 4 -o /dev/null -w %{{http_code}} http://{}/"
PUPIL1, PUPIL2 = "02:00:00:00:00:0b", "02:00:00:00:00:0c"


def ready(directory: Path) -> None:
    prepare(directory)
    path = directory / "gatehouse.conf"
    portal = f"config session 'session'\n\tlist portal '{PORTAL}'\n"
    path.write_text(path.read_text().replace("config session 'session'\n", portal))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = tmp_path_factory.mktemp("identity")
    with Lab.running(directory, flush="1s", main=main_of("cn-82"), extra=EXTRA, prepare=ready) as lab:
        yield lab


ECHO = """
import socket, struct
link = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
link.settimeout(1)
link.sendto(struct.pack("!BBHHH", 8, 0, 0xF7FE, 1, 0), ("198.51.100.20", 0))
raise SystemExit(link.recv(999)[20] != 0)
"""


def echoes(lab: Lab, who: str) -> bool:
    """Does a ping come back?"""
    return lab.run(who, [sys.executable, "-I", "-c", ECHO]).returncode == 0


def gets(lab: Lab, address: str, who: str = "pupil1") -> bool:
    """Does this client get the page of a server in the internet?"""
    return lab.run(who, PAGE.format(address)).stdout == "200"


def gets_soon(lab: Lab, address: str, who: str = "pupil1", *, wanted: bool = True) -> bool:
    deadline = time.monotonic() + 5
    while gets(lab, address, who) is not wanted:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_a_device_without_a_login_reaches_the_portal_and_nothing_else(lab: Lab) -> None:
    assert gets(lab, "10.20.0.1:8060"), "the router's own page"
    assert gets(lab, PORTAL)
    assert lab.run("pupil1", "dig +short www.example.org").stdout.strip() == "198.51.100.21"
    for address in ("198.51.100.20", "198.51.100.20:8080", "[2001:db8:100::20]"):
        began_s = time.monotonic()
        assert not gets(lab, address)
        assert time.monotonic() - began_s < 2, "refused, not left to wait"
    assert not echoes(lab, "pupil1"), "nor what is neither TCP nor UDP"
    assert lab.run("pupil1", "dig +time=1 +tries=1 -p 5353 @198.51.100.10 www.example.org").returncode != 0
    rows = wait_for(lab, 4, "--since", "1h", "--kind", "flow", "--client", "10.20.0.11", "--reason", "test")
    refused = {(row["dst"], row["dport"], row["protocol"]) for row in rows if row["reason"] == "identity"}
    assert {("198.51.100.20", 80), ("198.51.100.20", 8080), ("198.51.100.10", 5353)} <= {each[:2] for each in refused}
    assert {row["verdict"] for row in rows if row["reason"] == "identity"} == {"block"}
    assert {row["rule"] for row in rows if row["reason"] == "identity"} == {"legal:identity"}


def test_whoever_logs_in_passes_until_he_logs_out_even_in_mid_download(lab: Lab) -> None:
    login = lab.gatehouse("session", "login", "--account", "ann", "--mac", PUPIL1)
    assert login.returncode == 0, login.stderr
    assert gets_soon(lab, "198.51.100.20")
    assert gets(lab, "[2001:db8:100::20]"), "the device is admitted, not one of its addresses"
    assert echoes(lab, "pupil1")
    assert not gets(lab, "198.51.100.20", "pupil2"), "the neighbour is not"
    # Nor is the neighbour with her address: it is the device that was logged in.
    lab.run("pupil2", "ip addr add 10.20.0.11/32 dev eth0", check=True)
    forged = "curl -sS --interface 10.20.0.11 --max-time 2 -o /dev/null -w %{http_code} http://198.51.100.20/"
    assert lab.run("pupil2", forged).stdout != "200"
    lab.run("pupil2", "ip addr del 10.20.0.11/32 dev eth0", check=True)
    lab.run("router", "ip neigh flush dev br-lan", check=True)
    slow = "curl -sS --limit-rate 3M --max-time 30 -o /dev/null http://198.51.100.20/bulk/100"
    with lab.popen("pupil1", slow, stderr=subprocess.PIPE) as download:
        time.sleep(0.7)
        assert download.poll() is None
        began_s = time.monotonic()
        assert lab.gatehouse("session", "logout", "--mac", PUPIL1).returncode == 0
        _, said = download.communicate(timeout=20)
    assert time.monotonic() - began_s < 15
    assert download.returncode not in (0, 28), said
    assert gets_soon(lab, "198.51.100.20", wanted=False)


def test_rules_that_somebody_took_out_come_back_with_whoever_is_admitted(lab: Lab) -> None:
    assert lab.gatehouse("session", "login", "--account", "ben", "--mac", PUPIL2).returncode == 0
    assert gets_soon(lab, "198.51.100.20", "pupil2")
    lab.run("router", "iptables -t mangle -F", check=True)
    assert gets(lab, "198.51.100.20", "pupil1"), "the harm is done"
    deadline = time.monotonic() + 12
    while gets(lab, "198.51.100.20", "pupil1"):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert gets_soon(lab, "198.51.100.20", "pupil2")


def test_with_everything_dead_and_on_failure_open_the_venue_keeps_its_internet(lab: Lab) -> None:
    assert not gets(lab, "198.51.100.20", "pupil1")
    kill_everything(lab)
    deadline = time.monotonic() + 9
    while not gets(lab, "198.51.100.20", "pupil1"):
        assert time.monotonic() < deadline, "the lease does not run out"
        time.sleep(0.3)
