"""The doctor's parts that need no venue: its packets as others read them, certificates, findings, absent parts."""

import base64
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from hw import doctor
from hw.doctor import box, kernel, lan, outside, wires
from hw.doctor.bedside import Bedside
from hw.doctor.certificate import Validity, read_validity
from hw.doctor.finding import Finding, absent, as_row, detail_of, faults, from_row, lines, result_of
from hw.doctor.lan import LanClient, trials
from nfq import rules
from nfq.admission import ADMIT, REFUSE, Admission
from nfq.aes import find_aes
from nfq.hook import Hook, Now
from nfq.kernel import count_iptables, count_nft
from nfq.mark import Mark
from nfq.packet import ACK, RST, UDP, parse
from nfq.quic import Budget, Initials
from nfq.tls import Hello
from policy import canary
from policy.config import load
from policy.errors import ConfigError
from policy.event import Flow
from policy.verdict import Reason, Verdict
from tests.hw.trees import FILOGIC, ROCKCHIP, lay, ubi, zone
from tests.policy.build import engine_of

ROOT = Path(__file__).resolve().parents[2]
NOW_S = 1_795_650_000.0


def bed(root: Path, text: str = "", now_s: float = NOW_S) -> Bedside:
    config = f"config gatehouse 'main'\n\toption enabled '1'\n\toption run_dir '{root}/run'\n" + text
    return Bedside(load(config), root=str(root), now_s=now_s)


# --- packets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_what_the_client_sends_is_blocked_by_the_hook_as_it_runs(version: int) -> None:
    client = LanClient("br-lan", version)
    put: list[Flow] = []
    hook = Hook(engine_of({"ads": "ads.example\n"}), put.append, aes=find_aes, has_pages=True)
    now = Now(1.0, 1000, NOW_S)
    marks = {}
    for trial in trials(client, "t1", has_dns=False, has_queue=True, has_page=True):
        packet = parse(trial.packet)
        assert (packet.src, packet.dst) == (client.address, client.server)
        if packet.payload:
            marks[trial.name.rstrip("6")] = hook.receive(trial.packet, lan.MAC, now)
    assert marks == {"sni": Mark.BLOCK, "http": Mark.PAGE, "quic": Mark.BLOCK}
    assert {(flow.name, flow.rule, flow.verdict) for flow in put} == {
        ("t1.canary.gatehouse.invalid", "self-test", Verdict.BLOCK)
    }


def test_no_list_no_rule_and_no_group_opens_the_canary() -> None:
    rule = "config rule 'r'\n\toption action 'allow'\n\tlist match 'domain:gatehouse.invalid'\n"
    engine = engine_of({"ads": "ads.example\n"}, config=rule + "\tlist match 'domain:canary.gatehouse.invalid'\n")
    for name in (canary.NAME, b"a.b." + canary.NAME):
        decision = engine.decide(name, 0, NOW_S)
        assert (decision.verdict, decision.reason, decision.rule) == (Verdict.BLOCK, Reason.RULE, canary.RULE)
    assert engine.decide(b"gatehouse.invalid", 0, NOW_S).verdict == Verdict.ALLOW


@given(st.binary(max_size=200), st.binary(max_size=64))
def test_our_gcm_is_gcm(plain: bytes, head: bytes) -> None:
    aes = find_aes()
    assert aes is not None
    key, nonce = bytes(range(16)), bytes(range(12))
    assert wires.seal(aes, key, nonce, head, plain) == AESGCM(key).encrypt(nonce, plain, head)


def test_our_initial_is_one() -> None:
    aes = find_aes()
    assert aes is not None
    datagram = wires.quic_initial(aes, b"a.example", bytes(8), bytes(32))
    assert len(datagram) == 1200
    found = Initials(aes).receive(datagram, b"\x0a\0\0\1", Budget(10), 1.0)
    assert isinstance(found, Hello)
    assert found.name == b"a.example"


@given(st.binary(max_size=300), st.sampled_from((canary.CLIENT4, canary.CLIENT6)), st.booleans())
def test_any_frame_is_an_answer_or_none(data: bytes, client: bytes, outgoing: bool) -> None:
    for kind in (wires.ETH4, wires.ETH6):
        wires.read_answer(bytes(12) + kind + data, client, outgoing=outgoing)
    wires.read_answer(data, client, outgoing=outgoing)
    wires.read_dns(data)


