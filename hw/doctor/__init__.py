"""The self-test. `hw.doctor.run(config)` gives a list of findings; see docs/doctor.md for each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hw.doctor.finding import Finding

if TYPE_CHECKING:
    from policy.config import Config

__all__ = ["Finding", "run"]


def run(config: Config, *, root: str = "/", now_s: float | None = None) -> list[Finding]:
    """Every check there is, in a few seconds: `hw.doctor.rounds.run`.

    Imported when it is called: the agent holds findings all its life, and needs neither TLS nor packets for that.
    """
    from hw.doctor import rounds

    return rounds.run(config, root=root, now_s=now_s)
