"""The emulated router's kernel, initramfs and squashfs. `python -m tests.qemu.image [NAME]` makes them.

Debian's packages in OpenWrt's shape: a read-only squashfs below a small writable overlay, busybox for everything it
can do, Python as byte code alone. What is OpenWrt's own and cannot be had (procd, uci, opkg, fw4) is played by the
scripts in `router/`, each of which says so. Nothing of Gatehouse is in it: that is installed in the guest, from the
built packages.
The kernel is that of Debian's backports, 6.12: OpenWrt 24.10 has 6.6, and so has tcx, where our programs in the kernel
stand. `amd64-old` is the same computer with bookworm's own 6.1, where there is no tcx and everything has to go the old
way: `test_an_upgrade_keeps_records_and_settings`, which has to boot a machine of its own anyway, boots that one.
Rule: an image is named by the sum of all that it is made of, so that it never has to be cleaned by hand.
"""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = ROOT / "build" / "qemu"
SUITE = "bookworm"  # the Python of OpenWrt 23.05 and 24.10 is 3.11, and so is its
BACKPORTS = "bookworm-backports"
PACKAGES = (
    *("busybox", "python3-minimal", "libpython3.11-stdlib", "python3-msgpack", "python3-paho-mqtt", "python3-serial"),
    *("nftables", "dnsmasq-base", "iproute2", "conntrack"),
)


class Machine(NamedTuple):
    """One kind of computer that QEMU plays."""

    kernel: str
    """Debian's meta-package, and where from: PACKAGE/SUITE."""
    triple: str
    emulator: str
    arguments: tuple[str, ...]
    console: str
    """First serial line."""
    command_line: str = ""


_PC = Machine(
    f"linux-image-amd64/{BACKPORTS}",  # not the cloud kernel: this one has JFFS2, UBIFS and their simulated flash
    "x86_64-linux-gnu",
    "qemu-system-x86_64",
    ("-M", "pc", "-cpu", "Westmere,+rdrand"),
    "ttyS0",
    "no_timer_check tsc=reliable",
)
MACHINES = {
    "amd64": _PC,
    "amd64-old": _PC._replace(kernel=f"linux-image-amd64/{SUITE}"),
    "arm64": Machine(
        f"linux-image-cloud-arm64/{BACKPORTS}",
        "aarch64-linux-gnu",
        "qemu-system-aarch64",
        ("-M", "virt", "-cpu", "cortex-a53"),
        "ttyAMA0",
    ),
    "mipsel": Machine(
        f"linux-image-4kc-malta/{SUITE}",
        "mipsel-linux-gnu",
        "qemu-system-mipsel",
        ("-M", "malta", "-cpu", "24Kf"),
        "ttyS0",
    ),
}
"""By Debian's name of the processor, and what is behind a hyphen."""
EARLY = ("virtio_pci", "virtio_mmio", "virtio_blk", "squashfs", "overlay", "ext4")
"""Kernel modules of the initramfs."""
LATE = (
    *("virtio_net", "bridge", "nft_queue", "nfnetlink_queue", "nf_conntrack_netlink", "nft_ct", "nft_nat", "nft_masq"),
    *("nft_chain_nat", "nft_redir", "nft_reject_inet", "nft_fib_inet", "nft_flow_offload", "nf_flow_table_inet"),
    *("nft_log", "nft_limit", "nft_counter", "nf_reject_ipv4", "nf_reject_ipv6", "loop", "i6300esb", "softdog", "veth"),
    *("mtdram", "mtdblock", "jffs2", "nandsim", "ubi", "ubifs", "zstd", "lzo", "deflate"),
)
"""Kernel modules of the router itself."""
DROPPED = (
    *("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian", "usr/share/bug"),
    *(
        "usr/share/zoneinfo",
        "usr/share/perl*",
        "usr/lib/*/gconv",
        "usr/lib/*/perl*",
        "var/lib/apt",
        "var/cache/*",
        "boot",
    ),
    *("etc/apt", "usr/lib/python3.11/test", "usr/lib/python3.11/idlelib", "usr/lib/python3.11/lib2to3"),
    *("usr/lib/python3.11/pydoc_data", "usr/lib/python3.11/tkinter", "usr/lib/python3.11/ensurepip"),
    *(
        "bin/kmod",
        "sbin/modprobe",
        "sbin/insmod",
        "sbin/rmmod",
        "sbin/lsmod",
        "sbin/depmod",
        "sbin/modinfo",
        "bin/lsmod",
    ),
)


