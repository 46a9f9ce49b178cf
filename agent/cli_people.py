"""The commands about people: sessions, registrations, one session's records, erasure, notice, profiles.

Phone numbers, names and documents are sealed here, in the process of whoever types them: the agent never sees them.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from agent import table
from agent.session import CAUSES
from policy.config import Config
from policy.errors import ConfigError

Row = Mapping[str, object]
Ask = Callable[[Config, Mapping[str, object]], Iterator[Row]]
Run = Callable[[argparse.Namespace, Config], int]
Add = Callable[[str, Run, str], argparse.ArgumentParser]

COLUMNS: Final = (
    "account", "name", "phone", "document_type", "document_number", "room", "valid_from", "valid_to", "note",
)  # fmt: skip
"""Of a CSV file of registrations; account or phone must be there."""
CHUNK: Final = 40
"""Registrations in one request: some 20 kB."""


def add_commands(command: Add, ask: Ask) -> None:
    """Put them beside the others."""
    session = command("session", lambda o, c: run_session(o, c, ask), "who is logged in; log somebody in or out")
    session.add_argument("action", choices=("login", "logout", "list"))
    session.add_argument("--account", default="", help="who it is")
    session.add_argument("--phone", default="", help="calling number; - reads it from standard input")
    session.add_argument("--room", default="")
    session.add_argument("--mac", default="", help="the device")
    session.add_argument("--client", default="", help="its IP address")
    session.add_argument("--session", default="", help="logout: the session's name")
    session.add_argument("--for", dest="duration", default="", help="login: for how long, as 2h")
    session.add_argument("--cause", choices=CAUSES, default="user", help="logout: why (default user)")
    session.add_argument("--format", choices=("table", "jsonl"), default="table")

    show = command("show", lambda o, c: run_show(o, c, ask), "one session: who, when, and where it went")
    show.add_argument("--session", required=True)
    show.add_argument("--reason", default="", help="why it is looked at; goes on record first")
    show.add_argument("--brief", action="store_true", help="without its accesses")
    show.add_argument("--format", choices=("table", "jsonl"), default="table")

    erase = command("erase", lambda o, c: run_erase(o, c, ask), "erase a session, where the legal profile allows it")
    erase.add_argument("--session", required=True)
    erase.add_argument("--reason", required=True, help="who asked for it, and how")

    registration = command(
        "registration", lambda o, c: run_registration(o, c, ask), "register users, sealed to the supervising recipient"
    )
    registration.add_argument("action", choices=("import", "add", "list", "index", "key", "open"))
    registration.add_argument("file", nargs="?", default="", help="import: a CSV file; open: a list, or nothing: stdin")
    for column in COLUMNS:
        registration.add_argument(f"--{column.replace('_', '-')}", dest=column, default="", help="add")
    registration.add_argument("--key", default="", help="key, open: the recipient's secret key file")
    registration.add_argument("--public", default="recipient.pub", help="key: the public key file to make")
    registration.add_argument("--format", choices=("table", "jsonl"), default="table")
    registration.set_defaults(is_at_home=lambda options: options.action in ("key", "open"))

    notice = command("notice", run_notice, "the page that tells users what is recorded of them")
    notice.add_argument("action", choices=("show", "publish", "check"))

    profile = command("profile", run_profile, "legal profiles: list, check, sign")
    profile.add_argument("action", choices=("list", "check", "key", "sign"))
    profile.add_argument("file", nargs="?", default="", help="check: a name; sign: a .toml file")
    profile.add_argument("--key", default="", help="key, sign: the secret key file")
    profile.set_defaults(is_at_home=lambda options: options.action in ("key", "sign"))


def add_standard(export: argparse.ArgumentParser) -> None:
    """`export` can also speak the supervising side's language."""
    export.add_argument("--standard", choices=("sqlite", "ga"), default="sqlite", help="what to write (default sqlite)")
    export.add_argument("--key", default="", help="ga: the recipient's secret key, to fill in names and documents")


def run_standard(options: argparse.Namespace, config: Config, ask: Ask, wanted: Mapping[str, object]) -> int:
    from agent.standard_export import write_archive

    people = _opened(config, ask, options.key) if options.key else {}
    rows = ask(config, {"do": "query", "purpose": "export", "set": "ga", **wanted})
    done = write_archive(options.to, config, rows, people)
    print(f"{options.to}: {done.sessions} sessions, {done.accesses} accesses")
    for why, count in done.refused.items():
        print(f"left out: {count} rows: {why}", file=sys.stderr)
    return 0


def _opened(config: Config, ask: Ask, key: str) -> dict[str, dict[str, str]]:
    from agent.identity import open_sealed, read_key

    secret = read_key(key)
    rows = ask(config, {"do": "registration", "action": "list"})
    return {str(row["account"]): open_sealed(secret, bytes.fromhex(str(row["sealed"]))) for row in rows}


