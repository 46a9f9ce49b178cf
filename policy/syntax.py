"""The syntaxes lists are written in: one line in, entries out. Reads no file and knows no group.

Order of calls: `guess` on the head of a file whose format nobody told, `Lines` to cut it into lines, one `Parser` a
file, `parse` for each line.
Rule: a line either gives entries, or is blank or a comment (gives none), or raises ListError whose message is the
reason in a few constant words: it is counted by it, so nothing is ever taken or dropped in silence.

Sources: hosts(5); AdGuard "DNS filtering syntax"; Adblock Plus "How to write filters"; dnsmasq(8); draft-vixie-dnsop-
dns-rpz; squidGuard "Domainlists, URLlists"; the README of v2fly/domain-list-community.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final, NamedTuple

from policy.errors import ListError
from policy.image import Kind, Scope
from policy.names import parse_name

MAX_LINE: Final = 16384
"""Octets of a line. EasyList has honest ones of 4 to 10 kB, with the hundreds of sites a rule is for."""


class Format(Enum):
    """How a list is written."""

    AUTO = "auto"
    """Guess from its head; then each line may still be a name, a hosts line, an Adblock rule or an address."""
    HOSTS = "hosts"
    DOMAINS = "domains"
    WILDCARD = "wildcard"
    ADBLOCK = "adblock"
    DNSMASQ = "dnsmasq"
    DNSMASQ_NAMES = "dnsmasq-names"
    """The names of `server=/name/address` too, which dnsmasq would forward and not block."""
    RPZ = "rpz"
    URLS = "urls"
    IP = "ip"
    V2FLY = "v2fly"
    EXPRESSIONS = "expressions"
    """squidGuard's regular expressions: all counted, none in force."""
    TREE = "tree"
    """A directory, squidGuard's: a category a sub-directory with `domains`, `urls`, `expressions`."""
    V2FLY_TREE = "v2fly-tree"
    """A directory of v2fly files: a category a file."""


class Entry(NamedTuple):
    """What one word of a line asks for: a name, a URL rule (pattern not None), or an address range."""

    kind: Kind
    scope: Scope
    name: bytes
    pattern: bytes | None = None
    network: tuple[int, int, int] | None = None
    """First address, prefix length, 32 or 128."""


class Include(NamedTuple):
    """v2fly: read another file of the same directory here, entries with and without these attributes only."""

    name: str
    wanted: frozenset[bytes]
    unwanted: frozenset[bytes]


Parsed = tuple["Entry | Include", ...]
NOTHING: Final[Parsed] = ()

_NULL_ADDRESSES: Final = frozenset(
    (b"0.0.0.0", b"127.0.0.1", b"::", b"::1", b"::0", b"0", b"0:0:0:0:0:0:0:0", b"0:0:0:0:0:0:0:1", b"127.0.0.0",
     b"127.0.1.1", b"255.255.255.255")
)  # fmt: skip
_LOCAL_NAMES: Final = frozenset(
    b"localhost localhost.localdomain localhost4 localhost6 localhost4.localdomain4 localhost6.localdomain6 local "
    b"broadcasthost ip6-localhost ip6-loopback ip6-localnet ip6-mcastprefix ip6-allnodes ip6-allrouters "
    b"ip6-allhosts loopback".split()
)
_SIMPLE: Final = re.compile(rb"(?!.{254})(?:[a-z0-9_-]{1,63}\.)+(?![0-9]+\Z)[a-z0-9_-]{2,63}").fullmatch
_ADDRESS: Final = re.compile(rb"[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*").fullmatch
_COSMETIC: Final = re.compile(rb"#@?(?:[?$%]|\$\?)?#|#@?%#|\$\$|\$@\$")
_ZONE_MARK: Final = re.compile(
    rb"\$(?:TTL|ORIGIN)\b|[^;]*\sIN\s+SOA\s|[^;]*\sSOA\s.*\(|[^;\s]+\s[^;]*CNAME\s+(?:\.|\*\.|rpz-)"
).match
_TTL: Final = re.compile(rb"[0-9]+[smhdwSMHDW]?").fullmatch
_MODIFIERS: Final = re.compile(rb"~?[a-zA-Z0-9_-]+(?:=[^,]*)?(?:,.*)?").fullmatch
_ABP_HOST: Final = re.compile(rb"[^\^/:?|*]*").match
_ABP_URL: Final = re.compile(rb"\|?(?:https?:)?//([^\^/:?|*]+)(.*)").fullmatch
# They say "in the whole document", "in whatever way", which is what a name filter does anyhow (AdGuard's
# HostlistCompiler strips the same ones). $popup or $third-party would block more than the author meant.
_HARMLESS: Final = frozenset((b"all", b"document", b"doc", b"network"))


