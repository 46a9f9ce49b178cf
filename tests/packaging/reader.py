"""Reads an .ipk by its format alone; shares nothing with the code that writes them.

Source: opkg's pkg_extract.c and OpenWrt's scripts/ipkg-build: a gzipped tar of debian-binary, control.tar.gz and
data.tar.gz; control is RFC 822-like (deb822): a field, continuation lines that begin with a blank.
"""

import io
import tarfile
import zlib
from typing import NamedTuple


class Read(NamedTuple):
    control: dict[str, str]
    extra: dict[str, tarfile.TarInfo]
    """Members of the control archive by name, `./` taken off."""
    texts: dict[str, str]
    """What those hold."""
    files: dict[str, tarfile.TarInfo]
    contents: dict[str, bytes]
    members: list[str]


def gunzip(data: bytes) -> bytes:
    """One gzip stream, whole: a cut or a changed octet is an error (opkg itself does not always say so)."""
    machine = zlib.decompressobj(zlib.MAX_WBITS | 16)
    out = machine.decompress(data)
    if not machine.eof or machine.unused_data:
        raise ValueError("gzip: cut short, or something behind its end")
    assert not any(data[4:8]), "gzip: a time in its head"
    assert not data[3], "gzip: a name in its head"
    return out


def untar(data: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    found = []
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for info in archive:
            file = archive.extractfile(info)
            found.append((info, file.read() if file else b""))
    return found


def deb822(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    last = ""
    for line in text.splitlines():
        if line[:1] in (" ", "\t"):
            fields[last] += "\n" + line[1:]
        else:
            last, colon, value = line.partition(": ")
            assert colon, f"no field: {line!r}"
            assert last not in fields, f"twice: {last}"
            fields[last] = value
    return fields


def read_ipk(data: bytes) -> Read:
    outer = untar(gunzip(data))
    names = [info.name.removeprefix("./") for info, _ in outer]
    parts = {name: content for name, (_, content) in zip(names, outer, strict=True)}
    assert parts["debian-binary"] == b"2.0\n"
    control, tree = (
        {info.name.removeprefix("./"): (info, content) for info, content in untar(gunzip(parts[name]))}
        for name in ("control.tar.gz", "data.tar.gz")
    )
    return Read(
        deb822(control["control"][1].decode()),
        {name: info for name, (info, _) in control.items()},
        {name: content.decode() for name, (_, content) in control.items()},
        {name: info for name, (info, _) in tree.items()},
        {name: content for name, (_, content) in tree.items()},
        names,
    )
