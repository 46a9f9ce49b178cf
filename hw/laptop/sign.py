"""A certificate for a router's request: by a command of the authority's, or by its key where that lies here."""

from __future__ import annotations

import datetime
import subprocess
from typing import Final

from hw.laptop.profile import Profile
from hw.laptop.trouble import TroubleError

SIGN_S: Final = 60


def can_sign(profile: Profile) -> bool:
    """Is there anybody to sign?"""
    return bool(profile.sign_command or profile.ca_key)


def sign_request(profile: Profile, request: bytes) -> bytes:
    """PEM in, PEM out. Raises: TroubleError."""
    if profile.sign_command:
        return _by_command(profile.sign_command, request)
    return _by_key(profile, request)


def _by_command(command: tuple[str, ...], request: bytes) -> bytes:
    mend = "run certificate.sign_command by hand; it gets the request on standard input, and writes the certificate"
    try:
        done = subprocess.run(command, input=request, capture_output=True, timeout=SIGN_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise TroubleError(f"certificate: {command[0]}: {error}", mend) from None
    if done.returncode or b"BEGIN CERTIFICATE-----" not in done.stdout:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["wrote no certificate"]
        raise TroubleError(f"certificate: {command[0]}: {said[0]}", mend)
    return done.stdout


def _by_key(profile: Profile, request: bytes) -> bytes:
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ed448, ed25519
        from cryptography.x509.oid import ExtendedKeyUsageOID
    except ImportError:
        raise TroubleError(
            "certificate: to sign here, the library cryptography is needed",
            "pip install --group installer, or name certificate.sign_command in the profile",
        ) from None
    try:
        with open(profile.ca_certificate, "rb") as file:
            authority = x509.load_pem_x509_certificate(file.read())
        with open(profile.ca_key, "rb") as file:
            key = serialization.load_pem_private_key(file.read(), None)
        asked = x509.load_pem_x509_csr(request)
    except (OSError, ValueError, TypeError) as error:
        raise TroubleError(
            f"certificate: {error}", "look at certificate.ca_certificate and ca_key in the profile"
        ) from None
    if not asked.is_signature_valid:
        raise TroubleError("certificate: the request is not signed by its own key", "ask the router again")
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(asked.subject)
        .issuer_name(authority.subject)
        .public_key(asked.public_key())
        .serial_number(x509.random_serial_number())
        # A router whose clock is at its release's date has to take it too.
        .not_valid_before(now - datetime.timedelta(days=400))
        .not_valid_after(now + datetime.timedelta(days=profile.days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    )
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else hashes.SHA256()
    certificate = builder.sign(key, algorithm)  # type: ignore[arg-type]  # an authority's key can sign
    return certificate.public_bytes(serialization.Encoding.PEM)
