"""What is killed against a real object store, and where."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from policies.facts import VmId
from storage.blobs import Blobs
from storage.reclaim import carry_out, plan_reclaim
from storage.repository import DiskHead, PointHead
from tests.crash.scenes import (
    AGELESS,
    EAGER,
    SHORT,
    Scene,
    begin_to_free,
    expire,
    forget_writer,
    hinted_backup,
    reclaim,
    reclaim_what_is_needed,
)
from tests.crash.stages import NEW, Bucket, at_work, disks
from tests.storage_kit import DISK, later
from tests.stores.server import ObjectServer

BUCKET, LOCKABLE = "backstay", "lockable-kills"


def _reclaim(location: Path, blobs: Blobs | None) -> None:
    """Condemn what nothing needs, then free it."""
    expire(location, blobs)
    with at_work(location, blobs) as repo:
        written = repo.blobs.clock()
        while repo.blobs.clock() <= written:  # it goes in seconds, and nothing as young as that is condemned
            time.sleep(0.02)
    reclaim(location, blobs, SHORT)
    reclaim_now(location, blobs)


def reclaim_now(location: Path, blobs: Blobs | None = None) -> None:
    """Free what nothing needs, however young it is."""
    with at_work(location, blobs) as repo:
        now = later(days=3650)
        carry_out(repo, plan_reclaim(repo, now, AGELESS, EAGER), now)


def lock_until() -> datetime:
    """In the future for the store, which goes by its own clock, and for the repository, which goes by the test's."""
    return max(datetime.now(UTC), later(hours=6)) + timedelta(hours=2)


def _locked_backup(location: Path, blobs: Blobs | None) -> None:
    disk = disks()["new"]
    with at_work(location, blobs) as repo:
        head = PointHead(VmId(NEW), "new", later(hours=5), locked_until=lock_until())
        with repo.new_point(head) as pending:
            ingest = pending.disk(DiskHead(DISK, len(disk)), base=None)
            ingest.write(0, memoryview(disk))
            ingest.finish()
            pending.commit()


OBJECT_SCENES = {
    scene.name: scene
    for scene in (
        Scene("object-backup", hinted_backup, ("hinted",)),
        Scene("object-other-writer", hinted_backup, ("hinted",), prepare=forget_writer),
        Scene("object-reclaim", _reclaim, goes=True),
        Scene("object-rescue", reclaim_what_is_needed, prepare=begin_to_free),
        Scene("locked-backup", _locked_backup, ("new",)),
    )
}
OBJECT_KILLS = (
    ("object-backup", "pack.sealed", 0),
    ("object-backup", "commit.announced", 0),
    ("object-backup", "commit.manifest_written", 1),
    ("object-backup", "commit.announcement_removed", 1),
    ("object-other-writer", "numbers.claimed", 0),
    ("object-other-writer", "numbers.remembered:2", 0),
    ("object-reclaim", "expire.marked", 0),
    ("object-reclaim", "reclaim.condemned", 0),
    ("object-reclaim", "reclaim.freeing", 0),
    ("object-reclaim", "reclaim.pack_deleted", 0),
    ("object-reclaim", "reclaim.condemnation_removed", 0),
    ("object-rescue", "reclaim.rescued", 0),
    ("locked-backup", "commit.packs_locked", 0),
    ("locked-backup", "commit.manifest_written", 1),
)
"""(scene, where it dies, how many restore points it has committed)"""


def bucket_of(server: ObjectServer, scene: Scene) -> Bucket:
    """A place in the server's bucket that nothing lies at; for a locked backup in one with Object Lock."""
    locks = scene.name.startswith("locked-")
    prefix = f"kills/{secrets.token_hex(6)}"
    return Bucket(server.endpoint, server.key, server.secret, LOCKABLE if locks else BUCKET, prefix, locks)
