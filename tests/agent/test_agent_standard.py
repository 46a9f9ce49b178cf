"""The supervising side's record sets: every cell within its table, files of a thousand rows, mistakes named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.standard import ACCESS, INDEX, MAX_ROWS, ONLINE, VENUE, access_row, check, files, online_row, site_of
from policy.errors import ConfigError

SETTINGS = {
    "name": "Lab Hotel", "address": "1 Example Road", "longitude": "116.40", "latitude": "39.90", "principal": "Li Lei",
    "contact": "010 5555 0100", "opens": "00:00", "closes": "23:59", "access_mode": "99", "type": "", "nature": "",
    "vendor": "",
}  # fmt: skip
SITE = site_of("11010512010001", "123456789020000000001", SETTINGS)
SESSION = {
    "session": "s1", "account": "g7", "room": "7", "mac": "02:00:00:00:00:0b", "login": "2026-03-03T08:00:00+00:00",
    "logout": "", "addresses": ["2001:db8::1", "10.0.0.1"],
}  # fmt: skip


def cells(record_set: object, row: dict[str, object]) -> dict[str, str]:
    return {f.key: v for f, v in zip(record_set.fields, check(record_set, row), strict=True)}  # type: ignore[attr-defined,arg-type]


def test_codes_say_what_the_settings_do_not() -> None:
    row = cells(VENUE, SITE)
    assert (row["NETSITE_TYPE"], row["BUSINESS_NATURE"], row["CODE_ALLOCATION_ORGANIZATION"]) == ("2", "1", "123456789")
    assert SITE["device_mac"] == "02-00-00-00-00-01"


def test_a_session_becomes_a_row_of_the_terminals() -> None:
    row = cells(
        ONLINE, online_row(SITE, SESSION, {"name": "王小明", "document_type": "111", "document_number": "1101"})
    )
    assert (row["IP_ADDRESS"], row["SRC_IPV6"], row["MAC"]) == ("10.0.0.1", "2001:db8::1", "02-00-00-00-00-0B")
    assert (row["START_TIME"], row["END_TIME"], row["NAME"], row["NOTE"]) == ("1772524800", "", "王小明", "7")


def test_what_the_table_does_not_allow_is_named() -> None:
    with pytest.raises(ConfigError, match=r"WA_SOURCE_FJ_0001\.MAC: must be there"):
        check(ONLINE, online_row(SITE, {**SESSION, "mac": ""}))
    with pytest.raises(ConfigError, match=r"WA_SOURCE_FJ_0001\.NOTE: expected at most 256 characters, got 300"):
        check(ONLINE, online_row(SITE, {**SESSION, "room": "7" * 300}))
    with pytest.raises(ConfigError, match="expected a venue code of 14 characters"):
        site_of("1101051201000", "123456789020000000001", SETTINGS)
    with pytest.raises(ConfigError, match="expected a device id of 21 characters"):
        site_of("11010512010001", "", SETTINGS)
    with pytest.raises(ConfigError, match=r"venue\.type: expected one of 0, 1"):
        site_of("11010512010001", "123456789020000000001", {**SETTINGS, "type": "Z"})


@given(st.dictionaries(st.sampled_from(["name", "path", "client", "dst", "mac", "session", "time", "seen"]), st.text()))
def test_no_record_makes_another_column_or_row(access: dict[str, str]) -> None:
    try:
        row = check(ACCESS, access_row(SITE, {**SESSION, **access, "kind": "flow"}))
    except ConfigError:
        return
    assert len(row) == len(ACCESS.fields)
    assert not any(mark in "".join(row) for mark in "\t\r\n")


def test_a_file_has_a_thousand_rows_and_an_archive_a_hundred_files() -> None:
    line = check(ONLINE, online_row(SITE, SESSION))
    made = dict(files({ONLINE.name: [line] * (MAX_ROWS + 1), ACCESS.name: []}, "110105", 1_772_524_800))
    assert [data.count(b"\r\n") for name, data in made.items() if name != INDEX] == [MAX_ROWS, 1]
    assert list(made)[:2] == [f"145-110105-1772524800-0000{n}-WA_SOURCE_FJ_0001-0.bcp" for n in (1, 2)]
    assert b"rows='1000'" in made[INDEX]
    with pytest.raises(ConfigError, match="ask for a shorter time"):
        for _ in files({ONLINE.name: [line] * (100 * MAX_ROWS + 1)}, "110105", 0):
            pass
