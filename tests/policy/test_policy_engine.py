"""Decisions: the order of the model, groups, hours, rewrites, addresses and URLs; and `explain` says the same."""

import calendar
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.compile import compile_in_memory
from policy.engine import Engine
from policy.explain import explain
from policy.image import Image
from policy.override import Override
from policy.rules import load_policy
from policy.uci import parse
from policy.verdict import FOREVER, Decider, Reason, Verdict
from tests.policy.build import engine_of

NOON = calendar.timegm((2026, 11, 23, 11, 0, 0))  # Monday, noon in Berlin
BERLIN = "CET-1CEST,M3.5.0,M10.5.0/3"


def said(engine: Engine, name: str, group: int = 0, now: float | None = NOON) -> str:
    """`block category list:x`, as a reader would say it."""
    decision = engine.decide(name.encode(), group, now)
    explained = explain(engine, name.encode(), group, now)
    assert explained.decision == decision
    assert explained.text().startswith(explained.name)
    return f"{decision.verdict.name} {decision.reason.name} {decision.rule}".strip().lower()


def test_the_engine_is_a_decider() -> None:
    decider: Decider = engine_of({})
    assert decider.decide(b"example.org", decider.group_of(bytes(4)), None).verdict is Verdict.ALLOW
    assert decider.generation == 1


def test_lists_block_a_name_and_what_is_below_it() -> None:
    engine = engine_of({"ads": "ads.example\n"})
    assert said(engine, "ads.example") == "block category list:ads"
    assert said(engine, "a.b.ads.example") == "block category list:ads"
    assert said(engine, "bads.example") == "allow default"
    assert said(engine, "example") == "allow default"
    assert engine.decide(b"", 0, NOON).verdict is Verdict.ALLOW


def test_scopes_are_kept_apart() -> None:
    engine = engine_of({"x": "|self.example^\n||*.below.example^\n||both.example^\n"})
    assert said(engine, "self.example").startswith("block")
    assert said(engine, "www.self.example").startswith("allow")
    assert said(engine, "below.example").startswith("allow")
    assert said(engine, "www.below.example").startswith("block")
    assert said(engine, "both.example").startswith("block")
    assert said(engine, "www.both.example").startswith("block")


def test_allow_beats_block_and_important_beats_allow() -> None:
    engine = engine_of(
        {
            "bad": "a.example\nsub.b.example\n||c.example^$important\n||d.example^$important\n",
            "good": "a.example\nb.example\nc.example\n@@||d.example^$important\n",
        },
        allow=("good",),
    )
    assert said(engine, "a.example") == "allow allow_list list:good"
    assert said(engine, "sub.b.example") == "allow allow_list list:good", "allow beats block, also from above"
    assert said(engine, "c.example") == "block important list:bad"
    assert said(engine, "d.example") == "allow important list:good"


def test_an_exception_of_a_list_holds_where_the_list_does() -> None:
    config = """
config profile 'strict'
	list block 'bad'
	list block 'other'
config profile 'half'
	list block 'other'
config group 'a'
	option profile 'strict'
config group 'b'
	option profile 'half'
"""
    engine = engine_of({"bad": "@@||x.example^\n", "other": "x.example\n"}, config=config)
    assert said(engine, "x.example", 1) == "allow allow_list list:bad"
    assert said(engine, "x.example", 2) == "block category list:other"


