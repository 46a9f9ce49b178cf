"""Opens what the compiler and the owner have left on disk as one `Engine`: image, rules, zone, overrides.

    engine = engine_of(config, before=engine)

Rule: hooks have this in memory, so nothing of how images and bundles are made is imported here.
Rule: a damaged or missing image never leaves a venue without rules: the one before it is taken, then none; `notes` says
so, for the maintenance log.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from typing import Final

from policy import override
from policy.config import Config
from policy.engine import Engine
from policy.errors import ConfigError, ImageError
from policy.image import Image
from policy.rules import load_policy
from policy.uci import Section, parse
from policy.zone import UTC, Zone, footer, parse_zone

OVERRIDES_FILE: Final = "overrides.json"
BUNDLE_SUFFIX: Final = ".bundle.gp"
RULES_SUFFIX: Final = ".bundle.uci"
OLD_SUFFIX: Final = ".old"
"""Of the image before the one in force."""


def engine_of(config: Config, before: Engine | None = None) -> Engine:
    """The engine over what is on disk now, `before` being the one that it replaces. Raises: ConfigError."""
    return open_engine(sections(config), config.main.state_dir, zone=config.main.timezone, old=before)


def sections(config: Config) -> tuple[Section, ...]:
    """The venue's own sections and those that its bundles brought."""
    names = [section.name for section in config.policy if section.type == "bundle"]
    return (*sections_of(names, config.main.state_dir), *config.policy)


def sections_of(names: Iterable[str], state_dir: str) -> list[Section]:
    """The rules that bundles brought, to be read together with the venue's own (before `load_policy`)."""
    found: list[Section] = []
    for name in names:
        try:
            with open(os.path.join(state_dir, name + RULES_SUFFIX), encoding="utf-8") as file:
                found += parse(file.read(), name)
        except FileNotFoundError:
            continue
    return found


def open_engine(
    sections: Iterable[Section],
    state_dir: str,
    *,
    table: str = "",
    zone: str = "",
    old: Engine | None = None,
    notes: list[str] | None = None,
) -> Engine:
    """An engine over what is there now. `table`: the image's path, if not the configured one.

    `old`: the engine it replaces; its generation goes up by one and what is known of clients is kept.
    Raises: ConfigError.
    """
    notes = [] if notes is None else notes
    policy = load_policy(sections)
    paths = [table or policy.table]
    paths += [os.path.join(state_dir, bundle.name + BUNDLE_SUFFIX) for bundle in policy.bundles]
    images = [image for path in paths if (image := open_image(path, notes)) is not None]
    return Engine(
        images,
        policy,
        zone=read_zone(zone, notes),
        overrides=read_overrides(state_dir, notes).active,
        generation=old.generation + 1 if old else 1,
        clients=old.clients if old else None,
    )


def open_image(path: str, notes: list[str]) -> Image | None:
    """The image at a path, else the one before it, else None."""
    for candidate in (path, path + OLD_SUFFIX):
        try:
            return map_image(candidate)
        except FileNotFoundError:
            notes.append(f"{candidate}: not there")
        except (ImageError, OSError, ValueError) as error:
            notes.append(f"{candidate}: {error}")
    return None


def map_image(path: str) -> Image:
    """Map a file read-only: its pages are shared with every other process that has it open.

    Raises: ImageError, OSError; ValueError for an empty file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return Image(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
    finally:
        os.close(descriptor)


def read_zone(text: str, notes: list[str]) -> Zone:
    """A POSIX string, an IANA name where the machine has the zone files, or empty for the machine's own (/etc/TZ)."""
    try:
        if not text:
            return _system_zone()
        if "/" in text and "," not in text and ".." not in text:
            with open(f"/usr/share/zoneinfo/{text}", "rb") as file:
                return parse_zone(footer(file.read()))
        return parse_zone(text)
    except (OSError, ConfigError) as error:
        notes.append(f"timezone {text!r}: {error}; schedules run in UTC")
        return UTC


def _system_zone() -> Zone:
    try:
        with open("/etc/TZ", encoding="ascii") as text:  # OpenWrt, written from system.@system[0].timezone
            return parse_zone(text.read().strip())
    except FileNotFoundError:
        pass
    try:
        with open("/etc/localtime", "rb") as file:
            return parse_zone(footer(file.read()))
    except FileNotFoundError:
        return UTC


def read_overrides(state_dir: str, notes: list[str]) -> override.Overrides:
    """The overrides' state; an empty one if it is missing or damaged."""
    try:
        with open(os.path.join(state_dir, OVERRIDES_FILE), encoding="utf-8") as file:
            return override.load(file.read())
    except FileNotFoundError:
        pass
    except (OSError, ConfigError, UnicodeDecodeError) as error:
        notes.append(f"overrides: {error}")
    return override.Overrides()


def write_overrides(state_dir: str, state: override.Overrides) -> None:
    """Keep the overrides' state through a restart. Raises: OSError."""
    path = os.path.join(state_dir, OVERRIDES_FILE)
    with open(path + ".tmp", "w", encoding="utf-8", opener=_private) as file:
        file.write(override.dump(state))
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".tmp", path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
