"""One serial line of the router: a person or a script at its other end, or noise. Sans-I/O.

    console.receive(octets, now); write(console.take_output()); job = console.take_job()  # done in a thread, then:
    console.finish(result, now); console.handle_timer(now); console.next_timer()

Asleep until somebody presses Enter, so that a boot log, a modem or the wrong speed starts nothing. A right frame makes
it a script's line, until the script says bye, is silent for 20 s, or somebody presses Enter three times.
Rule: never two orders at once; every login, failure, lock and logout is told to `note`.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable
from typing import Final

from hw import commands
from hw.commands import Answer, Ask
from hw.edit import Editor, Typed, What
from hw.frame import Decoder
from hw.machine import Job, Machine
from hw.orders import Orders
from hw.password import SALT_SIZE, Access, derive, is_key, make_verifier
from hw.words import complete, say
from policy.errors import GatehouseError

PROMPT_S: Final = 60.0
"""Nobody types a password for so long: asleep again."""
SCRIPT_SILENT_S: Final = 20.0
FRAME_S: Final = 1.0
"""A frame that has begun and does not go on is given up, or a person's keys would go into it."""
BUSY_S: Final = 1.0
MAX_AHEAD: Final = 4096
"""Octets typed while an order is worked on; a pasted script is longer than a line."""
MAX_OUTPUT: Final = 256 << 10
"""Nobody reads: what is older is dropped."""


class Mode(enum.Enum):
    """Where the line is."""

    ASLEEP = enum.auto()
    PASSWORD = enum.auto()
    NEW_PASSWORD = enum.auto()
    IN = enum.auto()


