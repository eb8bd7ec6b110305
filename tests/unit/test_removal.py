"""How long a removal is tried, and when disks count as merged; what vCenter does then is tested against the lab."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pyVmomi import vim

from connectors.errors import Busy
from connectors.gates import GateLimits, Gates, removal
from connectors.vsphere.naming import snapshot_description
from connectors.vsphere.removal import RemovalSettings, consolidate, remove_snapshot
from connectors.vsphere.session import Session

VM = vim.VirtualMachine("vm-1", None)
NAME = "backstay-e1-run-1"


@dataclass
class Calls:
    """As much of a session as a removal asks, of a VM with one snapshot of ours; the timeouts of its tasks."""

    needs_consolidation: bool = False
    gates: Gates = field(default_factory=lambda: Gates(GateLimits(removals_per_vcenter=1)))
    timeouts: list[float] = field(default_factory=list)
    where: str = "vCenter"

    @property
    def settings(self) -> Any:
        return SimpleNamespace(gates=self.gates, answer_seconds=1.0, engine_id="e1")

    def managed(self, kind: Any, moref: str) -> Any:
        return kind(moref, None)

    async def properties(self, managed: object, paths: list[str]) -> dict[str, Any]:
        node = SimpleNamespace(
            name=NAME, description=snapshot_description("e1", "run-1", _now()), createTime=_now(), quiesced=False,
            snapshot=vim.vm.Snapshot("snapshot-1", None), childSnapshotList=[], backupManifest="", id=1,
        )  # fmt: skip
        return {
            "runtime.consolidationNeeded": self.needs_consolidation,
            "snapshot": SimpleNamespace(rootSnapshotList=[node]),
        }

    async def task(self, start: Callable[[], Any], *, timeout: float, entity: Any, operation: str) -> None:
        self.timeouts.append(timeout)


def _now() -> datetime:
    return datetime.now(UTC)


async def test_the_wait_for_a_place_is_no_part_of_the_time_for_a_removal() -> None:
    calls = Calls()
    async with asyncio.TaskGroup() as group, calls.gates.through(removal([]), "another"):
        group.create_task(remove_snapshot(cast(Session, calls), VM, NAME, RemovalSettings(seconds=5.0)))
        await asyncio.sleep(0.5)
        assert calls.timeouts == []
    assert calls.timeouts[0] > 4.75


async def test_disks_that_a_consolidation_left_as_they_were_are_not_called_merged() -> None:
    calls = Calls(needs_consolidation=True)
    with pytest.raises(Busy, match="need it still"):
        await consolidate(cast(Session, calls), VM, RemovalSettings(first_pause=0.0, longest_pause=0.0))
    assert len(calls.timeouts) == RemovalSettings().consolidations
