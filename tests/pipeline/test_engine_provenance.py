"""What a whole engine keeps of why a restore point was made, and what triggers do besides backing up."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from engine.inbox import Told
from policies.facts import Event, EventType, PowerState
from tests.pipeline.hypervisor_in_memory import HypervisorInMemory
from tests.pipeline.running import configure, running

POLICIES = """
schema = 1
[policy.prod]
select.all = ["tag:env=prod"]
rpo = "24h"
consistency = { want = "crash", fallback = "crash" }

[[policy.prod.trigger]]
on = "vm.retagged"
when = 'event.detail.tags.contains("important")'

[[policy.prod.trigger]]
on = "hold.requested"
when = 'event.user == "siem"'

[[policy.prod.trigger]]
on = "vm.powered_off"
action = "hold"
"""


@pytest.fixture
def hypervisor(tmp_path: Path) -> HypervisorInMemory:
    (tmp_path / "disks").mkdir()
    return HypervisorInMemory(tmp_path / "disks")


def git(place: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


async def test_a_restore_point_tells_event_policy_and_commit_also_after_a_restart(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    vm = hypervisor.add("web")
    hypervisor.set(vm, tags=frozenset({"env=prod"}))
    config = configure(tmp_path, POLICIES)
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "add", "policies")
    git(tmp_path, "commit", "-q", "-m", "policies")
    commit = git(tmp_path, "rev-parse", "HEAD")
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        [first] = await engine.control.points("web")
        said = (await engine.control.point(first.id))["attributes"]
        assert (said["policy"], said["rule"], said["event_type"]) == ("prod", "rpo", "clock")
        assert said["policy_commit"] == commit
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "nothing of the policies")
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.parts.world.inventory_known)
        hypervisor.set(vm, tags=frozenset({"env=prod", "class=important"}))
        await engine.until(lambda: engine.points_of("web") == 2)
        second = (await engine.control.points("web"))[-1]
        said = (await engine.control.point(second.id))["attributes"]
        assert (said["policy"], said["rule"], said["event_type"]) == ("prod", "trigger[0]", "vm.retagged")
        assert said["event_key"].startswith("reconcile:") and said["event_at"].endswith("Z")
        assert said["reason"].startswith("web got other tags (added class=important); policy prod backs up")
        assert len(said["policy_hash"]) == 32
        assert said["policy_commit"] == commit, "the commit that was accepted, whose policies are in force"


async def test_triggers_hold_and_back_up_after_a_hold(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    vm = hypervisor.add("web")
    hypervisor.set(vm, tags=frozenset({"env=prod"}))
    async with running(tmp_path, hypervisor, configure(tmp_path, POLICIES)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        [vm_id] = engine.parts.world.named("web")
        asked = Event("nats:1", EventType.HOLD_REQUESTED, datetime.now(UTC), "nats", vm_name="web", user="siem")
        await engine.parts.inbox.put(Told(asked))
        await engine.until(lambda: engine.points_of("web") == 2)
        await engine.until(lambda: engine.parts.world.points[vm_id][0].holds)
        hypervisor.set(vm, power=PowerState.OFF)
        hypervisor.post(vm, EventType.POWERED_OFF)
        await engine.until(lambda: engine.parts.world.points[vm_id][1].holds)
        held = engine.parts.world.points[vm_id][1].holds
        assert held == ("web was powered off; policy prod holds its restore points",)
        explained = await engine.control.explain("web")
        assert ("hold", "prod", "trigger[2]") in [
            (one["kind"], one["policy"], one["rule"]) for one in explained["decisions"]
        ]
