"""One visit from a client of the lab. `python visit.py KIND ADDRESS NAME [CA]`: prints `ok` or what went wrong, and ms.

KIND: `tls` (Python's ssl), `quic1`, `quic2` (aioquic), `burst` (twenty of those), `vpn` (a WireGuard initiation),
`dtls` (a first record).
"""

import socket
import ssl
import sys
import time


def tls(address: str, name: str, ca: str) -> str:
    context = ssl.create_default_context(cafile=ca)
    with (
        socket.create_connection((address, 443), timeout=3) as link,
        context.wrap_socket(link, server_hostname=name) as s,
    ):
        s.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
        return "ok" if b"you asked" in s.recv(4096) + s.recv(4096) else "nothing"


def quic(address: str, name: str, ca: str, version: int) -> str:
    """A handshake over a connected socket, as browsers have it: it hears the ICMP errors."""
    from aioquic.h3.connection import H3_ALPN
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.connection import QuicConnection
    from aioquic.quic.events import HandshakeCompleted

    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=name)
    configuration.original_version = version
    configuration.supported_versions = [version]
    configuration.load_verify_locations(ca)
    connection = QuicConnection(configuration=configuration)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as link:
        link.connect((address, 443))
        link.settimeout(3)
        begin = time.monotonic()
        connection.connect((address, 443), now=begin)
        while time.monotonic() - begin < 3:
            for data, _ in connection.datagrams_to_send(now=time.monotonic()):
                link.send(data)
            try:
                data = link.recv(65536)
            except ConnectionRefusedError:
                return "refused"
            connection.receive_datagram(data, (address, 443), now=time.monotonic())
            while (event := connection.next_event()) is not None:
                if isinstance(event, HandshakeCompleted):
                    return "ok"
    return "timeout"


def udp(address: str, first: bytes) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as link:
        link.sendto(first, (address, 51820))
    return "ok"


def main() -> None:
    kind, address, name, ca = [*sys.argv[1:], ""][:4]
    if kind.startswith(("quic", "burst")):
        import aioquic.quic.connection  # noqa: F401  # a second of imports is not part of the visit
    begin = time.monotonic()
    try:
        if kind == "burst":
            said = f"{sum(quic(address, name, ca, 1) == 'refused' for _ in range(20))} refused"
        elif kind == "tls":
            said = tls(address, name, ca)
        elif kind.startswith("quic"):
            said = quic(address, name, ca, 1 if kind == "quic1" else 0x6B3343CF)
        else:
            said = udp(address, b"\1\0\0\0" + bytes(144) if kind == "vpn" else b"\x16\xfe\xfd" + bytes(60))
    except (OSError, TimeoutError, ConnectionError) as error:
        said = f"{type(error).__name__} {error}"
    print(f"{(time.monotonic() - begin) * 1000:.0f} {said}")


main()
