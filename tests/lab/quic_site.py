"""The lab's internet over HTTP/3: answers for any name, QUIC versions 1 and 2. `python quic_site.py CERT KEY`."""

import asyncio
import sys

from aioquic.asyncio import QuicConnectionProtocol, serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ProtocolNegotiated, QuicEvent


class Site(QuicConnectionProtocol):
    http: H3Connection | None = None

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ProtocolNegotiated):
            self.http = H3Connection(self._quic)
        if self.http is None:
            return
        for found in self.http.handle_event(event):
            if isinstance(found, HeadersReceived):
                asked = dict(found.headers)
                body = b"you asked %s for %s\n" % (asked.get(b":authority", b""), asked.get(b":path", b""))
                head = [(b":status", b"200"), (b"content-type", b"text/plain"), (b"server", b"lab-quic")]
                self.http.send_headers(found.stream_id, head)
                self.http.send_data(found.stream_id, body, end_stream=True)
        self.transmit()


async def main() -> None:
    configuration = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
    configuration.load_cert_chain(sys.argv[1], sys.argv[2])
    # Each address by itself: an answer must come from where it was asked, and a wildcard socket would not care.
    for address in (f"{net}{host}" for net in ("198.51.100.", "2001:db8:100::") for host in (20, 21, 22)):
        await serve(address, 443, configuration=configuration, create_protocol=Site, retry=len(sys.argv) > 3)
    await asyncio.Event().wait()


asyncio.run(main())
