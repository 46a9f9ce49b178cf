"""Questions and orders about people: a session with all that belongs to it, registrations, erasure. Wiring only."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from agent.control import BUSY, Answer, Request
from agent.identity import is_phone
from agent.legal import Gate
from agent.records import as_row
from agent.session import LONGEST_MS
from agent.session_desk import Desk, began_s, unpack_addresses
from agent.session_lines import MAX_WORD
from policy.errors import ConfigError
from policy.event import Registration
from storage.filter import Filter
from storage.register import Register, Registered, Row
from storage.rows import address, iso
from storage.writer import Ring

MAX_SEALED: Final = 8192
ERASED: Final = "ok: its key is gone; the chain stays as it was"
LATE_MS: Final = 60_000
"""A record of a session may be this much later than its end: it was on its way."""


class People:
    """`note` puts action, object, result, detail and actor on the maintenance log."""

    def __init__(
        self,
        ring: Ring,
        register: Register,
        desk: Desk,
        gate: Gate,
        note: Callable[[str, str, str, str, str], None],
    ) -> None:
        self._ring, self._register, self._desk, self._gate, self._note = ring, register, desk, gate, note
        self._told: set[str] = set()
        """Sessions whose erasure is told and not on flash yet."""

    def show(self, request: Request) -> Answer:
        """One session, its registration as far as a router can read it, and its accesses, oldest first."""
        name = _text(request, "session")
        if not name:
            raise ConfigError("show: expected --session, from `gatehouse session list` or a record")
        found = self._register.session(name)
        if (live := self._desk.sessions.find(name)) is not None and found is not None:
            found = found._replace(seen_ms=live.seen_ms)
        if found is None:
            yield from self._from_ring(name)
            return
        yield {"row": session_row(found)}
        if found.account and (known := self._register.registration(found.account)) is not None:
            yield {"row": registered_row(known)}
        if request.get("brief"):
            return
        until_ms = (found.logout_ms or found.seen_ms) + found.offset_ms + LATE_MS if found.cause else 1 << 62
        wanted = Filter(
            since_ms=max(0, found.login_ms + found.offset_ms - LATE_MS) if found.is_synced else 0,
            until_ms=until_ms if found.is_synced else 1 << 62,
            sessions=frozenset({name}),
        )
        for record in self._ring.query(wanted):
            yield BUSY if record is None else {"row": as_row(record)}

    def _from_ring(self, name: str) -> Answer:
        """What the ring has of a session that the register does not know: its name says from when on to look."""
        began_ms, is_known = began_s(name) * 1000, False
        if began_ms:
            longest_ms = began_ms + LONGEST_MS + LATE_MS
            for record in self._ring.query(Filter(began_ms - LATE_MS, longest_ms, sessions=frozenset({name}))):
                is_known = is_known or record is not None
                yield BUSY if record is None else {"row": as_row(record)}
        if not is_known:
            raise ConfigError(f"show: no session {name!r} is known here; it may be older than what is kept")

    def registration(self, request: Request) -> Answer:
        """`action` is add (people, sealed already), list or remove."""
        action, actor = _text(request, "action"), _text(request, "by")
        if action == "list":
            for known in self._register.registrations():
                yield {"row": registered_row(known)}
            return
        if action != "add":
            raise ConfigError(f"registration: expected add or list, got {action!r}")
        people = request.get("people")
        if not isinstance(people, list) or not people:
            raise ConfigError("registration: expected people")
        if self._gate.trouble:
            raise ConfigError(f"registration: nothing is captured now: {self._gate.trouble}")
        registered = [_registered(each) for each in people]
        at_ms = self._desk.now_ms()
        for each in registered:
            event = Registration(at_ms, each.account, each.sealed, each.blind_index, each.valid_from_s, each.valid_to_s)
            if self._gate.one(event) is None:
                raise ConfigError("registration: the legal profile keeps no registrations")
            self._desk.put(event)
        self._register.register(registered)
        self._note("registration", f"{len(registered)} accounts", "ok", "", actor)
        self._desk.commit()
        yield {"row": {"registered": len(registered)}}

    def erase(self, request: Request) -> Answer:
        """A user asks that his session be erased. Refused, and on record, where the profile does not allow it."""
        name, actor, reason = _text(request, "session"), _text(request, "by"), _text(request, "reason")
        profile = self._gate.profile
        if profile is None or not profile.may_erase:
            why = f"legal profile {profile.name}: {profile.erase_source}" if profile else "no legal profile was chosen"
            self._note("erase", f"session {name}", f"refused: {why}", reason, actor)
            self._desk.commit()
            raise ConfigError(f"erase: not allowed: {why}; the request is on record")
        found = self._register.session(name)
        if found is None:
            raise ConfigError(f"erase: no session {name!r} is known here")
        for hold in self._ring.holds():
            of_person = (hold.account, hold.mac, hold.phone_index)
            pairs = zip(of_person, (found.account, found.mac, found.phone_index), strict=True)
            if any(held and held == its for held, its in pairs) or hold.client in unpack_addresses(found.addresses):
                raise ConfigError(f"erase: hold {hold.number} keeps it ({hold.reason}); it has to be lifted first")
        if not found.cause:
            raise ConfigError(f"erase: session {name} still goes on; `gatehouse session logout --session {name}` first")
        # Marked first, on record next, gone last. If the power goes in between, the mark brings it to its end.
        self._register.begin_erasing(name, actor, reason)
        self._end_erasing(name, actor, reason, ERASED)
        yield {"row": {"erased": name}}

    def finish_erasing(self) -> None:
        """What was begun and not ended, by a power cut or a flash that took nothing. Raises: StorageError."""
        for name, actor, reason in self._register.erasing():
            self._end_erasing(name, actor, reason, f"{ERASED} (begun before, ended now)")

    def _end_erasing(self, name: str, actor: str, reason: str, said: str) -> None:
        if name not in self._told:
            self._note("erase", f"session {name}", said, reason, actor)
            self._told.add(name)  # the ring has it in hand: once is enough, however often its flash refuses
        self._desk.commit()
        self._register.erase_session(name)
        self._told.discard(name)


def session_row(row: Row) -> Mapping[str, object]:
    """A session of the register, as a record of it looks."""
    wall = row.offset_ms.__add__
    return {
        "id": "",
        "kind": "session",
        "time": iso(wall(row.login_ms)),
        "clock": "synced" if row.is_synced else "unsynced",
        "session": row.session,
        "account": row.account,
        "phone_index": row.phone_index.hex(),
        "sealed": row.phone.hex(),
        "room": row.room,
        "mac": row.mac.hex(":"),
        "addresses": [address(each) for each in unpack_addresses(row.addresses)],
        "login": iso(wall(row.login_ms)),
        "seen": iso(wall(row.seen_ms)),
        "logout": iso(wall(row.logout_ms)) if row.cause else "",
        "cause": row.cause,
        "source": row.source,
    }


def registered_row(known: Registered) -> Mapping[str, object]:
    """A registration, still sealed."""
    return {
        "kind": "registration",
        "account": known.account,
        "room": known.room,
        "valid_from": _day(known.valid_from_s),
        "valid_to": _day(known.valid_to_s),
        "phone_index": known.blind_index.hex(),
        "sealed": known.sealed.hex(),
    }


def _day(at_s: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at_s)) if at_s else ""


def _registered(one: object) -> Registered:
    if not isinstance(one, dict):
        raise ConfigError("registration: expected an object for each person")
    try:
        found = Registered(
            str(one["account"])[:MAX_WORD],
            bytes.fromhex(str(one["sealed"])),
            bytes.fromhex(str(one["blind_index"])),
            str(one.get("room", ""))[:MAX_WORD],
            int(one.get("valid_from_s", 0)),
            int(one.get("valid_to_s", 0)),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"registration: {error!r}") from None
    if not found.account or is_phone(found.account):
        raise ConfigError("registration: expected an account that is no phone number")
    if len(found.sealed) > MAX_SEALED or len(found.blind_index) not in (0, 16):
        raise ConfigError(f"registration: {found.account}: expected at most {MAX_SEALED} sealed octets")
    return found


def _text(request: Request, name: str) -> str:
    value = request.get(name, "")
    if not isinstance(value, str):
        raise ConfigError(f"request: {name}: expected text, got {value!r:.60}")
    return value
