"""Settings about people: sessions, access controllers, rooms, roles, the notice, the venue. Typed, from UCI. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from policy.codes import check_device, check_venue
from policy.errors import ConfigError
from policy.uci import Section

if TYPE_CHECKING:
    from collections.abc import Callable

    from policy.config import Options

SECTIONS: Final = frozenset({"radius", "room", "role"})
"""Section types of which there may be many."""
ROLES: Final = ("installer", "operator", "auditor")


class SessionConfig(NamedTuple):
    """`config session 'session'`: who is on a device, from when to when."""

    enabled: bool = True
    idle_s: int = 1800
    """A device of which nothing was seen for so long has left."""
    leases: str = "/tmp/dhcp.leases"
    """dnsmasq's lease file; empty: there is none."""
    anonymous: bool = True
    """Devices that nobody logged in have sessions too, without an account."""
    radius_listen: tuple[str, ...] = ("0.0.0.0", "::")
    radius_port: int = 1813
    portal: tuple[str, ...] = ()
    """Networks that a device without a login may reach, where the legal profile asks for identity: a login page that is
    not on this router. DHCP, DNS and what runs on the router itself are always open."""
    rooms: str = ""
    """A CSV file with a head line of room, mac and/or ip, account."""


class RadiusClient(NamedTuple):
    """`config radius 'NAME'`: an access controller that sends accounting."""

    name: str
    address: bytes
    secret: bytes


class Room(NamedTuple):
    """`config room 'NAME'`, or a line of the CSV file: whose device or address it is, once and for all."""

    keys: tuple[bytes, ...]
    """MACs and addresses."""
    account: str
    room: str


class Role(NamedTuple):
    """`config role 'installer' | 'operator' | 'auditor'`: which users of this machine have it."""

    role: str
    users: tuple[str, ...]


class NoticeConfig(NamedTuple):
    """`config notice 'notice'`: what users are told of what is recorded."""

    file: str = ""
    """The published page; empty: notice.html in state_dir."""
    listen: tuple[tuple[str, int], ...] = ()
    """Where the agent serves it itself; empty: some other server does."""
    controller: str = ""
    """Who records: the venue, by its legal name."""
    contact: str = ""
    """Whom to ask: a mail address, a telephone number."""


class VenueConfig(NamedTuple):
    """`config venue 'venue'`: the venue's data for the supervising side, as its registration has them."""

    name: str = ""
    address: str = ""
    longitude: str = ""
    latitude: str = ""
    type: str = ""
    nature: str = ""
    principal: str = ""
    principal_id_type: str = ""
    principal_id: str = ""
    contact: str = ""
    opens: str = ""
    closes: str = ""
    access_mode: str = ""
    provider: str = ""
    account: str = ""
    vendor: str = ""
    vendor_name: str = ""


class People(NamedTuple):
    """All of it."""

    session: SessionConfig
    notice: NoticeConfig
    venue: VenueConfig
    radius: tuple[RadiusClient, ...]
    rooms: tuple[Room, ...]
    roles: tuple[Role, ...]


def read_people(
    session: Options, notice: Options, venue: Options, many: Sequence[Section], options: Callable[[Section], Options]
) -> People:
    """Raises: ConfigError."""
    radius, rooms, roles = [], [], []
    for section in many:
        reader = options(section)
        match section.type:
            case "radius":
                radius.append(_radius(reader))
            case "room":
                rooms.append(_room(reader))
            case _:
                roles.append(_role(reader))
    return People(_session(session), _notice(notice), _venue(venue), tuple(radius), tuple(rooms), tuple(roles))


def check_codes(options: Options, venue: str, device: str) -> None:
    """Venue code and device id, where they are given. Raises: ConfigError, naming the character that is wrong."""
    if venue:
        check_venue(venue, options.place("venue"))
    if device:
        check_device(device, options.place("device"))


def read_hardware(text: str, place: str) -> bytes:
    """A MAC. Raises: ConfigError."""
    try:
        octets = bytes.fromhex(text.replace(":", "").replace("-", ""))
    except ValueError:
        octets = b""
    if len(octets) != 6:
        raise ConfigError(f"{place}: expected a hardware address such as 02:00:00:00:00:01, got {text!r}")
    return octets


def _session(options: Options) -> SessionConfig:
    base = SessionConfig()
    session = SessionConfig(
        enabled=options.boolean("enabled", base.enabled),
        idle_s=options.duration("idle", f"{base.idle_s}s", 1, 86400),
        leases=options.text("leases", base.leases),
        anonymous=options.boolean("anonymous", base.anonymous),
        radius_listen=options.addresses("radius_listen", base.radius_listen),
        radius_port=options.integer("radius_port", base.radius_port, 1, 65535),
        portal=_networks(options, "portal"),
        rooms=options.text("rooms", base.rooms),
    )
    options.finish()
    return session


def _networks(options: Options, option: str) -> tuple[str, ...]:
    found = []
    for index, value in enumerate(options.texts(option)):
        try:
            found.append(str(ipaddress.ip_network(value)))
        except ValueError as error:
            raise ConfigError(
                f"{options.place(option)}[{index}]: expected an address or a network such as 192.0.2.0/24: {error}"
            ) from None
    return tuple(found)


def _notice(options: Options) -> NoticeConfig:
    notice = NoticeConfig(
        file=options.text("file", ""),
        listen=options.endpoints("listen", (), 8060),
        controller=options.text("controller", ""),
        contact=options.text("contact", ""),
    )
    options.finish()
    return notice


def _venue(options: Options) -> VenueConfig:
    venue = VenueConfig(*(options.text(name, "") for name in VenueConfig._fields))
    options.finish()
    for name in ("opens", "closes"):
        value = getattr(venue, name)
        if value and not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", value):
            raise ConfigError(f"{options.place(name)}: expected hh:mm, got {value!r}")
    return venue


def _radius(options: Options) -> RadiusClient:
    address, secret = options.text("address", ""), options.text("secret", "")
    options.finish()
    if not secret:
        raise ConfigError(f"{options.place('secret')}: expected the secret that is shared with this access controller")
    return RadiusClient(options.section.name, _ip(address, options.place("address")), secret.encode())


def _room(options: Options) -> Room:
    macs, addresses = options.texts("mac"), options.texts("ip")
    room, account = options.text("room", options.section.name), options.text("account", "")
    options.finish()
    keys = [read_hardware(mac, options.place("mac")) for mac in macs]
    keys += [_ip(address, options.place("ip")) for address in addresses]
    if not keys:
        raise ConfigError(f"{options.place('mac')}: expected a mac or an ip by which the room is known")
    return Room(tuple(keys), account, room)


def _role(options: Options) -> Role:
    users = options.texts("user")
    options.finish()
    if options.section.name not in ROLES:
        raise ConfigError(
            f"gatehouse: config role {options.section.name!r}: expected one of {', '.join(ROLES)} as its name"
        )
    if not users:
        raise ConfigError(f"{options.place('user')}: expected at least one user of this machine")
    return Role(options.section.name, users)


def _ip(text: str, place: str) -> bytes:
    try:
        return ipaddress.ip_address(text).packed
    except ValueError:
        raise ConfigError(f"{place}: expected an IP address, got {text!r}") from None
