"""`gatehouse doctor` on a venue that is well, and with faults planted by their real causes: each is found, and named.

One venue for them all: real rules, a real queue, real dnsmasq, a real mosquitto with TLS on both sides, an ext4 of the
ring's own. Each plant is undone, and the venue is well again before the next.
"""

import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.lab.broker import DAY, MOSQUITTO, Authority
from tests.lab.centre import ADDRESS
from tests.lab.centre import MOSQUITTO as PLAIN
from tests.lab.lab import ROOT, Lab
from tests.lab.test_lab_life import ask_while, wait_until_protecting
from tests.lab.test_lab_queue import unbind, wait_for
from tests.lab.test_lab_storage import Disk, disk

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a file system of its own is to be mounted"),
]
VENUE, DEVICE = "11010500000001", "100000001020000000001"
MAIN = f"\toption venue '{VENUE}'\n\toption device '{DEVICE}'\n"
UPLINK = f"""
config uplink 'uplink'
\toption enabled '1'
\tlist server '{ADDRESS}#8883'
\toption ca '{{directory}}/authority/ca.pem'
\toption certificate '{{directory}}/authority/device.pem'
\toption key '{{directory}}/authority/device.key'
\toption stagger '0s'
\toption heartbeat '2s'
"""
TLS = f"""
listener 8883 {ADDRESS}
cafile {{directory}}/authority/ca.pem
certfile {{directory}}/authority/broker.pem
keyfile {{directory}}/authority/broker.key
require_certificate true
use_identity_as_username true
"""


class Venue(NamedTuple):
    """What a plant works on."""

    lab: Lab
    ring: Disk


def prepare(directory: Path) -> None:
    authority = Authority(directory / "authority", end=90 * DAY)
    authority.issue("broker", "broker", hosts=(ADDRESS,), end=90 * DAY)
    authority.issue("device", f"{VENUE}/{DEVICE}", end=90 * DAY)
    (directory / "mosquitto.conf").write_text(PLAIN + TLS.format(directory=directory))


@pytest.fixture(scope="module")
def venue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Venue]:
    directory = tmp_path_factory.mktemp("doctor")
    extra = UPLINK.format(directory=directory)
    options = {"flush": "1s", "centre": True, "main": MAIN, "extra": extra, "prepare": prepare}
    with disk(directory, 32 << 20) as ring, Lab.running(directory, **options) as lab:
        yield Venue(lab, ring)


class Said(NamedTuple):
    """One run of the doctor."""

    status: int
    findings: dict[str, dict[str, object]]
    result: str

    @property
    def faults(self) -> set[str]:
        return {name for name, finding in self.findings.items() if not finding["ok"]}


def doctor(lab: Lab, environment: dict[str, str] | None = None, before: str = "") -> Said:
    """Its JSON, as a script would read it. `before`: a shell command in the same mount namespace."""
    command = [sys.executable, "-I", str(ROOT), "doctor", "--json", "--config", f"{lab.directory}/gatehouse.conf"]
    variables = [f"{name}={value}" for name, value in (environment or {}).items()]
    wrapped = ["sh", "-c", f'{before or ":"}; exec "$@"', "sh", "env", *variables, *command]
    done = lab.run("router", wrapped, timeout=60)
    assert done.returncode in (0, 1), done.stderr
    said = json.loads(done.stdout)
    findings = {finding["name"]: finding for finding in said["findings"]}
    assert all(finding["mend"] for finding in findings.values() if not finding["ok"]), "each fault comes with its mend"
    assert said["ok"] == (done.returncode == 0)
    return Said(done.returncode, findings, said["result"])


def be_well(lab: Lab) -> None:
    """The last run's result stands in the status until the next: so let there be one, when all else is well."""
    deadline = time.monotonic() + 20
    while any("self-test" not in str(line) for line in lab.status()["why"]):  # type: ignore[attr-defined]
        assert time.monotonic() < deadline, lab.status()["why"]
        time.sleep(0.1)
    while (said := doctor(lab)).status != 0:
        assert time.monotonic() < deadline, said.faults
    wait_until_protecting(lab)


