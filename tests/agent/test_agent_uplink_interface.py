"""The interface as it is written down: valid by AsyncAPI's own schema, and what really travels is what it says."""

import base64
import json
import lzma
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from agent.receiver.orders import Operator, Secret, make_key
from agent.uplink import wire
from agent.uplink.broker import Broker, Login
from agent.uplink.heartbeat import build
from agent.uplink.signed import split
from agent.uplink.wire import Topics
from agent.visibility import Visibility
from policy.event import TAGS, Blind, Flow
from tests.agent.test_agent_uplink_wire import messages
from tests.lab.broker import ROOT, Centre, Device, Mosquitto, running, wait_until
from tests.lab.outage import fill

TEXT = (ROOT / "docs/uplink.asyncapi.yaml").read_text()
DOCUMENT: dict[str, Any] = yaml.safe_load(TEXT)
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
TYPES = {"int": "integer", "str": "string", "bool": "boolean"}


def official() -> Any:
    with lzma.open(ROOT / "tests/vectors/asyncapi/3.0.0.json.xz") as file:
        schema = json.load(file)
    return jsonschema.Draft7Validator(schema)


def test_the_document_is_valid_by_the_official_schema() -> None:
    assert [error.message for error in official().iter_errors(DOCUMENT)] == []


@pytest.mark.parametrize("mistake", ["action: send", "protocol: secure-mqtt", "address: ", "asyncapi: 3.0.0"])
def test_a_document_with_a_mistake_is_not(mistake: str) -> None:
    word, _, value = mistake.partition(": ")
    broken = yaml.safe_load(TEXT.replace(mistake, f"{word}x: {value}", 1))
    assert list(official().iter_errors(broken))


def test_every_reference_leads_somewhere() -> None:
    def follow(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                target: Any = DOCUMENT
                for step in node["$ref"].removeprefix("#/").split("/"):
                    target = target[step]
            for inner in node.values():
                follow(inner)
        elif isinstance(node, list):
            for inner in node:
                follow(inner)

    follow(DOCUMENT)


@pytest.mark.parametrize("kind", TAGS.values(), ids=lambda kind: kind.__name__)
def test_each_record_is_described_field_by_field(kind: Any) -> None:
    described = SCHEMAS[kind.__name__]
    own = {"kind", "seq", "segment", "wall_ms", "synced"}
    assert set(described["properties"]) == own | set(kind._fields)
    assert set(described["required"]) == own | (set(kind._fields) - set(kind._field_defaults))
    for field in kind._fields:
        annotation = kind.__annotations__[field]
        simple = TYPES.get(getattr(annotation, "__forward_arg__", annotation))
        if simple:
            assert described["properties"][field]["type"] == simple


def as_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, tuple | list):
        return [as_json(one) for one in value]
    if isinstance(value, dict):
        return {name: as_json(one) for name, one in value.items()}
    return value


def check(message: str, fields: dict[str, Any]) -> None:
    """A map against the schema that the document names for it; nothing in it may be undocumented."""
    described = DOCUMENT["components"]["messages"][message]
    name = described.get("x-signed-payload", described["payload"])["$ref"].rpartition("/")[2]
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    jsonschema.Draft7Validator(schema).validate(as_json(fields))
    assert set(fields) <= set(SCHEMAS[name]["properties"]), "not in the document"


def check_payload(topic: str, payload: bytes) -> str:
    """A message from the wire. Returns its name."""
    _, what = wire.read_topic(topic)
    channel = DOCUMENT["channels"][what]
    assert channel["address"].rpartition("/")[2] == what
    fields = wire.unpack_map(payload)
    if fields["k"] == "signed":
        jsonschema.Draft7Validator(
            {"$ref": "#/components/schemas/Signed", "components": DOCUMENT["components"]}
        ).validate(as_json(fields))
        octets, _, _ = split(payload)
        if what == "heartbeat":
            assert wire.unpack_map(octets)["k"] == "deflated"
        fields = wire.unpack_map(wire.inflated(octets))
    assert fields["k"] in channel["messages"]
    check(fields["k"], fields)
    if fields["k"] == "urgent":  # and what the rows in it say, as maps
        urgent = wire.read(payload)
        assert isinstance(urgent, wire.Urgent)
        check("urgent", {"v": 1, "k": "urgent", **urgent._asdict()})
    return str(fields["k"])


