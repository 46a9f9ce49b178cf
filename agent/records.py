"""The ring as the agent uses it: questions from the control socket, records for those who follow. Wiring only."""

from __future__ import annotations

import ipaddress
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from agent import erasable
from agent.clock import SystemClock
from agent.control import BUSY, Answer, Request
from policy.config import RingConfig
from policy.errors import ConfigError, StorageError
from policy.event import TAG_OF, Dns, Event, Flow, Session
from policy.verdict import Verdict
from storage.clock import Quality
from storage.filter import Filter
from storage.flood import Meter
from storage.holds import Hold
from storage.layout import Level
from storage.reader import Found
from storage.register import Register
from storage.retention import segment_events
from storage.rows import address, iso, row
from storage.store import Note
from storage.writer import Ring

FOR_EVER_MS: Final = 1 << 46
MAX_S: Final = 1 << 40
"""Beyond all seconds that are asked for."""
_KINDS: Final = {kind.__name__.lower(): kind for kind in TAG_OF}


class Records:
    """One open ring."""

    def __init__(self, config: RingConfig, clock: SystemClock, tell: Callable[[str, str, str, str], None]) -> None:
        """`tell`: puts action, object, result and actor on the maintenance log."""
        self._clock = clock
        self._tell = tell
        self.register: Register | None = None
        """Has the keys of sessions that can be erased."""
        self.ring = Ring(
            config.directory,
            clock,
            budget_bytes=config.budget_bytes,
            promised_days=config.promised_days,
            maximum_days=config.maximum_days,
            seal=True,
            level=Level[config.detail.upper()],
            segment_events=segment_events(config.budget_bytes, memory_bytes()),
            meter=Meter(config.flood_per_hour, config.flood_burst),
        )

    def query(self, request: Request) -> Answer:
        """Rows that match a request, oldest first."""
        wanted, limit, given = self.resolved(filter_of(request)), int(_number(request, "limit", 0)), 0
        for found in self.ring.query(wanted):
            if found is None:
                yield BUSY
                continue
            yield {"row": as_row(self.opened(found))}
            given += 1
            if limit and given >= limit:
                return

    def names(self, request: Request) -> Answer:
        """Where a client went: its names, most frequent first."""
        for found in self.ring.names(self.resolved(filter_of(request))):
            if found is None:
                yield BUSY
            else:
                first, last = iso(found.first_ms), iso(found.last_ms)
                yield {"row": {"name": found.name, "times": found.times, "first": first, "last": last}}

    def visitors(self, request: Request) -> Answer:
        """Which clients were at a domain, from the index alone: fast over any number of days."""
        wanted = filter_of(request)
        if not wanted.domain:
            raise ConfigError("who: expected --domain")
        for found in self.ring.visitors(wanted.domain, wanted.since_ms, wanted.until_ms):
            if found is None:
                yield BUSY
                continue
            times = {"from": iso(found.from_ms or 0), "to": iso(found.to_ms or 0)}
            yield {"row": {"client": address(found.client), "mac": found.mac.hex(":"), **times}}

    def resolved(self, wanted: Filter) -> Filter:
        """With the sessions of an account or phone where the ring's own records do not tell, for they are closed."""
        if self.register is None or not (wanted.account or wanted.phone_index) or not self.register.has_keys():
            return wanted
        rows = self.register.sessions_of(wanted.account, wanted.phone_index)
        sessions = frozenset(row.session for row in rows)
        return wanted._replace(account="", phone_index=b"", sessions=sessions) if sessions else wanted

    def opened(self, found: Found) -> Found:
        """A session's record with its fields, if they were closed and have not been erased."""
        event = found.event
        if self.register is None or not isinstance(event, Session) or not erasable.is_closed(event):
            return found
        return found._replace(event=erasable.open_closed(event, self.register.session_key(event.session)))

    def last_access(self, sessions: frozenset[str], since_ms: int) -> Mapping[str, int]:
        """When each of these sessions had its last access, in wall milliseconds."""
        found: dict[str, int] = {}
        try:
            for record in self.ring.query(Filter(since_ms=since_ms, sessions=sessions)):
                if record is not None and isinstance(record.event, Dns | Flow):
                    found[record.event.session] = max(found.get(record.event.session, 0), record.wall_ms)
        except StorageError:
            pass  # then the register's word stands
        return found

    def hold(self, request: Request) -> Answer:
        """Orders to keep records past their time: `action` is add, lift or list."""
        action, actor = _text(request, "action"), _text(request, "by")
        if action == "list":
            for found in self.ring.holds():
                yield {"row": _hold_row(found)}
            return
        if action == "add":
            found = self.ring.place_hold(filter_of(request), _text(request, "reason"), actor)
            self._tell("hold", f"hold {found.number}", f"placed: {found.reason}", actor)
        elif action == "lift":
            found, gone = self.ring.lift_hold(int(_number(request, "number", 0)))
            self._tell("hold", f"hold {found.number}", f"lifted: {gone} records past their time went", actor)
        else:
            raise ConfigError(f"hold: expected add, lift or list, got {action!r}")
        yield {"row": _hold_row(found)}

    def describe(self, event: Event) -> Mapping[str, object]:
        """A record that has just come in, as a row. It has no id yet: it gets one when it is committed."""
        if self.register is not None and isinstance(event, Session) and erasable.is_closed(event):
            event = erasable.open_closed(event, self.register.session_key(event.session))
        now = self._clock.read()
        offset_ms = now.wall_ms - now.boottime_ms
        clock = "synced" if now.synced else "unsynced"
        return row(event, "", event.at_ms + offset_ms, clock, lambda at_ms: at_ms + offset_ms)

    def tick(self) -> Sequence[Note]:
        """The ring's own housekeeping."""
        return self.ring.tick(self._clock.read())

    def status(self) -> Mapping[str, object]:
        """For `gatehouse status`."""
        return self.ring.status()

    def close(self) -> None:
        """The last commit."""
        self.ring.close()


