"""Scripts' lines, leases and RADIUS: real ones are read; whatever else comes raises their own error or is nothing."""

import random
import struct
from base64 import b64encode
from hashlib import md5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.radius import Status, read_request, response
from agent.session_lines import AUTH, DEAUTH, Happening, read_lease, read_line
from policy.errors import HookError, RadiusError

SECRET = b"testing123"
MAC = b"\2\0\0\0\1\1"


def request(attributes: bytes, secret: bytes = SECRET, code: int = 4) -> bytes:
    head = struct.pack("!BBH", code, 7, 20 + len(attributes))
    return head + md5(head + bytes(16) + attributes + secret).digest() + attributes


def attribute(kind: int, value: bytes) -> bytes:
    return bytes((kind, len(value) + 2)) + value


WHOLE = b"".join(
    attribute(kind, value)
    for kind, value in (
        (40, b"\0\0\0\2"), (1, "安娜".encode()), (44, b"5f2"), (31, b"02-00-00-00-01-01:ssid"[:17]), (8, b"\x0a\0\0\1"),
        (168, b"\x20\1" + bytes(13) + b"\1"), (97, b"\0\x80" + b"\x20\1" + bytes(13) + b"\2"), (32, b"ac1"),
        (33, b"state1"), (33, b"state2"), (46, b"\0\0\1\0"), (49, b"\0\0\0\4"), (41, b"\0\0\0\3"), (26, b"\0\0\0\0xx"),
    )
)  # fmt: skip


def test_a_stop_with_everything_in_it() -> None:
    found = read_request(request(WHOLE) + b"padding", SECRET, "peer")
    assert (found.status, found.account, found.token) == (Status.STOP, "安娜", "radius:ac1/5f2")
    assert (found.mac, found.nas, found.cause) == (MAC, "ac1", "idle")
    assert found.addresses == (b"\x0a\0\0\1", b"\x20\1" + bytes(13) + b"\1", b"\x20\1" + bytes(13) + b"\2")
    assert (found.session_s, found.delay_s) == (256, 3)


def test_the_answer_is_what_rfc_2866_asks_for() -> None:
    found = read_request(request(WHOLE), SECRET, "peer")
    answer = response(found, SECRET)
    assert answer[:4] == struct.pack("!BBH", 5, 7, len(answer))
    assert answer[4:20] == md5(answer[:4] + found.authenticator + answer[20:] + SECRET).digest()
    assert answer[20:] == attribute(33, b"state1") + attribute(33, b"state2")


@pytest.mark.parametrize(
    "data",
    [
        request(WHOLE, b"another"),
        request(WHOLE, code=1),
        request(WHOLE)[:-1],
        request(WHOLE + b"\1"),
        request(WHOLE + b"\1\1"),
        request(WHOLE + b"\1\xff"),
        b"",
        b"\4\1\0\x14",
    ],
)
def test_what_is_not_right_is_refused(data: bytes) -> None:
    with pytest.raises(RadiusError):
        read_request(data, SECRET, "peer")


def test_every_truncation_and_every_changed_octet_is_refused() -> None:
    whole, rng = request(WHOLE), random.Random(1)
    for size in range(len(whole)):
        with pytest.raises(RadiusError):
            read_request(whole[:size], SECRET, "peer")
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= rng.randrange(1, 256)
        if at == 1:
            continue  # the identifier is covered too
        with pytest.raises(RadiusError):
            read_request(bytes(changed), SECRET, "peer")


@given(st.binary(max_size=300))
def test_whoever_has_the_secret_and_sends_rubbish_gets_an_error_or_a_reading(attributes: bytes) -> None:
    try:
        found = read_request(request(attributes), SECRET, "peer")
    except RadiusError:
        return
    assert len(found.mac) in (0, 6)
    assert len(found.account) <= 64
    assert response(found, SECRET)[:1] == b"\5"


def test_binauth_calls_become_logins_and_logouts() -> None:
    custom = b64encode(b"account=ann, room=7").decode()
    found = read_line(f"binauth\tauth_client\t02:00:00:00:01:01\t10.0.0.1\ttok\t\t{custom}\n".encode())
    assert found == Happening("login", "opennds", MAC, b"\x0a\0\0\1", token="opennds:tok", account="ann", room="7")
    for method, cause in DEAUTH.items():
        ended = read_line(f"binauth\t{method}\t02:00:00:00:01:01\t\ttok".encode())
        assert ended == Happening("logout", "opennds", MAC, cause=cause, token="opennds:tok")
    assert len(AUTH) + len(DEAUTH) == 10, "BinAuth has ten methods"
    assert read_line(b"binauth\tnew_method\t02:00:00:00:01:01") is None


def test_dhcp_hostapd_and_ubus_lines() -> None:
    assert read_line(b"dhcp\tadd\t02:00:00:00:01:01\t10.0.0.1") == Happening("join", "dhcp", MAC, b"\x0a\0\0\1")
    assert read_line(b"dhcp\tdel\t02:00:00:00:01:01\t10.0.0.1") == Happening("leave", "dhcp", MAC, b"\x0a\0\0\1")
    assert read_line(b"dhcp\ttftp\t1\t2") is None
    assert read_line(b"hostapd\twlan0\tAP-STA-CONNECTED\t02:00:00:00:01:01") == Happening("associated", "hostapd", MAC)
    assert read_line(b'{ "disassoc": {"address":"02:00:00:00:01:01"} }') == Happening("disassociated", "hostapd", MAC)
    assert read_line(b'{ "probe": {"address":"02:00:00:00:01:01"} }') is None, "a device that only looks around"
    assert read_lease("1795637665 02:00:00:00:01:01 10.0.0.1 annas-phone 01:02") == (1795637665, MAC, b"\x0a\0\0\1")
    assert read_lease("duid 00:01:00:01") is None


@given(
    st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda text: f"binauth\tclient_auth\t{text}".encode()))
)
def test_any_line_is_news_nothing_or_its_own_error(line: bytes) -> None:
    try:
        found = read_line(line)
    except HookError:
        return
    if found is not None:
        assert len(found.mac) in (0, 6)
        assert all(len(text) <= 128 for text in (found.account, found.room, found.token))


@given(st.text(max_size=200))
def test_any_lease_line_is_a_lease_or_nothing(line: str) -> None:
    read_lease(line)
