"""The venue in a box: real clients, real NFQUEUE, real name servers and OpenSSL; what they did is what is on record."""

import collections
import datetime
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.lab import ROOT, Lab

pytestmark = pytest.mark.lab

CLIENTS = {"pupil1": "10.20.0.11", "pupil2": "10.20.0.12", "teacher": "10.20.0.21"}
CURL = "curl -sS --max-time 5"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab.running(tmp_path_factory.mktemp("venue"), flush="1s") as lab:
        yield lab


def wait_for(lab: Lab, count: int, *words: str, timeout: float = 10) -> list[dict[str, object]]:
    """At least `count` rows; whatever there is when the time is over."""
    deadline = time.monotonic() + timeout
    while len(rows := lab.rows(*words)) < count and time.monotonic() < deadline:
        time.sleep(0.1)
    return rows


def queued(lab: Lab) -> int:
    """Packets that ever reached our queues: the eighth column of nfnetlink_queue is the last packet id."""
    text = lab.run("router", "cat /proc/net/netfilter/nfnetlink_queue").stdout
    return sum(int(line.split()[7]) for line in text.splitlines())


def test_every_access_is_on_record_exactly_once_with_the_right_client_name_path_and_time(lab: Lab) -> None:
    began = datetime.datetime.now(datetime.UTC)
    expected: collections.Counter[tuple[object, ...]] = collections.Counter()
    at: dict[tuple[object, ...], float] = {}

    def did(*key: object) -> None:
        expected[key] += 1
        at[key] = time.time()

    for client, address in CLIENTS.items():
        for number in range(20):
            name = f"{client}-{number}.example.org"
            did("dns", address, name, "A", "allow")
            assert lab.run(client, f"dig +short {name}").stdout.strip() == "198.51.100.20"
        for number in range(10):
            host = f"{client}-plain-{number}.example.net"
            did("flow", address, host, f"/page/{number}", "http", "allow")
            to = f"--resolve {host}:80:198.51.100.21"
            assert host in lab.run(client, f"{CURL} {to} http://{host}/page/{number}?secret={number}#x").stdout
            host = f"{client}-secure-{number}.example.net"
            did("flow", address, host, "", "tls", "allow")
            to = f"--resolve {host}:443:198.51.100.21 --cacert {lab.directory}/ca.crt"
            assert host in lab.run(client, f"{CURL} {to} https://{host}/page/{number}?secret={number}").stdout
    since = ("--since", began.isoformat())
    rows = wait_for(lab, 60, *since, "--kind", "dns") + wait_for(lab, 60, *since, "--kind", "flow")
    found: collections.Counter[tuple[object, ...]] = collections.Counter()
    for row in rows:
        if row["kind"] == "dns":
            key = ("dns", row["client"], row["name"], row["type"], row["verdict"])
        elif row["kind"] == "flow":
            key = ("flow", row["client"], row["name"], row["path"], row["seen"], row["verdict"])
        else:
            continue
        found[key] += 1
        if key in at:
            recorded = datetime.datetime.fromisoformat(str(row["time"])).timestamp()
            assert abs(recorded - at[key]) < 1.0, (row, at[key])
            assert row["mac"] == f"02:00:00:00:00:{int(str(row['client']).rpartition('.')[2]):02x}"
    assert (found - expected, expected - found) == (collections.Counter(), collections.Counter())
    assert not [row for row in rows if "secret" in str(row)]


def test_a_blocked_name_is_nxdomain_and_its_neighbours_are_not(lab: Lab) -> None:
    assert "status: NXDOMAIN" in lab.run("pupil1", "dig www.casino.example").stdout
    assert "status: NXDOMAIN" in lab.run("pupil1", "dig +tcp casino.example AAAA").stdout
    assert lab.run("pupil1", "dig +short help.casino.example").stdout.strip() == "198.51.100.20"
    assert lab.run("pupil1", "dig +short www.news.example").stdout.strip() == "198.51.100.21"


def test_a_foreign_resolver_is_ours_all_the_same(lab: Lab) -> None:
    for words in ("", "+tcp"):
        assert "status: NXDOMAIN" in lab.run("pupil2", f"dig {words} @198.51.100.10 casino.example").stdout
        assert "status: NXDOMAIN" in lab.run("pupil2", f"dig {words} @2001:db8:100::10 casino.example").stdout


