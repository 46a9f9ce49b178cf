"""A serial port with a router behind it: found at any speed, asked, and found again after the cable was out.

line = Line(port); line.find(); line.enter(password); line.call({"do": "status"}); line.put(octets); line.leave()
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import serial

from hw import password as passwords
from hw.blobs import sum_of
from hw.laptop import ports
from hw.laptop.caller import Caller
from hw.laptop.recognise import Known, looks_right, recognise
from hw.laptop.trouble import LostSessionError, TroubleError
from hw.message import Message, pack, unpack
from policy.errors import SerialError

SPEEDS: Final = (115200, 9600, 57600, 921600, 38400, 19200, 230400, 460800)
"""In the order of how often they are met."""
HELLO_S: Final = 0.2
"""A router answers hello at once; at 9600 it takes 0.2 s more to say it."""
READ_S: Final = 0.02
MAX_HEARD: Final = 16 << 10
RETRIES: Final = 8
"""Log-ins anew in one request: each is a cable that was out, or a router that started anew."""
ROOM: Final = 160
"""Octets that any request may have, whatever the piece is."""

Progress = Callable[[str, float], None]
"""What is done, and how much of it: 0 to 1."""


class Stream(Protocol):
    """What is used of `serial.Serial`."""

    @property
    def in_waiting(self) -> int: ...

    def read(self, size: int = 1, /) -> bytes: ...

    def write(self, data: bytes, /) -> int | None: ...

    def close(self) -> None: ...


def open_port(name: str, baud: int) -> Stream:
    """Raises: serial.SerialException, OSError."""
    return serial.Serial(name, baud, timeout=READ_S, write_timeout=10.0, rtscts=False, dsrdtr=False, xonxoff=False)


class Line:
    """One port. `patience_s`: so long a cable may be out."""

    def __init__(
        self,
        port: str,
        baud: int = 0,
        *,
        patience_s: float = 60.0,
        find_s: float = 25.0,
        open_stream: Callable[[str, int], Stream] = open_port,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.port = port
        self.baud = baud
        """0: not found yet."""
        self.unplugged = 0
        self._asked_baud = baud
        self._patience_s, self._find_s = patience_s, find_s
        self._open, self._clock = open_stream, clock
        self._identity = ports.identity_of(port)
        self._stream: Stream | None = None
        self._caller = Caller(0, baud or SPEEDS[0])
        self._password = ""
        self._is_in = False
        self._was_set: tuple[str, str] | None = None
        self._heard = b""

    @property
    def counters(self) -> Mapping[str, int]:
        """Requests sent, and how many of them again."""
        return self._caller.counters

    def find(self) -> Mapping[str, object]:
        """Find the speed and the console. Returns what it said to hello. Raises: TroubleError, with what is there."""
        deadline = self._clock() + self._find_s
        seen: Known | None = None
        answered = 0
        heard_any = False
        speeds = [self._asked_baud] if self._asked_baud else list(SPEEDS)
        passes = 0
        while True:
            passes += 1
            for baud in speeds:
                found, text, data = self._try(baud)
                if found is None and not data:  # on a bad line, one hello in three is lost
                    found, text, data = self._try(baud)
                heard_any = heard_any or bool(data)
                # Right speed, but hurt frames: stay, the line is noisy.
                tries = 40 if looks_right(data) and b"\x1e" in data else 1
                while found is None and tries and self._clock() < deadline:
                    tries -= 1
                    found, more, data = self._try(baud)
                    text += more
                if found is not None:
                    return found
                known = recognise(text)
                # Whoever echoes our hello is a terminal that waits for a line.
                if known is None and (passes > 1 or '"do":"hello"' in text):
                    text += self._poke()
                    known = recognise(text)
                if known is not None:
                    seen = known
                    if known.answer and answered < 6:
                        answered += 1
                        self._write(known.answer)
                        self._listen(0.5)
                        # The console's process takes a second or two to start; stay at this speed.
                        until = min(deadline, self._clock() + (5.0 if known.name != "activate" else 0.5))
                        while self._clock() < until:
                            found, text, data = self._try(baud)
                            if found is not None:
                                return found
                    deadline = min(deadline, self._clock() + 6.0) if not known.answer else deadline
                if self._clock() >= deadline:
                    self.close()
                    raise self._nothing(seen, heard_any)

    def enter(self, password: str) -> bool:
        """Log in; on a router without a password, this becomes it. Returns: was it the first? Raises: TroubleError."""
        self._password = password
        return self._log_in()

    def call(self, head: Mapping[str, object], data: bytes = b"") -> Message:
        """One request and its reply, whatever happens to the line. Raises: SerialError: the router's words, or ours."""
        for _ in range(RETRIES):
            try:
                return self._call(head, data)
            except LostSessionError:
                self._log_in()
        raise TroubleError(f"{head.get('do')}: the router lost the session again and again", "look at its power supply")

    def put(self, octets: bytes, progress: Progress | None = None, what: str = "") -> str:
        """Send a file; what is there of it already is not sent again. Returns its sum. Raises: SerialError."""
        for _ in range(RETRIES):
            try:
                return self._put(octets, progress, what)
            except LostSessionError:
                self._log_in()
        raise TroubleError("file: the router lost the session again and again", "look at its power supply")

    def leave(self) -> None:
        """Say bye, and close the port."""
        try:
            if self._stream is not None and self._is_in:
                self._exchange({"do": "bye"}, b"")
        except SerialError:
            pass
        self._is_in = False
        self.close()

    def close(self) -> None:
        """The port is free."""
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                stream.close()
            except OSError:
                pass

    def _try(self, baud: int) -> tuple[Mapping[str, object] | None, str, bytes]:
        """One hello at one speed: its reply, and else what came."""
        if self._stream is None or baud != self.baud:
            self.close()
            self.baud = baud
            try:
                self._stream = self._open(self.port, baud)
            except (OSError, serial.SerialException) as error:
                self._wait_for_port(error)
            except ValueError as error:
                raise TroubleError(f"{self.port}: {error}", "use another adapter, or another speed") from None
        self._caller = Caller(int.from_bytes(os.urandom(4), "big"), baud)
        self._heard = b""
        self._caller.begin({"do": "hello", "m": 240}, b"", self._clock())
        self._write(self._caller.take_output())
        until = self._clock() + HELLO_S + 3000 / baud
        while self._caller.reply is None and self._clock() < until:
            self._caller.receive(self._read(), self._clock())
        reply = self._caller.reply
        if reply is not None and reply.head.get("gatehouse") == 1:
            return reply.head, "", b""
        return None, self._heard.decode("utf-8", "replace"), self._heard

    def _poke(self) -> str:
        self._write(b"\x15\r")
        self._listen(0.3)
        return self._heard.decode("utf-8", "replace")

    def _listen(self, seconds: float) -> None:
        until = self._clock() + seconds
        while self._clock() < until:
            self._read()

    def _nothing(self, seen: Known | None, heard_any: bool) -> TroubleError:
        if seen is not None:
            return TroubleError(f"{self.port}: {seen.what}", seen.mend)
        if heard_any:
            return TroubleError(
                f"{self.port}: something writes, but at no speed that is known",
                "check GND and the adapter's voltage (3.3 V); name the speed with --baud",
            )
        return TroubleError(
            f"{self.port}: the device does not answer",
            "check cable, adapter (TX to RX, GND) and power; is Gatehouse installed, and this its line?",
        )

    def _log_in(self) -> bool:
        """A new session. Returns: was the password set by it?"""
        self._is_in = False
        for _ in range(RETRIES):
            try:
                hello = self._hello()
                if "salt" not in hello:
                    self._set_first()
                    self._is_in = True
                    return True
                self._prove(hello)
                self._is_in = True
                return False
            except LostSessionError:
                continue
        raise TroubleError("login: the router lost the session again and again", "look at its power supply")

    def _hello(self) -> Mapping[str, object]:
        counters = self._caller.counters
        self._caller = Caller(int.from_bytes(os.urandom(4), "big"), self.baud)
        self._caller.counters.update(counters)
        return self._call({"do": "hello"}, b"").head

    def _set_first(self) -> None:
        if not self._password:
            raise TroubleError("the router has no password yet", "give it one: --password, or [console] in the profile")
        verifier = passwords.make_verifier(self._password, os.urandom(passwords.SALT_SIZE))
        self._call({"do": "password", "salt": verifier.salt.hex(), "stored": verifier.stored.hex()}, b"")

    def _prove(self, hello: Mapping[str, object]) -> None:
        locked_s = hello.get("locked_s")
        if locked_s:
            raise TroubleError(f"login: locked for {locked_s} s", "wait; five wrong passwords in a row did this")
        if not self._password:
            raise TroubleError("login: this router has a password", "give it: --password, or [console] in the profile")
        salt, nonce = bytes.fromhex(str(hello["salt"])), bytes.fromhex(str(hello["nonce"]))
        key = passwords.derive(self._password, salt)
        try:
            self._call({"do": "login", "proof": passwords.prove(key, nonce).hex()}, b"")
        except LostSessionError:
            raise
        except SerialError as error:
            mend = "use the password that this router was given, or reset it by its button"
            raise TroubleError(str(error), mend) from None

    def _call(self, head: Mapping[str, object], data: bytes) -> Message:
        if not data and len(pack(head)) > max(ROOM, self._caller.piece) and self._is_in:
            head = {"do": "call", "sum": self._put(pack(head)[2:], None, "")}
        reply = self._exchange(head, data)
        assert reply is not None
        reply = self._checked(reply)
        return self._rest(reply) if "more" in reply.head else reply

    def _rest(self, first: Message) -> Message:
        """A long reply, piece by piece."""
        size, wanted = first.integer("more"), first.text("sum")
        octets = b""
        while len(octets) < size:
            reply = self._exchange({"do": "more", "at": len(octets)}, b"", may_split=True)
            if reply is not None:
                if not self._checked(reply).data:
                    raise LostSessionError("more: the reply is not there any more")
                octets += reply.data
        if sum_of(octets) != wanted:
            raise SerialError("reply: its check sum is another one; ask again")
        return self._checked(unpack(octets))

    def _put(self, octets: bytes, progress: Progress | None, what: str) -> str:
        name, size = sum_of(octets), len(octets)
        reply = self._checked(self._must({"do": "put", "sum": name, "size": size, "at": size + 1}))
        at, bad = reply.integer("at"), 0
        while not reply.head.get("whole"):
            piece = octets[at : at + self._caller.piece]
            answer = self._exchange({"do": "p", "at": at}, piece, may_split=True)
            if answer is None:
                continue
            reply = self._checked(answer)
            was, at = at, reply.integer("at", size)
            bad += at < was
            if bad > 3:
                raise TroubleError("file: does not arrive as it was sent", "look at the router's flash")
            if progress:
                progress(what, at / max(1, size))
        return name

    def _must(self, head: Mapping[str, object]) -> Message:
        reply = self._exchange(head, b"")
        assert reply is not None
        return reply

    def _checked(self, reply: Message) -> Message:
        if reply.head.get("lost"):
            raise LostSessionError(str(reply.head["error"]))
        if "error" in reply.head:
            raise SerialError(str(reply.head["error"]))
        return reply

    def _exchange(self, head: Mapping[str, object], data: bytes, *, may_split: bool = False) -> Message | None:
        """One frame and its answer. None: it did not get through, and a shorter one might."""
        caller = self._caller
        tried = caller.counters["again"]
        caller.begin(head if data else {**head, "m": caller.piece}, data, self._clock())
        while caller.reply is None:
            self._write(caller.take_output())
            caller.receive(self._read(), self._clock())
            if may_split and caller.counters["again"] >= tried + 2:
                return None
            caller.handle_timer(self._clock())
        return caller.reply

    def _read(self) -> bytes:
        try:
            assert self._stream is not None
            data = self._stream.read(max(1, self._stream.in_waiting))
        except (OSError, TypeError, serial.SerialException) as error:  # TypeError: pyserial's, of a port that closes
            self._wait_for_port(error)
            return b""
        self._heard = (self._heard + data)[-MAX_HEARD:]
        return data

    def _write(self, data: bytes) -> None:
        if not data:
            return
        try:
            assert self._stream is not None
            self._stream.write(data)
        except (OSError, serial.SerialException) as error:
            self._wait_for_port(error)

    def _wait_for_port(self, error: Exception) -> None:
        """The cable is out: wait until it is in again, under whatever name."""
        self.unplugged += 1
        self.close()
        deadline = self._clock() + self._patience_s
        while self._stream is None:
            if self._clock() >= deadline:
                raise TroubleError(
                    f"{self.port}: {error}",
                    "plug the cable in again; close other programs on this port",
                )
            try:
                self.port = ports.renamed(self.port, self._identity)
                self._stream = self._open(self.port, self.baud)
            except (OSError, serial.SerialException) as again:
                error = again
                time.sleep(0.1)
        self._caller.restart(self._clock())
