"""What every check is given: the configuration, what the agent says, and where to look. A thin shell."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from typing import Any, Final

from policy.config import Config
from policy.errors import GatehouseError

ANSWER_S: Final = 5.0
MAX_ANSWER: Final = 4 << 20


class SilentError(GatehouseError):
    """The agent does not answer, or refuses."""


def ask(config: Config, request: Mapping[str, object], timeout_s: float = ANSWER_S) -> list[dict[str, Any]]:
    """One request to the control socket; its rows. Raises: SilentError."""
    path = os.path.join(config.main.run_dir, "control")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(timeout_s)
            link.connect(path)
            link.sendall(json.dumps(request).encode() + b"\n")
            return _rows(link, path)
    except TimeoutError:
        raise SilentError(f"{path}: no answer within {timeout_s:g} s") from None
    except OSError as error:
        raise SilentError(f"{path}: {error.strerror or error}") from None


def _rows(link: socket.socket, path: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with link.makefile("rb") as lines:
        for line in lines:
            answer = json.loads(line[:MAX_ANSWER])
            if "error" in answer:
                raise SilentError(str(answer["error"]))
            if "end" in answer:
                return rows
            rows.append(answer["row"])
    raise SilentError(f"{path}: the agent broke off in the middle of its answer")


class Bedside:
    """One run. `root` is where sysfs and procfs are looked for: a test has trees of its own."""

    def __init__(self, config: Config, *, root: str = "/", now_s: float) -> None:
        self.config = config
        self.root = root
        self.now_s = now_s
        """Wall seconds since 1970, as this machine's clock says."""
        self.silence = ""
        """Why the agent did not answer; empty: it did."""
        self.status: Mapping[str, Any] = {}
        try:
            self.status = ask(config, {"do": "status"})[0]
        except (SilentError, IndexError, ValueError) as error:
            self.silence = str(error) or "no answer"

    def path(self, path: str) -> str:
        """Below `root`."""
        return os.path.join(self.root, path.lstrip("/"))

    def read(self, path: str) -> str | None:
        """A small text file of the kernel's; None: it is not there or cannot be read."""
        try:
            with open(self.path(path), encoding="ascii", errors="replace") as file:
                return file.read(1 << 20)
        except OSError:
            return None
