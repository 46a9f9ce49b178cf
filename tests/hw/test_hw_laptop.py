"""The laptop's side: profiles, tables, what is recognised, labels, the monitor; and that it runs on any system."""

import ast
import os
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import segno

from hw.laptop.label import Label, make_label, make_sheet, qr_path
from hw.laptop.line import Line
from hw.laptop.monitor import Monitor
from hw.laptop.profile import Profile, make_plan, read_profile, read_table
from hw.laptop.recognise import looks_right, recognise
from hw.laptop.report import Report, write_table
from hw.laptop.sign import sign_request
from hw.laptop.trouble import TroubleError
from hw.tty import open_line
from policy.errors import ConfigError
from tests.hw.wire import Wire

ROOT = Path(__file__).resolve().parents[2]
POSIX_ONLY = {"termios", "fcntl", "pty", "tty", "pwd", "grp", "resource", "posix", "curses"}


def test_nothing_that_the_laptop_imports_is_of_one_system_alone() -> None:
    seen: set[str] = set()
    left = ["hw.__main__"]
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        path = ROOT / (name.replace(".", "/") + ".py")
        if not path.exists():
            path = ROOT / name.replace(".", "/") / "__init__.py"
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names += [f"{node.module}.{alias.name}" for alias in node.names]
            for found in names:
                assert found.partition(".")[0] not in POSIX_ONLY, (name, found)
                assert found.partition(".")[0] != "agent", (name, found)
                is_own = found.partition(".")[0] in ("hw", "policy")
                if is_own and (
                    (ROOT / (found.replace(".", "/") + ".py")).exists() or (ROOT / found.replace(".", "/")).is_dir()
                ):
                    left.append(found)
    assert "hw.laptop.line" in seen
    assert "hw.tty" not in seen


PROFILE = """
[console]
generate_password = true
baud = 57600
[settings]
vendor = "123456789"
venue = "11010510010001"
lan = ["br-lan", "br-guest"]
enabled = true
wan = "pppoe 'user name' geheim"
[options]
"dns.rate" = 500
"""


def test_a_profile_and_a_row_that_goes_before_it(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(PROFILE)
    profile = read_profile(str(tmp_path / "p.toml"))
    assert (profile.baud, profile.generates_password) == (57600, True)
    plan = make_plan(
        profile, 3, {"venue": "11010510010003", "mac": "02-00-00-00-00-0a", "venue-name": "第三 小学", "port": "COM3"}
    )
    assert plan.value("venue") == "11010510010003"
    assert plan.value("venue-name") == "第三 小学"
    assert (plan.mac, plan.port) == ("02000000000A", "COM3")
    assert dict(plan.settings)["wan"] == ("pppoe", "user name", "geheim")
    assert dict(plan.settings)["option dns.rate"] == ("500",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[settings]\nvenu = 'x'", "unknown setting 'venu'"),
        ("[settings]\nvenue = '123'", "venue code of 14"),
        ("[settings]\nwan = 'static 1.2.3.4'", "set wan"),
        ("[settings]\nvenue = 1.5", "expected text"),
        ("[consol]\n", "consol: unknown"),
        ("[console]\npasword = 'x'", "console.pasword: unknown"),
        ("[console]\nbaud = 'fast'", "expected a whole number"),
        ("[files]\nca = 'nowhere.pem'", "no such file"),
        ("[files]\nlists = 'x'", "files.lists"),
        ("[settings", "p.toml"),
    ],
)
def test_a_mistake_in_a_profile_is_told_before_any_router(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ConfigError, match=said.replace("[", r"\[")):
        make_plan(read_profile(str(tmp_path / "p.toml")))


def test_every_mistake_in_a_table_is_told_with_its_line(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(
        "\ufeffvenue,mac,venue-name\r\n11010510010001,020000000001,一\r\n99010510010002,020000000002,二\r\n\r\n"
        "11010510010003,02000000000Z,三\r\n11010510010004,02:00:00:00:00:01,四\r\n11010510010005,,五,六\r\n".encode()
    )
    with pytest.raises(ConfigError) as caught:
        read_table(str(table), Profile())
    said = str(caught.value)
    for part in (
        "t.csv:3: venue: expected a region",
        "t.csv:5: mac: expected twelve",
        "t.csv:6: mac: 020000000001 is on line 2",
        "t.csv:7: 1 cells more",
    ):
        assert part in said
    table.write_text("venue,nmae\n")
    with pytest.raises(ConfigError, match="unknown column 'nmae'"):
        read_table(str(table), Profile())
    table.write_bytes("venue-name\n第一\n".encode("gb18030"))
    with pytest.raises(ConfigError, match="UTF-8"):
        read_table(str(table), Profile())


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("U-Boot 2023.07 (Oct 2023)\r\n\r\nHit any key to stop autoboot:  3 ", "u-boot-offer"),
        ("Unknown command 'x' - try 'help'\r\n=> ", "u-boot"),
        ("MT7621 # ", "u-boot"),
        ("[    0.000000] Linux version 6.6\r\n[    1.234567] usb 1-1: new", "boot"),
        ("Press the [f] key and hit [enter] to enter failsafe mode\r\n", "failsafe-offer"),
        ("root@(none):/# ", "failsafe"),
        ("Please press Enter to activate this console.\r\n", "activate"),
        ("\r\nOpenWrt login: ", "login"),
        ("Password: ", "password"),
        ("BusyBox v1.36 built-in shell (ash)\r\nroot@OpenWrt:~# ", "shell"),
        ("\r\nGatehouse console 0.1.0\r\n", "console"),
        ("l and Enter: login; g and Enter: Gatehouse ", "shared"),
        ("root@OpenWrt:/# exit\r\nOpenWrt login: ", "login"),
    ],
)
def test_what_is_at_the_other_end(text: str, name: str) -> None:
    known = recognise(text)
    assert known is not None
    assert known.name == name
    assert known.mend


