"""What the hooks may read, who are somebody else than the agent: handed to their group, and nothing besides.

Hooks need the policy's image, overrides, bundles' rules, legal profiles and the (public) keys that sign those, and of
the configuration what is not a secret. The ring, the register, secret keys and the control socket stay root's.
"""

from __future__ import annotations

import os
import sys
from typing import Final

from agent import privileges
from agent.decider import BUNDLE_SUFFIX, OVERRIDES_FILE, RULES_SUFFIX
from policy.config import POLICY_SECTIONS, Config
from policy.errors import GatehouseError
from policy.rules import load_policy
from policy.uci import parse, render

CONFIG_FILE: Final = "hooks.conf"
_SECTIONS: Final = frozenset({"gatehouse", "dns", "nfq", "ring", "session"}) | POLICY_SECTIONS


def config_path(config: Config) -> str:
    """The hooks' copy of the configuration."""
    return os.path.join(config.main.run_dir, CONFIG_FILE)


class Shared:
    """Hands files over. Does nothing where the hooks are who the agent is."""

    def __init__(self, config: Config, path: str, event_path: str) -> None:
        """`path`: the configuration's."""
        self._path = path
        self._event_path = event_path
        identity = privileges.hook_identity(config)
        self._gid = -1 if identity is None else identity.gid
        self._user = config.main.user if identity is not None else str(os.geteuid())

    @property
    def whose(self) -> str:
        """Who the hooks are, for status."""
        return "root" if self._gid < 0 and os.geteuid() == 0 else self._user

    def publish(self, config: Config) -> None:
        """The configuration has just been read: hand it over, and everything that it names."""
        self.open(config)
        if self._gid >= 0:
            try:
                self._write_config(config)
            except (OSError, GatehouseError) as error:  # a full tmpfs, somebody in mid-edit: the copy before holds
                print(f"agent: {config_path(config)}: {error}", file=sys.stderr, flush=True)

    def open(self, config: Config) -> None:
        """Hand over the files that are there now: before the hooks are told to read again."""
        if self._gid < 0:
            return
        main = config.main
        self._hand(main.run_dir, 0o711 if config.roles else 0o710)  # those with a role come to the control socket
        self._hand(main.state_dir, 0o710)
        self._hand(self._event_path, 0o660)
        policy = load_policy(config.policy)
        for table in (policy.table, policy.table + ".old"):
            self._hand(table, 0o640)
        self._hand(os.path.join(main.state_dir, OVERRIDES_FILE), 0o640)
        for bundle in policy.bundles:
            for suffix in (BUNDLE_SUFFIX, RULES_SUFFIX):
                self._hand(os.path.join(main.state_dir, bundle.name + suffix), 0o640)
        for name in ("profiles", "keys"):
            self._hand_tree(os.path.join(main.state_dir, name))

    def _write_config(self, config: Config) -> None:
        with open(self._path, encoding="utf-8") as file:
            sections = [section for section in parse(file.read()) if section.type in _SECTIONS]
        path = config_path(config)
        with open(os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
            out.write(render(sections))
        self._hand(path + ".tmp", 0o640)
        os.replace(path + ".tmp", path)

    def _hand_tree(self, directory: str) -> None:
        self._hand(directory, 0o750)
        try:
            names = os.listdir(directory)
        except OSError:
            return
        for name in names:
            self._hand(os.path.join(directory, name), 0o640)

    def _hand(self, path: str, mode: int) -> None:
        try:
            found = os.stat(path)
            if found.st_gid != self._gid:
                os.chown(path, -1, self._gid)
            if found.st_mode & 0o777 != mode:
                os.chmod(path, mode)
        except OSError:  # not there, or on a file system without owners: then the hooks say what they miss
            pass
