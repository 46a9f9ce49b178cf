"""Compilation on disk, the swap, opening what is there, and `explain` with file and line."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agent.compiler import compile_policy, main, swap_in
from agent.decider import open_engine, open_image, read_overrides, read_zone, write_overrides
from agent.explain import explain_name
from policy.errors import ConfigError
from policy.override import Overrides, open_override
from policy.uci import parse
from policy.verdict import Verdict
from policy.zone import UTC

CONFIG = """
config policy 'main'
	option table '{dir}/policy.gp'
	option list_dir '{dir}/lists'
config list 'ads'
	option file 'ads.txt'
config list 'ut1'
	option file 'tree'
	option format 'tree'
config list 'geo'
	option file 'geo'
	option format 'v2fly-tree'
config profile 'kids'
	list block 'ads'
	list block 'adult'
	list block 'video'
config group 'pupils'
	option profile 'kids'
	list ip '10.0.0.0/8'
"""


@pytest.fixture
def venue(tmp_path: Path) -> Path:
    for name, text in {
        "ads.txt": "# ads\nads.example\nbanner.example\n",
        "tree/adult/domains": "adult.example\n192.0.2.9\n",
        "tree/adult/urls": "site.example/adult\n",
        "tree/adult/expressions": "(sex)\n",
        "tree/adult/usage": "black\nadult\n",
        "tree/learning/domains": "maths.example\n",
        "tree/learning/usage": "white\n",
        "geo/video": "include:tube\nfull:one.example\n",
        "geo/tube": "tube.example @ads\n",
    }.items():
        path = tmp_path / "lists" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "config").write_text(CONFIG.format(dir=tmp_path))
    return tmp_path


def compiled(venue: Path, **changes):
    sections = parse((venue / "config").read_text())
    report = compile_policy(sections, str(venue / "lists"), str(venue / "policy.gp"), **changes)
    return sections, report


def test_files_trees_and_includes_compile_into_one_image(venue: Path) -> None:
    sections, report = compiled(venue)
    found = {item.name: (item.in_force, dict(item.refused), item.failure) for item in report.lists}
    assert found == {
        "ads": (2, {}, ""),
        "ut1/adult": (3, {"regular expression": 1}, ""),
        "ut1/learning": (1, {}, ""),
        "geo/tube": (1, {}, ""),
        "geo/video": (2, {}, ""),
    }
    assert json.loads((venue / "policy.gp.report").read_text())["image"]["names"] == 6
    engine = open_engine(sections, str(venue))
    group = engine.group_of(bytes([10, 0, 0, 1]))
    verdict = lambda name: engine.decide(name, group, 1.8e9).verdict  # noqa: E731
    assert {n for n in (b"ads.example", b"adult.example", b"a.tube.example", b"one.example", b"maths.example", b"x.one.example")  # noqa: E501
            if verdict(n) is Verdict.BLOCK} == {b"ads.example", b"adult.example", b"a.tube.example", b"one.example"}  # fmt: skip  # noqa: E501
    assert engine.decide_address(bytes([192, 0, 2, 9]), group, 1.8e9).rule == "list:ut1/adult"
    assert engine.decide_url(b"site.example", b"/adult/x", group, 1.8e9).rule == "list:ut1/adult"
    assert not engine.unknown


def test_a_category_meant_for_allowing_does_nothing_until_it_is_named(venue: Path) -> None:
    config = venue / "config"
    config.write_text(config.read_text().split("config profile")[0])
    sections, _ = compiled(venue)
    engine = open_engine(sections, str(venue))
    assert engine.decide(b"adult.example", 0, None).verdict is Verdict.BLOCK
    assert engine.decide(b"maths.example", 0, None).verdict is Verdict.ALLOW


def test_explain_names_file_and_line(venue: Path) -> None:
    sections, _ = compiled(venue)
    engine = open_engine(sections, str(venue))
    text = explain_name(engine, "www.Banner.example", "10.0.0.1", 1.8e9).text()
    assert "www.banner.example for group pupils: block (category, list:ads)" in text
    assert f"[{venue}/lists/ads.txt:3]" in text
    assert f"[{venue}/lists/geo/tube:1]" in explain_name(engine, "tube.example", "group:pupils", None).text()
    assert f"[{venue}/lists/tree/adult/domains:1]" in explain_name(engine, "adult.example", "", None).text()
    assert "does not count here" in explain_name(engine, "adult.example", "", None).text()
    assert "nothing is said" in explain_name(engine, "quiet.example", "02:00:00:00:00:01", None).text()
    for name, client in (("a..b", ""), ("a.example", "nobody"), ("a.example", "group:x")):
        with pytest.raises(ConfigError, match="explain: "):
            explain_name(engine, name, client, None)


def test_a_list_that_cannot_be_used_does_not_stop_the_others(venue: Path) -> None:
    config = venue / "config"
    config.write_text(
        config.read_text().replace("option file 'ads.txt'", "option file 'ads.txt'\n\toption max_entries '1'")
    )
    (venue / "lists" / "tree" / "adult" / "domains").unlink()
    (venue / "lists" / "tree" / "adult" / "urls").unlink()
    sections, report = compiled(venue)
    failures = {item.name: item.failure for item in report.lists if item.failure}
    assert failures == {"ads": "more than 1 entries"}
    engine = open_engine(sections, str(venue))
    assert engine.decide(b"ads.example", 1, None).verdict is Verdict.ALLOW, "not half of it either"
    assert engine.decide(b"tube.example", 1, None).verdict is Verdict.BLOCK
    config.write_text(config.read_text().replace("ads.txt", "gone.txt"))
    _, report = compiled(venue)
    assert "gone.txt: No such file" in report.lists[0].failure
    assert report.built is not None, "it was not in the image before either"


def test_a_list_that_is_in_force_is_not_lost_because_its_file_is(venue: Path) -> None:
    sections, _ = compiled(venue)
    before = (venue / "policy.gp").read_bytes()
    (venue / "lists" / "ads.txt").unlink()
    _, report = compiled(venue)
    assert report.built is None
    assert "the old image decides" in report.text()
    assert (venue / "policy.gp").read_bytes() == before
    assert open_engine(sections, str(venue)).decide(b"ads.example", 1, None).verdict is Verdict.BLOCK
    config = venue / "config"
    config.write_text(config.read_text().replace("config list 'ads'\n\toption file 'ads.txt'\n", ""))
    _, report = compiled(venue)
    assert report.built is not None, "its owner has taken it out"


def test_the_old_image_is_kept_and_taken_when_the_new_one_is_damaged(venue: Path) -> None:
    sections, _ = compiled(venue)
    first = (venue / "policy.gp").read_bytes()
    (venue / "lists" / "ads.txt").write_text("other.example\n")
    compiled(venue)
    assert (venue / "policy.gp.old").read_bytes() == first
    data = (venue / "policy.gp").read_bytes()
    for damaged in (data[: len(data) // 2], b"", data[:-1] + bytes([data[-1] ^ 1])):
        (venue / "policy.gp").write_bytes(damaged)
        notes: list[str] = []
        engine = open_engine(sections, str(venue), notes=notes)
        assert engine.decide(b"ads.example", 1, None).verdict is Verdict.BLOCK
        assert len(notes) == 1
        assert str(venue / "policy.gp") in notes[0]
    os.unlink(venue / "policy.gp")
    os.unlink(venue / "policy.gp.old")
    assert open_image(str(venue / "policy.gp"), []) is None
    assert open_engine(sections, str(venue)).decide(b"dns.google", 1, None).verdict is Verdict.BLOCK, (
        "rules hold without"
    )


def test_nothing_is_left_behind_and_a_failed_write_changes_nothing(venue: Path) -> None:
    sections, _ = compiled(venue)  # noqa: RUF059
    before = (venue / "policy.gp").read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600));"  # noqa: ISC004
         "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); sys.path.insert(0, '.');"
         f"from agent.compiler import main; main([{str(venue / 'config')!r}])"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "File too large" in done.stderr
    assert (venue / "policy.gp").read_bytes() == before
    assert sorted(p.name for p in venue.iterdir()) == ["config", "lists", "policy.gp", "policy.gp.report"]


def test_the_child_process_prints_the_report(venue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(venue / "config")], out=sys.stdout) == 0
    said = capsys.readouterr().out
    assert "ut1/adult" in said
    assert "6 names" in said


def test_overrides_survive_a_restart_and_a_damaged_file_is_told(venue: Path) -> None:
    sections, _ = compiled(venue)
    change = open_override(
        Overrides(), match="domain:ads.example", group="pupils", until_s=2000, by="ms. k", now_s=1000, at_ms=1
    )
    write_overrides(str(venue), change.state)
    assert os.stat(venue / "overrides.json").st_mode & 0o777 == 0o600
    engine = open_engine(sections, str(venue))
    assert engine.decide(b"www.ads.example", 1, 1500.0).rule == "override:1"
    assert engine.decide(b"www.ads.example", 1, 2000.0).verdict is Verdict.BLOCK
    (venue / "overrides.json").write_text("{")
    notes: list[str] = []
    assert read_overrides(str(venue), notes) == Overrides()
    assert "overrides" in notes[0]


def test_a_new_engine_counts_on_and_remembers_clients(venue: Path) -> None:
    sections, _ = compiled(venue)
    old = open_engine(sections, str(venue))
    old.set_client(bytes(4), account="anna")
    new = open_engine(sections, str(venue), old=old)
    assert new.generation == old.generation + 1
    assert new.clients == old.clients


def test_zones() -> None:
    notes: list[str] = []
    assert read_zone("CET-1CEST,M3.5.0,M10.5.0/3", notes).offset_at(1.8e9) == 3600
    assert read_zone("nonsense", notes) is UTC
    assert len(notes) == 1


def test_ten_thousand_questions_a_second_while_the_image_is_replaced_twenty_times(tmp_path: Path) -> None:
    """Odd versions block the odd names, even ones the even: an answer of both, or of neither, would be a mixture."""
    lists = tmp_path / "lists"
    lists.mkdir()
    images = []
    for version in range(2):
        (lists / "x.txt").write_text("".join(f"{n}.v{version}.example\n" for n in range(20_000)))
        sections = parse("config list 'x'\n\toption file 'x.txt'\n")
        compile_policy(sections, str(lists), str(tmp_path / f"v{version}"))
        images.append((tmp_path / f"v{version}").read_bytes())
    table = str(tmp_path / "policy.gp")
    Path(table).write_bytes(images[0])
    holder = [open_engine(sections, str(tmp_path), table=table)]
    stop, wrong, asked = threading.Event(), [], [0]

    def ask() -> None:
        number = 0
        while not stop.is_set():
            engine = holder[0]
            number = (number + 7) % 20_000
            first = engine.decide(b"www.%d.v0.example" % number, 0, 1.8e9).verdict is Verdict.BLOCK
            second = engine.decide(b"www.%d.v1.example" % number, 0, 1.8e9).verdict is Verdict.BLOCK
            asked[0] += 2
            if (first, second) != (engine.generation % 2 == 1, engine.generation % 2 == 0):
                wrong.append((engine.generation, first, second))

    thread = threading.Thread(target=ask)
    begun = time.monotonic()
    thread.start()
    for version in range(1, 21):
        time.sleep(0.05)
        (tmp_path / "new").write_bytes(images[version % 2])
        swap_in(str(tmp_path / "new"), table)
        holder[0] = open_engine(sections, str(tmp_path), table=table, old=holder[0])
    stop.set()
    thread.join()
    assert holder[0].generation == 21
    assert not wrong
    assert asked[0] / (time.monotonic() - begun) > 10_000
