"""The notice: a page that tells the venue's users what is recorded of them, made from the running legal profile.

`render` makes it, `publish` puts it where it is served, `trouble` says whether what is published is what must be. The
page carries a fingerprint of everything that it states; words around it may be changed and translated, that not.
"""

from __future__ import annotations

import os
import re
from typing import Final

from nfq.page import escape
from policy.config import Config
from policy.digest import sha256
from policy.errors import ConfigError, StorageError
from policy.legal import Profile

MAX_PAGE: Final = 1 << 18
_MARK: Final = re.compile(rb'<meta name="gatehouse-notice" content="([0-9a-f]{64})">')
_TITLES: Final = {
    "session": "When you use the network",
    "registration": "What you are asked when you register (sealed: only the supervising authority can read it)",
    "dns": "Names of the sites you visit, as your device looks them up",
    "flow": "Connections of your device",
    "block": "Sites that were blocked",
    "nat": "Which outside address and ports your device had",
}
_FIELDS: Final = {
    "account": "your account",
    "phone": "your telephone number (sealed)",
    "room": "your room",
    "mac": "the hardware address of your device",
    "addresses": "the internet addresses of your device",
    "name": "name",
    "document": "identity document (sealed)",
    "note": "a note",
    "client": "the address of your device",
    "session": "whose they are",
    "answers": "their addresses",
    "path": "addresses of pages, where they travel in clear text, without what you typed",
    "destination": "the address at the other end",
    "source_port": "the port of your device",
    "outside": "the outside address",
    "ports": "the ports",
}


def fingerprint(profile: Profile, config: Config) -> str:
    """Of everything that the notice states, in hexadecimal."""
    days = f"{config.ring.promised_days} {config.ring.maximum_days}"
    stated = "\n".join((profile.sha256, days, config.notice.controller, config.notice.contact, config.main.venue))
    return sha256(stated.encode()).hexdigest()


def path_of(config: Config) -> str:
    """Where the published page is."""
    return config.notice.file or os.path.join(config.main.state_dir, "notice.html")


def trouble(profile: Profile, config: Config) -> str:
    """Why nothing may be captured; empty: the published notice is the right one."""
    path = path_of(config)
    mend = "publish it with `gatehouse notice publish`; until then nothing is recorded"
    try:
        with open(path, "rb") as file:
            marks = _MARK.findall(file.read(MAX_PAGE))
    except FileNotFoundError:
        return f"notice: {path} is not there; {mend}"
    except OSError as error:
        return f"notice: {path}: {error.strerror}; {mend}"
    if [mark.decode() for mark in marks] != [fingerprint(profile, config)]:
        return f"notice: {path} is not the one that goes with legal profile {profile.name}; {mend}"
    return ""


def publish(profile: Profile, config: Config) -> str:
    """Make it and put it in its place. Returns where. Raises: ConfigError, StorageError."""
    for name in ("controller", "contact"):
        if not getattr(config.notice, name):
            raise ConfigError(f"gatehouse.notice.{name}: expected who records, and whom to ask: the notice must say it")
    path = path_of(config)
    unfinished = f"{path}.tmp"
    try:
        with open(unfinished, "w", encoding="utf-8") as file:
            file.write(render(profile, config))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(unfinished, 0o644)
        os.replace(unfinished, path)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None
    return path


def render(profile: Profile, config: Config) -> str:
    """The page: plain HTML, no script, nothing from elsewhere."""
    kept, left = [], []
    for name, record in profile.classes.items():
        title = escape(_TITLES[name])
        if record.keep == "none" or (record.keep == "blocked" and profile.classes["block"].keep == "none"):
            left.append(f"<li>{title}</li>")
            continue
        if record.keep == "blocked":
            left.append(f"<li>{title}, unless they were blocked</li>")
            continue
        rows = "".join(
            f"<li>{escape(_FIELDS[field])} <small>({escape(source)})</small></li>"
            for field, source in record.fields.items()
        )
        kept.append(f"<h3>{title}</h3><p><small>{escape(record.source)}</small></p><ul>{rows}</ul>")
    longest = f"at most {config.ring.maximum_days} days" if config.ring.maximum_days else "until their space is needed"
    erase = (
        "You may ask for it to be erased." if profile.may_erase else "The law does not allow to erase it on request."
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="gatehouse-notice" content="{fingerprint(profile, config)}">
<title>What this network records</title>
<style>body {{ font: 1em/1.5 sans-serif; max-width: 40em; margin: 2em auto; padding: 0 1em }}</style>
</head>
<body>
<h1>What this network records</h1>
<p>By: <b>{escape(config.notice.controller)}</b>. Questions: {escape(config.notice.contact)}.</p>
<p>Rules: {escape(profile.title)}, version {profile.version}.</p>
<h2>What is recorded</h2>
{"".join(kept) or "<p>Nothing of you.</p>"}
<p>It is kept for {config.ring.promised_days} days, {longest}
<small>({escape(profile.days_source)})</small>. {erase} <small>({escape(profile.erase_source)})</small></p>
<h2>What is not recorded</h2>
<ul>{"".join(left)}
<li>what is in the pages that you visit, what you write, what you download</li>
<li>anything inside an encrypted connection: it is not opened</li></ul>
<p>This page is made by the device that records, from the rules that it runs. It is no legal advice.</p>
</body>
</html>
"""
