"""One connection: brokers that know only MQTT 3.1.1, that refuse us, that say nothing."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.uplink import broker
from agent.uplink.broker import Broker, LinkError, Login, UnsupportedVersionError
from tests.bench._uplink_wire import Wire
from tests.lab.broker import Centre, Device, Mosquitto, running, wait_until


@contextmanager
def answering(answer: bytes) -> Iterator[tuple[str, int]]:
    """Something that listens, and says one thing to whoever has said something."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections = []

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            connections.append(client)
            if client.recv(1000) and answer:
                client.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield "127.0.0.1", listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for client in connections:
            client.close()


@pytest.mark.parametrize("answer", [b"\x20\x02\0\x01", b"\x20\x03\0\x84\0"], ids=["of a 3.1.1 broker", "of a 5 broker"])
def test_a_broker_that_does_not_know_mqtt_5_says_so(answer: bytes) -> None:
    with answering(answer) as server, pytest.raises(UnsupportedVersionError):
        Broker(server, Login("a/b", tls=False), [], version=5)


def test_one_that_refuses_us_is_no_reason_for_an_older_version() -> None:
    with answering(b"\x20\x03\0\x87\0") as server, pytest.raises(LinkError, match="Not authorized") as caught:
        Broker(server, Login("a/b", tls=False), [], version=5)
    assert not isinstance(caught.value, UnsupportedVersionError)


HELLO_5, HELLO_4 = b"\x20\x03\0\0\0", b"\x20\x02\0\0"


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\x30\x05\0\x02\xff\xfe\0",
        b"\x30\x06\0\x01a\x03\x01\x02\x03",
        b"\x30\x00",
        b"\x90\x01\0",
        b"\x40\x01\0",
        b"\xe0\x7f" + bytes(127),
        b"\x00\x00",
        b"\xff" * 64,
    ],
    ids=["topic no text", "properties cut", "no topic", "suback cut", "puback cut", "goodbye of zeros", "kind 0", "ff"],
)
@pytest.mark.parametrize("version", [5, 4])
def test_one_that_speaks_no_mqtt_ends_the_connection_and_nothing_else(version: int, rubbish: bytes) -> None:
    hello = HELLO_5 if version == 5 else HELLO_4
    with answering(hello + rubbish) as server, pytest.raises(LinkError):
        link = Broker(server, Login("a/b", tls=False), [], version=version)
        deadline = time.monotonic() + 0.3  # what can be read as nothing harmful is let be
        while time.monotonic() < deadline:
            link.work()
            time.sleep(0.02)
        link.abandon()
        raise LinkError("it was let be")


@pytest.mark.parametrize("version", [5, 4])
def test_one_that_announces_more_than_memory_holds_is_let_go_before_it_has_sent_it(version: int) -> None:
    hello = HELLO_5 if version == 5 else HELLO_4
    with (
        answering(hello + b"\x30\xff\xff\xff\x7f\0\x01a" + bytes(200_000)) as server,
        pytest.raises(LinkError, match="sends a packet of 268435455 octets, more than 262144"),
    ):
        link = Broker(server, Login("a/b", tls=False), [], version=version)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            link.work()
            time.sleep(0.02)


def test_one_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "CONNECT_S", 0.3)
    with answering(b"") as server, pytest.raises(LinkError, match="no answer"):
        Broker(server, Login("a/b", tls=False), [], version=5)


def settled(wire: Wire, links: list[Broker]) -> int:
    """The octets once nothing has come for half a second: the acknowledgements are on the wire too."""
    octets, since = wire.octets, time.monotonic()
    while time.monotonic() < since + 0.5:
        for link in links:
            link.work()
        time.sleep(0.02)
        if wire.octets != octets:
            octets, since = wire.octets, time.monotonic()
    return octets


@pytest.mark.parametrize("version", [5, 4])
def test_a_topic_that_comes_often_is_said_once_where_the_broker_can_remember_it(tmp_path: Path, version: int) -> None:
    mosquitto = Mosquitto(tmp_path / "mosquitto", None)
    topics = [f"gatehouse/v1/venue/device/{what}" for what in ("records", "state")]
    with running(mosquitto), Wire(mosquitto.port) as wire:
        ear = Broker(("127.0.0.1", mosquitto.port), Login("ear", tls=False), [("gatehouse/#", 1)], version=version)
        link = Broker(("127.0.0.1", wire.port), Login("a/b", tls=False), [], version=version)
        sizes = []
        settled(wire, [link, ear])
        for number in range(4):
            before = wire.octets
            assert link.publish(topics[0], b"%d" % number, is_often=True)
            assert link.publish(topics[1], b"%d" % number)
            deadline = time.monotonic() + 5
            while len(ear.inbound) < 2 * number + 2 and time.monotonic() < deadline:
                link.work()
                ear.work()
                time.sleep(0.02)
            assert len(ear.inbound) == 2 * number + 2
            sizes.append(settled(wire, [link, ear]) - before)
        assert [(one.topic, one.payload) for one in ear.inbound] == [
            (topic, b"%d" % number) for number in range(4) for topic in topics
        ]
        saved = len(topics[0]) if version == 5 else 0
        assert sizes[3] == sizes[0] - saved
        link.close()
        ear.close()


def test_with_mqtt_3_1_1_everything_arrives_too(tmp_path: Path) -> None:
    mosquitto = Mosquitto(tmp_path / "mosquitto", None)
    centre = Centre(tmp_path / "centre", mosquitto.centre_port)
    device = Device(tmp_path / "device", mosquitto.port, more="\toption protocol '3.1.1'\n")
    with running(mosquitto, centre, device):
        # What comes before the centre was ever there an MQTT 3.1.1 broker throws away without a word: it comes again.
        wait_until(lambda: centre.until() > 2, 60, lambda: device.log() + centre.log())
        wait_until(lambda: centre.sql("SELECT 1 FROM device WHERE received_ms > 0 AND state = 'online'"), 10)
        assert "MQTT 3.1.1" in device.log()
    wait_until(lambda: centre.sql("SELECT 1"), 5)
