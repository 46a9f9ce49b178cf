"""The legal profile in force: found, its signature checked, held against the notice that is published. Shell.

A profile is PROFILE.toml with PROFILE.toml.sig beside it, in state_dir/profiles or among those that are shipped; the
keys that may sign are the release's and those in state_dir/keys.
Rule: while the published notice is not the one that goes with the profile, nothing of anybody is captured: no access,
session or registration. The filter works on, and that nothing was captured is on the maintenance log.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from agent import notice
from agent.erasable import needs_library
from policy.bundle import PublicKey, check_signature, read_public_key
from policy.config import Config
from policy.errors import BundleError, ConfigError
from policy.event import Event, Gap, Health, Maintenance
from policy.legal import MAX_PROFILE, NOTHING, Capture, Profile, read_profile
from policy.signature import verify

SHIPPED: Final = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "policy", "profiles")
RELEASE_KEY: Final = "release.pub"
EVERYTHING: Final = "everything"
"""In place of a profile's name: no law is known to the router, and whoever wrote this knows that."""
_ALWAYS: Final = frozenset({Maintenance, Gap, Health})


class Gate:
    """What may be captured now. `take` is asked for every record on its way to the ring."""

    def __init__(self, config: Config) -> None:
        """A profile that cannot be read is no error here: nothing is captured, `trouble` says why."""
        self.trouble = ""
        """Why nothing is captured; empty: what the profile allows is."""
        self.refused = 0
        """Records that were not captured for that."""
        self.profile: Profile | None = NOTHING
        self._config = config
        self._broken = ""
        try:
            self.change(config)
        except ConfigError as error:
            self._broken = self.trouble = str(error)

    def change(self, config: Config) -> None:
        """Take a new configuration. Raises: ConfigError, and then nothing has changed."""
        profile = load_profile(config)
        if profile is not None and profile.may_erase:
            needs_library()
        self.profile, self._broken = profile, ""
        self._capture = Capture(profile) if profile is not None else None
        self._config = config
        self.check()

    def check(self) -> bool:
        """Look at the published notice again. True: something has changed."""
        before = self.trouble
        self.trouble = self._broken or ("" if self.profile is None else notice.trouble(self.profile, self._config))
        return self.trouble != before

    def take(self, events: Sequence[Event]) -> Sequence[Event]:
        """Those that may be kept, as they may be kept."""
        if self.trouble:
            kept = [event for event in events if type(event) in _ALWAYS]
            self.refused += len(events) - len(kept)
            return kept
        return events if self._capture is None else self._capture.take(events)

    def takes_all(self) -> bool:
        """Does `take` give everything back as it is?"""
        return not self.trouble and (self._capture is None or self._capture.is_everything)

    def one(self, event: Event) -> Event | None:
        """The same for one."""
        kept = self.take((event,))
        return kept[0] if kept else None

    @property
    def may_erase(self) -> bool:
        """Must what a session's record says of a person be erasable?"""
        return self.profile is not None and self.profile.may_erase

    def keeps_in(self, name: str) -> str:
        """Why a set of records (`sqlite`, `ga`) may not leave by an export; empty: it may."""
        if self.profile is None or name in self.profile.export:
            return ""
        if self._broken:
            return self._broken
        allowed = ", ".join(self.profile.export) or "none"
        return f"the legal profile {self.profile.name} allows {allowed}, not {name} ({self.profile.export_source})"

    def describe(self) -> dict[str, object]:
        """For status."""
        if self.profile is None:
            warning = unchosen(self._config)
            return {"profile": "", "capturing": True, **({"warning": warning} if warning else {})}
        return {
            "profile": self.profile.name,
            "version": self.profile.version,
            "sha256": self.profile.sha256,
            "capturing": not self.trouble,
            "refused": self.refused,
        }


def load_profile(config: Config) -> Profile | None:
    """The profile that the configuration names; None: it names none, or EVERYTHING. Raises: ConfigError."""
    name = config.main.legal
    if name in ("", EVERYTHING):
        return None
    profile = open_profile(name, config.main.state_dir)
    if profile.identity == "required" and not config.session.enabled:
        raise ConfigError(
            f"gatehouse.session.enabled: expected 1, for the legal profile {name} lets nobody pass without a login "
            f"({profile.identity_source})"
        )
    ring = config.ring
    if ring.promised_days < profile.minimum_days:
        raise ConfigError(
            f"gatehouse.ring.promised_days: expected at least {profile.minimum_days}, which the legal profile {name} "
            f"asks for ({profile.days_source}), got {ring.promised_days}"
        )
    if profile.maximum_days and not 0 < ring.maximum_days <= profile.maximum_days:
        raise ConfigError(
            f"gatehouse.ring.maximum_days: expected 1 to {profile.maximum_days}, which the legal profile {name} allows "
            f"({profile.days_source}), got {ring.maximum_days}"
        )
    return profile


def unchosen(config: Config) -> str:
    """A warning where nobody has said what may be recorded; empty: somebody has."""
    if config.main.legal:
        return ""
    return (
        "gatehouse.main.legal: no legal profile is chosen, so everything that is seen is recorded; choose one of "
        f"{', '.join(shipped())}, or write {EVERYTHING!r} if that is meant"
    )


def open_profile(name: str, state_dir: str) -> Profile:
    """Find it, check its signature, read it. Raises: ConfigError."""
    for directory in (os.path.join(state_dir, "profiles"), SHIPPED):
        path = os.path.join(directory, f"{name}.toml")
        if os.path.exists(path):
            break
    else:
        raise ConfigError(
            f"gatehouse.main.legal: no profile {name!r}; shipped are {', '.join(shipped())}, your own go to "
            f"{os.path.join(state_dir, 'profiles')}"
        )
    octets, proof = _read(path), _read(f"{path}.sig")
    try:
        check_signature(octets, proof, trusted_keys(state_dir), verify)
    except BundleError as error:
        raise ConfigError(
            f"{path}: {error}; sign it with `gatehouse profile sign`, by a key in state_dir/keys"
        ) from None
    profile = read_profile(octets, os.path.basename(path))
    if profile.name != name:
        raise ConfigError(f"{path}: says it is {profile.name!r}")
    return profile


def shipped() -> list[str]:
    """Names of the profiles that come with this release."""
    return sorted(name.removesuffix(".toml") for name in os.listdir(SHIPPED) if name.endswith(".toml"))


def trusted_keys(state_dir: str) -> dict[str, PublicKey]:
    """The release's key and the venue's own."""
    keys = {}
    paths = [os.path.join(SHIPPED, RELEASE_KEY)]
    own = os.path.join(state_dir, "keys")
    try:
        paths += [os.path.join(own, name) for name in sorted(os.listdir(own))[:64]]
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConfigError(f"{own}: {error.strerror}") from None
    for path in paths:
        try:
            key = read_public_key(_read(path))
        except (BundleError, ConfigError):
            continue
        keys[key.fingerprint] = key
    return keys


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_PROFILE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
