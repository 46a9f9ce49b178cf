"""What each word of the console does: words in, lines out, perhaps a question. Runs in a thread, without a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from hw.device import Finding
from hw.orders import Orders
from hw.settings import find_setting, is_secret
from hw.words import WORDS, find_word, help_lines, say
from policy.errors import ConfigError, GatehouseError
from policy.near import nearest

MAX_PASTE: Final = 32 << 10
"""Characters of a certificate that is pasted."""


class Ask(NamedTuple):
    """A question to the person."""

    prompt: str
    then: Callable[[str], Answer]
    is_secret: bool = False
    until: str = ""
    """Lines are gathered up to the one that begins so."""


class Answer(NamedTuple):
    """What a word gives."""

    lines: Sequence[str] = ()
    ask: Ask | None = None
    language: str = ""
    """From now on this one."""
    event: str = ""
    """`logout`, `password` (the console asks for a new one), `reset`."""


def split(line: str) -> list[str]:
    """Words, with quotes as in a shell; full-width blanks and quotes of Chinese keyboards too. Raises: ConfigError."""
    plain = line.translate({0x3000: " ", 0x201C: '"', 0x201D: '"', 0x2018: "'", 0x2019: "'"})
    lexer = shlex.shlex(plain, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters, lexer.escape = True, "", ""
    try:
        return list(lexer)
    except ValueError:
        raise ConfigError("a quote is opened and never closed") from None


def holds_secret(words: Sequence[str]) -> bool:
    """A line that must not be in the history, nor done: somebody typed a password where it can be read."""
    if len(words) < 3 or (word := find_word(words[0])) is None or word.name != "set":
        return False
    setting = find_setting(words[1])
    if setting is None:
        return False
    is_pppoe = setting.name == "wan" and words[2] in ("pppoe", "拨号") and len(words) > 4
    return is_pppoe or (setting.name == "option" and is_secret(words[2]) and len(words) > 3)


def run(orders: Orders, words: Sequence[str], language: str, actor: str) -> Answer:
    """One line. Raises: GatehouseError."""
    word = find_word(words[0])
    if word is None:
        names = [name for each in WORDS for name in (each.name, each.chinese)]
        near = nearest(words[0], names)
        return Answer((say(language, "near", words[0], near) if near else say(language, "unknown", words[0]),))
    rest = list(words[1:])
    match word.name:
        case "help":
            return Answer(help_lines(language, rest))
        case "status":
            return Answer([f"{name:24} {value}" for name, value in orders.device.status().items()])
        case "show":
            return Answer(orders.staging.differences() or (say(language, "nothing"),))
        case "set":
            return _set(orders, rest, language)
        case "unset":
            orders.unset(rest[0] if rest else "", rest[1:])
            return Answer((say(language, "staged", " ".join(rest)),))
        case "discard":
            orders.discard()
            return Answer((say(language, "discarded"),))
        case "policy":
            return Answer(orders.device.policy(["explain" if each == "解释" else each for each in rest]))
        case "certificate":
            return _certificate(orders, rest, language, actor)
        case "test":
            return Answer(test_lines(orders.device.test(), language))
        case "commit":
            return _commit(orders, rest, language, actor)
        case "confirm":
            orders.confirm(actor)
            return Answer((say(language, "confirmed"),))
        case "rollback":
            orders.rollback(actor)
            return Answer((say(language, "rolled_back"),))
        case "password":
            return Answer(event="password")
        case "language":
            chosen = {"en": "en", "zh": "zh", "英文": "en", "中文": "zh"}.get(rest[0] if rest else "")
            if chosen is None:
                raise ConfigError("language: expected en or zh")
            return Answer((say(chosen, "language"),), language=chosen)
        case "factory-reset":
            return _factory_reset(orders, language, actor)
        case "exit":
            return Answer(event="logout")
    raise ConfigError(f"{word.name}: not from here")


def test_lines(findings: Sequence[Finding], language: str) -> list[str]:
    """The self-test for a person."""
    lines = []
    for finding in findings:
        mark = say(language, "ok" if finding.is_ok else "not_ok")
        lines.append(f"{mark:8} {finding.name}" + (f": {finding.why}" if finding.why else ""))
        if not finding.is_ok and finding.mend:
            lines.append(f"         {say(language, 'mend', finding.mend)}")
    bad = sum(not finding.is_ok for finding in findings)
    return [*lines, say(language, "some_not_ok", bad, len(findings)) if bad else say(language, "all_ok")]


def _set(orders: Orders, rest: list[str], language: str) -> Answer:
    if not rest:
        raise ConfigError("set: expected a setting and its value; `help set` lists them")
    setting = find_setting(rest[0])

    def then(secret: str) -> Answer:
        orders.set(rest[0], [*rest[1:], secret])
        return Answer((say(language, "staged", f"{rest[0]} {' '.join(rest[1:])} ********"),))

    if setting and setting.name == "wan" and len(rest) == 3 and rest[1] in ("pppoe", "拨号"):
        return Answer(ask=Ask(say(language, "secret"), then, is_secret=True))
    if setting and setting.name == "option" and len(rest) == 2 and is_secret(rest[1]):
        return Answer(ask=Ask(say(language, "secret"), then, is_secret=True))
    edits = orders.set(rest[0], rest[1:])
    told = ", ".join(f"{edit.section}.{edit.option} = {edit.value}" for edit in edits if edit.value is not None)
    try:  # a mistake in what was just typed is told at once; the whole may still want other settings first
        orders.check()
    except GatehouseError as error:
        return Answer((say(language, "staged", told), f"  ({error})"))
    return Answer((say(language, "staged", told),))


def _certificate(orders: Orders, rest: list[str], language: str, actor: str) -> Answer:
    match rest:
        case ["request" | "申请" | "renew" | "更新" as what]:
            pem = orders.request_certificate(what in ("renew", "更新"), actor)
            return Answer(pem.decode().splitlines())
        case ["install" | "安装"]:

            def then(text: str) -> Answer:
                path = orders.install_certificate(text.encode(), actor)
                return Answer((say(language, "installed", path),))

            return Answer((say(language, "paste"),), ask=Ask("", then, until="-----END"))
    raise ConfigError("certificate: expected request, renew or install")


def _commit(orders: Orders, rest: list[str], language: str, actor: str) -> Answer:
    if rest and not (rest[0].isascii() and rest[0].isdecimal() and len(rest[0]) < 6):
        raise ConfigError(f"commit: expected nothing, or seconds within which `confirm` is to come, got {rest[0]!r}")
    seconds = int(rest[0]) if rest else 0
    outcome = orders.commit(actor, seconds)
    lines = test_lines(outcome.findings, language) if outcome.findings else []
    if not outcome.is_kept:
        return Answer([*lines, say(language, "taken_back", outcome.why)])
    return Answer([*lines, say(language, "confirm", seconds) if seconds else say(language, "committed")])


def _factory_reset(orders: Orders, language: str, actor: str) -> Answer:
    device = str(orders.device.facts().get("device", ""))
    sure = "reset" if language == "en" else "恢复"

    def then(text: str) -> Answer:
        if text.strip() not in {sure, "reset", "恢复", device or sure}:
            return Answer((say(language, "not_done"),))
        orders.factory_reset(actor)
        return Answer((say(language, "reset"),), event="reset")

    return Answer(ask=Ask(say(language, "sure", sure), then))
