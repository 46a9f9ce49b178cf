"""Who may ask what, and that it was asked: on flash before the first line of the answer.

`guard` wraps a handler of the control socket. Who asks is what the kernel says (SO_PEERCRED), never what the request
says. Root is everybody's name on a router, so what root may do is not limited here: it is put on record.
Rule: a question that names a person, a device or a session has a reason, or no answer.
"""

from __future__ import annotations

import pwd
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NoReturn

from agent.control import Answer, Handler, Request, Wanted
from agent.identity import is_phone
from policy.errors import ConfigError, DeniedError
from policy.people import Role

NAMING: Final = ("client", "mac", "account", "phone_index", "session")
"""Words of a request that name somebody or his device."""
READS: Final = frozenset({"query", "names", "who", "show", "tail"})
"""Requests whose answers tell of people."""
EXPORTS: Final = ("sqlite", "ga")
"""Record sets that leave by `gatehouse export`, as legal profiles name them."""
IMPERSONAL: Final = frozenset({"maintenance", "gap", "health"})
"""Kinds of records that do not."""
MAY: Final[Mapping[str, frozenset[str]]] = {
    "installer": frozenset({"status", "verify", "reload"}),
    "operator": frozenset({"status", "query", "override", "session"}),
    "auditor": frozenset(
        {
            "status",
            "query",
            "export",
            "names",
            "who",
            "show",
            "tail",
            "hold",
            "verify",
            "session-list",
            "registration-list",
        }
    ),
}
"""Role -> requests. The operator is the teacher or the front desk: he sees what was blocked, not where people went."""
MAX_REASON: Final = 200
_TOLD: Final = frozenset({"export", "hold", "erase"})
"""Other requests whose words go on record as they are."""


class Audit:
    """The door to the records. `note(action, object, result, detail, actor)` puts on the maintenance log."""

    def __init__(
        self,
        roles: Sequence[Role],
        note: Callable[[str, str, str, str, str], None],
        commit: Callable[[], None],
        own_uid: int,
        name_of: Callable[[int], str] | None = None,
        keeps_in: Callable[[str], str] | None = None,
    ) -> None:
        """`commit` has everything on flash when it returns; `own_uid` is the agent's; `keeps_in`: why one of EXPORTS
        may not leave, by the legal profile; empty: it may.
        """
        self.roles = tuple(roles)
        self._note, self._commit = note, commit
        self._masters = frozenset({0, own_uid})
        self._name_of = name_of or user_name
        self._keeps_in = keeps_in or (lambda name: "")

    def guard(self, word: str, handler: Handler) -> Handler:
        """The same handler, behind the door."""

        def guarded(request: Request) -> Answer:
            role, actor = self._who(request)
            self._admit(word, role, actor, request)
            answer = handler({**request, "by": actor})
            yield from _view(answer) if role == "operator" and word == "query" else answer

        return guarded

    def guard_follow(self, follow: Callable[[Request], Wanted]) -> Callable[[Request], Wanted]:
        """The same for `tail`."""

        def guarded(request: Request) -> Wanted:
            role, actor = self._who(request)
            wanted = follow(request)
            self._admit("tail", role, actor, request)
            return wanted

        return guarded

    def _who(self, request: Request) -> tuple[str, str]:
        """Role and name of whoever asks. Raises: DeniedError."""
        uid = request.get("uid")
        if not isinstance(uid, int):  # there is no socket: the agent asks itself
            return "root", "agent"
        if uid in self._masters:
            by = request.get("by")
            return "root", by[:64] if isinstance(by, str) and by else "root"
        name = self._name_of(uid)
        roles = [role.role for role in self.roles if name in role.users]
        if not roles:
            self._deny(str(request.get("do"))[:40], name, "has no role here")
        return roles[0], name

    def _admit(self, word: str, role: str, actor: str, request: Request) -> None:
        is_list = word in ("session", "registration") and request.get("action") == "list"
        is_export = word == "query" and request.get("purpose") == "export"
        if is_export:
            word = "export"
        if role != "root" and not ({word, f"{word}-list" if is_list else word} & MAY[role]):
            self._deny(word, actor, f"the role {role} does not allow it")
        # Only these two look at the kind: any other request would tell of people whatever kind it says.
        is_impersonal = word in ("query", "tail") and request.get("kind") in IMPERSONAL
        if role == "operator" and word == "query" and not is_impersonal:
            whom = [name for name in NAMING if name != "client" and request.get(name)]
            if request.get("verdict") != "block" or whom:
                self._deny(word, actor, "an operator may ask with --verdict block, by --client or --domain")
        if word in READS or word in _TOLD:
            _refuse_numbers(word, request)
        if is_export:
            self._admit_export(actor, request.get("set"))
        elif not (word in READS or is_list) or is_impersonal:
            return
        named = {name: request[name] for name in NAMING if request.get(name)}
        reason = request.get("reason", "")
        if not isinstance(reason, str) or (named and not reason.strip()):
            raise ConfigError(
                f"{word}: names a person, a device or a session ({', '.join(sorted(named))}): say why with --reason"
            )
        whose = ", ".join(f"{name} {str(value)[:80]}" for name, value in named.items())
        what = whose or str(request.get("domain") or "everybody")[:200]
        if is_export:
            what = f"{request['set']}: {what}"
        self._note(word, what, "answered", reason.strip()[:MAX_REASON], f"{actor} ({role})")
        self._commit()  # StorageError: then there is no answer either

    def _admit_export(self, actor: str, wanted: object) -> None:
        if wanted not in EXPORTS:
            raise ConfigError(f"export: expected set to be one of {', '.join(EXPORTS)}, got {wanted!r:.60}")
        if why := self._keeps_in(str(wanted)):
            self._deny("export", actor, why)

    def _deny(self, word: str, actor: str, why: str) -> NoReturn:
        self._note("denied", word, "refused", why, actor)
        self._commit()
        raise DeniedError(f"{word}: refused: {why}; it is on record that {actor} asked")


def _refuse_numbers(word: str, request: Request) -> None:
    """What is asked goes on record as it is asked, and there no telephone number may stand."""
    for name in ("account", "reason", "domain"):
        value = request.get(name)
        if isinstance(value, str) and is_phone(value):
            raise ConfigError(
                f"{word}: --{name}: a telephone number, which must not stand in the log; "
                "ask with --phone-index, from `gatehouse registration index --phone`"
            )


def user_name(uid: int) -> str:
    """Of this machine."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _view(answer: Answer) -> Iterator[Mapping[str, object]]:
    """What an operator sees of a row: no hardware address, no session."""
    for line in answer:
        row = line.get("row")
        if isinstance(row, Mapping):
            line = {"row": {key: value for key, value in row.items() if key not in ("mac", "session", "sport")}}
        yield line