SCHOOL = """
config policy 'main'
	option default_group 'guests'
	list never_block 'school.example'
config profile 'kids'
	list block 'adult'
	list block 'games'
	list log 'social'
	list safesearch 'google'
	list safesearch 'youtube:moderate'
	list safesearch 'kiddle'
	option on_block 'page'
	option fail 'closed'
	option strip_ech '1'
config profile 'staff'
	list block 'adult'
	option bypass '0'
config group 'pupils'
	option profile 'kids'
	list ip '10.1.0.0/16'
	list ip '2001:db8:1::/48'
	list ssid 'School WLAN'
config group 'teachers'
	option profile 'staff'
	list mac '02:00:00:00:00:01'
	list account 'anna'
config group 'guests'
	option profile 'guests_profile'
config profile 'guests_profile'
	list block 'adult'
config safesearch 'kiddle'
	list name 'search.example'
	option target 'safe.search.example'
config calendar 'holidays'
	list date '2026-12-24..2027-01-06'
	list date '2026-11-24'
config calendar 'exams'
	list date '2026-11-30..2026-12-04'
config schedule 'lesson'
	list window 'mon-fri 08:00-12:30'
	list except 'holidays'
config schedule 'exam'
	list only 'exams'
	option start '08:00'
	option end '13:00'
config schedule 'night'
	option start '21:00'
	option end '06:30'
config rule 'no_social'
	option group 'pupils'
	option schedule 'lesson'
	list match 'category:social'
config rule 'exam_only'
	option group 'pupils'
	option schedule 'exam'
	list match 'all'
config rule 'exam_site'
	option group 'pupils'
	option schedule 'exam'
	option action 'allow'
	list match 'domain:exam.example'
config rule 'night_off'
	option profile 'kids'
	option schedule 'night'
	list match 'all'
config rule 'chess'
	option group 'pupils'
	option action 'allow'
	list match 'domain:chess.example'
config rule 'no_blitz'
	option group 'pupils'
	list match 'domain:blitz.chess.example'
	list match 'exact:one.example'
	list match 'domain:*.two.example'
	list match 'ip:198.51.100.0/24'
	list match 'url:news.example/games'
config rule
	option action 'log'
	list match 'domain:watched.example'
"""
LISTS = {
    "adult": "adult.example\nexam.example\n203.0.113.0/24\nvideo.example/adult\n",
    "games": "games.example\nchess.example\n",
    "social": "social.example\n",
}


@pytest.fixture(scope="module")
def school() -> Engine:
    return engine_of(LISTS, config=SCHOOL, zone=BERLIN)


PUPIL, TEACHER = bytes([10, 1, 0, 9]), bytes([10, 2, 0, 9])


def test_groups_by_address_mac_account_ssid_and_interface(school: Engine) -> None:
    names = [group.name for group in school.policy.groups]
    assert names == ["guests", "pupils", "teachers"]
    assert school.group_of(PUPIL) == 1
    assert school.group_of(bytes.fromhex("20010db8000100000000000000000001")) == 1
    assert school.group_of(TEACHER) == 0
    assert school.group_of(PUPIL, bytes.fromhex("020000000001")) == 2, "a MAC address says more than an address"
    school.set_client(TEACHER, account="anna")
    assert school.group_of(TEACHER) == 2
    school.set_client(TEACHER, ssid="School WLAN")
    assert school.group_of(TEACHER) == 1
    school.set_client(TEACHER, mac=bytes.fromhex("020000000001"), ssid="School WLAN")
    assert school.group_of(TEACHER) == 2
    school.forget_client(TEACHER)
    assert school.group_of(TEACHER) == 0


def test_priority_beats_the_kind_of_match() -> None:
    config = """
config profile 'p'
config group 'device'
	option profile 'p'
	list mac '02:00:00:00:00:01'
config group 'guest_net'
	option profile 'p'
	option priority '10'
	list vlan 'br-guest'
config group 'wide'
	option profile 'p'
	list ip '10.0.0.0/8'
config group 'narrow'
	option profile 'p'
	list ip '10.0.1.0/24'
"""
    engine = engine_of({}, config=config)
    engine.set_client(PUPIL, mac=bytes.fromhex("020000000001"), interface="br-guest")
    assert engine.policy.groups[engine.group_of(PUPIL)].name == "guest_net"
    assert engine.policy.groups[engine.group_of(bytes([10, 0, 1, 1]))].name == "narrow"
    assert engine.policy.groups[engine.group_of(bytes([10, 0, 2, 1]))].name == "wide"


def test_profiles_say_how_a_group_is_treated(school: Engine) -> None:
    treatment = school.treatment(1)
    assert (treatment.group, treatment.on_block, treatment.fail, treatment.strip_ech) == (
        "pupils",
        "page",
        "closed",
        True,
    )
    assert school.treatment(0).on_block == "nxdomain"