class Lines:
    """Cuts octets into numbered lines in bounded memory; a line longer than MAX_LINE is given as None."""

    def __init__(self) -> None:
        self.number = 0
        self._rest = b""
        self._is_skipping = False

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes | None]]:
        """The lines completed by the next octets of the file."""
        pieces = data.split(b"\n")
        pieces[0] = self._rest + pieces[0]
        self._rest = pieces.pop()
        for line in pieces:
            self.number += 1
            if self._is_skipping:
                self._is_skipping = False
                yield self.number, None
            else:
                yield self.number, line if len(line) <= MAX_LINE else None
        if len(self._rest) > MAX_LINE:
            self._is_skipping = True
            self._rest = b""

    def end(self) -> Iterator[tuple[int, bytes | None]]:
        """The last line, if the file does not end with a line end."""
        if self._rest or self._is_skipping:
            self.number += 1
            yield self.number, None if self._is_skipping else self._rest


def guess(head: bytes) -> Format:
    """The format of a file whose first octets (some 64 kB) these are."""
    lines = [line.strip() for line in head.split(b"\n")[:2000]]
    if any(
        re.match(rb"\$(?:TTL|ORIGIN)\b|.*\sIN\s+SOA\s|.*\sSOA\s.*\(|.*\sCNAME\s+(?:\.|\*\.|rpz-)", x) for x in lines
    ):
        return Format.RPZ
    marks = [line for line in lines if line and not line.startswith((b"#", b";"))]
    if any(x.startswith((b"full:", b"include:", b"regexp:", b"keyword:", b"domain:")) for x in marks):
        return Format.V2FLY
    dnsmasq = (b"address=/", b"server=/", b"local=/", b"address /", b"bogus-nxdomain=", b"nameserver /")
    if any(x.startswith(dnsmasq) for x in marks):
        return Format.DNSMASQ
    if any(x.startswith((b"||", b"@@", b"[Adblock", b"[uBlock", b"! ")) for x in marks):
        return Format.ADBLOCK
    return Format.AUTO


