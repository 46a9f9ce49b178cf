"""The ring on flash file systems, simulated: their semantics, not their wear. And sixty days on a small disk."""

import time

import pytest

from tests.qemu.conftest import Router

JFFS2 = (
    "modprobe mtdram total_size=12288 erase_size=64; modprobe mtdblock; modprobe jffs2;"
    " mkdir -p /mnt/ring; mount -t jffs2 mtd0 /mnt/ring"
)
UBIFS = (
    "modprobe nandsim first_id_byte=0x20 second_id_byte=0x33 third_id_byte=0x00 fourth_id_byte=0x00;"  # 16 MiB, 512
    " for name in lzo deflate zstd ubi ubifs; do modprobe $name; done;"
    " mkdir -p /mnt/ring;"
    " python3 /tmp/stick/ubi.py && mount -t ubifs ubi0:ring /mnt/ring"
)


@pytest.mark.slow
@pytest.mark.parametrize("make", [JFFS2, UBIFS], ids=["jffs2", "ubifs"])
def test_the_ring_works_on_flash(router: Router, make: str) -> None:
    router.run(make, 60)
    router.run(
        "uci set gatehouse.ring.directory=/mnt/ring/ring; uci set gatehouse.ring.budget=4M; uci commit gatehouse"
    )
    router.run("/etc/init.d/gatehouse reload", 60)
    router.wait_until_protecting()
    for number in range(20):
        router.network.resolve(f"f{number}.casino.example")
    assert len(router.rows("--domain casino.example")) == 20
    # No power cut, for the flash is in this guest's memory: but whoever is killed leaves the same files.
    router.run("kill -9 $(cat /tmp/run/procd/gatehouse.agent/pid)")
    router.network.resolve("afterwards.casino.example")
    router.wait_until_protecting()
    names = [row["name"] for row in router.rows("--domain casino.example")]
    assert len(names) == len(set(names)) == 21, names
    assert "as they were written" in router.run("gatehouse verify")
    router.run("/etc/init.d/gatehouse stop", 60)
    router.run("umount /mnt/ring")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sixty_days_on_a_small_disk(router: Router) -> None:
    """A clock that leaps from day to day; each day's names are found afterwards, and the disk has room."""
    first = int(router.run("date +%s"))
    for day in range(61):
        router.run(f"date -s @{first + day * 86400}")
        for number in range(5):
            router.network.resolve(f"d{day}-{number}.casino.example")
        time.sleep(0.3)
    ring = router.status()["ring"]
    assert ring["oldest_days"] >= 60, ring
    assert ring["bytes"] < 24 << 20, ring
    names = {row["name"] for row in router.rows("--since 70d", "--domain casino.example")}
    missing = [day for day in range(61) if f"d{day}-0.casino.example" not in names]
    assert not missing, missing
    assert "as they were written" in router.run("gatehouse verify")
    used = int(router.run("df -Pk /overlay | awk 'NR==2 {print $5}'").rstrip("%"))
    assert used < 60, used
