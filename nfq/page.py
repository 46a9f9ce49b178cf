"""What a client sees instead of a blocked page that it asked for in clear text: why, by which rule, and whom to ask.

An HTTP response in one segment: 403 with a page of our own, or 302 to the venue's. Pure. What the client sent comes
back only escaped. Sources: RFC 9110 15.5.4 and 15.4.3, RFC 7725 (451 is for blocking by law, which we cannot know).
"""

from __future__ import annotations

from typing import Final

from policy.verdict import Decision, Reason

MAX_ANSWER: Final = 1200
"""Octets: one segment over IPv6 with its smallest MTU."""
MAX_HOST: Final = 100
MAX_APPEAL: Final = 120
WHY: Final = {
    Reason.OVERRIDE: "closed by a person for a time",
    Reason.RULE: "blocked by a rule of this venue",
    Reason.IMPORTANT: "on a list of blocked sites",
    Reason.CATEGORY: "on a list of blocked sites",
    Reason.WINDOW: "closed at this hour",
    Reason.BYPASS: "it leads around this venue's filter",
    Reason.ADDRESS: "its address is on a list of blocked addresses",
    Reason.URL: "this page is on a list of blocked pages",
    Reason.FAIL_CLOSED: "it could not be checked",
    Reason.AMBIGUOUS: "the request contradicts itself",
}
_HTML: Final = (
    "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    "<title>Blocked</title><style>body{{font:18px sans-serif;max-width:32em;margin:4em auto;padding:0 1em}}"
    "</style><h1>This page is blocked here</h1><p><b>{host}</b>: {why}.<p>Rule: <code>{rule}</code><p>{appeal}\n"
)
_HEAD: Final = (
    "HTTP/1.1 {status}\r\n{more}Content-Length: {length}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
)


class Pages:
    """This venue's answer. `url`: where to send people instead; empty: the page comes from here."""

    def __init__(self, url: str = "", appeal: str = "") -> None:
        self._url = url
        self._appeal = escape((appeal or "Is this a mistake? Ask those who run this network.")[:MAX_APPEAL])

    def answer(self, host: str, decision: Decision, *, is_head: bool = False) -> bytes:
        """The whole response, at most MAX_ANSWER octets."""
        if self._url:
            query = f"host={_quote(host[:MAX_HOST])}&reason={decision.reason.name.lower()}&rule={_quote(decision.rule)}"
            mark = "&" if "?" in self._url else "?"
            head = _HEAD.format(status="302 Found", more=f"Location: {self._url}{mark}{query}\r\n", length=0)
            return head.encode("ascii", "replace")[:MAX_ANSWER]
        body = _HTML.format(
            host=escape(host[:MAX_HOST]),
            why=WHY.get(decision.reason, "blocked by the policy of this venue"),
            rule=escape(decision.rule[:MAX_HOST]) or decision.reason.name.lower(),
            appeal=self._appeal,
        ).encode()
        more = "Content-Type: text/html; charset=utf-8\r\n"
        answer = _HEAD.format(status="403 Forbidden", more=more, length=len(body)).encode()
        return answer if is_head else answer + body


def escape(text: str) -> str:
    """Text as HTML, in attributes too, without `html`: that is half a megabyte of entities' names."""
    for char, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("'", "&#39;")):
        text = text.replace(char, entity)
    return text


def _quote(text: str) -> str:
    """RFC 3986 2.1, without urllib: that is a megabyte."""
    plain = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~"
    return "".join(chr(octet) if octet in plain else f"%{octet:02X}" for octet in text.encode())
