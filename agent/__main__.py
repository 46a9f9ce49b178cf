"""ROLE or command: one door for procd, the launcher and people.

    launch                 start every process and keep them running
    agent | dns | nfq | uplink   one process (procd and the launcher start these)
    compile                lists to policy image, once (the agent starts this)
    uninstall STEP         what the package's removal script asks for
    console                the serial console on its line, or with `--line -` on this terminal
    anything else          the command line tool, `agent.cli`

Rule: a role imports only what it needs, because every import is RAM on the router.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

from policy.config import Config, load
from policy.errors import ConfigError, GatehouseError

ROLES: Final = ("launch", "agent", "dns", "nfq", "uplink", "compile")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one role or one command. Returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words and words[0] == "uninstall":
            from agent import uninstall

            return uninstall.run(read_config(_role_options(words[1:])[0]), *words[1:2])
        if words and words[0] == "console":
            from agent import console

            return console.main(words[1:])
        if words and words[0] in ROLES:
            return _run_role(words[0], *_role_options(words))
        from agent import cli

        return cli.main(words)
    except GatehouseError as error:
        print(f"gatehouse: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `gatehouse query | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def read_config(path: str) -> Config:
    """Read a configuration file.

    Raises: ConfigError, also where the file cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return load(file.read(), os.path.basename(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; name the file with --config") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8 text, octet {error.start} is not") from None


def _role_options(words: list[str]) -> tuple[str, int]:
    """`--config PATH --worker N`, in any order. No argparse: it costs half a megabyte in every hook."""
    options = {"--config": "/etc/config/gatehouse", "--worker": "0"}
    rest = words[1:]
    while rest:
        if rest[0] not in options or len(rest) < 2:
            raise ConfigError(f"{words[0]}: expected --config PATH or --worker NUMBER, got {rest[0]!r}")
        options[rest[0]] = rest[1]
        rest = rest[2:]
    if not options["--worker"].isdecimal():
        raise ConfigError(f"{words[0]}: --worker: expected a number, got {options['--worker']!r}")
    return options["--config"], int(options["--worker"])


def _run_role(role: str, path: str, worker: int) -> int:
    _name_process(f"gh-{role}-{worker}" if role in ("dns", "nfq") else f"gh-{role}")
    if role != "launch":
        os.umask(0o077)
    config = read_config(path)
    match role:
        case "launch":
            from agent import launch

            return launch.run(config, path, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        case "agent":
            from agent import serve

            return serve.run(config, path)
        case "uplink":
            from agent import privileges
            from agent.uplink import run

            privileges.drop(role, config)
            return run.run(config, path)
        case "compile":
            from agent import policy_source, privileges

            privileges.drop(role, config)
            return policy_source.compile_now(config)
        case _:
            from agent import hooks

            return hooks.run(role, config, path, worker)


def _name_process(name: str) -> None:
    """What `ps` and `top` show; the kernel keeps 15 characters."""
    try:
        with open("/proc/self/comm", "w", encoding="ascii") as file:
            file.write(name[:15])
    except OSError:  # a jail without /proc
        pass


if __name__ == "__main__":
    raise SystemExit(main())
