"""Names that never leave the venue, and who answers them instead (RFC 6761, 6303, 8375, 7686, 9462, 9476). Tables only.

Rule: a name that is answered here is answered the same whatever the upstreams say. What the owner calls a local domain
comes first, so a venue that has always used `.local` or `.test` can go on.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Final

from dns.wire import Type, parents, present, to_wire


class Fate(Enum):
    """What becomes of a name."""

    ORDINARY = 0
    LOCAL = 1
    """The venue's own server is asked; where there is none, NXDOMAIN."""
    LOOPBACK = 2
    NXDOMAIN = 3
    NODATA = 4


_ORDINARY, _LOCAL = Fate.ORDINARY, Fate.LOCAL
"""An enum's members are slow to get at on Python 3.11."""


def _reverse4(*prefixes: str) -> list[str]:
    return [".".join(reversed(prefix.split("."))) + ".in-addr.arpa" for prefix in prefixes]


def _reverse6(*prefixes: str) -> list[str]:
    return [".".join(reversed(prefix)) + ".ip6.arpa" for prefix in prefixes]


# RFC 6303 4 (private, loopback, link-local, documentation), RFC 7793 (shared address space).
_PRIVATE_REVERSE: Final = (
    _reverse4("0", "10", "127", "169.254", "192.168", "192.0.2", "198.51.100", "203.0.113", "255.255.255.255")
    + _reverse4(*(f"172.{n}" for n in range(16, 32)))
    + _reverse4(*(f"100.{n}" for n in range(64, 128)))
    + _reverse6("0" * 32, "0" * 31 + "1", "fc", "fd", "fe8", "fe9", "fea", "feb", "20010db8")
)
_FATES: Final = {
    "localhost": Fate.LOOPBACK,  # RFC 6761 6.3
    "invalid": Fate.NXDOMAIN,  # 6.4
    "test": Fate.NXDOMAIN,  # 6.2; `example` (6.5) is resolved like any other
    "onion": Fate.NXDOMAIN,  # RFC 7686 2
    "alt": Fate.NXDOMAIN,  # RFC 9476
    "local": Fate.NXDOMAIN,  # RFC 6762 22.1: multicast DNS; unicast only where the owner says so
    "home.arpa": Fate.LOCAL,  # RFC 8375 4
    "resolver.arpa": Fate.NODATA,  # RFC 9462 6.4: we offer no designated resolver, so discovery ends here
}

_NEEDS_DOT: Final = frozenset(map(int, (Type.A, Type.AAAA, Type.HTTPS, Type.SVCB)))
"""A host name of one label is the venue's; NS, DS or SOA of a top-level domain are not."""


class SpecialNames:
    """The table, with the owner's local domains in it. Names are lower-case wire form."""

    def __init__(self, local_domains: Iterable[str] = ()) -> None:
        self._fates = {to_wire(name): fate for name, fate in _FATES.items()}
        self._fates |= {to_wire(name): Fate.LOCAL for name in _PRIVATE_REVERSE}
        self._fates |= {to_wire(name): Fate.LOCAL for name in local_domains}
        self._tops = {present(parents(name)[-2]) for name in self._fates}

    def is_ordinary(self, text: bytes) -> bool:
        """Is it certain from the top-level domain alone that a name is resolved like any other?"""
        _, dot, top = text.rpartition(b".")
        return bool(dot) and top not in self._tops

    def fate_of(self, name: bytes, text: bytes, qtype: int) -> Fate:
        """What becomes of a question for this name; `text` is its presentation form."""
        _, dot, top = text.rpartition(b".")
        if top not in self._tops:
            # Nearly everything ends here, after one look at its top-level domain.
            return _LOCAL if not dot and top and qtype in _NEEDS_DOT else _ORDINARY
        for parent in parents(name):
            fate = self._fates.get(parent)
            if fate is not None:
                return fate
        return _ORDINARY
