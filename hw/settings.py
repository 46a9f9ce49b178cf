"""The settings that have a word of their own on the console, and what each changes in which UCI file. Pure.

Holds the one table of names (English and Chinese), and the edit of a file's sections. Anything else is
`set option SECTION.OPTION VALUE`. What is right is not decided here but by the reader that the agent uses.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final, NamedTuple

from policy.errors import ConfigError
from policy.uci import Section, parse, render

GATEHOUSE: Final = "gatehouse"
NETWORK: Final = "network"
MAX_EDITS: Final = 400


class Edit(NamedTuple):
    """One option of one section of one file."""

    file: str
    type: str
    section: str
    option: str
    value: str | None
    """None: it is taken out, and the default holds."""


class Setting(NamedTuple):
    """One word after `set`."""

    name: str
    chinese: str
    section: str
    option: str
    example: str
    help: tuple[str, str]
    """English, Chinese."""
    values: tuple[str, ...] = ()
    """For completion."""


_TYPES: Final = {"main": "gatehouse"}
_SINGLE: Final = ("main", "dns", "nfq", "ring", "session", "notice", "venue", "uplink", "console", "doctor", "hardware")
SETTINGS: Final = (
    Setting("venue", "场所", "main", "venue", "11010510010001", ("code of the venue", "场所编码")),
    Setting("venue-name", "场所名称", "venue", "name", "'First School'", ("its name", "场所名称")),
    Setting("address", "地址", "venue", "address", "'1 Main St'", ("its address", "场所地址")),
    Setting("contact", "联系人", "venue", "contact", "13800000000", ("whom to ring up", "联系电话")),
    Setting("principal", "负责人", "venue", "principal", "'Li Lei'", ("who answers for it", "负责人姓名")),
    Setting("vendor", "厂商", "venue", "vendor", "123456789", ("nine characters of the vendor's code", "厂商组织机构代码")),
    Setting("device", "设备", "main", "device", "auto", ("id of this router; auto: vendor and MAC", "设备编号"), ("auto",)),
    Setting("legal", "法规", "main", "legal", "cn-82", ("legal profile: what may be recorded", "法规档案"),
            ("cn-82", "cn-82-180", "eu-guest", "tr-5651", "uk-kcsie", "us-cipa")),
    Setting("lan", "内网", "main", "lan", "br-lan", ("interfaces of the clients", "内网接口"), ("br-lan",)),
    Setting("on-failure", "失效策略", "main", "on_failure", "open", ("open or closed", "故障时 open 放行 closed 断网"),
            ("open", "closed")),
    Setting("timezone", "时区", "main", "timezone", "Asia/Shanghai", ("POSIX or IANA name", "时区")),
    Setting("enabled", "启用", "main", "enabled", "on", ("switch Gatehouse on", "开启或关闭"), ("on", "off")),
    Setting("wan", "外网", "", "", "dhcp", ("dhcp | static ADDRESS/LENGTH GATEWAY DNS… | pppoe USER", "外网上网方式"),
            ("dhcp", "static", "pppoe")),
    Setting("uplink", "上联", "", "", "mqtt.example.org#8883", ("the centre's broker, or off", "上级平台地址 或 关"), ("off",)),
    Setting("order-key", "指令公钥", "uplink", "order_key", "0123456789abcdef", ("who may sign orders", "指令签名公钥")),
    Setting("controller", "告知主体", "notice", "controller", "'First School'", ("who records, for the notice", "告知书主体")),
    Setting("option", "选项", "", "", "dns.rate 500", ("any other: SECTION.OPTION VALUE", "其他选项")),
)  # fmt: skip
_VALUES: Final = {
    "开": "on", "关": "off", "动态": "dhcp", "静态": "static", "拨号": "pppoe", "自动": "auto",
    "放行": "open", "断网": "closed",
}  # fmt: skip
VALUES_CHINESE: Final = {english: chinese for chinese, english in _VALUES.items()}


def find_setting(word: str) -> Setting | None:
    """By either of its names."""
    return next((setting for setting in SETTINGS if word in (setting.name, setting.chinese)), None)


def is_secret(option: str) -> bool:
    """Its value is never shown, echoed or kept in the history."""
    return any(part in option for part in ("password", "secret", "passphrase", "psk"))


def edits_of(name: str, words: Sequence[str], mac: str, vendor: str) -> list[Edit]:
    """What `set NAME WORDS…` changes. `mac`: twelve digits, `vendor`: nine, for `device auto`. Raises: ConfigError."""
    setting = find_setting(name)
    if setting is None:
        raise ConfigError(f"set: unknown setting {name!r}; known: {', '.join(each.name for each in SETTINGS)}")
    if not words:
        raise ConfigError(f"set {setting.name}: expected a value, as: set {setting.name} {setting.example}")
    words = [_VALUES.get(word, word) for word in words]
    match setting.name:
        case "wan":
            return _wan(words)
        case "uplink":
            return _uplink(words)
        case "option":
            return [_option(words)]
        case "device" if words == ["auto"]:
            if len(vendor) != 9:
                raise ConfigError("set device auto: expected the vendor's code first: set vendor 123456789")
            return [Edit(GATEHOUSE, "gatehouse", "main", "device", vendor + mac)]
    value = " ".join(words)
    return [Edit(GATEHOUSE, _TYPES.get(setting.section, setting.section), setting.section, setting.option, value)]


def unset_edits(name: str, words: Sequence[str] = ()) -> list[Edit]:
    """What `unset NAME` changes. Raises: ConfigError."""
    setting = find_setting(name)
    if setting is not None and setting.name == "option" and words:
        return [_option([*words[:1], ""])._replace(value=None)]
    if setting is None or not setting.option:
        raise ConfigError(f"unset: expected a setting that has one value, got {name!r}")
    return [Edit(GATEHOUSE, _TYPES.get(setting.section, setting.section), setting.section, setting.option, None)]


def change(text: str, edits: Sequence[Edit], place: str) -> str:
    """A file's text with these edits in it. Raises: ConfigError, where the text itself cannot be read."""
    sections = parse(text, place)
    for edit in edits:
        index = next(
            (n for n, each in enumerate(sections) if (each.type, each.name) == (edit.type, edit.section)), None
        )
        if index is None and edit.type in (*_SINGLE, "gatehouse"):  # an anonymous one, or of another name
            index = next((n for n, each in enumerate(sections) if each.type == edit.type), None)
        if index is None:
            index = len(sections)
            sections.append(Section(edit.type, edit.section, {}, 0))
        options = dict(sections[index].options)
        if edit.value is None:
            options.pop(edit.option, None)
        else:
            options[edit.option] = edit.value
        sections[index] = sections[index]._replace(options=options)
    return render(sections)


