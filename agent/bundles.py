"""Takes signed policy bundles in, and makes them (at the centre): files and hashes. Whom to trust: policy.bundle.

    outcome = apply_bundle(config, fetch, state_dir, key_dir, now_s=..., at_ms=...)
    fetch = directory_source("/mnt/usb/bundle") or agent.lists.url_source("https://…/bundle/")

A bundle is a directory of plain files: `manifest`, `manifest.sig`, and those that the manifest names.
Rule: what runs is replaced by a rename, after every hash holds; any failure leaves it untouched and gives a record.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from agent.compiler import CHUNK, chunks_of, swap_in
from agent.decider import BUNDLE_SUFFIX, RULES_SUFFIX, map_image
from policy.bundle import (
    MAX_MANIFEST,
    MAX_SIGNATURE,
    BundlePart,
    Manifest,
    PublicKey,
    Running,
    Sign,
    Verify,
    check_successor,
    choose,
    open_manifest,
    read_public_key,
    sign_manifest,
    write_manifest,
)
from policy.delta import apply_delta, make_delta
from policy.digest import sha256
from policy.errors import BundleError, ConfigError, ImageError
from policy.event import Maintenance
from policy.rules import BundleConfig, load_policy
from policy.uci import parse

STATE_SUFFIX: Final = ".bundle.json"
MANIFEST: Final = "manifest"
SIGNATURE: Final = "manifest.sig"
FROM_BUNDLES: Final = frozenset({"profile", "schedule", "calendar", "rule", "safesearch"})
"""Section types that a bundle may bring. Who is in which group, and where files lie, is the venue's own business."""
MAX_RULES: Final = 1 << 20

Fetch = Callable[[str, int], Iterator[bytes]]
"""File name and the most octets wanted -> pieces. Raises OSError or BundleError."""


class BundleOutcome(NamedTuple):
    """What came of one try."""

    changed: bool
    """The hooks must reload."""
    record: Maintenance
    fetched: int = 0
    """Octets of the image or delta."""
    is_delta: bool = False


def directory_source(path: str) -> Fetch:
    """A bundle on a stick, or in a test."""

    def fetch(name: str, limit: int) -> Iterator[bytes]:
        return chunks_of(os.path.join(path, name))

    return fetch


def apply_bundle(
    config: BundleConfig,
    fetch: Fetch,
    state_dir: str,
    key_dir: str,
    *,
    now_s: int,
    at_ms: int,
    actor: str = "policy",
    force: bool = False,
    verify: Verify | None = None,
) -> BundleOutcome:
    """Take in a bundle if it is signed, whole, and newer than what runs. Never raises for what the peer sent.

    `verify` None: policy.signature's.
    `force`: a person at the device wants an older version; that it was forced is on record.
    """
    running = read_running(config.name, state_dir)
    old = str(running.version) if running else ""
    try:
        manifest = _manifest(config, fetch, key_dir, verify)
        how = check_successor(manifest, running, name=config.name, channel=config.channel, force=force)
        new = str(manifest.version)
        if how == "same":
            return BundleOutcome(False, _record(at_ms, actor, config.name, old, new, "same", manifest.signer))
        with _Staged(config.name, state_dir) as staged:
            fetched, is_delta = staged.fetch_image(manifest, fetch, running)
            staged.fetch_rules(manifest, fetch)
            staged.put_in_place()
        _write_state(config.name, manifest, state_dir, now_s)
        result = "ok" if how == "new" else "ok, roll-back forced"
        detail = f"{'delta' if is_delta else 'full'}, {fetched} octets, signed by {manifest.signer}"
        return BundleOutcome(True, _record(at_ms, actor, config.name, old, new, result, detail), fetched, is_delta)
    except (BundleError, ImageError, ConfigError, OSError) as error:
        return BundleOutcome(False, _record(at_ms, actor, config.name, old, "", "refused", str(error)))


