"""Every call to the store, and beneath it to the operating system, fails in turn: nothing that was there is harmed.

Each n is tried until no call is the n-th; which kind of fault strikes goes round. `make soak` tries every kind at each.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from policies.facts import VmId
from storage.blobs import Blobs, LocalBlobs
from storage.errors import NoSpace, StoreFailed
from storage.repository import DiskHead, PointHead
from storage.verify import verify
from tests.crash.faults import (
    FailingStore,
    Fault,
    Trouble,
    count_calls,
    injected,
    one_fault,
    one_system_fault,
    system_call_fails,
)
from tests.crash.scenes import SCENES, Scene
from tests.crash.stages import Stage, fresh_copy, set_up
from tests.storage_kit import BLOCK, NOW, back_up, image, later, opened, read_back

FAULTED = (
    "hinted-encrypted", "grown", "marks", "expire", "reclaim-in-phases", "copy", "verify", "rebuild-open",
    "open-nothing-derived", "open-half-expired", "shared-hinted", "shared-reclaim", "key-rotated", "pieced",
)  # fmt: skip
BENEATH = ("hinted-encrypted", "expire", "key-rotated", "rebuild")
MOST = 400
READ_STEP = 13


@pytest.mark.parametrize("scene", [SCENES[name] for name in FAULTED], ids=FAULTED)
def test_no_failing_call_to_the_store_harms_what_was_there(
    trials: Path, stages: dict[str, Stage], scene: Scene
) -> None:
    for nth in range(1, MOST):
        fault = one_fault(nth, reads=False)
        try:
            fired = injected(stages[scene.kind], scene, fault, trials / "trial", thorough=nth % 4 == 0)
        except BaseException as error:
            error.add_note(f"fault {fault}; again: python -m tests.crash.soak --fault {scene.name}/{fault}")
            raise
        if not fired:
            return
    pytest.fail("the scene never ended")


@pytest.mark.parametrize("scene", [SCENES[name] for name in FAULTED], ids=FAULTED)
def test_no_failing_read_harms_what_was_there(trials: Path, stages: dict[str, Stage], scene: Scene) -> None:
    for nth in range(1, 4 * MOST, READ_STEP):
        fault = one_fault(nth, reads=True)
        try:
            fired = injected(stages[scene.kind], scene, fault, trials / "trial")
        except BaseException as error:
            error.add_note(f"fault {fault}; again: python -m tests.crash.soak --fault {scene.name}/{fault}")
            raise
        if not fired:
            return
    pytest.fail("the scene never ended")


@pytest.mark.parametrize("name", BENEATH)
def test_no_failing_system_call_harms_what_was_there(trials: Path, stages: dict[str, Stage], name: str) -> None:
    scene = SCENES[name]
    for nth in range(1, MOST):
        fault = one_system_fault(nth)
        try:
            fired = system_call_fails(stages[scene.kind], scene, fault, trials / "trial")
        except BaseException as error:
            error.add_note(f"fault {fault}; again: python -m tests.crash.soak --system-call {scene.name}/{fault}")
            raise
        if not fired:
            return
    pytest.fail("the scene never ended")


def test_there_are_at_least_300_faults(trials: Path, stages: dict[str, Stage]) -> None:
    def calls(name: str, *, reads: bool = False, beneath: bool = False) -> int:
        scene = SCENES[name]
        location = fresh_copy(stages[scene.kind], trials / f"{name}-{reads}-{beneath}", scene.prepare)
        return count_calls(scene, location, reads=reads, beneath=beneath)

    mutating = sum(calls(name) for name in FAULTED)
    reading = sum(-(-calls(name, reads=True) // READ_STEP) for name in FAULTED)
    beneath = sum(calls(name, beneath=True) for name in BENEATH)
    assert mutating + reading + beneath >= 300


def test_a_full_store_is_told_as_such_and_a_later_run_succeeds(stages: dict[str, Stage], trials: Path) -> None:
    stage = set_up(trials / "stage")
    disk = image(8, 30)
    trouble = Trouble(Fault(3, "ENOSPC", once=True))
    with opened(stage.location, blobs=cast(Blobs, FailingStore(LocalBlobs(stage.location), trouble))) as repo:
        with pytest.raises(NoSpace) as told:
            back_up(repo, disk, vm="vm-9")
        assert told.value.retry
        back_up(repo, disk, vm="vm-9")
        assert len(repo.points()) == 5
        assert verify(repo, now=later(hours=1)).sound


def test_a_failure_of_one_run_breaks_those_beside_it_but_not_those_after(trials: Path) -> None:
    stage = set_up(trials / "stage")
    trouble = Trouble(Fault(3, "EIO", once=True))
    fresh = image(77, 20, used=1.0)
    with opened(stage.location, blobs=cast(Blobs, FailingStore(LocalBlobs(stage.location), trouble))) as repo:
        pending = [repo.new_point(PointHead(VmId(f"n{i}"), "n", NOW)) for i in range(2)]
        disks = [one.disk(DiskHead("d", len(fresh)), base=None) for one in pending]
        with pytest.raises(StoreFailed):
            disks[0].write(0, memoryview(fresh))
        with pytest.raises(StoreFailed):
            disks[1].write(0, memoryview(fresh)[:BLOCK])
        for one in pending:
            with pytest.raises(StoreFailed):
                one.commit()
            one.abandon()
        point = back_up(repo, fresh, vm="n3")
        assert read_back(repo, point.id) == fresh
        assert verify(repo, now=NOW).sound
