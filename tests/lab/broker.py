"""A real mosquitto with the configuration and the access list that are shipped, certificates made here, and the
processes around it: an agent without hooks, its uplink, a receiver."""

import datetime
import ipaddress
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ROOT = Path(__file__).resolve().parents[2]
MOSQUITTO = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
DAY = datetime.timedelta(days=1)


class Authority:
    """A certificate authority of a test's own."""

    def __init__(self, directory: Path, name: str = "a centre's authority", end: datetime.timedelta = DAY) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(self._name, self._name, self._key.public_key(), -DAY, end)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.certificate = builder.sign(self._key, hashes.SHA256())
        self.path = directory / "ca.pem"
        self.path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        file: str,
        name: str,
        *,
        hosts: tuple[str, ...] = (),
        begin: datetime.timedelta = -DAY,
        end: datetime.timedelta = DAY,
        self_signed: bool = False,
    ) -> tuple[Path, Path]:
        """A key and a certificate: FILE.pem and FILE.key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, subject if self_signed else self._name, key.public_key(), begin, end)
        if hosts:
            names: list[x509.GeneralName] = []
            for host in hosts:
                try:
                    names.append(x509.IPAddress(ipaddress.ip_address(host)))
                except ValueError:
                    names.append(x509.DNSName(host))
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        usage = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        certificate = builder.sign(key if self_signed else self._key, hashes.SHA256())
        pem, secret = self.directory / f"{file}.pem", self.directory / f"{file}.key"
        pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return pem, secret

    def sign_request(self, request: bytes) -> bytes:
        """A certificate for a device's own request, as a centre gives it."""
        asked = x509.load_pem_x509_csr(request)
        assert asked.is_signature_valid
        builder = _builder(asked.subject, self._name, asked.public_key(), -DAY, DAY)  # type: ignore[arg-type]
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _builder(subject, issuer, public, begin, end):  # type: ignore[no-untyped-def]
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
    return builder.serial_number(x509.random_serial_number()).not_valid_before(now + begin).not_valid_after(now + end)


