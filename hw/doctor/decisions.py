"""Checks of what decides: the compiled image, and what the agent says of it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

from hw.doctor.bedside import Bedside
from hw.doctor.finding import Finding, absent
from policy.errors import ConfigError, ImageError
from policy.image import Image
from policy.rules import load_policy


def settings(bed: Bedside) -> Iterator[Finding]:
    """The file has been read, or there would be no test; its lists, groups and rules are read here."""
    try:
        load_policy(bed.config.policy)
    except ConfigError as error:
        yield Finding("config", False, str(error), "gatehouse check")
    else:
        yield Finding("config", True, "no mistake found")


def image(bed: Bedside) -> Iterator[Finding]:
    """Is each image whole, from the first octet to the last?"""
    try:
        policy = load_policy(bed.config.policy)
    except ConfigError:
        yield absent("policy", "not tried: see config")
        return
    paths = [policy.table]
    paths += [os.path.join(bed.config.main.state_dir, f"{bundle.name}.bundle.gp") for bundle in policy.bundles]
    names, wrong = 0, []
    for path in paths:
        try:
            with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                found = Image(data)  # which checks both sums
                names += found.header.names
                del found
        except (ImageError, OSError, ValueError, BufferError) as error:
            wrong.append(f"{path}: {getattr(error, 'strerror', None) or error}")
    if wrong:
        mend = "gatehouse reload (compiles it anew; until then the image before it decides, or none)"
        yield Finding("policy", False, "; ".join(wrong), mend)
    else:
        yield Finding("policy", True, f"{names} names in {len(paths)} image{'s' if len(paths) > 1 else ''}, all whole")


def health(bed: Bedside) -> Iterator[Finding]:
    """What else the agent complains of."""
    if bed.silence:
        yield absent("status", "not tried: the agent does not answer")
        return
    why = [str(line) for line in bed.status.get("why", ()) if not str(line).startswith("self-test: ")]
    if why:
        yield Finding("status", False, "; ".join(why), "gatehouse status")
    else:
        yield Finding("status", True, "protecting")
