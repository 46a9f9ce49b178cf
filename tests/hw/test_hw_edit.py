"""The line editor, fed with what terminals send, whole and octet by octet, and with noise."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.edit import MAX_LINE, Editor, Typed, What, width_of
from hw.words import LANGUAGES, SAYINGS, WORDS, complete, find_word, help_lines, say


def editor() -> Editor:
    made = Editor(lambda before: complete(before, "en"))
    made.start("> ")
    made.take_output()
    return made


def typed(keys: bytes, *, history: tuple[str, ...] = ()) -> Typed | None:
    made = editor()
    for line in history:
        made.remember(line)
    made.start("> ")
    for index in range(len(keys)):
        found, _ = made.receive(keys[index : index + 1])
        if found is not None:
            return found
    return None


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (b"status\r", "status"),
        (b"status\n", "status"),
        (b"stattus\x7f\x7f\x7fus\r", "status"),
        (b"status\x08s\r", "status"),
        (b"tatus\x01s\r", "status"),
        (b"tatus\x1b[Hs\r", "status"),
        (b"tatus\x1bOHs\r", "status"),
        (b"statuss\x1b[D\x1b[3~\r", "status"),
        (b"xstatus\x01\x04\r", "status"),
        (b"wrong\x15status\r", "status"),
        (b"status all of it\x17\x17\x17\r", "status "),
        (b"status now\x01\x06\x06\x06\x06\x06\x06\x0b\r", "status"),
        (b"\x1b[A\r", "second"),
        (b"\x1b[A\x1b[A\r", "first"),
        (b"\x10\x10\x0e\r", "second"),
        (b"begun\x1b[A\x1b[B\r", "begun"),
        ("设置 场所\r".encode(), "设置 场所"),
        ("设置场\x7f\x7f置 x\r".encode(), "设置 x"),
        (b"sta\tx\r", "status x"),
        (b"\x11st\x13atus\0\r", "status"),
        (b"\x1b[200~status\x1b[201~\r", "status"),
    ],
)
def test_what_keys_make(keys: bytes, line: str) -> None:
    assert typed(keys, history=("first", "second")) == Typed(What.LINE, line)


@pytest.mark.parametrize("noise", [b"st\xffatus\r", b"\xe8\xae\r", b"a\x1fb\r", b"\xc0\x80\r", b"a" * 2000 + b"\r"])
def test_noise_is_told_from_a_line(noise: bytes) -> None:
    found = typed(noise)
    assert found is not None
    assert found.what is What.NOISE


def test_ctrl_c_and_ctrl_d() -> None:
    assert typed(b"abc\x03") == Typed(What.CANCEL)
    assert typed(b"\x04") == Typed(What.END)


def test_a_carriage_return_and_a_line_feed_are_one_end() -> None:
    made = editor()
    line, rest = made.receive(b"one\r\ntwo\r\n")
    assert line == Typed(What.LINE, "one")
    made.start("> ")
    assert made.receive(rest)[0] == Typed(What.LINE, "two")


def test_a_secret_is_not_echoed_and_has_no_history() -> None:
    made = editor()
    made.start("Password: ", is_secret=True)
    made.receive("geheim密码\x7f\x1b[D\x01\x10\tx".encode())
    assert made.take_output() == b"Password: "


def test_what_is_seen_is_what_is_in_the_line() -> None:
    """A terminal of a few lines: carriage return, erase, cursor left; wide characters take two columns."""
    made = editor()
    made.receive("设置 场 所\x1b[D\x1b[D\x7fX\x1b[F!".encode())
    shown = screen(b"> " + made.take_output())
    assert shown == "> 设置 场X所!".replace("场X所", "X 所") or shown == "> 设置 X 所!"


def screen(output: bytes) -> str:
    """One line of a terminal after all this; columns behind a wide character are empty."""
    cells: dict[int, str] = {}
    at = 0
    for token in re.findall(r"\x1b\[\d*[A-Za-z]|.|\r|\n", output.decode()):
        if token == "\r":
            at = 0
        elif token == "\x1b[K":
            cells = {column: cell for column, cell in cells.items() if column < at}
        elif token.startswith("\x1b["):
            assert token.endswith("D"), token
            at -= int(token[2:-1])
        else:
            cells[at] = token
            for column in range(at + 1, at + width_of(token)):
                cells[column] = ""
            at += width_of(token)
    return "".join(cells.get(column, " ") for column in range(max(cells, default=-1) + 1))


KEYS = st.lists(
    st.one_of(st.sampled_from([b"\x1b[D", b"\x1b[C", b"\x7f", b"\x01", b"\x05", b"\x1b[3~", b"\x17", b"\x0b"]),
              st.text(alphabet="ab 设置é", min_size=1, max_size=3).map(str.encode)),
    max_size=25,
)  # fmt: skip


@given(KEYS)
def test_the_screen_shows_the_line_after_any_keys(keys: list[bytes]) -> None:
    made = editor()
    for key in keys:
        made.receive(key)
    shown = screen(b"> " + made.take_output())
    found, _ = made.receive(b"\r")
    assert found is not None
    assert shown.rstrip() == f"> {found.text}".rstrip()


@given(st.binary(max_size=3000))
def test_any_octets_leave_an_editor_that_works(noise: bytes) -> None:
    made = editor()
    rest = noise
    while rest:
        found, rest = made.receive(rest)
        if found is not None:
            assert len(found.text) <= MAX_LINE
            made.start("> ")
    made.receive(b"\r\r")
    made.start("> ")
    made.take_output()
    assert made.receive(b"status\r")[0] == Typed(What.LINE, "status")


def test_completion_in_both_languages() -> None:
    assert complete("st", "en") == ("atus ", ())
    assert complete("设", "en") == ("置 ", ())
    assert complete("set ve", "en")[0] == "n"
    assert set(complete("set ven", "en")[1]) == {"venue", "venue-name", "vendor"}
    assert complete("设置 外网 动", "zh") == ("态 ", ())
    assert complete("证书 申", "zh") == ("请 ", ())
    assert "status" in complete("", "en")[1]
    assert "状态" in complete("", "zh")[1]
    assert complete("nothing so", "en") == ("", ())


def test_every_word_and_saying_is_there_in_both_languages_and_no_two_are_the_same() -> None:
    names = [name for word in WORDS for name in (word.name, word.chinese)]
    assert len(set(names)) == len(names)
    for word in WORDS:
        assert find_word(word.name) is find_word(word.chinese) is word
        assert all(word.help)
        for language in LANGUAGES:
            assert help_lines(language, [word.name])
    for name, (english, chinese) in SAYINGS.items():
        assert english.isascii() or "…" in english, name
        assert not chinese.isascii(), name
        assert english.count("{") == chinese.count("{"), name
        say("zh", name, *["x"] * 3)
