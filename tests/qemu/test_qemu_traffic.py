"""A client surfs through the emulated router: what is seen, what is stopped, in a kernel with the real nft rules."""

import json
import sys
import time
from pathlib import Path

from tests.qemu.conftest import Router, note
from tests.qemu.network import SERVER, SITE


def test_the_package_came_from_the_feed_and_protects(router: Router) -> None:
    router.wait_until_protecting()
    assert "protecting" in router.run("gatehouse status")
    assert "gatehouse - 0.1.0-r1" in router.run("opkg list-installed")
    assert router.run("find /usr/lib/gatehouse -name '*.py' | wc -l") == "0"
    table = router.run("nft list table inet gatehouse")
    assert "queue flags bypass to 20" in table, table
    assert router.run("cut -c1-6 /proc/net/netfilter/nfnetlink_queue").split() == ["20", "21"], (
        "visits, and what is refused"
    )


def test_names_are_audited_and_blocked(router: Router) -> None:
    network = router.network
    assert network.resolve("www.example.org") == SITE
    assert network.resolve("www.casino.example") in ("NXDOMAIN", "0.0.0.0")
    assert network.resolve("www.casino.example", "198.51.100.1") in ("NXDOMAIN", "0.0.0.0"), "past us: redirected"
    rows = router.rows("--kind dns", "--since 10m")
    found = {(row["name"], row["verdict"]) for row in rows}
    assert ("www.example.org", "allow") in found, rows
    assert ("www.casino.example", "block") in found, rows


def test_flows_are_audited_and_blocked_through_the_nft_queue(router: Router) -> None:
    network = router.network
    page = network.fetch("http://www.example.org/page", "--resolve", f"www.example.org:80:{SITE}")
    assert page.startswith("200 you asked www.example.org"), page
    page = network.fetch("http://www.casino.example/slots", "--resolve", f"www.casino.example:80:{SITE}")
    assert not page.startswith("200"), page
    assert "casino.example" in page, "the page says what was stopped"
    assert network.visit("tls", "www.example.org") == "ok"
    assert "reset" in network.visit("tls", "www.casino.example")
    assert network.visit("quic1", "www.example.org") == "ok"
    assert network.visit("quic1", "www.casino.example") == "refused"
    rows = router.rows("--kind flow", "--since 10m")
    found = {(str(row["seen"]).split("_")[0], row["name"], row["verdict"]) for row in rows}
    for protocol in ("http", "tls", "quic"):
        assert (protocol, "www.example.org", "allow") in found, rows
        assert (protocol, "www.casino.example", "block") in found, rows


def test_a_dead_agent_costs_nobody_the_internet(router: Router) -> None:
    """`on_failure` open: without any of our processes, traffic passes by the queue and questions go to dnsmasq."""
    router.run("for place in /tmp/run/procd/gatehouse.*; do kill -9 $(cat $place/supervisor $place/pid); done")
    page = router.network.fetch("http://www.example.org/", "--resolve", f"www.example.org:80:{SITE}")
    assert page.startswith("200"), page
    deadline = time.monotonic() + 10
    while router.network.resolve("www.casino.example") != SITE:
        assert time.monotonic() < deadline, "the redirect's lease ran out"
        time.sleep(0.5)


def test_procd_starts_what_dies(router: Router) -> None:
    before = router.run("cat /tmp/run/procd/gatehouse.nfq0/pid")
    router.run(f"kill -9 {before}")
    router.wait_for(f"test $(cat /tmp/run/procd/gatehouse.nfq0/pid) != {before}", 15)
    router.wait_until_protecting()
    assert "reset" in router.network.visit("tls", "www.casino.example")


def test_a_firewall_reload_leaves_our_table(router: Router) -> None:
    router.run("fw4 reload")
    assert "queue flags bypass to 20" in router.run("nft list table inet gatehouse")
    router.run("nft flush ruleset; fw4 start")  # the include makes the agent look at once
    router.wait_for("nft list table inet gatehouse | grep -q queue", 15)
    assert "reset" in router.network.visit("tls", "www.casino.example")


