"""The head of an HTTP/1.x request, as far as it has come: method, host, path. Never the query string, never the body.

Rule: any bytes give a `Request`, NEED_MORE or None ("this is not HTTP"), in linear time, and raise nothing. How much of
a head is waited for is the flow's bound, not ours: a long head is one that cannot be decided, not something else.
Sources: RFC 9112 2.2 (empty lines in front), 3 (request line), 3.2.2 and 3.2.3 (absolute and authority form), RFC 9113
3.4 (preface).
"""

from __future__ import annotations

from typing import Final, NamedTuple

MAX_METHOD: Final = 20
MAX_LINES: Final = 200
"""Header lines searched for a second Host."""
NEED_MORE: Final = 0
PREFACE: Final = b"PRI * HTTP/2.0\r\n"
_SPACES: Final = bytes.maketrans(b"\t\v\f\r", b"    ")
"""What a lenient server takes for a space (RFC 9112 3)."""
_UNRESERVED: Final = frozenset(b"-.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~")
_METHOD: Final = frozenset(b"-_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


class Request(NamedTuple):
    """What a client asks for in clear text."""

    method: str
    host: bytes
    """Lower case, without port; empty: HTTP/1.0 without Host."""
    path: str
    """From the slash on, without query and fragment; percent-escapes as they were sent."""
    is_ambiguous: bool = False
    """Two Host lines that disagree: servers differ in which one they take (RFC 9112 3.2 wants a 400)."""


def parse(data: bytes) -> Request | int | None:
    """Read a request head. NEED_MORE: so far it looks like one. None: it is not one."""
    begin = len(data) - len(data.lstrip(b"\r\n"))
    line_end = data.find(b"\n", begin)
    line = data[begin : line_end if line_end >= 0 else len(data)].translate(_SPACES).strip(b" ")
    if not line and line_end < 0:
        return NEED_MORE if data else None
    method, space, rest = line.partition(b" ")
    rest = rest.lstrip(b" ")
    if not method or len(method) > MAX_METHOD or not _METHOD.issuperset(method):
        return None
    if line_end < 0:
        # Without a space yet, any word of letters could be a method; a TLS or SSH hello has failed above or fails here.
        return NEED_MORE if not space or rest[:1] in (b"", b"/", b"*") or b":" in rest else None
    target, _, version = rest.rpartition(b" ")
    target = target.rstrip(b" ")
    if not version.startswith(b"HTTP/") or not target:
        return None
    if version.startswith(b"HTTP/2"):
        return Request("PRI", b"", "")
    return _with_host(method, target, data, line_end + 1)


def _with_host(method: bytes, target: bytes, data: bytes, at: int) -> Request | int:
    host: bytes | None = None
    path = target
    if method == b"CONNECT":
        host, path = target, b""
    elif not target.startswith((b"/", b"*")):
        scheme, separator, rest = target.partition(b"://")
        if separator and scheme.isalpha():
            authority, slash, tail = rest.partition(b"/")
            # Absolute form: the target's authority counts, whatever Host says (RFC 9112 3.2.2).
            host, path = authority.partition(b"?")[0].rpartition(b"@")[2], slash + tail
    while host is None:
        end = data.find(b"\n", at)
        if end < 0:
            return NEED_MORE
        line = data[at:end].rstrip(b"\r")
        if not line:
            break
        name, colon, value = line.partition(b":")
        at = end + 1
        if colon and name.strip().lower() == b"host":
            host = value.strip()
            if b"host" in data[at:].lower() and _contradicts(data, at, host):
                return Request(method.decode("ascii"), b"", "", True)
    clean = path.partition(b"?")[0].partition(b"#")[0]
    return Request(method.decode("ascii"), strip_port(host or b""), clean.decode("ascii", "backslashreplace"))


def _contradicts(data: bytes, at: int, host: bytes) -> bool:
    """Is there another Host line behind the first, with another value?"""
    head_end = data.find(b"\n\r\n", at - 1)
    for line in data[at : head_end if head_end >= 0 else len(data)].split(b"\n", MAX_LINES):
        name, colon, value = line.partition(b":")
        if colon and name.strip().lower() == b"host" and value.strip() != host:
            return True
    return False


def resolve(path: str) -> str:
    """The path that a server looks up: RFC 3986 6.2.2, and double slashes as one, as servers do."""
    if "%" in path:
        first, *others = path.split("%")
        path = first + "".join(map(_decoded, others))
    if "//" not in path and "/." not in path:
        return path
    kept: list[str] = []
    parts = path.split("/")
    for part in parts:
        if part == "..":
            del kept[-1:]
        elif part not in ("", "."):
            kept.append(part)
    end = "/" if kept and parts[-1] in ("", ".", "..") else ""
    return "/" + "/".join(kept) + end


def _decoded(text: str) -> str:
    """What stood behind a percent sign: an unreserved octet means the same bare."""
    try:
        octet = int(text[:2], 16) if len(text) >= 2 and text[:2].isalnum() else -1
    except ValueError:
        octet = -1
    return chr(octet) + text[2:] if octet in _UNRESERVED else "%" + text


def strip_port(authority: bytes) -> bytes:
    """`Example.ORG:8080` to `example.org`; an IPv6 literal loses its brackets; a dot at the end goes too."""
    if authority.startswith(b"["):
        return authority[1:].partition(b"]")[0].lower()
    return authority.partition(b":")[0].rstrip(b".").lower()
