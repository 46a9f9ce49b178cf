"""What goes wrong on the laptop's side, always with the mend: whoever reads it stands in a corridor with a cable."""

from __future__ import annotations

from policy.errors import SerialError


class TroubleError(SerialError):
    """What is wrong, and what to do about it."""

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(what)
        self.mend = mend


class LostSessionError(SerialError):
    """The router does not know our session any more: it started anew, or the cable was out. Log in again."""


MENDS = (
    ("does not answer", "check cable, adapter (TX to RX, GND) and power; close other programs on this port"),
    ("password", "use the password that this router was given (--password), or reset it by its button"),
    ("locked", "wait until the lock is over; five wrong passwords in a row did this"),
    ("No space", "the flash is full: free some of it (gatehouse status), then again"),
    ("Read-only", "the flash takes nothing: restart the router; if it stays so, replace it"),
    ("certificate", "sign the request that this very router made, and no other; then again"),
    ("venue", "correct the venue's code in the profile or the table"),
    ("taken back", "see the findings; the old configuration is in place"),
)
"""Part of an error -> what to do."""


def mend_of(error: Exception) -> str:
    """What to do about any error."""
    if isinstance(error, TroubleError):
        return error.mend
    text = str(error)
    return next((mend for part, mend in MENDS if part in text), "correct what it names, then run this device again")
