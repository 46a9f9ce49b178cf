"""A device's own key for TLS, made on the device, and the request for a certificate on it (PKCS #10).

    request = make_request(identity, key_path)      # the key stays here; the request goes to the centre's authority
    install(certificate_pem, identity, key_path, certificate_path)

Ed25519 (RFC 8410): the routers have no `openssl` command and not all have `cryptography`, but they have our signature.
Sources: RFC 2986 (requests), RFC 5958 and 8410 (keys), X.690 (DER).
Rule: a key is on flash, for root only, before its request is shown to anybody; a key that is there is never replaced
unless somebody says so.
"""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import Callable
from typing import Final

from policy.errors import ConfigError, StorageError
from policy.signature import public_key, sign

_ED25519: Final = bytes.fromhex("300506032b6570")
"""AlgorithmIdentifier: 1.3.101.112, no parameters (RFC 8410 3)."""
_COMMON_NAME: Final = bytes.fromhex("0603550403")
_PKCS8: Final = bytes.fromhex("302e020100300506032b657004220420")
"""PrivateKeyInfo of version 0 around 32 octets (RFC 8410 7)."""


def make_request(
    identity: str, key_path: str, *, renew: bool = False, random: Callable[[int], bytes] = os.urandom
) -> bytes:
    """A certificate request in PEM. Makes the key if there is none, or with `renew`, in a file beside it (`.new`).

    Raises: StorageError, ConfigError.
    """
    path = key_path + ".new" if renew else key_path
    if renew or not os.path.exists(path):
        secret = random(32)
        _write_secret(path, _pem("PRIVATE KEY", _PKCS8 + secret))
    else:
        secret = read_secret(path)
    return request_of(identity, secret)


def request_of(identity: str, secret: bytes) -> bytes:
    """CertificationRequest with common name `identity`, in PEM."""
    name = _der(0x30, _der(0x31, _der(0x30, _COMMON_NAME + _der(0x0C, identity.encode()))))
    public = _der(0x30, _ED25519 + _der(0x03, b"\0" + public_key(secret)))
    info = _der(0x30, _der(0x02, b"\0") + name + public + _der(0xA0, b""))
    request = _der(0x30, info + _ED25519 + _der(0x03, b"\0" + sign(secret, info)))
    return _pem("CERTIFICATE REQUEST", request)


def install(certificate: bytes, key_path: str, certificate_path: str) -> None:
    """Take the certificate that the authority has made, if it is for our key; a renewed key takes its place with it.

    The running uplink sees the change and connects anew. Raises: ConfigError, StorageError.
    """
    new_key = key_path + ".new"
    path = new_key if os.path.exists(new_key) else key_path
    _write_secret(certificate_path + ".new", certificate)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate_path + ".new", path)
    except (OSError, ssl.SSLError) as error:
        os.unlink(certificate_path + ".new")
        reason = getattr(error, "reason", None) or error
        raise ConfigError(f"certificate: is not one for the key {path}: {reason}") from None
    # Between these two a connection would fail, and be tried again.
    if path == new_key:
        os.replace(new_key, key_path)
    os.replace(certificate_path + ".new", certificate_path)


def read_secret(path: str) -> bytes:
    """The 32 octets of a key that was made here. Raises: ConfigError, StorageError."""
    try:
        with open(path, "rb") as file:
            text = file.read(4096)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None
    try:
        octets = base64.b64decode(b"".join(text.split(b"-----")[2:3]), validate=False)
    except ValueError:
        octets = b""
    if not octets.startswith(_PKCS8) or len(octets) != len(_PKCS8) + 32:
        raise ConfigError(f"{path}: is no Ed25519 key as it is made here; move it away, and a new one will be made")
    return octets[len(_PKCS8) :]


def _der(tag: int, content: bytes) -> bytes:
    """Tag, length, content (X.690 8.1)."""
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


def _pem(what: str, octets: bytes) -> bytes:
    """RFC 7468."""
    text = base64.b64encode(octets).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {what}-----", *lines, f"-----END {what}-----", ""]).encode()


def _write_secret(path: str, octets: bytes) -> None:
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
        descriptor = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(descriptor, octets)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(path + ".tmp", path)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None
