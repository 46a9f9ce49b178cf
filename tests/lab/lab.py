"""A venue in a box, from outside: bring it up, run commands in it, see its processes, take it down.

Needs root, or a kernel that lets users make namespaces (`unshare --user`). Nothing of it is seen outside: not the
network namespaces' names, not the processes when it is down.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.centre import ADDRESS, MOSQUITTO, PORT

ROOT = Path(__file__).resolve().parents[2]

LISTS = {
    "gambling": "casino.example\n",
    "adult": "adult.example\n",
    "exceptions": "help.casino.example\n",
}

CONFIG = """\
config gatehouse 'main'
\toption enabled '1'
\toption run_dir '{directory}/run'
\toption state_dir '{directory}/state'
\toption on_failure '{on_failure}'
\toption firewall 'iptables'
\toption clock 'trusted'
\tlist lan 'br-lan'

config dns 'dns'
\toption port '5300'
\tlist upstream '127.0.0.1#53'

config nfq 'nfq'
\toption binding '{binding}'

config ring 'ring'
\toption directory '{directory}/ring'
\toption flush '{flush}'

config session 'session'
\toption leases '{directory}/dhcp.leases'

config hardware 'hardware'
\toption self_test '0s'

config policy 'policy'
\toption table '{directory}/state/policy.gp'

config list 'gambling'
\toption file '{directory}/lists/gambling'
\toption category 'gambling'

config list 'adult'
\toption file '{directory}/lists/adult'
\toption category 'adult'

config list 'exceptions'
\toption file '{directory}/lists/exceptions'
\toption action 'allow'

config profile 'school'
\tlist block 'gambling'
\tlist block 'adult'