@contextmanager
def alone(what: str) -> Iterator[None]:
    """One process at a time makes it; the others wait, and find it made."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{what}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(name: str = "amd64") -> Path:
    """The directory with `vmlinuz`, `initrd`, `root.squashfs` of one of MACHINES; made if it is not there yet."""
    with alone(name):
        return _build(name)


def _build(name: str) -> Path:
    out = CACHE / f"{name}-{_sum(name)}"
    if (out / "root.squashfs").exists():
        return out
    architecture = name.partition("-")[0]
    packages, kernel = _debian(architecture, *PACKAGES), _debian(architecture, MACHINES[name].kernel)
    work = CACHE / f"work-{os.getpid()}"
    try:
        root, staging = work / "root", work / "out"
        root.mkdir(parents=True)
        staging.mkdir()
        _run("tar", "-xf", packages, "-C", root, "--exclude=./dev/*")
        version = _take_kernel(kernel, staging, work)
        _make_modules(root, work, version)
        _make_initramfs(root, staging, work, version)
        _make_python(root)
        _make_router(root)
        options = ["-noappend", "-all-root", "-no-progress", "-quiet", "-b", "256K"]
        _run("mksquashfs", root, staging / "root.squashfs", *options, "-comp", "zstd", "-Xcompression-level", "3")
        shutil.rmtree(out, ignore_errors=True)
        staging.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


def make_overlay(path: Path, megabytes: int = 64) -> Path:
    """An empty ext4 for the router's writable half."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(megabytes << 20)
    _run("mkfs.ext4", "-q", "-F", "-L", "rootfs_data", "-E", "lazy_itable_init=0,lazy_journal_init=0", path)
    return path


def _sum(name: str) -> str:
    found = hashlib.sha256(repr((name, MACHINES[name], PACKAGES)).encode())
    for path in sorted([Path(__file__), HERE / "preinit", *(HERE / "router").rglob("*")]):
        found.update(str(path.relative_to(HERE)).encode())
        if path.is_file() and not path.is_symlink():
            found.update(path.read_bytes())
    return found.hexdigest()[:12]


def _debian(architecture: str, *packages: str) -> Path:
    """Debian's packages and what they need, unpacked into a tar file and none of their scripts run: so a foreign
    architecture needs no emulation here."""
    named = ",".join(packages)
    path = CACHE / f"debian-{architecture}-{hashlib.sha256(named.encode()).hexdigest()[:12]}.tar"
    with alone(path.stem):
        if path.exists():
            return path
        words = ["--variant=extract", f"--include={named}", f"--architectures={architecture}", "--format=tar"]
        words += ["--aptopt=APT::Install-Recommends false"]
        if architecture != "amd64":
            words.append("--skip=check/qemu")
        new = path.with_suffix(".new")
        sources = [f"deb http://deb.debian.org/debian {suite} main" for suite in (SUITE, BACKPORTS)]
        _run("mmdebstrap", "-q", *words, SUITE, new, *sources)
        new.rename(path)
    return path


def _take_kernel(archive: Path, staging: Path, work: Path) -> str:
    """vmlinuz, and all modules into `work`: there are 300 MB of them. Returns the kernel's version."""
    _run("tar", "-xf", archive, "-C", work, "./boot", "./lib/modules")
    version = next((work / "lib/modules").iterdir()).name
    kernel = next(path for path in (work / "boot").iterdir() if path.name.startswith("vmlinu"))
    (staging / "vmlinuz").write_bytes(unpacked(kernel.read_bytes()))
    _run("depmod", "-b", work, version)
    return version


def unpacked(kernel: bytes) -> bytes:
    """The ELF in an x86 bzImage (Documentation/arch/x86/boot.rst): QEMU starts it by its PVH note. Others as they are.

    An emulated processor takes four seconds of each boot for what is done here once.
    """
    if kernel[0x202:0x206] != b"HdrS" or kernel[:2] != b"MZ":
        return kernel
    sectors = kernel[0x1F1] or 4
    offset, length = struct.unpack_from("<II", kernel, 0x248)
    start = (sectors + 1) * 512 + offset
    payload = kernel[start : start + length]
    if payload[:6] == b"\xfd7zXZ\0":
        return lzma.LZMADecompressor().decompress(payload)
    if payload[:4] == b"\x28\xb5\x2f\xfd":  # behind it stand four octets more, how long it becomes
        return subprocess.run(["zstd", "-dc"], input=payload[:-4], stdout=subprocess.PIPE, check=True).stdout
    return kernel


