"""Restore points for tests of restores: made of what the lab froze, beside the engine's own way of making them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from connectors.disk_files import FileReader
from connectors.disks import merge
from connectors.hypervisor import Snapshot
from connectors.vsphere.hypervisor import VCenter
from engine.copying import CopyPlan, copy_disk
from policies.facts import Consistency, VmId
from storage.repository import DiskHead, PointHead, create, open_repository
from tests.lab.vcenter import Lab


async def kept_point(vcenter: VCenter, lab: Lab, name: str, repository: Path, *, run: str = "run-1") -> str:
    """A restore point of the VM as it is now; its id."""
    vm = next(vm for vm in await vcenter.inventory() if vm.name == name)
    crash = Consistency.CRASH
    async with vcenter.snapshot(vm, run=run, want=crash, fallback=crash, track=False) as snapshot:
        return _kept(lab, snapshot, repository)


def _kept(lab: Lab, snapshot: Snapshot, repository: Path) -> str:
    now = datetime.now(UTC)
    if not repository.exists():
        create(repository, now=now)
    head = PointHead(VmId("vm-1"), snapshot.vm.name, now)
    with open_repository(repository, now=now) as opened, opened.new_point(head) as pending:
        for disk in snapshot.disks:
            facts = disk.disk
            of_disk = DiskHead(facts.label, facts.capacity_bytes, facts.uuid, disk.change_id, facts.key)
            ingest = pending.disk(of_disk, base=None)
            with FileReader(lab.frozen_copy(snapshot.moref, facts.key)) as reader:
                copy_disk(reader, ingest, CopyPlan(tuple(merge(reader.extents())), ()))
            ingest.finish()
        pending.configuration(snapshot.configuration)
        return pending.commit().id
