"""The built packages, read from the format's description: tree, modes, owners, conffiles, scripts, index, signature."""

import gzip
import hashlib
import marshal
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path

import pytest

from agent.version import VERSION
from tests.packaging.openwrt import ROOT, build
from tests.packaging.reader import Read, deb822, read_ipk

NAMES = ["gatehouse", "gatehouse-console", "gatehouse-opennds", "python3-dnslib"]
HOME = "usr/lib/gatehouse/"


def package(name: str) -> Read:
    (path,) = build().glob(f"{name}_*_all.ipk")
    return read_ipk(path.read_bytes())


@pytest.mark.parametrize("name", NAMES)
def test_everything_is_roots_and_of_one_time_and_nobody_else_may_write(name: str) -> None:
    read = package(name)
    assert read.members == ["debian-binary", "data.tar.gz", "control.tar.gz"]
    times = set()
    for path, info in {**read.files, **read.extra}.items():
        assert (info.uid, info.gid, info.uname, info.gname) == (0, 0, "", ""), path
        assert info.isfile() or info.isdir(), path
        assert not info.mode & 0o022, path
        assert not path.startswith("/"), path
        assert ".." not in path.split("/"), path
        times.add(info.mtime)
    assert times == {int(read.control["SourceDateEpoch"])}
    seen = {"."}
    for path, info in read.files.items():  # a directory comes before what is in it
        assert path == "." or (path.rpartition("/")[0] or ".") in seen, path
        seen |= {path} if info.isdir() else set()


@pytest.mark.parametrize("name", NAMES)
def test_control_says_what_opkg_needs(name: str) -> None:
    read = package(name)
    control = read.control
    assert control["Package"] == name
    assert control["Architecture"] == "all"
    # opkg and apk both order this; apk takes nothing but digits, dots and -rN (no `.dev1`, no `~git`)
    assert re.fullmatch(r"\d+(\.\d+)*(_(alpha|beta|rc)\d+)?-r\d+", control["Version"])
    assert int(control["Installed-Size"]) == sum(info.size for info in read.files.values() if info.isfile())
    assert set(control) >= {"Depends", "Source", "License", "Section", "Maintainer", "Description"}
    assert next(reversed(control)) == "Description"
    depends = control["Depends"].split(", ")
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", word) for word in depends), depends
    assert len(set(depends)) == len(depends)


def test_the_core_is_what_it_says_and_where_openwrt_looks_for_it() -> None:
    read = package("gatehouse")
    assert read.control["Version"] == f"{VERSION}-r1"
    assert read.control["Require-User"] == "gatehouse=5300:gatehouse=5300"
    modes = {path: info.mode for path, info in read.files.items() if not path.startswith(HOME) and info.isfile()}
    assert modes == {
        "etc/config/gatehouse": 0o600,
        "etc/hotplug.d/button/50-gatehouse": 0o755,
        "etc/hotplug.d/dhcp/60-gatehouse": 0o755,
        "etc/hotplug.d/iface/60-gatehouse": 0o755,
        "etc/init.d/gatehouse": 0o755,
        "etc/profile.d/gatehouse.sh": 0o644,
        "etc/uci-defaults/90-gatehouse": 0o644,
        "lib/upgrade/gatehouse.sh": 0o644,
        "lib/upgrade/keep.d/gatehouse": 0o644,
        "usr/bin/gatehouse": 0o755,
        "usr/libexec/gatehouse/binauth": 0o755,
        "usr/libexec/gatehouse/dhcp-event": 0o755,
        "usr/libexec/gatehouse/hostapd-event": 0o755,
        "usr/libexec/gatehouse/migrate": 0o755,
        "usr/libexec/gatehouse/tell": 0o755,
        "usr/libexec/gatehouse/uninstall": 0o755,
        "usr/libexec/rpcd/gatehouse": 0o755,
        "usr/share/gatehouse/firewall.include": 0o755,
        "usr/share/gatehouse/migrations/1": 0o644,
        "usr/share/rpcd/acl.d/gatehouse.json": 0o644,
    }
    assert read.files["etc/gatehouse"].mode == 0o700
    assert read.texts["conffiles"].splitlines() == ["/etc/config/gatehouse"]
    assert read.contents["lib/upgrade/keep.d/gatehouse"] == b"/etc/gatehouse/\n"


def test_there_is_byte_code_and_no_source_and_nothing_of_the_centre_or_the_laptop() -> None:
    read = package("gatehouse")
    code = {path for path in read.files if path.startswith(HOME) and read.files[path].isfile()}
    kinds = {Path(path).suffix for path in code}
    assert kinds == {".pyc", ".toml", ".sig", ".pub"}
    sources = {
        f"{HOME}{path.relative_to(ROOT).as_posix()}c"
        for room in ("agent", "bpf", "dns", "hw", "nfq", "policy", "storage")
        for path in (ROOT / room).rglob("*.py")
        if not path.relative_to(ROOT).as_posix().startswith(("agent/receiver/", "hw/laptop/", "hw/__main__.py"))
    }
    assert {path for path in code if path.endswith(".pyc")} == sources | {f"{HOME}__main__.pyc"}
    for path in sources:
        head = read.contents[path][:16]
        assert int.from_bytes(head[4:8], "little") == 1, f"{path}: a hash that is not checked, no time"
        assert marshal.loads(read.contents[path][16:]).co_filename == f"/{path[:-1]}"
    assert not any(str(ROOT).encode() in content for content in read.contents.values())


