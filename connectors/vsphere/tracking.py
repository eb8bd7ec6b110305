"""Changed block tracking switched on or reset where that is safe, and which change ids may be committed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from connectors.errors import ConnectorError, Gone
from connectors.hypervisor import TrackingDoubt
from connectors.vsphere.session import Session
from connectors.vsphere.tracking_defects import HostBuild
from policies.facts import PowerState, Vm

log = logging.getLogger(__name__)

LATER = (
    "change tracking was switched on and does not work yet: it begins when this snapshot is made or removed, "
    "so the next run reads everything once more"
)
UNDER_A_SNAPSHOT = (
    "another snapshot was made while change tracking was switched on, so what it tells from then on is not believed "
    "before it is reset with no snapshot present"
)
NOT_RESET = "change tracking was switched off and on again and is the same as before"


@dataclass(frozen=True, slots=True)
class Tracking:
    """Why changes are not tracked, empty where they are or shall be; the doubt about what tracking tells, if there is
    one; and whether it was switched on only now."""

    reason: str = ""
    doubted: TrackingDoubt | None = None
    just_now: bool = False


@dataclass(frozen=True, slots=True)
class Believed:
    """The change ids by disk key that a restore point may keep, why some are missing, and the doubt that stays."""

    ids: Mapping[int, str]
    reason: str = ""
    doubted: TrackingDoubt | None = None


async def switch_on(session: Session, managed: Any, vm: Vm, doubted: TrackingDoubt | None = None) -> Tracking:
    """Switch change tracking on where that is safe, also for a VM that is powered off; else tell why it stays off.

    Never under a snapshot or on top of a delta: since vSphere 6.5 tracking then tells too little without a fault (KB
    320557). It takes effect at the VM's next stun, which the snapshot that follows is.

    Where it is on and doubted it is reset: switched off, which takes effect at that stun as well, so that the next run
    switches it on again; at once for a VM that is powered off.
    """
    if vm.tracking_enabled and doubted is None:
        return Tracking()
    if not vm.tracking_supported:
        return Tracking("the VM does not support change tracking (its virtual hardware is too old)")
    if hindrance := await _hindrance(session, managed, vm):
        if doubted is not None and vm.tracking_enabled:
            return Tracking(f"{doubted.reason}; it is not reset while {hindrance}", doubted)
        return Tracking(f"change tracking is off, and it is not switched on while {hindrance}", doubted)
    try:
        if doubted is not None and vm.tracking_enabled:
            await _switch(session, managed, vm, False)
            if vm.power is not PowerState.OFF:
                return Tracking(
                    f"{doubted.reason}; it is being reset: it was switched off, and the next run switches it on again",
                    doubted,
                )
        await _switch(session, managed, vm, True)
    except Gone:
        raise
    except ConnectorError as error:
        what = "switched on" if doubted is None else "reset"
        return Tracking(f"change tracking could not be {what}: {error.what}", doubted)
    return Tracking(doubted=doubted, just_now=True)


async def _hindrance(session: Session, managed: Any, vm: Vm) -> str:
    """Why it is not safe to switch tracking on now, to follow "while"; empty when it is."""
    if vm.snapshots or vm.own_snapshots:
        return "the VM has snapshots: it would tell too little"
    if vm.consolidation_needed:
        return "disks need consolidation"
    devices = (await session.properties(managed, ["config.hardware.device"])).get("config.hardware.device") or ()
    if any(isinstance(d, vim.vm.device.VirtualDisk) and getattr(d.backing, "parent", None) for d in devices):
        return "a disk has a delta that no snapshot names"
    return ""


async def _switch(session: Session, managed: Any, vm: Vm, on: bool) -> None:
    spec = vim.vm.ConfigSpec(changeTrackingEnabled=on)
    await session.task(lambda: managed.ReconfigVM_Task(spec), entity=managed, operation="Reconfig")
    log.info("change tracking switched", extra={"vm": vm.name, "on": on})


def believed(tracking: Tracking, depth: int, ids: Mapping[int, str]) -> Believed:
    """What of the change ids of a snapshot may be kept, by disk key.

    `depth` is that of our snapshot in its tree, 1 where it is alone. A doubt ends where tracking was switched on just
    now, with no other snapshot there, and is another one than that which was doubted.
    """
    doubted, none = tracking.doubted, dict.fromkeys(ids, "")
    seen = frozenset(identity(one) for one in ids.values() if one)
    if not tracking.just_now:
        if doubted is None:
            return Believed(ids, tracking.reason)
        known = TrackingDoubt(doubted.reason, doubted.identities | seen)
        return Believed(none, tracking.reason or doubted.reason, known)
    if depth > 1:
        return Believed(none, UNDER_A_SNAPSHOT, TrackingDoubt(UNDER_A_SNAPSHOT, seen))
    if doubted is not None and seen & doubted.identities:
        return Believed(none, f"{doubted.reason}; {NOT_RESET}", doubted)
    return Believed(ids, LATER if ids and not all(ids.values()) else "")


def identity(change_id: str) -> str:
    """The part of a change id that another one takes the place of whenever tracking is reset."""
    return change_id.partition("/")[0]


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
