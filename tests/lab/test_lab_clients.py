"""Real clients, each with its own TLS or QUIC: the allowed is on record by its name, the blocked is stopped at once.

OpenSSL (curl, Python), GnuTLS, aioquic (QUIC v1 and v2), Chromium (post-quantum ClientHello, QUIC); IPv4 and IPv6; on
DNS bypass, which is to say by address. Chromium is from Debian, headless, and can reach nothing but the lab.
"""

import base64
import hashlib
import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.lab import Lab
from tests.lab.test_lab_venue import CURL, wait_for

pytestmark = pytest.mark.lab

VISIT = str(Path(__file__).with_name("visit.py"))
SITES = {4: "198.51.100.21", 6: "2001:db8:100::21"}
BLOCKED_MS = 200
_numbers = itertools.count()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab.running(tmp_path_factory.mktemp("clients"), flush="1s", quic=True) as lab:
        deadline = time.monotonic() + 10
        while visit(lab, "quic1", SITES[4], "www.example.org")[0] != "ok":
            assert time.monotonic() < deadline, (lab.directory / "log" / "quic").read_text()
        yield lab


def visit(lab: Lab, kind: str, address: str, name: str) -> tuple[str, float]:
    """What the client says, and after how many milliseconds."""
    if kind in ("curl", "gnutls"):
        where = f"[{address}]" if ":" in address else address
        words = f"{CURL} --cacert {lab.directory}/ca.crt --resolve {name}:443:{where} https://{name}/"
        if kind == "gnutls":
            names = f"--sni-hostname {name} --verify-hostname {name}"
            words = f"gnutls-cli --x509cafile {lab.directory}/ca.crt {names} {address}"
        begin = time.monotonic()
        result = lab.run("pupil1", words, input="")
        proof = "you asked" if kind == "curl" else "Handshake was completed"
        said = "ok" if proof in result.stdout else result.stderr
        return said, (time.monotonic() - begin) * 1000
    command = [sys.executable, "-I", VISIT, kind, address, name, f"{lab.directory}/ca.crt"]
    taken, _, said = lab.run("pupil1", command, check=True).stdout.strip().partition(" ")
    return said, float(taken)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", ["curl", "gnutls", "tls", "quic1", "quic2"])
def test_allowed_is_on_record_by_its_name_and_blocked_is_stopped_at_once(lab: Lab, kind: str, family: int) -> None:
    name = f"n{next(_numbers)}.example.org"
    assert visit(lab, kind, SITES[family], name)[0] == "ok"
    # curl and gnutls-cli are measured from outside: starting them in the lab's namespaces takes 50 ms and more.
    most_ms = BLOCKED_MS + (200 if kind in ("curl", "gnutls") else 0)
    for _ in range(3):  # a machine that is busy with something else is slow once or twice
        blocked = f"n{next(_numbers)}.casino.example"
        said, taken_ms = visit(lab, kind, SITES[family], blocked)
        assert said != "ok"
        if taken_ms < most_ms:
            break
    assert taken_ms < most_ms, said
    assert visit(lab, kind, SITES[family], name)[0] == "ok"
    seen = "quic" if kind.startswith("quic") else "tls"
    rows = wait_for(lab, 2, "--since", "20s", "--kind", "flow", "--domain", name)
    assert [(row["seen"], row["verdict"]) for row in rows] == [(seen, "allow")] * 2
    (row,) = wait_for(lab, 1, "--since", "20s", "--kind", "flow", "--domain", blocked)
    assert (row["seen"], row["verdict"], row["rule"]) == (seen, "block", "list:gambling")


def test_quic_is_refused_every_time_not_only_the_first_six(lab: Lab) -> None:
    # icmp_ratelimit would leave the seventh of a second without an answer.
    words = [sys.executable, "-I", VISIT, "burst", SITES[4], "www.casino.example", f"{lab.directory}/ca.crt"]
    taken, _, said = lab.run("pupil1", words, check=True).stdout.strip().partition(" ")
    assert said == "20 refused"
    assert float(taken) < 2000


@pytest.mark.parametrize("family", [4, 6])
def test_a_blocked_request_in_clear_text_is_answered_with_the_page(lab: Lab, family: int) -> None:
    where = f"[{SITES[family]}]" if family == 6 else SITES[family]
    to = f"--resolve www.casino.example:80:{where}"
    result = lab.run("pupil1", f"{CURL} -i -w %{{time_total}} {to} http://www.casino.example/a?b=secret")
    head, _, body = result.stdout.partition("\n\n")
    assert head.startswith("HTTP/1.1 403 ")
    assert "list:gambling" in body
    assert "www.casino.example" in body
    assert "Ask those who run this network" in body
    assert float(body.rpartition("\n")[2]) < 5 * BLOCKED_MS / 1000  # and not after a connection's time-out
    head = lab.run("pupil1", f"{CURL} -I {to} http://www.casino.example/").stdout
    assert head.startswith("HTTP/1.1 403 ")
    assert (
        "you asked" in lab.run("pupil1", f"{CURL} --resolve www.example.org:80:{where} http://www.example.org/").stdout
    )
    time.sleep(0.3)
    assert lab.run("internet", "ss -Htn state established ( sport = :80 )").stdout == ""