def run_session(options: argparse.Namespace, config: Config, ask: Ask) -> int:
    request: dict[str, object] = {"do": "session", "action": options.action}
    request |= {name: getattr(options, name) for name in ("account", "room", "mac", "client", "session", "cause")}
    if options.duration:
        from agent import when

        request["timeout_s"] = -int(when.parse_when(options.duration, 0, "--for"))
    if options.phone:
        from agent.identity import Sealer, normal_phone

        sealer = Sealer.load(config.main.state_dir)
        number = normal_phone(sys.stdin.readline().strip() if options.phone == "-" else options.phone)
        request["phone"], request["phone_index"] = sealer.seal({"phone": number}).hex(), sealer.index_of(number).hex()
        request["account"] = options.account or f"phone-{str(request['phone_index'])[:12]}"
    for row in ask(config, request):
        print(json.dumps(row, ensure_ascii=False) if options.format == "jsonl" else _session_line(row))
    return 0


def run_show(options: argparse.Namespace, config: Config, ask: Ask) -> int:
    request = {"do": "show", "session": options.session, "reason": options.reason, "brief": options.brief}
    rows = ask(config, request)
    if options.format == "jsonl":
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return 0
    for row in rows:
        if row["kind"] == "session" and "seen" in row:
            print(_session_line(row))
            continue
        for line in table.lines(itertools.chain([row], rows)):
            print(line)
    return 0


def run_erase(options: argparse.Namespace, config: Config, ask: Ask) -> int:
    for row in ask(config, {"do": "erase", "session": options.session, "reason": options.reason}):
        print(f"{row['erased']}: erased")
    return 0


def run_registration(options: argparse.Namespace, config: Config, ask: Ask) -> int:
    from agent import identity

    match options.action:
        case "key":
            if not options.key:
                raise ConfigError("registration key: expected --key, the file for the secret key")
            identity.make_keys(options.key, options.public)
            print(f"{options.key}: keep it; {options.public}: to state_dir/{identity.RECIPIENT} of each router")
        case "open":
            _open_all(options)
        case "index":
            print(identity.Sealer.load(config.main.state_dir).index_of(options.phone).hex())
        case "list":
            for row in ask(config, {"do": "registration", "action": "list"}):
                if options.format == "jsonl":
                    print(json.dumps(row, ensure_ascii=False))
                else:
                    print(f"{row['account']:24} {row['room']:8} {row['valid_from']} to {row['valid_to'] or 'no end'}")
        case _:
            count = _register(options, config, ask)
            print(f"{count} registered, sealed to the recipient")
    return 0


def run_notice(options: argparse.Namespace, config: Config) -> int:
    from agent import notice
    from agent.legal import load_profile

    profile = load_profile(config)
    if profile is None:
        raise ConfigError("gatehouse.main.legal: no legal profile is chosen, so there is no notice to be made")
    match options.action:
        case "show":
            print(notice.render(profile, config), end="")
        case "publish":
            print(f"{notice.publish(profile, config)}: published")
        case _:
            found = notice.trouble(profile, config)
            print(found or f"{notice.path_of(config)}: goes with legal profile {profile.name}")
            return 1 if found else 0
    return 0


def run_profile(options: argparse.Namespace, config: Config) -> int:
    from agent import legal

    match options.action:
        case "list":
            for name in legal.shipped():
                profile = legal.open_profile(name, config.main.state_dir)
                days = f"{profile.minimum_days} to {profile.maximum_days or 'any number of'} days"
                print(f"{'*' if name == config.main.legal else ' '} {name:12} {profile.title}; {days}")
            print("None is legal advice, and none is certified by anyone.")
        case "check":
            name = options.file or config.main.legal
            profile = legal.open_profile(name, config.main.state_dir)
            print(f"{profile.name}: signed, version {profile.version}, sha256 {profile.sha256}")
        case "key":
            _make_signing_key(options.key)
        case _:
            _sign(options.file, options.key)
    return 0


def _register(options: argparse.Namespace, config: Config, ask: Ask) -> int:
    from agent import identity
    from agent.legal import load_profile
    from policy.legal import Capture

    if options.action == "import" and not options.file:
        raise ConfigError(f"registration import: expected a CSV file with some of the columns {', '.join(COLUMNS)}")
    people = _csv(options.file) if options.action == "import" else [{c: getattr(options, c) for c in COLUMNS}]
    sealer = identity.Sealer.load(config.main.state_dir)
    profile = load_profile(config)
    capture = Capture(profile) if profile is not None else None
    if profile is not None and profile.classes["registration"].keep == "none":
        raise ConfigError(f"registration: the legal profile {profile.name} keeps no registrations")
    sealed = [_sealed(number, person, sealer, capture) for number, person in enumerate(people, 1)]
    # All of them are right before the first is sent.
    for at in range(0, len(sealed), CHUNK):
        for _ in ask(config, {"do": "registration", "action": "add", "people": sealed[at : at + CHUNK]}):
            pass
    return len(sealed)


