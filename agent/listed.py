"""Networks that somebody's list, rule or exception blocks: what the firewall's sets hold.

A SYN to one of them comes up. Which client may go there, the hook decides; a network that stands here and is blocked
for nobody costs a look.
Rule: at most MAX_LISTED; more than that, and addresses beyond it are decided at the first data, as all were before.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Final

from nfq.firewall import Listed
from policy.image import NO_COMBO, V6_ROW, Image, Part
from policy.override import Override
from policy.rules import Action, Policy, What, parse_match

MAX_LISTED: Final = 65536
"""About 6 MB of the kernel's memory as a hash:net set."""


def networks(
    images: Iterable[Image], policy: Policy, overrides: Iterable[Override] = (), now_s: float = 0.0
) -> list[Listed]:
    """Every network that may be blocked for somebody."""
    found = dict.fromkeys(_all(images, policy))
    timed: dict[Listed, None] = {}
    for item in overrides:
        match = parse_match(item.match, item.code)
        if match.network is not None and item.action == Action.BLOCK.value and item.until_s > now_s:
            text, bits = _cidr(match.network)
            timed[Listed(text, bits, max(1, int(item.until_s - now_s)))] = None
    return [*timed, *found][:MAX_LISTED]


def _all(images: Iterable[Image], policy: Policy) -> Iterator[Listed]:
    for rule in policy.rules:
        if rule.action is Action.BLOCK:
            for match in rule.matches:
                if match.what is What.IP and match.network is not None:
                    yield Listed(*_cidr(match.network))
    for image in images:
        yield from _of_image(image)


def _of_image(image: Image) -> Iterator[Listed]:
    starts = memoryview(image.section(Part.V4_STARTS))
    combos = image.section(Part.V4_COMBOS)
    rows = [int.from_bytes(starts[at : at + 4], "little") for at in range(0, len(starts), 4)]
    ends = [*rows[1:], 1 << 32]
    for number, (first, end) in enumerate(zip(rows, ends, strict=False)):
        if combos[4 * number : 4 * number + 3] != NO_COMBO:
            yield from _split(first, end, 32)
    table = image.section(Part.V6)
    parts = [table[at : at + V6_ROW] for at in range(0, len(table), V6_ROW)]
    found = [(int.from_bytes(part[:16], "big"), part[16:]) for part in parts]
    last = [*(first for first, _ in found[1:]), 1 << 128]
    for (first, combo), end in zip(found, last, strict=False):
        if combo != NO_COMBO:
            yield from _split(first, end, 128)


def _split(first: int, end: int, bits: int) -> Iterator[Listed]:
    """A range as CIDR blocks."""
    while first < end:
        size = (first & -first).bit_length() - 1 if first else bits
        while 1 << size > end - first:
            size -= 1
        if size == bits:  # everything: two halves, for sets refuse a prefix of 0
            size -= 1
        yield Listed(*_cidr((first, bits - size, bits)))
        first += 1 << size


def _cidr(network: tuple[int, int, int]) -> tuple[str, int]:
    first, prefix, bits = network
    address = ipaddress.IPv4Address(first) if bits == 32 else ipaddress.IPv6Address(first)
    return f"{address}/{prefix}", bits
