"""A signed policy bundle: the manifest, its signature in usign's form, and whether it may replace what runs.

    manifest = open_manifest(octets, signature_text, keys)   # verified first, read second
    check_successor(manifest, running, force=False)          # BundleError for a roll-back
    step = choose(manifest, base_sha256)                     # the delta that fits, else the full image

A manifest is text, a line each: a word, then values.

    gatehouse-bundle 1
    name school-cn
    channel stable
    version 2026112301
    created 1795422600
    image SIZE SHA256 FILE
    delta SIZE SHA256 FILE BASE-SHA256
    rules SIZE SHA256 FILE

Signatures and keys are those of OpenWrt's usign and OpenBSD's signify: a comment line `untrusted comment: …`, then
base64 of `Ed`, 8 octets of key number, and 64 (signature) or 32 (public key) octets.
Rule: not one octet of a manifest is looked at before its signature holds, and not one of a part before its hash does.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from policy.errors import BundleError

MAX_MANIFEST: Final = 1 << 16
MAX_SIGNATURE: Final = 1024
MAX_PART: Final = 256 << 20
MAX_DELTAS: Final = 64
_COMMENT: Final = b"untrusted comment:"
_ALGORITHM: Final = b"Ed"
_FILE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}").fullmatch

Verify = Callable[[bytes, bytes, bytes], bool]
"""public key, message, signature -> does it hold (policy.signature.verify)."""
Sign = Callable[[bytes, bytes], bytes]
"""secret key, message -> signature (policy.signature.sign)."""


class PublicKey(NamedTuple):
    """A key that may sign bundles."""

    number: bytes
    """8 octets; its fingerprint in hexadecimal."""
    key: bytes

    @property
    def fingerprint(self) -> str:
        """As usign prints it, and as the key's file is called."""
        return self.number.hex()


class BundlePart(NamedTuple):
    """A file of the bundle."""

    size: int
    sha256: bytes
    file: str
    base: bytes = b""
    """A delta's: sha256 of the image it starts from."""


class Manifest(NamedTuple):
    """What the publisher has signed."""

    name: str
    channel: str
    version: int
    created_s: int
    image: BundlePart
    deltas: tuple[BundlePart, ...]
    rules: BundlePart | None
    signer: str
    """Fingerprint."""


class Running(NamedTuple):
    """The version that is in force."""

    version: int
    sha256: bytes
    """Of its image."""


def open_manifest(octets: bytes, signature: bytes, keys: Mapping[str, PublicKey], verify: Verify) -> Manifest:
    """Verify, then read. `keys`: fingerprint -> key, those that the configuration names.

    Raises: BundleError.
    """
    if len(octets) > MAX_MANIFEST:
        raise BundleError(f"bundle: expected a manifest of at most {MAX_MANIFEST} octets, got {len(octets)}")
    number, proof = _read_signed(signature, 64, "signature")
    key = keys.get(number.hex())
    if key is None:
        raise BundleError(f"bundle: signed by key {number.hex()}, which is not trusted here")
    if not verify(key.key, octets, proof):
        raise BundleError(f"bundle: the signature by key {number.hex()} does not hold")
    return _read_manifest(octets, number.hex())


def check_signature(octets: bytes, signature: bytes, keys: Mapping[str, PublicKey], verify: Verify) -> str:
    """Who signed these octets: a fingerprint of `keys`. Raises: BundleError if none of them did."""
    number, proof = _read_signed(signature, 64, "signature")
    key = keys.get(number.hex())
    if key is None:
        raise BundleError(f"signed by key {number.hex()}, which is not trusted here")
    if not verify(key.key, octets, proof):
        raise BundleError(f"the signature by key {number.hex()} does not hold")
    return number.hex()


def read_public_key(text: bytes) -> PublicKey:
    """A public key file of usign or signify.

    Raises: BundleError.
    """
    return PublicKey(*_read_signed(text, 32, "public key"))


def sign_manifest(octets: bytes, number: bytes, secret: bytes, sign: Sign, comment: str = "") -> bytes:
    """The signature file that usign would write."""
    said = comment or f"signed by key {number.hex()}"
    packed = binascii.b2a_base64(_ALGORITHM + number + sign(secret, octets), newline=False)
    return _COMMENT + b" " + said.encode() + b"\n" + packed + b"\n"


def public_key_text(key: PublicKey, comment: str = "") -> bytes:
    """The public key file that usign would write."""
    said = comment or f"public key {key.fingerprint}"
    packed = binascii.b2a_base64(_ALGORITHM + key.number + key.key, newline=False)
    return _COMMENT + b" " + said.encode() + b"\n" + packed + b"\n"


