"""Second copies that policies ask for, made by a running engine."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from engine import overview, second_copies, upkeep
from engine.commands import BackUpVm
from engine.statefile import read_standing
from policies.facts import PointId
from storage.errors import Refused
from storage.repository import create, open_repository
from tests.pipeline.hypervisor_in_memory import HypervisorInMemory
from tests.pipeline.running import Running, configure, now, running

POLICIES = """
schema = 1
[policy.everything]
rpo = "24h"
select.all = ["*"]
consistency = { want = "crash", fallback = "crash" }
[policy.far]
select.any = ["name:web"]
copies = ["offsite"]
retention.lock = "2d"
"""

SECTION = """
[copies.offsite]
path = "offsite"
"""


@pytest.fixture
def hypervisor(tmp_path: Path) -> HypervisorInMemory:
    (tmp_path / "disks").mkdir()
    return HypervisorInMemory(tmp_path / "disks")


def sample(engine: Running, name: str, **labels: str) -> float | None:
    return engine.parts.metrics.registry.get_sample_value(f"backstay_{name}", labels)


async def test_what_a_policy_names_is_copied_and_nothing_else(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    hypervisor.add("web")
    hypervisor.add("db")
    create(tmp_path / "offsite", now=now())
    async with running(tmp_path, hypervisor, configure(tmp_path, POLICIES, more=SECTION)) as engine:
        await engine.until(lambda: engine.points_of("web") and engine.points_of("db"))
        assert sample(engine, "copy_missing_points", copy="offsite") is None
        said = await second_copies.copy_all(engine.parts)
        assert said.startswith("offsite: 1 restore point copied, 0 there already")
        assert sample(engine, "copy_missing_points", copy="offsite") == 0
        assert (sample(engine, "copy_last_success_timestamp_seconds", copy="offsite") or 0) > 0
        again = await second_copies.copy_all(engine.parts)
        assert again.startswith("offsite: 0 restore points copied, 1 there already")
        (point,) = [p for points in engine.parts.world.points.values() for p in points if p.vm_name == "web"]
        with open_repository(tmp_path / "offsite", now=now) as copy:
            assert [one.id for one in copy.points()] == [point.id]
            assert [one.locked_until for one in copy.points()] == [point.taken_at + timedelta(days=2)]


async def test_a_locked_restore_point_is_kept_from_everybody(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    hypervisor.add("web")
    hypervisor.add("db")
    create(tmp_path / "offsite", now=now())
    async with running(tmp_path, hypervisor, configure(tmp_path, POLICIES, more=SECTION)) as engine:
        await engine.until(lambda: engine.points_of("web") and engine.points_of("db"))
        repository = engine.parts.repository
        locked = {point.vm_name: point.locked_until is not None for point in repository.points()}
        assert locked == {"web": True, "db": False}
        (point,) = [one for one in repository.points() if one.vm_name == "web"]
        with pytest.raises(Refused, match="locked until"):
            repository.expire(point.id, "by hand", now())


async def test_a_copy_that_cannot_be_opened_is_told_and_keeps_no_other_from_its_pass(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    create(tmp_path / "offsite", now=now())
    more = '[copies.gone]\npath = "nowhere"\n' + SECTION
    policies = POLICIES.replace('["offsite"]', '["gone", "offsite", "misspelt"]')
    async with running(tmp_path, hypervisor, configure(tmp_path, policies, more=more)) as engine:
        await engine.until(lambda: engine.points_of("web"))
        said = await second_copies.copy_all(engine.parts)
        assert "gone failed: " in said and "there is no repository here" in said
        assert "offsite: 1 restore point copied" in said
        assert "no [copies.misspelt]" in engine.parts.upkeep["copy misspelt"]
        assert any("no [copies.misspelt]" in one for one in overview.problems(engine.parts))
        assert sample(engine, "copy_missing_points", copy="gone") == 1
        assert sample(engine, "copy_last_success_timestamp_seconds", copy="gone") == 0


OWN = """
schema = 1
[guard]
max_expire_share = "100%"
[policy.everything]
rpo = "24h"
select.all = ["*"]
consistency = { want = "crash", fallback = "crash" }
retention = { keep_last = 9, grace = "0s" }
[policy.everything.copy.offsite.retention]
keep_last = 2
grace = "0s"
"""


async def backed_up(engine: Running, times: int) -> list[PointId]:
    """The ids of so many restore points of the VM, the oldest first."""
    await engine.until(lambda: engine.points_of("web"))
    while engine.points_of("web") < times:
        assert (await engine.finished(await engine.control.submit(BackUpVm("web"), "test")))["state"] == "done"
    return [point.id for points in engine.parts.world.points.values() for point in points]


def held_in(place: Path) -> list[PointId]:
    with open_repository(place, now=now) as copy:
        return [point.id for point in copy.points()]


async def test_what_a_copy_would_not_keep_is_not_copied(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    hypervisor.add("web")
    create(tmp_path / "offsite", now=now())
    async with running(tmp_path, hypervisor, configure(tmp_path, OWN, more=SECTION)) as engine:
        points = await backed_up(engine, 3)
        said = await second_copies.copy_all(engine.parts)
        assert said == "offsite: 2 restore points copied, 0 there already; 0 expired"
        assert sample(engine, "copy_missing_points", copy="offsite") == 0
        assert held_in(tmp_path / "offsite") == points[1:]
        points = await backed_up(engine, 4)
        said = await second_copies.copy_all(engine.parts)
        assert said == "offsite: 1 restore point copied, 2 there already; 1 expired"
        assert held_in(tmp_path / "offsite") == points[2:]
        assert engine.points_of("web") == 4
        again = await second_copies.copy_all(engine.parts)
        assert again == "offsite: 0 restore points copied, 2 there already; 0 expired"


async def test_what_expired_in_the_first_repository_stays_in_a_copy_that_keeps_longer(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    create(tmp_path / "offsite", now=now())
    policies = OWN.replace("keep_last = 9", "keep_last = 1").replace("keep_last = 2", "keep_last = 5")
    async with running(tmp_path, hypervisor, configure(tmp_path, policies, more=SECTION)) as engine:
        points = await backed_up(engine, 3)
        await second_copies.copy_all(engine.parts)
        assert await upkeep.retain(engine.parts) == "2 expired, 0 marked"
        said = await second_copies.copy_all(engine.parts)
        assert said == "offsite: 0 restore points copied, 1 there already; 0 expired"
        assert held_in(tmp_path / "offsite") == points
        alone = await engine.control.explain_point(points[0])
        assert (alone["copy"], alone["reasons"][0]) == ("offsite", "policy everything: keep_last 3 of 5")
        both = await engine.control.explain_point("web@latest")
        assert [one["copy"] for one in both["copies"]] == ["offsite"]
        (facts,) = [read_standing(b"".join(await engine.control.policy_facts()), "state").facts]
        assert [point.id for several in facts.copies["offsite"].values() for point in several] == points


async def test_a_copy_is_locked_for_as_long_as_its_own_retention_says(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    create(tmp_path / "offsite", now=now())
    policies = OWN.replace("keep_last = 2", 'keep_last = 2\nlock = "30d"')
    async with running(tmp_path, hypervisor, configure(tmp_path, policies, more=SECTION)) as engine:
        (point,) = await backed_up(engine, 1)
        await second_copies.copy_all(engine.parts)
        assert [one.locked_until for one in engine.parts.repository.points()] == [None]
        with open_repository(tmp_path / "offsite", now=now) as copy:
            (copied,) = copy.points()
            assert copied.locked_until == copied.taken_at + timedelta(days=30)
            with pytest.raises(Refused, match="locked until"):
                copy.expire(point, "by hand", now())


async def test_a_copy_expires_nothing_by_a_change_that_waits_and_what_it_names_once_it_is_confirmed(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    create(tmp_path / "offsite", now=now())
    async with running(tmp_path, hypervisor, configure(tmp_path, OWN, more=SECTION)) as engine:
        await engine.until(lambda: not engine.parts.world.unseen_copies)
        points = await backed_up(engine, 2)
        await second_copies.copy_all(engine.parts)
        (tmp_path / "policies" / "all.toml").write_text(OWN.replace("keep_last = 2", "keep_last = 1"))
        pending = await engine.control.pending_policies()
        assert not pending["refused"]
        assert [(one["copy"], one["point"]) for one in pending["plan"]["expiring"]] == [("offsite", points[0])]
        await second_copies.copy_all(engine.parts)
        assert held_in(tmp_path / "offsite") == points
        await engine.control.apply_policies(pending["digest"], "root")
        said = await second_copies.copy_all(engine.parts)
        assert said.endswith("; 1 expired")
        assert held_in(tmp_path / "offsite") == points[1:]
        assert engine.points_of("web") == 2


async def test_a_copy_whose_secret_is_gone_keeps_neither_the_engine_nor_another_copy_from_its_work(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    create(tmp_path / "offsite", now=now())
    more = SECTION + '[copies.sealed]\npath = "sealed"\npassphrase = "file:nowhere"\n'
    create(tmp_path / "sealed", now=now(), passphrase="secret")
    policies = OWN + "[policy.everything.copy.sealed.retention]\nkeep_last = 2\n"
    async with running(tmp_path, hypervisor, configure(tmp_path, policies, more=more)) as engine:
        await engine.until(lambda: engine.points_of("web"))
        await engine.until(lambda: engine.parts.world.unseen_copies == {"sealed"})
        said = await second_copies.copy_all(engine.parts)
        assert "offsite: 1 restore point copied" in said
        assert "sealed failed: " in said
        assert "the secret cannot be read" in said


async def test_while_a_copy_cannot_be_listed_a_change_that_takes_from_it_waits(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    create(tmp_path / "offsite", now=now())
    async with running(tmp_path, hypervisor, configure(tmp_path, OWN, more=SECTION)) as engine:
        points = await backed_up(engine, 2)
        await second_copies.copy_all(engine.parts)
    (tmp_path / "offsite").rename(tmp_path / "away")
    (tmp_path / "policies" / "all.toml").write_text(OWN.replace("keep_last = 2", "keep_last = 1"))
    async with running(tmp_path, hypervisor, configure(tmp_path, OWN, more=SECTION)) as engine:
        await engine.until(lambda: engine.parts.world.inventory_known)
        pending = await engine.control.pending_policies()
        assert pending["refused"]
        assert any("copy offsite are not known" in sentence for sentence in pending["sentences"])
        (tmp_path / "away").rename(tmp_path / "offsite")
        await second_copies.copy_all(engine.parts)
        assert held_in(tmp_path / "offsite") == points
        pending = await engine.control.pending_policies()
        assert (pending["refused"], pending["plan"]["expiring_total"]) == (False, 1)


async def test_a_copy_s_retention_that_would_take_too_much_takes_nothing_and_is_told(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    create(tmp_path / "offsite", now=now())
    config = configure(tmp_path, OWN, more=SECTION + "[maintenance]\nmax_expire = 1\n")
    async with running(tmp_path, hypervisor, config) as engine:
        points = await backed_up(engine, 2)
        await second_copies.copy_all(engine.parts)
        await backed_up(engine, 4)
        said = await second_copies.copy_all(engine.parts)
        assert said == "offsite: 2 restore points copied, 2 there already; 0 expired"
        assert set(points) <= set(held_in(tmp_path / "offsite"))
        (told,) = [one for one in overview.problems(engine.parts) if "offsite" in one]
        assert told.startswith("retention in the copy offsite: 2 restore points would expire in one run")
