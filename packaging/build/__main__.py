"""`make package`: the feed's packages that need no compiler, as .ipk, with a signed index, in build/package.

    python -I packaging/build [--out DIRECTORY] [--python INTERPRETER] [--key SECRET]

Byte code belongs to one Python: the packages say which (`libpython3-3.11`), and OpenWrt 23.05 and 24.10 have 3.11.
The time stamp in them is SOURCE_DATE_EPOCH, or that of the last commit.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

import ipk  # noqa: E402
import recipe  # noqa: E402
import usign  # noqa: E402

FEED: Final = ROOT / "packaging" / "openwrt"
HOME: Final = "usr/lib/gatehouse"
_SKIPPED: Final = frozenset({"__pycache__"})
_DATA: Final = frozenset({".toml", ".sig", ".pub"})
"""What lies among the sources and is read at run time."""


class PackageError(Exception):
    """Something is missing or wrong."""


def main() -> int:
    """Build everything. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="make package", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "package")
    parser.add_argument("--python", default=sys.executable, help="whose byte code; OpenWrt's has the same minor version")
    parser.add_argument("--key", type=Path, help="usign's secret key; without it one is made and kept in --out/key")
    parser.add_argument("--release", default="", help="instead of the Makefiles' PKG_RELEASE: to try an upgrade")
    options = parser.parse_args()
    try:
        build(options.out, options.python, options.key, options.release)
    except (PackageError, recipe.RecipeError, usign.SecretError, OSError) as error:
        print(f"package: {error}", file=sys.stderr)
        return 1
    return 0


def build(out: Path, python: str, key_path: Path | None, release: str = "") -> None:
    """Write every package and the index. Raises: PackageError, RecipeError, SecretError, OSError."""
    out.mkdir(parents=True, exist_ok=True)
    key = read_or_make_key(out, key_path)
    epoch = source_date()
    minor = python_version(python)
    for old in [*out.glob("*.ipk"), *out.glob("Packages*")]:
        old.unlink()
    written = []
    for name, made in packages(python, minor):
        known = recipes()[name]
        if release:
            known = known._replace(version=f"{known.variables['PKG_VERSION']}-r{release}")
        control = control_of(known, minor, epoch, has_code=any(entry.path.endswith(".pyc") for entry in made))
        entries, conffiles = kept(known, made)
        data = ipk.write_ipk(control, entries, conffiles=conffiles, scripts=known.scripts, epoch=epoch)
        path = out / f"{name}_{known.version}_all.ipk"
        path.write_bytes(data)
        written.append((path, control))
        print(f"{path.relative_to(out.parent.parent) if out.parent.parent in path.parents else path}  {len(data)}")
    write_index(out, written, key)


def recipes() -> dict[str, recipe.Recipe]:
    """Every package of the feed."""
    found: dict[str, recipe.Recipe] = {}
    for path in sorted(FEED.glob("*/Makefile")):
        found |= recipe.read_recipes(path.read_text(encoding="utf-8"))
    return found


def packages(python: str, minor: str) -> Iterator[tuple[str, list[ipk.Entry]]]:
    """Name and contents of each package that needs no compiler."""
    feed = FEED / "gatehouse"
    variables = recipe.read_recipes((feed / "Makefile").read_text(encoding="utf-8"))["gatehouse"].variables
    excluded = [ROOT / name for name in variables["GATEHOUSE_EXCLUDE"].split()]
    sources = [ROOT / "__main__.py"]
    for name in variables["GATEHOUSE_PYTHON"].split():
        sources += [
            path
            for path in sorted((ROOT / name).rglob("*"))
            if path.is_file() and not _SKIPPED & set(path.parts) and not any(each in (path, *path.parents) for each in excluded)
        ]
    core = compiled(python, ((path, path.relative_to(ROOT).as_posix()) for path in sources), HOME)
    core += tree_of(feed / "files")
    core.append(ipk.Entry("etc/gatehouse", 0o700, None))
    yield "gatehouse", [entry._replace(mode=0o600) if entry.path == "etc/config/gatehouse" else entry for entry in core]
    for part in ("console", "opennds"):
        yield f"gatehouse-{part}", tree_of(feed / f"files-{part}")
    dnslib = installed("dnslib")
    library = ((path, f"dnslib/{path.relative_to(dnslib).as_posix()}") for path in sorted(dnslib.rglob("*.py")))
    wanted = recipes()["python3-dnslib"].variables["PKG_VERSION"]
    have = importlib_version("dnslib")
    if have != wanted:
        raise PackageError(f"dnslib {have} is installed here, the feed's Makefile says {wanted}")
    yield "python3-dnslib", compiled(python, library, f"usr/lib/python{minor}/site-packages")


