"""The process that the crash tests kill: `python -m tests.crash.killed SCENARIO DIR`."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

from storage.rebuild import rebuild
from storage.reclaim import SafetyAges, Thresholds, carry_out, plan_reclaim
from tests.storage_kit import back_up, changed, later, opened, read_back

AGELESS = SafetyAges(timedelta(0), timedelta(days=36500))
EAGER = Thresholds(dead_share=0.01)
BLOCKS = (2, 40)


def main(scenario: str, location: Path) -> None:
    """Play one scenario on a repository."""
    if scenario == "rebuild":
        rebuild(location, now=later(hours=5))
        return
    with opened(location, now=later(hours=5)) as repo:
        points = repo.points()
        match scenario:
            case "backup":
                base = points[-1].id
                disk = changed(bytearray(read_back(repo, base)), 5, BLOCKS)
                back_up(repo, disk, base=base, blocks=BLOCKS, at=later(hours=5))
            case "expire":
                repo.expire(points[0].id, "old", later(hours=5))
            case "hold":
                repo.mark_hold(points[0].id, "court", later(hours=5))
            case "reclaim":
                for point in points:
                    if point.vm == "vm-0":
                        repo.expire(point.id, "old", later(hours=5))
                now = later(days=3650)
                carry_out(repo, plan_reclaim(repo, now, AGELESS, EAGER), now)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
