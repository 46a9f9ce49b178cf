"""QUIC Initials: the RFCs' own packets, a real client's, shuffled, cut and mangled ones, Retry, other versions."""

import random
from pathlib import Path

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicProtocolVersion
from hypothesis import given
from hypothesis import strategies as st

from nfq import quic, tls
from nfq.aes import Aes, CryptographyAes, LibcryptoAes, find_aes
from nfq.flow import Pending
from nfq.quic import Budget, Initials, Outcome

VECTORS = Path(__file__).parents[1] / "vectors" / "nfq"
CID = bytes.fromhex("8394c8f03e515708")  # RFC 9001 A.1, RFC 9369 A.1
V1, V2 = b"\0\0\0\1", b"\x6b\x33\x43\xcf"
AES = CryptographyAes()


@pytest.fixture(params=[CryptographyAes, LibcryptoAes])
def aes(request: pytest.FixtureRequest) -> Aes:
    provider: Aes = request.param()
    return provider


def read(initials: Initials, data: bytes, budget: Budget | None = None) -> tls.Hello | Outcome:
    return initials.receive(data, b"client", budget or Budget(1000), 0.0)


def first_flight(name: str, versions: list[int] | None = None, cid: bytes = b"") -> tuple[list[bytes], bytes]:
    """What aioquic really sends first, and its destination connection id."""
    configuration = QuicConfiguration(is_client=True, server_name=name, alpn_protocols=["h3"])
    if versions:
        configuration.original_version = versions[0]
        configuration.supported_versions = versions
    connection = QuicConnection(configuration=configuration)
    connection.connect(("192.0.2.1", 443), now=0.0)
    sent = [data for data, _ in connection.datagrams_to_send(now=0.0)]
    return sent, sent[0][6 : 6 + sent[0][5]]