def test_a_venue_that_is_well(venue: Venue) -> None:
    begin = time.monotonic()
    said = doctor(venue.lab)
    assert said.status == 0, [finding for finding in said.findings.values() if not finding["ok"]]
    assert time.monotonic() - begin < 15
    tried = {name for name, finding in said.findings.items() if finding["seen"]}
    lan = {f"{name}{version}" for name in ("dns", "dns-tcp", "dot", "sni", "http", "quic") for version in ("", "6")}
    assert tried >= lan | {"modules", "queues", "rules", "workers", "storage", "broker", "certificate", "upstream"}
    # Nothing is left of the client that it made, and what it did is nobody's.
    assert "gh-" not in venue.lab.run("router", "ip link").stdout
    assert "198.19." not in venue.lab.run("router", "ip route").stdout + venue.lab.run("router", "ip neigh").stdout
    time.sleep(1)
    rows = venue.lab.rows("--domain", "canary.gatehouse.invalid", "--since", "1h")
    assert {(row["verdict"], row["rule"], row["session"]) for row in rows} == {("block", "self-test", "")}
    assert {row["kind"] for row in rows} == {"dns", "flow"}
    sessions = venue.lab.rows("--kind", "session", "--since", "1h")
    assert not [row for row in sessions if "198.19." in str(row) or "2001:2:0:83" in str(row)]
    told = [row for row in venue.lab.rows("--kind", "maintenance", "--since", "1h") if row["action"] == "self-test"]
    assert [(row["object"], row["result"]) for row in told] == [("doctor", "ok")]


def test_an_override_does_not_open_the_canary_and_its_lines_are_for_people(venue: Venue) -> None:
    opened = venue.lab.gatehouse("override", "open", "canary.gatehouse.invalid")
    assert opened.returncode == 0, opened.stderr
    lines = venue.lab.gatehouse("doctor")
    assert lines.returncode == 0, lines.stdout
    assert "ok      sni " in lines.stdout
    assert "absent  rtc " in lines.stdout
    assert lines.stdout.splitlines()[-1] == "ok"


def test_two_at_once_do_not_take_each_others_place(venue: Venue) -> None:
    with ThreadPoolExecutor(3) as pool:
        for said in pool.map(doctor, [venue.lab] * 3):
            assert said.status == 0, said.faults
            assert said.findings["sni"]["seen"]


def test_a_button_held_for_three_seconds_has_the_agent_test_itself(venue: Venue) -> None:
    """As it does every `self_test` seconds, but for the wait; meanwhile every question is answered."""
    lab = venue.lab

    def hold() -> None:
        assert lab.gatehouse("button", "reset", "pressed").returncode == 0
        assert "begins" in lab.gatehouse("button", "reset", "released", "--seconds", "3").stdout

    answers = ask_while(lab, "button", 3, hold)
    assert sum(name == "-" for name, _ in answers) == 0

    def told(action: str) -> list[tuple[object, object]]:
        rows = lab.rows("--kind", "maintenance", "--since", "2m")
        return [(row["actor"], row["result"]) for row in rows if row["action"] == action]

    assert told("button") == [("button", "pressed"), ("button", "released")]
    wait_for(lambda: ("agent", "ok") in told("self-test"))
    after = lab.status()["self_test"]
    assert after["result"] == "ok"  # type: ignore[index]
    assert time.time() - after["at_s"] < 30  # type: ignore[index]


# --- what is planted ------------------------------------------------------------------------------------------------


@contextmanager
def flushed(venue: Venue) -> Iterator[Said]:
    """Somebody's `iptables -F`. The agent sets them again within five seconds, perhaps at once: then once more."""
    flush = "for t in nat mangle filter raw; do iptables -t $t -F; ip6tables -t $t -F; done"
    for _ in range(4):
        venue.lab.run("router", ["sh", "-c", flush], check=True)
        said = doctor(venue.lab)
        if "rules" in said.faults:
            break
    venue.lab.run("router", "iptables -t nat -A POSTROUTING -o wan0 -j MASQUERADE", check=True)
    yield said


