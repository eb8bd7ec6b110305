"""A process that takes a snapshot and then waits to be killed: `python -m tests.lab.crashing_run FACTS VM RUN`.

FACTS is the lab's lab.json with host and port added. It prints one line when it holds the snapshot.
"""

import asyncio
import json
import sys
from pathlib import Path

from connectors.vsphere.hypervisor import VCenter, VCenterSettings
from connectors.vsphere.session import SessionSettings
from policies.facts import Consistency


async def main(facts: dict[str, str], name: str, run: str) -> None:
    session = SessionSettings(
        host=facts["host"],
        port=int(facts["port"]),
        user=facts["user"],
        password=lambda: facts["password"],
        engine_id=facts["engine"],
        ca_file=Path(facts["ca_file"]),
    )
    vcenter = await VCenter.connect(VCenterSettings(session))
    vm = next(vm for vm in await vcenter.inventory() if vm.name == name)
    crash = Consistency.CRASH
    async with vcenter.snapshot(vm, run=run, want=crash, fallback=crash, track=False) as snapshot:
        print(snapshot.name, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2], sys.argv[3]))
