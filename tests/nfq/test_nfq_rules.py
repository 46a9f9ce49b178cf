"""The rules, in both back-ends, in a real kernel: loaded twice, coexisting, removed; the lease; port 853.

Here the kernel has no nft queue statement, so nft's rules are loaded with `counter` in its place; the statement itself
is checked by nft's own parser.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nfq import rules
from nfq.admission import Admission
from nfq.hook import Mark
from nfq.rules import Plan
from tests.lab.lab import ROOT, Lab

pytestmark = pytest.mark.lab

OPEN = Plan(lan=("br-lan",), queue_first=20, queues=2, mask=0x0F000000, dns_port=5300, closed=False, early=True)
CLOSED = OPEN._replace(closed=True, queues=1, lan=("br-lan", "br-guest"))
IDENTITY = OPEN._replace(admission=Admission(22, ("198.51.100.22/32", "2001:db8:100::22/128")))

DRIVE = """
import sys
sys.path.insert(0, {root!r})
from nfq import rules
from nfq.admission import Admission, Admitted
from nfq.firewall import Firewall
from nfq.rules import Plan
rules.LEASE_S = {lease}
firewall = Firewall(Plan(**{plan!r}), {backend!r})
{do}
"""

LEASE_S = 3
"""Shorter than the real one, to wait less."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab.running(tmp_path_factory.mktemp("rules"), agent=False) as lab:
        yield lab


def drive(lab: Lab, do: str, plan: Plan = OPEN, backend: str = "iptables") -> str:
    import sys

    code = DRIVE.format(root=str(ROOT), plan=plan._asdict(), backend=backend, do=do, lease=LEASE_S)
    result = lab.run("router", [sys.executable, "-c", code])
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def saved(lab: Lab) -> str:
    text = lab.run("router", "iptables-save").stdout + lab.run("router", "ip6tables-save").stdout
    return "".join(line + "\n" for line in text.splitlines() if line.startswith("-A"))


@pytest.mark.parametrize("plan", [OPEN, CLOSED, IDENTITY])
def test_iptables_applied_twice_is_applied_once_and_removed_leaves_nothing(lab: Lab, plan: Plan) -> None:
    before = saved(lab)
    drive(lab, "firewall.apply()", plan)
    once = saved(lab)
    assert drive(lab, "firewall.apply(); firewall.apply(); print(firewall.is_present())", plan) == "True"
    assert saved(lab) == once
    assert ("--queue-bypass" in once) is not plan.closed
    assert ("recent" in once) is not plan.closed
    drive(lab, "firewall.remove(); firewall.remove()", plan)
    assert saved(lab) == before


@pytest.mark.parametrize(
    "damage",
    [
        "-t mangle -F GH-FIRST",
        "-D FORWARD -m mark ! --mark 0/0x3000000 -j GH-VERDICT",
        "-t nat -D PREROUTING -j GH-DNS",
        "-t mangle -D GH-FIRST 1",
        "-I GH-VERDICT 1 -j ACCEPT",
    ],
)
def test_rules_removed_by_hand_are_missed(lab: Lab, damage: str) -> None:
    look = "print(firewall.is_present())"
    harm = f"import subprocess; subprocess.run({['iptables', *damage.split()]!r}, check=True)"
    do = f"firewall.apply(); {look}; {harm}; {look}; firewall.apply(); {look}"
    assert drive(lab, do).split() == ["True", "False", "True"]
    drive(lab, "firewall.remove()")


def test_ways_to_our_chains_that_another_version_left_are_taken_away(lab: Lab) -> None:
    drive(lab, "firewall.apply()")
    before = saved(lab)
    for rule in ("mangle -I FORWARD 1 -j GH-QUEUE", "filter -A FORWARD -i br-lan -j GH-VERDICT"):
        lab.run("router", f"iptables -t {rule}", check=True)
    drive(lab, "firewall.apply()")
    assert saved(lab) == before
    lab.run("router", "iptables -t mangle -I FORWARD 1 -j GH-QUEUE", check=True)
    drive(lab, "firewall.remove()")
    assert "GH-" not in saved(lab)


