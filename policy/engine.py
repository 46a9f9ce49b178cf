"""The engine: asks the venue's rules and the compiled images, and answers with one `Decision` (policy.verdict.Decider).

    engine = Engine([Image(mmap_or_bytes), ...], load_policy(uci_sections), zone=parse_zone("CET-1CEST,..."),
                    overrides=overrides.active, generation=old.generation + 1, clients=old.clients)
    engine.set_client(address, mac=..., account=..., interface=..., ssid=...)
    engine.decide(name, engine.group_of(address), now_s)

For tests and small venues: `tests.policy.build.engine_of({"ads": "ads.example\\n"}, allow=(), config=UCI_TEXT)`.
A flow without a name is asked for as `decide(b"", ...)` (the group's default and closing windows), then by address.

Order, the first that has a word to say wins: what is never blocked; overrides; explicit rules (the most specific name,
then allow); bypass signals; important entries of lists; allow entries; blocked categories; log-only ones; a window that
closes everything; the profile's default. Safe search then rewrites what was allowed.

Rule: a decision costs no time of day. Schedules and overrides become a `_State` that holds until a known second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple
from zlib import crc32

from policy import canary
from policy.bypass import NEVER_BLOCK, RESOLVERS, SIGNALS
from policy.digest import blake2s
from policy.image import SPLIT, Buffer, Flag, Image, Kind, Scope
from policy.names import suffixes
from policy.rules import Action, Group, Match, Policy, Profile, Rule, What, load_policy, parse_match
from policy.safesearch import PROVIDERS
from policy.schedule import open_schedules
from policy.urls import matches
from policy.verdict import ALLOWED, FOREVER, Decision, Reason, Treatment, Verdict
from policy.zone import UTC, Zone

if TYPE_CHECKING:
    from policy.override import Override

MAX_CLIENTS: Final = 65536
"""Addresses whose group is remembered: a /16 of clients. Beyond that the memory starts anew."""
MAX_OUTCOMES: Final = 4096
"""Combinations whose outcome is remembered, for each set of masks; some 150 octets each."""
MAX_SILENT: Final = 4096
"""Parents remembered, for each state, of which neither rules nor lists say anything: a site's names come in dozens."""
MAX_STATES: Final = 256
"""States remembered, so that a bell that rings every hour builds nothing."""

_BACKSLASH: Final = 0x5C
_BIT: Final = tuple(1 << bit for bit in range(8))
_EXTENT: Final = Struct("<II").unpack_from
_NO_BITMAP: Final = memoryview(b"\0")

# Ranks of what lists say; the order of the model.
_NOTHING, _LOG, _BLOCK, _ALLOW, _IMPORTANT_BLOCK, _IMPORTANT_ALLOW = range(6)
# Levels of what stands above the lists.
_BYPASS, _RULE, _OVERRIDE, _NEVER = range(1, 5)
# What identifies a client, weakest first.
_BY_ADDRESS, _BY_NETWORK, _BY_ACCOUNT, _BY_MAC = range(1, 5)

Outcome = tuple[int, Decision]
_SILENT: Final[Outcome] = (_NOTHING, ALLOWED)


class Pin(NamedTuple):
    """A name that somebody wrote down here, as against one of a list."""

    level: int
    scope: int
    decision: Decision


class ClientFacts(NamedTuple):
    """What the agent knows about an address."""

    mac: bytes = b""
    account: str = ""
    interface: str = ""
    ssid: str = ""


class Masks(NamedTuple):
    """Slots of one image that a group blocks, allows, or only records: a bit each."""

    block: int
    allow: int
    log: int


class _Outcomes:
    """What the combinations of one image come to under one set of masks; filled as they are met."""

    __slots__ = ("address", "below", "whole")

    def __init__(self) -> None:
        self.whole: dict[bytes, Outcome] = {}
        self.below: dict[bytes, Outcome] = {}
        self.address: dict[bytes, Outcome] = {}


