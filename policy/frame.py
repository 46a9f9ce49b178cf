"""Frames between the hooks and the agent: one SEQPACKET datagram each, msgpack inside.

Holds the frame types, their encoding, and the check of everything that comes in: the hooks face the network with
fewer rights than the agent has, so the agent believes nothing that it has not looked at.
Does not hold what to send when: that is `policy.outbox`.

Upwards    HELLO  once per connection: who speaks. `incarnation` is new for each start of a process, so (incarnation,
                  stream, seq) names a frame for ever and a frame that is sent again can be told from a new one.
           EVENTS records, whole.
           FOLDED many look-ups that differ in time and client only (cached DNS answers): templates and columns. Blocked
                  ones have frames of their own, on the critical stream.
           FLOWS  the same for flows that were let through, which differ in time, client and source port.
           BEAT   alive, with counters.   BYE  an orderly end; without it the agent records a gap.
Downwards  ACK    all frames of this stream up to `seq` are on flash.
           RELOAD read configuration and policy again.   STOP  drain and end.
           CLIENT what is known of an address (MAC, account, interface, SSID), for groups.
           HINT   our DNS answered these addresses to this client for this name, for name agreement.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias, cast

import msgpack

from policy.errors import FrameError
from policy.event import MAX_ANSWERS, MAX_NAME, MAX_PATH, TAG_OF, TAGS, Dns, Event, Flow

VERSION: Final = 3
MAX_FRAME: Final = 128 << 10
"""Octets. net.core.wmem_default is 208 KiB on Linux, and a SEQPACKET message must fit in the send buffer whole."""
MAX_FRAME_EVENTS: Final = 4096
MAX_MS: Final = 1 << 48
"""8,900 years of milliseconds: a time beyond it is a bug, and would not fit the ring's columns."""


class Stream(IntEnum):
    """Two sequences, because they are acknowledged at different times: at once, and at the next flush."""

    ACCESS = 0
    CRITICAL = 1


class Kind(IntEnum):
    """The second item of every frame."""

    HELLO = 0
    EVENTS = 1
    FOLDED = 2
    BEAT = 3
    BYE = 4
    FLOWS = 5
    ACK = 16
    RELOAD = 17
    STOP = 18
    CLIENT = 19
    HINT = 20


class Hello(NamedTuple):
    role: str
    worker: int
    pid: int
    incarnation: bytes


class Events(NamedTuple):
    stream: int
    seq: int
    events: list[Event]


class Fold(NamedTuple):
    """Look-ups that differ in time and client only, or flows that differ in these and their source port, as a hook
    hands them over."""

    templates: Sequence[bytes]
    """Records without time and client, as `event_bytes` makes them: a name asked for all the time is packed once."""
    which: Sequence[int]
    """One per look-up: its template."""
    times: Sequence[tuple[int, int]]
    """(milliseconds, look-ups that came then), in the order of the columns."""
    clients: Sequence[bytes]
    """Each address once."""
    who: Sequence[int]
    """One per look-up: its client."""
    ports: Sequence[int] = ()
    """Of flows, one per flow: its source port. Templates are without it, `clients` are address and MAC in one."""


class FoldedFlows(NamedTuple):
    stream: int
    seq: int
    templates: list[Flow]
    """With `at_ms` and `sport` 0, an empty `client` and `mac`."""
    which: Sequence[int]
    """One per flow: its template."""
    at_ms: Sequence[int]
    clients: Sequence[tuple[bytes, bytes]]
    """Address, MAC (empty where the hook saw none)."""
    who: Sequence[int]
    """One per flow: its client."""
    ports: Sequence[int]
    """One per flow: its source port."""


class Folded(NamedTuple):
    stream: int
    seq: int
    templates: list[Dns]
    """With `at_ms` 0 and an empty `client`."""
    which: Sequence[int]
    """One per event: its template."""
    at_ms: Sequence[int]
    clients: tuple[bytes, ...]
    who: Sequence[int]
    """One per event: its client."""


