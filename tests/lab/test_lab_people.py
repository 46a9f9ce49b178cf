"""Guests registered and sealed, questions about them on record, the maintenance log by real causes, the GA export."""

import csv
import datetime
import json
import os
import re
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.standard import ACCESS, ONLINE, SETS
from tests.lab.centre import UPLINK, heard
from tests.lab.lab import ROOT, Lab
from tests.lab.test_lab_profiles import cells, main_of, prepare
from tests.lab.test_lab_sessions import stop
from tests.lab.test_lab_venue import CURL, wait_for

pytestmark = pytest.mark.lab

GUESTS = 500
VENUE, DEVICE = "11010512010001", "123456789020000000001"
MAIN = main_of("cn-82") + f"\toption venue '{VENUE}'\n\toption device '{DEVICE}'\n"
EXTRA = """
config notice 'notice'
\toption controller 'Lab Hotel'
\toption contact 'desk@hotel.example'

config role 'operator'
\tlist user 'games'

config role 'installer'
\tlist user 'man'

config venue 'venue'
\toption name 'Lab Hotel'
\toption address '1 Example Road'
\toption longitude '116.40'
\toption latitude '39.90'
\toption principal 'Li Lei'
\toption contact '+86 10 5555 0100'
\toption opens '00:00'
\toption closes '23:59'
\toption access_mode '99'
"""


def phone(number: int) -> str:
    return f"139{10_000_000 + number * 7919}"


def ready(directory: Path) -> None:
    prepare(directory)
    (directory / "gatehouse.conf").chmod(0o644)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    # Not under pytest's own directory: that is closed to users who are not root, and some of them ask here.
    directory = Path(tempfile.mkdtemp(prefix="gatehouse-people-"))
    directory.chmod(0o755)
    (directory / "small-ring").touch()
    try:
        with Lab.running(directory, flush="1s", main=MAIN, extra=EXTRA + UPLINK, prepare=ready, centre=True) as lab:
            yield lab
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def maintenance(lab: Lab, action: str) -> list[dict[str, object]]:
    return [row for row in lab.rows("--since", "2h", "--kind", "maintenance") if row["action"] == action]


def wait_for_action(
    lab: Lab, action: str, count: int = 1, timeout: float = 12, result: str = ""
) -> list[dict[str, object]]:
    deadline = time.monotonic() + timeout
    rows: list[dict[str, object]] = []
    while len(rows) < count:
        assert time.monotonic() < deadline, (action, rows)
        time.sleep(0.2)
        try:
            rows = [row for row in maintenance(lab, action) if result in str(row["result"])]
        except RuntimeError:  # the agent is on its way back
            continue
    return rows


