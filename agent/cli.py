"""The command line tool: questions and orders to the running agent, or to the ring where no agent runs."""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from agent import cli_people, table, when
from agent.__main__ import read_config
from agent.version import VERSION
from policy.config import Config, load
from policy.errors import ConfigError, GatehouseError

DEFAULT_CONFIG: Final = "/etc/config/gatehouse"
EVENTS_A_CLIENT: Final = 5_650
"""Records a day of one client of a school: 4,800 look-ups and 850 flows, a made-up day that errs on the high side."""
FOR_EVER_S: Final = 1 << 40
DETAILS: Final = ("exact", "second", "minute", "five_minutes", "hour", "day", "domain")

_LED_STATES: Final = ("booting", "healthy", "degraded", "not provisioned")

_WHOSE: Final = (
    ("--client", "IP address of the venue's side"),
    ("--mac", "hardware address, as 02:00:00:00:00:01"),
    ("--account", "account, in any of its sessions"),
    ("--phone-index", "keyed hash of a calling number, in hexadecimal digits"),
)

Row = Mapping[str, object]


class AgentError(GatehouseError):
    """The agent refused; its own words."""


class NotRunningError(AgentError):
    """The agent does not answer."""


def main(words: Sequence[str]) -> int:
    """Run one command. Returns the exit status: 0 done, 1 the answer is no, 2 a mistake."""
    options = _parser().parse_args(words)
    # A reader that stops early (`| head`) is not an error.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    run: Callable[[argparse.Namespace, Config], int] = options.run
    is_at_home = getattr(options, "is_at_home", None)  # works where there is no router: on the recipient's machine
    return run(options, load("") if is_at_home is not None and is_at_home(options) else read_config(options.config))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gatehouse", description="Gatehouse: the venue's audit trail and filter.")
    parser.add_argument("--version", action="version", version=VERSION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace, Config], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--config", default=DEFAULT_CONFIG, help=f"configuration file (default {DEFAULT_CONFIG})")
        sub.set_defaults(run=run)
        return sub

    query = command("query", run_query, "ask what is on record")
    _add_filters(query)
    _add_times(query)
    query.add_argument("--limit", type=int, default=0, help="at most so many rows; 0: all")
    query.add_argument("--format", choices=("table", "jsonl", "csv"), default="table")
    names = command("names", run_names, "where a client went: names, most frequent first")
    _add_filters(names)
    _add_times(names)
    who = command("who", run_who, "which clients were at a domain; from the index alone, so fast over sixty days")
    who.add_argument("domain", help="this name and everything below it")
    _add_times(who)
    who.add_argument("--reason", default="", help="why it is asked; goes on record")
    hold = command("hold", run_hold, "keep named records past their time, until the hold is lifted")
    hold.add_argument("action", choices=("add", "lift", "list"))
    hold.add_argument("number", nargs="?", type=int, default=0, help="lift: from `hold list`")
    hold.add_argument("--domain", help="this name and everything below it")
    for name, text in _WHOSE:
        hold.add_argument(name, help=text)
    hold.add_argument("--reason", default="", help="add: why, such as the number of the order")
    hold.add_argument("--since", default="1970-01-01", help="add: records from when on (default: all)")
    hold.add_argument("--until", help="add: up to when (default: those that are still to come too)")
    export = command("export", run_export, "write what is on record to a plain SQLite database, a table a kind")
    export.add_argument("--to", required=True, help="file; it must not be there yet")
    cli_people.add_standard(export)
    _add_filters(export)
    _add_times(export)
    plan = command("plan", run_plan, "how many days of how many clients' records fit; refuses what does not")
    plan.add_argument("--clients", type=int, required=True, help="clients on a busy day")
    plan.add_argument("--days", type=int, default=0, help="days to be kept (default: promised_days)")
    plan.add_argument("--flash", default="", help="octets for the ring, as 128M (default: budget)")
    plan.add_argument(
        "--events", type=int, default=EVENTS_A_CLIENT, help=f"a client's records a day ({EVENTS_A_CLIENT})"
    )
    plan.add_argument("--detail", choices=DETAILS, default="", help="the least detail that will do (default: detail)")
    tail = command("tail", run_tail, "watch records as they come")
    _add_filters(tail)
    tail.add_argument("--format", choices=("table", "jsonl"), default="table")
    status = command("status", run_status, "how the system is")
    status.add_argument("--format", choices=("table", "json"), default="table")
    explain = command("explain", run_explain, "say what is decided for a name, by which rule, from which list and line")
    explain.add_argument("name", help="domain name")
    explain.add_argument("--client", default="", help="IP or MAC address, or group:NAME; default: the default group")
    explain.add_argument("--at", default="0s", help="at what time: 1h ago, or a date and time (default now)")
    exception = command("override", run_override, "open or close a name for a group until a time")
    exception.add_argument("action", choices=("open", "close", "code", "redeem", "list"))
    exception.add_argument("what", nargs="?", default="", help="open, code: a domain; close: a number; redeem: a code")
    exception.add_argument("--group", default="", help="for this group only (default: all)")
    exception.add_argument("--for", dest="duration", default="45m", help="how long (default 45m)")
    exception.add_argument("--block", action="store_true", help="open: close the name instead of opening it")
    exception.add_argument("--uses", type=int, default=1, help="code: how often it can be used (default 1)")
    exception.add_argument("--domain", default="", help="redeem: the domain, where the code leaves it open")
    cli_people.add_commands(command, ask)
    certificate = command("certificate", run_certificate, "this router's key and certificate for the centre")
    certificate.add_argument("action", choices=("request", "renew", "install"))
    certificate.add_argument("--file", default="-", help="install: the certificate (default: standard input)")
    command("verify", run_verify, "follow the ring's hash chain: is every record what was written?")
    command("reload", run_reload, "read configuration and lists again")
    doctor = command("doctor", run_doctor, "test everything: each line ok or not, why, and the mend")
    doctor.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    doctor.add_argument("--by", default="", help=argparse.SUPPRESS)
    led = command("led", run_led, "show a state on the status LED, before anything of ours runs")
    led.add_argument("state", nargs="?", choices=("auto", *_LED_STATES), default="auto", help="(default auto)")
    button = command("button", run_button, "a button of the router's was pressed (its hotplug script says so)")
    for name in ("name", "action"):
        button.add_argument(name)
    button.add_argument("--seconds", type=int, default=0, help="how long it was held")
    command("check", run_check, "read the configuration and say what is wrong with it")
    return parser


