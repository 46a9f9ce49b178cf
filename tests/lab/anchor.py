"""Builds the venue and holds it up: process 1 of the lab's own mount, network and process namespaces.

    pupil1  pupil2  teacher          (10.20.0.11, .12, .21 and 2001:db8:20::11, ::12, ::21)
        \\      |      /
         br-lan 10.20.0.1            router: dnsmasq on port 53, NAT to the outside, Gatehouse
         wan0   198.51.100.2
            |
        internet                     nsd for every zone (198.51.100.10), web servers (.20 to .29)

Everything dies with this process, because the kernel kills a process namespace with its first process. Started by
`tests.lab.lab`, through unshare; not by hand.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = {"pupil1": 11, "pupil2": 12, "teacher": 21}
GUEST = "02:00:00:00:00:31"
"""A device without an address: it asks for one by DHCP (`lab.run("guest", ...)`)."""
HOOKS = ROOT / "packaging/openwrt/gatehouse/files/usr/libexec/gatehouse"
ZONES = ("example.org", "example.net", "example.com", "casino.example", "adult.example", "news.example")
DNS4, DNS6 = "198.51.100.10", "2001:db8:100::10"
WEB = [20, 21, 22]


def sh(command: str) -> None:
    """One command of iproute2 and its kin; a failure ends the lab with the command's own words."""
    result = subprocess.run(command.split(), capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"lab: {command}: {result.stderr.strip() or result.returncode}")


def inside(namespace: str, command: str) -> None:
    sh(f"ip netns exec {namespace} {command}")


def build_network() -> None:
    sh("mount -t tmpfs none /run")
    Path("/run/netns").mkdir()
    for namespace in ("router", "internet", "guest", *CLIENTS):
        sh(f"ip netns add {namespace}")
        inside(namespace, "ip link set lo up")
        # No waiting for duplicate address detection: the lab has no duplicates, and tests count seconds.
        for scope in ("all", "default"):
            Path("/proc/sys/net/ipv6/conf").exists() and inside(
                namespace, f"sysctl -qw net.ipv6.conf.{scope}.accept_dad=0 net.ipv6.conf.{scope}.accept_ra=0"
            )
    inside("router", "ip link add br-lan address 02:00:00:00:00:01 type bridge")
    # As on OpenWrt: what a bridge only passes on, or takes in, netfilter has not seen before.
    inside("router", "sysctl -eqw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0")
    inside("router", "ip addr add 10.20.0.1/24 dev br-lan")
    inside("router", "ip -6 addr add 2001:db8:20::1/64 dev br-lan nodad")
    inside("router", "ip link set br-lan up")
    for name, number in CLIENTS.items():
        mac = f"02:00:00:00:00:{number:02x}"
        sh(f"ip link add eth0 netns {name} address {mac} type veth peer name lan-{name} netns router")
        inside("router", f"ip link set lan-{name} master br-lan up")
        inside(name, f"ip addr add 10.20.0.{number}/24 dev eth0")
        inside(name, f"ip -6 addr add 2001:db8:20::{number}/64 dev eth0 nodad")
        inside(name, "ip link set eth0 up")
        inside(name, "ip route add default via 10.20.0.1")
        inside(name, "ip -6 route add default via 2001:db8:20::1")
    sh(f"ip link add eth0 netns guest address {GUEST} type veth peer name lan-guest netns router")
    inside("router", "ip link set lan-guest master br-lan up")
    inside("guest", "ip link set eth0 up")
    sh("ip link add wan0 netns router type veth peer name eth0 netns internet")
    inside("router", "ip addr add 198.51.100.2/24 dev wan0")
    inside("router", "ip -6 addr add 2001:db8:100::2/64 dev wan0 nodad")
    inside("router", "ip link set wan0 up")
    inside("internet", "ip link set eth0 up")
    for number in (1, 10, *WEB):
        inside("internet", f"ip addr add 198.51.100.{number}/24 dev eth0")
        inside("internet", f"ip -6 addr add 2001:db8:100::{number}/64 dev eth0 nodad")
    inside("internet", "ip -6 route add 2001:db8:20::/64 via 2001:db8:100::2")
    inside("router", "ip route add default via 198.51.100.1")
    inside("router", "ip -6 route add default via 2001:db8:100::1")
    inside(
        "router", "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.netfilter.nf_conntrack_acct=1"
    )
    inside("router", "iptables -t nat -A POSTROUTING -o wan0 -j MASQUERADE")


