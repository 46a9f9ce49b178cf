"""The contenders of `bench-dns`: how each is set up for the same duties, started, and looked at.

Every one of them answers 50,000 names from its cache, blocks a million others, forwards misses to the same nsd, and
writes every query down.
"""

import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.compiler import compile_policy
from policy.config import load

ROOT = Path(__file__).resolve().parents[2]
SEED = 5
NAMES = 50_000
BLOCKED_SHARE = 0.15
POLICY = 1_000_000
QUERIES = 400_000
ZONE = "venue-bench.net"
TYPES = (("A", 0.6), ("AAAA", 0.25), ("HTTPS", 0.15))

ECHO = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdlib.h>
#include <sys/socket.h>
int main(int argc, char **argv) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0), size = 1 << 20;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[argc - 1]))};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    if (bind(fd, (struct sockaddr *)&at, sizeof at)) return 1;
#ifdef BATCH
    static unsigned char slots[BATCH][512];
    struct sockaddr_in froms[BATCH];
    struct iovec parts[BATCH];
    struct mmsghdr batch[BATCH] = {0};
    for (;;) {
        for (int i = 0; i < BATCH; i++) {
            parts[i] = (struct iovec){slots[i], sizeof slots[i]};
            batch[i].msg_hdr = (struct msghdr){&froms[i], sizeof froms[i], &parts[i], 1};
        }
        int number = recvmmsg(fd, batch, BATCH, MSG_WAITFORONE, 0);
        for (int i = 0; i < number; i++) {
            slots[i][2] |= 0x80;
            parts[i].iov_len = batch[i].msg_len;
        }
        for (int done = 0, sent; done < number; done += sent)
            if ((sent = sendmmsg(fd, batch + done, number - done, 0)) <= 0) break;
    }
#else
    for (;;) {
        unsigned char data[512];
        struct sockaddr_in from;
        socklen_t length = sizeof from;
        ssize_t octets = recvfrom(fd, data, sizeof data, 0, (struct sockaddr *)&from, &length);
        if (octets < 12) continue;
        data[2] |= 0x80;
        sendto(fd, data, octets, 0, (struct sockaddr *)&from, length);
    }
