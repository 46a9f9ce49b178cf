"""A cable as it is in a corridor: noise, and a plug that comes out. `python -m tests.hw.rough [--pulls N]`.

Invariant: whatever happens to the line, a router has all of a configuration or none of it, a transfer is right, nothing
hangs, no noise makes a script's login fail, and none locks the console.
"""

import argparse
import random
import tempfile
import threading
import time
from pathlib import Path

from hw.laptop.line import Line
from hw.laptop.profile import Plan, Profile, make_plan
from hw.laptop.provision import Provision
from hw.laptop.report import Report
from hw.machine import ACTOR
from policy.config import load
from tests.hw.simulated import Simulated
from tests.hw.wire import Wire

PASSWORD = "sesame-8899"
SETTINGS = (
    ("vendor", ("123456789",)), ("venue", ("11010510010001",)), ("device", ("auto",)), ("venue-name", ("第一小学",)),
    ("wan", ("static", "10.0.0.2/24", "10.0.0.1", "9.9.9.9")), ("uplink", ("mqtt.example.org",)), ("lan", ("lo",)),
)  # fmt: skip


def provision(line: Line, profile: Profile, plan: Plan | None = None, **more: bool) -> Report:
    return Provision(line, profile, plan or make_plan(profile), lambda what, part: None, **more).run()


def line_of(wire: Wire, **more: float) -> Line:
    return Line(str(wire.laptop), patience_s=more.pop("patience_s", 10.0), **more)  # type: ignore[arg-type]


def noise(directory: Path, count: int, part: float = 0.01) -> Report:
    """Provision on a line that hurts a part of its octets, and send a file of `count` octets."""
    octets = random.Random(5).randbytes(count)
    with Wire(directory / "w", noise=part) as wire, Simulated(directory / "r", wire.router) as router:
        line = line_of(wire)
        report = provision(line, Profile(settings=SETTINGS[:3], password=PASSWORD))
        assert report.is_ok, report.text()
        assert load(router.path.read_text()).main.venue == "11010510010001"
        line = line_of(wire)
        line.find()
        line.enter(PASSWORD)
        assert router.orders.blobs.get(line.put(octets)) == octets
        # A script's proof crosses whole or not at all. What noise types at the prompt for a person is another matter.
        notes = router.device.notes
        refused = [note for note in notes if note[0] == "lock-out" or (note[0] == "login-failed" and ACTOR in note)]
        assert not refused, refused
    return report


def pulls(directory: Path, count: int) -> float:
    """Provision, and pull the cable at a random instant: the laptop's end, or both. Returns the longest, seconds."""
    rng = random.Random(7)
    old, new = ("11010510010001", "10.0.0.2"), ("11010510010002", "10.0.0.3")
    profile = Profile(settings=SETTINGS, password=PASSWORD, confirm_s=60)
    other = profile._replace(
        settings=(
            *SETTINGS[:1],
            ("venue", (new[0],)),
            *SETTINGS[2:4],
            ("wan", ("static", "10.0.0.3/24", "10.0.0.1", "9.9.9.9")),
        )
    )
    reached, longest_s = set(), 0.0
    with Wire(directory / "w") as wire, Simulated(directory / "r", wire.router) as router:
        begun = time.monotonic()
        assert provision(line_of(wire), profile).is_ok
        usual_s = time.monotonic() - begun
        for number in range(count):
            report_of: list[Report] = []

            def run(report_of: list[Report] = report_of) -> None:
                report_of.append(provision(line_of(wire), other, again=True))

            thread = threading.Thread(target=run)
            begun = time.monotonic()
            thread.start()
            time.sleep(rng.random() * 1.2 * usual_s)
            wire.pull_out(laptop_only=number % 2 == 0)
            time.sleep(rng.random() * 0.1)
            wire.plug_in()
            thread.join(40)
            assert not thread.is_alive(), "hangs"
            longest_s = max(longest_s, time.monotonic() - begun)
            (report,) = report_of
            text, network = router.path.read_text(), (directory / "r/network").read_text()
            seen = (load(text).main.venue, next(part for part in network.split("'") if part.startswith("10.0.0.")))
            assert seen in (old, new), report.text()
            # A cable that comes back within its patience ends in a router that is done.
            assert report.is_ok, report.text()
            assert seen == new
            assert router.orders.staging.state == "done"
            reached.add(report.unplugged)
            while router.orders.staging.state == "done" and load(router.path.read_text()).main.venue != old[0]:
                router.orders.rollback("test")
    assert 1 in reached
    return longest_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pulls", type=int, default=50)
    parser.add_argument("--octets", type=int, default=20_000)
    parser.add_argument("--noise", type=float, default=0.01)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        longest_s = pulls(Path(directory, "pulls"), options.pulls)
        print(f"rough: {options.pulls} pulls, never half a configuration; the longest run took {longest_s:.1f} s")
        begun = time.monotonic()
        report = noise(Path(directory, "noise"), options.octets, options.noise)
        print(
            f"rough: {options.noise:.1%} of octets hurt: provisioned in {report.seconds} s, {options.octets} octets "
            f"sent and right after {time.monotonic() - begun:.0f} s in all"
        )


if __name__ == "__main__":
    main()
