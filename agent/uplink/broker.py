"""One connection to an MQTT broker, over paho-mqtt: 1.6 (OpenWrt) and 2.x, MQTT 5 and 3.1.1. The shell; no threads.

A new client for each connection: paho keeps what it was given in memory and sends it again by itself, but here the
ring does that, so nothing of an old connection may live on in the new one.
Rule: a server that cannot prove its name with the pinned authority's certificate gets not one octet of MQTT.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.uplink.paho import mqtt
from policy.errors import ConfigError, GatehouseError

CONNECT_S: Final = 15.0
"""For TCP, TLS and CONNACK each."""
SESSION_S: Final = 7 * 86400
"""How long a broker keeps orders for a device that is away."""
GOODBYE_S: Final = 1.0
"""For the broker to hang up after our goodbye."""
MAX_INBOUND: Final = 256
"""Messages taken in and not looked at yet."""
MAX_PACKET: Final = 256 << 10
"""Octets of one MQTT packet that comes: twice what may be in one. A packet may announce 256 MB (MQTT 5, 2.1.4)."""
TCP_USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", 18)
"""Of Linux' tcp.h: give a connection up whose data nobody acknowledges."""


class LinkError(GatehouseError):
    """The broker cannot be reached, or not be trusted; says why."""


class UnsupportedVersionError(LinkError):
    """The broker does not speak MQTT 5."""


class Login(NamedTuple):
    """How to connect."""

    identity: str
    tls: bool = True
    ca: str = ""
    certificate: str = ""
    key: str = ""
    keepalive_s: int = 30
    clean: bool = False
    """Do not let the broker keep messages while we are away."""
    max_inflight: int = 64


class Will(NamedTuple):
    """What the broker says for us when we are gone."""

    topic: str
    payload: bytes


class Inbound(NamedTuple):
    """A message that came."""

    topic: str
    payload: bytes
    is_retained: bool


