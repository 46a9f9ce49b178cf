"""Records of flows that are alike, on their way to the agent: a template, and in columns what differs. Sans-I/O.

A page opens a dozen connections to a name, a class goes where the teacher says: packed once, they cost a tenth.
Rule: nothing is lost or blurred; each flow keeps its own time, client and source port.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Final, NamedTuple, TypeAlias

from policy.frame import Fold

Row: TypeAlias = tuple[bytes, bytes, int, int]
"""Template as `event_bytes` packs it, client and MAC in one, source port, milliseconds."""
MAX_ROWS: Final = 4096


class Passed(NamedTuple):
    """Connections that were let through, column by column, in order of time."""

    templates: list[bytes]
    clients: list[bytes]
    """Address and MAC in one."""
    ports: list[int]
    """Source ports."""
    times_ms: list[int]
    unsure: int
    """How many of them had an outer encrypted_client_hello."""


NONE_PASSED: Final = Passed([], [], [], [], 0)


def fold(rows: Sequence[Row]) -> Fold:
    """At least one row, in order of time."""
    return fold_columns(*zip(*rows, strict=True))


def fold_columns(
    templates: Sequence[bytes], clients: Sequence[bytes], ports: Sequence[int], times: Sequence[int]
) -> Fold:
    """The same, column by column."""
    template_at = {template: at for at, template in enumerate(dict.fromkeys(templates))}
    client_at = {client: at for at, client in enumerate(dict.fromkeys(clients))}
    return Fold(
        list(template_at),
        list(map(template_at.__getitem__, templates)),
        list(Counter(times).items()),  # in the order in which they first came
        list(client_at),
        list(map(client_at.__getitem__, clients)),
        ports,
    )


def merged(several: Sequence[Passed]) -> Passed:
    """All of them as one, in order of time."""
    if len(several) == 1:
        return several[0]
    return in_order(
        [*chain.from_iterable(each.templates for each in several)],
        [*chain.from_iterable(each.clients for each in several)],
        [*chain.from_iterable(each.ports for each in several)],
        [*chain.from_iterable(each.times_ms for each in several)],
        sum(each.unsure for each in several),
    )


def in_order(templates: list[bytes], clients: list[bytes], ports: list[int], times: list[int], unsure: int) -> Passed:
    """`Passed` of columns that may not be."""
    if sorted(times) == times:
        return Passed(templates, clients, ports, times, unsure)
    # Two processors write in the order in which they reserved, not in that of their clocks.
    order = sorted(range(len(times)), key=times.__getitem__)
    return Passed(
        [templates[at] for at in order],
        [clients[at] for at in order],
        [ports[at] for at in order],
        [times[at] for at in order],
        unsure,
    )
