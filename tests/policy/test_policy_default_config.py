"""The configuration file that is shipped: it loads, it says every option, and what it says is the default."""

import re
from pathlib import Path

import pytest

from policy import config
from policy.config import Options, load
from policy.rules import load_policy

SHIPPED = Path(__file__).resolve().parents[2] / "packaging/openwrt/gatehouse/files/etc/config/gatehouse"
EXAMPLES = {
    "upstream_tls", "rebind_domain", "page", "listen", "offload_device", "nat_network", "server", "order_key", "portal",
}  # fmt: skip
"""Lists that are empty by default; the file shows what one looks like."""


def uncommented() -> str:
    return re.sub(r"(?m)^(\t?)#(?=(\t*(option|list) |config ))", r"\1", SHIPPED.read_text())


def test_it_loads_as_it_is() -> None:
    assert not load(SHIPPED.read_text()).main.enabled


def test_with_everything_uncommented_it_loads_and_is_the_default() -> None:
    text = "\n".join(
        line for line in uncommented().splitlines() if not any(f"list {word} " in line for word in EXAMPLES)
    )
    loaded, plain = load(text), load("")
    assert loaded._replace(policy=(), radius=(), rooms=(), roles=()) == plain
    assert {item.name for item in load_policy(loaded.policy).lists} == {"gambling"}


def test_every_option_that_is_read_stands_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, set[str]] = {}
    finish = Options.finish

    def spy(options: Options) -> None:
        known[options.section.type] = set(options._known)
        finish(options)

    monkeypatch.setattr(config.Options, "finish", spy)
    load("")
    for section in ("gatehouse", "dns", "nfq", "ring", "session", "notice", "venue", "uplink", "hardware", "console"):
        part = re.split(r"(?m)^config ", uncommented())
        (text,) = [item for item in part if item.startswith(f"{section} ")]
        assert set(re.findall(r"(?m)^\t(?:option|list) (\w+) ", text)) == known[section]
