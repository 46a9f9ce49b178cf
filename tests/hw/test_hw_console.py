"""A person at the console: keystrokes in English and in Chinese, on the real process; and who is let in."""

import json
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pexpect.fdpexpect
import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.laptop import sign
from hw.laptop.profile import Profile
from hw.password import LOCK_S
from hw.tty import open_line
from policy.config import load
from tests.hw.simulated import Simulated, write_config
from tests.hw.test_hw_provision import records_of
from tests.hw.wire import Wire

PASSWORD = "sesame-8899"
Start = Callable[..., subprocess.Popen[bytes]]


class Person:
    """At the laptop's end of a wire, with a terminal program."""

    def __init__(self, wire: Wire) -> None:
        self.line = open_line(str(wire.laptop), 115200)
        self.terminal = pexpect.fdpexpect.fdspawn(self.line, encoding="utf-8", codec_errors="replace", timeout=15)
        self.terminal.delaybeforesend = 0
        self.seen = ""

    def type(self, keys: str, then: str = r"gatehouse\*?> $") -> str:
        self.terminal.send(keys + "\r")
        return self.read(then)

    def read(self, then: str) -> str:
        self.terminal.expect(then)
        self.seen += self.terminal.before + self.terminal.after
        return str(self.terminal.before)

    def log_in(self, password: str = PASSWORD) -> None:
        """Also wakes it: a router that is just starting hears nothing yet."""
        for _ in range(50):
            self.terminal.send("\r")
            if self.terminal.expect(["New password: ", "Password / 密码: ", pexpect.TIMEOUT], timeout=0.3) == 0:
                self.type(password, "Once more: ")
                break
            if self.terminal.match != pexpect.TIMEOUT:
                break
        self.type(password)


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    with Wire(tmp_path / "w", is_paced=True) as made:
        yield made


ENGLISH = (
    "set vendor 123456789", "set venue 11010510010001", "set device auto", "set venue-name 'First School'",
    "set lan lo",
    "set wan static 10.0.0.2/24 10.0.0.1 9.9.9.9", "set uplink mqtt.example.org",
    "certificate request", "certificate install", "show", "test", "commit 60", "confirm",
)  # fmt: skip
CHINESE = (
    "设置 厂商 123456789", "设置 场所 11010510010001", "设置 设备 自动", "设置 场所名称 “第一小学”", "设置 内网 lo",
    "设置 外网 静态 10.0.0.2/24 10.0.0.1 9.9.9.9", "设置 上联 mqtt.example.org",
    "证书 申请", "证书 安装", "查看", "测试", "提交 60", "确认",
)  # fmt: skip


@pytest.mark.parametrize(("language", "keys", "name"), [("en", ENGLISH, "First School"), ("zh", CHINESE, "第一小学")])
def test_the_whole_of_it_by_hand(
    wire: Wire, blank: Path, authority: Path, start: Start, language: str, keys: tuple[str, ...], name: str
) -> None:
    start("console", "--config", str(blank), "--line", str(wire.router))
    person = Person(wire)
    begun = time.monotonic()
    person.log_in()
    if language == "zh":
        person.type("语言 中文")
    for line in keys[:7]:
        assert ("staged" if language == "en" else "已暂存") in person.type(line)
    request = person.type(keys[7])
    pem = request[request.index("-----BEGIN") : request.index("REQUEST-----\r\n", request.index("END")) + 12]
    profile = Profile(ca_certificate=f"{authority}/ca.pem", ca_key=f"{authority}/ca.key")
    certificate = sign.sign_request(profile, pem.replace("\r\n", "\n").encode()).decode()
    person.type(keys[8], "END line:\r\n|END 行:\r\n")
    assert "device.pem" in person.type(certificate.strip().replace("\n", "\r"))
    assert "+\toption venue '11010510010001'" in person.type(keys[9])
    assert ("Everything is ok" if language == "en" else "全部正常") in person.type(keys[10])
    assert ("`confirm` within 60 s" if language == "en" else "60 秒内") in person.type(keys[11])
    assert ("it stays" if language == "en" else "配置保留") in person.type(keys[12])
    took_s = time.monotonic() - begun
    person.type("exit" if language == "en" else "退出", "Logged out|已退出登录")
    assert took_s < 60
    config = load(blank.read_text())
    assert (config.main.venue, config.venue.name, config.uplink.enabled) == ("11010510010001", name, True)
    assert "option ipaddr '10.0.0.2'" in (blank.parent / "network").read_text()
    assert (
        config.main.device
        in x509.load_pem_x509_certificate(Path(config.uplink.certificate).read_bytes()).subject.rfc4514_string()
    )


