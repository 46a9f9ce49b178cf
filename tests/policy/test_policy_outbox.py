"""The outbox: nothing is forgotten before it is acknowledged, nothing grows without bound, every loss is told."""

from policy.event import Dns, Gap
from policy.frame import MAX_FRAME, Events, Fold, Folded, Stream, event_bytes, events_frame, read_up
from policy.outbox import MAX_PENDING, Outbox
from policy.verdict import Verdict


def look_up(at_ms: int, name: str = "a.example", verdict: int = Verdict.ALLOW) -> Dns:
    return Dns(at_ms, b"\x0a\0\0\2", name, 1, 0, verdict, 0, "", "home", (), True, 0)


def send_all(outbox: Outbox) -> list[Events | Folded]:
    frames = []
    while (data := outbox.next_frame()) is not None:
        frame = read_up(data)
        assert isinstance(frame, Events | Folded)
        frames.append(frame)
        outbox.sent()
    return frames


def test_blocks_go_first_and_each_stream_counts_for_itself() -> None:
    outbox = Outbox("dns/0")
    outbox.put(look_up(1))
    outbox.put(look_up(2, verdict=Verdict.BLOCK))
    outbox.flush(3)
    assert [(frame.stream, frame.seq) for frame in send_all(outbox)] == [(Stream.CRITICAL, 1), (Stream.ACCESS, 1)]


def test_what_was_not_acknowledged_is_sent_again_after_a_reconnect() -> None:
    outbox = Outbox("dns/0")
    for at in range(3):
        outbox.put(look_up(at))
        outbox.flush(at)
    send_all(outbox)
    outbox.acknowledge(Stream.ACCESS, 1)
    assert outbox.is_idle
    outbox.disconnected()
    assert [frame.seq for frame in send_all(outbox)] == [2, 3]
    outbox.acknowledge(Stream.ACCESS, 3)
    assert outbox.unacknowledged == 0


def test_an_acknowledgement_before_the_frame_was_sent_again_is_taken() -> None:
    outbox = Outbox("dns/0")
    outbox.put(look_up(1))
    outbox.flush(1)
    send_all(outbox)
    outbox.disconnected()
    outbox.acknowledge(Stream.ACCESS, 1)
    assert outbox.next_frame() is None
    assert outbox.is_idle


def test_folded_look_ups_are_split_to_fit_a_frame_and_none_is_lost() -> None:
    outbox = Outbox("dns/0", max_bytes=1 << 30)
    templates = [look_up(0, f"{'x' * 200}{i}.example")._replace(client=b"") for i in range(3000)]
    index = [i % 3000 for i in range(9000)]
    clients = [b"\x0a\0\0\2", b"\x0a\0\0\3"]
    who = [i % 7 // 4 for i in range(9000)]
    packed = [event_bytes(template) for template in templates]
    outbox.put_folded(Fold(packed, index, [(at, 3) for at in range(3000)], clients, who))
    seen = []
    for frame in send_all(outbox):
        assert isinstance(frame, Folded)
        rows = zip(frame.which, frame.at_ms, frame.who, strict=True)
        seen += [(frame.templates[i].name, at, frame.clients[one]) for i, at, one in rows]
    assert seen == [(templates[i].name, at // 3, clients[who[at]]) for at, i in enumerate(index)]


def test_blocked_look_ups_travel_folded_on_the_critical_stream() -> None:
    outbox = Outbox("dns/0")
    fold = Fold([event_bytes(look_up(0)._replace(client=b"", verdict=1))], [0], [(5, 1)], [b"\x0a\0\0\2"], [0])
    outbox.put_folded(fold, are_blocks=True)
    outbox.put_folded(fold._replace(times=[(6, 1)]))
    assert [(frame.stream, frame.seq) for frame in send_all(outbox)] == [(Stream.CRITICAL, 1), (Stream.ACCESS, 1)]


def test_memory_is_bounded_and_a_loss_is_a_gap_record_with_its_bounds() -> None:
    outbox = Outbox("nfq/1", max_bytes=20_000)
    for at in range(3000):
        outbox.put(look_up(at))
        if at % 10 == 9:
            outbox.flush(at)
    kept_frames = send_all(outbox)
    outbox.acknowledge(Stream.ACCESS, 300)
    outbox.flush(3000)
    frames = kept_frames + send_all(outbox)
    gap = next(event for frame in frames if isinstance(frame, Events) for event in frame.events if type(event) is Gap)
    kept = sum(len(frame.events) for frame in frames if isinstance(frame, Events)) - 1
    assert gap.lost + kept == 3000
    assert (gap.source, gap.from_ms, gap.to_ms) == ("nfq/1", 0, gap.lost - 1)


def test_a_sent_frame_gives_way_before_an_unsent_one_and_is_no_loss() -> None:
    outbox = Outbox("dns/0", max_bytes=len(events_frame(0, 1, [event_bytes(look_up(at)) for at in range(20)])))
    outbox.put(look_up(0))
    outbox.flush(0)
    send_all(outbox)
    for at in range(1, 20):
        outbox.put(look_up(at))
    outbox.flush(20)
    assert outbox.counters["lost"] == 0
    assert outbox.counters["uninsured"] == 1
    assert len(send_all(outbox)) == 1


def test_critical_records_outlive_any_amount_of_access_records() -> None:
    outbox = Outbox("dns/0", max_bytes=10_000)
    outbox.put(look_up(0, verdict=Verdict.BLOCK))
    for at in range(1, 5000):
        outbox.put(look_up(at))
        outbox.flush(at)
    (first, *_) = send_all(outbox)
    assert isinstance(first, Events)
    assert first.events[0] == look_up(0, verdict=Verdict.BLOCK)


def test_records_fill_one_frame_after_another_in_their_order_and_none_is_too_large() -> None:
    outbox = Outbox("dns/0", max_bytes=1 << 30)
    for at in range(3000):
        outbox.put(look_up(10_000 + at - 5 * (at % 2), "y" * (900 if 1500 < at < 2000 else 3)))
        assert not outbox.is_idle
    outbox.flush(20_000)
    sizes = []
    while (data := outbox.next_frame()) is not None:
        sizes.append(len(data))
        outbox.sent()
    outbox.disconnected()
    frames = send_all(outbox)
    events = [event for frame in frames if isinstance(frame, Events) for event in frame.events]
    assert [event.at_ms for event in events] == [10_000 + at - 5 * (at % 2) for at in range(3000)]
    assert max(sizes) <= MAX_FRAME
    assert max(len(frame.events) for frame in frames if isinstance(frame, Events)) <= MAX_PENDING
    assert len(frames) <= 9  # as few as that: none is sent half empty
    assert outbox.counters["events"] == 3000


def test_a_loss_is_told_with_the_times_of_what_was_lost_whatever_their_order() -> None:
    outbox = Outbox("dns/0", max_bytes=1)
    for at in (500, 300, 900, 400):
        outbox.put(look_up(at))
    outbox.flush(1000)
    outbox.flush(1001, is_last=True)
    (gap,) = [event for frame in send_all(outbox) if isinstance(frame, Events) for event in frame.events]
    assert isinstance(gap, Gap)
    assert (gap.lost, gap.from_ms, gap.to_ms) == (4, 300, 900)