def _wan(words: Sequence[str]) -> list[Edit]:
    def wan(**options: str | None) -> list[Edit]:
        every: dict[str, str | None] = dict.fromkeys(
            ("proto", "ipaddr", "netmask", "gateway", "dns", "username", "password")
        )
        return [Edit(NETWORK, "interface", "wan", name, value) for name, value in (every | options).items()]

    match words:
        case ["dhcp"]:
            return wan(proto="dhcp")
        case ["static", address, gateway, *servers] if servers:
            try:
                interface, gate = ipaddress.IPv4Interface(address), ipaddress.IPv4Address(gateway)
                names = " ".join(str(ipaddress.ip_address(server)) for server in servers)
            except ValueError as error:
                raise ConfigError(f"set wan static: {error}") from None
            if gate not in interface.network or "/" not in address:
                raise ConfigError(
                    f"set wan static: expected ADDRESS/LENGTH and a gateway within it, got {address} and {gateway}"
                )
            return wan(
                proto="static", ipaddr=str(interface.ip), netmask=str(interface.netmask), gateway=str(gate), dns=names
            )
        case ["pppoe", user, password]:
            return wan(proto="pppoe", username=user, password=password)
    raise ConfigError(
        f"set wan: expected dhcp, static ADDRESS/LENGTH GATEWAY DNS…, or pppoe USER, got {words[0]!r}"
        + (f" and {len(words) - 1} words" if len(words) > 1 else "")
    )


def _uplink(words: Sequence[str]) -> list[Edit]:
    if words == ["off"]:
        return [Edit(GATEHOUSE, "uplink", "uplink", "enabled", "0")]
    return [
        Edit(GATEHOUSE, "uplink", "uplink", "enabled", "1"),
        Edit(GATEHOUSE, "uplink", "uplink", "server", " ".join(words)),
    ]


def _option(words: Sequence[str]) -> Edit:
    section, dot, option = words[0].partition(".")
    if not dot or section not in _SINGLE or len(words) < 2 or not option.replace("_", "").isalnum():
        raise ConfigError(f"set option: expected SECTION.OPTION VALUE with a section of {', '.join(_SINGLE)}")
    return Edit(GATEHOUSE, _TYPES.get(section, section), section, option, " ".join(words[1:]))