def _add_times(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", default="24h", help="from when: 30m, 1h, 7d ago, or a date (default 24h)")
    parser.add_argument("--until", help="up to when; a bare date includes that day")


def _times(options: argparse.Namespace) -> dict[str, object]:
    now_s = time.time()
    found: dict[str, object] = {"since_s": when.parse_when(options.since, now_s, "--since")}
    if options.until is not None:
        found["until_s"] = when.parse_until(options.until, now_s, "--until")
    return found


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--domain", help="this name and everything below it")
    for name, text in _WHOSE:
        parser.add_argument(name, help=text)
    parser.add_argument("--session", help="session id")
    parser.add_argument("--reason", help="why it is asked: needed where a person, device or session is named")
    parser.add_argument("--verdict", choices=("allow", "block", "rewrite", "refuse"))
    parser.add_argument(
        "--kind",
        choices=("dns", "flow", "session", "maintenance", "registration", "nat", "health", "gap", "flood"),
        help="only this kind of record",
    )


def _filters(options: argparse.Namespace) -> dict[str, object]:
    names = ("domain", "client", "mac", "account", "phone_index", "session", "verdict", "kind", "reason")
    return {name: getattr(options, name) for name in names if getattr(options, name, None) is not None}


def run_query(options: argparse.Namespace, config: Config) -> int:
    request = {"do": "query", **_filters(options), **_times(options), "limit": options.limit}
    _print_rows(ask(config, request), options.format)
    return 0


def run_names(options: argparse.Namespace, config: Config) -> int:
    for row in ask(config, {"do": "names", **_filters(options), **_times(options)}):
        print(f"{row['times']:>8}  {row['name']:40} {row['first']} to {row['last']}")
    return 0


def run_who(options: argparse.Namespace, config: Config) -> int:
    for row in ask(config, {"do": "who", "domain": options.domain, "reason": options.reason, **_times(options)}):
        print(f"{row['client']:40} {row['mac']:17} between {row['from']} and {row['to']}")
    return 0


def run_hold(options: argparse.Namespace, config: Config) -> int:
    request: dict[str, object] = {"do": "hold", "action": options.action, "by": _person()}
    match options.action:
        case "add":
            request |= {**_filters(options), **_times(options), "reason": options.reason}
            request.setdefault("until_s", float(FOR_EVER_S))
        case "lift":
            request["number"] = options.number
    for row in ask(config, request):
        whose = ", ".join(f"{k} {row[k]}" for k in ("domain", "client", "mac", "account", "phone_index") if row[k])
        until = row["until"] or "it is lifted"
        print(f"{row['number']:>4}  {whose}, from {row['since']} until {until}: {row['reason']} (by {row['by']})")
    return 0


def run_export(options: argparse.Namespace, config: Config) -> int:
    if options.standard != "sqlite":
        return cli_people.run_standard(options, config, ask, {**_filters(options), **_times(options)})
    from agent.export import write_database

    # Whether these records may leave says the running agent, by the profile that it runs.
    request = {"do": "query", "purpose": "export", "set": "sqlite", **_filters(options), **_times(options)}
    count = write_database(options.to, ask(config, request))
    print(f"{options.to}: {count} records")
    return 0


def run_plan(options: argparse.Namespace, config: Config) -> int:
    from agent.capacity import judge, parse_size

    days = options.days or config.ring.promised_days
    flash = parse_size("--flash", options.flash) if options.flash else config.ring.budget_bytes
    detail = options.detail or config.ring.detail
    fits, text = judge(options.clients, days, flash, options.events, detail)
    print(text)
    return 0 if fits else 1


def run_tail(options: argparse.Namespace, config: Config) -> int:
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a watcher behind a pipe waits for each line
    _print_rows(ask(config, {"do": "tail", **_filters(options)}), options.format)
    return 0


def run_status(options: argparse.Namespace, config: Config) -> int:
    (status,) = ask(config, {"do": "status"})
    if options.format == "json":
        print(json.dumps(status, indent=1))
    else:
        for key, value in _flatten(status):
            print(f"{key:32} {value}")
    legal = status.get("legal")
    if isinstance(legal, dict) and legal.get("warning"):
        print(f"warning: {legal['warning']}", file=sys.stderr)
    return 0 if status.get("state") == "protecting" else 1


def run_explain(options: argparse.Namespace, config: Config) -> int:
    # Here, not in the agent: it reads lists from end to end, and asks the same engine over the same files.
    from agent.decider import engine_of
    from agent.explain import explain_name

    at_s = when.parse_when(options.at, time.time(), "--at")
    print(explain_name(engine_of(config), options.name, options.client, at_s).text())
    return 0


def run_override(options: argparse.Namespace, config: Config) -> int:
    now_s = int(time.time())
    duration_s = now_s - int(when.parse_when(options.duration, now_s, "--for"))
    what = options.what if ":" in options.what or not options.what else f"domain:{options.what}"
    request = {"do": "override", "action": options.action, "group": options.group, "by": _person()}
    match options.action:
        case "open":
            request |= {"match": what, "until_s": now_s + duration_s, "verdict": "block" if options.block else "allow"}
        case "close":
            if not options.what.isdecimal():
                raise ConfigError(f"override close: expected a number from `override list`, got {options.what!r}")
            request["number"] = int(options.what)
        case "code":
            request |= {"match": what, "duration_s": duration_s, "expires_s": now_s + 86400, "uses": options.uses}
        case "redeem":
            request |= {"code": options.what, "domain": options.domain}
    for row in ask(config, request):
        if "code" in row:
            print(f"code {row['code']}")
        else:
            until = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(str(row["until_s"]))))
            group = row["group"] or "all"
            print(f"{row['number']:>4}  {row['action']} {row['match']} for {group} until {until}, by {row['by']}")
    return 0


