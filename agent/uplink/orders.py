"""Obeys signed orders from the centre: checked, numbered, on the maintenance log, answered.

An order chooses among what is written here, and gives values that are checked; none brings a program, a path or an
address. Its number is on flash before it is obeyed, so that a power cut never makes one be obeyed twice.
Rule: what is refused is on record too; and the log cannot be flooded by whoever sends rubbish.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol

from agent.clock import SystemClock
from agent.uplink.inside import ask
from agent.uplink.order import Order, check_number, open_order
from agent.uplink.wire import MAX_DATA, Topics, pack_map
from hw.thermal import read_temperatures
from policy.bundle import read_public_key
from policy.config import Config, load
from policy.digest import blake2b
from policy.errors import BundleError, GatehouseError, MessageError, StorageError
from policy.signature import verify
from policy.uci import Section, parse, render

STATE: Final = "orders.json"
KEYS: Final = "keys"
STAGING: Final = "incoming"
MAX_REFUSALS: Final = 20
"""Refused orders put on record, and answered, a minute; those beyond are counted in the next record."""
MAX_ROWS: Final = 20_000
"""Of a lawful query's answer; the reply says that there were more."""
REPLY_BYTES: Final = MAX_DATA - 8192
MAX_STAGED: Final = 64 << 20
"""Octets of a bundle that is brought in pieces."""
REBOOT: Final = ("/sbin/reboot",)
CHANGEABLE: Final = frozenset(
    {
        *(f"dns.{name}" for name in ("rate", "explain", "block_ttl", "stale", "min_ttl", "max_ttl")),
        *(f"ring.{name}" for name in ("flush", "flood_per_hour", "flood_burst")),
        *(f"uplink.{name}" for name in ("heartbeat", "live", "urgent", "bandwidth", "stagger")),
    }
)
"""What a configuration order may set: figures. Nothing with a path, an address, a key, or a duty that it would end."""
_FILE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}").fullmatch
_WHOSE: Final = ("domain", "client", "mac", "account", "phone_index", "session")
_QUERY: Final = (*_WHOSE, "verdict", "kind")
_MUST: Final = ("warrant", "by")


class Reply(NamedTuple):
    """One message for topic `reply`, and what is to be done when it is on its way."""

    payload: bytes
    """Not signed yet."""
    then: Callable[[], None] | None = None


class Note(Protocol):
    """Puts something on the maintenance log."""

    def __call__(
        self, act: str, what: str, result: str, detail: str = "", actor: str = "", old: str = "", new: str = ""
    ) -> None: ...


class _Done(NamedTuple):
    """How it went."""

    text: str
    rows: Iterator[Mapping[str, Any]] | None = None
    then: Callable[[], None] | None = None
    old: str = ""
    new: str = ""


