"""Sessions, wired: scripts' lines, lease file, neighbour table, RADIUS socket and orders in; records and register out.

Holds the sockets and files of `agent.session`'s sources. A session is in the register before its record is in the
ring, and a RADIUS request is answered when both are: whoever is not answered asks again.
"""

from __future__ import annotations

import csv
import ipaddress
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from agent import erasable, identity, neighbours, radius
from agent.clock import SystemClock
from agent.control import Answer, Request
from agent.session import CAUSES, FIRST_LOGIN, RANK, Claim, Open, Place, Sessions
from agent.session_lines import MAX_LINE, Happening, clean, read_address, read_lease, read_line, read_mac
from nfq.admission import Admitted
from policy.config import Config
from policy.errors import ConfigError, HookError, RadiusError, StorageError
from policy.event import Event, Maintenance, Session
from policy.legal import CLOSED
from policy.people import Room, read_hardware
from storage.register import Register, Row
from storage.rows import address as address_text
from storage.rows import iso

FIFO: Final = "sessions"
"""In run_dir: where scripts write their lines."""
CHECKPOINT_MS: Final = 120_000
"""Between two times at which it is put on flash when each session was last seen. The ring has the accesses since then;
what a power cut costs is of sessions without any.
"""
FORGET_MS: Final = 3_600_000
SETTLE_MS: Final = 600_000
"""How long sessions of an earlier boot wait for a clock that says how long the router was off."""
MAX_READS: Final = 64
BUSY_S: Final = 0.25
"""In one go of the agent's loop. A phone number takes a router 150 ms (`agent.identity`), a class logs in at once, and
a hook that is not heard for two seconds is taken for dead."""
READ_BYTES: Final = 512
"""Of scripts' lines in one go: some eight logins. What is not read waits in the kernel, and then the scripts do."""
MAX_LEASES: Final = 1 << 20
MAX_WHOLE: Final = 1 << 32
"""In a request: seconds, of which the register's integers hold the milliseconds."""


class _Anchor(NamedTuple):
    """Wall minus time since boot, and whether a time server stands behind it."""

    offset_ms: int
    is_synced: bool


