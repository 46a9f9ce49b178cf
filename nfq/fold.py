"""Records of flows that are alike, on their way to the agent: a template, and in columns what differs. Sans-I/O.

A page opens a dozen connections to a name, a class goes where the teacher says: packed once, they cost a tenth.
Rule: nothing is lost or blurred; each flow keeps its own time, client and source port.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Final, TypeAlias, TypeVar

from policy.frame import Fold

Row: TypeAlias = tuple[bytes, bytes, int, int]
"""Template as `event_bytes` packs it, client and MAC in one, source port, milliseconds."""
MAX_ROWS: Final = 4096


def fold(rows: Sequence[Row]) -> Fold:
    """At least one row, in order of time."""
    return fold_columns(*zip(*rows, strict=True))


def fold_columns(
    templates: Sequence[bytes], clients: Sequence[bytes], ports: Sequence[int], times: Sequence[int]
) -> Fold:
    """The same, column by column."""
    template_at, client_at = places_of(templates), places_of(clients)
    return Fold(
        list(template_at),
        list(map(template_at.__getitem__, templates)),
        list(Counter(times).items()),  # in the order in which they first came
        list(client_at),
        list(map(client_at.__getitem__, clients)),
        ports,
    )


_Item = TypeVar("_Item", bound=Hashable)


def places_of(column: Sequence[_Item]) -> dict[_Item, int]:
    """What is in a column, each once, in the order in which it first came: where it is then."""
    return {item: at for at, item in enumerate(dict.fromkeys(column))}
