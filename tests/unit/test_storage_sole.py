"""The bytes that some restore points hold alone are those that reclaim gets rid of once they have expired."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from storage.reachability import live_bytes
from storage.reclaim import SafetyAges, Thresholds, carry_out, plan_reclaim
from storage.repository import Repository
from storage.sole import sole_bytes
from tests.storage_kit import NOW, back_up, changed, image, later, make, opened

AGELESS = SafetyAges(min_age=timedelta(0), clock_ahead=timedelta(days=36500))
EVERY_DEAD_CHUNK = Thresholds(dead_share=0.0)
MUCH_LATER = later(days=3650)


def entries(repo: Repository) -> int:
    """The stored bytes of everything in packs."""
    return sum(live_bytes(repo.store.footers.get(name), [])[1] for name in set(repo.store.live.values()))


@pytest.mark.parametrize("encrypted", [False, True])
def test_it_is_what_reclaim_gets_rid_of(tmp_path: Path, encrypted: bool) -> None:
    first = image(4, 200)
    second = changed(first, 5, range(60))
    with opened(make(tmp_path / "r", encrypted=encrypted)) as repo:
        one = back_up(repo, first)
        two = back_up(repo, second, base=one.id, blocks=range(60))
        back_up(repo, image(6, 100), vm="other")
        before = entries(repo)
        alone, together = sole_bytes(repo, [one.id]), sole_bytes(repo, [one.id, two.id])
        assert 0 < alone < together < before
        repo.expire(one.id, "old", NOW)
        carry_out(repo, plan_reclaim(repo, MUCH_LATER, AGELESS, EVERY_DEAD_CHUNK), MUCH_LATER)
        assert before - entries(repo) == alone
        repo.expire(two.id, "old", NOW)
        carry_out(repo, plan_reclaim(repo, MUCH_LATER, AGELESS, EVERY_DEAD_CHUNK), MUCH_LATER)
        assert before - entries(repo) == together


def test_a_point_that_shares_all_with_another_holds_next_to_nothing_alone(tmp_path: Path) -> None:
    disk = image(7, 100)
    with opened(make(tmp_path / "r")) as repo:
        one = back_up(repo, disk)
        back_up(repo, disk, vm="clone")
        assert sole_bytes(repo, [one.id]) == 0
        assert sole_bytes(repo, []) == 0
        assert sole_bytes(repo, [point.id for point in repo.points()]) == entries(repo)
