"""A client on the LAN that the router makes itself: canary names through its real rules, queues and workers.

    with LanClient("br-lan", 4) as client:
        findings = client.run(trials(client, ...))

A virtual interface becomes a port of the LAN's bridge. What is sent into its other end comes in as a client's
frames do: through the port-53 redirect, to the queue, to the worker and back through the verdict's rules. A second pair
stands for the outside, so nothing depends on the uplink and nothing leaves the router: what arrives there got past us.
The flows have no handshake before them: conntrack picks up a connection in mid-way, and the verdict's reset is proof.
Rule: everything that was made is removed again, also what a run that was killed has left.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from hw.doctor import wires
from hw.doctor.finding import Finding, absent
from hw.doctor.netlink import Netlink
from hw.doctor.wires import Answer
from nfq.aes import find_aes
from nfq.packet import ACK, PSH, RST, SYN, TCP, UDP
from policy import canary

PORT, CLIENT, OUTSIDE, BEYOND = "gh-test0", "gh-test1", "gh-out0", "gh-out1"
MAC: Final = bytes.fromhex("026768746573")
SERVER_MAC: Final = bytes.fromhex("026768746574")
WAIT_S: Final = 2.4
"""For an answer, in three tries; a worker under load answers in tens of milliseconds."""
TRIES: Final = 3
FORWARDING_S: Final = 1.0
"""For a port of a bridge without spanning tree to forward."""
_ETH_P_ALL: Final = 3
_BR_FORWARDING: Final = "3"
NXDOMAIN, NOERROR = 3, 0
_OUR_EDE: Final = frozenset({15, 16, 17})


class CannotTryError(Exception):
    """There is no way to stand on this LAN; says why, and the mend."""

    def __init__(self, why: str, mend: str = "") -> None:
        super().__init__(why)
        self.why, self.mend = why, mend


class Trial(NamedTuple):
    """One thing that a client tries."""

    name: str
    protocol: int
    port: int
    """Ours, by which answers are told apart."""
    packet: bytes
    judge: Callable[[Answer | None, bool], Finding]
    """(what came back, whether it got to the outside) -> what that means."""


class LanClient:
    """A client of one bridge, for IPv4 (4) or IPv6 (6). Raises CannotTryError on entry."""

    def __init__(self, lan: str, version: int, root: str = "/") -> None:
        self.lan = lan
        self._root = root
        self.address = canary.CLIENT4 if version == 4 else canary.CLIENT6
        self.server = canary.SERVER4 if version == 4 else canary.SERVER6
        self._sockets: list[socket.socket] = []
        self._router_mac = b""

    def __enter__(self) -> LanClient:
        if not os.path.isdir(self._path("bridge")):
            raise CannotTryError(
                f"{self.lan} is no bridge, so no client can be put on it",
                "make it a bridge, or try from a client: nslookup canary.gatehouse.invalid",
            )
        try:
            self._build()
        except OSError as error:
            self._clear()
            if error.errno in (errno.EOPNOTSUPP, errno.ENODEV):
                raise CannotTryError("this kernel has no veth", "opkg install kmod-veth") from None
            if error.errno in (errno.EPERM, errno.EACCES):
                raise CannotTryError("no right to make interfaces", "run it as root") from None
            raise CannotTryError(f"no client on {self.lan}: {error.strerror}") from None
        except CannotTryError:
            self._clear()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def run(self, trials: list[Trial]) -> list[Finding]:
        """Send all, wait for all, and judge."""
        answers: dict[tuple[int, int], Answer] = {}
        gone: set[tuple[int, int]] = set()
        waiting = {(trial.protocol, trial.port): trial for trial in trials}
        begin = time.monotonic()
        for turn in range(TRIES):
            for key, trial in waiting.items():
                if key not in answers:
                    self._sockets[0].send(wires.frame(self._router_mac, MAC, trial.packet))
            self._listen(answers, gone, set(waiting), begin + WAIT_S * (turn + 1) / TRIES)
            if answers.keys() >= waiting.keys():
                break
        return [trial.judge(answers.get(key), key in gone) for key, trial in waiting.items()]

    def _listen(
        self,
        answers: dict[tuple[int, int], Answer],
        gone: set[tuple[int, int]],
        wanted: set[tuple[int, int]],
        until: float,
    ) -> None:
        inside, beyond = self._sockets
        while not answers.keys() >= wanted and (left := until - time.monotonic()) > 0:
            for end in select.select([inside, beyond], [], [], left)[0]:
                data, where = end.recvfrom(65535)
                if where[2] == socket.PACKET_OUTGOING:
                    continue
                found = wires.read_answer(data, self.address, outgoing=end is beyond)
                if found is None:
                    continue
                if end is inside:
                    answers.setdefault((found.protocol, found.port), found)
                elif not found.flags & RST:  # the reset that a blocked connection's server is sent
                    gone.add((found.protocol, found.port))

    def _build(self) -> None:
        self._clear()
        with open(self._path("address"), encoding="ascii") as file:
            self._router_mac = bytes.fromhex(file.read().strip().replace(":", ""))
        link = Netlink()
        try:
            link.add_pair(PORT, CLIENT)
            link.add_pair(OUTSIDE, BEYOND)
            for name in (PORT, CLIENT, BEYOND):
                _switch_off_ipv6(name)
            link.set_up(PORT, self.lan)
            for name in (CLIENT, OUTSIDE, BEYOND):
                link.set_up(name)
            link.add_host(self.address, self.lan, MAC)
            link.add_host(self.server, OUTSIDE, SERVER_MAC)
        finally:
            link.close()
        for name in (CLIENT, BEYOND):
            end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.htons(_ETH_P_ALL))
            self._sockets.append(end)
            end.bind((name, _ETH_P_ALL))
        self._wait_for_port()

    def _wait_for_port(self) -> None:
        deadline = time.monotonic() + FORWARDING_S
        while True:
            with open(f"/sys/class/net/{PORT}/brport/state", encoding="ascii") as file:
                if file.read().strip() == _BR_FORWARDING:
                    return
            if time.monotonic() > deadline:
                raise CannotTryError(f"{self.lan} does not forward at once (spanning tree)", "try from a client")
            time.sleep(0.02)

    def _clear(self) -> None:
        for end in self._sockets:
            end.close()
        self._sockets.clear()
        link = Netlink()
        try:
            for name in (PORT, OUTSIDE):
                link.remove(name)
            link.remove_host(self.address, self.lan)
        except OSError:  # an interface that is not there, or no right: then nothing was made either
            pass
        finally:
            link.close()

    def _path(self, name: str) -> str:
        return os.path.join("/sys/class/net", self.lan, name)


def trials(client: LanClient, nonce: str, *, has_dns: bool, has_queue: bool, has_page: bool) -> list[Trial]:
    """Everything that a client may try, each with a port of its own."""
    me, server = client.address, client.server
    suffix = "" if len(me) == 4 else "6"
    first = 20000 + int.from_bytes(os.urandom(2), "big") % 40000 // 8 * 8
    name = nonce.encode() + b"." + canary.NAME
    found = []
    if has_dns:
        found.append(
            Trial(
                f"dns{suffix}", UDP, first, wires.udp(me, server, first, 53, wires.dns_question(name, first)),
                lambda answer, is_gone: _judge_dns(f"dns{suffix}", answer, is_gone=is_gone),
            )
        )  # fmt: skip
        found.append(
            Trial(
                f"dns-tcp{suffix}", TCP, first + 1, wires.tcp(me, server, first + 1, 53, SYN, 1),
                lambda answer, is_gone: _judge_dns_tcp(f"dns-tcp{suffix}", answer, is_gone=is_gone),
            )
        )  # fmt: skip
    found.append(_stopped(f"dot{suffix}", client, first + 2, 853, SYN, b""))
    if has_queue:
        random = os.urandom(32)
        record = wires.tls_record(wires.hello(name, random))
        found.append(_stopped(f"sni{suffix}", client, first + 3, 443, PSH | ACK, record))
        request = b"GET / HTTP/1.1\r\nHost: " + name + b"\r\n\r\n"
        found.append(_stopped(f"http{suffix}", client, first + 4, 80, PSH | ACK, request, has_page=has_page))
        aes = find_aes()
        if aes is not None:
            datagram = wires.quic_initial(aes, name, os.urandom(8), random)
            found.append(
                Trial(
                    f"quic{suffix}", UDP, first + 5, wires.udp(me, server, first + 5, 443, datagram),
                    lambda answer, is_gone: _judge_stopped(f"quic{suffix}", answer, is_gone=is_gone),
                )
            )  # fmt: skip
    return found


def no_quic(version: int) -> Finding:
    """Where this machine cannot decrypt, so that its worker cannot either."""
    return Finding(
        "quic" if version == 4 else "quic6",
        False,
        "no AES here: names in QUIC cannot be read",
        "opkg install libopenssl3 (or python3-cryptography), then restart gatehouse",
    )


def cannot(error: CannotTryError, names: tuple[str, ...]) -> list[Finding]:
    """All of them, not tried."""
    return [absent(name, f"not tried: {error.why}", error.mend) for name in names]


def _stopped(
    name: str, client: LanClient, port: int, to: int, flags: int, payload: bytes, *, has_page: bool = False
) -> Trial:
    seq = int.from_bytes(os.urandom(3), "big") + 1
    packet = wires.tcp(client.address, client.server, port, to, flags, seq, payload)
    return Trial(
        name, TCP, port, packet,
        lambda answer, is_gone: _judge_stopped(name, answer, is_gone=is_gone, has_page=has_page),
    )  # fmt: skip


def _judge_dns(name: str, answer: Answer | None, *, is_gone: bool) -> Finding:
    if is_gone:
        return Finding(
            name, False, "a client's question to a foreign resolver left for the outside",
            "look for a rule before ours (nft list ruleset; iptables -t nat -S PREROUTING), then restart firewall",
        )  # fmt: skip
    if answer is None or answer.is_unreachable:
        return Finding(
            name, False, "a client's question to a foreign resolver is not answered by us",
            "see workers and rules above; is firewall.main.input of the LAN's zone ACCEPT?",
        )  # fmt: skip
    said = wires.read_dns(answer.payload)
    if said is None or said.rcode not in (NXDOMAIN, NOERROR) or (said.ede >= 0 and said.ede not in _OUR_EDE):
        code = "no DNS message" if said is None else f"rcode {said.rcode}, extended error {said.ede}"
        return Finding(
            name, False, f"the canary was answered by something else than our policy ({code})",
            "gatehouse reload; look into the log of dns/0",
        )  # fmt: skip
    return Finding(name, True, "a question to a foreign resolver is answered here, and the canary is blocked")


def _judge_dns_tcp(name: str, answer: Answer | None, *, is_gone: bool) -> Finding:
    if answer is not None and answer.flags & (SYN | ACK) == SYN | ACK:
        return Finding(name, True, "a connection to a foreign resolver ends here")
    what = "left for the outside" if is_gone else "is not taken by us"
    return Finding(
        name, False, f"a client's TCP connection to a foreign resolver {what}",
        "look for a rule before ours (nft list ruleset; iptables -t nat -S PREROUTING), then restart firewall",
    )  # fmt: skip


def _judge_stopped(name: str, answer: Answer | None, *, is_gone: bool, has_page: bool = False) -> Finding:
    """The canary must come back as a reset, a rejection, or a page."""
    if is_gone:
        mend = {
            "dot": "gatehouse restart: the rules that refuse port 853 do not hold",
        }.get(name.rstrip("6"), "see queues, rules, offload and workers; a rule before ours may let it by")
        return Finding(name, False, "a name that is blocked for everybody got through to the outside", mend)
    if answer is None:
        return Finding(
            name, False, "the canary was neither stopped nor let through within the time",
            "see queues and workers; is net.netfilter.nf_conntrack_tcp_loose 1?",
        )  # fmt: skip
    if answer.protocol == TCP and has_page and answer.payload.startswith(b"HTTP/1.1"):
        return Finding(name, True, "the canary is answered with the page that says why")
    if answer.flags & RST or answer.is_unreachable:
        return Finding(name, True, "the canary is stopped")
    return Finding(name, False, "the canary was answered from the outside", "see rules and policy")


def _switch_off_ipv6(name: str) -> None:
    """These ends are ours: no neighbour discovery of the kernel's on them."""
    try:
        with open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w", encoding="ascii") as file:
            file.write("1")
    except OSError:  # a kernel without IPv6
        pass
