"""The agent's process, wired: ring, intake, firewall, policy, control. What each part does is in its own module."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Final

from agent import decider, launch, neighbours, policy_source, privileges, uninstall
from agent.__main__ import read_config
from agent.addresses import Addresses
from agent.audit import Audit
from agent.clock import SystemClock
from agent.control import BUSY, IDLE, Answer, Request
from agent.exceptions import Exceptions
from agent.firewall import Guard
from agent.hooks import event_path
from agent.intake import Identity, Intake
from agent.legal import Gate, unchosen
from agent.notice import path_of
from agent.notice_server import NoticeServer
from agent.outward import Outward
from agent.people import People
from agent.queues import Queues
from agent.records import Records, filter_of
from agent.selftest import SelfTest, apart
from agent.server import Server, Timer
from agent.session_desk import Desk
from agent.shared import Shared
from agent.translations import Blocks, Events, outside_address
from agent.uplink.source import Source
from agent.version import VERSION
from agent.visibility import Visibility
from agent.watchful import Watch, config_hash
from hw.led import State
from nfq.admission import Admission
from nfq.kernel import QUEUES_FILE
from policy.config import Config
from policy.errors import ConfigError, GatehouseError, StorageError
from policy.event import Event, Gap, Maintenance, Nat
from policy.frame import Client, Reload
from storage.register import Register

NEIGHBOURS_S: Final = 5.0
"""Between two looks at the kernel's neighbour table."""
ALIVE_S: Final = 1.0
NOTICE_S: Final = 10.0
"""Between two looks at the published notice."""
QUEUES_S: Final = 2.0
SHOW_S: Final = 5.0
"""Between two looks at how everything is, for the status LED."""
STARTING_MS: Final = 60_000
RETENTION_S: Final = 600.0
"""Between two looks at whether records go before the centre has them."""