@pytest.mark.parametrize("kind", sorted(messages()))
def test_what_is_written_is_as_described(kind: str) -> None:
    check_payload(Topics("a", "b").of("ack" if kind == "ack" else "records"), messages()[kind])


def heartbeat(status: dict[str, Any]) -> dict[str, Any]:
    octets = build(
        {"ring": {"next": "1:1", "head": "00" * 16}, **status},
        number=1,
        wall_ms=1_795_000_000_000,
        mono_ms=5000,
        boot="0f0f0f0f-0000-4000-8000-000000000001",
        public_key=bytes(32),
        uplink={"behind": 0},
        temperatures={},
        every_s=60,
    )
    return wire.unpack_map(octets)


def test_the_blind_spot_meter_travels_with_the_heartbeat() -> None:
    meter, address, site = Visibility(), b"\x0a\x14\0\x0b", b"\x01\x02\x03\x04"
    for name, blind in (("", Blind.ECH), ("", Blind.ECH), ("", Blind.ECH), ("a.example", Blind.NOT_BLIND)):
        flow = Flow(9, address, b"", 40_000, site, 443, 6, name, 0, int(blind), "", 0, 0, "", "")
        meter.settle(address, flow)
    said = heartbeat({"visibility": meter.describe(), "sessions": {"open": 3}, "legal": {"profile": ""}})
    assert said["visibility"] == meter.describe()
    assert said["visibility"]["flows"] == 4
    assert said["visibility"]["ech_percent"] == said["visibility"]["no_visible_name_percent"] == 75.0
    check("heartbeat", said)
    check("heartbeat", heartbeat({"visibility": {}}))
    with pytest.raises(jsonschema.ValidationError):
        check("heartbeat", heartbeat({"visibility": {"flows": "many"}}))


def test_what_travels_is_as_described(tmp_path: Path) -> None:
    fill(tmp_path / "device" / "ring", 20_000)
    fingerprint = make_key(str(tmp_path / "secret"))
    mosquitto = Mosquitto(tmp_path / "mosquitto", None)
    centre = Centre(tmp_path / "centre", mosquitto.port)
    device = Device(tmp_path / "device", mosquitto.port, more=f"\tlist order_key '{fingerprint}'\n", heartbeat="1s")
    device.trust(tmp_path / "secret.pub", fingerprint)
    server = ("127.0.0.1", mosquitto.port)
    seen: dict[str, int] = {}
    with running(mosquitto):
        ear = Broker(server, Login("ear", tls=False), [("gatehouse/#", 1)], version=5)
        with running(centre, device):
            wait_until(lambda: "connected" in device.log(), 20, device.log)
            with Operator(server, Login("operator", tls=False), Secret(str(tmp_path / "secret"))) as operator:
                list(operator.order(Topics("11010500000001", "100000001020000000001"), "status", {}, "anna"))
                list(operator.order(Topics("11010500000001", "100000001020000000001"), "shell", {}, "anna"))
            deadline = time.monotonic() + 20
            wanted = {"batches", "sealed", "urgent", "ack", "heartbeat", "state", "order", "reply"}
            while time.monotonic() < deadline and not wanted <= seen.keys():
                ear.work()
                for message in ear.inbound:
                    try:
                        kind = check_payload(message.topic, message.payload)
                    except jsonschema.ValidationError as error:
                        if "shell" not in str(error.instance):  # the one that is none is not described
                            raise
                        continue
                    seen[kind] = seen.get(kind, 0) + 1
                ear.inbound.clear()
                time.sleep(0.02)
        ear.close()
    assert wanted <= seen.keys(), seen
