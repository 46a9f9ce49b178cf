"""Downloads: what is no list is refused, the one that is here goes on serving, and the refusal is on record."""

import gzip
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from agent.lists import http_get, refresh, url_source
from policy.errors import BundleError
from policy.rules import Policy, load_policy
from policy.uci import parse

GOOD = "".join(f"name{n}.example\n" for n in range(1000)).encode()


class Site(ThreadingHTTPServer):
    """A server that says what the test told it to say."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = 200
        self.body = GOOD
        self.headers: dict[str, str] = {}
        self.cut = 0
        self.asked: list[dict[str, str]] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/list.txt"


class Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        site = self.server
        site.asked.append({key.lower(): value for key, value in self.headers.items()})
        self.send_response(site.status)
        for key, value in site.headers.items():
            self.send_header(key, value)
        if "Content-Length" not in site.headers and site.status != 304:
            self.send_header("Content-Length", str(len(site.body)))
        self.end_headers()
        if site.status != 304:
            self.wfile.write(site.body[: len(site.body) - site.cut])

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.shutdown()
    made.server_close()


def policy(site: Site, *options: str) -> Policy:
    lines = "".join(f"\toption {option}\n" for option in options)
    return load_policy(parse(f"config list 'ads'\n\toption url '{site.url}'\n{lines}"))


def test_a_list_comes_and_is_asked_for_again_only_when_due(site: Site, tmp_path: Path) -> None:
    site.headers = {"ETag": '"v1"', "Last-Modified": "Mon, 23 Nov 2026 10:00:00 GMT"}
    (first,) = refresh(policy(site), str(tmp_path), now_s=1000, fetch=http_get)
    assert (first.result, first.reason, first.is_worth_recording) == ("new", "1000 entries", True)
    assert (tmp_path / "ads.list").read_bytes() == GOOD
    record = first.record(at_ms=7)
    assert (record.action, record.object, record.result, record.new) == (
        "policy", "list:ads", "ok", "Mon, 23 Nov 2026 10:00:00 GMT",
    )  # fmt: skip
    (soon,) = refresh(policy(site), str(tmp_path), now_s=1000 + 3600, fetch=http_get)
    assert (soon.result, len(site.asked)) == ("not due", 1)
    site.status = 304
    (same,) = refresh(policy(site), str(tmp_path), now_s=1000 + 86400, fetch=http_get)
    assert (same.result, same.is_worth_recording) == ("same", False)
    assert site.asked[1]["if-none-match"] == '"v1"'
    assert site.asked[1]["if-modified-since"] == "Mon, 23 Nov 2026 10:00:00 GMT"


def test_a_packed_answer_is_unpacked(site: Site, tmp_path: Path) -> None:
    site.body = gzip.compress(GOOD)
    site.headers = {"Content-Encoding": "gzip"}
    (outcome,) = refresh(policy(site), str(tmp_path), now_s=0, fetch=http_get)
    assert outcome.result == "new"
    assert (tmp_path / "ads.list").read_bytes() == GOOD
    assert site.asked[0]["accept-encoding"] == "gzip"


REFUSED = {
    "empty": (b"", {}, 0, "empty"),
    "only comments": (b"# nothing\n" * 1000, {}, 0, "only comments"),
    "html": (b"\n <!DOCTYPE html><html><body>Please log in</body></html>" * 100, {}, 0, "HTML"),
    "html without its head": (b"<p>Service unavailable</p>\n" * 300, {}, 0, "no usable entry"),
    "json": (b'{"error": "quota"}' * 300, {}, 0, "HTML or an archive"),
    "binary": (bytes(range(1, 256)) * 100, {}, 0, "no usable entry"),
    "half garbage": (b"a.example\n" * 10 + b"what is this line\n" * 1000, {}, 0, "cannot be read"),
    "ten times larger": (GOOD * 11, {}, 0, "more than 10 times"),
    "a tenth": (GOOD[:1000], {}, 0, "less than a tenth"),
    "truncated": (GOOD, {}, 500, "truncated: 15390 of 15890 octets"),
    "truncated, packed": (gzip.compress(GOOD)[:-20], {"Content-Encoding": "gzip"}, 0, "truncated"),
    "not even packed": (GOOD, {"Content-Encoding": "gzip"}, 0, "incorrect header"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_list_is_refused_and_the_old_one_serves(site: Site, tmp_path: Path, case: str) -> None:
    refresh(policy(site), str(tmp_path), now_s=0, fetch=http_get)
    site.body, site.headers, site.cut, reason = REFUSED[case]
    (outcome,) = refresh(policy(site), str(tmp_path), now_s=1e6, fetch=http_get)
    assert outcome.result == "refused"
    assert reason in outcome.reason
    assert outcome.is_worth_recording
    assert outcome.record(5).result == "refused"
    assert (tmp_path / "ads.list").read_bytes() == GOOD
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []
    site.body, site.headers, site.cut = GOOD + b"more.example\n", {}, 0
    (healed,) = refresh(policy(site), str(tmp_path), now_s=2e6, fetch=http_get)
    assert healed.result == "new"


@pytest.mark.parametrize("status", [404, 500, 403, 204])
def test_an_error_of_the_server_is_a_refusal(site: Site, tmp_path: Path, status: int) -> None:
    site.status = status
    (outcome,) = refresh(policy(site), str(tmp_path), now_s=0, fetch=http_get)
    assert (outcome.result, outcome.reason) == ("refused", f"the server says {status}")


def test_nobody_there_is_a_refusal(site: Site, tmp_path: Path) -> None:
    wanted = policy(site)
    site.shutdown()
    site.server_close()
    (outcome,) = refresh(wanted, str(tmp_path), now_s=0, fetch=http_get)
    assert outcome.result == "refused"
    assert "refused" in outcome.reason.lower()


def test_more_entries_than_the_owner_wants_is_a_refusal(site: Site, tmp_path: Path) -> None:
    (outcome,) = refresh(policy(site, "max_entries '999'"), str(tmp_path), now_s=0, fetch=http_get)
    assert (outcome.result, outcome.reason) == ("refused", "more than 999 entries")


def test_another_url_is_another_list(site: Site, tmp_path: Path) -> None:
    refresh(policy(site), str(tmp_path), now_s=0, fetch=http_get)
    site.body = b"only.example\n"
    moved = load_policy(parse(f"config list 'ads'\n\toption url '{site.url}?2'\n"))
    (outcome,) = refresh(moved, str(tmp_path), now_s=1, fetch=http_get)
    assert outcome.result == "new", "the old size says nothing about another list"


def test_a_tree_comes_in_an_archive_and_nothing_leaves_its_directory(site: Site, tmp_path: Path) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, data in (
            ("blacklists/adult/domains", b"a.example\n"),
            ("blacklists/adult/urls", b"b.example/x\n"),
            ("../../../evil/domains", b"c.example\n"),
            ("/etc/passwd", b"root\n"),
            ("blacklists/adult/usage", b"black\n"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("blacklists/porn/domains")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    site.body = archive.getvalue()
    (outcome,) = refresh(policy(site, "format 'tree'"), str(tmp_path / "lists"), now_s=0, fetch=http_get)
    assert outcome.result == "new", outcome
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file() or p.is_symlink())
    assert found == [
        "lists/ads.list/adult/domains", "lists/ads.list/adult/urls", "lists/ads.list/adult/usage",
        "lists/ads.list/evil/domains", "lists/lists.json",
    ]  # fmt: skip
    site.body = GOOD
    (outcome,) = refresh(policy(site, "format 'tree'"), str(tmp_path / "lists"), now_s=1e6, fetch=http_get)
    assert outcome.result == "refused"
    assert (tmp_path / "lists/ads.list/adult/domains").exists()


def test_only_http_and_https_are_fetched(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="expected http"):
        http_get(f"file://{tmp_path}/x", {})


def test_a_bundle_s_files_come_from_a_directory_on_a_server(site: Site) -> None:
    assert b"".join(url_source(site.url)("manifest", 100000)) == GOOD
    site.status = 404
    with pytest.raises(BundleError, match="404"):
        list(url_source(site.url)("manifest", 100))
