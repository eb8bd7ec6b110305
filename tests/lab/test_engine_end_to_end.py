"""The engine against the lab's vCenter, reading through a real nbdkit: events become verified restore points."""

from __future__ import annotations

import asyncio
import filecmp
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from engine import config as configuration
from engine.commands import BackUpVm, RestoreToFile, RestoreToVm, Verify
from engine.config import Config
from policies.facts import EventType
from storage.repository import create
from tests.lab.vcenter import MIB, Lab
from tests.pipeline.running import Running, engine_of, now

POLICY = """
schema = 1
[policy.everything]
rpo = "24h"
select.all = ["*"]
consistency = { want = "crash", fallback = "crash" }
[[policy.everything.trigger]]
on = ["vm.migrated", "vm.relocated", "vm.powered_off"]
"""

GRAIN = 64 << 10


def config_for(lab: Lab, root: Path, policy: str = POLICY) -> Config:
    root.mkdir(parents=True, exist_ok=True)
    (root / "policies").mkdir(exist_ok=True)
    (root / "policies" / "all.toml").write_text(policy)
    if not (root / "repo").exists():
        create(root / "repo", now=now())
    password = root / "password"
    password.write_text(lab.password)
    password.chmod(0o600)
    file = root / "backstay.toml"
    file.write_text(
        f"""
schema = 1
name = "lab-engine"
state_dir = "state"
policies = "policies"
repository.path = "repo"
[vcenter.lab]
host = "{lab.host}"
port = {lab.port}
user = "{lab.user}"
password = "file:password"
ca_file = "{lab.ca_file}"
[transport]
order = ["nbd"]
plugin = ["python", "{lab.facts()["vddk_plugin"]}"]
libdir = "{lab.root}"
[limits]
total = 2
lanes = 4
threads = 2
[timers]
clock = "1s"
policies = "1s"
"""
    )
    return configuration.load(file)


async def one_point_each(engine: Running, names: list[str]) -> None:
    await engine.until(lambda: all(engine.points_of(name) == 1 for name in names), seconds=90)


async def restored(engine: Running, point: str, disk: str, target: Path) -> Path:
    report = await engine.finished(await engine.control.submit(RestoreToFile(point, target, disk, force=True), "test"))
    assert report["state"] == "done", report
    return target


async def test_one_event_becomes_one_verified_restore_point(fresh_lab: Callable[..., Lab], tmp_path: Path) -> None:
    lab = fresh_lab(vms=2, tracking=True, disk_bytes=32 * MIB)
    names = [vm.name for vm in lab.vms()]
    async with engine_of(config_for(lab, tmp_path / "engine")) as engine:
        await one_point_each(engine, names)
        name = names[0]
        extents = await asyncio.to_thread(lab.write_random_grains, name, 0, share=0.01, seed=7)
        await asyncio.to_thread(lab.drs_move, name)
        await engine.until(lambda: engine.points_of(name) == 2, seconds=60)
        point = (await engine.control.points(name))[-1]
        shown = await engine.control.point(point.id)
        assert shown["attributes"]["rule"] == "trigger[0]"
        disk = shown["disks"][0]
        assert disk["changes"] == "incremental"
        assert disk["transport"] == "nbd"
        assert 0 < disk["read_bytes"] <= (len(extents) + 4) * GRAIN
        frozen = lab.frozen(name)[-1]
        for kept, record in zip(frozen.disks, shown["disks"], strict=True):
            target = await restored(engine, point.id, record["label"], tmp_path / "restored.raw")
            assert filecmp.cmp(target, kept.image, shallow=False)
        report = await engine.finished(await engine.control.submit(Verify(), "test"))
        assert report["sound"], report
        assert not lab.vm(name).snapshots


async def test_a_restore_point_becomes_a_new_vm_with_the_same_bytes(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=32 * MIB)
    [vm] = lab.vms()
    async with engine_of(config_for(lab, tmp_path / "engine")) as engine:
        await one_point_each(engine, [vm.name])
        report = await engine.finished(
            await engine.control.submit(RestoreToVm(f"{vm.name}@latest", "back-again"), "test")
        )
        assert report["state"] == "done", report
        made = lab.vm("back-again")
        frozen = lab.frozen(vm.name)[-1]
        for kept, disk in zip(frozen.disks, made.disks, strict=True):
            assert filecmp.cmp(kept.image, disk.flat, shallow=False)


