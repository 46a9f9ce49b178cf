"""The same package on another processor: most of today's routers are arm64."""

import time
from pathlib import Path

import pytest

from tests.qemu import image as images
from tests.qemu.conftest import Maker, Router, note
from tests.qemu.network import SITE
from tests.qemu.test_qemu_package import install


@pytest.mark.slow
def test_arm64(maker: Maker, work: Path) -> None:
    image = images.build("arm64")
    overlay = images.make_overlay(work / "arm64.ext4")
    began = time.monotonic()
    with maker.machine(str(overlay), image=image, architecture="arm64").start() as machine:
        install(machine, "gatehouse_*.ipk")
        note(f"arm64: installed and protecting {time.monotonic() - began:.1f} s after power")
        router = Router(machine, maker.network)
        network = maker.network
        assert machine.run("uname -m") == "aarch64"
        assert network.resolve("www.example.org") == SITE
        assert network.resolve("www.casino.example") != SITE, "protecting means that"
        assert network.visit("tls", "www.example.org") == "ok"
        assert "reset" in network.visit("tls", "www.casino.example")
        assert network.visit("quic1", "www.casino.example") == "refused"
        # The programs in the kernel: what is asked again, and whoever comes again.
        for _ in range(6):
            assert network.resolve("again.example.org") == SITE
            assert network.visit("tls", "again.example.org") == "ok"
            time.sleep(0.3)
        assert router.counters("dns/0")["kernel"] >= 2
        assert router.counters("nfq/0")["early"] >= 2
        rows = router.rows()
        found = {(row["kind"], row["verdict"]) for row in rows if row.get("name") == "www.casino.example"}
        assert found == {("dns", "block"), ("flow", "block")}, rows
        again = [(row["kind"], row["verdict"]) for row in rows if row.get("name") == "again.example.org"]
        assert sorted(again) == [("dns", "allow")] * 6 + [("flow", "allow")] * 6
        assert not router.complaints()
