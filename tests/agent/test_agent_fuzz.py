"""The fuzz target runs, briefly and always with the same cases; the million are `python -m tests.fuzz.agent`."""

import subprocess
import sys
from pathlib import Path


def test_the_agents_doors_stand_twenty_thousand_cases() -> None:
    command = [sys.executable, "-m", "tests.fuzz.agent", "--cases", "20000"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
