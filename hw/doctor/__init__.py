"""The self-test. `hw.doctor.run(config)` gives a list of findings; see docs/doctor.md for each of them."""

from hw.doctor.finding import Finding
from hw.doctor.rounds import run

__all__ = ["Finding", "run"]