class _State:
    """What holds for a group from `begin` until `until`."""

    __slots__ = (
        "begin", "below", "ceiling", "default", "explicit", "masks", "nets", "outcomes", "safe", "silent", "until",
        "urls", "whole",
    )  # fmt: skip

    def __init__(self) -> None:
        self.begin: float = FOREVER
        self.until: float = -1.0
        self.explicit: dict[bytes, tuple[Pin, ...]] = {}
        self.safe: dict[bytes, Decision] = {}
        self.nets: list[tuple[int, int, int, int, Decision]] = []
        """Bits, first, last, level, decision; the narrowest first."""
        self.urls: dict[bytes, list[tuple[int, bytes, Decision]]] = {}
        self.masks: tuple[Masks, ...] = ()
        self.outcomes: tuple[_Outcomes, ...] = ()
        self.whole: dict[bytes, Outcome] = {}
        self.below: dict[bytes, Outcome] = {}
        """Of the first image, within reach of the hot path."""
        self.default: Decision = ALLOWED
        self.silent: set[bytes] = set()
        """Parents that nothing is said about, and nothing about any above them: only the name below is to be asked."""
        self.ceiling: int = _IMPORTANT_ALLOW
        """The highest rank that anything in the first image can have: when it is reached, no parent need be asked."""