class Network:
    """Two network namespaces with a wire between them, `10.98.0.1` the centre's end; nothing else sees them."""

    def __init__(self, name: str) -> None:
        self.centre, self.device = f"gh-{name}-c", f"gh-{name}-d"

    def __enter__(self) -> "Network":
        for name in (self.centre, self.device):
            _ip("netns", "add", name)
        _ip("link", "add", "wire0", "netns", self.centre, "type", "veth", "peer", "name", "wire0", "netns", self.device)
        for name, address in ((self.centre, "10.98.0.1/24"), (self.device, "10.98.0.2/24")):
            _ip("-n", name, "addr", "add", address, "dev", "wire0")
            for link in ("wire0", "lo"):
                _ip("-n", name, "link", "set", link, "up")
        return self

    def __exit__(self, *reason: object) -> None:
        for name in (self.centre, self.device):
            subprocess.run(["ip", "netns", "del", name], check=False)

    def inside(self, name: str) -> tuple[str, ...]:
        return ("ip", "netns", "exec", name)

    def cut(self) -> None:
        """Every packet is dropped, and nobody is told."""
        for table in ("INPUT", "OUTPUT"):
            subprocess.run(
                [
                    *self.inside(self.device),
                    "iptables",
                    "-w",
                    "-A",
                    table,
                    "-i" if table == "INPUT" else "-o",
                    "wire0",
                    "-j",
                    "DROP",
                ],
                check=True,
            )

    def mend(self) -> None:
        subprocess.run([*self.inside(self.device), "iptables", "-w", "-F"], check=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Mosquitto:
    """One broker: as shipped, but for ports and paths."""

    def __init__(
        self,
        directory: Path,
        authority: Authority | None,
        hosts: tuple[str, ...] = ("localhost",),
        address: str = "127.0.0.1",
        prefix: tuple[str, ...] = (),
    ) -> None:
        """`prefix`: in front of the command, such as `ip netns exec NAME`; `address`: to listen on there."""
        self.prefix = prefix
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.port, self.centre_port = free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None
        text = (ROOT / "packaging/centre/mosquitto.conf").read_text()
        if authority is None:
            text = "persistence true\npersistence_location /var/lib/mosquitto/\nallow_anonymous true\n"
            text += "max_queued_messages 20000\nmax_inflight_messages 64\n"
            text += f"listener {self.port} {address}\n"
            self.centre_port = self.port
        else:
            if not (authority.directory / "broker.pem").exists():
                authority.issue("broker", "broker", hosts=hosts)
            text = text.replace("/etc/mosquitto/gatehouse.acl", str(ROOT / "packaging/centre/gatehouse.acl"))
            text = text.replace("/etc/mosquitto/gatehouse/", f"{authority.directory}/")
            text = text.replace("listener 8883", f"listener {self.port} {address}")
            text = text.replace("listener 8884", f"listener {self.centre_port}")
        text = text.replace("/var/lib/mosquitto/", f"{directory}/")
        if os.geteuid() == 0:
            text += "user root\n"
        (directory / "mosquitto.conf").write_text(text)

    def start(self) -> None:
        log = (self.directory / "mosquitto.log").open("ab")
        self.process = subprocess.Popen(
            [*self.prefix, MOSQUITTO, "-c", str(self.directory / "mosquitto.conf")], stdout=log, stderr=log
        )
        wait_until(self.is_listening, 10, "mosquitto does not listen")

    def is_listening(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.directory / "mosquitto.log").read_text()
        # Asked of the kernel, in the broker's own network: a probe that connects leaves an error in its log.
        ports = f":{self.port:04X} "
        return any(
            ports in line and " 0A " in line
            for line in _read(f"/proc/{self.process.pid}/net/tcp").decode().splitlines()
        )

    def kill(self) -> None:
        """As a power cut ends it: what it has not written is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(10)


CONFIG = """\
config gatehouse 'main'
\toption enabled '1'
\toption run_dir '{directory}/run'
\toption state_dir '{directory}/state'
\toption firewall 'none'
\toption clock 'trusted'
\toption venue '{venue}'
\toption device '{device}'

config dns 'dns'
\toption enabled '0'

config nfq 'nfq'
\toption enabled '0'

config ring 'ring'
\toption directory '{directory}/ring'
\toption flush '1s'
\toption budget '512M'

config policy 'policy'
\toption table '{directory}/state/policy.gp'

config hardware 'hardware'
\toption self_test '0s'

config uplink 'uplink'
\toption enabled '1'
\tlist server '{host}#{port}'
\toption stagger '0s'
\toption live '{live}'
\toption heartbeat '{heartbeat}'
\toption keepalive '5s'
\tlist allow 'status'
\tlist allow 'self-test'
\tlist allow 'policy'
\tlist allow 'config'
\tlist allow 'query'
{more}
"""
"""Never `reboot`: this is somebody's machine."""


class Device:
    """A router without hooks: agent and uplink, under the launcher."""

    def __init__(
        self,
        directory: Path,
        port: int,
        *,
        venue: str = "11010500000001",
        device: str = "100000001020000000001",
        authority: Authority | None = None,
        host: str = "localhost",
        live: str = "1s",
        heartbeat: str = "2s",
        more: str = "",
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.directory, self.venue, self.name = directory, venue, device
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "state" / "keys").mkdir(parents=True, exist_ok=True)
        if authority is None:
            more += "\toption tls '0'\n"
            host = "127.0.0.1" if host == "localhost" else host
        else:
            pem, key = authority.issue(device, f"{venue}/{device}")
            more += f"\toption ca '{authority.path}'\n\toption certificate '{pem}'\n\toption key '{key}'\n"
        text = CONFIG.format(
            directory=directory,
            venue=venue,
            device=device,
            host=host,
            port=port,
            live=live,
            heartbeat=heartbeat,
            more=more,
        )
        self.config = directory / "gatehouse.conf"
        self.config.write_text(text)
        self.process: subprocess.Popen[bytes] | None = None
        self.prefix = prefix

    def start(self) -> None:
        log = (self.directory / "device.log").open("ab")
        command = [*self.prefix, sys.executable, "-I", str(ROOT), "launch", "--config", str(self.config)]
        self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)

    def pids(self, role: str) -> list[int]:
        """Of the processes of one role that the launcher of this device has started."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if f"\0{role}\0".encode() in _read(f"/proc/{pid}/cmdline")]

    def kill(self, role: str) -> None:
        for pid in self.pids(role):
            os.kill(pid, signal.SIGKILL)

    def ask(self, *words: str) -> list[dict[str, object]]:
        command = [sys.executable, "-I", str(ROOT), *words, "--config", str(self.config), "--format", "jsonl"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def trust(self, public: Path, fingerprint: str) -> None:
        """Lay an order key where the device looks for it."""
        shutil.copy(public, self.directory / "state" / "keys" / fingerprint)

    def status(self) -> dict[str, object]:
        command = [sys.executable, "-I", str(ROOT), "status", "--config", str(self.config), "--format", "json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return json.loads(done.stdout) if done.stdout else {}

    def log(self) -> str:
        return (self.directory / "device.log").read_text()


class Centre:
    """A running receiver."""

    def __init__(
        self,
        directory: Path,
        port: int,
        authority: Authority | None = None,
        name: str = "receiver",
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        broker = f"localhost#{port}" if authority is not None else f"127.0.0.1#{port}"
        self.command = [*prefix, sys.executable, "-m", "agent.receiver", "run", "--broker", broker, "--name", name]
        self.command += ["--data", str(directory)]
        if authority is None:
            self.command += ["--plain"]
        else:
            pem, key = authority.issue("receiver", "receiver")
            self.command += ["--ca", str(authority.path), "--certificate", str(pem), "--key", str(key)]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = (self.directory / "receiver.log").open("ab")
        self.process = subprocess.Popen(self.command, cwd=ROOT, stdout=log, stderr=log)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(10)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def sql(self, text: str) -> list[tuple]:  # type: ignore[type-arg]
        """Look into its store, beside it."""
        path = self.directory / "centre.db"
        if not path.exists():
            return []
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
        try:
            return db.execute(text).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return []
            raise
        finally:
            db.close()

    def until(self) -> int:
        """One past the last record that is here without a hole before it."""
        spans = self.sql("SELECT first_seq, first_seq + n FROM batch UNION ALL SELECT first_seq, next_seq FROM sealed")
        reached = 1
        for first, after in sorted(spans):
            if first > reached:
                break
            reached = max(reached, after)
        return reached

    def log(self) -> str:
        return (self.directory / "receiver.log").read_text()


def wait_until(is_so: Callable[[], object], timeout_s: float, why: str | Callable[[], str] = "it did not come") -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            raise AssertionError(why if isinstance(why, str) else why())
        time.sleep(0.05)


@contextmanager
def running(*parts: Mosquitto | Device | Centre) -> Iterator[None]:
    """Started in order, stopped the other way round."""
    try:
        for part in parts:
            part.start()
        yield
    finally:
        for part in reversed(parts):
            part.stop()


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
