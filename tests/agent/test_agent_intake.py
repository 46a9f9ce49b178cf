"""Intake: acknowledged means on flash, sent twice counts once, a death is on record with its bounds."""

from collections.abc import Sequence

import pytest

from agent.intake import SILENCE_MS, START_MS, Identity, Intake
from agent.visibility import Visibility
from policy.errors import FrameError
from policy.event import Dns, Event, Flow, Gap, Maintenance
from policy.frame import (
    Ack,
    Fold,
    Hello,
    Stream,
    beat_frame,
    bye_frame,
    event_bytes,
    events_frame,
    flows_of,
    folded_frame,
    hello_frame,
)
from storage.batch import Columns, Who

CLIENT = b"\x0a\0\0\2"
MAC = b"\2\0\0\0\0\1"
LOOKUP = Dns(7, CLIENT, "a.example", 1, 0, 0, 0, "", "home", (), True, 0)
FLOW = Flow(8, CLIENT, MAC, 40000, b"\xc0\0\2\1", 443, 6, "a.example", 2, 0, "", 0, 0, "", "home")


class FakeRing:
    """Keeps what it is given, and survives its agent as the real one does."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.kept: dict[bytes, int] = {}

    def add(self, events: Sequence[Event], source: bytes = b"", seq: int = 0) -> None:
        self.events += events
        if source:
            self.kept[source] = seq

    def add_folded(
        self,
        templates: Sequence[Dns] | Sequence[Flow],
        which: Sequence[int],
        at_ms: Sequence[int],
        whos: Sequence[Who],
        who: Sequence[int],
        source: bytes = b"",
        seq: int = 0,
        ports: Sequence[int] = (),
    ) -> None:
        columns = Columns()
        columns.add_folded(templates, which, at_ms, whos, who, ports)
        self.add(list(columns.events()), source, seq)

    def marks(self) -> dict[bytes, int]:
        return self.kept

    def forget(self, sources: list[bytes]) -> None:
        for source in sources:
            self.kept.pop(source, None)

    last_commit_ms = 5_000


class Desk:
    """An intake, its ring, and what it has learned."""

    def __init__(self, ring: FakeRing | None = None) -> None:
        self.ring = ring or FakeRing()
        self.macs: dict[bytes, bytes] = {}
        self.intake = Intake(
            self.ring, lambda address: Identity(self.macs.get(address, b""), "s1"), self.macs.__setitem__
        )

    def greet(self, connection: int = 3, role: str = "dns", incarnation: bytes = b"12345678", now_ms: int = 0) -> None:
        assert self.intake.connected(connection, 100 + connection, now_ms)
        self.intake.receive(connection, hello_frame(Hello(role, 0, 1, incarnation)), now_ms)

    def actions(self) -> list[tuple[str, str]]:
        return [(event.action, event.object) for event in self.ring.events if isinstance(event, Maintenance)]


def frame(seq: int, *events: Event, stream: int = Stream.ACCESS) -> bytes:
    return events_frame(stream, seq, [event_bytes(event) for event in events])


def test_nothing_is_acknowledged_before_it_is_committed() -> None:
    desk = Desk()
    desk.greet()
    desk.intake.receive(3, frame(1, LOOKUP), 10)
    desk.intake.receive(3, frame(2, LOOKUP), 11)
    desk.intake.receive(3, frame(1, LOOKUP, stream=Stream.CRITICAL), 12)
    assert desk.intake.urgent
    assert sorted(desk.intake.committed()) == [(3, Ack(Stream.ACCESS, 2)), (3, Ack(Stream.CRITICAL, 1))]
    assert desk.intake.committed() == []
    assert not desk.intake.urgent


def test_a_frame_sent_again_is_acknowledged_again_and_kept_once() -> None:
    desk = Desk()
    desk.greet()
    desk.intake.receive(3, frame(1, LOOKUP), 10)
    desk.intake.disconnected(3)
    desk.greet(connection=4, now_ms=20)
    assert list(desk.intake.receive(4, frame(1, LOOKUP), 21)) == []
    assert desk.intake.committed() == [(4, Ack(Stream.ACCESS, 1))]
    assert [event for event in desk.ring.events if isinstance(event, Dns)] == [LOOKUP._replace(session="s1")]


def test_a_new_agent_knows_from_the_ring_what_it_has() -> None:
    first = Desk()
    first.greet()
    first.intake.receive(3, frame(1, LOOKUP), 10)
    second = Desk(first.ring)
    second.greet(connection=5, now_ms=100)
    assert list(second.intake.receive(5, frame(1, LOOKUP), 101)) == []
    assert len(second.intake.receive(5, frame(2, LOOKUP), 102)) == 1
    assert second.actions() == [("start", "dns/0"), ("reconnect", "dns/0")]


def test_a_worker_that_dies_leaves_a_gap_with_exact_bounds() -> None:
    desk = Desk()
    desk.greet()
    desk.intake.receive(3, beat_frame({}), 5_000)
    desk.intake.disconnected(3)
    desk.greet(connection=4, incarnation=b"abcdefgh", now_ms=5_700)
    (gap,) = [event for event in desk.ring.events if isinstance(event, Gap)]
    assert (gap.source, gap.lost, gap.from_ms, gap.to_ms) == ("dns/0", -1, 5_000, 5_700)
    assert ("crash", "dns/0") in desk.actions()


def test_a_worker_that_says_goodbye_leaves_no_gap() -> None:
    desk = Desk()
    desk.greet()
    desk.intake.receive(3, bye_frame(), 10)
    desk.intake.disconnected(3)
    desk.greet(connection=4, incarnation=b"abcdefgh", now_ms=20)
    assert desk.actions() == [("start", "dns/0"), ("stop", "dns/0"), ("start", "dns/0")]
    assert not [event for event in desk.ring.events if isinstance(event, Gap)]


def test_a_worker_that_died_while_no_agent_was_there_leaves_a_gap_since_the_last_commit() -> None:
    first = Desk()
    first.greet()
    first.intake.receive(3, frame(1, LOOKUP), 10)
    second = Desk(first.ring)
    second.greet(connection=5, incarnation=b"abcdefgh", now_ms=9_000)
    (gap,) = [event for event in second.ring.events if isinstance(event, Gap)]
    assert (gap.source, gap.from_ms, gap.to_ms) == ("dns/0", 5_000, 9_000)
    assert first.ring.kept == {}


def test_a_worker_that_said_goodbye_to_the_last_agent_leaves_none() -> None:
    first = Desk()
    first.greet()
    first.intake.receive(3, frame(1, LOOKUP), 10)
    first.intake.receive(3, bye_frame(), 11)
    second = Desk(first.ring)
    second.greet(connection=5, incarnation=b"abcdefgh", now_ms=9_000)
    assert not [event for event in second.ring.events if isinstance(event, Gap)]


def test_the_mac_seen_by_the_packet_hook_is_given_to_look_ups_of_the_same_client() -> None:
    desk = Desk()
    desk.greet(role="nfq")
    desk.intake.receive(3, frame(1, FLOW), 10)
    template = LOOKUP._replace(at_ms=0, client=b"")
    fold = Fold([event_bytes(template)], [0, 0], [(50, 1), (51, 1)], [CLIENT], [0, 0])
    events = desk.intake.receive(3, folded_frame(Stream.ACCESS, 2, fold), 11)
    expected = [LOOKUP._replace(at_ms=at, mac=MAC, session="s1") for at in (50, 51)]
    assert list(events) == expected
    assert desk.ring.events[-2:] == expected


@pytest.mark.parametrize(("takes_all", "sessions"), [(True, "s1 s1"), (False, "s1 s1"), (True, "s1 s2")])
def test_flows_that_came_folded_are_on_record_as_if_they_had_come_one_by_one(takes_all: bool, sessions: str) -> None:
    found = []
    first, second = sessions.split()
    for is_folded in (False, True):
        ring, macs, meter = FakeRing(), {}, Visibility()  # type: ignore[var-annotated]
        intake = Intake(
            ring,
            lambda address, macs=macs: Identity(macs.get(address, b"")),  # type: ignore[misc]
            macs.__setitem__,
            session_of=lambda address, mac, at_ms, is_own=False: f"{first if at_ms < 25 else second}{is_own}",
            takes_all=lambda: takes_all,
            visibility=meter,
        )
        intake.connected(3, 103, 0)
        intake.receive(3, hello_frame(Hello("nfq", 0, 1, b"12345678")), 0)
        asked = LOOKUP._replace(answers=(FLOW.dst,), mac=MAC)
        intake.receive(3, frame(1, asked), 1)
        alike = FLOW._replace(at_ms=0, client=b"", mac=b"", sport=0)
        templates = [event_bytes(alike), event_bytes(alike._replace(name="", seen=0, blind=1))]
        clients = [CLIENT + MAC, b"\x0a\0\0\3" + b"\4" * 6, b"\x0a\0\0\4"]
        fold = Fold(templates, [0, 1, 0, 0], [(20, 2), (30, 2)], clients, [0, 0, 1, 2], [7, 8, 9, 10])
        one_by_one = [event_bytes(flow) for flow in flows_of(fold)]
        data = folded_frame(0, 2, fold) if is_folded else events_frame(0, 2, one_by_one)
        seen = list(intake.receive(3, data, 40))
        assert len(seen) == 4
        assert seen == ring.events[-4:]
        found.append((seen, meter.describe(), macs, intake.pending))
    assert found[0] == found[1]


def test_folded_blocks_are_committed_at_once_and_other_folded_look_ups_are_not() -> None:
    desk = Desk()
    desk.greet()
    desk.intake.committed()
    fold = Fold([event_bytes(LOOKUP._replace(at_ms=0, client=b""))], [0], [(50, 1)], [CLIENT], [0])
    desk.intake.receive(3, folded_frame(Stream.ACCESS, 1, fold), 11)
    assert not desk.intake.urgent
    desk.intake.receive(3, folded_frame(Stream.CRITICAL, 1, fold), 11)
    assert desk.intake.urgent


def test_silence_is_told_once_per_timer_until_the_connection_is_closed() -> None:
    desk = Desk()
    desk.greet(now_ms=0)
    desk.intake.connected(9, 109, 0)
    assert desk.intake.handle_timer(SILENCE_MS) == []
    assert desk.intake.handle_timer(SILENCE_MS + 1) == [(3, 103, "dns/0")]
    desk.intake.receive(3, beat_frame({"queries": 1}), SILENCE_MS + 2)
    assert desk.intake.handle_timer(SILENCE_MS + 3) == []
    assert desk.intake.handle_timer(START_MS + 1)[-1] == (9, 109, "unknown")


@pytest.mark.parametrize("data", [frame(1, LOOKUP), beat_frame({}), b"", b"\xc1", bytes(100)])
def test_a_stranger_must_say_hello_first(data: bytes) -> None:
    desk = Desk()
    desk.intake.connected(3, 1, 0)
    with pytest.raises(FrameError):
        desk.intake.receive(3, data, 0)
    assert desk.ring.events == []
