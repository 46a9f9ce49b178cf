"""What would take a client around the filter, and what must never be blocked. Data only.

Names: blocked by default for every group whose profile does not say `option bypass '0'`. Addresses and ports: for the
packet hook's rules (DNS over TLS and QUIC on 853; DoH by address on 443).
The DNS hook must answer the SIGNALS with NXDOMAIN or no data, whatever the group's `on_block`: an address in the
answer, even 0.0.0.0, tells a browser to go on.
"""

from __future__ import annotations

from typing import Final

SIGNALS: Final[dict[bytes, str]] = {
    # Mozilla, "Canary domain - use-application-dns.net"
    b"use-application-dns.net": "firefox-canary",
    # Apple, "Prepare your network or web server for iCloud Private Relay"
    b"mask.icloud.com": "private-relay",
    b"mask-h2.icloud.com": "private-relay",
    b"mask.apple-dns.net": "private-relay",
    b"mask-canary.icloud.com": "private-relay",
    # RFC 9462 4: discovery of designated resolvers; 8: a resolver that designates none answers no data
    b"resolver.arpa": "ddr",
    # RFC 9606 does the same by name; `_dns` labels below venue names are not touched
}
"""Name (and what is below it) -> what it signals."""

RESOLVERS: Final[tuple[bytes, ...]] = tuple(
    b"""
    dns.google dns64.dns.google 8888.google dns.google.com
    cloudflare-dns.com one.one.one.one 1dot1dot1dot1.cloudflare-dns.com cloudflare-gateway.com dns.cloudflare.com
    mozilla.cloudflare-dns.com chrome.cloudflare-dns.com security.cloudflare-dns.com family.cloudflare-dns.com
    dns.quad9.net dns9.quad9.net dns10.quad9.net dns11.quad9.net dns12.quad9.net dns-nosec.quad9.net
    doh.opendns.com doh.familyshield.opendns.com doh.sandbox.opendns.com dns.opendns.com dns.umbrella.com
    doh.umbrella.com
    dns.adguard.com dns.adguard-dns.com dns-family.adguard.com family.adguard-dns.com unfiltered.adguard-dns.com
    dns-unfiltered.adguard.com d.adguard-dns.com
    dns.nextdns.io dns1.nextdns.io dns2.nextdns.io anycast.dns.nextdns.io doh.nextdns.io
    doh.cleanbrowsing.org family-filter-dns.cleanbrowsing.org adult-filter-dns.cleanbrowsing.org
    security-filter-dns.cleanbrowsing.org
    dns.mullvad.net doh.mullvad.net adblock.dns.mullvad.net base.dns.mullvad.net extended.dns.mullvad.net
    family.dns.mullvad.net all.dns.mullvad.net
    freedns.controld.com dns.controld.com p0.freedns.controld.com p1.freedns.controld.com p2.freedns.controld.com
    p3.freedns.controld.com
    doh.dns.sb dns.sb dot.sb doh.sb doh.dns4all.eu
    dns.alidns.com doh.pub dot.pub dns.pub doh.360.cn dot.360.cn doh.onedns.net
    dns.twnic.tw public.dns.iij.jp jp.tiar.app jp.tiarap.org doh.tiar.app doh.tiarap.org dns.rubyfish.cn
    doh.applied-privacy.net dot1.applied-privacy.net dns.digitale-gesellschaft.ch dns1.digitale-gesellschaft.ch
    dns2.digitale-gesellschaft.ch dns.digitalcourage.de dns3.digitalcourage.de fdns1.dismail.de fdns2.dismail.de
    doh.ffmuc.net dot.ffmuc.net doh.libredns.gr dot.libredns.gr doh.powerdns.org dns.hostux.net dns.switch.ch
    odvr.nic.cz doh.crypto.sx odoh.cloudflare-dns.com dns.njal.la doh.seby.io dns.dnshome.de dnsforge.de
    dns.decloudus.com uncensoredfirewall.decloudus.com unicast.censurfridns.dk anycast.censurfridns.dk
    dns.rabbitdns.org security.rabbitdns.org family.rabbitdns.org dnspub.restena.lu kaitain.restena.lu
    dns0.eu zero.dns0.eu kids.dns0.eu open.dns0.eu protective.joindns4.eu child.joindns4.eu noads.joindns4.eu
    unfiltered.joindns4.eu ordns.he.net dns.comss.one dns.east.comss.one
    doh.la.ahadns.net doh.nl.ahadns.net dot.la.ahadns.net dot.nl.ahadns.net blitz.ahadns.com
    doh.centraleu.pi-dns.com doh.northeu.pi-dns.com doh.westus.pi-dns.com doh.eastus.pi-dns.com
    doh.xfinity.com doh.cox.net dns.charter.net dns.bebasid.com dns.blokada.org
    wikimedia-dns.org dns.aa.net.uk dns.rethinkdns.com sky.rethinkdns.com max.rethinkdns.com
    common.dot.dns.yandex.net safe.dot.dns.yandex.net family.dot.dns.yandex.net
    dnsowl.org doh.fi dns.containerpi.com
    """.split()
)
"""Public DoH, DoT and DoQ resolvers, by name (with what is below it: NextDNS and AdGuard put the customer there)."""

