"""Hears every MQTT message of a broker. `python ear.py ADDRESS PORT FILE`: topic and payload of each go to FILE.

FILE is there from the moment from which nothing is missed.
"""

import sys
import time
from pathlib import Path

import msgpack

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from agent.uplink.broker import Broker, Login


def main(address: str, port: int, path: str) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            ear = Broker((address, port), Login("ear", tls=False), [("#", 1)], version=5)
            break
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    with open(path, "ab", buffering=0) as file:
        while True:
            ear.work()
            for message in ear.inbound:
                file.write(msgpack.packb((message.topic, message.payload)))
            ear.inbound.clear()
            time.sleep(0.05)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
