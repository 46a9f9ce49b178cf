"""In the guest: says which of the flood's look-ups are on flash. `python3 witness.py`; one line `on-flash COUNT LAST`.

A question to the agent commits before its answer, so what the answer has must survive whatever comes next.
"""

import json
import socket


def main() -> None:
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.connect("/var/run/gatehouse/control")
            link.sendall(json.dumps({"do": "query", "domain": "flood.casino.example"}).encode() + b"\n")
            rows = [json.loads(line) for line in link.makefile("rb")]
        names = [row["row"]["name"] for row in rows if "row" in row]
        print("on-flash", len(names), max(names, default="none"), flush=True)


main()
