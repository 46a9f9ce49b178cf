"""What came of each router: a JSON file and a text for each, and one table of all."""

from __future__ import annotations

import csv
import json
import os
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Final

COLUMNS: Final = ("row", "result", "venue", "device", "mac", "port", "baud", "seconds", "step", "error", "mend")


@dataclass
class Report:
    """Of one router."""

    row: int
    port: str
    is_dry: bool = False
    is_ok: bool = False
    begun: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    seconds: float = 0.0
    baud: int = 0
    mac: str = ""
    release: str = ""
    venue: str = ""
    device: str = ""
    step: str = ""
    """Where it failed."""
    error: str = ""
    mend: str = ""
    unplugged: int = 0
    password: str = ""
    """That was made up for this router, to be kept with its papers; else empty."""
    request: str = ""
    steps: list[dict[str, Any]] = field(default_factory=list)
    findings: list[dict[str, Any]] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def fail(self, step: str, error: str, mend: str) -> None:
        """It went wrong."""
        self.is_ok, self.step, self.error, self.mend = False, step, error, mend

    @property
    def name(self) -> str:
        """Of its files."""
        return self.device or self.mac or f"row-{self.row}"

    def text(self) -> str:
        """For a person."""
        head = "ok" if self.is_ok else "FAILED"
        lines = [
            f"row {self.row}: {head}{' (dry run)' if self.is_dry else ''} in {self.seconds} s, {self.port} {self.baud}"
        ]
        lines += [f"  venue {self.venue or '-'}  device {self.device or '-'}  mac {self.mac or '-'}"]
        lines += [f"  {each['step']:12} {each['seconds']:7.2f} s  {each['what']}" for each in self.steps]
        if not self.is_ok:
            lines += [f"  {self.step}: {self.error}", f"  mend: {self.mend}"]
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  {each}" for each in self.differences]
        if self.password:
            lines.append(f"  password: {self.password}")
        return "\n".join(lines) + "\n"


def write(report: Report, directory: str) -> None:
    """Both files; for their owner alone, a password may stand in them. The last report of a router is the one kept."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    texts = {
        f"{report.name}.json": json.dumps({"is_ok": report.is_ok, **asdict(report)}, ensure_ascii=False, indent=1)
        + "\n",
        f"{report.name}.txt": report.text(),
    }
    for name, text in texts.items():
        descriptor = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)


def write_table(reports: list[Report], path: str) -> None:
    """All of them, a row each, for a spreadsheet."""
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for report in reports:
            row = {name: getattr(report, name, "") for name in COLUMNS}
            row["result"] = "ok" if report.is_ok else "failed"
            # What begins with = or @ is a formula to a spreadsheet, and an error may quote anything.
            writer.writerow({name: f"'{v}" if str(v)[:1] in ("=", "+", "-", "@") else v for name, v in row.items()})