class Console:
    """`device_name` stands in the banner; `terminal` in records, as `/dev/ttyS1`."""

    def __init__(
        self, orders: Orders, access: Access, terminal: str, *, idle_s: float, language: str, banner: str = ""
    ) -> None:
        self.orders, self.access, self.terminal = orders, access, terminal
        self.counters = {"lines": 0, "noise": 0}
        self._banner = banner
        self._idle_s, self._language, self._default = idle_s, language, language
        self._mode = Mode.ASLEEP
        self._has_left = False
        self._decoder = Decoder()
        self._editor = Editor(lambda before: complete(before, self._language))
        self._editor.start("", is_shown=False)
        self._machine = Machine(orders, access, self._note_script)
        self._output = bytearray()
        self._ahead = b""
        self._job: Job | None = None
        self._is_working = False
        self._ask: Ask | None = None
        self._gathered: list[str] = []
        self._new = ""
        self._is_change = False
        self._returns = 0
        self._touched = 0.0
        self._frame_touched = 0.0
        self._busy_told = 0.0

    @property
    def actor(self) -> str:
        """Who orders, for the record."""
        return f"console {self.terminal}"

    @property
    def is_logged_in(self) -> bool:
        """A person is."""
        return self._mode is Mode.IN

    @property
    def has_left(self) -> bool:
        """Somebody was here, a person or a script, and is not any more."""
        return self._has_left and self._mode is Mode.ASLEEP and not self._machine.is_open and not self._is_working

    def receive(self, data: bytes, now: float) -> None:
        """What came over the line."""
        self._frame_touched = now
        frames, plain = self._decoder.receive(data)
        was_script = self._machine.is_open
        for frame in frames:
            if self._machine.receive(frame, now):
                self._touched = now
                if not was_script:
                    self._leave("script")
        self._take_machine()
        if self._machine.is_open or (was_script and frames):
            self._hear_person(plain)
            return
        self._ahead = (self._ahead + plain)[:MAX_AHEAD]
        self._work_off(now)

    def take_output(self) -> bytes:
        """Octets for the line."""
        output = bytes(self._output)
        self._output.clear()
        return output

    def take_job(self) -> Job | None:
        """Work to be done in a thread. Its `run` may raise GatehouseError; then `finish` gets that."""
        job, self._job = self._job, None
        return job

    def finish(self, job: Job, result: object, now: float) -> None:
        """The work is done."""
        self._is_working = False
        self._touched = now
        job.finish(result, now)
        self._take_machine()
        self._work_off(now)

    def handle_timer(self, now: float) -> None:
        """What time brings: idle logout, a frame that was cut off, a commit that nobody confirmed."""
        if self._decoder.is_inside and now - self._frame_touched >= FRAME_S:
            self._decoder.abandon()
        if self._is_working:
            if now - self._busy_told >= BUSY_S:
                self._busy_told = now
                self._machine.tell_busy()
                self._take_machine()
            return
        if self._machine.is_open and now - self._touched >= SCRIPT_SILENT_S:
            self._machine.close()
        if self._mode is not Mode.ASLEEP and now - self._touched >= self._patience_s():
            if self._mode is Mode.IN:
                self._say("idle", int(self._idle_s))
            self._leave("idle")
        if self.orders.confirm_by is not None and now >= self.orders.confirm_by:
            self._start(lambda: self.orders.handle_timer(now), self._taken_back)

    def next_timer(self, now: float) -> float | None:
        """When `handle_timer` is wanted; None: never."""
        due = []
        if self._decoder.is_inside:
            due.append(self._frame_touched + FRAME_S)
        if self._is_working:
            due.append(self._busy_told + BUSY_S)
        else:
            if self._machine.is_open:
                due.append(self._touched + SCRIPT_SILENT_S)
            if self._mode is not Mode.ASLEEP:
                due.append(self._touched + self._patience_s())
            if self.orders.confirm_by is not None:
                due.append(self.orders.confirm_by)
        return max(now, min(due)) if due else None

    def line_lost(self) -> None:
        """The cable is out, as far as anybody can tell: whoever was in, is out."""
        self._decoder.abandon()
        self._ahead = b""
        self._leave("line lost")

    def _patience_s(self) -> float:
        return self._idle_s if self._mode is Mode.IN else PROMPT_S

    def _take_machine(self) -> None:
        self._output += self._machine.take_output()
        if self._machine.job is not None and not self._is_working:
            self._start_job(self._machine.job)
            self._machine.job = None

    def _hear_person(self, plain: bytes) -> None:
        """While a script has the line: three Enters with nothing between them take it back."""
        for octet in plain:
            self._returns = self._returns + 1 if octet == 0x0D else 0
            if self._returns >= 3 and not self._is_working:
                self._returns = 0
                self._machine.close()
                self._wake(self._touched)
                return

    def _work_off(self, now: float) -> None:
        """Keys, until an order is under way."""
        while self._ahead and not self._is_working:
            typed, self._ahead = self._editor.receive(self._ahead)
            self._put(self._editor.take_output())
            if self._mode is not Mode.ASLEEP:
                self._touched = now
            if typed is not None:
                self._take(typed, now)

    def _take(self, typed: Typed, now: float) -> None:
        """A line, or what else keys can mean."""
        self.counters["lines"] += 1
        if typed.what is What.NOISE:
            self.counters["noise"] += 1
        if self._mode is Mode.ASLEEP:
            if typed.what in (What.LINE, What.NOISE):
                self._wake(now)
        elif typed.what is What.NOISE:
            self._say("noise")
            self._ask, self._gathered = None, []
            self._prompt()
        elif typed.what is What.END or (typed.what is What.CANCEL and self._mode is not Mode.IN):
            self._leave("ended")
        elif typed.what is What.CANCEL:
            self._ask, self._gathered = None, []
            self._prompt()
        elif self._mode is Mode.PASSWORD:
            self._take_password(typed.text)
        elif self._mode is Mode.NEW_PASSWORD:
            self._take_new_password(typed.text)
        else:
            self._take_line(typed.text)

    def _wake(self, now: float) -> None:
        self._touched = now
        self._put(f"\r\n{say(self._language, 'banner')} {self._banner}\r\n".encode())
        if locked_s := self.access.locked_s(now):
            self._say("locked", int(locked_s) + 1)
            self._has_left = True
            return
        if self.access.verifier is None:
            self._say("first")
            self._mode, self._is_change = Mode.NEW_PASSWORD, False
        else:
            self._mode = Mode.PASSWORD
        self._prompt()

    def _prompt(self) -> None:
        """Of wherever we are."""
        language = self._language
        match self._mode:
            case Mode.ASLEEP:
                self._editor.start("", is_shown=False)
            case Mode.PASSWORD:
                # Both, for whoever sits there has not said yet which he reads.
                prompt = f"{say('en', 'password').strip(': ')} / {say('zh', 'password')}"
                self._editor.start(prompt, is_secret=True)
            case Mode.NEW_PASSWORD:
                self._editor.start(say(language, "again" if self._new else "new"), is_secret=True)
            case Mode.IN if self._ask is not None:
                self._editor.start(self._ask.prompt, is_secret=self._ask.is_secret)
            case Mode.IN:
                self._editor.start("gatehouse> " if self.orders.staging.is_empty else "gatehouse*> ")
        self._put(self._editor.take_output())

    def _take_password(self, text: str) -> None:
        if not text:
            self._prompt()
            return
        verifier = self.access.verifier
        assert verifier is not None
        self._start(lambda: derive(text, verifier.salt), self._judge)

    def _judge(self, key: object, now: float) -> None:
        if isinstance(key, bytes) and self.access.admit(lambda verifier: is_key(key, verifier), now):
            self._mode, self._new = Mode.IN, ""
            self._note("login", "ok")
            self._say("welcome")
            self._prompt()
            return
        self._note("login-failed", "refused")
        locked_s = self.access.locked_s(now)
        if locked_s:
            self._note("lock-out", f"{int(locked_s)} s", "five failures in a row")
            self._say("locked", int(locked_s) + 1)
            self._mode, self._has_left = Mode.ASLEEP, True
        else:
            self._say("wrong")
        self._prompt()

    def _take_new_password(self, text: str) -> None:
        if not self._new:
            self._new = text
            self._prompt()
            return
        first, self._new = self._new, ""
        if first != text:
            self._say("differ")
            self._prompt()
            return
        self._start(lambda: make_verifier(text, os.urandom(SALT_SIZE)), self._set_password)

    def _set_password(self, result: object, now: float) -> None:
        if isinstance(result, GatehouseError):
            self._say("error", result)
            self._mode = Mode.IN if self._is_change else Mode.NEW_PASSWORD
            self._prompt()
            return
        self.access.set_password(result)  # type: ignore[arg-type]  # a Verifier: of make_verifier
        self._mode = Mode.IN
        self._note("password", "changed" if self._is_change else "set")
        if self._is_change:
            self._say("changed")
        else:
            self._note("login", "ok")
            self._say("welcome")
        self._prompt()

    def _take_line(self, text: str) -> None:
        if self._ask is not None:
            self._take_reply(text)
            return
        language = self._language
        try:
            words = commands.split(text)
        except GatehouseError as error:
            self._say("error", error)
            self._prompt()
            return
        if not words:
            self._prompt()
            return
        if commands.holds_secret(words):
            self._say("inline")
            self._prompt()
            return
        self._editor.remember(text)
        if words[0] in ("history", "历史"):
            self._show(Answer(self._editor.history))
            return
        if words[0] in ("commit", "提交"):
            self._say("checking")
        self._start(lambda: commands.run(self.orders, words, language, self.actor), self._show)

    def _take_reply(self, text: str) -> None:
        ask = self._ask
        assert ask is not None
        if ask.until:
            self._gathered.append(text)
            if not text.startswith(ask.until) and sum(map(len, self._gathered)) < commands.MAX_PASTE:
                self._prompt()
                return
            text = "\n".join([*self._gathered, ""])
        self._ask, self._gathered = None, []
        self._start(lambda: ask.then(text), self._show)

    def _show(self, result: object, now: float = 0.0) -> None:
        """What a word gave."""
        if isinstance(result, GatehouseError):
            self._say("error", result)
            self._prompt()
            return
        assert isinstance(result, Answer)
        self._language = result.language or self._language
        self._put("".join(f"{line}\r\n" for line in result.lines).encode("utf-8", "replace"))
        self._ask = result.ask
        match result.event:
            case "logout":
                self._leave("ended")
                return
            case "reset":
                self._leave("factory reset")
                return
            case "password":
                self._mode, self._is_change, self._new = Mode.NEW_PASSWORD, True, ""
        self._prompt()

    def _taken_back(self, result: object, now: float) -> None:
        self._say("error", result) if isinstance(result, GatehouseError) else self._say("not_confirmed")
        if self._mode is not Mode.ASLEEP:
            self._prompt()

    def _leave(self, why: str) -> None:
        """Nobody is in any more."""
        if self._mode is Mode.IN:
            self._note("logout", "ok", why)
            if why == "ended":
                self._say("bye")
        self._has_left = True
        self._mode, self._ask, self._gathered, self._new = Mode.ASLEEP, None, [], ""
        self._language = self._default
        self._editor.history = []
        self._editor.start("", is_shown=False)
        if why == "line lost":
            self._machine.close()
            self._output.clear()

    def _start(self, run: Callable[[], object], finish: Callable[[object, float], None]) -> None:
        self._start_job(Job(run, finish))

    def _start_job(self, job: Job) -> None:
        assert not self._is_working
        self._job, self._is_working = job, True

    def _note(self, action: str, result: str, detail: str = "") -> None:
        self.orders.device.note(action, self.terminal, result, detail, self.actor)

    def _note_script(self, action: str, result: str, detail: str) -> None:
        self.orders.device.note(action, self.terminal, result, detail, "serial script")

    def _say(self, what: str, *values: object) -> None:
        self._put(f"{say(self._language, what, *values)}\r\n".encode("utf-8", "replace"))

    def _put(self, octets: bytes) -> None:
        if self._machine.is_open:  # the line is a script's
            return
        self._output += octets
        del self._output[: max(0, len(self._output) - MAX_OUTPUT)]
