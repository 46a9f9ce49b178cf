"""The agent's loop: two sockets, some timers, the ring. A thin shell around `agent.intake` and `agent.control`.

One selectors loop and no thread: the ring has one writer, and the order of records is the order of this loop.
What may take long (sealing, compiling a policy) runs in children of its own.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from agent.control import Conversation, Handler, Request, Wanted
from agent.intake import Intake
from policy.errors import ConfigError, FrameError, StorageError
from policy.event import Event
from policy.frame import MAX_FRAME, Ack, Command, Reload, Stop, down_frame

MAX_READS: Final = 32
"""Frames taken from one hook before the others are looked at."""
MAX_CONVERSATIONS: Final = 32
MAX_WAITING: Final = 1 << 20
"""Octets that may wait for a follower."""
URGENT_S: Final = 1.0
"""Unless somebody asks something, between two commits for critical records. The first one is committed at once; blocked
look-ups by the hundred would otherwise each write 15 kB or more, and flash wears by writes. What is not committed is
not acknowledged."""
IDLE_S: Final = 0.05
"""Between two looks at an answer that waits for something outside, such as a compiler's child."""
SOCKET_BYTES: Final = 1 << 20
"""Asked for; the kernel gives at most net.core.rmem_max."""
_UCRED: Final = struct.Struct("3i")


class Ring(Protocol):
    """What the loop itself asks of the ring."""

    def commit(self) -> None: ...


class Timer(NamedTuple):
    """Something to do every so often."""

    every_s: float
    do: Callable[[], None]