class Parser:
    """Reads the lines of one file."""

    def __init__(
        self,
        format_: Format,
        scope: Scope | None = None,
        *,
        wanted: frozenset[bytes] = frozenset(),
        unwanted: frozenset[bytes] = frozenset(),
    ) -> None:
        """`scope` None: as each syntax means it; else it holds for names whose syntax leaves it open (hosts, names)."""
        self._scope = Scope.BOTH if scope is None else scope
        self._hosts_scope = Scope.SELF if scope is None else scope
        self._wanted, self._unwanted = wanted, unwanted
        self._rpz = _Zone()
        self.parse: Callable[[bytes], Parsed] = {
            Format.AUTO: self._mixed,
            Format.HOSTS: self._hosts,
            Format.DOMAINS: self._domains,
            Format.WILDCARD: self._domains,
            Format.ADBLOCK: self._adblock,
            Format.DNSMASQ: self._dnsmasq,
            Format.DNSMASQ_NAMES: self._dnsmasq_names,
            Format.RPZ: self._rpz.parse,
            Format.URLS: self._url,
            Format.IP: self._ip,
            Format.V2FLY: self._v2fly,
            Format.EXPRESSIONS: _expression,
        }[format_]
        """One line without its line end -> entries. Raises: ListError."""

    def _mixed(self, line: bytes) -> Parsed:
        line = line.strip()
        if _SIMPLE(line) and b"xn--" not in line:  # nearly every line of nearly every list
            return (Entry(Kind.BLOCK, self._scope, line),)
        if not line or line[0] in b"#;!":
            return NOTHING
        if line.startswith((b"||", b"@@", b"|")):
            return self._adblock(line)
        if line.startswith((b"address=", b"server=", b"local=")):
            return self._dnsmasq(line)
        return self._word(line)

    def _word(self, line: bytes) -> Parsed:
        """A line of names, addresses or URLs without further marks."""
        words = _before_comment(line).split()
        if not words:
            return NOTHING
        if _ADDRESS(words[0].partition(b"%")[0]) and len(words) > 1 and not words[1].isdigit():
            return self._host_line(words)
        if _looks_like_network(words[0]):
            return self._ip(line)
        if len(words) > 1:
            raise ListError("several words, not a hosts line")
        if b"/" in words[0]:
            return self._url(words[0])
        return self._name(words[0], self._scope)

    def _name(self, word: bytes, scope: Scope) -> Parsed:
        if _SIMPLE(word) and b"xn--" not in word:
            return (Entry(Kind.BLOCK, scope, word),)
        if word.startswith(b"*."):
            # oisd, hagezi, blocky: a leading `*.` in a list of names means the name and all below it.
            word = word[2:]
        elif word.startswith(b"."):
            word = word[1:]
        if b"*" in word:
            raise ListError("wildcard inside a name")
        return (Entry(Kind.BLOCK, scope, _checked(word)),)

    def _domains(self, line: bytes) -> Parsed:
        words = _before_comment(line.strip()).split()
        if not words or words[0][:1] in (b"!", b";"):
            return NOTHING
        if len(words) > 1:
            raise ListError("several words in a list of names")
        if _looks_like_network(words[0]):
            return self._ip(words[0])
        return self._name(words[0], self._scope)

    def _hosts(self, line: bytes) -> Parsed:
        words = _before_comment(line.strip()).split()
        if not words:
            return NOTHING
        if not _ADDRESS(words[0].partition(b"%")[0]):
            raise ListError("no address in a hosts line")
        return self._host_line(words)

    def _host_line(self, words: list[bytes]) -> Parsed:
        """`0.0.0.0 name name`: all names, or none with a reason, so that the line is counted once."""
        if words[0].partition(b"%")[0] not in _NULL_ADDRESSES:
            if all(word.lower() in _LOCAL_NAMES for word in words[1:]):
                raise ListError("local name")
            raise ListError("hosts line to a real address")
        if len(words) < 2:
            raise ListError("no name in a hosts line")
        entries: list[Entry] = []
        for word in words[1:]:
            if word.lower() in _LOCAL_NAMES or word in _NULL_ADDRESSES:
                if len(words) == 2:
                    raise ListError("local name")
                continue
            entries += self._name(word, self._hosts_scope)  # type: ignore[arg-type]  # never an Include
        if not entries:
            raise ListError("local name")
        return tuple(entries)

    def _ip(self, line: bytes) -> Parsed:
        """An address, a CIDR block or a range; what follows in further words (counts, notes) is not looked at."""
        words = _before_comment(line.strip()).split()
        if not words or words[0][:1] in (b"!", b";"):
            return NOTHING
        word = words[0].rstrip(b",;")
        first, dash, last = word.partition(b"-")
        if dash:
            return tuple(Entry(Kind.BLOCK, Scope.BOTH, b"", None, net) for net in _range(first, last))
        return (Entry(Kind.BLOCK, Scope.BOTH, b"", None, parse_network(word)),)

    def _url(self, line: bytes) -> Parsed:
        """squidGuard's URL lists: `host/path`, scheme and `www.` as they like; the path is a prefix."""
        words = line.strip().split()
        if not words or words[0].startswith(b"#"):
            return NOTHING
        if len(words) > 1:
            raise ListError("blank in a URL")
        url = re.sub(rb"^[a-zA-Z][a-zA-Z0-9+.-]*://", b"", words[0])
        host, slash, path = url.partition(b"/")
        if b"@" in host:
            raise ListError("user name in a URL")
        name, colon, _ = host.partition(b":")
        if colon:
            raise ListError("port in a URL")
        if b"?" in path or b"#" in path:
            raise ListError("query in a URL: never looked at")
        if _ADDRESS(name):
            return self._address_url(name, path)
        if not path.strip(b"/"):
            return self._name(name, self._scope)
        return (Entry(Kind.BLOCK, self._scope, _checked(name), _prefix_pattern(slash + path)),)

    def _address_url(self, host: bytes, path: bytes) -> Parsed:
        network = parse_network(host)
        if not path.strip(b"/"):
            return (Entry(Kind.BLOCK, Scope.BOTH, b"", None, network),)
        return (Entry(Kind.BLOCK, Scope.SELF, host.lower(), _prefix_pattern(b"/" + path)),)

    # --- Adblock Plus and AdGuard ------------------------------------------------------------------------------

    def _adblock(self, line: bytes) -> Parsed:
        line = line.strip()
        if not line or line[0] in b"![":
            return NOTHING
        if _COSMETIC.search(line):
            if line.startswith(b"#") and not re.match(rb"#@?[?$%]*#[^#\s]", line):
                return NOTHING  # `## a heading`, `#####`
            raise ListError("cosmetic rule")
        if line[0] == 0x23 and (len(line) == 1 or line[1:2] in b" #=-!\t" or b" " in line):
            return NOTHING
        allow = line.startswith(b"@@")
        pattern = line[2:] if allow else line
        if len(pattern) > 1 and pattern.startswith(b"/") and re.fullmatch(rb"/.+/(?:\$[^/]*)?", pattern):
            raise ListError("regular expression")
        kind, pattern = _modified(Kind.ALLOW if allow else Kind.BLOCK, pattern)
        if pattern.startswith(b"||"):
            return _anchored(kind, pattern[2:])
        if pattern.startswith((b"|http:", b"|https:", b"|//", b"http://", b"https://", b"//")):
            return _exact_url(kind, pattern)
        if pattern.startswith(b"|"):
            # AdGuard: `|example.org^` is the name without what is below it.
            name = pattern[1:].rstrip(b"^|")
            if _ADDRESS(name):
                return _on_address(kind, name, b"")
            return (Entry(kind, Scope.SELF, _checked(name)),)
        if any(mark in pattern for mark in (b"^", b"*", b"|", b"?", b"=", b"&", b",", b"~", b"%", b"+")):
            raise ListError("pattern without a host")
        if pattern.startswith((b"/", b"-", b".", b"_", b":")) or pattern.endswith((b"/", b"-", b".", b"_")):
            raise ListError("pattern without a host")
        if b"." not in pattern:
            raise ListError("pattern without a host")
        entries = self._word(pattern)
        return tuple(entry._replace(kind=kind) if isinstance(entry, Entry) else entry for entry in entries)

    # --- dnsmasq and smartdns ----------------------------------------------------------------------------------

    def _dnsmasq_names(self, line: bytes) -> Parsed:
        return self._dnsmasq(line, with_servers=True)

    def _dnsmasq(self, line: bytes, with_servers: bool = False) -> Parsed:
        line = re.sub(rb"(?:^|\s)#.*", b"", line.strip()).strip()  # a # inside a word is a port or "no address"
        if not line:
            return NOTHING
        key, equals, value = line.removeprefix(b"--").partition(b"=")
        if not equals:
            key, _, value = line.partition(b" ")  # smartdns
        key, value = key.strip(), value.strip()
        if key == b"bogus-nxdomain":
            return (Entry(Kind.BLOCK, Scope.BOTH, b"", None, parse_network(value)),)
        if key not in (b"address", b"local", b"server"):
            raise ListError("option that blocks nothing")
        if not value.startswith(b"/"):
            raise ListError("no name in a dnsmasq line")
        *words, target = value[1:].split(b"/")
        if not words:
            raise ListError("no / behind the name in a dnsmasq line")
        kind = _dnsmasq_kind(key, target, with_servers)
        entries = []
        for word in words:
            if word in (b"#", b""):
                raise ListError("every name in a dnsmasq line")
            scope = Scope.BELOW if word.startswith(b"*.") else Scope.BOTH
            word = word.removeprefix(b"*.").removeprefix(b".")
            if b"*" in word:
                raise ListError("wildcard inside a name")
            entries.append(Entry(kind, scope, _checked(word)))
        return tuple(entries)

    # --- v2fly -------------------------------------------------------------------------------------------------

    def _v2fly(self, line: bytes) -> Parsed:
        words = line.partition(b"#")[0].split()
        if not words:
            return NOTHING
        attributes = frozenset(word[1:] for word in words[1:] if word.startswith(b"@"))
        affiliations = [word for word in words[1:] if word.startswith(b"&")]
        if len(attributes) + len(affiliations) != len(words) - 1:
            raise ListError("several words in a list of names")
        kind, colon, value = words[0].partition(b":")
        if not colon:
            kind, value = b"domain", words[0]
        if kind == b"include":
            unwanted = frozenset(a[1:] for a in attributes if a.startswith(b"-"))
            if not re.fullmatch(rb"[a-zA-Z0-9!_-]{1,100}", value):
                raise ListError("not a file name in include")
            wanted = attributes - {b"-" + a for a in unwanted}
            return (Include(value.decode().lower(), wanted, unwanted),)
        if not self._wanted <= attributes or self._unwanted & attributes:
            return NOTHING
        if kind == b"domain":
            return (Entry(Kind.BLOCK, self._scope, _checked(value)),)
        if kind == b"full":
            return (Entry(Kind.BLOCK, Scope.SELF, _checked(value)),)
        if kind == b"keyword":
            raise ListError("keyword, not a name")
        if kind == b"regexp":
            raise ListError("regular expression")
        raise ListError("unknown kind of rule")


