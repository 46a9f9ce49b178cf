"""The kernel's end of the queues, the rules as they are saved, others' flow offload, and the listed networks."""

import ipaddress

from agent.listed import networks
from agent.queues import UNBOUND_MS, Queues
from nfq.kernel import find_flow_rules, find_flowtables, read_iptables, read_nft, read_queues
from policy.compile import compile_in_memory
from policy.config import NfqConfig, load
from policy.image import Image
from policy.override import Override
from policy.rules import load_policy

ALIVE = {"nfq/0": 7}


def line(number: int = 20, port_id: int = 99, waiting: int = 0, dropped: int = 0, user: int = 0, last: int = 0) -> str:
    return f"{number:5} {port_id:6} {waiting:5} 2  3800 {dropped:5} {user:5} {last:8}  1\n"


def test_the_kernels_table_is_read_and_what_is_not_its_own_is_not() -> None:
    state = read_queues(line(dropped=3, last=9) + "rubbish\n\n1 2 x\n")[20]
    assert (state.port_id, state.dropped, state.last_id) == (99, 3, 9)


def test_drops_are_on_record_as_often_as_the_kernel_counted_them() -> None:
    queues = Queues(NfqConfig(), closed=True)
    assert queues.look(line(), 0, ALIVE, 1000).records == []
    (gap,) = queues.look(line(dropped=90, user=6, last=4), 100, ALIVE, 3000).records
    assert (gap.lost, gap.from_ms, gap.to_ms, gap.source) == (96, 1000, 3000, "nfq/0")
    assert queues.look(line(dropped=90, user=6, last=9), 105, ALIVE, 5000).records == []
    assert queues.describe()["dropped"] == 96


def test_what_passed_a_full_queue_is_what_the_rules_offered_and_nobody_saw() -> None:
    queues = Queues(NfqConfig(), closed=False)
    queues.look(line(), 0, ALIVE, 1000)
    (gap,) = queues.look(line(last=4), 100, ALIVE, 3000).records
    assert (gap.lost, "passed unseen" in gap.why) == (96, True)
    assert queues.look(line(last=14), 105, ALIVE, 5000).records == []  # the rules were read before five more came
    assert queues.look(line(last=14), 110, ALIVE, 7000).records == []
    assert queues.look(line(last=15), 112, ALIVE, 9000).records[0].lost == 1
    assert queues.look(line(port_id=5, last=1), 500, ALIVE, 9000).records == []  # another process: counted anew
    assert queues.look(line(port_id=5, last=3), -1, ALIVE, 9500).records == []
    assert queues.look(line(port_id=5, last=4), 510, ALIVE, 9900).records == []
    assert queues.look(line(port_id=5, last=4), 520, ALIVE, 9990).records[0].lost in range(6, 11)


def test_a_living_worker_without_its_queue_is_started_again_and_a_dead_one_is_not() -> None:
    queues = Queues(NfqConfig(), closed=False)
    assert queues.look("", 0, {}, 0).lost == []
    assert queues.look("", 0, {}, UNBOUND_MS * 2).lost == []
    assert queues.look("", 0, ALIVE, 20_000).lost == []
    assert queues.look("", 0, ALIVE, 20_000 + UNBOUND_MS).lost == ["nfq/0"]
    assert queues.look("", 0, ALIVE, 21_000 + UNBOUND_MS).lost == []  # once


SAVED = """\
*mangle
:FORWARD ACCEPT [12:3456]
:GH-FIRST - [0:0]
[5:300] -A FORWARD -j GH-QUEUE
[3:180] -A GH-FIRST -p udp -j NFQUEUE --queue-num 20 --queue-bypass
[4:180] -A GH-FIRST -p tcp -j NFQUEUE --queue-num 20 --queue-bypass
[9:180] -A FORWARD -p tcp -j NFQUEUE --queue-num 7
COMMIT
"""


def test_saved_rules_are_compared_without_their_counters() -> None:
    saved = read_iptables([SAVED, SAVED])
    assert saved.offered == 14
    assert saved.ours == read_iptables([SAVED.replace("[3:180]", "[99:0]")] * 2).ours
    assert saved.ours != read_iptables([SAVED, SAVED.replace("-A FORWARD -j GH-QUEUE", "")]).ours
    assert not saved.offload
    assert read_iptables(["[0:0] -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j FLOWOFFLOAD\n"]).offload
    table = "table inet gatehouse {\n chain first {\n  udp counter packets 5 bytes 9 queue flags bypass to 20\n }\n}\n"
    assert read_nft(table).offered == 5
    assert read_nft(table).ours == read_nft(table.replace("packets 5 bytes 9", "packets 7 bytes 11")).ours


FLOWTABLES = """\
table inet fw4 {
	flowtable ft {
		hook ingress priority filter
		devices = { br-lan, wan }
		flags offload
	}
}
table inet gatehouse {
	flowtable flows {
		hook ingress priority filter
	}
}
"""
FW4 = """\
table inet fw4 { # handle 3
	chain forward { # handle 2
		type filter hook forward priority filter; policy drop;
		meta l4proto { tcp, udp } flow add @ft # handle 118
		ct state vmap { established : accept, related : accept } # handle 119
	}
	chain other {
		meta l4proto { tcp, udp } flow offload @ft # handle 12
		meta l4proto { tcp, udp } flow add @ftother # handle 13
	}
}
"""


def test_other_peoples_flow_offload_is_found_and_our_own_is_not_taken_for_it() -> None:
    assert find_flowtables(FLOWTABLES) == [("inet", "fw4", "ft")]
    assert find_flow_rules(FW4, "ft") == [("forward", 118), ("other", 12)]
    assert find_flowtables("") == find_flow_rules("", "ft") == []


def test_listed_networks_are_those_of_lists_rules_and_exceptions() -> None:
    lists = {"bad": "192.0.2.0/25\n198.51.100.7\n2001:db8:1::/48\nsite.example\n255.255.255.255\n"}
    image = Image(compile_in_memory(lists, categories={})[0])
    text = "config rule 'net'\n\toption action 'block'\n\tlist match 'ip:203.0.113.0/28'\n"
    text += "config rule 'ok'\n\toption action 'allow'\n\tlist match 'ip:203.0.113.16/28'\n"
    overrides = [
        Override(1, "ip:192.0.2.200", "", "block", 1600, "x"),
        Override(2, "ip:192.0.2.201", "", "allow", 1600, "x"),
    ]
    found = networks([image], load_policy(load(text).policy), overrides, 1000.0)
    assert [(net.text, net.timeout_s) for net in found] == [
        ("192.0.2.200/32", 600),
        ("203.0.113.0/28", 0),
        ("192.0.2.0/25", 0),
        ("198.51.100.7/32", 0),
        ("255.255.255.255/32", 0),
        ("2001:db8:1::/48", 0),
    ]
    for odd in ("9.0.0.0/8\n", "10.0.0.1\n10.0.0.2\n10.0.0.3\n", ""):
        image = Image(compile_in_memory({"bad": odd or "a.example\n"}, categories={})[0])
        nets = [ipaddress.ip_network(net.text) for net in networks([image], load_policy(()))]
        assert sum(net.num_addresses for net in nets) == {"9": 1 << 24, "1": 3, "": 0}[odd[:1]]
        assert all(net.prefixlen for net in nets)
