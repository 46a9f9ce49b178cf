"""Settings: defaults, every reader's refusal, and that a typing mistake never switches a duty off quietly."""

import pytest

from policy.config import Config, load
from policy.errors import ConfigError


def test_an_empty_file_gives_the_documented_defaults() -> None:
    config = load("")
    assert config.main.on_failure == "open"
    assert config.dns.upstream == (("127.0.0.1", 53),)
    assert config.ring.promised_days == 60


def test_values_are_typed() -> None:
    config: Config = load(
        """
config gatehouse 'main'
    option enabled yes
    list lan br-lan
    list lan br-guest
config dns 'dns'
    option upstream '9.9.9.9 2620:fe::fe#5353'
config ring 'ring'
    option budget 64M
    option promised_days 60
    option flush 10s
"""
    )
    assert config.main.enabled
    assert config.main.lan == ("br-lan", "br-guest")
    assert config.dns.upstream == (("9.9.9.9", 53), ("2620:fe::fe", 5353))
    assert config.ring.budget_bytes == 64 << 20
    assert config.ring.flush_s == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config dns 'dns'\noption prot 53", "gatehouse.dns.prot: unknown option; did you mean 'port'?"),
        ("config dsn 'dns'", "gatehouse:1: unknown section type 'dsn'; did you mean 'dns'?"),
        ("config dns 'dns'\noption port 70000", "gatehouse.dns.port: expected 1 to 65535, got 70000"),
        ("config dns 'dns'\noption port http", "gatehouse.dns.port: expected a whole number, got 'http'"),
        ("config dns 'dns'\nlist upstream exmaple", "gatehouse.dns.upstream[0]: expected an IP address"),
        ("config dns 'dns'\nlist upstream 1.1.1.1#x", "gatehouse.dns.upstream[0]: expected a port"),
        ("config dns 'dns'\nlist port 1", "gatehouse.dns.port: expected one value (`option`), got a list of 1"),
        ("config gatehouse 'main'\noption on_failure maybe", "expected one of open, closed, got 'maybe'"),
        ("config gatehouse 'main'\noption enabled perhaps", "gatehouse.main.enabled: expected 1 or 0, got 'perhaps'"),
        ("config gatehouse 'main'\noption lan 'br lan;drop'", "gatehouse.main.lan[1]: expected an interface name"),
        ("config ring 'ring'\noption budget much", "gatehouse.ring.budget: expected a size such as 64M, got 'much'"),
        ("config ring 'ring'\noption flush 3w", "gatehouse.ring.flush: expected a time such as"),
        ("config ring 'ring'\noption maximum_days 30", "expected at least promised_days (60), got 30"),
        ("config nfq 'nfq'\noption mark_mask 0xff", "gatehouse.nfq.mark_mask: expected four bits side by side"),
        ("config dns 'a'\nconfig dns 'b'", "gatehouse:2: a second 'dns' section, expected only the one on line 1"),
    ],
)
def test_a_mistake_is_refused_with_its_place_and_mend(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert message in str(caught.value)
