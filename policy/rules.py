"""The policy's own UCI sections, read once into typed objects: lists, bundles, profiles, groups, schedules, rules.

Holds what the owner of a venue has written and nothing that was downloaded. Opens no file.
Rule: a word that nobody understands, or a name that refers to nothing, is a ConfigError that says section, option and
the mend; a typing mistake must not quietly open or close a venue. (Categories are known only when the lists are there:
`Engine.unknown` names those that no list has.)
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Final, NamedTuple, TypeVar

from policy.config import Options
from policy.errors import ConfigError, ListError
from policy.image import Scope
from policy.names import parse_name
from policy.near import nearest
from policy.safesearch import PROVIDERS
from policy.schedule import DAYS, Calendar, Schedule, Window
from policy.syntax import Format, parse_network
from policy.uci import Section
from policy.zone import days_from_civil

ON_BLOCK: Final = {"nxdomain": "nxdomain", "nodata": "nodata", "null": "null", "nullip": "null", "page": "page"}
ALL_DAYS: Final = frozenset(range(7))
MAX_CATEGORIES: Final = 128
_T = TypeVar("_T")
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}").fullmatch


class ListConfig(NamedTuple):
    """`config list`: where a list comes from and how it is taken."""

    name: str
    url: str = ""
    file: str = ""
    """A file or directory on the router, instead of `url`; relative to the directory of lists."""
    category: str = ""
    format: Format = Format.AUTO
    scope: Scope | None = None
    """None: `auto`, as the syntax means it."""
    action: str = "block"
    important: bool = False
    max_entries: int = 0
    refresh_s: int = 86400
    allow_public_suffix: bool = False


class BundleConfig(NamedTuple):
    """`config bundle`: a signed policy of somebody's."""

    name: str
    url: str = ""
    keys: tuple[str, ...] = ()
    """Fingerprints (16 hex digits) of the keys that may sign it; their public keys lie in the key directory."""
    channel: str = "stable"


class Profile(NamedTuple):
    """`config profile`: what a group may see."""

    name: str
    block: tuple[str, ...] = ()
    """Categories, or lists by name."""
    log: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    safe_search: tuple[tuple[str, str], ...] = ()
    """Provider and strength."""
    default: str = "allow"
    on_block: str = "nxdomain"
    fail: str = "open"
    bypass: bool = True
    """Block what would take a client around the filter."""
    strip_ech: bool = False


class Group(NamedTuple):
    """`config group`: whose profile."""

    name: str
    profile: str
    priority: int = 0
    macs: tuple[bytes, ...] = ()
    accounts: tuple[str, ...] = ()
    interfaces: tuple[str, ...] = ()
    ssids: tuple[str, ...] = ()
    networks: tuple[tuple[int, int, int], ...] = ()
    """First address, prefix length, 32 or 128."""


class Action(Enum):
    """What a rule does with what it matches."""

    BLOCK = "block"
    ALLOW = "allow"
    LOG = "log"


class What(Enum):
    """What a rule matches."""

    ALL = "all"
    CATEGORY = "category"
    LIST = "list"
    DOMAIN = "domain"
    """A name and all below it; `*.name`: only below."""
    EXACT = "exact"
    URL = "url"
    IP = "ip"


class Match(NamedTuple):
    """One `list match` of a rule, or what an override is for."""

    what: What
    text: str = ""
    """Category or list."""
    name: bytes = b""
    scope: Scope = Scope.BOTH
    pattern: bytes = b""
    network: tuple[int, int, int] | None = None


class Rule(NamedTuple):
    """`config rule`."""

    name: str
    groups: tuple[str, ...]
    """Groups and profiles it holds for; empty: all."""
    profiles: tuple[str, ...]
    schedule: str
    """Empty: always."""
    matches: tuple[Match, ...]
    action: Action


class Rewrite(NamedTuple):
    """`config safesearch`: a search engine of the venue's own."""

    name: str
    names: tuple[bytes, ...]
    target: str