class Orders:
    """One device's orders."""

    def __init__(
        self,
        config: Config,
        config_path: str,
        clock: SystemClock,
        note: Note,
        *,
        restart: Callable[[], None] | None = None,
        reboot: Callable[[], None] | None = None,
    ) -> None:
        """`restart`: end this process, to be started with a changed configuration. `reboot`: of the machine."""
        self._config, self._config_path, self._clock, self._note = config, config_path, clock, note
        self._restart, self._reboot = restart, reboot or _reboot
        self._topics = Topics(config.main.venue, config.main.device)
        self._state_path = os.path.join(config.main.state_dir, STATE)
        self._control = os.path.join(config.main.run_dir, "control")
        self._trouble = ""
        """Why no order can be obeyed; empty: it can."""
        self._numbers = self._read_numbers()
        self._refusals: list[float] = []
        self._unrecorded = 0
        self.counters: Final = {"orders": 0, "orders_refused": 0}
        self._kinds: Final[Mapping[str, Callable[[Order], _Done]]] = {
            "status": self._status,
            "self-test": self._self_test,
            "policy": self._policy,
            "config": self._change,
            "query": self._query,
            "reboot": self._reboot_soon,
        }

    def receive(self, payload: bytes) -> Iterator[Reply]:
        """Check and obey one; gives what is to be answered. Never raises for what the centre sent."""
        number = 0
        try:
            order = open_order(payload, self._topics, self._keys(), verify)
            number = order.number
            if self._trouble:
                raise MessageError(f"order {number}: {self._trouble}")
            check_number(order, self._numbers.get(order.key.hex(), 0))
            self._remember(order)
            self._check(order)
        except (MessageError, StorageError) as error:
            yield from self._refuse(number, str(error))
            return
        self.counters["orders"] += 1
        actor = f"centre: {order.by or order.key.hex()}"
        what = f"{order.kind} {order.number}"
        detail = _described(order)
        self._note("order", what, "taken", detail, actor=actor)
        try:
            done = self._kinds[order.kind](order)
            yield from self._answered(order, done)
        except (GatehouseError, OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
            text = str(error) or repr(error)
            self._note("order", what, f"failed: {text}", detail, actor=actor)
            yield Reply(self._reply(order.number, "failed", text))
            return
        self._note("order", what, f"ok: {done.text}"[:500], detail, actor=actor, old=done.old, new=done.new)

    # --- checking ----------------------------------------------------------------------------------------------

    def _keys(self) -> dict[bytes, bytes]:
        """Read anew each time: a key that was taken away opens nothing from that moment on."""
        found = {}
        for fingerprint in self._config.uplink.order_key:
            try:
                with open(os.path.join(self._config.main.state_dir, KEYS, fingerprint), "rb") as file:
                    key = read_public_key(file.read(4096))
            except (OSError, BundleError):
                continue
            if key.fingerprint == fingerprint:
                found[key.number] = key.key
        return found

    def _check(self, order: Order) -> None:
        if order.kind not in self._kinds or order.kind not in self._config.uplink.allow:
            raise MessageError(f"order {order.number}: {order.kind!r:.40} is nothing that is obeyed here")
        now = self._clock.read()
        if order.expires_s and now.synced and now.wall_ms > order.expires_s * 1000:
            raise MessageError(f"order {order.number}: expired {now.wall_ms // 1000 - order.expires_s} s ago")

    def _refuse(self, number: int, why: str) -> Iterator[Reply]:
        self.counters["orders_refused"] += 1
        now = time.monotonic()
        self._refusals = [at for at in self._refusals if now - at < 60]
        if len(self._refusals) >= MAX_REFUSALS:
            self._unrecorded += 1
            return
        self._refusals.append(now)
        more = f"; {self._unrecorded} more before it" if self._unrecorded else ""
        self._unrecorded = 0
        self._note("order", f"order {number}", f"refused: {why}{more}", actor="centre")
        yield Reply(self._reply(number, "refused", why))

    def _read_numbers(self) -> dict[str, int]:
        try:
            with open(self._state_path, encoding="utf-8") as file:
                found = json.load(file)
            return {str(key): int(number) for key, number in found.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            # Records must go up all the same.
            self._trouble = (
                f"{self._state_path}: cannot be read ({error}), so orders given before could be given again; "
                "remove it once the keys have been changed"
            )
            return {}

    def _remember(self, order: Order) -> None:
        """On flash before it is obeyed. Raises: StorageError."""
        self._numbers[order.key.hex()] = order.number
        _write_whole(self._state_path, json.dumps(self._numbers))

    # --- answering ---------------------------------------------------------------------------------------------

    def _answered(self, order: Order, done: _Done) -> Iterator[Reply]:
        """Rows in as many messages as they need; `last` says which is the last."""
        rows: list[Mapping[str, Any]] = []
        size = part = 0
        for row in done.rows or ():
            octets = len(json.dumps(row, ensure_ascii=False))
            if rows and size + octets > REPLY_BYTES:
                yield Reply(self._reply(order.number, "ok", "", rows, part, is_last=False))
                rows, size, part = [], 0, part + 1
            rows.append(row)
            size += octets
        yield Reply(self._reply(order.number, "ok", done.text, rows, part), done.then)

    def _reply(
        self,
        number: int,
        result: str,
        text: str,
        rows: list[Mapping[str, Any]] | None = None,
        part: int = 0,
        *,
        is_last: bool = True,
    ) -> bytes:
        now = self._clock.read()
        said = {"number": number, "result": result, "text": text[:2000], "part": part, "last": is_last}
        return pack_map({"k": "reply", **said, "wall_ms": now.wall_ms, "rows": rows or []})

    # --- obeying -----------------------------------------------------------------------------------------------

    def _status(self, order: Order) -> _Done:
        return _Done("status", ask(self._control, {"do": "status"}))

    def _self_test(self, order: Order) -> _Done:
        (status,) = ask(self._control, {"do": "status"})
        (chain,) = ask(self._control, {"do": "verify"})
        flash = os.statvfs(self._config.ring.directory)
        free = flash.f_bavail * flash.f_frsize
        temperatures = read_temperatures()
        rows = [
            {"test": "agent", "ok": status["state"] == "protecting", "text": "; ".join(status["why"]) or "protecting"},
            {"test": "chain", "ok": True, "text": f"{chain['batches']} batches and parts are what was written"},
            {"test": "clock", "ok": status["clock"] == "synced", "text": status["clock"]},
            {"test": "flash", "ok": free > 4 << 20, "text": f"{free >> 20} MiB free beside the ring"},
            {"test": "heat", "ok": max(temperatures.values(), default=0) < 95_000, "text": json.dumps(temperatures)},
        ]
        doctor = status.get("self_test", {})
        if doctor.get("result"):  # the last one that ran on the router, by itself or by hand
            text = f"{doctor['result']}, {int(time.time()) - doctor['at_s']} s ago"
            rows.append({"test": "doctor", "ok": doctor["result"] == "ok", "text": text})
        good = sum(1 for row in rows if row["ok"])
        return _Done(f"{good} of {len(rows)} tests passed", iter(rows))

    def _query(self, order: Order) -> _Done:
        """A lawful query: it must say under which warrant, and for whom; both are on record."""
        arguments = order.arguments
        for name in _MUST:
            if not isinstance(arguments.get(name), str) or not arguments[name].strip():
                raise MessageError(f"query: expected {name!r}: no answer without it")
        request = {name: arguments[name] for name in _QUERY if name in arguments}
        request |= {name: arguments[name] for name in ("since_s", "until_s") if name in arguments}
        if not any(request.get(name) for name in _WHOSE):
            raise MessageError(f"query: expected at least one of {', '.join(_WHOSE)}: not everything of everybody")
        rows = ask(self._control, {"do": "query", "limit": MAX_ROWS, **request})
        return _Done(f"answered under warrant {arguments['warrant']}; at most {MAX_ROWS} rows", rows)

    def _change(self, order: Order) -> _Done:
        """Some figures of the configuration; all of them, or none."""
        wanted = order.arguments.get("set")
        if not isinstance(wanted, dict) or not wanted:
            raise MessageError("config: expected `set`: a map of SECTION.OPTION to text")
        for name, value in wanted.items():
            if name not in CHANGEABLE:
                raise MessageError(f"config: {name!r:.60} cannot be changed from afar")
            if not isinstance(value, str) or len(value) > 100 or not value.isprintable():
                raise MessageError(f"config: {name}: expected text, got {value!r:.60}")
        with open(self._config_path, encoding="utf-8") as file:
            old = file.read()
        sections = parse(old, os.path.basename(self._config_path))
        for name, value in wanted.items():
            kind, _, option = name.partition(".")
            sections = _with_option(sections, kind, option, value)
        new = render(sections)
        load(new, "as it would be")
        _write_whole(self._config_path, new)
        list(ask(self._control, {"do": "reload"}))
        text = f"set {', '.join(sorted(wanted))}; a process that reads it only at its start has it from its next one on"
        return _Done(text, None, self._restart, _fingerprint(old), _fingerprint(new))

    def _policy(self, order: Order) -> _Done:
        """A signed bundle, brought in pieces and then applied. Its own signature decides, not this order's."""
        from agent.bundles import apply_bundle, directory_source
        from policy.rules import load_policy

        arguments = order.arguments
        name, file = arguments.get("name"), arguments.get("file")
        bundles = {bundle.name: bundle for bundle in load_policy(list(self._config.policy)).bundles}
        if not isinstance(name, str) or name not in bundles:
            raise MessageError(f"policy: expected the name of a bundle of this venue, got {name!r:.60}")
        staging = os.path.join(self._config.main.state_dir, STAGING)
        if file is not None:
            return self._stage(staging, name, file, arguments.get("offset"), arguments.get("data"))
        keys = os.path.join(self._config.main.state_dir, KEYS)
        now = self._clock.read()
        outcome = apply_bundle(
            bundles[name],
            directory_source(os.path.join(staging, name)),
            self._config.main.state_dir,
            keys,
            now_s=now.wall_ms // 1000,
            at_ms=now.boottime_ms,
            actor=f"centre: {order.by}",
        )
        _clear(os.path.join(staging, name))
        record = outcome.record
        self._note(
            "policy", record.object, record.result, record.detail, actor=record.actor, old=record.old, new=record.new
        )
        if record.result.startswith("refused"):
            raise MessageError(f"policy: {record.detail}")
        if outcome.changed:
            list(ask(self._control, {"do": "reload"}))
        return _Done(f"{record.object}: {record.result}", None, None, record.old, record.new)

    def _stage(self, staging: str, name: str, file: object, offset: object, data: object) -> _Done:
        if not isinstance(file, str) or not _FILE(file) or not isinstance(data, bytes) or type(offset) is not int:
            raise MessageError("policy: expected a file's name, an offset, and octets")
        directory = os.path.join(staging, name)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        path = os.path.join(directory, file)
        size = os.path.getsize(path) if os.path.exists(path) else 0
        staged = sum(entry.stat().st_size for entry in os.scandir(directory))
        if offset == 0:
            staged, size = staged - size, 0
        if offset != size or staged + len(data) > MAX_STAGED:
            raise MessageError(f"policy: {file}: expected octet {size}, got {offset}, within {MAX_STAGED} in all")
        with open(path, "wb" if offset == 0 else "ab") as out:
            out.write(data)
        return _Done(f"{name}/{file}: {offset + len(data)} octets")

    def _reboot_soon(self, order: Order) -> _Done:
        return _Done("reboots now", None, self._reboot)


def _described(order: Order) -> str:
    """The arguments, for the record: octets by their number only."""
    said = {
        str(name): f"{len(value)} octets" if isinstance(value, bytes) else value
        for name, value in order.arguments.items()
    }
    try:
        return json.dumps(said, ensure_ascii=False, default=str)[:500]
    except (TypeError, ValueError, RecursionError):  # a map in it whose names are octets
        return str(said)[:500]


def _with_option(sections: list[Section], kind: str, option: str, value: str) -> list[Section]:
    found = [section for section in sections if section.type == kind]
    if not found:
        return [*sections, Section(kind, kind, {option: value}, 0)]
    changed = found[0]._replace(options={**found[0].options, option: value})
    return [changed if section is found[0] else section for section in sections]


def _write_whole(path: str, text: str) -> None:
    """There is always one whole file. Raises: StorageError."""
    try:
        mode = os.stat(path).st_mode & 0o777 if os.path.exists(path) else 0o600
        with open(path + ".tmp", "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + ".tmp", path)
        descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None


def _clear(directory: str) -> None:
    for entry in os.scandir(directory) if os.path.isdir(directory) else ():
        os.unlink(entry.path)


def _fingerprint(text: str) -> str:
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _reboot() -> None:
    subprocess.run(REBOOT, check=False)