def test_explicit_rules_beat_lists_and_the_most_specific_wins(school: Engine) -> None:
    assert said(school, "games.example", 1) == "block category list:games"
    assert said(school, "chess.example", 1) == "allow rule rule:chess"
    assert said(school, "www.chess.example", 1) == "allow rule rule:chess"
    assert said(school, "blitz.chess.example", 1) == "block rule rule:no_blitz"
    assert said(school, "one.example", 1) == "block rule rule:no_blitz"
    assert said(school, "www.one.example", 1) == "allow default"
    assert said(school, "two.example", 1) == "allow default"
    assert said(school, "www.two.example", 1) == "block rule rule:no_blitz"
    assert said(school, "watched.example", 0) == "allow log_only rule:@rule[6]"
    assert said(school, "school.example", 1, NOON + 11 * 3600) == "allow never_block", "at night, too"
    assert said(school, "blitz.chess.example", 0) == "allow default"


def test_of_two_rules_for_one_name_allow_wins() -> None:
    config = """
config rule 'a'
	list match 'domain:x.example'
config rule 'b'
	option action 'allow'
	list match 'domain:x.example'
config rule 'c'
	list match 'domain:x.example'
"""
    assert said(engine_of({}, config=config), "www.x.example") == "allow rule rule:b"


@pytest.mark.parametrize(
    ("date", "name", "expected"),
    [
        ((2026, 11, 23, 7, 0), "social.example", "block category list:social"),  # Monday 08:00 in Berlin
        ((2026, 11, 23, 6, 59), "social.example", "allow log_only list:social"),
        ((2026, 11, 23, 11, 29), "social.example", "block category list:social"),
        ((2026, 11, 23, 11, 30), "social.example", "allow log_only list:social"),
        ((2026, 11, 24, 9, 0), "social.example", "allow log_only list:social"),  # a holiday
        ((2026, 11, 28, 9, 0), "social.example", "allow log_only list:social"),  # Saturday
        ((2026, 11, 23, 19, 59), "news.example", "allow default"),
        ((2026, 11, 23, 20, 0), "news.example", "block window rule:night_off"),
        ((2026, 11, 23, 20, 0), "social.example", "block window rule:night_off"),  # log-only opens nothing
        ((2026, 11, 24, 5, 29), "news.example", "block window rule:night_off"),
        ((2026, 11, 24, 5, 30), "news.example", "allow default"),
        ((2026, 12, 1, 8, 0), "news.example", "block window rule:exam_only"),
        ((2026, 12, 1, 8, 0), "exam.example", "allow rule rule:exam_site"),
        ((2026, 12, 1, 13, 0), "exam.example", "block category list:adult"),
        ((2026, 12, 8, 8, 0), "news.example", "allow default"),
        ((2026, 7, 6, 6, 0), "social.example", "block category list:social"),  # summer time: 08:00
        ((2026, 7, 6, 5, 59), "social.example", "allow log_only list:social"),
    ],
)
def test_schedules_in_local_time(school: Engine, date: tuple[int, ...], name: str, expected: str) -> None:
    assert said(school, name, 1, calendar.timegm((*date, 0))) == expected
    if "rule" not in expected:
        assert not said(school, name, 0, calendar.timegm((*date, 0))).startswith("block window")


def test_a_decision_says_how_long_it_holds(school: Engine) -> None:
    assert school.valid_until(1, NOON) == calendar.timegm((2026, 11, 23, 11, 30, 0))
    assert school.valid_until(1, calendar.timegm((2026, 11, 23, 20, 0, 0))) == calendar.timegm((2026, 11, 23, 23, 0, 0))
    assert school.valid_until(0, NOON) == FOREVER
    assert school.valid_until(0, None) == FOREVER
    assert school.valid_until(1, None) == 0


@settings(max_examples=100)
@given(st.integers(0, 366 * 24 * 60), st.floats(0, 1))
def test_nothing_changes_before_valid_until(minutes: int, share: float) -> None:
    now = calendar.timegm((2026, 3, 1, 0, 0, 0)) + 60 * minutes
    engine = ENGINE
    until = engine.valid_until(1, now)
    assert now < until <= now + 86400
    names = (b"social.example", b"news.example", b"exam.example")
    fresh = engine_of(LISTS, config=SCHOOL, zone=BERLIN)
    later = now + (until - now - 0.001) * share
    assert [engine.decide(n, 1, now) for n in names] == [fresh.decide(n, 1, later) for n in names]


