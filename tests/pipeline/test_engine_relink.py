"""A VM that came back under a new id goes on with its old history, through a whole engine, over losses and failures."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from engine.api import serve
from engine.commands import BackUpVm
from engine.config import Config
from engine.endpoints import open_endpoints
from engine.failures import BadInput, Declined
from engine.records import Audited
from engine.threads import settled
from policies.facts import Vm, VmId
from storage import joining
from storage.errors import StoreFailed
from tests.console import backstay
from tests.pipeline.hypervisor_in_memory import MIB, HypervisorInMemory
from tests.pipeline.running import Running, configure, running

TWO = """
schema = 1
[policy.everything]
rpo = "24h"
select.all = ["*"]
consistency = { want = "crash", fallback = "crash" }
retention = { keep_last = 1, grace = "0s" }
"""


@pytest.fixture
def hypervisor(tmp_path: Path) -> HypervisorInMemory:
    (tmp_path / "disks").mkdir()
    return HypervisorInMemory(tmp_path / "disks")


async def came_back(
    engine: Running, hypervisor: HypervisorInMemory, *, same_disk: bool = False
) -> tuple[VmId, VmId, Vm]:
    """`web` with a restore point, removed and registered again with other uuids: the old and the new id."""
    first = hypervisor.add("web")
    await engine.until(lambda: engine.points_of("web") == 1)
    [old] = engine.parts.world.named("web")
    hypervisor.remove_vm(first)
    await engine.until(lambda: old not in engine.parts.world.vms)
    again = hypervisor.add("web", data=b"x" * MIB)
    if same_disk:
        disks = (replace(again.disks[0], uuid=first.disks[0].uuid),)
        hypervisor.set(again, disks=disks)
    await engine.until(lambda: any(vm.address == again.address for vm in engine.parts.world.vms.values()))
    [new] = engine.parts.world.named("web")
    assert new != old
    await engine.until(lambda: len(engine.parts.world.points.get(new, ())) == 1)
    await idle(engine)
    return old, new, again


async def idle(engine: Running) -> None:
    await engine.until(lambda: not engine.parts.world.jobs and not engine.parts.crew.active)


async def relinks(engine: Running) -> list[Audited]:
    audited = await settled(engine.parts.threads.state, engine.parts.state.audited)
    return [entry for entry in audited if entry.action == "relink"]


async def changes_of_the_next(engine: Running) -> str:
    done = await engine.finished(await engine.control.submit(BackUpVm("web"), "test"))
    assert done["state"] == "done", done
    shown = await engine.control.point((await engine.control.points("web"))[-1].id)
    return str(shown["disks"][0]["changes"])


async def test_two_histories_become_one_and_the_next_run_reads_in_full(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        old, new, again = await came_back(engine, hypervisor, same_disk=True)
        plan = await engine.control.plan_relink("web", "web")
        assert (plan["old"]["id"], plan["new"]["id"]) == (old, new)
        assert engine.parts.world.named("web") == [new]
        done = await engine.control.relink("web", "web", "a person")
        assert len(done["moved"]) == 1
        assert engine.parts.world.named("web") == [old]
        assert len(await engine.control.points("web")) == 2
        assert await engine.control.points(old) == await engine.control.points("web")
        [entry] = await relinks(engine)
        assert (entry.who, entry.subject) == ("a person", old) and new in entry.detail
        # Nothing is due: policies see the newest good restore point of both.
        await asyncio.sleep(0)
        assert not engine.parts.world.jobs
        assert (await changes_of_the_next(engine)).startswith("whole")
        hypervisor.write(again, 2 * MIB, os.urandom(64 << 10))
        assert await changes_of_the_next(engine) == "incremental"
        assert len(engine.parts.world.points[old]) == 4
        with pytest.raises(Declined, match="one VM already"):
            await engine.control.relink("web", "web", "a person")


async def test_a_joined_history_is_known_after_a_restart_and_after_the_loss_of_state_and_catalog(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    config = configure(tmp_path)
    async with running(tmp_path, hypervisor, config) as engine:
        old, new, _ = await came_back(engine, hypervisor)
        await engine.control.relink(old, new, "a person")
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.parts.world.inventory_known)
        assert engine.parts.world.named("web") == [old] and engine.points_of("web") == 2
        assert new not in engine.parts.world.rows
    for lost in (*(tmp_path / "state").glob("state.duckdb*"), *(tmp_path / "repo").glob("catalog.duckdb*")):
        lost.unlink()
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.parts.world.inventory_known)
        assert engine.parts.world.named("web") == [old] and engine.points_of("web") == 2
        assert list(engine.parts.world.vms) == [old]


async def test_joining_expires_nothing_at_once_not_even_where_a_policy_has_no_grace(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    from engine import upkeep

    async with running(tmp_path, hypervisor, configure(tmp_path, TWO)) as engine:
        old, new, _ = await came_back(engine, hypervisor)
        plan = await engine.control.plan_relink(old, new)
        assert len(plan["retention"]["mark"]) == 1 and "expire" in plan["text"]
        await engine.control.relink(old, new, "a person")
        assert await upkeep.retain(engine.parts) == "0 expired, 0 marked"
        first, second = await engine.control.points("web")
        assert first.locked_until is not None and second.locked_until is None


async def test_a_join_that_the_store_refuses_changes_nothing_and_can_be_asked_for_again(
    tmp_path: Path, hypervisor: HypervisorInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> list[str]:
        raise StoreFailed("the store is away")

    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        old, new, _ = await came_back(engine, hypervisor)
        with monkeypatch.context() as patched:
            patched.setattr("engine.relink.join", fails)
            with pytest.raises(StoreFailed):
                await engine.control.relink(old, new, "a person")
        assert engine.parts.world.named("web") == [new]
        assert not await relinks(engine)
        # Cut short after the repository's part: the join is finished by the next one.
        joining.join(engine.parts.repository, new, old, engine.parts.now())
        await engine.parts.crew.list_all_points()
        assert (await engine.control.relink(old, new, "a person"))["moved"] == []
        assert engine.parts.world.named("web") == [old] and engine.points_of("web") == 2


async def test_a_vm_that_was_not_backed_up_under_its_new_id_yet_is_backed_up_under_the_old_one(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        first = hypervisor.add("web")
        await engine.until(lambda: engine.points_of("web") == 1)
        await idle(engine)
        [old] = engine.parts.world.named("web")
        engine.parts.queue.paused = True
        hypervisor.remove_vm(first)
        hypervisor.add("web")
        await engine.until(lambda: engine.parts.world.jobs)
        [new] = engine.parts.world.named("web")
        assert "join again" in (await engine.control.plan_relink(old, new))["text"]
        assert (await engine.control.relink(old, new, "a person"))["moved"] == []
        assert [job.vm for job in engine.parts.world.jobs.values()] == [old]
        engine.parts.queue.paused = False
        engine.parts.queue.changed()
        # The job stands no longer for a VM that was never backed up: asked again, it is not due.
        await idle(engine)
        assert engine.points_of("web") == 1
        assert (await changes_of_the_next(engine)).startswith("whole")
        assert engine.points_of("web") == 2 and engine.parts.world.named("web") == [old]


async def test_two_vms_that_both_stand_there_stay_two(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        hypervisor.add("web"), hypervisor.add("app")
        await engine.until(lambda: engine.points_of("web") == engine.points_of("app") == 1)
        await idle(engine)
        for call in (engine.control.plan_relink("web", "app"), engine.control.relink("web", "app", "a person")):
            with pytest.raises(Declined, match="both stand in the inventory"):
                await call


@asynccontextmanager
async def served(engine: Running, config: Config) -> AsyncIterator[None]:
    endpoints = open_endpoints(config)
    try:
        async with asyncio.TaskGroup() as group:
            server = group.create_task(serve(engine.control, endpoints, config.api))
            yield
            server.cancel()
    finally:
        endpoints.close()


async def test_the_command_shows_first_and_joins_when_it_is_confirmed(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    config = configure(tmp_path)

    async def run(*words: str, expect: int = 0) -> tuple[str, str]:
        where = ("--config", str(tmp_path / "backstay.toml"))
        ran = await asyncio.to_thread(backstay, "vm", "relink", *words, *where, home=tmp_path, expect=expect)
        return ran.out, ran.err

    (tmp_path / "backstay.toml").write_text(
        f'schema = 1\nstate_dir = "{tmp_path}/state"\n[repository]\npath = "{tmp_path}/repo"\n'
    )
    async with running(tmp_path, hypervisor, config) as engine, served(engine, config):
        old, new, _ = await came_back(engine, hypervisor)
        out, err = await run("web", "web", expect=3)
        assert old in out and new in out and "--yes" in err
        assert engine.parts.world.named("web") == [new]
        out, _ = await run(old, new, "--json", expect=3)
        assert '"joined": false' in out
        assert "no VM is known as nobody" in (await run("nobody", new, expect=2))[1]
        assert "one VM already" in (await run(new, new, expect=5))[1]
        out, err = await run(old, new, "--yes", "--json")
        assert '"joined": true' in out and f"goes on as {old}" in err
        assert engine.parts.world.named("web") == [old]
        [entry] = await relinks(engine)
        assert entry.who
    assert "no engine runs here" in (await run(old, new, expect=6))[1]


async def test_a_vm_is_found_by_the_name_that_it_had_before_it_was_renamed(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        first = hypervisor.add("web")
        await engine.until(lambda: engine.points_of("web") == 1)
        [old] = engine.parts.world.named("web")
        renamed = hypervisor.set(first, name="web-old")
        await engine.until(lambda: engine.parts.world.vms[old].name == "web-old")
        hypervisor.remove_vm(renamed)
        await engine.until(lambda: old not in engine.parts.world.vms)
        hypervisor.add("web", data=b"x" * MIB)
        await engine.until(lambda: len(engine.parts.world.points) == 2)
        await idle(engine)
        [new] = engine.parts.world.vms
        # The VM that is gone is meant by the old name, although the one that stands there is called so now.
        plan = await engine.control.plan_relink("web", "web")
        assert (plan["old"]["id"], plan["old"]["name"], plan["new"]["id"]) == (old, "web-old", new)
        assert f"{old} was called web before." in plan["text"] and f"{new} was" not in plan["text"]
        assert "before" not in (await engine.control.plan_relink("web-old", "web"))["text"]
        await engine.control.relink("web", "web", "a person")
        assert engine.parts.world.named("web") == [old] and engine.points_of("web") == 2


def _has_one_point(engine: Running, name: str) -> bool:
    return engine.points_of(name) == 1


async def test_a_name_that_several_vms_had_is_refused_with_all_of_them(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        gone: list[VmId] = []
        for since in ("web-1", "web-2"):
            vm = hypervisor.add("web")
            await engine.until(lambda: len(engine.parts.world.points) == len(gone) + 1)
            gone.extend(engine.parts.world.vms)
            renamed = hypervisor.set(vm, name=since)
            await engine.until(partial(_has_one_point, engine, since))
            await idle(engine)
            hypervisor.remove_vm(renamed)
            await engine.until(lambda: not engine.parts.world.vms)
        hypervisor.add("app")
        await engine.until(lambda: engine.points_of("app") == 1)
        await idle(engine)
        with pytest.raises(BadInput, match="2 VMs were called web: ") as refused:
            await engine.control.plan_relink("web", "app")
        for id, name in zip(gone, ("web-1", "web-2"), strict=True):
            assert f"{id} ({name}, not in the inventory, newest restore point of " in str(refused.value)
        plan = await engine.control.plan_relink("web-2", "app")
        assert plan["old"]["id"] == gone[1]