class Desk:
    """All that brings news of sessions. `record` puts a record into the ring; `commit` has it on flash."""

    def __init__(
        self,
        config: Config,
        clock: SystemClock,
        register: Register,
        record: Callable[[Event], object],
        commit: Callable[[], None],
        keep: Callable[[Event], Event | None],
        last_access: Callable[[frozenset[str], int], Mapping[str, int]] | None = None,
        is_erasable: Callable[[], bool] = bool,
    ) -> None:
        """`keep`: what a session's record may hold, by the legal profile. `last_access`: when, in wall ms, each of some
        sessions had its last access on record from a moment on. Raises: ConfigError, StorageError.
        """
        self._last_access, self._is_erasable = last_access, is_erasable
        self._config, self._clock, self._register = config, clock, register
        self._record, self._commit, self._keep = record, commit, keep
        self.sessions = Sessions(
            self._new_id,
            idle_ms=config.session.idle_s * 1000,
            is_anonymous=config.session.anonymous,
        )
        self.counters: Final = {"refused_lines": 0, "refused_radius": 0, "refused_phones": 0}
        self._troubles: dict[str, str] = {}
        try:
            self.sessions.places = places_of(config)
        except ConfigError as error:  # no reason not to start: the venue would lose its filter over a list of rooms
            self._troubles["rooms"] = str(error)
        self._waiting: list[str] = []
        """Addresses at which RADIUS is to be taken in, and which cannot be had yet."""
        self._rest = b""
        self._leases = ""
        self._checkpoint_ms = clock.boottime_ms() + CHECKPOINT_MS
        self._checkpointed: dict[str, int] = {}
        self._changed: set[bytes] = set()
        self._left_over: list[Row] = []
        self._end_of_boot = "power"
        self._sealer: identity.Sealer | None = None
        self._forget_ms = 0
        self._sockets: list[socket.socket] = []
        self._fifo = -1

    # --- beginning and end -------------------------------------------------------------------------------------

    def open(self, watch: Callable[[socket.socket | int, Callable[[], None]], None]) -> None:
        """Open the FIFO, and the RADIUS port if there is anybody to send to it. Raises: ConfigError."""
        self._watch = watch
        path = os.path.join(self._config.main.run_dir, FIFO)
        try:
            if not os.path.exists(path):
                os.mkfifo(path, 0o600)
            # For writing too: it must not end when the last script has closed it.
            self._fifo = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"gatehouse.main.run_dir: {path}: {error.strerror}") from None
        watch(self._fifo, self.read_lines)
        self._waiting = list(self._config.session.radius_listen) if self._config.radius else []
        self._listen()

    def troubles(self) -> list[str]:
        """What is wrong now, in words for a person."""
        return list(self._troubles.values())

    def _listen(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._troubles.pop("radius", None)
        for host in waiting:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            door = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            if family == socket.AF_INET6:
                door.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                door.bind((host, self._config.session.radius_port))
            except OSError as error:  # not there yet, as at boot: tried again
                door.close()
                self._waiting.append(host)
                where = f"gatehouse.session.radius_listen: {host} port {self._config.session.radius_port}"
                self._troubles["radius"] = f"{where}: {error.strerror}"
                continue
            self._sockets.append(door)
            self._watch(door, lambda door=door: self.read_radius(door))  # type: ignore[misc]  # bound at once

    def begin(self, *, was_orderly: bool) -> None:
        """Take up what the predecessor left. `was_orderly`: it was told to stop; else the power went, or it crashed."""
        mine: list[Row] = []
        self._left_over = []
        for row in self._register.open_sessions():
            (mine if row.boot == self._clock.boot_id else self._left_over).append(row)
        self.sessions.restore(_opened(row, 0) for row in mine)
        self._end_of_boot = "reboot" if was_orderly else "power"
        self.settle()

    def close(self) -> None:
        """An orderly end: the sessions go on, the register says until when they were seen."""
        self.checkpoint(self._clock.boottime_ms(), at_once=True)
        self._register.close()
        for door in self._sockets:
            door.close()
        if self._fifo >= 0:
            os.close(self._fifo)

    # --- what the rest of the agent asks -----------------------------------------------------------------------

    def attribute(self, address: bytes, mac: bytes, at_ms: int, *, is_own: bool = False) -> str:
        """The session of an access; `is_own`: the MAC is the packet's own."""
        return self.sessions.attribute(address, mac, at_ms, is_own=is_own)

    def account_of(self, address: bytes) -> str:
        """Whose address it is now, for groups by account."""
        found = self.sessions.of(address=address)
        return found.account if found is not None else ""

    def admitted(self, mac_of: Callable[[bytes], bytes]) -> Admitted:
        """Whoever has logged in, or stands in a room table. `mac_of`: the MAC of an address on this LAN; empty: it is
        behind another router, and its address is all that is seen of it.
        """
        macs, addresses = set(), set()
        for found in self.sessions.all():
            if RANK[found.source] >= FIRST_LOGIN:
                macs |= {found.mac} - {b""}
                addresses |= {each for each in found.addresses if not mac_of(each)}
        for key in self.sessions.places:
            (macs if len(key) == 6 else addresses).add(key)
        return Admitted(frozenset(macs), frozenset(addresses))

    def take_changes(self) -> set[bytes]:
        """Addresses whose account may have changed since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def now_ms(self) -> int:
        """Time since boot."""
        return self._clock.boottime_ms()

    def put(self, event: Event) -> None:
        """A record of something else that belongs to people."""
        self._record(event)

    def commit(self) -> None:
        """What is on record so far is on flash. Raises: StorageError."""
        self._commit()

    def change(self, config: Config) -> None:
        """A new configuration: rooms and times. Raises: ConfigError."""
        self.sessions.places = places_of(config)
        self._troubles.pop("rooms", None)
        self.sessions.idle_ms = config.session.idle_s * 1000
        self._config = config

    def every_second(self) -> None:
        """End what is over, write what changed. Raises: StorageError."""
        now_ms = self._clock.boottime_ms()
        if self._waiting:
            self._listen()
        self.settle()
        self.sessions.handle_timer(now_ms)
        self.write(now_ms)
        self.checkpoint(now_ms)
        self.forget(now_ms)

    def look_around(self) -> None:
        """Neighbour table and lease file."""
        now_ms = self._clock.boottime_ms()
        interfaces = []
        for name in self._config.main.lan:
            try:
                interfaces.append(socket.if_nametoindex(name))
            except OSError:  # not there, or not yet
                pass
        try:
            table = neighbours.read(neighbours.REACHABLE, interfaces)
        except OSError:
            table = {}
        for address, mac in table.items():
            self.sessions.join(mac, address, "neighbour", now_ms)
        self.read_leases(now_ms)

    # --- sources -----------------------------------------------------------------------------------------------

    def read_lines(self) -> None:
        """What scripts have written."""
        until = time.monotonic() + BUSY_S
        for _ in range(MAX_READS):
            if time.monotonic() > until:
                break
            try:
                data = os.read(self._fifo, READ_BYTES)
            except BlockingIOError:
                break
            self._rest += data
            *lines, self._rest = self._rest.split(b"\n")
            for line in lines:
                self._take_line(line)
            if len(self._rest) > MAX_LINE:
                self._rest = b""
                self.counters["refused_lines"] += 1
        self.write(self._clock.boottime_ms())

    def read_leases(self, now_ms: int) -> None:
        """dnsmasq's lease file, if it has changed: what its script told while no agent listened."""
        if not self._config.session.leases:
            return
        try:
            with open(self._config.session.leases, encoding="utf-8", errors="replace") as file:
                text = file.read(MAX_LEASES)
        except OSError:
            return
        if text == self._leases:
            return
        self._leases = text
        now_s = time.time()
        for line in text.splitlines():
            lease = read_lease(line)
            if lease is None:
                continue
            until_s, mac, address = lease
            if (not until_s or until_s > now_s) and self.sessions.of(mac) is None:
                self.sessions.join(mac, address, "dhcp", now_ms)

    def read_radius(self, door: socket.socket) -> None:
        """Accounting requests: all that are there, then one commit, then the answers."""
        answers: list[tuple[bytes, tuple[object, ...]]] = []
        until = time.monotonic() + BUSY_S
        for _ in range(MAX_READS):
            if time.monotonic() > until:
                break
            try:
                data, peer = door.recvfrom(radius.MAX_PACKET + 1)
            except BlockingIOError:
                break
            except OSError:
                continue
            secret = self._secret_of(str(peer[0]))
            if secret is None:
                self.counters["refused_radius"] += 1
                continue
            try:
                request = radius.read_request(data, secret, str(peer[0]))
            except RadiusError:
                self.counters["refused_radius"] += 1
                continue
            self._account(request)
            answers.append((radius.response(request, secret), peer))
        if not answers:
            return
        try:
            if self.write(self._clock.boottime_ms()):
                self._commit()
        except StorageError as error:
            _say(f"sessions: {error}")
            return  # not on record, so not answered: it is sent again
        for answer, peer in answers:
            try:
                door.sendto(answer, peer)
            except OSError:
                pass

    def handle(self, request: Request) -> Answer:
        """`gatehouse session`: login, logout, list."""
        action = _text(request, "action")
        now_ms = self._clock.boottime_ms()
        if action == "list":
            for found in self.sessions.all():
                if row := self.describe(found):
                    yield {"row": row}
            return
        if action == "login":
            found = self._login(request, now_ms)
        elif action == "logout":
            found = self._logout(request, now_ms)
        else:
            raise ConfigError(f"session: expected login, logout or list, got {action!r}")
        self.write(now_ms)
        self._commit()
        if row := self.describe(found):
            yield {"row": row}

    def describe(self, found: Open) -> Mapping[str, object]:
        """A session as `gatehouse session list` shows it; empty: the legal profile keeps none."""
        kept = self._keep(found.record(self.now_ms()))
        if not isinstance(kept, Session):
            return {}
        offset_ms = self._anchor().offset_ms
        return {
            "session": kept.session,
            "account": kept.account,
            "room": kept.room,
            "mac": kept.mac.hex(":"),
            "addresses": [address_text(each) for each in kept.addresses],
            "login": iso(found.login_ms + offset_ms),
            "seen": iso(found.seen_ms + offset_ms),
            "logout": iso(found.logout_ms + offset_ms) if found.cause else "",
            "cause": found.cause,
            "source": found.source,
        }

    # --- writing -----------------------------------------------------------------------------------------------

    def write(self, now_ms: int) -> bool:
        """Register, then ring, of what began, changed or ended. False: nothing did. Raises: StorageError."""
        changed, records = self.sessions.take(now_ms)
        if not changed:
            return False
        anchor = self._anchor()
        try:
            self._save([(found, record) for found, record in zip(changed, records, strict=True)], anchor)
        except StorageError as error:
            _say(f"sessions: {error}")  # the ring is the record; this costs what a power cut would
        for found, record in zip(changed, records, strict=True):
            self._changed.update(found.addresses)
            self._put(record)
        return True

    def checkpoint(self, now_ms: int, *, at_once: bool = False) -> None:
        """When each was last seen, on flash now and then."""
        if now_ms < self._checkpoint_ms and not at_once:
            return
        self._checkpoint_ms = now_ms + CHECKPOINT_MS
        seen = {found.session: found.seen_ms for found in self.sessions.all()}
        if seen == self._checkpointed:
            return
        try:
            self._register.save_seen(seen)
        except StorageError as error:
            _say(f"sessions: {error}")
        self._checkpointed = seen

    def forget(self, now_ms: int) -> None:
        """What is older than the ring's records need not be looked up any more. Once an hour."""
        anchor = self._anchor()
        if now_ms < self._forget_ms or not anchor.is_synced:
            return
        self._forget_ms = now_ms + FORGET_MS
        days = self._config.ring.maximum_days or self._config.ring.promised_days
        before_ms = now_ms + anchor.offset_ms - days * 86_400_000
        try:
            self._register.forget_sessions(before_ms)
            self._register.forget_registrations(before_ms // 1000)
        except StorageError as error:
            _say(f"sessions: {error}")

    def settle(self) -> None:
        """End what was open when an earlier boot ended: at last-seen, once it can be said when that was."""
        if not self._left_over:
            return
        now_ms, anchor = self._clock.boottime_ms(), self._anchor()
        if not anchor.is_synced and now_ms < SETTLE_MS:
            return
        rows, self._left_over = self._left_over, []
        # Where either clock is a guess, the last of them was seen when this boot began, and the rest before it.
        is_known = anchor.is_synced and all(row.is_synced for row in rows)
        latest_ms = max(row.seen_ms for row in rows)
        late: Mapping[str, int] = {}
        if is_known and self._last_access is not None:  # what came after the last checkpoint is in the ring
            since_ms = min(row.seen_ms + row.offset_ms for row in rows)
            late = self._last_access(frozenset(row.session for row in rows), since_ms)
        saved = []
        for row in rows:
            shift_ms = row.offset_ms - anchor.offset_ms if is_known else -latest_ms
            found = _opened(row, shift_ms)
            found.seen_ms = max(found.seen_ms, late.get(row.session, 0) - anchor.offset_ms)
            found.cause, found.logout_ms = self._end_of_boot, found.seen_ms
            saved.append((found, found.record(now_ms)))
        try:
            self._save(saved, anchor)
        except StorageError as error:
            _say(f"sessions: {error}")
            self._left_over = rows
            return
        for _, record in saved:
            self._put(record)

    # --- inside ------------------------------------------------------------------------------------------------

    def _put(self, record: Session) -> None:
        """Into the ring; closed with the session's own key where the legal profile lets a session be erased."""
        kept = self._keep(record)
        if not self._is_erasable() or not isinstance(kept, Session):
            self._record(record)
            return
        try:
            key = self._register.session_key(record.session)
            if not key:
                key = os.urandom(erasable.KEY_BYTES)
                self._register.put_session_key(record.session, key)
        except StorageError as error:  # a key that is lost with the power: erased too early, never too late
            _say(f"sessions: {error}")
            key = os.urandom(erasable.KEY_BYTES)
        self._record(erasable.close(kept, key))

    def _save(self, changed: Sequence[tuple[Open, Session]], anchor: _Anchor) -> None:
        rows = []
        for found, record in changed:
            kept = self._keep(record)
            if isinstance(kept, Session):  # else the legal profile keeps no session: nor does the register
                rows.append(_row(found, kept, self._clock.boot_id, anchor))
        if rows:
            self._register.save(rows)

    def _take_line(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            news = read_line(line)
        except HookError:
            self.counters["refused_lines"] += 1
            return
        if news is not None and news.source == "login":
            self._record(Maintenance(self.now_ms(), news.account, news.what, news.room or "console", "", "", "ok", ""))
        elif news is not None:
            self._take_news(news, self._clock.boottime_ms())

    def _take_news(self, news: Happening, now_ms: int) -> None:
        sessions = self.sessions
        match news.what:
            case "join":
                sessions.join(news.mac, news.address, news.source, now_ms)
            case "leave":
                sessions.leave(news.address, news.mac, now_ms)
            case "associated":
                sessions.associated(news.mac, now_ms)
            case "disassociated":
                sessions.disassociated(news.mac, now_ms)
            case "login":
                addresses = (news.address,) if news.address else ()
                claim = Claim(
                    news.source, news.mac, addresses, news.account, room=news.room, timeout_ms=news.timeout_ms,
                    token=news.token,
                )  # fmt: skip
                sessions.login(self._with_person(claim, news.phone), now_ms)
            case "logout":
                found = sessions.of(news.mac, news.address, news.token)
                if found is not None:
                    sessions.logout(found, news.cause, now_ms, news.source)

    def _account(self, request: radius.Accounting) -> None:
        now_ms = self._clock.boottime_ms() - 1000 * min(request.delay_s, 86400)
        if request.status in (radius.Status.ON, radius.Status.OFF):
            cause = "lost" if request.status == radius.Status.ON else "shutdown"
            self.sessions.nas_ended(request.nas, cause, now_ms)
            return
        if request.status not in (radius.Status.START, radius.Status.INTERIM, radius.Status.STOP):
            return  # Acct-Status-Types of tunnels and the like
        claim = Claim(
            "radius",
            request.mac,
            request.addresses,
            request.account,
            timeout_ms=request.timeout_s * 1000,
            token=request.token,
            nas=request.nas,
        )
        if not (claim.mac or claim.addresses or claim.token) or self.sessions.has_ended(claim.token):
            return
        claim = self._with_person(claim, "")
        if request.status != radius.Status.STOP:
            self.sessions.login(claim, now_ms)
            return
        found = self.sessions.of(token=request.token)
        if found is None:  # its start was lost: it says itself how long it was
            found = self.sessions.login(claim, now_ms - 1000 * min(request.session_s, 30 * 86400))
            if found is not None:
                found.seen_ms = max(found.seen_ms, now_ms)
        if found is not None:
            self.sessions.logout(found, request.cause, now_ms, "radius")

    def _login(self, request: Request, now_ms: int) -> Open:
        mac, addresses = _device(request)
        if not mac and addresses and (device := self.sessions.of(address=addresses[0])) is not None:
            mac = device.mac
        if not mac and not addresses:
            raise ConfigError("session login: expected --mac or --client, the device that logs in")
        account = clean(_text(request, "account"))
        phone, phone_index = _hex(request, "phone"), _hex(request, "phone_index")
        if phone.startswith(CLOSED):
            raise ConfigError("session login: expected phone to be sealed to the recipient")
        if not account and not phone_index:
            raise ConfigError("session login: expected --account or --phone, who logs in")
        claim = Claim(
            "desk", mac, addresses, account, phone, phone_index, clean(_text(request, "room")),
            timeout_ms=1000 * max(0, _whole(request, "timeout_s")),
        )  # fmt: skip
        found = self.sessions.login(self._with_person(claim, ""), now_ms)
        assert found is not None, "nobody is believed more than the desk"
        return found

    def _logout(self, request: Request, now_ms: int) -> Open:
        mac, addresses = _device(request)
        name, account = _text(request, "session"), _text(request, "account")
        cause = _text(request, "cause") or "user"
        if cause not in CAUSES:
            raise ConfigError(f"session logout: --cause: expected one of {', '.join(CAUSES)}, got {cause!r}")
        if name:
            found = self.sessions.find(name)
        elif account:
            found = next((each for each in self.sessions.all() if each.account == account), None)
        else:
            found = self.sessions.of(mac, addresses[0] if addresses else b"")
        if found is None:
            raise ConfigError("session logout: no such session is open; `gatehouse session list` shows those that are")
        self.sessions.logout(found, cause, now_ms)
        return found

    def _with_person(self, claim: Claim, phone: str) -> Claim:
        """With what is registered for the account; and no phone number left in it that could be read."""
        if not phone and identity.is_phone(claim.account):
            phone = claim.account
            claim = claim._replace(account="")
        if phone:
            try:
                if self._sealer is None:
                    self._sealer = identity.Sealer.load(self._config.main.state_dir)
                number = identity.normal_phone(phone)
                index = self._sealer.index_of(number)
                claim = claim._replace(phone=self._sealer.seal({"phone": number}), phone_index=index)
            except ConfigError as error:
                if not self.counters["refused_phones"]:
                    _say(f"sessions: a phone number is left out: {error}")
                self.counters["refused_phones"] += 1
            if not claim.account:
                claim = claim._replace(account=f"phone-{claim.phone_index.hex()[:12]}" if claim.phone_index else "")
        if claim.account and not claim.phone_index:
            try:
                known = self._register.registration(claim.account)
            except StorageError as error:
                _say(f"sessions: {error}")
                known = None
            if known is not None:
                claim = claim._replace(phone_index=known.blind_index, room=claim.room or known.room)
        return claim

    def _secret_of(self, peer: str) -> bytes | None:
        octets = ipaddress.ip_address(peer.partition("%")[0]).packed
        return next((each.secret for each in self._config.radius if each.address == octets), None)

    def _new_id(self) -> str:
        """Says when it began, so that the ring need not be searched from end to end: `s`, seconds, a random tail.

        `u` instead of `s`: the clock was not set.
        """
        now = self._clock.read()
        return f"{'s' if now.synced else 'u'}{now.wall_ms // 1000:08x}{os.urandom(4).hex()}"

    def _anchor(self) -> _Anchor:
        now = self._clock.read()
        return _Anchor(now.wall_ms - now.boottime_ms, now.synced)


def began_s(session: str) -> int:
    """When a session began, by its name; 0: it does not say."""
    try:
        return int(session[1:9], 16) if session[:1] == "s" and len(session) == 17 else 0
    except ValueError:
        return 0


def places_of(config: Config) -> dict[bytes, Place]:
    """Static tables: UCI's, and the CSV file. Raises: ConfigError."""
    rooms = [*config.rooms, *read_rooms(config.session.rooms)]
    return {key: Place(room.account, room.room) for room in rooms for key in room.keys}


def read_rooms(path: str) -> Iterator[Room]:
    """A CSV file with a head line of room, mac, ip, account. Raises: ConfigError."""
    if not path:
        return
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not {"room"} <= set(reader.fieldnames or ()) or not {"mac", "ip"} & set(reader.fieldnames or ()):
                raise ConfigError(f"{path}: expected a head line with room, and mac or ip or both")
            for line in reader:
                where = f"{path}:{reader.line_num}"
                keys = [read_hardware(line["mac"].strip(), where)] if (line.get("mac") or "").strip() else []
                if (line.get("ip") or "").strip():
                    keys.append(_ip(line["ip"].strip(), where))
                if keys:
                    yield Room(tuple(keys), clean(line.get("account") or ""), clean(line["room"] or ""))
    except OSError as error:
        raise ConfigError(f"gatehouse.session.rooms: {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: expected CSV in UTF-8: {error}") from None


def _ip(text: str, where: str) -> bytes:
    try:
        return read_address(text)
    except HookError:
        raise ConfigError(f"{where}: expected an IP address, got {text!r}") from None


def _row(found: Open, kept: Session, boot: str, anchor: _Anchor) -> Row:
    packed = b"".join(bytes((len(each),)) + each for each in kept.addresses)
    return Row(
        found.session, boot, anchor.offset_ms, int(anchor.is_synced), kept.account, kept.phone, kept.phone_index,
        kept.room, kept.mac, packed, found.login_ms, found.seen_ms, found.logout_ms, found.cause, found.source,
        found.expires_ms, found.token if found.nas else "", found.nas,
    )  # fmt: skip


def _opened(row: Row, shift_ms: int) -> Open:
    claim = Claim(
        row.source, row.mac, (), row.account, row.phone, row.phone_index, row.room, token=row.token, nas=row.nas
    )
    found = Open(row.session, claim, row.login_ms + shift_ms)
    found.seen_ms, found.expires_ms = row.seen_ms + shift_ms, row.expires_ms + shift_ms
    found.addresses = unpack_addresses(row.addresses)
    found.is_dirty = False
    return found


def unpack_addresses(packed: bytes) -> list[bytes]:
    """Addresses, each with its length in front."""
    found, at = [], 0
    while at < len(packed):
        size = packed[at]
        found.append(packed[at + 1 : at + 1 + size])
        at += 1 + size
    return found


def _device(request: Request) -> tuple[bytes, tuple[bytes, ...]]:
    try:
        mac = read_mac(text) if (text := _text(request, "mac")) else b""
        address = read_address(text) if (text := _text(request, "client")) else b""
    except HookError:
        raise ConfigError("session: expected --mac as 02:00:00:00:00:01, --client as an IP address") from None
    return mac, (address,) if address else ()


def _hex(request: Request, name: str) -> bytes:
    try:
        return bytes.fromhex(_text(request, name))
    except ValueError:
        raise ConfigError(f"request: {name}: expected hexadecimal digits") from None


def _text(request: Request, name: str) -> str:
    value = request.get(name, "")
    if not isinstance(value, str):
        raise ConfigError(f"request: {name}: expected text, got {value!r:.60}")
    return value


def _whole(request: Request, name: str) -> int:
    value = request.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_WHOLE:
        raise ConfigError(f"request: {name}: expected a whole number up to {MAX_WHOLE}, got {value!r:.60}")
    return value


def _say(text: str) -> None:
    print(f"agent: {text}", file=sys.stderr, flush=True)
