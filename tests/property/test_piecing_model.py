"""Disks that copy pages from one another in every way, backed up, expired and reclaimed: each point stays as it was."""

from __future__ import annotations

import random
from datetime import timedelta
from pathlib import Path

import pytest

from policies.facts import PointId, VmId
from storage.format import Pieced
from storage.reclaim import SafetyAges, Thresholds, carry_out, plan_reclaim
from storage.repository import DiskHead, PointHead, Repository
from storage.verify import verify
from tests.storage_kit import DISK, NOW, later, make, opened, read_back

BLOCK = 64 << 10
PAGE = 4096
PAGES = 16 * 9
AGELESS = SafetyAges(min_age=timedelta(0), clock_ahead=timedelta(days=36500))
EAGER = Thresholds(dead_share=0.2, small_packs=3)
STEPS = 22


class _Play:
    """Three VMs and what each restore point must read as."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.disks = [bytearray(PAGES * PAGE) for _ in range(3)]
        self.dirty: list[set[int]] = [set() for _ in self.disks]
        self.latest: list[PointId | None] = [None] * len(self.disks)
        self.points: dict[PointId, bytes] = {}
        self.pieced = 0

    def change(self) -> None:
        """Copy a run of pages from any disk to any other place, or write new ones, some of them zeros."""
        chance = self.chance
        which, at = chance.randrange(3), chance.randrange(PAGES)
        count = min(chance.choice((1, 2, 7, 16, 40, 90)), PAGES - at)
        kind = chance.random()
        if kind < 0.6:
            source = chance.choice(self.disks)
            begin = chance.randrange(PAGES - count + 1)
            new = bytes(source[begin * PAGE : (begin + count) * PAGE])
        elif kind < 0.95:
            new = b"".join(chance.randbytes(256) * (PAGE // 256) for _ in range(count))
        else:
            new = bytes(count * PAGE)
        self.disks[which][at * PAGE : (at + count) * PAGE] = new
        self.dirty[which] |= set(range(at // 16, (at + count - 1) // 16 + 1))

    def back_up(self, repo: Repository, hours: int) -> None:
        """A restore point of one VM: of what changed, or of everything with or without a base."""
        which = self.chance.randrange(3)
        disk, base = self.disks[which], self.latest[which]
        if base is not None and self.chance.random() < 0.2:
            base = None
        with repo.new_point(PointHead(VmId(f"vm-{which}"), f"vm-{which}", later(hours=hours))) as pending:
            ingest = pending.disk(DiskHead(DISK, len(disk)), base=(base, DISK) if base else None)
            if base is None or self.chance.random() < 0.3:
                ingest.write(0, memoryview(disk))
            else:
                for block in sorted(self.dirty[which]):
                    ingest.write(block * BLOCK, memoryview(disk)[block * BLOCK : (block + 1) * BLOCK])
            ingest.finish()
            point = pending.commit().id
        self.latest[which], self.dirty[which] = point, set()
        self.points[point] = bytes(disk)
        leaves = repo.read_disk(point, DISK).leaves()
        self.pieced += sum(isinstance(id_, Pieced) for _, children in leaves for id_ in children.values())

    def expire(self, repo: Repository) -> None:
        """Any restore point goes, also one that others build upon."""
        if self.points:
            point = self.chance.choice(sorted(self.points))
            repo.expire(point, "old", NOW)
            del self.points[point]
            self.latest = [None if one == point else one for one in self.latest]


@pytest.mark.parametrize("seed", range(8))
def test_every_restore_point_reads_as_it_was_taken(tmp_path: Path, seed: int) -> None:
    location, play = make(tmp_path / "r", encrypted=seed % 4 == 3, block_bytes=BLOCK), _Play(seed)
    hours = 0
    for _ in range(3):
        with opened(location) as repo:
            for _ in range(STEPS // 3):
                hours += 1
                for _ in range(play.chance.randrange(1, 9)):
                    play.change()
                play.back_up(repo, hours)
                if play.chance.random() < 0.4:
                    play.expire(repo)
                if play.chance.random() < 0.3:
                    now = later(days=3650 + hours)
                    carry_out(repo, plan_reclaim(repo, now, AGELESS, EAGER), now)
            assert verify(repo, now=later(hours=hours)).sound
            for point, content in play.points.items():
                assert read_back(repo, point) == content
    assert play.pieced > 20, "it is pieces that are tried here"
