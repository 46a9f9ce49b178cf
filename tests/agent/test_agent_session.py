"""Sessions: one user on one device; who is believed; every end has its cause and is where its user was last seen."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.session import (
    CAUSES,
    LONGEST_MS,
    MAX_ADDRESSES,
    MAX_SESSIONS,
    RANK,
    ROAM_MS,
    STRANGERS_BURST,
    Claim,
    Place,
    Sessions,
)
from policy.event import Session

ANN, BEN = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"
IP1, IP2 = b"\x0a\0\0\1", b"\x0a\0\0\2"
IDLE = 60_000


def table(**options: object) -> Sessions:
    numbers = itertools.count(1)
    return Sessions(lambda: f"s{next(numbers)}", idle_ms=IDLE, **options)  # type: ignore[arg-type]


def records(sessions: Sessions, now_ms: int = 0) -> list[Session]:
    return sessions.take(now_ms)[1]


def test_a_device_that_speaks_has_a_session_and_so_has_its_first_word() -> None:
    sessions = table()
    assert sessions.attribute(IP1, ANN, 100) == "s1"
    assert sessions.attribute(b"\x20\1" + bytes(13) + b"\1", ANN, 110) == "s1"
    (record,) = records(sessions, 200)
    assert (record.login_ms, record.logout_ms, record.cause, record.source) == (100, 0, "", "traffic")
    assert len(record.addresses) == 2
    assert sessions.attribute(IP2, b"", 120) == "", "nobody knows whose that is"


def test_two_users_one_after_the_other_and_a_late_record_of_the_first() -> None:
    sessions = table()
    sessions.login(Claim("desk", ANN, (IP1,), "ann"), 100)
    sessions.attribute(IP1, ANN, 150)
    sessions.login(Claim("desk", ANN, (IP1,), "ben"), 200)
    assert sessions.attribute(IP1, ANN, 199) == "s1"
    assert sessions.attribute(IP1, ANN, 200) == "s2"
    ended, begun = records(sessions, 300)
    assert (ended.account, ended.cause, ended.logout_ms) == ("ann", "replaced", 150)
    assert (begun.account, begun.cause, begun.login_ms) == ("ben", "", 200)


def test_an_address_first_heard_of_in_a_late_record_is_of_who_had_the_device_then() -> None:
    sessions, fresh, other = table(), b"\x20\1" + bytes(13) + b"\1", b"\x20\1" + bytes(13) + b"\2"
    sessions.login(Claim("desk", ANN, (), "ann"), 100)
    assert sessions.attribute(IP1, ANN, 150) == "s1"
    sessions.login(Claim("desk", ANN, (), "ben"), 200)
    assert sessions.attribute(fresh, ANN, 180) == "s1", "the flow waited, and ben was quicker"
    assert sessions.attribute(fresh, ANN, 220) == "s2"
    # Two records of one address, the later one first.
    assert sessions.attribute(other, ANN, 260) == "s2"
    assert sessions.attribute(other, ANN, 240) == "s2"
    assert sessions.attribute(other, ANN, 190) == "s1"
    assert sessions.attribute(other, ANN, 90) == "", "before anybody's login it is nobody's"


def test_an_end_is_where_it_was_last_seen_and_never_now() -> None:
    sessions = table()
    found = sessions.login(Claim("desk", ANN, (IP1,), "ann"), 0)
    assert found is not None
    sessions.seen(IP1, 5_000)
    sessions.handle_timer(5_000 + IDLE - 1)
    assert len(sessions) == 1
    sessions.handle_timer(5_000 + IDLE)
    (record,) = records(sessions, 99_999)
    assert (record.cause, record.logout_ms) == ("idle", 5_000)


def test_a_time_limit_a_radio_that_is_left_and_the_longest_session() -> None:
    sessions = table()
    sessions.login(Claim("desk", ANN, (IP1,), "ann", timeout_ms=1_000), 0)
    sessions.join(BEN, IP2, "dhcp", 0)
    sessions.seen(IP1, 900)
    sessions.handle_timer(1_000)
    assert [r.cause for r in records(sessions) if r.account == "ann"] == ["timeout"]
    sessions.disassociated(BEN, 2_000)
    sessions.associated(BEN, 3_000)  # the next room's access point
    sessions.idle_ms = LONGEST_MS * 2
    sessions.handle_timer(2_000 + ROAM_MS)
    assert len(sessions) == 1
    sessions.disassociated(BEN, 4_000)
    sessions.handle_timer(4_000 + ROAM_MS)
    (record,) = records(sessions)
    assert (record.cause, record.logout_ms) == ("lost", 4_000)
    sessions.join(ANN, IP1, "dhcp", 0)
    sessions.handle_timer(LONGEST_MS)
    assert records(sessions)[-1].cause == "timeout"


def test_a_better_source_is_believed_and_a_worse_one_is_not() -> None:
    sessions = table()
    sessions.join(ANN, IP1, "neighbour", 5)
    assert sessions.login(Claim("opennds", ANN, (IP1,), "guest", token="t"), 10) is not None
    assert sessions.login(Claim("radius", ANN, (IP1,), "ann", token="r/1", nas="r"), 20) is not None
    assert sessions.login(Claim("opennds", ANN, (IP1,), "other", token="t2"), 30) is None
    found = sessions.of(ANN)
    assert found is not None
    assert found.account == "ann"
    assert not sessions.logout(found, "idle", 40, "opennds")
    assert sessions.logout(found, "user", 50, "radius")
    causes = [(r.account, r.cause, r.logout_ms) for r in records(sessions) if r.cause]
    assert causes == [("", "login", 5), ("guest", "replaced", 10), ("ann", "user", 50)]
    assert sessions.counters["conflicts"] == 2


def test_the_same_account_from_two_sources_is_one_session() -> None:
    sessions = table()
    first = sessions.login(Claim("opennds", ANN, (IP1,), "ann", token="t"), 0)
    second = sessions.login(Claim("radius", ANN, (), "ann", room="7", token="r/1", nas="r"), 10)
    assert first is second
    (record,) = records(sessions)
    assert (record.source, record.room) == ("radius", "7")


def test_copies_of_a_start_and_of_an_end_change_nothing() -> None:
    sessions = table()
    start = Claim("radius", ANN, (IP1,), "ann", token="radius:r/1", nas="r")
    sessions.login(start, 0)
    sessions.login(start, 1)
    found = sessions.of(token="radius:r/1")
    assert found is not None
    sessions.logout(found, "user", 10, "radius")
    assert sessions.login(start, 20) is None
    assert len(sessions) == 0
    sessions.nas_ended("r", "lost", 30)  # it starts anew, and counts from 1 again
    assert sessions.login(start, 40) is not None


def test_an_access_controller_that_stops_takes_its_own_sessions_along_and_no_others() -> None:
    sessions = table()
    sessions.login(Claim("radius", ANN, (IP1,), "ann", token="radius:a/1", nas="a"), 0)
    sessions.login(Claim("radius", BEN, (IP2,), "ben", token="radius:b/1", nas="b"), 0)
    assert sessions.nas_ended("a", "shutdown", 10) == 1
    assert [found.account for found in sessions.all()] == ["ben"]


def test_rooms_name_whom_a_device_or_an_address_belongs_to() -> None:
    places = {ANN: Place("room-7", "7"), IP2: Place("", "8")}
    sessions = table(places=places, is_anonymous=False)
    sessions.join(ANN, IP1, "dhcp", 0)
    sessions.join(BEN, IP2, "dhcp", 0)
    sessions.join(b"\2\0\0\0\0\3", b"\x0a\0\0\3", "dhcp", 0)
    assert [(r.account, r.room, r.source) for r in records(sessions)] == [("room-7", "7", "room"), ("", "8", "room")]
    found = sessions.login(Claim("desk", ANN, (), "ann"), 10)
    assert found is not None
    assert (found.account, found.room) == ("ann", "7")


def test_a_lease_that_ends_is_a_logout_and_an_old_neighbour_does_not_undo_it() -> None:
    sessions = table()
    sessions.join(ANN, IP1, "dhcp", 0)
    sessions.leave(IP1, BEN, 5)  # not his
    sessions.leave(IP1, ANN, 10)
    assert records(sessions)[-1].cause == "lease"
    sessions.join(ANN, IP1, "neighbour", 5_000)
    assert len(sessions) == 0
    sessions.join(ANN, IP1, "traffic", 6_000)
    assert len(sessions) == 1


def test_an_address_that_changes_hands_leaves_the_others_session() -> None:
    sessions = table()
    sessions.join(ANN, IP1, "dhcp", 0)
    sessions.join(BEN, IP1, "dhcp", 10)
    assert (sessions.whose(IP1, 5), sessions.whose(IP1, 10)) == ("s1", "s2")
    assert [found.addresses for found in sessions.all()] == [[], [IP1]]


def test_no_address_of_everybody_joins_a_session() -> None:
    sessions = table()
    for address in (
        bytes(4),
        b"\xff\xff\xff\xff",
        b"\xe0\0\0\1",
        b"\x7f\0\0\1",
        bytes(16),
        b"\xfe\x80" + bytes(13) + b"\1",
    ):
        sessions.join(ANN, address, "dhcp", 0)
        assert sessions.attribute(address, ANN, 1) == ""
    assert len(sessions) == 0
    sessions.join(ANN, IP1, "dhcp", 2)
    assert sessions.attribute(b"\xfe\x80" + bytes(13) + b"\1", ANN, 3) == "s1", "whose it is, is known all the same"


def test_a_flood_of_made_up_devices_is_bounded() -> None:
    sessions = table()
    for number in range(3 * STRANGERS_BURST):
        sessions.attribute(number.to_bytes(16, "big"), b"\2" + number.to_bytes(5, "big"), 1_000)
    assert len(sessions) <= STRANGERS_BURST + 20
    assert sessions.counters["strangers_refused"] > STRANGERS_BURST
    sessions.login(Claim("desk", ANN, (IP1,), "ann"), 1_000)
    for number in range(MAX_SESSIONS + 10):
        sessions.login(Claim("opennds", b"\6" + number.to_bytes(5, "big"), (), f"u{number}", token=f"t{number}"), 2_000)
    assert len(sessions) == MAX_SESSIONS


def test_more_addresses_than_a_session_may_have_push_out_the_oldest() -> None:
    sessions = table()
    for number in range(MAX_ADDRESSES + 3):
        sessions.join(ANN, b"\x20\1" + number.to_bytes(14, "big"), "neighbour", number)
    (found,) = sessions.all()
    assert len(found.addresses) == MAX_ADDRESSES
    assert sessions.attribute(b"\x20\1" + bytes(14), ANN, 100) == "s1", "it speaks again, and is his again"


MACS, IPS = st.sampled_from([ANN, BEN, b""]), st.sampled_from([IP1, IP2, b"\x20\1" + bytes(13) + b"\1", bytes(4)])
STEPS = st.one_of(
    st.tuples(st.just("join"), MACS, IPS, st.sampled_from(sorted(RANK))),
    st.tuples(st.just("login"), MACS, IPS, st.sampled_from(["desk", "radius", "opennds"]), st.sampled_from("abc")),
    st.tuples(st.just("logout"), MACS, IPS, st.sampled_from(CAUSES), st.sampled_from(sorted(RANK))),
    st.tuples(st.just("leave"), MACS, IPS),
    st.tuples(st.just("attribute"), MACS, IPS),
    st.tuples(st.just("disassociated"), MACS),
    st.tuples(st.just("nas")),
    st.tuples(st.just("wait"), st.integers(1, 2 * IDLE)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_whatever_happens_the_table_agrees_with_itself(steps: list[tuple[object, ...]]) -> None:
    sessions, now = table(), 1_000
    last: dict[str, Session] = {}
    for step in steps:
        now += 1
        match step:
            case ("join", mac, address, source):
                sessions.join(mac, address, source, now)  # type: ignore[arg-type]
            case ("login", mac, address, source, account):
                claim = Claim(source, mac, (address,), account, token=f"{source}:{account}", nas="n")  # type: ignore[arg-type]
                sessions.login(claim, now)
            case ("logout", mac, address, cause, source):
                found = sessions.of(mac, address)  # type: ignore[arg-type]
                if found is not None:
                    sessions.logout(found, cause, now, source)  # type: ignore[arg-type]
            case ("leave", mac, address):
                sessions.leave(address, mac, now)  # type: ignore[arg-type]
            case ("attribute", mac, address):
                session = sessions.attribute(address, mac, now)  # type: ignore[arg-type]
                assert not session or sessions.find(session) is not None, "an access of now belongs to an open session"
            case ("disassociated", mac):
                sessions.disassociated(mac, now)  # type: ignore[arg-type]
            case ("nas",):
                sessions.nas_ended("n", "lost", now)
            case ("wait", passed):
                now += passed  # type: ignore[operator]
                sessions.handle_timer(now)
        for record in sessions.take(now)[1]:
            assert record.session not in last or not last[record.session].cause, "nothing follows an end"
            assert bool(record.cause) == bool(record.logout_ms)
            assert not record.cause or record.login_ms <= record.logout_ms <= now
            last[record.session] = record
        held = [address for found in sessions.all() for address in found.addresses]
        assert len(held) == len(set(held)), "an address is one session's"
        macs = [found.mac for found in sessions.all() if found.mac]
        assert len(macs) == len(set(macs)), "a device is one session's"
        for found in sessions.all():
            assert all(sessions.whose(address, now) == found.session for address in found.addresses)
    assert {name for name, record in last.items() if not record.cause} == {f.session for f in sessions.all()}


def test_an_access_with_another_devices_address_is_of_whose_packet_it_is() -> None:
    sessions = table()
    sessions.login(Claim("desk", ANN, (IP1,), "ann"), 100)
    sessions.login(Claim("desk", BEN, (IP2,), "ben"), 110)
    assert sessions.attribute(IP1, BEN, 120, is_own=True) == "s2"
    assert sessions.attribute(IP1, ANN, 130, is_own=True) == "s1", "the address is hers still"
    assert sessions.attribute(IP1, b"", 140) == "s1", "a look-up shows no MAC"
    stranger = b"\2\0\0\0\0\7"
    assert sessions.attribute(IP1, stranger, 150, is_own=True) == "s3"
    assert sessions.attribute(IP1, stranger, 160, is_own=True) == "s3"
    # Behind an access controller that routes, every packet has its MAC; it knows whose the address is.
    sessions.login(Claim("radius", b"\2\0\0\0\0\5", (b"\x0a\0\0\5",), "eve", token="radius:ac/1", nas="ac"), 170)
    assert sessions.attribute(b"\x0a\0\0\5", BEN, 180, is_own=True) == "s4"
    assert sessions.of(address=IP1) is sessions.find("s1")
