"""Who was it: real DHCP, a real RADIUS client, openNDS's BinAuth calls; every end has its cause and its moment."""

import datetime
import subprocess
import time
import uuid
from collections.abc import Iterator

import pytest

from tests.lab.lab import ROOT, Lab
from tests.lab.test_lab_life import kill_everything, restart_command
from tests.lab.test_lab_venue import wait_for

pytestmark = pytest.mark.lab

HOOKS = ROOT / "packaging/openwrt/gatehouse/files/usr/libexec/gatehouse"
GUEST = "02:00:00:00:00:31"
TEACHER = "02:00:00:00:00:15"
PUPIL1, PUPIL2 = "02:00:00:00:00:0b", "02:00:00:00:00:0c"
UDHCPC = """#!/bin/sh
case $1 in
bound | renew) ip addr replace "$ip/24" dev "$interface"; ip route replace default via "$router" ;;
deconfig) ip -4 addr flush dev "$interface" ;;
esac
"""
RADIUS = """
config radius 'controller'
\toption address '10.20.0.21'
\toption secret 'testing123'
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = tmp_path_factory.mktemp("sessions")
    (directory / "boot_id").write_text(f"{uuid.uuid4()}\n")
    with Lab.running(directory, flush="1s", extra=RADIUS) as lab:
        yield lab


def radius(lab: Lab, **attributes: str) -> str:
    """One accounting request by FreeRADIUS's radclient, from the access controller's address."""
    text = "\n".join(f'{name.replace("_", "-")} = "{value}"' for name, value in attributes.items())
    command = "radclient -x -r 2 -t 2 10.20.0.1:1813 acct testing123"
    return lab.run("teacher", command, input=text + "\n").stdout


def binauth(lab: Lab, *words: str) -> str:
    """openNDS's call, argument for argument."""
    command = ["env", f"GATEHOUSE_SESSIONS={lab.directory}/run/sessions", str(HOOKS / "binauth"), *words]
    return lab.run("router", command, check=True).stdout


def auth_client(lab: Lab, mac: str, ip: str, token: str, custom: str = "") -> None:
    said = binauth(lab, "auth_client", mac, "http%3a%2f%2fsecret.example%2f", "Mozilla/5.0 (X)", ip, token, custom)
    assert said == "0 0 0 0 0\n"


def ended(lab: Lab, account: str, timeout: float = 15) -> dict[str, object]:
    """The last record of an account's session, once it has ended."""
    deadline = time.monotonic() + timeout
    while True:
        rows = [
            r for r in lab.rows("--since", "1h", "--account", account, "--reason", "test") if r["kind"] == "session"
        ]
        if rows and rows[-1]["cause"]:
            return rows[-1]
        assert time.monotonic() < deadline, rows
        time.sleep(0.2)


def stop(lab: Lab, launcher: "subprocess.Popen[str]") -> None:
    """In order: nsenter forks, so the signal goes to whom it entered for."""
    lab.run("router", ["pkill", "-TERM", "-f", f"launch --config {lab.directory}"])
    launcher.wait(20)
    while lab.run("router", ["pgrep", "-f", f"--config {lab.directory}"]).stdout:
        time.sleep(0.1)


def seconds(text: object) -> float:
    return datetime.datetime.fromisoformat(str(text)).timestamp()


