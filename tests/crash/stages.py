"""Where the crash tests play: a small repository before anything is done to it, and copies of it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cache, partial
from pathlib import Path

from policies.facts import PointId
from storage import directio
from storage.blobs import Blobs, LocalBlobs
from storage.objectcalls import Patience
from storage.pagetable import PAGE_BYTES
from storage.places import ObjectPlace, Place
from storage.repository import Repository
from tests.storage_kit import BLOCK, NOW, back_up, changed, image, later, make, opened

BLOCKS = 60
HINTED = (2, 40)
FIRST_CHANGED = (7, 8, 9)

BUCKET = "bucket"
KINDS = ("plain", "encrypted", "shared", "pieced")
"""Shared: as in an object store, which other processes write too; here a folder stands for the bucket. Pieced: with
blocks so large that one may be put together from pages of several chunks."""

directio.SEGMENT_BYTES = 16 << 10  # so that these small packs have a part that goes around the page cache

PIECED_BLOCK = 8 * PAGE_BYTES
SHIFT = 4 * PAGE_BYTES
"""How far a copy lies from the blocks of the disk that it is of."""

OBJECTS = "objects.json"
"""In a stage's folder: its repository lies in a real object store, and this says where."""

PATIENCE = Patience(first_pause_seconds=0.02, longest_pause_seconds=0.2, give_up_seconds=10, give_up_at_first_seconds=2)

PREPARED = "stage"

OLD, WEB, NEW = "vm-0", "vm-1", "vm-2"
"""What may expire, what must stay, and what the scenes add."""


@dataclass(frozen=True)
class Stage:
    """A repository before anything is done to it, and copies of its restore points kept aside."""

    location: Path
    kept: Mapping[PointId, bytes]
    going: Mapping[PointId, bytes]
    holds: tuple[str, ...] = field(default=("audit",))
    unit: int = BLOCK


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
def disks(unit: int = BLOCK) -> dict[str, bytearray]:
    """Every disk that is played with in a repository of blocks of so many bytes, by name."""
    make_image, change = partial(image, block_bytes=unit), partial(changed, block_bytes=unit)
    first = make_image(1, BLOCKS)
    web = change(first, 2, FIRST_CHANGED)
    new = make_image(6, BLOCKS, used=0.9)
    dead = make_image(4, BLOCKS)
    return {
        "dead": dead,
        "half dead": make_image(3, BLOCKS)[: 30 * unit] + first[30 * unit :],
        "first": first,
        "web": web,
        "hinted": change(web, 5, HINTED),
        "new": new,
        "newer": change(new, 6, HINTED),
        "grown": change(web + make_image(7, 20), 8, HINTED),
        "shrunk": change(web[: 20 * unit + 512], 8, (2, 20)),
        "next": change(web, 9, (1, 11, 50)),
        "web shifted": bytearray(SHIFT) + web[:-SHIFT],
        "dead shifted": bytearray(SHIFT) + dead[:-SHIFT],
    }


def set_up(location: Path, kind: str = "plain", bucket: Bucket | None = None) -> Stage:
    """A repository with two restore points that stay, and two of which one is wholly and one half its own.

    `kind` is one of KINDS or "shared-encrypted"; with a bucket it lies there.
    """
    unit = PIECED_BLOCK if kind == "pieced" else BLOCK
    if bucket is not None:
        location.mkdir(parents=True)
        (location / OBJECTS).write_text(json.dumps(asdict(bucket)))
        make(place_of(location))
    else:
        make(location / BUCKET if "shared" in kind else location, encrypted="encrypted" in kind, block_bytes=unit)
    disk = disks(unit)
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
        unit=unit,
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
    """The stage once more, in another place, with what its preparation laid beside it."""
    if prepare is None:
        shutil.copytree(stage.location, to)
    else:
        for path in _prepared(stage.location, prepare).iterdir():
            shutil.copytree(path, to.with_name(to.name + path.name.removeprefix(PREPARED)))
    return to


@cache
def _prepared(location: Path, prepare: Callable[[Path], None]) -> Path:
    """A folder with the stage that is here after its preparation, which is done once."""
    folder = Path(tempfile.mkdtemp(prefix="prepared-", dir=location.parent))
    shutil.copytree(location, folder / PREPARED)
    prepare(folder / PREPARED)
    return folder


def clear(location: Path) -> None:
    """Remove a copy and what lies beside it."""
    for path in location.parent.glob(location.name + "*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