def zone_file(zone: str) -> str:
    lines = [f"$ORIGIN {zone}.", "$TTL 300", "@ SOA ns hostmaster 1 3600 600 86400 60", "@ NS ns"]
    lines += [f"ns A {DNS4}", f"ns AAAA {DNS6}"]
    lines += [f"{name} A 198.51.100.{WEB[0]}\n{name} AAAA 2001:db8:100::{WEB[0]}" for name in ("@", "*")]
    lines += [f"www A 198.51.100.{WEB[1]}\nwww AAAA 2001:db8:100::{WEB[1]}"]
    lines += ["alias CNAME www", "cloak CNAME tracker.casino.example.", 'text TXT "gatehouse lab"']
    lines += [f"ready A 198.51.100.{WEB[2]}"]  # what is asked for until the lab answers; no test counts it
    lines += [f"h{i} A 198.51.100.{WEB[2]}\nh{i} AAAA 2001:db8:100::{WEB[2]}" for i in range(64)]
    return "\n".join(lines) + "\n"


def start(
    name: str, namespace: str, command: list[str], directory: Path, env: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """One server, its output in log/NAME."""
    with (directory / "log" / name).open("ab") as log:
        return subprocess.Popen(
            ["ip", "netns", "exec", namespace, *command],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            cwd=directory,
            env={**os.environ, **(env or {})},
        )


def start_internet(directory: Path) -> None:
    zones = directory / "zones"
    zones.mkdir(exist_ok=True)
    conf = [
        "server:",
        f"  ip-address: {DNS4}\n  ip-address: {DNS6}\n  port: 53\n  server-count: 1\n  do-ip6: yes",
        f'  username: ""\n  chroot: ""\n  zonesdir: "{zones}"\n  pidfile: "{directory}/nsd.pid"',
        f'  xfrdfile: "{directory}/nsd.xfrd"\n  zonelistfile: "{directory}/nsd.list"',
        f'  xfrdir: "{directory}"\n  database: ""\n  hide-version: yes',
        "remote-control:\n  control-enable: no",
    ]
    for zone in ZONES:
        (zones / zone).write_text(zone_file(zone))
        conf.append(f"zone:\n  name: {zone}\n  zonefile: {zone}")
    (directory / "nsd.conf").write_text("\n".join(conf) + "\n")
    start("nsd", "internet", ["nsd", "-d", "-c", f"{directory}/nsd.conf"], directory)
    make_certificate(directory)
    site = str(Path(__file__).with_name("site.py"))
    start("site", "internet", [sys.executable, "-I", site, f"{directory}/site.crt", f"{directory}/site.key"], directory)
    if (directory / "quic").exists():
        words = [str(Path(__file__).with_name("quic_site.py")), f"{directory}/site.crt", f"{directory}/site.key"]
        start("quic", "internet", [sys.executable, "-I", *words], directory)


def make_certificate(directory: Path) -> None:
    """A certificate authority of the lab's own and one certificate for all its names. Clients trust it by --cacert."""
    if (directory / "site.crt").exists():
        return
    names = ",".join(f"DNS:{zone},DNS:*.{zone}" for zone in ZONES)
    (directory / "site.ext").write_text(f"subjectAltName={names}\n")
    signed = ["-days", "30", "-extfile", "site.ext", "-out", "site.crt"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    for command in (
        ["req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "30", "-subj", "/CN=Gatehouse lab"],
        ["req", *key, "-keyout", "site.key", "-out", "site.csr", "-subj", "/CN=example.org"],
        ["x509", "-req", "-in", "site.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", *signed],
    ):
        subprocess.run(["openssl", *command], cwd=directory, check=True, capture_output=True)


def start_centre(directory: Path) -> None:
    """A broker, a receiver and an ear; they are there before the router is, so that nothing is missed."""
    lab = Path(__file__).parent
    address, port = (directory / "centre").read_text().split()
    start(
        "mosquitto",
        "internet",
        [shutil.which("mosquitto") or "/usr/sbin/mosquitto", "-c", f"{directory}/mosquitto.conf"],
        directory,
    )
    words = [str(lab / "ear.py"), address, port, f"{directory}/heard"]
    start("ear", "internet", [sys.executable, "-I", *words], directory)
    words = ["run", "--broker", f"{address}#{port}", "--plain", "--data", f"{directory}/received"]
    # -m looks from where it is called.
    env = {"PYTHONPATH": str(ROOT)}
    start("receiver", "internet", [sys.executable, "-m", "agent.receiver", *words], directory, env)
    deadline = time.monotonic() + 15
    while not (directory / "heard").exists():
        if time.monotonic() > deadline:
            raise SystemExit(f"lab: no ear: {(directory / 'log' / 'ear').read_text()}")
        time.sleep(0.05)


def start_router(directory: Path) -> subprocess.Popen[bytes] | None:
    # As on a stock OpenWrt: dnsmasq serves the LAN on port 53. Gatehouse redirects port 53 to itself while it lives.
    # --no-daemon also means: keep the user. In a user namespace there is no other user to become.
    dnsmasq = ["dnsmasq", "--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null"]
    dnsmasq += [f"--server={DNS4}", "--cache-size=1000", "--pid-file=", "--bind-interfaces", "--interface=br-lan,lo"]
    # A lease's news comes by the script that the package installs, at the place where this lab's agent listens.
    script = directory / "dhcp-script"
    script.write_text(f'#!/bin/sh\nGATEHOUSE_SESSIONS={directory}/run/sessions exec {HOOKS}/dhcp-event "$@"\n')
    script.chmod(0o755)
    dnsmasq += ["--dhcp-range=10.20.0.100,10.20.0.199,2m", f"--dhcp-leasefile={directory}/dhcp.leases"]
    dnsmasq += [f"--dhcp-script={script}", "--dhcp-authoritative"]
    start("dnsmasq", "router", dnsmasq, directory)
    if not (directory / "gatehouse.conf").exists():
        return None
    command = [sys.executable, "-I", str(ROOT), "launch", "--config", f"{directory}/gatehouse.conf"]
    return start("gatehouse", "router", command, directory, false_time(directory))


def false_time(directory: Path) -> dict[str, str]:
    """Where a test wants this router's wall clock to step: by what the file `faketime` says. The machine's stays."""
    if not (directory / "faketime").exists():
        return {}
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(directory / "faketime"),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def main() -> None:
    directory = Path(sys.argv[1]).resolve()
    (directory / "log").mkdir(parents=True, exist_ok=True)
    build_network()
    # Clients find the router's resolver as they would by DHCP.
    (directory / "resolv.conf").write_text("nameserver 10.20.0.1\noptions timeout:2 attempts:3\n")
    sh(f"mount --bind {directory}/resolv.conf /etc/resolv.conf")
    if (directory / "boot_id").exists():  # so that a test can boot this router anew
        sh(f"mount --bind {directory}/boot_id /proc/sys/kernel/random/boot_id")
    if (directory / "small-ring").exists():  # so that a test can fill its storage
        (directory / "ring").mkdir(exist_ok=True)
        sh(f"mount -t tmpfs -o size=6m none {directory}/ring")
    start_internet(directory)
    if (directory / "centre").exists():
        start_centre(directory)
    launcher = start_router(directory)
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whoever waits for the file must find it whole.
    ready = directory / "lab.json.new"
    ready.write_text(json.dumps({"clients": CLIENTS, "rootless": os.environ.get("LAB_ROOTLESS") == "1"}))
    ready.rename(directory / "lab.json")
    while not stopping:
        signal.sigtimedwait([signal.SIGCHLD], 0.2)
        reap(launcher)
    if launcher is not None:
        launcher.terminate()
        deadline = time.monotonic() + 12
        while launcher.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)


def reap(launcher: subprocess.Popen[bytes] | None) -> None:
    """As process 1 we inherit orphans; unreaped, they would look alive to whoever waits for their end."""
    while True:
        try:
            done = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if done is None:
            return
        if launcher is not None and done.si_pid == launcher.pid:
            launcher.poll()
            return
        os.waitpid(done.si_pid, os.WNOHANG)


main()
