"""From blank to done over a cable: one router, a hundred, on bad lines, and with the cable out at any instant."""

import csv
import json
import random
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography import x509

from agent.console import doctor_findings
from hw.__main__ import main
from hw.laptop.profile import Profile
from hw.laptop.trouble import TroubleError
from policy.config import load
from policy.errors import SerialError
from tests.hw.rough import PASSWORD, SETTINGS, line_of, noise, provision, pulls
from tests.hw.simulated import Simulated
from tests.hw.wire import Wire

Start = Callable[..., subprocess.Popen[bytes]]


def test_a_blank_router_from_a_profile_with_key_request_and_certificate(
    tmp_path: Path, blank: Path, authority: Path, start: Start
) -> None:
    """The real processes, console and agent, at a paced 115200; everything that was done is on the ring."""
    (tmp_path / "games.txt").write_text("".join(f"game{number}.example\n" for number in range(2000)))
    profile = tmp_path / "venue.toml"
    profile.write_text(
        f"""
        [console]
        password = "{PASSWORD}"
        [settings]
        vendor = "123456789"
        venue = "11010510010001"
        device = "auto"
        venue-name = "第一小学"
        lan = "lo"
        wan = "static 10.0.0.2/24 10.0.0.1 9.9.9.9"
        uplink = "mqtt.example.org#8883"
        [options]
        "dns.rate" = 500
        [files]
        ca = "{authority}/ca.pem"
        [files.lists]
        games = "games.txt"
        [certificate]
        ca_certificate = "{authority}/ca.pem"
        ca_key = "{authority}/ca.key"
        """
    )
    blank.write_text(
        blank.read_text().replace("'lo'", "'lo'\n\toption firewall 'none'")
        + f"config policy 'policy'\n\toption list_dir '{blank.parent}/lists'\n"
        + f"\toption table '{blank.parent}/policy.image'\nconfig nfq 'nfq'\n\toption enabled '0'\n"
        + "config dns 'dns'\n\toption enabled '0'\nconfig ring 'ring'\n\toption flush '1s'\n"
    )
    start("agent", "--config", str(blank))
    with Wire(tmp_path / "w", is_paced=True) as wire:
        start("console", "--config", str(blank), "--line", str(wire.router))
        begun = time.monotonic()
        status = main(
            ["provision", "--port", str(wire.laptop), "--profile", str(profile), "--reports", str(tmp_path / "reports")]
        )
        took_s = time.monotonic() - begun
        assert status == 0
        assert took_s < 60
    config = load(blank.read_text())
    assert (config.main.venue, config.venue.name, config.dns.rate) == ("11010510010001", "第一小学", 500)
    assert config.uplink.enabled
    assert "option ipaddr '10.0.0.2'" in (blank.parent / "network").read_text()
    certificate = x509.load_pem_x509_certificate(Path(config.uplink.certificate).read_bytes())
    assert config.main.device in certificate.subject.rfc4514_string()
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate((authority / "ca.pem").read_bytes()))
    assert Path(config.uplink.ca).read_bytes() == (authority / "ca.pem").read_bytes()
    assert (blank.parent / "lists/games").read_bytes() == (tmp_path / "games.txt").read_bytes()
    (report,) = (tmp_path / "reports").glob("*.json")
    told = json.loads(report.read_text())
    assert told["is_ok"]
    assert told["device"] == config.main.device
    assert "M4 4h7v1h-7z" in (tmp_path / "reports" / f"{config.main.device}.svg").read_text()
    rows = records_of(blank)
    actions = [str(row["action"]) for row in rows if row["actor"] == "serial script"]
    for action in ("password", "certificate", "commit", "confirm", "logout"):
        assert action in actions
    (committed,) = [row for row in rows if row["action"] == "commit"]
    assert "main.venue=11010510010001" in str(committed["detail"])
    assert committed["new"]
    assert PASSWORD not in json.dumps(rows)


def records_of(config: Path) -> list[dict[str, object]]:
    """The maintenance log, as the agent gives it."""
    from agent.uplink.inside import ask

    request = {"do": "query", "kind": "maintenance", "since_s": time.time() - 3600}
    return list(ask(str(config.parent / "run/control"), request))


def test_a_dry_run_changes_nothing_and_says_what_would_change(tmp_path: Path) -> None:
    with Wire(tmp_path / "w") as wire, Simulated(tmp_path / "r", wire.router) as router:
        before = router.path.read_bytes()
        report = provision(line_of(wire), Profile(settings=SETTINGS, password=PASSWORD), is_dry=True)
        assert report.is_ok, report.text()
        assert router.path.read_bytes() == before
        assert router.orders.staging.is_empty
        assert any("11010510010001" in line for line in report.differences)
        assert not (tmp_path / "r/uplink").exists()