@pytest.mark.parametrize("version", [4, 6])
def test_answers_of_each_kind_are_read_whole_and_cut_anywhere(version: int) -> None:
    me, server = (canary.CLIENT4, canary.SERVER4) if version == 4 else (canary.CLIENT6, canary.SERVER6)
    sent = wires.udp(me, server, 1234, 443, b"x")
    icmp = bytes((3 if version == 4 else 1, 3 if version == 4 else 4)) + bytes(6) + sent
    packets = {
        "reset": wires.tcp(server, me, 443, 1234, RST | ACK, 9),
        "answer": wires.udp(server, me, 53, 1234, b"hello"),
        "unreachable": wires.ip_packet(server, me, wires.ICMP if version == 4 else wires.ICMP6, icmp),
    }
    found = {}
    for name, packet in packets.items():
        whole = wires.frame(bytes(6), bytes(6), packet)
        answer = wires.read_answer(whole, me)
        assert answer is not None
        assert answer.port == 1234
        found[name] = answer
        for end in range(len(whole)):
            wires.read_answer(whole[:end], me)
    assert found["reset"].flags & RST
    assert found["answer"].payload == b"hello"
    assert found["unreachable"].is_unreachable
    assert found["unreachable"].protocol == UDP
    mine = wires.read_answer(wires.frame(bytes(6), bytes(6), sent), me, outgoing=True)
    assert mine is not None
    assert (mine.port, mine.payload) == (1234, b"x")


# --- certificates ---------------------------------------------------------------------------------------------------


def certificate(begin: datetime.datetime, end: datetime.datetime) -> bytes:
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a/b")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(end)
    return builder.sign(key, None).public_bytes(serialization.Encoding.PEM)


UTC = datetime.UTC
BEGIN = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize("year", [2049, 2051])
def test_a_certificates_times(year: int) -> None:
    """The second one is a GeneralizedTime: RFC 5280 4.1.2.5."""
    end = datetime.datetime(year, 12, 31, tzinfo=UTC)
    pem = certificate(BEGIN, end)
    assert read_validity(pem) == Validity(int(BEGIN.timestamp()), int(end.timestamp()))
    assert read_validity(b"some words before it\n" + pem + pem).begins_s == int(BEGIN.timestamp())


@given(st.data())
def test_damaged_certificates_raise_their_own_error_only(data: st.DataObject) -> None:
    der = bytearray(DER)
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    cut = der[: data.draw(st.integers(0, len(der)))] if data.draw(st.booleans()) else der
    body = base64.b64encode(bytes(cut))
    try:
        read_validity(b"-----BEGIN CERTIFICATE-----\n" + body + b"\n-----END CERTIFICATE-----\n")
    except ConfigError:
        pass


DER = x509.load_pem_x509_certificate(certificate(BEGIN, BEGIN + datetime.timedelta(days=1))).public_bytes(
    serialization.Encoding.DER
)


@given(st.binary(max_size=300))
def test_any_octets_are_a_certificate_or_an_error(data: bytes) -> None:
    for octets in (data, b"-----BEGIN CERTIFICATE-----" + data + b"-----END CERTIFICATE-----"):
        with pytest.raises(ConfigError):
            read_validity(octets)


# --- the checks, on trees -------------------------------------------------------------------------------------------


def one(check: Callable[[Bedside], object], at: Bedside) -> Finding:
    (finding,) = check(at)  # type: ignore[misc]
    assert isinstance(finding, Finding)
    return finding


def test_a_module_that_is_missing_is_named_with_its_package(tmp_path: Path) -> None:
    lay(tmp_path, {"proc/sys/net/netfilter/nf_conntrack_max": "65536\n"})
    found = one(kernel.modules, bed(tmp_path))
    assert not found.ok
    assert "nfnetlink_queue" in found.why
    assert found.mend == "opkg install kmod-nfnetlink-queue"


