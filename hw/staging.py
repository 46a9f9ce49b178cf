"""Settings that wait for `commit`, and the commit itself: all files or none, whenever the power goes.

    staging.add(edits); staging.candidate() -> texts
    staging.begin(contents, confirm_s)      # new files in place, the old ones kept
    staging.keep() or staging.undo()        # after the self-test
    staging.recover()                       # at every start: what was not finished is undone

The journal is on flash before the first file changes, and says which to put back. It stays, as `confirm`, until
somebody says that he still reaches the router, and afterwards, as `done`, so that `rollback` can take the last one
back.
Rule: a journal that is not `done` and whose process is gone means: undo. Undoing can be done twice.
"""

from __future__ import annotations

import difflib
import glob
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from hw import flash
from hw.settings import MAX_EDITS, Edit, change, is_secret
from policy.errors import ConfigError, StorageError

_STAGED: Final = "staged.json"
_JOURNAL: Final = "journal.json"
_OUTCOME: Final = "outcome.json"


class Staging:
    """`paths`: file name (`gatehouse`, `network`) to where it lies. `life`: this boot and process."""

    def __init__(self, paths: Mapping[str, str], directory: str, life: str) -> None:
        self.paths = dict(paths)
        self.directory = directory
        self._life = life
        self.edits: list[Edit] = []
        self.files: dict[str, str] = {}
        """Kind of a file (`ca`, `list:gambling`) to the sum of what was sent."""
        self._read()

    @property
    def is_empty(self) -> bool:
        """Nothing waits."""
        return not self.edits and not self.files

    @property
    def state(self) -> str:
        """Of the last commit: `trying`, `confirm`, `undoing`, `done`; empty: there was none."""
        return str(self._journal().get("state", ""))

    def add(self, edits: Sequence[Edit]) -> None:
        """Stage; a later edit of an option takes the earlier one's place. Raises: ConfigError, StorageError."""
        kept = {edit[:4]: edit for edit in self.edits}
        for edit in edits:
            kept.pop(edit[:4], None)
            kept[edit[:4]] = edit
        if len(kept) > MAX_EDITS:
            raise ConfigError(f"staged: expected at most {MAX_EDITS} changes; commit or discard")
        self.edits = list(kept.values())
        self._write()

    def add_file(self, kind: str, name: str) -> None:
        """Stage a file that was sent. Raises: StorageError."""
        self.files[kind] = name
        self._write()

    def discard(self) -> None:
        """Nothing is staged any more."""
        self.edits, self.files = [], {}
        self._write()

    def candidate(self) -> dict[str, str]:
        """What the files would be: name to text. Raises: ConfigError, StorageError."""
        texts = {}
        for name in self.paths:
            edits = [edit for edit in self.edits if edit.file == name]
            text = self.text(name)
            texts[name] = change(text, edits, name) if edits else text
        return texts

    def differences(self) -> list[str]:
        """For a person: lines with - and +; secrets are not shown."""
        found: list[str] = []
        candidate = self.candidate()
        for name in self.paths:
            old, new = (_shown(text) for text in (change(self.text(name), (), name), candidate[name]))
            if any(edit.file == name for edit in self.edits):
                lines = difflib.unified_diff(old, new, name, f"{name} (staged)", lineterm="", n=1)
                found += [line for line in lines if not line.startswith("@@")]
        return found + [f"+ file {kind} {name}" for kind, name in self.files.items()]

    def begin(self, contents: Mapping[str, bytes], confirm_s: int) -> None:
        """The new files are in place when this returns; the old ones are kept. Raises: StorageError, and then nothing
        has changed.
        """
        journal: dict[str, Any] = {"state": "trying", "life": self._life, "confirm_s": confirm_s, "files": []}
        # What an earlier commit kept is no longer to be put back: its journal goes first.
        flash.remove(self._at(_JOURNAL))
        for number, (path, _) in enumerate(contents.items()):
            old = flash.read(path)
            if old is not None:
                flash.write(self._at(f"old{number}"), old)
            journal["files"].append([path, old is not None])
        flash.write(self._at(_JOURNAL), json.dumps(journal).encode())
        try:
            for path, octets in contents.items():
                flash.write(path, octets)
        except StorageError:
            self.undo()
            raise

    def keep(self, is_confirmed: bool) -> None:
        """The self-test is content. Without `is_confirmed` it is undone at the next start, until somebody confirms."""
        journal = self._journal()
        journal["state"] = "done" if is_confirmed else "confirm"
        flash.write(self._at(_JOURNAL), json.dumps(journal).encode())
        self.discard()

    def undo(self) -> list[str]:
        """The files are what they were before the last commit. Returns their paths.

        Raises: ConfigError, StorageError.
        """
        journal = self._journal()
        if not journal:
            raise ConfigError("rollback: nothing was committed since the last roll-back")
        flash.write(self._at(_JOURNAL), json.dumps(journal | {"state": "undoing"}).encode())
        paths = []
        for number, (path, was_there) in enumerate(journal["files"]):
            paths.append(path)
            if not was_there:
                flash.remove(path)
                continue
            old = flash.read(self._at(f"old{number}"))
            if old is not None:
                flash.write(path, old)
        flash.remove(self._at(_JOURNAL))
        return paths

    def forget(self) -> None:
        """Part of a factory reset: nothing staged, nothing to go back to, and no old file with a secret in it."""
        self.discard()
        # The journal first: without it, nobody puts back what goes after it.
        for name in (_JOURNAL, _OUTCOME):
            flash.remove(self._at(name))
        for path in glob.glob(os.path.join(glob.escape(self.directory), "old[0-9]*")):
            flash.remove(path)

    def recover(self) -> list[str]:
        """Undo what a cut left half done, or nobody confirmed. Returns the paths that were put back."""
        journal = self._journal()
        if not journal or journal["state"] == "done" or journal["life"] == self._life:
            return []
        return self.undo()

    def outcome(self, commit: str) -> Mapping[str, object] | None:
        """What came of a commit that a script has asked for already; None: it has not."""
        kept = _read_object(flash.read(self._at(_OUTCOME)))
        found = kept.get("outcome") if commit and kept.get("commit") == commit else None
        return found if isinstance(found, dict) else None

    def set_outcome(self, commit: str, outcome: Mapping[str, object]) -> None:
        """For a script that asks again, because the answer was lost."""
        flash.write(self._at(_OUTCOME), json.dumps({"commit": commit, "outcome": outcome}).encode())

    def text(self, name: str) -> str:
        """A file as it is. Raises: ConfigError, StorageError."""
        octets = flash.read(self.paths[name]) or b""
        try:
            return octets.decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{name}: expected UTF-8 text, octet {error.start} is not") from None

    def _at(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def _journal(self) -> dict[str, Any]:
        journal = _read_object(flash.read(self._at(_JOURNAL)))
        return journal if {"state", "life", "files"} <= journal.keys() else {}

    def _read(self) -> None:
        kept = _read_object(flash.read(self._at(_STAGED)))
        try:
            self.edits = [Edit(*edit) for edit in kept.get("edits", [])]
            self.files = {str(kind): str(name) for kind, name in kept.get("files", {}).items()}
        except (TypeError, AttributeError):  # of another release: it was never more than staged
            self.edits, self.files = [], {}

    def _write(self) -> None:
        if self.is_empty:
            flash.remove(self._at(_STAGED))
        else:
            flash.write(self._at(_STAGED), json.dumps({"edits": self.edits, "files": self.files}).encode())


def _read_object(octets: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(octets or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _shown(text: str) -> list[str]:
    lines = []
    for line in text.splitlines():
        words = line.split(None, 2)
        is_hidden = len(words) == 3 and is_secret(words[1])
        lines.append(f"\t{words[0]} {words[1]} '********'" if is_hidden else line)
    return lines
