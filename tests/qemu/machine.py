"""One emulated router: start it, talk to it over its serial console, freeze and thaw it, pull its plug.

Order of calls: `Machine(...)`, `start`, then `login` after a boot or `thaw` from a frozen state; `kill` in any case.
"""

from __future__ import annotations

import ctypes
import json
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.qemu.image import MACHINES

PROMPT = "Please press Enter to activate this console"
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class ConsoleError(Exception):
    """The guest did not say what was expected; with what it said."""


class Console:
    """The serial line that carries the shell."""

    def __init__(self, path: Path, log: Path) -> None:
        self.said = b""
        self._log = log.open("ab")
        self._link = _connect(path)
        self._serial = 0

    def expect(self, pattern: bytes, timeout_s: float = 60) -> re.Match[bytes]:
        """Read until `pattern` was said; what is behind it stays for the next. Raises: ConsoleError, EOFError."""
        deadline = time.monotonic() + timeout_s
        wanted = re.compile(pattern, re.DOTALL)
        while True:
            found = wanted.search(self.said)
            if found:
                self.said = self.said[found.end() :]
                return found
            if time.monotonic() > deadline:
                raise ConsoleError(
                    f"no {pattern!r} within {timeout_s:g} s; the end of what there was: {self.said[-1500:]!r}"
                )
            self.read(0.5)

    def read(self, timeout_s: float) -> None:
        """What has come by now, or comes within the time."""
        if not select.select([self._link], [], [], timeout_s)[0]:
            return
        data = self._link.recv(65536)
        if not data:
            raise EOFError(f"the machine is gone: {self.said[-500:]!r}")
        self.said += data
        self._log.write(data)
        self._log.flush()

    def send(self, text: str) -> None:
        self._link.sendall(text.encode())

    def login(self, timeout_s: float) -> None:
        self.expect(PROMPT.encode(), timeout_s)
        self.send("\n")
        self.expect(rb"# ")
        self.run("stty -echo; PS1= PS2= ; . /etc/profile; dmesg -n 1")

    def run(self, command: str, timeout_s: float = 60) -> tuple[int, str]:
        """Exit status and output. The shell assembles the mark that ends it, so that an echo is not taken for it."""
        self._serial += 1
        mark = f"end-{self._serial}-of"
        self.send(f"{command}\nstatus=$?; echo; echo {mark[:3]}''{mark[3:]}=$status\n")
        found = self.expect(mark.encode() + rb"=(\d+)\r?\n", timeout_s)
        text = found.string[: found.start()].decode("utf-8", "replace").replace("\r\n", "\n")
        return int(found.group(1)), text.strip("\n")


class Monitor:
    """QMP."""

    def __init__(self, path: Path) -> None:
        self._file = _connect(path).makefile("rw")
        self._file.readline()
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: object) -> Any:
        """Raises: RuntimeError with QEMU's words."""
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while True:
            answer = json.loads(self._file.readline() or '{"error": "the machine is gone"}')
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]