class Engine:
    """One image (or several) under one set of rules. Build a new one when either changes; the old one stays right."""

    def __init__(
        self,
        images: Sequence[Image | Buffer] = (),
        policy: Policy | None = None,
        *,
        zone: Zone = UTC,
        overrides: Iterable[Override] = (),
        generation: int = 1,
        clients: Mapping[bytes, ClientFacts] | None = None,
    ) -> None:
        """Raises: ImageError for a buffer that is no sound image; ConfigError for an override that makes no sense."""
        self.generation = generation
        self.images: Final = tuple(image if isinstance(image, Image) else Image(image) for image in images)
        self.policy: Final = policy or load_policy(())
        self.zone: Final = zone
        self.clients: Final[dict[bytes, ClientFacts]] = dict(clients or {})
        self.unknown: Final[set[str]] = set()
        """Categories and lists that profiles or rules name and no image has: worth a line in the log."""
        self._overrides: Final = tuple((o, parse_match(o.match, o.code)) for o in overrides)
        self._groups: Final = self.policy.groups
        self._profiles: Final = [self.policy.profiles[group.profile] for group in self._groups]
        self._treatments: Final = [
            Treatment(group.name, profile.on_block, profile.fail, profile.strip_ech)
            for group, profile in zip(self._groups, self._profiles, strict=True)
        ]
        self._rules: Final = [self._rules_of(group) for group in self._groups]
        self._named: Final[dict[str, tuple[int, ...]]] = {}
        self._shared: Final[dict[tuple[Masks, ...], tuple[_Outcomes, ...]]] = {}
        self._pins: Final[dict[bool, dict[bytes, tuple[Pin, ...]]]] = {}
        self._built: Final[dict[tuple[int, frozenset[str] | None, tuple[int, ...]], _State]] = {}
        self._group_cache: Final[dict[bytes, int]] = {}
        self._matchers = _Matchers(self._groups)
        self._states: list[_State] = [_State() for _ in self._groups]
        self._reach_first_image()
        self._check_words()

    def _reach_first_image(self) -> None:
        """Put what the hot path reads of the first image within its reach."""
        self._bitmap, self._mask = _NO_BITMAP, 0
        self._salt, self._index_at, self._shift = b"", 0, 32
        self._buffer: Buffer = b""
        self._find: Callable[[bytes, int, int], int] = b"".find
        self._ranged = tuple((index, image) for index, image in enumerate(self.images) if image.has_ranges)
        self._has_more = len(self.images) > 1 or any(image.has_tops for image in self.images)
        if self.images:
            image = self.images[0]
            self._bitmap, self._mask, self._salt = image.bitmap, image.bitmap_mask, image.salt
            self._buffer = image.buffer
            self._index_at, self._shift, self._find = image.index_at, image.shift, image.buffer.find

    # --- decisions ---------------------------------------------------------------------------------------------

    def decide(self, name: bytes, group: int, now_s: float | None) -> Decision:
        """Decide a domain name, parents included."""
        state = self._states[group]
        if now_s is None or not state.begin <= now_s < state.until:
            state = self._turn(group, now_s)
        explicit, bitmap, mask = state.explicit, self._bitmap, self._mask
        best = _NOTHING
        decision = state.default
        suffix = name
        rest = name.partition(b".")[2]
        while rest:
            if suffix in explicit:
                return self._weigh(name, state)
            crc = crc32(suffix)
            if bitmap[crc & mask] & _BIT[crc >> 29]:
                # Image.probe, written out: a call costs as much as a digest.
                head, tag = SPLIT(blake2s(self._salt + suffix).digest())
                start, end = _EXTENT(self._buffer, self._index_at + 4 * (head >> self._shift))
                at = self._find(tag, start, end)
                while at >= 0 and (at - start) & 7:  # the tag's octets, but across two records
                    at = self._find(tag, at + 1, end)
                if at >= 0:
                    if _BACKSLASH in name:
                        return self._weigh(name, state)
                    key = self._buffer[at + 5 : at + 8]
                    try:
                        rank, said = state.whole[key] if suffix is name else state.below[key]
                    except KeyError:
                        rank, said = self._outcome(state, 0, key, whole=suffix is name)
                    if rank > best:
                        best, decision = rank, said
                        if rank >= state.ceiling:
                            while rest not in explicit:
                                rest = rest.partition(b".")[2]
                                if not rest:
                                    return self._weigh(name, state) if self._has_more else decision
                            return self._weigh(name, state)
            if rest in state.silent:
                if best == _NOTHING:
                    return decision
                break
            suffix = rest
            rest = rest.partition(b".")[2]
        if suffix in explicit or self._has_more:
            return self._weigh(name, state)
        if best == _NOTHING:
            # `name` is a parent of nobody here: of what is below it, its own entry may yet speak.
            if len(state.silent) >= MAX_SILENT:
                state.silent.clear()
            state.silent.add(name.partition(b".")[2])
            return decision
        if best == _LOG and state.default.verdict is Verdict.BLOCK:
            return state.default
        return decision

    def decide_url(self, host: bytes, path: bytes, group: int, now_s: float | None) -> Decision:
        """Decide a clear-text HTTP request: the host first, then URL rules. `path` without query.

        A URL rule speaks of less than its host does, so among explicit rules it wins; among lists, allow does.
        """
        state = self.state_at(group, now_s)
        address = _address_of(host)
        decision = self.decide_address(address, group, now_s) if address else self.decide(host, group, now_s)
        if decision.verdict is Verdict.REWRITE:
            decision = ALLOWED  # the name has been rewritten by DNS already; the host itself may be reached
        if decision.reason in (Reason.NEVER_BLOCK, Reason.OVERRIDE):
            return decision
        if state.urls:
            found = self._explicit_url(host, path, state)
            if found is not None:
                return found
        if decision.reason in (Reason.RULE, Reason.BYPASS):
            return decision
        rank = _RANK_OF.get((decision.verdict, decision.reason), _NOTHING)
        best = rank
        for number, image in enumerate(self.images):
            suffix, whole = host, True
            for suffix in suffixes(host):
                for effect, pattern in image.find_urls(suffix):
                    if not effect.scope & (Scope.SELF if whole else Scope.BELOW):
                        continue
                    said = _rank(effect.kind, effect.slot, state.masks[number])
                    if said > best and matches(pattern, path):
                        best = said
                        decision = _said(said, image, effect.slot, Reason.URL)
                whole = False
        return decision

    def decide_address(self, address: bytes, group: int, now_s: float | None) -> Decision:
        """Decide an address by the rules' and the lists' ranges. Windows and defaults are not asked: see `decide`."""
        state = self._states[group]
        if now_s is None or not state.begin <= now_s < state.until:
            state = self._turn(group, now_s)
        if state.nets:
            bits, number = 8 * len(address), int.from_bytes(address, "big")
            best: tuple[int, Decision] | None = None
            for net_bits, first, last, level, decision in state.nets:
                if net_bits == bits and first <= number <= last and (best is None or level > best[0]):
                    best = level, decision
            if best is not None:
                return best[1]
        rank, decision = _SILENT
        for index, image in self._ranged:
            key = image.find_address(address)
            if key:
                outcome = state.outcomes[index].address.get(key)
                if outcome is None:
                    outcome = self._address_outcome(state, index, key)
                if outcome[0] > rank:
                    rank, decision = outcome
        return decision

    def valid_until(self, group: int, now_s: float | None) -> float:
        """Wall seconds up to which decisions for this group hold. Without a clock: for ever if nothing is timed."""
        if now_s is None:
            timed = bool(self._overrides) or any(rule.schedule for rule in self._rules[group])
            return 0.0 if timed else float(FOREVER)
        return self.state_at(group, now_s).until

    def treatment(self, group: int) -> Treatment:
        """How this group's blocked traffic is answered."""
        return self._treatments[group]

    # --- whose -------------------------------------------------------------------------------------------------

    def group_of(self, client: bytes, mac: bytes = b"") -> int:
        """Index of the client's group, by what `set_client` told and what the caller sees."""
        key = client + mac
        group = self._group_cache.get(key)
        if group is None:
            facts = self.clients.get(client, _NO_FACTS)
            group = self._matchers.find(client, mac or facts.mac, facts)
            if len(self._group_cache) >= MAX_CLIENTS:
                self._group_cache.clear()
            self._group_cache[key] = group
        return group

    def set_client(
        self, address: bytes, *, mac: bytes = b"", account: str = "", interface: str = "", ssid: str = ""
    ) -> None:
        """Tell what is known about an address; all of it, each time. Nothing known: `forget_client`."""
        facts = ClientFacts(mac, account, interface, ssid)
        if self.clients.get(address) == facts:
            return
        if len(self.clients) >= MAX_CLIENTS and address not in self.clients:
            self.clients.pop(next(iter(self.clients)))  # the one told first
        self.clients[address] = facts
        self._forget_groups_of(address)

    def forget_client(self, address: bytes) -> None:
        """The address is nobody's now."""
        if self.clients.pop(address, None) is not None:
            self._forget_groups_of(address)

    def _forget_groups_of(self, address: bytes) -> None:
        for key in [key for key in self._group_cache if key.startswith(address)]:
            del self._group_cache[key]

    def open_schedules(self, group: int, now_s: float | None) -> frozenset[str]:
        """Names of the group's schedules with an open window."""
        names = {rule.schedule for rule in self._rules[group] if rule.schedule}
        if now_s is None:
            return frozenset(names) if self.policy.unsynced == "strict" else frozenset()
        return open_schedules([self.policy.schedules[name] for name in names], self.zone, now_s)[0]

    def group_index(self, name: str) -> int | None:
        """The number of a group, None if there is none of this name."""
        return next((index for index, group in enumerate(self._groups) if group.name == name), None)

    # --- below the hot path ------------------------------------------------------------------------------------

    def state_at(self, group: int, now_s: float | None) -> _State:
        """What holds for a group at a moment: for `explain` and the decisions below the hot path."""
        state = self._states[group]
        if now_s is None or not state.begin <= now_s < state.until:
            return self._turn(group, now_s)
        return state

    def _weigh(self, name: bytes, state: _State) -> Decision:
        """The whole order, name by name: for the few names that somebody wrote down, and odd ones."""
        decision = self.weigh_pins(name, state)
        if decision is None:
            rank, decision = self.weigh_lists(name, state)
            if rank == _NOTHING or (rank == _LOG and state.default.verdict is Verdict.BLOCK):
                decision = state.default
        if decision.verdict is Verdict.ALLOW and name in state.safe:
            return state.safe[name]
        return decision

    def weigh_pins(self, name: bytes, state: _State) -> Decision | None:
        """What is written down here about a name or its parents: the highest level, then the most specific name."""
        best: Pin | None = None
        wanted = int(Scope.SELF)
        for suffix in suffixes(name):
            here = best
            for pin in state.explicit.get(suffix, ()):
                if not pin.scope & wanted:
                    continue
                if best is None or pin.level > best.level:
                    best = pin
                elif best is not here and pin.level == best.level and pin.decision.verdict is Verdict.ALLOW:
                    best = pin  # the same name twice: allow wins
            wanted = int(Scope.BELOW)
        return best.decision if best is not None else None

    def weigh_lists(self, name: bytes, state: _State) -> Outcome:
        """What the lists of all images say about a name or its parents."""
        best = _SILENT
        for index, image in enumerate(self.images):
            whole = True
            for suffix in suffixes(name):
                key = image.find(suffix)
                if key:
                    outcome = self._outcome(state, index, key, whole=whole)
                    if outcome[0] > best[0]:
                        best = outcome
                whole = False
        return best

    def _outcome(self, state: _State, index: int, key: bytes, *, whole: bool) -> Outcome:
        """What a combination says about a name itself (`whole`) or about what is below it."""
        held = state.outcomes[index].whole if whole else state.outcomes[index].below
        outcome = held.get(key)
        if outcome is None:
            outcome = self._judge(state, index, key, int(Scope.SELF if whole else Scope.BELOW), None)
            if len(held) >= MAX_OUTCOMES:
                held.clear()
            held[key] = outcome
        return outcome

    def _address_outcome(self, state: _State, index: int, key: bytes) -> Outcome:
        held = state.outcomes[index].address
        if len(held) >= MAX_OUTCOMES:
            held.clear()
        outcome = held[key] = self._judge(state, index, key, int(Scope.BOTH), Reason.ADDRESS)
        return outcome

    def _judge(self, state: _State, index: int, key: bytes, scope: int, block_reason: Reason | None) -> Outcome:
        image, masks = self.images[index], state.masks[index]
        best, winner = _NOTHING, 0
        for effect in image.effects(key):
            if effect.scope & scope:
                rank = _rank(effect.kind, effect.slot, masks)
                if rank > best:
                    best, winner = rank, effect.slot
        return (best, _said(best, image, winner, block_reason)) if best else _SILENT

    # --- time --------------------------------------------------------------------------------------------------

    def _turn(self, group: int, now_s: float | None) -> _State:
        """The state that holds now: a known one, or a new one."""
        rules = self._rules[group]
        if now_s is None:
            return self._build(group, None, ())
        schedules = {rule.schedule: self.policy.schedules[rule.schedule] for rule in rules if rule.schedule}
        opened, until = frozenset[str](), float(FOREVER)
        if schedules:
            opened, until = open_schedules(schedules.values(), self.zone, now_s)
        active = []
        for index, (override, _) in enumerate(self._overrides):
            if override.until_s > now_s and override.group in ("", self._groups[group].name):
                active.append(index)
                until = min(until, override.until_s)
        state = self._build(group, opened, tuple(active))
        state.begin, state.until = now_s, until
        self._states[group] = state
        return state

    def _build(self, group: int, opened: frozenset[str] | None, active: tuple[int, ...]) -> _State:
        key = (group, opened, active)
        state = self._built.get(key)
        if state is None:
            if len(self._built) >= MAX_STATES:
                self._built.clear()
            state = self._built[key] = self._new_state(group, opened, active)
        return state

    def _new_state(self, group: int, opened: frozenset[str] | None, active: tuple[int, ...]) -> _State:
        profile = self._profiles[group]
        state = _State()
        draft = _Draft(dict(self._base_pins(profile.bypass)))
        masks = [self._profile_masks(profile, index) for index in range(len(self.images))]
        if profile.default == "block":
            state.default = Decision(Verdict.BLOCK, Reason.DEFAULT, f"profile:{profile.name}")
        rules = [rule for rule in self._rules[group] if self._holds(rule, opened)]
        for action in (Action.BLOCK, Action.LOG, Action.ALLOW):  # later ones win, so allow does
            for rule in rules:
                if rule.action is action:
                    code = f"rule:{rule.name}"
                    for match in rule.matches:
                        self._apply(match, action, code, bool(rule.schedule), _RULE, masks, draft, state)
        for index in active:
            override, match = self._overrides[index]
            self._apply(match, Action(override.action), override.code, False, _OVERRIDE, masks, draft, state)
        state.explicit = draft.pins
        state.nets = sorted(draft.nets, key=lambda net: (net[2] - net[1], net[4].verdict))
        state.urls = draft.urls
        state.safe = self._safe_search(profile)
        for name in state.safe:
            state.explicit.setdefault(name, ())
        state.masks = tuple(masks)
        state.outcomes = self._shared.setdefault(state.masks, tuple(_Outcomes() for _ in self.images))
        if state.outcomes:
            state.whole, state.below = state.outcomes[0].whole, state.outcomes[0].below
            state.ceiling = _ceiling(self.images[0], state.masks[0])
        return state

    def _holds(self, rule: Rule, opened: frozenset[str] | None) -> bool:
        if not rule.schedule:
            return True
        if opened is not None:
            return rule.schedule in opened
        # No clock. Strict: whatever a window may close is closed, and what it may open is not.
        return self.policy.unsynced == "strict" and rule.action is Action.BLOCK

    def _apply(
        self,
        match: Match,
        action: Action,
        code: str,
        is_timed: bool,
        level: int,
        masks: list[Masks],
        draft: _Draft,
        state: _State,
    ) -> None:
        """Put one match of a rule or an override into the state that is being built."""
        decision = _explicit_decision(action, level, code)
        match match.what:
            case What.ALL:
                if action is Action.BLOCK:
                    reason = Reason.OVERRIDE if level == _OVERRIDE else Reason.WINDOW if is_timed else Reason.RULE
                    state.default = Decision(Verdict.BLOCK, reason, code)
                elif action is Action.ALLOW:
                    state.default = decision
                    masks[:] = [Masks(0, held.allow, 0) for held in masks]
                else:
                    masks[:] = [Masks(0, held.allow, held.log | held.block) for held in masks]
            case What.CATEGORY | What.LIST:
                for index, named in enumerate(self._slots_named(match.text)):
                    held = masks[index]
                    masks[index] = Masks(
                        held.block | named if action is Action.BLOCK else held.block & ~named,
                        held.allow,
                        held.log | named if action is Action.LOG else held.log & ~named,
                    )
            case What.DOMAIN | What.EXACT:
                pin = Pin(level, int(match.scope), decision)
                draft.pins[match.name] = (*draft.pins.get(match.name, ()), pin)
            case What.IP:
                assert match.network is not None
                first, prefix, bits = match.network
                last = first + (1 << (bits - prefix)) - 1
                draft.nets.append((bits, first, last, level, decision))
            case What.URL:
                url = decision._replace(reason=Reason.URL) if action is Action.BLOCK else decision
                draft.urls.setdefault(match.name, []).append((level, match.pattern, url))

    def _base_pins(self, bypass: bool) -> dict[bytes, tuple[Pin, ...]]:
        """What holds at every hour: the names that are never blocked, and the bypass signals."""
        found = self._pins.get(bypass)
        if found is None:
            never = Decision(Verdict.ALLOW, Reason.NEVER_BLOCK)
            found = {name: (Pin(_NEVER, int(Scope.BOTH), never),) for name in (*NEVER_BLOCK, *self.policy.never_block)}
            if bypass:
                doh = Decision(Verdict.BLOCK, Reason.BYPASS, "bypass:doh")
                for name in RESOLVERS:
                    found.setdefault(name, (Pin(_BYPASS, int(Scope.BOTH), doh),))
                for name, what in SIGNALS.items():
                    signal = Decision(Verdict.BLOCK, Reason.BYPASS, f"bypass:{what}")
                    found.setdefault(name, (Pin(_BYPASS, int(Scope.BOTH), signal),))
            test = Decision(Verdict.BLOCK, Reason.RULE, canary.RULE)
            found[canary.NAME] = (Pin(_NEVER, int(Scope.BOTH), test),)
            self._pins[bypass] = found
        return found

    def _safe_search(self, profile: Profile) -> dict[bytes, Decision]:
        found: dict[bytes, Decision] = {}
        own = {rewrite.name: rewrite for rewrite in self.policy.rewrites}
        for provider, strength in profile.safe_search:
            code = f"safesearch:{provider}"
            if provider in own:
                names, target = own[provider].names, own[provider].target
            elif provider in PROVIDERS:
                names, target = PROVIDERS[provider][strength]
            else:
                self.unknown.add(code)
                continue
            decision = Decision(Verdict.REWRITE, Reason.SAFE_SEARCH, code, target)
            found.update(dict.fromkeys(names, decision))
        return found

    # --- words to slots ----------------------------------------------------------------------------------------

    def _profile_masks(self, profile: Profile, index: int) -> Masks:
        slots = self.images[index].slots
        if self.policy.is_implicit:
            block = sum(1 << number for number, slot in enumerate(slots) if slot.action == "block")
        else:
            block = self._union(profile.block, index)
        # An allow list that no profile names is for everybody; one that some profile names is for those.
        reserved = {word for other in self.policy.profiles.values() for word in other.allow}
        common = sum(
            1 << number
            for number, slot in enumerate(slots)
            if slot.action == "allow" and not reserved.intersection((slot.name, slot.category))
        )
        log = self._union(profile.log, index)
        return Masks(block, common | self._union(profile.allow, index), log & ~block)

    def _union(self, words: Iterable[str], index: int) -> int:
        mask = 0
        for word in words:
            mask |= self._slots_named(word)[index]
        return mask

    def _slots_named(self, word: str) -> tuple[int, ...]:
        """A category, a list, or all categories of a tree: a mask for each image."""
        found = self._named.get(word)
        if found is None:
            found = self._named[word] = tuple(
                sum(
                    1 << number
                    for number, slot in enumerate(image.slots)
                    if word in (slot.category, slot.name) or slot.name.startswith(word + "/")
                )
                for image in self.images
            )
        return found

    def _check_words(self) -> None:
        """Find words that refer to nothing, at once and not when a bell rings."""
        for profile in self.policy.profiles.values():
            words = [*profile.block, *profile.log, *profile.allow]
            self.unknown.update(word for word in words if not any(self._slots_named(word)))
            self._safe_search(profile)
        for rule in self.policy.rules:
            words = [match.text for match in rule.matches if match.what in (What.CATEGORY, What.LIST)]
            self.unknown.update(word for word in words if not any(self._slots_named(word)))

    def _rules_of(self, group: Group) -> tuple[Rule, ...]:
        return tuple(
            rule
            for rule in self.policy.rules
            if not (rule.groups or rule.profiles) or group.name in rule.groups or group.profile in rule.profiles
        )

    def _explicit_url(self, host: bytes, path: bytes, state: _State) -> Decision | None:
        """The rules' own URLs: the highest level, then the longest pattern, then allow."""
        best: tuple[int, int, bool] | None = None
        decision = None
        for suffix in suffixes(host):
            for level, pattern, said in state.urls.get(suffix, ()):
                key = (level, len(suffix) + len(pattern), said.verdict is Verdict.ALLOW)
                if (best is None or key > best) and matches(pattern, path):
                    best, decision = key, said
        return decision


