"""Questions to the agent over its control socket, as `agent.cli.ask`, without what a person's tool needs of memory."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any, Final

from policy.errors import GatehouseError

TIMEOUT_S: Final = 30.0
"""The agent answers within a turn of its loop; a long answer comes in pieces."""


class AwayError(GatehouseError):
    """The agent does not answer, or broke off."""


class RefusedError(GatehouseError):
    """The agent refused; its own words."""


def ask(path: str, request: Mapping[str, object]) -> Iterator[Any]:
    """The rows of an answer. `path`: of the control socket. Raises: AwayError, RefusedError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(TIMEOUT_S)
        try:
            link.connect(path)
            link.sendall(json.dumps(request).encode() + b"\n")
            with link.makefile("rb") as lines:
                for line in lines:
                    answer = json.loads(line)
                    if "error" in answer:
                        raise RefusedError(str(answer["error"]))
                    if "end" in answer:
                        return
                    yield answer["row"]
        except (OSError, ValueError) as error:
            raise AwayError(f"{path}: {error}") from None
    raise AwayError(f"{path}: the agent broke off in the middle of its answer")