config group 'pupils'
\toption profile 'school'
\tlist ip '10.20.0.0/24'
\tlist ip '2001:db8:20::/64'
"""


class Lab:
    """One venue. `Lab.start` brings it up; `stop` takes everything down."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        state = json.loads((directory / "lab.json").read_text())
        self.rootless: bool = state["rootless"]
        self.pid: int = int((directory / "lab.pid").read_text())

    @classmethod
    def start(
        cls,
        directory: Path,
        *,
        on_failure: str = "open",
        flush: str = "2s",
        binding: str = "auto",
        lists: dict[str, str] | None = None,
        extra: str = "",
        agent: bool = True,
        main: str = "",
        prepare: Callable[[Path], None] | None = None,
        quic: bool = False,
        centre: bool = False,
    ) -> "Lab":
        """Build the venue in `directory` (kept: logs, ring, state) and wait until it answers."""
        directory = directory.resolve()
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "lab.json").unlink(missing_ok=True)
        (directory / "lists").mkdir(exist_ok=True)
        for name, text in {**LISTS, **(lists or {})}.items():
            (directory / "lists" / name).write_text(text)
        if quic:
            (directory / "quic").touch()
        if centre:
            (directory / "mosquitto.conf").write_text(MOSQUITTO)
            (directory / "centre").write_text(f"{ADDRESS} {PORT}")
        if agent:
            text = CONFIG.format(directory=directory, on_failure=on_failure, flush=flush, binding=binding)
            (directory / "gatehouse.conf").write_text(text.replace("\toption clock", main + "\toption clock") + extra)
        if prepare is not None:
            prepare(directory)
        rootless = os.geteuid() != 0
        command = ["unshare", "--mount", "--net", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        if rootless:
            command += ["--user", "--map-root-user"]
        command += [sys.executable, "-I", str(Path(__file__).with_name("anchor.py")), str(directory)]
        with (directory / "anchor.log").open("wb") as log:
            outer = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "LAB_ROOTLESS": str(int(rootless))},
            )
        deadline = time.monotonic() + 30
        while not (directory / "lab.json").exists():
            if outer.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the lab did not come up: {(directory / 'anchor.log').read_text().strip()}")
            time.sleep(0.02)
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        (directory / "lab.pid").write_text(children[0])
        lab = cls(directory)
        try:
            lab.wait_until_ready(agent)
        except RuntimeError:
            lab.stop()
            raise
        return lab

    @classmethod
    @contextmanager
    def running(cls, directory: Path, **options: object) -> Iterator["Lab"]:
        """A lab for the length of a `with` block."""
        lab = cls.start(directory, **options)  # type: ignore[arg-type]
        try:
            yield lab
        finally:
            lab.stop()

    @property
    def is_up(self) -> bool:
        return Path(f"/proc/{self.pid}/ns/net").exists()

    def prefix(self, namespace: str) -> list[str]:
        """Words to put in front of a command so that it runs in a namespace of the lab."""
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--net", "--pid", "--ipc"]
        if self.rootless:
            enter += ["--user", "--preserve-credentials"]
        return [*enter, "--", "ip", "netns", "exec", namespace]

    def run(
        self,
        namespace: str,
        command: str | list[str],
        *,
        timeout: float = 30,
        check: bool = False,
        input: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and keep what it says."""
        words = shlex.split(command) if isinstance(command, str) else command
        return subprocess.run(
            [*self.prefix(namespace), *words], capture_output=True, text=True, timeout=timeout, check=check, input=input
        )

    def popen(self, namespace: str, command: str | list[str], **options: object) -> subprocess.Popen[str]:
        words = shlex.split(command) if isinstance(command, str) else command
        return subprocess.Popen([*self.prefix(namespace), *words], text=True, **options)  # type: ignore[call-overload]

    def gatehouse(self, *words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """The command line tool, on the router."""
        command = [sys.executable, "-I", str(ROOT), *words, "--config", f"{self.directory}/gatehouse.conf"]
        return self.run("router", command, timeout=timeout)

    def rows(self, *words: str) -> list[dict[str, object]]:
        """What `gatehouse query` finds, as dictionaries."""
        result = self.gatehouse("query", "--format", "jsonl", *words)
        if result.returncode:
            raise RuntimeError(f"gatehouse query {shlex.join(words)}: {result.stderr}")
        return [json.loads(line) for line in result.stdout.splitlines()]

    def status(self) -> dict[str, object]:
        result = self.gatehouse("status", "--format", "json")
        if not result.stdout:  # one that is degraded says so by its exit status, too
            raise RuntimeError(f"gatehouse status: {result.stderr}")
        found: dict[str, object] = json.loads(result.stdout)
        return found

    def processes(self) -> dict[str, int]:
        """Gatehouse's processes by name (`agent/0`, `dns/0`, `nfq/0`, `launch`), as process ids seen from here."""
        found: dict[str, int] = {}
        pending = [self.pid]
        while pending:
            pid = pending.pop()
            try:
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                pending += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue
            if str(ROOT) in words and "--config" in words:
                role = words[words.index(str(ROOT)) + 1]
                worker = f"/{words[words.index('--worker') + 1]}" if "--worker" in words else ""
                found.setdefault(role + worker, pid)
        return found

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.processes()[name], number)

    def wait_until_ready(self, agent: bool = True, timeout: float = 30) -> None:
        """Until the internet answers, and through Gatehouse where it runs."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                up = self.run(
                    "pupil1", "dig +short +time=1 +tries=1 @198.51.100.10 ready.example.org", timeout=5
                ).stdout
                web = self.run(
                    "router", "curl -s -o /dev/null -w %{http_code} --max-time 2 http://198.51.100.20/"
                ).stdout
                if (
                    up.startswith("198.51.100.")
                    and web == "200"
                    and (not agent or self.status().get("state") == "protecting")
                ):
                    return
            except (RuntimeError, subprocess.TimeoutExpired):
                pass
            if time.monotonic() > deadline:
                log = self.directory / "log" / "gatehouse"
                said = log.read_text()[-4000:] if log.exists() else ""
                raise RuntimeError(f"the lab is up but does not answer within {timeout:g} s\n{said}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Take everything down: Gatehouse in order, then the rest with its namespace."""
        try:
            os.kill(self.pid, signal.SIGTERM)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + 15
        while self.is_up and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.is_up:
            os.kill(self.pid, signal.SIGKILL)
