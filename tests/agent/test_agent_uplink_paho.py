"""paho-mqtt comes without what it would load for proxies, and with it where proxies are possible."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def said(code: str, *path: Path) -> str:
    before = f"import sys; sys.path[:0] = {[str(ROOT), *map(str, path)]!r}; "
    return subprocess.run([sys.executable, "-I", "-c", before + code], check=True, capture_output=True, text=True).stdout


def test_no_http_and_no_mail_come_with_it_and_who_needs_them_gets_the_real_ones() -> None:
    heavy = "[name for name in ('urllib.request', 'http.client', 'email.message') if name in sys.modules]"
    assert said(f"import agent.uplink.broker; print({heavy})").strip() == "[]"
    assert said("import agent.uplink.broker, urllib.request; print(callable(urllib.request.getproxies))") == "True\n"


def test_where_pysocks_is_installed_paho_can_ask_for_proxies(tmp_path: Path) -> None:
    (tmp_path / "socks.py").write_text("def socksocket(): ...\n")
    ask = "import agent.uplink.paho as lean; print(callable(lean.mqtt.urllib.request.getproxies))"
    assert said(ask, tmp_path) == "True\n"
