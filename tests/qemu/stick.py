"""What an installer carries to the router: the built packages, an older one to upgrade from, the venue's settings."""

from __future__ import annotations

import gzip
import io
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ROOT / "build" / "package"
OLDER = "0.0.9-r1"

VENUE = """\
#!/bin/sh
# The venue's settings, as a whole file: uci would do, but its stand-in here takes a second for each word.
mkdir -p /etc/gatehouse/lists
echo casino.example >/etc/gatehouse/lists/gambling
cat >/etc/config/gatehouse <<-'END'
	config gatehouse 'main'
		option enabled '1'
		option venue '44010612345678'
		option device '123456789020000000100'
		option clock 'trusted'
		list lan 'br-lan'

	config nfq 'nfq'

	config ring 'ring'
		option flush '2s'
		option budget '24M'

	config uplink 'uplink'
		option enabled '1'
		option tls '0'
		option stagger '0s'
		option live '1s'
		option heartbeat '5s'
		list server '198.51.100.1#1883'

	config list 'gambling'
		option file 'gambling'
		option category 'gambling'

	config profile 'school'
		list block 'gambling'

	config group 'pupils'
		option profile 'school'
		list ip '192.168.1.0/24'
		list ip '2001:db8:20::/64'
END
gatehouse check || exit 1
/etc/init.d/gatehouse reload
"""


def make(directory: Path) -> Path:
    """An image for the guest's third disk. Raises: RuntimeError if `make package` has not been run."""
    core = sorted(PACKAGES.glob("gatehouse_*.ipk"))
    if not core:
        raise RuntimeError(f"no package in {PACKAGES}; run: make package")
    tree = directory / "stick"
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "older").mkdir(parents=True)
    for path in PACKAGES.glob("*.ipk"):
        shutil.copy(path, tree)
    (tree / "older" / f"gatehouse_{OLDER}_all.ipk").write_bytes(as_older(core[-1].read_bytes()))
    (tree / "venue").write_text(VENUE)
    for name in ("witness.py", "ubi.py"):
        shutil.copy(Path(__file__).with_name(name), tree)
    image = directory / "stick.squashfs"
    image.unlink(missing_ok=True)
    words = [
        "mksquashfs",
        str(tree),
        str(image),
        "-noappend",
        "-all-root",
        "-no-progress",
        "-quiet",
        "-comp",
        "gzip",
        "-all-time",
        "0",
        "-mkfs-time",
        "0",
    ]
    subprocess.run(words, check=True, capture_output=True)
    return image


def as_older(package: bytes) -> bytes:
    """The same package under an older version, with a configuration from before there was a version in it.

    There has been no release yet; what this shows is the way of an upgrade, not that old code's records can be read.
    """
    outer = _open(package)
    control = _open(outer["control.tar.gz"][1])
    data = _open(outer["data.tar.gz"][1])
    _edit(control, "control", rb"(?m)^Version: .*$", f"Version: {OLDER}".encode())
    _edit(data, "etc/config/gatehouse", rb"(?m)^\s*option config_version .*\n", b"")
    for name, parts in (("control.tar.gz", control), ("data.tar.gz", data)):
        info, _ = outer[name]
        outer[name] = (info, _close(parts))
    return _close(outer)


def _open(archive: bytes) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            found[member.name.removeprefix("./")] = (member, file.read() if file else b"")
    return found


def _close(parts: dict[str, tuple[tarfile.TarInfo, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, data in parts.values():
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return gzip.compress(out.getvalue(), 1, mtime=0)


def _edit(parts: dict[str, tuple[tarfile.TarInfo, bytes]], name: str, pattern: bytes, text: bytes) -> None:
    info, data = parts[name]
    new, times = re.subn(pattern, text, data)
    if times != 1:
        raise RuntimeError(f"{name}: expected {pattern!r} once, found it {times} times")
    parts[name] = (info, new)
