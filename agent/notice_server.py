"""Serves the notice on the LAN: one page over HTTP/1.0, from the agent's own loop.

Whatever is asked for, the answer is the page; whoever says nothing for five seconds, or too much, is let go.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

MAX_CLIENTS: Final = 16
MAX_REQUEST: Final = 8192
PATIENCE_S: Final = 5.0


class NoticeServer:
    """Listening sockets and who is connected. `watch` and `forget` are the loop's."""

    def __init__(
        self,
        page: Callable[[], bytes],
        watch: Callable[[socket.socket | int, Callable[[], None]], None],
        forget: Callable[[socket.socket | int], None],
    ) -> None:
        self._page, self._watch, self._forget = page, watch, forget
        self._clients: dict[socket.socket, tuple[float, bytearray]] = {}
        self._waiting: list[tuple[str, int]] = []
        self.trouble = ""
        """Why it is not served somewhere; empty: it is everywhere it should be."""

    def open(self, listen: Sequence[tuple[str, int]]) -> None:
        """Where it is to be served. An address that is not there yet, as at boot, is tried again by `tidy`."""
        self._waiting = list(listen)
        self._try()

    def _try(self) -> None:
        waiting, self._waiting, self.trouble = self._waiting, [], ""
        for host, port in waiting:
            door = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.setblocking(False)
            try:
                door.bind((host, port))
                door.listen(MAX_CLIENTS)
            except OSError as error:
                door.close()
                self._waiting.append((host, port))
                self.trouble = f"gatehouse.notice.listen: {host}#{port}: {error.strerror}"
                continue
            self._watch(door, lambda door=door: self._accept(door))  # type: ignore[misc]  # bound at once

    def tidy(self) -> None:
        """Once a second: let go of those that say nothing."""
        if self._waiting:
            self._try()
        now = time.monotonic()
        for client in [client for client, (since, _) in self._clients.items() if now - since > PATIENCE_S]:
            self._drop(client)

    def _accept(self, door: socket.socket) -> None:
        try:
            client, _ = door.accept()
        except OSError:
            return
        if len(self._clients) >= MAX_CLIENTS:
            client.close()
            return
        client.setblocking(False)
        self._clients[client] = (time.monotonic(), bytearray())
        self._watch(client, lambda: self._read(client))

    def _read(self, client: socket.socket) -> None:
        _, said = self._clients[client]
        try:
            data = client.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        said += data
        is_whole = b"\r\n\r\n" in said or b"\n\n" in said
        if data and not is_whole and len(said) <= MAX_REQUEST:
            return
        if is_whole:
            try:
                client.send(_answer(bytes(said[:5]), self._page()))  # some kB: it fits a fresh socket's buffer
            except OSError:
                pass
        self._drop(client)

    def _drop(self, client: socket.socket) -> None:
        del self._clients[client]
        self._forget(client)
        client.close()


def _answer(begin: bytes, page: bytes) -> bytes:
    if not begin.startswith((b"GET ", b"HEAD ")):
        return b"HTTP/1.0 405 Method Not Allowed\r\nAllow: GET, HEAD\r\nContent-Length: 0\r\n\r\n"
    status = b"200 OK" if page else b"503 Service Unavailable"
    head = b"HTTP/1.0 %b\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: %d\r\n" % (status, len(page))
    head += b"Cache-Control: no-cache\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    return head if begin.startswith(b"HEAD") else head + page