class Beat(NamedTuple):
    counters: dict[str, int]


class Bye(NamedTuple):
    pass


class Ack(NamedTuple):
    stream: int
    seq: int


class Reload(NamedTuple):
    pass


class Stop(NamedTuple):
    pass


class Client(NamedTuple):
    """What the agent knows of one address; empty strings where it does not."""

    address: bytes
    mac: bytes
    account: str
    interface: str
    ssid: str


class Hint(NamedTuple):
    client: bytes
    name: str
    addresses: tuple[bytes, ...]
    until_ms: int


Up: TypeAlias = Hello | Events | Folded | FoldedFlows | Beat | Bye
Command: TypeAlias = Reload | Stop | Client | Hint
Down: TypeAlias = Ack | Command

_DOWN_KIND: Final[dict[type[Down], Kind]] = {
    Ack: Kind.ACK,
    Reload: Kind.RELOAD,
    Stop: Kind.STOP,
    Client: Kind.CLIENT,
    Hint: Kind.HINT,
}
_DOWN_TYPE: Final = {kind: down for down, kind in _DOWN_KIND.items()}


def _shape(kind: type[tuple[object, ...]]) -> tuple[type, ...]:
    """Exact types of a record's fields as msgpack gives them back."""
    plain: dict[str, type] = {"int": int, "str": str, "bytes": bytes, "bool": bool}
    return tuple(plain.get(text, tuple) for text in _annotations(kind))


def _annotations(kind: type) -> list[str]:
    # NamedTuple wraps the text of each annotation in a ForwardRef.
    return [str(text.__forward_arg__) for text in kind.__annotations__.values()]


_SHAPES: Final = {kind: _shape(kind) for kind in (*TAG_OF, Hello, Ack, Reload, Stop, Client, Hint)}
_INNER: Final[dict[str, type]] = {
    "tuple[bytes, ...]": bytes,
    "tuple[str, ...]": str,
    "tuple[tuple[str, int], ...]": tuple,
}
_PACKER: Final = msgpack.Packer()
"""One for all: `packb` makes a new one each time, with a buffer of a megabyte."""
_TUPLES: Final = {
    kind: [(at, _INNER[text]) for at, text in enumerate(_annotations(kind)) if text in _INNER] for kind in _SHAPES
}

_TAGGED: Final[dict[type, tuple[object, ...]]] = {kind: (tag,) for kind, tag in TAG_OF.items()}
_LOOK_UP_TAG: Final = TAG_OF[Dns]
_LOOK_UP_SHAPE: Final = (int, *_SHAPES[Dns])
_BYTES: Final = frozenset((bytes,))
_ADDRESS_LENGTHS: Final = frozenset((4, 16))


def event_bytes(event: Event) -> bytes:
    """One record as it stands in an EVENTS frame."""
    packed: bytes = _PACKER.pack(_TAGGED[type(event)] + event)
    return packed


def hello_frame(hello: Hello) -> bytes:
    return cast(bytes, msgpack.packb((VERSION, Kind.HELLO, *hello)))


def events_frame(stream: int, seq: int, packed: Sequence[bytes]) -> bytes:
    """A frame of records already packed by `event_bytes`."""
    return b"".join((_head(5, Kind.EVENTS, stream, seq), _array_head(len(packed)), *packed))


def folded_frame(stream: int, seq: int, fold: Fold) -> bytes:
    """A frame of folded look-ups or flows; at most MAX_FRAME_EVENTS of them."""
    base = min(at for at, _ in fold.times)
    columns = (
        _column("H", fold.which),
        base,
        _column("I", [at - base for at, _ in fold.times]),
        _column("H", [number for _, number in fold.times]),
        list(fold.clients),
        _column("H", fold.who),
    )
    kind = Kind.FOLDED
    if fold.ports:
        kind, columns = Kind.FLOWS, (*columns, _column("H", fold.ports))  # type: ignore[assignment]
    return cast(bytes, msgpack.packb((VERSION, kind, stream, seq, list(fold.templates), *columns)))


