"""One client's flood is counted, and nobody else loses a record by it."""

import random

from hypothesis import given
from hypothesis import strategies as st

from policy.event import Dns, Event, Maintenance
from storage.batch import Columns, pack, unpack
from storage.flood import MAX_CLIENTS, REPORT_MS, Meter

MAC = b"\2\0\0\0\0\1"


def look_up(at_ms: int, client: int, name: str = "a.example", verdict: int = 0) -> Dns:
    address = bytes((10, 0, client >> 8, client & 255))
    return Dns(at_ms, address, name, 1, 0, verdict, 0, "", "", (), False, 0, b"", "")


def thinned(meter: Meter, events: list[Event], now_ms: int, start: int = 0) -> list[Event]:
    columns = Columns()
    columns.add(events)
    meter.thin(columns, start, now_ms)
    return list(unpack(pack(columns)).events())


def test_the_flood_is_counted_and_the_others_are_kept() -> None:
    meter = Meter(events_an_hour=3600, burst=100)
    rng = random.Random(1)
    flood: list[Event] = [look_up(at, 1, f"{rng.randbytes(5).hex()}.example") for at in range(1000)]
    quiet: list[Event] = [look_up(at * 10, 2, "quiet.example") for at in range(100)]
    note = Maintenance(500, "agent", "start", "x", "", "", "ok")
    mixed = sorted([*flood, *quiet, note], key=lambda event: event.at_ms)
    kept = thinned(meter, mixed, 1000)
    assert [event for event in kept if event in quiet] == quiet
    assert note in kept
    assert len(kept) == 100 + 100 + 1
    assert kept == sorted(kept, key=lambda event: event.at_ms), "order is kept"
    (told,) = meter.floods(20_000)
    assert (told.client, told.events, len(told.sample)) == (bytes((10, 0, 0, 1)), 900, 5)
    assert (told.from_ms, told.to_ms) == (flood[100].at_ms, 999)
    assert meter.floods(40_000) == []


def test_a_share_comes_back_with_time_and_stops_have_their_own() -> None:
    meter = Meter(events_an_hour=3600, burst=10)
    assert len(thinned(meter, [look_up(1, 1)] * 30, 0)) == 10
    assert len(thinned(meter, [look_up(1, 1, verdict=1)] * 30, 0)) == 10, "stops are not crowded out by accesses"
    assert len(thinned(meter, [look_up(1, 1)] * 30, 5_000)) == 5
    assert len(thinned(meter, [look_up(1, 1)] * 30, 3_600_000)) == 10


def test_a_client_that_changes_its_address_keeps_its_bucket() -> None:
    meter = Meter(events_an_hour=1, burst=10)
    events: list[Event] = [look_up(1, client)._replace(mac=MAC) for client in range(50)]
    assert len(thinned(meter, events, 0)) == 10


def test_a_flood_that_goes_on_is_told_now_and_then_and_at_the_end() -> None:
    meter = Meter(events_an_hour=1, burst=1)
    told = []
    for step in range(100):
        now = 100_000 + step * 1000
        thinned(meter, [look_up(now, 1)] * 10, now)
        told += meter.floods(now)
    told += meter.floods(200_001, is_last=True)
    assert sum(flood.events for flood in told) == 999
    assert len(told) <= 2 + 100_000 // REPORT_MS


def test_ten_thousand_clients_take_bounded_memory_and_get_their_records() -> None:
    meter = Meter(events_an_hour=1000, burst=10)
    for client in range(MAX_CLIENTS + 5000):
        thinned(meter, [look_up(1, client)], client)
    assert len(meter._buckets) <= MAX_CLIENTS + 2


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), max_size=80), st.integers(0, 20))
def test_what_is_kept_is_what_came_less_the_excess(rows: list[tuple[int, bool, bool]], burst: int) -> None:
    meter = Meter(events_an_hour=1, burst=burst)
    events: list[Event] = [
        Maintenance(at, "a", "b", "c", "", "", "ok") if other else look_up(at, client, f"n{client}", int(stop))
        for at, (client, stop, other) in enumerate(rows)
    ]
    kept = thinned(meter, events, 0)
    expected, used = [], {}  # type: tuple[list[Event], dict[object, int]]
    for event in events:
        if isinstance(event, Dns):
            key = (event.client, event.verdict)
            used[key] = used.get(key, 0) + 1
            if used[key] > burst:
                continue
        expected.append(event)
    assert kept == expected
    assert sum(flood.events for flood in meter.floods(1 << 40)) == len(events) - len(expected)
