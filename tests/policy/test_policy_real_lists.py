"""The real lists: each entry is in force or counted with its reason, five syntaxes of one list say the same.

Without `../shared/lists` a built-in sample of each syntax takes their place; the test's name in the output says which.
"""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from policy.builder import Builder
from policy.compile import ListReport, Terms, read_list
from policy.engine import Engine
from policy.image import Image
from policy.syntax import Format
from policy.verdict import Reason, Verdict

LISTS = Path(__file__).resolve().parents[3] / "shared" / "lists"
SAMPLE = {
    "sample/domain": "# x\na.example\nb.example\n",
    "sample/host": "0.0.0.0 a.example\n0.0.0.0 b.example\n",
    "sample/adblocker": "! x\n||a.example^\n||b.example^\n##.ad\n",
    "sample/dnsmasq.conf": "address=/a.example/0.0.0.0\naddress=/b.example/0.0.0.0\n",
    "sample/smartdns.conf": "address /a.example/#\naddress /b.example/#\n",
    "sample/blacklists/adult/domains": "a.example\n192.0.2.1\n",
    "sample/blacklists/adult/urls": "a.example/x\n",
    "sample/blacklists/adult/expressions": "(x)\n",
    "sample/data/tube": "include:one\nfull:a.example @x\nregexp:^a\n",
    "sample/data/one": "b.example\n",
}
FORMATS = {"urls": Format.URLS, "expressions": Format.EXPRESSIONS, "domains": Format.DOMAINS}
SKIPPED = ("usage", "LICENSE.md", "README.md", "public_suffix_list.dat", "test_psl.txt")


def archives() -> list[str]:
    found = sorted(path.name for path in LISTS.glob("*.tar.xz") if not path.name.startswith("publicsuffix"))
    return found or ["built-in sample"]


def files_of(archive: str) -> Iterator[tuple[str, bytes]]:
    if not (LISTS / archive).is_file():
        yield from ((name, text.encode()) for name, text in SAMPLE.items())
        return
    with tarfile.open(LISTS / archive) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None and member.name.rpartition("/")[2] not in SKIPPED:
                yield member.name, file.read()


@pytest.mark.slow
@pytest.mark.parametrize("archive", archives())
def test_every_entry_is_in_force_or_counted_with_its_reason(archive: str) -> None:
    files = dict(files_of(archive))
    builder = Builder(b"s" * 16, (io.BytesIO(), io.BytesIO(), io.BytesIO()))
    reports = []
    for number, (name, data) in enumerate(files.items()):
        directory, _, file = name.rpartition("/")
        format_ = FORMATS.get(file, Format.V2FLY if directory.endswith("/data") else Format.AUTO)
        report = ListReport(name)
        include = lambda other, directory=directory: [files[f"{directory}/{other}"]]  # noqa: E731
        slot = builder.slot(f"list{number}", "x", "block")
        read_list(builder, report, [data], format_, Terms(slot), name, include)
        assert report.entries == report.in_force + sum(report.refused.values())
        lines = data.count(b"\n") + (not data.endswith(b"\n") and data != b"")
        assert report.lines >= lines, "an include adds lines, nothing takes them away"
        if format_ is not Format.V2FLY:
            assert report.lines == lines
            assert report.lines <= report.comments + report.entries, "no line is lost"
        reports.append(report)
    assert sum(report.entries for report in reports) > 0
    assert "other" not in {reason for report in reports for reason in report.refused}
    out = io.BytesIO()
    built = builder.write(out)
    assert built.rules == sum(report.names for report in reports)
    image = Image(out.getvalue())
    assert built.size < 16 * built.names + 32 * built.ranges + 256 * built.urls + 70_000
    engine = Engine([image])
    for name, data in files.items():
        if name.endswith(("domains", ".txt", "/block", "/domain")) and "easylist" not in name:
            check_plain_names(engine, data)


def check_plain_names(engine: Engine, data: bytes) -> None:
    """Every tenth line that is plainly a name of three labels hits, itself and below itself."""
    for line in data.split(b"\n")[::10]:
        name = line.strip()
        labels = name.split(b".")
        if name.islower() and name.replace(b".", b"").isalnum() and len(labels) == 3 and not labels[-1].isdigit():
            for asked in (name, b"www." + name):
                decision = engine.decide(asked, 0, 0.0)
                assert decision.verdict is Verdict.BLOCK or decision.reason is Reason.NEVER_BLOCK, asked


@pytest.mark.slow
def test_five_syntaxes_of_one_list_give_the_same_names() -> None:
    archive = "neodevhost-5syntaxes.tar.xz"
    wanted = ("host", "domain", "adblocker", "dnsmasq.conf", "smartdns.conf")
    builder = Builder(b"s" * 16, (io.BytesIO(), io.BytesIO(), io.BytesIO()))
    slots, names = [], set()
    for path, data in files_of(archive if (LISTS / archive).is_file() else "built-in sample"):
        name = path.rpartition("/")[2]
        if name in wanted:
            slots.append(builder.slot(name, "x", "block"))
            read_list(builder, ListReport(name), [data], Format.AUTO, Terms(slots[-1]))
        if name == "domain":
            names = {line for line in data.split(b"\n") if line and not line.startswith(b"#")}
    assert len(slots) == len(wanted)
    out = io.BytesIO()
    built = builder.write(out)
    image = Image(out.getvalue())
    assert built.names == len(names), "no syntax brings a name that the others have not"
    assert built.rules == len(names) * len(wanted)
    for name in names:
        assert {effect.slot for effect in image.effects(image.find(name))} == set(slots), name


@pytest.mark.slow
def test_a_million_random_names_are_not_on_a_list_of_two_hundred_thousand() -> None:
    import random

    builder = Builder(b"r" * 16, (io.BytesIO(), io.BytesIO(), io.BytesIO()))
    builder.slot("x", "x", "block")
    for number in range(200_000):
        builder.add_name(b"%x.listed%d.example" % (number * 2654435761, number % 5000), 3)
    out = io.BytesIO()
    builder.write(out)
    engine = Engine([Image(out.getvalue())])
    rnd = random.Random(12)
    false = 0
    for _ in range(1000):
        part = rnd.randbytes(8 * 1000).hex()
        for at in range(0, 16_000, 16):
            false += (
                engine.decide(f"{part[at : at + 7]}.{part[at + 7 : at + 16]}.test".encode(), 0, 0.0).verdict
                is Verdict.BLOCK
            )
    assert false == 0
