"""A small repository whose bytes can be changed, and what then becomes of every restore point."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from policies.facts import PointId
from storage.errors import Damaged, StorageError
from storage.format import ENTRY, ENVELOPE, HEADER_BYTES, TRAILER_BYTES
from storage.repository import Repository
from storage.verify import VerifyReport, verify
from tests.storage_kit import BLOCK, NOW, back_up, changed, files, image, later, make, opened, read_back, restored

PACK_FIELDS = (0, 8, 10, 11, 12, 13, 14, 16, 32, 48, 64, 68, 72, 80, 112)
"""Where the fields of a pack's header begin; docs/format.md."""

TRAILER_FIELDS = (0, 8, 12, 16, 20, 24, 56)
ENTRY_FIELDS = (0, 32, 36, 40, 43, 44)
ENVELOPE_FIELDS = (0, 8, 10, 11, 12, 16, 32)


@dataclass(frozen=True)
class Scene:
    """Two VMs: `web` with two restore points that share most, `db` with one, held; verified, so that marks are there.

    `disks` has what each restore point must give.
    """

    location: Path
    disks: dict[PointId, bytes]
    names: dict[PointId, str]
    encrypted: bool
    unneeded: frozenset[str]
    """Names of packs that no restore point reaches any more."""

    @contextmanager
    def trial(self) -> Iterator[Path]:
        """A copy to damage."""
        target = self.location.parent / "trial"
        shutil.copytree(self.location, target)
        try:
            yield target
        finally:
            shutil.rmtree(target)

    def objects(self, *folders: str) -> list[Path]:
        """Objects of the truth below some folders, relative to the repository."""
        found = sorted(p for folder in folders for p in (self.location / folder).rglob("*") if p.is_file())
        return [path.relative_to(self.location) for path in found if path.name not in self.unneeded]


@dataclass(frozen=True)
class Outcome:
    """What became of a damaged repository. `failed` are restore points whose restore ended with an error."""

    refused: bool = False
    noticed: bool = False
    failed: frozenset[PointId] = frozenset()
    hit: frozenset[PointId] = frozenset()
    objects: frozenset[str] = frozenset()
    vms: frozenset[str] = frozenset()
    wrong: tuple[str, ...] = field(default=())

    @property
    def found(self) -> bool:
        """Whether somebody who opens or verifies it is told."""
        return self.refused or self.noticed


MEMORY = Path("/dev/shm")
MEMORY_NEEDED_BYTES = 512 << 20
"""Containers often have a small one."""


@contextmanager
def in_memory() -> Iterator[Path]:
    """A folder whose fsync costs nothing, where the machine has room for one; removed at the end."""
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= MEMORY_NEEDED_BYTES
    folder = Path(tempfile.mkdtemp(prefix="backstay-", dir=MEMORY if roomy else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def build(location: Path, *, encrypted: bool) -> Scene:
    """The scene, at this place."""
    web, db = image(1, 70, used=0.8, tail=77), image(2, 20)
    second = changed(web, 3, [5, 40])
    with opened(make(location, encrypted=encrypted)) as repo:
        gone = back_up(repo, image(4, 10), vm="vm-0", name="gone")
        unneeded = frozenset(path.name for path in files(location, "packs"))
        one = back_up(repo, web)
        two = back_up(repo, second, base=one.id, blocks=[5, 40], at=later(hours=1))
        other = back_up(repo, db, vm="vm-2", name="db")
        repo.mark_hold(other.id, "court", NOW)
        repo.expire(gone.id, "old", NOW)
        assert verify(repo, now=later(hours=2)).sound
        repo.catalog.checkpoint()
    disks = {one.id: bytes(web), two.id: bytes(second), other.id: bytes(db)}
    return Scene(location, disks, {one.id: "web", two.id: "web", other.id: "db"}, encrypted, unneeded)


def places_of(path: Path, data: bytes, chance: random.Random, more: int) -> list[int]:
    """Offsets to flip in an object: one in each field of its format, and `more` in what it holds."""
    if path.parts[0] == "packs":
        footer = int.from_bytes(data[-TRAILER_BYTES:][:8], "little")
        entries = footer + ENTRY.size * chance.randrange((len(data) - TRAILER_BYTES - footer) // ENTRY.size)
        fields = [
            *(at + chance.randrange(2) for at in PACK_FIELDS if at not in (10, 11, 12, 13)), 10, 11, 12, 13,
            *(entries + at for at in ENTRY_FIELDS),
            *(len(data) - TRAILER_BYTES + at for at in TRAILER_FIELDS),
        ]  # fmt: skip
        return fields + [chance.randrange(HEADER_BYTES, footer) for _ in range(more)]
    fields = [at + chance.randrange(1 if at in (10, 11) else 2) for at in ENVELOPE_FIELDS]
    return [*fields, len(data) - 1, *(chance.randrange(ENVELOPE.size, len(data)) for _ in range(more))]


def judge(scene: Scene, location: Path, *, to_file: bool) -> Outcome:
    """Restore every restore point, then verify."""
    try:
        with opened(location, now=later(hours=3)) as repo:
            failed, wrong = set(), []
            for point, disk in scene.disks.items():
                try:
                    wrong += _wrong(repo, point, disk, location.parent / "target" if to_file else None)
                except StorageError:
                    failed.add(point)
            report = verify(repo, now=later(hours=3))
            return _outcome(repo, report, failed, wrong)
    except StorageError:
        return Outcome(refused=True)


def _outcome(repo: Repository, report: VerifyReport, failed: set[PointId], wrong: list[str]) -> Outcome:
    return Outcome(
        noticed=not report.sound or not repo.config.whole,
        failed=frozenset(failed),
        hit=frozenset(point for damage in report.damaged for point in damage.points),
        objects=frozenset(damage.object for damage in report.damaged),
        vms=frozenset(report.vms),
        wrong=tuple(wrong),
    )


def _wrong(repo: Repository, point: PointId, disk: bytes, target: Path | None) -> list[str]:
    """What differs although no error told it. Raises what the restore raises, having looked at what it left."""
    if target is None:
        return [] if read_back(repo, point) == disk else [f"{point} was read as something else"]
    try:
        return [] if restored(repo, point, target) == disk else [f"{point} was restored as something else"]
    except Damaged:
        left = target.read_bytes()
        blocks = range(0, len(left), BLOCK)
        bad = [at for at in blocks if left[at : at + BLOCK] != disk[at : at + BLOCK] and any(left[at : at + BLOCK])]
        if bad:
            return [f"{point}: wrong bytes at {bad} in the target"]
        raise
    finally:
        target.unlink(missing_ok=True)
