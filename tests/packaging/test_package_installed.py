"""The built package at work in the venue lab: unpacked, byte code only, with a Python that has what it asks for and no
more, procd's part played by `launch`. Who each process is, what it may, what a hook that is taken over finds.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.__main__ import read_config
from agent.clock import SystemClock
from agent.records import Records, as_row, filter_of
from tests.lab.lab import CONFIG, ROOT, Lab
from tests.packaging.openwrt import LIBRARIES, SPLIT, blocked, build
from tests.packaging.reader import read_ipk

PYTHON = "/usr/bin/python3"
CAPABILITIES = {"CHOWN": 0, "KILL": 5, "NET_BIND_SERVICE": 10, "NET_ADMIN": 12, "NET_RAW": 13}

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else"),
    pytest.mark.skipif(not os.path.exists(PYTHON), reason="needs Debian's Python: everybody can reach it"),
]


class Installed:
    """A lab whose router runs the package."""

    def __init__(self, lab: Lab, python: Path, home: Path, launcher: "subprocess.Popen[str]") -> None:
        self.lab, self.python, self.home, self.launcher = lab, python, home, launcher
        self.config = lab.directory / "gatehouse.conf"

    def gatehouse(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return self.lab.run("router", [str(self.python), "-I", str(self.home), *words, "--config", str(self.config)])

    def processes(self) -> dict[str, int]:
        found = {}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_text().split("\0")
            except OSError:
                continue
            if str(self.home) in words and str(self.config) in words and words[0] != "ip" and "nsenter" not in words[0]:
                found[words[words.index(str(self.home)) + 1]] = int(path.parent.name)
        return found

    def wait_until_protecting(self) -> None:
        deadline = time.monotonic() + 30
        while '"protecting"' not in (said := self.gatehouse("status", "--format", "json").stdout):
            assert time.monotonic() < deadline, said + (self.lab.directory / "log/installed").read_text()[-3000:]
            time.sleep(0.1)


@pytest.fixture(scope="module")
def installed() -> Iterator[Installed]:
    root = Path(tempfile.mkdtemp(prefix="gatehouse-root-"))
    root.chmod(0o755)
    launcher = None
    lab = None
    try:
        depends: set[str] = set()
        for name in ("gatehouse", "python3-dnslib"):
            (path,) = build(PYTHON).glob(f"{name}_*.ipk")
            read = read_ipk(path.read_bytes())
            depends |= set(read.control["Depends"].split(", "))
            for place, info in read.files.items():
                if info.isdir():
                    (root / place).mkdir(mode=info.mode, exist_ok=True)
                else:
                    (root / place).write_bytes(read.contents[place])
                    (root / place).chmod(info.mode)
        python = make_python(root, depends)
        directory = root / "venue"
        lab = Lab.start(directory, agent=False)
        directory.chmod(0o755)
        config = CONFIG.format(directory=directory, on_failure="open", flush="1s", binding="auto")
        config = config.replace("\toption clock", "\toption user 'nobody'\n\toption clock")
        (directory / "gatehouse.conf").write_text(
            config + "\nconfig radius 'nas'\n\toption address '10.20.0.9'\n\toption secret 'do-not-tell'\n"
        )
        (directory / "gatehouse.conf").chmod(0o600)
        home = root / "usr/lib/gatehouse"
        with (directory / "log/installed").open("w") as log:
            launcher = lab.popen(
                "router",
                [str(python), "-I", str(home), "launch", "--config", str(directory / "gatehouse.conf")],
                stdout=log,
                stderr=log,
            )
        venue = Installed(lab, python, home, launcher)
        venue.wait_until_protecting()
        yield venue
    finally:
        if launcher is not None:
            launcher.terminate()
            launcher.wait(20)
        if lab is not None:
            lab.stop()
        shutil.rmtree(root)


def make_python(root: Path, depends: set[str]) -> Path:
    """A router's Python: Debian's, less every module that the packages do not ask for, with the feed's libraries."""
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", str(root / "python")], check=True)
    (packages,) = (root / "python/lib").glob("python3*/site-packages")
    for name in ("msgpack", "paho"):
        shutil.copytree(Path(__import__(name).__path__[0]), packages / name)
    (dnslib,) = (root / "usr/lib").glob("python3*/site-packages/dnslib")
    shutil.copytree(dnslib, packages / "dnslib")
    shutil.copy(ROOT / "tests/packaging/blocker.py", packages / "gatehouse_blocker.py")
    assert depends & SPLIT.keys()
    assert depends & LIBRARIES.keys()
    (packages / "blocked").write_text(" ".join(sorted(blocked(depends))))
    (packages / "blocker.pth").write_text("import gatehouse_blocker\n")
    python = root / "python/bin/python3"
    missing = subprocess.run([python, "-I", "-c", "import asyncio"], capture_output=True, text=True)
    assert "on this router" in missing.stderr
    return python


