"""The desk: restarts, power cuts and clocks that are not set; scripts' lines through the real FIFO; leases; rooms."""

import os
import subprocess
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import erasable, identity, session_desk
from agent.clock import Now
from agent.session import Claim
from agent.session_desk import CHECKPOINT_MS, SETTLE_MS, Desk, began_s, read_rooms
from policy.config import load
from policy.errors import ConfigError
from policy.event import Event, Maintenance, Session
from policy.legal import Capture, read_profile
from storage.register import Register

MAC, IP = b"\2\0\0\0\1\1", b"\x0a\0\0\1"
SHIPPED = Path(__file__).resolve().parents[2] / "policy/profiles"
WALL = 1_795_000_000_000
HOOKS = Path(__file__).resolve().parents[2] / "packaging/openwrt/gatehouse/files/usr/libexec/gatehouse"


class Machine:
    """Clocks that the test moves: a boot, the time since, the wall."""

    def __init__(self) -> None:
        self.boot_id, self.boot_ms, self.wall_ms, self.synced = "first", 1_000_000, WALL, True

    def boottime_ms(self) -> int:
        return self.boot_ms

    def read(self) -> Now:
        return Now(self.boot_ms, self.wall_ms, self.synced)

    def wait(self, ms: int) -> None:
        self.boot_ms += ms
        self.wall_ms += ms

    def boot(self, name: str, off_ms: int, *, synced: bool = True) -> None:
        self.boot_id, self.synced = name, synced
        self.wall_ms += off_ms
        self.boot_ms = 20_000


class Venue:
    def __init__(self, directory: Path, machine: Machine, extra: str = "") -> None:
        self.said: list[Event] = []
        text = f"config gatehouse 'main'\n\toption run_dir '{directory}'\n\toption state_dir '{directory}'\n"
        config = load(f"{text}config session 'session'\n\toption leases '{directory}/leases'\n{extra}")
        self.desk = Desk(
            config, machine, Register(str(directory)), self.said.append, lambda: None, lambda event: event  # type: ignore[arg-type]
        )  # fmt: skip

    def sessions(self) -> list[Session]:
        return [event for event in self.said if isinstance(event, Session)]


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_an_agent_that_starts_again_in_the_same_boot_goes_on_with_its_sessions(
    tmp_path: Path, machine: Machine
) -> None:
    first = Venue(tmp_path, machine)
    first.desk.sessions.login(Claim("desk", MAC, (IP,), "ann"), machine.boot_ms)
    first.desk.every_second()
    machine.wait(5_000)
    second = Venue(tmp_path, machine)
    second.desk.begin(was_orderly=False)
    (found,) = second.desk.sessions.all()
    assert (found.account, found.addresses, found.session) == ("ann", [IP], first.sessions()[0].session)
    assert second.desk.attribute(IP, MAC, machine.boot_ms) == found.session
    assert second.sessions() == []


@pytest.mark.parametrize(("was_orderly", "cause"), [(True, "reboot"), (False, "power")])
def test_another_boot_ends_them_where_they_were_last_seen(
    tmp_path: Path, machine: Machine, was_orderly: bool, cause: str
) -> None:
    first = Venue(tmp_path, machine)
    first.desk.sessions.login(Claim("desk", MAC, (IP,), "ann"), machine.boot_ms)
    first.desk.every_second()
    machine.wait(CHECKPOINT_MS)
    first.desk.attribute(IP, MAC, machine.boot_ms)
    seen_wall_ms = machine.wall_ms
    first.desk.checkpoint(machine.boot_ms)
    machine.wait(7_000)
    machine.boot("second", off_ms=3_600_000)
    second = Venue(tmp_path, machine)
    second.desk.begin(was_orderly=was_orderly)
    (record,) = second.sessions()
    offset_ms = machine.wall_ms - machine.boot_ms
    assert (record.cause, record.account) == (cause, "ann")
    assert record.logout_ms + offset_ms == seen_wall_ms
    assert record.login_ms + offset_ms == WALL
    assert record.session == first.sessions()[0].session
    third = Venue(tmp_path, machine)
    third.desk.begin(was_orderly=False)
    assert third.sessions() == [], "ended once"


