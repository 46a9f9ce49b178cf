"""A policy from the centre: a signed bundle, brought by orders over a real broker, decides within a moment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.bundles import publish
from agent.compiler import compile_policy
from agent.receiver.orders import make_key
from policy.bundle import PublicKey, public_key_text
from policy.signature import public_key, sign
from policy.uci import parse
from tests.lab.broker import wait_until
from tests.lab.centre import ADDRESS, PORT, UPLINK
from tests.lab.lab import ROOT, Lab
from tests.lab.test_lab_profiles import WHERE

pytestmark = pytest.mark.lab

SECRET = bytes(range(32))
NUMBER = public_key(SECRET)[:8]
DEVICE = "11010512010001/123456789020000000001"


def make_bundle(directory: Path, version: int, names: str) -> Path:
    """What a publisher makes, somewhere else, with a key of its own."""
    lists = directory / "published"
    lists.mkdir(exist_ok=True)
    (lists / "central.txt").write_text(names + "".join(f"n{number}.bulk.example\n" for number in range(12_000)))
    sections = parse("config list 'central'\n\toption file 'central.txt'\n\toption category 'gambling'\n")
    image = str(directory / f"v{version}.gp")
    compile_policy(sections, str(lists), image, generation=version)
    target = directory / f"bundle{version}"
    publish(
        str(target), name="central", channel="stable", version=version, created_s=5, image_path=image, base_paths=[],
        rules=b"", number=NUMBER, secret=SECRET, sign=sign,
    )  # fmt: skip
    return target


def order(lab: Lab, secret: Path, bundle: Path) -> subprocess.CompletedProcess[str]:
    words = ["order", "--broker", f"{ADDRESS}#{PORT}", "--plain", "--sign-with", str(secret), "--by", "li"]
    words += ["--data", str(lab.directory / "received"), DEVICE, "policy", "name=central", f"directory={bundle}"]
    return lab.run("internet", ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "agent.receiver", *words])


def test_a_bundle_that_the_centre_brings_decides_within_two_seconds(tmp_path: Path) -> None:
    directory = tmp_path / "lab"
    secret = tmp_path / "orders.key"
    fingerprint = make_key(str(secret))

    def prepare(directory: Path) -> None:
        keys = directory / "state" / "keys"
        keys.mkdir(parents=True)
        (keys / fingerprint).write_bytes(Path(f"{secret}.pub").read_bytes())
        (keys / NUMBER.hex()).write_bytes(public_key_text(PublicKey(NUMBER, public_key(SECRET))))

    extra = f"{UPLINK}\tlist order_key '{fingerprint}'\n\nconfig bundle 'central'\n\tlist key '{NUMBER.hex()}'\n"
    with Lab.running(directory, flush="1s", main=WHERE, extra=extra, centre=True, prepare=prepare) as lab:
        assert lab.run("pupil1", "dig +short www.news.example").stdout.strip() != ""
        done = order(lab, secret, make_bundle(tmp_path, 1, "news.example\n"))
        assert done.returncode == 0, done.stderr
        # The answer says that the agent has it; the hook, which it has told before that, is a process of its own.
        wait_until(lambda: "NXDOMAIN" in lab.run("pupil1", "dig www.news.example").stdout, 2)
        assert lab.run("pupil1", "dig +short www.example.org").stdout.strip() != ""
        (row,) = [
            row
            for row in lab.rows("--since", "1h", "--kind", "maintenance")
            if row["action"] == "policy" and row["object"] == "bundle:central"
        ]
        assert (row["actor"], row["new"], row["result"]) == ("centre: li", "1", "ok")
        # One octet of the image is another on the way: refused, on record, and the old one decides.
        bad = make_bundle(tmp_path, 2, "example.org\n")
        image = bad / "image-2.gp"
        octets = bytearray(image.read_bytes())
        octets[len(octets) // 2] ^= 1
        image.write_bytes(octets)
        refused = order(lab, secret, bad)
        assert refused.returncode == 1
        assert "failed: policy:" in refused.stderr
        assert lab.run("pupil1", "dig +short www.example.org").stdout.strip() != ""
        assert "NXDOMAIN" in lab.run("pupil1", "dig www.news.example").stdout
        told = [
            str(row["result"])
            for row in lab.rows("--since", "1h", "--kind", "maintenance")
            if row["action"] == "policy" and row["object"] == "bundle:central"
        ]
        assert [text.partition(":")[0] for text in told] == ["ok", "refused"]
        assert not list((directory / "state").glob("staging/central/*")), os.listdir(directory / "state")
