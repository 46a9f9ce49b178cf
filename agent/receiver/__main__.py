"""`python -m agent.receiver`: the centre's end of the uplink, with a broker such as mosquitto and SQLite.

run       take in what devices send, acknowledge it, raise alarms (any number of copies may run)
devices   which devices there are, and how they are
alarms    what a person has to look at
query     what is on record, of all devices or of one
enrol     enter a device's public key
order     sign an order, send it, wait for the answer
key       make a key that orders are signed with
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from agent.receiver.intake import Answer, Intake
from agent.receiver.store import SqliteStore
from agent.uplink import wire
from agent.uplink.broker import Broker, LinkError, Login, UnsupportedVersionError
from agent.uplink.delivery import Backoff
from agent.uplink.wire import ROOT, Acks, Topics
from policy.errors import ConfigError, GatehouseError, StorageError

TIMER_S: Final = 1.0
BATCH: Final = 64
"""Messages taken in before a commit: one fsync for all of them."""


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    options = _parser().parse_args(words)
    try:
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except GatehouseError as error:
        print(f"receiver: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agent.receiver", description="The centre's end of the uplink.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    def broker(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--broker", default="localhost#8883", help="name#port (default localhost#8883)")
        sub.add_argument("--plain", action="store_true", help="no TLS: a broker on this machine or behind a tunnel")
        sub.add_argument("--ca", default="", help="certificate of the authority that signed the broker's")
        sub.add_argument("--certificate", default="", help="our own certificate; its name is our name at the broker")
        sub.add_argument("--key", default="", help="its key")

    def data(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--data", default="/srv/gatehouse/centre", help="directory of what is kept")

    take = command("run", run_receiver, "take in what devices send")
    broker(take)
    data(take)
    take.add_argument("--name", default="receiver", help="our client id; each copy needs its own")
    take.add_argument("--group", default="receivers", help="copies of one group share the work (MQTT 5)")
    for name, run, text in (
        ("devices", run_devices, "which devices there are, and how they are"),
        ("alarms", run_alarms, "what a person has to look at"),
    ):
        data(command(name, run, text))
    query = command("query", run_query, "what is on record; JSON, a record a line")
    data(query)
    query.add_argument("--of", default="", help="VENUE/DEVICE (default: all)")
    for word in ("since", "until", "domain", "client", "mac", "account", "phone-index", "session", "verdict", "kind"):
        query.add_argument(f"--{word}", default="", help="as `gatehouse query`")
    enrol = command("enrol", run_enrol, "enter a device's public key, as `gatehouse status` shows it")
    data(enrol)
    enrol.add_argument("of", help="VENUE/DEVICE")
    enrol.add_argument("public_key", help="64 hexadecimal digits")
    order = command("order", run_order, "sign an order, send it, wait for the answer")
    broker(order)
    order.add_argument("--name", default="operator", help="our client id")
    order.add_argument(
        "--sign-with", required=True, help="secret key, as `key` made it; its last number is kept beside it"
    )
    order.add_argument("--by", default=os.environ.get("USER", ""), help="who gives it, for the record")
    order.add_argument("--wait", type=float, default=30.0, help="seconds")
    order.add_argument(
        "--valid", type=float, default=3600.0, help="seconds after which it is not to be obeyed any more"
    )
    order.add_argument("--device-key", default="", help="the router's public key: only what it signed is an answer")
    order.add_argument("--data", default="", help="or the receiver's directory, which knows that key")
    order.add_argument("of", help="VENUE/DEVICE")
    order.add_argument("kind", help="status, self-test, config, query, reboot, policy")
    order.add_argument(
        "arguments", nargs="*", help="NAME=VALUE; for config SECTION.OPTION=VALUE; for policy name=BUNDLE directory=DIR"
    )
    key = command("key", run_key, "make a key that orders are signed with")
    key.add_argument("path", help="of the secret; the public part goes to PATH.pub, to be laid in a device's keys")
    return parser


class Receiver:
    """One running copy."""

    def __init__(self, store: SqliteStore, server: tuple[str, int], login: Login, group: str) -> None:
        self._store, self._server, self._login, self._group = store, server, login, group
        self.intake = Intake(store)
        self._link: Broker | None = None
        self._version = 5
        self._stopping = False

    def stop(self) -> None:
        """After the next turn."""
        self._stopping = True

    def run(self, reader: int = -1) -> None:
        """Until `stop`, or until something can be read from `reader`."""
        backoff = Backoff(lambda: 0.5, stagger_s=0, most_s=10)
        timer_at = 0.0
        said = ""
        while not self._stopping:
            if self._link is None:
                _sleep(reader, backoff.next_delay_s())
                try:
                    self._connect()
                    backoff.worked()
                    said = ""
                except UnsupportedVersionError:
                    self._version = 4
                except LinkError as error:
                    if str(error) != said:
                        said = str(error)
                        _say(said)
                if reader >= 0 and _is_readable(reader):
                    return
                timer_at = self._look(timer_at)
                continue
            try:
                if self._turn(self._link, reader):
                    break
            except LinkError as error:
                _say(str(error))
                self._link.abandon()
                self._link = None
            timer_at = self._look(timer_at)
        if self._link is not None:
            self._link.close()

    def _connect(self) -> None:
        shared = f"$share/{self._group}/" if self._version == 5 else ""
        topics = [(f"{shared}{ROOT}/+/+/{what}", 1) for what in ("records", "heartbeat", "reply")]
        # What is retained does not come to shared subscriptions (MQTT 5, 4.8.2).
        topics.append((f"{ROOT}/+/+/state", 1))
        self._link = Broker(self._server, self._login, topics, version=self._version)
        _say(f"connected to {self._server[0]}, MQTT {'5' if self._version == 5 else '3.1.1: no shared subscriptions'}")

    def _turn(self, link: Broker, reader: int) -> bool:
        """True: somebody wants us to stop."""
        watched = [link.socket] + ([reader] if reader >= 0 else [])
        ready, _, _ = select.select(watched, [link.socket] if link.wants_write else [], [], TIMER_S)
        link.work()
        while link.inbound:
            messages, link.inbound[:] = link.inbound[:BATCH], link.inbound[BATCH:]
            self._take(link, [(message.topic, message.payload) for message in messages])
        return reader in ready

    def _take(self, link: Broker, messages: list[tuple[str, bytes]]) -> None:
        answers: list[Answer] = []
        try:
            now_ms = time.time_ns() // 1_000_000
            for topic, payload in messages:
                answers += self.intake.receive(topic, payload, now_ms)
            self._store.commit()
        except StorageError as error:
            # Nothing is acknowledged, so all of it comes again.
            _say(f"storage: {error}")
            self._store.rollback()
            return
        by_device: dict[Topics, list[Answer]] = {}
        for answer in answers:
            by_device.setdefault(answer.topics, []).append(answer)
        for topics, some in by_device.items():
            acks = Acks(
                tuple(one.done for one in some if one.done),
                tuple(one.again for one in some if one.again),
                tuple(one.plain for one in some if one.plain),
            )
            link.publish(topics.of("ack"), wire.write(acks), qos=0)
        link.flush()

    def _look(self, at: float) -> float:
        """Once a second: who is silent?"""
        now = time.monotonic()
        if now < at:
            return at
        try:
            for venue, device in self.intake.handle_timer(time.time_ns() // 1_000_000):
                _say(f"{venue}/{device}: silent")
            self._store.commit()
        except StorageError as error:
            _say(f"storage: {error}")
            self._store.rollback()
        return now + TIMER_S


def run_receiver(options: argparse.Namespace) -> int:
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    store = SqliteStore(options.data)
    receiver = Receiver(store, _server(options), _login(options), options.group)
    receiver.run(reader)
    _say(json.dumps(receiver.intake.counters))
    store.close()
    return 0


def run_devices(options: argparse.Namespace) -> int:
    store, now = SqliteStore(options.data), time.time()
    for heard in store.devices():
        ago = f"{now - heard.received_ms / 1000:.0f} s ago" if heard.received_ms else "never"
        beat = heard.heartbeat
        why = beat.get("why", ())
        text = "; ".join(map(str, why)) if isinstance(why, tuple | list) else ""
        said = f"{heard.state or '?'}, heard {ago}, {beat.get('state', '?')} {text}".rstrip()
        print(f"{heard.venue}/{heard.device}: {_harmless(said)}")
    return 0


def run_alarms(options: argparse.Namespace) -> int:
    is_open = False
    for alarm in SqliteStore(options.data).alarms():
        begin, end = _time(alarm.exact_from_ms or alarm.from_ms), _time(alarm.exact_to_ms or alarm.to_ms)
        is_open = is_open or not alarm.to_ms
        print(
            f"{alarm.number:>5} {alarm.venue}/{alarm.device} {alarm.kind} from {begin} to {end or 'now'}: "
            f"{_harmless(alarm.text)}"
        )
    return 1 if is_open else 0


def run_query(options: argparse.Namespace) -> int:
    from agent import when
    from agent.receiver.reader import Centre
    from agent.records import as_row, filter_of

    request: dict[str, object] = {
        name: getattr(options, name)
        for name in ("domain", "client", "mac", "account", "phone_index", "session", "verdict", "kind")
    }
    now_s = time.time()
    if options.since:
        request["since_s"] = when.parse_when(options.since, now_s, "--since")
    if options.until:
        request["until_s"] = when.parse_until(options.until, now_s, "--until")
    wanted = filter_of(request)
    venue, _, device = options.of.partition("/")
    with Centre(options.data) as centre:
        for stream in centre.streams(venue, device):
            for found in centre.query(stream, wanted):
                print(json.dumps({"venue": stream.venue, "device": stream.device, **as_row(found)}, ensure_ascii=False))
        for trouble in centre.troubles:
            _say(trouble)
        return 1 if centre.troubles else 0


def run_enrol(options: argparse.Namespace) -> int:
    public = _public_key(options.public_key)
    store = SqliteStore(options.data)
    store.set_key(_topics(options.of), public, enrolled=True)
    store.commit()
    return 0


def run_order(options: argparse.Namespace) -> int:
    from agent.receiver.orders import Operator, Secret

    arguments: dict[str, Any] = {}
    for word in options.arguments:
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"order: expected NAME=VALUE, got {word!r}")
        arguments[name] = float(value) if name in ("since_s", "until_s") else value
    given: Mapping[str, Any] = {"set": arguments} if options.kind == "config" else arguments
    secret, topics = Secret(options.sign_with), _topics(options.of)
    keys = _device_keys(options, topics)
    if keys is None:
        _say("without --device-key or --data the broker could make up an answer")
    with Operator(_server(options), _login(options), secret, keys) as operator:
        found, until_s = False, int(time.time() + options.valid)
        if options.kind == "policy" and "directory" in arguments:
            name, directory = str(arguments.get("name", "")), str(arguments["directory"])
            answers = operator.bring(topics, name, directory, options.by, wait_s=options.wait, expires_s=until_s)
        else:
            answers = operator.order(topics, options.kind, given, options.by, wait_s=options.wait, expires_s=until_s)
        for reply in answers:
            for row in reply.get("rows", ()):
                print(json.dumps(row, ensure_ascii=False, default=repr))
            if reply.get("last"):
                print(f"{reply['result']}: {reply['text']}", file=sys.stderr)
                found = reply["result"] == "ok"
        return 0 if found else 1


def run_key(options: argparse.Namespace) -> int:
    from agent.receiver.orders import make_key

    print(make_key(options.path))
    return 0


def _public_key(text: str) -> bytes:
    try:
        public = bytes.fromhex(text)
    except ValueError:
        public = b""
    if len(public) != 32:
        raise ConfigError(f"a router's public key: expected 64 hexadecimal digits, got {text!r}")
    return public


def _device_keys(options: argparse.Namespace, topics: Topics) -> dict[bytes, bytes] | None:
    """What a router's answers may be signed with, by number; None: nobody has said."""
    if options.device_key:
        public = _public_key(options.device_key)
        return {public[:8]: public}
    if not options.data:
        return None
    streams = [one for one in SqliteStore(options.data).streams() if one[1:3] == topics and one.public_key]
    # Where somebody has entered a key, one that was merely seen is nothing to go by.
    enrolled = [one for one in streams if one.is_enrolled]
    return {one.ring: one.public_key for one in enrolled or streams}


def _server(options: argparse.Namespace) -> tuple[str, int]:
    host, _, port = options.broker.partition("#")
    if port and not port.isdecimal():
        raise ConfigError(f"--broker: expected name#port, got {options.broker!r}")
    return host, int(port or (1883 if options.plain else 8883))


def _login(options: argparse.Namespace) -> Login:
    return Login(options.name, not options.plain, options.ca, options.certificate, options.key)


def _topics(text: str) -> Topics:
    venue, _, device = text.partition("/")
    if not wire.is_name(venue) or not wire.is_name(device):
        raise ConfigError(f"expected VENUE/DEVICE, got {text!r}")
    return Topics(venue, device)


def _harmless(text: str) -> str:
    """What a device said, for a terminal: nothing that would move its cursor, or colour another router's line."""
    return "".join(one if one.isprintable() else "?" for one in text)


def _time(ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1000)) if ms else ""


def _sleep(reader: int, seconds: float) -> None:
    if seconds > 0:
        select.select([reader] if reader >= 0 else [], [], [], seconds)


def _is_readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


def _say(text: str) -> None:
    print(f"receiver: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
