"""Calendars beside the policies of a running engine: a change is a reload, a missing one a problem, nothing is lost."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from policies.hours import next_open
from tests.pipeline.hypervisor_in_memory import HypervisorInMemory
from tests.pipeline.running import EVERYTHING, Running, configure, running

HELD = EVERYTHING.replace("[policy.everything]", '[policy.everything]\nblackout = ["freeze.ics"]', 1)


def calendar(first: str, after: str) -> str:
    event = f"BEGIN:VEVENT\nDTSTART;VALUE=DATE:{first}\nDTEND;VALUE=DATE:{after}\nEND:VEVENT\n"
    return f"BEGIN:VCALENDAR\nVERSION:2.0\n{event}END:VCALENDAR\n"


@pytest.fixture
def hypervisor(tmp_path: Path) -> HypervisorInMemory:
    (tmp_path / "disks").mkdir()
    return HypervisorInMemory(tmp_path / "disks")


def closed_for(engine: Running) -> timedelta:
    [policy] = engine.parts.rulebook.in_force.policies
    now = engine.parts.now()
    return next_open(policy.timing.hours, now) - now


async def test_a_change_of_a_calendar_is_a_reload_that_state_remembers(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    config = configure(tmp_path, HELD)
    file = tmp_path / "policies" / "freeze.ics"
    file.write_text(calendar("20010101", "20010102"))
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        before = engine.parts.rulebook.in_force.hash
        assert not closed_for(engine)
        file.write_text(calendar("20010101", "21990101"))
        await engine.until(lambda: engine.parts.rulebook.in_force.hash != before)
        assert closed_for(engine) > timedelta(days=300)
        after = engine.parts.rulebook.in_force.hash
        file.unlink()
        await engine.until(lambda: engine.parts.rulebook.problems)
        assert engine.parts.rulebook.in_force.hash == after
    async with running(tmp_path, hypervisor, config) as engine:
        assert engine.parts.rulebook.in_force.hash == after
        health = await engine.control.health()
        assert any('there is no calendar "freeze.ics"' in sentence for sentence in health["problems"])
