"""The same traffic under each legal profile: what it forbids is in no file, no answer, no log. Octets are searched."""

import json
import os
import sqlite3
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from agent import identity
from agent.__main__ import read_config
from agent.legal import load_profile
from agent.notice import publish
from tests.lab.centre import UPLINK, heard
from tests.lab.lab import ROOT, Lab
from tests.lab.test_lab_venue import CURL, wait_for

pytestmark = pytest.mark.lab

PHONE = "13800138000"
NEEDLES = {
    "visited": [b"deep.visited.example.org"],
    "site": [b"www.example.net"],
    "path": [b"/lesson/hidden-page"],
    "query": [b"secret-word"],
    "blocked": [b"deep.casino.example"],
    "client": [b"10.20.0.11", bytes((10, 20, 0, 11))],
    "mac": [b"02:00:00:00:00:0b", bytes((2, 0, 0, 0, 0, 11))],
    "account": [b"account-of-ann"],
    "room": [b"room-2718"],
    "phone": [PHONE.encode()],
    "destination": [b"198.51.100.21", bytes((198, 51, 100, 21))],
    "answer": [b"198.51.100.20", bytes((198, 51, 100, 20))],
    "profile": [b"profile eu-guest"],
}
"""What the traffic below would leave behind, as text and as octets."""


class Case(NamedTuple):
    forbidden: str
    kept: str
    on_wire: str
    """What is kept and must have been seen in an MQTT payload: else the search there would find nothing at all."""
    ring: str = "60 90"
    refusal: str = ""
    """What an export to a database is refused with; empty: the profile allows it."""
    closed: str = ""
    """What is kept and travels closed with the session's own key, so that it can be erased at the centre too."""


CN = Case("path query phone", "visited site blocked client mac account room destination answer",
          "visited site blocked client mac account room destination answer")  # fmt: skip
CASES = {
    "cn-82": CN,
    "cn-82-180": CN._replace(ring="180 0"),
    "us-cipa": Case("visited site path query client mac account room phone destination answer", "blocked", "blocked",
                    refusal="allows none, not sqlite (No recipient is named by the law)"),
    "eu-guest": Case("visited site path query blocked phone destination answer", "client mac account room", "profile",
                     closed="client mac account room"),
    "uk-kcsie": Case("path query room phone destination answer", "visited site blocked client mac account",
                     "visited site blocked client mac account"),
    "tr-5651": Case("visited site path query room phone answer", "blocked client mac account destination",
                    "blocked client mac account destination", "730 730"),
}  # fmt: skip


EXTRA = """
config notice 'notice'
\toption controller 'Lab School'
\toption contact 'head@school.example'
\tlist listen '10.20.0.1#8060'
"""


WHERE = "\toption venue '11010512010001'\n\toption device '123456789020000000001'\n"
"""To speak to a centre, a router must be somebody."""


def main_of(name: str) -> str:
    return f"\toption legal '{name}'\n"


def prepare(directory: Path) -> None:
    """What an installer does: the recipient's key, the notice."""
    (directory / "state").mkdir(exist_ok=True)
    identity.make_keys(str(directory / "recipient.key"), str(directory / "state" / "recipient.pub"))
    path = directory / "gatehouse.conf"
    case = CASES[path.read_text().split("option legal '")[1].split("'")[0]]
    promised, longest = case.ring.split()
    days = f"\toption promised_days '{promised}'\n\toption maximum_days '{longest}'\n"
    path.write_text(path.read_text().replace("config ring 'ring'\n", f"config ring 'ring'\n{days}"))
    config = read_config(str(path))
    profile = load_profile(config)
    assert profile is not None
    publish(profile, config)


