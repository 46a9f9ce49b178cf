"""Engines for tests: a few lists and a piece of UCI, compiled in memory.

    engine = engine_of({"ads": "ads.example\\n", "ok": "good.ads.example\\n"}, allow=("ok",))
    engine = engine_of({"adult": [...]}, config="config profile 'kids'\\n\\tlist block 'adult'\\n...")

Without a profile in `config`, group 0 blocks every list that is not in `allow`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from policy.compile import compile_in_memory
from policy.engine import Engine
from policy.image import Scope
from policy.override import Override
from policy.rules import load_policy
from policy.syntax import Format
from policy.uci import parse
from policy.zone import parse_zone


def engine_of(
    lists: Mapping[str, bytes | str | Iterable[str]] | None = None,
    *,
    allow: Iterable[str] = (),
    important: Iterable[str] = (),
    categories: Mapping[str, str] | None = None,
    formats: Mapping[str, Format] | None = None,
    scope: Scope | None = None,
    config: str = "",
    zone: str = "",
    overrides: Iterable[Override] = (),
    generation: int = 1,
) -> Engine:
    """An engine over lists (name -> text or lines) and a configuration; `scope` as in `config list`'s option."""
    image, _ = compile_in_memory(
        lists or {}, allow=allow, important=important, categories=categories, formats=formats, scope=scope
    )
    return Engine(
        [image], load_policy(parse(config)), zone=parse_zone(zone), overrides=overrides, generation=generation
    )
