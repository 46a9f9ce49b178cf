"""What OpenWrt's feed says of Python: which standard modules lie in which package. And our packages, built once."""

import atexit
import functools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SPLIT = {
    "python3-asyncio": {"asyncio", "_asyncio"},
    "python3-cgi": {"cgi"},
    "python3-cgitb": {"cgitb"},
    "python3-codecs": {
        *("unicodedata", "_codecs_cn", "_codecs_hk", "_codecs_iso2022", "_codecs_jp", "_codecs_kr", "_codecs_tw"),
        "_multibytecodec",
    },
    "python3-ctypes": {"ctypes", "_ctypes"},
    "python3-dbm": {"dbm", "_dbm", "_gdbm"},
    "python3-decimal": {"decimal", "_decimal"},
    "python3-distutils": {"distutils"},
    "python3-email": {"email"},
    "python3-lib2to3": {"lib2to3"},
    "python3-logging": {"logging"},
    "python3-lzma": {"lzma", "_lzma"},
    "python3-multiprocessing": {"multiprocessing", "_multiprocessing"},
    "python3-ncurses": {"curses", "_curses", "_curses_panel"},
    "python3-openssl": {"_ssl", "_hashlib"},
    "python3-pydoc": {"pydoc", "pydoc_data", "doctest"},
    "python3-readline": {"readline"},
    "python3-sqlite3": {"sqlite3", "_sqlite3"},
    "python3-unittest": {"unittest"},
    "python3-urllib": {"urllib"},
    "python3-uuid": {"uuid", "_uuid"},
    "python3-venv": {"venv"},
    "python3-xml": {"xml", "xmlrpc", "pyexpat", "_elementtree"},
    "nowhere": {"ensurepip", "idlelib", "tkinter", "_tkinter", "turtle", "turtledemo", "webbrowser", "test"},
}
"""lang/python/python3/files/python3-package-*.mk of the packages feed, branches 23.05 to 25.12. What is in none of
them is in python3-base or python3-light. (`ssl` and `hashlib` are in light; their C parts are not.)"""
LIBRARIES = {
    "python3-msgpack": {"msgpack"},
    "python3-paho-mqtt": {"paho"},
    "python3-dnslib": {"dnslib"},
    "python3-pyserial": {"serial"},
}
OPTIONAL = {"nacl", "cryptography", "netfilterqueue", "pyroute2", "sqlite_utils"}
"""Used where they are; each says in words what is missing where they are not."""


def blocked(depends: Iterable[str]) -> set[str]:
    """Top-level modules that a router with these packages, and no others, does not have."""
    have = set(depends)
    parts = {**SPLIT, **LIBRARIES}
    return OPTIONAL | {module for package, modules in parts.items() if package not in have for module in modules}


@functools.cache
def build(python: str = sys.executable) -> Path:
    """The directory that `make package` fills."""
    out = Path(tempfile.mkdtemp(prefix="gatehouse-package-"))
    atexit.register(shutil.rmtree, out)
    subprocess.run(
        [sys.executable, "-I", str(ROOT / "packaging/build"), "--out", str(out), "--python", python],
        check=True,
        capture_output=True,
    )
    return out
