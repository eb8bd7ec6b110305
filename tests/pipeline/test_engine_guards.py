"""What must not happen by itself: wrong histories, mass expiry, building on damage, runs that are not due any more."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from connectors.hypervisor import Cursor, EventBatch
from engine import upkeep
from engine.commands import BackUpVm, RestoreToFile
from engine.inbox import Happened
from engine.jobs import Job, JobId, JobKind
from engine.maintenance import carry_out_run, plan_apart, plan_run
from engine.needed import still_due
from policies.facts import Address, Event, EventType, Facts, PointId, RestorePoint, Vm, VmId
from policies.loading import load_texts
from storage.errors import NoSpace
from storage.marks import MarkKind
from tests.pipeline.hypervisor_in_memory import MIB, HypervisorInMemory
from tests.pipeline.running import EVERYTHING, Running, configure, now, running

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
KEEP_ONE = EVERYTHING + '[policy.everything.retention]\nkeep_last = 1\ngrace = "0s"\n'


@pytest.fixture
def hypervisor(tmp_path: Path) -> HypervisorInMemory:
    (tmp_path / "disks").mkdir()
    return HypervisorInMemory(tmp_path / "disks")


async def backed_up(engine: Running, name: str) -> str:
    result = await engine.finished(await engine.control.submit(BackUpVm(name), "test"))
    assert result["state"] == "done", result
    return str(result["id"])


async def test_retention_expires_what_no_rule_keeps_but_never_what_is_held(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path, KEEP_ONE)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        [first] = await engine.control.points("web")
        await engine.control.hold(first.id, "the first one", "root")
        second = await backed_up(engine, "web")
        third = await backed_up(engine, "web")
        assert await upkeep.retain(engine.parts) == "1 expired, 0 marked"
        assert [p.id for p in await engine.control.points("web")] == [first.id, third]
        assert engine.points_of("web") == 2
        assert second not in {p.id for p in await engine.control.points(None)}


@pytest.mark.parametrize("meanwhile", ["damage is found", "policies change"])
async def test_what_happens_between_plan_and_expiry_keeps_restore_points(
    tmp_path: Path, hypervisor: HypervisorInMemory, meanwhile: str
) -> None:
    hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path, KEEP_ONE)) as engine:
        parts = engine.parts
        await engine.until(lambda: engine.points_of("web") == 1)
        [first] = await engine.control.points("web")
        second, third = await backed_up(engine, "web"), await backed_up(engine, "web")
        planned = await plan_apart(
            dict(parts.world.points), parts.world, parts.rulebook.in_force, parts.threads, now=now(), max_expire=None
        )
        assert {one.point for one in planned.expire} == {first.id, second}
        if meanwhile == "damage is found":
            for point in (second, third):
                parts.repository.add_mark(PointId(point), MarkKind.DAMAGED, now(), "a changed byte")
        else:
            parts.rulebook.in_force = load_texts({"all.toml": KEEP_ONE.replace("keep_last = 1", "keep_last = 3")})
        done = await carry_out_run(planned, parts.repository, parts.threads, parts.still_going, now=now())
        assert done.expired == ()
        assert [point.id for point in parts.repository.points()] == [first.id, second, third]


async def test_retention_waits_until_the_inventory_is_known(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path, KEEP_ONE)) as engine:
        engine.parts.unreachable["other"] = "no answer"
        assert "waits" in await upkeep.retain(engine.parts)


def point(number: int) -> RestorePoint:
    return RestorePoint(PointId(f"p{number:03}"), VmId("web"), "web", NOW - timedelta(hours=number))


def test_a_run_that_would_expire_too_much_at_once_is_refused_whole() -> None:
    policies = load_texts({"a.toml": KEEP_ONE})
    web = _vm()
    run = plan_run({web.id: tuple(point(n) for n in range(30))}, {web.id: web}, policies, now=NOW)
    assert len(run.expire) == 29
    assert "29 of 30" in run.refusal
    few = plan_run({web.id: tuple(point(n) for n in range(5))}, {web.id: web}, policies, now=NOW)
    assert (len(few.expire), few.refusal) == (4, "")
    limited = plan_run({web.id: tuple(point(n) for n in range(5))}, {web.id: web}, policies, now=NOW, max_expire=3)
    assert "maintenance.max_expire" in limited.refusal


async def test_a_lost_state_never_leads_to_an_expiry_that_nobody_confirmed(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    config = configure(tmp_path)
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        await backed_up(engine, "web")
    for file in config.state_dir.glob("state.duckdb*"):
        file.unlink()
    (tmp_path / "policies" / "all.toml").write_text(KEEP_ONE)
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: (plan := engine.parts.rulebook.plan) is not None and plan.expiring)
        assert await upkeep.retain(engine.parts) == "0 expired, 0 marked"
        pending = await engine.control.pending_policies()
        await engine.control.apply_policies(pending["digest"], "root")
        assert await upkeep.retain(engine.parts) == "1 expired, 0 marked"


async def test_a_clone_with_its_origins_identifiers_gets_a_history_of_its_own(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    origin = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        clone = hypervisor.add("web-copy")
        hypervisor.set(clone, instance_uuid=origin.instance_uuid, bios_uuid=origin.bios_uuid)
        await engine.until(lambda: engine.points_of("web-copy") == 1)
        [first], [second] = engine.parts.world.named("web"), engine.parts.world.named("web-copy")
        assert first != second
        health = await engine.control.health()
        assert any("may be a copy" in sentence for sentence in health["problems"])


async def test_a_damaged_base_costs_a_full_read_not_the_next_restore_point(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    vm = hypervisor.add("web")
    config = configure(tmp_path)
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
    [manifest] = [path for path in (tmp_path / "repo" / "manifests").rglob("*") if path.is_file()]
    spoilt = bytearray(manifest.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    manifest.chmod(0o600)
    manifest.write_bytes(spoilt)
    hypervisor.write(vm, MIB, os.urandom(1000))
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.parts.world.complete)
        made = await backed_up(engine, "web")
        target = tmp_path / "restored.raw"
        done = await engine.finished(await engine.control.submit(RestoreToFile(made, target), "test"))
        assert done["state"] == "done", done
        assert target.read_bytes() == hypervisor.disk_file(vm).read_bytes()


async def test_a_storm_of_5000_events_is_journaled_in_one_go_and_leads_to_one_run(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    vm = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        storm = tuple(
            Event(f"vc:vc-1:{n}", EventType.MIGRATED, datetime.now(UTC), "vcenter:vc-1", address=vm.address)
            for n in range(1, 5001)
        )
        batch = EventBatch(storm, Cursor("vc-1", datetime.now(UTC), 5000))
        began = time.monotonic()
        await engine.parts.inbox.put(Happened("vc-1", batch))
        assert time.monotonic() - began < 20
        assert len(await engine.event_keys()) >= 5000
        await engine.until(lambda: engine.points_of("web") >= 2)
        await engine.until(lambda: not engine.parts.world.jobs)
        assert engine.points_of("web") <= 3
        again = await asyncio.wait_for(engine.parts.inbox.put(Happened("vc-1", batch)), 20)
        assert again == ()


def _vm() -> Vm:
    return Vm(VmId("web"), Address("vc", "vm-1"), "web")


def _job(**more: object) -> Job:
    base = Job(JobId("j"), "k", JobKind.BACKUP, VmId("web"), "everything", "rpo", "it was time", NOW, NOW)
    return replace(base, **more)  # type: ignore[arg-type]


def test_a_job_runs_only_while_it_is_due() -> None:
    vm = _vm()
    policies = load_texts({"a.toml": EVERYTHING})
    none = load_texts({"a.toml": EVERYTHING.replace('["*"]', '["name:db"]')})
    facts = Facts(NOW, {vm.id: vm})
    fresh = replace(facts, points={vm.id: (point(1),)})
    assert still_due(_job(), vm, policies, facts) == ""
    assert "not due" in still_due(_job(), vm, policies, fresh)
    assert still_due(_job(rule="trigger[0]"), vm, policies, fresh) == ""
    assert "no policy selects" in still_due(_job(), vm, none, facts)
    assert still_due(_job(rule="request", manual=True), vm, none, fresh) == ""
    refused = replace(vm, refusal="it is a template")
    assert still_due(_job(manual=True), refused, policies, facts) == "it is a template"


async def test_a_vm_is_not_backed_up_while_it_is_being_restored(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        with engine.parts.crew.restoring("vc-1", "again"):
            hypervisor.add("again")
            await engine.until(lambda: any(job.last_error for job in engine.parts.world.jobs.values()))
            [job] = engine.parts.world.jobs.values()
            assert (job.last_error, job.attempts) == ("the VM is being restored, or half restored", 0)
            assert "snapshot again" not in hypervisor.log


async def test_a_full_disk_under_state_and_repository_stops_runs_but_neither_engine_nor_memory(
    tmp_path: Path, hypervisor: HypervisorInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    hypervisor.add("web")
    config = configure(tmp_path)
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)

        def full(*_: object, **__: object) -> None:
            raise NoSpace("the disk is full", where=str(tmp_path))

        with monkeypatch.context() as patched:
            patched.setattr(engine.parts.state, "settle", full)
            patched.setattr(engine.parts.repository, "new_point", full)
            failed = await engine.finished(await engine.control.submit(BackUpVm("web"), "test"))
            assert (failed["state"], failed["exit"]) == ("failed", 7)
            assert engine.points_of("web") == 1
        await backed_up(engine, "web")
        assert engine.points_of("web") == 2
    assert all(not held for held in hypervisor.snapshots.values())


async def test_a_run_does_not_build_on_what_was_before_a_newest_restore_point_that_is_gone(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    vm = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        hypervisor.write(vm, MIB, os.urandom(1000))
        detail = engine.parts.repository.detail
        newest = await backed_up(engine, "web")
        assert detail(PointId(newest)).disks[0].head.attributes["changes"] == "incremental"
        await engine.control.expire(newest, "a test", "test")
        made = await backed_up(engine, "web")
        assert "the newest restore point is gone" in detail(PointId(made)).disks[0].head.attributes["changes"]
        again = await backed_up(engine, "web")
        assert detail(PointId(again)).disks[0].head.attributes["changes"] == "incremental"


async def test_a_clock_that_differs_from_vcenters_deletes_nothing(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    hypervisor.ahead = timedelta(hours=-1)
    async with running(tmp_path, hypervisor, configure(tmp_path, KEEP_ONE)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1 and engine.parts.sources.skews)
        await backed_up(engine, "web")
        assert "clock" in await upkeep.retain(engine.parts)
        assert "clock" in await upkeep.reclaim(engine.parts)
        assert engine.points_of("web") == 2
        assert any("clock" in problem for problem in (await engine.control.health())["problems"])
        engine.parts.sources.skews["vc-1"] = 1.0
        await upkeep.retain(engine.parts)
        assert engine.points_of("web") == 1
