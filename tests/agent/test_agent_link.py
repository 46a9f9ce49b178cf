"""A hook's link over a real SEQPACKET socket: the agent comes, goes, comes back, and nothing is forgotten."""

import socket
from pathlib import Path

from agent.link import RETRY_S, Link
from policy.event import Dns
from policy.frame import Ack, Bye, Events, Hello, Reload, down_frame, read_up

LOOKUP = Dns(7, b"\x0a\0\0\2", "a.example", 1, 0, 0, 0, "", "home", (), True, 0)


def listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen()
    listener.settimeout(5)
    return listener


def frames(connection: socket.socket) -> list[object]:
    connection.setblocking(False)
    found = []
    while True:
        try:
            data = connection.recv(1 << 18)
        except BlockingIOError:
            return found
        if not data:
            return found
        found.append(read_up(data))


def records(found: list[object]) -> list[tuple[int, str]]:
    return [(frame.seq, event.name) for frame in found if isinstance(frame, Events) for event in frame.events]  # type: ignore[union-attr]


def test_records_wait_for_the_agent_and_are_sent_again_to_its_successor(tmp_path: Path) -> None:
    path = tmp_path / "events"
    link = Link(str(path), "dns", 0)
    link.put(LOOKUP)
    assert link.pump(0.0) == []  # nobody there: nothing raised, nothing lost

    with listen(path) as listener:
        link.pump(RETRY_S)
        connection, _ = listener.accept()
        found = frames(connection)
        assert isinstance(found[0], Hello)
        assert records(found) == [(1, "a.example")]
        link.put(LOOKUP._replace(name="b.example"))
        link.pump(1.0)
        connection.send(down_frame(Ack(0, 1)))
        connection.send(down_frame(Reload()))
        assert link.pump(1.1) == [Reload()]
        connection.close()

    link.pump(1.2)  # notices
    with listen(path) as listener:
        link.pump(1e9)
        connection, _ = listener.accept()
        assert records(frames(connection)) == [(2, "b.example")]
        connection.close()


def test_the_last_words_are_everything_and_goodbye(tmp_path: Path) -> None:
    with listen(tmp_path / "events") as listener:
        link = Link(str(tmp_path / "events"), "nfq", 1)
        link.put(LOOKUP)
        link.close()
        connection, _ = listener.accept()
        found = frames(connection)
        assert records(found) == [(1, "a.example")]
        assert found[-1] == Bye()
        connection.close()


def test_an_agent_that_talks_nonsense_is_left(tmp_path: Path) -> None:
    with listen(tmp_path / "events") as listener:
        link = Link(str(tmp_path / "events"), "dns", 0)
        link.pump(0.0)
        connection, _ = listener.accept()
        connection.send(b"\xff nonsense")
        assert link.pump(0.1) == []
        frames(connection)
        assert connection.recv(10) == b""
        connection.close()
