"""The package's scripts under busybox's ash; OpenWrt's `uci`, and what procd is told, stand in beside this file."""

import json
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.launch import roles
from policy.config import load
from tests.packaging.openwrt import ROOT
from tests.packaging.uci import Uci

FILES = ROOT / "packaging/openwrt/gatehouse/files"
HERE = Path(__file__).resolve().parent


@pytest.fixture
def router(tmp_path: Path) -> "Router":
    return Router(tmp_path)


class Router:
    """A directory in the place of /, and `uci` on the PATH."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "etc/config"
        self.config.mkdir(parents=True)
        (self.config / "gatehouse").write_text((FILES / "etc/config/gatehouse").read_text())
        bin_ = root / "bin"
        bin_.mkdir()
        self.tool("uci", f'exec {sys.executable} -I -S {HERE}/uci.py "$@"')
        self.tool("logger", f'echo "$@" >>{root}/log')

    def tool(self, name: str, text: str) -> None:
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def sh(self, *words: str, **env: str) -> "subprocess.CompletedProcess[str]":
        environment = {"PATH": f"{self.root}/bin:{os.environ['PATH']}", "UCI_CONFIG_DIR": str(self.config), **env}
        return subprocess.run(["busybox", "ash", *words], capture_output=True, text=True, env=environment, timeout=20)

    def moved(self, path: str) -> str:
        """A script of the package whose absolute paths lie below our root."""
        text = (FILES / path).read_text()
        copy = self.root / "moved" / Path(path).name
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(re.sub(r"(?<![\w/.])/(etc|usr/libexec|usr/share)/", f"{self.root}/\\1/", text))
        return str(copy)

    def told(self, verb: str = "start") -> list[str]:
        result = self.sh(str(HERE / "procd.sh"), str(FILES / "etc/init.d/gatehouse"), verb)
        assert result.returncode == 0, result.stderr
        assert not result.stderr, result.stderr
        return result.stdout.splitlines()

    def set(self, text: str) -> None:
        uci = Uci(str(self.config))
        for line in text.split():
            assert uci.run(["set", line]) == 0, line
        uci.run(["commit"])


@pytest.mark.parametrize(
    "changes",
    [
        "",
        "gatehouse.dns.workers=2\ngatehouse.nfq.workers=3",
        "gatehouse.dns.enabled=0",
        """gatehouse.nfq.enabled=off
        gatehouse.uplink.enabled=1
        gatehouse.uplink.server=mqtt.example.org#8883
        gatehouse.main.venue=31011500000001
        gatehouse.main.device=123456789020000000001""",
    ],
)
def test_procd_starts_exactly_what_the_launcher_would(router: Router, changes: str) -> None:
    router.set(f"gatehouse.main.enabled=1\n{changes}".strip())
    commands = [line.split() for line in router.told() if line.split()[1] == "command"]
    told = [(words[words.index("/usr/lib/gatehouse") + 1], int(words[-1])) for words in commands]
    assert sorted(told) == sorted(roles(load((router.config / "gatehouse").read_text())))
    for words in commands:
        assert words[2:5] == ["/usr/bin/python3", "-I", "/usr/lib/gatehouse"]


def test_procd_starts_nothing_before_the_installer_has_said_so(router: Router) -> None:
    assert [line for line in router.told() if not line.startswith("command")] == []


def test_each_instance_is_started_again_for_ever_and_within_limits(router: Router) -> None:
    router.set("gatehouse.main.enabled=1")
    lines = router.told()
    names = [line.split()[1] for line in lines if line.startswith("instance ")]
    assert names == ["agent", "dns0", "nfq0"]
    for name in names:
        mine = [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")]
        assert "respawn 3600 1 0" in mine
        assert "stderr 1" in mine
        assert any(line.startswith("limits nofile=") for line in mine)
        assert int(next(line.split()[1] for line in mine if line.startswith("term_timeout"))) > 5


def test_a_changed_setting_starts_again_whom_it_concerns_and_nobody_else(router: Router) -> None:
    router.set("gatehouse.main.enabled=1")

    def sums() -> dict[str, str]:
        lines = [line.split() for line in router.told() if line.split()[1] == "env"]
        return {words[0]: words[2] for words in lines}

    def changed(setting: str) -> set[str]:
        before = sums()
        router.set(setting)
        after = sums()
        return {name for name in after if after[name] != before[name]}

    assert changed("gatehouse.nfq.queue_length=2048") == {"agent", "nfq0"}
    assert changed("gatehouse.main.on_failure=closed") == {"agent", "dns0", "nfq0"}
    assert changed("gatehouse.ring.flush=10s") == {"agent"}
    # Lists, profiles, groups are read at a signal: nobody loses a query for a new list.
    assert changed("gatehouse.gambling=list\ngatehouse.gambling.category=gambling") == set()


def test_a_commit_reloads_and_a_reload_tells_the_agent(router: Router) -> None:
    assert "trigger gatehouse" in router.told("triggers")
    assert router.told("reload")[-1] == "signal gatehouse agent HUP"
    assert router.told("look")[-1] == "signal gatehouse agent USR1"


def steps(router: Router, **texts: str) -> Path:
    directory = router.root / "steps"
    directory.mkdir()
    for number, text in texts.items():
        (directory / number.removeprefix("step")).write_text(text)
    return directory


def migrate(router: Router, directory: Path) -> "subprocess.CompletedProcess[str]":
    env = {"GATEHOUSE_MIGRATIONS": str(directory), "GATEHOUSE_CONFIG_DIR": str(router.config)}
    return router.sh(str(FILES / "usr/libexec/gatehouse/migrate"), **env)


def test_a_new_installation_is_left_as_it_is_comments_and_all(router: Router) -> None:
    assert migrate(router, FILES / "usr/share/gatehouse/migrations").returncode == 0
    assert (router.config / "gatehouse").read_text() == (FILES / "etc/config/gatehouse").read_text()
    assert [path.name for path in router.config.iterdir()] == ["gatehouse"]


def test_steps_are_taken_in_order_each_once_and_one_that_fails_is_undone(router: Router) -> None:
    (router.config / "gatehouse").write_text("config gatehouse 'main'\n\toption lan 'br-old'\n")
    directory = steps(
        router,
        step1='uci -q -c "$config" set gatehouse.main.lan="$(uci -q -c "$config" get gatehouse.main.lan)1"\n',
        step2='uci -q -c "$config" set gatehouse.main.lan="$(uci -q -c "$config" get gatehouse.main.lan)2"\n',
        step3='uci -q -c "$config" set gatehouse.main.lan=broken\nfalse\n',
        step4='uci -q -c "$config" set gatehouse.main.lan=never\n',
    )
    for _ in range(2):
        assert migrate(router, directory).returncode == 1
        text = (router.config / "gatehouse").read_text()
        assert "option lan 'br-old12'" in text
        assert "option config_version '2'" in text
        assert not list(router.config.glob(".*"))
    assert "step 3 failed" in (router.root / "log").read_text()
    (directory / "3").write_text("true\n")
    assert migrate(router, directory).returncode == 0
    assert "option lan 'never'" in (router.config / "gatehouse").read_text()
    assert migrate(router, directory).returncode == 0
    load((router.config / "gatehouse").read_text())  # and what came out is read by the program


def test_first_boot_defaults_are_set_once_and_close_the_files(router: Router) -> None:
    (router.config / "firewall").write_text("config defaults\n\toption input 'REJECT'\n")
    (router.config / "gatehouse").chmod(0o644)
    libexec = router.root / "usr/libexec/gatehouse"
    libexec.mkdir(parents=True)
    (libexec / "migrate").write_text(f"#!/bin/sh\necho once >>{router.root}/migrated\n")
    (libexec / "migrate").chmod(0o755)
    script = router.moved("etc/uci-defaults/90-gatehouse")
    texts = []
    for _ in range(2):
        result = router.sh(script)
        assert (result.returncode, result.stderr) == (0, "")
        texts.append((router.config / "firewall").read_text())
    assert texts[0] == texts[1]
    assert "option type 'script'" in texts[0]
    assert "option fw4_compatible '1'" in texts[0]
    assert texts[0].count("config include 'gatehouse'") == 1
    assert stat.S_IMODE((router.config / "gatehouse").stat().st_mode) == 0o600
    assert stat.S_IMODE((router.root / "etc/gatehouse").stat().st_mode) == 0o700


def test_fw4s_include_has_the_agent_look_and_never_fails_the_firewall(router: Router) -> None:
    init = router.root / "etc/init.d"
    init.mkdir()
    (init / "gatehouse").write_text(
        f"#!/bin/sh\necho $1 >>{router.root}/called\n[ $1 != running ] || exit ${{RUNS:-1}}\n"
    )
    (init / "gatehouse").chmod(0o755)
    script = router.moved("usr/share/gatehouse/firewall.include")
    assert router.sh(script).returncode == 0
    assert router.sh(script, RUNS="0").returncode == 0
    assert (router.root / "called").read_text().split() == ["running", "running", "look"]
    assert "queue" not in "".join(path.read_text() for path in FILES.rglob("*.nft"))


def test_a_router_that_is_not_switched_on_says_so_by_its_led(router: Router) -> None:
    said = router.root / "said"
    router.tool("gatehouse", f'echo "$@" >>{said}')
    assert not [line for line in router.told() if "instance" in line]
    for _ in range(100):
        if said.exists() and said.read_text():
            break
        time.sleep(0.02)
    assert said.read_text() == "led\n"
    router.set("gatehouse.main.enabled=1")
    said.unlink()
    assert [line for line in router.told() if "instance" in line]
    time.sleep(0.2)
    assert not said.exists()


def test_sysupgrade_keeps_the_ring_if_it_fits_and_says_so_if_not(router: Router) -> None:
    ring = router.root / "ring"
    ring.mkdir()
    (ring / "000001.seg").write_bytes(b"x" * 70_000)
    router.set(f"gatehouse.ring.directory={ring}")
    router.tool("df", "echo Filesystem; echo overlayfs:/overlay 1 1 1 1% /")
    program = f'. {FILES}/lib/upgrade/gatehouse.sh; for hook in $sysupgrade_init_conffiles; do $hook "$1"; done'
    listed = router.root / "conffiles"
    result = router.sh("-c", program, "sysupgrade", str(listed))
    assert result.stderr == ""
    assert listed.read_text() == f"{ring}/000001.seg\n"
    listed.write_text("")
    router.tool("du", "echo '900000000\tring'")
    result = router.sh("-c", program, "sysupgrade", str(listed))
    assert "would be LOST" in result.stderr
    assert listed.read_text() == ""
    # On a file system of its own it stays where it is.
    router.tool("df", 'echo Filesystem; [ "$2" = / ] && echo overlayfs:/overlay || echo /dev/sda1')
    assert router.sh("-c", program, "sysupgrade", str(listed)).stderr == ""
    assert listed.read_text() == ""


def test_opennds_is_told_once_and_another_script_of_its_is_left(router: Router) -> None:
    script = str(ROOT / "packaging/openwrt/gatehouse/files-opennds/etc/uci-defaults/91-gatehouse-opennds")
    (router.config / "opennds").write_text("config opennds\n\toption enabled '1'\n")
    assert router.sh(script).returncode == 0
    assert "option binauth '/usr/libexec/gatehouse/binauth'" in (router.config / "opennds").read_text()
    (router.config / "opennds").write_text("config opennds\n\toption binauth '/root/mine'\n")
    assert router.sh(script).returncode == 0
    assert "/root/mine" in (router.config / "opennds").read_text()
    (router.config / "opennds").unlink()
    assert router.sh(script).returncode == 0


def test_luci_may_read_the_state_and_set_the_configuration_and_nothing_else() -> None:
    (acl,) = json.loads((FILES / "usr/share/rpcd/acl.d/gatehouse.json").read_text()).values()
    assert acl["read"] == {"ubus": {"gatehouse": ["status"]}, "uci": ["gatehouse"]}
    assert acl["write"] == {"ubus": {"gatehouse": ["reload"]}, "uci": ["gatehouse"]}
    assert "file" not in acl["read"] | acl["write"]
