"""The process whose changes are recorded: `python -m tests.crash.recorded SCENE FOLDER`.

FOLDER holds the repository `repo`; for the scene `engine` it gets the engine's `state`. What the process was told is
written down as lines of the file `acks` beside FOLDER.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

from engine.jobs import Job, JobId, JobKind, JobState
from engine.records import RunRow
from engine.state import State
from policies.facts import PointId, VmId
from storage.pending import PendingPoint
from storage.repository import Repository
from tests.crash.recording import ACKS
from tests.crash.scenes import SCENES
from tests.storage_kit import NOW

JOBS = 6


def job(number: int) -> Job:
    """A job of the engine's."""
    return Job(JobId(f"job-{number}"), f"key-{number}", JobKind.BACKUP, VmId("vm-1"), "gold", "daily", "due", NOW, NOW)


def engine_writes(state_dir: Path, tell: Callable[[str], None]) -> None:
    """Some transactions of the engine's state, over two openings, with DuckDB's checkpoint in between."""
    for half in (range(JOBS // 2), range(JOBS // 2, JOBS)):
        state = State(state_dir, now=NOW)
        for number in half:
            state.save_job(job(number))
            tell(f"saved job-{number}")
            done = replace(job(number), state=JobState.DONE)
            state.settle(done, now=NOW, run=RunRow(VmId("vm-1"), last_success=NOW), point=PointId(f"p-{number}"))
        state.close()


def main(scene: str, folder: Path) -> None:
    """Play it, and tell what was acknowledged."""
    acks = os.open(folder.with_name(ACKS), os.O_WRONLY | os.O_APPEND)

    def tell(said: str) -> None:
        os.write(acks, f"{said}\n".encode())

    commit, expire, hold = PendingPoint.commit, Repository.expire, Repository.mark_hold

    def telling_commit(self: PendingPoint) -> Any:
        point = commit(self)
        tell(f"committed {point.id}")
        return point

    def telling_expire(self: Repository, point: PointId, *rest: Any, **named: Any) -> None:
        expire(self, point, *rest, **named)
        tell(f"expired {point}")

    def telling_hold(self: Repository, point: PointId, reason: str, now: datetime) -> None:
        hold(self, point, reason, now)
        tell(f"held {point} {reason}")

    with (
        patch.object(PendingPoint, "commit", telling_commit),
        patch.object(Repository, "expire", telling_expire),
        patch.object(Repository, "mark_hold", telling_hold),
    ):
        if scene == "engine":
            (folder / "state").mkdir()
            engine_writes(folder / "state", tell)
        else:
            SCENES[scene].play(folder / "repo", None)
    tell("done")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
