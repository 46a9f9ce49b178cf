"""When the agent may say that a policy is in force."""

import time
from pathlib import Path

from agent.policy_source import Keeper
from policy.config import load


def test_a_first_image_is_in_force_when_its_compiler_has_ended_not_when_its_file_is_there(tmp_path: Path) -> None:
    path = tmp_path / "gatehouse"
    text = f"config gatehouse 'main'\n\toption state_dir '{tmp_path}'\n"
    text += f"config policy 'policy'\n\toption table '{tmp_path}/policy.gp'\n"
    path.write_text(text, encoding="utf-8")
    keeper = Keeper(load(path.read_text(encoding="utf-8")), str(path))
    keeper.compile_soon()
    deadline = time.monotonic() + 30
    while not (tmp_path / "policy.gp").exists():
        assert time.monotonic() < deadline, keeper.report
        time.sleep(0.02)
    assert keeper.troubles() == ["policy: not compiled yet"], "the hooks are told after the next poll"
    while not keeper.poll(0):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert keeper.troubles() == []
