"""Trouble of one of several repositories: it loses no restore point, and stops only what needs it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from engine import overview, second_copies, upkeep
from engine.holding import hold_all
from engine.parts import Parts
from engine.state import State
from storage.errors import NoSuchPoint, StoreFailed
from storage.repository import create, open_repository
from tests.pipeline.hypervisor_in_memory import HypervisorInMemory
from tests.pipeline.running import Running, configure, now, running
from tests.pipeline.test_engine_destinations import MOVED, POLICIES, SECTION, back_up, both, change, of

COPIED = POLICIES.replace('rpo = "24h"', 'rpo = "24h"\ncopies = ["offsite"]')
COPY = '[copies.offsite]\npath = "offsite"\n'


@pytest.fixture
def hypervisor(tmp_path: Path) -> HypervisorInMemory:
    (tmp_path / "disks").mkdir()
    found = HypervisorInMemory(tmp_path / "disks")
    found.add("web")
    found.add("db")
    create(tmp_path / "archive", now=now())
    return found


def fails(*args: object, **more: object) -> None:
    raise StoreFailed("no answer", where="archive")


def cut_off(monkeypatch: pytest.MonkeyPatch, engine: Running, name: str = "archive") -> None:
    """The store of a further repository answers nothing any more; what is cached of it may."""
    repository = engine.parts.repositories.more[name]
    for what in ("point_ids", "expire", "mark_expiring", "mark_hold", "manifest", "detail"):
        monkeypatch.setattr(repository, what, fails)


async def test_what_lies_in_a_repository_that_does_not_answer_lets_nothing_expire_elsewhere(
    tmp_path: Path, hypervisor: HypervisorInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, hypervisor, configure(tmp_path, POLICIES, more=SECTION)) as engine:
        await both(engine)
        await back_up(engine, "web")
        await change(engine, MOVED)
        await back_up(engine, "web")
        await back_up(engine, "web")
        assert [point.repository for point in of(engine, "web")] == ["", "", "archive", "archive"]
        cut_off(monkeypatch, engine)
        assert (await upkeep.retain(engine.parts)).startswith("0 expired")
        assert any("archive does not answer" in one for one in overview.problems(engine.parts))
        monkeypatch.undo()
        assert await upkeep.retain(engine.parts) == "2 expired, 0 marked"
        assert not any("does not answer" in one for one in overview.problems(engine.parts))


async def test_a_restore_point_that_vanished_from_its_repository_lets_none_expire_elsewhere(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    async with running(tmp_path, hypervisor, configure(tmp_path, POLICIES, more=SECTION)) as engine:
        await both(engine)
        await back_up(engine, "web")
        await change(engine, MOVED)
        await back_up(engine, "web")
        (tmp_path / "archive" / "manifests").rename(tmp_path / "gone")  # as when a mount goes away
        assert (await upkeep.retain(engine.parts)).startswith("0 expired")
        (tmp_path / "gone").rename(tmp_path / "archive" / "manifests")
        assert await upkeep.retain(engine.parts) == "1 expired, 0 marked"


async def test_a_hold_waits_for_a_repository_that_may_have_more_of_the_vm(
    tmp_path: Path, hypervisor: HypervisorInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, hypervisor, configure(tmp_path, POLICIES, more=SECTION)) as engine:
        await both(engine)
        await change(engine, MOVED)
        await back_up(engine, "web")
        cut_off(monkeypatch, engine)
        with pytest.raises(StoreFailed):
            await hold(engine.parts, "web")
        assert [point.holds for point in engine.parts.repository.points(of(engine, "web")[0].vm)] == [("alarm",)]
        monkeypatch.undo()
        await hold(engine.parts, "web")
        assert [point.holds for point in of(engine, "web")] == [("alarm",), ("alarm",)]
    (tmp_path / "archive").rename(tmp_path / "away")
    config = configure(tmp_path, POLICIES, more=SECTION)
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.parts.world.inventory_known)
        with pytest.raises(StoreFailed, match="archive is away"):
            await hold(engine.parts, "web", "alarm 2")


async def hold(parts: Parts, name: str, reason: str = "alarm") -> None:
    (vm,) = parts.world.named(name)
    await hold_all(parts.crew, vm, reason)


async def test_a_restore_point_elsewhere_is_found_beside_a_repository_that_does_not_answer(
    tmp_path: Path, hypervisor: HypervisorInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(tmp_path / "zeta", now=now())
    policies = POLICIES.replace('"archive"', '"zeta"')
    more = SECTION + '[repositories.zeta]\npath = "zeta"\n'
    async with running(tmp_path, hypervisor, configure(tmp_path, policies, more=more)) as engine:
        await both(engine)
        (db,) = of(engine, "db")
        cut_off(monkeypatch, engine)
        for reference in (db.id, db.id[:-2], "db@latest"):
            assert (await engine.control.point(reference))["vm"] == "db"
        await engine.control.hold(db.id, "audit", "root")
        assert [point.holds for point in of(engine, "db")] == [("audit",)]
        with pytest.raises(NoSuchPoint, match="archive"):
            await engine.control.point("19990101t000000z-00000000")
        await upkeep.publish(engine.parts)


async def test_an_older_restore_point_does_not_pass_for_the_latest(
    tmp_path: Path, hypervisor: HypervisorInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(tmp_path, POLICIES, more=SECTION)
    async with running(tmp_path, hypervisor, config) as engine:
        await both(engine)
        (older,) = of(engine, "web")
        await change(engine, MOVED)
        await back_up(engine, "web")
        newest = of(engine, "web")[-1]
        archive = engine.parts.repositories.more["archive"]
        for what in ("point_ids", "points"):
            monkeypatch.setattr(archive, what, fails)
        with pytest.raises(StoreFailed, match=f"{newest.id} in archive, which does not answer.*{older.id}"):
            await engine.control.point("web@latest")
        assert (await engine.control.point(older.id))["vm"] == "web"
        monkeypatch.undo()
        assert (await engine.control.point("web@latest"))["id"] == newest.id
    (tmp_path / "archive").rename(tmp_path / "away")
    async with running(tmp_path, hypervisor, config) as engine:
        with pytest.raises(StoreFailed, match="probably in archive, which is away"):
            await engine.control.point("web@latest")


async def test_a_start_goes_on_though_what_a_job_has_made_in_one_repository_cannot_be_read(
    tmp_path: Path, hypervisor: HypervisorInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(tmp_path, POLICIES, more=SECTION)
    async with running(tmp_path, hypervisor, config) as engine:
        await both(engine)
        (db,) = of(engine, "db")
    (manifest,) = (tmp_path / "archive" / "manifests").iterdir()
    manifest.chmod(0o600)
    data = bytearray(manifest.read_bytes())
    data[len(data) // 2] ^= 1
    manifest.write_bytes(data)
    left = [[SimpleNamespace(id="job-1", vm=db.vm, run="r")]]
    monkeypatch.setattr(State, "open_jobs", lambda state: left.pop() if left else [])
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.parts.world.inventory_known)
        await back_up(engine, "web")


async def test_the_last_good_one_is_asked_for_in_all_repositories(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    async with running(tmp_path, hypervisor, configure(tmp_path, POLICIES, more=SECTION)) as engine:
        await both(engine)
        await change(engine, MOVED)
        await back_up(engine, "web")
        first, _ = of(engine, "web")
        await engine.control.expire(first.id, "by hand", "root")
        assert [point.repository for point in of(engine, "web")] == ["archive"]


async def test_a_source_that_cannot_be_read_keeps_no_other_from_being_copied(
    tmp_path: Path, hypervisor: HypervisorInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(tmp_path / "offsite", now=now())
    create(tmp_path / "zeta", now=now())
    policies = COPIED.replace('"name:web"]', '"name:web"]\ndestination = "zeta"')
    more = SECTION + COPY + '[repositories.zeta]\npath = "zeta"\n'
    async with running(tmp_path, hypervisor, configure(tmp_path, policies, more=more)) as engine:
        await both(engine)
        monkeypatch.setattr(engine.parts.repositories.more["archive"], "points", fails)
        said = await second_copies.copy_all(engine.parts)
        assert said.startswith("offsite: 1 restore point copied, 0 there already; 0 expired; archive cannot be read: ")
        assert missing(engine) == 1
        monkeypatch.undo()
        assert (await second_copies.copy_all(engine.parts)).startswith("offsite: 1 restore point copied, 1 there")
        assert missing(engine) == 0


def missing(engine: Running) -> float | None:
    return engine.parts.metrics.registry.get_sample_value("backstay_copy_missing_points", {"copy": "offsite"})


async def test_holds_reach_a_copy_though_no_policy_asks_for_it_any_more(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    create(tmp_path / "offsite", now=now())
    config = configure(tmp_path, COPIED, more=SECTION + COPY)
    async with running(tmp_path, hypervisor, config) as engine:
        await both(engine)
        await second_copies.copy_all(engine.parts)
        await change(engine, POLICIES)
        (db,) = of(engine, "db")
        await engine.control.hold(db.id, "audit", "root")
        await second_copies.copy_all(engine.parts)
        with open_repository(tmp_path / "offsite", now=now) as copy:
            assert {point.vm_name: point.holds for point in copy.points()} == {"db": ("audit",), "web": ()}


async def test_metrics_keep_two_repositories_apart_whatever_they_are_called(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    (tmp_path / "more").mkdir()
    create(tmp_path / "more" / "repo", now=now())
    more = '[repositories.repo]\npath = "more/repo"\n'
    policies = POLICIES.replace('"archive"', '"repo"')
    async with running(tmp_path, hypervisor, configure(tmp_path, policies, more=more)) as engine:
        await both(engine)
        await back_up(engine, "db")
        await overview.publish_repository(engine.parts)
        sample = engine.parts.metrics.registry.get_sample_value
        counts = [sample("backstay_restore_points", {"repository": one}) for one in (str(tmp_path / "repo"), "repo")]
        assert counts == [1, 2]


async def test_retention_waits_for_a_copy_that_lacks_what_it_would_keep(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    policies = COPIED.replace(
        "[policy.near]", '[template.all.copy.offsite.retention]\nkeep_last = 9\ngrace = "0s"\n[policy.near]'
    )
    more = SECTION + COPY
    create(tmp_path / "offsite", now=now())
    async with running(tmp_path, hypervisor, configure(tmp_path, policies, more=more)) as engine:
        await both(engine)
        await back_up(engine, "web")
        await back_up(engine, "web")
        first = of(engine, "web")[0]
        (tmp_path / "offsite").rename(tmp_path / "away")
        assert await upkeep.retain(engine.parts) == "0 expired, 1 marked; 1 restore point waits for the copy offsite"
        assert of(engine, "web")[0].expiring_since is not None
        assert any("waits for the copy offsite" in one for one in overview.problems(engine.parts))
        said = await engine.control.explain_point(first.id)
        assert any("waits for the copy offsite" in one for one in said["reasons"])
        assert said["until"] == "until it is there, or has been marked for 30 d"
        assert await upkeep.retain(engine.parts) == "0 expired, 0 marked; 1 restore point waits for the copy offsite"
        (tmp_path / "away").rename(tmp_path / "offsite")
        await second_copies.copy_all(engine.parts)
        assert await upkeep.retain(engine.parts) == "1 expired, 0 marked"
        assert not any("waits for" in one for one in overview.problems(engine.parts))
        with open_repository(tmp_path / "offsite", now=now) as copy:
            assert first.id in {point.id for point in copy.points()}


async def test_the_wait_for_a_copy_ends(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    create(tmp_path / "offsite", now=now())
    more = SECTION + COPY + '[maintenance]\ncopy_wait = "0s"\n'
    policies = COPIED.replace(
        "[policy.near]", '[template.all.copy.offsite.retention]\nkeep_last = 9\ngrace = "0s"\n[policy.near]'
    )
    async with running(tmp_path, hypervisor, configure(tmp_path, policies, more=more)) as engine:
        await both(engine)
        await back_up(engine, "web")
        await back_up(engine, "web")
        assert await upkeep.retain(engine.parts) == "1 expired, 0 marked; 1 of them is not in the copy offsite"


async def test_retention_does_not_wait_for_what_a_copy_would_not_keep(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    create(tmp_path / "offsite", now=now())
    async with running(tmp_path, hypervisor, configure(tmp_path, COPIED, more=SECTION + COPY)) as engine:
        await both(engine)
        await back_up(engine, "web")
        await back_up(engine, "web")
        assert await upkeep.retain(engine.parts) == "1 expired, 0 marked"
