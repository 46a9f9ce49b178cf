"""One connection: brokers that know only MQTT 3.1.1, that refuse us, that say nothing."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.uplink import broker
from agent.uplink.broker import Broker, LinkError, Login, UnsupportedVersionError
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


def test_one_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "CONNECT_S", 0.3)
    with answering(b"") as server, pytest.raises(LinkError, match="no answer"):
        Broker(server, Login("a/b", tls=False), [], version=5)


def test_with_mqtt_3_1_1_everything_arrives_too(tmp_path: Path) -> None:
    mosquitto = Mosquitto(tmp_path / "mosquitto", None)
    centre = Centre(tmp_path / "centre", mosquitto.centre_port)
    device = Device(tmp_path / "device", mosquitto.port, more="\toption protocol '3.1.1'\n")
    with running(mosquitto, centre, device):
        wait_until(lambda: centre.until() > 2, 20, lambda: device.log() + centre.log())
        wait_until(lambda: centre.sql("SELECT 1 FROM device WHERE received_ms > 0 AND state = 'online'"), 10)
        assert "MQTT 3.1.1" in device.log()
    wait_until(lambda: centre.sql("SELECT 1"), 5)
