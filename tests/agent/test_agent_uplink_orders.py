"""Orders from the centre: signed, numbered, answered, on record; whatever is not an order of ours is refused."""

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.clock import SystemClock
from agent.receiver.orders import Operator, Secret, make_key
from agent.uplink.broker import Login
from agent.uplink.order import Order, write_order
from agent.uplink.orders import CHANGEABLE, Orders
from agent.uplink.signed import seal
from agent.uplink.wire import Topics, unpack_map
from policy.config import load
from policy.errors import ConfigError
from tests.lab.broker import Authority, Centre, Device, Mosquitto, running, wait_until
from tests.lab.outage import fill

TOPICS = Topics("11010500000001", "100000001020000000001")
CONFIG = """
config gatehouse 'main'
\toption run_dir '{0}/run'
\toption state_dir '{0}/state'
\toption venue '11010500000001'
\toption device '100000001020000000001'
config uplink 'uplink'
\tlist order_key '{1}'
"""


class Bench(NamedTuple):
    """Orders without processes around them."""

    orders: Orders
    notes: list[tuple[str, str]]
    secret: Secret
    directory: Path
    reboots: list[int]

    def again(self) -> "Bench":
        """After a restart."""
        return bench(self.directory, self.secret)

    def give(self, payload: bytes) -> list[dict[str, Any]]:
        found = []
        for reply in self.orders.receive(payload):
            found.append(unpack_map(reply.payload))
            if reply.then is not None:
                reply.then()
        return found

    def order(self, number: int, kind: str = "reboot", **more: Any) -> bytes:
        order = Order(*TOPICS, number, kind, **more)
        return write_order(order, self.secret.sign, self.secret.number)


def bench(directory: Path, secret: Secret | None = None) -> Bench:
    (directory / "state" / "keys").mkdir(parents=True, exist_ok=True)
    if secret is None:
        fingerprint = make_key(str(directory / "secret"))
        secret = Secret(str(directory / "secret"))
        (directory / "state" / "keys" / fingerprint).write_bytes((directory / "secret.pub").read_bytes())
    text = CONFIG.format(directory, secret.number.hex())
    (directory / "gatehouse.conf").write_text(text)
    notes: list[tuple[str, str]] = []
    reboots: list[int] = []

    def note(act: str, what: str, result: str, *more: str, **said: str) -> None:
        notes.append((what, result))

    orders = Orders(
        load(text), str(directory / "gatehouse.conf"), SystemClock(trusted=True), note, reboot=lambda: reboots.append(1)
    )
    return Bench(orders, notes, secret, directory, reboots)


def test_an_order_is_obeyed_once_whatever_happens_to_its_message(tmp_path: Path) -> None:
    one = bench(tmp_path)
    payload = one.order(1)
    (reply,) = one.give(payload)
    assert (reply["result"], reply["number"], reply["last"]) == ("ok", 1, True)
    assert one.reboots == [1]
    assert [result for _, result in one.notes] == ["taken", "ok: reboots now"]
    (reply,) = one.give(payload)
    assert reply["result"] == "refused"
    later = one.again()
    (reply,) = later.give(payload)
    assert "given before: 1 was the last" in reply["text"]
    assert later.reboots == []
    assert later.notes == [("order 1", "refused: order 1: given before: 1 was the last from this key")]
    assert later.give(later.order(5))[0]["result"] == "ok"
    assert later.give(later.order(4))[0]["result"] == "refused", "an older one that was held back on the way"


def test_altered_foreign_and_late_orders_are_refused_and_on_record(tmp_path: Path) -> None:
    one = bench(tmp_path)
    payload = one.order(1)
    rng = random.Random(1)
    for _ in range(30):
        altered = bytearray(payload)
        place = rng.randrange(len(altered))
        altered[place] ^= 1 << rng.randrange(8)
        assert all(reply["result"] == "refused" for reply in one.give(bytes(altered)))
    assert one.reboots == []
    two = bench(tmp_path, one.secret)
    other = Order("11010500000001", "100000001020000000002", 1, "reboot")
    (reply,) = two.give(write_order(other, two.secret.sign, two.secret.number))
    assert "for 11010500000001/100000001020000000002, not for us" in reply["text"]
    make_key(str(tmp_path / "foreign"))
    foreign = Secret(str(tmp_path / "foreign"))
    (reply,) = two.give(write_order(Order(*TOPICS, 1, "reboot"), foreign.sign, foreign.number))
    assert "not trusted here" in reply["text"]
    (reply,) = two.give(write_order(Order(*TOPICS, 1, "reboot"), foreign.sign, two.secret.number))
    assert "does not hold" in reply["text"]
    (reply,) = two.give(two.order(2, expires_s=int(time.time()) - 60))
    assert "expired" in reply["text"]
    (reply,) = two.give(two.order(3, "shell", arguments={"run": "id"}))
    assert "nothing that is obeyed here" in reply["text"]
    heartbeat = seal(b"heartbeat", b"", two.secret.sign, two.secret.number)
    assert two.give(heartbeat)[0]["result"] == "refused"
    assert two.reboots == []
    assert len(two.notes) == 6
    assert all(result.startswith("refused: ") for _, result in two.notes)


