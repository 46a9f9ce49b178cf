"""LED, watchdog, flash wear, heat and battery clock, on trees of real boards' /sys; each part may be absent."""

import errno
import os
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest

from hw.clock import read_rtc
from hw.led import State, find_led
from hw.thermal import read_temperatures, read_zones
from hw.watchdog import SETTIMEOUT, Watchdog
from hw.wear import read_mmc, read_ubi
from tests.hw.trees import FILOGIC, ROCKCHIP, emmc, lay, led, ubi, zone

PACKAGE = Path(__file__).resolve().parents[2] / "packaging/openwrt/gatehouse/files"


def shown(root: Path, name: str) -> dict[str, str]:
    where = root / "sys/class/leds" / name
    return {file: (where / file).read_text() for file in ("trigger", "brightness", "delay_on", "delay_off")}


def test_the_status_led_is_the_one_of_the_device_tree(tmp_path: Path) -> None:
    root = str(lay(tmp_path, FILOGIC))
    found = find_led("auto", root)
    assert found is not None
    assert found.name == "green:status"
    assert find_led("none", root) is None
    assert find_led("no:such", root) is None
    chosen = find_led("white:wlan", root)
    assert chosen is not None
    assert chosen.name == "white:wlan"


def test_a_label_wins_over_colour_and_function_and_a_node_outside_is_not_followed(tmp_path: Path) -> None:
    lay(tmp_path, {**led("blue:board"), **led("green:power")})
    aliases = "proc/device-tree/aliases"
    lay(tmp_path, {f"{aliases}/led-boot": b"/leds/a\0", "proc/device-tree/leds/a/label": b"blue:board\0"})
    found = find_led("auto", str(tmp_path))
    assert found is not None
    assert found.name == "blue:board"
    lay(tmp_path, {f"{aliases}/led-boot": b"/../../etc\0"})
    found = find_led("auto", str(tmp_path))
    assert found is not None
    assert found.name == "green:power", "then by its function"


def test_each_state_can_be_told_from_the_others(tmp_path: Path) -> None:
    found = find_led("auto", str(lay(tmp_path, ROCKCHIP)))
    assert found is not None
    seen = []
    for state in State:
        found.show(state)
        assert found.trouble == ""
        seen.append(shown(tmp_path, "red:power"))
    assert len({(view["trigger"], view["delay_on"], view["delay_off"]) for view in seen}) == len(State)
    found.show(State.HEALTHY)
    assert shown(tmp_path, "red:power")["trigger"] == "none"
    assert shown(tmp_path, "red:power")["brightness"] == "1", "as bright as it can"


def test_a_state_is_written_when_it_changes_or_when_somebody_else_may_have_written(tmp_path: Path) -> None:
    found = find_led("auto", str(lay(tmp_path, ROCKCHIP)))
    assert found is not None
    found.show(State.DEGRADED)
    trigger = tmp_path / "sys/class/leds/red:power/trigger"
    trigger.write_text("default-on")
    found.show(State.DEGRADED)
    assert trigger.read_text() == "default-on"
    found.show(State.DEGRADED, again=True)
    assert trigger.read_text() == "timer"


def test_an_led_that_goes_away_costs_nothing(tmp_path: Path) -> None:
    found = find_led("auto", str(lay(tmp_path, ROCKCHIP)))
    assert found is not None
    (tmp_path / "sys/class/leds/red:power/trigger").unlink()
    found.show(State.HEALTHY)
    assert "trigger: No such file" in found.trouble


