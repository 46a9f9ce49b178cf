"""The router's end of the machine mode: frames in, frames out; each request is done once. Sans-I/O.

A request that comes again gets the reply that was lost, or BUSY while it is worked on. A reply that is longer than the
laptop wants to hear at once (`m`) is kept, and fetched piece by piece with `more`; a request that is longer than a
frame is sent as a file, and done with `call`.
Rule: before `login` only hello, facts, more and the first password are answered; any octets give a reply or nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from hw.blobs import sum_of
from hw.frame import MAX_PAYLOAD, Frame, Kind, encode
from hw.message import Message, pack, read_object, unpack
from hw.orders import Orders, Outcome
from hw.password import KEY_SIZE, SALT_SIZE, Access, Verifier, is_proof
from policy.errors import GatehouseError, SerialError

ACTOR: Final = "serial script"
_OPEN: Final = frozenset({"hello", "facts", "more", "login", "password", "bye"})
Reply = Mapping[str, object]


class Job(NamedTuple):
    """Work that takes a while: done in a thread; `finish` in the loop."""

    run: Callable[[], object]
    finish: Callable[[object, float], None]
    """What `run` returned, or the GatehouseError it raised, and the time."""


class Machine:
    """One line's sessions, one at a time."""

    def __init__(self, orders: Orders, access: Access, note: Callable[[str, str, str], None]) -> None:
        """`note(action, result, detail)`: what concerns this line goes on record."""
        self._orders, self._access, self._note = orders, access, note
        self._session = -1
        self._is_in = False
        self._nonce = b""
        self._seq = -1
        self._reply = b""
        self._is_working = False
        self._long = b""
        self._file = ("", 0)
        self._output = bytearray()
        self.job: Job | None = None

    @property
    def is_open(self) -> bool:
        """A session is under way."""
        return self._session >= 0

    def receive(self, frame: Frame, now: float) -> bool:
        """One frame. Returns: does it belong to a session (and so keeps the line in machine mode)?"""
        if frame.kind != Kind.REQUEST:
            return False
        try:
            message = unpack(frame.payload)
        except SerialError:
            return False
        if message.head.get("do") == "hello" and frame.session != self._session:
            if self._is_working:  # of a session that was left; its reply is of no use to this one
                self._output += encode(Frame(Kind.BUSY, frame.session, frame.seq, b""))
                return True
            self.close()
            self._session = frame.session
        if frame.session != self._session:
            self._answer(frame, {"error": "session: say hello first", "lost": True}, 1 << 12)
            return False
        if frame.seq == self._seq:
            busy = encode(Frame(Kind.BUSY, frame.session, frame.seq, b""))
            self._output += busy if self._is_working else self._reply
            return True
        if self._is_working:
            return True
        self._seq = frame.seq
        self._start(frame, message, now)
        return True

    def take_output(self) -> bytes:
        """Octets for the line."""
        output = bytes(self._output)
        self._output.clear()
        return output

    def tell_busy(self) -> None:
        """Once a second while it works: the laptop is to wait on."""
        if self._is_working:
            self._output += encode(Frame(Kind.BUSY, self._session, self._seq, b""))

    def close(self) -> None:
        """The session is over."""
        if self._is_in:
            self._note("logout", "ok", "serial script")
        self._session, self._seq, self._is_in, self._long, self._nonce = -1, -1, False, b"", b""

    def _start(self, frame: Frame, message: Message, now: float) -> None:
        """Do it here, if it is done at once; else as a job."""
        word = str(message.head.get("do"))[:20]
        try:
            wanted = max(24, message.integer("m", 1 << 20) or MAX_PAYLOAD - 64)
            if not self._is_in and word not in _OPEN:
                raise SerialError(f"{word}: log in first")
            match word:
                case "hello":
                    self._answer(frame, self._hello(now), wanted)
                case "bye":
                    self._answer(frame, {}, wanted)
                    self.close()
                case "more":
                    at = message.integer("at")
                    self._answer(frame, {}, wanted, self._long[at : at + wanted])
                case "login":
                    self._answer(frame, self._login(message, now), wanted)
                case "password":
                    self._answer(frame, self._password(message), wanted)
                case _:
                    self._is_working = True
                    self.job = Job(
                        lambda: self._do(word, message), lambda found, then: self._finish(frame, found, wanted)
                    )
        except GatehouseError as error:
            self._answer(frame, {"error": str(error)}, 1 << 12)

    def _finish(self, frame: Frame, found: object, wanted: int) -> None:
        self._is_working = False
        if isinstance(found, GatehouseError):
            found = {"error": str(found)}
        assert isinstance(found, Mapping)
        self._answer(frame, found, wanted)

    def _answer(self, frame: Frame, head: Reply, wanted: int, data: bytes = b"") -> None:
        payload = pack(head, data)
        if len(payload) > min(wanted, MAX_PAYLOAD) + 24 and not data:
            self._long = payload
            payload = pack({"more": len(payload), "sum": sum_of(payload)})
        reply = encode(Frame(Kind.REPLY, frame.session, frame.seq, payload))
        if frame.session == self._session:
            self._reply = reply
        self._output += reply

    def _hello(self, now: float) -> Reply:
        self._nonce = os.urandom(16)
        verifier = self._access.verifier
        found: dict[str, object] = {"gatehouse": 1, "nonce": self._nonce.hex()}
        if verifier:
            found["salt"] = verifier.salt.hex()
        if locked_s := self._access.locked_s(now):
            found["locked_s"] = int(locked_s) + 1
        return found

    def _login(self, message: Message, now: float) -> Reply:
        if self._access.verifier is None:
            raise SerialError("login: there is no password yet; set the first one")
        nonce, self._nonce = self._nonce, b""
        proof = message.octets("proof", KEY_SIZE)
        if not nonce:
            raise SerialError("login: say hello again, for a new nonce")
        was_locked = self._access.locked_s(now)
        if not was_locked and self._access.admit(lambda verifier: is_proof(proof, nonce, verifier), now):
            self._is_in = True
            self._note("login", "ok", ACTOR)
            return {}
        if not was_locked:  # a script that goes on knocking at a locked door must not wear the flash
            self._note("login-failed", "refused", ACTOR)
        locked_s = self._access.locked_s(now)
        if locked_s and not was_locked:
            self._note("lock-out", f"{int(locked_s)} s", "five failures in a row")
        wait = f"; locked for {int(locked_s) + 1} s" if locked_s else ""
        return {"error": f"login: the password is not right{wait}", "locked_s": int(locked_s + 0.999)}

    def _password(self, message: Message) -> Reply:
        if self._access.verifier is not None and not self._is_in:
            raise SerialError("password: there is one already; log in first")
        verifier = Verifier(message.octets("salt", SALT_SIZE), message.octets("stored", KEY_SIZE))
        is_first = self._access.verifier is None
        self._access.set_password(verifier)
        self._is_in = True
        self._note("password", "set" if is_first else "changed", ACTOR)
        return {}

    def _do(self, word: str, message: Message) -> Reply:
        """In the thread of the job. Raises: GatehouseError."""
        orders = self._orders
        match word:
            case "facts":
                return {**orders.device.facts(), "staged": len(orders.staging.edits), "commit": orders.staging.state}
            case "status":
                return {"status": orders.device.status()}
            case "put" | "p":
                # `p`: more of the same, without 60 octets that a bad line would have to carry each time.
                if word == "put":
                    self._file = message.text("sum"), message.integer("size")
                name, size = self._file
                have, is_whole = orders.blobs.put(name, size, message.integer("at"), message.data)
                return {"at": have, "whole": is_whole} if is_whole else {"at": have}
            case "call":
                inner = Message(read_object(orders.blobs.get(message.text("sum"))))
                called = inner.text("do")
                if called in ("call", *_OPEN):
                    raise SerialError(f"call: {called!r} is not to be called")
                return self._do(called, inner)
            case "set":
                return self._set(message)
            case "discard":
                orders.discard()
            case "check":
                orders.check()
            case "show":
                return {"lines": orders.staging.differences()}
            case "file":
                orders.add_file(message.text("kind"), message.text("sum"))
            case "csr":
                return {"request": orders.request_certificate(message.head.get("renew") is True, ACTOR).decode()}
            case "certificate":
                return {"path": orders.install_certificate(orders.blobs.get(message.text("sum")), ACTOR)}
            case "commit":
                return self._commit(message)
            case "confirm":
                # Asked again after its answer was lost with the session, there is nothing left to confirm.
                if orders.staging.state != "done":
                    orders.confirm(ACTOR)
            case "rollback":
                return {"paths": orders.rollback(ACTOR)}
            case "test":
                return {"findings": [list(finding) for finding in orders.device.test()]}
            case "bundle":
                files = message.head.get("files")
                if not isinstance(files, dict) or not all(isinstance(each, str) for each in files.values()):
                    raise SerialError("bundle: expected files, names to sums")
                return {"result": orders.take_bundle(message.text("name", 64), files, ACTOR)}
            case "policy":
                return {"lines": list(orders.device.policy(message.text("words").split()))}
            case "factory-reset":
                orders.factory_reset(ACTOR)
            case _:
                raise SerialError(f"request: unknown word {word!r}")
        return {}

    def _set(self, message: Message) -> Reply:
        edits = message.head.get("edits")
        if not isinstance(edits, list) or not all(isinstance(e, list) and e and _are_words(e) for e in edits):
            raise SerialError("set: expected edits, a list of lists of words")
        self._orders.set_all([(name, words) for name, *words in edits])
        return {"staged": len(self._orders.staging.edits)}

    def _commit(self, message: Message) -> Reply:
        """Once for each `id`, even if the session was lost in the middle and it is asked again."""
        orders, commit = self._orders, message.text("id", 64)
        found = orders.staging.outcome(commit)
        if found is not None:
            return found
        outcome = orders.commit(ACTOR, message.integer("confirm_s", 3600))
        reply = reply_of(outcome)
        if commit:
            orders.staging.set_outcome(commit, reply)
        return reply


def reply_of(outcome: Outcome) -> Reply:
    """For the line, and for flash."""
    return {
        "kept": outcome.is_kept,
        "why": outcome.why,
        "findings": [list(finding) for finding in outcome.findings],
    }


def _are_words(words: list[object]) -> bool:
    return all(isinstance(word, str) and len(word) <= 512 for word in words) and len(words) <= 64
