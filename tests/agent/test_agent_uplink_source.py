"""What goes before the centre has it: somebody is told in time, once on the log and all along in the status."""

import datetime
from pathlib import Path

from agent.clock import Now
from agent.uplink.source import Source
from policy.event import Dns, Event, Maintenance
from storage.writer import Ring

DAY_MS = 86_400_000


class Clock:
    boot_id = "0c0c0c0c-0000-4000-8000-00000000000c"

    def __init__(self) -> None:
        self.mono = 100_000
        self._wall = int(datetime.datetime(2026, 3, 3, 12).timestamp()) * 1000

    def read(self) -> Now:
        return Now(self.mono, self._wall + self.mono, True)


def test_records_that_go_before_the_centre_has_them_are_told_in_time(tmp_path: Path) -> None:
    clock, said = Clock(), list[Event]()
    ring = Ring(str(tmp_path / "ring"), clock, maximum_days=10, promised_days=5)
    source = Source(ring, clock, said.append)
    ring.tick(clock.read())
    for day in range(10):
        ring.add([Dns(clock.mono, b"\x0a\0\0\1", f"day{day}.example", 1, 0, 0, 0, "", "g", (), True, 0)])
        ring.commit()
        clock.mono += DAY_MS
        ring.tick(clock.read())
        source.watch_retention()
        told = [event for event in said if isinstance(event, Maintenance)]
        # Ten days are kept: less than half of that is left from the sixth on.
        assert len(told) == (day >= 5), day
    assert (told[0].action, told[0].object) == ("retention-at-risk", "uplink")
    source.report, source._reported_ms = {"why": ""}, clock.mono
    assert any("that the centre does not have yet go" in line for line in source.troubles())
    # The centre has the first days: what is left has time.
    list(source.handle({"action": "begin"}))
    rows = [row["row"] for row in source.handle({"action": "take", "bytes": 1 << 20})]
    list(source.handle({"action": "acknowledge", "place": rows[6]["next_seq"]}))  # type: ignore[index]
    source.watch_retention()
    assert source.troubles() == []
    assert len(said) == 1
    ring.close()
