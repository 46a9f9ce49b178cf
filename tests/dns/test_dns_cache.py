"""The core's cache: what was put last is found, memory stays within its bound, what is used outlives what is not."""

import random

from dns.cache import BUCKET, Cache, Entry


def entry(number, size=16):
    return Entry(number, number + 300, 0, 1, 0, random.Random(number).randbytes(size))


def test_what_was_put_last_is_found_whatever_its_size():
    cache, kept, dice = Cache(32 << 20), {}, random.Random(5)
    for number in range(5000):
        key = b"%d" % dice.randrange(1500)
        kept[key] = entry(number, dice.choice((0, 16, 30, 400, 1000, 1100, 5000)) if number % 7 == 0 else 16)
        cache.put(key, kept[key])
    found = {key: cache.find(key) for key in kept}
    gone = [key for key, value in found.items() if value is None]
    assert len(gone) <= min(20, cache.counters["dropped"])
    assert {key: value for key, value in found.items() if value is not None} == {
        key: value for key, value in kept.items() if key not in gone
    }
    assert len(cache) == len(kept) - len(gone)
    assert cache.find(b"never put") is None


def test_memory_is_bounded_and_small_per_entry():
    cache = Cache(256 << 10)
    for number in range(50_000):
        cache.put(b"name%d" % number, entry(number))
        if number % 10 == 0:
            cache.put(b"large%d" % number, entry(number, 3000))
        assert cache.bytes_used <= 256 << 10
    assert cache.counters["dropped"] > 1000
    assert len(cache) > (192 << 10) / 60
    assert cache.find(b"name49999") == entry(49_999)
    assert cache.find(b"large49990") == entry(49_990, 3000)
    assert cache.find(b"name0") is None


def test_what_is_used_stays_while_names_without_end_pass_by():
    cache = Cache(256 << 10)
    cache.put(b"used", entry(1))
    cache.put(b"unused", entry(2))
    for number in range(30_000):
        cache.put(b"flood%d" % number, entry(number))
        if number % 100 == 0:
            assert cache.find(b"used") == entry(1), number
    assert cache.find(b"unused") is None


def test_one_bucket_holds_whole_entries_only():
    cache = Cache(BUCKET * 2)  # one bucket, and room for large ones
    for number in range(2000):
        cache.put(b"%d" % number, entry(number, number % 300))
        assert cache.find(b"%d" % number) == entry(number, number % 300)
    found = [number for number in range(2000) if cache.find(b"%d" % number) is not None]
    assert found == sorted(found)
    assert found[-1] == 1999
    assert len(found) == len(cache)
    cache.clear()
    assert (len(cache), cache.bytes_used, cache.find(b"1999")) == (0, 0, None)
