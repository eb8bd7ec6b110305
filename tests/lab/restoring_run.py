"""A process that restores a restore point and may be killed: `python -m tests.lab.restoring_run FACTS`.

FACTS is a JSON file: how to reach the lab, "repository", "state_dir", "point", and "name" of the new VM, or "over" for
the moRef of the VM to restore in place, or "beside" for that of one that gets the disk as a further one, on its
"datastore". It prints a line for each piece that is written, and the result as JSON. With "die_after" it kills itself
when vCenter has carried out so many tasks.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from connectors.hypervisor import RestoreTarget
from connectors.vsphere.hypervisor import VCenter, VCenterSettings
from connectors.vsphere.session import Session, SessionSettings
from connectors.vsphere.transport_settings import TransportSettings
from engine.beside import restore_beside
from engine.jobs import RunId
from engine.overwrite import IN_PLACE, Overwrite, matched, overwrite
from engine.restore import Means, RestoredVm, restore_vm
from engine.threads import Threads
from policies.facts import Address, PointId
from storage.repository import open_repository

STRIDE_BYTES = 1 << 20


async def connect(facts: dict[str, Any]) -> VCenter:
    session = SessionSettings(
        host=facts["host"],
        port=int(facts["port"]),
        user=facts["user"],
        password=lambda: facts["password"],
        engine_id="engine-1",
        ca_file=Path(facts["ca_file"]),
    )
    transports = TransportSettings(
        order=("nbd",),
        plugin=("python", facts["vddk_plugin"]),
        environment={"BACKSTAY_LAB_ROOT": facts["root"]},
        scratch=Path(facts["state_dir"]),
        retries=0,
    )
    return await VCenter.connect(VCenterSettings(session, transports=transports))


async def restore(facts: dict[str, Any]) -> RestoredVm:
    """Carry the restore out, one stride after the other."""
    threads = Threads()
    vcenter = await connect(facts)
    try:
        with open_repository(Path(facts["repository"]), now=datetime.now(UTC)) as repository:
            means = Means(
                repository,
                vcenter,
                threads,
                Path(facts["state_dir"]),
                ("nbd",),
                lanes=1,
                stride_bytes=STRIDE_BYTES,
                advance=lambda step: print(step, flush=True),
            )
            point, run = PointId(facts["point"]), RunId(facts["run"])
            if facts.get("beside"):
                vm = await vcenter.vm(Address(vcenter.vcenter, facts["beside"]))
                [record] = repository.detail(point).disks
                datastore = facts.get("datastore") or vm.datastores[0]
                return await restore_beside(point, record, vm, datastore, means, run=run)
            if not facts.get("over"):
                return await restore_vm(point, RestoreTarget(facts["name"]), means, run=run)
            vm = await vcenter.vm(Address(vcenter.vcenter, facts["over"]))
            pairs = matched(repository.detail(point), vm)
            return await overwrite(
                Overwrite(IN_PLACE, point), vm, pairs, means, run=run, distrust="", newest=None, distrusted=_nothing
            )
    finally:
        await vcenter.aclose()
        threads.close()


async def _nothing() -> None:
    """There is no engine whose state remembers it."""


def die_after(tasks: int) -> None:
    """Have this process die as soon as vCenter has carried out so many tasks for it."""
    carry_out, done = Session.task, 0

    async def task(self: Session, *args: Any, **kwargs: Any) -> Any:
        nonlocal done
        answer = await carry_out(self, *args, **kwargs)
        done += 1
        if done == tasks:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    Session.task = task  # type: ignore[method-assign]


if __name__ == "__main__":
    told = json.loads(Path(sys.argv[1]).read_text())
    if told.get("die_after"):
        die_after(told["die_after"])
    done = asyncio.run(restore(told))
    print(json.dumps({"resumed_at": [disk.resumed_at for disk in done.disks], "moref": done.vm.address.moref}))
