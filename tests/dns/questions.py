"""Octets of queries and replies, built by hand so that a test sees what it sends."""

import struct

from dns.wire import read_header, read_question, read_records


def wire_name(name):
    return b"".join(bytes((len(label),)) + label.encode("latin-1") for label in name.split(".") if label) + b"\0"


def query(name, qtype=1, number=0x1234, flags=0x0100, qclass=1, edns=None):
    """A query. `edns`: (size, flags and version as the TTL field, options)."""
    data = struct.pack("!HHHHHH", number, flags, 1, 0, 0, int(edns is not None)) + wire_name(name)
    data += struct.pack("!HH", qtype, qclass)
    if edns is not None:
        size, bits, options = edns
        data += struct.pack("!BHHIH", 0, 41, size, bits, len(options)) + options
    return data


def record(rtype, data, ttl=300, owner=b"\xc0\x0c"):
    return owner + struct.pack("!HHIH", rtype, 1, ttl, len(data)) + data


def soa(ttl=900, minimum=60, owner=b"\xc0\x0c"):
    return record(6, b"\2ns\xc0\x0c\5admin\xc0\x0c" + struct.pack("!IIIII", 1, 2, 3, 4, minimum), ttl, owner)


def reply(asked, answers=(), authority=(), additional=(), rcode=0, flags=0x8180):
    """A reply to `asked`, an upstream question's octets: its id and its question to the letter, without its OPT."""
    end = read_question(asked)[3]
    counts = len(answers), len(authority), len(additional)
    head = asked[:2] + struct.pack("!HHHHH", flags | rcode, 1, *counts)
    return head + asked[12:end] + b"".join((*answers, *authority, *additional))


def read(data):
    """Header, records."""
    header = read_header(data)
    return header, read_records(data, read_question(data)[3], header)[0]


def answers(data):
    """RCODE, and the data of the answer section."""
    header, records = read(data)
    return header.flags & 0xF, [data[r.data : r.end] for r in records if r.section == 0]
