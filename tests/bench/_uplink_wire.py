"""A wire that counts what goes over it, both ways, and delays nothing. A process of its own."""

import multiprocessing
import selectors
import socket
from multiprocessing.sharedctypes import Synchronized


class Wire:
    """Listens on `port`, hands on to `to`. `octets`: above TCP, so TLS and MQTT are all in it."""

    def __init__(self, to: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._octets: Synchronized[int] = multiprocessing.Value("q", 0)
        self._process = multiprocessing.Process(target=_carry, args=(self._listener, to, self._octets), daemon=True)

    def __enter__(self) -> "Wire":
        self._process.start()
        self._listener.close()
        return self

    def __exit__(self, *reason: object) -> None:
        self._process.terminate()
        self._process.join()

    @property
    def octets(self) -> int:
        return self._octets.value


def _carry(listener: socket.socket, to: int, octets: "Synchronized[int]") -> None:
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    other: dict[socket.socket, socket.socket] = {}
    while True:
        for key, _ in selector.select():
            here = key.fileobj
            assert isinstance(here, socket.socket)
            if here is listener:
                client, _ = listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", to))
                except OSError:
                    client.close()
                    continue
                for one, two in ((client, server), (server, client)):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    other[one] = two
                    selector.register(one, selectors.EVENT_READ)
                continue
            if here not in other:
                continue
            try:
                data = here.recv(1 << 18)
                if data:
                    other[here].sendall(data)
            except OSError:
                data = b""
            if data:
                with octets.get_lock():
                    octets.value += len(data)
                continue
            for one in (here, other.pop(here)):
                other.pop(one, None)
                selector.unregister(one)
                one.close()
