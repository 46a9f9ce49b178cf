"""The server name in QUIC Initials, versions 1 and 2: any order, several datagrams, coalesced, after Retry. Sans-I/O.

One `Initials` per flow takes the client's datagrams and puts the ClientHello together from CRYPTO frames. What the
server says is not seen here, so its Retry (new keys) and its version negotiation (a new hello) show only in what the
client does next: another destination connection id, another version.
Rule: any bytes give a `Hello`, an `Outcome`, and raise nothing; each attempt to decrypt is paid for from a `Budget`.
Sources: RFC 9000 12.2, 16, 17.2 and 19; RFC 9001 5; RFC 9369 3; RFC 8999 (what holds for all versions).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from nfq import tls
from nfq.aes import TAG, Aes
from nfq.flow import MAX_OCTETS, Stream

MAX_ATTEMPTS: Final = 12
"""Packets of one flow that are decrypted, or tried to be; a post-quantum hello needs 2 or 3."""
MAX_KEYS: Final = 3
"""Sets of keys per flow: the first, after version negotiation, after Retry."""
MAX_COALESCED: Final = 16
"""QUIC packets looked at in one datagram; with segmentation offload several datagrams come up as one."""
MAX_CID: Final = 20
MAX_FRAMES: Final = 1024
"""Frames read in one packet. Chrome's chaos protection makes about 30; a packet has 1,200 octets."""


class Outcome(IntEnum):
    """What a datagram came to, if not to a hello."""

    NEED_MORE = 0
    NOT_QUIC = 1
    OTHER_VERSION = 2
    """A long header of a version that is not read here; version negotiation may follow."""
    OVERLOAD = 3
    """The budget, or this flow's share of it, is spent."""
    NO_CRYPTO = 4
    AMBIGUOUS = 5
    """CRYPTO frames disagree about the same octets."""


_OF_HANDSHAKE: Final[dict[int | None, Outcome]] = {
    tls.NEED_MORE: Outcome.NEED_MORE,
    tls.TOO_LONG: Outcome.OVERLOAD,
}


class _Version(NamedTuple):
    salt: bytes
    key: bytes
    iv: bytes
    hp: bytes
    initial: int
    """The two type bits of an Initial, in place."""
    retry: int


def _label(text: bytes, length: int) -> bytes:
    """HkdfLabel of RFC 8446 7.1 with an empty context, and HKDF-Expand's counter: all of these fit in one block."""
    label = b"tls13 " + text
    return length.to_bytes(2, "big") + bytes((len(label),)) + label + b"\0\1"


_CLIENT_IN: Final = _label(b"client in", 32)
_V1: Final = _Version(
    bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"),
    _label(b"quic key", 16), _label(b"quic iv", 12), _label(b"quic hp", 16), 0x00, 0x30,
)  # fmt: skip
_V2: Final = _Version(
    bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"),
    _label(b"quicv2 key", 16), _label(b"quicv2 iv", 12), _label(b"quicv2 hp", 16), 0x10, 0x00,
)  # fmt: skip
VERSIONS: Final = {b"\0\0\0\1": _V1, b"\x6b\x33\x43\xcf": _V2}


class Keys(NamedTuple):
    """A client's Initial keys: RFC 9001 5.2."""

    key: bytes
    iv: int
    hp: bytes


def derive_keys(aes: Aes, version: bytes, cid: bytes) -> Keys:
    """The keys that follow from a version in `VERSIONS` and the client's first destination connection id."""
    of = VERSIONS[version]
    hmac = aes.hmac
    client = hmac(hmac(of.salt, cid), _CLIENT_IN)
    return Keys(hmac(client, of.key)[:16], int.from_bytes(hmac(client, of.iv)[:12], "big"), hmac(client, of.hp)[:16])


