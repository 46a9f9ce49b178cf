"""AES-128 for QUIC Initials: one block (header protection), GCM (the packet itself), and HMAC-SHA-256 for their keys.

Two providers behind one interface, the first that is there: the `cryptography` package (4 MB to 15 MB on flash, 8 MB of
memory), then OpenSSL's libcrypto through ctypes, which a router with TLS has anyway (0.2 MB). AF_ALG was left out: it
needs three more kernel modules and about ten system calls a datagram. Without any, QUIC has no name (Blind.NO_CRYPTO).
Rule: `open_sealed` gives the plain text or None; nothing that a peer sends raises.
Sources: RFC 9001 5.3 and 5.4.3, openssl/evp.h.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final, Protocol

TAG: Final = 16
"""Octets of a GCM tag."""
_MAX_SEALED: Final = 1 << 16
_SET_TAG: Final = 0x11  # EVP_CTRL_AEAD_SET_TAG


class Aes(Protocol):
    """What QUIC asks of a provider. Keys are 16 octets, nonces 12."""

    name: str

    def hmac(self, key: bytes, data: bytes) -> bytes:
        """HMAC-SHA-256, 32 octets."""
        ...

    def block(self, key: bytes, data: bytes) -> bytes:
        """One block of 16 octets through AES-128-ECB."""
        ...

    def open_sealed(self, key: bytes, nonce: bytes, head: bytes, sealed: bytes) -> bytes | None:
        """AES-128-GCM; None: `sealed` (with its tag) was not made with this key, nonce and head."""
        ...


class CryptographyAes:
    """The `cryptography` package. Raises: ImportError where it is not installed."""

    name = "cryptography"

    def __init__(self) -> None:
        from _hashlib import hmac_digest

        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers import Cipher
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.ciphers.algorithms import AES
        from cryptography.hazmat.primitives.ciphers.modes import ECB

        self._hmac = hmac_digest
        self._cipher, self._aes, self._ecb = Cipher, AES, ECB()
        self._gcm, self._invalid = AESGCM, InvalidTag

    def hmac(self, key: bytes, data: bytes) -> bytes:
        return self._hmac(key, data, "sha256")

    def block(self, key: bytes, data: bytes) -> bytes:
        return self._cipher(self._aes(key), self._ecb).encryptor().update(data)

    def open_sealed(self, key: bytes, nonce: bytes, head: bytes, sealed: bytes) -> bytes | None:
        try:
            return self._gcm(key).decrypt(nonce, sealed, head)
        except self._invalid:
            return None


class LibcryptoAes:
    """OpenSSL's libcrypto. Raises: OSError where there is none, AttributeError for one that lacks a function."""

    name = "libcrypto"

    def __init__(self, library: str = "libcrypto.so.3") -> None:
        lib = ctypes.CDLL(library)
        pointer, octets, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
        init: list[type[ctypes._SimpleCData[Any]]] = [pointer, pointer, pointer, octets, octets]
        update: list[type[ctypes._SimpleCData[Any]]] = [pointer, pointer, pointer, octets, number]
        for function in (lib.EVP_aes_128_ecb, lib.EVP_aes_128_gcm, lib.EVP_sha256, lib.EVP_CIPHER_CTX_new):
            function.restype, function.argtypes = pointer, []
        lib.EVP_EncryptInit_ex.argtypes = lib.EVP_DecryptInit_ex.argtypes = init
        lib.EVP_EncryptUpdate.argtypes = lib.EVP_DecryptUpdate.argtypes = update
        lib.EVP_DecryptFinal_ex.argtypes = [pointer, pointer, pointer]
        lib.EVP_CIPHER_CTX_ctrl.argtypes = [pointer, number, number, octets]
        lib.HMAC.argtypes = [pointer, octets, number, octets, ctypes.c_size_t, pointer, pointer]
        lib.HMAC.restype = pointer
        self._lib = lib
        self._ecb, self._gcm, self._sha256 = lib.EVP_aes_128_ecb(), lib.EVP_aes_128_gcm(), lib.EVP_sha256()
        # One context per use for the life of the process; the hook has one thread.
        self._mask_context, self._open_context = lib.EVP_CIPHER_CTX_new(), lib.EVP_CIPHER_CTX_new()
        if not (self._ecb and self._gcm and self._sha256 and self._mask_context and self._open_context):
            raise OSError("libcrypto: no AES-128 or no memory")
        self._out = ctypes.create_string_buffer(_MAX_SEALED)
        self._length = ctypes.c_int()
        self._out_at, self._length_at = ctypes.addressof(self._out), ctypes.addressof(self._length)

    def hmac(self, key: bytes, data: bytes) -> bytes:
        self._lib.HMAC(self._sha256, key, len(key), data, len(data), self._out_at, None)
        return ctypes.string_at(self._out_at, 32)

    def block(self, key: bytes, data: bytes) -> bytes:
        lib, context = self._lib, self._mask_context
        lib.EVP_EncryptInit_ex(context, self._ecb, None, key, None)
        lib.EVP_EncryptUpdate(context, self._out_at, self._length_at, data, 16)
        return ctypes.string_at(self._out_at, 16)

    def open_sealed(self, key: bytes, nonce: bytes, head: bytes, sealed: bytes) -> bytes | None:
        size = len(sealed) - TAG
        if not 0 <= size <= _MAX_SEALED - TAG:
            return None
        lib, context, length = self._lib, self._open_context, self._length_at
        lib.EVP_DecryptInit_ex(context, self._gcm, None, key, nonce)
        lib.EVP_DecryptUpdate(context, None, length, head, len(head))
        lib.EVP_DecryptUpdate(context, self._out_at, length, sealed, size)
        lib.EVP_CIPHER_CTX_ctrl(context, _SET_TAG, TAG, sealed[size:])
        if lib.EVP_DecryptFinal_ex(context, self._out_at + size, length) != 1:
            return None
        return ctypes.string_at(self._out_at, size)


def find_aes() -> Aes | None:
    """The first provider that works here; None: QUIC stays unread."""
    try:
        return CryptographyAes()
    except ImportError:
        pass
    for library in ("libcrypto.so.3", "libcrypto.so.1.1"):
        try:
            return LibcryptoAes(library)
        except (OSError, AttributeError):
            pass
    return None