def _expression(line: bytes) -> Parsed:
    if not line.strip() or line.startswith(b"#"):
        return NOTHING
    raise ListError("regular expression")


# --- words ---------------------------------------------------------------------------------------------------------


def _before_comment(line: bytes) -> bytes:
    return line.partition(b"#")[0]


def _checked(word: bytes) -> bytes:
    name = parse_name(word)
    if name in _LOCAL_NAMES:
        raise ListError("local name")
    return name


def _looks_like_network(word: bytes) -> bool:
    first = word.partition(b"/")[0].partition(b"-")[0]
    return bool(_ADDRESS(first)) and re.fullmatch(rb"[^/-]+(?:/[0-9]{1,3})?|[^/-]+-[^/-]+", word) is not None


def _packed(word: bytes) -> bytes:
    """An address as 4 or 16 octets. A leading zero is refused: some read it as octal (RFC 6943 3.1.1)."""
    parts = word.split(b".")
    if len(parts) == 4 and b":" not in word:
        if all(p.isdigit() and len(p) <= 3 and int(p) < 256 and (p[0] != 0x30 or p == b"0") for p in parts):
            return bytes(map(int, parts))
        raise ListError("not an address")
    try:
        return ipaddress.IPv6Address(word.decode("ascii")).packed
    except (ValueError, UnicodeDecodeError):
        raise ListError("not an address") from None


