"""The servers that we ask: which one next, how long to wait, what each has shown that it can do. No sockets.

Rule: order is preference, as the owner wrote it. A server that fails rests, each time longer, and is asked again only
when its rest is over or when all of them rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

FAILURES_TO_REST: Final = 3
"""In a row. One lost datagram says nothing."""
REST_S: Final = 2.0
REST_MAX_S: Final = 30.0
TIMEOUT_MIN_S: Final = 0.3
TIMEOUT_MAX_S: Final = 1.5
"""RFC 8767 5 answers a waiting client from stale data after 1.8 s: leave room for one try elsewhere before that."""
STREAM_TIMEOUT_S: Final = 3.0
CASE_FAILURES: Final = 3
"""Answers in other letter case than asked until 0x20 is given up for a server."""


class Where(NamedTuple):
    """One server's place."""

    host: str
    port: int
    tls_name: str = ""
    """Ask over TLS (RFC 7858) and expect a certificate for this name; empty: plain UDP and TCP."""
    is_local: bool = False
    """Asked about the venue's own names only."""


class Server:
    """One server, as it has behaved so far."""

    __slots__ = ("case_failures", "failures", "has_edns", "rest_s", "rest_until", "srtt_s", "where")

    def __init__(self, where: Where) -> None:
        self.where = where
        self.srtt_s = 0.1
        self.failures = 0
        self.rest_s = REST_S
        self.rest_until = 0.0
        self.case_failures = 0
        self.has_edns = True
        """False: it answered FORMERR or NOTIMP to EDNS and nothing to explain it (RFC 6891 7)."""

    @property
    def keeps_case(self) -> bool:
        return self.case_failures < CASE_FAILURES

    @property
    def timeout_s(self) -> float:
        return min(TIMEOUT_MAX_S, max(TIMEOUT_MIN_S, 4 * self.srtt_s))

    def is_resting(self, now: float) -> bool:
        return self.rest_until > now

    def answered(self, after_s: float) -> None:
        """It answered."""
        self.srtt_s += (after_s - self.srtt_s) / 8  # RFC 6298's gain
        self.failures = 0
        self.rest_s = REST_S
        self.rest_until = 0.0

    def failed(self, now: float) -> None:
        """It did not answer in time, or not at all."""
        self.failures += 1
        if self.failures >= FAILURES_TO_REST and not self.is_resting(now):
            self.rest_until = now + self.rest_s
            self.rest_s = min(REST_MAX_S, 2 * self.rest_s)


def choose(servers: Sequence[Server], among: Sequence[int], tried: Sequence[int], now: float) -> int:
    """Index of the server to ask: the first that does not rest and was tried least, else the one that rests least."""
    awake = [i for i in among if not servers[i].is_resting(now)]
    if not awake:
        return min(among, key=lambda i: (tried.count(i), servers[i].rest_until))
    return min(awake, key=tried.count)  # `min` keeps the order where counts are equal
