"""Files that are whole or not there: written beside, synced, renamed, and the directory synced too."""

from __future__ import annotations

import os

from policy.errors import StorageError


def write(path: str, octets: bytes, mode: int = 0o600) -> None:
    """Replace a file's content. A file that is there keeps its mode. Raises: StorageError."""
    try:
        directory = os.path.dirname(path) or "."
        os.makedirs(directory, mode=0o700, exist_ok=True)
        try:
            mode = os.stat(path).st_mode & 0o777
        except FileNotFoundError:
            pass
        beside = path + ".new"
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(octets)
            file.flush()
            os.fsync(descriptor)
        os.replace(beside, path)
        sync_directory(directory)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None


def remove(path: str) -> None:
    """It is not there any more, if it was. Raises: StorageError."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None
    sync_directory(os.path.dirname(path) or ".")


def read(path: str, most: int = 1 << 24) -> bytes | None:
    """The content; None: there is no such file. Raises: StorageError."""
    try:
        with open(path, "rb") as file:
            return file.read(most)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None


def sync_directory(directory: str) -> None:
    """A rename or an unlink in it is on flash."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
