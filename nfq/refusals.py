"""What a device without a login tried, for the record. No sockets; the rules have refused the packet already."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from nfq.packet import TCP, parse
from policy.errors import PacketError
from policy.event import Blind, Flow, Seen
from policy.verdict import Reason, Verdict

if TYPE_CHECKING:
    from nfq.hook import Now

AGAIN_S: Final = 60.0
"""One record a device and destination within so long: a phone without a login tries the same servers for hours."""
MAX_TOLD: Final = 4096
UDP: Final = 17
RULE: Final = "legal:identity"


class Refusals:
    """What devices without a login tried: one record for each destination, with no name, for nobody looks inside."""

    def __init__(self, put: Callable[[Flow], None], group_of: Callable[[bytes, bytes], str]) -> None:
        """`group_of`: the group's name of an address and MAC."""
        self._put, self._group_of = put, group_of
        self._told: dict[tuple[bytes, bytes, int], float] = {}
        self.refused = 0
        """Packets."""

    def receive(self, data: bytes, mac: bytes, now: Now) -> int:
        """One refused packet. Returns the mark to give it: none, for it has one."""
        self.refused += 1
        try:
            packet = parse(data)
        except PacketError:
            return 0
        which = (mac or packet.src, packet.dst, packet.dport)
        if now.monotonic_s < self._told.get(which, 0.0):
            return 0
        if len(self._told) >= MAX_TOLD:
            self._told.clear()
        self._told[which] = now.monotonic_s + AGAIN_S
        protocol = TCP if packet.protocol == TCP else UDP
        self._put(
            Flow(
                now.boottime_ms, packet.src, mac, packet.sport, packet.dst, packet.dport, protocol, "",
                int(Seen.NONE), int(Blind.NOT_BLIND), "", int(Verdict.BLOCK), int(Reason.IDENTITY), RULE,
                self._group_of(packet.src, mac),
            )
        )  # fmt: skip
        return 0
