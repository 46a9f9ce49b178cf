"""The serial console's roof: the router as `hw` needs it, and the process.

    main(["--config", PATH])                 on the configured line, for procd and the launcher
    main(["--config", PATH, "--line", "-"])  on the terminal it was started on

A process of its own: a self-test blocks for seconds, and the console must be there when nothing else is.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from agent.uplink.inside import ask
from agent.version import VERSION
from hw import flash, tty
from hw.blobs import Blobs
from hw.console import Console
from hw.device import Finding
from hw.orders import Orders
from hw.password import Access
from hw.serve import Loop
from hw.settings import GATEHOUSE, NETWORK
from hw.staging import Staging
from policy.config import Config, load
from policy.digest import sha256
from policy.errors import BundleError, ConfigError, GatehouseError, StorageError
from policy.uci import parse

DIRECTORY: Final = "console"
"""In state_dir: password, staged settings, journal, files that were sent."""
MAX_SPOOL: Final = 500
"""Records that wait for the agent; a blank router has none yet, and a hundred log-ins fit."""
DOCTOR_S: Final = 90
APPLY_S: Final = 30
_ROOT: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_INIT: Final = "/etc/init.d"
_PROCD: Final = "/sbin/procd"
"""Where it is not, scripts of another system's must not be run."""
_BLANK: Final = "config gatehouse 'main'\n\toption enabled '0'\n"
_NAME: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")


