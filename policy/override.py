"""Timed overrides: a name opened (or closed) for a group until a time, by hand or with a code. Records come with it.

Order of calls: `issue` a code for a class or `open` at once; `redeem` the code; `expire` now and then. The state is a
small value (`Overrides`) that the agent keeps in a file: never in UCI, which would wear the flash. No clock, no file
and no randomness in here.
Rule: every change gives one Maintenance record, whatever its result; a code is kept as a salted hash only.
"""

from __future__ import annotations

import json
from typing import Final, NamedTuple

from policy.digest import blake2b
from policy.errors import ConfigError
from policy.event import Maintenance
from policy.rules import Action, Match, What, parse_match

MAX_OVERRIDES: Final = 256
"""Open at one time: more is a configuration, not an exception."""
MAX_CODES: Final = 256
MAX_DURATION_S: Final = 7 * 86400
MAX_FAILURES: Final = 5
"""Wrong codes in FAILURE_WINDOW_S before every code is refused: 8 characters of 32 leave no chance at that rate."""
FAILURE_WINDOW_S: Final = 60
CODE_LETTERS: Final = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"
"""32 letters and digits without 0, 1, I and O, to be read from a blackboard."""
CODE_LENGTH: Final = 8
_FORMAT: Final = 1


class Override(NamedTuple):
    """An exception in force."""

    number: int
    match: str
    """`domain:x`, `exact:x`, `category:x`, `list:x`, `all` or `ip:x`, as in a rule."""
    group: str
    """Empty: every group."""
    action: str
    """`allow` or `block`."""
    until_s: int
    by: str

    @property
    def code(self) -> str:
        """How records call it."""
        return f"override:{self.number}"


class Code(NamedTuple):
    """A code that opens something when it is used."""

    salt: bytes
    digest: bytes
    match: str
    """Empty: the one who redeems it says which domain."""
    group: str
    duration_s: int
    expires_s: int
    uses: int
    by: str


class Overrides(NamedTuple):
    """The whole state."""

    active: tuple[Override, ...] = ()
    codes: tuple[Code, ...] = ()
    next_number: int = 1
    failures: tuple[int, ...] = ()
    """When wrong codes were tried."""


class Change(NamedTuple):
    """A new state, and the record of what was done."""

    state: Overrides
    record: Maintenance
    override: Override | None = None


def open_override(
    state: Overrides, *, match: str, group: str, until_s: int, by: str, now_s: int, at_ms: int, action: str = "allow"
) -> Change:
    """Open (or close) something for a group until a time.

    Raises: ConfigError if the match, the action or the time makes no sense, or there are too many.
    """
    parsed = _check_match(match)
    if action not in ("allow", "block"):
        raise ConfigError(f"override: expected allow or block, got {action!r}")
    if not now_s < until_s <= now_s + MAX_DURATION_S:
        raise ConfigError(
            f"override: expected an end within {MAX_DURATION_S // 86400} days, got {until_s - now_s} s from now"
        )
    state = expire(state, now_s)
    if len(state.active) >= MAX_OVERRIDES:
        raise ConfigError(f"override: expected at most {MAX_OVERRIDES} at one time; close one first")
    found = Override(state.next_number, _canonical(parsed, match), group, action, until_s, by)
    new = state._replace(active=(*state.active, found), next_number=state.next_number + 1)
    return Change(new, _record(at_ms, by, "override-open", found, "ok"), found)


def close_override(state: Overrides, number: int, *, by: str, at_ms: int) -> Change:
    """End an override before its time.

    Raises: ConfigError if there is none of this number.
    """
    for found in state.active:
        if found.number == number:
            rest = tuple(item for item in state.active if item.number != number)
            return Change(state._replace(active=rest), _record(at_ms, by, "override-close", found, "ok"), found)
    known = ", ".join(str(item.number) for item in state.active) or "none is open"
    raise ConfigError(f"override: no override {number}; {known}")


def issue_code(
    state: Overrides, random: bytes, *, match: str, group: str, duration_s: int, expires_s: int, uses: int, by: str,
    now_s: int, at_ms: int,
) -> tuple[Change, str]:  # fmt: skip
    """Make a code; gives the new state and the code, which is nowhere else. `random`: 24 octets from the system.

    Raises: ConfigError.
    """
    if match:
        _check_match(match)
    if not 0 < duration_s <= MAX_DURATION_S:
        raise ConfigError(f"override: expected a duration of at most {MAX_DURATION_S} s, got {duration_s}")
    if not now_s < expires_s or uses < 1:
        raise ConfigError("override: expected a code that can be used at least once, before a time to come")
    if len(random) < 24:
        raise ValueError("override: expected 24 random octets")
    state = expire(state, now_s)
    if len(state.codes) >= MAX_CODES:
        raise ConfigError(f"override: expected at most {MAX_CODES} unused codes; let some expire")
    text = "".join(CODE_LETTERS[octet & 31] for octet in random[:CODE_LENGTH])
    salt = random[CODE_LENGTH : CODE_LENGTH + 16]
    made = Code(salt, _digest(salt, text), match, group, duration_s, expires_s, uses, by)
    record = Maintenance(
        at_ms, by, "override-code", match or "any domain", "", group, "ok", f"{uses} uses, {duration_s} s each"
    )
    return Change(state._replace(codes=(*state.codes, made)), record), text