def test_the_wrong_speed_does_not_look_right() -> None:
    assert recognise("nothing that is known") is None
    assert looks_right(b"root@OpenWrt:/# ls\r\n")
    assert looks_right("设置 场所".encode())
    assert not looks_right(bytes(range(0, 256, 3)))
    assert not looks_right(b"")


def test_a_login_console_that_is_shared_is_led_to_gatehouse_and_given_back(tmp_path: Path, blank: Path) -> None:
    """The script as it is shipped, on a terminal that init has left in cooked mode; an unknown line asks again."""
    script = ROOT / "packaging/openwrt/gatehouse/files-console/usr/libexec/gatehouse/shared-console"
    command = tmp_path / "bin" / "gatehouse"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -I {ROOT} "$@" --config {blank}\n')
    command.chmod(0o755)
    with Wire(tmp_path / "w") as wire:
        terminal = os.open(wire.router, os.O_RDWR | os.O_NOCTTY)
        subprocess.run(["stty", "sane"], stdin=terminal, check=True)
        before = termios.tcgetattr(terminal)
        path = f"{command.parent}:{os.environ['PATH']}"
        shared = subprocess.Popen(  # bash: Debian's sh reads without a time limit only
            ["bash", str(script)], stdin=terminal, stdout=terminal, env={**os.environ, "PATH": path}
        )
        line = Line(str(wire.laptop))
        line.find()
        assert line.enter("sesame-8899")
        assert line.call({"do": "facts"}).head["state"] == "blank"
        line.leave()
        assert shared.wait(15) == 0
        assert termios.tcgetattr(terminal) == before
        os.close(terminal)


def test_a_label_holds_the_device_id_in_a_code_that_is_segno_s() -> None:
    label = Label("12345678902FC00000001", "11010510010001", "<第一> & Söhne", "room 3")
    svg = make_label(label, "Gatehouse")
    root = ElementTree.fromstring(svg)
    assert root.attrib["width"] == "70mm"
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["Gatehouse", "<第一> & Söhne", "11010510010001", "room 3", label.device]
    # The path, drawn module by module, is the code that the library makes.
    path, size = qr_path(label.device)
    grid = [[False] * size for _ in range(size)]
    for run in path.split("M")[1:]:
        x, y = map(int, run.partition("h")[0].split())
        for column in range(x, x + int(run.partition("h")[2].partition("v")[0])):
            grid[y][column] = True
    wanted = [[bool(module) for module in row] for row in segno.make_qr(label.device, error="m").matrix_iter(border=4)]
    assert grid == wanted


def test_sheets_of_twenty_four() -> None:
    labels = [Label(f"12345678902FC0000{number:04X}") for number in range(50)]
    sheets = make_sheet(labels, "Gatehouse")
    assert [sheet.count("<path") for sheet in sheets] == [24, 24, 2]
    assert all('width="210mm"' in sheet for sheet in sheets)


def test_a_report_is_no_formula(tmp_path: Path) -> None:
    report = Report(1, "COM3")
    report.fail("find", "=cmd|' /C calc'!A0", "@mend")
    write_table([report], str(tmp_path / "r.csv"))
    assert "'=cmd" in (tmp_path / "r.csv").read_text(encoding="utf-8-sig")
    assert "'@mend" in (tmp_path / "r.csv").read_text(encoding="utf-8-sig")


def test_a_command_that_signs_and_one_that_does_not() -> None:
    good = (sys.executable, "-c", "print('-----BEGIN CERTIFICATE-----')")
    assert b"BEGIN CERTIFICATE" in sign_request(Profile(sign_command=good), b"request")
    for command in (("/nowhere/sign",), (sys.executable, "-c", "raise SystemExit('refused: not known')")):
        with pytest.raises(TroubleError, match="certificate"):
            sign_request(Profile(sign_command=command), b"request")


def test_the_monitor_shows_says_what_it_sees_and_comes_back(tmp_path: Path) -> None:
    shown, told = bytearray(), []
    with Wire(tmp_path / "w") as wire:
        router = open_line(str(wire.router), 115200)
        monitor = Monitor(str(wire.laptop), 115200, shown.extend, told.append)
        thread = threading.Thread(target=monitor.run)
        thread.start()
        wait_for(lambda: told)
        os.write(router, b"OpenWrt login: ")
        wait_for(lambda: any("a login prompt" in text for text in told))
        monitor.send(b"root\r")
        wait_for(lambda: os.read(router, 100) == b"root\r")
        wire.pull_out(laptop_only=True)
        wait_for(lambda: any("cable is out" in text for text in told))
        wire.plug_in()
        wait_for(lambda: sum("Ctrl-]" in text for text in told) == 2)
        os.write(router, b"again")
        wait_for(lambda: bytes(shown).endswith(b"again"))
        monitor.is_over = True
        thread.join(5)
        assert not thread.is_alive()
        os.close(router)


def wait_for(condition: object) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            if condition():  # type: ignore[operator]
                return
        except BlockingIOError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.02)
