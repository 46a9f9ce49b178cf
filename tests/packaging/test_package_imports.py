"""A router has the parts of Python that our packages ask for, and no others: does every import find what it wants?"""

import importlib.util
import subprocess
import sys
from pathlib import Path

from tests.packaging.openwrt import LIBRARIES, OPTIONAL, ROOT, SPLIT, blocked

sys.path.append(str(ROOT / "packaging/build"))
import recipe

CORE = recipe.read_recipes((ROOT / "packaging/openwrt/gatehouse/Makefile").read_text())["gatehouse"].depends
PARTS = sorted(set(CORE) & {*SPLIT, *LIBRARIES})


def import_all(depends: list[str], *, record: bool = False) -> subprocess.CompletedProcess[str]:
    spec = importlib.util.find_spec("msgpack")
    assert spec is not None
    assert spec.origin is not None
    libraries = str(Path(spec.origin).parents[1])
    words = ["agent.__main__", libraries, ",".join(sorted(blocked(depends))), ",".join(OPTIONAL)]
    return subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            str(Path(__file__).with_name("importer.py")),
            *words,
            *(["record"] if record else []),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_every_process_finds_every_module_in_what_the_package_asks_for() -> None:
    result = import_all(list(CORE))
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]


def test_a_part_that_is_not_asked_for_is_missed() -> None:
    result = import_all([name for name in CORE if name != "python3-sqlite3"])
    assert result.returncode == 1, result.stdout + result.stderr[-2000:]
    assert "sqlite3" in result.stdout


def test_nothing_is_asked_for_that_nobody_needs() -> None:
    result = import_all([], record=True)
    assert result.returncode == 0, result.stderr[-2000:]
    wanted = set(result.stdout.split())
    parts = {**SPLIT, **LIBRARIES}
    asked = {name for name in CORE if name in parts}
    assert {name for name in asked if not parts[name] & wanted} == set()
