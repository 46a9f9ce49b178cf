"""A storage that fails: refused, taken away, damaged; and comes back."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from policy.errors import CorruptError, StorageError
from policy.event import Dns
from storage.filter import Filter
from storage.hot import path_of
from storage.reader import Found
from storage.retention import DAY_MS
from storage.verify import verify
from storage.writer import REOPEN_MS, Ring
from tests.power.harness import build_shim
from tests.storage.test_storage_ring import FakeClock, all_of, look_up

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def names_of(found: list[Found]) -> list[str]:
    return [f.event.name for f in found if isinstance(f.event, Dns)]


def some_days(directory: Path, clock: FakeClock, days: int = 3) -> Ring:
    ring = Ring(str(directory), clock)
    for day in range(days):
        ring.tick(clock.read())
        ring.add([look_up(clock.mono, f"{day}.example")])
        ring.commit()
        clock.pass_ms(DAY_MS)
    return ring


WRITER = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from policy.errors import StorageError
from storage.filter import Filter
from storage.writer import Ring
from tests.storage.test_storage_ring import FakeClock, all_of, look_up
clock, fail = FakeClock(), os.environ["POWER_FAIL"]
ring = Ring(sys.argv[2], clock)
said = []
for number in range(30):
    if number == 10:
        open(fail, "w").write(sys.argv[3])
    if number == 20:
        os.unlink(fail)
    ring.add([look_up(clock.mono, f"{number}.example")], b"w", number)
    try:
        ring.commit()
    except StorageError as error:
        said.append(str(error))
    clock.pass_ms(1500)
names = [found.event.name for found in all_of(ring)]
status = ring.status()
ring.close()
print(json.dumps({"names": names, "said": said, "status": status}))
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.mark.parametrize("how", [str(errno.EIO), str(errno.EROFS), str(errno.ENOSPC), f"{errno.EIO}s"])
def test_a_disk_that_fails_for_a_while_costs_nothing_and_doubles_nothing(tmp_path: Path, shim: Path, how: str) -> None:
    ring = tmp_path / "ring"
    environment = {"LD_PRELOAD": str(shim), "POWER_ROOT": str(ring), "POWER_FAIL": str(tmp_path / "fail")}
    words = [sys.executable, "-c", WRITER, str(ROOT), str(ring), how]
    done = subprocess.run(words, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["names"] == [f"{number}.example" for number in range(30)]
    assert len(said["said"]) == 10
    assert said["status"]["trouble"] == ""
    assert verify(str(ring))


def test_a_ring_that_cannot_be_opened_waits_and_takes_up_everything(tmp_path: Path, clock: FakeClock) -> None:
    directory = tmp_path / "ring"
    directory.write_text("in the way")
    ring = Ring(str(directory), clock)
    assert "ring" in ring.trouble
    ring.add([look_up(1)], b"w", 1)
    with pytest.raises(StorageError):
        ring.commit()
    with pytest.raises(StorageError):
        ring.query(Filter())
    assert ring.status()["waiting"] == 1
    directory.unlink()
    clock.pass_ms(REOPEN_MS)
    ring.commit()
    assert ring.trouble == ""
    assert names_of(all_of(ring)) == ["a.example"]
    assert ring.marks() == {b"w": 1}


def test_a_directory_that_others_can_read_is_closed_and_told(tmp_path: Path, clock: FakeClock) -> None:
    tmp_path.chmod(0o755)
    ring = Ring(str(tmp_path), clock)
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    (note,) = ring.tick(clock.read())
    assert "open to others" in note.result


def test_a_file_taken_away_while_it_is_written_is_told_and_the_chain_shows_the_hole(
    tmp_path: Path, clock: FakeClock
) -> None:
    ring = some_days(tmp_path, clock)
    gone = int(str(ring.status()["next"]).partition(":")[0])
    os.unlink(path_of(str(tmp_path), gone))
    notes = ring.tick(clock.read())
    assert any("taken away" in note.result and note.object == f"segment {gone}" for note in notes)
    ring.add([look_up(clock.mono, "after.example")])
    ring.commit()
    assert names_of(all_of(ring)) == ["0.example", "1.example", "after.example"]
    with pytest.raises(CorruptError, match=f"segment {gone + 1}: does not follow"):
        list(ring.verify())
    seqs = [found.seq for found in all_of(ring)]
    assert len(set(seqs)) == len(seqs)
    ring.close()


def test_all_files_taken_away_is_told_and_recording_goes_on(tmp_path: Path, clock: FakeClock) -> None:
    ring = some_days(tmp_path, clock)
    for path in tmp_path.iterdir():
        path.unlink()
    notes = ring.tick(clock.read())
    assert any("taken away" in note.result for note in notes)
    ring.add([look_up(clock.mono, "after.example")])
    ring.commit()
    assert names_of(all_of(ring)) == ["after.example"]
    ring.close()


def test_a_closed_segment_that_goes_missing_is_told_at_once_or_at_the_next_start(
    tmp_path: Path, clock: FakeClock
) -> None:
    ring = some_days(tmp_path, clock, 4)
    os.unlink(path_of(str(tmp_path), 2))
    clock.pass_ms(2 * 3_600_000)
    assert any(note.object == "segment 2" and "taken away" in note.result for note in ring.tick(clock.read()))
    assert names_of(all_of(ring)) == ["0.example", "2.example", "3.example"]
    ring.close()
    again = Ring(str(tmp_path), clock)
    assert any(note.object == "segment 2" and note.result == "missing" for note in again.tick(clock.read()))
    again.close()


def test_a_damaged_segment_harms_no_neighbour_and_goes_when_its_time_is_over(tmp_path: Path, clock: FakeClock) -> None:
    ring = some_days(tmp_path, clock, 4)
    path = Path(path_of(str(tmp_path), 2))
    path.write_bytes(b"not a database" * 200)
    assert names_of(all_of(ring)) == ["0.example", "2.example", "3.example"]
    assert names_of(all_of(ring)) == ["0.example", "2.example", "3.example"]
    told = [note for note in ring.tick(clock.read()) if note.object == "segment 2"]
    assert len(told) == 1, "once is enough"
    assert ring.status()["unreadable"] == [2]
    ring.close()
    again = Ring(str(tmp_path), clock, maximum_days=60)
    again.add([look_up(clock.mono, "later.example")])
    again.commit()
    clock.pass_ms(61 * DAY_MS)
    again.tick(clock.read())
    assert not path.exists(), "what is older than what follows it goes with it"
    again.close()


def test_what_was_set_aside_goes_when_its_time_is_over(tmp_path: Path, clock: FakeClock) -> None:
    some_days(tmp_path, clock).close()
    newest = max(tmp_path.glob("seg-*.db"))
    newest.write_bytes(b"not a database" * 200)
    ring = Ring(str(tmp_path), clock)
    aside = newest.with_suffix(".db.bad")
    os.utime(aside, (clock.wall / 1000, clock.wall / 1000))
    ring.tick(clock.read())
    assert aside.exists()
    clock.pass_ms(61 * DAY_MS)
    assert any(note.object == aside.name and "expired" in note.result for note in ring.tick(clock.read()))
    assert not aside.exists()
    ring.close()


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    """Where a small file system of its own is mounted."""
    where = tmp_path / "disk"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(where)], check=True)
    yield where
    subprocess.run(["umount", "-l", str(where)], check=False)


def test_a_disk_that_is_not_mounted_any_more_is_not_replaced_by_the_directory_below(
    image: Path, clock: FakeClock
) -> None:
    ring = Ring(str(image), clock)
    ring.add([look_up(1)])
    ring.commit()
    subprocess.run(["umount", "-l", str(image)], check=True)
    with pytest.raises(StorageError, match="mounted"):
        ring.tick(clock.read())
    ring.add([look_up(2)])
    with pytest.raises(StorageError, match="mounted"):
        ring.commit()
    assert list(image.iterdir()) == []
    subprocess.run(["mount", "-t", "tmpfs", "none", str(image)], check=True)


def test_what_a_killed_writer_left_opens_without_shared_memory(tmp_path: Path, clock: FakeClock) -> None:
    """JFFS2 has none; here SQLite cannot make the file for it."""
    ring = Ring(str(tmp_path / "ring"), clock)
    ring.tick(clock.read())
    ring.add([look_up(clock.mono, "kept.example")])
    ring.commit()
    left = tmp_path / "left"
    shutil.copytree(tmp_path / "ring", left)  # its journal beside it, as after a kill
    (journal,) = left.glob("*-wal")
    journal.with_name(journal.name.replace("-wal", "-shm")).symlink_to(tmp_path / "nowhere" / "shm")
    assert names_of(all_of(Ring(str(left), clock))) == ["kept.example"]
