"""A session's record that can be erased: what it says of a person is closed with a key of that session's own.

The key is in the register, the record in the ring. When the key is erased, the record still stands where it stood, its
octets and the chain over them are what they were, and nobody can read whose it is. Only where the legal profile allows
erasure; then PyNaCl (libsodium's secret box: XSalsa20-Poly1305) must be installed.
"""

from __future__ import annotations

import os
from typing import Final

import msgpack

from policy.errors import ConfigError
from policy.event import Session
from policy.legal import CLOSED

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 24


def close(session: Session, key: bytes) -> Session:
    """The same record, with account, phone, room, MAC and addresses closed."""
    from nacl.secret import SecretBox

    fields = (session.account, session.phone, session.room, session.mac, session.addresses, session.phone_index)
    closed = SecretBox(key).encrypt(msgpack.packb(fields), os.urandom(_NONCE_BYTES))
    return session._replace(account="", phone=CLOSED + bytes(closed), room="", mac=b"", addresses=(), phone_index=b"")


def is_closed(session: Session) -> bool:
    """Is it such a record?"""
    return session.phone.startswith(CLOSED)


def open_closed(session: Session, key: bytes) -> Session:
    """As it was; without the fields if the key is gone."""
    if not key:
        return session._replace(phone=b"")
    from nacl.exceptions import CryptoError
    from nacl.secret import SecretBox

    try:
        fields = msgpack.unpackb(SecretBox(key).decrypt(session.phone[len(CLOSED) :]), use_list=False)
        account, phone, room, mac, addresses, phone_index = fields
    except (CryptoError, ValueError, TypeError, msgpack.UnpackException):
        return session._replace(phone=b"")
    return session._replace(
        account=account, phone=phone, room=room, mac=mac, addresses=addresses, phone_index=phone_index
    )


def needs_library() -> None:
    """Raises: ConfigError where PyNaCl is not installed."""
    try:
        import nacl.secret  # noqa: F401
    except ImportError:
        raise ConfigError(
            "gatehouse.main.legal: this legal profile lets sessions be erased, for which PyNaCl is needed; "
            "install python3-pynacl"
        ) from None