class Policy(NamedTuple):
    """All of it."""

    lists: tuple[ListConfig, ...] = ()
    bundles: tuple[BundleConfig, ...] = ()
    profiles: Mapping[str, Profile] = {}
    groups: tuple[Group, ...] = ()
    """The default group first."""
    schedules: Mapping[str, Schedule] = {}
    rules: tuple[Rule, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()
    never_block: tuple[bytes, ...] = ()
    """The venue's own names, in addition to those that are built in."""
    table: str = "/etc/gatehouse/policy.gp"
    unsynced: str = "strict"
    """While the clock is not known: `strict` closes what a schedule may close, `ignore` leaves schedules out."""
    public_suffix_list: str = ""
    list_dir: str = "/etc/gatehouse/lists"
    is_implicit: bool = False
    """No profile and no group was written: the default group gets every list that blocks."""


def load_policy(sections: Iterable[Section]) -> Policy:
    """Read the policy's sections (`policy.config.Config.policy`).

    Raises: ConfigError.
    """
    by_type: dict[str, list[Section]] = {}
    for section in sections:
        by_type.setdefault(section.type, []).append(section)
    main = _Main(by_type.get("policy", []))
    calendars = {s.name: _calendar(s) for s in by_type.get("calendar", [])}
    schedules = {s.name: _schedule(s, calendars) for s in by_type.get("schedule", [])}
    profiles = {s.name: _profile(s, main) for s in by_type.get("profile", [])}
    written = [_group(s, profiles) for s in by_type.get("group", [])]
    is_implicit = not profiles and not written
    groups = _with_default(written, profiles, main)
    known_groups = {group.name for group in groups}
    rules = [_rule(s, known_groups, profiles, schedules) for s in by_type.get("rule", [])]
    lists = tuple(_list(s) for s in by_type.get("list", []))
    categories = {item.category for item in lists}
    if len(categories) > MAX_CATEGORIES:
        raise ConfigError(f"gatehouse: expected at most {MAX_CATEGORIES} categories, got {len(categories)}")
    return Policy(
        lists=lists,
        bundles=tuple(_bundle(s) for s in by_type.get("bundle", [])),
        profiles=profiles,
        groups=groups,
        schedules=schedules,
        rules=tuple(rule for rule in rules if rule is not None),
        rewrites=tuple(_rewrite(s) for s in by_type.get("safesearch", [])),
        never_block=main.never_block,
        table=main.table,
        unsynced=main.unsynced,
        public_suffix_list=main.public_suffix_list,
        list_dir=main.list_dir,
        is_implicit=is_implicit,
    )


def parse_match(text: str, place: str) -> Match:
    """`all`, `category:social`, `list:x`, `domain:x`, `exact:x`, `url:host/path`, `ip:192.0.2.0/24`.

    Raises: ConfigError.
    """
    head, colon, value = text.partition(":")
    kinds = {what.value: what for what in What}
    what = kinds.get(head)
    if what is None or (bool(colon) != (what is not What.ALL)) or (colon and not value):
        near = nearest(head, kinds)
        hint = f"; did you mean {near!r}?" if near else ""
        raise ConfigError(
            f"{place}: expected all, category:NAME, list:NAME, domain:NAME, exact:NAME, url:HOST/PATH or "
            f"ip:ADDRESS, got {text!r}{hint}"
        )
    try:
        match what:
            case What.ALL:
                return Match(what)
            case What.CATEGORY | What.LIST:
                return Match(what, value)
            case What.DOMAIN:
                scope = Scope.BELOW if value.startswith("*.") else Scope.BOTH
                return Match(what, name=parse_name(value.removeprefix("*.").encode()), scope=scope)
            case What.EXACT:
                return Match(what, name=parse_name(value.encode()), scope=Scope.SELF)
            case What.IP:
                return Match(what, network=parse_network(value.encode()))
            case What.URL:
                host, slash, path = value.removeprefix("http://").partition("/")
                if not slash:
                    raise ListError("no / behind the host")
                return Match(what, name=parse_name(host.encode()), pattern=b"/" + path.encode())
    except ListError as error:
        raise ConfigError(f"{place}: {text!r}: {error}") from None


class _Main:
    """`config policy`: settings of the whole, and defaults of profiles."""

    def __init__(self, sections: Sequence[Section]) -> None:
        if len(sections) > 1:
            raise ConfigError(
                f"gatehouse.{sections[1].name}: a second policy section, expected only the one on line "
                f"{sections[0].line}"
            )
        options = Options(sections[0] if sections else Section("policy", "main", {}, 0))
        base = Policy()
        self.default_group = options.text("default_group", "default")
        self.fail = options.choice("fail", "open", ("open", "closed"))
        self.on_block = ON_BLOCK[options.choice("on_block", "nxdomain", ON_BLOCK)]
        self.bypass = options.boolean("bypass", True)
        self.strip_ech = options.boolean("strip_ech", False)
        self.unsynced = options.choice("unsynced", base.unsynced, ("strict", "ignore"))
        self.table = options.text("table", base.table)
        self.list_dir = options.text("list_dir", base.list_dir)
        self.public_suffix_list = options.text("public_suffix_list", "")
        self.never_block = _names(options, "never_block")
        options.finish()


def _list(section: Section) -> ListConfig:
    options = Options(section)
    base = ListConfig(section.name)
    scopes = {"auto": None, "exact": Scope.SELF, "suffix": Scope.BOTH, "below": Scope.BELOW}
    formats = {item.value: item for item in Format}
    found = ListConfig(
        name=_plain(section.name, options, "name"),
        url=options.text("url", ""),
        file=options.text("file", ""),
        category=_plain(options.text("category", section.name.lstrip("@")), options, "category"),
        format=formats[options.choice("format", "auto", formats)],
        scope=scopes[options.choice("scope", "auto", scopes)],
        action=options.choice("action", base.action, ("block", "allow")),
        important=options.boolean("important", base.important),
        max_entries=options.integer("max_entries", base.max_entries, 0, 1 << 26),
        refresh_s=options.duration("refresh", "24h", 300, 366 * 86400),
        allow_public_suffix=options.boolean("allow_public_suffix", base.allow_public_suffix),
    )
    options.finish()
    if section.anonymous:
        raise ConfigError(
            f"gatehouse.{section.name}: a list needs a name, for rule codes: write config list 'NAME' on line "
            f"{section.line}"
        )
    if bool(found.url) == bool(found.file):
        raise ConfigError(f"{options.place('url')}: expected either url or file, got {'both' if found.url else 'none'}")
    if found.url and not re.match(r"https?://[^/\s]+", found.url):
        raise ConfigError(f"{options.place('url')}: expected http:// or https://, got {found.url!r}")
    if found.file and any(part == ".." for part in found.file.split("/")):
        raise ConfigError(f"{options.place('file')}: expected a path without .., got {found.file!r}")
    return found


def _bundle(section: Section) -> BundleConfig:
    options = Options(section)
    found = BundleConfig(
        name=section.name,
        url=options.text("url", ""),
        keys=options.texts("key"),
        channel=options.text("channel", "stable"),
    )
    options.finish()
    if not found.keys:
        raise ConfigError(f"{options.place('key')}: expected the fingerprint of at least one key that may sign")
    for index, key in enumerate(found.keys):
        if not re.fullmatch(r"[0-9a-f]{16}", key):
            raise ConfigError(f"{options.place('key')}[{index}]: expected 16 hexadecimal digits, got {key!r}")
    return found


def _profile(section: Section, main: _Main) -> Profile:
    options = Options(section)
    found = Profile(
        name=section.name,
        block=options.texts("block"),
        log=options.texts("log"),
        allow=options.texts("allow"),
        safe_search=tuple(
            _safe_search(text, f"{options.place('safesearch')}[{i}]")
            for i, text in enumerate(options.texts("safesearch"))
        ),
        default=options.choice("default", "allow", ("allow", "block")),
        on_block=ON_BLOCK[options.choice("on_block", main.on_block, ON_BLOCK)],
        fail=options.choice("fail", main.fail, ("open", "closed")),
        bypass=options.boolean("bypass", main.bypass),
        strip_ech=options.boolean("strip_ech", main.strip_ech),
    )
    options.finish()
    return found


def _safe_search(text: str, place: str) -> tuple[str, str]:
    name, _, strength = text.partition(":")
    provider = PROVIDERS.get(name)
    if provider is None:
        # A venue's own engine is known by its section; which sections there are is checked by the engine.
        return name, strength
    if strength and strength not in provider:
        raise ConfigError(f"{place}: expected {name}:{' or '.join(provider)}, got {text!r}")
    return name, strength or next(iter(provider))


def _group(section: Section, profiles: Mapping[str, Profile]) -> Group:
    options = Options(section)
    profile = options.text("profile", section.name)
    found = Group(
        name=section.name,
        profile=profile,
        priority=options.integer("priority", 0, -1000, 1000),
        macs=tuple(_mac(t, f"{options.place('mac')}[{i}]") for i, t in enumerate(options.texts("mac"))),
        accounts=options.texts("account"),
        interfaces=options.texts("interface") + options.texts("vlan"),
        ssids=_whole_texts(options, "ssid"),
        networks=tuple(_network(t, f"{options.place('ip')}[{i}]") for i, t in enumerate(options.texts("ip"))),
    )
    options.finish()
    if profile not in profiles:
        raise ConfigError(f"{options.place('profile')}: {_unknown('profile', profile, profiles)}")
    return found


def _whole_texts(options: Options, name: str) -> tuple[str, ...]:
    """A network's name may hold blanks, so one `option ssid` is one name."""
    value = options.section.options.get(name)
    if isinstance(value, str):
        options.texts(name)
        return (value,)
    return options.texts(name)


def _with_default(groups: list[Group], profiles: dict[str, Profile], main: _Main) -> tuple[Group, ...]:
    """The default group is number 0; it is made where it was not written."""
    for index, group in enumerate(groups):
        if group.name == main.default_group:
            return (group, *groups[:index], *groups[index + 1 :])
    name = main.default_group
    if name != "default" and name not in profiles:
        known = [group.name for group in groups] + list(profiles)
        raise ConfigError(f"gatehouse.main.default_group: {_unknown('group', name, known)}")
    if name not in profiles:
        profiles[name] = Profile(
            name, on_block=main.on_block, fail=main.fail, bypass=main.bypass, strip_ech=main.strip_ech
        )
    return (Group(name, name), *groups)


def _calendar(section: Section) -> Calendar:
    options = Options(section)
    spans = tuple(_span(text, f"{options.place('date')}[{index}]") for index, text in enumerate(options.texts("date")))
    options.finish()
    return Calendar(section.name, spans)


def _span(text: str, place: str) -> tuple[int, int]:
    first, dots, last = text.partition("..")
    span = _date(first, place), _date(last if dots else first, place)
    if span[0] > span[1]:
        raise ConfigError(f"{place}: expected the earlier day first, got {text!r}")
    return span


def _date(text: str, place: str) -> int:
    found = re.fullmatch(r"(\d{4})-(\d{2})-(\d{2})", text)
    if found:
        year, month, day = map(int, found.groups())
        if 1 <= month <= 12 and day >= 1:
            days = days_from_civil(year, month, day)
            if days < days_from_civil(year + month // 12, month % 12 + 1, 1):
                return days
    raise ConfigError(f"{place}: expected a day such as 2026-12-24, or 2026-12-24..2027-01-06, got {text!r}")


def _schedule(section: Section, calendars: Mapping[str, Calendar]) -> Schedule:
    options = Options(section)
    days = _days(options.texts("days"), options.place("days"))
    start, end = options.text("start", ""), options.text("end", "")
    windows = [
        _window(text, f"{options.place('window')}[{index}]")
        for index, text in enumerate(_whole_texts(options, "window"))
    ]
    only = _calendars(options, "only", calendars)
    never = _calendars(options, "except", calendars)
    options.finish()
    if bool(start) != bool(end):
        raise ConfigError(f"{options.place('end' if start else 'start')}: expected both start and end, or neither")
    if start:
        windows.append(Window(days, _minute(start, options.place("start")), _minute(end, options.place("end"))))
    elif not windows:
        windows.append(Window(days, 0, 24 * 60))
    return Schedule(section.name, tuple(windows), only, never)


def _window(text: str, place: str) -> Window:
    """`mon-fri 08:00-12:00`, `sat 20:00-02:00`, `08:00-08:45`."""
    *days, times = text.split() or [""]
    start, dash, end = times.partition("-")
    if not dash:
        raise ConfigError(f"{place}: expected days and times such as 'mon-fri 08:00-12:00', got {text!r}")
    return Window(_days(days, place), _minute(start, place), _minute(end, place))


def _days(words: Iterable[str], place: str) -> frozenset[int]:
    found: set[int] = set()
    for word in words:
        first, dash, last = word.lower().partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise ConfigError(f"{place}: expected mon, tue, wed, thu, fri, sat or sun, got {word!r}")
        start = DAYS.index(first)
        length = (DAYS.index(last) - start) % 7 + 1 if dash else 1
        found.update((start + step) % 7 for step in range(length))
    return frozenset(found) or ALL_DAYS


def _minute(text: str, place: str) -> int:
    found = re.fullmatch(r"(\d{1,2}):(\d{2})", text)
    minute = 60 * int(found[1]) + int(found[2]) if found and int(found[2]) < 60 else -1
    if not 0 <= minute <= 24 * 60:
        raise ConfigError(f"{place}: expected a time from 00:00 to 24:00, got {text!r}")
    return minute


def _calendars(options: Options, name: str, known: Mapping[str, Calendar]) -> tuple[Calendar, ...]:
    found = []
    for word in options.texts(name):
        if word not in known:
            raise ConfigError(f"{options.place(name)}: {_unknown('calendar', word, known)}")
        found.append(known[word])
    return tuple(found)


def _rule(
    section: Section, groups: set[str], profiles: Mapping[str, Profile], schedules: Mapping[str, Schedule]
) -> Rule | None:
    options = Options(section)
    enabled = options.boolean("enabled", True)
    matches = tuple(
        parse_match(text, f"{options.place('match')}[{index}]") for index, text in enumerate(options.texts("match"))
    )
    found = Rule(
        name=section.name,
        groups=options.texts("group"),
        profiles=options.texts("profile"),
        schedule=options.text("schedule", ""),
        matches=matches,
        action=Action(options.choice("action", "block", [action.value for action in Action])),
    )
    options.finish()
    for name in found.groups:
        if name not in groups:
            raise ConfigError(f"{options.place('group')}: {_unknown('group', name, groups)}")
    for name in found.profiles:
        if name not in profiles:
            raise ConfigError(f"{options.place('profile')}: {_unknown('profile', name, profiles)}")
    if found.schedule and found.schedule not in schedules:
        raise ConfigError(f"{options.place('schedule')}: {_unknown('schedule', found.schedule, schedules)}")
    if not matches:
        raise ConfigError(f"{options.place('match')}: expected at least one, such as list match 'category:social'")
    return found if enabled else None


def _rewrite(section: Section) -> Rewrite:
    options = Options(section)
    names, target = _names(options, "name"), options.text("target", "")
    options.finish()
    try:
        target = parse_name(target.encode()).decode()
    except ListError as error:
        raise ConfigError(f"{options.place('target')}: expected a name, got {target!r}: {error}") from None
    return Rewrite(section.name, names, target)


def _names(options: Options, name: str) -> tuple[bytes, ...]:
    found = []
    for index, text in enumerate(options.texts(name)):
        try:
            found.append(parse_name(text.encode()))
        except ListError as error:
            raise ConfigError(f"{options.place(name)}[{index}]: expected a name, got {text!r}: {error}") from None
    return tuple(found)


def _mac(text: str, place: str) -> bytes:
    if not re.fullmatch(r"[0-9A-Fa-f]{2}([:-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}", text):
        raise ConfigError(f"{place}: expected a MAC address such as 02:00:5e:10:00:01, got {text!r}")
    return bytes.fromhex(text.replace(text[2], ""))


def _network(text: str, place: str) -> tuple[int, int, int]:
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise ConfigError(f"{place}: expected an address or 192.0.2.0/24, got {text!r}: {error}") from None
    return int(network.network_address), network.prefixlen, network.max_prefixlen


def _plain(text: str, options: Options, option: str) -> str:
    """Names that end up in rule codes and file names."""
    if not _NAME(text.lstrip("@").replace("[", "_").replace("]", "_")):
        raise ConfigError(f"{options.place(option)}: expected letters, digits, _ - . (at most 64), got {text!r}")
    return text


def _unknown(what: str, word: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = nearest(word, names)
    hint = f"did you mean {near!r}?" if near else f"there is {', '.join(names) or 'none'}"
    return f"no {what} is called {word!r}; {hint}"