def test_a_queue_of_somebody_else_is_not_ours(tmp_path: Path) -> None:
    queues = tmp_path / "proc/net/netfilter/nfnetlink_queue"
    line = "{:5} 1234 {} 2 65531 0 0 99 1\n"
    lay(tmp_path, {"proc/net/netfilter/nfnetlink_queue": line.format(7, 0)})
    assert "queue 20 is bound by nobody" in one(kernel.queues, bed(tmp_path)).why
    queues.write_text(line.format(20, 3))
    assert one(kernel.queues, bed(tmp_path)).ok
    queues.write_text(line.format(20, 4000))
    assert "4000 packets wait" in one(kernel.queues, bed(tmp_path)).why


def test_the_boxes_parts_on_two_boards(tmp_path: Path) -> None:
    router, board = lay(tmp_path / "router", FILOGIC), lay(tmp_path / "board", ROCKCHIP)
    checks = (box.battery, box.flash, box.heat, box.light, box.watchdog)
    words = {root.name: [one(check, bed(root)).word for check in checks] for root in (router, board)}
    assert words == {"router": ["absent", "ok", "ok", "ok", "ok"], "board": ["ok", "ok", "ok", "ok", "absent"]}
    lay(router, {**ubi(max_ec="99000"), **zone(0, "cpu-thermal", "118000\n")})
    lay(board, {"sys/class/rtc/rtc0/since_epoch": "1000000\n"})
    assert [one(check, bed(router)).ok for check in (box.flash, box.heat)] == [False, False]
    assert "off the system clock" in one(box.battery, bed(board)).why
    nameless = bed(router, "config hardware 'hardware'\n\toption led 'no:such'\n")
    assert "no LED 'no:such'" in one(box.light, nameless).why


def test_a_clock_before_this_release(tmp_path: Path) -> None:
    assert "1970-01-01" in one(box.clock, bed(tmp_path, now_s=7200.0)).why
    assert one(box.clock, bed(tmp_path)).ok


def test_a_ring_in_memory_is_no_ring(tmp_path: Path) -> None:
    where = tmp_path / "srv/ring"
    where.mkdir(parents=True)
    text = f"config ring 'ring'\n\toption directory '{where}'\n"
    lay(tmp_path, {"proc/self/mounts": f"/dev/root / ext4 rw 0 0\ntmpfs {tmp_path}/srv tmpfs rw 0 0\n"})
    assert "memory (tmpfs)" in one(box.medium, bed(tmp_path, text)).why
    lay(tmp_path, {"proc/self/mounts": f"tmpfs {tmp_path}/sr tmpfs rw 0 0\n/dev/ubi0_1 / ubifs rw 0 0\n"})
    assert "ubifs" in one(box.medium, bed(tmp_path, text)).why


def test_a_ring_that_is_not_there_comes_with_its_mend(tmp_path: Path) -> None:
    text = f"config ring 'ring'\n\toption directory '{tmp_path}/none'\n"
    found = one(box.storage, bed(tmp_path, text))
    assert not found.ok
    assert found.mend.startswith(f"mkdir -p {tmp_path}/none")


def test_the_way_out(tmp_path: Path) -> None:
    head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
    default = "wan\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
    lay(tmp_path, {"proc/net/route": head})
    assert not one(outside.route, bed(tmp_path)).ok
    lay(tmp_path, {"proc/net/route": head + default})
    assert one(outside.route, bed(tmp_path)).why == "the way out is wan"
    zeros = "0" * 32
    six = f"{zeros} 00 {zeros} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00450003      wan\n"
    lay(tmp_path, {"proc/net/route": head, "proc/net/ipv6_route": six})
    assert one(outside.route, bed(tmp_path)).ok
    lay(tmp_path, {"proc/net/ipv6_route": six.replace("wan", " lo")})
    assert not one(outside.route, bed(tmp_path)).ok


@pytest.mark.parametrize(
    ("begin", "end", "word"),
    [(-2, 90, ""), (-2, 3, "ends on"), (-9, -1, "expired on"), (1, 90, "not valid yet")],
)
def test_certificates_are_judged_by_this_routers_clock(tmp_path: Path, begin: int, end: int, word: str) -> None:
    now = datetime.datetime.fromtimestamp(NOW_S, UTC)
    days = datetime.timedelta(days=1)
    (tmp_path / "device.pem").write_bytes(certificate(now + begin * days, now + end * days))
    (tmp_path / "ca.pem").write_bytes(certificate(now - days, now + 900 * days))
    (tmp_path / "device.key").write_text("")
    text = "\toption venue '11010500000001'\n\toption device '100000001020000000001'\n"
    text += "config uplink 'uplink'\n\toption enabled '1'\n\tlist server 'mqtt.example#8883'\n"
    text += "".join(
        f"\toption {name} '{tmp_path}/{file}'\n"
        for name, file in (("certificate", "device.pem"), ("ca", "ca.pem"), ("key", "device.key"))
    )
    found = one(outside.certificates, bed(tmp_path, text))
    assert found.ok == (not word)
    assert word in found.why


