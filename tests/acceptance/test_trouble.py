"""vCenter goes away, its database is set back, the disk is full: told, waited out, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from engine import config as configuration
from engine.commands import BackUpVm
from engine.failures import Exit
from tests.acceptance.engine_process import ON_REQUEST, EngineProcess, engine_for, frozen_at
from tests.lab.vcenter import MIB, Lab
from tests.pipeline.running import Running, engine_of

ON_A_MOVE = ON_REQUEST + '[[policy.on_request.trigger]]\non = "vm.migrated"\n'


@pytest.mark.parametrize("sessions", [False, True], ids=["the network breaks", "vCenter restarts"])
def test_a_vcenter_that_goes_away_while_a_disk_is_read_costs_a_retry_and_nothing_else(
    fresh_lab: Callable[..., Lab], tmp_path: Path, sessions: bool
) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=32 * MIB)
    [vm] = lab.vms()
    with engine_for(lab, tmp_path / "engine", ON_REQUEST) as engine:
        engine.start()
        first = engine.back_up(vm.name)
        written = lab.write_random_grains(vm.name, 0, share=0.3, seed=3)
        with ExitStack() as gone:
            with lab.nbd_fault(hang_at=written[-1][0]):  # the disk is not read to its end before vCenter is gone
                engine.api.submit(BackUpVm(vm.name))
                engine.until(lambda: reading(engine))
                gone.enter_context(lab.down(sessions=sessions))
            engine.until(lambda: "snapshot not removed yet" in engine.log)  # the run is through and has noticed
            assert [point["id"] for point in engine.points(vm.name)] == [first["id"]]
        engine.until(lambda: not engine.problems(), seconds=60)
        engine.until(lambda: not engine.status()["queue"]["running"], seconds=60)
        again = engine.back_up(vm.name)
        engine.until(lambda: not lab.vm(vm.name).snapshots)
        kept = [engine.point(point["id"]) for point in engine.points(vm.name)]
        assert kept[0]["id"] == first["id"] and kept[-1]["id"] == again["id"]
        for point in kept:
            engine.assert_same_as_frozen(point["id"], frozen_at(lab, point), tmp_path)


def reading(engine: EngineProcess) -> bool:
    """Whether a run has read something and is not through."""
    return any(job["stage"] == "read" and job["done_bytes"] for job in engine.status()["queue"]["running"])


async def test_event_keys_that_go_backwards_are_a_gap_whose_moves_are_found_by_comparing(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = fresh_lab(vms=2, tracking=True, disk_bytes=8 * MIB)
    lost, told = lab.vms()
    with engine_for(lab, tmp_path / "engine", ON_A_MOVE) as furnished:
        config = configuration.load(furnished.config)
        async with engine_of(config) as engine:
            await engine.until(lambda: lab.instance_uuid in engine.parts.world.complete)
            await engine.until(lambda: any(key.endswith("/events") for key in engine.parts.sources.alive))
            lab.post_event("VmRenamedEvent", told.name, count=20)
            async with asyncio.timeout(30):
                while len(await engine.event_keys()) < 20:  # noqa: ASYNC110  the journal has no event to wait for
                    await asyncio.sleep(0.05)
        newest = lab.event_log()[-1]
        lab.migrate(lost.name)
        # vCenter's clock goes on while its database is restored, and a key belongs to a second.
        while time.time() < newest.time.timestamp() + 1:  # noqa: ASYNC110  time itself is waited for
            await asyncio.sleep(0.02)
        lab.roll_back_events(newest.key - 10)
        lab.migrate(told.name)
        assert lab.event_log()[-1].key <= newest.key
        async with engine_of(config) as engine:
            await engine.until(lambda: engine.points_of(lost.name) and engine.points_of(told.name), seconds=40)
            made = [key for key in await engine.event_keys() if key.startswith("reconcile:")]
            assert len(made) == 1 and made[0].endswith("vm.migrated")
            assert engine.points_of(lost.name) == engine.points_of(told.name) == 1
            assert counted(engine, "backstay_event_gaps_total") == 1
            assert counted(engine, "backstay_events_found_by_reconcile_total") == 1


def counted(engine: Running, name: str) -> float:
    """The sum of a metric over its labels."""
    return sum(
        sample.value
        for family in engine.parts.metrics.registry.collect()
        for sample in family.samples
        if sample.name == name
    )


def test_a_full_disk_fails_the_run_with_no_space_and_harms_no_restore_point(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=64 * MIB)
    [vm] = lab.vms()
    with (
        small_disk(tmp_path / "small") as (place, limit, grow),
        engine_for(lab, tmp_path / "engine", ON_REQUEST, repository=place / "repository") as engine,
    ):
        engine.start(prepare=limit)
        first = engine.back_up(vm.name)
        for offset in range(0, 48 * MIB, 16 * MIB):
            lab.write_as_guest(vm.name, 0, 8 * MIB + offset, os.urandom(16 * MIB))
        failed = engine.backstay("backup", vm.name, expect=Exit.NO_SPACE)
        assert "space" in failed.err or "full" in failed.err
        assert not lab.vm(vm.name).snapshots
        assert [point["id"] for point in engine.points(vm.name)] == [first["id"]]
        engine.assert_same_as_frozen(first["id"], frozen_at(lab, first), tmp_path)
        assert any("space" in job["last_error"] for job in engine.status()["queue"]["waiting"])
        grow(engine)
        again = engine.back_up(vm.name)
        for point in (first, again):
            engine.assert_same_as_frozen(point["id"], frozen_at(lab, point), tmp_path)
        engine.backstay("verify")


@contextmanager
def small_disk(
    place: Path,
) -> Iterator[tuple[Path, Callable[[], None] | None, Callable[[EngineProcess], None]]]:
    """Where 40 MiB fit, what makes it so for the engine, and what makes room: a small tmpfs, or without the right to
    mount one a limit on the size of files."""
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        yield place, no_large_files, restart
        return
    try:
        yield place, None, lambda engine: enlarge(place)
    finally:
        subprocess.run(["umount", str(place)], check=True)


def enlarge(place: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=200m", str(place)], check=True)


def restart(engine: EngineProcess) -> None:
    engine.stop()
    engine.start()


def no_large_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 * MIB, 20 * MIB))
