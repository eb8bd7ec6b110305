"""A process that takes a snapshot and then waits to be killed: `python -m tests.lab.crashing_run FACTS VM RUN`.

FACTS is a JSON file that tells how to reach the lab. With "proxy" in it, the snapshot's first disk is hot-added to
that VM too. With "keep" the VM is kept in its place: the process waits "before" the snapshot, "with" it, or "after" it
was removed again. It prints one line when it holds everything.
"""

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from connectors.vsphere.hypervisor import VCenter, VCenterSettings
from connectors.vsphere.session import SessionSettings
from connectors.vsphere.transport_settings import TransportSettings
from policies.facts import Consistency, Vm


async def main(facts: dict[str, str], name: str, run: str) -> None:
    session = SessionSettings(
        host=facts["host"],
        port=int(facts["port"]),
        user=facts["user"],
        password=lambda: facts["password"],
        engine_id=facts["engine"],
        ca_file=Path(facts["ca_file"]),
    )
    transports = TransportSettings(
        order=("hotadd",), proxy=facts.get("proxy", ""), device_folder=Path(facts.get("device_folder", "/nowhere"))
    )
    vcenter = await VCenter.connect(VCenterSettings(session, transports=transports))
    vm = next(vm for vm in await vcenter.inventory() if vm.name == name)
    crash = Consistency.CRASH
    if instant := facts.get("keep", ""):
        await keep(vcenter, vm, run, instant)
    async with AsyncExitStack() as stack:
        snapshot = await stack.enter_async_context(
            vcenter.snapshot(vm, run=run, want=crash, fallback=crash, track=False)
        )
        if transports.proxy:
            opening = vcenter.open_disk(snapshot, snapshot.disks[0], transports=("hotadd",), run=run)
            await stack.enter_async_context(opening)
        print(snapshot.name, flush=True)
        await asyncio.Event().wait()


async def keep(vcenter: VCenter, vm: Vm, run: str, instant: str) -> None:
    """Keep the VM in its place and wait at this instant."""
    crash = Consistency.CRASH
    async with vcenter.kept_in_place(vm, run=run):
        if instant != "before":
            async with vcenter.snapshot(vm, run=run, want=crash, fallback=crash, track=False):
                if instant == "with":
                    print(run, flush=True)
                    await asyncio.Event().wait()
        print(run, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2], sys.argv[3]))
