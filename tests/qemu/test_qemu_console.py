"""A router out of the box, and an installer with a cable in its second UART. No network is needed for it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.hw.qemu import PASSWORD, make_authority
from tests.qemu.conftest import Router, note

ROOT = Path(__file__).resolve().parents[2]
OUT_OF_THE_BOX = """\
/etc/init.d/gatehouse stop
rm -rf /etc/gatehouse/* /srv/gatehouse/ring
cat >/etc/config/gatehouse <<-'END'
	config gatehouse 'main'
		option enabled '0'
		list lan 'br-lan'

	config console 'console'
		option tty '/dev/ttyS1'
		option baud '115200'
END
printf "config interface 'wan'\\n\\toption proto 'dhcp'\\n" >/etc/config/network
opkg install /tmp/stick/gatehouse-console_*.ipk
"""


def test_an_installer_provisions_over_the_second_line(router: Router, tmp_path: Path) -> None:
    router.run(OUT_OF_THE_BOX, 90)
    assert "gatehouse.console" in router.run("ls /tmp/run/procd")
    profile = make_authority(tmp_path)
    profile.write_text(profile.read_text().replace("[settings]\n", "[settings]\nenabled = true\n"))
    began = time.monotonic()
    words = ["provision", "--port", router.machine.second_line(), "--profile", str(profile)]
    words += ["--reports", str(tmp_path / "reports"), "--find-seconds", "60", "--no-wait"]
    done = subprocess.run(
        [sys.executable, "-m", "hw", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        stdin=subprocess.DEVNULL,
    )
    report = "".join(path.read_text() for path in (tmp_path / "reports").glob("*.txt"))
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{report}"
    note(f"provisioned over the second UART: {time.monotonic() - began:.1f} s")
    assert PASSWORD not in report
    assert router.run("uci get gatehouse.main.venue") == "11010510010001"
    assert router.run("uci get gatehouse.main.enabled") == "on"
    router.wait_for("nft list table inet gatehouse", 60)