def redeem_code(state: Overrides, text: str, *, domain: str = "", by: str, now_s: int, at_ms: int) -> Change:
    """Use a code. A wrong one, or too many wrong ones, is a Change without an override, and is on record too.

    Raises: ConfigError if the code leaves the domain open and none was given.
    """
    state = expire(state, now_s)
    recent = tuple(moment for moment in state.failures if moment > now_s - FAILURE_WINDOW_S)
    if len(recent) >= MAX_FAILURES:
        record = Maintenance(at_ms, by, "override-redeem", domain, "", "", "too many wrong codes", "")
        return Change(state._replace(failures=recent), record)
    plain = text.strip().upper().replace("-", "").replace(" ", "")
    found = None
    for code in state.codes:
        # Salted hashes are compared, of which the one who guesses knows nothing: time tells him nothing either.
        if _digest(code.salt, plain) == code.digest:
            found = code
    if found is None:
        record = Maintenance(at_ms, by, "override-redeem", domain, "", "", "wrong code", "")
        return Change(state._replace(failures=(*recent, now_s)), record)
    match = found.match
    if not match:
        if not domain:
            raise ConfigError("override: this code opens a domain of your choice; say which")
        match = f"domain:{domain}"
    left = [code for code in state.codes if code is not found]
    if found.uses > 1:
        left.append(found._replace(uses=found.uses - 1))
    spent = state._replace(codes=tuple(left), failures=recent)
    return open_override(
        spent, match=match, group=found.group, until_s=now_s + found.duration_s, by=f"{by} with a code of {found.by}",
        now_s=now_s, at_ms=at_ms,
    )  # fmt: skip


def expire(state: Overrides, now_s: int) -> Overrides:
    """Without what is over. The end of an override stands in the record of its opening, so none is made here."""
    active = tuple(item for item in state.active if item.until_s > now_s)
    codes = tuple(code for code in state.codes if code.expires_s > now_s)
    if len(active) == len(state.active) and len(codes) == len(state.codes):
        return state
    return state._replace(active=active, codes=codes)


def dump(state: Overrides) -> str:
    """The state as text, for a file."""
    return json.dumps(
        {
            "format": _FORMAT,
            "next_number": state.next_number,
            "active": [item._asdict() for item in state.active],
            "codes": [{**c._asdict(), "salt": c.salt.hex(), "digest": c.digest.hex()} for c in state.codes],
            "failures": list(state.failures),
        },
        indent=1,
    )


def load(text: str) -> Overrides:
    """The reverse of `dump`.

    Raises: ConfigError if the text is not a state: the caller goes on without overrides, and says so.
    """
    try:
        data = json.loads(text)
        if data["format"] != _FORMAT:
            raise ValueError("format")
        active = tuple(_read_override(row) for row in data["active"])
        codes = tuple(_read_code(row) for row in data["codes"])
        failures = tuple(int(moment) for moment in data["failures"])
        return Overrides(active, codes, int(data["next_number"]), failures)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"overrides: expected a state of format {_FORMAT}: {error}") from None


def _read_override(row: dict[str, object]) -> Override:
    number, match, group = row["number"], row["match"], row["group"]
    action, until_s, by = row["action"], row["until_s"], row["by"]
    if not (isinstance(number, int) and isinstance(until_s, int)):
        raise ValueError("a number of an override")
    if not (isinstance(match, str) and isinstance(group, str) and isinstance(action, str) and isinstance(by, str)):
        raise ValueError("a text of an override")
    _check_match(match)
    return Override(number, match, group, Action(action).value, until_s, by)


def _read_code(row: dict[str, object]) -> Code:
    match, group, by = row["match"], row["group"], row["by"]
    duration_s, expires_s, uses = row["duration_s"], row["expires_s"], row["uses"]
    if not (isinstance(duration_s, int) and isinstance(expires_s, int) and isinstance(uses, int)):
        raise ValueError("a number of a code")
    if not (isinstance(match, str) and isinstance(group, str) and isinstance(by, str)):
        raise ValueError("a text of a code")
    salt, digest = bytes.fromhex(str(row["salt"])), bytes.fromhex(str(row["digest"]))
    return Code(salt, digest, match, group, duration_s, expires_s, uses, by)


def _check_match(match: str) -> Match:
    parsed = parse_match(match, "override")
    if parsed.what is What.URL:
        raise ConfigError("override: expected a domain, a category, a list, an address or all; URLs cannot be opened")
    return parsed


def _canonical(parsed: Match, match: str) -> str:
    """Names in the form that is compared, the rest as written."""
    if parsed.what in (What.DOMAIN, What.EXACT):
        star = "*." if match.partition(":")[2].startswith("*.") else ""
        return f"{parsed.what.value}:{star}{parsed.name.decode()}"
    return match


def _record(at_ms: int, by: str, action: str, found: Override, result: str) -> Maintenance:
    return Maintenance(
        at_ms, by, action, found.match, "", f"{found.action} for {found.group or 'all'} until {found.until_s}", result,
        found.code,
    )  # fmt: skip


def _digest(salt: bytes, text: str) -> bytes:
    return blake2b(text.encode(), digest_size=32, salt=salt[:16]).digest()
