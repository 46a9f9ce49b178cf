"""The device's own key: made on the device, never leaves it.

Holds the file; what is signed with it is the ring's and the uplink's business.
"""

from __future__ import annotations

import os

from policy.errors import StorageError


def device_key(state_dir: str) -> bytes:
    """The 32-octet Ed25519 seed of this device, made at its first start.

    Raises: StorageError if it can be neither read nor made.
    """
    path = os.path.join(state_dir, "device.key")
    try:
        with open(path, "rb") as file:
            seed = file.read(64)
    except FileNotFoundError:
        return _make(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from None
    if len(seed) != 32:
        raise StorageError(f"{path}: {len(seed)} octets, expected a key of 32; restore it from the backup")
    return seed


def _make(path: str) -> bytes:
    seed = os.urandom(32)
    try:
        # Whole or not at all: a power cut must not leave half a key, for everything signed hangs on it.
        with open(os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(seed)
            file.flush()
            os.fsync(file.fileno())
        os.rename(path + ".new", path)
        directory = os.open(os.path.dirname(path), os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
    except OSError as error:
        raise StorageError(f"{path}: cannot be made: {error.strerror}") from None
    return seed