class Broker:
    """One live connection. `connect` or LinkError; then `work` whenever `socket` can be read, and once a second."""

    def __init__(
        self,
        server: tuple[str, int],
        login: Login,
        subscriptions: Sequence[tuple[str, int]],
        *,
        version: int,
        will: Will | None = None,
    ) -> None:
        """`version` 5 or 4 (3.1.1). Blocks until the subscriptions hold. Raises: LinkError."""
        self.version: Final = version
        self.inbound: Final[list[Inbound]] = []
        self.has_heard = False
        """Something came since this was last set to False."""
        self.unanswered_s = 0.0
        """Monotonic second at which the first was sent that nothing has come after; 0: there is none. The caller's."""
        self._aliases: dict[str, int] = {}
        """Topics that the broker knows by a number. Of this connection, as everything here."""
        self._most_aliases = 0
        self._code: Any = None
        self._granted: Any = None
        self._broken = ""
        self._is_closing = False
        self._host = server[0]
        client = self._client = _client(login, version)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        client.max_inflight_messages_set(login.max_inflight)
        client.max_queued_messages_set(4 * login.max_inflight)
        if will is not None:
            client.will_set(will.topic, will.payload, qos=1, retain=True)
        if login.tls:
            client.tls_set_context(_context(login))
        self._connect(server, login, subscriptions)

    @property
    def socket(self) -> Any:
        """To be selected on. Raises: LinkError when the connection is over."""
        found = self._client.socket()
        if found is None:
            raise LinkError(self._broken or "the connection broke")
        return found

    @property
    def wants_write(self) -> bool:
        """Select for writing, too."""
        return bool(self._client.want_write())

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, is_often: bool = False
    ) -> bool:
        """False: paho's queue is full; later. `is_often`: the topic is said once, then a number (MQTT 5, 3.3.2.3.4)."""
        if qos and not self.unanswered_s:
            self.unanswered_s = time.monotonic()
        more: dict[str, Any] = {}
        known = self._aliases.get(topic)
        alias = known or len(self._aliases) + 1
        if is_often and alias <= self._most_aliases:
            more["properties"] = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            more["properties"].TopicAlias = alias
        else:
            known = None
        info = self._client.publish("" if known else topic, payload, qos=qos, retain=retain, **more)
        is_taken = int(info.rc) in (mqtt.MQTT_ERR_SUCCESS, mqtt.MQTT_ERR_NO_CONN)
        if more and is_taken:
            self._aliases[topic] = alias
        return is_taken

    def work(self) -> None:
        """Read, write, keep alive. Raises: LinkError when the connection is over, or the broker does not speak MQTT."""
        try:
            self._work()
        except (LinkError, OSError):
            raise
        except Exception as error:  # paho raises whatever its parser stumbles over: a dozen types, by version
            raise LinkError(f"{self._host}: says what is no MQTT: {error!r:.120}") from None

    def _work(self) -> None:
        client = self._client
        sock = client.socket()
        if sock is not None:
            before = len(self.inbound)
            for _ in range(MAX_INBOUND):
                code = client.loop_read()
                self._check_size()
                if code or len(self.inbound) - before >= MAX_INBOUND or not _has_more(client.socket()):
                    break
            if client.socket() is not None and client.want_write():
                client.loop_write()
        if client.socket() is not None:
            client.loop_misc()
        if client.socket() is None or self._broken:
            raise LinkError(self._broken or "the connection broke")

    def _check_size(self) -> None:
        """paho gathers a packet of any length in memory before it looks at it."""
        packet = getattr(self._client, "_in_packet", None)
        announced = packet.get("remaining_length", 0) if isinstance(packet, dict) else 0
        if announced > MAX_PACKET:
            raise LinkError(f"{self._host}: sends a packet of {announced} octets, more than {MAX_PACKET}")

    def flush(self) -> None:
        """Write what waits, as far as the socket takes it."""
        if self._client.socket() is not None and self._client.want_write():
            self._client.loop_write()

    def close(self) -> None:
        """Say goodbye: the broker then keeps the will to itself."""
        self._is_closing = True
        sock = self._client.socket()
        # paho closes its socket with the goodbye: this is the connection's other handle.
        end = socket.socket(fileno=os.dup(sock.fileno())) if sock is not None else None
        try:
            self._client.disconnect()
            self.flush()
        except (OSError, ValueError):
            pass
        self.abandon()
        if end is not None:
            _hear_out(end)

    def abandon(self) -> None:
        """Let go without a word."""
        sock = self._client.socket()
        if sock is not None:
            sock.close()

    # --- inside ------------------------------------------------------------------------------------------------

    def _connect(self, server: tuple[str, int], login: Login, subscriptions: Sequence[tuple[str, int]]) -> None:
        client = self._client
        try:
            if self.version == 5:
                properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho has none here
                properties.SessionExpiryInterval = 0 if login.clean else SESSION_S
                properties.MaximumPacketSize = MAX_PACKET
                client.connect(*server, keepalive=login.keepalive_s, clean_start=login.clean, properties=properties)
            else:
                client.connect(*server, keepalive=login.keepalive_s)
        except ssl.SSLCertVerificationError as error:
            raise LinkError(f"{server[0]}: its certificate is refused: {error.verify_message}") from None
        except ssl.SSLError as error:
            raise LinkError(f"{server[0]}: TLS: {error.reason or error}") from None
        except (OSError, ValueError) as error:
            raise LinkError(f"{server[0]} port {server[1]}: {getattr(error, 'strerror', None) or error}") from None
        sock = client.socket()
        if sock is None:
            raise LinkError(f"{server[0]}: {self._broken or 'no connection'}")
        sock.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, login.keepalive_s * 1000)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._wait(lambda: self._code is not None)
            if _number(self._code):
                raise self._refusal()
            if subscriptions:
                client.subscribe(list(subscriptions)) if self.version != 5 else client.subscribe(
                    [(topic, SubscribeOptions(qos=qos)) for topic, qos in subscriptions]
                )
                self._wait(lambda: self._granted is not None)
                denied = [
                    topic
                    for (topic, _), code in zip(subscriptions, self._granted, strict=False)
                    if _number(code) >= 128
                ]
                if denied:
                    raise LinkError(f"{server[0]}: does not let us subscribe to {denied[0]}")
        except LinkError:
            self.abandon()
            raise

    def _wait(self, is_there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + CONNECT_S
        while not is_there():
            sock = self._client.socket()
            left = deadline - time.monotonic()
            if sock is None or left <= 0:
                if self._code is not None and _number(self._code):
                    return
                raise self._refusal() if self._broken else LinkError(f"{self._host}: no answer")
            if not _has_more(sock):
                select.select([sock], [sock] if self.wants_write else [], [], min(left, 0.5))
            try:
                self.work()
            except LinkError:
                if self._code is not None and _number(self._code):
                    return
                raise

    def _refusal(self) -> LinkError:
        number, text = _number(self._code) if self._code is not None else 0, str(self._code)
        # 132 "Unsupported protocol version" (MQTT 5, 2.4); 1 of MQTT 3.1.1 (3.2.2.3). Some old brokers just hang up.
        if self.version == 5 and (number in (1, 132) or (self._code is None and self._broken)):
            return UnsupportedVersionError(f"{self._host}: does not speak MQTT 5")
        return LinkError(f"{self._host}: refuses us: {text if number else self._broken}")

    # paho's two generations call these with different numbers of arguments.
    def _on_connect(self, client: object, data: object, flags: object, code: Any, *rest: object) -> None:
        self._code = code
        properties = rest[0] if rest and self.version == 5 else None
        self._most_aliases = int(getattr(properties, "TopicAliasMaximum", 0))

    def _on_disconnect(self, client: object, data: object, *rest: Any) -> None:
        # 1.6: (code) or (code, properties); 2.x: (flags, code, properties)
        code = rest[1] if len(rest) == 3 else rest[0]
        if not self._is_closing:
            self._broken = f"the connection broke: {_reason(code)}"

    def _on_subscribe(self, client: object, data: object, mid: int, granted: Any, *rest: object) -> None:
        self._granted = granted if isinstance(granted, list | tuple) else [granted]
        self.has_heard = True

    def _on_message(self, client: object, data: object, message: Any) -> None:
        self.has_heard = True
        self.inbound.append(Inbound(message.topic, bytes(message.payload), bool(message.retain)))


def has_old_paho() -> bool:
    """paho-mqtt 1.x, as OpenWrt up to 25.12 has it."""
    return not hasattr(mqtt, "CallbackAPIVersion")


def _client(login: Login, version: int) -> Any:
    options: dict[str, Any] = {"client_id": login.identity, "protocol": version}
    if version != 5:
        options["clean_session"] = login.clean
    if has_old_paho():
        return mqtt.Client(**options, reconnect_on_failure=False)
    version_2 = mqtt.CallbackAPIVersion.VERSION2  # type: ignore[attr-defined]  # not there in 1.6
    return mqtt.Client(version_2, **options, reconnect_on_failure=False)


def _context(login: Login) -> ssl.SSLContext:
    """Read anew for each connection: so a renewed certificate is used by the next one. Raises: ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks the name, and wants a certificate
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(login.ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"gatehouse.uplink.ca: {login.ca}: no certificate of an authority: {_what(error)}") from None
    try:
        context.load_cert_chain(login.certificate, login.key)
    except (OSError, ssl.SSLError) as error:
        place = f"{login.certificate} and {login.key}"
        raise ConfigError(f"gatehouse.uplink.certificate: {place}: no pair: {_what(error)}") from None
    return context


def _what(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or str(error)


def _has_more(sock: Any) -> bool:
    """Octets that TLS has decrypted already: select does not see them."""
    return sock is not None and hasattr(sock, "pending") and sock.pending() > 0


def _number(code: Any) -> int:
    return int(getattr(code, "value", code))


def _reason(code: Any) -> str:
    return mqtt.error_string(code) if isinstance(code, int) else str(code)


def _hear_out(end: socket.socket) -> None:
    """Until the broker hangs up, as it does after DISCONNECT (MQTT 5, 3.14.4).

    A connection that is closed with an acknowledgement unread is reset, and what the broker had not read by then, the
    goodbye, is lost with it: it would publish the will.
    """
    deadline = time.monotonic() + GOODBYE_S
    with end:
        try:
            end.shutdown(socket.SHUT_WR)
            while (left := deadline - time.monotonic()) > 0:
                end.settimeout(left)
                if not end.recv(65536):
                    return
        except OSError:
            pass