class Budget:
    """Decryptions per second, all flows together, and at most a quarter of them for one client.

    A spoofed or hostile stream of Initials costs 70 us each here and ten times that on a router: without a bound it is
    a way to make the hook blind for everybody else.
    """

    def __init__(self, per_s: int) -> None:
        self.per_s = per_s
        self._second = -1
        self._left = 0
        self._spent: dict[bytes, int] = {}

    def spend(self, client: bytes, now_s: float) -> bool:
        """Pay for one attempt. False: there is none left in this second."""
        second = int(now_s)
        if second != self._second:
            self._second, self._left = second, self.per_s
            self._spent.clear()
        spent = self._spent.get(client, 0)
        if self._left <= 0 or spent > self.per_s // 4:
            return False
        self._left -= 1
        self._spent[client] = spent + 1
        return True


class Initials:
    """The client's first flight in one flow."""

    __slots__ = ("_aes", "_attempts", "_keys", "_stream", "_stream_of")

    def __init__(self, aes: Aes | None) -> None:
        self._aes = aes
        self._keys: dict[tuple[bytes, bytes], Keys] = {}
        self._stream = Stream(0)
        self._stream_of: tuple[bytes, bytes] | None = None
        self._attempts = 0

    @property
    def stream(self) -> Stream:
        """What CRYPTO frames have brought under the keys of now."""
        return self._stream

    @property
    def size(self) -> int:
        """Octets held."""
        return self._stream.size

    def receive(self, data: bytes, client: bytes, budget: Budget, now_s: float) -> tls.Hello | Outcome:
        """Take one datagram (or several, as segmentation offload joins them)."""
        outcome = Outcome.NOT_QUIC
        at = 0
        for _ in range(MAX_COALESCED):
            # Zeros behind a packet pad the datagram; with offload the next datagram follows them.
            while at < len(data) and not data[at]:
                at += 1
            head = _read_head(data, at)
            if isinstance(head, Outcome):
                return outcome if outcome is not Outcome.NOT_QUIC else head
            outcome = Outcome.NEED_MORE
            if head.is_initial:
                if self._aes is None:
                    return Outcome.NO_CRYPTO
                found = self._take(data[at : head.end], head, client, budget, now_s)
                if found is not Outcome.NEED_MORE:
                    return found
            at = head.end
            if at >= len(data):
                break
        return outcome

    def _take(self, packet: bytes, head: _Head, client: bytes, budget: Budget, now_s: float) -> tls.Hello | Outcome:
        for of in self._candidates(head):
            if self._attempts >= MAX_ATTEMPTS or not budget.spend(client, now_s):
                return Outcome.OVERLOAD
            self._attempts += 1
            plain = self._open(packet, head, of)
            if plain is None:
                continue
            if self._stream_of != of:
                # Keys changed: after Retry the hello begins again, after version negotiation another one does.
                self._stream, self._stream_of = Stream(0), of
            _add_frames(self._stream, plain)
            data = self._stream.data()  # which notices contradictions
            if self._stream.ambiguous:
                return Outcome.AMBIGUOUS
            hello = tls.parse_handshake(data)
            if isinstance(hello, tls.Hello):
                return hello
            return _OF_HANDSHAKE.get(hello, Outcome.NOT_QUIC)
        return Outcome.NEED_MORE

    def _candidates(self, head: _Head) -> list[tuple[bytes, bytes]]:
        """Which keys may open it: those of its own connection id, or the first ones where the server's id stands."""
        own = (head.version, head.cid)
        older = [of for of in self._keys if of[0] == head.version and of != own]
        if own in self._keys:
            return [own]
        if len(self._keys) < MAX_KEYS:
            return [*reversed(older), own]
        return older

    def _open(self, packet: bytes, head: _Head, of: tuple[bytes, bytes]) -> bytes | None:
        assert self._aes is not None
        keys = self._keys.get(of) or derive_keys(self._aes, *of)
        sample = packet[head.number_at + 4 : head.number_at + 20]
        if len(sample) < 16:
            return None
        mask = int.from_bytes(self._aes.block(keys.hp, sample)[:5], "big")
        first = packet[0] ^ (mask >> 32 & 0x0F)
        size = (first & 3) + 1
        start, end = head.number_at, head.number_at + size
        number = int.from_bytes(packet[start:end], "big") ^ ((mask & 0xFFFFFFFF) >> 8 * (4 - size))
        clear = bytes((first,)) + packet[1:start] + number.to_bytes(size, "big")
        # The number is not expanded (RFC 9000 A.3): Initials of a client count from 0, far below 2^8.
        plain = self._aes.open_sealed(keys.key, (keys.iv ^ number).to_bytes(12, "big"), clear, packet[end:])
        if plain is not None:
            self._keys[of] = keys
        return plain