class Agent:
    """Everything that one agent process holds."""

    def __init__(self, config: Config, path: str) -> None:
        self.config = config
        self.path = path
        self.clock = SystemClock(trusted=config.main.clock == "trusted")
        for directory in (config.main.run_dir, config.main.state_dir):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        self.started_ms = self.clock.boottime_ms()
        self.addresses = Addresses(read_neighbours)
        self.records = Records(config.ring, self.clock, self.note_of)
        self.gate = Gate(config)
        self.register = open_register(config.main.state_dir)
        self.records.register = self.register
        self.desk = Desk(
            config,
            self.clock,
            self.register,
            record=self.put_on_record,
            commit=self.commit,
            keep=self.gate.one,
            last_access=self.records.last_access,
            is_erasable=lambda: self.gate.may_erase,
        )
        self.visibility = Visibility() if config.nfq.enabled else None
        self.intake = Intake(
            self.records.ring,
            self.addresses.identify,
            self.addresses.notice,
            session_of=apart(self.desk.attribute) if config.session.enabled else None,
            capture=self.gate.take,
            takes_all=self.gate.takes_all,
            visibility=self.visibility,
        )
        self.nat = Blocks(config.nfq)
        self.nat_events: Events | None = None
        self.nat_trouble = ""
        self.guard = Guard(config, nat=self.nat.blocks)
        self.queues = Queues(config.nfq, config.main.on_failure == "closed")
        self.policy = policy_source.Keeper(config, path)
        self.storage_trouble = ""
        self._briefed: set[tuple[str, int]] = set()
        self.outward = Outward(config.hardware)
        self.is_up = False
        """Everything was well at least once."""
        self.self_test = SelfTest(config.hardware.self_test_s, path, self.note_asked)
        self._said = ""
        """What is on the maintenance log of a configuration without a legal profile."""
        self.life = Life(config.main.run_dir, config.main.state_dir)
        self.watch = Watch(config.main.state_dir, path, VERSION)
        self.audit = audit = Audit(config.roles, self.note_asked, self.commit, os.getuid(), keeps_in=self.gate.keeps_in)
        self.people = people = People(self.records.ring, self.register, self.desk, self.gate, self.note_asked)
        self.uplink = Source(
            self.records.ring, self.clock, lambda event: self.server.publish(self.intake.record(event))
        )
        exceptions = Exceptions(config.main.state_dir, self.clock.boottime_ms, self.tell)
        self.server = Server(
            event_path=event_path(config),
            control_path=os.path.join(config.main.run_dir, "control"),
            ring=self.records.ring,
            intake=self.intake,
            clock_ms=self.clock.boottime_ms,
            handlers={
                word: audit.guard(word, handler)
                for word, handler in {
                    "status": self.status,
                    "query": self.records.query,
                    "names": self.records.names,
                    "who": self.records.visitors,
                    "show": people.show,
                    "erase": people.erase,
                    "registration": people.registration,
                    "session": self.session,
                    "hold": self.records.hold,
                    "reload": self.reload_and_tell,
                    "override": exceptions.handle,
                    "verify": self.verify,
                    "uplink": self.uplink.handle,
                    "uninstall": self.uninstall,
                    "self-test": self.self_test.take,
                    "button": self.self_test.button,
                    "note": self.take_note,
                }.items()
            },
            describe=self.records.describe,
            follow=audit.guard_follow(lambda request: filter_of(request).matches),
            is_shared=bool(config.roles),
            flush_s=config.ring.flush_s,
            flush_events=config.ring.flush_events,
            reload=self.reload,
            timers=(
                Timer(ALIVE_S, self.every_second),
                Timer(NEIGHBOURS_S, self.look_around),
                Timer(NOTICE_S, self.look_at_notice),
                Timer(SHOW_S, self.show),
                *([Timer(ALIVE_S, self.record_translations)] if config.nfq.nat == "events" else []),
                *([Timer(RETENTION_S, self.uplink.watch_retention)] if config.uplink.enabled else []),
                *([Timer(QUEUES_S, self.watch_queues)] if config.nfq.enabled else []),
            ),
        )
        self.shared = Shared(config, path, event_path(config))
        self.shared.publish(config)
        self.notice = NoticeServer(self.notice_page, self.server.watch, self.server.forget)

    def run(self) -> None:
        """From the start record to the stop record."""
        now_ms = self.clock.boottime_ms()
        ended_ms = self.life.begin(now_ms)
        if ended_ms is not None:
            self.intake.record(Gap(now_ms, "agent", -1, ended_ms, now_ms, "agent died"))
            self.note("crash", "agent", "restarted", f"last alive {now_ms - ended_ms} ms before")
        self.note("start", "agent", "ok", f"release {VERSION}")
        for change in self.watch.begin():
            self.note(change.action, change.object, change.result, change.detail, old=change.old, new=change.new)
        self.tell_capture()
        if self.config.session.enabled:
            self.desk.open(self.server.watch)
            self.desk.begin(was_orderly=ended_ms is None)
        self.notice.open(self.config.notice.listen)
        self.policy.compile_soon()
        self.list_networks()
        signal.signal(signal.SIGUSR1, lambda *_: self.guard.look_soon())  # fw4 has loaded its rules anew
        self.outward.begin()
        self.server.run()
        self.self_test.close()
        self.outward.end()
        self.guard.remove()
        self.desk.close()
        self.note("stop", "agent", "ok")
        try:
            self.records.close()
        except StorageError as error:
            # What waited is lost; the file that says so stays, and the next start puts a gap on record.
            print(f"agent: storage: {error}", file=sys.stderr, flush=True)
            return
        self.life.end()

    def note(
        self, action: str, what: str, result: str, detail: str = "", actor: str = "agent", old: str = "", new: str = ""
    ) -> None:
        """Put something on the maintenance log."""
        event = Maintenance(self.clock.boottime_ms(), actor, action, what, old, new, result, detail)
        self.put_on_record(event)

    def note_asked(self, action: str, what: str, result: str, detail: str, actor: str) -> None:
        """The same for what somebody asked."""
        self.note(action, what, result, detail, actor)

    def put_on_record(self, event: Event) -> None:
        """A record of the agent's own."""
        self.server.publish(self.intake.record(event))

    def session_of(self, address: bytes, mac: bytes, at_ms: int) -> str:
        """Whose it is; nobody's where sessions are off, for there is no record that such a session began or ended."""
        return self.desk.attribute(address, mac, at_ms) if self.config.session.enabled else ""

    def commit(self) -> None:
        """What is on record so far is on flash. Raises: StorageError."""
        self.server.commit_now()

    def note_of(self, action: str, what: str, result: str, actor: str) -> None:
        """The same for what somebody ordered."""
        self.note(action, what, result, actor=actor)

    def every_second(self) -> None:
        now_ms = self.clock.boottime_ms()
        self.life.alive(now_ms)
        self.outward.feed()
        self.self_test.poll()
        try:
            for note in self.records.tick():
                self.note(note.action, note.object, note.result)
        except StorageError as error:
            self.storage_trouble = str(error)
        else:
            self.storage_trouble = ""
        for change in self.watch.look(self.clock.read(), self.server.take_storage_fault() or self.storage_trouble):
            self.note(change.action, change.object, change.result, change.detail, old=change.old, new=change.new)
        if self.config.session.enabled:
            self.desk.every_second()
        if not self.server.storage_error:
            self.finish_erasing()
        self.notice.tidy()
        self.take_policy()
        self.brief_hooks(now_ms)
        alive = {worker.name for worker in self.intake.workers(now_ms) if worker.silent_ms < 1_500}
        self.ask_for_identity()
        for action, text in self.guard.handle_timer(alive):
            self.note(action, "rules", text)

    def finish_erasing(self) -> None:
        try:
            self.people.finish_erasing()
        except StorageError as error:  # tried again in a second
            self.storage_trouble = str(error)

    def ask_for_identity(self) -> None:
        """Where the legal profile asks for identity, only those pass who have logged in."""
        profile, session = self.gate.profile, self.config.session
        if profile is None or profile.identity != "required":
            self.guard.ask_for_identity(None)
            return
        queue = self.config.nfq.refused_queue if self.config.nfq.enabled else -1
        self.guard.ask_for_identity(Admission(queue, session.portal))
        self.guard.admit(self.desk.admitted(lambda address: self.addresses.peek(address).mac))

    def session(self, request: Request) -> Answer:
        """A login is answered when it has opened the door, not a second before."""
        yield from self.desk.handle(request)
        self.ask_for_identity()
        for action, text in self.guard.admit_now():
            self.note(action, "rules", text)

    def watch_queues(self) -> None:
        """What the kernel says of our queues: losses on record, a worker that has lost its queue started again."""
        now_ms = self.clock.boottime_ms()
        alive = {worker.name: worker.pid for worker in self.intake.workers(now_ms) if worker.silent_ms < 1_500}
        try:
            with open(QUEUES_FILE, encoding="ascii") as file:
                watch = self.queues.look(file.read(), self.guard.take_offered(), alive, now_ms)
        except OSError as error:  # no nfnetlink_queue in this kernel: the worker says so louder
            print(f"agent: {QUEUES_FILE}: {error.strerror}", file=sys.stderr, flush=True)
            return
        for gap in watch.records:
            self.server.publish(self.intake.record(gap))
        for name in watch.lost:
            self.note("queue", name, "unbound: the worker is started again")
            try:
                os.kill(alive[name], signal.SIGKILL)
            except OSError:
                pass

    def tell(self, event: Maintenance) -> None:
        """A change of the policy: on record, and the hooks read it."""
        self.server.publish(self.intake.record(event))
        self.shared.open(self.config)
        for role in ("dns", "nfq"):
            self.server.command(role, Reload())
        self.list_networks()

    def take_policy(self) -> None:
        for event in self.policy.poll(self.clock.boottime_ms()):
            self.tell(event)

    def list_networks(self) -> None:
        """The firewall's sets follow the policy."""
        overrides = decider.read_overrides(self.config.main.state_dir, []).active
        try:
            self.guard.list_networks(self.policy.networks(overrides, time.time()))
        except GatehouseError as error:
            print(f"agent: listed networks: {error}", file=sys.stderr, flush=True)

    def brief_hooks(self, now_ms: int) -> None:
        """Tell each hook what is known of the clients' addresses: all of it to a new one, else what changed."""
        changed = dict(self.addresses.take_changes())
        for address in self.desk.take_changes():
            # Without a look at the kernel's table: if a device that has just been logged in is not there yet, its first
            # record, which may come at once, could not look again for half a second.
            changed.setdefault(address, self.addresses.peek(address))
        workers = {(worker.name, worker.pid) for worker in self.intake.workers(now_ms)}
        facts = self.addresses.items() if workers - self._briefed else changed.items()
        self._briefed = workers
        self.record_blocks(changed, now_ms)
        for address, known in facts:
            for role in ("dns", "nfq"):
                self.server.command(role, Client(address, known.mac, self.desk.account_of(address), "", ""))

    def record_blocks(self, changed: Mapping[bytes, Identity], now_ms: int) -> None:
        """Who has which outside ports from now on."""
        if not self.nat.blocks:
            return
        outside = outside_address()
        for address, known in changed.items():
            for record in self.nat.changed(address, known, outside, now_ms):
                self.server.publish(
                    self.intake.record(record._replace(session=self.session_of(address, known.mac, now_ms)))
                )

    def record_translations(self) -> None:
        """Each new flow that conntrack translated, where there are no blocks."""
        now_ms = self.clock.boottime_ms()
        try:
            self.nat_events = self.nat_events or Events()
            lost, found = self.nat_events.lost, self.nat_events.read()
        except OSError as error:
            self.nat_trouble = f"nat: no conntrack events: {error.strerror}; is kmod-nf-conntrack-netlink installed?"
            return
        self.nat_trouble = ""
        for client, outside, port, protocol in found:
            session = self.session_of(client, self.addresses.identify(client).mac, now_ms)
            self.intake.record_later(Nat(now_ms, client, outside, port, port, protocol, 0, session))
        if self.nat_events.lost > lost:
            self.intake.record(Gap(now_ms, "nat", -1, now_ms - 1000, now_ms, "conntrack told more than was taken in"))

    def look_around(self) -> None:
        self.addresses.refresh(read_neighbours())
        if self.config.session.enabled:
            self.desk.look_around()

    def look_at_notice(self) -> None:
        """Nothing of anybody is captured while the notice does not say so."""
        if self.gate.check():
            self.tell_capture()

    def tell_capture(self) -> None:
        profile = self.gate.profile
        if profile is None:
            said = "everything, as it was chosen" if self.config.main.legal else unchosen(self.config)
            if said != self._said:
                self.note("capture", "no legal profile", said)
            self._said = said
        else:
            self._said = ""
            result = "refused: " + self.gate.trouble if self.gate.trouble else "ok"
            self.note("capture", f"profile {profile.name}", result, new=profile.sha256)

    def notice_page(self) -> bytes:
        """What is published, for the agent's own server."""
        try:
            with open(path_of(self.config), "rb") as file:
                return file.read(1 << 18)
        except OSError:
            return b""

    def reload(self) -> None:
        """SIGHUP: read configuration and lists again; a mistake leaves everything as it was."""
        try:
            self.take_config("signal")
        except GatehouseError as error:
            print(f"agent: reload: {error}", file=sys.stderr, flush=True)
            self.note("config", "configuration", f"refused: {error}", actor="signal")

    def take_config(self, actor: str) -> None:
        """Read the configuration again. Raises: GatehouseError, and then the old one goes on."""
        config = read_config(self.path)
        self.policy.change(config)
        self.desk.change(config)
        self.gate.change(config)
        self.self_test.change(config.hardware.self_test_s)
        # The notice states the new days from here on, and whoever has no role any more must not see another row.
        self.records.ring.keep_days(config.ring.promised_days, config.ring.maximum_days)
        self.audit.roles = tuple(config.roles)
        self.config = config
        self.shared.publish(config)
        old, new = self.watch.take_config(config_hash(self.path))
        self.note("config", "configuration", "read again", actor=actor, old=old, new=new)
        self.tell_capture()
        self.policy.compile_soon(actor)

    def reload_and_tell(self, request: Request) -> Answer:
        """The same for a person, who is told how it went."""
        actor = str(request.get("by") or "operator")
        try:
            self.take_config(actor)
        except GatehouseError as error:
            self.note("config", "configuration", f"refused: {error}", actor=actor)
            raise
        while self.policy.is_busy:
            yield IDLE
            self.take_policy()
        yield {"row": {"text": self.policy.report}}

    def uninstall(self, request: Request) -> Answer:
        """The package is about to go: that is on flash before it does."""
        self.put_on_record(uninstall.note(self.clock.boottime_ms(), str(request.get("by") or "root")))
        self.commit()
        yield {"row": {"text": "on record"}}

    def take_note(self, request: Request) -> Answer:
        """What the serial console has to tell; the door lets nobody but root in. Raises: ConfigError."""
        words = [request.get(name, "") for name in ("action", "object", "result", "detail", "old", "new")]
        if not all(isinstance(word, str) and len(word) <= 400 for word in words) or not words[0]:
            raise ConfigError(
                "note: expected action, object, result, detail, old and new, texts of at most 400 characters"
            )
        action, what, result, detail, old, new = map(str, words)
        self.note(action, what, result, detail, str(request.get("by") or "console"), old, new)
        self.commit()
        yield {"row": {}}

    def verify(self, request: Request) -> Answer:
        """Follow the ring's hash chain from end to end."""
        batches = 0
        for _ in self.records.ring.verify():
            batches += 1
            yield BUSY
        yield {"row": {"batches": batches, "head": self.records.ring.head.hex()}}

    def status(self, request: Request) -> Iterator[Mapping[str, object]]:
        """How everything is, in one row."""
        now_ms = self.clock.boottime_ms()
        workers = {worker.name: worker for worker in self.intake.workers(now_ms)}
        ring = self.records.status()
        troubles = self.troubles(ring)
        yield {
            "row": {
                "state": "protecting" if not troubles else "degraded",
                "why": troubles,
                "release": VERSION,
                "up_s": (now_ms - self.started_ms) // 1000,
                "on_failure": self.config.main.on_failure,
                "clock": "synced" if self.clock.read().synced else "unsynced",
                "wall_s": int(time.time()),
                "workers": {
                    name: {"pid": worker.pid, "silent_ms": worker.silent_ms, **worker.counters}
                    for name, worker in workers.items()
                },
                "intake": dict(self.intake.counters),
                "legal": self.gate.describe(),
                "sessions": {"open": len(self.desk.sessions), **self.desk.sessions.counters, **self.desk.counters},
                "visibility": self.visibility.describe() if self.visibility else {},
                "policy": self.policy.describe(),
                "rules": self.guard.describe(),
                "hooks": self.shared.whose,
                "queues": self.queues.describe() if self.config.nfq.enabled else {},
                "ring": ring,
                "uplink": self.uplink.report,
                "hardware": self.outward.describe(),
                "self_test": self.self_test.describe(),
            }
        }

    def troubles(self, ring: Mapping[str, object]) -> list[str]:
        """Everything that is wrong now, in words for a person; empty: the venue is protected."""
        workers = {worker.name for worker in self.intake.workers(self.clock.boottime_ms())}
        wanted = {f"{role}/{worker}" for role, worker in launch.roles(self.config) if role in ("dns", "nfq")}
        troubles = [f"{name} is not there" for name in sorted(wanted - workers)]
        troubles += self.guard.troubles()
        troubles += self.policy.troubles()
        troubles += filter(None, [self.gate.trouble, self.notice.trouble, *self.desk.troubles()])
        troubles += [self.nat_trouble] if self.nat_trouble else []
        troubles += self.uplink.troubles() if self.config.uplink.enabled else ()
        troubles += [*self.outward.troubles(), *self.self_test.troubles()]
        troubles += filter(None, {self.server.storage_error, self.storage_trouble, str(ring["trouble"])})
        if ring.get("at_risk"):
            troubles.append(f"retention at risk: {self.config.ring.promised_days} days will not fit")
        return troubles

    def show(self) -> None:
        """The same on the LED. What is not there yet just after the start is on its way, not missing."""
        if not self.outward.has_led:
            return
        state = State.DEGRADED if self.troubles(self.records.status()) else State.HEALTHY
        self.is_up = self.is_up or state is State.HEALTHY
        starting = not self.is_up and self.clock.boottime_ms() - self.started_ms < STARTING_MS
        self.outward.show(State.BOOTING if starting else state)


