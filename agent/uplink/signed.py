"""Signed envelopes: who says something, and that nobody changed it. Pure.

    payload = seal(b"order", octets, sign=..., key_number)
    octets, key_number = open_sealed(b"order", payload, keys, verify)

`what` is part of what is signed, so that a heartbeat can never be shown as an order.
Rule: not one octet of what is inside is looked at before the signature holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from agent.uplink.wire import MAX_MESSAGE, pack_map, unpack_map
from policy.errors import MessageError

_CONTEXT: Final = b"gatehouse uplink 1\0"
KEY_NUMBER_SIZE: Final = 8

Sign = Callable[[bytes], bytes]
Verify = Callable[[bytes, bytes, bytes], bool]
"""public key, message, signature -> does it hold (policy.signature.verify)."""


def seal(what: bytes, octets: bytes, sign: Sign, key_number: bytes) -> bytes:
    """An envelope."""
    return pack_map(
        {"k": "signed", "data": octets, "key": key_number, "signature": sign(_CONTEXT + what + b"\0" + octets)}
    )


def open_sealed(what: bytes, payload: bytes, keys: Mapping[bytes, bytes], verify: Verify) -> tuple[bytes, bytes]:
    """What is inside, and which key of `keys` (number -> public key) signed it. Raises: MessageError."""
    data, number, signature = split(payload)
    public = keys.get(number)
    if public is None:
        raise MessageError(f"signed by key {number.hex()}, which is not trusted here")
    if not verify(public, _CONTEXT + what + b"\0" + data, signature):
        raise MessageError(f"the signature by key {number.hex()} does not hold")
    return data, number


def split(payload: bytes) -> tuple[bytes, bytes, bytes]:
    """Octets, key number and signature, nothing of it checked yet. Raises: MessageError."""
    fields = unpack_map(payload, MAX_MESSAGE)
    data, number, signature = (fields.get(name) for name in ("data", "key", "signature"))
    if fields.get("k") != "signed" or not (type(data) is type(number) is type(signature) is bytes):
        raise MessageError("expected something signed: data, key and signature")
    assert isinstance(data, bytes)
    assert isinstance(number, bytes)
    assert isinstance(signature, bytes)
    if len(number) != KEY_NUMBER_SIZE or len(signature) != 64:
        raise MessageError("expected a key number of 8 and a signature of 64 octets")
    return data, number, signature
