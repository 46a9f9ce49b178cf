"""A hook that lives through a busy hour of a school of 300 clients, second by second. A child of the bench.

python -m tests.bench._uplink_feed SOCKET SECONDS      # prints how many records, and how many of them are critical
python -m tests.bench._uplink_feed SOCKET SECONDS warm # one look-up of each client then: sessions begin
"""

import sys
import time

from agent.link import Link
from policy.event import is_critical
from tests.bench._ring_day import day

BUSIEST_MS = 9 * 3_600_000 + 1_200_000


def main() -> None:
    path, seconds = sys.argv[1], float(sys.argv[2])
    hour = []
    for events in day(9, 300, 1_200_000):
        if events and events[0].at_ms > BUSIEST_MS:
            hour += events
        if events and events[-1].at_ms > BUSIEST_MS + 1000 * seconds + 60_000:
            break
    base = hour[0].at_ms
    link = Link(path, "dns", 0)
    if sys.argv[3:] == ["warm"]:
        here = {event.client: event for event in hour if event.at_ms - base < 1000 * seconds and not is_critical(event)}
        for event in here.values():
            link.put(event._replace(at_ms=time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000))
        link.close(10)
        print(len(here), 0)
        return
    began, now_ms = time.monotonic(), time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    put = critical = 0
    while (passed := time.monotonic() - began) < seconds:
        while hour[put].at_ms - base < passed * 1000:
            event = hour[put]
            link.put(event._replace(at_ms=now_ms + event.at_ms - base))
            critical += is_critical(event)
            put += 1
        link.pump(time.monotonic())
        time.sleep(0.05)
    link.close(10)
    print(put, critical)


if __name__ == "__main__":
    main()
