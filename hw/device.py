"""What the console needs of the router it stands on. The roof (agent/console.py) brings the real one.

Rule: nothing here knows of terminals or frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol


class Finding(NamedTuple):
    """One line of the self-test."""

    name: str
    is_ok: bool
    why: str = ""
    mend: str = ""
    is_vital: bool = False
    """A commit after which this is not ok is taken back, even if it was not ok before."""
    is_seen: bool = True
    """False: the part is absent, or switched off, so that a commit cannot have broken it."""


class Device(Protocol):
    """The router."""

    def facts(self) -> Mapping[str, object]:
        """Who it is, before anybody has logged in: `mac`, `release`, `venue`, `device`, `state`. Nothing of people."""

    def status(self) -> Mapping[str, object]:
        """How it is, flat: words to values."""

    def check(self, texts: Mapping[str, str]) -> None:
        """Would this configuration do? File name -> text, read as the agent reads it. Raises: ConfigError."""

    def path_of(self, kind: str, text: str) -> str:
        """Where a file that was sent belongs: `ca`, `list:NAME`, `key:NAME`, under this configuration.

        Raises: ConfigError.
        """

    def apply(self, changed: Sequence[str]) -> None:
        """The files on flash are others now: let everything read them. Raises: GatehouseError."""

    def test(self) -> Sequence[Finding]:
        """Look whether it works. Takes seconds; raises nothing."""

    def request_certificate(self, text: str, renew: bool) -> bytes:
        """A key that stays here, and the request for a certificate on it, in PEM. Raises: GatehouseError."""

    def install_certificate(self, text: str, certificate: bytes) -> str:
        """Take in what the authority signed. Returns where it lies. Raises: GatehouseError."""

    def take_bundle(self, name: str, files: Mapping[str, bytes]) -> str:
        """A signed policy bundle: `manifest`, `manifest.sig` and what it names. Raises: GatehouseError."""

    def policy(self, words: Sequence[str]) -> Sequence[str]:
        """What is decided, for a person: nothing, or `explain NAME`. Raises: GatehouseError."""

    def reset(self) -> None:
        """Everything as it left the factory; the records stay. Raises: GatehouseError."""

    def note(self, action: str, what: str, result: str, detail: str, actor: str, old: str = "", new: str = "") -> None:
        """Onto the maintenance log, now or when the agent is there. Raises nothing."""
