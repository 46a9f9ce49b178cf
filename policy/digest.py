"""BLAKE2 and SHA-2 without OpenSSL's library beside them: `hashlib` would load that, 4 MB in each process.

Holds four names. Rule: the digests are the same, whichever way they come in.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import blake2b, blake2s, sha256, sha512
else:
    try:  # what hashlib itself hands out where OpenSSL has nothing faster
        from _blake2 import blake2b, blake2s

        if sys.version_info >= (3, 12):
            from _sha2 import sha256, sha512
        else:
            from _sha256 import sha256
            from _sha512 import sha512
    except ImportError:  # an interpreter that is put together in another way
        from hashlib import blake2b, blake2s, sha256, sha512

__all__ = ["blake2b", "blake2s", "sha256", "sha512"]
