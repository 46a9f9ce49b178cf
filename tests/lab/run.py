"""`make run`: a venue in a box, real traffic through it, and what Gatehouse put on record.

Leaves the lab up; `--once` checks that each expected record is there, takes everything down, and exits 0 only then.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.lab.lab import ROOT, Lab


class Step(NamedTuple):
    """One thing that somebody does, what they must see, and what must be on record of it."""

    client: str
    says: str
    command: str
    sees: str
    """A piece of what the command prints, or of its error."""
    record: dict[str, object]


CURL = "curl -sS --max-time 5"


def steps(directory: Path) -> list[Step]:
    tls = f"{CURL} --cacert {directory}/ca.crt"
    ip = {"pupil1": "10.20.0.11", "pupil2": "10.20.0.12", "teacher": "10.20.0.21"}
    blocked = f"{CURL} --cacert {directory}/ca.crt --resolve www.casino.example:443:198.51.100.21"
    return [
        Step("pupil1", "looks a name up", "dig +noall +answer h1.example.org", "198.51.100.22",
             {"kind": "dns", "client": ip["pupil1"], "name": "h1.example.org", "verdict": "allow"}),
        Step("pupil1", "opens a web page", f"{CURL} -4 http://www.example.org/lesson/7?pupil=ann", "you asked",
             {"kind": "flow", "client": ip["pupil1"], "name": "www.example.org", "path": "/lesson/7", "seen": "http"}),
        Step("pupil2", "opens a secure page", f"{tls} -4 https://h2.example.net/", "you asked",
             {"kind": "flow", "client": ip["pupil2"], "name": "h2.example.net", "path": "", "seen": "tls"}),
        Step("teacher", "opens one over IPv6", f"{tls} -6 https://h3.example.com/", "you asked",
             {"kind": "flow", "client": "2001:db8:20::21", "name": "h3.example.com", "verdict": "allow"}),
        Step("pupil2", "looks a blocked name up", "dig +noall +comments www.casino.example", "NXDOMAIN",
             {"kind": "dns", "client": ip["pupil2"], "name": "www.casino.example", "verdict": "block"}),
        Step("pupil2", "asks a foreign resolver", "dig +noall +comments @198.51.100.10 casino.example", "NXDOMAIN",
             {"kind": "dns", "client": ip["pupil2"], "name": "casino.example", "verdict": "block"}),
        Step("pupil1", "goes there by address", f"{blocked} https://www.casino.example/", "reset",
             {"kind": "flow", "client": ip["pupil1"], "name": "www.casino.example", "verdict": "block", "seen": "tls"}),
        Step("teacher", "uses an exception", f"{CURL} -4 http://help.casino.example/", "you asked",
             {"kind": "flow", "client": ip["teacher"], "name": "help.casino.example", "verdict": "allow"}),
    ]  # fmt: skip


def show(lab: Lab, directory: Path) -> bool:
    """Send the traffic, wait for the records, print both. True if everything was as expected."""
    good = True
    print("\nWhat people did")
    plan = steps(directory)
    for step in plan:
        result = lab.run(step.client, step.command)
        said = result.stdout + result.stderr
        fine = step.sees in said
        good = good and fine
        first = next((line for line in said.splitlines() if step.sees in line), said.strip() or "(nothing)")
        print(f"  {'ok ' if fine else 'BAD'} {step.client:8} {step.says:32} {first.strip()[:72]}")
    missing = wait_for_records(lab, [step.record for step in plan])
    print("\nWhat is on record (gatehouse query --since 1h)")
    print(indent(lab.gatehouse("query", "--since", "1h").stdout))
    print("What was blocked, and why (gatehouse query --since 1h --verdict block)")
    print(indent(lab.gatehouse("query", "--since", "1h", "--verdict", "block").stdout))
    for record in missing:
        print(f"MISSING  {record}")
    return good and not missing


def wait_for_records(lab: Lab, expected: list[dict[str, object]], timeout: float = 10) -> list[dict[str, object]]:
    """Those expected records that are not there when the flush is long over."""
    deadline = time.monotonic() + timeout
    while True:
        rows = lab.rows("--since", "1h")
        missing = [record for record in expected if not any(record.items() <= row.items() for row in rows)]
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(0.2)


def indent(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())


def main() -> int:
    parser = argparse.ArgumentParser(prog="make run", description=__doc__)
    parser.add_argument(
        "--once", action="store_true", help="check, tear down, and exit 0 only if every record is there"
    )
    once = parser.parse_args().once
    directory = ROOT / "build" / ("lab-once" if once else "lab")
    if (directory / "lab.pid").exists():
        Lab(directory).stop()
    shutil.rmtree(directory, ignore_errors=True)  # a new venue each time: no record of yesterday's answers for today's
    print("lab: namespaces pupil1, pupil2, teacher - router - internet; Gatehouse starts on the router")
    lab = Lab.start(directory)
    try:
        good = show(lab, directory)
    except BaseException:
        lab.stop()
        raise
    if once:
        lab.stop()
        print("every expected record is there" if good else "NOT as expected; logs are in " + str(directory / "log"))
        return 0 if good else 1
    print(f"""The lab is up. From {ROOT}:
  try it       make shell-client                  a shell on a pupil's computer (curl, dig, ...)
  watch        ./gatehouse tail
  ask          ./gatehouse query --domain example.org --since 1h
  how it is    ./gatehouse status
  stop         make stop""")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