def parse_network(word: bytes) -> tuple[int, int, int]:
    """`192.0.2.0/24`, `2001:db8::/32` or one address: first address, prefix length, 32 or 128. Host bits are cut off.

    Raises: ListError.
    """
    address, slash, length = word.partition(b"/")
    packed = _packed(address)
    bits = 8 * len(packed)
    if slash and not (length.isdigit() and len(length) <= 3 and int(length) <= bits):
        raise ListError("not a prefix length")
    prefix = int(length) if slash else bits
    first = int.from_bytes(packed, "big") >> (bits - prefix) << (bits - prefix)
    return first, prefix, bits


def _range(first: bytes, last: bytes) -> list[tuple[int, int, int]]:
    """The CIDR blocks of `first-last`."""
    low, high = _packed(first), _packed(last)
    start, end, bits = int.from_bytes(low, "big"), int.from_bytes(high, "big"), 8 * len(low)
    if len(low) != len(high) or start > end:
        raise ListError("not a range")
    blocks = []
    while start <= end:  # at most 2 * bits steps: the blocks grow, then shrink
        size = min((start & -start).bit_length() - 1 if start else bits, (end - start + 1).bit_length() - 1)
        blocks.append((start, bits - size, bits))
        start += 1 << size
    return blocks


def _prefix_pattern(path: bytes) -> bytes:
    """A path prefix that ends where a path component ends, as a pattern. What has a meaning in patterns is refused."""
    if any(mark in path for mark in (b"*", b"^", b"|")):
        raise ListError("special character in a URL")
    return path if path.endswith(b"/") else path + b"^"


# --- Adblock -------------------------------------------------------------------------------------------------------


def _modified(kind: Kind, pattern: bytes) -> tuple[Kind, bytes]:
    """Take the modifiers off a pattern."""
    head, dollar, tail = pattern.rpartition(b"$")
    if not dollar or not _MODIFIERS(tail):
        return kind, pattern
    important = cancelled = False
    for modifier in tail.lower().split(b","):
        if modifier == b"important":
            important = True
        elif modifier == b"badfilter":
            cancelled = True
        elif modifier not in _HARMLESS:
            raise ListError("modifier $" + _modifier_name(modifier))
    number = kind + (Kind.IMPORTANT_BLOCK if important else 0) + (Kind.CANCEL_BLOCK if cancelled else 0)
    return Kind(number), head