class Device:
    """A watchdog's character device: a FIFO that keeps what is written, and the driver's answer to its ioctl."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "watchdog")
        os.mkfifo(self.path)
        self._reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self.asked: list[tuple[int, bytes]] = []

    def ioctl(self, _: int, request: int, data: bytes) -> bytes:
        self.asked.append((request, data))
        return (31).to_bytes(4, "little")

    def written(self) -> bytes:
        try:
            return os.read(self._reader, 100)
        except BlockingIOError:
            return b""


def test_the_watchdog_is_fed_and_an_orderly_stop_leaves_it_off(tmp_path: Path) -> None:
    device = Device(tmp_path)
    watchdog = Watchdog(device.path, 30, set_timeout=device.ioctl, tell=lambda _: False)
    watchdog.open()
    assert watchdog.is_running
    assert device.asked == [(SETTIMEOUT, (30).to_bytes(4, "little"))]
    assert watchdog.timeout_s == 31, "what the hardware can do"
    watchdog.feed()
    watchdog.feed()
    assert device.written() == b"\0\0"
    watchdog.close()
    assert device.written() == b"V", "the magic close comes last"
    assert not watchdog.is_running


def test_procd_hands_the_watchdog_over_and_gets_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(tmp_path)
    told: list[dict[str, object]] = []
    real_open = os.open

    def busy(path: str, *words: int) -> int:
        if path == device.path and {"stop": True} not in told:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        return real_open(path, *words)

    monkeypatch.setattr(os, "open", busy)
    watchdog = Watchdog(device.path, 30, set_timeout=device.ioctl, tell=lambda words: told.append(words) is None)
    watchdog.open()
    assert watchdog.is_running
    assert told == [{"magicclose": True}, {"stop": True}]
    watchdog.close()
    assert told[-1] == {"stop": False}


def test_a_watchdog_that_is_absent_or_not_to_be_had_is_said_so(tmp_path: Path) -> None:
    absent = Watchdog(str(tmp_path / "none"), 30, tell=lambda _: False)
    absent.open()
    assert not absent.is_running
    assert absent.trouble.endswith("absent")
    absent.feed()
    absent.close()


def test_erase_counters(tmp_path: Path) -> None:
    (found,) = read_ubi(str(lay(tmp_path, FILOGIC)))
    assert (found.max_erases, found.bad_blocks, found.reserved, found.total_blocks) == (312, 2, 38, 1970)
    assert found.trouble() == ""


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"ro_mode": "1"}, "read-only"),
        ({"max_ec": "80000"}, "worn: 80000"),
        ({"reserved_for_bad": "0", "bad_peb_count": "41"}, "none left"),
    ],
)
def test_raw_flash_that_is_to_be_replaced(tmp_path: Path, changes: dict[str, str], word: str) -> None:
    (found,) = read_ubi(str(lay(tmp_path, ubi(**changes))))
    assert word in found.trouble()


def test_raw_flash_that_says_little_is_no_fault(tmp_path: Path) -> None:
    (found,) = read_ubi(str(lay(tmp_path, {"sys/class/ubi/ubi0/max_ec": "what\n"})))
    assert found.max_erases == -1
    assert found.trouble() == ""


@pytest.mark.parametrize(
    ("life", "pre_eol", "trouble"),
    [
        ("0x01 0x02", "0x01", ""),
        ("0x00 0x00", "0x00", ""),
        ("0x09 0x01", "0x01", "90 %"),
        ("0x0b 0x02", "0x01", "more than all"),
        ("0x02 0x02", "0x03", "20 %"),
    ],
)
def test_the_life_time_of_an_emmc(tmp_path: Path, life: str, pre_eol: str, trouble: str) -> None:
    (found,) = read_mmc(str(lay(tmp_path, emmc(life, pre_eol))))
    assert trouble in found.trouble()
    assert bool(found.trouble()) == bool(trouble)


def test_an_emmc_that_says_nothing_or_nonsense_is_passed_over(tmp_path: Path) -> None:
    lay(tmp_path, emmc("life"))
    lay(tmp_path, {"sys/block/mmcblk1/device/type": "SD\n", "sys/block/sda/device/life_time": "0x01 0x01\n"})
    assert read_mmc(str(tmp_path)) == []


def test_heat_and_from_where_on_it_is_too_much(tmp_path: Path) -> None:
    thermal = str(lay(tmp_path, ROCKCHIP) / "sys/class/thermal")
    (awake,) = read_zones(thermal)
    assert (awake.type, awake.millidegrees, awake.limit) == ("soc-thermal", 47_777, 90_000)
    assert read_temperatures(thermal) == {"zone0": 47_777}, "a heartbeat carries the same; the sleeping one is left out"
    plain = str(lay(tmp_path / "plain", zone(0, "x", "1\n")) / "sys/class/thermal")
    assert read_zones(plain)[0].limit == 95_000


def test_the_battery_clock(tmp_path: Path) -> None:
    found = read_rtc(str(lay(tmp_path, ROCKCHIP)))
    assert found is not None
    assert found == ("rtc0", 1_795_650_000)
    (tmp_path / "sys/class/rtc/rtc0/since_epoch").write_text("")
    assert read_rtc(str(tmp_path)) is None, "its battery is empty"


def test_everything_may_be_absent(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert (find_led("auto", root), read_rtc(root)) == (None, None)
    assert (read_ubi(root), read_mmc(root), read_zones(root)) == ([], [], [])


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"BUTTON": "reset", "ACTION": "pressed"}, "button reset pressed --seconds 0"),
        ({"BUTTON": "reset", "ACTION": "released", "SEEN": "3"}, "button reset released --seconds 3"),
        ({"BUTTON": "reset", "ACTION": "timeout", "SEEN": "3"}, ""),
        ({"ACTION": "pressed"}, ""),
    ],
)
def test_the_hotplug_script_tells_of_a_button(tmp_path: Path, environment: dict[str, str], words: str) -> None:
    script = PACKAGE / "etc/hotplug.d/button/50-gatehouse"
    assert script.stat().st_mode & stat.S_IXUSR
    tool = tmp_path / "gatehouse"
    tool.write_text(f'#!/bin/sh\necho "$*" >{tmp_path}/said\n')
    tool.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control"))
        run = {"GATEHOUSE": str(tool), "GATEHOUSE_RUN": str(tmp_path), "PATH": os.environ["PATH"], **environment}
        subprocess.run(["sh", "-c", f"{script}; wait"], env=run, check=True, timeout=10)
        said, deadline = tmp_path / "said", time.monotonic() + (5 if words else 0.3)
        while time.monotonic() < deadline and not (said.exists() and said.read_text().endswith("\n")):
            time.sleep(0.02)
        assert (said.read_text().strip() if said.exists() else "") == words
