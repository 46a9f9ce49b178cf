"""Life and death: each process killed in mid-traffic, everything killed, hung workers, orderly stops, hostile bytes."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.lab import Lab
from tests.lab.test_lab_venue import CURL, wait_for

pytestmark = pytest.mark.lab

HERE = Path(__file__).resolve().parent


def ask_while(lab: Lab, tag: str, seconds: float, do: Callable[[], None]) -> list[tuple[str, float]]:
    """Names that were answered, and when, while something was done in mid-way."""
    with lab.popen(
        "pupil1", [sys.executable, "-I", str(HERE / "asker.py"), str(seconds), tag], stdout=subprocess.PIPE
    ) as asker:
        time.sleep(seconds / 3)
        do()
        said, _ = asker.communicate(timeout=seconds + 20)
    return [(line.split()[0], float(line.split()[1])) for line in said.splitlines()]


@pytest.mark.parametrize("victim", ["dns/0", "nfq/0", "agent/0"])
def test_killed_in_mid_traffic_service_resumes_and_no_acknowledged_record_is_missing(
    tmp_path: Path, victim: str
) -> None:
    with Lab.running(tmp_path, flush="1s") as lab:
        killed_at = 0.0

        def kill() -> None:
            nonlocal killed_at
            killed_at = time.time()
            lab.kill(victim)

        answers = ask_while(lab, victim.replace("/", ""), 6, kill)
        answered_after = [at for name, at in answers if name != "-" and at > killed_at + 0.05]
        assert min(answered_after) - killed_at < 2.0
        # Everything but what the dead process itself had in hand is on record, once.
        names = [name for name, _ in answers if name != "-"]
        limit = killed_at if victim == "dns/0" else 0
        deadline = time.monotonic() + 10
        while True:
            rows = [row["name"] for row in lab.rows("--domain", "example.org", "--kind", "dns", "--since", "1h")]
            missing = [name for name in names if name not in rows and abs(dict(answers)[name] - limit) > 0.5]
            if not missing or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        assert missing == []
        assert len(rows) == len(set(rows)), "a record is there twice"
        told = lab.rows("--since", "1h", "--kind", "maintenance")
        assert any(row["object"] == victim.replace("agent/0", "agent") and row["action"] == "crash" for row in told)
        if victim != "agent/0":
            (gap,) = [row for row in lab.rows("--since", "1h", "--kind", "gap") if row["source"] == victim]
            assert abs(iso(str(gap["from"])) - killed_at) < 1.0
            assert iso(str(gap["to"])) - killed_at < 2.5
        wait_until_protecting(lab)
        blocked = lab.run("pupil1", f"{CURL} -k --resolve casino.example:443:198.51.100.21 https://casino.example/")
        assert "reset" in blocked.stderr


def iso(text: str) -> float:
    import datetime

    return datetime.datetime.fromisoformat(text).timestamp()


def wait_until_protecting(lab: Lab, timeout: float = 10) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            if lab.status()["state"] == "protecting":
                return
        except RuntimeError:
            pass
        assert time.monotonic() < deadline, "not protecting again"
        time.sleep(0.1)


def kill_everything(lab: Lab) -> None:
    processes = lab.processes()
    for name in ("launch", *sorted(processes.keys() - {"launch"})):
        os.kill(processes[name], signal.SIGKILL)


def test_open_everything_killed_and_the_venue_keeps_its_internet(tmp_path: Path) -> None:
    with Lab.running(tmp_path, on_failure="open") as lab:
        kill_everything(lab)
        time.sleep(6)  # the lease of the port-53 redirect runs out
        assert lab.run("pupil1", f"{CURL} http://www.example.org/").stdout.startswith("you asked")
        assert lab.run("pupil1", f"{CURL} --cacert {tmp_path}/ca.crt https://h1.example.net/").stdout.startswith(
            "you asked"
        )


def test_closed_everything_killed_and_the_venue_has_none(tmp_path: Path) -> None:
    with Lab.running(tmp_path, on_failure="closed") as lab:
        assert lab.run("pupil1", f"{CURL} http://www.example.org/").stdout.startswith("you asked")
        kill_everything(lab)
        time.sleep(6)
        assert lab.run("pupil1", "dig +time=1 +tries=2 www.example.org").returncode != 0
        to = "--resolve www.example.org:80:198.51.100.21 --resolve www.example.org:8080:198.51.100.21"
        assert lab.run("pupil1", f"curl -sS --max-time 3 {to} http://www.example.org/").stdout == ""
        assert lab.run("pupil1", f"curl -sS --max-time 3 {to} http://www.example.org:8080/").stdout == ""


@pytest.mark.parametrize("victim", ["nfq/0", "dns/0"])
def test_a_hung_worker_is_killed_and_traffic_flows_again(tmp_path: Path, victim: str) -> None:
    with Lab.running(tmp_path) as lab:
        pid = lab.processes()[victim]
        lab.kill(victim, signal.SIGSTOP)
        start = time.monotonic()
        while lab.run("pupil1", "curl -sS --max-time 1 http://www.example.org/").returncode:
            assert time.monotonic() - start < 8, "a hung worker still stops the venue"
        wait_until_protecting(lab)
        assert lab.processes()[victim] != pid
        assert [row for row in wait_for(lab, 1, "--kind", "maintenance") if row["action"] == "kill"]


def test_sigterm_drains_and_ends_within_five_seconds(tmp_path: Path) -> None:
    with Lab.running(tmp_path, flush="30s") as lab:
        names = [f"last-{number}.example.org" for number in range(10)]
        for name in names:
            lab.run("pupil1", f"dig +short {name}")
        start = time.monotonic()
        lab.kill("launch", signal.SIGTERM)
        while lab.processes():
            assert time.monotonic() - start < 5
            time.sleep(0.05)
        assert "Gatehouse is stopped" in stopped_text(lab)
        # With nobody at home the rules are gone too: an orderly stop leaves the router as it was.
        rules = lab.run("router", "iptables-save").stdout + lab.run("router", "ip6tables-save").stdout
        assert "NFQUEUE" not in rules
        assert "5300" not in rules
        assert lab.run("pupil1", f"{CURL} http://www.example.org/").stdout.startswith("you asked")
        restart = lab.popen("router", restart_command(lab), stderr=subprocess.DEVNULL)
        wait_until_protecting(lab)
        rows = [row["name"] for row in lab.rows("--since", "1h", "--kind", "dns")]
        assert sorted(set(names) & set(rows)) == sorted(names), "what was flushed on the way out is there"
        actions = [(row["action"], row["object"]) for row in lab.rows("--since", "1h", "--kind", "maintenance")]
        assert ("stop", "agent") in actions
        assert ("crash", "agent") not in actions
        restart.terminate()


def stopped_text(lab: Lab) -> str:
    result = lab.gatehouse("status")
    assert result.returncode == 2
    return "Gatehouse is stopped" if "the agent does not answer" in result.stderr else result.stderr


def restart_command(lab: Lab) -> list[str]:
    from tests.lab.lab import ROOT

    return [sys.executable, "-I", str(ROOT), "launch", "--config", f"{lab.directory}/gatehouse.conf"]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_sixty_seconds_of_hostile_bytes_stop_nothing(tmp_path: Path) -> None:
    with Lab.running(tmp_path) as lab:
        before = lab.processes()
        floods = [
            lab.popen(client, [sys.executable, "-I", str(HERE / "flood.py"), "60", str(seed)], stdout=subprocess.PIPE)
            for seed, client in enumerate(("pupil1", "pupil2"))
        ]
        answered = asked = 0
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            asked += 1
            answered += "198.51.100" in lab.run("teacher", "dig +short +time=2 +tries=2 www.example.org").stdout
            time.sleep(0.5)
        sent = [int(flood.communicate(timeout=60)[0]) for flood in floods]
        assert min(sent) > 1000
        assert lab.processes() == before, "a process died"
        assert answered >= asked * 0.95
        assert lab.run("teacher", f"{CURL} --cacert {tmp_path}/ca.crt https://h1.example.org/").stdout.startswith(
            "you asked"
        )
        assert lab.status()["state"] == "protecting"


def test_a_stranger_on_the_event_socket_is_refused_and_harms_nobody(tmp_path: Path) -> None:
    with Lab.running(tmp_path) as lab:
        rng = random.Random(1)
        for _ in range(200):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
                link.connect(f"{tmp_path}/run/events")
                link.send(rng.randbytes(rng.randrange(1, 500)))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.connect(f"{tmp_path}/run/control")
            link.sendall(b"\xff\xfe{}\n")
            assert "error" in json.loads(link.recv(65536))
        assert lab.status()["state"] == "protecting"
        assert oct(os.stat(f"{tmp_path}/run/events").st_mode & 0o777) == "0o600"
        assert oct(os.stat(f"{tmp_path}/run/control").st_mode & 0o777) == "0o600"