def state_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def mask(*names: str) -> str:
    return f"{sum(1 << CAPABILITIES[name] for name in names):016x}"


def test_each_process_is_who_it_should_be_and_may_what_it_must_and_no_more(installed: Installed) -> None:
    states = {name: state_of(pid) for name, pid in installed.processes().items() if name != "launch"}
    assert set(states) >= {"agent", "dns", "nfq"}
    wanted = {
        "agent": ("0", mask("CHOWN", "KILL", "NET_BIND_SERVICE", "NET_ADMIN", "NET_RAW")),
        "dns": ("65534", mask()),
        "nfq": ("65534", mask("NET_ADMIN", "NET_RAW")),
    }
    for name, (uid, capabilities) in wanted.items():
        state = states[name]
        assert state["Uid"].split() == [uid] * 4, name
        assert set(state["Groups"].split()) <= {"65534"} or uid == "0", name
        assert [state[field] for field in ("CapEff", "CapPrm", "CapBnd")] == [capabilities] * 3, name
        assert state["CapAmb"] == state["CapInh"] == mask(), name
        assert state["NoNewPrivs"] == "1", name


def test_it_audits_and_blocks_as_that(installed: Installed) -> None:
    lab = installed.lab
    assert json.loads(installed.gatehouse("status", "--format", "json").stdout)["hooks"] == "nobody"
    assert lab.run("pupil1", "dig +short @198.51.100.10 www.example.net").stdout.startswith("198.51.100.")
    assert "casino" not in lab.run("pupil1", "dig +short @198.51.100.10 www.casino.example A").stdout
    url = "http://www.casino.example/poker"
    blocked_page = lab.run("pupil1", f"curl -s --max-time 5 --resolve www.casino.example:80:198.51.100.21 {url}")
    assert "gambling" in blocked_page.stdout
    tls = ["--cacert", f"{lab.directory}/ca.crt", "--resolve", "www.casino.example:443:198.51.100.21"]
    assert lab.run("pupil1", ["curl", "-s", "--max-time", "5", *tls, "https://www.casino.example/"]).returncode == 35
    rows = installed.gatehouse("query", "--verdict", "block", "--format", "jsonl").stdout
    kinds = {(row["kind"], row.get("name")) for row in map(json.loads, rows.splitlines())}
    assert kinds >= {("dns", "www.casino.example"), ("flow", "www.casino.example")}


def test_a_hook_takes_in_a_new_policy_though_it_cannot_read_the_configuration(installed: Installed) -> None:
    lab = installed.lab
    with (lab.directory / "lists/gambling").open("a") as file:
        file.write("news.example\n")
    assert installed.gatehouse("reload").returncode == 0
    deadline = time.monotonic() + 10
    while "198.51.100" in lab.run("pupil1", "dig +short @198.51.100.10 www.news.example A").stdout:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    before = installed.processes()
    assert installed.processes() == before, "nobody was started again for it"
    assert "not reloaded" not in (lab.directory / "log/installed").read_text()


