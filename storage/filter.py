"""What is asked of the ring: a filter over records. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from policy.event import Dns, Event, Flood, Flow, Nat, Registration, Session
from storage.batch import Columns, is_look_up, verdict_of

_NAMED: Final = (Dns, Flow)
_OF_A_CLIENT: Final = (Dns, Flow, Flood, Nat)


class Filter(NamedTuple):
    """All that is given must hold. None, or empty: does not matter."""

    since_ms: int = 0
    """Wall milliseconds, included."""
    until_ms: int = 1 << 62
    """Wall milliseconds, not included."""
    kind: type[Event] | None = None
    domain: str = ""
    """This name and everything below it."""
    client: bytes = b""
    mac: bytes = b""
    sessions: frozenset[str] | None = None
    """Of these sessions; those of an account or a phone are to be found out first (`of_sessions`)."""
    account: str = ""
    phone_index: bytes = b""
    """The keyed hash of a calling number."""
    verdict: int | None = None

    def matches(self, event: Event) -> bool:
        """Does the record match, its time left aside?"""
        if self.kind is not None and type(event) is not self.kind:
            return False
        if self.domain or self.verdict is not None:
            if not isinstance(event, _NAMED):
                return False
            if self.verdict is not None and event.verdict != self.verdict:
                return False
            if self.domain and event.name != self.domain and not event.name.endswith("." + self.domain):
                return False
        if self.client and not self._is_of_client(event):
            return False
        if self.mac and getattr(event, "mac", b"") != self.mac:
            return False
        is_anybody = self.sessions is None and not self.account and not self.phone_index
        return is_anybody or self._is_of_sessions(event)

    def is_of(self, client: bytes, mac: bytes, session: str) -> bool:
        """Does whose it is match?"""
        return (
            (not self.client or self.client == client)
            and (not self.mac or self.mac == mac)
            and (self.sessions is None or session in self.sessions)
        )

    def of_sessions(self, longest_ms: int) -> Filter:
        """What finds the sessions of the account or the phone that may have gone on in the time asked for."""
        return Filter(
            since_ms=max(0, self.since_ms - longest_ms),
            until_ms=self.until_ms,
            kind=Session,
            account=self.account,
            phone_index=self.phone_index,
        )

    def select(self, columns: Columns, from_ms: int = 0, to_ms: int = 1 << 62) -> Iterator[tuple[int, Event]]:
        """Places and records that match; looks at each name, client and shape once, however often it comes."""
        kind, verdict, below = self.kind, self.verdict, "." + self.domain
        return columns.select(
            lambda shape: (
                (kind is None or kind is (Dns if is_look_up(shape) else Flow))
                and (verdict is None or verdict == verdict_of(shape))
            ),
            lambda name: not self.domain or name == self.domain or name.endswith(below),
            lambda who: self.is_of(*who),
            self.matches,
            from_ms,
            to_ms,
        )

    def _is_of_client(self, event: Event) -> bool:
        if isinstance(event, Session):
            return self.client in event.addresses
        return isinstance(event, _OF_A_CLIENT) and event.client == self.client

    def _is_of_sessions(self, event: Event) -> bool:
        if isinstance(event, Session):
            return self._is_of_account(event.account, event.phone_index) or event.session in (self.sessions or ())
        if isinstance(event, Registration):
            return self._is_of_account(event.account, event.blind_index)
        return getattr(event, "session", "") in (self.sessions or ())

    def _is_of_account(self, account: str, phone_index: bytes) -> bool:
        if not self.account and not self.phone_index:
            return False
        return (not self.account or self.account == account) and (
            not self.phone_index or self.phone_index == phone_index
        )
