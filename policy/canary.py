"""A name and two addresses of our own, by which the self-test proves the whole way from a client to the verdict. Pure.

`NAME` and everything below it is blocked for everybody, by no list and no rule, and no exception opens it. It lies
under `invalid` (RFC 6761 6.4), so nobody owns it and no resolver outside knows it. The addresses are of the ranges for
tests of network devices (RFC 2544, RFC 5180): no venue's, and routed nowhere on the internet.
Rule: what was asked for this name, or from these addresses, is nobody's: it carries `RULE` in the record and belongs to
no session.
"""

from __future__ import annotations

from typing import Final

NAME: Final = b"canary.gatehouse.invalid"
RULE: Final = "self-test"
CLIENT4: Final = bytes((198, 19, 83, 1))
SERVER4: Final = bytes((198, 19, 83, 2))
CLIENT6: Final = bytes.fromhex("20010002000000830000000000000001")
SERVER6: Final = bytes.fromhex("20010002000000830000000000000002")
CLIENTS: Final = frozenset((CLIENT4, CLIENT6))
