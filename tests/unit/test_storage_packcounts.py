"""What the lookup index alone says of packs, and that a plan never believes it when it says dead."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.format import PackName
from storage.nodes import StoredNodes
from storage.pack import Footer
from storage.packcounts import count_chunks
from storage.reachability import Reached, live_slots
from storage.reclaim import SafetyAges, Thresholds, plan_reclaim
from storage.roots import reach
from tests.storage_kit import back_up, changed, image, later, make, opened

MUCH_LATER = later(days=400)
AGELESS = SafetyAges(timedelta(0))
NO_PACK_IS_SMALL = Thresholds(small_pack_bytes=0)


def test_the_index_counts_the_chunks_of_each_pack_as_its_footer_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.packcounts.SLICE_ENTRIES", 7)
    with opened(make(tmp_path / "r")) as repo:
        disk = image(1, 90)
        old = back_up(repo, disk)
        back_up(repo, changed(disk, 2, range(20, 60)), base=old.id, blocks=range(20, 60), at=later(hours=1))
        back_up(repo, image(3, 30), vm="other")
        repo.expire(old.id, "old", later(hours=2))
        reached, _ = reach(repo, Reached(StoredNodes(repo.store), repo.config.fan_out), ())
        for part in (reached, reached[::3], reached[:0]):
            counts, dead = count_chunks(repo.store, part)
            for name in repo.store.live.values():
                slots = live_slots(repo.store.footers.get(name), part)
                assert (counts[name.number], dead[name.number]) == (len(slots), (~slots).sum())


def _says(all_dead: bool) -> Any:
    def count(store: Any, reached: Any) -> tuple[Any, Any]:
        counts = np.full(max(store.live) + 1, 5)
        return counts, counts if all_dead else counts * 0

    return count


def test_a_wrong_index_condemns_no_live_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(make(tmp_path / "r")) as repo:
        back_up(repo, image(1, 90))
        old = back_up(repo, image(2, 30), vm="other")
        repo.expire(old.id, "old", later(hours=2))
        honest = plan_reclaim(repo, MUCH_LATER, AGELESS, NO_PACK_IS_SMALL)
        assert len(honest.condemn) == 2
        monkeypatch.setattr("storage.reclaim_plan.count_chunks", _says(all_dead=True))
        wary = plan_reclaim(repo, MUCH_LATER, AGELESS, NO_PACK_IS_SMALL)
        assert replace(wary, made_at=honest.made_at) == honest
        monkeypatch.setattr("storage.reclaim_plan.count_chunks", _says(all_dead=False))
        keeps = plan_reclaim(repo, MUCH_LATER, AGELESS, NO_PACK_IS_SMALL)
        assert (keeps.condemn, keeps.rewrite, keeps.total_bytes) == ((), (), honest.total_bytes)


def test_packs_that_the_index_settles_are_not_read_to_their_footers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = make(tmp_path / "r")
    with opened(location) as repo:
        back_up(repo, image(1, 90))
        old = back_up(repo, image(2, 30), vm="other")
        repo.expire(old.id, "old", later(hours=2))
    with opened(location) as repo:
        asked: list[str] = []
        get = repo.store.footers.get

        def noting(name: PackName) -> Footer:
            asked.append(name.key)
            return get(name)

        monkeypatch.setattr(repo.store.footers, "get", noting)
        plan = plan_reclaim(repo, MUCH_LATER, AGELESS, NO_PACK_IS_SMALL)
        data = {key for key in asked if key.endswith(".data")}
        assert data == {fate.name.key for fate in plan.condemn if fate.name.key.endswith(".data")}
