"""A storage that fails while clients surf: no process dies, traffic follows the policy, no look-up is lost."""

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.lab import Lab
from tests.lab.test_lab_life import ask_while
from tests.lab.test_lab_venue import CURL
from tests.power.harness import build_shim

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a file system of its own is to be mounted"),
]
SECONDS = 10


class Disk:
    """A small ext4 of the ring's own."""

    def __init__(self, directory: Path, size: int = 8 << 20) -> None:
        self.where = directory / "ring"
        image = directory / "ring.img"
        self.where.mkdir(mode=0o700)
        with image.open("wb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop,errors=remount-ro", str(image), str(self.where)], check=True)

    def fill(self) -> None:
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), (self.where / "filler").open("wb", 0) as file:
            while True:
                file.write(bytes(4096))

    def empty(self) -> None:
        (self.where / "filler").unlink()

    def break_down(self) -> None:
        """An error in the file system's own books, upon which ext4 lets nobody write any more."""
        found = subprocess.run(["findmnt", "-n", "-o", "SOURCE", str(self.where)], check=True, capture_output=True)
        device = Path(found.stdout.decode().strip()).name
        Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("a test")

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.where)], check=False)


@contextmanager
def disk(directory: Path, size: int = 8 << 20) -> Iterator[Disk]:
    found = Disk(directory, size)
    try:
        yield found
    finally:
        found.close()


def until(is_so: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it has not come about in time"
        time.sleep(0.2)


def surf_through(lab: Lab, fail: Callable[[], object], mend: Callable[[], object]) -> None:
    """Clients ask all the time; in mid-way the storage fails, and comes back."""
    before = lab.processes()

    def fail_for_a_while() -> None:
        fail()
        until(lambda: "/ring/" in str(lab.status()["why"]), 8)
        assert lab.status()["state"] == "degraded"
        blocked = lab.run("pupil1", f"{CURL} -k --resolve casino.example:443:198.51.100.21 https://casino.example/")
        assert "reset" in blocked.stderr, "the filter works on"
        page = lab.run("pupil2", f"{CURL} --resolve www.example.org:80:198.51.100.20 http://www.example.org/")
        assert page.returncode == 0, "and so does the venue's internet"
        mend()

    answers = ask_while(lab, "surf", SECONDS, fail_for_a_while)
    assert sum(name == "-" for name, _ in answers) <= 2, "every look-up was answered"
    assert lab.processes() == before, "no process died"
    names = sorted(name for name, _ in answers if name != "-")

    def recorded() -> list[str]:
        rows = lab.rows("--domain", "example.org", "--kind", "dns", "--since", "1h")
        return sorted(str(row["name"]) for row in rows if str(row["name"]).startswith("surf-"))

    until(lambda: recorded() == names, 15)
    until(lambda: lab.status()["state"] == "protecting", 15)
    (stopped,) = lab.rows("--kind", "flow", "--verdict", "block", "--since", "1h")
    assert stopped["name"] == "casino.example"
    told = lab.rows("--kind", "maintenance", "--since", "1h")
    assert any(row["action"] == "storage" for row in told), "the fault is on record"
    assert lab.gatehouse("verify").returncode == 0


def test_a_full_disk(tmp_path: Path) -> None:
    with disk(tmp_path) as ring, Lab.running(tmp_path, flush="1s") as lab:
        surf_through(lab, ring.fill, ring.empty)


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_a_disk_that_refuses_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setenv("LD_PRELOAD", str(build_shim(tmp_path)))
    monkeypatch.setenv("POWER_ROOT", str(tmp_path / "ring"))
    monkeypatch.setenv("POWER_FAIL", str(tmp_path / "fail"))
    with Lab.running(tmp_path, flush="1s") as lab:
        surf_through(lab, lambda: (tmp_path / "fail").write_text(str(number)), (tmp_path / "fail").unlink)
