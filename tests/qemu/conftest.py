"""One emulated router for all tests: booted, installed and set up once, frozen, and thawed for each test."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.qemu import image as images
from tests.qemu import stick as sticks
from tests.qemu.machine import Machine
from tests.qemu.network import Network

COMPLAINTS = "^<[0-3]>|BUG:|WARNING:|Oops|I/O error|EXT4-fs error|Out of memory|blocked for more than"
FIGURES = images.CACHE / "figures"
"""What the tests measured, a line each; printed at the end, whichever of pytest's workers found it."""
_STATUS = """python3 -ISc 'import _socket, sys
link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
link.connect("/var/run/gatehouse/control")
link.send(b"{\\"do\\": \\"status\\"}\\n")
said = b""
while data := link.recv(65536): said += data
"""
READY = f"""{_STATUS}state = said.partition(b"\\"state\\":")[2][:300]
state.startswith(b"\\"protecting\\"") or sys.exit(state.decode())'"""
"""`gatehouse status` without the second and a half that its imports take here; it is asked in loops."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cuts", type=int, default=50, help="how often the emulated router's power is cut")


def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        FIGURES.unlink(missing_ok=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FIGURES.exists():
        terminalreporter.section("figures")
        for line in FIGURES.read_text().splitlines():
            terminalreporter.write_line(line)


def note(figure: str) -> None:
    """Say a figure in the summary of the run."""
    with FIGURES.open("a") as file:
        file.write(f"{figure}\n")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.path).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.qemu)


@pytest.fixture(scope="session")
def cuts(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--cuts"))


class Golden(NamedTuple):
    """A router that has just been set up, standing still."""

    overlay: Path
    memory: Path
    times_s: dict[str, float]
    """How long what took, for the record: `shell`, `install`, `protecting`."""


class Router:
    """A machine between its networks, with words for what tests ask of it most."""

    def __init__(self, machine: Machine, network: Network) -> None:
        self.machine = machine
        self.network = network
        self.run = machine.run
        self.try_run = machine.try_run
        self.wait_for = machine.wait_for

    def rows(self, *words: str) -> list[dict[str, Any]]:
        """What `gatehouse query` finds in the guest."""
        said = self.run(f"gatehouse query --format jsonl {' '.join(words)}")
        return [json.loads(line) for line in said.splitlines() if line.startswith("{")]

    def status(self) -> dict[str, Any]:
        said = self.try_run("gatehouse status --format json")[1]
        found: dict[str, Any] = json.JSONDecoder().raw_decode(said, said.index("{"))[0]  # what is wrong follows it
        return found

    def counters(self, worker: str) -> dict[str, int]:
        """What a worker counts, a beat later: they are told twice a second."""
        time.sleep(0.7)
        said = self.run(f"{_STATUS}sys.stdout.buffer.write(said)'")
        workers = json.loads(said.splitlines()[0])["row"]["workers"]
        found: dict[str, int] = workers[worker]
        return found

    def wait_until_protecting(self, timeout_s: float = 90) -> None:
        self.wait_for(READY, timeout_s)

    def complaints(self) -> str:
        """What the kernel logged that it should not have."""
        return str(self.run(f"dmesg -r | grep -E '{COMPLAINTS}' || true"))


@pytest.fixture(scope="session")
def image() -> Path:
    if os.geteuid() != 0:
        pytest.skip("taps and network namespaces need root")
    return images.build()


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("qemu")


@pytest.fixture(scope="session")
def stick(work: Path) -> Path:
    return sticks.make(work)


@pytest.fixture(scope="session")
def network(work: Path) -> Iterator[Network]:
    found = Network(work)
    yield found
    found.close()


class Maker:
    """Starts machines; one at a time, for this machine has two cores."""

    def __init__(self, image: Path, work: Path, stick: Path, network: Network) -> None:
        self.image, self.work, self.stick, self.network = image, work, stick, network
        self.number = 0

    def machine(self, overlay: str, **more: Any) -> Machine:
        self.number += 1
        options = {"stick": self.stick, "taps": self.network.taps, "namespace": self.network.of("qemu"), **more}
        return Machine(options.pop("image", self.image), self.work / f"machine{self.number}", overlay, **options)


@pytest.fixture(scope="session")
def maker(image: Path, work: Path, stick: Path, network: Network) -> Maker:
    return Maker(image, work, stick, network)


@pytest.fixture(scope="session")
def golden(maker: Maker) -> Golden:
    """Kept until anything of it changes: image, packages, settings, or the machine that was frozen."""
    with images.alone("golden"):
        return _golden(maker)


def _golden(maker: Maker) -> Golden:
    place = images.CACHE / f"golden-{_sum_of(maker)}"
    overlay, memory, times = place / "overlay.ext4", place / "memory", place / "times.json"
    if times.exists():
        return Golden(overlay, memory, json.loads(times.read_text()))
    for old in images.CACHE.glob("golden-*"):
        shutil.rmtree(old)
    place.mkdir(parents=True)
    images.make_overlay(overlay)
    times_s = {}
    with maker.machine(str(overlay)).start() as machine:
        machine.login()
        times_s["shell"] = time.monotonic() - machine.started_at
        began = time.monotonic()
        machine.run("mkdir -p /tmp/stick && mount -t squashfs -o ro /dev/vdc /tmp/stick")
        machine.run("opkg install /tmp/stick/python3-dnslib_*.ipk /tmp/stick/gatehouse_*.ipk", 120)
        times_s["install"] = time.monotonic() - began
        began = time.monotonic()
        machine.run("sh /tmp/stick/venue", 120)
        machine.wait_for(READY, 90)
        times_s["protecting"] = time.monotonic() - began
        machine.run("sync")
        machine.freeze(memory)
    times.write_text(json.dumps(times_s))
    note("made the frozen router: " + ", ".join(f"{name} {value:.1f} s" for name, value in times_s.items()))
    return Golden(overlay, memory, times_s)


def _sum_of(maker: Maker) -> str:
    found = hashlib.sha256(str(maker.image).encode())
    found.update(subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True).stdout)
    # The files on the stick, not its image: mksquashfs may pack them otherwise each time.
    carried = sorted(path for path in maker.stick.with_suffix("").rglob("*") if path.is_file())
    for path in (*carried, Path(__file__), Path(__file__).with_name("machine.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


@pytest.fixture
def router(maker: Maker, golden: Golden) -> Iterator[Router]:
    overlay = maker.work / "overlay.ext4"
    shutil.copy(golden.overlay, overlay)
    machine = maker.machine(str(overlay), thaw_from=golden.memory)
    try:
        machine.start().thaw()
        # It was protecting when it was frozen. Its centre has forgotten it since, which it notices within seconds.
        found = Router(machine, maker.network)
        yield found
        complaints = found.complaints()
        assert not complaints, complaints
    finally:
        machine.kill()
