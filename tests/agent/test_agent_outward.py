"""What the box shows and feeds while the agent lives, on the tree of a real board."""

import os
from pathlib import Path

from agent.outward import AGAIN, Outward
from hw.led import State
from policy.config import HardwareConfig
from tests.hw.trees import FILOGIC, lay, ubi


def trigger(root: Path) -> str:
    return (root / "sys/class/leds/green:status/trigger").read_text()


def test_the_led_follows_the_agents_life(tmp_path: Path) -> None:
    outward = Outward(HardwareConfig(), str(lay(tmp_path, FILOGIC)))
    assert outward.has_led
    outward.begin()
    assert trigger(tmp_path) == "timer"
    outward.show(State.HEALTHY)
    assert trigger(tmp_path) == "none"
    lay(tmp_path, {"sys/class/leds/green:status/trigger": "default-on"})
    for _ in range(AGAIN):  # the system's own script came later than we did
        outward.show(State.HEALTHY)
    assert trigger(tmp_path) == "none"
    outward.end()
    assert trigger(tmp_path) == "timer"
    assert outward.describe() == {
        "led": "green:status",
        "watchdog": "not ours",
        "flash": "ubi0: 312 erases at most, 2 bad of 1970 blocks",
        "heat": outward.describe()["heat"],
    }


def test_a_box_without_parts_is_no_trouble_and_a_worn_flash_is(tmp_path: Path) -> None:
    bare = Outward(HardwareConfig(), str(tmp_path))
    bare.begin()
    bare.feed()
    bare.show(State.DEGRADED)
    bare.end()
    assert bare.troubles() == []
    assert bare.describe()["led"] == bare.describe()["flash"] == "absent"
    worn = Outward(HardwareConfig(), str(lay(tmp_path, ubi(ro_mode="1"))))
    assert worn.troubles() == ["ubi0 has become read-only after an error"]


def test_a_watchdog_that_is_wanted_is_fed_or_told_of(tmp_path: Path) -> None:
    missing = Outward(HardwareConfig(watchdog=f"{tmp_path}/none"), str(tmp_path))
    missing.begin()
    assert missing.troubles() == [f"watchdog: {tmp_path}/none: absent"]
    os.mkfifo(tmp_path / "watchdog")
    reader = os.open(tmp_path / "watchdog", os.O_RDONLY | os.O_NONBLOCK)
    there = Outward(HardwareConfig(watchdog=f"{tmp_path}/watchdog"), str(tmp_path))
    there.begin()
    there.feed()
    there.feed()
    assert there.troubles() == []
    there.end()
    assert os.read(reader, 10) == b"\0\0V"
    os.close(reader)