class _Draft:
    """The parts of a state while it is being built."""

    def __init__(self, pins: dict[bytes, tuple[Pin, ...]]) -> None:
        self.pins = pins
        self.nets: list[tuple[int, int, int, int, Decision]] = []
        self.urls: dict[bytes, list[tuple[int, bytes, Decision]]] = {}


class _Matchers:
    """Which group a client belongs to: the highest priority, then MAC, account, interface or SSID, address."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._macs: dict[bytes, tuple[int, int, int, int]] = {}
        self._accounts: dict[str, tuple[int, int, int, int]] = {}
        self._interfaces: dict[str, tuple[int, int, int, int]] = {}
        self._ssids: dict[str, tuple[int, int, int, int]] = {}
        self._networks: list[tuple[int, int, int, tuple[int, int, int, int]]] = []
        for number, group in enumerate(groups):

            def key(kind: int, length: int = 0, number: int = number, priority: int = group.priority):  # type: ignore[no-untyped-def]
                return (priority, kind, length, -number)  # of equals, the group written first

            for mac in group.macs:
                self._macs[mac] = max(key(_BY_MAC), self._macs.get(mac, _NOBODY))
            for account in group.accounts:
                self._accounts[account] = max(key(_BY_ACCOUNT), self._accounts.get(account, _NOBODY))
            for name in group.interfaces:
                self._interfaces[name] = max(key(_BY_NETWORK), self._interfaces.get(name, _NOBODY))
            for name in group.ssids:
                self._ssids[name] = max(key(_BY_NETWORK), self._ssids.get(name, _NOBODY))
            for first, prefix, bits in group.networks:
                self._networks.append((bits, first, first + (1 << (bits - prefix)) - 1, key(_BY_ADDRESS, prefix)))

    def find(self, client: bytes, mac: bytes, facts: ClientFacts) -> int:
        """The group's number; 0, the default, if nobody claims the client."""
        best = max(
            self._macs.get(mac, _NOBODY),
            self._accounts.get(facts.account, _NOBODY),
            self._interfaces.get(facts.interface, _NOBODY),
            self._ssids.get(facts.ssid, _NOBODY),
        )
        bits, number = 8 * len(client), int.from_bytes(client, "big")
        for net_bits, first, last, key in self._networks:
            if net_bits == bits and first <= number <= last and key > best:
                best = key
        return -best[3]


