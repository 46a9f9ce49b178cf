"""The installer's tool: `python -m hw provision | monitor | ports | find | labels | certificate | test`."""

from __future__ import annotations

import argparse
import getpass
import glob
import json
import os
import sys
import time
from collections.abc import Sequence

from hw.laptop import label, monitor, report
from hw.laptop.line import Line
from hw.laptop.ports import choose_port, find_ports
from hw.laptop.profile import Plan, Profile, make_plan, read_profile, read_table
from hw.laptop.progress import Progress
from hw.laptop.provision import Provision
from hw.laptop.report import Report
from hw.laptop.trouble import TroubleError, mend_of
from policy.errors import GatehouseError


def main(words: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 done, 1 a router failed, 2 a mistake."""
    options = _parser().parse_args(words)
    try:
        status: int = options.run(options)
    except GatehouseError as error:
        print(f"hw: {error}", file=sys.stderr)
        if isinstance(error, TroubleError):
            print(f"hw: {mend_of(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hw", description="Gatehouse routers over a serial cable.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, text: str, *, port: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        if port:
            sub.add_argument(
                "--port", default="", help="/dev/ttyUSB0, /dev/cu.usbserial-1, COM3; default: the one there is"
            )
            sub.add_argument("--baud", type=int, default=0, help="default: it is found")
        return sub

    provision = command("provision", run_provision, "make routers what a profile says, one or a table of them")
    provision.add_argument("--profile", default="", help="TOML file: what holds for every router")
    provision.add_argument("--csv", default="", help="a row for each router; its columns go before the profile")
    provision.add_argument("--reports", default="reports", help="directory for reports and labels (default reports)")
    provision.add_argument("--dry-run", action="store_true", help="check everything on the router, and change nothing")
    provision.add_argument("--again", action="store_true", help="take routers of another venue too")
    provision.add_argument("--rows", default="", help="only these rows, as 3-7,12: those that failed, for example")
    provision.add_argument("--no-wait", action="store_true", help="do not wait for a key between routers")
    provision.add_argument("--find-seconds", type=float, default=25.0, help="look so long for a console (default 25)")
    provision.add_argument(
        "--patience", type=float, default=60.0, help="a cable may be out so long, seconds (default 60)"
    )
    watch = command("monitor", run_monitor, "show what the router writes, and type to it; Ctrl-] ends")
    watch.set_defaults(needs_console=False)
    command("ports", run_ports, "list serial ports", port=False)
    command("find", run_find, "find port and speed, and say what is there")
    command("status", run_status, "log in, and ask how the router is").add_argument("--password", default="")
    tell = command("test", run_test, "log in, and let the router test itself")
    tell.add_argument("--password", default="")
    tell.add_argument("--json", action="store_true")
    certificate = command("certificate", run_certificate, "take the request, or bring the certificate that was signed")
    certificate.add_argument("--file", default="", help="the certificate; without it, the request is printed")
    certificate.add_argument("--password", default="")
    labels = command("labels", run_labels, "labels of every router in a directory of reports", port=False)
    labels.add_argument("--reports", default="reports")
    labels.add_argument("--title", default="Gatehouse")
    return parser


def run_provision(options: argparse.Namespace) -> int:
    profile = read_profile(options.profile) if options.profile else Profile()
    plans = read_table(options.csv, profile) if options.csv else [make_plan(profile)]
    plans = _chosen(plans, options.rows)
    reports: list[Report] = []
    last_mac = ""
    for number, plan in enumerate(plans, 1):
        if options.csv and not plan.port and not options.no_wait:
            _wait_for_next(plan, number, len(plans))
        done = _provision_one(options, profile, plan, f"[{number}/{len(plans)}]")
        if done.is_ok and done.mac == last_mac and not plan.port:
            done.notes.append("the same router as the row before: was the cable moved?")
        last_mac = done.mac
        reports.append(done)
        report.write(done, options.reports)
        report.write_table(reports, os.path.join(options.reports, "report.csv"))
    bad = [each for each in reports if not each.is_ok]
    for each in bad:
        print(f"row {each.row}: {each.step}: {each.error}\n    mend: {each.mend}")
    again = f"; again: --rows {','.join(str(each.row) for each in bad)}" if bad and options.csv else ""
    print(f"{len(reports) - len(bad)} of {len(reports)} done; reports in {options.reports}{again}")
    return 1 if bad else 0


def _provision_one(options: argparse.Namespace, profile: Profile, plan: Plan, head: str) -> Report:
    progress = Progress(sys.stderr, head)
    baud = options.baud or profile.baud
    try:
        line = Line(
            choose_port(plan.port or options.port), baud, patience_s=options.patience, find_s=options.find_seconds
        )
    except TroubleError as error:
        failed = Report(plan.number, plan.port or options.port)
        failed.fail("find", str(error), mend_of(error))
        return failed
    job = Provision(line, profile, plan, progress.tell, is_dry=options.dry_run, again=options.again)
    done = job.run()
    if done.is_ok and done.device:
        try:
            os.makedirs(options.reports, mode=0o700, exist_ok=True)
            made = label.make_label(_label_of(plan, done), profile.title)
            with open(os.path.join(options.reports, f"{done.device}.svg"), "w", encoding="utf-8") as file:
                file.write(made)
        except TroubleError as error:  # without the library there is no label; the router is done all the same
            done.notes.append(f"{error}: {mend_of(error)}")
    progress.end(f"{done.name}: {'ok' if done.is_ok else 'FAILED: ' + done.error} ({done.seconds:.1f} s)")
    return done


def _label_of(plan: Plan, done: Report) -> label.Label:
    return label.Label(done.device, done.venue, plan.value("venue-name"), plan.label)


def _wait_for_next(plan: Plan, number: int, count: int) -> None:
    whom = plan.label or plan.value("venue-name") or plan.value("venue") or plan.mac or f"row {plan.number}"
    print(f"[{number}/{count}] plug into the router for {whom}, then press Enter", file=sys.stderr, flush=True)
    sys.stdin.readline()


def _chosen(plans: list[Plan], rows: str) -> list[Plan]:
    if not rows:
        return plans
    wanted: set[int] = set()
    for part in rows.split(","):
        low, _, high = part.partition("-")
        if not low.isdecimal() or (high and not high.isdecimal()):
            raise TroubleError(f"--rows: expected numbers as 3-7,12, got {rows!r}", "the report's column row has them")
        wanted |= set(range(int(low), int(high or low) + 1))
    return [plan for plan in plans if plan.number in wanted]


def run_monitor(options: argparse.Namespace) -> int:
    port, baud = choose_port(options.port), options.baud
    if not baud:
        line = Line(port, find_s=8.0)
        try:
            line.find()
            baud = line.baud
        except TroubleError as error:
            print(f"{error}: {error.mend}; shown at 115200", file=sys.stderr)
            baud = 115200
        line.leave()
    return monitor.run(port, baud)


def run_ports(options: argparse.Namespace) -> int:
    for port in find_ports():
        print(f"{port.name:30} {port.what}")
    return 0


def run_find(options: argparse.Namespace) -> int:
    line = Line(choose_port(options.port), options.baud)
    line.find()
    facts = line.call({"do": "facts"}).head
    line.leave()
    print(f"{line.port} at {line.baud}: mac {facts.get('mac')}, release {facts.get('release')}, {facts.get('state')}")
    return 0


def _open(options: argparse.Namespace) -> Line:
    line = Line(choose_port(options.port), options.baud)
    line.find()
    line.enter(options.password or os.environ.get("GATEHOUSE_CONSOLE_PASSWORD") or getpass.getpass("Password: "))
    return line


def run_status(options: argparse.Namespace) -> int:
    line = _open(options)
    status = line.call({"do": "status"}).head.get("status")
    line.leave()
    for name, value in (status if isinstance(status, dict) else {}).items():
        print(f"{name:24} {value}")
    return 0


def run_test(options: argparse.Namespace) -> int:
    line = _open(options)
    rows = line.call({"do": "test"}).head.get("findings")
    line.leave()
    rows = rows if isinstance(rows, list) else []
    if options.json:
        print(json.dumps([dict(zip(("name", "ok", "why", "mend"), row, strict=False)) for row in rows], indent=1))
    else:
        for name, is_ok, why, mend, *_ in rows:
            print(
                f"{'ok' if is_ok else 'NOT OK':8} {name}{': ' + why if why else ''}{'; mend: ' + mend if mend else ''}"
            )
    return 0 if all(row[1] for row in rows) else 1


def run_certificate(options: argparse.Namespace) -> int:
    line = _open(options)
    if options.file:
        with open(options.file, "rb") as file:
            name = line.put(file.read())
        print(f"{line.call({'do': 'certificate', 'sum': name}).head.get('path')}: installed")
    else:
        print(line.call({"do": "csr"}).head.get("request"), end="")
    line.leave()
    return 0


def run_labels(options: argparse.Namespace) -> int:
    labels = []
    for path in sorted(glob.glob(os.path.join(glob.escape(options.reports), "*.json"))):
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        if found.get("is_ok") and found.get("device"):
            labels.append(label.Label(found["device"], found.get("venue", ""), "", time.strftime("%Y-%m-%d")))
    for number, sheet in enumerate(label.make_sheet(labels, options.title), 1):
        path = os.path.join(options.reports, f"labels-{number}.svg")
        with open(path, "w", encoding="utf-8") as file:
            file.write(sheet)
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
