"""What is at the other end, from what it writes: U-Boot, a kernel that boots, failsafe, a login, a shell. Pure."""

from __future__ import annotations

import re
from typing import Final, NamedTuple


class Known(NamedTuple):
    """One thing that can be there."""

    name: str
    pattern: re.Pattern[str]
    what: str
    mend: str
    answer: bytes = b""
    """Keys that lead on towards the console (Ctrl-U first: forget our hello); empty: a person has to do something."""


def _known(name: str, pattern: str, what: str, mend: str, answer: bytes = b"") -> Known:
    return Known(name, re.compile(pattern), what, mend, answer)


KNOWN: Final = (
    _known("shared", r"g and Enter: Gatehouse", "the login console offers Gatehouse", "it is entered by itself", b"\x15g\r"),
    _known("console", r"Gatehouse (console|控制台)|gatehouse\*?> ", "Gatehouse's console for people", "it is used as it is"),
    _known("failsafe-offer", r"Press the \[f\] key and hit \[enter\]", "OpenWrt boots, and offers failsafe",
           "wait for a minute, and press nothing"),
    _known("failsafe", r"root@\(none\):|-+ failsafe|mount_root", "OpenWrt is in failsafe mode: Gatehouse does not run",
           "type `mount_root && reboot -f` to leave it; if it comes back, type `firstboot` there"),
    _known("u-boot-offer", r"Hit any key to stop autoboot|Autoboot in \d", "U-Boot counts down",
           "wait for a minute, and press nothing"),
    _known("u-boot", r"(?m)^(=>|U-Boot>|\w{2,10}#|MT\d+ #) ?$|U-Boot 20\d\d", "the boot loader U-Boot waits for orders",
           "type `boot` (or pull the power and press nothing), and try again in a minute"),
    _known("activate", r"Please press Enter to activate this console", "OpenWrt's login console, not yet active",
           "it is entered by itself", b"\r"),
    _known("login", r"(?m)login: ?$", "a login prompt",
           "log in as root (`monitor`), then `gatehouse console --line -`; or use the line that Gatehouse has for itself"),
    _known("password", r"(?m)^Password: ?$", "a login waits for a password", "press Ctrl-C or wait a minute, and try again"),
    _known("shell", r"(?m)root@[\w.-]+:[^\n]*[#$] ?$|(?m:^/ # ?$)", "a root shell", "Gatehouse is started there by itself",
           b"\x15gatehouse console --line -\r"),
    _known("boot", r"\[ {0,4}\d+\.\d{6}\] ", "a kernel boots", "wait for a minute"),
)  # fmt: skip


def recognise(text: str) -> Known | None:
    """What wrote this; the last thing that it says counts. None: nothing we know."""
    found = [(match.end(), known) for known in KNOWN for match in known.pattern.finditer(text)]
    return max(found, key=lambda each: each[0])[1] if found else None


def looks_right(data: bytes) -> bool:
    """Does it look like text or frames at the right speed? Half of what a wrong speed makes is not printable."""
    text = data.decode("utf-8", "replace")
    plain = sum(
        (character.isprintable() and character != "\ufffd") or character in "\r\n\t\x1b\x1e" for character in text
    )
    return len(data) >= 8 and plain >= 0.9 * len(text)