def read_running(name: str, state_dir: str) -> Running | None:
    """Version and hash of what runs. The image's own header counts too: its state file may be older, or gone."""
    version, sha256 = 0, b""
    try:
        with open(os.path.join(state_dir, name + STATE_SUFFIX), encoding="utf-8") as file:
            state = json.load(file)
        version, sha256 = int(state["version"]), bytes.fromhex(state["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        built = map_image(_image_path(name, state_dir)).header.generation
    except (OSError, ImageError, ValueError):
        return Running(version, b"") if version else None  # no image: any version from this one on may come
    if built > version or not sha256:
        version, sha256 = max(built, version), _sha256_of(_image_path(name, state_dir))
    return Running(version, sha256) if version else None


def read_keys(fingerprints: Iterable[str], key_dir: str) -> dict[str, PublicKey]:
    """The public keys that a bundle's configuration names; a file each, called by its fingerprint, as opkg's are."""
    keys = {}
    for fingerprint in fingerprints:
        try:
            with open(os.path.join(key_dir, fingerprint), "rb") as file:
                key = read_public_key(file.read(MAX_SIGNATURE))
        except FileNotFoundError:
            continue
        if key.fingerprint == fingerprint:
            keys[fingerprint] = key
    return keys


def publish(
    directory: str,
    *,
    name: str,
    channel: str,
    version: int,
    created_s: int,
    image_path: str,
    base_paths: Sequence[str],
    rules: bytes,
    number: bytes,
    secret: bytes,
    sign: Sign,
) -> Manifest:
    """Make a bundle: the image, a delta from each base image it is kin to, the rules, manifest and signature."""
    os.makedirs(directory, exist_ok=True)
    new = map_image(image_path)
    if new.header.generation != version:
        raise BundleError(f"bundle {name!r}: the image says version {new.header.generation}, expected {version}")
    image = _publish_part(directory, f"image-{version}.gp", chunks_of(image_path))
    deltas = []
    for path in base_paths:
        old = map_image(path)
        try:
            delta = make_delta(old, new)
        except BundleError:
            continue  # not kin: those who run it fetch the full image
        file = f"delta-{old.header.generation}-{version}.gpd"
        deltas.append(_publish_part(directory, file, iter([delta]))._replace(base=_sha256_of(path)))
    part = _publish_part(directory, f"rules-{version}.uci", iter([rules])) if rules else None
    manifest = Manifest(name, channel, version, created_s, image, tuple(deltas), part, number.hex())
    octets = write_manifest(manifest)
    _publish_part(directory, MANIFEST, iter([octets]))
    _publish_part(directory, SIGNATURE, iter([sign_manifest(octets, number, secret, sign)]))
    return manifest


def _manifest(config: BundleConfig, fetch: Fetch, key_dir: str, verify: Verify | None) -> Manifest:
    if verify is None:
        from policy import signature

        verify = signature.verify
    keys = read_keys(config.keys, key_dir)
    octets = _all(fetch(MANIFEST, MAX_MANIFEST), MAX_MANIFEST, MANIFEST)
    proof = _all(fetch(SIGNATURE, MAX_SIGNATURE), MAX_SIGNATURE, SIGNATURE)
    return open_manifest(octets, proof, keys, verify)


class _Staged:
    """The files of a bundle beside those that run, until all of them are known to be good. A context manager."""

    def __init__(self, name: str, state_dir: str) -> None:
        self._name = name
        self._image_path = _image_path(name, state_dir)
        self._rules_path = os.path.join(state_dir, name + RULES_SUFFIX)
        self._image = f"{self._image_path}.{os.getpid()}.tmp"
        self._delta = self._image + ".delta"
        self._rules = self._rules_path + ".tmp"
        self._has_rules = False

    def __enter__(self) -> _Staged:
        return self

    def __exit__(self, *reason: object) -> None:
        for leftover in (self._image, self._delta, self._rules):
            if os.path.exists(leftover):
                os.unlink(leftover)

    def fetch_image(self, manifest: Manifest, fetch: Fetch, running: Running | None) -> tuple[int, bool]:
        """By delta if there is one that fits, else whole. Octets fetched, and which way."""
        part, is_delta = choose(manifest, running.sha256 if running else None)
        if is_delta:
            try:
                _fetched(part, fetch, self._delta)
                self._patch()
            except (BundleError, ImageError, OSError):
                part, is_delta = manifest.image, False  # whatever is wrong with it, the full image decides
        if not is_delta:
            _fetched(part, fetch, self._image)
        if _sha256_of(self._image) != manifest.image.sha256:
            raise BundleError(f"bundle {self._name!r}: the image has not the hash that was signed")
        says = map_image(self._image).header.generation
        if says != manifest.version:
            raise BundleError(f"bundle {self._name!r}: the image says version {says}, the manifest {manifest.version}")
        return part.size, is_delta

    def fetch_rules(self, manifest: Manifest, fetch: Fetch) -> None:
        """The rules, if there are any: read to the end, and none of the venue's own sections among them."""
        if manifest.rules is None:
            return
        if manifest.rules.size > MAX_RULES:
            raise BundleError(f"bundle {self._name!r}: expected rules of at most {MAX_RULES} octets")
        _fetched(manifest.rules, fetch, self._rules)
        with open(self._rules, encoding="utf-8") as file:
            try:
                sections = parse(file.read(), self._name)
            except UnicodeDecodeError:
                raise BundleError(f"bundle {self._name!r}: its rules are not UTF-8") from None
        for section in sections:
            if section.type not in FROM_BUNDLES:
                raise BundleError(
                    f"bundle {self._name!r}: its rules hold a {section.type!r} section, which is the venue's own"
                )
        # Rules may speak of the venue's groups, which only the whole configuration knows.
        load_policy([section for section in sections if section.type != "rule"])
        self._has_rules = True

    def put_in_place(self) -> None:
        """Everything is good: rename it over what runs."""
        swap_in(self._image, self._image_path)
        if self._has_rules:
            os.replace(self._rules, self._rules_path)
        elif os.path.exists(self._rules_path):
            os.unlink(self._rules_path)

    def _patch(self) -> None:
        with open(self._delta, "rb") as file:
            delta = file.read()
        old = map_image(self._image_path)
        old.release()  # its checksum has read all of it
        with open(self._image, "w+b") as out:
            apply_delta(old, delta, out)
            os.fsync(out.fileno())


def _fetched(part: BundlePart, fetch: Fetch, path: str) -> str:
    """Write a part of the bundle to a file; its size and hash are those that were signed, or it is not kept."""
    digest, left = sha256(), part.size
    with open(path, "wb") as out:
        for piece in fetch(part.file, part.size):
            left -= len(piece)
            if left < 0:
                break
            digest.update(piece)
            out.write(piece)
        os.fsync(out.fileno())
    if left or digest.digest() != part.sha256:
        os.unlink(path)
        raise BundleError(f"bundle: {part.file} has not the size and hash that were signed")
    return path


def _publish_part(directory: str, file: str, pieces: Iterator[bytes]) -> BundlePart:
    digest, size = sha256(), 0
    with open(os.path.join(directory, file), "wb") as out:
        for piece in pieces:
            digest.update(piece)
            size += len(piece)
            out.write(piece)
    return BundlePart(size, digest.digest(), file)


def _write_state(name: str, manifest: Manifest, state_dir: str, now_s: int) -> None:
    path = os.path.join(state_dir, name + STATE_SUFFIX)
    state: Mapping[str, object] = {
        "version": manifest.version,
        "sha256": manifest.image.sha256.hex(),
        "signer": manifest.signer,
        "applied_s": now_s,
    }
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        json.dump(state, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".tmp", path)


def _all(pieces: Iterator[bytes], limit: int, what: str) -> bytes:
    data = bytearray()
    for piece in pieces:
        data += piece
        if len(data) > limit:
            raise BundleError(f"bundle: {what}: expected at most {limit} octets")
    return bytes(data)


def _sha256_of(path: str) -> bytes:
    digest = sha256()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.digest()


def _image_path(name: str, state_dir: str) -> str:
    return os.path.join(state_dir, name + BUNDLE_SUFFIX)


def _record(at_ms: int, actor: str, name: str, old: str, new: str, result: str, detail: str) -> Maintenance:
    return Maintenance(at_ms, actor, "policy", f"bundle:{name}", old, new, result, detail[:500])
