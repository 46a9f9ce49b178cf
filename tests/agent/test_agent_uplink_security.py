"""Who may connect, who may say and hear what: real mosquitto, the access list that is shipped, real certificates."""

import datetime
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.uplink import keys
from agent.uplink.broker import Broker, LinkError, Login
from agent.uplink.wire import Topics
from tests.lab.broker import ROOT, Authority, Centre, Device, Mosquitto, running, wait_until

MINE, OTHER = Topics("11010500000001", "100000001020000000001"), Topics("11010500000001", "100000001020000000002")
HOUR = datetime.timedelta(hours=1)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Mosquitto]:
    mosquitto = Mosquitto(tmp_path_factory.mktemp("mosquitto"), authority)
    with running(mosquitto):
        yield mosquitto


def login(authority: Authority, name: str, identity: str = "", **more: object) -> Login:
    pem, key = authority.issue(name.replace("/", "-"), name)
    return Login(identity or name, True, str(authority.path), str(pem), str(key), 5, **more)  # type: ignore[arg-type]


def heard(link: Broker, seconds: float = 0.4) -> list[tuple[str, bytes]]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        link.work()
        time.sleep(0.01)
    found, link.inbound[:] = [(message.topic, message.payload) for message in link.inbound], []
    return found


@pytest.mark.parametrize("version", [5, 4])
def test_a_device_speaks_and_hears_on_its_own_topics_only(
    broker: Mosquitto, authority: Authority, version: int
) -> None:
    server, centre = ("localhost", broker.port), ("localhost", broker.centre_port)
    receiver = Broker(
        centre,
        login(authority, "receiver", "receiver-a"),
        [(f"gatehouse/v1/+/+/{what}", 1) for what in ("records", "heartbeat", "state", "reply")],
        version=version,
    )
    operator = Broker(centre, login(authority, "operator"), [("gatehouse/v1/+/+/reply", 1)], version=version)
    device = Broker(
        server, login(authority, MINE.identity), [(MINE.of("ack"), 0), (MINE.of("command"), 1)], version=version
    )
    heard(receiver, 0.2)
    for what in ("records", "heartbeat", "state", "reply", "ack", "command"):
        device.publish(MINE.of(what), what.encode())
        device.publish(OTHER.of(what), b"forged")
        device.publish(Topics("11010500000002", "100000001020000000001").of(what), b"forged")
        device.publish(f"gatehouse/v1/{what}", b"forged")
    assert heard(device) == [], "not even to itself on the topics that come down"
    assert sorted(heard(receiver)) == sorted(
        (MINE.of(what), what.encode()) for what in ("records", "heartbeat", "state", "reply")
    )
    assert heard(operator) == [(MINE.of("reply"), b"reply")]
    # Down: each to its own, the receiver no orders, the operator no acknowledgements.
    for topics in (MINE, OTHER):
        receiver.publish(topics.of("ack"), b"ack")
        receiver.publish(topics.of("command"), b"forged")
        operator.publish(topics.of("command"), b"order")
        operator.publish(topics.of("ack"), b"forged")
        operator.publish(topics.of("records"), b"forged")
    for link in (receiver, operator):
        heard(link, 0.2)
    assert sorted(heard(device)) == [(MINE.of("ack"), b"ack"), (MINE.of("command"), b"order")]
    for link in (device, receiver, operator):
        link.close()


@pytest.mark.parametrize("wanted", [OTHER.of("ack"), OTHER.of("command"), "gatehouse/v1/+/+/records", "#", "$SYS/#"])
def test_a_device_cannot_listen_to_others(broker: Mosquitto, authority: Authority, wanted: str) -> None:
    try:
        device = Broker(("localhost", broker.port), login(authority, MINE.identity), [(wanted, 1)], version=5)
    except LinkError:
        return  # refused at once
    # mosquitto accepts a subscription that is wider than what may be read, and delivers nothing of it.
    operator = Broker(("localhost", broker.centre_port), login(authority, "operator"), [], version=5)
    receiver = Broker(("localhost", broker.centre_port), login(authority, "receiver"), [], version=5)
    operator.publish(OTHER.of("command"), b"order")
    receiver.publish(OTHER.of("ack"), b"ack")
    heard(operator, 0.2)
    heard(receiver, 0.2)
    assert heard(device) == []
    for link in (device, operator, receiver):
        link.close()


def test_one_device_cannot_take_the_session_of_another(broker: Mosquitto, authority: Authority) -> None:
    server = ("localhost", broker.port)
    victim = Broker(server, login(authority, OTHER.identity), [(OTHER.of("ack"), 0)], version=5)
    thief = Broker(server, login(authority, MINE.identity, OTHER.identity), [], version=5)
    heard(victim, 0.3)  # would raise: the connection was taken over
    heard(thief, 0.1)
    victim.close()
    thief.close()


@pytest.mark.parametrize("name", ["", "11010500000001/+", "#", "somebody"])
def test_who_has_no_proper_name_may_nothing(broker: Mosquitto, authority: Authority, name: str) -> None:
    receiver = Broker(
        ("localhost", broker.centre_port),
        login(authority, "receiver"),
        [("gatehouse/v1/+/+/records", 1)],
        version=5,
    )
    try:
        stranger = Broker(("localhost", broker.port), login(authority, name or " "), [], version=5)
        for topic in (
            "gatehouse/v1/11010500000001/100000001020000000001/records",
            "gatehouse/v1/11010500000001/+/records",
        ):
            if "+" not in topic:
                stranger.publish(topic, b"forged")
        heard(stranger, 0.2)
        stranger.close()
    except LinkError:
        pass
    assert heard(receiver) == []
    receiver.close()