FAILURES = {
    # row: (what goes wrong, step, what is said, part of the mend)
    13: ("unplugged", "find", "could not open port", "plug the cable in"),
    24: ("silent", "find", "does not answer", "TX to RX"),
    35: ("u-boot", "find", "U-Boot", "type `boot`"),
    46: ("other password", "login", "password is not right", "the password that this router was given"),
    57: ("other router", "identify", "row 57 is for", "plug in the router of this row"),
    68: ("test", "commit", "taken back: queue", "install kmod-nft-queue"),
    79: ("flash", "certificate", "No space left", "flash is full"),
}


def test_a_hundred_rows_of_which_seven_fail_in_seven_ways(
    tmp_path: Path, authority: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "venue.toml"
    profile.write_text(
        f'[console]\npassword = "{PASSWORD}"\n[settings]\nvendor = "123456789"\ndevice = "auto"\nlan = "lo"\n'
        f'uplink = "mqtt.example.org"\n[files]\nca = "{authority}/ca.pem"\n'
        f'[certificate]\nca_certificate = "{authority}/ca.pem"\nca_key = "{authority}/ca.key"\n'
    )
    table = tmp_path / "venues.csv"
    macs = {row: f"02:00:00:00:00:{row:02X}" for row in range(1, 101)}
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["port", "mac", "venue", "venue-name"])
        for row in range(1, 101):
            writer.writerow([tmp_path / f"w{row}/laptop", macs[row], f"1101051001{row:04}", f"学校 {row}"])
    with ExitStack() as stack:
        routers = {}
        for row in range(1, 101):
            wire = stack.enter_context(Wire(tmp_path / f"w{row}"))
            routers[row] = stack.enter_context(
                faulty(tmp_path / f"r{row}", wire, FAILURES.get(row, ("",))[0], macs[row])
            )
        before = {row: routers[row].path.read_bytes() for row in FAILURES if routers[row] is not None}
        words = ["provision", "--csv", str(table), "--profile", str(profile), "--reports", str(tmp_path / "reports")]
        assert main([*words, "--find-seconds", "2", "--patience", "0.5"]) == 1
        told = capsys.readouterr().out
    with open(tmp_path / "reports/report.csv", encoding="utf-8-sig", newline="") as file:
        rows = {int(row["row"]): row for row in csv.DictReader(file)}
    assert len(rows) == 100
    assert {row for row, found in rows.items() if found["result"] != "ok"} == set(FAILURES)
    for row, (_, step, said, mend) in FAILURES.items():
        assert rows[row]["step"] == step, rows[row]
        assert said in rows[row]["error"], rows[row]
        assert mend in rows[row]["mend"], rows[row]
        assert f"row {row}: {step}" in told
    assert "93 of 100 done" in told
    assert "--rows 13,24,35,46,57,68,79" in told
    for row, octets in before.items():
        assert routers[row].path.read_bytes() == octets, row
    for row in set(rows) - set(FAILURES):
        config = load(routers[row].path.read_text())
        assert config.main.venue == f"1101051001{row:04}"
        assert config.main.device == f"123456789{macs[row].replace(':', '')}"
        assert (tmp_path / "reports" / f"{config.main.device}.svg").exists()
    assert main(["labels", "--reports", str(tmp_path / "reports")]) == 0
    assert len(list((tmp_path / "reports").glob("labels-*.svg"))) == 4  # 93 labels, 24 a sheet


def faulty(directory: Path, wire: Wire, fault: str, mac: str) -> Simulated:
    """A router with one of the faults of FAILURES."""
    match fault:
        case "test" | "flash":
            said = {"test": "bound by nobody", "flash": "No space left on device"}[fault]
            return Simulated(directory, wire.router, mac=mac, **{fault: said})
        case "other router":
            return Simulated(directory, wire.router, mac="02:00:00:00:99:99")
        case "other password":
            router = Simulated(directory, wire.router, mac=mac)
            from hw.password import make_verifier

            router.access.set_password(make_verifier("another-one-1", bytes(16)))
            return router
        case "silent" | "u-boot" | "unplugged":
            router = Simulated(directory, directory / "nowhere", mac=mac)
            if fault == "u-boot":
                threading.Thread(target=be_u_boot, args=(wire.router,), daemon=True).start()
            if fault == "unplugged":
                wire.pull_out()
            return router
    return Simulated(directory, wire.router, mac=mac)


def be_u_boot(path: Path) -> None:
    import os
    import select

    from hw.tty import open_line

    line = open_line(str(path), 115200)
    while True:
        select.select([line], [], [], 30)
        try:
            os.read(line, 4096)
            os.write(line, b"\r\nUnknown command - try 'help'\r\n=> ")
        except OSError:
            os.close(line)
            return


