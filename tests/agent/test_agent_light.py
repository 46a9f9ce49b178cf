"""A process loads what it calls: every import is RAM on the router, once for each process."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def said(code: str, *path: Path) -> str:
    before = f"import sys; sys.path[:0] = {[str(ROOT), *map(str, path)]!r}; "
    words = [sys.executable, "-I", "-c", before + code]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def loaded(*modules: str) -> set[str]:
    return set(said(f"import {', '.join(modules)}; print(*sys.modules)").split())


@pytest.mark.parametrize("role", ["dns", "nfq"])
def test_a_hook_has_nothing_of_how_images_and_bundles_are_made(role: str) -> None:
    found = loaded("agent.__main__", "agent.hooks", f"{role}.worker")
    assert f"{role}.worker" in found
    heavy = {"agent.compiler", "agent.bundles", "agent.policy_source", "policy.builder", "storage", "nfq.firewall"}
    assert not found & (heavy | {"subprocess", "tempfile", "hashlib", "_hashlib", "difflib", "unicodedata", "sqlite3"})


def test_the_agent_does_without_openssl_and_tables_of_html() -> None:
    assert not loaded("agent.__main__", "agent.serve") & {"hashlib", "_hashlib", "_ssl", "difflib", "html", "asyncio"}


def test_no_http_and_no_mail_come_with_paho_and_who_needs_them_gets_the_real_ones() -> None:
    assert not loaded("agent.uplink.broker") & {"urllib.request", "http.client", "email.message"}
    assert said("import agent.uplink.broker, urllib.request; print(callable(urllib.request.getproxies))") == "True\n"


def test_where_pysocks_is_installed_paho_can_ask_for_proxies(tmp_path: Path) -> None:
    (tmp_path / "socks.py").write_text("def socksocket(): ...\n")
    ask = "import agent.uplink.paho as lean; print(callable(lean.mqtt.urllib.request.getproxies))"
    assert said(ask, tmp_path) == "True\n"
