"""What can be ordered over the serial line, the same for a person and for a script: over a device and its staging.

What is done ends on the maintenance log, what is only staged does not. Secrets never do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from hw.blobs import Blobs
from hw.device import Device, Finding
from hw.settings import GATEHOUSE, Edit, edits_of, is_secret, unset_edits
from hw.staging import Staging
from policy.config import load
from policy.digest import sha256
from policy.errors import ConfigError, GatehouseError

CONFIRM_S: Final = 120
MAX_CONFIRM_S: Final = 3600
PERSONAL: Final = frozenset({"contact", "principal", "principal_id", "username", "account"})
"""Options whose values are somebody's name or number: on the maintenance log stands that they were set, not to what."""


class Outcome(NamedTuple):
    """Of a commit."""

    is_kept: bool
    findings: tuple[Finding, ...]
    why: str = ""
    """Why it was taken back."""


class Orders:
    """Orders to one router."""

    def __init__(
        self, device: Device, staging: Staging, blobs: Blobs, clock: Callable[[], float], settle_s: float = 20.0
    ) -> None:
        """`settle_s`: so long processes may take to come up after a commit, before its test is believed."""
        self._settle_s = settle_s
        self.device, self.staging, self.blobs = device, staging, blobs
        self._clock = clock
        self.forget_password: Callable[[], None] = lambda: None
        """Part of a factory reset; whoever keeps the password says how."""
        self.confirm_by: float | None = None
        """Monotonic seconds when an unconfirmed commit is taken back; None: none waits."""

    def recover(self) -> None:
        """At the start: what a cut left half done is undone, and on record."""
        paths = self.staging.recover()
        if paths:
            self.device.note(
                "rollback", ", ".join(paths), "ok", "not finished, or not confirmed, when the power went", "console"
            )
            self.device.apply(paths)

    def set(self, name: str, words: Sequence[str]) -> list[Edit]:
        """Stage a setting. The whole is judged at `check` and `commit`. Raises: GatehouseError."""
        return self.set_all([(name, words)])

    def set_all(self, settings: Sequence[tuple[str, Sequence[str]]]) -> list[Edit]:
        """Stage several with one write to flash, or none of them. Raises: GatehouseError."""
        edits: list[Edit] = []
        for name, words in settings:
            vendor = mac = ""
            if "auto" in words or "自动" in words:
                mac = str(self.device.facts()["mac"]).replace(":", "").upper()
                staged = [edit.value or "" for edit in edits if (edit.section, edit.option) == ("venue", "vendor")]
                vendor = staged[-1] if staged else load(self.staging.candidate()[GATEHOUSE]).venue.vendor
            edits += edits_of(name, words, mac, vendor)
        self.staging.add(edits)
        return edits

    def unset(self, name: str, words: Sequence[str]) -> None:
        """Stage the default. Raises: GatehouseError."""
        self.staging.add(unset_edits(name, words))

    def discard(self) -> None:
        """Forget what is staged."""
        self.staging.discard()

    def check(self) -> dict[str, str]:
        """What is staged, as a whole. Raises: GatehouseError."""
        texts = self.staging.candidate()
        self.device.check(texts)
        for kind in self.staging.files:
            self.device.path_of(kind, texts[GATEHOUSE])
        return texts

    def commit(self, actor: str, confirm_s: int = 0) -> Outcome:
        """Check, put in place, test, and keep or take back. `confirm_s`: taken back after so long without `confirm`.

        Raises: GatehouseError, and then nothing has changed.
        """
        if self.staging.is_empty:
            raise ConfigError("commit: nothing is staged; `set` something first")
        if not 0 <= confirm_s <= MAX_CONFIRM_S:
            raise ConfigError(f"commit confirm: expected 0 to {MAX_CONFIRM_S} seconds, got {confirm_s}")
        if self.staging.state == "confirm":
            raise ConfigError("commit: the last one is not confirmed yet; `confirm` or `rollback`")
        texts = self.check()
        before = frozenset(found.name for found in self.device.test() if found.is_ok and found.is_seen)
        contents = {
            self.staging.paths[name]: text.encode()
            for name, text in texts.items()
            if any(edit.file == name for edit in self.staging.edits)
        }
        contents |= {
            self.device.path_of(kind, texts[GATEHOUSE]): self.blobs.get(name)
            for kind, name in self.staging.files.items()
        }
        told = self._told()
        old, new = (_hash(text) for text in (self.staging.text(GATEHOUSE), texts[GATEHOUSE]))
        self.staging.begin(contents, confirm_s)
        try:
            self.device.apply(tuple(contents))
            findings, bad = self._test_until_settled(before)
            why = "; ".join(f"{each.name}: {each.why}" for each in bad)
        except GatehouseError as error:
            findings, why = (), str(error)
        if why:
            self.device.apply(self.staging.undo())
            self.device.note("commit", "configuration", f"taken back: {why}"[:300], told, actor, old, new)
            return Outcome(False, findings, why)
        self.staging.keep(is_confirmed=not confirm_s)
        self.confirm_by = self._clock() + confirm_s if confirm_s else None
        result = f"ok, to be confirmed within {confirm_s} s" if confirm_s else "ok"
        self.device.note("commit", "configuration", result, told, actor, old, new)
        return Outcome(True, findings)

    def _test_until_settled(self, before: frozenset[str]) -> tuple[tuple[Finding, ...], list[Finding]]:
        """The findings, and those that the commit is to blame for."""
        deadline = self._clock() + self._settle_s
        while True:
            findings = tuple(self.device.test())
            bad = [each for each in findings if not each.is_ok and (each.is_vital or each.name in before)]
            if not bad or self._clock() >= deadline:
                return findings, bad
            time.sleep(1.0)

    def _told(self) -> str:
        """What is staged, for the record."""
        told = []
        for edit in self.staging.edits:
            is_kept_out = is_secret(edit.option) or edit.option in PERSONAL
            value = "" if edit.value is None else "********" if is_kept_out else edit.value
            told.append(f"{edit.section}.{edit.option}={value}")
        return "; ".join([*told, *(f"file {kind} {name}" for kind, name in self.staging.files.items())])[:400]

    def confirm(self, actor: str) -> None:
        """The last commit stays. Raises: ConfigError, when none waits."""
        if self.staging.state != "confirm":
            raise ConfigError("confirm: no commit waits for it")
        self.staging.keep(is_confirmed=True)
        self.confirm_by = None
        self.device.note("confirm", "configuration", "ok", "", actor)

    def rollback(self, actor: str, why: str = "") -> list[str]:
        """The configuration of before the last commit. Raises: ConfigError, when there is none."""
        paths = self.staging.undo()
        self.confirm_by = None
        self.device.note("rollback", ", ".join(paths), "ok", why, actor)
        self.device.apply(paths)
        return paths

    def handle_timer(self, now: float) -> bool:
        """Take back what nobody confirmed. Returns: was there something?"""
        if self.confirm_by is None or now < self.confirm_by:
            return False
        self.rollback("console", "nobody confirmed it in time")
        return True

    def request_certificate(self, renew: bool, actor: str) -> bytes:
        """For the venue and device that are staged. Raises: GatehouseError."""
        request = self.device.request_certificate(self.staging.candidate()[GATEHOUSE], renew)
        self.device.note("certificate", "request", "renewed key" if renew else "ok", "", actor)
        return request

    def install_certificate(self, certificate: bytes, actor: str) -> str:
        """Raises: GatehouseError."""
        path = self.device.install_certificate(self.staging.candidate()[GATEHOUSE], certificate)
        self.device.note("certificate", path, "installed", "", actor, new=sha256(certificate).hexdigest()[:16])
        return path

    def add_file(self, kind: str, name: str) -> None:
        """Stage a file that was sent; `name` is its sum. Raises: GatehouseError."""
        self.blobs.get(name)
        self.device.path_of(kind, self.staging.candidate()[GATEHOUSE])
        self.staging.add_file(kind, name)

    def take_bundle(self, bundle: str, files: Mapping[str, str], actor: str) -> str:
        """Of `config bundle`; file name to sum. Raises: GatehouseError."""
        result = self.device.take_bundle(bundle, {name: self.blobs.get(each) for name, each in files.items()})
        self.device.note("policy", f"bundle {bundle}", result, "", actor)
        return result

    def factory_reset(self, actor: str) -> None:
        """Configuration, keys, password: as they left the factory. Records and the system's network stay.

        Raises: GatehouseError.
        """
        self.device.note("factory-reset", "configuration", "ordered", "", actor)
        self.staging.forget()
        self.confirm_by = None
        self.blobs.clear()
        self.device.reset()
        self.forget_password()


def _hash(text: str) -> str:
    """As the maintenance log calls a configuration."""
    return sha256(text.encode()).hexdigest()[:16]
