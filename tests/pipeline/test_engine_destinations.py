"""Further repositories of an engine, and policies that name one of them as their destination."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from engine import further, overview, second_copies, upkeep
from engine.cli.reach import further_named
from engine.client import Engine
from engine.commands import BackUpDisk, BackUpVm, Reclaim, RestoreToFile, Verify
from engine.failures import BadInput
from engine.startup import take_up
from policies.facts import RestorePoint, VmId
from storage.copies import copy_points, plan_copy
from storage.errors import NoSuchPoint, StoreFailed
from storage.repository import create, open_repository
from tests.pipeline.hypervisor_in_memory import HypervisorInMemory
from tests.pipeline.running import Running, configure, now, running

POLICIES = """
schema = 1
[guard]
max_expire_share = "100%"
[template.all]
rpo = "24h"
consistency = { want = "crash", fallback = "crash" }
retention = { keep_last = 2, grace = "0s" }
[policy.near]
template = "all"
select.all = ["name:web"]
[policy.far]
template = "all"
select.all = ["name:db"]
destination = "archive"
"""
SECTION = """
[repositories.archive]
path = "archive"
"""
MOVED = POLICIES.replace('"name:web"', '"name:nobody"').replace('"name:db"', '"name:*"')


@pytest.fixture
def hypervisor(tmp_path: Path) -> HypervisorInMemory:
    (tmp_path / "disks").mkdir()
    found = HypervisorInMemory(tmp_path / "disks")
    found.add("web")
    found.add("db")
    create(tmp_path / "archive", now=now())
    return found


def of(engine: Running, name: str) -> list[RestorePoint]:
    return [point for vm in engine.parts.world.named(name) for point in engine.parts.world.points.get(vm, ())]


async def both(engine: Running) -> None:
    await engine.until(lambda: engine.points_of("web") and engine.points_of("db"))


async def back_up(engine: Running, name: str) -> dict[str, object]:
    done = await engine.finished(await engine.control.submit(BackUpVm(name), "test"))
    assert done["state"] == "done", done
    return done


async def change(engine: Running, policies: str) -> None:
    (Path(engine.parts.config.policies) / "all.toml").write_text(policies)
    pending = await engine.control.pending_policies()
    if pending:
        await engine.control.apply_policies(pending["digest"], "root", override_guard=True)


async def test_each_vm_goes_to_the_repository_that_its_policy_names_and_comes_back_from_there(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    async with running(tmp_path, hypervisor, configure(tmp_path, POLICIES, more=SECTION)) as engine:
        await both(engine)
        assert [point.repository for point in of(engine, "web")] == [""]
        assert [point.repository for point in of(engine, "db")] == ["archive"]
        assert [point.vm_name for point in engine.parts.repository.points()] == ["web"]
        listed = await engine.control.points(None)
        assert sorted((point.vm_name, point.repository) for point in listed) == [("db", "archive"), ("web", "")]
        for name in ("web", "db"):
            (point,) = of(engine, name)
            told = await engine.control.point(point.id)
            assert (told["vm"], told["repository"]) == (name, {"web": "", "db": "archive"}[name])
            target = tmp_path / f"{name}.raw"
            task = await engine.control.submit(RestoreToFile(f"{name}@latest", target), "test")
            assert (await engine.finished(task))["state"] == "done"
            (disk,) = (tmp_path / "disks").glob(f"*{name}*")
            assert target.read_bytes() == disk.read_bytes()
            await engine.control.hold(point.id, "audit", "root")
            assert [one.holds for one in of(engine, name)] == [("audit",)]
            await engine.control.release(point.id, None, "root")
            said = await engine.control.explain_point(point.id)
            assert said["reasons"][0].startswith(f"policy {'near' if name == 'web' else 'far'}: keep_last")
        assert [(one["name"], one["points"]) for one in (await engine.control.status())["repositories"]] == [
            ("archive", 1)
        ]
        sample = engine.parts.metrics.registry.get_sample_value
        await overview.publish_repository(engine.parts)
        assert sample("backstay_restore_points", {"repository": "archive"}) == 1
        db = of(engine, "db")[0]
        await engine.control.expire(db.id, "by hand", "root", last=True)
        assert of(engine, "db") == []
    with open_repository(tmp_path / "archive", now=now) as archive:
        assert archive.points() == []


async def test_a_vm_that_changes_its_destination_begins_with_a_full_read_there_and_its_old_points_age(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    async with running(tmp_path, hypervisor, configure(tmp_path, POLICIES, more=SECTION)) as engine:
        await both(engine)
        await back_up(engine, "web")
        await change(engine, MOVED)
        done = await back_up(engine, "web")
        assert done["repository"] == "archive"
        assert "there is no base" in str(done["disks"])
        assert [point.repository for point in of(engine, "web")] == ["", "", "archive"]
        assert await upkeep.retain(engine.parts) == "1 expired, 0 marked"
        assert [point.repository for point in of(engine, "web")] == ["", "archive"]
        again = await back_up(engine, "web")
        assert "another repository" not in str(again["disks"])
        assert await upkeep.retain(engine.parts) == "1 expired, 0 marked"
        assert [point.repository for point in of(engine, "web")] == ["archive", "archive"]
        await change(engine, POLICIES)
        back = await back_up(engine, "web")
        assert back["repository"] == ""
        await change(engine, MOVED)
        once_more = await back_up(engine, "web")
        assert "in another repository" in str(once_more["disks"]), "what lies there is older than what is elsewhere"


async def test_retention_verification_and_reclaim_run_in_each_repository(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    config = configure(tmp_path, POLICIES, more=SECTION + '[maintenance]\norphan_pack = "0s"\n')
    async with running(tmp_path, hypervisor, config) as engine:
        await both(engine)
        for name in ("web", "db"):
            await back_up(engine, name)
            await back_up(engine, name)
        assert await upkeep.retain(engine.parts) == "2 expired, 0 marked"
        assert [len(of(engine, name)) for name in ("web", "db")] == [2, 2]
        assert "0 damaged objects" in await upkeep.verify(engine.parts)
        said = await further.verify(engine.parts)
        assert said.startswith("archive: ")
        assert said.endswith(" bytes read, 0 damaged")
        assert engine.parts.verified_further["archive"].at is not None
        assert (await further.reclaim(engine.parts)).startswith("archive: ")
        here = await engine.finished(await engine.control.submit(Verify(), "test"))
        there = await engine.finished(await engine.control.submit(Verify(repository=str(tmp_path / "archive")), "test"))
        assert here["checked_points"] == there["checked_points"] == 2
        named = await engine.finished(await engine.control.submit(Verify((of(engine, "db")[0].id,)), "test"))
        assert (named["state"], named["checked_points"]) == ("done", 1)
        asked = Reclaim(repository=str(tmp_path / "archive"), plan_only=True)
        assert (await engine.finished(await engine.control.submit(asked, "test")))["state"] == "done"
        wrong = await engine.finished(await engine.control.submit(Reclaim(repository="/nowhere"), "test"))
        assert wrong["state"] == "failed"
        assert "no repository open there" in str(wrong)


async def test_damage_in_one_repository_is_told_of_its_restore_points_alone(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    async with running(tmp_path, hypervisor, configure(tmp_path, POLICIES, more=SECTION)) as engine:
        await both(engine)
        packs = [one for one in (tmp_path / "archive" / "packs").rglob("*") if one.is_file()]
        pack = max(packs, key=lambda one: one.stat().st_size)
        data = bytearray(pack.read_bytes())
        data[len(data) // 2] ^= 1
        pack.chmod(0o600)
        pack.write_bytes(data)
        asked = Verify(repository=str(tmp_path / "archive"), scope="full", anew=True)
        report = await engine.finished(await engine.control.submit(asked, "test"))
        assert report["damaged"]
        assert [point.damaged for point in of(engine, "db")] == [True]
        assert [point.damaged for point in of(engine, "web")] == [False]
        assert "0 damaged objects" in await upkeep.verify(engine.parts)
        await back_up(engine, "web")


async def test_a_repository_that_is_away_stops_only_what_needs_it_and_is_taken_up_when_it_is_back(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    config = configure(tmp_path, POLICIES, more=SECTION)
    async with running(tmp_path, hypervisor, config) as engine:
        await both(engine)
        made = of(engine, "db")
    (tmp_path / "archive").rename(tmp_path / "away")
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.parts.world.inventory_known)
        (told,) = [one for one in overview.problems(engine.parts) if "archive" in one]
        assert told.startswith("repository archive is away: ")
        assert engine.parts.world.unseen_repositories == {"archive"}
        await back_up(engine, "web")
        failed = await engine.finished(await engine.control.submit(BackUpVm("db"), "test"))
        assert failed["state"] == "failed"
        assert "repository archive is away" in str(failed)
        with pytest.raises(NoSuchPoint):
            await engine.control.hold(made[0].id, "audit", "root")
        assert "0 damaged objects" in await upkeep.verify(engine.parts)
        assert await upkeep.retain(engine.parts) == "0 expired, 0 marked"
        assert await further.reclaim(engine.parts) == "archive is away"
        (tmp_path / "policies" / "all.toml").write_text(POLICIES.replace("keep_last = 2", "keep_last = 1"))
        pending = await engine.control.pending_policies()
        assert any("repository archive is away" in sentence for sentence in pending["sentences"])
        (tmp_path / "away").rename(tmp_path / "archive")
        assert await take_up(engine.parts) == "all are open"
        assert of(engine, "db") == made
        assert not engine.parts.world.unseen_repositories
        assert not any("is away" in one for one in (await engine.control.pending_policies())["sentences"])
        await back_up(engine, "db")
        assert [point.repository for point in of(engine, "db")] == ["archive", "archive"]


async def test_a_further_repository_that_another_process_has_is_away_and_one_of_another_key_too(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    (tmp_path / "key").write_text("wrong")
    (tmp_path / "key").chmod(0o600)
    create(tmp_path / "sealed", now=now(), passphrase="right")
    more = SECTION + '[repositories.sealed]\npath = "sealed"\npassphrase = "file:key"\n'
    with open_repository(tmp_path / "archive", now=now, owner="somebody else"):
        async with running(tmp_path, hypervisor, configure(tmp_path, POLICIES, more=more)) as engine:
            await engine.until(lambda: engine.points_of("web"))
            assert engine.parts.repositories.away.keys() == {"archive", "sealed"}
            assert of(engine, "db") == []
    with open_repository(tmp_path / "archive", now=now) as archive:
        assert archive.points() == []


async def test_an_unknown_destination_is_told_and_backs_nothing_up_elsewhere(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    policies = POLICIES.replace('"archive"', '"archvie"')
    async with running(tmp_path, hypervisor, configure(tmp_path, policies, more=SECTION)) as engine:
        await engine.until(lambda: engine.points_of("web"))
        assert any("has no [repositories.archvie]" in one for one in overview.problems(engine.parts))
        failed = await engine.finished(await engine.control.submit(BackUpVm("db"), "test"))
        assert "the configuration has no [repositories.archvie]" in str(failed)
        assert engine.points_of("db") == 0


async def test_second_copies_are_made_from_every_repository(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    create(tmp_path / "offsite", now=now())
    policies = POLICIES.replace("[policy.near]", 'copies = ["offsite"]\n[policy.near]')
    more = SECTION + '[copies.offsite]\npath = "offsite"\n'
    async with running(tmp_path, hypervisor, configure(tmp_path, policies, more=more)) as engine:
        await both(engine)
        said = await second_copies.copy_all(engine.parts)
        assert said == "offsite: 2 restore points copied, 0 there already; 0 expired"
        again = await second_copies.copy_all(engine.parts)
        assert again == "offsite: 0 restore points copied, 2 there already; 0 expired"


async def test_what_two_repositories_have_counts_once_and_the_beginning_of_an_id_finds_it(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    async with running(tmp_path, hypervisor, configure(tmp_path, POLICIES, more=SECTION)) as engine:
        await both(engine)
        repositories = engine.parts.repositories
        web, db = of(engine, "web")[0], of(engine, "db")[0]
        archive = repositories.more["archive"]
        copy_points(repositories.first, archive, plan_copy(repositories.first, archive), now=now)
        await engine.parts.crew.list_all_points()
        assert [point.repository for point in of(engine, "web")] == [""]
        assert repositories.find(web.id[:-2]) == web.id
        assert repositories.find("web@latest") == web.id
        assert repositories.find(db.id) == db.id
        with pytest.raises(NoSuchPoint):
            repositories.find("20")
        with pytest.raises(NoSuchPoint):
            repositories.find("nobody@latest")
        assert repositories.at(f"{tmp_path}/archive/") == "archive"
        with pytest.raises(BadInput):
            repositories.at("/nowhere")
        await engine.control.expire(web.id, "by hand", "root", last=True)
        assert [point.repository for point in of(engine, "web")] == ["archive"]


async def test_a_repository_that_stops_answering_loses_nothing_and_stops_no_retention_elsewhere(
    tmp_path: Path, hypervisor: HypervisorInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, hypervisor, configure(tmp_path, POLICIES, more=SECTION)) as engine:
        await both(engine)
        for name in ("web", "db"):
            await back_up(engine, name)
            await back_up(engine, name)
        before = of(engine, "db")

        def fails(*args: object, **more: object) -> None:
            raise StoreFailed("no answer", where="archive")

        archive = engine.parts.repositories.more["archive"]
        for name in ("points", "expire", "mark_expiring"):
            monkeypatch.setattr(archive, name, fails)
        assert await upkeep.retain(engine.parts) == "1 expired, 0 marked"
        assert len(of(engine, "web")) == 2
        assert of(engine, "db") == before
        monkeypatch.undo()
        assert await upkeep.retain(engine.parts) == "1 expired, 0 marked"
        assert of(engine, "db") == before[1:]


def test_a_command_finds_the_repository_of_an_engine_that_it_names(tmp_path: Path) -> None:
    class Answers:
        def get(self, path: str, query: object = None) -> object:
            return {"repositories": [{"name": "archive", "location": str(tmp_path / "archive")}]}

    (tmp_path / "link").symlink_to(tmp_path / "archive")
    for named, name in (("archive", "archive"), ("link", "archive"), ("repo", "")):
        assert further_named(cast(Engine, Answers()), str(tmp_path / named)) == name
    assert further_named(cast(Engine, Answers()), None) == ""


async def test_a_disk_of_no_vcenter_goes_where_the_command_says(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    async with running(tmp_path, hypervisor, configure(tmp_path, POLICIES, more=SECTION)) as engine:
        (tmp_path / "raw").write_bytes(bytes(range(256)) * 4096)
        for place, name in (("", ""), (str(tmp_path / "archive"), "archive")):
            asked = BackUpDisk(str(tmp_path / "raw"), "disk", ((0, 4096),), place)
            done = await engine.finished(await engine.control.submit(asked, "test"))
            assert (done["state"], done["repository"]) == ("done", name)
            assert done["read_bytes"] == 1 << 20, "what changed since another repository's restore point is not enough"


async def test_the_places_of_one_repository_are_not_those_of_another(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    more = SECTION + "[limits]\nper_repository = 1\n"
    async with running(tmp_path, hypervisor, configure(tmp_path, POLICIES, more=more)) as engine:
        await both(engine)
        queue = engine.parts.queue
        queue.paused = True
        tasks = [await engine.control.submit(BackUpVm(name), "test") for name in ("web", "db")]
        await engine.until(lambda: len(queue.waiting) == 2)
        queue.line.began(VmId("another"), "near")
        queue.paused = False
        queue.changed()
        assert (await engine.finished(tasks[1]))["repository"] == "archive"
        (waits,) = queue.waiting
        assert waits.reason == "1 backup or task uses the repository"
        queue.line.finished(VmId("another"))
        queue.changed()
        assert (await engine.finished(tasks[0]))["repository"] == ""
