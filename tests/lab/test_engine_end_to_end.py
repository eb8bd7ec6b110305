"""The engine against the lab's vCenter, reading through a real nbdkit: events become verified restore points."""

from __future__ import annotations

import asyncio
import filecmp
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import nats
import pytest

from engine import config as configuration
from engine.commands import BackUpVm, RestoreToFile, RestoreToVm, Verify
from engine.config import Config
from engine.failures import Exit, verdict
from policies.facts import EventType
from storage.repository import create
from tests.lab.nats import nats_server
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


def config_for(
    lab: Lab, root: Path, policy: str = POLICY, *, order: str = "nbd", proxy: str = "", more: str = "", **told: str
) -> Config:
    """A configuration on disk for the lab; `told` replaces what it says of the vCenter."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "policies").mkdir(exist_ok=True)
    (root / "policies" / "all.toml").write_text(policy)
    if not (root / "repo").exists():
        create(root / "repo", now=now())
    password = root / "password"
    password.write_text(told.get("password", lab.password))
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
order = ["{order}"]
plugin = ["python", "{lab.facts()["vddk_plugin"]}"]
libdir = "{lab.root}"
proxy = "{proxy}"
device_folder = "{lab.device_folder}"
[limits]
total = 2
lanes = 4
threads = 2
[timers]
clock = "1s"
policies = "1s"
janitor = "2s"
{more}
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
    policy = POLICY.replace("consistency =", 'on_migrate = "block"\nconsistency =')
    config = config_for(lab, tmp_path / "engine", policy)
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
    assert lab.disabled_methods(vm.name)
    assert list((tmp_path / "engine" / "repo" / "packs").rglob("*"))
    assert not list((tmp_path / "engine" / "repo" / "manifests").iterdir())
    async with engine_of(config) as engine:
        await one_point_each(engine, [vm.name])
        assert not lab.vm(vm.name).snapshots
        assert not lab.disabled_methods(vm.name)
        [point] = await engine.control.points(vm.name)
        target = await restored(engine, point.id, "", tmp_path / "restored.raw")
        assert filecmp.cmp(target, lab.frozen(vm.name)[-1].disks[0].image, shallow=False)
        assert await asyncio.wrap_future(engine.parts.threads.state.submit(engine.parts.state.intents)) == []


async def test_a_disk_is_read_by_hot_add_and_detached_again(fresh_lab: Callable[..., Lab], tmp_path: Path) -> None:
    lab = fresh_lab(vms=3, tracking=True, disk_bytes=16 * MIB)
    [vm, proxy, _] = lab.vms()
    only = f'schema = 1\n[policy.one]\nrpo = "24h"\nselect.all = ["name:{vm.name}"]\n'
    config = config_for(lab, tmp_path / "engine", only, order='hotadd", "nbd', proxy=proxy.name)
    async with engine_of(config) as engine:
        await one_point_each(engine, [vm.name])
        [point] = await engine.control.points(vm.name)
        shown = await engine.control.point(point.id)
        assert [disk["transport"] for disk in shown["disks"]] == ["hotadd"] * len(vm.disks)
        target = await restored(engine, point.id, shown["disks"][0]["label"], tmp_path / "restored.raw")
        assert filecmp.cmp(target, lab.frozen(vm.name)[-1].disks[0].image, shallow=False)
    assert [disk.file for disk in lab.vm(proxy.name).disks] == [disk.file for disk in proxy.disks]
    assert not lab.vm(vm.name).snapshots


async def test_a_vcenter_that_goes_away_in_the_middle_of_a_backup_loses_nothing(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=32 * MIB)
    [vm] = lab.vms()
    async with engine_of(config_for(lab, tmp_path / "engine")) as engine:
        await one_point_each(engine, [vm.name])
        await asyncio.to_thread(lab.write_random_grains, vm.name, 0, share=0.5, seed=3)
        with lab.nbd_fault(delay_ms=100):
            task = await engine.control.submit(BackUpVm(vm.name), "test")
            await engine.until(lambda: any(a.tally.done for a in engine.parts.crew.active.values()), seconds=60)
            await asyncio.to_thread(lab.outage, 12.0)
        ended = await engine.finished(task)
        assert engine.points_of(vm.name) >= 1
        if ended["state"] == "failed":
            assert ended["exit"] in (6, 75), ended
            assert "tried again at" in str(ended["sentence"])
        again = await engine.finished(await engine.control.submit(BackUpVm(vm.name), "test"))
        assert again["state"] == "done", again
        await engine.until(lambda: not lab.vm(vm.name).snapshots, seconds=30)
        target = await restored(engine, str(again["id"]), "", tmp_path / "restored.raw")
        assert filecmp.cmp(target, lab.frozen(vm.name)[-1].disks[0].image, shallow=False)


async def test_a_wrong_password_ends_the_start_with_its_own_error(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with engine_of(config_for(lab, tmp_path / "engine", password="wrong")) as engine:
            await engine.until(lambda: engine.parts.world.complete)
    assert verdict(caught.value).exit_code is Exit.UNREACHABLE
    assert "password" in verdict(caught.value).sentence or "login" in verdict(caught.value).sentence.lower()


async def test_messages_back_up_and_hold_once_however_often_they_come(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=8 * MIB)
    [vm] = lab.vms()
    manual = 'schema = 1\n[policy.manual]\nselect.all = ["*"]\n'
    with nats_server(tmp_path / "nats") as server:
        more = f'[bus]\nservers = "{server.url}"\nsite = "lab"\n'
        async with engine_of(config_for(lab, tmp_path / "engine", manual, more=more)) as engine:
            await engine.until(lambda: engine.parts.bus is not None and engine.parts.world.complete, seconds=30)
            client = await nats.connect(server.url)
            try:
                stream = client.jetstream()
                for _ in range(2):
                    await stream.publish("backstay.v1.lab.cmd.backup", command("backup", vm.name, "b-1"))
                await engine.until(lambda: engine.points_of(vm.name) == 1, seconds=60)
                await stream.publish("backstay.v1.lab.cmd.hold", command("hold", vm.name, "h-1"))
                await stream.publish("backstay.v1.lab.cmd.hold", b"this is not JSON")
                [vm_id] = engine.parts.world.named(vm.name)
                await engine.until(lambda: engine.parts.world.points[vm_id][0].holds, seconds=30)
            finally:
                await client.close()
            assert engine.points_of(vm.name) == 1
            assert len([key for key in await engine.event_keys() if key.startswith("nats")]) == 2


def command(what: str, vm: str, id: str) -> bytes:
    return json.dumps(
        {
            "specversion": "1.0",
            "id": id,
            "source": "/tests",
            "type": f"io.backstay.command.{what}.v1",
            "data": {"vm": {"name": vm}, "reason": "a test asks"},
        }
    ).encode()
