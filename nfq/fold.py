"""Records of flows that are alike, on their way to the agent: a template, and in columns what differs. Sans-I/O.

A page opens a dozen connections to a name, a class goes where the teacher says: packed once, they cost a tenth.
Rule: nothing is lost or blurred; each flow keeps its own time, client and source port.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Final, TypeAlias, TypeVar

from policy.frame import Fold

Row: TypeAlias = tuple[bytes, bytes, int, int]
"""Template as `event_bytes` packs it, client and MAC in one, source port, milliseconds."""
MAX_ROWS: Final = 4096


def fold(rows: Sequence[Row]) -> Fold:
    """At least one row, in order of time."""
    templates, clients, ports, times = zip(*rows, strict=True)
    return fold_columns(templates, clients, ports, times, bytes, bytes)


_Template = TypeVar("_Template", bound=Hashable)
_Client = TypeVar("_Client", bound=Hashable)


def fold_columns(
    templates: Sequence[_Template],
    clients: Sequence[_Client],
    ports: Sequence[int],
    times: Sequence[int],
    template_of: Callable[[_Template], bytes],
    client_of: Callable[[_Client], bytes],
) -> Fold:
    """The same, column by column. `template_of` and `client_of` are asked once for each item that there is."""
    template_at, client_at = _places_of(templates), _places_of(clients)
    return Fold(
        list(map(template_of, template_at)),
        list(map(template_at.__getitem__, templates)),
        list(Counter(times).items()),  # in the order in which they first came
        list(map(client_of, client_at)),
        list(map(client_at.__getitem__, clients)),
        ports,
    )


def _places_of(column: Sequence[_Template]) -> dict[_Template, int]:
    """What is in a column, each once, in the order in which it first came: where it is then."""
    return {item: at for at, item in enumerate(dict.fromkeys(column))}
