"""The feed's Makefiles under real GNU make, with as much of OpenWrt's build system as they use: do its recipes make
what `make package` makes? (The SDK itself cannot be had here.)
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.openwrt import ROOT, build
from tests.packaging.reader import read_ipk

sys.path.append(str(ROOT / "packaging/build"))
import recipe

FEED = ROOT / "packaging/openwrt"
RULES = f"""
INCLUDE_DIR:=$(TOPDIR)/include
CP:=cp -fpR
FIND:=find
INSTALL_DIR:=install -d -m0755
HOST_PYTHON:={sys.executable}
"""
PACKAGE = """
PKG_BUILD_DIR:=$(TOPDIR)/build_dir/$(PKG_NAME)-$(PKG_VERSION)
all: $(TOPDIR)/compiled
$(TOPDIR)/compiled:
	$(call Build/Prepare)
	$(call Build/Compile)
	touch $@
define BuildPackage
$$(eval $$(call Package/$(1)))
$$(info $(1) DEPENDS $$(DEPENDS))
$$(info $(1) USERID $$(USERID))
$$(eval DEPENDS:=)
$$(eval USERID:=)
all: install-$(1)
install-$(1): $(TOPDIR)/compiled
	mkdir -p $(TOPDIR)/ipkg/$(1)
	$$(call Package/$(1)/install,$(TOPDIR)/ipkg/$(1))
endef
"""
PYTHON = """
define Python3/CompileAll
	$(HOST_PYTHON) -m compileall -q -b -d / $(1)
endef
define Python3/DeleteSourceFiles
	$(FIND) $(1) -type f -name '*.py' -delete
endef
define Py3Package
endef
"""


@pytest.fixture
def top(tmp_path: Path) -> Path:
    (tmp_path / "include").mkdir()
    (tmp_path / "feeds/packages/lang/python").mkdir(parents=True)
    (tmp_path / "rules.mk").write_text(RULES)
    (tmp_path / "include/package.mk").write_text(PACKAGE)
    (tmp_path / "feeds/packages/lang/python/python3-package.mk").write_text(PYTHON)
    (tmp_path / "feeds/packages/lang/python/pypi.mk").write_text("")
    return tmp_path


def make(top: Path, package: str, *words: str) -> list[list[str]]:
    """Carry a Makefile's recipes out; what its packages said of themselves."""
    command = ["make", "-s", "-C", str(FEED / package), "--no-print-directory", f"TOPDIR={top}", *words]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    return [line.split() for line in result.stdout.splitlines()]


def test_the_recipes_make_the_tree_that_the_ipk_has(top: Path) -> None:
    said = make(top, "gatehouse")
    recipes = recipe.read_recipes((FEED / "gatehouse/Makefile").read_text())
    for name, known in recipes.items():
        (depends,) = [words[2:] for words in said if words[:2] == [name, "DEPENDS"]]
        assert tuple(word.lstrip("+") for word in depends) == known.depends, "make and we read the same"
        (path,) = build().glob(f"{name}_*.ipk")
        read = read_ipk(path.read_bytes())
        tree = top / "ipkg" / name
        made = {each.relative_to(tree).as_posix(): each.stat().st_mode & 0o777 for each in tree.rglob("*")}
        # Of directories made on the way only ours have a mode that matters; OpenWrt adds keep.d itself.
        files = {place: info.mode for place, info in read.files.items() if info.isfile() and "keep.d" not in place}
        assert {place: mode for place, mode in made.items() if (tree / place).is_file()} == files
        for place in files:
            if not place.endswith(".pyc"):
                assert (tree / place).read_bytes() == read.contents[place], place
    assert (top / "ipkg/gatehouse/etc/gatehouse").stat().st_mode & 0o777 == 0o700
    assert ["gatehouse", "USERID", "gatehouse=5300:gatehouse=5300"] in said


@pytest.mark.parametrize("package", ["python-dnslib", "python-netfilterqueue"])
def test_the_libraries_makefiles_are_read_by_make_and_say_what_upstream_says(top: Path, package: str) -> None:
    said = make(top, package, "-n")
    library = package.removeprefix("python-")
    (depends,) = [words[2:] for words in said if words[:2] == [f"python3-{library}", "DEPENDS"]]
    assert "+python3-light" in depends
    variables = recipe.read_recipes((FEED / package / "Makefile").read_text())[f"python3-{library}"].variables
    pinned = f"{library}=={variables['PKG_VERSION']}"
    assert f'"{pinned}"' in (ROOT / "pyproject.toml").read_text(), "what is tested is what is packaged"
    assert len(variables["PKG_HASH"]) == 64


def test_openwrts_scan_finds_our_makefiles_and_no_other() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("Makefile")
        if "build/" not in path.as_posix() and ".venv" not in path.parts and "call BuildPackage" in path.read_text()
    }
    wanted = {f"packaging/openwrt/{name}/Makefile" for name in ("gatehouse", "python-dnslib", "python-netfilterqueue")}
    assert found == wanted
    assert all(len(Path(path).parts) <= 5 for path in found), "feeds are scanned five deep"


def test_each_package_has_a_test_for_openwrts_ci() -> None:
    for path in FEED.glob("*/Makefile"):
        script = path.with_name("test.sh")
        assert script.stat().st_mode & 0o111, script
    assert (FEED / "gatehouse/Makefile").read_text().count("PKG_VERSION:=0.1.0") == 1