@pytest.mark.parametrize("address", ["198.51.100.21", "[2001:db8:100::21]"])
def test_a_blocked_site_by_its_address_is_reset_and_its_neighbour_is_not(lab: Lab, address: str) -> None:
    trust = f"--cacert {lab.directory}/ca.crt"
    to = f"--resolve www.casino.example:443:{address} --resolve www.example.org:443:{address}"
    start = time.monotonic()
    blocked = lab.run("pupil1", f"{CURL} {trust} {to} https://www.casino.example/")
    assert "reset" in blocked.stderr
    assert time.monotonic() - start < 2
    assert "you asked" in lab.run("pupil1", f"{CURL} {trust} {to} https://www.example.org/").stdout
    (row, *_) = wait_for(lab, 1, "--since", "5s", "--kind", "flow", "--domain", "casino.example")
    assert (row["verdict"], row["reason"], row["rule"]) == ("block", "category", "list:gambling")


def test_a_blocked_site_leaves_no_half_open_connection_at_the_server(lab: Lab) -> None:
    to = "--resolve www.casino.example:80:198.51.100.22"
    for _ in range(5):
        lab.run("pupil1", f"{CURL} {to} http://www.casino.example/")
    time.sleep(0.5)
    open_there = lab.run("internet", "ss -Htn state established src 198.51.100.22").stdout
    assert open_there == ""


def test_the_name_is_found_on_any_port(lab: Lab) -> None:
    to = "--resolve www.adult.example:8443:198.51.100.21 --resolve www.adult.example:8080:198.51.100.21"
    assert lab.run("pupil1", f"{CURL} -k {to} https://www.adult.example:8443/").returncode != 0
    assert "you asked" not in lab.run("pupil1", f"{CURL} {to} http://www.adult.example:8080/").stdout


def test_a_bulk_download_brings_a_handful_of_packets_to_us(lab: Lab) -> None:
    before = queued(lab)
    to = "--resolve bulk.example.org:80:198.51.100.21"
    result = lab.run(
        "pupil1", f"{CURL} --max-time 60 -o /dev/null -w %{{size_download}} {to} http://bulk.example.org/bulk/300"
    )
    assert result.stdout == str(300 << 20)
    assert 1 <= queued(lab) - before <= 4


def test_a_new_list_is_in_force_after_reload_and_after_sighup(lab: Lab) -> None:
    def wait_until(words: str) -> None:
        deadline = time.monotonic() + 10
        while words not in lab.run("pupil1", "dig fresh.news.example").stdout:
            assert time.monotonic() < deadline, "the old list still decides after ten seconds"
            time.sleep(0.1)

    lists = lab.directory / "lists" / "gambling"
    wait_until("198.51.100.20")
    lists.write_text("casino.example\nnews.example\n")
    try:
        assert lab.gatehouse("reload").returncode == 0
        wait_until("NXDOMAIN")
    finally:
        lists.write_text("casino.example\n")
    lab.kill("launch", signal.SIGHUP)
    wait_until("198.51.100.20")
    for name in ("dns/0", "nfq/0"):
        mapped = Path(f"/proc/{lab.processes()[name]}/maps").read_text()
        assert mapped.count("policy.gp") == 1, f"{name} keeps the images that were replaced, too:\n{mapped}"


def test_a_mistake_in_the_configuration_is_told_and_changes_nothing(lab: Lab) -> None:
    path = lab.directory / "gatehouse.conf"
    good = path.read_text()
    path.write_text(good.replace("option port '5300'", "option prot '5300'"))
    try:
        told = lab.gatehouse("check")
        assert told.returncode == 2
        assert "gatehouse.dns.prot: unknown option; did you mean 'port'?" in told.stderr
    finally:
        path.write_text(good)
    assert "status: NXDOMAIN" in lab.run("pupil1", "dig www.casino.example").stdout