def flows_of(fold: Fold) -> list[Flow]:
    """Folded flows one by one: what `unfold` does for the other side."""
    stream, seq = int(Stream.ACCESS), 1
    frame = read_up(folded_frame(stream, seq, fold))
    assert isinstance(frame, FoldedFlows)
    return unfold(frame)


def unfold(frame: FoldedFlows) -> list[Flow]:
    """The flows of a frame one by one."""
    return [
        frame.templates[which]._replace(
            at_ms=at_ms, client=frame.clients[who][0], mac=frame.clients[who][1], sport=port
        )
        for which, at_ms, who, port in zip(frame.which, frame.at_ms, frame.who, frame.ports, strict=True)
    ]


def beat_frame(counters: dict[str, int]) -> bytes:
    return cast(bytes, msgpack.packb((VERSION, Kind.BEAT, counters)))


def bye_frame() -> bytes:
    return cast(bytes, msgpack.packb((VERSION, Kind.BYE)))


def down_frame(message: Down) -> bytes:
    return cast(bytes, msgpack.packb((VERSION, _DOWN_KIND[type(message)], *message)))


def read_up(data: bytes) -> Up:
    """Read a frame from a hook.

    Raises: FrameError, whatever the bytes are.
    """
    kind, body = _open(data)
    match kind:
        case Kind.EVENTS:
            stream, seq, rows = _expect(body, (int, int, tuple), "events")
            return Events(_stream(stream), _seq(seq), [_record(row) for row in rows])
        case Kind.FOLDED:
            return _read_folded(body)
        case Kind.FLOWS:
            return _read_flows(body)
        case Kind.HELLO:
            hello = Hello(*_expect(body, _SHAPES[Hello], "hello"))
            if len(hello.incarnation) != 8 or not 0 < len(hello.role) <= 16:
                raise FrameError(f"hello: expected a role and 8 octets of incarnation, got {hello!r:.120}")
            return hello
        case Kind.BEAT:
            (counters,) = _expect(body, (dict,), "beat")
            if not all(type(key) is str and type(value) is int for key, value in counters.items()):
                raise FrameError("beat: expected counters, str to int")
            return Beat(counters)
        case Kind.BYE:
            return Bye()
    raise FrameError(f"frame: kind {kind} does not go up")


def read_down(data: bytes) -> Down:
    """Read a frame from the agent.

    Raises: FrameError, whatever the bytes are.
    """
    kind, body = _open(data)
    message = _DOWN_TYPE.get(cast(Kind, kind))
    if message is None:
        raise FrameError(f"frame: kind {kind} does not come down")
    values = _expect(body, _SHAPES[message], message.__name__)
    _check_tuples(message, values)
    return message(*values)


def _open(data: bytes) -> tuple[int, tuple[object, ...]]:
    if len(data) > MAX_FRAME:
        raise FrameError(f"frame: {len(data)} octets, expected at most {MAX_FRAME}")
    try:
        # strict_map_key: a map with unhashable or odd keys would raise TypeError out of msgpack
        frame = msgpack.unpackb(data, use_list=False, strict_map_key=True)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise FrameError(f"frame: not msgpack: {error}") from None
    if type(frame) is not tuple or len(frame) < 2 or type(frame[1]) is not int:
        raise FrameError("frame: expected an array of version, kind and body")
    if frame[0] != VERSION:
        raise FrameError(f"frame: version {frame[0]!r:.20}, expected {VERSION}; two releases are running at once")
    return frame[1], frame[2:]


def _read_folded(body: tuple[object, ...]) -> Folded:
    columns = _read_columns(body)
    if not all(type(template) is Dns for template in columns.templates):
        raise FrameError("folded: expected look-ups")
    if any(len(client) not in (4, 16) for client in columns.clients):
        raise FrameError("folded: a client is not an address of 4 or 16 octets")
    return columns


