"""Reads a feed's Makefile: only what our own say, in the way they say it. No make, no shell.

One place says what a package depends on, keeps and runs: packaging/openwrt/*/Makefile. The SDK reads it with make, this
reads it for the build without an SDK.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

_DEFINE: Final = re.compile(r"^define (\S+)\n(.*?)^endef$", re.MULTILINE | re.DOTALL)
_VARIABLE: Final = re.compile(r"^\s*([A-Z0-9_]+):=[ \t]*(.*)$", re.MULTILINE)
_CALL: Final = re.compile(r"^\s*\$\(call (Package/[^)]+)\)$", re.MULTILINE)


class RecipeError(Exception):
    """A Makefile says something that is not understood here."""


class Recipe(NamedTuple):
    """One package."""

    name: str
    version: str
    """With the release: `0.1.0-r1`."""
    fields: Mapping[str, str]
    """TITLE, DEPENDS, SECTION, USERID, ... as written."""
    description: tuple[str, ...]
    conffiles: tuple[str, ...]
    scripts: Mapping[str, str]
    """`prerm`, `postinst`, ... -> text, make's `$$` undone."""
    variables: Mapping[str, str]
    """Of the whole Makefile."""

    @property
    def depends(self) -> tuple[str, ...]:
        """Names of packages. Raises: RecipeError for a dependency with a condition."""
        words = self.fields.get("DEPENDS", "").split()
        for word in words:
            if ":" in word or "@" in word:
                raise RecipeError(f"{self.name}: DEPENDS: {word}: conditions are not understood here")
        return tuple(word.lstrip("+") for word in words)


def read_recipes(text: str) -> dict[str, Recipe]:
    """All packages of one Makefile, by name. Raises: RecipeError."""
    text = text.replace("\\\n", " ")
    blocks = {name: body for name, body in _DEFINE.findall(text)}
    outside = _DEFINE.sub("", text)
    variables = {name: value.strip() for name, value in _VARIABLE.findall(outside)}
    for needed in ("PKG_VERSION", "PKG_RELEASE", "PKG_LICENSE", "PKG_MAINTAINER"):
        if needed not in variables:
            raise RecipeError(f"{needed} is not set")
    found = {}
    for name in re.findall(r"\$\(call BuildPackage,([^)]+)\)", outside):
        if name.endswith("-src"):
            continue
        if f"Package/{name}" not in blocks:
            raise RecipeError(f"{name}: no `define Package/{name}`")
        found[name] = Recipe(
            name,
            f"{variables['PKG_VERSION']}-r{variables['PKG_RELEASE']}",
            _fields(blocks, f"Package/{name}"),
            tuple(line.strip() for line in blocks.get(f"Package/{name}/description", "").splitlines() if line.strip()),
            tuple(blocks.get(f"Package/{name}/conffiles", "").split()),
            {
                kind: blocks[f"Package/{name}/{kind}"].replace("$$", "$")
                for kind in ("preinst", "postinst", "prerm", "postrm")
                if f"Package/{name}/{kind}" in blocks
            },
            variables,
        )
    return found


def _fields(blocks: Mapping[str, str], name: str) -> dict[str, str]:
    body = blocks[name]
    fields: dict[str, str] = {}
    for called in _CALL.findall(body):
        fields |= _fields(blocks, called)
    return fields | {key: value.strip() for key, value in _VARIABLE.findall(body)}
