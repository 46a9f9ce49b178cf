"""Compiles sources to byte code, each beside where its source was: `DIRECTORY OUT PREFIX`, in a process of its own.

A process of its own, because octets of byte code depend on which strings the compiling process has interned before;
so the order is fixed, PYTHONHASHSEED is set by the caller, and nothing else is imported here.
"""

import os
import py_compile
import sys


def main(directory: str, out: str, prefix: str) -> None:
    """Every .py below `directory` becomes a .pyc below `out`; tracebacks name it as a file below `prefix`."""
    for parent, directories, names in os.walk(directory):
        directories.sort()
        for name in sorted(names):
            if not name.endswith(".py"):
                continue
            source = os.path.join(parent, name)
            below = os.path.relpath(source, directory)
            # Unchecked: there is no source on the router to check against, nor a clock that could be trusted.
            py_compile.compile(
                source,
                os.path.join(out, below + "c"),
                os.path.join(prefix, below),
                doraise=True,
                optimize=2,  # docstrings are for who reads the source; in memory each process would pay for them
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