class Router:
    """`hw.device.Device`, for the router that this runs on."""

    def __init__(self, config_path: str, directory: str) -> None:
        self._path = config_path
        self._directory = directory
        self._spool = os.path.join(directory, "spool.jsonl")

    def facts(self) -> Mapping[str, object]:
        config = self._config()
        text = flash.read(self._path) or b""
        return {
            "mac": mac_of(config.main.lan),
            "model": _first_line("/tmp/sysinfo/model") or _first_line("/proc/device-tree/model"),
            "release": VERSION,
            "venue": config.main.venue,
            "device": config.main.device,
            "state": "enabled" if config.main.enabled else "blank" if not config.main.venue else "set",
            "config": sha256(text).hexdigest()[:16],
            "wall_s": int(time.time()),
        }

    def status(self) -> Mapping[str, object]:
        config = self._config()
        found: dict[str, object] = {**self.facts(), "uplink": ", ".join(f"{h}#{p}" for h, p in config.uplink.server)}
        try:
            (status,) = ask(_control(config), {"do": "status"})
        except GatehouseError as error:
            return found | {"agent": f"does not answer ({error})" if config.main.enabled else "off"}
        found["agent"] = status["state"]
        for number, why in enumerate(status["why"]):
            found[f"why {number + 1}"] = why
        for name in ("up_s", "clock", "on_failure"):
            found[name] = status[name]
        return found

    def check(self, texts: Mapping[str, str]) -> None:
        from agent import policy_source
        from agent.legal import load_profile
        from agent.session_desk import places_of

        config = load(texts[GATEHOUSE])
        policy_source.check(config)
        load_profile(config)
        places_of(config)
        if NETWORK in texts:
            parse(texts[NETWORK], NETWORK)

    def path_of(self, kind: str, text: str) -> str:
        config = load(text)
        what, _, name = kind.partition(":")
        if what == "ca" and not name:
            return config.uplink.ca
        if not name or not _NAME.issuperset(name) or name.startswith("."):
            raise ConfigError(f"file: expected ca, list:NAME or key:NAME, got {kind!r:.60}")
        if what == "list":
            from policy.rules import load_policy

            return os.path.join(load_policy(list(config.policy)).list_dir, name)
        if what == "key":
            return os.path.join(config.main.state_dir, "keys", name)
        raise ConfigError(f"file: expected ca, list:NAME or key:NAME, got {kind!r:.60}")

    def apply(self, changed: Sequence[str]) -> None:
        if any(os.path.basename(path) == NETWORK for path in changed):
            _service("network", "reload")
        _service("gatehouse", "reload")
        config = self._config()
        try:
            list(ask(_control(config), {"do": "reload", "by": "console"}))
        except GatehouseError as error:
            # Away: it reads the files when it starts. Refused: its words, and the commit is taken back.
            if not str(error).startswith(_control(config)):
                raise

    def test(self) -> Sequence[Finding]:
        found = doctor_findings(self._path)
        return found if found is not None else self._own_findings()

    def _own_findings(self) -> list[Finding]:
        """What can be told without the doctor: does the configuration load, and what does the agent say?"""
        try:
            config = self._config()
            self.check({GATEHOUSE: (flash.read(self._path) or b"").decode("utf-8", "replace")})
        except GatehouseError as error:
            return [Finding("configuration", False, str(error), "set what it names, and commit", is_vital=True)]
        findings = [Finding("configuration", True, is_vital=True)]
        if not config.main.enabled:
            return [*findings, Finding("switched off", True)]
        try:
            (status,) = ask(_control(config), {"do": "status"})
        except GatehouseError as error:
            # Vital only where something should have started it by now.
            is_vital = os.path.exists(os.path.join(_INIT, "gatehouse"))
            mend = "start it: /etc/init.d/gatehouse start"
            return [*findings, Finding("agent", False, str(error), mend, is_vital=is_vital)]
        why = "; ".join(status["why"])
        return [*findings, Finding("agent", True), Finding("protection", not why, why, "see `status`")]

    def request_certificate(self, text: str, renew: bool) -> bytes:
        from agent.uplink import keys, wire

        config = load(text)
        main = config.main
        if not wire.is_name(main.venue) or not wire.is_name(main.device):
            raise ConfigError("certificate: expected venue and device to be set: the certificate is for them")
        return keys.make_request(wire.Topics(main.venue, main.device).identity, config.uplink.key, renew=renew)

    def install_certificate(self, text: str, certificate: bytes) -> str:
        from agent.uplink import keys

        uplink = load(text).uplink
        if not os.path.exists(uplink.key):
            raise ConfigError(f"certificate: there is no key {uplink.key}; ask for a request first")
        keys.install(certificate, uplink.key, uplink.certificate)
        return uplink.certificate

    def take_bundle(self, name: str, files: Mapping[str, bytes]) -> str:
        import tempfile

        from agent.bundles import apply_bundle, directory_source
        from policy.rules import load_policy

        config = self._config()
        bundles = {bundle.name: bundle for bundle in load_policy(list(config.policy)).bundles}
        if name not in bundles:
            raise ConfigError(f"bundle: expected one of `config bundle`: {', '.join(bundles) or 'none'}; got {name!r}")
        with tempfile.TemporaryDirectory(dir=self._directory) as directory:
            for file, octets in files.items():
                if not file or not _NAME.issuperset(file) or file.startswith("."):
                    raise ConfigError(f"bundle: expected a plain file name, got {file!r:.60}")
                flash.write(os.path.join(directory, file), octets)
            outcome = apply_bundle(
                bundles[name],
                directory_source(directory),
                config.main.state_dir,
                os.path.join(config.main.state_dir, "keys"),
                now_s=int(time.time()),
                at_ms=time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000,
                actor="serial script",
            )
        if outcome.record.result.startswith("refused"):
            raise BundleError(f"bundle {name}: {outcome.record.detail}")
        if outcome.changed:
            self.apply(())
        return f"{outcome.record.result}, version {outcome.record.new}"

    def policy(self, words: Sequence[str]) -> Sequence[str]:
        from agent.decider import engine_of, sections
        from policy.rules import load_policy

        config = self._config()
        match words:
            case []:
                policy = load_policy(sections(config))
                lists = [f"{item.name:20} {item.category}" for item in policy.lists]
                return [f"{len(lists)} lists, {len(policy.groups)} groups", *lists]
            case ["explain", name]:
                from agent.explain import explain_name

                return explain_name(engine_of(config), name, "", time.time()).text().splitlines()
        raise ConfigError("policy: expected nothing, or explain NAME")

    def reset(self) -> None:
        config = self._config()
        for path in (config.uplink.key, config.uplink.key + ".new", config.uplink.certificate, config.uplink.ca):
            flash.remove(path)
        shipped = flash.read("/rom/etc/config/gatehouse")
        if shipped is None:
            # Not installed in the image: what stays is what says where records and state lie, and which line this is.
            console, main = config.console, config.main
            text = _BLANK + f"\toption run_dir '{main.run_dir}'\n\toption state_dir '{main.state_dir}'\n"
            text += f"config console 'console'\n\toption tty '{console.tty}'\n\toption baud '{console.baud}'\n"
            text += f"\toption network '{console.network}'\n"
            shipped = (text + f"config ring 'ring'\n\toption directory '{config.ring.directory}'\n").encode()
        flash.write(self._path, shipped)
        self.apply((self._path,))

    def note(self, action: str, what: str, result: str, detail: str, actor: str, old: str = "", new: str = "") -> None:
        note = {"action": action, "object": what, "result": result, "detail": detail, "old": old, "new": new}
        cut = {name: value[:400] for name, value in note.items()}
        try:
            self.tell_spooled()
            list(ask(self._control_path(), {"do": "note", "by": actor, **cut}))
        except GatehouseError:
            self._keep({"by": actor, **cut, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z")})

    def tell_spooled(self) -> None:
        """What could not be told yet, in its order. Raises: GatehouseError, when it still cannot."""
        octets = flash.read(self._spool)
        if octets is None:
            return
        path = self._control_path()
        for line in octets.splitlines():
            try:
                note: dict[str, Any] = json.loads(line)
            except ValueError:  # the power went while it was written
                continue
            when = str(note.pop("at", ""))
            note["detail"] = f"{note.get('detail', '')} (told late; was at {when})".strip()
            list(ask(path, {"do": "note", **note}))
        flash.remove(self._spool)

    def _keep(self, note: Mapping[str, object]) -> None:
        try:
            lines = (flash.read(self._spool) or b"").splitlines(keepends=True)
            if len(lines) >= MAX_SPOOL:
                # The newest give way, not what was first: nobody washes a lock-out away by a thousand log-ins.
                return
            with open(self._spool, "ab") as file:
                file.write(json.dumps(note, ensure_ascii=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except (OSError, StorageError) as error:
            print(f"console: {self._spool}: {error}", file=sys.stderr, flush=True)

    def _control_path(self) -> str:
        try:
            return _control(self._config())
        except GatehouseError:
            return _control(load(""))

    def _config(self) -> Config:
        try:
            return load((flash.read(self._path) or _BLANK.encode()).decode(), os.path.basename(self._path))
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self._path}: expected UTF-8 text, octet {error.start} is not") from None


def doctor_findings(config_path: str) -> list[Finding] | None:
    """The doctor's, if there is one here; None: there is not."""
    import importlib.util

    if importlib.util.find_spec("hw.doctor") is None:  # a process only to hear that takes a second on a router
        return None
    import subprocess

    command = [sys.executable, "-I", _ROOT, "doctor", "--json", "--config", config_path]
    try:
        done = subprocess.run(command, capture_output=True, timeout=DOCTOR_S, check=False)
        rows = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return [Finding("doctor", False, f"took more than {DOCTOR_S} s", "see `gatehouse doctor`", is_vital=True)]
    except (OSError, ValueError):
        return None
    if isinstance(rows, dict):
        rows = next((value for value in rows.values() if isinstance(value, list)), [])
    found = []
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and "name" in row and "ok" in row:
            name = str(row["name"])
            is_seen = row.get("seen") is not False
            is_ok = row["ok"] is True or not is_seen  # a part that is absent is no fault
            is_vital = name.startswith("config")
            found.append(Finding(name, is_ok, str(row.get("why") or ""), str(row.get("mend") or ""), is_vital, is_seen))
    return found or None


def mac_of(interfaces: Sequence[str], directory: str = "/sys/class/net") -> str:
    """Of the first interface that has one, the venue's own before others: it is the router's name on its label."""
    try:
        others = sorted(os.listdir(directory))
    except OSError:
        others = []
    for name in (*interfaces, *others):
        mac = _first_line(os.path.join(directory, name, "address"))
        if len(mac) == 17 and mac != "00:00:00:00:00:00":
            return mac
    return "00:00:00:00:00:00"


def open_console(config: Config, config_path: str, terminal: str) -> Console:
    """Everything behind one line. Raises: GatehouseError, also when another console is at work on this router."""
    directory = os.path.join(config.main.state_dir, DIRECTORY)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    _lock(directory)
    return assemble(Router(config_path, directory), config, config_path, terminal)


def assemble(router: Router, config: Config, config_path: str, terminal: str, settle_s: float = 20.0) -> Console:
    """The console of a router; what a cut left half done is undone first. Raises: GatehouseError."""
    directory = os.path.join(config.main.state_dir, DIRECTORY)
    paths = {GATEHOUSE: config_path}
    if config.console.network:
        paths[NETWORK] = config.console.network
    life = f"{_first_line('/proc/sys/kernel/random/boot_id')}:{os.getpid()}:{time.monotonic_ns()}"
    blobs = Blobs(os.path.join(directory, "files"))
    orders = Orders(router, Staging(paths, directory, life), blobs, time.monotonic, settle_s)
    kept = os.path.join(directory, "password.json")
    access = Access(
        lambda: str(flash.read(kept) or b"", "utf-8", "replace"),
        lambda text: flash.write(kept, text.encode()),
        time.monotonic(),
    )
    orders.forget_password = access.forget
    orders.recover()
    banner = " ".join(filter(None, (VERSION, config.main.device or mac_of(config.main.lan))))
    settings = config.console
    return Console(orders, access, terminal, idle_s=settings.idle_s, language=settings.language, banner=banner)


def main(words: Sequence[str]) -> int:
    """The process. Returns the exit status. Raises: GatehouseError."""
    options = {"--config": "/etc/config/gatehouse", "--line": "", "--worker": "0"}
    if len(words) % 2 or not set(words[::2]) <= options.keys():
        raise ConfigError("console: expected --config PATH, and --line - for this terminal or a line's path")
    options |= dict(zip(words[::2], words[1::2], strict=True))
    # A file that cannot be read must not keep the installer out: the console is what he mends it with.
    path = options["--config"]
    try:
        config = load((flash.read(path) or _BLANK.encode()).decode("utf-8", "replace"), os.path.basename(path))
    except ConfigError as error:
        print(f"console: {error}; it starts with the defaults", file=sys.stderr, flush=True)
        config = load("")
    line = options["--line"] or config.console.tty
    if not line:
        raise ConfigError("gatehouse.console.tty: expected a terminal line, as /dev/ttyS1; or start with --line -")
    return _run_here(config, path) if line == "-" else _run_on(config, path, line)


def _run_on(config: Config, path: str, line: str) -> int:
    console = open_console(config, path, line)
    loop = Loop(console, line, config.console.baud)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.stop())
    loop.run()
    return 0


def _run_here(config: Config, path: str) -> int:
    """On the login console's own line: its speed stays, and so does what it was set to when we leave."""
    if not os.isatty(0):
        raise ConfigError("console: --line -: expected to be started on a terminal")
    console = open_console(config, path, os.ttyname(0))
    before = termios.tcgetattr(0)
    speeds = {getattr(termios, f"B{baud}"): baud for baud in tty.SPEEDS if hasattr(termios, f"B{baud}")}
    try:
        tty.make_raw(0, speeds.get(before[5], 115200))
        os.set_blocking(0, False)
        console.receive(b"\r", time.monotonic())
        loop = Loop(console, "", 0, descriptor=0)
        loop.leaves = True
        signal.signal(signal.SIGTERM, lambda *_: loop.stop())
        signal.signal(signal.SIGHUP, lambda *_: loop.stop())
        loop.run()
    finally:
        os.set_blocking(0, True)
        termios.tcsetattr(0, termios.TCSADRAIN, before)
    return 0


def _lock(directory: str) -> None:
    descriptor = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held until the process ends
    except OSError:
        os.close(descriptor)
        raise ConfigError("console: another one is at work on this router; stop it first") from None


def _control(config: Config) -> str:
    return os.path.join(config.main.run_dir, "control")


def _service(name: str, word: str) -> None:
    import subprocess

    script = os.path.join(_INIT, name)
    if not os.path.exists(script) or not os.path.exists(_PROCD):
        return
    try:
        subprocess.run([script, word], capture_output=True, timeout=APPLY_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise StorageError(f"{script} {word}: {error}") from None


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().strip().strip("\0")
    except OSError:
        return ""
