"""A cursor: everything is taken, in order, once in effect, whatever happens between taking and acknowledging."""

import random
import time
from pathlib import Path

import pytest

from policy.errors import StorageError
from policy.event import Dns
from storage.batch import unpack
from storage.cursor import Bulk, Cursor, Item, Lost, Taken
from storage.filter import Filter
from storage.hot import path_of
from storage.retention import DAY_MS
from storage.sealed import Sealed
from storage.writer import Ring
from tests.storage.test_storage_ring import FakeClock, all_of, look_up


class Centre:
    """The other side: files of sealed segments replace what came of them as batches."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.batches: dict[int, dict[int, list[str]]] = {}
        self.sealed: dict[int, list[str]] = {}

    def receive(self, cursor: Cursor, item: Item) -> None:
        match item:
            case Taken():
                assert item.segment not in self.sealed
                names = [event.name for event in unpack(item.data).events() if isinstance(event, Dns)]
                self.batches.setdefault(item.segment, {})[item.first_seq] = names
            case Bulk():
                target = self.directory / f"{item.segment}"
                with cursor.open(item) as file:
                    target.write_bytes(file.read())
                segment = Sealed(str(target), item.segment)
                assert sum(1 for _ in segment.check())
                found = segment.select(Filter(), [0] * len(segment.epochs))
                self.sealed[item.segment] = [f.event.name for f in found if f and isinstance(f.event, Dns)]
                segment.close()
                self.batches.pop(item.segment, None)

    def names(self) -> list[str]:
        found = dict(self.sealed)
        for segment, batches in self.batches.items():
            found[segment] = [name for seq in sorted(batches) for name in batches[seq]]
        return [name for segment in sorted(found) for name in sorted(found[segment])]


def settle(ring: Ring, clock: FakeClock) -> None:
    ring.tick(clock.read())
    while ring.is_busy(clock.read()):
        time.sleep(0.005)
        ring.tick(clock.read())


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_the_other_side_has_everything_once(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    (tmp_path / "centre").mkdir()
    centre, clock = Centre(tmp_path / "centre"), FakeClock()
    ring = Ring(str(tmp_path / "ring"), clock, seal=True)
    cursor, number, waiting = Cursor(ring, "centre"), 0, list[Item]()
    for _ in range(60):
        match rng.randrange(10):
            case 0 | 1 | 2:
                count = rng.choice((1, 30))
                ring.add([look_up(clock.mono, f"n{number + n:05}.example") for n in range(count)])
                number += count
                ring.commit()
            case 3 | 4 | 5:
                item = cursor.take()
                if item is not None:
                    centre.receive(cursor, item)
                    waiting.append(item)
            case 6 if waiting:
                cursor.acknowledge(waiting.pop(0))
            case 7:
                cursor.rewind()
                waiting = []
            case 8:
                clock.pass_ms(DAY_MS // 2)
                settle(ring, clock)
            case 9:  # the agent dies; what was acknowledged since the last commit is not remembered
                ring.store().close()
                ring = Ring(str(tmp_path / "ring"), clock, seal=True)
                cursor, waiting = Cursor(ring, "centre"), []
        clock.pass_ms(1000)
    ring.commit()
    cursor.rewind()
    while (item := cursor.take()) is not None:
        centre.receive(cursor, item)
        cursor.acknowledge(item)
    assert centre.names() == [f"n{n:05}.example" for n in range(number)]
    assert len(all_of(ring)) == number
    assert cursor.behind() == 0
    ring.close()


def test_a_place_is_kept_through_a_restart_and_a_new_segment(tmp_path: Path) -> None:
    clock = FakeClock()
    ring = Ring(str(tmp_path), clock)
    ring.tick(clock.read())
    ring.add([look_up(1, "one.example")])
    ring.commit()
    cursor = Cursor(ring, "centre")
    item = cursor.take()
    assert isinstance(item, Taken)
    cursor.acknowledge(item)
    clock.pass_ms(DAY_MS)
    ring.tick(clock.read())
    ring.close()
    ring = Ring(str(tmp_path), clock)
    cursor = Cursor(ring, "centre")
    assert cursor.acknowledged == item.next_seq
    assert cursor.take() is None
    assert Cursor(ring, "another").take() == item
    ring.close()


def test_what_went_before_it_was_taken_is_told(tmp_path: Path) -> None:
    clock = FakeClock()
    ring = Ring(str(tmp_path), clock, maximum_days=2)
    cursor = Cursor(ring, "centre")
    for day in range(5):
        ring.add([look_up(clock.mono, f"{day}.example")])
        ring.commit()
        if day == 0:
            item = cursor.take()
            assert item is not None
            cursor.acknowledge(item)
        ring.tick(clock.read())
        clock.pass_ms(DAY_MS)
    ring.tick(clock.read())
    lost = cursor.take()
    assert isinstance(lost, Lost)
    assert "gone" in lost.why
    following = cursor.take()
    assert isinstance(following, Taken)
    assert following.first_seq == lost.next_seq
    ring.close()


def test_a_damaged_segment_is_passed_over_and_told(tmp_path: Path) -> None:
    clock = FakeClock()
    ring = Ring(str(tmp_path), clock)
    for day in range(3):
        ring.tick(clock.read())
        ring.add([look_up(clock.mono, f"{day}.example")])
        ring.commit()
        clock.pass_ms(DAY_MS)
    Path(path_of(str(tmp_path), 2)).write_bytes(b"no database" * 100)
    cursor = Cursor(ring, "centre")
    kinds = []
    while (item := cursor.take()) is not None:
        kinds.append((type(item), item.segment))
    assert kinds == [(Taken, 1), (Lost, 2), (Taken, 3)]
    ring.close()


def test_half_a_file_of_another_form_is_not_gone_on_with(tmp_path: Path) -> None:
    clock = FakeClock()
    ring = Ring(str(tmp_path), clock, seal=True)
    ring.tick(clock.read())
    ring.add([look_up(1)])
    ring.commit()
    clock.pass_ms(DAY_MS)
    settle(ring, clock)
    cursor = Cursor(ring, "centre")
    bulk = cursor.take()
    assert isinstance(bulk, Bulk)
    with pytest.raises(StorageError, match="take it again"):
        cursor.open(bulk._replace(root=b"another"))
    ring.close()