def _person() -> str:
    """Who gives the order, for the record."""
    return os.environ.get("SUDO_USER") or os.environ.get("USER") or f"uid {os.getuid()}"


def run_verify(options: argparse.Namespace, config: Config) -> int:
    try:
        (found,) = ask(config, {"do": "verify"})
        print(f"{found['batches']} batches, all as they were written; the chain ends in {found['head']}")
    except NotRunningError:
        from storage.verify import verify

        print(f"{verify(config.ring.directory)} batches, all as they were written")
    return 0


def run_certificate(options: argparse.Namespace, config: Config) -> int:
    from agent.uplink import keys, wire

    main, uplink = config.main, config.uplink
    if options.action == "install":
        if options.file == "-":
            certificate = sys.stdin.buffer.read()
        else:
            with open(options.file, "rb") as file:
                certificate = file.read()
        keys.install(certificate, uplink.key, uplink.certificate)
        print(f"{uplink.certificate}: installed; a running uplink takes it at once")
        return 0
    if not wire.is_name(main.venue) or not wire.is_name(main.device):
        raise ConfigError("gatehouse.main.venue and device: expected both to be set: the certificate is for them")
    identity = wire.Topics(main.venue, main.device).identity
    print(keys.make_request(identity, uplink.key, renew=options.action == "renew").decode(), end="")
    return 0


