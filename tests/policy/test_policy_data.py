"""The built-in names: each is in the form that is compared, and none stands on two sides."""

import ipaddress

from policy.bypass import ENCRYPTED_DNS_PORT, NEVER_BLOCK, RESOLVER_ADDRESSES, RESOLVERS, SIGNALS
from policy.names import is_public_suffix, parse_name, suffixes
from policy.safesearch import PROVIDERS


def test_every_built_in_name_is_a_name() -> None:
    for name in (*NEVER_BLOCK, *RESOLVERS, *SIGNALS):
        assert parse_name(name) == name
        assert not is_public_suffix(name), name
    for provider in PROVIDERS.values():
        for names, target in provider.values():
            assert parse_name(target.encode()).decode() == target
            for name in names:
                assert parse_name(name) == name


def test_nothing_is_both_blocked_as_a_bypass_and_never_blocked() -> None:
    blocked = {*RESOLVERS, *SIGNALS}
    assert len(blocked) == len(RESOLVERS) + len(SIGNALS)
    for name in NEVER_BLOCK:
        assert not blocked.intersection(suffixes(name)), name
    for name in blocked:
        assert not set(NEVER_BLOCK).intersection(suffixes(name)), name


def test_safe_search_targets_are_not_rewritten_themselves() -> None:
    rewritten = {name for provider in PROVIDERS.values() for names, _ in provider.values() for name in names}
    for provider in PROVIDERS.values():
        for _, target in provider.values():
            assert target.encode() not in rewritten, "a loop"
    assert len([name for name in rewritten if name.startswith(b"www.google.")]) > 180


def test_resolver_addresses_are_global_addresses() -> None:
    addresses = [ipaddress.ip_address(text) for text in RESOLVER_ADDRESSES]
    assert len(set(addresses)) == len(addresses)
    assert all(address.is_global for address in addresses)
    assert ENCRYPTED_DNS_PORT == 853