class Server:
    """The loop. `run` returns when SIGTERM or SIGINT has been obeyed."""

    def __init__(
        self,
        *,
        event_path: str,
        control_path: str,
        ring: Ring,
        intake: Intake,
        clock_ms: Callable[[], int],
        handlers: Mapping[str, Handler],
        describe: Callable[[Event], Mapping[str, object]],
        follow: Callable[[Request], Wanted],
        flush_s: float,
        flush_events: int,
        reload: Callable[[], None],
        timers: Sequence[Timer] = (),
        is_shared: bool = False,
    ) -> None:
        """`is_shared`: users besides our own may ask; who they are decides what."""
        self._ring = ring
        self._intake = intake
        self._clock_ms = clock_ms
        self._handlers = handlers
        self._describe = describe
        self._follow = follow
        self._flush_s = flush_s
        self._flush_events = flush_events
        self._reload = reload
        self._selector = selectors.DefaultSelector()
        self._hooks: dict[int, socket.socket] = {}
        self._conversations: dict[int, tuple[socket.socket, Conversation]] = {}
        self._flush_at = time.monotonic() + flush_s
        self._urgent_at = 0.0
        self._stopping = False
        self._storage_error = ""
        self._recent_fault = ""
        self._timers = tuple(timers)
        self._due = [time.monotonic()] * len(self._timers)
        self._events = _listen(event_path, socket.SOCK_SEQPACKET)
        self._control = _listen(control_path, socket.SOCK_STREAM)
        if is_shared:
            os.chmod(os.path.dirname(control_path), 0o711)
            os.chmod(control_path, 0o666)
        self._paths = (event_path, control_path)
        self._selector.register(self._events, selectors.EVENT_READ, self._accept_hook)
        self._selector.register(self._control, selectors.EVENT_READ, self._accept_conversation)

    def take_storage_fault(self) -> str:
        """What the storage says now, or has said since this was last asked: a fault of half a second is one too."""
        fault, self._recent_fault = self._storage_error or self._recent_fault, ""
        return fault

    @property
    def storage_error(self) -> str:
        """Why the last commit failed; empty: it did not."""
        return self._storage_error

    def watch(self, end: socket.socket | int, read: Callable[[], None]) -> None:
        """Call `read` whenever something can be read there."""
        self._selector.register(end, selectors.EVENT_READ, lambda _: read())

    def forget(self, end: socket.socket | int) -> None:
        """No longer watch it."""
        self._selector.unregister(end)

    def commit_now(self) -> None:
        """Have everything added so far on flash before something else happens. Raises: StorageError."""
        self._commit()
        if self._storage_error:
            raise StorageError(self._storage_error)

    def run(self) -> None:
        """Serve until told to stop; then take in what the hooks still send, commit, and close."""
        wake = self._catch_signals()
        while not self._stopping:
            self._turn()
        # The hooks were told to stop before us; what they sent on their way out is in the sockets' buffers.
        deadline = time.monotonic() + 1.0
        while self._hooks and time.monotonic() < deadline:
            self._turn(0.05)
        self._commit()
        for path in self._paths:
            os.unlink(path)
        signal.set_wakeup_fd(-1)
        for end in wake:
            end.close()

    def command(self, role: str, message: Command) -> None:
        """Tell all workers of one role something."""
        for connection in self._intake.connections(role):
            self._send(connection, down_frame(message))

    def publish(self, events: Sequence[Event]) -> None:
        """Show records to those who follow."""
        followers = [talk for _, talk in self._conversations.values() if talk.follows is not None]
        if not followers:
            return
        for event in events:
            for talk in followers:
                # A follower that does not read loses rows, not we our memory.
                if len(talk.outgoing) < MAX_WAITING and talk.follows is not None and talk.follows(event):
                    talk.push(self._describe(event))

    def _turn(self, longest_s: float = 1.0) -> None:
        now = time.monotonic()
        due = min([self._flush_at if self._intake.pending else now + longest_s, *self._due])
        if self._intake.urgent:
            due = min(due, self._urgent_at)
        waiting = [talk for _, talk in self._conversations.values() if talk.is_waiting]
        if waiting:
            longest_s = IDLE_S if all(talk.is_idle for talk in waiting) else 0.0
        for key, _ in self._selector.select(max(0.0, min(longest_s, due - now))):
            key.data(key.fileobj)
        now = time.monotonic()
        for number, timer in enumerate(self._timers):
            if now >= self._due[number]:
                self._due[number] = now + timer.every_s
                timer.do()
        self._watch()
        is_due = now >= self._flush_at or self._intake.pending >= self._flush_events
        if (self._intake.urgent and now >= self._urgent_at) or (self._intake.pending and is_due):
            self._commit()
        for conversation in list(self._conversations):
            self._advance(conversation)

    def _commit(self) -> None:
        now = time.monotonic()
        self._flush_at, self._urgent_at = now + self._flush_s, now + URGENT_S
        try:
            self._ring.commit()
        except StorageError as error:
            # Not acknowledged, so the hooks keep it; the ring keeps it too and the next commit tries again.
            if not self._storage_error:
                _say(f"storage: {error}")
            self._storage_error = self._recent_fault = str(error)
            return
        if self._storage_error:
            _say("storage: works again")
            self._storage_error = ""
        for connection, ack in self._intake.committed():
            self._send(connection, down_frame(Ack(*ack)))

    def _accept_hook(self, listener: socket.socket) -> None:
        try:
            hook, _ = listener.accept()
        except OSError:
            return
        hook.setblocking(False)
        pid, _, _ = _UCRED.unpack(hook.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if not self._intake.connected(hook.fileno(), pid, self._clock_ms()):
            hook.close()
            return
        self._hooks[hook.fileno()] = hook
        self._selector.register(hook, selectors.EVENT_READ, self._read_hook)

    def _read_hook(self, hook: socket.socket) -> None:
        connection = hook.fileno()
        if connection < 0:  # closed earlier in this turn
            return None
        for _ in range(MAX_READS):
            try:
                data = hook.recv(MAX_FRAME + 1)
                if not data:
                    return self._drop_hook(connection)
                events = self._intake.receive(connection, data, self._clock_ms())
            except BlockingIOError:
                return None
            except ConnectionResetError:
                # It closed with an acknowledgement of ours unread. The kernel says so once, before the frames that
                # it had sent: they are still to be read.
                continue
            except OSError:
                return self._drop_hook(connection)
            except FrameError as error:
                _say(f"event socket: {error}")
                return self._drop_hook(connection)
            self.publish(events)
        return None

    def _drop_hook(self, connection: int) -> None:
        hook = self._hooks.pop(connection)
        self._selector.unregister(hook)
        hook.close()
        self._intake.disconnected(connection)

    def _send(self, connection: int, data: bytes) -> None:
        try:
            self._hooks[connection].send(data)
        except (OSError, KeyError):
            # Full: the next acknowledgement covers this one. Gone: what it sent before is still to be read, and the
            # end of that says so.
            pass

    def _watch(self) -> None:
        """Kill what hangs: a worker that is bound to a queue and does not read it stops the venue's traffic."""
        # Did it say nothing, or did we not listen? What it said while we were busy is in its socket.
        for connection, _, _ in self._intake.handle_timer(self._clock_ms()):
            self._read_hook(self._hooks[connection])
        now_ms = self._clock_ms()
        for connection, pid, name in self._intake.handle_timer(now_ms):
            if name != "unknown":
                _say(f"{name}: silent, killed (pid {pid})")
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:  # it is gone already
                    pass
                self.publish(self._intake.record_kill(name, now_ms))
            self._drop_hook(connection)

    def _accept_conversation(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        if len(self._conversations) >= MAX_CONVERSATIONS:
            client.close()
            return
        client.setblocking(False)
        _, uid, _ = _UCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        self._conversations[client.fileno()] = (client, Conversation(self._handlers, self._follow, uid))
        self._selector.register(client, selectors.EVENT_READ, self._read_conversation)

    def _read_conversation(self, client: socket.socket) -> None:
        number = client.fileno()
        try:
            data = client.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end_conversation(number)
            return
        self._conversations[number][1].receive(data)
        self._urgent_at = 0.0  # an answer has what happened the moment before

    def _advance(self, number: int) -> None:
        client, talk = self._conversations[number]
        talk.step()
        if talk.outgoing:
            try:
                sent = client.send(talk.outgoing)
                del talk.outgoing[:sent]
            except BlockingIOError:
                pass
            except OSError:
                self._end_conversation(number)
                return
        if talk.is_done and not talk.outgoing:
            self._end_conversation(number)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if talk.outgoing else 0)
        if self._selector.get_key(client).events != wanted:
            read = self._read_conversation if wanted == selectors.EVENT_READ else self._read_or_write
            self._selector.modify(client, wanted, read)

    def _read_or_write(self, client: socket.socket) -> None:
        # Woken by room to write: `_advance` runs at the end of every turn. Reading tells whether the client left.
        self._read_conversation(client)

    def _end_conversation(self, number: int) -> None:
        client, talk = self._conversations.pop(number)
        talk.close()
        self._selector.unregister(client)
        client.close()

    def _catch_signals(self) -> tuple[socket.socket, socket.socket]:
        reader, writer = socket.socketpair()
        for end in (reader, writer):
            end.setblocking(False)
        signal.set_wakeup_fd(writer.fileno())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        self._selector.register(reader, selectors.EVENT_READ, self._read_signals)
        return reader, writer

    def _read_signals(self, reader: socket.socket) -> None:
        arrived = reader.recv(4096)
        if signal.SIGTERM in arrived or signal.SIGINT in arrived:
            self._stopping = True
            for role in ("dns", "nfq"):
                self.command(role, Stop())
        if signal.SIGHUP in arrived:
            self._reload()
            for role in ("dns", "nfq"):
                self.command(role, Reload())


def _listen(path: str, kind: socket.SocketKind) -> socket.socket:
    try:
        os.unlink(path)  # of an agent that was killed
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
    # The mask, not a chmod afterwards: there must be no moment in which others may connect.
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    except OSError as error:
        raise ConfigError(f"gatehouse.main.run_dir: cannot make the socket {path}: {error.strerror or error}") from None
    finally:
        os.umask(mask)
    listener.listen(64)
    return listener


def _say(text: str) -> None:
    print(f"agent: {text}", file=sys.stderr, flush=True)
