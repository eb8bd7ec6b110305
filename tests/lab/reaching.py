"""How tests of the transports reach a lab: a vCenter connector, a snapshot to read, and what a disk holds."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from connectors.disks import AsyncReader, BlockingReader, DiskReader
from connectors.hypervisor import Snapshot
from connectors.vsphere.hypervisor import VCenter, VCenterSettings
from connectors.vsphere.making import SnapshotSettings
from connectors.vsphere.session import SessionSettings
from connectors.vsphere.transport_settings import TransportSettings
from policies.facts import Address, Consistency
from tests.lab.vcenter import Lab

STANDIN = Path(__file__).parent / "nbdkit" / "vddk_standin.py"
MIB = 1 << 20


def transport_settings(lab: Lab, scratch: Path, **changes: Any) -> TransportSettings:
    """Transports as a production machine has them, with the lab's stand-ins."""
    usual: dict[str, Any] = {
        "plugin": ("python", str(STANDIN)),
        "environment": {"BACKSTAY_LAB_ROOT": str(lab.root)},
        "device_folder": lab.device_folder,
        "device_seconds": 5.0,
        "scratch": scratch,
        "retries": 0,
    }
    return TransportSettings(**(usual | changes))


@asynccontextmanager
async def connected(lab: Lab, transports: TransportSettings, *, engine_id: str = "engine-1") -> AsyncIterator[VCenter]:
    """A connector that is logged in."""
    session = SessionSettings(
        host=lab.host,
        port=lab.port,
        user=lab.user,
        password=lambda: lab.password,
        engine_id=engine_id,
        ca_file=lab.ca_file,
        answer_seconds=20.0,
    )
    settings = VCenterSettings(session, transports, SnapshotSettings())
    vcenter = await VCenter.connect(settings)
    try:
        yield vcenter
    finally:
        await vcenter.aclose()


@asynccontextmanager
async def snapshotted(vcenter: VCenter, lab: Lab, name: str, run: str = "run-1") -> AsyncIterator[Snapshot]:
    """A crash-consistent snapshot of a VM of the lab."""
    moref = (await asyncio.to_thread(lab.vm, name)).moref
    vm = await vcenter.vm(Address(vcenter.vcenter, moref))
    async with vcenter.snapshot(
        vm, run=run, want=Consistency.CRASH, fallback=Consistency.CRASH, track=False
    ) as snapshot:
        yield snapshot


async def contents(disk: DiskReader) -> bytes:
    """Every byte of a disk: its extents read, zeros between them."""
    data = bytearray(disk.capacity_bytes)
    view = memoryview(data)
    if asyncio.iscoroutinefunction(disk.read_into):
        reader: AsyncReader = disk  # type: ignore[assignment]
        for extent in await reader.extents():
            for offset in range(extent.offset, extent.end, MIB):
                await reader.read_into(offset, view[offset : min(offset + MIB, extent.end)])
    else:
        blocking: BlockingReader = disk  # type: ignore[assignment]
        for extent in blocking.extents():
            await asyncio.to_thread(blocking.read_into, extent.offset, view[extent.offset : extent.end])
    return bytes(data)


def frozen_bytes(lab: Lab, snapshot: Snapshot, key: int) -> bytes:
    """What the lab froze for the snapshot, read beside everything of ours."""
    return lab.frozen_copy(snapshot.moref, key).read_bytes()


def nbdkit_children() -> list[int]:
    """The pids of nbdkit processes that this process started and that still run."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            name, _, rest = (process / "stat").read_text().rpartition(")")
            state, parent = rest.split()[:2]
            if "nbdkit" in name and int(parent) == os.getpid() and state != "Z":
                found.append(int(process.name))
        except (OSError, ValueError):
            continue
    return found