@pytest.mark.parametrize("baud", [9600, 921600])
def test_the_wrong_speed_first(tmp_path: Path, baud: int) -> None:
    with Wire(tmp_path / "w", is_paced=True) as wire, Simulated(tmp_path / "r", wire.router, baud=baud) as router:
        line = line_of(wire)
        line.find()
        assert line.baud == baud
        assert line.enter(PASSWORD)
        assert line.call({"do": "set", "edits": [["venue", "11010510010001"]]}).head == {"staged": 1}
        assert "+\toption venue '11010510010001'" in str(line.call({"do": "show"}).head).replace("\\t", "\t")
        # What the wrong speeds made of it was no attempt to log in.
        assert not [note for note in router.device.notes if note[0] in ("login-failed", "lock-out")]


def test_one_octet_in_a_hundred_flipped_dropped_or_doubled(tmp_path: Path) -> None:
    noise(tmp_path, 300)


def test_a_transfer_goes_on_where_it_stopped(tmp_path: Path) -> None:
    octets = random.Random(6).randbytes(200_000)
    with Wire(tmp_path / "w") as wire, Simulated(tmp_path / "r", wire.router) as router:
        line = line_of(wire)
        line.find()
        line.enter(PASSWORD)
        pulls = iter((0.2, 0.5, 0.8, 2.0))
        due = [next(pulls)]

        def pull(what: str, part: float) -> None:
            if part >= due[0]:
                due[0] = next(pulls)
                wire.pull_out()
                threading.Timer(0.1, wire.plug_in).start()

        before = wire.carried
        name = line.put(octets, pull)
        assert router.orders.blobs.get(name) == octets
        assert line.unplugged >= 3
        # 14 % of stuffing, acknowledgements, three log-ins; not the whole four times.
        assert wire.carried - before < 1.6 * len(octets)
        before = wire.carried
        line.put(octets)
        assert wire.carried - before < 1000


def test_the_cable_out_at_random_instants(tmp_path: Path) -> None:
    """Sixteen here; `python -m tests.hw.rough` has as many as you like."""
    pulls(tmp_path, 16)


def test_a_cable_that_stays_out_leaves_the_old_configuration(tmp_path: Path) -> None:
    with Wire(tmp_path / "w") as wire, Simulated(tmp_path / "r", wire.router) as router:
        assert provision(line_of(wire), Profile(settings=SETTINGS, password=PASSWORD)).is_ok
        line = line_of(wire, patience_s=0.5)
        line.find()
        line.enter(PASSWORD)
        line.call({"do": "set", "edits": [["venue", "11010510010002"]]})
        reply = line.call({"do": "commit", "id": "1", "confirm_s": 2}).head
        assert reply["kept"]
        assert load(router.path.read_text()).main.venue == "11010510010002"
        wire.pull_out()
        with pytest.raises(SerialError):
            line.call({"do": "confirm"})
        deadline = time.monotonic() + 20
        while load(router.path.read_text()).main.venue != "11010510010001":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # On record once the services have the old configuration again.
        while ("rollback", "ok") not in {(note[0], note[2]) for note in router.device.notes}:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_commit_that_is_asked_twice_is_done_once(tmp_path: Path) -> None:
    with Wire(tmp_path / "w") as wire, Simulated(tmp_path / "r", wire.router) as router:
        line = line_of(wire)
        line.find()
        line.enter(PASSWORD)
        line.call({"do": "set", "edits": [["venue", "11010510010002"]]})
        first = line.call({"do": "commit", "id": "7"}).head
        line.enter(PASSWORD)
        assert line.call({"do": "commit", "id": "7"}).head == first
        with pytest.raises(SerialError, match="nothing is staged"):
            line.call({"do": "commit", "id": "8"})
        assert [note[0] for note in router.device.notes].count("commit") == 1


def test_a_script_without_the_password_gets_nothing_and_five_tries_lock(tmp_path: Path) -> None:
    with Wire(tmp_path / "w") as wire, Simulated(tmp_path / "r", wire.router) as router:
        line = line_of(wire)
        line.find()
        line.enter(PASSWORD)
        line.leave()
        line = line_of(wire)
        line.find()
        for word in ("status", "set", "commit", "put", "csr", "factory-reset", "call"):
            with pytest.raises(SerialError, match="log in first"):
                line.call({"do": word})
        with pytest.raises(SerialError, match="there is one already"):
            line.call({"do": "password", "salt": "00" * 16, "stored": "00" * 32})
        for _ in range(5):
            with pytest.raises(TroubleError, match="not right"):
                line.enter("wrong-password")
        with pytest.raises(TroubleError, match="locked"):
            line.enter(PASSWORD)
        actions = [note[0] for note in router.device.notes]
        assert actions.count("login-failed") == 5
        assert actions.count("lock-out") == 1


def test_without_a_doctor_there_are_findings_all_the_same(blank: Path, tmp_path: Path) -> None:
    findings = doctor_findings(str(blank))
    assert findings is None or findings
    with Wire(tmp_path / "w") as wire, Simulated(tmp_path / "r", wire.router) as router:
        assert [finding.name for finding in router.device.test()] == ["configuration", "switched off"]