def test_a_wrong_password_five_times_locks_and_is_on_record_and_pulling_the_plug_does_not_help(
    wire: Wire, blank: Path, start: Start
) -> None:
    blank.write_text(
        blank.read_text().replace("'lo'", "'lo'\n\toption firewall 'none'")
        + f"config policy 'policy'\n\toption table '{blank.parent}/policy.image'\n"
        + "config nfq 'nfq'\n\toption enabled '0'\nconfig dns 'dns'\n\toption enabled '0'\n"
    )
    words = ("console", "--config", str(blank), "--line", str(wire.router))
    console = start(*words)
    person = Person(wire)
    person.log_in()
    person.type("exit", "Logged out")
    person.type("", "密码: ")
    for _ in range(4):
        person.type("not-the-password", "That is not the password")
    person.type("not-the-password", "Locked after five failures")
    person.type("", "Locked after five failures")
    console.kill()
    console.wait()
    # Only now there is an agent: what happened before is told to it late, and says so.
    agent = start("agent", "--config", str(blank))
    while not (blank.parent / "run/control").exists():
        assert agent.poll() is None
        time.sleep(0.05)
    start(*words)
    for _ in range(100):
        person.terminal.send("\r")
        if person.terminal.expect([r"Try again in (\d+) s", pexpect.TIMEOUT], timeout=0.2) == 0:
            break
    assert int(person.terminal.match.group(1)) > LOCK_S - 20
    router = Simulated(blank.parent, wire.router).device
    type(router).__mro__[1].note(router, "probe", "x", "ok", "", "test")  # type: ignore[arg-type]
    rows = records_of(blank)
    told = [(row["action"], row["actor"]) for row in rows if str(row["actor"]).startswith("console ")]
    assert sum(action == "login-failed" for action, _ in told) == 5
    assert sum(action == "lock-out" for action, _ in told) == 1
    assert {"password", "login", "logout"} <= {action for action, _ in told}
    assert all("told late" in str(row["detail"]) for row in rows if row["action"] == "login-failed")
    assert "not-the-password" not in json.dumps(rows)


def test_no_secret_is_echoed_kept_in_history_or_on_record(tmp_path: Path, wire: Wire) -> None:
    with Simulated(tmp_path / "r", wire.router) as router:
        person = Person(wire)
        person.log_in()
        person.type("set wan pppoe bob", "Its password: ")
        person.type("geheim-geheim")
        assert "********" in person.type("show")
        assert "Not taken" in person.type("set wan pppoe bob hidden-hidden")
        assert "set wan pppoe bob hidden-hidden" in person.seen  # typed in the clear: it cannot be unseen
        history = person.type("history")
        assert "set wan pppoe bob" in history
        assert "hidden" not in history
        person.type("commit")
        person.type("password", "New password: ")
        person.type("another-secret-1", "Once more: ")
        person.type("another-secret-1")
        person.type("\x10\x10\x10\x10\x10\x10\x10\x03")
        told = json.dumps(router.device.notes)
        for secret in (PASSWORD, "geheim", "another-secret"):
            assert secret not in person.seen
            assert secret not in told
        assert "hidden" not in told
        assert "option password 'geheim-geheim'" in (tmp_path / "r/network").read_text()
        person.type("exit", "Logged out")
        person.log_in("another-secret-1")


def test_a_self_test_that_fails_takes_the_commit_back(tmp_path: Path, wire: Wire) -> None:
    with Simulated(tmp_path / "r", wire.router, test="bound by nobody") as router:
        before = router.path.read_bytes()
        person = Person(wire)
        person.log_in()
        person.type("set venue 11010510010001")
        said = person.type("commit")
        assert "NOT OK   queue: bound by nobody" in said
        assert "mend: install kmod-nft-queue" in said
        assert "the old configuration is in place" in said
        assert router.path.read_bytes() == before
        assert "11010510010001" in person.type("show")  # still staged, to be mended