def test_without_a_certificate_of_the_authority_nobody_comes_in(
    broker: Mosquitto, authority: Authority, tmp_path: Path
) -> None:
    foreign = Authority(tmp_path / "foreign")
    pem, key = foreign.issue("device", MINE.identity)
    with pytest.raises(LinkError):
        Broker(
            ("localhost", broker.port),
            Login(MINE.identity, True, str(authority.path), str(pem), str(key)),
            [],
            version=5,
        )
    pem, key = authority.issue("late", MINE.identity, begin=-2 * HOUR, end=-HOUR)
    with pytest.raises(LinkError):
        Broker(
            ("localhost", broker.port),
            Login(MINE.identity, True, str(authority.path), str(pem), str(key)),
            [],
            version=5,
        )


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("expired", "certificate has expired"),
        ("not yet", "certificate is not yet valid"),
        ("wrong name", "Hostname mismatch"),
        ("self-signed", "self-signed certificate"),
        ("another authority", "self-signed certificate in certificate chain"),
    ],
)
def test_a_server_that_cannot_prove_who_it_is_is_refused_by_the_cause(
    tmp_path: Path, authority: Authority, what: str, why: str
) -> None:
    own = Authority(tmp_path / "own", "another authority")
    match what:
        case "expired":
            own.issue("broker", "broker", hosts=("localhost",), begin=-2 * HOUR, end=-HOUR)
        case "not yet":
            own.issue("broker", "broker", hosts=("localhost",), begin=HOUR, end=2 * HOUR)
        case "wrong name":
            own.issue("broker", "broker", hosts=("mqtt.elsewhere.example",))
        case "self-signed":
            own.issue("broker", "broker", hosts=("localhost",), self_signed=True)
        case _:
            own.issue("broker", "broker", hosts=("localhost",))
    pinned = authority if what == "another authority" else own
    mosquitto = Mosquitto(tmp_path / "mosquitto", own)
    # Its own authority for its clients, so that only the server's own certificate is at issue.
    device = Device(tmp_path / "device", mosquitto.port, authority=pinned)
    with running(mosquitto, device):
        wait_until(lambda: "refused" in device.log(), 15, device.log)
        (line, *_) = [line for line in device.log().splitlines() if line.startswith("uplink: ")]
        assert f"localhost: its certificate is refused: {why}" in line.replace("self signed", "self-signed")
        wait_until(lambda: "refused" in str(device.status().get("why")), 10)
        status = device.status()
        assert status["state"] == "degraded"
        assert any(why in str(one).replace("self signed", "self-signed") for one in status["why"])  # type: ignore[union-attr, attr-defined]

        def is_on_record() -> bool:
            told = device.ask("query", "--kind", "maintenance", "--since", "1h")
            return any(row["action"] == "connect" and why[-8:] in str(row["result"]) for row in told)

        wait_until(is_on_record, 10)
    assert "CONNECT" not in (tmp_path / "mosquitto" / "mosquitto.log").read_text()


def test_nothing_goes_in_the_clear_unless_somebody_says_so(tmp_path: Path, authority: Authority) -> None:
    plain = Mosquitto(tmp_path / "mosquitto", None)
    device = Device(tmp_path / "device", plain.port, authority=authority)
    with running(plain, device):
        wait_until(lambda: "uplink: localhost" in device.log(), 15, device.log)
        time.sleep(0.5)
    assert "New client connected" not in (tmp_path / "mosquitto" / "mosquitto.log").read_text()


def test_a_key_that_is_made_on_the_device_never_leaves_it_and_opens_the_door(
    tmp_path: Path, broker: Mosquitto, authority: Authority
) -> None:
    device = Device(tmp_path / "device", broker.port, device="100000001020000000009", authority=authority)
    pem, key = authority.directory / "100000001020000000009.pem", authority.directory / "100000001020000000009.key"
    pem.unlink()
    key.unlink()
    gatehouse = [sys.executable, "-I", str(ROOT), "certificate"]
    done = subprocess.run([*gatehouse, "request", "--config", str(device.config)], capture_output=True, check=True)
    assert os.stat(key).st_mode & 0o777 == 0o600
    assert keys.read_secret(str(key)) not in done.stdout
    again = subprocess.run([*gatehouse, "request", "--config", str(device.config)], capture_output=True, check=True)
    assert again.stdout == done.stdout, "asked twice, it is the same key"
    (tmp_path / "answer.pem").write_bytes(authority.sign_request(done.stdout))
    install = [*gatehouse, "install", "--config", str(device.config)]
    subprocess.run([*install, "--file", str(tmp_path / "answer.pem")], capture_output=True, check=True)
    (tmp_path / "foreign.pem").write_bytes((authority.directory / "broker.pem").read_bytes())
    refused = subprocess.run([*install, "--file", str(tmp_path / "foreign.pem")], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "is not one for the key" in refused.stderr
    centre = Centre(tmp_path / "centre", broker.centre_port, authority)
    with running(centre, device):
        wait_until(lambda: centre.until() > 2, 20, lambda: device.log() + centre.log())
        # Renewal, while it runs: a new key, a new certificate, a new connection, and nothing lost.
        done = subprocess.run([*gatehouse, "renew", "--config", str(device.config)], capture_output=True, check=True)
        assert done.stdout != again.stdout
        answer = authority.sign_request(done.stdout)
        subprocess.run(install, input=answer, capture_output=True, check=True)
        wait_until(lambda: "the certificate was renewed" in device.log(), 10, device.log)
        wait_until(lambda: device.log().count("connected to localhost") == 2, 10, device.log)
        status = device.status()
        assert status["uplink"]["why"] == ""  # type: ignore[index]
