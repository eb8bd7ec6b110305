"""Second copies that policies ask for, made by a running engine."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from engine import second_copies
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
        assert sample(engine, "copy_missing_points", copy="gone") == 1
        assert sample(engine, "copy_last_success_timestamp_seconds", copy="gone") == 0
