"""A centre in the lab's internet: a real broker and receiver there, and an ear that hears every message between.

`Lab.running(..., centre=True, extra=UPLINK)`; then `heard` gives what travelled, as it travelled and unpacked.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path

import msgpack

from agent.uplink import wire
from agent.uplink.signed import split
from policy.errors import MessageError

ADDRESS, PORT = "198.51.100.1", 1883
EAR = "heard"
"""In the lab's directory: what the ear heard."""
UPLINK = f"""
config uplink 'uplink'
\toption enabled '1'
\tlist server '{ADDRESS}#{PORT}'
\toption tls '0'
\toption stagger '0s'
\toption live '1s'
\toption heartbeat '2s'
"""
MOSQUITTO = f"""\
user root
persistence false
allow_anonymous true
max_queued_messages 20000
listener {PORT} {ADDRESS}
"""


def payloads(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Topic and payload of each message so far; the last one may be half written."""
    unpacker = msgpack.Unpacker(max_buffer_size=1 << 28)
    unpacker.feed((directory / EAR).read_bytes())
    yield from unpacker


def heard(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Where, and octets: each payload as it travelled, what is signed in it, and every batch inflated."""
    parts: dict[bytes, dict[int, bytes]] = {}
    pieces: dict[int, dict[int, bytes]] = {}
    for number, (topic, payload) in enumerate(payloads(directory)):
        where = f"message {number} on {topic}"
        yield where, payload
        try:
            yield f"{where}, signed", split(payload)[0]
            continue
        except MessageError:
            pass
        try:
            message = wire.read(payload)
        except MessageError:  # an order, a state: no records in it
            continue
        match message:
            case wire.Batches():
                yield from _inflated(where, message)
            case wire.Part():
                whole = parts.setdefault(message.whole, {})
                whole[message.offset] = message.data
                if sum(map(len, whole.values())) == message.size:
                    joined = wire.read(b"".join(whole[at] for at in sorted(whole)))
                    assert isinstance(joined, wire.Batches)
                    yield from _inflated(where, joined)
            case wire.Piece():
                pieces.setdefault(message.segment, {})[message.offset] = message.data
    assert not pieces, "no segment was sealed, or the search must learn to open it"


def _inflated(where: str, message: wire.Batches) -> Iterator[tuple[str, bytes]]:
    for row in message.rows:
        yield where, zlib.decompress(row.data)
