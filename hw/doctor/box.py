"""Checks of the box itself: clocks, storage, flash, heat, LED, watchdog."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from typing import Final

from hw.clock import RELEASED_S, read_rtc
from hw.doctor.bedside import Bedside
from hw.doctor.finding import Finding, absent
from hw.led import find_led
from hw.thermal import read_zones
from hw.wear import Mmc, Ubi, read_mmc, read_ubi

SAMPLE: Final = 64 << 10
"""Octets written and flushed to measure the storage: a school's commit of 30 s has 20 kB."""
SLOW_S: Final = 2.0
"""Longer than that, and a blocked access is not on flash before a hook counts as hung."""
SPARE: Final = 4 << 20
"""Octets that must be free: sealing a day writes its columns before the old file goes."""
APART_S: Final = 120
"""Between battery clock and system clock."""
_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})


def clock(bed: Bedside) -> Iterator[Finding]:
    """Can the records' times be believed?"""
    shown = time.strftime("%Y-%m-%d %H:%M", time.gmtime(bed.now_s))
    mend = "uci set system.ntp.enabled=1; service sysntpd restart; is the uplink there?"
    if bed.now_s < RELEASED_S:
        yield Finding("clock", False, f"it shows {shown} UTC, which is before this release was made", mend)
    elif bed.status.get("clock") == "unsynced":
        yield Finding("clock", False, f"it shows {shown} UTC, and no time server has confirmed it", mend)
    else:
        yield Finding("clock", True, f"{shown} UTC")


def battery(bed: Bedside) -> Iterator[Finding]:
    """The battery clock."""
    rtc = read_rtc(bed.root)
    if rtc is None:
        yield absent("rtc", "no battery clock: after a power cut the time comes from the network")
        return
    apart = abs(rtc.seconds - bed.now_s)
    if apart > APART_S and bed.now_s >= RELEASED_S:
        yield Finding(
            "rtc", False, f"{rtc.name} is {apart:.0f} s off the system clock", "hwclock -w -u; its battery may be empty"
        )  # fmt: skip
    else:
        yield Finding("rtc", True, f"{rtc.name} agrees")


def storage(bed: Bedside) -> Iterator[Finding]:
    """Does the ring's storage take what is written, fast enough, and is there room?"""
    where = bed.config.ring.directory
    mends = {
        errno.ENOSPC: f"make room beside {where}, or a smaller gatehouse.ring.budget",
        errno.EROFS: "dmesg says why it was remounted; fsck, or another medium",
        errno.ENOENT: f"mkdir -p {where}, on the medium that is meant for it",
    }
    try:
        taken_s = _write_sample(where)
        room = os.statvfs(where)
    except OSError as error:
        number = error.errno or 0
        yield Finding("storage", False, f"{where}: {error.strerror}", mends.get(number, "dmesg; another medium"))
        return
    free = room.f_bavail * room.f_frsize
    why = f"{SAMPLE >> 10} kB on flash in {1000 * taken_s:.0f} ms, {free >> 20} MB free"
    trouble = str(bed.status.get("ring", {}).get("trouble") or "")
    if free < SPARE:
        yield Finding("storage", False, f"{where} is full: {why}", mends[errno.ENOSPC])
    elif taken_s > SLOW_S:
        yield Finding("storage", False, f"{where} is slow: {why}", "another medium: this one is worn, or no flash")
    elif trouble:
        yield Finding("storage", False, f"the ring says: {trouble}", "gatehouse status; gatehouse verify")
    else:
        yield Finding("storage", True, why)


def medium(bed: Bedside) -> Iterator[Finding]:
    """Will the records outlive the power?"""
    where = os.path.realpath(bed.config.ring.directory)
    kind = _file_system_of(where, bed.read("/proc/self/mounts") or "")
    if kind in _IN_MEMORY:
        yield Finding(
            "medium", False, f"{where} is memory ({kind}): a power cut takes all records",
            "gatehouse.ring.directory: a directory on flash",
        )  # fmt: skip
    else:
        yield Finding("medium", True, f"{where} is on {kind or 'a file system without a name'}")


def flash(bed: Bedside) -> Iterator[Finding]:
    """How worn it is."""
    devices: list[Ubi | Mmc] = [*read_ubi(bed.root), *read_mmc(bed.root)]
    if not devices:
        yield absent("flash", "no raw flash (UBI) and no eMMC here that tells of its wear")
        return
    troubles = [trouble for device in devices if (trouble := device.trouble())]
    if troubles:
        yield Finding(
            "flash", False, "; ".join(troubles), "replace it before it fails; gatehouse export saves the records"
        )
    else:
        yield Finding("flash", True, "; ".join(device.text() for device in devices))


def heat(bed: Bedside) -> Iterator[Finding]:
    """Is anything about to throttle or stop?"""
    zones = read_zones(bed.path("/sys/class/thermal"))
    if not zones:
        yield absent("heat", "no thermal zones here")
        return
    hot = [zone for zone in zones if zone.millidegrees >= zone.limit]
    text = ", ".join(f"{zone.type or zone.name} {zone.millidegrees / 1000:.0f} C" for zone in hot or zones)
    if hot:
        yield Finding("heat", False, f"too hot: {text}", "air around it, away from the sun; is its case closed up?")
    else:
        yield Finding("heat", True, text)


def light(bed: Bedside) -> Iterator[Finding]:
    """The status LED."""
    wanted = bed.config.hardware.led
    led = find_led(wanted, bed.root)
    if led is not None:
        yield Finding("led", True, led.name)
    elif wanted in ("auto", "none"):
        yield absent("led", "left alone" if wanted == "none" else "no status LED found")
    else:
        yield Finding("led", False, f"there is no LED {wanted!r}", "ls /sys/class/leds, then gatehouse.hardware.led")


def watchdog(bed: Bedside) -> Iterator[Finding]:
    """Who feeds it."""
    path = bed.config.hardware.watchdog
    if not path:
        there = os.path.exists(bed.path("/dev/watchdog"))
        yield (
            Finding("watchdog", True, "fed by procd, not by us")
            if there
            else absent("watchdog", "no hardware watchdog here")
        )
        return
    said = bed.status.get("hardware", {}).get("watchdog", "")
    if bed.silence:
        yield absent("watchdog", "not tried: only the agent knows")
    elif said.startswith("fed"):
        yield Finding("watchdog", True, f"{path} is {said}")
    else:
        yield Finding(
            "watchdog", False, said or f"{path} is not fed",
            "is procd's free (ubus call system watchdog)? else gatehouse.hardware.watchdog ''",
        )  # fmt: skip


def _write_sample(where: str) -> float:
    """Seconds until a sample was on flash. Raises: OSError."""
    path = os.path.join(where, ".doctor")
    begin = time.monotonic()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            data = os.urandom(SAMPLE)  # a file system that compresses must not make it small
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return time.monotonic() - begin
    finally:
        try:
            os.unlink(path)
        except OSError:
            pass


def _file_system_of(where: str, mounts: str) -> str:
    """The type of the last mount whose directory is `where` or above it (proc(5), /proc/self/mounts)."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        place = fields[1].replace("\\040", " ")
        if (where == place or where.startswith(place.rstrip("/") + "/")) and len(place) >= best:
            best, kind = len(place), fields[2]
    return kind