def test_a_doctor_s_words_are_taken_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seam: whatever `gatehouse doctor --json` prints, there are findings or none, and nothing is raised."""
    import importlib.util

    from agent import console as roof

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    said = {
        "at": "now",
        "findings": [
            {"name": "config", "ok": False, "seen": True, "why": "no", "mend": "do"},
            {"name": "broker", "ok": True, "seen": False, "why": "off", "mend": ""},
            {"name": "rules", "ok": True, "seen": True, "why": "", "mend": ""},
        ],
    }
    (tmp_path / "__main__.py").write_text(f"print({json.dumps(json.dumps(said))})")
    monkeypatch.setattr(roof, "_ROOT", str(tmp_path))
    config, broker, rules = roof.doctor_findings("x") or []
    assert (config.is_ok, config.is_vital, config.mend) == (False, True, "do")
    assert (broker.is_ok, broker.is_seen) == (True, False)
    assert (rules.is_ok, rules.is_vital, rules.is_seen) == (True, False, True)
    for nonsense in ("", "[]", "{", "[1]", "null", '{"a": 1}'):
        (tmp_path / "__main__.py").write_text(f"print({nonsense!r})")
        assert roof.doctor_findings("x") is None


def test_a_mistake_is_told_at_once_and_is_not_committed(tmp_path: Path, wire: Wire) -> None:
    with Simulated(tmp_path / "r", wire.router) as router:
        before = router.path.read_bytes()
        person = Person(wire)
        person.log_in()
        assert "expected a venue code of 14 characters" in person.type("set venue 1101")
        assert "error: gatehouse.main.venue" in person.type("commit")
        person.type("discard")
        assert "unknown option; did you mean 'rate'?" in person.type("set option dns.rtae 5")
        person.type("discard")
        assert "did you mean 'status'" in person.type("statsu")
        assert "a quote is opened" in person.type("set venue-name 'First")
        assert router.path.read_bytes() == before


def test_factory_reset_asks_and_forgets(tmp_path: Path, wire: Wire) -> None:
    with Simulated(tmp_path / "r", wire.router) as router:
        person = Person(wire)
        person.log_in()
        person.type("set venue 11010510010001")
        person.type("commit 60")
        person.type("factory-reset", "go through with it: ")
        assert "Not done" in person.type("no")
        assert load(router.path.read_text()).main.venue
        person.type("恢复出厂", "go through with it: ")
        person.type("reset", "starts anew")
        assert load(router.path.read_text()).main.venue == ""
        # Neither the commit that waited nor the one before comes back.
        assert router.orders.confirm_by is None
        assert router.orders.staging.recover() == []
        assert not list((tmp_path / "r/state/console").glob("old*"))
        person.log_in("brand-new-1")


def test_a_script_takes_the_line_from_a_person_and_gives_it_back(tmp_path: Path, wire: Wire) -> None:
    from hw.laptop.caller import Caller

    with Simulated(tmp_path / "r", wire.router) as router:
        person = Person(wire)
        person.log_in()
        caller = Caller(77, 115200)
        caller.begin({"do": "hello"}, b"", time.monotonic())
        import os

        os.write(person.line, caller.take_output())
        person.terminal.expect("nonce")
        assert not router.console.is_logged_in
        os.write(person.line, b"status\rset venue x\r")  # a person's keys are not read now
        os.write(person.line, b"\r\r\r")
        person.read("Password / 密码: ")
        person.type(PASSWORD)
        assert "Nothing is staged" in person.type("show")


class Held:
    """A console without a line, its jobs done at once, its clock a number."""

    def __init__(self, directory: Path) -> None:
        write_config(directory)
        self.console = Simulated(directory, directory / "nowhere").console
        self.now = 0.0

    def receive(self, data: bytes) -> bytes:
        self.console.receive(data, self.now)
        self.work()
        return self.console.take_output()

    def work(self) -> None:
        from policy.errors import GatehouseError

        while (job := self.console.take_job()) is not None:
            result: object
            try:
                result = job.run()
            except GatehouseError as error:
                result = error
            self.console.finish(job, result, self.now)

    def sleep(self, seconds: float) -> bytes:
        self.now += seconds
        self.console.handle_timer(self.now)
        self.work()
        return self.console.take_output()


def test_whoever_types_nothing_is_logged_out(tmp_path: Path) -> None:
    held = Held(tmp_path)
    held.receive(b"\r" + PASSWORD.encode() + b"\r" + PASSWORD.encode() + b"\r")
    assert held.console.is_logged_in
    held.sleep(200)
    held.receive(b"x")
    assert b"logged out" not in held.sleep(299)
    assert b"logged out" in held.sleep(1)
    assert not held.console.is_logged_in
    assert held.console.next_timer(held.now) is None


def test_noise_and_a_boot_log_on_a_sleeping_line_start_nothing(tmp_path: Path) -> None:
    held = Held(tmp_path)
    held.receive(b"\r" + PASSWORD.encode() + b"\r" + PASSWORD.encode() + b"\rexit\r")
    rng = random.Random(1)
    for _ in range(200):
        held.receive(rng.randbytes(100))
        held.sleep(1)
    held.receive(b"[    0.000000] Booting Linux\r\nlogin: root\r\n" * 20)
    held.sleep(100)
    assert held.console.orders.staging.is_empty


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    made = Held(tmp_path_factory.mktemp("held"))
    made.receive(b"\r" + PASSWORD.encode() + b"\r" + PASSWORD.encode() + b"\r")
    return made


WORDS_TYPED = st.lists(
    st.sampled_from(
        ["set", "设置", "venue", "场所", "wan", "外网", "static", "10.0.0.2/24", "10.0.0.1", "option", "dns.rate",
         "5", "'", "“", "commit", "提交", "rollback", "show", "help", "unset", "policy", "explain", "certificate",
         "install", "\t", "\x1b[A", "\x03", "\x1e", "a" * 300, "confirm", "discard", "test", "language", "zh",
         "history"]
    ),
    max_size=8,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS_TYPED, max_size=3), st.binary(max_size=60))
def test_whatever_is_typed_the_console_lives(held: Held, lines: list[list[str]], noise: bytes) -> None:
    for words in lines:
        held.receive(" ".join(words).encode() + b"\r")
    held.receive(noise)
    held.sleep(2.0)
    held.receive(b"\x03\x03")
    if not held.console.is_logged_in:
        held.receive(b"\r")
        held.sleep(61)
        held.receive(b"\r" + PASSWORD.encode() + b"\r")
    if held.console.is_logged_in:
        assert re.search(rb"gatehouse\*?> $", held.receive(b"\r"))
    load(held.console.orders.staging.text("gatehouse"))
