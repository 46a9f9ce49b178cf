"""docs/flash-it.md: what an installer types is what works."""

import itertools
import re
from pathlib import Path

from agent import legal, policy_source
from policy.config import load
from tests.packaging.openwrt import ROOT

PAGE = (ROOT / "docs/flash-it.md").read_text()
BLOCKS = [
    [line[4:] for line in lines]
    for is_code, lines in itertools.groupby(PAGE.splitlines(), lambda line: line.startswith("    "))
    if is_code
]


def test_it_is_ten_commands_at_most() -> None:
    commands = BLOCKS[0]
    assert commands[0].startswith("make package ")
    assert commands[-1].startswith("gatehouse status ")
    typed = [part for line in commands for part in line.partition("#")[0].split("&&")]
    assert len(typed) == 10, "as the page and the README say"


def test_what_the_installer_writes_is_read_without_a_complaint(tmp_path: Path) -> None:
    lines = [line for block in BLOCKS if block[0].startswith("config ") for line in block]
    lines.insert(1, f"    option state_dir '{tmp_path}'")
    config = load("\n".join(lines))
    assert config.main.enabled
    assert len(config.policy) == 3
    policy_source.check(config)
    assert legal.load_profile(config) is not None


def test_the_packages_that_it_names_are_in_the_feed() -> None:
    makefiles = "".join(path.read_text() for path in (ROOT / "packaging/openwrt").glob("*/Makefile"))
    named = set(re.findall(r"`(gatehouse(?:-[a-z]+)?|python3-[a-z]+)`", PAGE))
    assert len(named) == 5
    for name in named:
        assert f"define Package/{name}\n" in makefiles, name
    assert "(docs/flash-it.md)" in (ROOT / "README.md").read_text()
