"""The whole path in the lab, with and without us: CPU and time per DNS query and per TLS connection.

Two labs stand side by side, one with Gatehouse and one where the router only forwards; rounds alternate. CPU is what
all of Gatehouse's processes spent, the kernel's work on their behalf included, from /proc/PID/stat.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from tests.bench.table import Row, median, write
from tests.lab.lab import Lab

ROUNDS = 5
QUERIES = 4000
CONNECTIONS = 400
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
LOAD = str(Path(__file__).resolve().parents[1] / "lab" / "load.py")


def cpu_s(lab: Lab) -> dict[str, float]:
    """CPU seconds of each of our processes so far."""
    spent = {}
    for name, pid in lab.processes().items():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        spent[name] = (int(fields[11]) + int(fields[12])) * TICK_S
    return spent


def load(lab: Lab, *words: str) -> dict[str, float]:
    result = lab.run("pupil1", [sys.executable, "-I", LOAD, *words], timeout=120, check=True)
    found: dict[str, float] = json.loads(result.stdout)
    return found


def round_of(lab: Lab, kind: str) -> tuple[dict[str, float], dict[str, float]]:
    before = cpu_s(lab)
    if kind == "dns":
        result = load(lab, "dns", "10.20.0.1", str(QUERIES))
    else:
        result = load(lab, "tls", "198.51.100.21", "www.example.org", str(CONNECTIONS), f"{lab.directory}/ca.crt")
    after = cpu_s(lab)
    return result, {name: (after[name] - before[name]) / result["count"] * 1e6 for name in after if name in before}


def main() -> None:
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="gatehouse-bench-") as base,
        Lab.running(Path(base, "with"), flush="30s", extra="config dns 'dns'\n\toption rate '0'\n") as ours,
        Lab.running(Path(base, "off"), agent=False) as off,
    ):
        for kind, unit in (("dns", "query"), ("tls", "connection")):
            round_of(ours, kind)  # caches warm on both sides before anything counts
            round_of(off, kind)
            pairs = [(round_of(ours, kind), round_of(off, kind)[0]) for _ in range(ROUNDS)]
            for name in pairs[0][0][1]:
                spent = median([cpu[name] for (_, cpu), _ in pairs])
                rows.append(Row(metric=f"{kind}: CPU of {name}", unit=f"us/{unit}", ours=spent))
            total = median([sum(cpu.values()) for (_, cpu), _ in pairs])
            rows.append(Row(metric=f"{kind}: CPU of all our processes", unit=f"us/{unit}", ours=total))
            for figure in ("p50_us", "p99_us"):
                with_us = median([result[figure] for (result, _), _ in pairs])
                without = median([result[figure] for _, result in pairs])
                rows.append(
                    Row(metric=f"{kind}: time {figure[:3]}", unit="us", ours=with_us, peers={"without us": without})
                )
    write("path", rows)


if __name__ == "__main__":
    main()
