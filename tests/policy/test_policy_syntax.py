"""The syntaxes of lists, case by case from their own documentation; hostile lines; no line is lost in silence."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.compile import compile_in_memory
from policy.errors import ListError
from policy.image import Kind, Scope
from policy.syntax import MAX_LINE, Entry, Format, Include, Lines, Parser, guess, parse_network

BLOCK, ALLOW, HARD, HARD_ALLOW = Kind.BLOCK, Kind.ALLOW, Kind.IMPORTANT_BLOCK, Kind.IMPORTANT_ALLOW
SELF, BELOW, BOTH = Scope.SELF, Scope.BELOW, Scope.BOTH


def net(text: str) -> Entry:
    return Entry(BLOCK, BOTH, b"", None, parse_network(text.encode()))


def name(text: bytes, scope: Scope = BOTH, kind: Kind = BLOCK) -> Entry:
    return Entry(kind, scope, text)


def url(host: bytes, pattern: bytes, scope: Scope = BOTH, kind: Kind = BLOCK) -> Entry:
    return Entry(kind, scope, host, pattern)


# An entry, several, none (a comment), or the reason why it is not in force.
CASES: dict[Format, list[tuple[str, "Entry | list[Entry] | str | None"]]] = {  # noqa: RUF036, RUF100
    Format.HOSTS: [  # hosts(5)
        ("127.0.0.1 ads.example.com", name(b"ads.example.com", SELF)),
        (
            "0.0.0.0\tads.example.com  tracker.example.com # two names",
            [name(b"ads.example.com", SELF), name(b"tracker.example.com", SELF)],
        ),
        (":: ads.example.com", name(b"ads.example.com", SELF)),
        ("::1 ADS.example.com", name(b"ads.example.com", SELF)),
        ("0.0.0.0 0.0.0.0", "local name"),
        ("127.0.0.1 localhost", "local name"),
        ("127.0.0.1 localhost real.example", name(b"real.example", SELF)),
        ("fe80::1%lo0 localhost", "local name"),
        ("255.255.255.255 broadcasthost", "local name"),
        ("216.239.38.120 www.google.com", "hosts line to a real address"),
        ("# comment", None),
        ("", None),
        ("   # comment", None),
        ("0.0.0.0", "no name in a hosts line"),
        ("ads.example.com", "no address in a hosts line"),
        ("0.0.0.0 not_a/name", "character not in names"),
    ],
    Format.DOMAINS: [
        ("example.org", name(b"example.org")),
        ("example.org # why", name(b"example.org")),
        (".example.org", name(b"example.org")),
        ("*.example.org", name(b"example.org")),
        ("ads*.example.org", "wildcard inside a name"),
        ("münchen.example", name(b"xn--mnchen-3ya.example")),
        ("192.0.2.7", net("192.0.2.7")),
        ("two words", "several words in a list of names"),
        ("# comment", None),
        ("; comment", None),
        ("! comment", None),
    ],
    Format.WILDCARD: [("*.example.org", name(b"example.org")), ("example.*", "wildcard inside a name")],
    # AdGuard, "DNS filtering syntax"; Adblock Plus, "How to write filters"
    Format.ADBLOCK: [
        ("||example.org^", name(b"example.org")),
        ("@@||example.org^", name(b"example.org", BOTH, ALLOW)),
        ("||example.org^$important", name(b"example.org", BOTH, HARD)),
        ("@@||example.org^$important", name(b"example.org", BOTH, HARD_ALLOW)),
        ("||example.org^$badfilter", name(b"example.org", BOTH, Kind.CANCEL_BLOCK)),
        ("||example.org^|", name(b"example.org")),
        ("||example.org", name(b"example.org")),
        ("|example.org^", name(b"example.org", SELF)),
        ("||*.example.org^", name(b"example.org", BELOW)),
        ("||EXAMPLE.org^$all", name(b"example.org")),
        ("||example.org^$document", name(b"example.org")),
        ("||192.0.2.1^", net("192.0.2.1")),
        ("0.0.0.0 example.org", name(b"example.org", SELF)),
        ("example.org", name(b"example.org")),
        ("! comment", None),
        ("# comment", None),
        ("[Adblock Plus 2.0]", None),
        ("||example.org^$third-party", "modifier $third-party"),
        ("||example.org^$popup,third-party", "modifier $popup"),
        ("||example.org^$domain=a.example|b.example", "modifier $domain"),
        ("||example.org^$client=192.168.0.1", "modifier $client"),
        ("||example.org^$dnstype=AAAA", "modifier $dnstype"),
        ("||example.org^$dnsrewrite=1.2.3.4", "modifier $dnsrewrite"),
        ("*$denyallow=com|net", "modifier $denyallow"),
        ("||example.org^$nonsense=1", "modifier $(unknown)"),
        ("/example.*/", "regular expression"),
        ("/banner\\d+/$important", "regular expression"),
        ("example.org##.ad", "cosmetic rule"),
        ("##.ad-banner", "cosmetic rule"),
        ("example.org#@#.ad", "cosmetic rule"),
        ("example.org#?#div:has(.ad)", "cosmetic rule"),
        ("example.org#%#window.x = 1;", "cosmetic rule"),
        ('example.org$$script[tag-content="x"]', "cosmetic rule"),
        ("||example.*^", "wildcard inside a name"),
        ("||ads.", "wildcard inside a name"),
        ("||example.org:8080^", "port in a pattern"),
        ("/ads/banner.", "pattern without a host"),
        ("-ad-banner.", "pattern without a host"),
        ("example.org^", "pattern without a host"),
        ("||example.org/ads/", url(b"example.org", b"/ads/")),
        ("||example.org^*/ads/*.js", url(b"example.org", b"^*/ads/*.js")),
        ("@@||example.org/good^", url(b"example.org", b"/good^", BOTH, ALLOW)),
        ("||example.org/x?y=1", "query in a URL: never looked at"),
        ("|https://example.org/ads/", url(b"example.org", b"/ads/", SELF)),
        ("|http://example.org^", name(b"example.org", SELF)),
        ("||192.0.2.1/bins/x.sh^$all", url(b"192.0.2.1", b"/bins/x.sh^", SELF)),
    ],
    # dnsmasq(8), and smartdns
    Format.DNSMASQ: [
        ("address=/example.org/0.0.0.0", name(b"example.org")),
        ("address=/example.org/::", name(b"example.org")),
        ("address=/example.org/#", name(b"example.org")),
        ("address=/example.org/", name(b"example.org")),
        ("address=/a.example/b.example/127.0.0.1", [name(b"a.example"), name(b"b.example")]),
        ("local=/example.org/", name(b"example.org")),
        ("--server=/example.org/", name(b"example.org")),
        ("server=/sub.example.org/#", name(b"sub.example.org", BOTH, ALLOW)),
        ("address=/*.example.org/#", name(b"example.org", BELOW)),
        ("address=/.example.org/#", name(b"example.org")),
        ("server=/example.org/114.114.114.114", "server= forwards, it does not block"),
        ("address=/example.org/192.0.2.9", "address= to a real address"),
        ("address=/#/0.0.0.0", "every name in a dnsmasq line"),
        ("server=1.1.1.1#53", "no name in a dnsmasq line"),
        ("cache-size=1000", "option that blocks nothing"),
        ("bogus-nxdomain=60.191.124.236", net("60.191.124.236")),
        ("address=/example.org/0.0.0.0 # comment", name(b"example.org")),
        ("# comment", None),
        ("address /example.org/#", name(b"example.org")),
        ("address /example.org/-", name(b"example.org", BOTH, ALLOW)),
    ],
    Format.DNSMASQ_NAMES: [("server=/example.org/114.114.114.114", name(b"example.org"))],
    # draft-vixie-dnsop-dns-rpz, 3 to 5
    Format.RPZ: [
        ("$TTL 2h;", None),
        ("$ORIGIN rpz.example.net.", None),
        ("@ SOA ns.example.net. root.example.net. ( 1 12h", None),
        ("  15m 3w 2h )", None),
        ("\tNS ns.example.net.", None),
        ("; comment", None),
        ("nxdomain.org CNAME .", name(b"nxdomain.org", SELF)),
        ("*.nxdomain.org CNAME .", name(b"nxdomain.org", BELOW)),
        ("nodata.org 300 IN CNAME *.", name(b"nodata.org", SELF)),
        ("mail.nxdomain.org CNAME rpz-passthru.", name(b"mail.nxdomain.org", SELF, ALLOW)),
        ("ok.nxdomain.org CNAME ok.nxdomain.org.", name(b"ok.nxdomain.org", SELF, ALLOW)),
        ("example.net 2h CNAME rpz-drop.", name(b"example.net", SELF)),
        ("absolute.example.rpz.example.net. CNAME .", name(b"absolute.example", SELF)),
        ("truncate.org CNAME rpz-tcp-only.", "action rpz-tcp-only"),
        ("local.org CNAME explanation.example.com.", "rewrite to another name"),
        ("local-a.org A 192.168.2.5", "local data"),
        ("null.org A 0.0.0.0", name(b"null.org", SELF)),
        ('txt.org TXT "a ; b"', "local data"),
        ("24.0.0.0.127.rpz-client-ip CNAME rpz-drop.", "trigger rpz-client-ip"),
        ("32.2.0.0.10.rpz-ip CNAME .", net("10.0.0.2/32")),
        ("24.0.2.0.192.rpz-ip CNAME .", net("192.0.2.0/24")),
        ("48.zz.2.2001.rpz-ip CNAME .", net("2001:2::/48")),
        ("128.3.zz.8.2001.rpz-ip CNAME .", net("2001:8::3/128")),
        ("ns.example.rpz-nsdname CNAME .", "trigger rpz-nsdname"),
        ("32.1.0.0.10.rpz-nsip CNAME .", "trigger rpz-nsip"),
        ("$INCLUDE other.zone", "directive that is not followed"),
    ],
    # squidGuard, "How blocking works"
    Format.URLS: [
        ("foo.example/bar", url(b"foo.example", b"/bar^")),
        ("foo.example/~user/", url(b"foo.example", b"/~user/")),
        ("http://www.foo.example/bar.html", url(b"www.foo.example", b"/bar.html^")),
        ("foo.example", name(b"foo.example")),
        ("foo.example/", name(b"foo.example")),
        ("178.128.25.172/watch", url(b"178.128.25.172", b"/watch^", SELF)),
        ("foo.example/x?id=1", "query in a URL: never looked at"),
        ("foo.example:8080/x", "port in a URL"),
        ("user@foo.example/x", "user name in a URL"),
        ("foo.example/a b", "blank in a URL"),
        ("# comment", None),
    ],
    Format.EXPRESSIONS: [("(sex|porn)", "regular expression"), ("", None)],
    Format.IP: [
        ("192.0.2.7", net("192.0.2.7")),
        ("192.0.2.7\t5", net("192.0.2.7")),  # ipsum: with the number of lists it is on
        ("192.0.2.0/24 # net", net("192.0.2.0/24")),
        ("192.0.2.9/24", net("192.0.2.0/24")),
        ("2001:db8::/32", net("2001:db8::/32")),
        ("2001:db8::1", net("2001:db8::1")),
        ("192.0.2.0-192.0.2.5", [net("192.0.2.0/30"), net("192.0.2.4/31")]),
        ("192.0.2.300", "not an address"),
        ("192.0.2.0/33", "not a prefix length"),
        ("192.0.2.5-192.0.2.1", "not a range"),
        ("010.0.2.7", "not an address"),
        ("# comment", None),
        ("; Spamhaus", None),
    ],
    # v2fly/domain-list-community, README
    Format.V2FLY: [
        ("google.com", name(b"google.com")),
        ("domain:google.com @ads", name(b"google.com")),
        ("full:www.google.com", name(b"www.google.com", SELF)),
        ("keyword:google", "keyword, not a name"),
        ("regexp:^r[0-9]+\\.example$", "regular expression"),
        ("# comment", None),
        ("", None),
    ],
    Format.AUTO: [
        ("example.org", name(b"example.org")),
        ("0.0.0.0 example.org", name(b"example.org", SELF)),
        ("||example.org^", name(b"example.org")),
        ("192.0.2.0/24", net("192.0.2.0/24")),
        ("192.0.2.7 7", net("192.0.2.7")),
        ("2001:db8::/32", net("2001:db8::/32")),
        ("foo.example/bar", url(b"foo.example", b"/bar^")),
        ("address=/example.org/#", name(b"example.org")),
        ("<html><body>", "character not in names"),
        ("# comment", None),
        ("! comment", None),
    ],
}


@pytest.mark.parametrize("format_", CASES, ids=lambda f: f.value)
def test_each_syntax_means_what_its_documentation_says(format_: Format) -> None:
    parser = Parser(format_)  # one for the whole column: a zone has a memory
    for line, expected in CASES[format_]:
        if isinstance(expected, str):
            with pytest.raises(ListError) as error:
                parser.parse(line.encode())
            assert str(error.value) == expected, line
            continue
        wanted = [] if expected is None else expected if isinstance(expected, list) else [expected]
        assert list(parser.parse(line.encode())) == wanted, line


def test_the_owner_can_say_what_the_syntax_leaves_open() -> None:
    assert Parser(Format.DOMAINS, Scope.SELF).parse(b"example.org") == (name(b"example.org", SELF),)
    assert Parser(Format.HOSTS, Scope.BOTH).parse(b"0.0.0.0 example.org") == (name(b"example.org", BOTH),)


def test_v2fly_includes_and_attributes() -> None:
    assert Parser(Format.V2FLY).parse(b"include:google @ads @-cn") == (
        Include("google", frozenset({b"ads"}), frozenset({b"cn"})),
    )
    wanted = Parser(Format.V2FLY, wanted=frozenset({b"ads"}))
    assert wanted.parse(b"a.example @ads") == (name(b"a.example"),)
    assert wanted.parse(b"b.example") == ()
    assert Parser(Format.V2FLY, unwanted=frozenset({b"cn"})).parse(b"a.example @cn") == ()
    with pytest.raises(ListError, match="not a file name"):
        Parser(Format.V2FLY).parse(b"include:../../etc/passwd")


@pytest.mark.parametrize(
    ("head", "format_"),
    [
        (b"$TTL 2h\n@ IN SOA a. b. (1 2 3 4 5)\nx CNAME .\n", Format.RPZ),
        (b"; rpz\nx.example CNAME rpz-passthru.\n", Format.RPZ),
        (b"! Title: x\n||a.example^\n", Format.ADBLOCK),
        (b"# title\naddress=/a.example/0.0.0.0\n", Format.DNSMASQ),
        (b"include:google\nfull:a.example\n", Format.V2FLY),
        (b"# hosts\n0.0.0.0 a.example\n", Format.AUTO),
        (b"a.example\n", Format.AUTO),
        (b"", Format.AUTO),
    ],
)
def test_the_format_is_guessed_from_the_head(head: bytes, format_: Format) -> None:
    assert guess(head) is format_


def feed(data: bytes, size: int) -> list[tuple[int, bytes | None]]:
    lines = Lines()
    found = [line for at in range(0, len(data), size) for line in lines.feed(data[at : at + size])]
    return found + list(lines.end())


@given(st.binary(max_size=200), st.integers(1, 50))
def test_lines_are_the_same_however_they_arrive(data: bytes, size: int) -> None:
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert feed(data, size) == list(enumerate(expected, 1))


def test_a_line_of_a_megabyte_is_told_and_not_kept() -> None:
    data = b"first.example\n" + b"x" * (1 << 20) + b"\nlast.example"
    for size in (1 << 16, 7777, len(data)):
        assert feed(data, size) == [(1, b"first.example"), (2, None), (3, b"last.example")]
    lines = Lines()
    for _ in range(100):
        assert not list(lines.feed(b"y" * 65536))
        assert len(lines._rest) <= MAX_LINE


HOSTILE = {
    b"x" * (1 << 20): "line too long",
    b"a\0b.example": "NUL octet",
    b"\xc3\x28.example": "not UTF-8",
    b"xn--" + b"9" * 59 + b".example": "bad punycode",
    b"xn--" + b"a" * 500 + b".example": "label too long",
    "ü".encode() * 500: "label too long",
    b"0.0.0.0 " + b"a." * 400 + b"example": "name too long",
    b"com": "public suffix",
    b"co.uk": "public suffix",
    b"0.0.0.0/0": "address range too wide",
    b"::/0": "address range too wide",
}


def test_hostile_lines_are_reported_with_file_and_line() -> None:
    lines = list(HOSTILE)
    text = b"good.example\n" + b"\n".join(lines) + b"\nalso.example\n"
    _, report = compile_in_memory({"bad": text})
    (item,) = report.lists
    assert (item.names, item.entries) == (2, 2 + len(lines))
    assert {(e.file, e.line, e.reason) for e in item.examples} == {
        ("bad", number, reason) for number, reason in enumerate(HOSTILE.values(), 2)
    }
    assert all(len(example.text) < 300 and example.text.isprintable() for example in item.examples)


@pytest.mark.parametrize("format_", [f for f in Format if f not in (Format.TREE, Format.V2FLY_TREE)])
@settings(max_examples=150)
@given(
    line=st.one_of(
        st.binary(max_size=120),
        st.text(max_size=60).map(str.encode),
        st.text(alphabet='|@^$*/.#=~,:a1-_% \t()"\\;!xn', max_size=40).map(str.encode),
    )
)
def test_any_line_gives_entries_or_a_list_error(format_: Format, line: bytes) -> None:
    try:
        entries = Parser(format_).parse(line)
    except ListError as error:
        assert len(str(error)) < 60, "a constant: it is counted by it"  # noqa: PT017  # noqa: PT017
        return
    for entry in entries:
        if isinstance(entry, Entry) and entry.network is None:
            assert entry.name
            assert entry.name == entry.name.lower()


@given(st.binary(max_size=400))
def test_every_line_of_any_file_is_counted(data: bytes) -> None:
    _, report = compile_in_memory({"x": data})
    (item,) = report.lists
    assert item.entries == item.in_force + sum(item.refused.values())
    assert item.lines == len(feed(data.removeprefix(b"\xef\xbb\xbf"), 1 << 16))


@pytest.mark.parametrize(
    "line",
    [
        b"||" + b"*" * 8000 + b"^",
        b"|" * 8000,
        b"$" * 8000,
        b"/" * 8000,
        b"#" * 8000,
        b"@@" * 4000,
        b"a," * 4000 + b"$x",
        b" " * 8000 + b"x",
        b"(" * 8000,
    ],
)
def test_no_line_costs_more_than_linear_time(line: bytes) -> None:
    start = time.process_time()
    for format_ in (f for f in Format if f not in (Format.TREE, Format.V2FLY_TREE)):
        try:
            Parser(format_).parse(line)
        except ListError:
            pass
        guess(line)
    assert time.process_time() - start < 1.0


def test_a_bad_filter_takes_back_the_rule_of_its_own_list() -> None:
    image, _ = compile_in_memory({"a": "||x.example^\n||y.example^\n||x.example^$badfilter\n"})
    from policy.engine import Engine

    engine = Engine([image])
    assert engine.decide(b"x.example", 0, 0.0).verdict.name == "ALLOW"
    assert engine.decide(b"y.example", 0, 0.0).verdict.name == "BLOCK"
