"""Venue codes and device ids: fourteen and twenty-one characters, each of which says something."""

import pytest

from policy.codes import check_device, check_venue
from policy.config import load
from policy.errors import ConfigError


@pytest.mark.parametrize("code", ["11010512010001", "44030020123456", "31010611AB9999", "1101051D010001"[:14]])
def test_venue_codes_as_they_are_in_use(code: str) -> None:
    check_venue(code, "venue")


def test_a_net_cafes_code_of_2005_has_the_same_form() -> None:
    check_venue("44030010" + "123456", "venue")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("1101051201000", "14 characters, got 13"),
        ("110105120100011", "14 characters, got 15"),
        ("99010512010001", "characters 1 to 6"),
        ("11O10512010001", "characters 1 to 6"),
        ("110105X2010001", "character 7"),
        ("1101051X010001", "character 8 .0 net café, 1 hotel"),
        ("11010512a10001", "as 9 and 10"),
        ("1101051201000A", "characters 11 to 14"),
        ("１１010512010001", "characters 1 to 6"),
    ],
)
def test_a_wrong_venue_code_is_refused_with_the_character_that_is_wrong(code: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(f"config gatehouse 'main'\n\toption venue '{code}'\n")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("12345678902000000000", "21 characters, got 20"),
        ("12345678-020000000001", "organisation code"),
        ("12345678902000000000z", "MAC address"),
        ("123456789" + "02000000000a", "capital"),
    ],
)
def test_a_wrong_device_id_is_refused(code: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(f"config gatehouse 'main'\n\toption device '{code}'\n")


def test_a_right_device_id_is_taken() -> None:
    check_device("12345678902000000000A", "device")