class Life:
    """Was the last end an orderly one, and if not, when was the agent last alive?

    A file on tmpfs holds the last second alive, and goes with the power; one on flash says "running" and is written
    twice per orderly life, so that a power cut shows too.
    """

    def __init__(self, run_dir: str, state_dir: str) -> None:
        self._alive = os.path.join(run_dir, "alive")
        self._running = os.path.join(state_dir, "running")

    def begin(self, now_ms: int) -> int | None:
        """CLOCK_BOOTTIME ms at which the last one was last alive; 0: before this boot; None: it ended in order."""
        ended_ms = None
        if os.path.exists(self._running):
            ended_ms = 0
            try:
                with open(self._alive, encoding="ascii") as file:
                    ended_ms = int(file.read())
            except (OSError, ValueError):
                pass
            if ended_ms > now_ms:  # left over from an earlier boot, on a disk instead of a tmpfs
                ended_ms = 0
        else:
            try:
                with open(self._running, "w", encoding="ascii"):
                    pass
            except OSError as error:  # a flash that takes nothing must not keep the venue from its internet
                print(f"agent: {self._running}: {error.strerror}", file=sys.stderr, flush=True)
        return ended_ms

    def alive(self, now_ms: int) -> None:
        """Once a second. A full tmpfs costs the exact bound of a gap, not the agent."""
        try:
            with open(self._alive, "w", encoding="ascii") as file:
                file.write(str(now_ms))
        except OSError:
            pass

    def end(self) -> None:
        for path in (self._alive, self._running):
            try:
                os.unlink(path)
            except OSError:
                pass


def open_register(state_dir: str) -> Register:
    """The register; in memory where its flash takes nothing, which must not keep the venue from its internet."""
    try:
        return Register(state_dir)
    except StorageError as error:
        print(f"agent: register: {error}", file=sys.stderr, flush=True)
        return Register("")


def read_neighbours() -> Mapping[bytes, bytes]:
    """The kernel's neighbour table; empty, and a line in the log, if it cannot be had."""
    try:
        return neighbours.read()
    except OSError as error:
        print(f"agent: neighbour table: {error}", file=sys.stderr, flush=True)
        return {}


def run(config: Config, path: str) -> int:
    """The role `agent`. Returns the exit status."""
    privileges.drop("agent", config)
    Agent(config, path).run()
    return 0
