"""Names of flows and what our DNS answered, compared; and the blind-spot meter: how many flows show no name, and why.

The agent does this, not the hooks: only here do look-ups and flows of one device come together, whose look-up went out
over IPv4 and whose connection over IPv6. What holds a device together is its MAC, or else its address.
An ECH extension is told from its GREASE by this: a GREASE hello shows the name that was looked up, a real one that of a
front (RFC 9849 6.2). A name that was not looked up proves no front: whoever goes around our DNS shows one, too, and
often at an address that he was given for something harmless.
Rule: bounded, two generations that push each other out; what is not known is `unknown`, never guessed; a name that was
seen is what is on record, and only a front's, which is no site of anybody's, gives way to a hint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from policy.event import MAX_ANSWERS, Agreement, Blind, Dns, Flow, Seen
from policy.verdict import Verdict

MAX_PAIRS: Final = 8192
"""Device and address, per generation: two of them take about 4 MB when full, the last hour of a hundred pupils."""
MAX_NAMES: Final = 4
"""Names kept per device and address: sites of one owner share addresses."""
SETTLED_MS: Final = 600_000
"""Before that much has been heard, a name that nobody asked for was asked for before we listened."""
FRONTS: Final = frozenset({"cloudflare-ech.com"})
"""Names that real ECH shows in place of a site's, and that are nothing else: `public_name` in the ECHConfigs of
Cloudflare, which serves nearly all sites that have ECH."""
_NO_NAMES: Final[tuple[str, ...]] = ()
_BLOCK: Final = int(Verdict.BLOCK)
"""An enum's member is slow to get at on Python 3.11, and this is asked for every look-up."""


class Visibility:
    """What each device was answered, and the meter."""

    def __init__(self) -> None:
        self._names: dict[bytes, tuple[str, ...]] = {}
        self._older_names: dict[bytes, tuple[str, ...]] = {}
        self._asked: set[int] = set()
        """Hashes of device and name, of those whose answers were all kept."""
        self._older_asked: set[int] = set()
        self._devices: set[bytes] = set()
        """Those in `_names`: who uses our DNS at all."""
        self._older_devices: set[bytes] = set()
        self._since_ms = -1
        self.flows = 0
        self.blind: dict[int, int] = {}
        self.agreement: dict[int, int] = {}

    def learn(self, device: bytes, dns: Dns) -> None:
        """This device was answered."""
        self.learn_all(device, (dns,), dns.at_ms)

    def learn_all(self, device: bytes, look_ups: Iterable[Dns], at_ms: int) -> None:
        """This device was answered all these, lately; `at_ms`: when."""
        for dns in look_ups:
            # By place: a named tuple's names cost twice as much, and this is asked of a third of all look-ups.
            name, verdict, answers = dns[2], dns[5], dns[9]
            if not answers or not name or verdict == _BLOCK:
                # A refusal's address is nobody's. Where the legal profile lets only refusals out of the DNS hook, they
                # say nothing of what else was asked for either.
                continue
            if self._since_ms < 0:
                self._since_ms = at_ms
            if len(self._names) >= MAX_PAIRS or len(self._asked) >= MAX_PAIRS:
                self._older_names, self._names = self._names, {}
                self._older_asked, self._asked = self._asked, set()
                self._older_devices, self._devices = self._devices, set()
            self._devices.add(device)
            names = self._names
            for answer in answers:
                key = device + answer
                known = names.get(key)
                if known is None:
                    names[key] = (name,)
                elif known[-1] != name:
                    names[key] = (*[old for old in known if old != name][1 - MAX_NAMES :], name)
            if len(answers) < MAX_ANSWERS:
                self._asked.add(hash((device, name)))

    def settle(self, device: bytes, flow: Flow, times: int = 1) -> Flow:
        """The flow with its agreement, its hint, and a sure word on ECH where there is one; and counted, `times` over
        if there were so many alike."""
        key = device + flow.dst
        names = self._names.get(key, _NO_NAMES) + self._older_names.get(key, _NO_NAMES)
        name, seen, blind, agreement = flow.name, flow.seen, flow.blind, Agreement.UNKNOWN
        if flow.name:
            agreement = self._compare(device, flow, names)
            if blind == Blind.ECH_UNSURE:
                if agreement == Agreement.AGREES:
                    blind = int(Blind.NOT_BLIND)
                elif flow.name in FRONTS:
                    blind = int(Blind.ECH)
                    if names:
                        name, seen = names[-1], int(Seen.DNS_HINT)
            self.agreement[agreement] = self.agreement.get(agreement, 0) + times
        elif names:
            name, seen = names[-1], int(Seen.DNS_HINT)
        self.flows += times
        if blind:
            self.blind[blind] = self.blind.get(blind, 0) + times
        if (agreement, blind) == (flow.agreement, flow.blind) and name is flow.name:
            return flow
        # What `_replace` would make, in a fourth of its time.
        return Flow._make((*flow[:7], name, seen, blind, *flow[10:15], int(agreement), *flow[16:]))

    def describe(self) -> Mapping[str, object]:
        """The meter, as status shows it: shares in per cent of all flows since the agent started."""
        whole = max(self.flows, 1)
        unseen = sum(count for cause, count in self.blind.items() if cause != Blind.ECH_UNSURE)
        causes = sorted(self.blind.items(), key=lambda item: -item[1])
        return {
            "flows": self.flows,
            "no_visible_name_percent": round(100 * unseen / whole, 1),
            **{f"{Blind(cause).name.lower()}_percent": round(100 * count / whole, 1) for cause, count in causes},
            **{Agreement(word).name.lower(): count for word, count in sorted(self.agreement.items())},
        }

    def _compare(self, device: bytes, flow: Flow, names: Sequence[str]) -> Agreement:
        if flow.name in names:
            return Agreement.AGREES
        asked = hash((device, flow.name))
        if names or asked in self._asked or asked in self._older_asked:
            # The address was given for other names, or the name with other addresses.
            return Agreement.MISMATCH
        is_settled = 0 <= self._since_ms < flow.at_ms - SETTLED_MS
        has_asked = device in self._devices or device in self._older_devices
        return Agreement.MISMATCH if is_settled and has_asked else Agreement.UNKNOWN