def test_a_boot_without_a_clock_waits_for_it_and_not_for_ever(tmp_path: Path, machine: Machine) -> None:
    first = Venue(tmp_path, machine)
    first.desk.sessions.login(Claim("desk", MAC, (IP,), "ann"), machine.boot_ms)
    first.desk.every_second()
    machine.boot("second", off_ms=-WALL + 5_000, synced=False)
    second = Venue(tmp_path, machine)
    second.desk.begin(was_orderly=False)
    second.desk.every_second()
    assert second.sessions() == []
    machine.wall_ms, machine.synced = WALL + 600_000, True  # a time server answers
    second.desk.every_second()
    (record,) = second.sessions()
    assert record.logout_ms + machine.wall_ms - machine.boot_ms == WALL

    second.desk.sessions.login(Claim("desk", MAC, (IP,), "ben"), machine.boot_ms)
    second.desk.every_second()
    machine.boot("third", off_ms=0, synced=False)
    third = Venue(tmp_path, machine)
    third.desk.begin(was_orderly=False)
    machine.wait(SETTLE_MS)
    third.desk.every_second()
    assert [(r.account, r.cause, r.logout_ms < machine.boot_ms) for r in third.sessions()] == [("ben", "power", True)]


def test_scripts_write_through_the_fifo_and_rubbish_is_counted(tmp_path: Path, machine: Machine) -> None:
    venue = Venue(tmp_path, machine)
    read: list[Callable[[], None]] = []
    venue.desk.open(lambda end, do: read.append(do))
    env = {**os.environ, "GATEHOUSE_SESSIONS": str(tmp_path / "sessions")}

    def call(*words: str) -> None:
        subprocess.run([str(HOOKS / words[0]), *words[1:]], env=env, check=True, timeout=5)

    call("dhcp-event", "add", "02:00:00:00:01:01", "10.0.0.1", "annas-phone")
    call("hostapd-event", "wlan0", "AP-STA-CONNECTED", "02:00:00:00:01:02")
    call(
        "binauth", "auth_client", "02:00:00:00:01:03", "http://secret.example", "agent\tx", "10.0.0.3", "t", "account=c"
    )
    call("tell", "login", "root", "/dev/ttyS0", "")
    call("tell", "rub\nbish")
    for do in read:
        do()
    assert [(r.source, r.account) for r in venue.sessions()] == [("dhcp", ""), ("hostapd", ""), ("opennds", "c")]
    assert [e.action for e in venue.said if isinstance(e, Maintenance)] == ["login"]
    assert venue.desk.counters["refused_lines"] == 1
    assert "annas-phone" not in repr(venue.said)
    assert "secret" not in repr(venue.said)
    venue.desk.close()
    call("dhcp-event", "del", "02:00:00:00:01:01", "10.0.0.1")  # nobody listens: it does not wait for anybody


def test_leases_of_while_nobody_listened(tmp_path: Path, machine: Machine) -> None:
    venue = Venue(tmp_path, machine)
    (tmp_path / "leases").write_text("0 02:00:00:00:01:01 10.0.0.1 x *\n1 02:00:00:00:01:02 10.0.0.2 x *\nrubbish\n")
    venue.desk.read_leases(machine.boot_ms)
    assert [found.mac for found in venue.desk.sessions.all()] == [MAC], "one is for ever, the other is over"


