"""Outages, on real mosquitto with TLS and the access list, in network namespaces. The long run is tests/lab/outage.py's
own: a million records, fifty kills of the broker."""

import os
import time
from pathlib import Path

import pytest

from agent.link import Link
from agent.receiver.reader import Centre as Reader
from policy.event import Dns
from storage.filter import Filter
from tests.lab.broker import Authority, Centre, Device, Mosquitto, free_port, running, wait_until
from tests.lab.outage import fill, read, run

pytestmark = pytest.mark.lab


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces with a wire between them need root")
def test_through_kills_cuts_and_half_open_connections_everything_arrives_once(tmp_path: Path) -> None:
    found = run(tmp_path, records=30_000, broker_kills=3, others=6, seed=3, bandwidth="20k")
    assert int(str(found["found"])) == int(str(found["records"])) > 30_000


def test_a_cut_is_on_record_with_its_bounds_and_the_alarm_has_them(tmp_path: Path) -> None:
    """The heartbeat stops; the alarm comes within three intervals; afterwards both sides say when, to the second."""
    authority = Authority(tmp_path / "authority")
    mosquitto = Mosquitto(tmp_path / "mosquitto", authority)
    centre = Centre(tmp_path / "centre", mosquitto.centre_port, authority)
    device = Device(tmp_path / "device", mosquitto.port, authority=authority, heartbeat="2s")
    with running(mosquitto, centre, device):
        wait_until(lambda: centre.sql("SELECT 1 FROM device WHERE received_ms > 0"), 20, device.log)
        (launcher,) = [device.process]
        assert launcher is not None
        begin = time.time()
        device.stop()
        for _ in range(120):
            if centre.sql("SELECT 1 FROM alarm WHERE kind = 'silent'"):
                break
            time.sleep(0.1)
        alarm_after = time.time() - begin
        assert alarm_after < 3 * 2 + 1.0, "one second is the receiver's own timer"
        assert centre.sql("SELECT state FROM device") == [("offline",)]
        device.start()
        wait_until(lambda: centre.sql("SELECT 1 FROM alarm WHERE to_ms > 0 AND exact_to > 0"), 20, device.log)
        back = time.time()
        ((start, end, text),) = centre.sql("SELECT exact_from, exact_to, text FROM alarm WHERE kind = 'silent'")
        assert "no link to the centre" in text
        assert abs(start / 1000 - begin) < 1.0
        assert begin < end / 1000 <= back
        gaps = device.ask("query", "--kind", "gap", "--since", "1h")
        assert any(row["source"] == "uplink" and "no link" in str(row["why"]) for row in gaps)


@pytest.mark.parametrize("how", ["kill broker", "kill uplink"])
def test_a_sudden_end_has_bounds_too(tmp_path: Path, how: str) -> None:
    mosquitto = Mosquitto(tmp_path / "mosquitto", None)
    centre = Centre(tmp_path / "centre", mosquitto.centre_port)
    device = Device(tmp_path / "device", mosquitto.port, heartbeat="1s")
    with running(mosquitto, centre, device):
        wait_until(lambda: centre.sql("SELECT 1 FROM device WHERE received_ms > 0"), 20, device.log)
        time.sleep(1.5)
        begin = time.time()
        if how == "kill broker":
            mosquitto.kill()
            time.sleep(5.0)  # well beyond the two heartbeats and a half after which the alarm is raised
            mosquitto.start()
        else:
            config = device.config.read_text()
            device.config.write_text(config.replace(f"#{mosquitto.port}", "#1"))  # so that it cannot come back at once
            device.kill("uplink")
            time.sleep(5.0)  # well beyond the two heartbeats and a half after which the alarm is raised
            device.config.write_text(config)
            device.kill("uplink")
        wait_until(
            lambda: centre.sql("SELECT 1 FROM alarm WHERE exact_to > 0"), 60, lambda: device.log() + centre.log()
        )
        # Up to half a minute: what came to the new broker before the receiver did is sent again.
        end = time.time()
        (bounds, *_) = centre.sql("SELECT exact_from, exact_to FROM alarm WHERE kind = 'silent'")
        assert abs(bounds[0] / 1000 - begin) < 1.0
        assert begin + 4.9 < bounds[1] / 1000 < end


