"""An order from the centre: for one device, numbered, signed. Pure.

payload = write_order(order, sign, key_number)                 # at the centre
order = open_order(payload, topics, keys, verify)              # here: signature first, then what it says
check_number(order, last_number)                               # MessageError for one that was given before
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from agent.uplink.signed import Sign, Verify, open_sealed, seal
from agent.uplink.wire import Topics, pack_map, unpack_map
from policy.errors import MessageError

KINDS: Final = ("status", "self-test", "policy", "config", "query", "reboot")


class Order(NamedTuple):
    """What is to be done."""

    venue: str
    device: str
    number: int
    """Greater than that of any order which the same key signed for this device before."""
    kind: str
    arguments: Mapping[str, Any] = {}
    by: str = ""
    """Who gives it, for the record."""
    expires_s: int = 0
    """Wall clock second after which it is not to be obeyed; 0: never."""
    key: bytes = b""
    """Number of the key that signed it."""


def write_order(order: Order, sign: Sign, key_number: bytes) -> bytes:
    """The message for topic `command`."""
    fields = order._asdict()
    del fields["key"]
    return seal(b"order", pack_map({"k": "order", **fields}), sign, key_number)


def open_order(payload: bytes, topics: Topics, keys: Mapping[bytes, bytes], verify: Verify) -> Order:
    """Verify, then read. Raises: MessageError."""
    octets, key = open_sealed(b"order", payload, keys, verify)
    fields = unpack_map(octets)
    order = Order(
        _text(fields, "venue"),
        _text(fields, "device"),
        _number(fields, "number"),
        _text(fields, "kind"),
        fields.get("arguments", {}),
        _text(fields, "by"),
        _number(fields, "expires_s"),
        key,
    )
    if fields.get("k") != "order" or not isinstance(order.arguments, dict):
        raise MessageError("order: expected an order and its arguments")
    if (order.venue, order.device) != topics:
        raise MessageError(f"order {order.number}: for {order.venue}/{order.device}, not for us")
    return order


def check_number(order: Order, last: int) -> None:
    """Raises: MessageError for an order whose number, or a later one's, has been seen."""
    if order.number <= last:
        raise MessageError(f"order {order.number}: given before: {last} was the last from this key")


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name, "")
    if type(value) is not str or len(value) > 200:
        raise MessageError(f"order: {name}: expected text of at most 200 characters, got {value!r:.40}")
    return value


def _number(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name, 0)
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise MessageError(f"order: {name}: expected a number from 0, got {value!r:.40}")
    return value