_KNOWN_MODIFIERS: Final = frozenset(
    b"third-party 3p first-party 1p popup popunder script image stylesheet css object subdocument frame xmlhttprequest "
    b"xhr websocket webrtc ping beacon font media other domain from to method header permissions generichide ghide "
    b"specifichide shide elemhide ehide generic genericblock genericblock csp redirect redirect-rule rewrite "
    b"removeparam "
    b"queryprune replace match-case client ctag dnstype dnsrewrite denyallow inline-script inline-font cname app "
    b"cookie jsinject content urlblock extension stealth empty mp4 strict1p strict3p sitekey object-subrequest "
    b"background collapse dtd xbl removeheader jsonprune urltransform uritransform urlskip reason hls".split()
)


def _modifier_name(modifier: bytes) -> str:
    """For counting: known names as they are; anything else is one reason, or a hostile list makes a million."""
    name = modifier.partition(b"=")[0].removeprefix(b"~")
    return name.decode() if name in _KNOWN_MODIFIERS else "(unknown)"


def _anchored(kind: Kind, pattern: bytes) -> Parsed:
    """What stands behind `||`: a host, and perhaps a path."""
    scope = Scope.BOTH
    if pattern.startswith(b"*."):
        pattern, scope = pattern[2:], Scope.BELOW
    found = _ABP_HOST(pattern)
    host = found.group() if found else b""
    tail = pattern[len(host) :]
    if not host or host.endswith(b".") or tail.startswith(b"*"):
        raise ListError("wildcard inside a name")
    if tail.startswith(b":"):
        raise ListError("port in a pattern")
    if _ADDRESS(host):
        return _on_address(kind, host, tail)
    name = _checked(host)
    if tail.rstrip(b"|*") in (b"", b"^", b"^^"):
        return (Entry(kind, scope, name),)
    return (Entry(kind, scope, name, _path_pattern(tail)),)


def _on_address(kind: Kind, host: bytes, tail: bytes) -> Parsed:
    network = parse_network(host)
    if tail.rstrip(b"|*") in (b"", b"^", b"/"):
        return (Entry(kind, Scope.BOTH, b"", None, network),)
    return (Entry(kind, Scope.SELF, host.lower(), _path_pattern(tail)),)


def _exact_url(kind: Kind, pattern: bytes) -> Parsed:
    found = _ABP_URL(pattern)
    if not found:
        raise ListError("wildcard inside a name")
    host, tail = found.groups()
    if tail.startswith((b":", b"*")):
        raise ListError("port in a pattern" if tail.startswith(b":") else "wildcard inside a name")
    if _ADDRESS(host):
        return _on_address(kind, host, tail)
    if tail.rstrip(b"|") in (b"", b"^", b"/"):
        return (Entry(kind, Scope.SELF, _checked(host)),)
    return (Entry(kind, Scope.SELF, _checked(host), _path_pattern(tail)),)


def _path_pattern(tail: bytes) -> bytes:
    if b"?" in tail or b"&" in tail or b"=" in tail:
        # Privacy: query strings are neither kept nor looked at.
        raise ListError("query in a URL: never looked at")
    if b"|" in tail[:-1]:
        raise ListError("special character in a URL")
    return tail


# --- dnsmasq -------------------------------------------------------------------------------------------------------


def _dnsmasq_kind(key: bytes, target: bytes, with_servers: bool) -> Kind:
    """dnsmasq(8): an empty target answers nothing; `server=/name/#` is an exception from a wider line."""
    if key == b"server":
        if target == b"":
            return Kind.BLOCK
        if target == b"#":
            return Kind.ALLOW
        if with_servers:
            return Kind.BLOCK
        raise ListError("server= forwards, it does not block")
    if key == b"local" and target:
        raise ListError("address behind local=")
    if target in _NULL_ADDRESSES or target in (b"", b"#", b"#4", b"#6", b"#,#"):
        return Kind.BLOCK
    if target == b"-":
        return Kind.ALLOW  # smartdns: "ignore this address rule"
    raise ListError("address= to a real address")


