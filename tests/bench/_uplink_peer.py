"""How people usually do it: a JSON message for each record, QoS 1, paho's own thread and queue. A child of the bench.

python -m tests.bench._uplink_peer PORT CA CERTIFICATE KEY COUNT online|offline
"""

import json
import ssl
import sys
import time

import paho.mqtt.client as mqtt

from storage.rows import row
from tests.bench._ring_day import day


def rss() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmRSS"))


def main() -> None:
    port, ca, certificate, key, count, how = sys.argv[1:]
    messages = []
    for events in day(5, 300, int(count)):
        for event in events:
            if len(messages) < int(count):
                said = row(event, "1:1", event.at_ms, "synced", lambda at: at)
                messages.append(json.dumps(said, separators=(",", ":")))
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="11010500000001/peer", protocol=mqtt.MQTTv5)
    client.max_queued_messages_set(0)
    client.max_inflight_messages_set(1000)  # its default is 20
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(certificate, key)
    client.tls_set_context(context)
    done = [0]

    def acknowledged(*_: object) -> None:
        done[0] += 1

    client.on_publish = acknowledged
    before = rss()
    if how == "online":
        client.connect("localhost", int(port))
        client.loop_start()
        while not client.is_connected():
            time.sleep(0.01)
    began = time.monotonic()
    for message in messages:
        client.publish("gatehouse/v1/11010500000001/peer/records", message, qos=1)
    while how == "online" and done[0] < len(messages):
        time.sleep(0.005)
    seconds = time.monotonic() - began
    print(json.dumps({"seconds": seconds, "records": len(messages), "grown": rss() - before}))
    client.loop_stop()


if __name__ == "__main__":
    main()
