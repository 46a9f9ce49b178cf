"""The lab's internet: an HTTP and an HTTPS server that answer for any name. `python site.py CERT KEY`.

GET /bulk/N sends N megabytes; anything else gets a short page that says which host and path were asked for.
Real sockets and real OpenSSL; standard library only, so that the lab needs no web server of the distribution.
"""

import http.server
import socket
import ssl
import sys
import threading


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].split("/")
        if len(parts) == 3 and parts[1] == "bulk" and parts[2].isdecimal():
            size = min(int(parts[2]), 4096) << 20
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            block = bytes(1 << 20)
            for _ in range(size >> 20):
                self.wfile.write(block)
            return
        body = f"you asked {self.headers.get('Host')} for {self.path}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 256
    daemon_threads = True

    def __init__(self, port: int, context: ssl.SSLContext | None) -> None:
        self.context = context
        super().__init__(("::", port), Handler)  # v4-mapped too: IPV6_V6ONLY is off by default

    def finish_request(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        # The handshake belongs to the connection's thread: a silent client must not hold up the others.
        if self.context is not None:
            request.settimeout(30)
            request = self.context.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)
        if self.context is not None:
            request.close()

    def handle_error(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        pass  # a blocked client's reset is what the lab is for


def main() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1], sys.argv[2])
    context.set_alpn_protocols(["http/1.1"])
    # A second HTTPS port: names must be found by content, not by port 443.
    servers = [Server(80, None), Server(8080, None), Server(443, context), Server(8443, context)]
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    servers[0].serve_forever()


main()
