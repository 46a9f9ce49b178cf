"""Makes this interpreter one of a router's: the modules named in `blocked` beside this file are not there."""

import sys
from pathlib import Path


class Blocker:
    """First in sys.meta_path."""

    def __init__(self, names: set[str], wanted: set[str] | None = None) -> None:
        """`wanted`: only note who is asked for."""
        self.names, self.wanted = names, wanted

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        top = name.partition(".")[0]
        if top in self.names and self.wanted is not None:
            self.wanted.add(top)
        elif top in self.names:
            raise ModuleNotFoundError(f"No module named {name!r} on this router", name=name)


def install(names: set[str], wanted: set[str] | None = None) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in names:
            del sys.modules[name]
    sys.meta_path.insert(0, Blocker(names, wanted))  # type: ignore[arg-type]


_LIST = Path(__file__).with_name("blocked")
if _LIST.exists():
    install(set(_LIST.read_text().split()))