def test_a_list_of_rooms(tmp_path: Path, machine: Machine) -> None:
    path = tmp_path / "rooms.csv"
    path.write_text("\ufeffroom,mac,ip,account\n7,02:00:00:00:01:01,,room-7\n8,,10.0.0.8,\n9,,,\n")
    assert [(room.room, len(room.keys)) for room in read_rooms(str(path))] == [("7", 1), ("8", 1)]
    for text, said in (("a,b\n", "expected a head line"), ("room,mac\n7,zz\n", "rooms.csv:2: expected a hardware")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            list(read_rooms(str(path)))
    venue = Venue(tmp_path, machine, f"\toption rooms '{path}'\n")
    assert any("expected a hardware" in trouble for trouble in venue.desk.troubles()), "it starts, and says so"


def test_a_sessions_name_says_when_it_began(tmp_path: Path, machine: Machine) -> None:
    venue = Venue(tmp_path, machine)
    found = venue.desk.sessions.login(Claim("desk", MAC, (), "ann"), machine.boot_ms)
    assert found is not None
    assert began_s(found.session) == WALL // 1000
    machine.synced = False
    later = venue.desk.sessions.login(Claim("desk", MAC, (), "ben"), machine.boot_ms)
    assert later is not None
    assert began_s(later.session) == 0


@pytest.mark.parametrize("timeout_s", [1 << 60, 10**30, -(1 << 60), 1.5, True])
def test_a_time_that_the_register_cannot_hold_is_an_error_of_whoever_asks(
    tmp_path: Path, machine: Machine, timeout_s: object
) -> None:
    desk = Venue(tmp_path, machine).desk
    request = {"action": "login", "account": "ann", "mac": "02:00:00:00:01:01", "timeout_s": timeout_s}
    with pytest.raises(ConfigError, match="timeout_s: expected a whole number"):
        list(desk.handle(request))
    list(desk.handle({**request, "timeout_s": 1 << 32}))
    desk.every_second()


def test_a_class_that_logs_in_at_once_does_not_keep_the_loop_from_its_hooks(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phone number takes a router 150 ms, and hooks that are not heard for two seconds are killed."""
    identity.make_keys(str(tmp_path / "secret"), str(tmp_path / "recipient.pub"))
    slow, took, clock = identity.Sealer.index_of, [], [0.0]

    def index_of(sealer: identity.Sealer, phone: str) -> bytes:
        clock[0] += 0.15
        return slow(sealer, phone)

    monkeypatch.setattr(identity.Sealer, "index_of", index_of)
    monkeypatch.setattr(session_desk.time, "monotonic", lambda: clock[0])
    venue = Venue(tmp_path, machine)
    venue.desk.open(lambda end, do: None)
    writer = os.open(tmp_path / "sessions", os.O_WRONLY | os.O_NONBLOCK)
    for number in range(30):
        mac, address = f"02:00:00:00:02:{number:02x}", f"10.0.1.{number}"
        custom = b64encode(f"phone=138{10_000_000 + number}".encode()).decode()
        os.write(writer, f"binauth\tauth_client\t{mac}\t{address}\tt{number}\t\t{custom}\n".encode())
    os.close(writer)
    while len(venue.desk.sessions) < 30:
        before = clock[0]
        venue.desk.read_lines()
        took.append(clock[0] - before)
        assert len(took) < 30, "nothing is left lying"
    assert 0 < max(took) < 1.7
    assert len({session.phone_index for session in venue.sessions()}) == 30
    venue.desk.close()


def test_a_session_that_can_be_erased_survives_a_profile_without_phone_numbers(
    tmp_path: Path, machine: Machine
) -> None:
    """What is closed stands where the phone number would."""
    text = (SHIPPED / "eu-guest.toml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("phone = ")]
    assert len(text.splitlines()) - len(lines) == 2
    capture = Capture(read_profile("\n".join(lines).encode()))
    config = load(f"config gatehouse 'main'\n\toption run_dir '{tmp_path}'\n\toption state_dir '{tmp_path}'\n")
    said, register = list[Event](), Register(str(tmp_path))
    desk = Desk(
        config, machine, register, lambda event: said.extend(capture.take([event])), lambda: None, capture.one,  # type: ignore[arg-type]
        is_erasable=lambda: True,
    )  # fmt: skip
    request = {"action": "login", "mac": "02:00:00:00:01:01", "account": "ann"}
    list(desk.handle({**request, "phone": b"sealed".hex(), "phone_index": "00" * 16}))
    (record,) = [event for event in said if isinstance(event, Session)]
    assert (record.account, record.mac, erasable.is_closed(record)) == ("", b"", True)
    opened = erasable.open_closed(record, register.session_key(record.session))
    assert (opened.account, opened.mac, opened.phone, opened.phone_index) == ("ann", MAC, b"", b"")
    with pytest.raises(ConfigError, match="expected phone to be sealed"):
        list(desk.handle({**request, "phone": b"closed1:13800138000".hex(), "phone_index": "00" * 16}))