def test_a_hook_that_is_taken_over_finds_neither_records_nor_keys_nor_ears(installed: Installed) -> None:
    directory = installed.lab.directory
    program = """
import os, socket, sys
def tried(what, do):
    try: do()
    except OSError as error: print(what, type(error).__name__)
    else: print(what, "YES")
directory = sys.argv[1]
tried("config", lambda: open(directory + "/gatehouse.conf"))
tried("ring", lambda: os.listdir(directory + "/ring"))
tried("state", lambda: os.listdir(directory + "/state"))
tried("register", lambda: open(directory + "/state/register"))
tried("control", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).connect(directory + "/run/control"))
tried("sessions", lambda: open(directory + "/run/sessions", "r+b", buffering=0))
tried("agent", lambda: os.kill(int(sys.argv[2]), 0))
tried("events", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(directory + "/run/events"))
text = open(directory + "/run/hooks.conf").read()
print("secret", "YES" if "do-not-tell" in text or "radius" in text else "absent")
"""
    agent = installed.processes()["agent"]
    said = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", PYTHON, "-c", program, directory, str(agent)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = dict(line.split() for line in said.splitlines())
    assert found.pop("events") == "YES"
    assert found.pop("secret") == "absent"
    assert set(found.values()) == {"PermissionError"}, found
    assert len(found) == 7


def test_a_hook_reads_the_venues_own_legal_profile_again(installed: Installed) -> None:
    """One that it could not read would let nothing out: a venue that records nothing, and does not know why."""
    directory = installed.lab.directory
    shipped = installed.home / "policy/profiles"
    for place, names in (("profiles", ("uk-kcsie.toml", "uk-kcsie.toml.sig")), ("keys", ("release.pub",))):
        (directory / "state" / place).mkdir(mode=0o700)
        for name in names:
            shutil.copy(shipped / name, directory / "state" / place / name)
            (directory / "state" / place / name).chmod(0o600)
    other = directory / "legal.conf"
    other.write_text(installed.config.read_text().replace("\toption user", "\toption legal 'uk-kcsie'\n\toption user"))
    other.chmod(0o600)
    program = """
import sys
sys.path.insert(0, sys.argv[1])
from agent.__main__ import read_config
from agent.hooks import _sieve
from agent.legal import open_profile
from agent.privileges import drop
from agent.shared import Shared
config = read_config(sys.argv[2])
Shared(config, sys.argv[2], config.main.run_dir + "/events").publish(config)
drop("dns", config)
config = read_config(sys.argv[3])
print(open_profile("uk-kcsie", config.main.state_dir).name, _sieve(config) is not None)
"""
    words = [installed.home, other, directory / "run/hooks.conf"]
    result = installed.lab.run("router", [str(installed.python), "-I", "-c", program, *map(str, words)])
    assert (result.stdout, result.stderr) == ("uk-kcsie True\n", "")


def test_files_are_for_their_owner_alone(installed: Installed) -> None:
    handed = {"policy.gp", "policy.gp.old", "overrides.json", "hooks.conf", "events", "run", "state"}
    public = {"keys", "profiles"}
    open_ones = {}
    for place in ("run", "state", "ring"):
        top = installed.lab.directory / place
        for path in [top, *top.rglob("*")]:
            mode = path.lstat().st_mode & 0o777
            if mode & (0o007 if path.name in handed or {path.name, path.parent.name} & public else 0o077):
                open_ones[str(path)] = oct(mode)
    assert open_ones == {}


def test_an_agent_that_dies_and_comes_back_is_found_by_its_hooks(installed: Installed) -> None:
    before = installed.processes()
    os.kill(before["agent"], signal.SIGKILL)
    time.sleep(1)
    installed.wait_until_protecting()
    after = installed.processes()
    assert after["agent"] != before["agent"]
    assert (after["dns"], after["nfq"]) == (before["dns"], before["nfq"])


@pytest.mark.parametrize(("port", "may"), [(53, True), (5300, False)])
def test_only_a_dns_hook_that_is_to_serve_a_low_port_may_open_one(installed: Installed, port: int, may: bool) -> None:
    program = """
import socket, sys
sys.path.insert(0, sys.argv[1])
from agent.privileges import drop
from policy.config import load
text = f"config gatehouse 'main'\\n\toption user 'nobody'\\nconfig dns 'dns'\\n\toption port '{sys.argv[2]}'\\n"
print(drop("dns", load(text)))
socket.socket().bind(("127.0.0.1", 99))
"""
    words = [str(installed.python), "-I", "-c", program, str(installed.home), str(port)]
    result = installed.lab.run("router", words)
    assert result.stdout == "Identity(uid=65534, gid=65534)\n"
    assert (result.returncode == 0) is may, result.stderr
    assert may or "PermissionError" in result.stderr