@contextmanager
def unbound(venue: Venue) -> Iterator[Said]:
    unbind(venue.lab.processes()["nfq/0"])
    yield doctor(venue.lab)
    with suppress(KeyError, ProcessLookupError):  # what the agent does too, after four seconds
        venue.lab.kill("nfq/0")


@contextmanager
def missing_module(venue: Venue) -> Iterator[Said]:
    """As on an OpenWrt without iptables-mod-conntrack-extra: everything but one extension is there."""
    modules = venue.lab.directory / "xtables"
    modules.mkdir()
    (real,) = {path.parent for path in Path("/usr/lib").glob("*/xtables/libxt_connbytes.so")}
    for path in real.iterdir():
        if path.name != "libxt_connbytes.so":
            (modules / path.name).symlink_to(path)
    yield doctor(venue.lab, {"XTABLES_LIBDIR": str(modules)})


@contextmanager
def missing_queue_module(venue: Venue) -> Iterator[Said]:
    """A /proc that does not know of nfnetlink_queue, for it is built into this kernel and cannot be taken out."""
    yield doctor(venue.lab, before="mount -t proc -o subset=pid none /proc")


@contextmanager
def foreign_resolver(venue: Venue) -> Iterator[Said]:
    """Somebody's own rule, before ours."""
    rule = "PREROUTING -i br-lan -p udp --dport 53 -j ACCEPT"
    venue.lab.run("router", f"iptables -t nat -I {rule}", check=True)
    yield doctor(venue.lab)
    venue.lab.run("router", f"iptables -t nat -D {rule}", check=True)


FLOWTABLE = """table inet fw4 {
\tflowtable ft {
\t\thook ingress priority filter
\t\tdevices = { br-lan, wan0 }
\t}
\tchain forward {
\t\ttype filter hook forward priority filter; policy accept;
\t\tmeta l4proto { tcp, udp } flow add @ft
\t}
}
"""


@contextmanager
def offloaded(venue: Venue) -> Iterator[Said]:
    """fw4's flow offload: the real one where the kernel has flow tables, else an `nft` that lists it as fw4's does."""
    done = venue.lab.run("router", ["nft", "-f", "-"], input=FLOWTABLE)
    if done.returncode == 0:
        yield doctor(venue.lab)
        venue.lab.run("router", "nft delete table inet fw4")
        return
    shim = venue.lab.directory / "shim"
    shim.mkdir()
    (shim / "listed").write_text(FLOWTABLE.replace("@ft\n", "@ft # handle 12\n"))
    (shim / "nft").write_text(
        f'#!/bin/sh\ncase "$*" in\n"list flowtables"|"-a list table inet fw4") cat {shim}/listed;;\n'
        '*) PATH="${PATH#*:}" exec nft "$@";;\nesac\n'
    )
    (shim / "nft").chmod(0o755)
    yield doctor(venue.lab, {"PATH": f"{shim}:{os.environ['PATH']}:/usr/sbin:/sbin"})


@contextmanager
def full(venue: Venue) -> Iterator[Said]:
    venue.ring.fill()
    yield doctor(venue.lab)
    venue.ring.empty()