class _Head(NamedTuple):
    """A long header up to its packet number."""

    version: bytes
    cid: bytes
    is_initial: bool
    number_at: int
    """From the packet's own beginning."""
    end: int
    """Of the packet, in the datagram."""


def _read_head(data: bytes, at: int) -> _Head | Outcome:
    begin, size = at, len(data)
    if at + 7 > size or not data[at] & 0x80:
        return Outcome.NOT_QUIC
    version = data[at + 1 : at + 5]
    of = VERSIONS.get(version)
    cid_end = at + 6 + data[at + 5]
    if cid_end >= size or version == b"\0\0\0\0":  # version negotiation comes from servers only
        return Outcome.NOT_QUIC
    if of is None:
        # RFC 8999 5.1: both ids have a length octet in every version; other UDP protocols rarely look like that.
        scid_end = cid_end + 1 + data[cid_end]
        looks_right = data[at] & 0x40 and scid_end <= size and size - at >= 1200
        return Outcome.OTHER_VERSION if looks_right else Outcome.NOT_QUIC
    cid = data[at + 6 : cid_end]
    at = cid_end + 1 + data[cid_end]
    kind = data[begin] & 0x30
    if len(cid) > MAX_CID or data[cid_end] > MAX_CID or kind == of.retry:  # Retry comes from servers only
        return Outcome.NOT_QUIC
    if kind == of.initial:
        length, at = _varint(data, at)
        at += length  # the token
    length, at = _varint(data, at)
    end = at + length
    if length < 4 + TAG or end > size:
        return Outcome.NOT_QUIC
    return _Head(version, cid, kind == of.initial, at - begin, end)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """RFC 9000 16. Past the end: a length that is too long for any packet, which every caller refuses."""
    try:
        first = data[at]
        if first < 0x40:
            return first, at + 1
        if first < 0x80:
            return (first & 0x3F) << 8 | data[at + 1], at + 2
    except IndexError:
        return 1 << 62, at
    width = 1 << (first >> 6)
    if at + width > len(data):
        return 1 << 62, at
    value = int.from_bytes(data[at : at + width], "big") & ((1 << (8 * width - 2)) - 1)
    return value, at + width


def _add_frames(stream: Stream, plain: bytes) -> None:
    """Put the CRYPTO frames of one packet where they belong; the first frame of another kind ends it.

    PADDING, PING, ACK and CONNECTION_CLOSE are all that an Initial may hold besides (RFC 9000 12.5).
    """
    at, size = 0, len(plain)
    for _ in range(MAX_FRAMES):
        if at >= size:
            return
        kind = plain[at]
        if kind == 0x06:
            offset, at = _varint(plain, at + 1)
            length, at = _varint(plain, at)
            if at + length > size:
                return
            if offset <= MAX_OCTETS:
                stream.add(offset, plain[at : at + length])
            at += length
        elif kind == 0x00:
            at = size - len(plain[at:].lstrip(b"\0"))
        elif kind == 0x01:
            at += 1
        elif kind in (0x02, 0x03):
            at = _skip_ack(plain, at + 1, has_counts=kind == 0x03)
        else:
            return


def _skip_ack(plain: bytes, at: int, *, has_counts: bool) -> int:
    """RFC 9000 19.3. Where the next frame begins; the packet's end if the frame is cut."""
    _, at = _varint(plain, at)
    _, at = _varint(plain, at)
    ranges, at = _varint(plain, at)
    _, at = _varint(plain, at)
    for _ in range(2 * min(ranges, len(plain)) + (3 if has_counts else 0)):
        if at >= len(plain):
            break
        _, at = _varint(plain, at)
    return at