def _read_flows(body: tuple[object, ...]) -> FoldedFlows:
    stream, seq, templates, which, at_ms, clients, who = _read_columns(body[:9])
    (port_bytes,) = _expect(body[9:], (bytes,), "flows")
    ports = _read_column("H", port_bytes)
    if len(ports) != len(which) or not all(
        isinstance(template, Flow) for template in cast("list[Dns | Flow]", templates)
    ):
        raise FrameError(f"flows: {len(ports)} source ports of {len(which)} flows, or no flows")
    if any(len(client) not in (4, 10, 16, 22) for client in clients):
        raise FrameError("flows: a client is not an address of 4 or 16 octets, or one and a MAC of 6")
    pairs = [(client[:-6], client[-6:]) if len(client) in (10, 22) else (client, b"") for client in clients]
    return FoldedFlows(stream, seq, cast("list[Flow]", templates), which, at_ms, pairs, who, ports)


def _read_columns(body: tuple[object, ...]) -> Folded:
    """What folded look-ups and flows have in common; kind of template and length of client are yet to be checked."""
    values = _expect(body, (int, int, tuple, bytes, int, bytes, bytes, tuple, bytes), "folded")
    stream, seq, packed, which_bytes, base, offset_bytes, number_bytes, clients, who_bytes = values
    if not _BYTES.issuperset(map(type, packed)):
        raise FrameError("folded: a template is not octets")
    templates = list(map(_known_template, packed))
    which, who = _read_column("H", which_bytes), _read_column("H", who_bytes)
    offsets, numbers = _read_column("I", offset_bytes), _read_column("H", number_bytes)
    count = len(which)
    if not count == sum(numbers) == len(who) or not 0 < count <= MAX_FRAME_EVENTS or len(offsets) != len(numbers):
        raise FrameError(f"folded: columns of {count}, {sum(numbers)} and {len(who)} events")
    if max(which) >= len(templates) or max(who) >= len(clients):
        raise FrameError("folded: an index points past its table")
    if any(type(client) is not bytes for client in clients):
        raise FrameError("folded: a client is not octets")
    if not 0 <= base < MAX_MS:
        raise FrameError(f"folded: base time {base} ms")
    at_ms: list[int] = []
    for offset, number in zip(offsets, numbers, strict=True):
        at_ms += [base + offset] * number
    return Folded(_stream(stream), _seq(seq), cast("list[Dns]", templates), which, at_ms, clients, who)


# The same names come again and again: to read and check a record costs 5 us, to find it here a twentieth. 600 octets
# each. What is wrong raises, and is not kept.
@lru_cache(maxsize=8192)
def _known_template(data: bytes) -> Dns | Flow:
    try:
        row = msgpack.unpackb(data, use_list=False, strict_map_key=True)
        record = _usual_look_up(row) or _record(row)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise FrameError(f"folded: a template is not msgpack: {error}") from None
    if not isinstance(record, Dns | Flow):
        raise FrameError("folded: expected look-ups or flows")
    return record


def _usual_look_up(row: object) -> Dns | None:
    """The template of a look-up in which nothing is wrong; None: `_record` says what, or reads it.

    It holds no rule of its own, a test compares the two: this one costs a third, and a mix of many names needs it for
    every third look-up.
    """
    if type(row) is not tuple or tuple(map(type, row)) != _LOOK_UP_SHAPE:
        return None
    tag, at_ms, client, name, qtype, rcode, verdict, reason, _, _, answers, _, latency_ms, mac, session = row
    if (
        tag == _LOOK_UP_TAG
        and not (at_ms or client or latency_ms or mac or session)
        and len(name) <= MAX_NAME
        and 0 <= qtype <= 65535
        and 0 <= rcode <= 4095
        and 0 <= verdict <= 15
        and 0 <= reason <= 255
        and len(answers) <= MAX_ANSWERS
        and _BYTES.issuperset(map(type, answers))
        and _ADDRESS_LENGTHS.issuperset(map(len, answers))
    ):
        return tuple.__new__(Dns, row[1:])
    return None


