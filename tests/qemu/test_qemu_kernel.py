"""Our programs in a router's own kernel (Linux 6.6 and later), beside nft rules with a real queue.

That nothing of this is in an older kernel, and is not missed there: `test_an_upgrade_keeps_records_and_settings`.
"""

from __future__ import annotations

import re
import time

from tests.qemu.conftest import Router
from tests.qemu.network import CLIENT, CLIENT6, SITE, SITE6

CASINO = "casino.example"
STANDS = """\
for name in dns0 nfq0; do
    place=/proc/$(cat /tmp/run/procd/gatehouse.$name/pid)
    echo "$name $(stat -c %U $place) $(sed -n 's/^CapEff:.0*//p' $place/status) $(cat $place/fdinfo/* | grep -c tcx)"
done"""
"""Whose process it is, what it may, at how many interfaces its program stands."""
BARE = """\
nft -f - <<'END'
table inet bare {
	chain first {
		type filter hook forward priority mangle - 1;
		meta mark & 0x8000000 != 0 counter
	}
}
END"""
"""A table of our own, for a rule more in theirs would be taken out."""
RULE = """
config rule 'bad_net'
	option action 'block'
	list match 'ip:198.51.100.21'
	list match 'ip:2001:db8:100::21'
"""


def queued(router: Router) -> int:
    """Packets that the rules gave to the queue."""
    (packets,) = re.findall(r"packets (\d+) .* queue", router.run("nft list chain inet gatehouse ask"))
    return int(packets)


def test_what_is_asked_again_is_answered_in_the_kernel_and_on_record(router: Router) -> None:
    network = router.network
    router.wait_until_protecting()
    assert router.run(STANDS).splitlines() == ["dns0 gatehouse  2", "nfq0 gatehouse 3000 1"]
    names = {f"again.{domain}": network.resolve(f"other.{domain}") for domain in ("example.org", CASINO)}
    assert names["again.example.org"] == SITE != names[f"again.{CASINO}"]
    before = router.counters("dns/0")
    assert before["kernel_interfaces"] == 2, "lo and the LAN's bridge"
    for _ in range(6):
        assert {name: network.resolve(name) for name in names} == names
        time.sleep(0.3)
    after = router.counters("dns/0")
    assert after["kernel"] - before["kernel"] >= 4, "of twelve; the others made them known"
    # Another policy. What was answered before it is on record as it was answered.
    router.run(f"echo again.example.org >>/etc/gatehouse/lists/gambling; cat >>/etc/config/gatehouse <<'END'{RULE}END")
    router.run("gatehouse reload", 30)
    said = [network.resolve("again.example.org")]
    while said[-1] == SITE and len(said) < 100:
        said.append(network.resolve("again.example.org"))
    for _ in range(6):
        assert network.resolve("again.example.org") == names[f"again.{CASINO}"], "never the old answer after a new one"
        time.sleep(0.3)
    assert router.counters("dns/0")["kernel"] > after["kernel"]
    # The rule names addresses too: refused at the first packet, which comes up though it carries nothing.
    router.wait_for("nft list set inet gatehouse blocked6 | grep -q 2001:db8:100::21", 10)
    for address in ("198.51.100.21", "2001:db8:100::21"):
        began = time.monotonic()
        error = network.run("lan", "bash", "-c", f"exec 3<>/dev/tcp/{address}/80").stderr
        assert "refused" in error, error
        assert time.monotonic() - began < 1
    rows = router.rows("--since 10m")
    allowed = 6 + said.count(SITE)
    asked = {name: [row for row in rows if row["kind"] == "dns" and row["name"] == name] for name in names}
    verdicts = sorted(row["verdict"] for row in asked["again.example.org"])
    assert verdicts == ["allow"] * allowed + ["block"] * 7, said
    assert [row["verdict"] for row in asked[f"again.{CASINO}"]] == ["block"] * 6
    stopped = {(row["dst"], row["rule"]) for row in rows if row["kind"] == "flow" and row["verdict"] == "block"}
    assert stopped == {("198.51.100.21", "rule:bad_net"), ("2001:db8:100::21", "rule:bad_net")}


def test_the_second_connection_needs_no_queue_and_is_on_record_like_the_first(router: Router) -> None:
    network = router.network
    router.wait_until_protecting()
    assert " == 0x0c000000 goto listed" in router.run("nft list chain inet gatehouse first")
    router.run(BARE)
    assert router.counters("nfq/0")["early_interfaces"] == 1
    for address in (SITE, SITE6):
        assert network.visit("tls", "www.example.org", address) == "ok"
        time.sleep(0.3)  # it is known when the worker looks next
        before = queued(router)
        for _ in range(3):
            assert network.visit("tls", "www.example.org", address) == "ok"
        assert queued(router) == before
        assert "reset" in network.visit("tls", "www.casino.example", address)
        assert "reset" in network.visit("tls", "www.casino.example", address)
        assert queued(router) > before
    found = router.counters("nfq/0")
    assert (found["early"], found["early_lost"], found["early_unknown"]) == (6, 0, 0)
    (packets,) = re.findall(r"counter packets (\d+)", router.run("nft list table inet bare"))
    assert int(packets) >= 8 * 3 + 4 * 2, "SYN, ACK, FIN or RST of each; of four, before they are blocked"
    rows = router.rows("--kind flow", "--domain www.example.org")
    assert len(rows) == 8
    for client, address in ((CLIENT, SITE), (CLIENT6, SITE6)):
        those = [row for row in rows if row["dst"] == address]
        assert len(those) == 4
        assert {row["client"] for row in those} == {client}
        assert len({row["sport"] for row in those}) == 4
        for what in ("mac", "name", "dport", "seen", "verdict", "reason", "rule", "group"):
            assert len({str(row.get(what)) for row in those}) == 1, what
    assert [row["verdict"] for row in router.rows("--kind flow", "--domain casino.example")] == ["block"] * 4
    for address in (SITE, SITE6):  # encrypted DNS
        assert "refused" in network.run("lan", "bash", "-c", f"exec 3<>/dev/tcp/{address}/853").stderr
    refused = {(row["dst"], row["dport"]) for row in router.rows("--kind flow") if row["rule"] == "bypass:dot"}
    assert refused == {(SITE, 853), (SITE6, 853)}
