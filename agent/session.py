"""Sessions: one session is one user on one device, from login to logout. Sans-I/O.

Holds the table of open sessions, whose address it was at which moment, and the order in which sources are believed.
Does not hold where the news comes from (`agent.session_lines`, `agent.radius`, `agent.session_desk`).
Order of calls: `restore` once; then any of the events, `handle_timer` about once a second, `take` after either.
Rule: a session ends at the moment at which its user was last seen, never at the moment at which we noticed; and its
end says why. Every table is bounded, whatever the LAN makes up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from policy.event import Session

RANK: Final = {
    "desk": 70,
    "radius": 60,
    "opennds": 50,
    "room": 40,
    "hostapd": 30,
    "dhcp": 20,
    "neighbour": 10,
    "traffic": 0,
}
"""Who is believed. A front desk or portal that speaks to us knows the person; an access controller knows the account;
a room table knows the room; the rest knows a device."""
FIRST_LOGIN: Final = RANK["room"]
"""Sources from here on name a user, those below a device."""
CAUSES: Final = (
    "user", "idle", "timeout", "quota", "admin", "shutdown", "lost", "lease", "replaced", "login", "reboot", "power",
    "full",
)  # fmt: skip
"""Why a session ended. `lost`: the link or its server; `lease`: DHCP; `replaced`: another user logged in on the device;
`login`: the device's user made himself known; `reboot`, `power`: the router stopped in order, or not; `full`: bound."""
MAX_SESSIONS: Final = 8192
"""Some 8 MB; 32 times the clients of the reference router."""
MAX_ADDRESSES: Final = 16
"""Of one session: a dual-stack client with the temporary addresses (RFC 8981) of a week."""
MAX_HISTORY: Final = 16384
"""Addresses whose holders are remembered."""
MAX_HOLDERS: Final = 4
"""Holders that are remembered of one address: records come seconds late, not hours."""
MAX_ENDED: Final = 4096
"""Tokens of ended sessions, so that a late copy of their start does not begin them again."""
CHANGE_MS: Final = 500
LONGEST_WAIT_MS: Final = 300_000
"""Between two records of changes of one session: half a second for each that there was, five minutes at most."""
STALE_MS: Final = 60_000
"""The kernel calls a neighbour reachable for up to 45 s after it was (base_reachable_time_ms)."""
LONGEST_MS: Final = 30 * 86_400_000
"""Of any session; questions of the ring look no further back than 31 days."""
ROAM_MS: Final = 300_000
"""A device that has left the radio may come back on another one."""
DISORDER_MS: Final = 3_000
"""A blocked access is told at once, others a little later."""
STRANGERS_PER_S: Final = 20
STRANGERS_BURST: Final = 500
"""Sessions that nobody announced, begun by mere traffic: a flood of made-up MACs must not fill the ring."""


def is_host(address: bytes) -> bool:
    """Can this be the address of one device? Not the unspecified one, loopback, multicast, link-local."""
    if len(address) == 4:
        return address[0] not in (0, 127) and address[0] < 224
    return len(address) == 16 and any(address[:15]) and address[0] != 0xFF and address[:2] != b"\xfe\x80"


class Place(NamedTuple):
    """What a static table says of a MAC or an address."""

    account: str
    room: str


class Claim(NamedTuple):
    """Somebody says who is on a device."""

    source: str
    mac: bytes = b""
    """6 octets; empty: not known, then there must be an address."""
    addresses: tuple[bytes, ...] = ()
    account: str = ""
    phone: bytes = b""
    phone_index: bytes = b""
    room: str = ""
    timeout_ms: int = 0
    """0: no limit."""
    token: str = ""
    """The source's own name for the session; empty: none."""
    nas: str = ""
    """The access controller that holds it."""


class Former(NamedTuple):
    """A session that has ended. Times in CLOCK_BOOTTIME ms; `ended_ms`: when the end was known, not last seen."""

    session: str
    login_ms: int
    ended_ms: int