def _sealed(number: int, person: Mapping[str, str], sealer, capture) -> dict[str, object]:  # type: ignore[no-untyped-def]
    from agent.identity import is_phone, normal_phone

    where = f"registration {number}"
    fields = {name: person.get(name, "").strip() for name in COLUMNS}
    account = fields.pop("account")
    if is_phone(account):
        fields["phone"], account = fields["phone"] or account, ""
    index = b""
    try:
        if fields["phone"]:
            fields["phone"] = normal_phone(fields["phone"])
        times = {name: _day(fields.pop(name), name) for name in ("valid_from", "valid_to")}
        kept = fields if capture is None else capture.registered(fields)
        if kept.get("phone"):
            index = sealer.index_of(kept["phone"])
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    account = account or (f"phone-{index.hex()[:12]}" if index else "")
    if not account:
        raise ConfigError(f"{where}: expected an account, or a phone number that the legal profile keeps")
    return {
        "account": account,
        "sealed": sealer.seal(kept).hex(),
        "blind_index": index.hex(),
        "room": kept.get("room", ""),
        "valid_from_s": times["valid_from"],
        "valid_to_s": times["valid_to"],
    }


def _csv(path: str) -> Iterable[dict[str, str]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            unknown = set(reader.fieldnames or ()) - set(COLUMNS)
            if unknown or not {"account", "phone"} & set(reader.fieldnames or ()):
                said = f", not {', '.join(sorted(map(str, unknown)))}" if unknown else ""
                raise ConfigError(f"{path}: expected a head line with some of {', '.join(COLUMNS)}{said}")
            return [{name: value or "" for name, value in line.items() if name in COLUMNS} for line in reader]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: expected CSV in UTF-8: {error}") from None


def _day(text: str, what: str) -> int:
    if not text:
        return 0
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{what}: expected a date such as 2026-03-03, perhaps with a time, got {text!r}") from None
    if what == "valid_to" and len(text) == 10:
        at += datetime.timedelta(days=1)
    return int(at.timestamp())


def _open_all(options: argparse.Namespace) -> None:
    """What `registration list --format jsonl`, `query --kind session --format jsonl` and the like gave, opened."""
    from agent.identity import open_sealed, read_key

    if not options.key:
        raise ConfigError("registration open: expected --key, the recipient's secret key file")
    secret = read_key(options.key)
    try:
        with open(options.file or "/dev/stdin", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                    sealed = bytes.fromhex(str(row.get("sealed") or ""))
                except (ValueError, AttributeError):
                    raise ConfigError(f"{options.file or 'input'}:{number}: expected a JSON object a line") from None
                opened = open_sealed(secret, sealed) if sealed else {}
                print(json.dumps({"account": row.get("account", ""), **opened}, ensure_ascii=False))
    except OSError as error:
        raise ConfigError(f"{options.file}: {error.strerror}") from None


def _make_signing_key(path: str) -> None:
    from agent.identity import write_private
    from policy.bundle import PublicKey, public_key_text
    from policy.signature import public_key

    if not path or os.path.exists(path):
        raise ConfigError("profile key: expected --key, a file that is not there yet")
    number, secret = os.urandom(8), os.urandom(32)
    write_private(path, (number + secret).hex().encode())
    key = PublicKey(number, public_key(secret))
    with open(f"{path}.pub", "wb") as file:
        file.write(public_key_text(key))
    print(f"{path}.pub: to state_dir/keys/{key.fingerprint} of each router")


def _sign(path: str, key_path: str) -> None:
    from policy.bundle import sign_manifest
    from policy.legal import read_profile
    from policy.signature import sign

    if not path or not key_path:
        raise ConfigError("profile sign: expected a .toml file, and --key")
    try:
        with open(path, "rb") as file:
            octets = file.read()
        with open(key_path, encoding="ascii") as file:
            key = bytes.fromhex(file.read().strip())
    except (OSError, ValueError) as error:
        raise ConfigError(f"profile sign: {error}") from None
    read_profile(octets, os.path.basename(path))
    with open(f"{path}.sig", "wb") as file:
        file.write(sign_manifest(octets, key[:8], key[8:], sign))
    print(f"{path}.sig")


def _session_line(row: Row) -> str:
    addresses = row["addresses"]
    shown = ", ".join(map(str, addresses)) if isinstance(addresses, list) else ""
    state = f"to {row['logout']} ({row['cause']})" if row["cause"] else f"seen {row['seen']}"
    who = str(row["account"] or "-") + (f" in {row['room']}" if row["room"] else "")
    return f"{row['session']}  {who:20} {row['mac']:17} {shown}  from {row['login']} {state}, by {row['source']}"
