"""Imports everything that one of our processes ever imports, at once: MODULE BLOCKED... Says what failed, where.

Every import statement of every module of ours that can be reached from MODULE is carried out, those within functions
too: they are what fails in the field, weeks later. With `record` behind it, it blocks nothing, and says who was asked
for. Run with -I -S, so that nothing is loaded beforehand.
"""

import ast
import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OURS = {"agent", "bpf", "dns", "hw", "nfq", "policy", "storage"}
NOT_SHIPPED = ("agent.receiver", "hw.laptop")


def imports(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, module) of each import statement; what is for type checkers only is left out."""
    found: list[tuple[int, str]] = []
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.lineno, node.module))
            if node.module.partition(".")[0] in OURS:
                found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
        pending += ast.iter_child_nodes(node)
    return found


def main(entry: str, packages: str, names: set[str], optional: set[str], wanted: set[str] | None) -> int:
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    sys.path.append(packages)
    import blocker

    blocker.install(names, wanted)
    pending, seen, failed = [entry], {entry}, []
    while pending:
        module = pending.pop()
        try:
            file = importlib.import_module(module).__file__
        except ModuleNotFoundError as error:
            if module == error.name or not error.name:  # a name in a module, not a module
                continue
            failed.append(f"{module}: {error.name}")
            continue
        if file is None:
            continue
        for line, name in imports(ast.parse(Path(file).read_text(encoding="utf-8"))):
            if name in seen or name == "__main__" or name.startswith(NOT_SHIPPED):
                continue
            seen.add(name)
            if name.partition(".")[0] in OURS:
                pending.append(name)
                continue
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                top = (error.name or "").partition(".")[0]
                # Another Python's name for a module of this one's is tried first and missed.
                if top not in optional and top in names | OURS:
                    failed.append(f"{module}:{line}: {name} needs {error.name}")
    # A host name that is looked up is encoded by this; no import statement says so.
    try:
        importlib.import_module("encodings.idna")
    except ModuleNotFoundError as error:
        failed.append(f"a host name's look-up needs {error.name}")
    print("\n".join(failed if wanted is None else sorted(wanted)))
    return 1 if failed else 0


if __name__ == "__main__":
    wanted: set[str] | None = set() if sys.argv[5:] == ["record"] else None
    sys.exit(main(*sys.argv[1:3], set(sys.argv[3].split(",")), set(sys.argv[4].split(",")), wanted))
