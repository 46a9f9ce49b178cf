"""One router, from blank to done: each step on its report, the old configuration in place until the last is over."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

from hw.laptop import sign
from hw.laptop.line import Line
from hw.laptop.profile import Plan, Profile, request_of
from hw.laptop.report import Report
from hw.laptop.trouble import TroubleError, mend_of
from policy.errors import GatehouseError

STEPS: Final = ("find", "login", "identify", "files", "settings", "certificate", "commit", "confirm", "policy", "test")
_WEIGHT: Final = 1 / len(STEPS)
_SETTINGS_A_TIME: Final = 12

Tell = Callable[[str, float], None]
"""What is done now, and how much of the whole: 0 to 1."""


class Provision:
    """Order of calls: `run`. What happened is in `report`, whatever happens."""

    def __init__(
        self, line: Line, profile: Profile, plan: Plan, tell: Tell, *, is_dry: bool = False, again: bool = False
    ):
        """`again`: a router that is another venue's already is taken too."""
        self._line, self._profile, self._plan, self._tell = line, profile, plan, tell
        self._is_dry, self._again = is_dry, again
        self._step = ""
        self._is_committed = False
        self.report = Report(plan.number, line.port, is_dry)

    def run(self) -> Report:
        """Do it. Raises nothing of ours: what went wrong is on the report, with the mend."""
        begun = time.monotonic()
        try:
            for step in STEPS:
                self._run_step(step)
            self.report.is_ok = True
        except GatehouseError as error:
            self.report.fail(self._step, str(error), mend_of(error))
            self._take_back()
        finally:
            self.report.seconds = round(time.monotonic() - begun, 2)
            self.report.baud, self.report.port = self._line.baud, self._line.port
            self.report.unplugged = self._line.unplugged
            self._line.leave()
        return self.report

    def _run_step(self, step: str) -> None:
        self._step = step
        self._tell(step, STEPS.index(step) * _WEIGHT)
        begun = time.monotonic()
        done = {
            "find": self._find, "login": self._login, "identify": self._identify, "files": self._send_files,
            "settings": self._stage, "certificate": self._certify, "commit": self._commit, "confirm": self._confirm,
            "policy": self._send_policy, "test": self._test,
        }[step]()  # fmt: skip
        self.report.steps.append({"step": step, "seconds": round(time.monotonic() - begun, 3), "what": done})

    def _find(self) -> str:
        self._line.find()
        return f"{self._line.port} at {self._line.baud}"

    def _login(self) -> str:
        password = self._plan.password
        if not password and self._profile.generates_password:
            password = secrets.token_urlsafe(9)
        is_first = self._line.enter(password)
        if is_first and not self._plan.password:
            self.report.password = password
        return "password set" if is_first else "logged in"

    def _identify(self) -> str:
        facts = self._line.call({"do": "facts"}).head
        mac = str(facts.get("mac", "")).replace(":", "").upper()
        self.report.mac, self.report.release = mac, str(facts.get("release", ""))
        if self._plan.mac and self._plan.mac != mac:
            raise TroubleError(
                f"this is {mac}, and row {self._plan.number} is for {self._plan.mac}",
                "plug in the router of this row, or correct the column mac",
            )
        venue, wanted = str(facts.get("venue", "")), self._plan.value("venue")
        if venue and wanted and venue != wanted and not self._again:
            raise TroubleError(
                f"this router is venue {venue}'s already",
                "take the next one; or, if it moves to the new venue, --again",
            )
        if facts.get("commit") == "confirm":
            self._line.call({"do": "rollback"})
        return f"{mac}, release {self.report.release}, {facts.get('state')}"

    def _send_files(self) -> str:
        self._files = []
        for number, (kind, path) in enumerate(self._profile.files):
            self._files.append((kind, self._send(path, number, len(self._profile.files))))
        return f"{len(self._files)} files"

    def _send(self, path: str, number: int, count: int) -> str:
        with open(path, "rb") as file:
            octets = file.read()
        base = STEPS.index(self._step) * _WEIGHT
        what = f"{self._step}: {os.path.basename(path)}"
        return self._line.put(
            octets, lambda name, part: self._tell(name, base + _WEIGHT * (number + part) / count), what
        )

    def _stage(self) -> str:
        line = self._line
        line.call({"do": "discard"})
        # The vendor first: `device auto` is made of it.
        settings = sorted(self._plan.settings, key=lambda each: each[0] != "vendor")
        edits = [[name, *words] for name, words in (request_of(*each) for each in settings)]
        for at in range(0, len(edits), _SETTINGS_A_TIME):
            line.call({"do": "set", "edits": edits[at : at + _SETTINGS_A_TIME]})
        for kind, name in self._files:
            line.call({"do": "file", "kind": kind, "sum": name})
        line.call({"do": "check"})
        if self._is_dry:
            lines = line.call({"do": "show"}).head.get("lines")
            self.report.differences = [str(each) for each in lines] if isinstance(lines, list) else []
            line.call({"do": "discard"})
        return f"{len(edits)} settings"

    def _certify(self) -> str:
        wants = bool(self._plan.value("uplink")) and self._plan.value("uplink") != "off"
        if self._is_dry or not (wants or sign.can_sign(self._profile)):
            return "none wanted"
        request = str(self._line.call({"do": "csr"}).head.get("request", ""))
        self.report.request = request
        if not sign.can_sign(self._profile):
            self.report.notes.append(
                "to do: have the request signed, then `python -m hw certificate --file device.pem`"
            )
            return "request taken"
        certificate = sign.sign_request(self._profile, request.encode())
        name = self._line.put(certificate)
        return f"installed {self._line.call({'do': 'certificate', 'sum': name}).head.get('path')}"

    def _commit(self) -> str:
        if self._is_dry:
            return "not in a dry run"
        confirm_s = self._profile.confirm_s
        self._is_committed = True
        reply = self._line.call({"do": "commit", "id": secrets.token_hex(4), "confirm_s": confirm_s}).head
        findings = _findings(reply.get("findings"))
        self.report.findings = findings
        if not reply.get("kept"):
            self._is_committed = False
            bad = next((each for each in findings if not each["ok"] and each["mend"]), None)
            mend = str(bad["mend"]) if bad else "see the findings; the old configuration is in place"
            raise TroubleError(f"taken back: {reply.get('why')}", mend)
        return f"to be confirmed within {confirm_s} s" if confirm_s else "kept"

    def _confirm(self) -> str:
        if self._is_dry or not self._profile.confirm_s:
            return "not needed"
        # By a session of its own: what is confirmed is that the router can still be reached.
        self._line.enter(self._plan.password or self.report.password)
        facts = self._line.call({"do": "facts"}).head
        for name in ("venue", "device"):
            wanted, got = self._plan.value(name), str(facts.get(name, ""))
            if wanted and wanted not in (got, "auto"):
                raise TroubleError(f"{name}: expected {wanted} after the commit, got {got}", "run this device again")
        self.report.venue, self.report.device = str(facts.get("venue", "")), str(facts.get("device", ""))
        self._line.call({"do": "confirm"})
        self._is_committed = False
        return "ok"

    def _send_policy(self) -> str:
        directory = self._profile.bundle_directory
        if not directory or self._is_dry:
            return "none"
        names = sorted(name for name in os.listdir(directory) if os.path.isfile(os.path.join(directory, name)))
        files = {name: self._send(os.path.join(directory, name), at, len(names)) for at, name in enumerate(names)}
        reply = self._line.call({"do": "bundle", "name": self._profile.bundle, "files": files}).head
        return str(reply.get("result"))

    def _test(self) -> str:
        findings = _findings(self._line.call({"do": "test"}).head.get("findings"))
        self.report.findings = findings
        bad = [each for each in findings if not each["ok"]]
        self.report.notes += [f"not ok: {each['name']}: {each['why']}; mend: {each['mend']}" for each in bad]
        return f"{len(findings) - len(bad)} of {len(findings)} ok"

    def _take_back(self) -> None:
        """A commit that was not confirmed goes back now, not only when its time is over."""
        if self._is_committed:
            try:
                self._line.call({"do": "rollback"})
                self.report.notes.append("the old configuration is in place again")
            except GatehouseError as error:
                self.report.notes.append(f"the router takes the commit back by itself ({error})")


def _findings(rows: object) -> list[dict[str, Any]]:
    if not isinstance(rows, list):
        return []
    names = ("name", "ok", "why", "mend")
    return [dict(zip(names, row, strict=False)) for row in rows if isinstance(row, list) and len(row) >= 4]