#endif
}
"""


def free_port() -> int:
    """A port free for UDP and TCP."""
    while True:
        with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def policy_names() -> list[str]:
    """A million names to block, of the lengths that real lists have."""
    dice = random.Random(SEED)
    words = [
        "ad",
        "track",
        "pixel",
        "metric",
        "bet",
        "casino",
        "cam",
        "count",
        "stat",
        "click",
        "push",
        "promo",
        "media",
    ]
    tops = ["com", "net", "org", "info", "xyz", "top", "site", "co.uk", "ru", "cn", "de"]
    names: dict[str, None] = {}
    while len(names) < POLICY:
        name = f"{dice.choice(words)}{dice.choice(words)}{dice.randrange(1_000_000)}.{dice.choice(tops)}"
        names[f"{dice.choice(words)}.{name}" if dice.random() < 0.3 else name] = None
    return list(names)


@dataclass
class Mix:
    """The questions: Zipf over NAMES names; the type and whether with EDNS are drawn anew for each question."""

    blocked: list[str]
    hosts: list[str] = field(default_factory=list)
    names: dict[bool, list[str]] = field(default_factory=lambda: {False: [], True: []})
    """Every name once, half of them without EDNS and half with."""
    lines: dict[bool, list[str]] = field(default_factory=lambda: {False: [], True: []})

    def __post_init__(self) -> None:
        dice = random.Random(SEED + 1)
        names = []
        for i in range(NAMES):
            if dice.random() < BLOCKED_SHARE:
                names.append(self.blocked[dice.randrange(len(self.blocked))])
            else:
                host = f"{dice.choice(['www', 'cdn', 'api', 'img'])}.site{i}.{ZONE}"
                self.hosts.append(host)
                names.append(host)
        weights = [1 / (rank + 1) for rank in range(NAMES)]
        types, shares = zip(*TYPES, strict=True)
        for name in names:
            self.names[dice.random() < 0.5].append(f"{name} A")
        kinds = dice.choices(types, shares, k=QUERIES)
        for name, kind in zip(dice.choices(names, weights, k=QUERIES), kinds, strict=True):
            self.lines[dice.random() < 0.5].append(f"{name} {kind}")


class Contender:
    """One server. `pids` are looked at for CPU and memory; `cpu` pins the first of them."""

    name = ""

    def __init__(self, base: Path, upstream: int) -> None:
        self.base = base / self.name
        self.base.mkdir(parents=True, exist_ok=True)
        self.upstream = upstream
        self.port = free_port()
        self.processes: list[subprocess.Popen[bytes]] = []

    def setup(self, blocked: Sequence[str]) -> None:
        """Write what it needs."""

    def commands(self) -> list[list[str]]:
        raise NotImplementedError

    def start(self) -> None:
        for command in self.commands():
            log = (self.base / f"{Path(command[0]).name}.log").open("wb")
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT))
        deadline = time.monotonic() + 180
        while not self.answers():
            if time.monotonic() > deadline or any(process.poll() is not None for process in self.processes):
                said = "".join(path.read_text(errors="replace")[-2000:] for path in self.base.glob("*.log"))
                raise RuntimeError(f"{self.name} does not answer: {said}")
            time.sleep(0.1)
        self.pin()

    def pin(self) -> None:
        """Every thread: one that is not would answer on the core of the load, where nobody need be woken."""
        for task in Path(f"/proc/{self.server.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {0})

    @property
    def server(self) -> "subprocess.Popen[bytes]":
        return self.processes[-1]

    def answers(self) -> bool:
        question = b"\x07\x07\1\0\0\1\0\0\0\0\0\0\4ping" + b"".join(
            bytes((len(p),)) + p.encode() for p in ZONE.split(".")
        )
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.3)
            sock.connect(("127.0.0.1", self.port))
            try:
                sock.send(question + b"\0\0\1\0\1")
                return len(sock.recv(512)) >= 12
            except OSError:
                return False

    def cpu_s(self) -> float:
        """CPU seconds of the server so far, all threads, to the nanosecond."""
        return _cpu_s(self.server.pid)

    def rss_mb(self) -> float:
        for line in Path(f"/proc/{self.server.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("no VmRSS")

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _cpu_s(pid: int) -> float:
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


class Echo(Contender):
    """A C program that only flips QR, one datagram per system call: the floor."""

    name = "echo"
    flags: Sequence[str] = ()

    def setup(self, blocked: Sequence[str]) -> None:
        (self.base / "echo.c").write_text(ECHO)
        subprocess.run(["cc", "-O2", *self.flags, "-o", self.base / "echo", self.base / "echo.c"], check=True)

    def commands(self) -> list[list[str]]:
        return [[str(self.base / "echo"), str(self.port)]]


class EchoInBatches(Echo):
    """The same, many datagrams per system call."""

    name = "echo-64"
    flags = ("-DBATCH=64",)


class Ours(Contender):
    """The agent and one DNS worker, as on a router. The worker is measured; the agent is told apart."""

    name = "ours"
    extra = ""

    def setup(self, blocked: Sequence[str]) -> None:
        (self.base / "state").mkdir(exist_ok=True)
        (self.base / "run").mkdir(exist_ok=True)
        (self.base / "million").write_text("\n".join(blocked) + "\n")
        text = f"""\
config gatehouse 'main'
	option enabled '1'
	option run_dir '{self.base}/run'
	option state_dir '{self.base}/state'
	option firewall 'none'
	option clock 'trusted'
	list lan 'lo'

config dns 'dns'
	list listen '0.0.0.0'
	option port '{self.port}'
	list upstream '127.0.0.1#{self.upstream}'
	option local_server ''
	option rate '10000000'
	option hot_cache '32M'
{self.extra}
config nfq 'nfq'
	option enabled '0'