def test_five_hundred_guests_are_sealed_and_the_recipient_opens_them_all(lab: Lab) -> None:
    path = lab.directory / "guests.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["account", "name", "phone", "document_type", "document_number", "room", "valid_to"])
        for number in range(GUESTS):
            document = f"1101051990{number:08d}"
            writer.writerow(
                [f"g{number}", f"Guest {number} Wang", phone(number), "111", document, str(number), "2027-01-01"]
            )
    imported = lab.gatehouse("registration", "import", str(path), timeout=120)
    assert (imported.returncode, "500 registered" in imported.stdout) == (0, True), imported.stderr
    path.unlink()
    # A login finds the registration; a phone number as an account does not stay one.
    lab.gatehouse("session", "login", "--account", "g7", "--mac", "02:00:00:00:00:0b")
    said = lab.gatehouse("session", "login", "--account", phone(8), "--mac", "02:00:00:00:00:0c").stdout
    assert phone(8) not in said
    lab.run("pupil1", "dig +short of-guest-seven.example.org")
    listed = lab.gatehouse("registration", "list", "--format", "jsonl").stdout
    everything = lab.gatehouse("query", "--since", "1h", "--format", "jsonl").stdout + listed
    phones = {phone(number).encode() for number in range(GUESTS)}

    def has_secret(data: bytes) -> bool:
        """One pass for five hundred numbers, which all begin alike."""
        found = {match[1] for match in re.finditer(rb"(?=(139\d{8}))", data)}
        return bool(found & phones) or b"Wang" in data or b"1101051990" in data

    assert has_secret(b"x" + phone(3).encode())
    for top in ("ring", "state", "run", "log"):
        for place, _, files in os.walk(lab.directory / top):
            for name in files:
                file_path = Path(place, name)
                if not file_path.is_file() or (top == "log" and name != "gatehouse"):
                    continue
                pieces = [file_path.read_bytes()]
                if pieces[0].startswith(b"SQLite format 3"):
                    copy = lab.directory / "copy.db"
                    shutil.copyfile(file_path, copy)
                    pieces += [data for _, data in cells(copy)]
                    copy.unlink()
                for data in pieces:
                    assert not has_secret(data), file_path
    assert not has_secret(everything.encode())
    # All of them have travelled, sealed as they are, and with them nothing that could be read.
    sealed = [bytes.fromhex(json.loads(line)["sealed"]) for line in listed.splitlines()]
    deadline = time.monotonic() + 20
    while missing := [box for box in sealed if not any(box in data for _, data in heard(lab.directory))]:
        assert time.monotonic() < deadline, f"{len(missing)} of {len(sealed)} registrations are not on the wire"
        time.sleep(0.5)
    for where, data in heard(lab.directory):
        assert not has_secret(data), where
    opened = subprocess.run(
        [sys.executable, "-I", str(ROOT), "registration", "open", "--key", str(lab.directory / "recipient.key")],
        input=listed, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    people = {row["account"]: row for row in map(json.loads, opened.splitlines())}
    assert len(people) == GUESTS
    assert all(people[f"g{number}"]["phone"] == f"+86{phone(number)}" for number in range(GUESTS))
    assert people["g499"]["name"] == "Guest 499 Wang"


def test_the_sessions_of_a_phone_are_found_by_who_holds_the_number(lab: Lab) -> None:
    index = lab.gatehouse("registration", "index", "--phone", f"0086 {phone(7)[:3]} {phone(7)[3:]}").stdout.strip()
    refused = lab.gatehouse("query", "--since", "1h", "--phone-index", index)
    assert (refused.returncode, "--reason" in refused.stderr) == (2, True)
    time.sleep(1.2)
    rows = lab.rows("--since", "1h", "--phone-index", index, "--reason", "order 1")
    assert "of-guest-seven.example.org" in {row.get("name") for row in rows}


def test_a_look_up_by_session_is_fast(lab: Lab) -> None:
    import socket

    session = next(line.split()[0] for line in lab.gatehouse("session", "list").stdout.splitlines() if " g7 " in line)
    times = []
    for _ in range(20):
        start = time.monotonic()
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(f"{lab.directory}/run/control")
            link.sendall(json.dumps({"do": "show", "session": session, "reason": "t", "brief": True}).encode() + b"\n")
            said = b""
            while b'"end"' not in said:
                said += link.recv(65536)
        times.append(time.monotonic() - start)
    assert b'"registration"' in said
    assert statistics.median(times) < 0.5, "a bound for a busy machine; the figure itself is in bench-people"


def as_user(lab: Lab, user: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["setpriv", f"--reuid={user}", "--clear-groups", sys.executable, "-I", str(ROOT), *words]
    return lab.run("router", [*command, "--config", f"{lab.directory}/gatehouse.conf"])


def test_each_role_sees_what_it_needs_and_a_stranger_nothing(lab: Lab) -> None:
    if lab.rootless:
        pytest.skip("a user namespace of one user has no others to ask as")
    lab.run("pupil1", "dig +short www.casino.example")
    time.sleep(1.2)
    blocked = as_user(lab, "games", "query", "--since", "1h", "--verdict", "block", "--format", "jsonl")
    assert blocked.returncode == 0, blocked.stderr
    assert "casino.example" in blocked.stdout
    assert '"mac"' not in blocked.stdout
    for words in (
        ("query", "--since", "1h"),
        ("query", "--account", "g7", "--reason", "curious"),
        ("who", "example.org"),
    ):
        assert as_user(lab, "games", *words).returncode == 2
    assert as_user(lab, "man", "status").returncode in (0, 1)
    assert as_user(lab, "man", "query", "--verdict", "block").returncode == 2
    assert "has no role here" in as_user(lab, "nobody", "status").stderr
    denied = {(row["actor"], row["object"]) for row in maintenance(lab, "denied")}
    assert {("games", "who"), ("man", "query"), ("nobody", "status")} <= denied
    # Whoever loses his role loses it with the reload.
    path = lab.directory / "gatehouse.conf"
    before = path.read_text()
    path.write_text(before.replace("list user 'games'", "list user 'mail'"))
    assert lab.gatehouse("reload").returncode == 0
    assert "has no role here" in as_user(lab, "games", "status").stderr
    path.write_text(before)
    assert lab.gatehouse("reload").returncode == 0
    assert as_user(lab, "games", "status").returncode in (0, 1)


def test_an_erasure_that_the_profile_does_not_allow_is_refused_and_on_record(lab: Lab) -> None:
    refused = lab.gatehouse("erase", "--session", "s6b07412976f6f4a9", "--reason", "letter of 3 March")
    assert (refused.returncode, "Art. 13" in refused.stderr) == (2, True)
    assert maintenance(lab, "erase")[-1]["detail"] == "letter of 3 March"


def test_the_standard_export_keeps_to_its_tables(lab: Lab) -> None:
    lab.run("pupil1", f"{CURL} --resolve www.example.net:80:198.51.100.21 http://www.example.net/")
    lab.gatehouse("session", "logout", "--account", "g7")
    wait_for(lab, 1, "--since", "1h", "--kind", "flow", "--domain", "www.example.net")
    path = lab.directory / "ga.zip"
    key = str(lab.directory / "recipient.key")
    done = lab.gatehouse("export", "--standard", "ga", "--since", "1h", "--to", str(path), "--key", key)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert names[-1] == "GAB_ZIP_INDEX.xml"
        tables: dict[str, list[dict[str, str]]] = {}
        for name in names[:-1]:
            found = re.fullmatch(r"145-110105-\d{10}-\d{5}-(WA_[A-Z]+_FJ_\d{4})-0\.bcp", name)
            assert found, name
            fields = SETS[found[1]].fields
            for line in archive.read(name).decode().splitlines():
                values = line.split("\t")
                assert len(values) == len(fields)
                for field, value in zip(fields, values, strict=True):
                    assert len(value) <= field.size
                    assert value or not field.is_required, field
                tables.setdefault(found[1], []).append({f.key: v for f, v in zip(fields, values, strict=True)})
    (guest,) = [row for row in tables[ONLINE.name] if row["AUTH_ACCOUNT"] == "g7"]
    assert (guest["NAME"], guest["NOTE"], guest["MAC"]) == ("Guest 7 Wang", "7", "02-00-00-00-00-0B")
    assert (guest["NETBAR_WACODE"], guest["COLLECTION_EQUIPMENT_ID"], guest["NETSITE_TYPE"]) == (VENUE, DEVICE, "2")
    assert int(guest["START_TIME"]) <= int(guest["END_TIME"])
    visits = [row for row in tables[ACCESS.name] if row["SESSIONID"] == guest["SESSIONID"]]
    assert "www.example.net" in {row["NETWORK_APP_VALUES"] for row in visits}
    assert maintenance(lab, "export")[-1]["object"] == "ga: everybody"


def as_mei(lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["env", "SUDO_USER=mei", sys.executable, "-I", str(ROOT), *words]
    return lab.run("router", [*command, "--config", f"{lab.directory}/gatehouse.conf"])


def test_an_exported_database_says_who_visited_a_domain_and_that_it_was_made(lab: Lab) -> None:
    client = ("--mac", "02:00:00:00:00:15", "--client", "10.20.0.21")
    assert lab.gatehouse("session", "login", "--account", "g21", *client).returncode == 0
    lab.run("teacher", "dig +short deep.exported.example.org")
    wait_for(lab, 1, "--since", "1h", "--domain", "exported.example.org")
    path = lab.directory / "visits.db"
    done = as_mei(lab, "export", "--since", "1h", "--to", str(path))
    assert (done.returncode, done.stdout.startswith(f"{path}: ")) == (0, True), done.stderr
    assert path.stat().st_mode & 0o777 == 0o600
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    text = """SELECT DISTINCT a.client, a.mac, s.account FROM accesses a JOIN sessions s USING (session)
    WHERE a.name LIKE '%exported.example.org'"""
    assert database.execute(text).fetchall() == [("10.20.0.21", "02:00:00:00:00:15", "g21")]
    (count,) = database.execute("SELECT count(*) FROM lookups").fetchone()
    assert count == len(lab.rows("--since", "1h", "--kind", "dns"))
    # On record before its first row: the export itself is in what was exported.
    text = "SELECT actor, object, result FROM maintenance WHERE action = 'export' ORDER BY time DESC LIMIT 1"
    assert database.execute(text).fetchone() == ("mei (root)", "sqlite: everybody", "answered")
    database.close()
    again = as_mei(lab, "export", "--since", "1h", "--to", str(path))
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
    named = as_mei(lab, "export", "--account", "g21", "--to", str(lab.directory / "named.db"))
    assert (named.returncode, "--reason" in named.stderr) == (2, True)
    assert not list(lab.directory.glob("named.db*"))
    before = len(maintenance(lab, "export"))
    path.unlink()
    assert as_mei(lab, "export", "--kind", "maintenance", "--to", str(path)).returncode == 0
    assert len(maintenance(lab, "export")) == before + 1


def test_a_held_domain_is_listed_and_lifted_each_on_record_with_who_did_it(lab: Lab) -> None:
    assert as_mei(lab, "hold", "list").stdout == ""
    nothing = as_mei(lab, "hold", "add", "--reason", "order 3")
    assert nothing.returncode == 2, nothing.stdout
    added = as_mei(lab, "hold", "add", "--domain", "exported.example.org", "--reason", "order 3")
    assert added.returncode == 0, added.stderr
    number, _, rest = added.stdout.strip().partition("  ")
    assert rest.startswith("domain exported.example.org, from 1970-01-01T")
    assert rest.endswith("until it is lifted: order 3 (by mei)")
    assert as_mei(lab, "hold", "list").stdout == added.stdout
    lifted = lab.gatehouse("hold", "lift", number)
    assert lifted.returncode == 0, lifted.stderr
    assert as_mei(lab, "hold", "list").stdout == ""
    twice = lab.gatehouse("hold", "lift", number)
    assert twice.returncode == 2, twice.stdout
    wait_for_action(lab, "hold", 2)
    told = [(row["actor"], row["object"], str(row["result"]).partition(":")[0]) for row in maintenance(lab, "hold")]
    assert told[0] == ("mei", f"hold {number}", "placed")
    assert told[1][1:] == (f"hold {number}", "lifted")
    assert told[1][0] not in ("", "mei")
    assert len(told) == 2, "what was refused changed nothing"
    # A number on which somebody can be called would stand in the log for ever.
    number_held = as_mei(lab, "hold", "add", "--account", phone(7), "--reason", "order 4")
    assert (number_held.returncode, "--phone-index" in number_held.stderr) == (2, True)


def test_a_wrong_venue_code_is_refused_at_provisioning(lab: Lab) -> None:
    path = lab.directory / "wrong.conf"
    path.write_text((lab.directory / "gatehouse.conf").read_text().replace(VENUE, "1101051X010001"))
    command = [sys.executable, "-I", str(ROOT), "check", "--config", str(path)]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 2
    assert "gatehouse.main.venue: expected the venue's type as character 8" in told.stderr


# --- the maintenance log, by real causes -----------------------------------------------------------------------


def test_a_change_of_configuration_and_policy_has_hashes_and_a_name(lab: Lab) -> None:
    path = lab.directory / "gatehouse.conf"
    path.write_text(path.read_text() + "\n# a change\n")
    (lab.directory / "lists" / "adult").write_text("adult.example\nanother.example\n")
    command = [sys.executable, "-I", str(ROOT), "reload", "--config", str(path)]
    assert lab.run("router", ["env", "SUDO_USER=mei", *command]).returncode == 0
    time.sleep(1)  # earlier changes are on record already: the last ones are to be on flash
    config, policy = wait_for_action(lab, "config")[-1], wait_for_action(lab, "policy")[-1]
    for row in (config, policy):
        assert row["actor"] == "mei"
        assert re.fullmatch(r"[0-9a-f]{16}", str(row["old"]))
        assert re.fullmatch(r"[0-9a-f]{16}", str(row["new"]))
        assert row["old"] != row["new"]


def test_a_list_that_was_updated_and_one_whose_update_was_refused(lab: Lab) -> None:
    """A real server, and the compiler's own fetch: as an upstream list changes from one day to the next."""
    served = lab.directory / "served"
    served.mkdir()
    for day, text in ((1, "first.fetched.example\n"), (2, "first.fetched.example\nsecond.fetched.example\n")):
        (served / f"day{day}").write_text(text)
        os.utime(served / f"day{day}", (1_700_000_000 + day * 86_400,) * 2)
    (served / "day3").write_text("<html>we have moved</html>")
    config = lab.directory / "gatehouse.conf"
    before = config.read_text()
    command = [sys.executable, "-m", "http.server", "8099", "--bind", "198.51.100.20", "--directory", str(served)]
    server = lab.popen("internet", command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lab.run("router", "curl -s --retry 20 --retry-connrefused --retry-delay 1 -o /dev/null http://198.51.100.20:8099/")
    try:
        for day in (1, 2, 3):
            url = f"http://198.51.100.20:8099/day{day}"
            policy = f"config policy 'policy'\n\toption list_dir '{lab.directory}/fetched'\n"
            text = before.replace("config policy 'policy'\n", policy)
            config.write_text(f"{text}\nconfig list 'fetched'\n\toption url '{url}'\n\toption category 'gambling'\n")
            lab.gatehouse("reload")
        rows = [row for row in wait_for_action(lab, "policy", 3) if row["object"] == "list:fetched"]
        told = [(row["actor"], row["old"], row["new"], row["result"]) for row in rows]
        first, second = "Wed, 15 Nov 2023 22:13:20 GMT", "Thu, 16 Nov 2023 22:13:20 GMT"
        assert told == [("policy", "", first, "ok"), ("policy", first, second, "ok"), ("policy", second, "", "refused")]
        assert "HTML" in str(rows[-1]["detail"])
    finally:
        lab.run("router", "pkill -f 'http.server 8099'")
        server.wait(10)
        config.write_text(before)
        assert lab.gatehouse("reload").returncode == 0


def test_a_hold_an_export_and_rules_that_somebody_removed(lab: Lab) -> None:
    assert lab.gatehouse("hold", "add", "--account", "g7", "--reason", "order 9").returncode == 0
    assert lab.gatehouse("export", "--since", "1h", "--to", str(lab.directory / "out.db")).returncode == 0
    lab.run("router", "iptables -t nat -F PREROUTING")
    lab.run("router", "iptables -t mangle -F")
    assert re.fullmatch(r"hold \d+", str(wait_for_action(lab, "hold")[-1]["object"]))
    assert wait_for_action(lab, "hold")[-1]["result"] == "placed: order 9"
    assert wait_for_action(lab, "export")
    assert wait_for_action(lab, "rules", result="removed")


def test_a_login_on_the_router_and_one_that_failed(lab: Lab) -> None:
    # An interactive shell reads /etc/profile.d; here, the file itself, with the hooks where this lab has them.
    hooks = ROOT / "packaging/openwrt/gatehouse/files"
    profile = lab.directory / "profile.sh"
    text = (hooks / "etc/profile.d/gatehouse.sh").read_text()
    profile.write_text(text.replace("/usr/libexec/gatehouse", f"{hooks}/usr/libexec/gatehouse"))
    env = ["env", f"ENV={profile}", f"GATEHOUSE_SESSIONS={lab.directory}/run/sessions", "USER=root"]
    lab.run("router", [*env, "script", "-qec", "sh -i -c true", "/dev/null"])
    lab.run("router", [*env, str(hooks / "usr/libexec/gatehouse/tell"), "login-failed", "admin", "/dev/ttyS0"])
    (login, *_) = wait_for_action(lab, "login")
    assert login["actor"] == "root"
    assert str(login["object"]).startswith("/dev/")
    (failed, *_) = wait_for_action(lab, "login-failed")
    assert (failed["actor"], failed["object"]) == ("admin", "/dev/ttyS0")


def test_a_clock_that_steps(tmp_path: Path) -> None:
    def falsify(directory: Path) -> None:
        (directory / "faketime").write_text("+0")

    def start() -> Lab:
        # A venue of its own: libfaketime is good for a clock that steps, and not for starting and stopping processes,
        # of which one in some dozens hangs in its lock.
        for attempt in ("first", "second"):
            try:
                return Lab.start(tmp_path / attempt, flush="1s", prepare=falsify)
            except RuntimeError as error:
                print(error)
        return Lab.start(tmp_path / "last", flush="1s", prepare=falsify)

    lab = start()
    try:
        (lab.directory / "faketime").write_text("-1800")
        assert "-1800" in str(wait_for_action(lab, "clock")[-1]["result"])
        (lab.directory / "faketime").write_text("+0")
        assert "+1800" in str(wait_for_action(lab, "clock", 2)[-1]["result"])
    finally:
        lab.stop()


def test_a_storage_that_takes_nothing_and_then_does(lab: Lab) -> None:
    filler = lab.directory / "ring" / "filler"
    lab.run("router", ["sh", "-c", f"cat /dev/zero > {filler}"])
    deadline = time.monotonic() + 15
    while "full" not in str((status := lab.status())["ring"]):
        lab.run("pupil1", "dig +short full.example.org")
        assert time.monotonic() < deadline, status
        time.sleep(0.3)
    lab.run("router", f"rm {filler}")
    assert wait_for_action(lab, "storage", timeout=20, result="works again")
    assert wait_for_action(lab, "storage", result="full")


def test_an_unauthorised_stop_a_crash_and_an_upgrade(lab: Lab) -> None:
    killed_s = time.time()
    lab.kill("agent/0", signal.SIGKILL)
    wait_for_action(lab, "crash")
    (gap,) = [row for row in lab.rows("--since", "1h", "--kind", "gap") if row["source"] == "agent"]
    assert abs(datetime.datetime.fromisoformat(str(gap["from"])).timestamp() - killed_s) < 1.5
    lab.wait_until_ready()
    # Another release is installed, and started.
    release = lab.directory / "release"
    for room in ("agent", "bpf", "dns", "hw", "nfq", "policy", "storage"):
        if (ROOT / room).exists():
            shutil.copytree(ROOT / room, release / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "__main__.py", release)
    version = release / "agent" / "version.py"
    version.write_text(re.sub(r'= "[^"]+"', '= "9.9.9"', version.read_text()))
    lab.kill("launch", signal.SIGTERM)
    while lab.processes():
        time.sleep(0.1)
    command = [sys.executable, "-I", str(release), "launch", "--config", f"{lab.directory}/gatehouse.conf"]
    launcher = lab.popen("router", command, stderr=subprocess.DEVNULL)
    try:
        lab.wait_until_ready()
        (row,) = wait_for_action(lab, "upgrade")
        assert (row["new"], row["old"] != "9.9.9") == ("9.9.9", True)
        assert wait_for_action(lab, "stop")
        assert len(wait_for_action(lab, "start")) >= 3
    finally:
        stop(lab, launcher)
