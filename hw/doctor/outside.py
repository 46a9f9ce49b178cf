"""Checks of what lies outside: the way there, the resolvers, the centre and the certificates for it."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Final

from hw.doctor import wires
from hw.doctor.bedside import Bedside
from hw.doctor.certificate import read_validity
from hw.doctor.finding import Finding, absent
from policy.errors import ConfigError

ANSWER_S: Final = 2.0
CONNECT_S: Final = 5.0
RENEW_DAYS: Final = 14
"""A certificate is renewed so many days before its end."""
MAX_FILE: Final = 64 << 10


def route(bed: Bedside) -> Iterator[Finding]:
    """Is there a way out at all?"""
    four = (bed.read("/proc/net/route") or "").splitlines()[1:]
    six = (bed.read("/proc/net/ipv6_route") or "").splitlines()
    by = {fields[0] for line in four if (fields := line.split())[1:2] == ["00000000"] and fields[7:8] == ["00000000"]}
    # 32 digits of address, 2 of prefix length; the kernel's own unreachable default is on lo.
    by |= {f[9] for line in six if len(f := line.split()) == 10 and f[0] + f[1] == "0" * 34 and f[9] != "lo"}
    if by:
        yield Finding("route", True, f"the way out is {', '.join(sorted(by))}")
    else:
        yield Finding("route", False, "there is no default route", "ifstatus wan; is its cable in?")


def resolvers(bed: Bedside) -> Iterator[Finding]:
    """Does whoever our DNS hook asks answer?"""
    dns = bed.config.dns
    if not dns.enabled:
        yield absent("upstream", "DNS is not filtered, says the configuration")
        return
    if dns.upstream_tls and not dns.upstream:
        yield absent("upstream", "not tried: all of them are asked over TLS")
        return
    silent = [f"{host}#{port}" for host, port in dns.upstream if not _answers(host, port)]
    if len(silent) == len(dns.upstream):
        yield Finding(
            "upstream", False, f"no resolver answers: {', '.join(silent)}",
            "service dnsmasq restart; has it got servers (cat /tmp/resolv.conf.d/resolv.conf.auto)?",
        )  # fmt: skip
    elif silent:
        yield Finding("upstream", False, f"silent: {', '.join(silent)}", "take it out of gatehouse.dns.upstream")
    else:
        yield Finding("upstream", True, ", ".join(f"{host}#{port}" for host, port in dns.upstream))


def certificates(bed: Bedside) -> Iterator[Finding]:
    """Ours and the authority's: there, and valid now?"""
    uplink = bed.config.uplink
    if not uplink.enabled or not uplink.tls:
        yield absent("certificate", "none is needed: no centre over TLS is configured")
        return
    wrong, mends, ends = [], [], []
    for path, mend in (
        (uplink.certificate, "gatehouse certificate renew; have it signed; gatehouse certificate install"),
        (uplink.ca, "ask the centre for its authority's new certificate"),
    ):
        trouble, left_s = _look_at(path, bed.now_s)
        if trouble:
            wrong.append(f"{path}: {trouble}")
            mends.append(mend)
        else:
            ends.append(left_s)
    if not os.path.exists(uplink.key):
        wrong.append(f"{uplink.key}: not there")
        mends.append("gatehouse certificate request")
    if wrong:
        yield Finding("certificate", False, "; ".join(wrong), mends[0])
    else:
        yield Finding("certificate", True, f"valid for {min(ends) / 86400:.0f} days more")


def broker(bed: Bedside) -> Iterator[Finding]:
    """Can the centre be reached, and does it take us?"""
    uplink = bed.config.uplink
    if not uplink.enabled:
        yield absent("broker", "no centre is configured")
        return
    troubles = [(f"{host}#{port}", _connect(bed, host, port)) for host, port in uplink.server]
    failed = [f"{where}: {trouble}" for where, trouble in troubles if trouble]
    if len(failed) == len(troubles):
        yield Finding(
            "broker", False, "; ".join(failed) or "no server is named",
            "gatehouse.uplink.server; is the broker running, and its port open? see certificate and clock",
        )  # fmt: skip
        return
    said = bed.status.get("uplink", {}).get("why") if not bed.silence else ""
    if said:
        yield Finding(
            "broker", False, f"it is reached, but the uplink says: {said}", "the broker's log and access list"
        )
    else:
        yield Finding("broker", True, ", ".join(where for where, trouble in troubles if not trouble))


def _answers(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    number = int.from_bytes(os.urandom(2), "big")
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as link:
            link.connect((host, port))
            deadline = time.monotonic() + ANSWER_S
            link.send(wires.dns_question(b"example.com", number))
            while (left := deadline - time.monotonic()) > 0:
                link.settimeout(left)
                answer = wires.read_dns(link.recv(4096))
                if answer is not None and answer.number == number:
                    return True
    except OSError:
        pass
    return False


def _look_at(path: str, now_s: float) -> tuple[str, float]:
    """What is wrong with a certificate, or how many seconds it still holds."""
    try:
        with open(path, "rb") as file:
            validity = read_validity(file.read(MAX_FILE))
    except OSError as error:
        return error.strerror or "cannot be read", 0.0
    except ConfigError as error:
        return str(error), 0.0
    day = time.strftime("%Y-%m-%d", time.gmtime(validity.ends_s))
    if now_s >= validity.ends_s:
        return f"expired on {day}", 0.0
    if now_s < validity.begins_s:
        return "not valid yet: is the clock right?", 0.0
    left_s = validity.ends_s - now_s
    return (f"ends on {day}", 0.0) if left_s < RENEW_DAYS * 86400 else ("", left_s)


def _connect(bed: Bedside, host: str, port: int) -> str:
    """Why a connection fails; empty: it does not. No MQTT is spoken: a second client of our name would throw off the
    running uplink."""
    uplink = bed.config.uplink
    try:
        with socket.create_connection((host, port), CONNECT_S) as link:
            if not uplink.tls:
                return ""
            context = ssl.create_default_context(cafile=uplink.ca)
            context.load_cert_chain(uplink.certificate, uplink.key)
            with context.wrap_socket(link, server_hostname=host) as secure:
                # In TLS 1.3 the server's word on our certificate comes after the handshake: silence is consent.
                secure.settimeout(0.5)
                try:
                    secure.recv(1)
                except TimeoutError:
                    return ""
                return "the broker closed at once"
    except ssl.SSLCertVerificationError as error:
        return f"its certificate: {error.verify_message}"
    except ssl.SSLError as error:
        return f"TLS: {(error.reason or str(error)).lower().replace('_', ' ')}"
    except socket.gaierror:
        return "its name is not known"
    except TimeoutError:
        return f"no answer within {CONNECT_S:g} s"
    except OSError as error:
        return "connection refused" if error.errno == errno.ECONNREFUSED else error.strerror or str(error)