def seal(
    version: bytes, cid: bytes, plain: bytes, number: int = 0, token: bytes = b"", scid: bytes = b"", of: bytes = b""
) -> bytes:
    """One Initial as a client makes it; `of`: the connection id its keys come from, if not `cid`."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    keys = quic.derive_keys(AES, version, of or cid)
    length = 2 + len(plain) + 16
    first = 0xC1 | quic.VERSIONS[version].initial
    head = bytes((first,)) + version + bytes((len(cid),)) + cid + bytes((len(scid),)) + scid
    head += bytes((0x40 | len(token) >> 8, len(token) & 255)) + token + (0x4000 | length).to_bytes(2, "big")
    clear = head + number.to_bytes(2, "big")
    sealed = AESGCM(keys.key).encrypt((keys.iv ^ number).to_bytes(12, "big"), plain, clear)
    sample = sealed[2:18]
    mask = AES.block(keys.hp, sample)
    protected = bytes((first ^ mask[0] & 15,)) + head[1:]
    return protected + bytes(a ^ b for a, b in zip(number.to_bytes(2, "big"), mask[1:3], strict=True)) + sealed


def crypto(offset: int, data: bytes) -> bytes:
    return b"\6" + (0x80000000 | offset).to_bytes(4, "big") + (0x4000 | len(data)).to_bytes(2, "big") + data


def handshake(name: bytes, extra: int = 0) -> bytes:
    """A ClientHello without records around it."""
    server_name = b"\0\0" + (len(name) + 5).to_bytes(2, "big") + (len(name) + 3).to_bytes(2, "big")
    server_name += b"\0" + len(name).to_bytes(2, "big") + name
    share = b"\xfa\xfa" + extra.to_bytes(2, "big") + random.Random(3).randbytes(extra)
    extensions = (share if extra else b"") + server_name
    body = b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0" + len(extensions).to_bytes(2, "big") + extensions
    return b"\1" + len(body).to_bytes(3, "big") + body


@pytest.mark.parametrize(
    ("version", "key", "iv", "hp"),
    [
        (V1, "1f369613dd76d5467730efcbe3b1a22d", "fa044b2f42a3fd3b46fb255c", "9f50449e04a0e810283a1e9933adedd2"),
        (V2, "8b1a0bc121284290a29e0971b5cd045d", "91f73e2351d8fa91660e909f", "45b95e15235d6f45a6b19cbcb0294ba9"),
    ],
)
def test_the_keys_of_rfc_9001_and_rfc_9369_appendix_a(aes: Aes, version: bytes, key: str, iv: str, hp: str) -> None:
    keys = quic.derive_keys(aes, version, CID)
    assert (keys.key.hex(), keys.iv.to_bytes(12, "big").hex(), keys.hp.hex()) == (key, iv, hp)


@pytest.mark.parametrize("vector", ["rfc9001_a2_client_initial.bin", "rfc9369_a2_client_initial.bin"])
def test_the_client_initials_of_appendix_a(aes: Aes, vector: str) -> None:
    data = (VECTORS / vector).read_bytes()
    assert read(Initials(aes), data) == tls.Hello(b"example.com", False)
    for at in (30, 600, 1199):  # one changed octet: not authentic, so not read
        broken = data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]
        assert read(Initials(aes), broken) == Outcome.NEED_MORE


@pytest.mark.parametrize("version", [QuicProtocolVersion.VERSION_1, QuicProtocolVersion.VERSION_2])
def test_a_real_client_is_read(aes: Aes, version: int) -> None:
    sent, _ = first_flight("www.example.org", [version])
    initials = Initials(aes)
    found = [read(initials, data) for data in sent]
    assert tls.Hello(b"www.example.org", False) in found


def test_chromiums_two_datagrams_in_both_orders(aes: Aes) -> None:
    sent = [(VECTORS / f"chromium156_quic_{number}.bin").read_bytes() for number in (0, 1)]
    for order in ((0, 1), (1, 0)):
        initials = Initials(aes)
        assert read(initials, sent[order[0]]) == Outcome.NEED_MORE
        assert read(initials, sent[order[1]]) == tls.Hello(b"quic.example.org", True)
    assert read(Initials(aes), sent[0] + sent[1]) == tls.Hello(b"quic.example.org", True)


@pytest.mark.parametrize("version", [V1, V2])
def test_crypto_frames_in_any_order_over_several_datagrams_as_chrome_sends_them(version: bytes) -> None:
    hello = handshake(b"www.example.org", 1400)
    for seed in range(60):
        rng = random.Random(seed)
        cuts = sorted(rng.sample(range(1, len(hello)), rng.randrange(1, 30)))
        frames = [crypto(a, hello[a:b]) for a, b in zip([0, *cuts], [*cuts, len(hello)], strict=True)]
        rng.shuffle(frames)
        frames.insert(rng.randrange(len(frames)), b"\1" + bytes(rng.randrange(9)))  # PING, PADDING
        middle = rng.randrange(1, len(frames))
        packets = [
            seal(version, b"12345678", b"".join(part), number)
            for number, part in enumerate((frames[:middle], frames[middle:]))
        ]
        rng.shuffle(packets)
        initials = Initials(AES)
        assert read(initials, packets[0]) == Outcome.NEED_MORE
        assert read(initials, packets[0]) == Outcome.NEED_MORE  # sent again
        assert read(initials, packets[1]) == tls.Hello(b"www.example.org", False)
        # With segmentation offload both come up as one, padded or not.
        assert read(Initials(AES), packets[0] + bytes(7) + packets[1]) == tls.Hello(b"www.example.org", False)


def test_coalesced_packets_of_other_kinds_are_passed_over() -> None:
    zero_rtt = bytes((0xD3,)) + V1 + b"\4abcd\0" + (0x4000 | 100).to_bytes(2, "big") + bytes(100)
    initial = seal(V1, b"abcd1234", crypto(0, handshake(b"a.example")) + bytes(900))
    assert read(Initials(AES), zero_rtt + initial) == tls.Hello(b"a.example", False)
    ack = b"\2" + bytes((5, 0, 1, 0, 1, 1)) + b"\3" + bytes((5, 0, 0, 0, 0, 0, 0))
    initial = seal(V1, b"abcd1234", ack + crypto(0, handshake(b"a.example")))
    assert read(Initials(AES), initial) == tls.Hello(b"a.example", False)


def test_after_retry_the_hello_begins_again_under_new_keys() -> None:
    hello = handshake(b"www.example.org", 1400)
    initials = Initials(AES)
    assert read(initials, seal(V1, b"original", crypto(0, hello[:900]))) == Outcome.NEED_MORE
    again = seal(V1, b"from-retry", crypto(0, hello[:700]), 1, token=b"token" * 20)
    assert read(initials, again) == Outcome.NEED_MORE
    assert read(initials, seal(V1, b"from-retry", crypto(700, hello[700:]), 2, token=b"token" * 20)) == tls.Hello(
        b"www.example.org", False
    )


def test_the_servers_connection_id_in_later_initials_does_not_change_the_keys() -> None:
    hello = handshake(b"www.example.org", 1400)
    initials = Initials(AES)
    assert read(initials, seal(V1, b"original", crypto(0, hello[:900]))) == Outcome.NEED_MORE
    assert read(initials, seal(V1, b"servers", crypto(900, hello[900:]), 1, of=b"original")) == tls.Hello(
        b"www.example.org", False
    )


def test_an_unknown_version_waits_for_version_negotiation() -> None:
    initials = Initials(AES)
    grease = bytes((0xC0,)) + b"\x1a\x2a\x3a\x4a" + b"\x08original\0" + bytes(1200)
    assert read(initials, grease) == Outcome.OTHER_VERSION
    assert read(initials, seal(V2, b"another1", crypto(0, handshake(b"a.example")))) == tls.Hello(b"a.example", False)


def test_crypto_frames_that_disagree_are_ambiguous() -> None:
    hello = handshake(b"www.example.org", 400)
    plain = crypto(0, hello[:300]) + crypto(200, b"X" * 50) + crypto(300, hello[300:])
    assert read(Initials(AES), seal(V1, b"12345678", plain)) == Outcome.AMBIGUOUS


def test_decryption_is_bounded_per_flow_per_client_and_per_second() -> None:
    plain = crypto(1, b"x")
    initials = Initials(AES)
    found = [read(initials, seal(V1, b"12345678", plain, n)) for n in range(quic.MAX_ATTEMPTS + 1)]
    assert found[-2:] == [Outcome.NEED_MORE, Outcome.OVERLOAD]
    budget = Budget(40)
    assert sum(budget.spend(b"greedy", 0.5) for _ in range(100)) == 11
    assert budget.spend(b"another", 0.6)
    assert sum(budget.spend(bytes((n,)), 0.7) for n in range(100)) == 28
    assert budget.spend(b"greedy", 1.0)
    assert read(Initials(AES), seal(V1, b"12345678", plain), Budget(0)) == Outcome.OVERLOAD


def test_a_hello_in_crumbs_is_not_waited_for() -> None:
    pending = Pending(0.0, b"", None, Initials(AES))
    assert pending.initials is not None
    for packet in range(2):
        plain = b"".join(b"\6" + (0x4001 + 2 * at + 600 * packet).to_bytes(2, "big") + b"\1x" for at in range(300))
        assert not pending.is_full
        assert read(pending.initials, seal(V1, CID, plain, packet)) == Outcome.NEED_MORE
    assert pending.is_full


def test_a_hello_that_is_too_long_cannot_be_decided_and_is_not_taken_for_something_else() -> None:
    hello = b"\1" + (tls.MAX_HELLO + 1).to_bytes(3, "big") + handshake(b"www.example.org")[4:]
    assert read(Initials(AES), seal(V1, CID, crypto(0, hello).ljust(1100, b"\0"))) == Outcome.OVERLOAD


def test_without_aes_nothing_is_read_and_it_is_said() -> None:
    assert read(Initials(None), seal(V1, b"12345678", b"\1" * 30)) == Outcome.NO_CRYPTO
    assert find_aes() is not None


@pytest.mark.parametrize("vector", ["rfc9001_a2_client_initial.bin", "rfc9369_a2_client_initial.bin"])
def test_every_shorter_datagram_is_answered(vector: str) -> None:
    data = (VECTORS / vector).read_bytes()
    for length in range(len(data)):
        assert read(Initials(AES), data[:length]) in (Outcome.NOT_QUIC, Outcome.NEED_MORE)


@given(st.binary(max_size=200), st.integers(0, 1199), st.binary(max_size=40))
def test_any_octets_are_answered(data: bytes, at: int, plain: bytes) -> None:
    vector = (VECTORS / "rfc9001_a2_client_initial.bin").read_bytes()
    read(Initials(AES), vector[:at] + data)
    read(Initials(AES), b"\xc0" + V1 + data)
    read(Initials(AES), seal(V1, b"12345678", plain + bytes(4)))
