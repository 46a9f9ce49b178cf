"""Honest time: any sequence of readings, and the order of records never wrong."""

from hypothesis import given
from hypothesis import strategies as st

from storage.clock import Quality, Sample, Timeline


@given(
    st.lists(st.tuples(st.integers(0, 10**7), st.booleans(), st.integers(-(10**9), 10**9)), min_size=1, max_size=30),
)
def test_an_unsynced_moment_takes_the_next_synced_reading_of_its_boot(readings: list[tuple[int, bool, int]]) -> None:
    readings.sort()
    samples = [Sample("b", mono, mono + 10**12 + (0 if synced else wrong), synced) for mono, synced, wrong in readings]
    timeline = Timeline()
    for sample in samples:
        timeline.add(sample)
    for sample in samples:
        wall, quality = timeline.wall(sample.boottime_ms, sample)
        if any(other.synced for other in samples):
            assert wall == sample.boottime_ms + 10**12
            assert quality == (Quality.SYNCED if sample.synced else Quality.CORRECTED)
        else:
            assert (wall, quality) == (sample.wall_ms, Quality.UNSYNCED)


def test_a_month_of_steady_readings_takes_no_memory() -> None:
    timeline = Timeline()
    for minute in range(43_200):
        timeline.add(Sample("b", minute * 60_000, 10**12 + minute * 60_000, True))
    assert timeline.wall(5, Sample("b", 5, 0, False)) == (10**12 + 5, Quality.CORRECTED)
    assert sum(map(len, timeline._synced.values())) == 2
