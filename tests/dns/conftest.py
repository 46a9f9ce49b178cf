"""A real authoritative server (nsd), a real worker process, and ways to ask it."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

ECH = "AEX+DQBBzQAgACAAIB6eRVXqrCvvTcfcaZJ2TQ8Q0QJqXKmwmVSnC4u4BkoaAAQAAQABABJjbG91ZGZsYXJlLWVjaC5jb20AAA=="

ZONE = f"""\
$ORIGIN example.org.
$TTL 300
@        SOA   ns.example.org. admin.example.org. 1 3600 600 86400 60
@        NS    ns
ns       A     198.51.100.10
www      A     198.51.100.20
www      AAAA  2001:db8::20
short    2 A   198.51.100.21
chain1   CNAME chain2
chain2   CNAME chain3
chain3   A     198.51.100.22
cloaked  CNAME tracker.evil.example.org.
tracker.evil A 198.51.100.66
badip    A     203.0.113.66
rebind   A     192.168.1.1
rebind6  AAAA  fd00::1
mapped   AAAA  ::ffff:10.0.0.1
mx       MX    10 www
txt      TXT   "hello"
https    HTTPS 1 . alpn="h2,h3" ipv4hint=198.51.100.20 ech="{ECH}" ipv6hint=2001:db8::20 key65400="unknown"
https    A     198.51.100.20
mandatory HTTPS 1 . mandatory=alpn,ech alpn=h2 ech="{ECH}"
onlyech  HTTPS 1 . mandatory=ech ech="{ECH}"
svcalias HTTPS 0 tracker.evil.example.org.
hintbad  HTTPS 1 . ipv4hint=203.0.113.66
unknown  TYPE65333 \\# 4 0A0B0C0D
strict   CNAME www
forcesafe A    198.51.100.99
forcesafe HTTPS 1 . alpn=h2
local    A     192.168.7.7
""" + "".join(f"big A 198.51.100.{n}\n" for n in range(100, 200))


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Authority:
    """nsd on a port of 127.0.0.1."""

    def __init__(self, directory, port=None, zone=ZONE):
        self.port = port or free_port()
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "example.org.zone").write_text(zone)
        (directory / "nsd.conf").write_text(f"""\
server:
  ip-address: 127.0.0.1@{self.port}
  username: ""
  pidfile: ""
  zonesdir: "{directory}"
  database: ""
  xfrdfile: "{directory}/xfrd"
  zonelistfile: "{directory}/zones"
  logfile: "{directory}/log"
  server-count: 1
  nsid: "ascii_authority"
remote-control:
  control-enable: no
zone:
  name: example.org
  zonefile: example.org.zone
""")
        self.process = None
        self.start()

    def start(self):
        self.process = subprocess.Popen(["nsd", "-d", "-c", str(self.directory / "nsd.conf")], stderr=subprocess.PIPE)
        deadline = time.monotonic() + 10
        query = b"\0\1\0\0\0\1\0\0\0\0\0\0\7example\3org\0\0\6\0\1"
        while True:
            try:
                if exchange(query, self.port, timeout=0.2)[3:4] != b"":
                    return
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise RuntimeError(f"nsd: {(self.directory / 'log').read_text()}")

    def stop(self):
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
            self.process.stderr.close()
            self.process = None


def exchange(data, port, host="127.0.0.1", timeout=5.0, source=None):
    """One datagram there, one back."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if source:
            sock.bind((source, 0))
        sock.connect((host, port))
        sock.settimeout(timeout)
        sock.send(data)
        return sock.recv(65535)


class Served:
    """A worker process. `rows` are its records so far."""

    def __init__(self, directory, settings, policy=None, lan=()):
        self.port = settings["port"]
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.events = directory / "events"
        self.spec = directory / "spec.json"
        self.settings, self.policy, self.lan = settings, policy or {}, lan
        self.write()
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "serve.py"), str(self.spec)], stderr=(directory / "stderr").open("w")
        )
        deadline = time.monotonic() + 10
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"the worker ended: {(directory / 'stderr').read_text()}")
            try:
                socket.create_connection((settings.get("listen", ["127.0.0.1"])[-1], self.port), 0.2).close()
                return
            except OSError:
                assert time.monotonic() < deadline, "the worker does not listen"
                time.sleep(0.02)

    def write(self):
        spec = {"settings": self.settings, "policy": self.policy, "events": str(self.events), "lan": self.lan}
        self.spec.write_text(json.dumps(spec))

    def reload(self, **policy):
        self.policy = policy
        self.write()
        self.process.send_signal(signal.SIGHUP)
        time.sleep(0.3)

    def command(self, *words):
        with (self.directory / "events.commands").open("a") as file:
            file.write(" ".join(words) + "\n")
        time.sleep(0.4)

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(10)

    def rows(self, **wanted):
        time.sleep(0.25)
        rows = [json.loads(line) for line in self.events.read_text().splitlines()] if self.events.exists() else []
        return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]

    def ask(self, data, **options):
        return exchange(data, self.port, **options)

    def dig(self, *words):
        command = ["dig", "@127.0.0.1", "-p", str(self.port), "+time=3", "+tries=1", *words]
        result = subprocess.run(command, capture_output=True, text=True, timeout=30)
        return result.stdout


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    server = Authority(tmp_path_factory.mktemp("nsd"))
    yield server
    server.stop()


@pytest.fixture
def serve(tmp_path, authority):
    """Start workers; they are stopped, and looked after, at the end of the test."""
    started = []

    def start(policy=None, *, upstream=None, lan=(), **settings):
        settings = {
            "listen": ["127.0.0.1"],
            "port": free_port(),
            "upstream": [["127.0.0.1", authority.port]] if upstream is None else upstream,
            "local_server": [],
            "kernel": False,
            **settings,
        }
        served = Served(tmp_path / f"worker{len(started)}", settings, policy, lan)
        started.append(served)
        return served

    yield start
    for served in started:
        status = served.stop()
        said = (served.directory / "stderr").read_text()
        assert status == 0, f"the worker ended with {status}: {said}"
        assert "Traceback" not in said, said
