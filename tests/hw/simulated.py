"""A router's console as it is, in a thread instead of a process: real files, real keys; a MAC and faults of its own."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent import console as roof
from hw.device import Finding
from hw.serve import Loop
from policy.config import load
from policy.errors import StorageError


def write_config(directory: Path, more: str = "") -> Path:
    """A blank router's files."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "gatehouse"
    path.write_text(
        f"config gatehouse 'main'\n\toption enabled '0'\n\toption run_dir '{directory}/run'\n"
        f"\toption state_dir '{directory}/state'\n\tlist lan 'lo'\n"
        f"config ring 'ring'\n\toption directory '{directory}/ring'\n"
        f"config console 'console'\n\toption network '{directory}/network'\n"
        f"config uplink 'uplink'\n\toption ca '{directory}/uplink/ca.pem'\n"
        f"\toption certificate '{directory}/uplink/device.pem'\n\toption key '{directory}/uplink/device.key'\n" + more
    )
    (directory / "network").write_text("config interface 'wan'\n\toption device 'eth1'\n\toption proto 'dhcp'\n")
    return path


class Faulty(roof.Router):
    """The real one; its doctor is the short one, and what is in `faults` goes wrong."""

    def __init__(self, path: str, directory: str, mac: str, faults: Mapping[str, str]) -> None:
        super().__init__(path, directory)
        self.mac, self.faults = mac, dict(faults)
        self.notes: list[tuple[str, ...]] = []
        self.tests = 0

    def facts(self) -> Mapping[str, object]:
        return {**super().facts(), "mac": self.mac}

    def test(self) -> Sequence[Finding]:
        self.tests += 1
        found = list(self._own_findings())
        if "test" in self.faults and self.tests > 1:
            found.append(Finding("queue", False, self.faults["test"], "install kmod-nft-queue", is_vital=True))
        return found

    def install_certificate(self, text: str, certificate: bytes) -> str:
        if "flash" in self.faults:
            raise StorageError(f"device.pem: {self.faults['flash']}")
        return super().install_certificate(text, certificate)

    def note(self, action: str, what: str, result: str, detail: str, actor: str, old: str = "", new: str = "") -> None:
        self.notes.append((action, what, result, detail, actor))


class Simulated:
    """One of them on a line. `with Simulated(directory, line) as router:`"""

    def __init__(
        self, directory: Path, line: Path, *, mac: str = "02:00:00:00:00:01", baud: int = 115200, **faults: str
    ) -> None:
        self.directory = directory
        self.path = directory / "gatehouse"
        if not self.path.exists():
            write_config(directory)
        state = directory / "state" / "console"
        state.mkdir(parents=True, exist_ok=True)
        self.device = Faulty(str(self.path), str(state), mac, faults)
        config = load(self.path.read_text())
        self.console = roof.assemble(self.device, config, str(self.path), "ttyS1", settle_s=0.0)
        self.orders, self.access = self.console.orders, self.console.access
        self._loop = Loop(self.console, str(line), baud)
        self._thread = threading.Thread(target=self._loop.run, daemon=True)

    def __enter__(self) -> "Simulated":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.stop()
        self._thread.join()
