"""What is on both sides of the emulated router: a client's namespace and the internet's, joined to it by taps.

    lan  192.168.1.2          [eth0, br-lan 192.168.1.1]  router  [eth1 203.0.113.2]          wan  203.0.113.1
                                                                    198.51.100.1 DNS, MQTT; 198.51.100.20 web, QUIC
         2001:db8:20::2       [2001:db8:20::1]                  [2001:db8:203::2]        2001:db8:203::1
                                                                    2001:db8:100::20 web, QUIC

QEMU itself runs in a third, empty namespace: nothing of it is seen from this machine's own network.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

LAB = Path(__file__).parents[1] / "lab"
ROUTER, CLIENT, SITE, SERVER = "192.168.1.1", "192.168.1.2", "198.51.100.20", "198.51.100.1"
ROUTER6, CLIENT6, SITE6 = "2001:db8:20::1", "2001:db8:20::2", "2001:db8:100::20"
NEIGHBOURS = {"lan": "02:00:00:00:02:00", "wan": "02:00:00:00:02:01"}
CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x2, 0x1000, 0x4000
_libc = ctypes.CDLL(None, use_errno=True)


class Network:
    """Namespaces, taps and servers; `close` takes everything down."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._tag = f"gatehouse-{os.getpid()}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self.taps: list[int] = []
        for name in ("lan", "wan", "qemu"):
            _sh(f"ip netns add {self.of(name)}")
            _sh(f"ip -n {self.of(name)} link set lo up")
        self.taps = [
            self._tap("lan", f"{CLIENT}/24", f"{CLIENT6}/64"),
            self._tap("wan", "203.0.113.1/24", "2001:db8:203::1/64"),
        ]
        _sh(f"ip -n {self.of('lan')} route add default via {ROUTER}")
        _sh(f"ip -n {self.of('lan')} -6 route add default via {ROUTER6}")
        _sh(f"ip -n {self.of('wan')} -6 route add 2001:db8:20::/64 via 2001:db8:203::2")
        sites = [f"{net}{host}" for net in ("198.51.100.", "2001:db8:100::") for host in (20, 21, 22)]
        for address in (SERVER, *sites):
            _sh(f"ip -n {self.of('wan')} addr add {address} dev lo")
        # The other way round a client's segments are 64 KB, which no router ever saw.
        for name in ("lan", "wan"):
            _sh(f"ip netns exec {self.of(name)} ethtool -K tap0 tso off gso off tx off")
        self._start_servers()

    def of(self, name: str) -> str:
        return f"{self._tag}-{name}"

    def run(self, name: str, *words: str, timeout_s: float = 20) -> subprocess.CompletedProcess[str]:
        """A command on the client (`lan`) or in the internet (`wan`)."""
        command = ["ip", "netns", "exec", self.of(name), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, cwd=LAB.parents[1])

    def log(self, program: str) -> str:
        """What a server has said so far."""
        return (self.directory / f"{program}.log").read_text()

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """A server or a load, until `close`."""
        with (self.directory / f"{Path(words[0]).name}.log").open("ab") as log:
            command = ["ip", "netns", "exec", self.of(name), *words]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=LAB.parents[1])
        self._processes.append(process)
        return process

    def visit(self, kind: str, name: str, address: str = SITE) -> str:
        """One visit by the lab's own client (tls, quic1): `ok`, or how it was refused."""
        words = [sys.executable, "-I", str(LAB / "visit.py"), kind, address, name, f"{self.directory}/ca.crt"]
        result = self.run("lan", *words)
        return (result.stdout or result.stderr).strip().partition(" ")[2]

    def resolve(self, name: str, server: str = ROUTER) -> str:
        """The A record that the client gets, or dig's status."""
        # No cookie, which is another one each time: stub resolvers send none, and ask in the same octets again.
        how = ("+time=2", "+tries=1", "+nocookie", "+noall", "+comments", "+answer")
        result = self.run("lan", "dig", *how, f"@{server}", name)
        answers = [line.split()[-1] for line in result.stdout.splitlines() if line and not line.startswith(";")]
        status = result.stdout.partition("status: ")[2].partition(",")[0]
        return answers[-1] if answers else status or "no answer"

    def fetch(self, url: str, *more: str) -> str:
        """`200 BODY` as curl gets it over HTTP, or `000 ` and why not."""
        words = ("curl", "-sS", "--max-time", "8", "-w", "\n%{http_code}", *more, url)
        result = self.run("lan", *words)
        body, _, status = result.stdout.rpartition("\n")
        return f"{status} {body or result.stderr}"

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for descriptor in self.taps:
            os.close(descriptor)
        for name in ("lan", "wan", "qemu"):
            subprocess.run(["ip", "netns", "del", self.of(name)], capture_output=True)

    def _tap(self, name: str, *addresses: str) -> int:
        """A tap in a namespace; its descriptor goes to QEMU."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        inside = os.open(f"/run/netns/{self.of(name)}", os.O_RDONLY)
        try:
            if _libc.setns(inside, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {self.of(name)}")
            descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", b"tap0", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        finally:
            _libc.setns(before, CLONE_NEWNET)
            os.close(before)
            os.close(inside)
        # Always the same: the frozen router remembers its neighbours, and would talk to those of another day.
        _sh(f"ip -n {self.of(name)} link set tap0 address {NEIGHBOURS[name]}")
        for address in addresses:
            _sh(f"ip -n {self.of(name)} addr add {address} dev tap0{' nodad' if ':' in address else ''}")
        _sh(f"ip -n {self.of(name)} link set tap0 up")
        return descriptor

    def _start_servers(self) -> None:
        make_certificate(self.directory)
        pair = (f"{self.directory}/site.crt", f"{self.directory}/site.key")
        self.start("wan", sys.executable, "-I", str(LAB / "site.py"), *pair)
        self.start("wan", sys.executable, "-I", str(LAB / "quic_site.py"), *pair)
        dnsmasq = shutil.which("dnsmasq") or "/usr/sbin/dnsmasq"
        words = [
            "-k",
            "-C",
            "/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--user=root",
            "--pid-file=",
            "--bind-interfaces",
        ]
        words += [f"--listen-address={SERVER}", "--local-ttl=60"]
        words += [f"--address=/{zone}/{SITE}" for zone in ("example.org", "example")]
        self.start("wan", dnsmasq, *words)
        mosquitto = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        configuration = self.directory / "mosquitto.conf"
        configuration.write_text(
            f"user root\npersistence false\nallow_anonymous true\nlistener 1883 {SERVER}\nlog_type all\n"
        )
        self.start("wan", mosquitto, "-c", str(configuration))
        deadline = time.monotonic() + 15
        while self.run("wan", "curl", "-s", "-o", "/dev/null", f"http://{SITE}/").returncode:
            if time.monotonic() > deadline:
                raise RuntimeError("the internet did not come up")
            time.sleep(0.1)


def make_certificate(directory: Path) -> None:
    """An authority of our own, and a certificate for every name that is visited."""
    names = "DNS:example.org,DNS:*.example.org,DNS:casino.example,DNS:*.casino.example"
    (directory / "site.ext").write_text(f"subjectAltName={names}\n")
    key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    for command in (
        f"req -x509 {key} -keyout ca.key -out ca.crt -days 30 -subj /CN=gatehouse-qemu",
        f"req {key} -keyout site.key -out site.csr -subj /CN=example.org",
        "x509 -req -in site.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile site.ext -out site.crt",
    ):
        subprocess.run(["openssl", *command.split()], cwd=directory, check=True, capture_output=True)


def _sh(command: str) -> None:
    result = subprocess.run(command.split(), capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{command}: {result.stderr.strip()}")