# --- RPZ -----------------------------------------------------------------------------------------------------------


class _Zone:
    """A response policy zone as a master file (RFC 1035 5.1), its parentheses and origins."""

    def __init__(self) -> None:
        self._origin = b""
        self._owner = b""
        self._depth = 0
        self._kept: list[bytes] = []

    def parse(self, line: bytes) -> Parsed:
        text = re.sub(rb'"[^"]*"', b'""', line).partition(b";")[0].rstrip()
        if b"\0" in text:
            raise ListError("NUL octet")
        if self._depth:
            self._depth = max(0, self._depth + text.count(b"(") - text.count(b")"))
            return NOTHING  # the rest of an SOA record; policy records have one line
        if not text.strip():
            return NOTHING
        self._depth = max(0, text.count(b"(") - text.count(b")"))
        words = text.replace(b"(", b" ").split()
        if not words:
            return NOTHING
        if words[0].startswith(b"$"):
            return self._directive(words)
        if text[:1] not in (b" ", b"\t"):
            self._owner = words.pop(0)
        while words and (_TTL(words[0]) or words[0].upper() in (b"IN", b"CH", b"HS")):
            words.pop(0)
        if not words:
            raise ListError("record without a type")
        record, data = words[0].upper(), words[1:]
        owner = self._relative(self._owner)
        if record == b"SOA" and not self._origin and self._owner.endswith(b"."):
            self._origin = self._owner.lower()
            return NOTHING
        if owner == b"@" or record in (b"SOA", b"NS"):
            return NOTHING
        return _rpz_entry(owner, record, data)

    def _directive(self, words: list[bytes]) -> Parsed:
        if words[0].upper() == b"$ORIGIN" and len(words) > 1:
            self._origin = words[1].lower()
            return NOTHING
        if words[0].upper() == b"$TTL":
            return NOTHING
        raise ListError("directive that is not followed")

    def _relative(self, owner: bytes) -> bytes:
        name = owner.lower()
        if not name.endswith(b"."):
            return name
        if name == self._origin:
            return b"@"
        return name.removesuffix(b"." + self._origin) if self._origin else name[:-1]


def _rpz_entry(owner: bytes, record: bytes, data: list[bytes]) -> Parsed:
    kind = _rpz_kind(owner, record, data[0].lower() if data else b"")
    if owner.endswith(b".rpz-ip"):
        return (Entry(kind, Scope.BOTH, b"", None, _rpz_network(owner.removesuffix(b".rpz-ip"))),)
    for trigger in (b".rpz-client-ip", b".rpz-nsip", b".rpz-nsdname"):
        if owner.endswith(trigger):
            raise ListError("trigger " + trigger[1:].decode())
    if owner.startswith(b"*."):
        return (Entry(kind, Scope.BELOW, _checked(owner[2:])),)
    if b"*" in owner:
        raise ListError("wildcard inside a name")
    return (Entry(kind, Scope.SELF, _checked(owner)),)


def _rpz_kind(owner: bytes, record: bytes, data: bytes) -> Kind:
    """The policy actions: NXDOMAIN, NODATA, PASSTHRU and DROP; the rest would change answers."""
    if record == b"CNAME":
        if data in (b".", b"*.", b"rpz-drop."):
            return Kind.BLOCK
        if data == b"rpz-passthru." or data.removesuffix(b".") == owner:
            return Kind.ALLOW
        if data == b"rpz-tcp-only.":
            raise ListError("action rpz-tcp-only")
        raise ListError("rewrite to another name")
    if record in (b"A", b"AAAA") and data in _NULL_ADDRESSES:
        return Kind.BLOCK
    raise ListError("local data")


def _rpz_network(text: bytes) -> tuple[int, int, int]:
    """`24.0.2.0.192` is 192.0.2.0/24; `48.zz.2.2001` is 2001:2::/48."""
    prefix, *words = text.split(b".")
    words.reverse()
    if len(words) == 4 and b"zz" not in words and all(word.isdigit() for word in words):
        return parse_network(b".".join(words) + b"/" + prefix)
    address = b":".join(words).replace(b"zz", b"")
    if address.startswith(b":"):
        address = b":" + address
    if address.endswith(b":"):
        address += b":"
    return parse_network(address + b"/" + prefix)