def test_a_dhcp_client_has_a_session_until_its_lease_ends(lab: Lab) -> None:
    script = lab.directory / "udhcpc"
    script.write_text(UDHCPC)
    script.chmod(0o755)
    client = lab.popen("guest", f"udhcpc -f -i eth0 -R -s {script}", stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while True:
            found = lab.rows("--since", "1h", "--kind", "session", "--mac", GUEST, "--reason", "test")
            if found and found[-1]["source"] == "dhcp":
                break
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
        login = found[-1]
        name = "by-dhcp.example.org"
        (ip,) = [a for a in login["addresses"] if str(a).startswith("10.20.0.1")]  # type: ignore[attr-defined]
        assert lab.run("guest", f"dig +short {name}").stdout.strip() == "198.51.100.20"
        (row, *_) = wait_for(lab, 1, "--since", "1h", "--kind", "dns", "--domain", name)
        assert (row["client"], row["session"]) == (ip, login["session"])
    finally:
        # Inside: nsenter forks, and a signal to it does not reach who it entered for. USR2 is udhcpc's "release".
        lab.run("router", f"pkill -USR2 -f {script}")
        lab.run("router", f"pkill -TERM -f {script}")
        client.wait(10)
    deadline = time.monotonic() + 10
    while True:
        rows = lab.rows("--since", "1h", "--kind", "session", "--mac", GUEST, "--reason", "test")
        if rows[-1]["cause"]:
            break
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert (rows[-1]["cause"], rows[-1]["session"]) == ("lease", login["session"])


def test_six_ends_have_six_causes(lab: Lab) -> None:
    auth_client(lab, "02:00:00:00:01:01", "10.20.0.51", "tok1", "account=idler")
    binauth(lab, "client_auth", "02:00:00:00:01:01", "0", "0", "1", "0", "tok1", "account=idler")
    binauth(lab, "idle_deauth", "02:00:00:00:01:01", "10", "20", "1", "2", "tok1", "")
    assert ended(lab, "idler")["cause"] == "idle"

    device = {"Calling_Station_Id": "02-00-00-00-01-02", "Framed_IP_Address": "10.20.0.52", "NAS_Identifier": "ac1"}
    assert "Accounting-Response" in radius(
        lab, Acct_Status_Type="Start", User_Name="timer", Acct_Session_Id="a1", **device
    )
    assert "Accounting-Response" in radius(
        lab, Acct_Status_Type="Stop", User_Name="timer", Acct_Session_Id="a1",
        Acct_Terminate_Cause="Session-Timeout", **device,
    )  # fmt: skip
    assert ended(lab, "timer")["cause"] == "timeout"

    auth_client(lab, "02:00:00:00:01:03", "10.20.0.53", "tok3", "account%3deater")
    binauth(lab, "downquota_deauth", "02:00:00:00:01:03", "10", "20", "1", "2", "tok3", "")
    assert ended(lab, "eater")["cause"] == "quota"

    device |= {"Calling_Station_Id": "0200.0000.0104", "Framed_IP_Address": "10.20.0.54"}
    radius(lab, Acct_Status_Type="Start", User_Name="kicked", Acct_Session_Id="a2", **device)
    radius(lab, Acct_Status_Type="Interim-Update", User_Name="kicked", Acct_Session_Id="a2", **device)
    radius(
        lab, Acct_Status_Type="Stop", User_Name="kicked", Acct_Session_Id="a2", Acct_Terminate_Cause="Admin-Reset",
        **device,
    )  # fmt: skip
    assert ended(lab, "kicked")["cause"] == "admin"

    device |= {"Calling_Station_Id": "020000000105", "Framed_IP_Address": "10.20.0.55"}
    radius(lab, Acct_Status_Type="Start", User_Name="stopped", Acct_Session_Id="a3", **device)
    radius(lab, Acct_Status_Type="Accounting-Off", NAS_Identifier="ac1")
    assert ended(lab, "stopped")["cause"] == "shutdown"
    assert "secret.example" not in (lab.directory / "log" / "gatehouse").read_text()


def test_a_wrong_secret_gets_no_answer_and_begins_nothing(lab: Lab) -> None:
    command = "radclient -x -r 1 -t 1 10.20.0.1:1813 acct wrong"
    text = (
        'Acct-Status-Type = Start\nUser-Name = "mallory"\nAcct-Session-Id = "m"\nCalling-Station-Id = "020000000109"\n'
    )
    said = lab.run("teacher", command, input=text)
    assert (said.returncode, "Accounting-Response" in said.stdout) == (1, False)
    assert lab.rows("--since", "1h", "--account", "mallory", "--reason", "test") == []


def test_two_accounts_on_one_device_are_two_sessions_and_each_access_is_the_right_ones(lab: Lab) -> None:
    sessions = []
    for account in ("ann", "ben"):
        assert lab.gatehouse("session", "login", "--account", account, "--mac", PUPIL1).returncode == 0
        for number in range(5):
            lab.run("pupil1", f"dig +short {account}-{number}.example.org")
        lab.run("pupil1", f"curl -s --max-time 5 http://{account}.example.net/")
    for account in ("ann", "ben"):
        time.sleep(1)
        rows = wait_for(lab, 8, "--since", "1h", "--account", account, "--reason", "test")
        names = {str(row["name"]) for row in rows if row["kind"] in ("dns", "flow")}
        assert names >= {f"{account}-{number}.example.org" for number in range(5)} | {f"{account}.example.net"}
        assert [name for name in names if account not in name] == [], "an access of the other one"
        sessions.append({row["session"] for row in rows})
    assert [len(each) for each in sessions] == [1, 1]
    assert sessions[0] != sessions[1]
    assert ended(lab, "ann")["cause"] == "replaced"


def test_a_device_with_four_ipv6_addresses_and_one_ipv4_is_one_session(lab: Lab) -> None:
    lab.gatehouse("session", "login", "--account", "six", "--mac", PUPIL2)
    for number in range(1, 5):
        address = f"2001:db8:20::c{number}"
        lab.run("pupil2", f"ip -6 addr add {address}/64 dev eth0 nodad", check=True)
        page = f"http://six{number}.example.net/"
        assert "you asked" in lab.run("pupil2", f"curl -sS --max-time 9 --interface {address} -6 {page}").stdout
        lab.run("pupil2", f"dig +short -b {address} @2001:db8:20::1 six{number}.example.org")
    lab.run("pupil2", "curl -s --max-time 5 -4 http://six4.example.net/")
    deadline = time.monotonic() + 10
    while True:
        rows = lab.rows("--since", "1h", "--account", "six", "--reason", "test")
        clients = {row["client"] for row in rows if row["kind"] == "flow"}
        last = [row for row in rows if row["kind"] == "session"][-1]["addresses"]
        if len(clients) >= 5 and isinstance(last, list) and len(last) >= 5:
            break
        assert time.monotonic() < deadline, clients
        time.sleep(0.2)
    assert {row["session"] for row in rows} == {rows[0]["session"]}
    assert {f"2001:db8:20::c{number}" for number in range(1, 5)} | {"10.20.0.12"} <= set(last)


def test_show_needs_a_reason_and_the_audit_is_there_before_the_answer(lab: Lab) -> None:
    lab.gatehouse("session", "login", "--account", "shown", "--mac", TEACHER)
    lab.run("teacher", "dig +short shown.example.org")
    time.sleep(1.5)
    session = next(line.split()[0] for line in lab.gatehouse("session", "list").stdout.splitlines() if "shown" in line)
    refused = lab.gatehouse("show", "--session", session)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--reason" in refused.stderr
    shown = lab.gatehouse("show", "--session", session, "--reason", "order 77/2026")
    assert "shown.example.org" in shown.stdout
    rows = lab.rows("--since", "1h", "--kind", "maintenance")
    assert [row["object"] for row in rows if row["action"] == "show" and row["detail"] == "order 77/2026"] == [
        f"session {session}"
    ]
    # A question whose record cannot be on flash first has no answer: the row of the audit comes before its own.
    for words in (("query", "--mac", TEACHER), ("names", "--account", "shown"), ("tail", "--client", "10.20.0.21")):
        assert lab.gatehouse(*words).returncode == 2


def test_an_agent_that_dies_keeps_its_sessions(lab: Lab) -> None:
    lab.gatehouse("session", "login", "--account", "stays", "--mac", "02:00:00:00:01:20", "--client", "10.20.0.60")
    before = [line.split()[0] for line in lab.gatehouse("session", "list").stdout.splitlines() if "stays" in line]
    lab.kill("agent/0")
    time.sleep(1)
    lab.wait_until_ready()
    after = [line.split()[0] for line in lab.gatehouse("session", "list").stdout.splitlines() if "stays" in line]
    assert before == after != []


def test_a_power_cut_in_mid_session_closes_it_where_it_was_last_seen(lab: Lab) -> None:
    lab.gatehouse("session", "login", "--account", "dark", "--mac", TEACHER)
    lab.run("teacher", "dig +short dark.example.org")
    seen_s = time.time()
    wait_for(lab, 1, "--since", "1h", "--domain", "dark.example.org")
    kill_everything(lab)
    (lab.directory / "boot_id").write_text(f"{uuid.uuid4()}\n")
    time.sleep(3)
    restart = lab.popen("router", restart_command(lab), stderr=subprocess.DEVNULL)
    try:
        lab.wait_until_ready()
        last = ended(lab, "dark")
        assert last["cause"] == "power"
        assert abs(seconds(last["logout"]) - seen_s) < 2.0, "closed at last-seen, not at now"
        mine = [r for r in lab.rows("--since", "1h", "--account", "dark", "--reason", "t") if r["kind"] == "session"]
        assert len({row["session"] for row in mine}) == 1
        assert not [line for line in lab.gatehouse("session", "list").stdout.splitlines() if "dark" in line]
        # The same in order: the router is told to stop, and boots again.
        lab.gatehouse("session", "login", "--account", "late", "--mac", TEACHER)
    finally:
        stop(lab, restart)
    (lab.directory / "boot_id").write_text(f"{uuid.uuid4()}\n")
    again = lab.popen("router", restart_command(lab), stderr=subprocess.DEVNULL)
    try:
        lab.wait_until_ready()
        assert ended(lab, "late")["cause"] == "reboot"
    finally:
        stop(lab, again)
