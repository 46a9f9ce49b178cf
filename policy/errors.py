"""The one tree of errors. Theirs (`PeerError`) and ours (`ConfigError`, `StorageError`) never share a type.

Rule: a message is lower case, starts with the place or the action, and says what was expected:
`dns.upstream[1]: expected an address, got 'exmaple'`.
"""

from __future__ import annotations


class GatehouseError(Exception):
    """Root of everything that Gatehouse raises on purpose."""


class PeerError(GatehouseError):
    """Bytes from the network, or from a file somebody sent us, are not what they claim to be."""


class WireError(PeerError):
    """A DNS message is malformed (RFC 1035 4)."""


class PacketError(PeerError):
    """An IP packet or a protocol inside it (TCP, UDP, HTTP, TLS, QUIC) is malformed."""


class FrameError(PeerError):
    """A frame between two of our own processes is malformed or of another version."""


class HookError(PeerError):
    """What a script of dnsmasq, openNDS or hostapd told of a session makes no sense."""


class RadiusError(PeerError):
    """A RADIUS accounting request is malformed, or not from whom it claims to be (RFC 2866)."""


class ListError(PeerError):
    """A downloaded list cannot be used: empty, truncated, HTML, or far larger than announced."""


class BundleError(PeerError):
    """A policy bundle is unsigned, badly signed, older than what runs, or malformed."""


class MessageError(PeerError):
    """A message of the uplink, from the broker or from a device, is malformed, unsigned or not for us."""


class SerialError(PeerError):
    """What came over the serial line, or the device at its other end, is not what it should be."""


class ConfigError(GatehouseError):
    """The configuration, or a word on the command line, is wrong; says where, what, and the mend."""


class DeniedError(GatehouseError):
    """Whoever asks may not; that he asked is on record."""


class ImageError(GatehouseError):
    """A compiled policy image is missing, of another version, or fails its checksum."""


class StorageError(GatehouseError):
    """The ring cannot do what was asked: full, read-only, I/O error, wrong permissions."""


class CorruptError(StorageError):
    """A segment fails its checksum, hash chain or signature; says which block."""