ENGINE = engine_of(LISTS, config=SCHOOL, zone=BERLIN)


def test_without_a_clock_windows_close_or_are_left_out(school: Engine) -> None:
    assert said(school, "social.example", 1, None).startswith("block"), "strict"
    assert said(school, "news.example", 1, None).startswith("block window")
    assert said(school, "exam.example", 1, None) == "block category list:adult", "what a window opens stays shut"
    lax = engine_of(
        LISTS, config=SCHOOL.replace("config policy 'main'", "config policy 'main'\n\toption unsynced 'ignore'")
    )
    assert said(lax, "social.example", 1, None) == "allow log_only list:social"
    assert said(lax, "news.example", 1, None) == "allow default"


def test_a_clock_that_is_set_back_is_followed(school: Engine) -> None:
    night = calendar.timegm((2026, 11, 23, 22, 0, 0))
    assert said(school, "news.example", 1, night).startswith("block window")
    assert said(school, "news.example", 1, NOON) == "allow default"


def test_safe_search_rewrites_what_was_allowed(school: Engine) -> None:
    decision = school.decide(b"www.google.de", 1, NOON)
    assert (decision.verdict, decision.reason, decision.target) == (
        Verdict.REWRITE,
        Reason.SAFE_SEARCH,
        "forcesafesearch.google.com",
    )
    assert school.decide(b"www.youtube.com", 1, NOON).target == "restrictmoderate.youtube.com"
    assert school.decide(b"search.example", 1, NOON).target == "safe.search.example"
    assert said(school, "mail.google.de", 1) == "allow default"
    assert said(school, "x.www.google.de", 1) == "allow default"
    assert said(school, "www.google.de", 0) == "allow default", "only for groups that ask for it"
    assert said(school, "www.google.de", 1, calendar.timegm((2026, 11, 23, 22, 0, 0))).startswith("block window")
    blocked = engine_of(
        {"g": "google.de\n"},
        config="config profile 'p'\n\tlist block 'g'\n\tlist safesearch 'google'\n"  # noqa: E501, RUF100
        "config group 'default'\n\toption profile 'p'\n",
    )
    assert said(blocked, "www.google.de") == "block category list:g"


@pytest.mark.parametrize("provider", ["google", "bing", "youtube:strict", "youtube:moderate", "duckduckgo"])
def test_each_provider_has_its_rewrite(provider: str) -> None:
    engine = engine_of(
        {}, config=f"config profile 'p'\n\tlist safesearch '{provider}'\nconfig group 'default'\n\toption profile 'p'\n"
    )
    host, target = {
        "google": (b"www.google.co.uk", "forcesafesearch.google.com"),
        "bing": (b"www.bing.com", "strict.bing.com"),
        "youtube:strict": (b"m.youtube.com", "restrict.youtube.com"),
        "youtube:moderate": (b"youtubei.googleapis.com", "restrictmoderate.youtube.com"),
        "duckduckgo": (b"duckduckgo.com", "safe.duckduckgo.com"),
    }[provider]
    assert engine.decide(host, 0, NOON).target == target


def test_bypass_signals_are_blocked_by_default(school: Engine) -> None:
    for name in ("use-application-dns.net", "mask.icloud.com", "mask-h2.icloud.com", "_dns.resolver.arpa", "resolver.arpa",  # noqa: E501
                 "dns.google", "cloudflare-dns.com", "mozilla.cloudflare-dns.com", "abc123.dns.nextdns.io"):  # fmt: skip  # noqa: E501
        assert said(school, name, 0).startswith("block bypass bypass:"), name
        assert said(school, name, 2) == "allow default", "a profile may switch it off"
    assert said(school, "captive.apple.com", 1, calendar.timegm((2026, 11, 23, 22, 0, 0))) == "allow never_block"


