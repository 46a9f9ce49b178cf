"""The same package on another processor: most of today's routers are arm64."""

import time
from pathlib import Path

import pytest

from tests.qemu import image as images
from tests.qemu.conftest import Maker, Router, note
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
        assert network.resolve("www.example.org") == "198.51.100.20"
        assert network.resolve("www.casino.example") != "198.51.100.20", "protecting means that"
        assert network.visit("tls", "www.example.org") == "ok"
        assert "reset" in network.visit("tls", "www.casino.example")
        assert network.visit("quic1", "www.casino.example") == "refused"
        found = {(row["kind"], row["verdict"]) for row in router.rows("--domain casino.example")}
        assert {("dns", "block"), ("flow", "block")} <= found, found