@pytest.mark.parametrize(
    "arguments",
    [
        {b"octets": 1},
        {"inner": {b"octets": b"\xff"}},
        {"set": {"dns.rate": 1 << 63}},
        {"domain": ["x"] * 100, "warrant": "w", "by": "b", "since_s": float("inf")},
        {"name": "\ud800", "file": "a", "offset": 0, "data": b""},
    ],
)
@pytest.mark.parametrize("kind", ["status", "policy", "config", "query", "self-test"])
def test_an_order_that_is_signed_and_makes_no_sense_stops_nothing(
    tmp_path: Path, kind: str, arguments: dict[Any, Any]
) -> None:
    one = bench(tmp_path)
    (reply,) = one.give(one.order(1, kind, arguments=arguments))
    assert reply["result"] == "failed", "there is no agent, and the arguments are none"
    assert [result.partition(":")[0] for _, result in one.notes] == ["taken", "failed"]


def test_rubbish_does_not_flood_the_log(tmp_path: Path) -> None:
    one = bench(tmp_path)
    for number in range(1000):
        one.give(b"rubbish %d" % number)
    assert len(one.notes) == 20
    assert one.orders.counters["orders_refused"] == 1000


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_signed_and_sent_nothing_is_raised(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    one = _SHARED.setdefault("bench", bench(tmp_path_factory.mktemp("orders")) if "bench" not in _SHARED else None)
    assert one is not None
    inner = st.recursive(
        st.none() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text(max_size=20) | st.binary(max_size=20),
        lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=8), some, max_size=3),
        max_leaves=8,
    )
    fields = data.draw(
        st.fixed_dictionaries(
            {
                "v": st.just(1),
                "k": st.just("order"),
                "venue": st.just("11010500000001"),
                "device": st.just("100000001020000000001"),
            },
            optional={
                "number": st.integers(0, 1 << 62) | inner,
                "kind": st.sampled_from(["config", "query", "policy", "status", "x"]) | inner,
                "arguments": st.dictionaries(st.sampled_from(["set", "warrant", "by", "name", "file", "data"]), inner)
                | inner,
                "by": inner,
                "expires_s": inner,
            },
        )
    )
    one.give(seal(b"order", msgpack.packb(fields), one.secret.sign, one.secret.number))


_SHARED: dict[str, Bench | None] = {}


def test_a_state_that_cannot_be_read_stops_orders_not_the_uplink(tmp_path: Path) -> None:
    one = bench(tmp_path)
    one.give(one.order(1))
    (tmp_path / "state" / "orders.json").write_text("{")
    (reply,) = one.again().give(one.order(1))
    assert "orders given before could be given again" in reply["text"]


def test_nothing_that_could_run_code_or_lead_elsewhere_can_be_changed() -> None:
    forbidden = (
        "server",
        "ca",
        "key",
        "dir",
        "path",
        "upstream",
        "url",
        "file",
        "enabled",
        "allow",
        "order",
        "firewall",
    )
    assert not [name for name in CHANGEABLE if any(word in name for word in forbidden)]


class Venue(NamedTuple):
    """Everything running, on real mosquitto with TLS."""

    device: Device
    centre: Centre
    operator: Operator

    def order(self, kind: str, arguments: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        return [dict(reply) for reply in self.operator.order(TOPICS, kind, arguments or {}, "anna", wait_s=20)]

    def maintenance(self) -> list[dict[str, object]]:
        time.sleep(1.2)  # critical records after the first go to flash once a second, and a query reads what is there
        return self.device.ask("query", "--kind", "maintenance", "--since", "1h")

    def log(self) -> list[tuple[str, str]]:
        rows = self.maintenance()
        return [(str(row["object"]), str(row["result"])) for row in rows if row["action"] == "order"]


@pytest.fixture(scope="module")
def venue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Venue]:
    directory = tmp_path_factory.mktemp("venue")
    authority = Authority(directory / "authority")
    fingerprint = make_key(str(directory / "secret"))
    mosquitto = Mosquitto(directory / "mosquitto", authority)
    centre = Centre(directory / "centre", mosquitto.centre_port, authority)
    more = f"\tlist order_key '{fingerprint}'\n"
    device = Device(directory / "device", mosquitto.port, authority=authority, more=more)
    device.trust(directory / "secret.pub", fingerprint)
    fill(directory / "device" / "ring", 5000)
    pem, key = authority.issue("operator", "operator")
    login = Login("operator", True, str(authority.path), str(pem), str(key))
    with running(mosquitto, centre, device):
        wait_until(lambda: "connected" in device.log(), 20, device.log)
        with Operator(("localhost", mosquitto.centre_port), login, Secret(str(directory / "secret"))) as operator:
            yield Venue(device, centre, operator)