def read_event(row: object) -> Event:
    """One record, as a tuple of its tag and its fields, every field checked. Raises: FrameError."""
    return _record(row)


def _record(row: object) -> Event:
    if type(row) is not tuple or not row or (kind := TAGS.get(row[0])) is None:
        raise FrameError(f"record: unknown tag in {row!r:.60}")
    values = row[1:]
    if tuple(map(type, values)) != _SHAPES[kind]:
        raise FrameError(f"record: {kind.__name__}: wrong fields in {row!r:.120}")
    _check_tuples(kind, values)
    event = kind._make(values)
    if not 0 <= event.at_ms < MAX_MS:
        raise FrameError(f"record: {kind.__name__}: time {event.at_ms} ms")
    if isinstance(event, Dns | Flow):
        _check_access(event)
    return event


def _check_access(event: Dns | Flow) -> None:
    """What the ring packs into columns must fit them."""
    if len(event.name) > MAX_NAME or len(event.client) not in (0, 4, 16) or len(event.mac) not in (0, 6):
        raise FrameError(f"record: name, client or MAC of a wrong length in {event!r:.120}")
    if isinstance(event, Dns):
        ranges = ((event.qtype, 65535), (event.rcode, 4095), (event.verdict, 15), (event.reason, 255))
        fits = event.latency_ms >= 0 and all(len(answer) in (4, 16) for answer in event.answers)
        fits = fits and len(event.answers) <= MAX_ANSWERS
    else:
        ranges = ((event.sport, 65535), (event.dport, 65535), (event.protocol, 255), (event.verdict, 15))
        fits = len(event.dst) in (4, 16) and 0 <= event.reason < 256 and len(event.path) <= MAX_PATH
    if not fits or any(not 0 <= value <= high for value, high in ranges):
        raise FrameError(f"record: a field out of range in {event!r:.200}")


def _check_tuples(kind: type, values: tuple[object, ...]) -> None:
    for at, inner in _TUPLES[kind]:
        for item in cast("tuple[object, ...]", values[at]):
            if type(item) is not inner or (
                inner is tuple and tuple(map(type, cast(tuple[object], item))) != (str, int)
            ):
                raise FrameError(f"record: {kind.__name__}: wrong item {item!r:.60}")


# What comes in here has been unpacked from untyped msgpack: `Any` ends at this function, by the check on its types.
def _expect(body: tuple[object, ...], shape: tuple[type, ...], what: str) -> tuple:  # type: ignore[type-arg]
    if tuple(map(type, body)) != shape:
        raise FrameError(f"{what}: expected {len(shape)} fields, got {body!r:.120}")
    return body


def _stream(value: int) -> int:
    if value not in (0, 1):
        raise FrameError(f"frame: stream {value}, expected 0 or 1")
    return value


def _seq(value: int) -> int:
    if not 0 < value < 1 << 63:
        raise FrameError(f"frame: sequence number {value}")
    return value


def _array_head(count: int) -> bytes:
    return cast(bytes, _PACKER.pack_array_header(count))


def _head(count: int, kind: int, stream: int, seq: int) -> bytes:
    return _array_head(count) + bytes((VERSION, kind, stream)) + cast(bytes, msgpack.packb(seq))


def _column(code: str, values: Sequence[int]) -> bytes:
    column = array(code, values)
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


def _read_column(code: str, data: bytes) -> Sequence[int]:
    column = array(code)
    if len(data) % column.itemsize:
        raise FrameError("folded: a column is cut")
    column.frombytes(data)
    if sys.byteorder == "big":
        column.byteswap()
    return column.tolist()
