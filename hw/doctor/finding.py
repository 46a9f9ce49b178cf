"""One line of the self-test, and what the lines come to. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

MAX_DETAIL: Final = 480
"""Characters of a record's detail."""


class Finding(NamedTuple):
    """What one check came to. No dataclass: that is 3 MB of the agent's memory."""

    name: str
    """Stable: docs/doctor.md has a paragraph for each."""
    ok: bool
    why: str
    mend: str = ""
    """What to do about it; empty where nothing is to be done."""
    seen: bool = True
    """False: the part is absent or the check could not be tried, which is no fault."""

    @property
    def word(self) -> str:
        """As people read it."""
        return "not ok" if not self.ok else "ok" if self.seen else "absent"


def absent(name: str, why: str, mend: str = "") -> Finding:
    """The part is not there, or cannot be looked at here."""
    return Finding(name, True, why, mend, seen=False)


def faults(findings: Iterable[Finding]) -> list[Finding]:
    """Those that want mending."""
    return [finding for finding in findings if not finding.ok]


def result_of(findings: Iterable[Finding]) -> str:
    """For the maintenance log: `ok`, or which checks failed."""
    wrong = faults(findings)
    return "not ok: " + ", ".join(finding.name for finding in wrong) if wrong else "ok"


def detail_of(findings: Sequence[Finding]) -> str:
    """The first reasons; for the same record."""
    text = "; ".join(f"{finding.name}: {finding.why}" for finding in faults(findings))
    seen = sum(finding.seen for finding in findings)
    return text[:MAX_DETAIL] if text else f"{seen} checks passed, {len(findings) - seen} parts absent"


def as_row(finding: Finding) -> dict[str, object]:
    """For JSON; `from_row` reads it."""
    return {
        "name": finding.name,
        "ok": finding.ok,
        "seen": finding.seen,
        "why": finding.why,
        "mend": finding.mend,
    }


def from_row(row: object) -> Finding | None:
    """Back from JSON; None: it is none."""
    if not isinstance(row, Mapping):
        return None
    texts = [row.get(name) for name in ("name", "why", "mend")]
    flags = [row.get(name) for name in ("ok", "seen")]
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(flag, bool) for flag in flags):
        return None
    name, why, mend = (str(text)[:400] for text in texts)
    return Finding(name[:40], bool(flags[0]), why, mend, bool(flags[1]))


def lines(findings: Iterable[Finding]) -> list[str]:
    """A line for each; the mend below it."""
    found = []
    for finding in findings:
        found.append(f"{finding.word:6}  {finding.name:14} {finding.why}")
        if finding.mend and not (finding.ok and finding.seen):
            found.append(f"{'':23}-> {finding.mend}")
    return found