def octets(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Everything that Gatehouse has written, as it is and with what is deflated in it unpacked."""
    for top in ("ring", "state", "run", "log", "exported"):
        for place, _, files in os.walk(directory / top):
            for file in files:
                path = Path(place, file)
                if not path.is_file() or (top == "log" and file != "gatehouse") or file in ("policy.gp", "notice.html"):
                    continue
                raw = path.read_bytes()
                yield str(path), raw
                if raw.startswith(b"SQLite format 3"):
                    yield from cells(path)


def cells(path: Path) -> Iterator[tuple[str, bytes]]:
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        for row in database.execute(f"SELECT * FROM {table}"):
            for cell in row:
                if isinstance(cell, bytes):
                    yield f"{path} {table}", cell
                    for at in range(min(len(cell), 64)):
                        if cell[at : at + 1] == b"\x78":
                            try:
                                yield f"{path} {table}", zlib.decompressobj().decompress(cell[at:])
                            except zlib.error:
                                pass
    database.close()


def found_in(directory: Path, answers: bytes) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    wire = heard(directory) if (directory / "centre").exists() else ()
    for place, data in (("answers", answers), *octets(directory), *wire):
        for what, needles in NEEDLES.items():
            if any(needle in data for needle in needles):
                found.setdefault(what, set()).add(place)
    return found


def wait_for_wire(directory: Path, wanted: str) -> None:
    """Until everything that must travel has."""
    deadline = time.monotonic() + 20
    while True:
        sent = [data for _, data in heard(directory)]
        missing = [what for what in wanted.split() if not any(n in data for data in sent for n in NEEDLES[what])]
        if not missing:
            return
        assert time.monotonic() < deadline, f"not on the wire: {', '.join(missing)}"
        time.sleep(0.3)


@pytest.mark.parametrize("name", CASES)
def test_a_forbidden_field_is_nowhere(tmp_path: Path, name: str) -> None:
    case, said = CASES[name], ""
    options = {"main": main_of(name) + WHERE, "extra": EXTRA + UPLINK, "prepare": prepare, "centre": True}
    with Lab.running(tmp_path, flush="1s", **options) as lab:
        follow = [
            sys.executable,
            "-I",
            str(ROOT),
            "tail",
            "--format",
            "jsonl",
            "--config",
            f"{tmp_path}/gatehouse.conf",
        ]
        with lab.popen("router", ["timeout", "4", *follow], stdout=subprocess.PIPE) as tail:
            time.sleep(0.5)
            login = lab.gatehouse(
                "session", "login", "--account", "account-of-ann", "--room", "room-2718", "--phone", PHONE,
                "--mac", "02:00:00:00:00:0b", "--client", "10.20.0.11",
            )  # fmt: skip
            assert login.returncode == 0, login.stderr
            lab.run("pupil1", "dig +short deep.visited.example.org")
            to = "--resolve www.example.net:80:198.51.100.21"
            page = lab.run("pupil1", f"{CURL} {to} http://www.example.net/lesson/hidden-page?word=secret-word")
            assert "you asked" in page.stdout
            blocked = lab.run("pupil1", "dig deep.casino.example").stdout
            assert "NXDOMAIN" in blocked
            lab.run("pupil1", f"{CURL} --resolve deep.casino.example:80:198.51.100.22 http://deep.casino.example/")
            lab.gatehouse("session", "logout", "--mac", "02:00:00:00:00:0b")
            time.sleep(2)
            (tmp_path / "exported").mkdir()
            exported = lab.gatehouse("export", "--since", "1h", "--to", str(tmp_path / "exported" / "audit.db"))
            assert (exported.returncode, case.refusal in exported.stderr) == (2 if case.refusal else 0, True)
            said = lab.gatehouse("query", "--since", "1h", "--format", "jsonl").stdout
            said += lab.gatehouse("session", "list", "--format", "jsonl").stdout + login.stdout
            said += lab.gatehouse("status", "--format", "json").stdout
            tailed, _ = tail.communicate(timeout=20)
        notice = lab.run("pupil1", "curl -s http://10.20.0.1:8060/").stdout
        assert "What this network records" in notice
        wait_for_wire(tmp_path, case.on_wire)
        status = lab.status()
        assert status["legal"]["capturing"] is True  # type: ignore[index]
    # The venue is down: everything that was to be written is.
    found = found_in(tmp_path, (said + tailed).encode())
    assert {what: found[what] for what in case.forbidden.split() if what in found} == {}
    assert [what for what in case.kept.split() if what not in found] == [], "the search would have found nothing at all"
    for what in case.on_wire.split():
        assert [place for place in found[what] if place.startswith("message ")] != [], f"{what}: not seen on the wire"
    for what in case.closed.split():
        assert [place for place in found[what] if place.startswith("message ")] == [], f"{what}: open on the wire"
    with pytest.MonkeyPatch.context() as patch:  # and it finds what is there
        patch.setitem(NEEDLES, "gap", [b"maintenance"])
        assert "gap" in found_in(tmp_path, (said + tailed).encode())


def test_nothing_is_captured_while_the_notice_is_not_the_profiles(tmp_path: Path) -> None:
    with Lab.running(tmp_path, flush="1s", main=main_of("cn-82"), extra=EXTRA, prepare=prepare) as lab:
        lab.run("pupil1", "dig +short before.example.org")
        assert wait_for(lab, 1, "--since", "1h", "--domain", "before.example.org")
        page = tmp_path / "state" / "notice.html"
        good = page.read_text()
        page.write_text(good.replace("gatehouse-notice", "another"))
        told = lab.gatehouse("notice", "check")
        assert (told.returncode, "is not the one" in told.stdout) == (1, True)
        assert lab.gatehouse("reload").returncode == 0
        lab.run("pupil1", "dig +short during.example.org")
        assert "NXDOMAIN" in lab.run("pupil1", "dig casino.example").stdout, "the filter works on"
        time.sleep(2)
        status = json.loads(lab.gatehouse("status", "--format", "json").stdout)
        assert (status["state"], status["legal"]["capturing"]) == ("degraded", False)
        assert any("notice" in why for why in status["why"])
        assert lab.gatehouse("notice", "publish").returncode == 0
        lab.gatehouse("reload")
        lab.run("pupil1", "dig +short after.example.org")
        assert wait_for(lab, 1, "--since", "1h", "--domain", "after.example.org")
        assert lab.rows("--since", "1h", "--domain", "during.example.org") == []
        capture = [r for r in lab.rows("--since", "1h", "--kind", "maintenance") if r["action"] == "capture"]
        assert [str(row["result"]).split(":")[0] for row in capture] == ["ok", "refused", "ok"]


def test_an_erased_session_is_nobodys_and_the_chain_is_whole(tmp_path: Path) -> None:
    binding = "auto'\n\toption nat 'blocks'\n\tlist nat_network '10.20.0.0/25"
    options = {"main": main_of("eu-guest"), "extra": EXTRA, "prepare": prepare, "binding": binding}
    with Lab.running(tmp_path, flush="1s", **options) as lab:
        for account, mac in (("account-of-ann", "02:00:00:00:00:0b"), ("account-of-ben", "02:00:00:00:00:0c")):
            lab.gatehouse("session", "login", "--account", account, "--mac", mac, "--room", f"room of {account}")
            lab.gatehouse("session", "logout", "--account", account)
        rows = [
            row
            for name in ("account-of-ann", "account-of-ben")
            for row in lab.rows("--since", "1h", "--account", name, "--kind", "session", "--reason", "test")
        ]
        assert {row["account"] for row in rows} == {"account-of-ann", "account-of-ben"}
        (session,) = {str(row["session"]) for row in rows if row["account"] == "account-of-ann"}
        held = lab.gatehouse("hold", "add", "--mac", "02:00:00:00:00:0b", "--reason", "order 5")
        assert held.returncode == 0
        assert "hold 1 keeps it" in lab.gatehouse("erase", "--session", session, "--reason", "she asks").stderr
        lab.gatehouse("hold", "lift", "1")
        erased = lab.gatehouse("erase", "--session", session, "--reason", "she asks")
        assert erased.returncode == 0, erased.stderr
        left = [r for r in lab.rows("--since", "1h", "--kind", "session") if r["session"] == session]
        assert left != []
        assert {row["account"] for row in left} == {""}
        assert "all as they were written" in lab.gatehouse("verify").stdout
        evidence = lab.rows("--since", "1h", "--kind", "nat")
        assert [(row["client"], bool(row["session"])) for row in evidence[:1]] == [("", True)], "not beside the session"
        assert {row["client"] for row in evidence} == {""}
        shown = lab.gatehouse("show", "--session", session, "--reason", "test").stdout
        assert "logout" in shown, "that there was a session is on record still"
        assert "account-of" not in shown
        told = [r for r in lab.rows("--since", "1h", "--kind", "maintenance") if r["action"] == "erase"]
        assert [row["detail"] for row in told] == ["she asks"]
    octets_left = [place for place, data in octets(tmp_path) if b"room of account-of-ann" in data]
    assert octets_left == []
    assert [place for place, data in octets(tmp_path) if b"room of account-of-ben" in data], "the other one's is there"
