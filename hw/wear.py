"""How worn the flash is: UBI's erase counters on raw NAND, the life time that an eMMC reports of itself.

Sources: Documentation/ABI/stable/sysfs-class-ubi; Documentation/driver-api/mmc/mmc-dev-attrs.rst and JEDEC JESD84-B51
7.4.x (DEVICE_LIFE_TIME_EST_TYP_A and _B: 0x01 up to a tenth used, ..., 0x0A up to all of it, 0x0B beyond;
PRE_EOL_INFO: 1 normal, 2 four fifths of the reserve used, 3 urgent).
Rule: what a device does not say is -1, and is no fault.
"""

from __future__ import annotations

import os
import re
from typing import Final, NamedTuple

UBI: Final = "/sys/class/ubi"
BLOCK: Final = "/sys/block"
MAX_DEVICES: Final = 8
RATED_ERASES: Final = 100_000
"""Of SLC NAND, which routers have, in every data sheet that we saw."""
WORN: Final = 0.8
"""The share of its life from which on a device should be replaced."""


class Ubi(NamedTuple):
    """One UBI device: a piece of raw flash."""

    name: str
    max_erases: int
    """max_ec: the highest erase counter of any block."""
    bad_blocks: int
    reserved: int
    """reserved_for_bad: good blocks left to take the place of bad ones."""
    total_blocks: int
    is_read_only: bool
    """ro_mode: UBI has switched itself to it after an error."""

    def trouble(self) -> str:
        """What is wrong with it; empty: nothing is."""
        if self.is_read_only:
            return f"{self.name} has become read-only after an error"
        if self.max_erases >= WORN * RATED_ERASES:
            return f"{self.name} is worn: {self.max_erases} erases of {RATED_ERASES}"
        if self.reserved == 0 and self.bad_blocks > 0:
            return f"{self.name} has {self.bad_blocks} bad blocks and none left to replace the next one"
        return ""

    def text(self) -> str:
        return f"{self.name}: {self.max_erases} erases at most, {self.bad_blocks} bad of {self.total_blocks} blocks"


class Mmc(NamedTuple):
    """One eMMC device (or a card that says so much of itself)."""

    name: str
    life: tuple[int, int]
    """Life time used, in tenths, rounded up: of type A (SLC) and B (MLC) blocks; 0: not said, 11: beyond it."""
    pre_eol: int
    """1 normal, 2 warning, 3 urgent; 0: not said."""

    def trouble(self) -> str:
        if self.pre_eol >= 2 or max(self.life) >= 9:
            return f"{self.name} is worn: {self._used()} of its life used"
        return ""

    def text(self) -> str:
        return f"{self.name}: {self._used()} of its life used"

    def _used(self) -> str:
        tenths = max(self.life)
        return "more than all" if tenths > 10 else f"at most {tenths}0 %" if tenths else "an unknown part"


def read_ubi(root: str = "/") -> list[Ubi]:
    """All UBI devices; empty where there is no raw flash."""
    top = os.path.join(root, UBI.lstrip("/"))
    found = []
    for name in _list(top):
        where = os.path.join(top, name)
        if not re.fullmatch(r"ubi\d+", name):  # volumes (ubi0_1) stand beside their devices
            continue
        found.append(
            Ubi(
                name,
                _number(where, "max_ec"),
                _number(where, "bad_peb_count"),
                _number(where, "reserved_for_bad"),
                _number(where, "total_eraseblocks"),
                _number(where, "ro_mode") > 0,
            )
        )
    return found[:MAX_DEVICES]


def read_mmc(root: str = "/") -> list[Mmc]:
    """All eMMC devices that tell of their life time."""
    top = os.path.join(root, BLOCK.lstrip("/"))
    found = []
    for name in _list(top):
        if not re.fullmatch(r"mmcblk\d+", name):
            continue
        where = os.path.join(top, name, "device")
        life = [int(word, 16) for word in _text(where, "life_time").split() if re.fullmatch("0x[0-9a-fA-F]{1,2}", word)]
        if len(life) == 2:  # eMMC 5.0 or later
            found.append(Mmc(name, (life[0], life[1]), _hex(_text(where, "pre_eol_info"))))
    return found[:MAX_DEVICES]


def _list(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _text(where: str, name: str) -> str:
    try:
        with open(os.path.join(where, name), encoding="ascii", errors="replace") as file:
            return file.read(128).strip()
    except OSError:
        return ""


def _number(where: str, name: str) -> int:
    text = _text(where, name)
    return int(text) if text.isdecimal() else -1


def _hex(text: str) -> int:
    return int(text, 16) if re.fullmatch("0x[0-9a-fA-F]{1,2}", text) else 0