def as_row(found: Found) -> dict[str, object]:
    """A found record as a person or a program reads it."""
    quality = Quality(found.quality).name.lower()
    # A folded record is one of its segment's present form: the part says which form that is.
    identity = f"{found.segment}:{found.seq}" + (f"/{found.part}" if found.part else "")
    wall_of = found.offset_ms.__add__
    return row(
        found.event, identity, found.wall_ms, quality, wall_of, found.times, found.resolution_ms, found.not_after_ms
    )


def _hold_row(hold: Hold) -> dict[str, object]:
    return {
        "number": hold.number,
        "domain": hold.domain,
        "client": address(hold.client) if hold.client else "",
        "mac": hold.mac.hex(":"),
        "account": hold.account,
        "phone_index": hold.phone_index.hex(),
        "since": iso(hold.since_ms),
        "until": iso(hold.until_ms) if hold.until_ms < FOR_EVER_MS else "",
        "reason": hold.reason,
        "by": hold.actor,
        "placed": iso(hold.placed_ms),
    }


def memory_bytes() -> int:
    """Of the machine; how large a segment can be sealed depends on it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def filter_of(request: Request) -> Filter:
    """What a request asks for. Raises: ConfigError, naming the word that makes no sense."""
    kind, verdict = _text(request, "kind"), _text(request, "verdict")
    if kind and kind not in _KINDS:
        raise ConfigError(f"--kind: expected one of {', '.join(_KINDS)}, got {kind!r}")
    if verdict and verdict.upper() not in Verdict.__members__:
        raise ConfigError(f"--verdict: expected one of {', '.join(Verdict.__members__).lower()}, got {verdict!r}")
    return Filter(
        since_ms=int(_number(request, "since_s", 0) * 1000),
        until_ms=int(_number(request, "until_s", time.time() + 86400) * 1000),
        kind=_KINDS[kind] if kind else None,
        domain=_domain(_text(request, "domain")),
        client=_address(_text(request, "client")),
        mac=_mac(_text(request, "mac")),
        sessions=frozenset({session}) if (session := _text(request, "session")) else None,
        account=_text(request, "account"),
        phone_index=_phone_index(_text(request, "phone_index")),
        verdict=int(Verdict[verdict.upper()]) if verdict else None,
    )


def _domain(text: str) -> str:
    """As records have it: lower case, A-labels, no dot at the end."""
    try:
        ascii_text = text if text.isascii() else text.encode("idna").decode("ascii")
    except UnicodeError:
        raise ConfigError(f"--domain: expected a domain name, got {text!r}") from None
    return ascii_text.lower().rstrip(".")


def _address(text: str) -> bytes:
    try:
        return ipaddress.ip_address(text).packed if text else b""
    except ValueError:
        raise ConfigError(f"--client: expected an IP address, got {text!r}") from None


def _mac(text: str) -> bytes:
    try:
        octets = bytes.fromhex(text.replace(":", "").replace("-", ""))
    except ValueError:
        octets = b"?"
    if text and len(octets) != 6:
        raise ConfigError(f"--mac: expected a hardware address such as 02:00:00:00:00:01, got {text!r}")
    return octets


def _phone_index(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ConfigError(f"--phone-index: expected hexadecimal digits, got {text!r}") from None


def _text(request: Request, name: str) -> str:
    value = request.get(name, "")
    if not isinstance(value, str):
        raise ConfigError(f"request: {name}: expected text, got {value!r}")
    return value


def _number(request: Request, name: str, default: float) -> float:
    value = request.get(name, default)
    # JSON as Python reads it has Infinity and NaN, too, of which no milliseconds can be made.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_S:
        raise ConfigError(f"request: {name}: expected a number, got {value!r:.40}")
    return float(value)