def write_manifest(manifest: Manifest) -> bytes:
    """The text that is signed."""
    lines = [
        "gatehouse-bundle 1",
        f"name {manifest.name}",
        f"channel {manifest.channel}",
        f"version {manifest.version}",
        f"created {manifest.created_s}",
        "image " + _part_text(manifest.image),
        *(f"delta {_part_text(delta)} {delta.base.hex()}" for delta in manifest.deltas),
    ]
    if manifest.rules is not None:
        lines.append("rules " + _part_text(manifest.rules))
    return ("\n".join(lines) + "\n").encode()


def check_successor(manifest: Manifest, running: Running | None, *, name: str, channel: str, force: bool) -> str:
    """May this bundle replace what runs? Gives `new`, `same`, or `forced` (which has to be put on record).

    Raises: BundleError for another bundle's or channel's manifest, and for a roll-back that nobody forces here.
    """
    if (manifest.name, manifest.channel) != (name, channel):
        raise BundleError(
            f"bundle {name!r}: expected channel {channel!r}, got {manifest.name!r} channel {manifest.channel!r}"
        )
    if running is None or manifest.version > running.version:
        return "new"
    if manifest.version == running.version and manifest.image.sha256 == running.sha256:
        return "same"
    if force:
        return "forced"
    if manifest.version == running.version:
        raise BundleError(f"bundle {name!r}: version {manifest.version} again, with another image")
    raise BundleError(
        f"bundle {name!r}: version {manifest.version} is older than {running.version}, which runs; "
        "a roll-back has to be forced on the device"
    )


def choose(manifest: Manifest, base: bytes | None) -> tuple[BundlePart, bool]:
    """What to fetch, and whether it is a delta: the one from `base` (sha256 of the image here) if it saves anything."""
    for delta in manifest.deltas:
        if delta.base == base and delta.size < manifest.image.size:
            return delta, True
    return manifest.image, False


def _part_text(part: BundlePart) -> str:
    return f"{part.size} {part.sha256.hex()} {part.file}"


def _read_signed(text: bytes, length: int, what: str) -> tuple[bytes, bytes]:
    """Key number and the octets behind it, of a signature or key file."""
    lines = text[: MAX_SIGNATURE + 1].splitlines()
    if len(text) > MAX_SIGNATURE or len(lines) < 2 or not lines[0].startswith(_COMMENT) or any(lines[2:]):
        raise BundleError(f"bundle: expected a {what} in usign's form: a comment line and a line of base64")
    try:
        packed = binascii.a2b_base64(lines[1].strip(), strict_mode=True)
    except binascii.Error as error:
        raise BundleError(f"bundle: {what}: {error}") from None
    if packed[:2] != _ALGORITHM or len(packed) != 10 + length:
        raise BundleError(f"bundle: expected an Ed25519 {what} of {10 + length} octets, got {len(packed)}")
    return packed[2:10], packed[10:]


def _read_manifest(octets: bytes, signer: str) -> Manifest:
    try:
        lines = [line.split() for line in octets.decode("ascii").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise BundleError("bundle: expected an ASCII manifest") from None
    if not lines or lines[0] != ["gatehouse-bundle", "1"]:
        raise BundleError("bundle: expected a manifest of format 1")
    single: dict[str, list[str]] = {}
    deltas: list[BundlePart] = []
    for word, *values in lines[1:]:
        if word == "delta":
            if len(values) != 4 or len(deltas) >= MAX_DELTAS:
                raise BundleError(f"bundle: expected at most {MAX_DELTAS} deltas of four values")
            deltas.append(_read_part(values[:3])._replace(base=_sha256(values[3])))
        elif word in single:
            raise BundleError(f"bundle: {word!r} stands twice in the manifest")
        else:
            single[word] = values  # words of later formats are left alone
    for word in ("name", "channel", "version", "created"):
        if len(single.get(word, ())) != 1:
            raise BundleError(f"bundle: expected one value for {word!r}")
    if "image" not in single:
        raise BundleError("bundle: expected an image")
    return Manifest(
        name=single["name"][0],
        channel=single["channel"][0],
        version=_number(single["version"][0], 1 << 63),
        created_s=_number(single["created"][0], 1 << 40),
        image=_read_part(single["image"]),
        deltas=tuple(deltas),
        rules=_read_part(single["rules"]) if "rules" in single else None,
        signer=signer,
    )


def _read_part(values: list[str]) -> BundlePart:
    if len(values) != 3 or not _FILE(values[2]):
        raise BundleError(f"bundle: expected size, sha256 and a plain file name, got {' '.join(values)[:200]!r}")
    return BundlePart(_number(values[0], MAX_PART), _sha256(values[1]), values[2])


def _number(text: str, limit: int) -> int:
    if not (text.isdecimal() and len(text) < 21 and int(text) <= limit):
        raise BundleError(f"bundle: expected a number up to {limit}, got {text[:40]!r}")
    return int(text)


def _sha256(text: str) -> bytes:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise BundleError(f"bundle: expected 64 hexadecimal digits, got {text[:80]!r}")
    return bytes.fromhex(text)