class Open:
    """A session that goes on. Times in CLOCK_BOOTTIME ms; those before this boot are negative."""

    __slots__ = (
        "account",
        "addresses",
        "away_ms",
        "cause",
        "changes",
        "due_ms",
        "expires_ms",
        "is_dirty",
        "login_ms",
        "logout_ms",
        "mac",
        "nas",
        "phone",
        "phone_index",
        "room",
        "seen_ms",
        "session",
        "source",
        "token",
    )  # fmt: skip

    def __init__(self, session: str, claim: Claim, login_ms: int) -> None:
        self.session = session
        self.source = claim.source
        self.account, self.room, self.token, self.nas = claim.account, claim.room, claim.token, claim.nas
        self.phone, self.phone_index = claim.phone, claim.phone_index
        self.mac = claim.mac
        self.addresses: list[bytes] = []
        self.login_ms = self.seen_ms = login_ms
        self.logout_ms = 0
        self.cause = ""
        self.expires_ms = login_ms + (claim.timeout_ms or LONGEST_MS)
        self.away_ms = 0
        """When it left the radio; 0: it is there, or nobody tells us."""
        self.is_dirty = True
        """Its record is to be written."""
        self.changes = 0
        """Records that were."""
        self.due_ms = login_ms
        """Before then no further one is."""

    def record(self, at_ms: int) -> Session:
        """As it stands in the ring. A logout at time 0, of this boot's first millisecond, is told as 1."""
        return Session(
            at_ms, self.session, self.account, self.phone, self.room, self.mac, tuple(self.addresses), self.login_ms,
            (self.logout_ms or 1) if self.cause else 0, self.cause, self.source, self.phone_index,
        )  # fmt: skip