def _needed(work: Path, version: str, name: str) -> list[Path]:
    """A module's file and those it needs, in the order of loading; nothing for one that this kernel has built in."""
    words = ["modprobe", "-d", str(work), "-S", version, "--show-depends", name]
    said = subprocess.run(words, capture_output=True, text=True).stdout
    return [Path(line.split()[1]) for line in said.splitlines() if line.startswith("insmod")]


def _copy_module(path: Path, directory: Path) -> str:
    """As the kernel and busybox load it in any case: not compressed. Gives its name there."""
    data = path.read_bytes()
    name = path.name.removesuffix(".xz")
    (directory / name).write_bytes(lzma.decompress(data) if name != path.name else data)
    return name


def _make_modules(root: Path, work: Path, version: str) -> None:
    target = root / "lib/modules" / version
    target.mkdir(parents=True)
    for name in (*EARLY, *LATE):
        for path in _needed(work, version, name):
            _copy_module(path, target)
    for name in ("modules.builtin", "modules.order"):
        shutil.copy(work / "lib/modules" / version / name, target / name)
    _run("depmod", "-b", root, version)


def _make_initramfs(root: Path, staging: Path, work: Path, version: str) -> None:
    initramfs = work / "initramfs"
    for name in ("bin", "lib", "proc", "sys", "dev", "rom", "overlay", "new"):
        (initramfs / name).mkdir(parents=True)
    shutil.copy(root / "bin/busybox", initramfs / "bin/busybox")
    for applet in ("sh", "mount", "insmod", "switch_root", "mkdir", "sleep", "cat", "ls"):
        (initramfs / "bin" / applet).symlink_to("busybox")
    for pattern in ("lib/*/libc.so.6", "lib/*/libresolv.so.2", "lib/ld*.so.*", "lib64/ld*.so.*", "lib/*/ld*.so.*"):
        for path in root.glob(pattern):
            target = initramfs / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy_inside(root, path, target)
    order: list[str] = []
    for name in EARLY:
        for path in _needed(work, version, name):
            module = _copy_module(path, initramfs / "lib")
            if module not in order:
                order.append(module)
    (initramfs / "lib/order").write_text("".join(f"{name}\n" for name in order))
    shutil.copy(HERE / "preinit", initramfs / "init")
    (initramfs / "init").chmod(0o755)
    _run("sh", "-c", f"cd {initramfs} && find . | cpio -o -H newc --quiet | gzip -1 >{staging}/initrd")


def _copy_inside(root: Path, path: Path, target: Path) -> None:
    """Copy a file that may be a symbolic link, absolute ones seen from `root`."""
    while path.is_symlink():
        link = os.readlink(path)
        path = root / link.lstrip("/") if link.startswith("/") else path.parent / link
    shutil.copy(path, target)


def _make_python(root: Path) -> None:
    """Byte code beside where the source was, and no source: as OpenWrt has it."""
    for pattern in DROPPED:
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    places = [root / "usr/lib/python3.11", root / "usr/lib/python3/dist-packages"]
    _run("/usr/bin/python3.11", "-m", "compileall", "-q", "-b", "-j2", "-s", root, *places)
    for place in places:
        for path in place.rglob("*.py"):
            path.unlink()
        for path in place.rglob("__pycache__"):
            shutil.rmtree(path)
    (root / "usr/bin/python3").unlink(missing_ok=True)
    (root / "usr/bin/python3").symlink_to("python3.11")


def _make_router(root: Path) -> None:
    applets = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
    for name in applets:
        taken = any(os.path.lexists(root / place / name) for place in ("bin", "sbin", "usr/bin", "usr/sbin"))
        if not taken and name not in ("init", "dpkg", "dpkg-deb"):
            (root / "bin" / name).symlink_to("busybox")
    for name in ("sbin/init", "bin/tar", "bin/sh"):
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to("../bin/busybox")
    shutil.rmtree(root / "var")
    (root / "var").symlink_to("tmp")
    for name in ("proc", "sys", "dev", "tmp", "overlay", "rom", "root", "mnt", "etc/config", "etc/uci-defaults"):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.rmtree(root / "run", ignore_errors=True)
    (root / "run").symlink_to("tmp/run")
    shutil.copytree(HERE / "router", root, symlinks=True, dirs_exist_ok=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/ash\nnobody:*:65534:65534:nobody:/var:/bin/false\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").symlink_to("/tmp/resolv.conf")


def _run(*words: object) -> None:
    result = subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {result.stderr.strip()[-2000:]}")


if __name__ == "__main__":
    print(build(*sys.argv[1:2]))
