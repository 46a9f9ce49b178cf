"""Rows for people: one line each, nothing that breaks on a field it does not know."""

from agent.table import cells, lines

DNS = {
    "kind": "dns",
    "time": "2026-11-23T10:00:00.000+00:00",
    "clock": "synced",
    "client": "10.20.0.11",
    "type": "A",
    "name": "casino.example",
    "verdict": "block",
    "reason": "category",
    "rule": "list:gambling",
    "answers": [],
}
FLOW = {
    "kind": "flow",
    "time": "2026-11-23T10:00:00.000+00:00",
    "clock": "corrected",
    "client": "10.20.0.11",
    "seen": "http",
    "name": "www.example.org",
    "path": "/a",
    "verdict": "allow",
    "reason": "default",
}


def test_a_blocked_look_up_says_why() -> None:
    assert cells(DNS)[1:] == ("10.20.0.11", "dns A", "block", "casino.example", "category list:gambling")


def test_a_flow_shows_its_path_and_an_uncertain_clock_its_mark() -> None:
    assert cells(FLOW)[0].endswith("~")
    assert cells(FLOW)[2:5] == ("http", "allow", "www.example.org/a")


def test_a_flow_without_a_name_shows_its_address_and_why() -> None:
    row = {"kind": "flow", "seen": "none", "protocol": "tcp", "dport": 22, "dst": "198.51.100.20", "blind": "opaque"}
    assert cells(row)[2:] == ("tcp/22", "", "198.51.100.20:22", "no name: opaque")


def test_an_unknown_kind_is_shown_with_all_it_has() -> None:
    assert "answer=42" in list(lines([{"kind": "new", "answer": 42}]))[1]