class Sessions:
    """All open sessions. `new_id` makes a name for one that begins now; `places` are the static tables."""

    def __init__(
        self,
        new_id: Callable[[], str],
        *,
        idle_ms: int = 1_800_000,
        places: Mapping[bytes, Place] | None = None,
        is_anonymous: bool = True,
    ) -> None:
        """`is_anonymous`: devices that nobody logged in have sessions too."""
        self._new_id = new_id
        self.idle_ms = idle_ms
        self.places: Mapping[bytes, Place] = places or {}
        self._is_anonymous = is_anonymous
        self._open: dict[str, Open] = {}
        self._of_mac: dict[bytes, Open] = {}
        self._of_token: dict[str, Open] = {}
        self._holders: OrderedDict[bytes, list[tuple[int, str]]] = OrderedDict()
        """Address -> (from, session), oldest first; the last one holds it now; an empty session: nobody."""
        self._left: dict[bytes, int] = {}
        """Addresses that were given back, and until when the neighbour table may still name their last holder."""
        self._ended: OrderedDict[str, int] = OrderedDict()
        self._former: OrderedDict[bytes, Former] = OrderedDict()
        """MAC -> its last session that has ended, for records that come after its end."""
        self._closed: list[Open] = []
        self._tokens = float(STRANGERS_BURST)
        self._filled_ms = 0
        self.counters: Final = {"logins": 0, "logouts": 0, "conflicts": 0, "strangers_refused": 0, "evicted": 0}

    def __len__(self) -> int:
        return len(self._open)

    # --- what is known -----------------------------------------------------------------------------------------

    def whose(self, address: bytes, at_ms: int) -> str:
        """The session that held an address at a moment; empty: none is known."""
        for from_ms, session in reversed(self._holders.get(address, ())):
            if from_ms <= at_ms:
                return session
        return ""

    def since_ms(self, address: bytes) -> int:
        """From when on the present holder of an address has it; 0: there is none."""
        held = self._holders.get(address)
        return held[-1][0] if held else 0

    def find(self, session: str) -> Open | None:
        """An open session."""
        return self._open.get(session)

    def of(self, mac: bytes = b"", address: bytes = b"", token: str = "") -> Open | None:
        """The open session of a device, of an address, or that its source calls so."""
        if token and (found := self._of_token.get(token)):
            return found
        if mac and (found := self._of_mac.get(mac)):
            return found
        return self._open.get(self.whose(address, 1 << 62)) if address else None

    def all(self) -> list[Open]:
        """Those that are open, the oldest first."""
        return sorted(self._open.values(), key=lambda found: found.login_ms)

    # --- what happens ------------------------------------------------------------------------------------------

    def login(self, claim: Claim, now_ms: int) -> Open | None:
        """A source says who is there. Returns the session that is his now; None: a better source says otherwise."""
        if claim.token and claim.token in self._ended:
            return None  # a copy of its start that was late
        claim = claim._replace(addresses=tuple(each for each in claim.addresses if is_host(each)))
        address = claim.addresses[0] if claim.addresses else b""
        held = self.of(claim.mac, address, claim.token)
        if held is not None and self._is_same(held, claim):
            self._learn(held, claim, now_ms)
            return held
        moved: list[bytes] = []
        if held is not None:
            if RANK[claim.source] < RANK[held.source]:
                self.counters["conflicts"] += 1
                return None
            if claim.source == held.source and not claim.account and not claim.token:
                self._learn(held, claim, now_ms)  # the same source, and nothing that it did not say before
                return held
            moved = list(held.addresses)
            is_device = RANK[held.source] < FIRST_LOGIN
            self._end(held, "login" if is_device else "replaced", now_ms)
            claim = claim._replace(mac=claim.mac or held.mac)
        found = self._begin(claim, now_ms)
        for each in (*moved, *claim.addresses):
            self._join(found, each, now_ms)
        return found

    def logout(self, found: Open, cause: str, now_ms: int, source: str = "desk") -> bool:
        """A session ended, says a source. False: it is not for this source to say."""
        if RANK[source] < RANK[found.source]:
            self.counters["conflicts"] += 1
            return False
        if cause == "user":  # it takes somebody who is there
            found.seen_ms = max(found.seen_ms, now_ms)
        self._end(found, cause, now_ms)
        return True

    def join(self, mac: bytes, address: bytes, source: str, now_ms: int) -> None:
        """A device uses an address: a lease, an entry of the neighbour table, a packet."""
        if not is_host(address) or (source == "neighbour" and now_ms < self._left.get(address, 0)):
            return
        found = self._of_mac.get(mac) if mac else self._open.get(self.whose(address, 1 << 62))
        if found is None:
            if not self._is_anonymous and not self._place(mac, address):
                return
            if RANK[source] <= RANK["neighbour"] and not self._may_begin(now_ms):
                self.counters["strangers_refused"] += 1
                return
            found = self._begin(Claim(source, mac), now_ms, address)
        elif RANK[found.source] < RANK[source] < FIRST_LOGIN:  # better evidence of the same device
            found.source, found.is_dirty = source, True
        self._join(found, address, now_ms)

    def leave(self, address: bytes, mac: bytes, now_ms: int) -> None:
        """A lease ended: the address is nobody's, and a device without any other has gone."""
        found = self._open.get(self.whose(address, 1 << 62))
        if found is None or (mac and found.mac and found.mac != mac):
            return
        found.addresses.remove(address)
        found.is_dirty = True
        self._hold(address, "", now_ms)
        if len(self._left) >= MAX_ENDED:
            self._left.clear()
        self._left[address] = now_ms + STALE_MS
        if not found.addresses:
            self._end(found, "lease", now_ms)

    def seen(self, address: bytes, at_ms: int) -> None:
        """The device that has this address did something."""
        self._saw(self.whose(address, at_ms), at_ms)

    def attribute(self, address: bytes, mac: bytes, at_ms: int, *, is_own: bool = False) -> str:
        """The session that an access at a moment belongs to; one begins where none is. Empty: it is not known.

        `is_own`: the MAC is the packet's own, not what the neighbour table says of the address.
        """
        if not is_host(address):  # it has none yet, or speaks to its neighbours only
            known = self._of_mac.get(mac)
            return known.session if known is not None and known.login_ms <= at_ms else ""
        session = self.whose(address, at_ms)
        if session and is_own and mac and self._is_borrowed(session, mac):
            return self._of_borrower(mac, at_ms)
        if not session and mac:
            # Records do not come in order: a flow's waits for the look-up that led to it, and a login may overtake it.
            session = self._of_device(mac, at_ms)
            if session in self._open or mac not in self._of_mac:
                self.join(mac, address, "traffic", at_ms)
            session = self.whose(address, at_ms) or session
        if not session:
            return self._soon(address, at_ms)
        self._saw(session, at_ms)
        return session

    def associated(self, mac: bytes, now_ms: int) -> None:
        """A device joined the radio network."""
        found = self._of_mac.get(mac)
        if found is not None:
            found.seen_ms, found.away_ms = max(found.seen_ms, now_ms), 0
        elif self._is_anonymous or self._place(mac, b""):
            if self._may_begin(now_ms):
                self._begin(Claim("hostapd", mac), now_ms)
            else:
                self.counters["strangers_refused"] += 1

    def disassociated(self, mac: bytes, now_ms: int) -> None:
        """It left. Phones leave to save their battery and come back; only after a while is it a logout."""
        found = self._of_mac.get(mac)
        if found is not None:
            found.seen_ms, found.away_ms = max(found.seen_ms, now_ms), now_ms

    def nas_ended(self, nas: str, cause: str, now_ms: int) -> int:
        """An access controller started or stopped: none of its sessions goes on. Returns how many there were."""
        ended = [found for found in self._open.values() if found.nas == nas and nas]
        for found in ended:
            self._end(found, cause, now_ms)
        for token in [token for token in self._ended if token.startswith(f"radius:{nas}/")]:
            del self._ended[token]  # it may count from the beginning again
        return len(ended)

    def has_ended(self, token: str) -> bool:
        """Was this one's end told before?"""
        return token in self._ended

    def handle_timer(self, now_ms: int) -> None:
        """End what is over."""
        idle_ms = self.idle_ms
        over = [
            found
            for found in self._open.values()
            if now_ms - found.seen_ms >= idle_ms
            or now_ms >= found.expires_ms
            or (found.away_ms and now_ms - found.away_ms >= ROAM_MS)
        ]
        for found in over:
            if now_ms >= found.expires_ms:
                cause = "timeout"
            elif found.away_ms and now_ms - found.away_ms >= ROAM_MS:
                cause = "lost"
            else:
                # An access controller times its own users; that it fell silent is another thing than an idle user.
                cause = "lost" if found.source == "radius" else "idle"
            self._end(found, cause, now_ms)

    def take(self, now_ms: int) -> tuple[list[Open], list[Session]]:
        """Sessions that began, changed or ended since the last call, and their records, in order."""
        due = [found for found in self._open.values() if found.is_dirty and now_ms >= found.due_ms]
        changed = self._closed + due
        self._closed = []
        for found in changed:
            found.is_dirty = False
            # A device that takes a new address every second must not have a record on flash every second.
            found.changes += 1
            found.due_ms = now_ms + min(LONGEST_WAIT_MS, CHANGE_MS * found.changes)
        return changed, [found.record(now_ms) for found in changed]

    def restore(self, kept: Iterable[Open]) -> None:
        """Sessions that were open when this agent's predecessor, of the same boot, ended."""
        for found in kept:
            self._add(found)
            for address in found.addresses:
                self._hold(address, found.session, found.login_ms)

    # --- inside ------------------------------------------------------------------------------------------------

    def _is_same(self, held: Open, claim: Claim) -> bool:
        if claim.token and held.token == claim.token and held.account == claim.account:
            return True
        if claim.token and held.token and claim.source == held.source:
            return False  # the same source began another session for it
        return bool(claim.account) and claim.account == held.account

    def _learn(self, found: Open, claim: Claim, now_ms: int) -> None:
        before = (found.source, found.mac, found.room, found.phone_index, found.phone)
        if RANK[claim.source] > RANK[found.source]:
            found.source = claim.source
        if claim.token and not found.token:
            found.token, found.nas = claim.token, claim.nas
            self._of_token[claim.token] = found
        if claim.mac and claim.mac != found.mac:  # the account controller's session has moved to another device
            self._forget_mac(found)
            found.mac = claim.mac
            other = self._of_mac.get(claim.mac)
            if other is not None:
                self._end(other, "replaced", now_ms)
            self._of_mac[claim.mac] = found
        found.room = found.room or claim.room
        found.phone, found.phone_index = found.phone or claim.phone, found.phone_index or claim.phone_index
        if claim.timeout_ms:
            found.expires_ms = now_ms + claim.timeout_ms
        found.seen_ms, found.away_ms = max(found.seen_ms, now_ms), 0
        found.is_dirty |= before != (found.source, found.mac, found.room, found.phone_index, found.phone)
        for address in claim.addresses:
            self._join(found, address, now_ms)

    def _begin(self, claim: Claim, now_ms: int, address: bytes = b"") -> Open:
        place = self._place(claim.mac, address or (claim.addresses[0] if claim.addresses else b""))
        if place is not None:
            claim = claim._replace(room=claim.room or place.room)
            if RANK[claim.source] < FIRST_LOGIN:
                claim = claim._replace(source="room", account=place.account)
        if len(self._open) >= MAX_SESSIONS:
            self._evict(now_ms)
        found = Open(self._new_id(), claim, now_ms)
        self._add(found)
        self.counters["logins"] += 1
        return found

    def _place(self, mac: bytes, address: bytes) -> Place | None:
        return self.places.get(mac) or self.places.get(address)

    def _add(self, found: Open) -> None:
        self._open[found.session] = found
        if found.mac:
            self._of_mac[found.mac] = found
        if found.token:
            self._of_token[found.token] = found

    def _join(self, found: Open, address: bytes, now_ms: int) -> None:
        found.seen_ms, found.away_ms = max(found.seen_ms, now_ms), 0
        if address in found.addresses:
            return
        holder = self._open.get(self.whose(address, 1 << 62))
        if holder is not None:  # another device has it now
            holder.addresses.remove(address)
            holder.is_dirty = True
        found.addresses.append(address)
        found.is_dirty = True
        if len(found.addresses) > MAX_ADDRESSES:
            self._hold(found.addresses.pop(0), "", now_ms)
        self._hold(address, found.session, now_ms)

    def _hold(self, address: bytes, session: str, from_ms: int) -> None:
        held = self._holders.setdefault(address, [])
        held.append((from_ms, session))
        del held[:-MAX_HOLDERS]
        self._holders.move_to_end(address)
        if len(self._holders) > MAX_HISTORY:
            gone, _ = self._holders.popitem(last=False)
            for found in self._open.values():
                if gone in found.addresses:
                    found.addresses.remove(gone)
                    break

    def _end(self, found: Open, cause: str, now_ms: int) -> None:
        found.cause, found.logout_ms = cause, found.seen_ms
        del self._open[found.session]
        if found.mac:
            self._former[found.mac] = Former(found.session, found.login_ms, now_ms)
            if len(self._former) > MAX_ENDED:
                self._former.popitem(last=False)
        self._forget_mac(found)
        for address in found.addresses:
            self._hold(address, "", now_ms)
        if found.token:
            self._of_token.pop(found.token, None)
            if found.nas:  # over a network, where a copy can be late
                self._ended[found.token] = now_ms
                if len(self._ended) > MAX_ENDED:
                    self._ended.popitem(last=False)
        self._closed.append(found)
        self.counters["logouts"] += 1

    def _forget_mac(self, found: Open) -> None:
        if self._of_mac.get(found.mac) is found:
            del self._of_mac[found.mac]

    def _evict(self, now_ms: int) -> None:
        """Bound reached: whoever was seen least recently, devices before users."""
        oldest = min(self._open.values(), key=lambda found: (RANK[found.source] >= FIRST_LOGIN, found.seen_ms))
        self._end(oldest, "full", now_ms)
        self.counters["evicted"] += 1

    def _saw(self, session: str, at_ms: int) -> None:
        found = self._open.get(session)
        if found is not None and at_ms > found.seen_ms:
            found.seen_ms, found.away_ms = at_ms, 0

    def _of_device(self, mac: bytes, at_ms: int) -> str:
        """The session that a device had at a moment: the present one, or the one just before it."""
        present, former = self._of_mac.get(mac), self._former.get(mac)
        if present is not None and present.login_ms <= at_ms:
            return present.session
        if former is not None and former.login_ms <= at_ms <= former.ended_ms:
            return former.session
        is_soon = present is not None and present.login_ms - at_ms < DISORDER_MS
        return present.session if present is not None and is_soon and RANK[present.source] <= FIRST_LOGIN else ""

    def _is_borrowed(self, session: str, mac: bytes) -> bool:
        """Does a packet with this MAC use the address of another device? Behind an access controller they all would."""
        found = self._open.get(session)
        return found is not None and not found.nas and bool(found.mac) and found.mac != mac

    def _of_borrower(self, mac: bytes, at_ms: int) -> str:
        """Whose device it is that uses another's address. The address stays: the kernel's table says who has it."""
        if mac not in self._of_mac and self._is_anonymous and self._may_begin(at_ms):
            self._begin(Claim("traffic", mac), at_ms)
        session = self._of_device(mac, at_ms)
        self._saw(session, at_ms)
        return session

    def _soon(self, address: bytes, at_ms: int) -> str:
        """A device's session that was begun by a later record of two that came in the other order."""
        held = self._holders.get(address)
        if held and held[0][0] - at_ms < DISORDER_MS:
            found = self._open.get(held[0][1])
            if found is not None and RANK[found.source] <= FIRST_LOGIN:
                return found.session
        return ""

    def _may_begin(self, now_ms: int) -> bool:
        passed_s = max(0, now_ms - self._filled_ms) / 1000
        self._tokens = min(STRANGERS_BURST, self._tokens + passed_s * STRANGERS_PER_S)
        self._filled_ms = now_ms
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
