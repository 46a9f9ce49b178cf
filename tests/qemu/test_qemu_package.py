"""The package's life on a router: again, newer, gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.qemu import image as images
from tests.qemu.conftest import READY, Maker, Router
from tests.qemu.machine import Machine
from tests.qemu.network import SITE
from tests.qemu.stick import OLDER


def test_it_installs_twice(router: Router) -> None:
    router.network.resolve("www.casino.example")
    router.run("opkg install /tmp/stick/gatehouse_*.ipk", 120)
    router.wait_until_protecting()
    # Not octet by octet: the settings were written without a version, and got one now.
    assert router.run("uci get gatehouse.ring.budget") == "24M", "a changed conffile stays"
    assert router.run("uci get gatehouse.main.config_version") == "1"
    assert router.rows("--domain casino.example"), "and so do the records"
    assert router.network.resolve("www.casino.example") != "198.51.100.20"


def test_it_leaves_nothing_behind(router: Router) -> None:
    router.network.resolve("www.casino.example")
    router.run("opkg remove gatehouse", 120)
    assert "gatehouse" not in router.run("nft list ruleset")
    assert "gatehouse" not in router.run("uci show firewall; ls /etc/rc.d /etc/init.d")
    assert router.run("ls /tmp/run/procd") == "dnsmasq.instance1"
    router.run("[ ! -e /usr/lib/gatehouse ]")
    assert router.network.resolve("www.casino.example") == "198.51.100.20"
    # On record before it went: whoever installs it again can read it.
    router.run("opkg install /tmp/stick/gatehouse_*.ipk", 120)
    router.wait_until_protecting()
    actions = [row["action"] for row in router.rows("--kind maintenance")]
    assert "uninstall" in actions, actions
    assert router.rows("--domain casino.example"), "records belong to the venue, not to the package"


@pytest.mark.slow
def test_an_upgrade_keeps_records_and_settings(maker: Maker) -> None:
    """From the version before, with a configuration that carried no version yet.

    And in a kernel from before our programs can stand anywhere (tcx, Linux 6.6): there everything goes the old way.
    """
    overlay = images.make_overlay(maker.work / "upgrade.ext4")
    with maker.machine(str(overlay), image=images.build("amd64-old"), architecture="amd64-old").start() as machine:
        install(machine, f"older/gatehouse_{OLDER}_all.ipk")
        assert machine.run("uname -r").startswith("6.1.")
        router = Router(machine, maker.network)
        router.network.resolve("www.casino.example")
        assert router.rows("--domain casino.example")
        assert "config_version" not in machine.run("cat /etc/config/gatehouse")
        machine.run("opkg install /tmp/stick/gatehouse_*.ipk", 120)
        router.wait_until_protecting()
        assert OLDER not in machine.run("opkg list-installed")
        assert machine.run("uci get gatehouse.main.config_version") == "1"
        assert machine.run("uci get gatehouse.ring.budget") == "24M"
        assert router.rows("--domain casino.example")
        assert "as they were written" in machine.run("gatehouse verify")
        for _ in range(3):
            assert router.network.visit("tls", "www.example.org") == "ok"
            assert router.network.resolve("www.example.org") == SITE
        assert "reset" in router.network.visit("tls", "www.casino.example")
        rows = router.rows("--domain www.example.org")
        assert sorted(row["kind"] for row in rows) == ["dns"] * 3 + ["flow"] * 3
        assert router.counters("dns/0").keys().isdisjoint({"kernel", "kernel_interfaces"})
        assert router.counters("nfq/0").keys().isdisjoint({"early", "early_interfaces"})
        assert not router.complaints()


def test_the_doctor_finds_a_healthy_router_healthy(router: Router) -> None:
    """Every part is looked at; absent is only what this machine does not have."""
    router.wait_until_protecting()
    said = router.run("gatehouse doctor", 120)
    assert said.splitlines()[-1] == "ok"
    rows = [line.split(maxsplit=1) for line in said.splitlines()[:-1] if line.startswith(("ok", "not ok", "absent"))]
    found = {what.split()[0]: word for word, what in rows}
    absent = {name for name, word in found.items() if word == "absent"}
    assert absent == {"watchdog", "flash", "heat", "led", "certificate"}, rows
    assert {word for name, word in found.items() if name not in absent} == {"ok"}, rows
    looked_at = {"agent", "rules", "queues", "workers", "modules", "policy", "storage", "upstream", "broker"}
    assert looked_at <= found.keys(), rows


def install(machine: Machine, name: str) -> None:
    """From the prompt to a protected venue, with this package of the stick."""
    machine.login()
    machine.run("mkdir -p /tmp/stick && mount -t squashfs -o ro /dev/vdc /tmp/stick")
    machine.run(f"opkg install /tmp/stick/python3-dnslib_*.ipk /tmp/stick/{name}", 120)
    machine.run("sh /tmp/stick/venue", 120)
    machine.wait_for(READY, 90)


def test_the_tree_is_as_a_package_should_be(router: Router, stick: Path) -> None:
    modes = router.run(
        "stat -c '%a %U:%G %n' /etc/config/gatehouse /etc/gatehouse /usr/bin/gatehouse /srv/gatehouse/ring"
    )
    assert modes.splitlines() == [
        "600 root:root /etc/config/gatehouse",
        "710 root:gatehouse /etc/gatehouse",
        "755 root:root /usr/bin/gatehouse",
        "700 root:root /srv/gatehouse/ring",
    ]
    owners = router.run("for p in /tmp/run/procd/gatehouse.*; do stat -c %U /proc/$(cat $p/pid); done").split()
    assert owners == ["root", "gatehouse", "gatehouse", "root"], owners  # agent, dns, nfq, uplink