def without_queue(text: str) -> str:
    return re.sub(r"counter queue (flags bypass )?to [0-9-]+", "counter", text)


@pytest.mark.parametrize("plan", [OPEN, CLOSED])
def test_nft_takes_our_table_twice_and_lets_it_go(lab: Lab, plan: Plan) -> None:
    text = rules.nft(plan)
    assert text.count(" queue ") == 1
    assert ("bypass" in text) is not plan.closed
    for _ in range(2):
        result = lab.run("router", "nft -f -", input=without_queue(text))
        assert result.returncode == 0, result.stderr
    assert "chain verdict" in lab.run("router", "nft list table inet gatehouse").stdout
    assert lab.run("router", "nft delete table inet gatehouse").returncode == 0


def test_nft_understands_the_queue_statement_itself(lab: Lab) -> None:
    # -c asks the kernel too, and this one has no nft_queue: then its refusal names the statement, not its grammar.
    result = lab.run("router", "nft -c -f -", input=rules.nft(OPEN))
    assert result.returncode == 0 or "syntax error" not in result.stderr


def test_a_kernel_without_nft_queue_gets_iptables(lab: Lab) -> None:
    has_queue = lab.run("router", "nft -c -f -", input=rules.nft(OPEN)).returncode == 0
    name = drive(lab, "firewall.apply(); print(firewall.name)", backend="auto")
    assert name == ("nft" if has_queue else "iptables")
    drive(lab, "firewall.remove()", backend="auto")


def redirected(lab: Lab) -> bool:
    """Does a question to the router's port 53 go to port 5300 (where nobody is), instead of to dnsmasq?"""
    return lab.run("pupil1", "dig +short +time=1 +tries=1 www.example.org").stdout.strip() != "198.51.100.21"


@pytest.mark.parametrize("backend", ["iptables", "nft"])
def test_the_redirect_lives_as_long_as_its_lease_is_renewed(lab: Lab, backend: str) -> None:
    if backend == "nft":
        assert lab.run("router", "nft -f -", input=without_queue(rules.nft(OPEN))).returncode == 0
        renew = "firewall._backend = firewall._choose(); firewall.renew_lease()"
        remove = "firewall._backend = firewall._choose(); firewall.remove()"
    else:
        drive(lab, "firewall.apply()")
        renew, remove = "firewall._backend = firewall._choose(); firewall.renew_lease()", "firewall.remove()"
    assert not redirected(lab)
    for _ in range(3):  # renewed in time, it outlives its own length
        drive(lab, renew, backend=backend)
        time.sleep(LEASE_S / 2)
        assert redirected(lab)
    time.sleep(LEASE_S + 0.5)
    assert not redirected(lab)
    drive(lab, remove, backend=backend)


@pytest.mark.parametrize("backend", ["iptables", "nft"])
def test_port_853_is_refused_at_once(lab: Lab, backend: str) -> None:
    if backend == "nft":
        assert lab.run("router", "nft -f -", input=without_queue(rules.nft(OPEN))).returncode == 0
    else:
        drive(lab, "firewall.apply()")
    for address in ("198.51.100.20", "2001:db8:100::20"):
        start = time.monotonic()
        result = lab.run("pupil1", ["bash", "-c", f"exec 3<>/dev/tcp/{address}/853"])
        assert result.returncode != 0
        assert time.monotonic() - start < 1
    drive(lab, "firewall._backend = firewall._choose(); firewall.remove()", backend=backend)


@pytest.mark.parametrize(
    "more",
    [
        {"devices": ("br-lan", "wan0")},
        {"nat": (rules.NatBlock("10.20.0.11", 2048, 3071), rules.NatBlock("10.20.0.12", 3072, 4095)), "wan": "wan0"},
        {"nat": (rules.NatBlock("10.20.0.11", 2048, 3071),)},
        {"admission": IDENTITY.admission},
    ],
    ids=["flowtable", "nat", "nat without wan", "identity"],
)
def test_nft_understands_our_flowtable_and_port_blocks(lab: Lab, more: dict[str, object]) -> None:
    text = without_queue(rules.nft(OPEN._replace(**more)))  # type: ignore[arg-type]
    result = lab.run("router", "nft -c -f -", input=text)
    # This kernel may have no flow_table: then it refuses that, and its refusal is not about grammar.
    assert result.returncode == 0 or ("syntax error" not in result.stderr and "devices" in more), result.stderr


