"""The console on the second UART of an emulated computer, 256 MB and TCG: `python -m tests.hw.qemu`. By hand: a minute.

A Debian kernel with an initramfs of this machine's own Python and the tree as it is; nothing else runs there but the
agent and the console on /dev/ttyS1. From this side `python -m hw provision` does what an installer does, over the pty
that QEMU gives its second UART. Needs qemu-system-x86, busybox and cpio, and apt to fetch the kernel.
"""

import argparse
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "sesame-8899"
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
mkdir -p /var/run /srv/gatehouse; ip link set lo up
python3 -I /usr/lib/gatehouse agent --config /etc/config/gatehouse &
echo CONSOLE STARTS
python3 -I /usr/lib/gatehouse console --config /etc/config/gatehouse
"""
CONFIG = """
config gatehouse 'main'
	option enabled '0'
	option firewall 'none'
	list lan 'lo'
config dns 'dns'
	option enabled '0'
config nfq 'nfq'
	option enabled '0'
config console 'console'
	option tty '/dev/ttyS1'
	option baud '115200'
config ring 'ring'
	option flush '1s'
"""


def make_image(directory: Path) -> tuple[Path, Path]:
    """Kernel and initramfs."""
    said = subprocess.run(
        ["apt-cache", "depends", "linux-image-cloud-amd64"], capture_output=True, text=True, check=True
    )
    package = re.findall(r"Depends: (linux-image-\S+)", said.stdout)[0]
    subprocess.run(["apt-get", "download", "-q", package], cwd=directory, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["dpkg-deb", "-x", glob.glob(f"{directory}/*.deb")[0], directory / "kernel"], check=True)
    root = directory / "root"
    for name in ("bin", "proc", "sys", "dev", "tmp", "etc/config", "usr/bin", "usr/lib/gatehouse", "lib64"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    python = os.path.realpath(f"{sys.base_prefix}/bin/python3")
    unwanted = ("_tkinter", "_test", "_codecs", "_xx")
    libraries = [python, "/bin/busybox", *glob.glob(f"{sys.base_prefix}/lib/python3*/lib-dynload/*.so")]
    libraries = [path for path in libraries if not os.path.basename(path).startswith(unwanted)]
    wanted = subprocess.run(["ldd", *libraries], capture_output=True, text=True, check=False).stdout
    for path in set(re.findall(r"(/\S+\.so\S*)", wanted)) - set(libraries):
        target = root / path[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() and os.path.exists(path):
            shutil.copy(path, target)
    for link in (python, f"{sys.base_prefix}/bin/python3"):
        (root / link[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(python, root / link[1:])
    if not (root / "bin/python3").exists():
        shutil.copy(python, root / "bin/python3")
    standard = Path(os.__file__).parent
    left_out = shutil.ignore_patterns(
        "test",
        "idlelib",
        "tkinter",
        "lib2to3",
        "ensurepip",
        "__pycache__",
        "*-packages",
        "*.a",
        *(f"{n}*.so" for n in unwanted),
    )
    shutil.copytree(standard, root / str(standard)[1:], ignore=left_out, symlinks=False, dirs_exist_ok=True)
    import msgpack

    shutil.copytree(Path(msgpack.__file__).parent, root / "usr/lib/gatehouse/msgpack")
    for name in ("agent", "bpf", "dns", "hw", "nfq", "policy", "storage"):
        shutil.copytree(ROOT / name, root / "usr/lib/gatehouse" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "__main__.py", root / "usr/lib/gatehouse/__main__.py")
    (root / "etc/config/gatehouse").write_text(CONFIG)
    (root / "etc/config/network").write_text("config interface 'wan'\n\toption proto 'dhcp'\n")
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    # Byte code, as OpenWrt has it: compiling at each start takes longer than anything else here.
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "-j2", "."], cwd=root, check=False, stdout=subprocess.DEVNULL
    )
    for path in root.rglob("*.so*"):
        subprocess.run(["strip", "--strip-unneeded", path], check=False, capture_output=True)
    image = directory / "initramfs"
    subprocess.run(f"find . | cpio -o -H newc --quiet | gzip -1 > {image}", shell=True, cwd=root, check=True)
    return Path(glob.glob(f"{directory}/kernel/boot/vmlinuz*")[0]), image


def make_authority(directory: Path) -> Path:
    """With openssl, as an installer may have it."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650",
         "-subj", "/CN=Test authority", "-keyout", "ca.key", "-out", "ca.pem"],
        cwd=directory, check=True, capture_output=True,
    )  # fmt: skip
    profile = directory / "venue.toml"
    profile.write_text(
        f'[console]\npassword = "{PASSWORD}"\n[settings]\nvendor = "123456789"\nvenue = "11010510010001"\n'
        'device = "auto"\nwan = "dhcp"\nuplink = "mqtt.example.org"\n[files]\nca = "ca.pem"\n'
        '[certificate]\nca_certificate = "ca.pem"\nca_key = "ca.key"\n'
    )
    return profile


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", default="256")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        kernel, image = make_image(directory)
        profile = make_authority(directory)
        command = [
            "qemu-system-x86_64",
            "-m",
            options.memory,
            "-kernel",
            str(kernel),
            "-initrd",
            str(image),
            "-display",
        ]
        command += ["none", "-no-reboot", "-append", "console=ttyS0 panic=-1", "-monitor", "none", "-nic", "none"]
        command += ["-serial", f"file:{directory}/first", "-serial", "pty"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as machine:
            try:
                assert machine.stdout is not None
                port = ""
                while not port:
                    found = re.search(r"(/dev/pts/\d+)", machine.stdout.readline())
                    port = found[1] if found else ""
                wait_for_boot(directory / "first", machine)
                begun = time.monotonic()
                words = ["provision", "--port", port, "--profile", str(profile), "--reports", f"{directory}/reports"]
                done = subprocess.run(
                    [sys.executable, "-m", "hw", *words, "--find-seconds", "60"], cwd=ROOT, check=False
                )
                took_s = time.monotonic() - begun
                report = "".join(path.read_text() for path in Path(directory, "reports").glob("*.txt"))
                print(report)
                if done.returncode:
                    print((directory / "first").read_text(errors="replace")[-1500:])
                print(f"qemu: second UART, 115200, {options.memory} MB: provisioned in {took_s:.1f} s")
                return int(done.returncode != 0 or took_s >= 60)
            finally:
                machine.kill()


def wait_for_boot(log: Path, machine: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not log.exists() or "CONSOLE STARTS" not in log.read_text(errors="replace"):
        if machine.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"qemu: does not boot: {log.read_text(errors='replace')}")
        time.sleep(0.5)


if __name__ == "__main__":
    raise SystemExit(main())