def test_what_shows_no_name_is_on_record_with_its_cause_and_in_the_meter(lab: Lab) -> None:
    for kind in ("vpn", "dtls"):
        assert visit(lab, kind, SITES[4], "-")[0] == "ok"
    deadline = time.monotonic() + 5
    while True:
        rows = lab.rows("--since", "20s", "--kind", "flow")
        causes = {row["blind"] for row in rows if row["dport"] == 51820}
        if causes == {"vpn", "dtls"} or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert causes == {"vpn", "dtls"}
    meter = lab.status()["visibility"]
    assert isinstance(meter, dict)
    assert meter["vpn_percent"] > 0
    assert 0 < meter["no_visible_name_percent"] < 100


def test_the_name_is_compared_with_what_our_dns_answered(lab: Lab) -> None:
    lab.run("pupil2", "dig +short h5.example.org")
    trust = f"{CURL} --cacert {lab.directory}/ca.crt"
    assert "you asked" in lab.run("pupil2", f"{trust} -4 https://h5.example.org/").stdout
    front = "--resolve front.example.net:443:198.51.100.22"
    assert "you asked" in lab.run("pupil2", f"{trust} {front} https://front.example.net/").stdout
    elsewhere = "--resolve h5.example.org:443:198.51.100.21"
    assert "you asked" in lab.run("pupil2", f"{trust} {elsewhere} https://h5.example.org/").stdout
    rows = wait_for(lab, 3, "--since", "20s", "--kind", "flow", "--client", "10.20.0.12", "--reason", "test")
    found = [(row["name"], row["dst"], row["agreement"]) for row in rows]
    assert sorted(found) == [
        ("front.example.net", "198.51.100.22", "mismatch"),
        ("h5.example.org", "198.51.100.21", "mismatch"),
        ("h5.example.org", "198.51.100.22", "agrees"),
    ]


def test_no_client_has_seen_a_failure_of_ours(lab: Lab) -> None:
    assert lab.status()["state"] == "protecting"
    workers = lab.status()["workers"]
    assert isinstance(workers, dict)
    assert workers["nfq/0"]["bad_packets"] == 0
    assert workers["nfq/0"]["lost"] == 0


def chromium(lab: Lab, namespace: str, profile: Path, url: str, *words: str) -> str:
    """The page as headless Chromium shows it; the lab's certificate is known to it by its key."""
    key = subprocess.run(
        ["openssl", "x509", "-in", f"{lab.directory}/site.crt", "-pubkey", "-noout"], capture_output=True, check=True
    ).stdout
    der = base64.b64decode(b"".join(key.splitlines()[1:-1]))
    spki = base64.b64encode(hashlib.sha256(der).digest()).decode()
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", f"--user-data-dir={profile}",
        f"--ignore-certificate-errors-spki-list={spki}", "--timeout=4000", *words, "--dump-dom", url,
    ]  # fmt: skip
    return lab.run(namespace, ["timeout", "20", *command], timeout=40).stdout


@pytest.mark.slow
@pytest.mark.parametrize(("address", "name"), [("198.51.100.22", "h1"), ("[2001:db8:100::22]", "h2")])
def test_chromium_with_its_post_quantum_hello_and_with_quic(lab: Lab, tmp_path: Path, address: str, name: str) -> None:
    """By address (--host-resolver-rules), as one does who goes around DNS, at one that was also asked for.

    Its hellos carry ECH's GREASE, and another site's look-up must not put that site on record in place of this one.
    """
    answers = [lab.run("pupil1", f"dig +short h5.example.org {kind}").stdout.strip() for kind in ("A", "AAAA")]
    assert address.strip("[]") in answers
    for seen in ("tls", "quic"):
        allowed, blocked = f"{name}-{seen}.example.org", f"{name}-{seen}.casino.example"
        rules = f"--host-resolver-rules=MAP * {address}"
        force = [f"--origin-to-force-quic-on={host}:443" for host in (allowed, blocked) if seen == "quic"]
        page = chromium(lab, "pupil1", tmp_path / f"{seen}1", f"https://{allowed}/", rules, *force[:1])
        assert f"you asked {allowed} for /" in page
        page = chromium(lab, "pupil1", tmp_path / f"{seen}2", f"https://{blocked}/", rules, *force[1:])
        assert "you asked" not in page
        rows = wait_for(lab, 1, "--since", "60s", "--kind", "flow", "--domain", allowed)
        assert (seen, "allow") in {(row["seen"], row["verdict"]) for row in rows}
        rows = wait_for(lab, 1, "--since", "60s", "--kind", "flow", "--domain", blocked)
        assert {row["verdict"] for row in rows} == {"block"}
        assert seen in {row["seen"] for row in rows}
