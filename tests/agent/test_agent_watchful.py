"""What happens beside what is told: each change once, and the same machine says nothing."""

from pathlib import Path

from agent.clock import Now
from agent.watchful import Watch


def test_a_release_and_a_configuration_that_are_others_than_at_the_last_start(tmp_path: Path) -> None:
    config = tmp_path / "gatehouse"
    config.write_text("one")
    assert [c.action for c in Watch(str(tmp_path), str(config), "0.1").begin()] == ["install"]
    assert Watch(str(tmp_path), str(config), "0.1").begin() == []
    config.write_text("two")
    upgrade, changed = Watch(str(tmp_path), str(config), "0.2").begin()
    assert (upgrade.action, upgrade.old, upgrade.new) == ("upgrade", "0.1", "0.2")
    assert (changed.action, changed.result, changed.old != changed.new) == ("config", "changed while stopped", True)


def test_a_clock_that_runs_a_little_off_is_no_step(tmp_path: Path) -> None:
    watch = Watch(str(tmp_path), "", "0.1")
    wall = 1_795_000_000_000
    for second in range(100):
        assert watch.look(Now(second * 1000, wall + second * 1001, True), "") == []
    (step,) = watch.look(Now(100_000, wall + 200_000, True), "")
    assert (step.action, step.result) == ("clock", "stepped by +99.9 s")
    assert watch.look(Now(101_000, wall + 201_000, True), "") == []


def test_a_storage_that_refuses_is_told_once_and_so_is_its_return(tmp_path: Path) -> None:
    watch, now = Watch(str(tmp_path), "", "0.1"), Now(0, 0, True)
    said = [watch.look(now, trouble) for trouble in ("", "full", "full", "still full", "", "")]
    assert [[change.result for change in changes] for changes in said] == [[], ["full"], [], [], ["works again"], []]