def test_a_root_that_lacks_something_from_the_start_goes_on_without(installed: Installed) -> None:
    program = """
import sys
sys.path.insert(0, sys.argv[1])
from agent.privileges import drop
from policy.config import load
drop("agent", load(""))
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")])
"""
    less = ["setpriv", "--bounding-set", "-net_raw,-kill", "--"]
    result = installed.lab.run("router", [*less, str(installed.python), "-I", "-c", program, str(installed.home)])
    assert result.stdout == f"['{mask('CHOWN', 'NET_BIND_SERVICE', 'NET_ADMIN')}']\n", result.stderr


def test_in_a_user_namespace_of_root_alone_hooks_stay_root(installed: Installed) -> None:
    program = """
import sys
sys.path.insert(0, sys.argv[1])
from agent.privileges import drop
from policy.config import load
print(drop("nfq", load("config gatehouse 'main'\\n\toption user 'nobody'\\n")))
"""
    words = [str(installed.python), "-I", "-c", program, str(installed.home)]
    result = subprocess.run(["unshare", "--user", "--map-root-user", *words], capture_output=True, text=True)
    assert result.stdout == "None\n", result.stderr
    assert "stays root" in result.stderr


def test_in_somebodys_closed_home_root_can_still_work(installed: Installed, tmp_path: Path) -> None:
    """`sudo make run` in a checkout: modules are imported when they are first needed, long after the start."""
    home = Path(tempfile.mkdtemp(prefix="gatehouse-home-"))
    try:
        shutil.copytree(installed.home, home / "gatehouse")
        os.chown(home, 65534, 65534)
        program = """
import sys
sys.path.insert(0, sys.argv[1])
from agent.privileges import drop
from policy.config import load
drop("uplink", load(""))
import agent.export
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")])
"""
        words = [str(installed.python), "-I", "-c", program, str(home / "gatehouse")]
        result = installed.lab.run("router", words)
        assert result.stdout == "['0000000000000002']\n", result.stderr
    finally:
        shutil.rmtree(home)


def test_rpcd_reads_the_state_and_nothing_of_anybody(installed: Installed) -> None:
    plugin = ROOT / "packaging/openwrt/gatehouse/files/usr/libexec/rpcd/gatehouse"
    call = [PYTHON, "-IS", str(plugin)]
    assert json.loads(subprocess.run([*call, "list"], capture_output=True).stdout) == {"status": {}, "reload": {}}
    words = [*call, "call", "status", str(installed.config)]
    said = subprocess.run(words, input="{}", capture_output=True, text=True).stdout
    assert json.loads(said)["state"] == "protecting"
    assert "10.20.0." not in said
    assert "02:00:00" not in said
    gone = subprocess.run([*call, "call", "status", "/nowhere"], input="", capture_output=True, text=True)
    assert json.loads(gone.stdout)["state"] == "stopped"
    assert subprocess.run([*call, "call", "query"], capture_output=True, input=b"{}").returncode == 2


def test_uninstalling_is_on_record_and_leaves_no_rule(installed: Installed) -> None:
    """The last one: it takes everything down, as the package's removal does."""
    lab = installed.lab
    assert installed.gatehouse("uninstall", "record").returncode == 0
    rows = installed.gatehouse("query", "--kind", "maintenance", "--format", "jsonl").stdout.splitlines()
    assert any(json.loads(row)["action"] == "uninstall" for row in rows)
    for pid in installed.processes().values():
        os.kill(pid, signal.SIGKILL)  # the worst of stops: nothing is taken out in order
    installed.launcher.wait(10)
    time.sleep(0.2)
    assert "GH-" in lab.run("router", "iptables-save").stdout
    assert installed.gatehouse("uninstall", "rules").returncode == 0
    for tool in ("iptables-save", "ip6tables-save"):
        assert "GH-" not in lab.run("router", tool).stdout
    # And once more without an agent: straight into the ring, whose chain still holds.
    assert installed.gatehouse("uninstall", "record").returncode == 0
    records = Records(read_config(str(installed.config)).ring, SystemClock(trusted=True), lambda *_: None)
    rows = [as_row(found) for found in records.ring.query(filter_of({"kind": "maintenance"})) if found is not None]
    assert [row["action"] for row in rows].count("uninstall") == 2
    assert rows[-1]["action"] == "uninstall"
    records.close()
    assert installed.gatehouse("verify").returncode == 0