_NOBODY: Final = (-(1 << 30), 0, 0, 0)
_NO_FACTS: Final = ClientFacts()
_RANK_OF: Final = {
    (Verdict.ALLOW, Reason.IMPORTANT): _IMPORTANT_ALLOW,
    (Verdict.BLOCK, Reason.IMPORTANT): _IMPORTANT_BLOCK,
    (Verdict.ALLOW, Reason.ALLOW_LIST): _ALLOW,
    (Verdict.BLOCK, Reason.CATEGORY): _BLOCK,
    (Verdict.BLOCK, Reason.ADDRESS): _BLOCK,
    (Verdict.ALLOW, Reason.LOG_ONLY): _LOG,
}


def _rank(kind: Kind, slot: int, masks: Masks) -> int:
    """How much an entry counts under these masks."""
    is_blocked, is_allowed = masks.block >> slot & 1, masks.allow >> slot & 1
    if kind is Kind.BLOCK or kind is Kind.IMPORTANT_BLOCK:
        is_important = kind is Kind.IMPORTANT_BLOCK
        if is_allowed:  # a category of names that this profile wants allowed
            return _IMPORTANT_ALLOW if is_important else _ALLOW
        if is_blocked:
            return _IMPORTANT_BLOCK if is_important else _BLOCK
        return _LOG if masks.log >> slot & 1 else _NOTHING
    # Exceptions of a list that blocks hold for those it blocks; a list that allows, for those it is meant for.
    if not (is_blocked or is_allowed):
        return _NOTHING
    return _ALLOW if kind is Kind.ALLOW else _IMPORTANT_ALLOW if kind is Kind.IMPORTANT_ALLOW else _NOTHING


