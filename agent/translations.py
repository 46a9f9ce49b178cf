"""Evidence of address translation: which client had which outside port, and when.

Blocks (pure), events (a parser and a thin socket). `blocks`: each address of the venue's networks has ports of its
own, computed, not allotted (RFC 7422), so one record per session answers for all its flows. `events`: conntrack tells
each new flow; a record each, for networks too large for blocks. Read over nfnetlink in 60 lines instead of with
pyroute2, which costs 13 to 25 MB for the agent's whole life.
Rule: what cannot be told apart is not told: clients beyond the networks share ports of their own.
Sources: linux/netfilter/nfnetlink_conntrack.h, RFC 7422, RFC 6888 REQ-12.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from nfq.rules import NatBlock
from policy.config import NfqConfig
from policy.errors import ConfigError
from policy.event import Nat

FIRST_PORT: Final = 2048
"""1024 to 2047 are for clients without a block, below are the router's own services."""
LAST_PORT: Final = 65535
LEAST: Final = 32
"""Ports of a client: fewer, and one page of a browser fills them."""
MAX_EVENTS: Final = 4096
"""Taken in per look, once a second; more wait in the socket's buffer."""
_NLMSG: Final = struct.Struct("=IHHII")
_ATTR: Final = struct.Struct("=HH")
_NEW: Final = 0x100  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW
_GROUP_NEW: Final = 1  # NFNLGRP_CONNTRACK_NEW, as a bit
_RECEIVE_BUFFER: Final = 4 << 20


def blocks_of(networks: Iterable[str]) -> tuple[NatBlock, ...]:
    """Each address's ports. Raises: ConfigError."""
    nets = []
    for index, text in enumerate(networks):
        try:
            nets.append(ipaddress.IPv4Network(text))
        except ValueError:
            raise ConfigError(f"gatehouse.nfq.nat_network[{index}]: expected an IPv4 network, got {text!r}") from None
    count = sum(net.num_addresses for net in nets)
    if not count:
        raise ConfigError("gatehouse.nfq.nat_network: expected the venue's networks, for nat 'blocks' counts by them")
    ports = (LAST_PORT + 1 - FIRST_PORT) // count
    if ports < LEAST:
        raise ConfigError(
            f"gatehouse.nfq.nat_network: {count} addresses leave {ports} ports for each, expected {LEAST} or more; "
            "name smaller networks, or set nat to 'events'"
        )
    hosts = (str(address) for net in nets for address in net)
    return tuple(
        NatBlock(host, FIRST_PORT + number * ports, FIRST_PORT + (number + 1) * ports - 1)
        for number, host in enumerate(hosts)
    )


class Blocks:
    """Records of who had which block: one when an address comes into use, or another device or session has it."""

    def __init__(self, nfq: NfqConfig) -> None:
        self.blocks: tuple[NatBlock, ...] = blocks_of(nfq.nat_network) if nfq.nat == "blocks" else ()
        self._of = {socket.inet_aton(block.client): block for block in self.blocks}
        self._open: dict[bytes, tuple[object, Nat]] = {}

    def changed(self, client: bytes, who: object, outside: bytes, now_ms: int) -> Iterator[Nat]:
        """This address is `who`'s now. Nothing new: nothing to record."""
        block = self._of.get(client)
        if block is None or not outside:
            return
        before = self._open.get(client)
        if before is not None:
            if before[0] == who and before[1].outside == outside:
                return
            yield before[1]._replace(at_ms=now_ms, until_ms=now_ms)
        record = Nat(now_ms, client, outside, block.first, block.last, 0, 0)
        self._open[client] = (who, record)
        yield record


class Translation(NamedTuple):
    """One new flow that was translated."""

    client: bytes
    outside: bytes
    port: int
    """Of the outside address."""
    protocol: int


def parse(data: bytes) -> list[Translation]:
    """One datagram of conntrack events."""
    found: list[Translation] = []
    at = 0
    while at + 20 <= len(data):
        length, kind, _, _, _ = _NLMSG.unpack_from(data, at)
        if length < 20 or at + length > len(data):
            break
        if kind == _NEW:
            tuples = dict(_attributes(data, at + 20, at + length))
            original, reply = _tuple(tuples.get(1, b"")), _tuple(tuples.get(2, b""))
            if original is not None and reply is not None and original[0] != reply[1]:
                found.append(Translation(original[0], reply[1], reply[3], reply[4]))
        at += (length + 3) & ~3
    return found


def _tuple(data: bytes) -> tuple[bytes, bytes, int, int, int] | None:
    """CTA_TUPLE_*: source, destination, their ports, protocol; None: not IPv4 TCP or UDP."""
    parts = dict(_attributes(data, 0, len(data)))
    addresses = dict(_attributes(parts.get(1, b""), 0, len(parts.get(1, b""))))  # CTA_TUPLE_IP
    ports = dict(_attributes(parts.get(2, b""), 0, len(parts.get(2, b""))))  # CTA_TUPLE_PROTO
    src, dst = addresses.get(1, b""), addresses.get(2, b"")
    if len(src) != 4 or len(dst) != 4 or ports.get(1) not in (b"\6", b"\x11"):
        return None
    sport, dport = ports.get(2, b""), ports.get(3, b"")
    return src, dst, int.from_bytes(sport, "big"), int.from_bytes(dport, "big"), ports[1][0]


def _attributes(data: bytes, at: int, end: int) -> Iterator[tuple[int, bytes]]:
    while at + 4 <= end:
        length, kind = _ATTR.unpack_from(data, at)
        if length < 4 or at + length > end:
            return
        yield kind & 0x3FFF, data[at + 4 : at + length]  # without NLA_F_NESTED and the like
        at += (length + 3) & ~3


class Events:
    """The socket on which conntrack tells new flows. Raises: OSError where the kernel does not."""

    def __init__(self) -> None:
        self._link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 12)
        self._link.setsockopt(socket.SOL_SOCKET, 33, _RECEIVE_BUFFER)  # SO_RCVBUFFORCE
        self._link.bind((0, _GROUP_NEW))
        self.lost = 0
        """Times that the kernel had more to tell than the buffer held."""

    def read(self) -> list[Translation]:
        """What was told since the last time."""
        found: list[Translation] = []
        while len(found) < MAX_EVENTS:
            try:
                found += parse(self._link.recv(65536))
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS; what is in the buffer waits for the next look
                self.lost += 1
                break
        return found


def outside_address() -> bytes:
    """The address that packets to the internet leave with; empty: there is no way out now. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        try:
            link.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737): only the route is looked up
            return socket.inet_aton(link.getsockname()[0])
        except OSError:
            return b""