def test_blocks_are_at_the_centre_before_the_backlog(tmp_path: Path) -> None:
    """A slow line, hours of accesses waiting: what was blocked just now is there within seconds, and once."""
    fill(tmp_path / "device" / "ring", 30_000)
    mosquitto = Mosquitto(tmp_path / "mosquitto", None)
    centre = Centre(tmp_path / "centre", mosquitto.centre_port)
    device = Device(tmp_path / "device", mosquitto.port, more="\toption bandwidth '4k'\n")
    with running(mosquitto, centre, device):
        wait_until(lambda: centre.sql("SELECT 1 FROM urgent"), 15, device.log)
        assert centre.until() < 30_000
        (seq,) = centre.sql("SELECT max(seq) FROM urgent")[0]
        (own,) = [row for row in device.ask("query", "--since", "1h") if str(row["id"]).endswith(f":{seq}")]
        assert own["kind"] == "maintenance"
        device.config.write_text(device.config.read_text().replace("'4k'", "'4M'"))
        device.kill("uplink")
        wait_until(lambda: centre.until() > seq, 60, device.log)
        assert centre.sql(f"SELECT count(*) FROM urgent WHERE seq <= {seq}") == [(0,)]
    assert read(tmp_path / "centre").alarms == []


def test_what_clients_do_now_is_there_before_the_backlog_where_it_is_asked_for(tmp_path: Path) -> None:
    """The same slow line; with `fresh` an access of a moment ago does not wait for the days before it."""
    fill(tmp_path / "device" / "ring", 40_000)
    mosquitto = Mosquitto(tmp_path / "mosquitto", None)
    centre = Centre(tmp_path / "centre", mosquitto.centre_port)
    more = "\toption bandwidth '2k'\n\toption fresh '1'\n"
    device = Device(tmp_path / "device", mosquitto.port, more=more)
    with running(mosquitto, centre, device):
        link = Link(str(tmp_path / "device" / "run" / "events"), "dns", 0)
        now_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
        for number in range(3):
            link.put(Dns(now_ms, b"\x0a\x14\0\x0b", f"now{number}.example", 1, 0, 0, 0, "", "pupils", (), False, 3))
        link.close(10)

        def fresh() -> list[str]:
            with Reader(str(tmp_path / "centre")) as kept:
                (stream,) = kept.streams()
                return [str(found.event.name) for found in kept.query(stream, Filter(domain="example", kind=Dns))
                        if isinstance(found.event, Dns) and found.event.name.startswith("now")]  # fmt: skip

        wait_until(lambda: centre.sql("SELECT 1 FROM batch"), 15, device.log)
        wait_until(lambda: len(fresh()) == 3, 25, device.log)
        assert centre.until() < 40_000, "the backlog is still on its way"
        device.config.write_text(device.config.read_text().replace("'2k'", "'4M'"))
        device.kill("uplink")
        wait_until(lambda: centre.until() > 40_003, 60, device.log)
    found = read(tmp_path / "centre")
    assert (found.total, found.alarms) == (40_003, [])
    assert [found.names[f"now{number}.example"] for number in range(3)] == [1, 1, 1]


def test_with_one_broker_gone_the_next_is_asked(tmp_path: Path) -> None:
    mosquitto = Mosquitto(tmp_path / "mosquitto", None)
    centre = Centre(tmp_path / "centre", mosquitto.centre_port)
    device = Device(tmp_path / "device", free_port(), more=f"\tlist server '127.0.0.1#{mosquitto.port}'\n")
    with running(mosquitto, centre, device):
        wait_until(lambda: centre.until() > 1, 20, device.log)
    assert "Connection refused" in device.log()


def test_several_receivers_share_the_work_and_double_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "device" / "ring", 30_000)
    authority = Authority(tmp_path / "authority")
    mosquitto = Mosquitto(tmp_path / "mosquitto", authority)
    copies = [Centre(tmp_path / "centre", mosquitto.centre_port, authority, f"receiver-{n}") for n in range(3)]
    device = Device(tmp_path / "device", mosquitto.port, authority=authority)
    with running(mosquitto, *copies, device):
        wait_until(lambda: copies[0].until() > 30_000, 60, lambda: device.log() + copies[0].log())
    worked = [line for line in copies[0].log().splitlines() if '"messages": ' in line and '"messages": 0' not in line]
    assert len(worked) == 3, "each copy had its share"
    found = read(tmp_path / "centre")
    assert found.total == 30_000
    assert found.alarms == []
