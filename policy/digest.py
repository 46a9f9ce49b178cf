"""BLAKE2s, without OpenSSL's library beside it: `hashlib` would load that, 4 MB in each hook.

Holds the one name. Rule: the digest is the same, whichever way it comes in.
"""

from __future__ import annotations

try:
    from _blake2 import blake2s  # what hashlib itself hands out
except ImportError:  # an interpreter that is put together in another way
    from hashlib import blake2s

__all__ = ["blake2s"]