def _ceiling(image: Image, masks: Masks) -> int:
    if image.header.flags & Flag.IMPORTANT:
        return _IMPORTANT_ALLOW
    return _ALLOW if image.header.flags & Flag.ALLOWS or masks.allow else _BLOCK


def _said(rank: int, image: Image, slot: int, block_reason: Reason | None) -> Decision:
    code = f"list:{image.slots[slot].name}"
    if rank == _LOG:
        return Decision(Verdict.ALLOW, Reason.LOG_ONLY, code)
    if rank == _BLOCK:
        return Decision(Verdict.BLOCK, block_reason or Reason.CATEGORY, code)
    if rank == _IMPORTANT_BLOCK:
        return Decision(Verdict.BLOCK, block_reason or Reason.IMPORTANT, code)
    return Decision(Verdict.ALLOW, Reason.ALLOW_LIST if rank == _ALLOW else Reason.IMPORTANT, code)


def _explicit_decision(action: Action, level: int, code: str) -> Decision:
    reason = Reason.OVERRIDE if level == _OVERRIDE else Reason.RULE
    if action is Action.BLOCK:
        return Decision(Verdict.BLOCK, reason, code)
    return Decision(Verdict.ALLOW, Reason.LOG_ONLY if action is Action.LOG else reason, code)


def _address_of(host: bytes) -> bytes:
    """4 or 16 octets if a Host header holds an address instead of a name."""
    last = host.rpartition(b".")[2]
    if not (last.isdigit() or host.startswith(b"[") or b":" in host):
        return b""
    from policy.errors import ListError
    from policy.syntax import parse_network

    try:
        first, _, bits = parse_network(host.strip(b"[]"))
    except ListError:
        return b""
    return first.to_bytes(bits // 8, "big")
