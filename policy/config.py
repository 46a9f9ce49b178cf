"""Typed settings, read once from UCI sections. No files: the caller brings the text.

Holds the settings of each process and the reader that turns options into values. The policy's own sections
(lists, groups, schedules, rules) are `policy.rules`' business.
Rule: every option that is read here stands, commented, in packaging/openwrt's default configuration, and an option
or a section that nobody reads is an error: a typing mistake must not quietly switch a duty off.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from policy.errors import ConfigError
from policy.near import nearest
from policy.people import SECTIONS as PEOPLE_SECTIONS
from policy.people import NoticeConfig, RadiusClient, Role, Room, SessionConfig, VenueConfig, check_codes, read_people
from policy.uci import Section, parse

POLICY_SECTIONS: Final = frozenset(
    {"policy", "list", "bundle", "profile", "group", "schedule", "calendar", "rule", "safesearch"}
)
"""Section types that `policy.rules` reads."""

_TRUE: Final = frozenset({"1", "on", "true", "yes", "enabled"})
_FALSE: Final = frozenset({"0", "off", "false", "no", "disabled"})
_SIZE: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_TIME: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Options:
    """Reads one section's options, each exactly once, and refuses what nobody asked for.

    Order of calls: any of the readers, then `finish`. Raises: ConfigError, naming section and option.
    """

    def __init__(self, section: Section) -> None:
        self.section = section
        self._left = dict(section.options)
        self._known: list[str] = []

    def place(self, option: str) -> str:
        """How messages call an option: `gatehouse.ring.budget`."""
        return f"gatehouse.{self.section.name}.{option}"

    def text(self, option: str, default: str) -> str:
        """One string."""
        self._known.append(option)
        value = self._left.pop(option, default)
        if isinstance(value, tuple):
            raise ConfigError(f"{self.place(option)}: expected one value (`option`), got a list of {len(value)}")
        return value

    def texts(self, option: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Strings: `list` lines, or one `option` with blanks between them, as OpenWrt's own files do."""
        self._known.append(option)
        value = self._left.pop(option, default)
        return tuple(value.split()) if isinstance(value, str) else value

    def choice(self, option: str, default: str, allowed: Iterable[str]) -> str:
        """One of a closed set of words."""
        value = self.text(option, default)
        words = tuple(allowed)
        if value not in words:
            raise ConfigError(f"{self.place(option)}: expected one of {', '.join(words)}, got {value!r}")
        return value

    def boolean(self, option: str, default: bool) -> bool:
        """UCI's booleans: 1/0, on/off, true/false, yes/no, enabled/disabled."""
        value = self.text(option, "1" if default else "0").lower()
        if value in _TRUE:
            return True
        if value in _FALSE:
            return False
        raise ConfigError(f"{self.place(option)}: expected 1 or 0, got {value!r}")

    def integer(self, option: str, default: int, low: int, high: int) -> int:
        """A whole number, decimal or 0x hexadecimal, from `low` to `high`."""
        value = self.text(option, str(default))
        try:
            number = int(value, 0)
        except ValueError:
            raise ConfigError(f"{self.place(option)}: expected a whole number, got {value!r}") from None
        if not low <= number <= high:
            raise ConfigError(f"{self.place(option)}: expected {low} to {high}, got {number}")
        return number

    def size(self, option: str, default: str, low: int, high: int) -> int:
        """Octets, written `112M`, `64k`, `1G`."""
        return self._scaled(option, default, _SIZE, "a size such as 64M", low, high)

    def duration(self, option: str, default: str, low: int, high: int) -> int:
        """Seconds, written `30s`, `5m`, `24h`, `60d`."""
        return self._scaled(option, default, _TIME, "a time such as 30s, 5m, 24h or 60d", low, high)

    def addresses(self, option: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        """IPv4 and IPv6 addresses."""
        values = self.texts(option, default)
        for index, value in enumerate(values):
            try:
                ipaddress.ip_address(value)
            except ValueError:
                raise ConfigError(f"{self.place(option)}[{index}]: expected an IP address, got {value!r}") from None
        return values

    def endpoints(self, option: str, default: tuple[str, ...], port: int) -> tuple[tuple[str, int], ...]:
        """Addresses with an optional port, dnsmasq's way: `9.9.9.9`, `9.9.9.9#5353`, `2620:fe::fe#53`."""
        found = []
        for index, value in enumerate(self.texts(option, default)):
            where = f"{self.place(option)}[{index}]"
            host, _, number = value.partition("#")
            try:
                ipaddress.ip_address(host)
            except ValueError:
                raise ConfigError(f"{where}: expected an IP address, perhaps with #port, got {value!r}") from None
            if number and not (number.isdecimal() and 0 < int(number) < 65536):
                raise ConfigError(f"{where}: expected a port from 1 to 65535 after #, got {number!r}")
            found.append((host, int(number) if number else port))
        return tuple(found)

    def finish(self) -> None:
        """Every option of the section has been read; what is left is a mistake."""
        for option in self._left:
            near = nearest(option, self._known)
            hint = f"; did you mean {near!r}?" if near else f"; known: {', '.join(sorted(self._known))}"
            raise ConfigError(f"{self.place(option)}: unknown option{hint}")

    def _scaled(self, option: str, default: str, units: dict[str, int], form: str, low: int, high: int) -> int:
        value = self.text(option, default)
        digits = value.rstrip("kKmMgGsShHdDbB")
        unit = value[len(digits) :].lower().removesuffix("b") if units is _SIZE else value[len(digits) :].lower()
        if not digits.isdecimal() or unit not in units:
            raise ConfigError(f"{self.place(option)}: expected {form}, got {value!r}")
        number = int(digits) * units[unit]
        if not low <= number <= high:
            raise ConfigError(f"{self.place(option)}: expected {low} to {high}, got {number} ({value})")
        return number


class MainConfig(NamedTuple):
    """`config gatehouse 'main'`: what holds for every process."""

    enabled: bool = False
    config_version: int = 1
    """Which release's words these are; the package's `migrate` reads it, and counts it up at an upgrade."""
    user: str = "gatehouse"
    """Whom the hooks become, who read what clients send; empty, or nobody here: they stay root, with less power."""
    run_dir: str = "/var/run/gatehouse"
    """Sockets and process ids; a tmpfs on a router."""
    state_dir: str = "/etc/gatehouse"
    """Keys, compiled policy, small state; kept through an upgrade."""
    on_failure: str = "open"
    """`open`: the venue keeps its internet when Gatehouse fails; `closed`: it does not."""
    lan: tuple[str, ...] = ("br-lan",)
    """Interfaces of the venue's clients."""
    firewall: str = "auto"
    """`nft`, `iptables`, `auto` (whichever the kernel can do) or `none` (somebody else sets the rules)."""
    venue: str = ""
    """Code of 14 characters that the supervising side gave; empty: none."""
    device: str = ""
    """21 characters: nine of the vendor's, twelve of the MAC."""
    legal: str = ""
    """Legal profile: what may be recorded at all. Empty: none was chosen, everything that is seen is recorded, and the
    status warns of it; `everything`: so it was chosen."""
    timezone: str = ""
    """POSIX or IANA name; empty: the system's."""
    clock: str = "kernel"
    """Whom to believe about the wall clock: `kernel` (set by a time server, says adjtimex) or `trusted` (battery,
    or a virtual machine's own: right unless it is older than this release)."""


class DnsConfig(NamedTuple):
    """`config dns 'dns'`: the DNS hook."""

    enabled: bool = True
    listen: tuple[str, ...] = ("0.0.0.0", "::")
    port: int = 5300
    """Port of our own; LAN traffic to port 53 is redirected to it while we live."""
    workers: int = 1
    upstream: tuple[tuple[str, int], ...] = (("127.0.0.1", 53),)
    """Where to ask, the preferred first: by default the router's dnsmasq, which knows the local names."""
    upstream_tls: tuple[tuple[str, int, str], ...] = ()
    """Address, port and certificate name of servers to ask over TLS (RFC 7858), before the plain ones."""
    local_server: tuple[tuple[str, int], ...] = (("127.0.0.1", 53),)
    """Who knows the venue's own names and its private addresses; empty: nobody, they do not exist."""
    local_domain: tuple[str, ...] = ("lan",)
    """Domains that are the venue's own, besides `home.arpa` and names of one label."""
    behind_dnsmasq: bool = False
    """dnsmasq asks us, and says for whom by its `add-mac` and `add-subnet=32,128`; believed from this machine only."""
    rebind_protection: bool = True
    """Block outside names that answer with inside addresses."""
    rebind_domain: tuple[str, ...] = ()
    """Domains that may."""
    min_ttl_s: int = 0
    max_ttl_s: int = 86400
    block_ttl_s: int = 10
    """How long a client may remember that a name is blocked: short, so that an exception works at once."""
    stale_s: int = 86400
    """Serve what is so much out of date when no upstream answers (RFC 8767); 0: never."""
    cache_bytes: int = 6 << 20
    """Per worker: answers as the upstreams gave them."""
    hot_bytes: int = 8 << 20
    """Per worker: answers ready to send, 20,000 of them."""
    kernel: bool = True
    """Let the kernel answer by itself what is asked again (the first worker's answers). Linux 6.6."""
    rate: int = 300
    """Queries per second and client, four seconds' worth at once; 0: no limit."""
    page: tuple[str, ...] = ()
    """Addresses of the block page, for groups with `on_block 'page'`."""
    explain: bool = True
    """Say in the answer that and why a name is blocked (RFC 8914)."""
    nsid: str = ""
    """Who we are, to those who ask by NSID (RFC 5001); empty: not said."""


class NfqConfig(NamedTuple):
    """`config nfq 'nfq'`: the packet hook."""

    enabled: bool = True
    binding: str = "auto"
    """`netfilterqueue` (the library), `netlink` (no compiled part) or `auto` (the library if it is there)."""
    queue_first: int = 20
    workers: int = 1
    """Worker n serves queue queue_first + n."""
    mark_mask: int = 0x0F000000
    """Four contiguous bits of the packet and conntrack mark; pbr and mwan3 use others."""
    queue_length: int = 4096
    """Packets that may wait for a worker; what is beyond them passes or is dropped, by `on_failure`."""
    early: bool = True
    """Let TLS connections like those before them through inside the kernel, where it can (Linux 6.6)."""
    initials_per_s: int = 400
    """QUIC packets decrypted per second and worker; for the excess the group's `fail` decides."""
    page: bool = True
    """Answer blocked clear-text requests with a page that says why; otherwise they are reset like the rest."""
    page_url: str = ""
    """Send people there instead, by a 302 with host, reason and rule; empty: the page comes from here."""
    page_appeal: str = ""
    """On the page: whom to ask about a mistake."""
    offload: str = "repair"
    """When fw4's own flow offload would blind us: `repair` takes it out, `report` says so."""
    offload_device: tuple[str, ...] = ()
    """Interfaces of a flowtable of ours, which takes allowed flows after their verdict; empty: none."""
    nat: str = "none"
    """Evidence of address translation: `none`, `blocks` (a block of ports per client) or `events` (each flow)."""
    nat_network: tuple[str, ...] = ()
    """IPv4 networks whose addresses have ports of their own, with `blocks`."""

    @property
    def refused_queue(self) -> int:
        """The queue behind the workers' own: what devices without a login tried."""
        return self.queue_first + self.workers


class RingConfig(NamedTuple):
    """`config ring 'ring'`: the store of records."""

    directory: str = "/srv/gatehouse/ring"
    budget_bytes: int = 112 << 20
    promised_days: int = 60
    maximum_days: int = 90
    """Access records are unlinked after so many days; 0: never for age alone."""
    flush_s: int = 30
    """The loss window of access records at a power cut."""
    flush_events: int = 4096
    detail: str = "second"
    """How exactly accesses are kept once their segment is sealed: `exact` or `second`."""
    flood_per_hour: int = 1000
    """Accesses that one client may add in the long run; 0: no limit. What is beyond it is counted."""
    flood_burst: int = 20_000


class UplinkConfig(NamedTuple):
    """`config uplink 'uplink'`: records and heartbeats to the centre, orders from it."""

    enabled: bool = False
    server: tuple[tuple[str, int], ...] = ()
    """Names and ports of MQTT brokers, tried in turn. The name is the one in the broker's certificate."""
    tls: bool = True
    """False: in the clear, for a broker on this machine or a tunnel."""
    ca: str = "/etc/gatehouse/uplink/ca.pem"
    """The one authority that may have signed the broker's certificate."""
    certificate: str = "/etc/gatehouse/uplink/device.pem"
    key: str = "/etc/gatehouse/uplink/device.key"
    protocol: str = "auto"
    """MQTT `5`, `3.1.1`, or `auto`: 5, and 3.1.1 where the broker does not know it."""
    keepalive_s: int = 30
    heartbeat_s: int = 60
    live_s: int = 300
    """How long accesses may wait, to go together; blocks, sessions and maintenance go at once."""
    urgent_s: int = 3600
    """After an outage, blocks and sessions of so long ago go before everything else."""
    fresh: bool = False
    """While there is a backlog, today's accesses go ahead of it every `live`: as copies, the backlog has them again."""
    stagger_s: int = 30
    """The first try after a boot comes somewhere within it."""
    bandwidth: int = 0
    """Octets a second of records; 0: no limit."""
    order_key: tuple[str, ...] = ()
    """Fingerprints (16 hex digits) of the keys that may sign orders; they lie in the policy's key directory."""
    allow: tuple[str, ...] = ("status", "self-test", "policy", "config", "query", "reboot")
    """Orders that are obeyed."""


class HardwareConfig(NamedTuple):
    """`config hardware 'hardware'`: the box itself, and the self-test."""

    self_test_s: int = 21600
    """Between two self-tests that run by themselves; 0: none do."""
    led: str = "auto"
    """Status LED, as /sys/class/leds calls it; `auto`: the one that the board's device tree names; `none`: no LED."""
    watchdog: str = ""
    """Hardware watchdog's device, fed by the agent's loop; empty: it stays procd's."""
    watchdog_s: int = 60
    """The machine starts anew when the loop has not turned for so long."""


class ConsoleConfig(NamedTuple):
    """`config console 'console'`: the serial console."""

    tty: str = ""
    """Terminal line, as /dev/ttyS1; empty: none of its own."""
    baud: int = 115200
    idle_s: int = 300
    """Nothing typed for so long: logged out."""
    language: str = "en"
    """In which it answers at first: `en` or `zh`. Words of both are understood."""
    network: str = "/etc/config/network"
    """The system's file that `set wan` changes; empty: it changes none."""


class Config(NamedTuple):
    """A whole configuration file."""

    main: MainConfig
    dns: DnsConfig
    nfq: NfqConfig
    ring: RingConfig
    uplink: UplinkConfig
    policy: tuple[Section, ...]
    """Sections for `policy.rules`, unread."""
    session: SessionConfig = SessionConfig()
    notice: NoticeConfig = NoticeConfig()
    venue: VenueConfig = VenueConfig()
    radius: tuple[RadiusClient, ...] = ()
    rooms: tuple[Room, ...] = ()
    roles: tuple[Role, ...] = ()
    hardware: HardwareConfig = HardwareConfig()
    console: ConsoleConfig = ConsoleConfig()


def load(text: str, place: str = "gatehouse") -> Config:
    """Read a whole configuration.

    Raises: ConfigError with place, option, what was expected and what stood there.
    """
    sections = parse(text, place)
    single: dict[str, Section] = {}
    policy: list[Section] = []
    many: list[Section] = []
    for section in sections:
        if section.type in POLICY_SECTIONS:
            policy.append(section)
        elif section.type in PEOPLE_SECTIONS:
            many.append(section)
        elif section.type not in _SINGLE:
            known = sorted(POLICY_SECTIONS | PEOPLE_SECTIONS | _SINGLE)
            near = nearest(section.type, known)
            hint = f"; did you mean {near!r}?" if near else f"; known: {', '.join(known)}"
            raise ConfigError(f"{place}:{section.line}: unknown section type {section.type!r}{hint}")
        elif section.type in single:
            raise ConfigError(
                f"{place}:{section.line}: a second {section.type!r} section, "
                f"expected only the one on line {single[section.type].line}"
            )
        else:
            single[section.type] = section
    session, notice, venue = (_options(single, kind) for kind in ("session", "notice", "venue"))
    people = read_people(session, notice, venue, many, Options)
    return Config(
        main=_main(_options(single, "gatehouse")),
        dns=_dns(_options(single, "dns")),
        nfq=_nfq(_options(single, "nfq")),
        ring=_ring(_options(single, "ring")),
        uplink=_uplink(_options(single, "uplink"), _options(single, "gatehouse")),
        policy=tuple(policy),
        console=_console(_options(single, "console")),
        **people._asdict(),
        hardware=_hardware(_options(single, "hardware")),
    )


def _options(single: dict[str, Section], kind: str) -> Options:
    return Options(single.get(kind) or Section(kind, kind, {}, 0))


def _main(options: Options) -> MainConfig:
    base = MainConfig()
    main = MainConfig(
        enabled=options.boolean("enabled", base.enabled),
        config_version=options.integer("config_version", base.config_version, 0, 9999),
        user=options.text("user", base.user),
        run_dir=options.text("run_dir", base.run_dir),
        state_dir=options.text("state_dir", base.state_dir),
        on_failure=options.choice("on_failure", base.on_failure, ("open", "closed")),
        lan=options.texts("lan", base.lan),
        firewall=options.choice("firewall", base.firewall, ("auto", "nft", "iptables", "none")),
        venue=options.text("venue", base.venue),
        device=options.text("device", base.device),
        legal=options.text("legal", base.legal),
        timezone=options.text("timezone", base.timezone),
        clock=options.choice("clock", base.clock, ("kernel", "trusted")),
    )
    options.finish()
    check_codes(options, main.venue, main.device)
    if not re.fullmatch(r"[A-Za-z0-9_-]{0,64}", main.legal):
        raise ConfigError(f"{options.place('legal')}: expected the name of a legal profile, got {main.legal!r}")
    if not main.lan:
        raise ConfigError(f"{options.place('lan')}: expected at least one interface of the venue's clients")
    for index, name in enumerate(main.lan):
        # IFNAMSIZ is 16 with its NUL; blanks and quotes would change the meaning of a firewall rule.
        if not 0 < len(name) < 16 or not all(c.isalnum() or c in "-_.@" for c in name):
            raise ConfigError(f"{options.place('lan')}[{index}]: expected an interface name, got {name!r}")
    return main


def _dns(options: Options) -> DnsConfig:
    base = DnsConfig()
    dns = DnsConfig(
        enabled=options.boolean("enabled", base.enabled),
        listen=options.addresses("listen", base.listen),
        port=options.integer("port", base.port, 1, 65535),
        workers=options.integer("workers", base.workers, 1, 16),
        upstream=options.endpoints("upstream", tuple(f"{host}#{port}" for host, port in base.upstream), 53),
        upstream_tls=_tls_endpoints(options, "upstream_tls"),
        local_server=options.endpoints("local_server", tuple(f"{host}#{p}" for host, p in base.local_server), 53),
        local_domain=_domains(options, "local_domain", base.local_domain),
        behind_dnsmasq=options.boolean("behind_dnsmasq", base.behind_dnsmasq),
        rebind_protection=options.boolean("rebind_protection", base.rebind_protection),
        rebind_domain=_domains(options, "rebind_domain", base.rebind_domain),
        min_ttl_s=options.duration("min_ttl", f"{base.min_ttl_s}s", 0, 3600),
        max_ttl_s=options.duration("max_ttl", f"{base.max_ttl_s}s", 1, 604800),
        block_ttl_s=options.duration("block_ttl", f"{base.block_ttl_s}s", 0, 86400),
        stale_s=options.duration("stale", f"{base.stale_s}s", 0, 604800),
        cache_bytes=options.size("cache", f"{base.cache_bytes >> 20}M", 64 << 10, 1 << 32),
        hot_bytes=options.size("hot_cache", f"{base.hot_bytes >> 20}M", 64 << 10, 1 << 32),
        kernel=options.boolean("kernel", base.kernel),
        rate=options.integer("rate", base.rate, 0, 10_000_000),
        page=options.addresses("page", base.page),
        explain=options.boolean("explain", base.explain),
        nsid=options.text("nsid", base.nsid),
    )
    options.finish()
    if not dns.upstream and not dns.upstream_tls:
        raise ConfigError(f"{options.place('upstream')}: expected at least one address to ask")
    if dns.min_ttl_s > dns.max_ttl_s:
        raise ConfigError(
            f"{options.place('min_ttl')}: expected at most max_ttl ({dns.max_ttl_s} s), got {dns.min_ttl_s} s"
        )
    if len(dns.nsid.encode()) > 64:
        raise ConfigError(f"{options.place('nsid')}: expected at most 64 octets, got {len(dns.nsid.encode())}")
    return dns


def _tls_endpoints(options: Options, option: str) -> tuple[tuple[str, int, str], ...]:
    """Written `9.9.9.9@dns.quad9.net` or `9.9.9.9#8853@dns.quad9.net`: without a name, nothing proves who answers."""
    found = []
    for index, value in enumerate(options.texts(option)):
        where, _, name = value.partition("@")
        host, _, number = where.partition("#")
        try:
            ipaddress.ip_address(host)
            port = int(number) if number else 853
        except ValueError:
            port = 0
        if not 0 < port < 65536 or not name:
            raise ConfigError(
                f"{options.place(option)}[{index}]: expected ADDRESS@NAME or ADDRESS#PORT@NAME, got {value!r}"
            )
        found.append((host, port, name))
    return tuple(found)


def _domains(options: Options, option: str, default: tuple[str, ...]) -> tuple[str, ...]:
    found = []
    for index, value in enumerate(options.texts(option, default)):
        name = value.lower().strip(".")
        labels = name.split(".")
        if len(name) > 253 or not name.isascii() or not all(0 < len(label) < 64 for label in labels):
            raise ConfigError(f"{options.place(option)}[{index}]: expected a domain name, got {value!r}")
        found.append(name)
    return tuple(found)


def _nfq(options: Options) -> NfqConfig:
    base = NfqConfig()
    nfq = NfqConfig(
        enabled=options.boolean("enabled", base.enabled),
        binding=options.choice("binding", base.binding, ("auto", "netfilterqueue", "netlink")),
        queue_first=options.integer("queue_first", base.queue_first, 0, 65519),
        workers=options.integer("workers", base.workers, 1, 16),
        mark_mask=options.integer("mark_mask", base.mark_mask, 0xF, 0xF0000000),
        queue_length=options.integer("queue_length", base.queue_length, 1, 65536),
        early=options.boolean("early", base.early),
        initials_per_s=options.integer("initials", base.initials_per_s, 1, 1_000_000),
        page=options.boolean("page", base.page),
        page_url=options.text("page_url", base.page_url),
        page_appeal=options.text("page_appeal", base.page_appeal),
        offload=options.choice("offload", base.offload, ("repair", "report")),
        offload_device=options.texts("offload_device", base.offload_device),
        nat=options.choice("nat", base.nat, ("none", "blocks", "events")),
        nat_network=options.texts("nat_network", base.nat_network),
    )
    options.finish()
    lowest = nfq.mark_mask & -nfq.mark_mask
    if nfq.mark_mask != lowest * 0xF:
        raise ConfigError(
            f"{options.place('mark_mask')}: expected four bits side by side, such as 0x0f000000, got {nfq.mark_mask:#x}"
        )
    if nfq.page_url and not (nfq.page_url.isascii() and nfq.page_url.isprintable() and nfq.page_url[:4] == "http"):
        raise ConfigError(f"{options.place('page_url')}: expected an http or https address, got {nfq.page_url!r}")
    return nfq


def _ring(options: Options) -> RingConfig:
    base = RingConfig()
    ring = RingConfig(
        directory=options.text("directory", base.directory),
        budget_bytes=options.size("budget", f"{base.budget_bytes >> 20}M", 4 << 20, 1 << 42),
        promised_days=options.integer("promised_days", base.promised_days, 1, 3660),
        maximum_days=options.integer("maximum_days", base.maximum_days, 0, 3660),
        flush_s=options.duration("flush", f"{base.flush_s}s", 1, 3600),
        flush_events=options.integer("flush_events", base.flush_events, 1, 1 << 20),
        detail=options.choice("detail", base.detail, ("exact", "second")),
        flood_per_hour=options.integer("flood_per_hour", base.flood_per_hour, 0, 1 << 30),
        flood_burst=options.integer("flood_burst", base.flood_burst, 1, 1 << 30),
    )
    options.finish()
    if ring.maximum_days and ring.maximum_days < ring.promised_days:
        raise ConfigError(
            f"{options.place('maximum_days')}: expected at least promised_days ({ring.promised_days}), "
            f"got {ring.maximum_days}; 0 means no maximum"
        )
    return ring


def _hardware(options: Options) -> HardwareConfig:
    base = HardwareConfig()
    hardware = HardwareConfig(
        self_test_s=options.duration("self_test", f"{base.self_test_s}s", 0, 7 * 86400),
        led=options.text("led", base.led),
        watchdog=options.text("watchdog", base.watchdog),
        watchdog_s=options.duration("watchdog_timeout", f"{base.watchdog_s}s", 10, 600),
    )
    options.finish()
    if 0 < hardware.self_test_s < 60:
        raise ConfigError(f"{options.place('self_test')}: expected 0 or at least 60s, got {hardware.self_test_s}s")
    if "/" in hardware.led or hardware.led in (".", ".."):
        raise ConfigError(f"{options.place('led')}: expected a name of /sys/class/leds, got {hardware.led!r}")
    if hardware.watchdog and not hardware.watchdog.startswith("/dev/"):
        raise ConfigError(f"{options.place('watchdog')}: expected a device such as /dev/watchdog, or nothing")
    return hardware


def _uplink(options: Options, main: Options) -> UplinkConfig:
    base = UplinkConfig()
    uplink = UplinkConfig(
        enabled=options.boolean("enabled", base.enabled),
        server=_servers(options, "server"),
        tls=options.boolean("tls", base.tls),
        ca=options.text("ca", base.ca),
        certificate=options.text("certificate", base.certificate),
        key=options.text("key", base.key),
        protocol=options.choice("protocol", base.protocol, ("auto", "5", "3.1.1")),
        keepalive_s=options.duration("keepalive", f"{base.keepalive_s}s", 5, 3600),
        heartbeat_s=options.duration("heartbeat", f"{base.heartbeat_s}s", 1, 3600),
        live_s=options.duration("live", f"{base.live_s}s", 1, 3600),
        urgent_s=options.duration("urgent", f"{base.urgent_s}s", 0, 604800),
        fresh=options.boolean("fresh", base.fresh),
        stagger_s=options.duration("stagger", f"{base.stagger_s}s", 0, 3600),
        bandwidth=options.size("bandwidth", f"{base.bandwidth}", 0, 1 << 40),
        order_key=_fingerprints(options, "order_key"),
        allow=options.texts("allow", base.allow),
    )
    options.finish()
    for index, word in enumerate(uplink.allow):
        if word not in base.allow:
            raise ConfigError(
                f"{options.place('allow')}[{index}]: expected one of {', '.join(base.allow)}, got {word!r}"
            )
    if uplink.enabled:
        if not uplink.server:
            raise ConfigError(f"{options.place('server')}: expected at least one broker, as mqtt.example.org#8883")
        for option in ("venue", "device"):
            name = main.text(option, "")
            if not _is_level(name):
                raise ConfigError(
                    f"{main.place(option)}: expected 1 to 64 of letters, digits, '-', '_' and '.' for the uplink, "
                    f"got {name!r}"
                )
    return uplink


def _console(options: Options) -> ConsoleConfig:
    base = ConsoleConfig()
    speeds = ("9600", "19200", "38400", "57600", "115200", "230400", "460800", "921600")
    console = ConsoleConfig(
        tty=options.text("tty", base.tty),
        baud=int(options.choice("baud", str(base.baud), speeds)),
        idle_s=options.duration("idle", f"{base.idle_s}s", 10, 86400),
        language=options.choice("language", base.language, ("en", "zh")),
        network=options.text("network", base.network),
    )
    options.finish()
    if console.tty and not console.tty.startswith("/dev/"):
        raise ConfigError(f"{options.place('tty')}: expected a terminal line, as /dev/ttyS1, got {console.tty!r}")
    return console


def _is_level(name: str) -> bool:
    """May it stand between two `/` of a topic, and in a certificate's common name?"""
    is_right = 0 < len(name) <= 64 and name.isascii() and name[0].isalnum()
    return is_right and all(c.isalnum() or c in "-_." for c in name)


def _servers(options: Options, option: str) -> tuple[tuple[str, int], ...]:
    found = []
    for index, value in enumerate(options.texts(option)):
        host, _, number = value.partition("#")
        if not host or len(host) > 253 or not all(c.isalnum() or c in "-_.:" for c in host) or not host.isascii():
            raise ConfigError(f"{options.place(option)}[{index}]: expected a name, perhaps with #port, got {value!r}")
        if number and not (number.isdecimal() and 0 < int(number) < 65536):
            raise ConfigError(f"{options.place(option)}[{index}]: expected a port after #, got {value!r}")
        found.append((host, int(number) if number else 8883))
    return tuple(found)


def _fingerprints(options: Options, option: str) -> tuple[str, ...]:
    values = options.texts(option)
    for index, value in enumerate(values):
        if len(value) != 16 or not all(c in "0123456789abcdef" for c in value):
            raise ConfigError(
                f"{options.place(option)}[{index}]: expected a fingerprint of 16 hexadecimal digits, got {value!r}"
            )
    return values


_SINGLE: Final = frozenset(
    {"gatehouse", "dns", "nfq", "ring", "session", "notice", "venue", "uplink", "hardware", "console"}
)
