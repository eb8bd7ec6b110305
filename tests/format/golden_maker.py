"""Repositories of the past, kept for ever: python -m tests.format.golden_maker makes those of today's format.

Each lies in tests/format/golden/VERSION/NAME: what is not derived, and `expected.json` beside it. Once a version is
released, its repositories are never made again; what they hold is what every later version must still read.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import patch

from policies.facts import Consistency, PointId, VmId
from storage import keyslots
from storage.format import VERSION
from storage.joining import join
from storage.keys import add_slot
from storage.marks import MarkKind
from storage.reclaim import SafetyAges, Thresholds, carry_out, plan_reclaim
from storage.repository import DiskHead, PointHead, Repository, create, open_repository
from storage.verify import verify

GOLDEN = Path("tests/format/golden")
TRUTH = ("config", "config.copy", "packs", "manifests", "marks", "condemned", "freeing", "committing", "numbers")
BLOCK = 4096
BEGIN = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
PASSPHRASE = "Grüße vom Wehr"


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk as it was, for the restore point that is made and for what is expected of it."""

    name: str
    content: bytes
    written: Iterable[int] | None = None
    """Blocks that are written on top of the base; None for all of them, without a base."""


def letters(seed: int, blocks: int) -> bytes:
    """Blocks that compress well, each other than all others."""
    chance = random.Random(seed)
    return b"".join((chance.randbytes(48) * (BLOCK // 48 + 1))[:BLOCK] for _ in range(blocks))


def noise(seed: int, length: int) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(length)


def take(repo: Repository, head: PointHead, disks: Iterable[Disk], base: PointId | None = None) -> PointId:
    """One restore point."""
    with repo.new_point(head) as pending:
        for disk in disks:
            whole = disk.written is None
            ingest = pending.disk(
                DiskHead(disk.name, len(disk.content), uuid=f"6000C29-{disk.name}", change_id="52 1/7", key=2000),
                base=None if whole or base is None else (base, disk.name),
            )
            for block in range(-(-len(disk.content) // BLOCK)) if disk.written is None else disk.written:
                ingest.write(block * BLOCK, memoryview(disk.content)[block * BLOCK : (block + 1) * BLOCK])
            ingest.finish()
        if head.vm == "vm-db":
            pending.configuration(b'<vm name="db"/>')
            pending.unprotected("Hard disk 9", "independent")
        return pending.commit().id


def fill(repo: Repository) -> dict[PointId, list[Disk]]:
    """Restore points of every shape; what each holds."""
    made: dict[PointId, list[Disk]] = {}

    def point(name: str, hour: int, *disks: Disk, base: PointId | None = None, **more: Any) -> PointId:
        head = PointHead(VmId(f"vm-{name}"), name, BEGIN + timedelta(hours=hour), **more)
        taken = take(repo, head, disks, base)
        made[taken] = list(disks)
        return taken

    first = letters(1, 12) + bytes(60 * BLOCK) + noise(2, 3 * BLOCK)
    full = point("web", 0, Disk("Hard disk 1", first), aliases={"bios": "564d-1"}, attributes={"policy": "gold"})
    second = first[: 5 * BLOCK] + letters(3, 2) + first[7 * BLOCK :]
    increment = point("web", 1, Disk("Hard disk 1", second, [5, 6]), base=full, consistency=Consistency.APPLICATION)
    third = second[: 70 * BLOCK] + letters(4, 1) + second[71 * BLOCK :] + bytes(200 * BLOCK) + noise(5, 512)
    grown = point("web", 2, Disk("Hard disk 1", third, [70, 275]), base=increment)
    shrunk = point("web", 3, Disk("Hard disk 1", third[: 40 * BLOCK + 1536], []), base=grown)
    zeros = bytes(9000 * BLOCK)
    wide = letters(6, 1) + bytes(5000 * BLOCK) + noise(7, BLOCK)
    until = datetime(2200, 1, 1, tzinfo=UTC)
    point("db", 4, Disk("Hard disk 1", zeros), Disk("ünïcode", wide), Disk("empty", b""), locked_until=until)
    gone = point("web", 5, Disk("Hard disk 1", letters(8, 3)))
    expired = point("web", 6, Disk("Hard disk 1", letters(9, 3)))
    moved = point("old", 7, Disk("Hard disk 1", letters(1, 4)))
    repo.mark_hold(full, "court", BEGIN)
    repo.mark_hold(full, "audit", BEGIN)
    repo.release(full, "audit", BEGIN)
    repo.mark_lock(increment, until, "law", BEGIN)
    repo.mark_expiring(shrunk, "old", BEGIN)
    join(repo, VmId("vm-old"), VmId("vm-web"), BEGIN)
    verify(repo, now=BEGIN + timedelta(days=1))
    repo.add_mark(moved, MarkKind.DAMAGED, BEGIN + timedelta(days=1), "as if", into_catalog=False)
    repo.expire(gone, "old", BEGIN + timedelta(days=1))
    plan = plan_reclaim(repo, repo.now(), SafetyAges(timedelta(0)), Thresholds(dead_share=1, small_packs=1000))
    carry_out(repo, replace(plan, at_once=False), repo.now())  # condemned, and not freed
    repo.add_mark(expired, MarkKind.EXPIRED, BEGIN + timedelta(days=1), "old", into_catalog=False)  # not yet finished
    return {key: disks for key, disks in made.items() if key not in (gone, expired)}


def expected(repo: Repository, disks: Mapping[PointId, list[Disk]], openers: Iterable[str]) -> dict[str, Any]:
    """What every later version must find in it."""
    return {
        "format": VERSION,
        "repository": repo.repository_id,
        "openers": list(openers),
        "points": {
            point: {
                "vm": repo.mark_state(point).vm or repo.manifest(point).head.vm,
                "name": repo.manifest(point).head.vm_name,
                "taken_at": repo.manifest(point).head.taken_at.isoformat(),
                "configuration": repo.configuration(point).decode(),
                "marks": told(repo, point),
                "disks": {
                    disk.name: {"bytes": len(disk.content), "sha256": sha256(disk.content).hexdigest()} for disk in made
                },
            }
            for point, made in disks.items()
        },
        "condemned": sorted(repo.blobs.list("condemned/")),
    }


def told(repo: Repository, point: PointId) -> dict[str, Any]:
    """What the marks of a restore point come to, as JSON has it."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(repo.mark_state(point)), default=str))
    return found


def fill_pieced(repo: Repository) -> dict[PointId, list[Disk]]:
    """Blocks that are put together from pages of others; what each restore point holds."""
    first = letters(20, 64)
    elsewhere = letters(21, 5) + first[: -5 * BLOCK]
    pages = bytearray(elsewhere)
    for page in (3, 20, 21, 40):
        pages[page * BLOCK : (page + 1) * BLOCK] = noise(page, BLOCK)
    made: dict[PointId, list[Disk]] = {}
    for hour, (name, content) in enumerate((("one", first), ("two", elsewhere), ("two", bytes(pages)))):
        with repo.new_point(PointHead(VmId(f"vm-{name}"), name, BEGIN + timedelta(hours=hour))) as pending:
            ingest = pending.disk(DiskHead("Hard disk 1", len(content)), base=None)
            ingest.write(0, memoryview(content))
            ingest.finish()
            made[pending.commit().id] = [Disk("Hard disk 1", content)]
    return made


def make(location: Path, *, encrypted: bool, pieced: bool) -> dict[str, Any]:
    """One golden repository; what is expected of it."""
    openers = [PASSPHRASE, keyslots.new_key_file()] if encrypted else []
    with patch.object(keyslots, "KDF_MEMORY_KIB", 256):
        block_bytes = 16 * BLOCK if pieced else BLOCK
        create(location, now=BEGIN, passphrase=openers[0] if openers else None, block_bytes=block_bytes)
        with open_repository(location, now=datetime.now(UTC), passphrase=lambda: PASSPHRASE, owner="golden") as repo:
            for opener in openers[1:]:
                add_slot(repo, opener)
            return expected(repo, fill_pieced(repo) if pieced else fill(repo), openers)


def main() -> None:
    """Make them, in place of those of the same version; refused for a version that is frozen."""
    version = GOLDEN / str(VERSION)
    if (version / "FROZEN").exists():
        sys.exit(f"format {VERSION} is released: its repositories stay as they are")
    for name in ("plain", "encrypted", "pieced"):
        target = version / name
        shutil.rmtree(target, ignore_errors=True)
        with tempfile.TemporaryDirectory() as folder:
            location = Path(folder) / name
            facts = make(location, encrypted=name == "encrypted", pieced=name == "pieced")
            target.mkdir(parents=True)
            for part in TRUTH:
                if (location / part).is_dir():
                    shutil.copytree(location / part, target / part)
                elif (location / part).exists():
                    shutil.copy(location / part, target / part)
        text = json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False)
        (version / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")
        size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        sys.stdout.write(f"{target}: {size} bytes\n")


if __name__ == "__main__":
    main()