def test_fw4s_own_offload_is_taken_out(router: Router) -> None:
    router.run("uci set firewall.defaults.flow_offloading=1; uci commit firewall; fw4 reload")
    router.wait_for("! nft list chain inet fw4 forward | grep -q 'flow add'", 20)
    assert "reset" in router.network.visit("tls", "www.casino.example")


def test_our_flowtable_takes_flows_after_their_verdict(router: Router) -> None:
    router.run("uci add_list gatehouse.nfq.offload_device=eth0; uci add_list gatehouse.nfq.offload_device=eth1")
    router.run("uci commit gatehouse; /etc/init.d/gatehouse reload", 60)
    router.wait_until_protecting()
    assert "flow add @flows" in router.run("nft list table inet gatehouse")
    load = router.network.start(
        "lan",
        "curl",
        "-s",
        "-o",
        "/dev/null",
        "--limit-rate",
        "4M",
        f"http://{SITE}/bulk/200",
        "-H",
        "Host: www.example.org",
    )
    router.wait_for("conntrack -L 2>/dev/null | grep -q OFFLOAD", 15)
    load.kill()
    assert "reset" in router.network.visit("tls", "www.casino.example"), "a blocked flow is never offloaded"
    assert router.rows("--kind flow", "--domain www.example.org"), "and an offloaded one was recorded"


def test_records_reach_the_centre(router: Router, tmp_path: Path) -> None:
    """A broker and a receiver beyond the WAN: what was stopped here is on record there, and acknowledged."""
    receiver = [sys.executable, "-m", "agent.receiver"]
    network = router.network
    network.start("wan", *receiver, "run", "--plain", "--broker", f"{SERVER}#1883", "--data", str(tmp_path))
    network.resolve("www.casino.example")
    network.visit("tls", "www.casino.example")
    deadline = time.monotonic() + 60
    wanted = {("dns", "block"), ("flow", "block")}
    found: set[tuple[str, str]] = set()
    while found != wanted and time.monotonic() < deadline:
        time.sleep(1)
        words = [*receiver, "query", "--domain", "casino.example", "--data", str(tmp_path)]
        said = network.run("wan", *words).stdout
        rows = [json.loads(line) for line in said.splitlines()]
        found = {(row["kind"], row["verdict"]) for row in rows}
    assert found == wanted, network.log("mosquitto")[-2000:]


MEMORY = """\
for place in /tmp/run/procd/gatehouse.*; do
    awk -v name=${place##*.} '
    /^[0-9a-f]+-/ { what = $6 == "" ? "anonymous" : $6; sub(".*/", "", what) }
    /^Pss:/ { pss[what] += $2; all += $2 }
    END { for (what in pss) print name, pss[what], what; print name, all, "all" }' /proc/$(cat $place/pid)/smaps
done"""


def test_memory(router: Router) -> None:
    """PSS of everything that is ours, after some traffic: at most 64 MB of a 256 MB router."""
    for number in range(50):
        router.network.resolve(f"w{number}.example.org")
    router.network.visit("tls", "www.example.org")
    assert router.network.visit("quic1", "www.example.org") == "ok"
    rows = [line.split(maxsplit=2) for line in router.run(MEMORY).splitlines()]
    sums = {name: int(pss) for name, pss, what in rows if what == "all"}
    for name in sums:
        mapped = sorted(((int(pss), what) for each, pss, what in rows if each == name and what != "all"), reverse=True)
        note(f"PSS in kB: {name} {sums[name]}: " + ", ".join(f"{what} {pss}" for pss, what in mapped if pss >= 100))
    available = router.run("awk '/MemAvailable/ {print $2}' /proc/meminfo")
    note(f"PSS in kB: all {sum(sums.values())}; available {available}")
    assert sorted(sums) == ["agent", "dns0", "nfq0", "uplink"]
    assert sum(sums.values()) <= 64 << 10, sums
