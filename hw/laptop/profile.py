"""What a router is to become: a TOML profile, and a CSV table with a row for each router. Read whole, judged whole.

Rule: every mistake that the laptop can see is told before the first router is touched, with file and line.
"""

from __future__ import annotations

import csv
import os
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from hw.settings import SETTINGS, edits_of
from policy.codes import check_device, check_venue
from policy.errors import ConfigError

OWN_COLUMNS: Final = ("port", "mac", "password", "label")
"""Of a table, besides the names of settings."""
MAX_ROWS: Final = 10_000


class Profile(NamedTuple):
    """What holds for every router."""

    settings: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Name and words, in their order."""
    password: str = ""
    generates_password: bool = False
    baud: int = 0
    confirm_s: int = 60
    files: tuple[tuple[str, str], ...] = ()
    """Kind on the router (`ca`, `list:NAME`, `key:NAME`) and path here."""
    sign_command: tuple[str, ...] = ()
    ca_certificate: str = ""
    ca_key: str = ""
    days: int = 1825
    bundle: str = ""
    bundle_directory: str = ""
    title: str = "Gatehouse"


class Plan(NamedTuple):
    """What one router is to become."""

    number: int
    """Row of the table, from 1."""
    settings: tuple[tuple[str, tuple[str, ...]], ...]
    port: str = ""
    mac: str = ""
    """Whom it is meant for; empty: whichever is plugged in."""
    password: str = ""
    label: str = ""

    def value(self, name: str) -> str:
        """Of a setting, as text; empty: it is not set."""
        return " ".join(dict(self.settings).get(name, ()))


def read_profile(path: str) -> Profile:
    """Raises: ConfigError, naming file and key."""
    try:
        with open(path, "rb") as file:
            tree = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    reader = _Reader(path, tree)
    beside = os.path.dirname(os.path.abspath(path))
    settings = [(name, _words(value, f"{path}: settings.{name}")) for name, value in reader.table("settings").items()]
    for name, value in reader.table("options").items():
        settings.append((f"option {name}", _words(value, f"{path}: options.{name}")))
    console = reader.section("console", ("password", "password_file", "generate_password", "baud", "confirm_s"))
    certificate = reader.section("certificate", ("sign_command", "ca_certificate", "ca_key", "days"))
    bundle = reader.section("bundle", ("name", "directory"))
    label = reader.section("label", ("title",))
    files = []
    for kind, value in reader.table("files").items():
        pairs = {"ca": {"": value}, "lists": value, "keys": value}.get(kind)
        if not isinstance(pairs, dict):
            raise ConfigError(f"{path}: files.{kind}: expected ca = PATH, or a table [files.lists] or [files.keys]")
        for name, where in pairs.items():
            on_router = {"ca": "ca", "lists": f"list:{name}", "keys": f"key:{name}"}[kind]
            files.append((on_router, _there(os.path.join(beside, str(where)), f"{path}: files.{kind}")))
    reader.finish()
    password = str(console.get("password", ""))
    if "password_file" in console:
        where = _there(os.path.join(beside, str(console["password_file"])), f"{path}: console.password_file")
        with open(where, encoding="utf-8") as text:
            password = text.read().strip()
    directory = str(bundle.get("directory", ""))
    return Profile(
        settings=tuple(settings),
        password=password,
        generates_password=console.get("generate_password") is True,
        baud=_number(console, "baud", 0, f"{path}: console"),
        confirm_s=_number(console, "confirm_s", 60, f"{path}: console"),
        files=tuple(files),
        sign_command=_words(certificate.get("sign_command", []), f"{path}: certificate.sign_command"),
        ca_certificate=_beside(beside, certificate.get("ca_certificate"), path),
        ca_key=_beside(beside, certificate.get("ca_key"), path),
        days=_number(certificate, "days", 1825, f"{path}: certificate"),
        bundle=str(bundle.get("name", "")),
        bundle_directory=_there(os.path.join(beside, directory), f"{path}: bundle.directory") if directory else "",
        title=str(label.get("title", "Gatehouse")),
    )


def read_table(path: str, profile: Profile) -> list[Plan]:
    """A row for each router. Raises: ConfigError with every mistake, a line each."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets write a mark in front
            reader = csv.DictReader(file)
            names = reader.fieldnames or ()
            rows = [(reader.line_num, row) for row in reader if any(row.values())]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected a CSV table in UTF-8: {error}") from None
    known = (*OWN_COLUMNS, *(setting.name for setting in SETTINGS))
    unknown = [name for name in names if name not in known and not name.startswith("option ")]
    if unknown or not names:
        raise ConfigError(
            f"{path}: unknown column {', '.join(map(repr, unknown)) or '(none)'}; known: {', '.join(known)}"
        )
    if len(rows) > MAX_ROWS:
        raise ConfigError(f"{path}: expected at most {MAX_ROWS} rows, got {len(rows)}")
    plans, mistakes = [], []
    seen: dict[tuple[str, str], int] = {}
    for number, (line, row) in enumerate(rows, 1):
        try:
            if None in row:
                raise ConfigError(f"{len(row[None])} cells more than the head has")
            plan = make_plan(profile, number, {name: value or "" for name, value in row.items()})
            for what in ("venue", "device"):
                value = plan.value(what)
                if (
                    what == "device"
                    and value != "auto"
                    and value
                    and (twin := seen.setdefault((what, value), line)) != line
                ):
                    raise ConfigError(f"device: {value} is on line {twin} too")
            if plan.mac and (twin := seen.setdefault(("mac", plan.mac), line)) != line:
                raise ConfigError(f"mac: {plan.mac} is on line {twin} too")
            plans.append(plan)
        except ConfigError as error:
            mistakes.append(f"{path}:{line}: {error}")
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return plans