def test_the_sets_take_networks_with_and_without_an_end(lab: Lab) -> None:
    nets = "Listed('192.0.2.0/25', 32), Listed('198.51.100.9/32', 32, 60), Listed('2001:db8:9::/48', 128)"
    fill = f"firewall.fill_sets([{nets}])"
    prepare = "from nfq.firewall import Listed; firewall._backend = firewall._choose()"
    drive(lab, f"{prepare}; firewall.apply(); {fill}; {fill}")
    listed = lab.run("router", "ipset list gatehouse4").stdout
    assert "192.0.2.0/25 timeout 0" in listed
    assert "198.51.100.9 timeout " in listed
    assert "2001:db8:9::/48" in lab.run("router", "ipset list gatehouse6").stdout
    drive(lab, "firewall.remove()")
    assert "gatehouse4" not in lab.run("router", "ipset list -n").stdout
    assert lab.run("router", "nft -f -", input=without_queue(rules.nft(OPEN))).returncode == 0
    drive(
        lab, f"from nfq.firewall import Listed; firewall._backend = firewall._choose(); {fill}; {fill}", backend="nft"
    )
    listed = lab.run("router", "nft list table inet gatehouse").stdout
    assert "192.0.2.0/25" in listed
    assert "2001:db8:9::/48" in listed
    assert "198.51.100.9 timeout 1m" in listed
    lab.run("router", "nft delete table inet gatehouse")


@pytest.mark.parametrize("backend", ["iptables", "nft"])
def test_only_whoever_is_admitted_passes_while_the_lease_lives(lab: Lab, backend: str) -> None:
    def gets(who: str, address: str) -> bool:
        url = f"http://{address}/"
        return lab.run(who, f"curl -s --max-time 3 -o /dev/null -w %{{http_code}} {url}").stdout == "200"

    prepare = "firewall._backend = firewall._choose()"
    if backend == "nft":
        assert lab.run("router", "nft -f -", input=without_queue(rules.nft(IDENTITY))).returncode == 0
    else:
        prepare += "; firewall.apply()"
    macs = "frozenset({bytes.fromhex('02000000000b')})"
    admit = f"firewall.admit(Admitted({macs}, frozenset({{bytes((10, 20, 0, 21))}})))"
    before = saved(lab)
    drive(lab, f"{prepare}; {admit}", IDENTITY, backend)
    assert gets("pupil2", "198.51.100.20"), "no lease yet"
    drive(lab, f"firewall._backend = firewall._choose(); firewall.renew_lease(); {admit}", IDENTITY, backend)
    assert [gets(who, "198.51.100.20") for who in ("pupil1", "pupil2", "teacher")] == [True, False, True]
    assert [gets(who, "[2001:db8:100::20]") for who in ("pupil1", "pupil2")] == [True, False]
    assert [gets("pupil2", address) for address in ("198.51.100.22", "[2001:db8:100::22]")] == [True, True]
    drive(lab, "firewall._backend = firewall._choose(); firewall.remove()", IDENTITY, backend)
    assert gets("pupil2", "198.51.100.20")
    if backend == "nft":
        assert saved(lab) == before


MARKER = {
    "iptables": "iptables -t mangle -I FORWARD 1 -i br-lan -p tcp --tcp-flags PSH PSH -j MARK --set-mark {mark:#x}",
    "nft": "nft add rule ip marker forward iifname br-lan tcp flags & psh == psh meta mark set {mark:#x}",
}
"""In place of the hook: puts its mark on a request."""
SAID = {Mark.ALLOW: "200", Mark.BLOCK: "reset", Mark.PAGE: "timeout"}