def test_a_teacher_opens_a_name_until_a_time_and_it_is_on_record(lab: Lab) -> None:
    def is_open() -> bool:
        return lab.run("pupil1", "dig +short www.adult.example").stdout.strip() == "198.51.100.21"

    def wait_until(wanted: bool) -> None:
        deadline = time.monotonic() + 5
        while is_open() is not wanted:
            assert time.monotonic() < deadline
            time.sleep(0.2)

    assert not is_open()
    opened = lab.gatehouse("override", "open", "adult.example", "--group", "pupils", "--for", "45m")
    assert opened.returncode == 0, opened.stderr
    wait_until(True)
    assert "allow domain:adult.example for pupils" in lab.gatehouse("override", "list").stdout
    assert "override:1" in lab.gatehouse("explain", "www.adult.example", "--client", "10.20.0.11").stdout
    assert lab.gatehouse("override", "close", "1").returncode == 0
    wait_until(False)
    code = lab.gatehouse("override", "code", "adult.example", "--for", "10m").stdout.split()[-1]
    wrong = lab.gatehouse("override", "redeem", "AAAAAAAA")
    assert (wrong.returncode, "wrong code" in wrong.stderr) == (2, True)
    assert lab.gatehouse("override", "redeem", code).returncode == 0
    wait_until(True)
    assert lab.gatehouse("override", "close", "2").returncode == 0
    wait_until(False)
    actions = [row["action"] for row in wait_for(lab, 1, "--since", "1m", "--kind", "maintenance")]
    for action in ("override-open", "override-close", "override-code", "override-redeem"):
        assert action in actions


def test_explain_names_the_list_and_the_line(lab: Lab) -> None:
    said = lab.gatehouse("explain", "www.casino.example", "--client", "10.20.0.11").stdout
    assert "gambling:1" in said
    assert "block" in said
    assert "exceptions:1" in lab.gatehouse("explain", "help.casino.example", "--client", "10.20.0.11").stdout


def test_the_chain_of_the_running_ring_is_whole(lab: Lab) -> None:
    assert "all as they were written" in lab.gatehouse("verify").stdout


def answered_in_kernel(lab: Lab) -> int | None:
    """By the DNS worker's last heartbeat; None: this kernel does not."""
    workers = lab.status()["workers"]
    assert isinstance(workers, dict)
    counters = workers["dns/0"]
    return int(counters["kernel"]) if counters.get("kernel_interfaces") else None


def test_what_is_asked_again_is_answered_in_the_kernel_and_is_on_record(lab: Lab) -> None:
    before = answered_in_kernel(lab)
    if before is None:
        pytest.skip("no such programs in this kernel")
    for words in ("", "@2001:db8:20::1"):  # no cookie: it would make each question another one
        for number in range(8):
            assert (
                lab.run("pupil2", f"dig +nocookie {words} +short again.example.org").stdout.strip() == "198.51.100.20"
            )
            assert "status: NXDOMAIN" in lab.run("pupil2", f"dig +nocookie {words} again.casino.example").stdout
            time.sleep(0.3 if number < 4 else 0)
    for name, verdict in (("again.example.org", "allow"), ("again.casino.example", "block")):
        rows = wait_for(lab, 16, "--domain", name)
        assert [row["verdict"] for row in rows] == [verdict] * 16
    deadline = time.monotonic() + 5
    while (after := answered_in_kernel(lab) or 0) < before + 16 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert after >= before + 16
    # A foreign resolver's address is not ours: such questions go the way of the firewall, and get the same answer.
    assert lab.run("pupil2", "dig +short @198.51.100.10 again.example.org").stdout.strip() == "198.51.100.20"


def test_status_says_what_runs(lab: Lab) -> None:
    status = lab.status()
    assert status["state"] == "protecting"
    workers = status["workers"]
    assert isinstance(workers, dict)
    assert {"dns/0", "nfq/0"} <= workers.keys()


def test_tail_shows_a_record_as_it_comes(lab: Lab) -> None:
    words = [sys.executable, "-I", str(ROOT), "tail", "--domain", "tailed.example.org"]
    # `timeout` inside the lab: nsenter forks, and a signal to it does not reach who it entered for.
    command = ["timeout", "3", *words, "--config", f"{lab.directory}/gatehouse.conf"]
    with lab.popen("router", command, stdout=subprocess.PIPE) as tail:
        time.sleep(1)
        lab.run("teacher", "dig +short tailed.example.org")
        said, _ = tail.communicate(timeout=20)
    assert "tailed.example.org" in said


def test_the_log_names_nobody(lab: Lab) -> None:
    log = Path(lab.directory, "log", "gatehouse").read_text()
    assert "example" not in log
    assert "10.20.0." not in log
