"""Making an empty repository."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from storage import config as configs
from storage import randomness
from storage.blobs import Blobs, LocalBlobs
from storage.errors import AlreadyExists, Changed, Refused, StorageError
from storage.filecalls import sync_folder, translated
from storage.format import CONFIG_COPY_KEY, CONFIG_KEY
from storage.objectlock import ObjectLocks
from storage.places import ObjectPlace, Place, open_blobs, parse_place

BLOCK_BYTES = 64 << 10
PROBE = "probe/"
SPOOLED = re.compile(r"[0-9a-f]{16}")
"""How LocalBlobs names what it is about to publish."""

FOLDERS = ("spool", "packs", "manifests", "marks", "index")


def create(
    location: Place | str, *, now: datetime, passphrase: str | None = None, block_bytes: int = BLOCK_BYTES
) -> None:
    """Make an empty repository; encrypted if there is a passphrase or the line of a key file.

    AlreadyExists if there is one. Refused where anything else lies: what is in `spool/` is removed at every open; and
    where locks are asked for in a bucket that has none.
    """
    root = parse_place(location) if isinstance(location, str) else location
    if isinstance(root, ObjectPlace):
        _create_in_store(root, configs.new_config(now, block_bytes, passphrase)[1])
        return
    blobs = LocalBlobs(root)
    if (root / CONFIG_KEY).exists() or (root / CONFIG_COPY_KEY).exists():
        raise AlreadyExists("there is a repository already", where=str(root))
    with translated(str(root)):
        new = [path for path in (root, *root.parents) if not path.exists()]
        root.mkdir(parents=True, exist_ok=True)
        if foreign := sorted(path.name for path in root.iterdir() if _foreign(path)):
            raise Refused(f"the folder is not empty: {foreign[0]}", where=str(root), hint="name a new or empty one")
        for name in FOLDERS:
            (root / name).mkdir(exist_ok=True)
        for path in (root, *(path.parent for path in new)):
            sync_folder(path)
    configs.put_new(blobs, configs.new_config(now, block_bytes, passphrase)[1])


def _create_in_store(place: ObjectPlace, config: bytes) -> None:
    blobs = open_blobs(place)
    blobs.check()
    if place.object_lock:
        ObjectLocks(place).check()
    keys = sorted(blobs.list(""))
    if CONFIG_KEY in keys or CONFIG_COPY_KEY in keys:
        raise AlreadyExists("there is a repository already", where=str(place))
    if foreign := [key for key in keys if not key.startswith(PROBE)]:
        raise Refused(f"the prefix is not empty: {foreign[0]}", where=str(place), hint="name a new or empty one")
    probe(blobs)
    configs.put_new(blobs, config)


def probe(blobs: Blobs) -> None:
    """Refused unless the store keeps what many writers rely on: create-once, compare-and-replace, listings that see."""
    key = PROBE + randomness.token_hex(16)
    blobs.put(key, b"1")
    try:
        kept = _refuses(lambda: blobs.put(key, b"2")) and blobs.get(key) == b"1"
        kept = kept and _refuses(lambda: blobs.replace_if(key, b"3", b"2"))
        if kept:
            blobs.replace_if(key, b"4", b"1")
        if not kept or blobs.get(key) != b"4":
            raise Refused(
                "this store overwrites what was to be created once",
                where=str(getattr(blobs, "root", "")),
                hint="it needs conditional writes (If-None-Match, If-Match): several writers would harm each other",
            )
        if key not in set(blobs.list(PROBE)):
            raise Refused("this store does not list what was just written", where=str(getattr(blobs, "root", "")))
    finally:
        with suppress(StorageError):
            blobs.delete(key)


def _refuses(act: Callable[[], None]) -> bool:
    try:
        act()
    except (AlreadyExists, Changed):
        return True
    return False


def _foreign(path: Path) -> bool:
    """Whether a file would get mixed up with ours; what we or the file system made is not, nor what is hidden."""
    if path.name == "spool":  # a creation that was cut off leaves a blob without its name
        return not all(SPOOLED.fullmatch(below.name) and below.is_file() for below in path.iterdir())
    if path.name in FOLDERS:
        return any(path.iterdir())
    return path.name != "lost+found" and not path.name.startswith(".")
