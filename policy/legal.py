"""Legal profiles: which records and which fields of them are captured at all, how long, and who may have them. Pure.

    profile = read_profile(octets)            # TOML; ConfigError says where and what was expected
    capture = Capture(profile)
    capture.take(events)                      # what may be kept, with nothing in it that may not

A profile names, for each class of records, what is kept of it (`all`, `blocked` accesses only, or `none`), each field
that is kept, and for each of both the source. What it does not name is not captured: a profile can only allow.
Rule: a forbidden field is emptied before a record reaches any file, socket or follower. No profile is legal advice,
and none is certified by anyone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from policy.digest import sha256
from policy.errors import ConfigError
from policy.event import Dns, Event, Flood, Flow, Gap, Health, Maintenance, Nat, Registration, Session

MAX_PROFILE: Final = 1 << 16
FORM: Final = 1
UNSPECIFIED: Final = bytes(4)
"""0.0.0.0: where the ring's columns want an address."""

FIELDS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "session": {
        "account": ("account",),
        "phone": ("phone", "phone_index"),
        "room": ("room",),
        "mac": ("mac",),
        "addresses": ("addresses",),
    },
    "registration": {"name": (), "phone": (), "document": (), "room": (), "note": ()},
    "dns": {
        "client": ("client",),
        "mac": ("mac",),
        "session": ("session",),
        "name": ("name",),
        "answers": ("answers",),
    },
    "flow": {
        "client": ("client",),
        "mac": ("mac",),
        "session": ("session",),
        "name": ("name",),
        "path": ("path", "method"),
        "destination": ("dst",),
        "source_port": ("sport",),
    },
    "nat": {"client": ("client",), "session": ("session",), "outside": ("outside",), "ports": ("port_from", "port_to")},
}
"""Class -> field as a profile calls it -> fields of the record. What is not listed says nothing of a person."""
CLASSES: Final = ("session", "registration", "dns", "flow", "block", "nat")
"""`block` is any access that was blocked: of it both the fields of a look-up and of a flow may be named."""
_BLOCK_FIELDS: Final = {**FIELDS["dns"], **FIELDS["flow"]}
_HOOK_KEEPS: Final = frozenset({"client", "mac", "session"})
"""Whose it is: the agent must know, to count a device as present, before it leaves it out."""
_EMPTY: Final[Mapping[str, Any]] = {
    "account": "", "phone": b"", "phone_index": b"", "room": "", "mac": b"", "addresses": (), "client": b"",
    "session": "", "name": "", "answers": (), "path": "", "method": "", "dst": UNSPECIFIED, "sport": 0,
    "outside": b"", "port_from": 0, "port_to": 0, "sample": (),
}  # fmt: skip
_BLOCKED: Final = 1
CLOSED: Final = b"closed1:"
"""What begins so, in the place of a sealed phone number, is all that is kept of a session, closed with its own key
(`agent.erasable`): it has been through here before it was closed."""
_PHONE: Final = Session._fields.index("phone")


class Kept(NamedTuple):
    """One class of records."""

    keep: str
    """`all`, `none`, or for look-ups and flows `blocked`."""
    source: str
    fields: Mapping[str, str]
    """Field -> source: what law or rule asks for it."""


class Profile(NamedTuple):
    """A legal profile, read."""

    name: str
    title: str
    version: int
    country: str
    minimum_days: int
    maximum_days: int
    """0: no maximum of the law's."""
    days_source: str
    identity: str
    """`required`: nobody without a login; `device`: whose device; `none`: sessions are not kept."""
    identity_source: str
    export: tuple[str, ...]
    """Record sets that may leave by an export: `ga`, `sqlite`."""
    export_source: str
    may_erase: bool
    """Whether a session's personal fields may be erased when its user asks."""
    erase_source: str
    classes: Mapping[str, Kept]
    sha256: str
    """Of the file, hexadecimal: what the notice must have been made from."""


