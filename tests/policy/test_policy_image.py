"""The compiled image: what went in comes out, and a damaged file is refused when it is opened."""

import io
import ipaddress
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.builder import Builder
from policy.compile import compile_in_memory
from policy.errors import ImageError, ListError
from policy.image import HEADER_SIZE, Image, Kind, Scope, pack_effect, pack_header, unpack_effect

SALT = b"0123456789abcdef"


def builder(base: Image | None = None) -> Builder:
    return Builder(SALT, (io.BytesIO(), io.BytesIO(), io.BytesIO()), base=base, created_s=7, generation=3)


def written(made: Builder) -> bytes:
    out = io.BytesIO()
    made.write(out, {"made": "here"})
    return out.getvalue()


def test_names_come_out_with_every_list_that_holds_them() -> None:
    rnd = random.Random(4)
    made = builder()
    slots = [made.slot(f"list{n}", f"category{n % 3}", "block", "v1") for n in range(9)]
    expected: dict[bytes, set[tuple[int, int, int]]] = {}
    for _ in range(30_000):
        name = b"%x.example%d.com" % (rnd.getrandbits(14), rnd.randrange(10))
        effect = pack_effect(rnd.choice(slots), rnd.choice((0, 1, 2, 3)), rnd.choice((1, 2, 3)))
        slot, kind, scope = unpack_effect(effect)
        expected.setdefault(name, set()).add((slot, kind, scope))
        made.add_name(name, effect)
    image = Image(written(made))
    assert image.header.names == len(expected)
    assert image.meta == {"made": "here"}
    assert [slot.name for slot in image.slots] == [f"list{n}" for n in range(9)]
    for name, wishes in expected.items():
        united: dict[tuple[int, int], int] = {}
        for slot, kind, scope in wishes:
            united[slot, kind] = united.get((slot, kind), 0) | scope
        assert {(e.slot, e.kind): e.scope for e in image.effects(image.find(name))} == united
    for number in range(200_000):
        assert image.find(b"other%d.example" % number) == b""


def test_the_order_of_entries_does_not_matter_for_what_is_found() -> None:
    names = [b"%d.example" % n for n in range(5000)]
    forward, backward = builder(), builder()
    for made, order in ((forward, names), (backward, names[::-1])):
        made.slot("a", "a", "block")
        for name in order:
            made.add_name(name, pack_effect(0, Kind.BLOCK, Scope.BOTH))
    assert written(forward) == written(backward), "the same entries and salt give the same octets"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 255), st.integers(8, 32), st.integers(0, 3)), max_size=40),
    st.lists(st.integers(0, (1 << 16) - 1), min_size=5, max_size=20),
)
def test_ranges_nest_as_networks_do(nets: list[tuple[int, int, int]], asked: list[int]) -> None:
    made = builder()
    for number in range(4):
        made.slot(f"l{number}", "c", "block")
    kept = []
    for octet, prefix, slot in nets:
        address = (10 << 24 | octet << 12 | octet) >> (32 - prefix) << (32 - prefix)
        made.add_range(address, prefix, 32, pack_effect(slot, 0, 3))
        kept.append((ipaddress.ip_network((address, prefix)), slot))
    image = Image(written(made))
    probes = [10 << 24 | number << 4 for number in asked] + [int(net.network_address) for net, _ in kept]
    probes += [int(net.broadcast_address) + 1 for net, _ in kept] + [0, (1 << 32) - 1]
    for number in probes:
        address = ipaddress.ip_address(number & 0xFFFFFFFF)
        key = image.find_address(address.packed)
        found = {effect.slot for effect in image.effects(key)} if key else set()
        assert found == {slot for net, slot in kept if address in net}


def test_ipv6_ranges_up_to_the_last_address() -> None:
    image = Image(compile_in_memory({"a": "2001:db8::/32\n2001:db8:1::/48\nffff:ffff::/32\n"}, categories={})[0])
    for text, hit in (
        ("2001:db8::", True),
        ("2001:db8:1::1", True),
        ("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", True),
        ("2001:db9::", False),
        ("2001:db7:ffff::", False),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", True),
        ("::1", False),  # noqa: E501, RUF100
    ):
        assert bool(image.find_address(ipaddress.ip_address(text).packed)) is hit, text


def test_an_image_of_nothing_answers_nothing() -> None:
    image = Image(written(builder()))
    assert image.find(b"example.org") == b""
    assert image.find_address(bytes(4)) == b""
    assert image.find_address(bytes(16)) == b""
    assert image.find_urls(b"example.org") == []


def test_bounds_have_words() -> None:
    made = builder()
    for address, prefix, bits in ((0, 0, 32), (0, 7, 32), (0, 15, 128)):
        with pytest.raises(ListError, match="too wide"):
            made.add_range(address, prefix, bits, 0)
    with pytest.raises(ListError, match="too long"):
        made.add_url(b"a.example", b"/" * 5000, 0)
    for number in range(2048):
        made.slot(f"l{number}", "c", "block")
    with pytest.raises(ListError, match="at most 2048"):
        made.slot("one more", "c", "block")


SAMPLE, _ = compile_in_memory(
    {"names": [f"{n}.example" for n in range(300)], "nets": ["192.0.2.0/24", "2001:db8::/32"], "urls": ["a.example/b"]}
)


def test_a_file_cut_off_anywhere_is_refused() -> None:
    Image(SAMPLE)
    for length in range(len(SAMPLE)):
        with pytest.raises(ImageError):
            Image(SAMPLE[:length])
    with pytest.raises(ImageError):
        Image(SAMPLE + b"\0")


def test_a_flipped_bit_anywhere_is_noticed() -> None:
    rnd = random.Random(5)
    places = list(range(HEADER_SIZE)) + [rnd.randrange(len(SAMPLE)) for _ in range(500)]
    for at in places:
        damaged = bytearray(SAMPLE)
        damaged[at] ^= 1 << rnd.randrange(8)
        with pytest.raises(ImageError):
            Image(bytes(damaged))


@settings(max_examples=300)
@given(st.binary(max_size=HEADER_SIZE * 2))
def test_any_octets_are_an_image_or_an_image_error(data: bytes) -> None:
    with pytest.raises(ImageError):
        Image(data)


@settings(max_examples=200)
@given(st.lists(st.integers(0, 1 << 40), min_size=22, max_size=22), st.integers(0, 255))
def test_a_sound_checksum_over_nonsense_sizes_is_refused(table: list[int], bits: int) -> None:
    good = Image(SAMPLE).header
    forged = pack_header(good._replace(table=tuple(table), bucket_bits=bits)) + SAMPLE[HEADER_SIZE:]
    if tuple(table) != good.table:
        with pytest.raises(ImageError):
            Image(forged)


def test_a_version_of_the_future_is_refused_by_name() -> None:
    data = bytearray(SAMPLE)
    data[8] = 2
    import zlib

    data[HEADER_SIZE - 4 : HEADER_SIZE] = zlib.crc32(data[: HEADER_SIZE - 4]).to_bytes(4, "little")
    with pytest.raises(ImageError, match="expected version 1, got 2"):
        Image(bytes(data))
