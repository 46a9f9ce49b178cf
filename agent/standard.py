"""Record sets for the supervising side (the GA family of 《无线上网接入安全技术要求》), from our neutral rows. Pure.

Each set is a table: field, greatest length, must it be there, and where it comes from. What provinces do differently
is a change of a table, not of code. `check` holds a row against its table, `files` puts rows into tab-separated `.bcp`
files and their index. Delivery is not here: our own transport is MQTT over TLS, and never DES over FTP.
Doubtful, because public sources do not say: the codes of NETWORK_APP. The word for what was seen stands there.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Final, NamedTuple, TypeAlias

from policy.codes import VENUE_TYPES, check_device, check_venue
from policy.errors import ConfigError

Row: TypeAlias = Mapping[str, object]

MAX_ROWS: Final = 1000
"""Of one file."""
MAX_FILES: Final = 100
"""Of one archive."""
INDEX: Final = "GAB_ZIP_INDEX.xml"


class Field(NamedTuple):
    """One column. `source`: a key of the neutral row; `=TEXT`: always this."""

    key: str
    size: int
    is_required: bool
    source: str


class RecordSet(NamedTuple):
    """One kind of rows."""

    name: str
    fields: tuple[Field, ...]


def _table(name: str, *rows: tuple[str, int, bool, str]) -> RecordSet:
    return RecordSet(name, tuple(Field(*row) for row in rows))


VENUE: Final = _table(
    "WA_BASIC_FJ_0001",
    ("NETBAR_WACODE", 14, True, "venue"),
    ("PLACE_NAME", 256, True, "name"),
    ("SITE_ADDRESS", 256, True, "address"),
    ("LONGITUDE", 10, True, "longitude"),
    ("LATITUDE", 10, True, "latitude"),
    ("NETSITE_TYPE", 1, True, "type"),
    ("BUSINESS_NATURE", 1, True, "nature"),
    ("LAW_PRINCIPAL_NAME", 128, True, "principal"),
    ("LAW_PRINCIPAL_CERTIFICATE_TYPE", 3, False, "principal_id_type"),
    ("LAW_PRINCIPAL_CERTIFICATE_ID", 128, False, "principal_id"),
    ("RELATIONSHIP_ACCOUNT", 128, True, "contact"),
    ("START_TIME", 5, True, "opens"),
    ("END_TIME", 5, True, "closes"),
    ("ACCESS_TYPE", 2, True, "access_mode"),
    ("OPERATOR_NET", 2, False, "provider"),
    ("ACCESS_IP", 64, False, "account"),
    ("CODE_ALLOCATION_ORGANIZATION", 9, True, "vendor"),
)
DEVICE: Final = _table(
    "WA_BASIC_FJ_0003",
    ("NETBAR_WACODE", 14, True, "venue"),
    ("COLLECTION_EQUIPMENT_ID", 21, True, "device"),
    ("AP_MAC", 17, True, "device_mac"),
    ("COLLECTION_EQUIPMENT_NAME", 128, True, "device_name"),
    ("COLLECTION_EQUIPMENT_ADRESS", 256, True, "address"),
    ("COLLECTION_EQUIPMENT_TYPE", 2, False, "="),
    ("SECURITY_SOFTWARE_ORGCODE", 9, True, "vendor"),
    ("LONGITUDE", 10, False, "longitude"),
    ("LATITUDE", 10, False, "latitude"),
)
ONLINE: Final = _table(
    "WA_SOURCE_FJ_0001",
    ("AUTH_TYPE", 7, False, "auth_type"),
    ("AUTH_ACCOUNT", 64, True, "account"),
    ("NAME", 128, False, "person"),
    ("CERTIFICATE_TYPE", 7, False, "document_type"),
    ("CERTIFICATE_CODE", 128, False, "document_number"),
    ("NETBAR_WACODE", 14, True, "venue"),
    ("NETSITE_TYPE", 1, True, "type"),
    ("START_TIME", 20, True, "login_s"),
    ("END_TIME", 20, False, "logout_s"),
    ("IP_ADDRESS", 64, True, "address4"),
    ("SRC_IP", 64, False, "outside"),
    ("SRC_IPV6", 64, False, "address6"),
    ("SRC_PORT_START", 5, False, "port_from"),
    ("SRC_PORT_END", 5, False, "port_to"),
    ("MAC", 17, True, "mac"),
    ("AP_MAC", 17, True, "device_mac"),
    ("COLLECTION_EQUIPMENT_ID", 21, True, "device"),
    ("LONGITUDE", 10, False, "longitude"),
    ("LATITUDE", 10, False, "latitude"),
    ("SESSIONID", 64, True, "session"),
    ("SECURITY_SOFTWARE_ORGCODE", 9, True, "vendor"),
    ("NOTE", 256, False, "room"),
)
ACCESS: Final = _table(
    "WA_SOURCE_FJ_0002",
    ("SESSIONID", 64, True, "session"),
    ("NETSERVERPORT_WACODE", 14, True, "venue"),
    ("NETWORK_APP", 64, True, "seen"),
    ("NETWORK_APP_VALUES", 1024, False, "name"),
    ("IP_ADDRESS", 64, False, "client4"),
    ("PORT", 5, False, "sport"),
    ("SRC_IPV6", 64, False, "client6"),
    ("DST_IP", 64, False, "dst4"),
    ("DST_IPV6", 64, False, "dst6"),
    ("DST_PORT", 5, False, "dport"),
    ("MAC", 17, True, "mac"),
    ("COLLECTION_EQUIPMENT_ID", 21, True, "device"),
    ("AP_MAC", 17, True, "device_mac"),
    ("LONGITUDE", 10, False, "longitude"),
    ("LATITUDE", 10, False, "latitude"),
    ("CAPTURE_TIME", 20, True, "time_s"),
)
SETS: Final = {each.name: each for each in (VENUE, DEVICE, ONLINE, ACCESS)}


def check(record_set: RecordSet, row: Row) -> list[str]:
    """The row's cells, in order. Raises: ConfigError, naming set and field, if the table does not allow one."""
    cells = []
    for field in record_set.fields:
        value = field.source[1:] if field.source.startswith("=") else row.get(field.source)
        text = "" if value is None else str(value)
        text = " ".join(text.split())  # a tab or a line end would be another column or row
        if field.is_required and not text:
            raise ConfigError(f"{record_set.name}.{field.key}: must be there, and there is no {field.source}")
        if len(text) > field.size:
            raise ConfigError(
                f"{record_set.name}.{field.key}: expected at most {field.size} characters, got {len(text)}"
            )
        cells.append(text)
    return cells