def run_reload(options: argparse.Namespace, config: Config) -> int:
    for row in ask(config, {"do": "reload"}):
        print(row.get("text", ""))
    return 0


def run_doctor(options: argparse.Namespace, config: Config) -> int:
    from hw.doctor import rounds
    from hw.doctor.finding import as_row, faults, lines, result_of

    if options.by:  # the agent started it: the venue's packets go first
        os.nice(19)
    began_s = time.time()
    found = rounds.run(config)
    unrecorded = rounds.put_on_record(config, found, options.by or _person())
    if options.json:
        said = {
            "at": when.stamp(began_s),
            "ok": not faults(found),
            "result": result_of(found),
            "recorded": not unrecorded,
            "findings": [as_row(finding) for finding in found],
        }
        print(json.dumps(said, ensure_ascii=False, indent=1))
    else:
        for line in lines(found):
            print(line)
        print(f"{result_of(found)}; not on record: {unrecorded}" if unrecorded else result_of(found))
    return 1 if faults(found) else 0


def run_led(options: argparse.Namespace, config: Config) -> int:
    from hw.led import State, find_led

    wanted = config.hardware.led
    led = find_led(wanted)
    if led is None:
        print("no status LED" if wanted == "auto" else f"LED {wanted}: left alone or not there")
        return 0
    state = State.BOOTING if config.main.enabled else State.NOT_PROVISIONED
    led.show(state if options.state == "auto" else State(options.state))
    if led.trouble:
        print(led.trouble, file=sys.stderr)
    return 1 if led.trouble else 0


def run_button(options: argparse.Namespace, config: Config) -> int:
    request = {"do": "button", "name": options.name, "action": options.action, "seconds": options.seconds}
    for row in ask(config, request):
        print(row.get("text", ""))
    return 0


def run_check(options: argparse.Namespace, config: Config) -> int:
    from agent import policy_source
    from agent.legal import load_profile, unchosen
    from agent.session_desk import places_of

    policy_source.check(config)
    load_profile(config)
    places_of(config)
    if warning := unchosen(config):
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{options.config}: no mistake found")
    return 0


def ask(config: Config, request: Mapping[str, object]) -> Iterator[Row]:
    """Send one request to the agent and yield its rows.

    Raises: AgentError if it is not running or refuses.
    """
    path = os.path.join(config.main.run_dir, "control")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        try:
            link.connect(path)
        except PermissionError:
            raise AgentError(f"{path}: permission denied; run this as root") from None
        except OSError as error:
            raise NotRunningError(
                f"{path}: the agent does not answer ({error.strerror}); is Gatehouse running?"
            ) from None
        link.sendall(json.dumps({"by": _person(), **request}).encode() + b"\n")
        with link.makefile("rb") as lines:
            for line in lines:
                answer = json.loads(line)
                if "error" in answer:
                    raise AgentError(str(answer["error"]))
                if "end" in answer:
                    return
                yield answer["row"]
    raise AgentError(f"{path}: the agent broke off in the middle of its answer; see its log")


def _print_rows(rows: Iterable[Row], form: str) -> None:
    match form:
        case "jsonl":
            for row in rows:
                print(json.dumps(row, ensure_ascii=False))
        case "csv":
            _print_csv(rows)
        case _:
            for line in table.lines(rows):
                print(line)


def _print_csv(rows: Iterable[Row]) -> None:
    # Every kind's columns in one head: a file whose columns change half-way is of no use to a spreadsheet.
    columns: tuple[str, ...] = (
        "id",
        "kind",
        "time",
        "clock",
        "client",
        "mac",
        "session",
        "name",
        "verdict",
        "reason",
        "rule",
        "group",
    )
    columns += ("type", "rcode", "answers", "protocol", "dst", "dport", "sport", "seen", "blind", "method", "path")
    columns += ("actor", "action", "object", "old", "new", "result", "detail", "source", "lost", "from", "to", "why")
    writer = csv.DictWriter(sys.stdout, columns, extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _plain(value) for key, value in row.items()})


def _plain(value: object) -> object:
    # A name that begins with = + - @ is a formula to a spreadsheet: CSV injection by a domain name.
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value


def _flatten(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(map(str, value)) or "-"
        else:
            yield f"{prefix}{key}", value