async def test_the_journal_equals_the_labs_own_log_after_5000_events_three_restarts_and_two_lost_sessions(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = fresh_lab(vms=2, tracking=True, disk_bytes=8 * MIB)
    config = config_for(lab, tmp_path / "engine", 'schema = 1\n[policy.manual]\nselect.all = ["*"]\n')
    names = [vm.name for vm in lab.vms()]
    before: set[int] = set()
    for start in range(4):
        async with engine_of(config) as engine:
            await engine.until(lambda: any(key.endswith("/events") for key in engine.parts.sources.alive), seconds=30)
            if start == 0:
                before = set(posted(lab))
            for name in names:
                await asyncio.to_thread(lab.post_event, "VmRenamedEvent", name, count=500)
            if start in (1, 2):
                await asyncio.to_thread(lab.kill_sessions)
            for name in names:
                await asyncio.to_thread(lab.post_event, "VmPoweredOffEvent", name, count=75)
            await journaled(engine, set(posted(lab)) - before)
        # What happens while no engine runs is told at the next start.
        await asyncio.to_thread(lab.post_event, "VmRenamedEvent", names[0], count=120)
    async with engine_of(config) as engine:
        wanted = [key for key in posted(lab) if key not in before]
        assert len(wanted) >= 5000
        await journaled(engine, set(wanted))
        assert sorted(await vcenter_keys(engine)) == sorted(wanted)
        found = [key for key in await engine.event_keys() if key.startswith("reconcile:")]
        assert found == []


async def journaled(engine: Running, wanted: set[int]) -> None:
    async with asyncio.timeout(90):
        while not wanted <= set(await vcenter_keys(engine)):  # noqa: ASYNC110  the journal has no event to wait for
            await asyncio.sleep(0.2)


async def vcenter_keys(engine: Running) -> list[int]:
    """vCenter's own keys of the events in the journal, in order, one for each effect."""
    return [int(key.rpartition(":")[2]) for key in await engine.event_keys() if key.startswith("vc:")]


def posted(lab: Lab) -> list[int]:
    """The same of the lab's log, of the types that were posted here."""
    return [event.key for event in lab.event_log() if event.type in ("VmRenamedEvent", "VmPoweredOffEvent")]


async def test_a_vm_that_moves_while_its_disk_is_read_is_backed_up_whole(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=32 * MIB)
    [vm] = lab.vms()
    config = config_for(lab, tmp_path / "engine", POLICY.replace('"vm.migrated", "vm.relocated", ', ""))
    with lab.nbd_fault(delay_ms=40):
        async with engine_of(config) as engine:
            await engine.until(lambda: any(a.tally.done for a in engine.parts.crew.active.values()), seconds=60)
            await asyncio.to_thread(lab.migrate, vm.name)
            await one_point_each(engine, [vm.name])
            point = (await engine.control.points(vm.name))[-1]
            record = (await engine.control.point(point.id))["disks"][0]
            target = await restored(engine, point.id, record["label"], tmp_path / "restored.raw")
            assert filecmp.cmp(target, lab.frozen(vm.name)[-1].disks[0].image, shallow=False)
            assert EventType.MIGRATED in {row[1] for row in await events(engine)}


async def events(engine: Running) -> list[tuple[object, ...]]:
    return await asyncio.wrap_future(engine.parts.threads.state.submit(engine.parts.state.events))


async def test_an_operators_backup_reports_what_it_did(fresh_lab: Callable[..., Lab], tmp_path: Path) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=8 * MIB)
    [vm] = lab.vms()
    nothing = 'schema = 1\n[policy.manual]\nselect.all = ["*"]\n'
    async with engine_of(config_for(lab, tmp_path / "engine", nothing)) as engine:
        await engine.until(lambda: engine.parts.world.named(vm.name), seconds=30)
        report = await engine.finished(await engine.control.submit(BackUpVm(vm.name), "test"))
        assert report["state"] == "done", report
        assert report["vm"] == vm.name


async def test_an_engine_that_is_killed_after_a_pack_recovers_and_leaves_no_snapshot(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=192 * MIB)
    [vm] = lab.vms()
    for offset in range(0, 160 * MIB, 16 * MIB):
        lab.write_as_guest(vm.name, 0, 16 * MIB + offset, os.urandom(16 * MIB))
    config = config_for(lab, tmp_path / "engine")
    environment = {**os.environ, "BACKSTAY_FAILPOINT": "pack.sealed"}
    with (tmp_path / "log").open("wb") as log:
        victim = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "engine", "run", "--config", str(tmp_path / "engine" / "backstay.toml")),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        async with asyncio.timeout(90):
            assert await victim.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert lab.vm(vm.name).snapshots
    assert list((tmp_path / "engine" / "repo" / "packs").rglob("*"))
    assert not list((tmp_path / "engine" / "repo" / "manifests").iterdir())
    async with engine_of(config) as engine:
        await one_point_each(engine, [vm.name])
        assert not lab.vm(vm.name).snapshots
        [point] = await engine.control.points(vm.name)
        target = await restored(engine, point.id, "", tmp_path / "restored.raw")
        assert filecmp.cmp(target, lab.frozen(vm.name)[-1].disks[0].image, shallow=False)
        assert await asyncio.wrap_future(engine.parts.threads.state.submit(engine.parts.state.intents)) == []