def test_overrides_hold_until_their_time_and_beat_rules(school: Engine) -> None:
    end = NOON + 1800
    engine = Engine(
        school.images,
        school.policy,
        zone=school.zone,
        generation=9,
        overrides=[
            Override(1, "domain:games.example", "pupils", "allow", end, "ms. k"),
            Override(2, "domain:chess.example", "pupils", "block", end, "ms. k"),
            Override(3, "category:social", "pupils", "allow", end, "ms. k"),
        ],
    )
    assert said(engine, "games.example", 1) == "allow override override:1"
    assert said(engine, "www.chess.example", 1) == "block override override:2"
    assert said(engine, "social.example", 1) == "allow default", "the category is open"
    assert said(engine, "games.example", 1, end) == "block category list:games"
    assert said(engine, "games.example", 0) == "allow default"
    assert engine.valid_until(1, NOON) <= end
    everything = Engine(
        school.images, school.policy, zone=school.zone, overrides=[Override(4, "all", "", "block", end, "head")]
    )
    assert said(everything, "news.example", 0) == "block override override:4"
    assert said(everything, "captive.apple.com", 0) == "allow never_block"


def test_addresses_by_lists_and_rules(school: Engine) -> None:
    at = lambda text, group: school.decide_address(bytes(map(int, text.split("."))), group, NOON)  # noqa: E731
    assert (at("203.0.113.9", 1).reason, at("203.0.113.9", 1).rule) == (Reason.ADDRESS, "list:adult")
    assert at("198.51.100.1", 1).rule == "rule:no_blitz"
    assert at("198.51.100.1", 0).verdict is Verdict.ALLOW
    assert at("192.0.2.1", 1).verdict is Verdict.ALLOW


def test_urls_of_clear_text_http(school: Engine) -> None:
    def url(host: str, path: str, group: int = 1) -> str:
        decision = school.decide_url(host.encode(), path.encode(), group, NOON)
        return f"{decision.verdict.name} {decision.reason.name} {decision.rule}".strip().lower()

    assert url("news.example", "/games") == "block url rule:no_blitz"
    assert url("www.news.example", "/games/x") == "block url rule:no_blitz"
    assert url("news.example", "/") == "allow default"
    assert url("news.example", "/games", 0) == "allow default"
    assert url("video.example", "/adult") == "block url list:adult"
    assert url("www.video.example", "/ADULT/clip") == "block url list:adult"
    assert url("video.example", "/adulthood") == "allow default"
    assert url("games.example", "/x") == "block category list:games"
    assert url("203.0.113.9", "/x") == "block address list:adult"
    assert url("www.google.de", "/search") == "allow default", "rewritten by DNS, so it may be reached"
    assert url("chess.example", "/x") == "allow rule rule:chess"


def test_allow_lists_are_for_all_or_for_those_who_name_them() -> None:
    config = """
config profile 'one'
	list block 'bad'
	list allow 'special'
config profile 'two'
	list block 'bad'
config group 'a'
	option profile 'one'
config group 'b'
	option profile 'two'
"""
    lists = {"bad": "x.example\ny.example\n", "common": "x.example\n", "special": "y.example\n"}
    engine = engine_of(lists, allow=("common", "special"), config=config)
    assert said(engine, "x.example", 1) == "allow allow_list list:common"
    assert said(engine, "x.example", 2) == "allow allow_list list:common"
    assert said(engine, "y.example", 1) == "allow allow_list list:special"
    assert said(engine, "y.example", 2) == "block category list:bad"


def test_a_profile_may_allow_what_another_blocks() -> None:
    config = """
config profile 'white'
	option default 'block'
	list allow 'learning'
config group 'default'
	option profile 'white'
"""
    engine = engine_of({"learning": "maths.example\n"}, config=config)
    assert said(engine, "www.maths.example") == "allow allow_list list:learning"
    assert said(engine, "other.example") == "block default profile:white"
    assert said(engine, "") == "block default profile:white"


def test_words_that_refer_to_nothing_are_told() -> None:
    engine = engine_of({"adult": ""}, config="config profile 'p'\n\tlist block 'adlut'\n\tlist safesearch 'gogle'\n")
    assert engine.unknown == {"adlut", "safesearch:gogle"}


def test_top_level_domains_can_be_ruled() -> None:
    engine = engine_of({"x": "a.zip\n"}, config="config rule 'tld'\n\tlist match 'domain:zip'\n")
    assert said(engine, "b.zip") == "block rule rule:tld"
    assert said(engine, "zip") == "block rule rule:tld"


