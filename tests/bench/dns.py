"""DNS: CPU per audited query, throughput, latency and memory, beside the servers that a venue would use instead.

One seeded mix (Zipf over 50,000 names, 15 % blocked, A/AAAA/HTTPS, half of the clients with EDNS), a million names of
policy, every query written down; everybody forwards to the same nsd. Rounds are interleaved, figures are medians.
The server is pinned to the first core, all its threads, the load to the second; our agent runs where it finds room, and
what it takes of both cores is missing to our throughput. CPU is the scheduler's own count, all threads.

The floor is a C program that only echoes, once with a system call for each datagram and once with 64: where system
calls are cheap they cost the same, most of it the way through the IP stack and back. What either costs depends on how
busy the load is: a client that sleeps must be woken by whoever answers it, which on a virtual machine costs tenfold;
so CPU per query is told at saturation and at a fixed low rate.

What the kernel answers for us is done in the asker's time, and no process of ours is charged with it. So our CPU per
query is reckoned from the whole machine's: all that was not idle, less the agent (a row of its own), less what the load
itself takes, which is what the machine spent in the same round when the C echo answered, less what the echo spent. A
peer is charged with what its process used, which leaves out its kernel threads.
`--only ours,echo` for some (without the echo, ours is the worker's own CPU alone); `--rounds`, `--seconds`.

Ours is the worker of `gatehouse dns`, with all its duties, sending its records to a running `gatehouse agent`, which
writes the ring; what the agent spends is a row of its own. At the end the ring must hold as many look-ups as were sent.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import _dns_peers as peers
from tests.bench.machine import busy_s
from tests.bench.table import Row, median, write

RATE = 5000


class Load:
    """dnsperf, twice at once: clients without and with EDNS."""

    def __init__(self, directory: Path, mix: peers.Mix) -> None:
        self.directory = directory
        self.sent: dict[str, int] = {}
        for has_edns in (False, True):
            (directory / f"mix{has_edns:d}").write_text("\n".join(mix.lines[has_edns]) + "\n")
            (directory / f"names{has_edns:d}").write_text("\n".join(mix.names[has_edns]) + "\n")

    def run(self, contender: peers.Contender, file: str, *words: str) -> list[str]:
        command = [
            "taskset",
            "-c",
            "1",
            "dnsperf",
            "-s",
            "127.0.0.1",
            "-p",
            str(contender.port),
            "-c",
            "8",
            "-q",
            "200",
        ]
        running = []
        for has_edns in (False, True):
            # To files: a pipe that is full would hold up the load.
            with (self.directory / f"out{has_edns:d}").open("w") as out:
                data = str(self.directory / f"{file}{has_edns:d}")
                running.append(subprocess.Popen([*command, "-d", data, *words, *(["-e"] * has_edns)], stdout=out))
        for process in running:
            process.wait()
        outputs = [(self.directory / f"out{has_edns:d}").read_text() for has_edns in (False, True)]
        self.sent[contender.name] = self.sent.get(contender.name, 0) + sum(number(o, "Queries sent") for o in outputs)
        return outputs


def number(output: str, what: str) -> int:
    found = re.search(rf"{what}:\s+([\d.]+)", output)
    if found is None:
        raise RuntimeError(f"dnsperf said no {what!r}: {output[-500:]}")
    return int(float(found[1]))


def saturate(load: Load, contender: peers.Contender, seconds: int, file: str = "mix") -> dict[str, float]:
    """As fast as it goes."""
    agent = contender.agent_cpu_s() if isinstance(contender, peers.Ours) else 0.0
    cpu, busy = contender.cpu_s(), busy_s()
    outputs = load.run(contender, file, "-l", str(seconds))
    busy = busy_s() - busy
    done = sum(number(output, "Queries completed") for output in outputs)
    lost = sum(number(output, "Queries lost") for output in outputs)
    spent = contender.cpu_s() - cpu
    if isinstance(contender, peers.Ours):
        agent = contender.agent_cpu_s() - agent
    qps = sum(float(re.search(r"per second:\s+([\d.]+)", output)[1]) for output in outputs)  # type: ignore[index]
    return {"cpu": spent / max(1, done) * 1e6, "qps": qps, "lost": lost, "agent": agent / max(1, done) * 1e6,
            "machine": busy / max(1, done) * 1e6}  # fmt: skip


def latency(load: Load, contender: peers.Contender, seconds: int) -> tuple[float, float]:
    """Milliseconds that 99 of 100 queries stay below, at RATE a second; and CPU per query then."""
    cpu = contender.cpu_s()
    outputs = load.run(contender, "mix", "-l", str(seconds), "-Q", str(RATE // 2), "-v")
    times = []
    for line in "\n".join(outputs).splitlines():
        if line.startswith("> ") and not line.startswith("> T "):  # T: no answer; `lost` counts those
            times.append(float(line.rsplit(None, 1)[1]))
    times.sort()
    spent = contender.cpu_s() - cpu
    return times[int(len(times) * 0.99)] * 1000, spent / sum(number(o, "Queries completed") for o in outputs) * 1e6


def misses(load: Load, seed: int) -> None:
    """Names that nobody has asked for: every one goes to the upstream."""
    dice = random.Random(seed)
    for has_edns in (False, True):
        lines = [f"m{dice.randrange(1 << 40):x}.miss.{peers.ZONE} A\n" for _ in range(100_000)]
        (load.directory / f"miss{has_edns:d}").write_text("".join(lines))


def count_in_ring(ours: peers.Ours) -> int:
    """Look-ups that the ring gives back, floods counted by what they stand for."""
    command = [
        sys.executable,
        "-I",
        str(peers.ROOT),
        "query",
        "--format",
        "jsonl",
        "--limit",
        "0",
        "--config",
        str(ours.config),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        total = 0
        for line in process.stdout:
            row = json.loads(line)
            total += row["kind"] == "dns" or row.get("events", 0) * (row["kind"] == "flood")
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="contenders, by the first word of their names")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    words = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` stops the contenders
    base = Path(tempfile.mkdtemp(prefix="gatehouse-bench-dns-"))
    started: list[peers.Contender] = []
    blocked = peers.policy_names()
    mix = peers.Mix(blocked)
    authority = peers.Authority(base, mix.hosts)
    load = Load(base, mix)
    try:
        for make in (peers.Ours, *peers.PEERS):
            name = make.name  # type: ignore[attr-defined]
            if words.only and name.split()[0] not in words.only.split(","):
                continue
            contender = make(base, authority.port)
            contender.setup(blocked)
            contender.start()
            started.append(contender)
            print(f"{name}: up, {contender.rss_mb():.0f} MB", flush=True)
        write("dns", measure(started, load, words.rounds, words.seconds))
    finally:
        for contender in started:
            contender.stop()
        authority.stop()
        shutil.rmtree(base, ignore_errors=True)


def measure(contenders: list[peers.Contender], load: Load, rounds: int, seconds: int) -> list[Row]:
    rss: dict[str, float] = {}
    for contender in contenders:  # warm: every name until it is ready to be given again, then the mix itself
        load.run(contender, "names", "-n", "3")
        rss[contender.name] = contender.rss_mb()
        load.run(contender, "mix", "-n", "3")
    mixed = {contender.name: contender.rss_mb() for contender in contenders}
    busy: dict[str, list[dict[str, float]]] = {contender.name: [] for contender in contenders}
    calm: dict[str, list[tuple[float, float]]] = {contender.name: [] for contender in contenders}
    missed: dict[str, list[dict[str, float]]] = {contender.name: [] for contender in contenders}
    for turn in range(rounds):
        for contender in contenders:
            busy[contender.name].append(saturate(load, contender, seconds))
            print(f"round {turn}: {contender.name}: {busy[contender.name][-1]}", flush=True)
        for contender in contenders:
            calm[contender.name].append(latency(load, contender, 3))
            print(
                f"round {turn}: {contender.name}: at {RATE} a second (p99 ms, us) {calm[contender.name][-1]}",
                flush=True,
            )
        if all(isinstance(contender, peers.Echo) for contender in contenders):
            continue
        misses(load, turn)
        for contender in contenders:
            if not isinstance(contender, peers.Echo):
                missed[contender.name].append(saturate(load, contender, 2, "miss"))
                print(f"round {turn}: {contender.name}: misses {missed[contender.name][-1]}", flush=True)
    rows = table(busy, calm, missed, rss)
    rows.append(row("RSS, the same in the mix's types and forms, 87,000 questions", "MB", mixed, []))
    rows.append(
        row("RSS after everything, names without end included", "MB", {c.name: c.rss_mb() for c in contenders}, [])
    )
    for contender in contenders:
        if isinstance(contender, peers.Ours):
            rows.append(Row(metric="kernel memory besides: tables of answers and clients", unit="MB",
                            ours=contender.kernel_mb()))  # fmt: skip
            rows.append(complete(contender, load.sent[contender.name]))
    return rows


def table(
    busy: dict[str, list[dict[str, float]]],
    calm: dict[str, list[tuple[float, float]]],
    missed: dict[str, list[dict[str, float]]],
    rss: dict[str, float],
) -> list[Row]:
    cpu = {name: median([each["cpu"] for each in found]) for name, found in busy.items()}
    worker = cpu.get("ours", 0.0)
    if "ours" in busy and "echo" in busy:
        cpu["ours"] = median([
            ours["machine"] - ours["agent"] - (echo["machine"] - echo["cpu"])
            for ours, echo in zip(busy["ours"], busy["echo"], strict=True)
        ])  # fmt: skip
    qps = {name: median([each["qps"] for each in found]) for name, found in busy.items()}
    tail = {name: median([p99 for p99, _ in found]) for name, found in calm.items()}
    low = {name: median([spent for _, spent in found]) for name, found in calm.items()}
    miss = {name: median([each["cpu"] for each in found]) for name, found in missed.items() if found}
    agent = median([each["agent"] for each in busy["ours"]]) if "ours" in busy else 0.0
    rows = [row("CPU per audited query", "us", cpu, [
        ("dnsdist + log", lambda ours, peer: ours <= 0.9 * peer, "<= 0.9 x dnsdist"),
        ("dnsmasq + log-queries", lambda ours, peer: ours <= peer / 5, "<= 1/5 x dnsmasq"),
        ("echo", lambda ours, peer: ours <= 1.4 * peer, "<= 1.4 x echo"),
    ])]  # fmt: skip
    machine = {name: median([each["machine"] for each in found]) for name, found in busy.items()}
    rows.append(row("CPU of the whole machine per query, load and agent included", "us", machine, []))
    rows.append(Row(metric="CPU of our worker alone", unit="us", ours=worker))
    servers = {name: value for name, value in qps.items() if not name.startswith("echo")}
    best = max((value for name, value in servers.items() if name != "ours"), default=0.0)
    rows.append(row("saturated throughput", "queries/s", qps, [], f"> {best:.0f}, the best server's",
                    qps.get("ours", 0.0) > best if best else None))  # fmt: skip
    best = min((value for name, value in tail.items() if name != "ours" and not name.startswith("echo")), default=0.0)
    rows.append(row(f"p99 at {RATE} queries/s", "ms", tail, [], f"<= {best:.2f}, the best server's",
                    tail.get("ours", 1e9) <= best if best else None))  # fmt: skip
    rows.append(row(f"CPU per audited query at {RATE} queries/s", "us", low, []))
    rows.append(row("RSS, 50,000 names cached", "MB", rss, [], "<= 64", rss.get("ours", 1e9) <= 64))
    if miss:
        rows.append(row("CPU per query, all misses", "us", miss, [
            ("unbound + log-queries", lambda ours, peer: ours <= peer, "<= unbound"),
        ]))  # fmt: skip
    rows.append(Row(metric="CPU of the agent per query (frames to ring)", unit="us", ours=agent))
    return rows


def row(metric, unit, values, targets, target="", met=None):  # type: ignore[no-untyped-def]
    """A row; `targets` are (peer, holds, words) and count only where that peer took part."""
    others = {name: value for name, value in values.items() if name != "ours"}
    ours = values.get("ours", 0.0)
    judged = [(words, holds(ours, others[peer])) for peer, holds, words in targets if peer in others]
    if judged:
        target = ", ".join(f"{words}{'' if holds else ' (no)'}" for words, holds in judged)
        met = all(holds for _, holds in judged)
    return Row(metric=metric, unit=unit, ours=ours, peers=others, target=target, met=met)


def complete(ours: peers.Ours, sent: int) -> Row:
    """Is every query on record that the kernel did not drop unread?

    The ring is asked after the worker has said goodbye and the agent has flushed.
    """
    sent -= ours.dropped()
    ours.server.terminate()
    ours.server.wait(20)
    deadline = time.monotonic() + 60
    before = -1
    while (found := count_in_ring(ours)) < sent and found != before and time.monotonic() < deadline:
        before = found
        time.sleep(6)
    return Row(metric="look-ups on record", unit="queries", ours=found, peers={"sent": sent}, target="= sent",
               met=found == sent + 1 or found == sent)  # fmt: skip


if __name__ == "__main__":
    if os.cpu_count() == 1:
        print("one core: server and load share it", file=sys.stderr)
    main()
