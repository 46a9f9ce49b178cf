"""Codes of the supervising side: venue, device, and what their characters mean. Pure.

Venue code of public places, 14 characters: [0:6] region (GB/T 2260), [6] nature, [7] type, [8:10] vendor, [10:14]
serial; net cafés (GA 557.1-2005) have six digits of region, `10`, and six of serial, which is the same form with
nature 1 and type 0. Device id, 21 characters: nine of the vendor's organisation code, twelve of the MAC.
Sources agree on the form and contradict each other on what nature says, so any digit is taken there.
"""

from __future__ import annotations

import re
from typing import Final

from policy.errors import ConfigError

VENUE_SIZE: Final = 14
DEVICE_SIZE: Final = 21
VENUE_TYPES: Final = {
    "0": "net café", "1": "hotel", "2": "library or reading room", "3": "computer training", "4": "entertainment",
    "5": "transport hub", "6": "public transport", "7": "catering", "8": "finance", "9": "other", "A": "shopping",
    "B": "public service", "C": "culture", "D": "leisure",
}  # fmt: skip
_PROVINCES: Final = frozenset(
    (11, 12, 13, 14, 15, 21, 22, 23, 31, 32, 33, 34, 35, 36, 37, 41, 42, 43, 44, 45, 46, 50, 51, 52, 53, 54, 61, 62,
     63, 64, 65, 71, 81, 82)
)  # fmt: skip
"""The first two digits of GB/T 2260."""


def check_venue(code: str, place: str) -> None:
    """Raises: ConfigError, which says what is wrong with which character."""
    if len(code) != VENUE_SIZE:
        raise ConfigError(f"{place}: expected a venue code of {VENUE_SIZE} characters, got {len(code)}: {code!r}")
    if not re.fullmatch(r"[0-9]{6}", code[:6]) or int(code[:2]) not in _PROVINCES:
        raise ConfigError(
            f"{place}: expected a region of GB/T 2260 in characters 1 to 6, such as 110105, got {code[:6]!r}"
        )
    if code[6] not in "0123456789":
        raise ConfigError(f"{place}: expected a digit, the venue's nature, as character 7, got {code[6]!r}")
    if code[7] not in VENUE_TYPES:
        types = ", ".join(f"{letter} {name}" for letter, name in VENUE_TYPES.items())
        raise ConfigError(f"{place}: expected the venue's type as character 8 ({types}), got {code[7]!r}")
    if not re.fullmatch(r"[0-9A-Z]{2}", code[8:10]):
        raise ConfigError(f"{place}: expected a vendor of two digits or capitals as 9 and 10, got {code[8:10]!r}")
    if not re.fullmatch(r"[0-9]{4}", code[10:]):
        raise ConfigError(f"{place}: expected a serial number of four digits in characters 11 to 14, got {code[10:]!r}")


def check_device(code: str, place: str) -> None:
    """Raises: ConfigError."""
    if len(code) != DEVICE_SIZE:
        raise ConfigError(f"{place}: expected a device id of {DEVICE_SIZE} characters, got {len(code)}: {code!r}")
    if not re.fullmatch(r"[0-9A-Z]{9}", code[:9]):
        raise ConfigError(
            f"{place}: expected an organisation code of nine digits or capitals in front, got {code[:9]!r}"
        )
    if not re.fullmatch(r"[0-9A-F]{12}", code[9:]):
        raise ConfigError(
            f"{place}: expected the MAC address, twelve capital hexadecimal digits, as 10 to 21, got {code[9:]!r}"
        )
