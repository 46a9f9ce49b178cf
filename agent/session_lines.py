"""What scripts tell of sessions: dnsmasq's dhcp-script, openNDS's BinAuth, hostapd_cli's action, ubus. Pure.

A line is words with a tab between them, the first one saying who speaks; a line that begins with `{` is what
`ubus subscribe hostapd.X` prints. Only what is needed is in a line: the scripts leave out host names, the page that a
guest wanted, and his browser.
Rule: any line gives a Happening or raises HookError; what is not known (a later release's method) gives None.

Sources: dnsmasq(8) --dhcp-script; openNDS documentation, "BinAuth"; hostapd_cli's action scripts; hostapd's ubus.c.
"""

from __future__ import annotations

import binascii
import ipaddress
import json
from base64 import b64decode
from typing import Final, NamedTuple
from urllib.parse import unquote

from policy.errors import HookError

MAX_LINE: Final = 4096
"""PIPE_BUF: what is longer may come in pieces."""
MAX_WORD: Final = 64
"""Characters of an account, a room."""

DEAUTH: Final = {
    "client_deauth": "user",
    "idle_deauth": "idle",
    "timeout_deauth": "timeout",
    "downquota_deauth": "quota",
    "upquota_deauth": "quota",
    "ndsctl_deauth": "admin",
    "shutdown_deauth": "shutdown",
}
"""BinAuth's method -> the cause of the logout."""
AUTH: Final = frozenset({"auth_client", "client_auth", "ndsctl_auth"})
_DHCP: Final = {"add": "join", "old": "join", "update": "join", "del": "leave", "remove": "leave"}
"""dnsmasq's own words, and what OpenWrt's hotplug calls them."""
_HOSTAPD: Final = {"AP-STA-CONNECTED": "associated", "AP-STA-DISCONNECTED": "disassociated"}
_UBUS: Final = {"assoc": "associated", "disassoc": "disassociated", "deauth": "disassociated"}


class Happening(NamedTuple):
    """One piece of news."""

    what: str
    """`join`, `leave`, `login`, `logout`, `associated` or `disassociated`; `login` and `login-failed` of source `login`
    are of the router's own users: `account` on the terminal `room`."""
    source: str
    mac: bytes = b""
    address: bytes = b""
    cause: str = ""
    token: str = ""
    account: str = ""
    phone: str = ""
    room: str = ""
    timeout_ms: int = 0


def read_line(line: bytes) -> Happening | None:
    """Read one line. Raises: HookError."""
    if len(line) > MAX_LINE:
        raise HookError(f"hook: expected at most {MAX_LINE} octets in a line, got {len(line)}")
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise HookError("hook: expected UTF-8") from None
    if text.startswith("{"):
        return _ubus(text)
    words = text.rstrip("\r\n").split("\t")
    match words[0]:
        case "dhcp":
            return _dhcp(words[1:])
        case "binauth":
            return _binauth(words[1:])
        case "hostapd":
            return _hostapd(words[1:])
        case "login" | "login-failed":
            user, terminal, peer, *_ = (*words[1:], "", "", "")
            where = clean(terminal) + (f" from {clean(peer)}" if peer else "")
            return Happening(words[0], "login", account=clean(user), room=where)
    raise HookError("hook: expected dhcp, binauth, hostapd, login or login-failed as the first word")


def read_lease(line: str) -> tuple[int, bytes, bytes] | None:
    """One line of dnsmasq's lease file: expiry (Unix seconds, 0: never), MAC, address. None: a line without these.

    The DHCPv6 part names clients by DUID, not by MAC; the neighbour table joins those.
    """
    words = line.split()
    if len(words) < 4 or not words[0].isdecimal() or len(words[0]) > 12:
        return None
    try:
        return int(words[0]), read_mac(words[1]), read_address(words[2])
    except HookError:
        return None


def read_mac(text: str) -> bytes:
    """`02:00:00:00:00:01`, with colons, dashes, dots or nothing. Raises: HookError."""
    try:
        octets = bytes.fromhex(text.translate({ord(sign): None for sign in ":-."}))
    except ValueError:
        octets = b""
    if len(octets) != 6 or not any(octets) or octets[0] & 1:
        raise HookError("hook: expected the hardware address of one device")
    return octets


def read_address(text: str) -> bytes:
    """An IP address. Raises: HookError."""
    try:
        return ipaddress.ip_address(text.partition("%")[0]).packed
    except ValueError:
        raise HookError("hook: expected an IP address") from None


def read_custom(text: str) -> dict[str, str]:
    """BinAuth's custom string: base64 of `account=7, phone=138...`, perhaps percent-encoded; all else is nothing."""
    try:
        plain = b64decode(unquote(text), validate=True).decode()
    except (binascii.Error, ValueError):
        plain = unquote(text)
    found: dict[str, str] = {}
    for part in plain.replace("&", ",").replace(";", ",").split(",")[:16]:
        name, equals, value = part.partition("=")
        if equals and name.strip() in ("account", "username", "phone", "room"):
            found[name.strip().replace("username", "account")] = clean(unquote(value))
    return found


def clean(text: str) -> str:
    """An account or a room as it may stand in a record: printable, bounded."""
    return "".join(c for c in text.strip() if c.isprintable())[:MAX_WORD]


def _dhcp(words: list[str]) -> Happening | None:
    if len(words) < 3:
        raise HookError(f"hook: dhcp: expected action, MAC and address, got {len(words)} words")
    what = _DHCP.get(words[0])
    if what is None:  # `tftp`, `arp-add`, ...
        return None
    # dnsmasq writes the hardware type in front where it is not Ethernet.
    return Happening(what, "dhcp", read_mac(words[1].rpartition("-")[2]), read_address(words[2]))


def _binauth(words: list[str]) -> Happening | None:
    """Method, MAC, IP (may be empty), token, session end (may be empty), custom."""
    if len(words) < 2:
        raise HookError(f"hook: binauth: expected method and MAC, got {len(words)} words")
    method, mac, address, token, until, custom, *_ = (*words, "", "", "", "")
    if method in DEAUTH:
        return Happening("logout", "opennds", read_mac(mac), cause=DEAUTH[method], token=_token(token))
    if method not in AUTH:
        return None
    said = read_custom(custom) if custom else {}
    return Happening(
        "login",
        "opennds",
        read_mac(mac),
        read_address(address) if address else b"",
        token=_token(token),
        account=said.get("account", ""),
        phone=said.get("phone", ""),
        room=said.get("room", ""),
        timeout_ms=int(until) * 1000 if until.isdecimal() and len(until) < 9 else 0,
    )


def _token(text: str) -> str:
    return f"opennds:{clean(text)}" if text else ""


def _hostapd(words: list[str]) -> Happening | None:
    """Interface, event, MAC: the arguments of an action script of hostapd_cli."""
    if len(words) < 3:
        raise HookError(f"hook: hostapd: expected interface, event and MAC, got {len(words)} words")
    what = _HOSTAPD.get(words[1])
    return Happening(what, "hostapd", read_mac(words[2])) if what else None


def _ubus(text: str) -> Happening | None:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        raise HookError("hook: ubus: not JSON") from None
    for name, what in _UBUS.items():
        body = said.get(name)
        if isinstance(body, dict) and isinstance(body.get("address"), str):
            return Happening(what, "hostapd", read_mac(body["address"]))
    return None