@contextmanager
def corrupt_image(venue: Venue) -> Iterator[Said]:
    """A few flipped octets, as worn flash gives them."""
    path = venue.lab.directory / "state/policy.gp"
    whole = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(len(whole) * 2 // 3)
        file.write(bytes(octet ^ 0xFF for octet in whole[len(whole) * 2 // 3 :][:4]))
    yield doctor(venue.lab)
    path.write_bytes(whole)


@contextmanager
def dead_worker(venue: Venue) -> Iterator[Said]:
    """Killed, and whoever should start it again does not come to it."""
    venue.lab.kill("launch", signal.SIGSTOP)
    venue.lab.kill("nfq/0")
    time.sleep(0.3)
    yield doctor(venue.lab)
    venue.lab.kill("launch", signal.SIGCONT)


@contextmanager
def expired_certificate(venue: Venue) -> Iterator[Said]:
    held = venue.lab.directory / "authority"
    names = ("device.pem", "device.key")
    kept = [(held / name).read_bytes() for name in names]
    authority = Authority(venue.lab.directory / "expired")
    end = -datetime.timedelta(hours=1)
    for name, path in zip(names, authority.issue("device", f"{VENUE}/{DEVICE}", end=end), strict=True):
        (held / name).write_bytes(path.read_bytes())
    yield doctor(venue.lab)
    for name, octets in zip(names, kept, strict=True):
        (held / name).write_bytes(octets)


@contextmanager
def refused_broker(venue: Venue) -> Iterator[Said]:
    os.kill(broker_of(venue.lab), signal.SIGKILL)
    time.sleep(0.3)
    yield doctor(venue.lab)
    venue.lab.popen(
        "internet", [MOSQUITTO, "-c", f"{venue.lab.directory}/mosquitto.conf"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def broker_of(lab: Lab) -> int:
    pending = [lab.pid]
    while pending:
        pid = pending.pop()
        if b"mosquitto.conf" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
        pending += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    raise AssertionError("no broker")


LAN = {f"{name}{version}" for name in ("dns", "dns-tcp", "dot", "sni", "http", "quic") for version in ("", "6")}
HOOK = {f"{name}{version}" for name in ("sni", "http", "quic") for version in ("", "6")}
Plant = Callable[[Venue], AbstractContextManager[Said]]


@pytest.mark.parametrize(
    ("plant", "found", "besides"),
    [
        (missing_module, {"modules"}, {"rules"}),
        (missing_queue_module, {"modules"}, {"queues", "medium", "route", "lan", "storage"}),
        (unbound, {"queues", "sni", "quic", "http"}, {"status", *HOOK}),
        (flushed, {"rules"}, {"status", *LAN}),
        (foreign_resolver, {"dns"}, set[str]()),
        (offloaded, {"offload"}, {"status"}),
        (full, {"storage"}, {"status"}),
        (corrupt_image, {"policy"}, {"status"}),
        (dead_worker, {"workers", "queues", "sni"}, {"status", *LAN}),
        (expired_certificate, {"certificate"}, {"broker", "status"}),
        (refused_broker, {"broker"}, {"status"}),
    ],
)  # fmt: skip
def test_a_planted_fault_is_found_and_nothing_else_is(
    venue: Venue, plant: Plant, found: set[str], besides: set[str]
) -> None:
    with plant(venue) as said:
        told = {name: finding["why"] for name, finding in said.findings.items() if not finding["ok"]}
        assert found <= said.faults, told
        assert said.faults <= found | besides, told
    be_well(venue.lab)


def test_a_file_system_that_has_become_read_only(venue: Venue) -> None:
    venue.ring.break_down()
    said = doctor(venue.lab)
    assert "storage" in said.faults
    assert said.faults <= {"storage", "status"}
    assert "Read-only" in str(said.findings["storage"]["why"])


SHOWS_1970 = """
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#define SHIFT (%dL)
int clock_gettime(clockid_t clock, struct timespec *at) {
    int failed = syscall(SYS_clock_gettime, clock, at);
    if (!failed && clock == CLOCK_REALTIME) at->tv_sec -= SHIFT;
    return failed;
}
time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


def test_a_clock_that_shows_1970(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router without a battery, before any time server has answered: all its processes see two hours past 1970.

    Not by libfaketime, which is no good for starting processes.
    """
    source, library = tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(SHOWS_1970 % (time.time() - 7200))
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    with Lab.running(tmp_path / "lab") as lab:
        assert lab.status()["clock"] == "unsynced"
        said = doctor(lab)
    assert said.faults == {"clock"}
    assert "1970-01-01" in str(said.findings["clock"]["why"])