def test_byte_code_names_the_python_that_can_run_it() -> None:
    minor = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for name in ("gatehouse", "python3-dnslib"):
        assert f"libpython3-{minor}" in package(name).control["Depends"].split(", ")
    assert f"usr/lib/python{minor}/site-packages/dnslib/dns.pyc" in package("python3-dnslib").files


def scripts_of(read: Read) -> dict[str, bytes]:
    found = {
        name: text.encode() for name, text in read.texts.items() if name.partition("-")[0] in ("postinst", "prerm")
    }
    return found | {path: data for path, data in read.contents.items() if data.startswith(b"#!/bin/sh")}


def test_scripts_are_sound_for_busybox_and_shellcheck(tmp_path: Path) -> None:
    for name in NAMES:
        for path, data in scripts_of(package(name)).items():
            script = tmp_path / f"{name}-{path.replace('/', '-')}"
            script.write_bytes(data)
            checked = subprocess.run(["busybox", "ash", "-n", str(script)], capture_output=True, text=True)
            assert checked.returncode == 0, f"{path}: {checked.stderr}"
    scripts = sorted(str(path) for path in tmp_path.iterdir())
    assert len(scripts) > 20
    # SC1091: /lib/functions.sh is not here; SC1090, SC2154: what a caller brings.
    result = subprocess.run(
        ["shellcheck", "-e", "SC1090,SC1091,SC2154", "-s", "dash", *scripts], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout


def test_installing_and_removing_goes_by_openwrts_own_steps() -> None:
    read = package("gatehouse")
    for name, function in (("postinst", "default_postinst"), ("prerm", "default_prerm")):
        assert f'{function} "$0" "$@"' in read.texts[name]
        assert read.extra[name].mode == 0o755
    assert "/usr/libexec/gatehouse/uninstall" in read.texts["prerm-pkg"]
    assert '"${PKG_UPGRADE}" != "1"' in read.texts["prerm-pkg"]  # an upgrade is not an uninstall


def test_two_builds_are_the_same_octets() -> None:
    first = build()
    again = Path(tempfile.mkdtemp(prefix="gatehouse-package-"))
    try:
        shutil.copy(first / "key", again / "key")
        # Another directory, another time zone, another umask; a copy of the tree, so that no path can come in.
        subprocess.run(
            [sys.executable, "-I", str(ROOT / "packaging/build"), "--out", str(again)],
            check=True,
            capture_output=True,
            env={**os.environ, "TZ": "Asia/Shanghai", "LANG": "C", "PYTHONHASHSEED": "7"},
            umask=0o077,
            cwd="/",
        )
        for path in first.iterdir():
            assert (again / path.name).read_bytes() == path.read_bytes(), path.name
    finally:
        shutil.rmtree(again)


def test_the_index_is_right_and_signed_as_usign_does_it(tmp_path: Path) -> None:
    out = build()
    index = (out / "Packages").read_bytes()
    assert gzip.decompress((out / "Packages.gz").read_bytes()) == index
    entries = [deb822(block) for block in index.decode().strip().split("\n\n")]
    assert sorted(entry["Package"] for entry in entries) == sorted(NAMES)
    for entry in entries:
        data = (out / entry["Filename"]).read_bytes()
        assert int(entry["Size"]) == len(data)
        assert entry["SHA256sum"] == hashlib.sha256(data).hexdigest()
        control = read_ipk(data).control
        assert {key: entry[key] for key in control if key != "Installed-Size"} == {
            key: value for key, value in control.items() if key != "Installed-Size"
        }
    assert stat.S_IMODE((out / "key").stat().st_mode) == 0o600
    # OpenBSD's signify, of whose formats usign's are.
    verify = ["signify-openbsd", "-V", "-p", str(out / "gatehouse.pub"), "-x", str(out / "Packages.sig"), "-m"]
    assert subprocess.run([*verify, str(out / "Packages")], capture_output=True).returncode == 0
    (tmp_path / "Packages").write_bytes(index + b"\n")
    assert subprocess.run([*verify, str(tmp_path / "Packages")], capture_output=True).returncode != 0


def test_a_key_that_is_none_is_named_and_nothing_is_signed_with_it(tmp_path: Path) -> None:
    good = (build() / "key").read_text().splitlines()
    bad = {
        "missing": None,
        "empty": "",
        "public": (build() / "gatehouse.pub").read_text(),
        "damaged": f"{good[0]}\n{good[1][:60]}AAAA{good[1][64:]}\n",
    }
    for name, text in bad.items():
        path = tmp_path / name
        if text is not None:
            path.write_text(text)
        command = [
            sys.executable,
            "-I",
            str(ROOT / "packaging/build"),
            "--out",
            str(tmp_path / "out"),
            "--key",
            str(path),
        ]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 1, name
        assert str(path) in result.stderr
        assert "Traceback" not in result.stderr
        assert not (tmp_path / "out/Packages").exists()


def test_a_cut_or_changed_package_is_not_read(tmp_path: Path) -> None:
    data = (build() / f"gatehouse_{VERSION}-r1_all.ipk").read_bytes()
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    for bad in (data[:-1], data[:-20], data[:-100], data[: len(data) // 2], bytes(changed), data + b"\0"):
        with pytest.raises((ValueError, zlib.error, tarfile.TarError, EOFError)):
            read_ipk(bad)