# --- findings -------------------------------------------------------------------------------------------------------

SAMPLE = [Finding("rules", True, "fine"), absent("rtc", "none"), Finding("clock", False, "1970", "ntp")]


def test_a_result_for_the_log_and_lines_for_people() -> None:
    assert faults(SAMPLE) == SAMPLE[2:]
    assert result_of(SAMPLE) == "not ok: clock"
    assert result_of(SAMPLE[:2]) == "ok"
    assert detail_of(SAMPLE) == "clock: 1970"
    assert detail_of(SAMPLE[:2]) == "1 checks passed, 1 parts absent"
    assert [line.split()[0] for line in lines(SAMPLE)] == ["ok", "absent", "not", "->"]


def test_rows_come_back_as_findings_and_nonsense_does_not() -> None:
    assert [from_row(json.loads(json.dumps(as_row(finding)))) for finding in SAMPLE] == SAMPLE
    for row in (None, [], {}, {**as_row(SAMPLE[0]), "ok": 1}, {**as_row(SAMPLE[0]), "why": None}):
        assert from_row(row) is None


def test_a_router_that_is_switched_off_is_told_what_can_be_told(tmp_path: Path) -> None:
    found = {finding.name: finding for finding in doctor.run(load(""), root=str(lay(tmp_path, FILOGIC)), now_s=NOW_S)}
    assert found["agent"].word == "absent"
    assert found["flash"].ok
    assert "sni" not in found


def test_the_command_says_what_is_wrong_where_nothing_runs(tmp_path: Path) -> None:
    """On a machine without Gatehouse: every line is there, nothing is raised, and the exit status says no."""
    path = tmp_path / "gatehouse"
    path.write_text(
        f"config gatehouse 'main'\n\toption enabled '1'\n\toption run_dir '{tmp_path}'\n\toption firewall 'none'\n"
        f"\toption state_dir '{tmp_path}'\nconfig ring 'ring'\n\toption directory '{tmp_path}'\n"
        f"config dns 'dns'\n\toption enabled '0'\nconfig nfq 'nfq'\n\toption enabled '0'\n"
    )
    command = [sys.executable, "-I", str(ROOT), "doctor", "--json", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    assert not said["recorded"]
    found = {finding["name"]: finding for finding in said["findings"]}
    assert "No such file" in found["agent"]["why"]
    assert found["storage"]["ok"]
    assert datetime.datetime.fromisoformat(said["at"]).timestamp() > time.time() - 60


def test_rules_are_counted_alike_whether_they_are_to_be_set_or_are_there() -> None:
    plan = rules.plan_of(load(""))
    wanted = count_iptables(rules.iptables(plan, 4))
    identity = {ADMIT, REFUSE}
    asking = count_iptables(rules.iptables(plan._replace(admission=Admission(22, ())), 4))
    assert asking.keys() - wanted.keys() <= identity
    assert (wanted["GH-FIRST"], wanted["GH-SYN"], wanted["GH-ASK"], wanted["GH-VERDICT"]) == (5, 0, 3, 2)
    listed = count_nft(rules.nft(plan))
    assert listed["dns"] == 2
    assert (listed["verdict"], listed["dot"]) == (3, 3)
    chains = "dns first stopped dot listed ask verdict save stop blocked page injected"
    assert set(listed) == set(chains.split())


def test_a_lan_that_is_no_bridge_cannot_be_tried() -> None:
    with pytest.raises(lan.CannotTryError, match="no bridge"), LanClient("no-such-lan0", 4):
        pass


def test_the_fuzz_target_runs() -> None:
    """For two seconds; longer by hand: `python -m tests.fuzz.doctor`."""
    command = [sys.executable, "-m", "tests.fuzz.doctor", "--seconds", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
