"""What a heartbeat says: how the device is, in one small map, from `gatehouse status`. Pure.

A part of the status that is not known here yet goes along under its own name if it is in CARRIED, so that whoever adds
a meter to the status does not need to come here for its figures to reach the centre.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agent.uplink.wire import pack_map

CARRIED: Final = ("visibility", "sessions", "legal", "hardware", "self_test")
"""Parts of the status that go along whole, where they are there: the blind-spot meter among them."""
CAPACITY: Final = (
    "segments",
    "bytes",
    "budget_bytes",
    "promised_days",
    "oldest_days",
    "days_at_level",
    "forecast",
    "at_risk",
    "holds",
    "trouble",
    "waiting",
    "given_up",
    "bad_segments",
)
MAX_WHY: Final = 16


def build(
    status: Mapping[str, Any],
    *,
    number: int,
    wall_ms: int,
    mono_ms: int,
    boot: str,
    public_key: bytes,
    uplink: Mapping[str, object],
    temperatures: Mapping[str, int],
    every_s: int,
) -> bytes:
    """Octets to be signed. `number` counts the heartbeats of one boot; `every_s`: when the next is due."""
    store = status.get("ring", {})
    next_text = str(store.get("next", "0:0"))
    segment, _, next_seq = next_text.partition(":")
    return pack_map(
        {
            "k": "heartbeat",
            "number": number,
            "wall_ms": wall_ms,
            "mono_ms": mono_ms,
            "boot": boot,
            "public_key": public_key,
            "every_s": every_s,
            "release": status.get("release", ""),
            "state": status.get("state", "unknown"),
            "why": [str(line)[:200] for line in status.get("why", ())][:MAX_WHY],
            "up_s": status.get("up_s", 0),
            "clock": status.get("clock", "unsynced"),
            "on_failure": status.get("on_failure", ""),
            "chain": {
                "segment": int(segment or 0),
                "next_seq": int(next_seq or 0),
                "head": bytes.fromhex(str(store.get("head", ""))),
            },
            "capacity": {name: store[name] for name in CAPACITY if name in store},
            "policy": _policy(status.get("policy", {})),
            "intake": status.get("intake", {}),
            "workers": {name: _worker(one) for name, one in status.get("workers", {}).items()},
            "uplink": uplink,
            "temperatures": temperatures,
            **{name: status[name] for name in CARRIED if name in status},
        }
    )


def what_matters(status: Mapping[str, Any]) -> tuple[object, ...]:
    """A heartbeat goes at once when this changes."""
    pids = tuple(sorted((name, one.get("pid")) for name, one in status.get("workers", {}).items()))
    return status.get("state"), tuple(status.get("why", ())), status.get("clock"), status.get("release"), pids


def _policy(described: Any) -> object:
    return described if isinstance(described, dict) and len(described) < 32 else {}


def _worker(counters: Mapping[str, Any]) -> dict[str, int]:
    """What was lost and what is slow; the pid says whether it is the same one."""
    return {
        name: value
        for name, value in counters.items()
        if isinstance(value, int) and (name in ("pid", "silent_ms") or any(word in name for word in _DROPS))
    }


_DROPS: Final = ("drop", "lost", "overload", "refused", "queries", "packets", "flows", "events", "blocked")
