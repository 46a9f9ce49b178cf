"""Deltas give the new image octet for octet, and nothing else gives anything."""

import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.builder import Builder
from policy.delta import apply_delta, make_delta
from policy.errors import BundleError
from policy.image import HEADER_SIZE, Image, pack_effect


def image_of(
    names, nets=(), urls=(), base: Image | None = None, salt: bytes = b"s" * 16, extra_list: str = ""
) -> Image:
    made = Builder(salt, (io.BytesIO(), io.BytesIO(), io.BytesIO()), base=base, generation=2 if base else 1)
    slots = [made.slot("a", "a", "block", "v2" if base else "v1"), made.slot("b", "b", "block")]
    if extra_list:
        slots.append(made.slot(extra_list, "c", "block"))
    for name in names:
        made.add_name(name, pack_effect(slots[len(name) % len(slots)], 0, 3))
        if name.endswith(b"7.example"):
            made.add_name(name, pack_effect(slots[(len(name) + 1) % len(slots)], 1, 3))
    for address, prefix, bits in nets:
        made.add_range(address, prefix, bits, pack_effect(slots[0], 0, 3))
    for host, pattern in urls:
        made.add_url(host, pattern, pack_effect(slots[1], 0, 3))
    out = io.BytesIO()
    made.write(out, {"made": "then"} if base is None else {"made": "now"})
    return Image(out.getvalue())


def applied(old: Image, delta: bytes) -> bytes:
    out = io.BytesIO()
    apply_delta(old, delta, out)
    return out.getvalue()


SUBSETS = st.sets(st.integers(0, 400), max_size=200)


@settings(max_examples=60, deadline=None)
@given(SUBSETS, SUBSETS, st.booleans())
def test_any_change_is_followed_exactly(before: set[int], after: set[int], more: bool) -> None:
    def parts(numbers: set[int]):
        names = [b"%d.example" % n for n in numbers]
        nets = [(n << 20, 12 + n % 20, 32) for n in numbers if n % 3 == 0]
        nets += [((0x2001 << 112) + (n << 80), 48, 128) for n in numbers if n % 5 == 0]
        return names, nets, [(b"h%d.example" % (n % 40), b"/p%d" % n) for n in numbers if n % 2 == 0]

    old = image_of(*parts(before))
    new = image_of(*parts(after), base=old, extra_list="c" if more else "")
    try:
        delta = make_delta(old, new)
    except BundleError:
        assert old.header.bucket_bits != new.header.bucket_bits or len(old.bitmap) != len(new.bitmap)
        return
    assert applied(old, delta) == new.buffer


def test_a_daily_change_of_a_large_list_is_small() -> None:
    names = [b"%d.example" % n for n in range(50_000)]
    old = image_of(names)
    new = image_of(names[200:] + [b"new%d.example" % n for n in range(200)], base=old)
    delta = make_delta(old, new)
    assert len(delta) < 400 * 11
    assert applied(old, delta) == new.buffer


def test_another_salt_needs_a_full_image() -> None:
    with pytest.raises(BundleError, match="same salt and dimensions"):
        make_delta(image_of([b"a.example"]), image_of([b"a.example"], salt=b"t" * 16))


NAMES = [b"%d.example" % n for n in range(2000)]
OLD = image_of(NAMES, [(10 << 24, 8, 32)], [(b"h.example", b"/a")])
NEW = image_of([*NAMES[50:], b"x.example"], [(10 << 24, 9, 32)], [(b"h.example", b"/b")], base=OLD)  # noqa: RUF005, RUF100
DELTA = make_delta(OLD, NEW)


def test_a_delta_for_another_image_is_refused() -> None:
    with pytest.raises(BundleError, match="another image"):
        applied(NEW, DELTA)


def test_a_delta_cut_off_anywhere_is_refused() -> None:
    assert applied(OLD, DELTA) == NEW.buffer
    for length in range(len(DELTA)):
        with pytest.raises(BundleError):
            applied(OLD, DELTA[:length])


def test_a_damaged_delta_is_refused_or_harmless() -> None:
    rnd = random.Random(3)
    for at in list(range(8, 8 + 8 + HEADER_SIZE)) + [rnd.randrange(len(DELTA)) for _ in range(300)]:
        damaged = bytearray(DELTA)
        damaged[at] ^= 1 << rnd.randrange(8)
        with pytest.raises(BundleError):
            applied(OLD, bytes(damaged))


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_any_edits_behind_a_sound_head_are_refused(body: bytes) -> None:
    import zlib

    forged = DELTA[: 16 + HEADER_SIZE] + zlib.compress(body)
    with pytest.raises(BundleError):
        applied(OLD, forged)


def test_a_packed_bomb_is_refused() -> None:
    import zlib

    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(80)) + packer.flush()
    with pytest.raises(BundleError, match="octets"):
        applied(OLD, DELTA[: 16 + HEADER_SIZE] + bomb)
