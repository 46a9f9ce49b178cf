"""Who was 198.51.100.2, port N? The record answers; the server's own eyes say whether it is right."""

import sys
from pathlib import Path

import pytest

from tests.lab.lab import Lab
from tests.lab.test_lab_queue import wait_for

pytestmark = pytest.mark.lab

SEE = """
import socket, sys
with socket.create_server(("198.51.100.21", 7000)) as server:
    print("ready", flush=True)
    server.settimeout(20)
    for _ in range(int(sys.argv[1])):
        link, peer = server.accept()
        print(link.recv(10).decode(), peer[0], peer[1], flush=True)
        link.close()
"""
GO = """
import socket, sys
for _ in range(5):
    with socket.create_connection(("198.51.100.21", 7000), timeout=5) as link:
        link.sendall(sys.argv[1].encode())
        link.recv(1)
"""
CLIENTS = {"pupil1": "10.20.0.11", "pupil2": "10.20.0.12"}


@pytest.mark.parametrize("kind", ["blocks", "events"])
def test_the_record_names_the_client_that_the_server_saw(tmp_path: Path, kind: str) -> None:
    binding = f"auto'\n\toption nat '{kind}'\n\tlist nat_network '10.20.0.0/25"
    with Lab.running(tmp_path, flush="1s", binding=binding) as lab:
        seen = []
        with lab.popen("internet", [sys.executable, "-c", SEE, "10"], stdout=-1) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            for client in CLIENTS:
                lab.run(client, [sys.executable, "-c", GO, client], check=True)
            seen = [line.split() for line in server.communicate(timeout=30)[0].splitlines()]
        assert len(seen) == 10
        rows = wait_for(lambda: found if len(found := nat_rows(lab)) >= (2 if kind == "blocks" else 10) else None)
        assert isinstance(rows, list)
        for client, address, port in seen:
            holders = {
                row["client"]
                for row in rows
                if row["outside"] == address and row["port_from"] <= int(port) <= row["port_to"]
            }
            assert holders == {CLIENTS[client]}, (client, address, port)


def nat_rows(lab: Lab) -> list[dict[str, object]]:
    wanted = set(CLIENTS.values())
    return [row for row in lab.rows("--since", "5m", "--kind", "nat") if row["client"] in wanted]
