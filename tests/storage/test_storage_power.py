"""Power cuts at the level of system calls: what was acknowledged is there. 1,000 by `python -m tests.power`."""

import random
from pathlib import Path

import pytest

from tests.power.harness import Result, build_shim, judge, record
from tests.power.replay import RENAME, UNLINK, Disk, main_names, read_log

CUTS = 120
STEPS = 100


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("shim"))


def run(directory: Path, shim: Path, sync: str, cuts: int, seed: int) -> Result:
    record(directory, shim, seed=seed, steps=STEPS, sync=sync)
    return judge(directory, cuts, seed, scratch=directory)


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_when_the_power_goes(tmp_path: Path, shim: Path) -> None:
    sealed = expired = 0
    for seed in (1, 2):
        result = run(tmp_path / str(seed), shim, "FULL", CUTS // 2, seed)
        assert result.wrong == []
        operations = read_log(tmp_path / str(seed) / "log")
        sealed += sum(op.kind == RENAME and op.data.endswith(b".db") for op in operations)
        expired += sum(op.kind == UNLINK and op.path.endswith(".db") for op in operations)
    assert sealed > 3, "segments were sealed meanwhile"
    assert expired > 1, "and let go"


@pytest.mark.slow
@pytest.mark.parametrize("sync", ["NORMAL", "OFF"])
def test_the_harness_sees_a_ring_that_does_not_keep_its_word(tmp_path: Path, shim: Path, sync: str) -> None:
    assert len(run(tmp_path, shim, sync, 25, 3).wrong) >= 5


@pytest.mark.slow
def test_the_log_is_the_whole_truth(tmp_path: Path, shim: Path) -> None:
    """Followed to its end, with nothing lost, it gives the same files."""

    record(tmp_path, shim, seed=4, steps=40)
    disk = Disk(str(tmp_path / "ring"))
    for operation in read_log(tmp_path / "log"):
        disk.follow(operation)
    disk.cut(tmp_path / "again", random.Random(1), harm=0)
    assert main_names(tmp_path / "again") == main_names(tmp_path / "ring")