@contextmanager
def marker(lab: Lab, backend: str, chain: str, hook: str) -> Iterator[None]:
    """Our rules are in force, and there is somebody else's chain (iptables has one already)."""
    if backend == "nft":
        assert lab.run("router", "nft -f -", input=without_queue(rules.nft(OPEN))).returncode == 0
        table = f"table ip marker {{\nchain {chain} {{ {hook}; }}\n}}\n"
        assert lab.run("router", "nft -f -", input=table).returncode == 0
    else:
        drive(lab, "firewall.apply()")
    yield
    if backend == "nft":
        lab.run("router", "nft delete table ip marker", check=True)
    drive(lab, "firewall._backend = firewall._choose(); firewall.remove()", backend=backend)


def marks(lab: Lab, port: int) -> list[int]:
    """Conntrack's, of the connections from this port."""
    listed = lab.run("router", f"conntrack -L -p tcp --orig-port-src {port}").stdout
    return [int(found) for found in re.findall(r"\bmark=(\d+)", listed)]


@pytest.mark.parametrize("backend", ["iptables", "nft"])
def test_the_mark_that_comes_back_is_kept_with_the_flow_and_acted_upon(lab: Lab, backend: str) -> None:
    def ask(port: int) -> str:
        url = "http://198.51.100.20/"
        result = lab.run("pupil1", f"curl -s -o /dev/null -w %{{http_code}} --max-time 1 --local-port {port} {url}")
        return {56: "reset", 28: "timeout"}.get(result.returncode, result.stdout)

    lowest = OPEN.mask & -OPEN.mask
    with marker(lab, backend, "forward", "type filter hook forward priority mangle - 1"):
        for turn, (mark, said) in enumerate(SAID.items()):
            put = MARKER[backend].format(mark=mark * lowest)
            lab.run("router", put, check=True)
            port = 30_000 + turn + (10 if backend == "nft" else 0)
            assert ask(port) == said, mark.name
            assert marks(lab, port) == [mark * lowest], mark.name
            if backend == "nft":
                lab.run("router", "nft flush chain ip marker forward", check=True)
            else:
                lab.run("router", "iptables -t mangle -D FORWARD 1", check=True)


EARLY = {
    "iptables": "iptables -t mangle -I PREROUTING 1 -i br-lan -p tcp --tcp-flags PSH PSH -j MARK --set-mark {mark:#x}",
    "nft": "nft add rule ip marker early iifname br-lan tcp flags & psh == psh meta mark set {mark:#x}",
}
"""In place of the program at the LAN: a packet has its mark before any rule of ours sees it."""


@pytest.mark.parametrize("backend", ["iptables", "nft"])
def test_what_comes_with_a_verdict_is_not_queued_and_its_mark_is_kept(lab: Lab, backend: str) -> None:
    def offered() -> int:
        if backend == "nft":
            listed = lab.run("router", "nft list chain inet gatehouse ask").stdout
        else:
            listed = lab.run("router", "iptables-save -c -t mangle").stdout
        pattern = r"counter packets (\d+)" if backend == "nft" else r"\[(\d+):\d+\] -A GH-ASK [^\n]*NFQUEUE"
        return sum(int(found) for found in re.findall(pattern, listed))

    allow = int(Mark.ALLOW) * (OPEN.mask & -OPEN.mask)
    with marker(lab, backend, "early", "type filter hook prerouting priority raw"):
        for turn, mark in enumerate((0, allow, allow | 0x00FF0001)):
            before = offered()
            lab.run("router", EARLY[backend].format(mark=mark), check=True)
            port = 31_000 + turn + (10 if backend == "nft" else 0)
            words = f"curl -s -o /dev/null -w %{{http_code}} --max-time 2 --local-port {port} http://198.51.100.20/"
            assert lab.run("pupil1", words).stdout == "200"
            # With nobody on the queue the flow stays undecided, and each of its packets with data is offered.
            assert (offered() == before) is (mark != 0)
            assert marks(lab, port) == [mark & OPEN.mask]
            if backend == "nft":
                lab.run("router", "nft flush chain ip marker early", check=True)
            else:
                lab.run("router", "iptables -t mangle -D PREROUTING 1", check=True)