def test_an_answer_that_the_router_has_not_signed_is_none(venue: Venue) -> None:
    """A broker can make up answers; whoever knows the router's key takes none of those."""
    wait_until(lambda: "ring" in venue.device.status(), 20)  # the test before may have started its agent anew
    key = bytes.fromhex(str(venue.device.status()["ring"]["public_key"]))  # type: ignore[index]
    operator = venue.operator
    for number, (keys, is_believed) in enumerate((({key[:8]: key}, True), ({key[:8]: bytes(32)}, False), ({}, False))):
        other = Operator(operator._server, operator._login._replace(identity=f"op{number}"), operator._secret, keys)
        with other:
            if is_believed:
                (reply,) = other.order(TOPICS, "status", {}, "anna", wait_s=20)
                assert reply["result"] == "ok"
                continue
            with pytest.raises(ConfigError, match="no answer"):
                list(other.order(TOPICS, "status", {}, "anna", wait_s=2))


def test_status_and_self_test_are_answered(venue: Venue) -> None:
    (reply,) = venue.order("status")
    assert reply["result"] == "ok"
    assert reply["rows"][0]["ring"]["head"]
    (reply,) = venue.order("self-test")
    tests = {row["test"]: row["ok"] for row in reply["rows"]}
    assert tests["chain"] is tests["clock"] is True
    wait_until(lambda: any(what.startswith("status ") and text == "ok: status" for what, text in venue.log()), 10)


def test_a_lawful_query_needs_a_warrant_and_leaves_a_trace(venue: Venue) -> None:
    (reply,) = venue.order("query", {"domain": "casino.example"})
    assert (reply["result"], "warrant" in reply["text"]) == ("failed", True)
    warrant = {"warrant": "2026/117", "by": "court of X", "since_s": time.time() - 3 * 86400}
    (reply,) = venue.order("query", dict(warrant))
    assert "not everything of everybody" in reply["text"]
    for never in (float("inf"), float("nan"), -1e300, 1 << 62):
        (reply,) = venue.order("query", {**warrant, "domain": "casino.example", "since_s": never})
        assert reply["result"] == "failed"
        assert "since_s: expected a number" in reply["text"] or "not JSON" in reply["text"]
    replies = venue.order("query", {**warrant, "domain": "casino.example"})
    rows = [row for reply in replies for row in reply["rows"]]
    assert len(rows) == 100
    assert {row["verdict"] for row in rows} == {"block"}
    assert replies[-1]["text"].startswith("answered under warrant 2026/117")
    wait_until(lambda: any("answered under warrant" in text for _, text in venue.log()), 10)
    told = venue.device.ask("query", "--kind", "maintenance", "--since", "1h")
    (row,) = [row for row in told if "2026/117" in str(row["detail"]) and str(row["result"]).startswith("ok")]
    assert row["actor"] == "centre: anna"
    assert json.loads(str(row["detail"]))["domain"] == "casino.example"


def test_the_configuration_is_changed_as_a_whole_or_not_at_all(venue: Venue) -> None:
    before = venue.device.config.read_text()
    for bad in (
        {"uplink.server": "evil.example"},
        {"dns.rate": "many"},
        {"uplink.heartbeat": "3s", "main.run_dir": "/"},
    ):
        (reply,) = venue.order("config", {"set": bad})
        assert reply["result"] == "failed", reply
        assert venue.device.config.read_text() == before
    (pid,) = venue.device.pids("uplink")
    (reply,) = venue.order("config", {"set": {"uplink.heartbeat": "3s", "dns.rate": "200"}})
    assert reply["result"] == "ok", reply
    changed = load(venue.device.config.read_text())
    assert (changed.uplink.heartbeat_s, changed.dns.rate) == (3, 200)
    wait_until(lambda: venue.device.pids("uplink") not in ([], [pid]), 10, "it takes its new configuration")
    wait_until(lambda: any("set dns.rate" in text for _, text in venue.log()), 10)
    told = venue.device.ask("query", "--kind", "maintenance", "--since", "1h")
    (row,) = [row for row in told if str(row["result"]).startswith("ok: set dns.rate")]
    assert row["old"] != row["new"]
    wait_until(lambda: venue.device.log().count("connected") == 2, 10, venue.device.log)


def test_replayed_and_altered_orders_are_refused_on_the_wire_and_each_is_on_record(venue: Venue) -> None:
    secret = venue.operator._secret
    number = secret.next_number()
    payload = write_order(Order(*TOPICS, number, "status", {}, "anna"), secret.sign, secret.number)
    assert [reply["result"] for reply in venue.operator.send(TOPICS, payload, number, 20)] == ["ok"]
    assert [reply["result"] for reply in venue.operator.send(TOPICS, payload, number, 20)] == ["refused"]
    altered = payload.replace(b"anna", b"otto")
    assert [reply["result"] for reply in venue.operator.send(TOPICS, altered, 0, 20)] == ["refused"]

    def is_on_record(why: str) -> bool:
        return any(why in text for _, text in venue.log())

    wait_until(lambda: is_on_record(f"given before: {number}"), 10)
    wait_until(lambda: is_on_record("does not hold"), 10, lambda: str(venue.log()))
    wait_until(lambda: len(venue.centre.sql("SELECT 1 FROM reply")) >= 3, 10, "answers are kept at the centre, too")
