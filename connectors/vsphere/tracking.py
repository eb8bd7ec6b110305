"""Changed block tracking switched on where that is safe, and which change ids of a snapshot may be committed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from connectors.errors import ConnectorError, Gone
from connectors.vsphere.session import Session
from connectors.vsphere.tracking_defects import HostBuild
from policies.facts import Vm

log = logging.getLogger(__name__)

LATER = (
    "change tracking was switched on and does not work yet: it begins when this snapshot is made or removed, "
    "so the next run reads everything once more"
)
UNDER_A_SNAPSHOT = (
    "another snapshot was made while change tracking was switched on, so what it tells from then on is not believed"
)


@dataclass(frozen=True, slots=True)
class Tracking:
    """Why changes are not tracked, empty where they are or shall be, and whether that was switched on only now."""

    reason: str = ""
    just_now: bool = False


async def switch_on(session: Session, managed: Any, vm: Vm) -> Tracking:
    """Switch change tracking on where that is safe, also for a VM that is powered off; else tell why it stays off.

    Never under a snapshot or on top of a delta: since vSphere 6.5 tracking then tells too little without a fault (KB
    320557). It takes effect at the VM's next stun, which the snapshot that follows is.
    """
    if vm.tracking_enabled:
        return Tracking()
    if not vm.tracking_supported:
        return Tracking("the VM does not support change tracking (its virtual hardware is too old)")
    off = "change tracking is off, and it is not switched on while"
    if vm.snapshots or vm.own_snapshots:
        return Tracking(f"{off} the VM has snapshots: it would tell too little")
    if vm.consolidation_needed:
        return Tracking(f"{off} disks need consolidation")
    devices = (await session.properties(managed, ["config.hardware.device"])).get("config.hardware.device") or ()
    if any(isinstance(d, vim.vm.device.VirtualDisk) and getattr(d.backing, "parent", None) for d in devices):
        return Tracking(f"{off} a disk has a delta that no snapshot names")
    spec = vim.vm.ConfigSpec(changeTrackingEnabled=True)
    try:
        await session.task(lambda: managed.ReconfigVM_Task(spec), entity=managed, operation="Reconfig")
    except Gone:
        raise
    except ConnectorError as error:
        return Tracking(f"change tracking could not be switched on: {error.what}")
    log.info("change tracking switched on", extra={"vm": vm.name})
    return Tracking(just_now=True)


def believed(tracking: Tracking, depth: int, ids: Mapping[int, str]) -> tuple[Mapping[int, str], str]:
    """The change ids by disk key that a restore point may keep, and why some are missing, where they are.

    `depth` is that of our snapshot in its tree, 1 where it is alone.
    """
    if not tracking.just_now:
        return ids, tracking.reason
    if depth > 1:
        return dict.fromkeys(ids, ""), UNDER_A_SNAPSHOT
    return ids, LATER if ids and not all(ids.values()) else ""


async def host_build(session: Session, managed: Any) -> str:
    """What the ESXi host of the VM runs, such as "8.0.2 build 22380479"; empty where that is not told."""
    try:
        host = (await session.properties(managed, ["runtime.host"])).get("runtime.host")
        if host is None:
            return ""
        told = await session.properties(host, ["config.product.version", "config.product.build"])
    except Gone:
        raise
    except ConnectorError as error:
        log.warning("the host's build is not told", extra={"why": str(error)})
        return ""
    build = str(told.get("config.product.build") or "")
    return str(HostBuild(str(told.get("config.product.version") or ""), int(build) if build.isdecimal() else 0))