def make_plan(profile: Profile, number: int = 1, row: Mapping[str, str] | None = None) -> Plan:
    """The profile's settings, and a row's in their place. Raises: ConfigError."""
    row = row or {}
    settings = dict(profile.settings)
    for name, value in row.items():
        if name not in OWN_COLUMNS and value.strip():
            settings[name] = _words(value.strip(), name)
    plan = Plan(
        number,
        tuple(settings.items()),
        row.get("port", "").strip(),
        _mac(row.get("mac", "")),
        row.get("password", "").strip() or profile.password,
        row.get("label", "").strip(),
    )
    check(plan)
    return plan


def check(plan: Plan) -> None:
    """What can be known without the router. Raises: ConfigError."""
    vendor = plan.value("vendor")
    for name, words in plan.settings:
        edits_of(*request_of(name, words), "0" * 12, vendor)
    if venue := plan.value("venue"):
        check_venue(venue, "venue")
    device = plan.value("device")
    if device and device != "auto":
        check_device(device, "device")


def request_of(name: str, words: Sequence[str]) -> tuple[str, list[str]]:
    """A setting as the router takes it: `option dns.rate` is one name here, and a word there."""
    head, _, rest = name.partition(" ")
    return head, [*([rest] if rest else []), *words]


class _Reader:
    """A TOML tree of which every key must be known."""

    def __init__(self, path: str, tree: Mapping[str, Any]) -> None:
        self._path = path
        self._left = dict(tree)

    def table(self, name: str) -> Mapping[str, Any]:
        found = self._left.pop(name, {})
        if not isinstance(found, dict):
            raise ConfigError(f"{self._path}: {name}: expected a table, [{name}]")
        return found

    def section(self, name: str, known: Sequence[str]) -> Mapping[str, Any]:
        found = self.table(name)
        for key in found:
            if key not in known:
                raise ConfigError(f"{self._path}: {name}.{key}: unknown; known: {', '.join(known)}")
        return found

    def finish(self) -> None:
        for name in self._left:
            known = "settings, options, console, files, certificate, bundle, label"
            raise ConfigError(f"{self._path}: {name}: unknown; known: {known}")


def _words(value: object, place: str) -> tuple[str, ...]:
    if isinstance(value, bool):
        return ("on" if value else "off",)
    if isinstance(value, list):
        return tuple(map(str, value))
    if isinstance(value, int):
        return (str(value),)
    if not isinstance(value, str):
        raise ConfigError(f"{place}: expected text, a number, or a list of texts, got {value!r:.60}")
    # As it stands for names and addresses; words where there are several, as of `wan`.
    if place.endswith(("wan", "uplink")):
        try:
            return tuple(shlex.split(value))
        except ValueError as error:
            raise ConfigError(f"{place}: {error}") from None
    return (value,)


def _number(table: Mapping[str, Any], name: str, default: int, place: str) -> int:
    value = table.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"{place}.{name}: expected a whole number, got {value!r}")
    return value


def _mac(text: str) -> str:
    digits = "".join(c for c in text.upper() if c not in ":-. ")
    if digits and (len(digits) != 12 or not all(c in "0123456789ABCDEF" for c in digits)):
        raise ConfigError(f"mac: expected twelve hexadecimal digits, got {text!r}")
    return digits


def _there(path: str, place: str) -> str:
    if not os.path.exists(path):
        raise ConfigError(f"{place}: {path}: there is no such file")
    return path


def _beside(directory: str, value: object, place: str) -> str:
    return _there(os.path.join(directory, str(value)), f"{place}: certificate") if value else ""