RESOLVER_ADDRESSES: Final[tuple[str, ...]] = tuple(
    """
    8.8.8.8 8.8.4.4 2001:4860:4860::8888 2001:4860:4860::8844
    1.1.1.1 1.0.0.1 1.1.1.2 1.0.0.2 1.1.1.3 1.0.0.3 2606:4700:4700::1111 2606:4700:4700::1001
    2606:4700:4700::1112 2606:4700:4700::1002 2606:4700:4700::1113 2606:4700:4700::1003
    9.9.9.9 149.112.112.112 9.9.9.10 149.112.112.10 9.9.9.11 149.112.112.11 2620:fe::fe 2620:fe::9
    2620:fe::10 2620:fe::11
    208.67.222.222 208.67.220.220 208.67.222.123 208.67.220.123 2620:119:35::35 2620:119:53::53
    94.140.14.14 94.140.15.15 94.140.14.15 94.140.15.16 94.140.14.140 94.140.14.141 2a10:50c0::ad1:ff 2a10:50c0::ad2:ff
    185.228.168.168 185.228.169.168 185.228.168.9 185.228.169.9 185.228.168.10 185.228.169.11
    194.242.2.2 194.242.2.3 194.242.2.4 194.242.2.5 194.242.2.6 194.242.2.9 2a07:e340::2
    76.76.2.0 76.76.10.0 76.76.2.11 76.76.10.11 45.90.28.0 45.90.30.0
    185.222.222.222 45.11.45.11 2a09::
    223.5.5.5 223.6.6.6 2400:3200::1 2400:3200:baba::1 1.12.12.12 120.53.53.53 119.29.29.29
    101.101.101.101 101.102.103.104 130.59.31.248 130.59.31.251 185.95.218.42 185.95.218.43
    193.110.81.0 185.253.5.0 77.88.8.8 77.88.8.1 77.88.8.88 77.88.8.2 77.88.8.7 77.88.8.3
    """.split()  # noqa: SIM905  # eighty quoted strings are harder to read
)
"""The same resolvers by address: no client of a filtered group has business with their ports 443 and 853."""

ENCRYPTED_DNS_PORT: Final = 853
"""DNS over TLS (RFC 7858) on TCP, DNS over QUIC (RFC 9250) on UDP."""

NEVER_BLOCK: Final[tuple[bytes, ...]] = (
    # Captive-portal and connectivity probes: blocked, a phone says "no internet" and leaves for mobile data.
    b"captive.apple.com",
    b"connectivitycheck.gstatic.com",
    b"connectivitycheck.android.com",
    b"clients3.google.com",
    b"www.msftconnecttest.com",
    b"ipv6.msftconnecttest.com",
    b"www.msftncsi.com",
    b"dns.msftncsi.com",
    b"detectportal.firefox.com",
    b"nmcheck.gnome.org",
    b"connectivity-check.ubuntu.com",
    b"networkcheck.kde.org",
    b"connectivitycheck.platform.hicloud.com",
    b"connect.rom.miui.com",
    b"fireoscaptiveportal.com",
    # The clock: without it no TLS, and no schedule of ours
    b"pool.ntp.org",
    b"time.apple.com",
    b"time.windows.com",
    b"time.google.com",
    b"time.android.com",
    b"time.cloudflare.com",
    b"ntp.ubuntu.com",
    # The router's own updates
    b"downloads.openwrt.org",
    b"firmware-selector.openwrt.org",
    b"sysupgrade.openwrt.org",
    # Revocation checks: blocked, browsers stall or lower their guard
    b"ocsp.digicert.com",
    b"ocsp.apple.com",
    b"ocsp2.apple.com",
    b"o.lencr.org",
    b"c.lencr.org",
)
"""Names, and what is below them, that no list and no schedule may block."""