def compiled(python: str, sources: Iterable[tuple[Path, str]], prefix: str) -> list[ipk.Entry]:
    """(file, path below `prefix`) -> byte code of what is Python, and the data files that lie among it."""
    entries = []
    with tempfile.TemporaryDirectory() as scratch:
        for path, below in sources:
            if path.suffix == ".py":
                target = Path(scratch, "in", below)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            elif path.suffix in _DATA:
                entries.append(ipk.Entry(f"{prefix}/{below}", 0o644, path.read_bytes()))
        result = subprocess.run(
            [python, "-s", "-P", str(Path(__file__).with_name("bytecode.py")), "in", "out", "/" + prefix],
            cwd=scratch,
            env={"PATH": os.environ.get("PATH", ""), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
        if result.returncode:
            raise PackageError(f"byte code: {result.stderr.strip()}")
        for path in sorted(Path(scratch, "out").rglob("*.pyc")):
            below = path.relative_to(Path(scratch, "out")).as_posix()
            entries.append(ipk.Entry(f"{prefix}/{below}", 0o644, path.read_bytes()))
    return entries


def tree_of(directory: Path) -> list[ipk.Entry]:
    """Files of the feed as they lie there; executable if they are."""
    return [
        ipk.Entry(
            path.relative_to(directory).as_posix(), 0o755 if os.access(path, os.X_OK) else 0o644, path.read_bytes()
        )
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    ]


def kept(known: recipe.Recipe, entries: list[ipk.Entry]) -> tuple[list[ipk.Entry], list[str]]:
    """Entries and conffiles; what is no file goes on sysupgrade's list instead, as include/package-pack.mk does it."""
    files = {f"/{entry.path}" for entry in entries if entry.data is not None}
    conffiles = [path for path in known.conffiles if path in files]
    rest = [path for path in known.conffiles if path not in files]
    if rest:
        text = "".join(f"{path}\n" for path in rest)
        entries = [*entries, ipk.Entry(f"lib/upgrade/keep.d/{known.name}", 0o644, text.encode())]
    return entries, conffiles


def control_of(known: recipe.Recipe, minor: str, epoch: int, *, has_code: bool) -> dict[str, str]:
    """The fields of the control file."""
    depends = ["libc", *([f"libpython3-{minor}"] if has_code else []), *known.depends]
    fields = {
        "Package": known.name,
        "Version": known.version,
        "Depends": ", ".join(depends),
        "Source": f"feeds/gatehouse/{known.variables['PKG_NAME']}",
        "SourceName": known.variables["PKG_NAME"],
        "License": known.variables["PKG_LICENSE"],
        "Section": known.fields["SECTION"],
        "SourceDateEpoch": str(epoch),
        "URL": known.fields["URL"],
        "Maintainer": known.variables["PKG_MAINTAINER"],
        "Architecture": "all",
        "Description": "\n ".join([known.fields["TITLE"], *known.description]),
    }
    if "USERID" in known.fields:
        fields["Require-User"] = known.fields["USERID"]
    return fields


def write_index(out: Path, written: Sequence[tuple[Path, Mapping[str, str]]], key: usign.Key) -> None:
    """Packages, Packages.gz, Packages.sig and the public key."""
    blocks = []
    for path, control in sorted(written):
        data = path.read_bytes()
        fields = {name: value for name, value in control.items() if name != "Description"}
        fields |= {"Filename": path.name, "Size": str(len(data)), "SHA256sum": hashlib.sha256(data).hexdigest()}
        fields["Description"] = control["Description"]
        blocks.append("".join(f"{name}: {value}\n" for name, value in fields.items()))
    index = "\n".join(blocks).encode()
    (out / "Packages").write_bytes(index)
    (out / "Packages.gz").write_bytes(ipk.packed(index))
    (out / "Packages.sig").write_text(usign.sign(key, index), encoding="ascii")
    (out / "gatehouse.pub").write_text(usign.public_text(key), encoding="ascii")


def read_or_make_key(out: Path, path: Path | None) -> usign.Key:
    """The given key; without one, this clone's own, made at the first build."""
    if path is None:
        path = out / "key"
        if not path.exists():
            made = usign.Key(os.urandom(32), os.urandom(8))
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
                file.write(usign.secret_text(made))
            print(f"{path}: a new key, for trials; a release is signed with --key")
    try:
        return usign.read_key(path.read_text(encoding="ascii"))
    except usign.SecretError as error:
        raise usign.SecretError(f"{path}: {error}") from None


def source_date() -> int:
    """Seconds of 1970 that every time stamp says."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if given.isdecimal():
        return int(given)
    result = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True)
    return int(result.stdout) if result.returncode == 0 else 0


def python_version(python: str) -> str:
    """`3.11`."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    result = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True)
    if result.returncode:
        raise PackageError(f"{python}: {result.stderr.strip()}")
    return result.stdout.strip()


def installed(name: str) -> Path:
    """Where a pure library lies here."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise PackageError(f"{name} is not installed here; run make install")
    return Path(spec.origin).parent


def importlib_version(name: str) -> str:
    """Of an installed distribution."""
    from importlib.metadata import version

    return version(name)


if __name__ == "__main__":
    raise SystemExit(main())
