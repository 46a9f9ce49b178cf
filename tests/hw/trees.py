"""Files of /sys and /proc as the kernel's ABI documents and real routers have them, laid out below a directory."""

from collections.abc import Mapping
from pathlib import Path


def lay(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write each file; its directories with it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def led(name: str, maximum: int = 255) -> dict[str, str]:
    """sysfs-class-led, with the timer's files as after `timer` was written to `trigger`."""
    where = f"sys/class/leds/{name}"
    return {
        f"{where}/brightness": "0\n",
        f"{where}/max_brightness": f"{maximum}\n",
        f"{where}/trigger": "[none] timer default-on netdev\n",
        f"{where}/delay_on": "500\n",
        f"{where}/delay_off": "500\n",
    }


def ubi(name: str = "ubi0", **changes: str) -> dict[str, str]:
    """sysfs-class-ubi: 256 MB of SPI NAND, as on the reference router."""
    files = {
        "avail_eraseblocks": "0", "bad_peb_count": "2", "eraseblock_size": "126976", "max_ec": "312",
        "max_vol_count": "128", "min_io_size": "2048", "reserved_for_bad": "38", "ro_mode": "0",
        "total_eraseblocks": "1970", "volumes_count": "5", "mtd_num": "4",
    }  # fmt: skip
    tree = {f"sys/class/ubi/{name}/{file}": f"{text}\n" for file, text in {**files, **changes}.items()}
    return {**tree, f"sys/class/ubi/{name}_1/upd_marker": "0\n"}


def emmc(life: str = "0x01 0x02", pre_eol: str = "0x01") -> dict[str, str]:
    """mmc-dev-attrs, eMMC 5.1; its boot partitions are block devices too."""
    where = "sys/block/mmcblk0/device"
    tree = {f"{where}/type": "MMC\n", f"{where}/rev": "0x8\n", f"{where}/life_time": f"{life}\n"}
    return {**tree, f"{where}/pre_eol_info": f"{pre_eol}\n", "sys/block/mmcblk0boot0/size": "8192\n"}


def zone(number: int, kind: str, temperature: str, **trips: tuple[int, str]) -> dict[str, str]:
    """sysfs-class-thermal; `trips`: trip0=(110000, "critical")."""
    where = f"sys/class/thermal/thermal_zone{number}"
    tree = {f"{where}/type": f"{kind}\n", f"{where}/temp": temperature}
    for name, (heat, what) in trips.items():
        place = f"{where}/trip_point_{name.removeprefix('trip')}"
        tree |= {f"{place}_temp": f"{heat}\n", f"{place}_type": f"{what}\n"}
    return tree


FILOGIC: Mapping[str, str | bytes] = {
    **led("green:status"),
    **led("white:wlan"),
    "proc/device-tree/aliases/led-running": b"/leds/led-0\0",
    "proc/device-tree/leds/led-0/color": (2).to_bytes(4, "big"),
    "proc/device-tree/leds/led-0/function": b"status\0",
    **ubi(),
    **zone(0, "cpu-thermal", "61250\n", trip0=(125_000, "critical"), trip1=(120_000, "hot"), trip2=(60_000, "active")),
    "dev/watchdog": "",
}
"""A MediaTek MT7981 board with SPI NAND: two Cortex-A53, 256 MB of flash, one status LED, no battery clock."""

ROCKCHIP: Mapping[str, str | bytes] = {
    **led("red:power", 1),
    **led("green:lan"),
    **emmc(),
    **zone(0, "soc-thermal", "47777\n", trip0=(75_000, "passive"), trip1=(95_000, "critical")),
    **zone(1, "gpu-thermal", ""),
    "sys/class/rtc/rtc0/since_epoch": "1795650000\n",
    "sys/class/rtc/rtc0/hctosys": "1\n",
}
"""A Rockchip board with eMMC and a battery clock; its second sensor sleeps."""
