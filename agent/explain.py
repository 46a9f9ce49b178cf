"""`gatehouse explain NAME --client X --at T`: which rule decided, and from which list and line.

Holds the search for the line in the lists' own text, which the image does not keep, and the words of the command line.
Rule: reads only; it asks the same engine that the hooks have.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Iterator

from agent.compiler import chunks_of, list_path, tree_files
from policy.compile import entries_of
from policy.engine import Engine
from policy.errors import ConfigError, ListError
from policy.explain import Explanation, explain
from policy.image import Scope
from policy.names import parse_name
from policy.rules import ListConfig, Policy
from policy.syntax import Entry, Format, Include


def explain_name(engine: Engine, name: str, client: str, now_s: float | None, *, list_dir: str = "") -> Explanation:
    """Explain a name for a client: an address, a MAC address, `group:NAME`, or empty for the default group.

    `list_dir`: where the lists' text lies, if not in the configured place.
    Raises: ConfigError if the name or the client makes no sense.
    """
    try:
        asked = parse_name(name.encode())
    except ListError as error:
        raise ConfigError(f"explain: expected a domain name, got {name!r}: {error}") from None
    group = group_for(engine, client)
    return explain(engine, asked, group, now_s, line_finder(engine.policy, list_dir or engine.policy.list_dir))


def group_for(engine: Engine, client: str) -> int:
    """The group of a client as a person names one. Raises: ConfigError."""
    if not client:
        return 0
    if client.startswith("group:"):
        found = engine.group_index(client.removeprefix("group:"))
        if found is None:
            known = ", ".join(group.name for group in engine.policy.groups)
            raise ConfigError(f"explain: no group is called {client.removeprefix('group:')!r}; there is {known}")
        return found
    if re.fullmatch(r"(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}", client):
        return engine.group_of(b"", bytes.fromhex(re.sub("[:-]", "", client)))
    try:
        return engine.group_of(ipaddress.ip_address(client).packed)
    except ValueError:
        raise ConfigError(f"explain: expected an address, a MAC address or group:NAME, got {client!r}") from None


def line_finder(policy: Policy, list_dir: str) -> Callable[[str, bytes], tuple[str, int] | None]:
    """A function that finds the file and line of an entry. Reads the list's text: seconds for a million lines."""
    configs = {config.name: config for config in policy.lists}

    def find(slot: str, name: bytes) -> tuple[str, int] | None:
        listed, _, category = slot.partition("/")
        config = configs.get(listed)
        if config is None:
            return None  # it came in a bundle, compiled
        for path, format_ in _files(config, list_path(config, list_dir), category):
            found = _find_line(path, format_, config.scope, name)
            if found is not None:
                return found
        return None

    return find


def _files(config: ListConfig, path: str, category: str) -> Iterator[tuple[str, Format]]:
    if os.path.isdir(path):
        yield from ((file, format_) for name, file, format_ in tree_files(config, path) if name == category)
    else:
        yield path, config.format


def _find_line(path: str, format_: Format, scope: Scope | None, name: bytes, depth: int = 0) -> tuple[str, int] | None:
    includes: list[str] = []
    try:
        for number, entry in entries_of(chunks_of(path), format_, scope):
            if isinstance(entry, Entry):
                if entry.name == name and entry.pattern is None:
                    return path, number
            elif isinstance(entry, Include):
                includes.append(entry.name)
    except OSError:
        return None
    for included in includes:
        if depth < 8:
            inner = _find_line(os.path.join(os.path.dirname(path), included), format_, scope, name, depth + 1)
            if inner is not None:
                return inner
    return None