def site_of(venue: str, device: str, settings: Mapping[str, str]) -> dict[str, object]:
    """What every row says of venue and device. Raises: ConfigError."""
    check_venue(venue, "gatehouse.main.venue")
    check_device(device, "gatehouse.main.device")
    kind = settings.get("type") or venue[7]
    if kind not in VENUE_TYPES:
        raise ConfigError(f"gatehouse.venue.type: expected one of {', '.join(VENUE_TYPES)}, got {kind!r}")
    mac = device[9:]
    return {
        **settings,
        "type": kind,
        "nature": settings.get("nature") or venue[6],
        "vendor": settings.get("vendor") or device[:9],
        "venue": venue,
        "device": device,
        "device_mac": "-".join(mac[at : at + 2] for at in range(0, 12, 2)),
        "device_name": settings.get("name") or device,
    }


def online_row(site: Row, session: Row, person: Mapping[str, str] | None = None) -> dict[str, object]:
    """A session, the last record of it, as the table wants it."""
    addresses = session.get("addresses")
    texts = [str(each) for each in addresses] if isinstance(addresses, list | tuple) else []
    person = person or {}
    return {
        **site,
        "account": session.get("account") or session.get("mac"),
        "person": person.get("name", ""),
        "document_type": person.get("document_type", ""),
        "document_number": person.get("document_number", ""),
        "login_s": _seconds(session.get("login")),
        "logout_s": _seconds(session.get("logout")),
        "address4": next((each for each in texts if ":" not in each), texts[0] if texts else ""),
        "address6": next((each for each in texts if ":" in each), ""),
        "mac": _mac(session.get("mac")),
        "session": session.get("session"),
        "room": session.get("room"),
    }


def access_row(site: Row, access: Row) -> dict[str, object]:
    """A look-up or a flow as the table wants it."""
    client, dst = str(access.get("client") or ""), str(access.get("dst") or "")
    dst = "" if dst == "0.0.0.0" else dst
    seen = str(access.get("seen") or access.get("kind") or "")
    return {
        **site,
        "session": access.get("session"),
        "seen": (seen if seen != "none" else str(access.get("protocol") or "")).upper(),
        "name": f"{access.get('name') or ''}{access.get('path') or ''}",
        "client4": "" if ":" in client else client,
        "client6": client if ":" in client else "",
        "dst4": "" if ":" in dst else dst,
        "dst6": dst if ":" in dst else "",
        "sport": access.get("sport") or "",
        "dport": access.get("dport") or "",
        "mac": _mac(access.get("mac")),
        "time_s": _seconds(access.get("time")),
    }


def files(
    rows: Mapping[str, Iterable[list[str]]], region: str, at_s: int, serial: int = 1
) -> Iterator[tuple[str, bytes]]:
    """Name and octets of each file of one archive, the index last. Raises: ConfigError: more than one archive."""
    written: list[tuple[RecordSet, str, int]] = []
    for name, lines in rows.items():
        batch: list[list[str]] = []
        for cells in (*lines, None):
            if cells is not None:
                batch.append(cells)
            if batch and (cells is None or len(batch) == MAX_ROWS):
                if len(written) == MAX_FILES:
                    raise ConfigError(f"export: more than {MAX_FILES * MAX_ROWS} rows; ask for a shorter time")
                file = f"145-{region}-{at_s}-{serial:05d}-{name}-0.bcp"
                serial += 1
                yield file, "".join("\t".join(line) + "\r\n" for line in batch).encode()
                written.append((SETS[name], file, len(batch)))
                batch = []
    yield INDEX, _index(written).encode()


def _index(written: Iterable[tuple[RecordSet, str, int]]) -> str:
    parts = ['<?xml version="1.0" encoding="UTF-8"?>', '<MESSAGE><DATASET name="WA_COMMON_010017">']
    for record_set, file, count in written:
        parts.append(f"<DATA><ITEM key={_quoted(record_set.name)} file={_quoted(file)} rows='{count}'/>")
        parts += [
            f"<ITEM key={_quoted(field.key)} eng={_quoted(field.key)} size='{field.size}'/>"
            for field in record_set.fields
        ]
        parts.append("</DATA>")
    return "\n".join([*parts, "</DATASET></MESSAGE>", ""])


def _quoted(text: str) -> str:
    """An attribute's value. (`xml.sax.saxutils` would bring a package of 800 kB to a router.)"""
    return f'"{escape(text)}"'


def _seconds(text: object) -> str:
    try:
        return str(int(datetime.datetime.fromisoformat(str(text)).timestamp())) if text else ""
    except ValueError:
        return ""


def _mac(text: object) -> str:
    return str(text or "").replace(":", "-").upper()
