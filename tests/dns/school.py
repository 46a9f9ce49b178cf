"""24 hours of a school through the DNS hook, faster than life: memory stays bounded, every look-up is on record.

    python -m tests.dns.school [--speed 50] [--queries 1000000] [--hours 24]

Agent, worker, ring and an nsd that answers everything are the real ones; 400 clients ask from addresses of their own,
in the order and with the daily curve of `tests.bench._ring_day`. TTLs are shortened by the same factor. 24 hours at
50 times the speed take 29 minutes. Prints the worker's memory every school hour; fails if it is beyond MAX_MB, grows
from the third quarter to the last by more than GROWTH_MB (the caches fill until the afternoon), or if the ring does not hold what was sent.
"""

import argparse
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from policy.event import Dns
from tests.bench import _dns_peers as peers
from tests.bench._ring_day import day
from tests.bench.dns import count_in_ring

MAX_MB = 64
GROWTH_MB = 4
CLIENTS = 400
SEED = 11
TTL_S = 300


class AnswersAll:
    """nsd with a wildcard at the root."""

    def __init__(self, base: Path, ttl_s: int) -> None:
        self.port = peers.free_port()
        (base / "root").write_text(
            f"$ORIGIN .\n$TTL {ttl_s}\n@ SOA ns.test. admin.test. 1 3600 600 86400 {ttl_s}\n@ NS ns.test.\n"
            "ns.test. A 127.0.0.1\n* A 198.51.100.7\n* AAAA 2001:db8::7\n* HTTPS 1 . alpn=h2,h3\n"
        )
        (base / "conf").write_text(
            f'server:\n  ip-address: 127.0.0.1@{self.port}\n  username: ""\n  pidfile: ""\n  zonesdir: "{base}"\n'
            f'  database: ""\n  xfrdfile: "{base}/xfrd"\n  zonelistfile: "{base}/zones"\n  logfile: "{base}/log"\n'
            "  server-count: 1\n  rrl-ratelimit: 0\nremote-control:\n  control-enable: no\n"
            "zone:\n  name: .\n  zonefile: root\n"
        )
        self.process = subprocess.Popen([shutil.which("nsd") or "nsd", "-d", "-c", f"{base}/conf"])
        time.sleep(1.0)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


class Pupils:
    """Sockets on 127.20.0.0/16, one per client."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._sockets: dict[bytes, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self.sent = self.answered = 0

    def ask(self, client: bytes, name: str, qtype: int) -> None:
        sock = self._sockets.get(client)
        if sock is None:
            sock = self._sockets[client] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            sock.bind((f"127.20.{client[2]}.{client[3]}", 0))
            sock.connect(("127.0.0.1", self._port))
            self._selector.register(sock, selectors.EVENT_READ)
        self.sent += 1
        labels = b"".join(bytes((len(part),)) + part.encode() for part in name.split("."))
        head = (self.sent & 0xFFFF).to_bytes(2, "big") + b"\1\0\0\1\0\0\0\0\0"
        edns = b"\0\0\x29\x04\xd0\0\0\0\0\0\0" if client[3] & 1 else b""
        sock.send(head + (b"\1" if edns else b"\0") + labels + b"\0" + qtype.to_bytes(2, "big") + b"\0\1" + edns)

    def collect(self, wait_s: float) -> None:
        """Take in answers for so long."""
        until = time.monotonic() + wait_s
        while True:
            for key, _ in self._selector.select(max(0.0, until - time.monotonic())):
                try:
                    while True:
                        key.fileobj.recv(2048)  # type: ignore[union-attr]
                        self.answered += 1
                except OSError:
                    pass
            if time.monotonic() >= until:
                return


def play(pupils: Pupils, look_ups: list[Dns], start: float, speed: float) -> None:
    """Ask half a minute's questions, each when its time has come."""
    for event in look_ups:
        ahead = start + event.at_ms / 1000 / speed - time.monotonic()
        if ahead > 0.002 or pupils.sent % 64 == 0:
            pupils.collect(max(0.0, ahead))
        pupils.ask(event.client, event.name, event.qtype)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speed", type=float, default=50)
    parser.add_argument("--queries", type=int, default=1_000_000)
    parser.add_argument("--hours", type=float, default=24)
    words = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` stops what was started
    base = Path(tempfile.mkdtemp(prefix="gatehouse-school-"))
    events = words.queries * 5 // 4  # a fifth of them are flows
    blocked = {e.name for part in day(SEED, CLIENTS, events // 50) for e in part if type(e) is Dns and e.verdict}
    (base / "nsd").mkdir()
    upstream = AnswersAll(base / "nsd", max(1, int(TTL_S / words.speed)))
    ours = peers.Ours(base, upstream.port)
    memory: list[float] = []
    try:
        ours.setup(sorted(blocked))
        ours.start()
        pupils = Pupils(ours.port)
        first, hour = time.monotonic(), 0
        for part in day(SEED, CLIENTS, events):
            look_ups = [event for event in part if type(event) is Dns]
            if not look_ups or look_ups[0].at_ms > words.hours * 3_600_000:
                continue
            play(pupils, look_ups, first, words.speed)
            while look_ups[-1].at_ms >= (hour + 1) * 3_600_000:
                hour += 1
                memory.append(ours.rss_mb())
                print(f"{hour:2} h: {memory[-1]:.1f} MB, {pupils.sent} asked, {pupils.answered} answered", flush=True)
        pupils.collect(5)
        memory.append(ours.rss_mb())
        dropped = ours.dropped()
        ours.server.terminate()
        ours.server.wait(20)
        time.sleep(6)
        on_record = count_in_ring(ours)
    finally:
        ours.stop()
        upstream.stop()
        shutil.rmtree(base, ignore_errors=True)
    quarter = len(memory) // 4
    late = max(memory[-quarter:]) - max(memory[-2 * quarter : -quarter])
    # What the kernel drops because others have the CPU is not seen by anybody.
    expected = pupils.sent - dropped
    print(
        f"{pupils.sent} asked, {dropped} of them dropped by the kernel unread, {pupils.answered} answered, "
        f"{on_record} on record; "
        f"at most {max(memory):.1f} MB, {late:+.1f} MB in the last quarter; "
        f"{time.monotonic() - first:.0f} s for {words.hours:g} h"
    )
    return 0 if max(memory) <= MAX_MB and late <= GROWTH_MB and on_record >= expected else 1


if __name__ == "__main__":
    sys.exit(main())
