"""The fuzz target runs, briefly and always with the same packets; the ten million are `python -m tests.fuzz.dns`."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_first_hundred_thousand_packets():
    command = [sys.executable, "-m", "tests.fuzz.dns", "--packets", "100000"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "100,000 packets" in result.stdout
