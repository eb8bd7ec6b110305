"""Where the crash tests play: a small repository before anything is done to it, and copies of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path

from policies.facts import PointId
from storage.blobs import Blobs, LocalBlobs
from storage.objectcalls import Patience
from storage.places import ObjectPlace, Place
from storage.repository import Repository
from tests.storage_kit import BLOCK, NOW, back_up, changed, image, later, make, opened

BLOCKS = 60
HINTED = (2, 40)
FIRST_CHANGED = (7, 8, 9)

BUCKET = "bucket"
KINDS = ("plain", "encrypted", "shared")
"""Shared: as in an object store, which other processes write too; here a folder stands for the bucket."""

OBJECTS = "objects.json"
"""In a stage's folder: its repository lies in a real object store, and this says where."""

PATIENCE = Patience(first_pause_seconds=0.02, longest_pause_seconds=0.2, give_up_seconds=10, give_up_at_first_seconds=2)

OLD, WEB, NEW = "vm-0", "vm-1", "vm-2"
"""What may expire, what must stay, and what the scenes add."""


@dataclass(frozen=True)
class Stage:
    """A repository before anything is done to it, and copies of its restore points kept aside."""

    location: Path
    kept: Mapping[PointId, bytes]
    going: Mapping[PointId, bytes]
    holds: tuple[str, ...] = field(default=("audit",))


@dataclass(frozen=True)
class Bucket:
    """Where in which object store a stage's repository lies, and the login."""

    endpoint: str
    access_key_id: str
    secret_access_key: str
    bucket: str
    prefix: str
    object_lock: bool = False

    def place(self, state_dir: Path) -> ObjectPlace:
        """As the repository is opened."""
        login = {"access_key_id": self.access_key_id, "secret_access_key": self.secret_access_key}
        return ObjectPlace(
            "s3", self.bucket, self.prefix, endpoint=self.endpoint, region="us-east-1", object_lock=self.object_lock,
            state_dir=state_dir, patience=PATIENCE, credentials=lambda: login,
        )  # fmt: skip


@cache
def disks() -> dict[str, bytearray]:
    """Every disk that is played with, by name."""
    first = image(1, BLOCKS)
    web = changed(first, 2, FIRST_CHANGED)
    new = image(6, BLOCKS, used=0.9)
    return {
        "dead": image(4, BLOCKS),
        "half dead": image(3, BLOCKS)[: 30 * BLOCK] + first[30 * BLOCK :],
        "first": first,
        "web": web,
        "hinted": changed(web, 5, HINTED),
        "new": new,
        "newer": changed(new, 6, HINTED),
        "grown": changed(web + image(7, 20), 8, HINTED),
        "shrunk": changed(web[: 20 * BLOCK + 512], 8, (2, 20)),
        "next": changed(web, 9, (1, 11, 50)),
    }


def set_up(location: Path, kind: str = "plain", bucket: Bucket | None = None) -> Stage:
    """A repository with two restore points that stay, and two of which one is wholly and one half its own.

    `kind` is one of KINDS; with a bucket it lies there.
    """
    if bucket is not None:
        location.mkdir(parents=True)
        (location / OBJECTS).write_text(json.dumps(asdict(bucket)))
        make(place_of(location))
    else:
        make(location / BUCKET if kind == "shared" else location, encrypted=kind == "encrypted")
    disk = disks()
    with open_at(location, NOW) as repo:
        dead = back_up(repo, disk["dead"], vm=OLD, name="old")
        half = back_up(repo, disk["half dead"], vm=OLD, name="old", at=later(minutes=1))
        first = back_up(repo, disk["first"], vm=WEB, at=later(hours=1))
        web = back_up(repo, disk["web"], vm=WEB, base=first.id, blocks=FIRST_CHANGED, at=later(hours=2))
        repo.mark_hold(first.id, "audit", later(hours=2))
    return Stage(
        location,
        {first.id: bytes(disk["first"]), web.id: bytes(disk["web"])},
        {dead.id: bytes(disk["dead"]), half.id: bytes(disk["half dead"])},
    )


def place_of(location: Path) -> Place:
    """Where a stage's repository lies."""
    if (location / OBJECTS).exists():
        return Bucket(**json.loads((location / OBJECTS).read_text())).place(location / "state")
    if (location / BUCKET).is_dir():
        return ObjectPlace("s3", BUCKET, state_dir=location / "state")
    return location


def store_of(location: Path) -> Blobs:
    """The store that a stage's repository lies in; none that is an object store."""
    if not (location / BUCKET).is_dir():
        return LocalBlobs(location)
    blobs = LocalBlobs(location / BUCKET)
    for spool in (location / "state" / "catalogs").glob("*/spool"):
        blobs.spool = spool  # as an object store's writers do
    return blobs


def open_at(location: Path, now: datetime, blobs: Blobs | None = None) -> Repository:
    """A stage's repository, open."""
    if (location / BUCKET).is_dir():
        blobs = blobs or store_of(location)
    return opened(place_of(location), now=now, blobs=blobs)


def at_work(location: Path, blobs: Blobs | None) -> Repository:
    """The repository as the scenes open it."""
    return open_at(location, later(hours=5), blobs)


def fresh_copy(stage: Stage, to: Path, prepare: Callable[[Path], None] | None = None) -> Path:
    """The stage once more, in another place."""
    shutil.copytree(stage.location, to)
    if prepare is not None:
        prepare(to)
    return to


def clear(location: Path) -> None:
    """Remove a copy and what lies beside it."""
    for path in location.parent.glob(location.name + "*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