def read_profile(octets: bytes, place: str = "profile") -> Profile:
    """Read a profile, whose signature the caller has checked. Raises: ConfigError."""
    if len(octets) > MAX_PROFILE:
        raise ConfigError(f"{place}: expected at most {MAX_PROFILE} octets, got {len(octets)}")
    import tomllib  # here: the hooks need what is below, not this

    try:
        tree = tomllib.loads(octets.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{place}: not TOML: {error}") from None
    table = _Table(place, tree)
    if table.take("form", int) != FORM:
        raise ConfigError(f"{place}.form: expected {FORM}; the profile is of another release")
    days, identity, export, erase = (table.sub(name) for name in ("days", "identity", "export", "erase"))
    classes = {name: _class(table.sub(name), name) for name in CLASSES}
    profile = Profile(
        name=table.take("name", str),
        title=table.take("title", str),
        version=table.take("version", int),
        country=table.take("country", str),
        minimum_days=days.days("minimum"),
        maximum_days=days.days("maximum"),
        days_source=days.source(),
        identity=identity.choice("identity", ("required", "device", "none")),
        identity_source=identity.source(),
        export=tuple(export.words("sets", ("ga", "sqlite"))),
        export_source=export.source(),
        may_erase=erase.take("allowed", bool),
        erase_source=erase.source(),
        classes=classes,
        sha256=sha256(octets).hexdigest(),
    )
    for each in (table, days, identity, export, erase):
        each.finish()
    if profile.may_erase:
        for name in ("dns", "flow", "block", "nat"):
            if named := {"mac", "client"} & set(classes[name].fields):
                raise ConfigError(
                    f"{place}.erase.allowed: expected no {' or '.join(sorted(named))} in {name}: "
                    "only what a session's own record holds can be erased"
                )
    if profile.maximum_days and profile.maximum_days < profile.minimum_days:
        raise ConfigError(f"{place}.days.maximum: expected at least the minimum, {profile.minimum_days}")
    if (profile.identity == "none") != (classes["session"].keep == "none"):
        raise ConfigError(f"{place}.identity.identity: `none` means that no session is kept, and the other way round")
    return profile


NOTHING: Final = Profile(
    "", "", 0, "", 0, 0, "", "none", "", (), "", False, "", {name: Kept("none", "", {}) for name in CLASSES}, ""
)
"""Keeps nothing of anybody: what is in force while the profile that was asked for cannot be read."""


def _class(table: _Table, name: str) -> Kept:
    is_access = name in ("dns", "flow")
    keep = table.choice("keep", ("all", "blocked", "none") if is_access else ("all", "none"))
    known = _BLOCK_FIELDS if name == "block" else FIELDS[name]
    fields = table.sources("fields", known) if keep != "none" else {}
    kept = Kept(keep, table.source(), fields)
    table.finish()
    return kept


class _Table:
    """One table of TOML; every key is read exactly once."""

    def __init__(self, place: str, tree: Mapping[str, Any]) -> None:
        self._place, self._left = place, dict(tree)

    def take(self, name: str, kind: type) -> Any:  # of the kind that was asked for
        value = self._left.pop(name, None)
        if type(value) is not kind:
            raise ConfigError(f"{self._place}.{name}: expected {kind.__name__}, got {value!r:.60}")
        if kind is str and not value:
            raise ConfigError(f"{self._place}.{name}: expected some text")
        return value

    def sub(self, name: str) -> _Table:
        return _Table(f"{self._place}.{name}", self.take(name, dict))

    def choice(self, name: str, words: Sequence[str]) -> str:
        value = self.take(name, str)
        if value not in words:
            raise ConfigError(f"{self._place}.{name}: expected one of {', '.join(words)}, got {value!r}")
        return str(value)

    def words(self, name: str, known: Sequence[str]) -> list[str]:
        values = self.take(name, list)
        for value in values:
            if value not in known:
                raise ConfigError(f"{self._place}.{name}: expected some of {', '.join(known)}, got {value!r}")
        return [str(value) for value in values]

    def days(self, name: str) -> int:
        value = self.take(name, int)
        if not 0 <= value <= 3660:
            raise ConfigError(f"{self._place}.{name}: expected 0 to 3660 days, got {value}")
        return int(value)

    def source(self) -> str:
        return str(self.take("source", str))

    def sources(self, name: str, known: Iterable[str]) -> dict[str, str]:
        table, found = self.sub(name), {}
        for field in list(table._left):
            if field not in known:
                raise ConfigError(f"{table._place}.{field}: no such field; there are {', '.join(sorted(known))}")
            found[field] = str(table.take(field, str))
        return found

    def finish(self) -> None:
        for name in self._left:
            raise ConfigError(f"{self._place}.{name}: nothing of that name is known here")


class Capture:
    """What a profile lets through. `at_hook`: whose it is stays, the agent leaves it out."""

    def __init__(self, profile: Profile, *, at_hook: bool = False) -> None:
        self.profile = profile
        keeps = _HOOK_KEEPS if at_hook else frozenset[str]()
        self._rules: dict[tuple[type[Event], bool], dict[str, Any] | None] = {}
        for kind, name in ((Dns, "dns"), (Flow, "flow")):
            passed, blocked = profile.classes[name], profile.classes["block"]
            self._rules[kind, False] = _emptied(kind, passed, FIELDS[name], keeps) if passed.keep == "all" else None
            may_block = blocked.keep == "all" and passed.keep != "none"
            self._rules[kind, True] = _emptied(kind, blocked, FIELDS[name], keeps) if may_block else None
        for other, name in ((Session, "session"), (Nat, "nat")):
            kept = profile.classes[name]
            self._rules[other, False] = _emptied(other, kept, FIELDS[name], keeps) if kept.keep == "all" else None
        # A flood stands for look-ups: what is not kept of these is not kept of it.
        look_up = self._rules[Dns, False]
        self._rules[Flood, False] = None if look_up is None else _of_flood(look_up)
        self._rules[Registration, False] = {} if profile.classes["registration"].keep == "all" else None
        self._edits = {
            (kind, blocked): [(kind._fields.index(field), value) for field, value in (rule or {}).items()]
            for (kind, blocked), rule in self._rules.items()
        }
        self.is_everything = all(rule == {} for rule in self._rules.values())

    def take(self, events: Sequence[Event]) -> Sequence[Event]:
        """Those that may be kept, as they may be kept."""
        if self.is_everything:
            return events
        return [kept for event in events if (kept := self.one(event)) is not None]

    def one(self, event: Event) -> Event | None:
        """The same for one; None: it may not be kept."""
        kind = type(event)
        if kind is Maintenance or kind is Gap or kind is Health:
            return event
        is_blocked = (kind is Dns or kind is Flow) and event.verdict == _BLOCKED  # type: ignore[union-attr]
        emptied = self._rules[kind, is_blocked]
        if emptied is None:
            return None
        if not emptied:
            return event
        values = list(event)  # a third of what `_replace` takes
        for at, value in self._edits[kind, is_blocked]:
            values[at] = value
        if kind is Session and event.phone.startswith(CLOSED):  # type: ignore[union-attr]
            values[_PHONE] = event.phone  # type: ignore[union-attr]
        return kind._make(values)

    def passes(self, kind: type[Event], *, is_blocked: bool = False) -> bool:
        """Are records of a kind, those let through or those blocked, kept as they are?"""
        return self._rules[kind, is_blocked] == {}

    def keeps(self, kind: type[Event], *, is_blocked: bool = False) -> bool:
        """Are records of a kind, those let through or those blocked, kept at all?"""
        return self._rules[kind, is_blocked] is not None

    def registered(self, fields: Mapping[str, str]) -> dict[str, str]:
        """What of a registration may be kept, sealed. `document` stands for the fields that begin with it."""
        kept = self.profile.classes["registration"]
        if kept.keep == "none":
            return {}
        return {name: value for name, value in fields.items() if name.partition("_")[0] in kept.fields}


def _emptied(kind: type, kept: Kept, known: Mapping[str, Sequence[str]], keeps: Iterable[str]) -> dict[str, Any]:
    names = [name for name in known if name not in kept.fields and name not in keeps]
    return {field: _EMPTY[field] for name in names for field in known[name] if field in kind._fields}  # type: ignore[attr-defined]


def _of_flood(look_up: Mapping[str, Any]) -> dict[str, Any]:
    emptied = {field: _EMPTY[field] for field in ("client", "mac", "session") if field in look_up}
    return emptied | ({"sample": ()} if "name" in look_up else {})
