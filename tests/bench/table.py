"""What every bench prints and writes: one row per figure, ours beside the peers' from the same run."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build" / "bench"


@dataclass(frozen=True, kw_only=True)
class Row:
    metric: str
    unit: str
    ours: float
    peers: dict[str, float] = field(default_factory=dict)
    target: str = ""
    """As a person reads it, such as `<= 1.1 x suricata`; empty: no target, a figure to know."""
    met: bool | None = None
    """None: there is no target."""


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def write(name: str, rows: Sequence[Row]) -> None:
    """Print the table and write build/bench/NAME.json."""
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / f"{name}.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    lines = [("metric", "unit", "ours", "peers", "target", "met")]
    for row in rows:
        peers = ", ".join(f"{peer} {_figure(value)}" for peer, value in row.peers.items())
        met = {None: "", True: "yes", False: "NO"}[row.met]
        lines.append((row.metric, row.unit, _figure(row.ours), peers, row.target, met))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    print(f"\n{name}")
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _figure(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
