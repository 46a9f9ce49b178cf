"""What a process may still do when it has read its settings: whose it is, which capabilities it keeps, no way back up.

Each process does this itself, for procd's own means (ujail) are not on every OpenWrt. A hook reads what the venue's
clients send, so it becomes somebody else, who can read neither ring nor keys nor ask the agent anything. Agent and
uplink stay root's, for ring, keys and configuration are root's files; of root's powers they keep those below.
Rule: after `drop` nothing comes back: the bounding set is cut too, and no program that is started gains anything.

Sources: capabilities(7), prctl(2); <linux/capability.h>, <linux/prctl.h>.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import struct
import sys
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from policy.config import Config

CAP_CHOWN: Final = 0
CAP_DAC_OVERRIDE: Final = 1
CAP_KILL: Final = 5
CAP_NET_BIND_SERVICE: Final = 10
CAP_NET_ADMIN: Final = 12
CAP_NET_RAW: Final = 13
KEPT: Final[Mapping[str, frozenset[int]]] = {
    # Rules, conntrack events; a hung hook is somebody else's process; files are handed to the hooks; the notice's port.
    "agent": frozenset({CAP_CHOWN, CAP_KILL, CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW}),
    "compile": frozenset(),
    "dns": frozenset(),
    # The queue; resets and pages are sent by hand, with a mark.
    "nfq": frozenset({CAP_NET_ADMIN, CAP_NET_RAW}),
    "uplink": frozenset(),
}
HOOKS: Final = frozenset({"dns", "nfq"})

_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_SET_KEEPCAPS: Final = 8
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_GET_NO_NEW_PRIVS: Final = 39
_CAPABILITY_VERSION_3: Final = 0x20080522


class Identity(NamedTuple):
    """Whom a hook becomes."""

    uid: int
    gid: int


def hook_identity(config: Config) -> Identity | None:
    """Whom the hooks become; None: they stay whose they are.

    That is so where we are not root, where `user` is empty or nobody here (nor in this user namespace), and where it
    could not reach our own files (a checkout in somebody's closed home): modules are imported when they are needed.
    """
    if os.geteuid() != 0 or not config.main.user:
        return None
    try:
        entry = pwd.getpwnam(config.main.user)
    except KeyError:
        return None
    found = Identity(entry.pw_uid, entry.pw_gid)
    return found if _is_mapped(found.uid) and _can_work(found, config) else None


def drop(role: str, config: Config) -> Identity | None:
    """Give up everything that this role does not need. Returns who we are now, if that is somebody else.

    Raises: OSError where the kernel refuses; then the process must not go on.
    """
    kept = set(KEPT[role])
    if role == "dns" and config.dns.port < 1024:
        kept.add(CAP_NET_BIND_SERVICE)
    libc = ctypes.CDLL(None, use_errno=True)
    identity = hook_identity(config) if role in HOOKS else None
    if identity is None and not _can_work(Identity(0, 0), config):
        kept.add(CAP_DAC_OVERRIDE)  # started with sudo in somebody's closed home: root goes there by this alone
    if os.geteuid() == 0:
        # A child of ours has no right to cut the set, nor need: with no_new_privs it gains nothing by it.
        is_child = libc.prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1
        for number in range(64):
            if not is_child and number not in kept and libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) == 1:
                _check(libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0), "capability bounding set")
        if identity is not None:
            _check(libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "keep capabilities")
            os.setgroups([identity.gid])
            os.setresgid(identity.gid, identity.gid, identity.gid)
            os.setresuid(identity.uid, identity.uid, identity.uid)
        _set_capabilities(libc, kept)
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    if role in HOOKS and identity is None and os.geteuid() == 0 and config.main.user:
        text = f"user {config.main.user!r} is not here, or cannot reach our files: stays root"
        print(f"{role}: {text}", file=sys.stderr, flush=True)
    return identity


def _set_capabilities(libc: ctypes.CDLL, kept: Iterable[int]) -> None:
    head = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    held = ctypes.create_string_buffer(24)
    _check(libc.capget(head, held), "capget")
    _, held_low, _, _, held_high, _ = struct.unpack("=6I", held.raw)
    # In a container root may lack some of them from the start; who misses one says so where it is used.
    bits = sum(1 << number for number in kept) & (held_low | held_high << 32)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    # effective, permitted, inheritable; inheritable stays empty: a user's children get nothing, root's go by the
    # bounding set.
    body = struct.pack("=6I", low, low, 0, high, high, 0)
    _check(libc.capset(head, body), "capset")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"privileges: {what}: {os.strerror(number)}")


def _is_mapped(uid: int) -> bool:
    """Is there such a user in this user namespace? In one made by `unshare --map-root-user` there is root alone."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            ranges = [(int(first), int(count)) for first, _, count in (line.split() for line in file)]
    except (OSError, ValueError):
        return True
    return any(first <= uid < first + count for first, count in ranges)


def _can_work(identity: Identity, config: Config) -> bool:
    places = (__file__, os.__file__, config.main.run_dir, config.main.state_dir)
    return all(_can_reach(place, identity) for place in places)


def _can_reach(path: str, identity: Identity) -> bool:
    """May this user go as far as to this file or directory? Whether into it, is for `agent.shared` to see to."""
    path = os.path.abspath(path)
    while (parent := os.path.dirname(path)) != path:
        path = parent
        try:
            found = os.stat(path)
        except FileNotFoundError:
            continue  # ours to make
        wanted = 0o100 if found.st_uid == identity.uid else 0o010 if found.st_gid == identity.gid else 0o001
        if not found.st_mode & wanted:
            return False
    return True