def test_escaped_names_are_not_taken_for_their_tails() -> None:
    engine = engine_of({"x": "bad.example\n"})
    assert engine.decide(rb"not\.bad.example", 0, NOON).verdict is Verdict.ALLOW
    assert engine.decide(rb"a\.b.bad.example", 0, NOON).verdict is Verdict.BLOCK
    ruled = engine_of({}, config="config rule\n\tlist match 'domain:bad.example'\n")
    assert ruled.decide(rb"not\.bad.example", 0, NOON).verdict is Verdict.ALLOW


@settings(max_examples=300)
@given(st.binary(max_size=300), st.integers(0, 2))
def test_any_name_gets_a_decision_in_bounded_time(name: bytes, group: int) -> None:
    decision = ENGINE.decide(name, group, NOON)
    assert decision == ENGINE._weigh(name, ENGINE.state_at(group, NOON)) or b"." not in name
    ENGINE.decide_url(name, name, group, NOON)


LABELS = st.sampled_from([b"a", b"b", b"ads", b"x", b"example", b"org"])
NAMES = st.lists(LABELS, min_size=1, max_size=5).map(b".".join)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(NAMES, st.sampled_from(["|%s^", "||%s^", "||*.%s^", "@@||%s^", "||%s^$important",
                                               "@@||%s^$important"]), max_size=12), st.lists(NAMES, max_size=12))  # fmt: skip  # noqa: E501
def test_lists_decide_as_a_plain_reading_of_them(rules: dict[bytes, str], asked: list[bytes]) -> None:
    """Against a model of six lines: collect what speaks of the name, take the strongest."""
    engine = engine_of({"x": "\n".join(form % name.decode() for name, form in rules.items() if b"." in name)})
    ranks = {"|%s^": 1, "||%s^": 1, "||*.%s^": 1, "@@||%s^": 2, "||%s^$important": 3, "@@||%s^$important": 4}
    for name in asked:
        best = 0
        for ruled, form in rules.items():
            is_self, is_below = name == ruled, name.endswith(b"." + ruled)
            if b"." in ruled and ((is_self and form != "||*.%s^") or (is_below and form != "|%s^")):
                best = max(best, ranks[form])
        expected = Verdict.BLOCK if best in (1, 3) else Verdict.ALLOW
        assert engine.decide(name, 0, NOON).verdict is expected, (name, rules)


def test_two_images_are_asked_as_one() -> None:
    first, _ = compile_in_memory({"mine": "a.example\nboth.example\n"})
    second, _ = compile_in_memory({"theirs": "b.example\n@@||both.example^\n"}, salt=b"another salt 16b")
    engine = Engine([Image(first), Image(second)])
    assert said(engine, "www.a.example") == "block category list:mine"
    assert said(engine, "www.b.example") == "block category list:theirs"
    assert said(engine, "both.example") == "allow allow_list list:theirs"


def test_swap_under_load_never_mixes_two_policies() -> None:
    """Each image blocks either all `even` names or all `odd` ones; a reader must never see half of both."""
    images = [
        compile_in_memory({f"v{n % 2}": [f"{k}.{'even' if n % 2 == 0 else 'odd'}.example" for k in range(2000)]})[0]  # noqa: E501, RUF100
        for n in range(2)
    ]
    policy = load_policy(parse(""))
    holder = [Engine([images[0]], policy, generation=1)]
    wrong: list[str] = []
    asked = [0]
    stop = threading.Event()

    def ask() -> None:
        number = 0
        while not stop.is_set():
            engine = holder[0]
            number += 1
            even = engine.decide(b"www.%d.even.example" % (number % 2000), 0, NOON).verdict
            odd = engine.decide(b"www.%d.odd.example" % (number % 2000), 0, NOON).verdict
            asked[0] += 2
            if {even, odd} != {Verdict.BLOCK, Verdict.ALLOW} or (even is Verdict.BLOCK) != (engine.generation % 2 == 1):
                wrong.append(f"{engine.generation}: {even} {odd}")

    thread = threading.Thread(target=ask)
    thread.start()
    for generation in range(2, 42):
        before = asked[0]
        while asked[0] < before + 500:
            pass
        holder[0] = Engine([images[(generation + 1) % 2]], policy, generation=generation)
    stop.set()
    thread.join()
    assert not wrong
    assert asked[0] > 20_000