config ring 'ring'
	option directory '{self.base}/ring'
	option budget '512M'
	option flush '5s'
	option flood_per_hour '0'

config policy 'policy'
	option table '{self.base}/state/policy.gp'
	option default_group 'all'

config list 'million'
	option file '{self.base}/million'
	option max_entries '2000000'
	option category 'million'

config profile 'filtered'
	list block 'million'

config group 'all'
	option profile 'filtered'
	list ip '0.0.0.0/0'
"""
        self.config = self.base / "gatehouse.conf"
        self.config.write_text(text)
        report = compile_policy(load(text).policy, str(self.base / "state"), str(self.base / "state" / "policy.gp"))
        if any(item.failure or item.refused for item in report.lists):
            print(report.text())

    def commands(self) -> list[list[str]]:
        return [[sys.executable, "-I", str(ROOT), role, "--config", str(self.config)] for role in ("agent", "dns")]

    def kernel_mb(self) -> float:
        """Of BPF maps that are not mapped, so in nobody's RSS: what the kernel says of each in /proc."""
        total = 0
        for path in Path(f"/proc/{self.server.pid}/fdinfo").iterdir():
            fields = dict(line.split(":\t", 1) for line in path.read_text().splitlines() if ":\t" in line)
            if fields.get("map_type") == "1":  # BPF_MAP_TYPE_HASH
                total += int(fields["memlock"])
        return total / (1 << 20)

    def agent_cpu_s(self) -> float:
        return _cpu_s(self.processes[0].pid)

    def dropped(self) -> int:
        """Datagrams that the kernel threw away unread: nobody answered them, and nobody could put them on record."""
        port = f":{self.port:04X}"
        rows = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
        return sum(int(row[-1]) for row in rows if row[1].endswith(port))

    def agent_children_cpu_s(self) -> float:
        fields = Path(f"/proc/{self.processes[0].pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


class Dnsmasq(Contender):
    name = "dnsmasq + log-queries"

    def setup(self, blocked: Sequence[str]) -> None:
        with (self.base / "conf").open("w") as file:
            file.writelines(f"address=/{name}/\n" for name in blocked)

    def commands(self) -> list[list[str]]:
        return [
            ["dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", f"--conf-file={self.base}/conf",
             f"--port={self.port}", "--listen-address=127.0.0.1", "--bind-interfaces", "--pid-file=",
             f"--server=127.0.0.1#{self.upstream}", "--cache-size=200000", "--cache-rr=HTTPS", "--user=root",
             "--dns-forward-max=2000", "--log-queries", f"--log-facility={self.base}/queries"],
        ]  # fmt: skip


class Unbound(Contender):
    name = "unbound + log-queries"

    def setup(self, blocked: Sequence[str]) -> None:
        with (self.base / "conf").open("w") as file:
            file.write(f"""\
server:
  interface: 127.0.0.1@{self.port}
  do-daemonize: no
  username: ""
  chroot: ""
  directory: "{self.base}"
  pidfile: ""
  logfile: "{self.base}/queries"
  use-syslog: no
  log-queries: yes
  num-threads: 1
  msg-cache-size: 128m
  rrset-cache-size: 256m
  so-rcvbuf: 1m
  module-config: "iterator"
  do-not-query-localhost: no
""")
            file.writelines(f'  local-zone: "{name}" always_nxdomain\n' for name in blocked)
            file.write(f'forward-zone:\n  name: "."\n  forward-addr: 127.0.0.1@{self.upstream}\n')

    def commands(self) -> list[list[str]]:
        return [["unbound", "-d", "-c", f"{self.base}/conf"]]


class Bind(Contender):
    name = "bind9 RPZ + querylog"

    def setup(self, blocked: Sequence[str]) -> None:
        with (self.base / "rpz").open("w") as file:
            file.write("$TTL 60\n@ SOA localhost. root.localhost. 1 3600 600 86400 60\n@ NS localhost.\n")
            file.writelines(f"{name} CNAME .\n*.{name} CNAME .\n" for name in blocked)
        (self.base / "conf").write_text(f"""\
options {{
  directory "{self.base}"; listen-on port {self.port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
  pid-file none; session-keyfile none; recursion yes; forward only; forwarders {{ 127.0.0.1 port {self.upstream}; }};
  response-policy {{ zone "rpz"; }} qname-wait-recurse no; querylog yes; dnssec-validation no; max-cache-size 512m;
  empty-zones-enable no;
}};
controls {{ }};
logging {{
  channel q {{ file "{self.base}/queries"; print-time yes; }};
  category queries {{ q; }}; category rpz {{ q; }};
}};
zone "rpz" {{ type primary; file "{self.base}/rpz"; }};
""")

    def commands(self) -> list[list[str]]:
        return [["named", "-f", "-n", "1", "-c", f"{self.base}/conf"]]


class Dnsdist(Contender):
    name = "dnsdist + log"

    def setup(self, blocked: Sequence[str]) -> None:
        (self.base / "names").write_text("\n".join(blocked) + "\n")
        (self.base / "conf").write_text(f"""\
setLocal("127.0.0.1:{self.port}")
newServer({{address="127.0.0.1:{self.upstream}", healthCheckMode="up"}})
getPool(""):setCache(newPacketCache(400000, {{maxTTL=86400}}))
local names = newSuffixMatchNode()
for name in io.lines("{self.base}/names") do names:add(newDNSName(name)) end
addAction(AllRule(), LogAction("{self.base}/queries", false, true, true))
addAction(SuffixMatchNodeRule(names), RCodeAction(DNSRCode.NXDOMAIN))
setUDPMultipleMessagesVectorSize(64)
""")

    def commands(self) -> list[list[str]]:
        return [["dnsdist", "--supervised", "--disable-syslog", "-C", f"{self.base}/conf"]]


PEERS: tuple[Callable[[Path, int], Contender], ...] = (Dnsdist, Unbound, Bind, Dnsmasq, Echo, EchoInBatches)


class Authority:
    """nsd with every host of the mix; what all of them forward to. On the other core."""

    def __init__(self, base: Path, hosts: Sequence[str], ttl_s: int = 3600) -> None:
        self.port = free_port()
        self.base = base / "nsd"
        self.base.mkdir(parents=True, exist_ok=True)
        with (self.base / "zone").open("w") as file:
            file.write(
                f"$ORIGIN {ZONE}.\n$TTL {ttl_s}\n@ SOA ns admin 1 3600 600 86400 {ttl_s}\n@ NS ns\nns A 127.0.0.1\n"
            )
            file.write(
                "ping A 198.51.100.1\n*.miss A 198.51.100.2\n*.miss AAAA 2001:db8::2\n*.miss HTTPS 1 . alpn=h2\n"
            )
            for i, host in enumerate(hosts):
                four, six = socket.inet_ntoa(struct.pack("!I", 0xCB007100 + i)), f"2001:db8::{i:x}"
                file.write(f"{host}. A {four}\n{host}. AAAA {six}\n{host}. HTTPS 1 . alpn=h2,h3 ipv4hint={four}\n")
        (self.base / "conf").write_text(f"""\
server:
  ip-address: 127.0.0.1@{self.port}
  username: ""
  pidfile: ""
  zonesdir: "{self.base}"
  database: ""
  xfrdfile: "{self.base}/xfrd"
  zonelistfile: "{self.base}/zones"
  logfile: "{self.base}/log"
  server-count: 1
  rrl-ratelimit: 0
  rrl-whitelist-ratelimit: 0
remote-control:
  control-enable: no
zone:
  name: {ZONE}
  zonefile: zone
""")
        self.process = subprocess.Popen([shutil.which("nsd") or "nsd", "-d", "-c", f"{self.base}/conf"])
        time.sleep(1.0)
        os.sched_setaffinity(self.process.pid, {1})

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
