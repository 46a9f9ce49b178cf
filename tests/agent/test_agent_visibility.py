"""Name agreement, hints, ECH told from GREASE, and the meter."""

from agent.visibility import MAX_NAMES, MAX_PAIRS, SETTLED_MS, Visibility
from policy.event import MAX_ANSWERS, Agreement, Blind, Dns, Flow, Seen

MAC = b"\2\0\0\0\0\1"
SITE, OTHER = bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2))


def look_up(name: str, *answers: bytes, at_ms: int = 1000) -> Dns:
    return Dns(at_ms, b"\x0a\0\0\2", name, 1, 0, 0, 0, "", "home", answers, False, 1, MAC)


def flow(name: str, dst: bytes = SITE, blind: int = 0, seen: int = Seen.TLS, at_ms: int = 2000) -> Flow:
    return Flow(at_ms, b"\x0a\0\0\2", MAC, 40000, dst, 443, 6, name, seen, blind, "", 0, 0, "", "home")


def test_agreement() -> None:
    seen = Visibility()
    assert seen.settle(MAC, flow("www.example.org")).agreement == Agreement.UNKNOWN
    seen.learn(MAC, look_up("www.example.org", SITE))
    assert seen.settle(MAC, flow("www.example.org")).agreement == Agreement.AGREES
    assert seen.settle(MAC, flow("front.example")).agreement == Agreement.MISMATCH  # another name at this address
    assert seen.settle(MAC, flow("www.example.org", OTHER)).agreement == Agreement.MISMATCH  # hard-coded address
    assert seen.settle(b"another", flow("www.example.org")).agreement == Agreement.UNKNOWN


def test_a_cut_list_of_answers_proves_nothing() -> None:
    seen = Visibility()
    seen.learn(MAC, look_up("cdn.example", *(bytes((198, 51, 100, n)) for n in range(MAX_ANSWERS))))
    assert seen.settle(MAC, flow("cdn.example")).agreement == Agreement.UNKNOWN


def test_a_name_nobody_asked_for_is_a_mismatch_once_we_have_listened_long_enough() -> None:
    seen = Visibility()
    seen.learn(MAC, look_up("www.example.org", SITE))
    late = 1001 + SETTLED_MS
    assert seen.settle(MAC, flow("doh.example", OTHER)).agreement == Agreement.UNKNOWN
    assert seen.settle(MAC, flow("doh.example", OTHER, at_ms=late)).agreement == Agreement.MISMATCH
    assert seen.settle(b"never", flow("doh.example", OTHER, at_ms=late)).agreement == Agreement.UNKNOWN


def test_refusals_and_look_ups_without_their_name_say_nothing_of_what_was_asked_for() -> None:
    """With a profile such as tr-5651, nothing but refusals leaves the DNS hook, while all flows are kept."""
    seen = Visibility()
    seen.learn(MAC, look_up("casino.example", SITE)._replace(verdict=1))
    seen.learn(MAC, look_up("", SITE))
    late = 1001 + SETTLED_MS
    assert seen.settle(MAC, flow("www.example.org", OTHER, at_ms=late)).agreement == Agreement.UNKNOWN
    assert seen.settle(MAC, flow("www.example.org", at_ms=late)).agreement == Agreement.UNKNOWN
    unsure = flow("www.example.org", blind=Blind.ECH_UNSURE, at_ms=late)
    assert seen.settle(MAC, unsure).blind == Blind.ECH_UNSURE
    assert seen.settle(MAC, flow("", seen=Seen.NONE)).name == ""


def test_who_has_asked_is_known_until_two_generations_later() -> None:
    seen = Visibility()
    seen.learn(MAC, look_up("www.example.org", SITE))
    late = flow("doh.example", OTHER, at_ms=1001 + SETTLED_MS)
    for turn in range(2):
        assert seen.settle(MAC, late).agreement == Agreement.MISMATCH
        for number in range(MAX_PAIRS):
            seen.learn(b"other", look_up("n.example", turn.to_bytes(1, "big") + number.to_bytes(3, "big")))
    seen.learn(b"other", look_up("n.example", bytes(4)))
    assert seen.settle(MAC, late).agreement == Agreement.UNKNOWN


def test_a_flow_without_a_name_gets_the_last_one_that_was_answered_for_its_address() -> None:
    seen = Visibility()
    for number in range(MAX_NAMES + 2):
        seen.learn(MAC, look_up(f"n{number}.example", SITE))
    settled = seen.settle(MAC, flow("", blind=Blind.OPAQUE, seen=Seen.NONE))
    assert (settled.name, settled.seen, settled.blind) == (f"n{MAX_NAMES + 1}.example", Seen.DNS_HINT, Blind.OPAQUE)
    assert seen.settle(MAC, flow("", OTHER, blind=Blind.OPAQUE, seen=Seen.NONE)).name == ""


def test_ech_and_its_grease_are_told_apart_by_what_was_asked_for() -> None:
    seen = Visibility()
    unsure = flow("www.example.org", blind=Blind.ECH_UNSURE)
    assert seen.settle(MAC, unsure).blind == Blind.ECH_UNSURE
    seen.learn(MAC, look_up("www.example.org", SITE))
    assert seen.settle(MAC, unsure).blind == Blind.NOT_BLIND
    real = seen.settle(MAC, flow("cloudflare-ech.com", blind=Blind.ECH_UNSURE))
    assert (real.blind, real.name, real.seen) == (Blind.ECH, "www.example.org", Seen.DNS_HINT)
    meter = seen.describe()
    assert meter["flows"] == 3
    assert meter["ech_percent"] == meter["no_visible_name_percent"] == 33.3


def test_a_name_that_was_seen_is_never_put_on_record_as_another_that_was_asked_for() -> None:
    """Who has a site's address from elsewhere shows the site's name, with GREASE, at an address that many share."""
    seen = Visibility()
    seen.learn(MAC, look_up("harmless.example", SITE))
    unsure = flow("casino.example", blind=Blind.ECH_UNSURE, seen=Seen.QUIC)
    settled = seen.settle(MAC, unsure)
    assert settled == unsure._replace(agreement=Agreement.MISMATCH)
    assert seen.describe()["no_visible_name_percent"] == 0


def test_a_front_is_a_front_to_those_who_ask_others_too() -> None:
    settled = Visibility().settle(MAC, flow("cloudflare-ech.com", blind=Blind.ECH_UNSURE))
    assert (settled.name, settled.seen, settled.blind) == ("cloudflare-ech.com", Seen.TLS, Blind.ECH)


def test_the_table_is_bounded() -> None:
    seen = Visibility()
    for number in range(3 * MAX_PAIRS):
        seen.learn(MAC, look_up(f"n{number}.example", number.to_bytes(4, "big")))
    assert len(seen._names) <= MAX_PAIRS >= len(seen._older_names)
    assert seen.settle(MAC, flow("", (3 * MAX_PAIRS - 1).to_bytes(4, "big"))).name == f"n{3 * MAX_PAIRS - 1}.example"