class Machine:
    """One run of QEMU. `overlay`: a file or an nbd+unix address; `stick`: a read-only image, the third disk."""

    def __init__(
        self,
        image: Path,
        directory: Path,
        overlay: str,
        *,
        stick: Path | None = None,
        architecture: str = "amd64",
        memory_mb: int = 256,
        taps: Sequence[int] = (),
        namespace: str = "",
        command_line: str = "",
        thaw_from: Path | None = None,
    ) -> None:
        kind = MACHINES[architecture]
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._shell, self._monitor = directory / "shell", directory / "monitor"
        self._taps = taps
        words = [kind.emulator, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", *kind.arguments]
        words += ["-accel", "tcg,thread=multi,tb-size=128", "-m", str(memory_mb), "-smp", "1"]
        words += ["-kernel", f"{image}/vmlinuz", "-initrd", f"{image}/initrd", "-append"]
        words += [
            (
                # norandmaps: where every process has its libraries in the same place, TCG translates them once for all
                # of them. It halves the time that everything takes.
                f"console={kind.console} quiet panic=-1 oops=panic nokaslr norandmaps mitigations=off "
                f"random.trust_cpu=on "
                f"{kind.command_line} {command_line}"
            )
        ]
        words += ["-chardev", f"socket,id=shell,path={self._shell},server=on,wait=off", "-serial", "chardev:shell"]
        if architecture.startswith("amd64"):  # `virt` has one UART
            words += ["-chardev", "pty,id=console", "-serial", "chardev:console"]
        words += ["-qmp", f"unix:{self._monitor},server=on,wait=off"]
        disks = [(f"{image}/root.squashfs", "on"), (overlay, "off")]
        disks += [(str(stick), "on")] if stick else []
        for number, (file, read_only) in enumerate(disks):
            drive = f"file={file},if=none,id=disk{number},format=raw,readonly={read_only}"
            words += ["-drive", drive, "-device", f"virtio-blk-pci,drive=disk{number},romfile="]
        for number, descriptor in enumerate(taps):
            mac = f"02:00:00:00:01:0{number}"
            words += ["-netdev", f"tap,id=net{number},fd={descriptor}"]
            words += ["-device", f"virtio-net-pci,netdev=net{number},mac={mac},romfile="]
        if thaw_from:
            words += ["-incoming", f"exec:cat {thaw_from}"]
        self._words = ["ip", "netns", "exec", namespace, *words] if namespace else words
        self._process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self.stop_console: Callable[[], None] | None = None

    def start(self) -> Machine:
        """Raises: ConsoleError with QEMU's words if it ends at once."""
        for path in (self._shell, self._monitor):
            path.unlink(missing_ok=True)
        self.started_at = time.monotonic()
        with (self.directory / "qemu.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=self._taps,
                # A test that dies must not leave a machine behind.
                preexec_fn=lambda: _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509  # one call
            )
        try:
            self.console = Console(self._shell, self.directory / "console.log")
            self.monitor = Monitor(self._monitor)
        except OSError:
            self.kill()
            raise ConsoleError(f"QEMU: {(self.directory / 'qemu.log').read_text()[-1500:]}") from None
        return self

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def login(self, timeout_s: float = 120) -> Machine:
        """After a boot. Raises: ConsoleError."""
        self.console.login(timeout_s)
        return self

    def thaw(self) -> Machine:
        """After `start` with `thaw_from`: goes on where it was frozen, with the clock put right."""
        deadline = time.monotonic() + 30
        while self.monitor("query-status")["status"] in ("inmigrate", "restore-vm") and time.monotonic() < deadline:
            time.sleep(0.02)
        self.monitor("cont")
        self.run(f"date -s @{int(time.time())}")
        return self

    def freeze(self, path: Path) -> None:
        """Write memory and devices to a file; the machine stands still afterwards."""
        self.monitor("stop")
        self.monitor("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        self.monitor("migrate", uri=f"exec:cat > {path}")
        deadline = time.monotonic() + 60
        while (status := self.monitor("query-migrate")["status"]) != "completed":
            if status == "failed" or time.monotonic() > deadline:
                raise RuntimeError(f"freeze: {status}")
            time.sleep(0.05)

    def try_run(self, command: str, timeout_s: float = 60) -> tuple[int, str]:
        """Exit status and output of a shell command in the guest."""
        return self.console.run(command, timeout_s)

    def run(self, command: str, timeout_s: float = 60) -> str:
        """Output of a command that must succeed. Raises: ConsoleError with what it said."""
        status, text = self.console.run(command, timeout_s)
        if status:
            raise ConsoleError(f"{command}: {status}: {text[-2000:]}")
        return text

    def wait_for(self, command: str, timeout_s: float = 60) -> None:
        """Until a command in the guest succeeds. Raises: ConsoleError."""
        loop = f"for _ in $(seq {int(timeout_s * 3)}); do {command} && exit; sleep 0.3; done; exit 1"
        status, said = self.console.run(f"({loop}) >/tmp/wait 2>&1 || (tail -n 5 /tmp/wait; exit 1)", timeout_s * 3)
        if status:
            raise ConsoleError(f"not within {timeout_s:g} s: {command}: {said}")

    def second_line(self) -> str:
        """Path of the pseudo-terminal that is the guest's second UART."""
        (found,) = [line for line in self.monitor("query-chardev") if line["label"] == "console"]
        return str(found["filename"].removeprefix("pty:"))

    def kill(self) -> None:
        """At once, whatever it does."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)


def _connect(path: Path) -> socket.socket:
    deadline = time.monotonic() + 5
    while True:
        link = socket.socket(socket.AF_UNIX)
        try:
            link.connect(str(path))
            return link
        except OSError:
            link.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
