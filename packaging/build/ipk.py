"""Writes an .ipk as opkg reads it: gzip of a tar of `debian-binary`, `data.tar.gz` and `control.tar.gz`.

Source: OpenWrt's scripts/ipkg-build and include/package-pack.mk. (Not `ar`, as Debian's packages are.)
Rule: the same entries give the same octets: names sorted, one time stamp for everything, root everywhere, no name and
no time in gzip's head.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

STUBS: Final[Mapping[str, str]] = {
    "postinst": """#!/bin/sh
[ "${IPKG_NO_SCRIPT}" = "1" ] && exit 0
[ -s "${IPKG_INSTROOT}/lib/functions.sh" ] || exit 0
. "${IPKG_INSTROOT}/lib/functions.sh"
default_postinst "$0" "$@"
""",
    "prerm": """#!/bin/sh
[ -s "${IPKG_INSTROOT}/lib/functions.sh" ] || exit 0
. "${IPKG_INSTROOT}/lib/functions.sh"
default_prerm "$0" "$@"
""",
}
"""What OpenWrt gives to every package: users, uci-defaults, `enable` and `start`; `stop` and `disable`."""


class Entry(NamedTuple):
    """One file or directory below the root."""

    path: str
    """Without a leading slash."""
    mode: int
    data: bytes | None
    """None: a directory."""


def write_ipk(
    control: Mapping[str, str],
    entries: Iterable[Entry],
    *,
    conffiles: Iterable[str] = (),
    scripts: Mapping[str, str] | None = None,
    epoch: int,
) -> bytes:
    """The whole package. `scripts`: what the package does besides the stubs, by OpenWrt's names (`prerm`, ...)."""
    tree = with_parents(entries)
    size = sum(len(entry.data) for entry in tree if entry.data is not None)
    description = control["Description"]
    fields = {**control, "Installed-Size": str(size), "Description": description}
    fields["Description"] = fields.pop("Description")  # last, for it goes over several lines
    texts = {"control": "".join(f"{name}: {value}\n" for name, value in fields.items())}
    kept = list(conffiles)
    if kept:
        texts["conffiles"] = "".join(f"{path}\n" for path in kept)
    members = [Entry(name, 0o644, text.encode()) for name, text in texts.items()]
    members += [Entry(name, 0o755, text.encode()) for name, text in STUBS.items()]
    for name, text in (scripts or {}).items():
        # The stubs source NAME-pkg; what has no stub is called by opkg itself.
        members.append(Entry(f"{name}-pkg" if name in STUBS else name, 0o755, text.encode()))
    parts = [
        Entry("debian-binary", 0o644, b"2.0\n"),
        Entry("data.tar.gz", 0o644, packed(_tar(tree, epoch))),
        Entry("control.tar.gz", 0o644, packed(_tar([Entry("", 0o755, None), *members], epoch))),
    ]
    return packed(_tar(parts, epoch, in_order=True))


def with_parents(entries: Iterable[Entry]) -> list[Entry]:
    """The same, sorted, with every directory on the way, `./` first."""
    tree = {entry.path: entry for entry in entries}
    for path in list(tree):
        while "/" in path:
            path = path.rpartition("/")[0]
            tree.setdefault(path, Entry(path, 0o755, None))
    tree.setdefault("", Entry("", 0o755, None))
    return [tree[path] for path in sorted(tree)]


def packed(data: bytes) -> bytes:
    """gzip, as `gzip -9n`."""
    out = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=out, mtime=0, compresslevel=9) as file:
        file.write(data)
    return out.getvalue()


def _tar(entries: Iterable[Entry], epoch: int, *, in_order: bool = False) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for entry in entries if in_order else sorted(entries, key=lambda entry: entry.path):
            info = tarfile.TarInfo(f"./{entry.path}")
            info.mode, info.mtime = entry.mode, epoch
            info.uid = info.gid = 0
            info.uname = info.gname = ""  # numbers only, as --numeric-owner
            if entry.data is None:
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            else:
                info.size = len(entry.data)
                archive.addfile(info, io.BytesIO(entry.data))
    return out.getvalue()
