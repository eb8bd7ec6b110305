"""The synthetic repositories of the catalog's benchmark are what the real code would have written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import _catalog_repository as synthetic
from benchmarks.catalog import PARTS, _commit
from storage.blockmap import walk
from storage.format import ENTRY, PackKind, pack_entry, pack_node, parse_node
from storage.nodes import StoredNodes
from storage.pack import check_tiling
from storage.reclaim import plan_reclaim
from storage.repository import open_repository
from storage.wholemaps import read_map
from tests.storage_kit import NOW, later

SHAPE = synthetic.Shape(vms=3, points=3, disk_blocks=1024, changed=20)
BIG_BLOCKS = 5120


def test_a_synthetic_repository_is_read_by_the_real_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "BIG_BLOCKS", BIG_BLOCKS)
    made = synthetic.make_repository(tmp_path / "r", SHAPE, NOW)
    with open_repository(tmp_path / "r", now=NOW) as repo:
        assert len(repo.points()) == 4 * 3
        assert repo.sizes().chunks == SHAPE.chunks + made.nodes
        for name in repo.store.live.values():
            footer = repo.store.footers.get(name)
            check_tiling(footer)
            assert footer.entries == b"".join(pack_entry(footer.entry(slot)) for slot in range(len(footer)))
            assert len(footer.entries) == len(footer) * ENTRY.size
            for slot in range(len(footer)) if name.kind is PackKind.TREE else ():
                (node,) = repo.store.read_many([footer.entry(slot).id], node=True)
                parsed = parse_node(bytes(node), node[0], synthetic.FAN_OUT, name.key)
                assert pack_node(parsed.level, synthetic.FAN_OUT, parsed.children, parsed.counts) == bytes(node)
        for point in repo.points():
            disk = repo.read_disk(point.id, synthetic.DISK)
            blocks = BIG_BLOCKS if point.vm_name.endswith(synthetic.BIG_NAME) else SHAPE.disk_blocks
            found = read_map(repo.store, disk.record.root, synthetic.FAN_OUT)
            assert found.blocks.tolist() == list(range(blocks))
            leaves = walk(StoredNodes(repo.store), disk.record.root, synthetic.FAN_OUT)
            assert b"".join(chunk for _, children in leaves for chunk in children.values()) == found.ids.tobytes()
            assert all(repo.store.locate(bytes(chunk)) for chunk in found.ids[:: blocks // 50])
        plan = plan_reclaim(repo, later(days=400))
        assert not plan.free


def test_what_is_measured_is_a_commit_that_is_there_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "BIG_BLOCKS", BIG_BLOCKS)
    monkeypatch.setattr("benchmarks.catalog.BIG_BLOCKS", BIG_BLOCKS)
    made = synthetic.make_repository(tmp_path / "r", SHAPE, NOW)
    figures: dict[str, list[float]] = {}
    with open_repository(tmp_path / "r", now=later(days=1)) as repo:
        point = _commit(repo, made.big, np.arange(100, 300), figures, "commit (ms)")
        disk = repo.read_disk(point, synthetic.DISK)
        before = repo.read_disk(made.big, synthetic.DISK)
        new, old = (read_map(repo.store, one.record.root, synthetic.FAN_OUT).ids for one in (disk, before))
        assert (new != old).any(axis=1).nonzero()[0].tolist() == list(range(100, 300))
    assert len(figures["commit (ms)"]) == 1
    assert set(PARTS) >= {"rebuild", "lookups", "map", "commit", "plan of reclaim"}
