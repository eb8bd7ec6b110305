"""Doubts about change tracking that the engine has itself, and the kinds by which doubts are counted."""

from __future__ import annotations

from datetime import datetime

from engine.journal import aware, stamp
from engine.records import Change, Distrust, RunRow
from engine.starts import TOLERANCE, unseen_stop
from engine.state import State
from engine.threads import Threads, settled
from engine.world import World
from metrics.registry import Metrics
from policies.facts import Event, EventType, Vm, VmId
from storage.repository import PointDetail

_BY_CAUSE = {
    (EventType.RECONFIGURED, "revert"): "reverted",
    (EventType.RECONFIGURED, "reload"): "reloaded",
    (EventType.RECONFIGURED, "hardware upgrade"): "upgraded",
    (EventType.POWERED_ON, "ha"): "host_failed",
    (EventType.POWERED_OFF, "ha"): "host_failed",
}


def kind_of(event: Event) -> str:
    """As what the doubt is counted to which an event led."""
    return _BY_CAUSE.get((event.type, event.cause), event.type.value.removeprefix("vm."))


def newest_is_gone(world: World, vm: VmId) -> list[str]:
    """Why an older restore point is not built on: it may lie behind a doubt that the newest one had settled."""
    last = world.runs.get(vm, RunRow(vm)).last_success
    good = [point.taken_at for point in world.points.get(vm, ()) if point.complete and not point.damaged]
    gone = last is not None and max(good, default=last) < last
    return ["the newest restore point is gone or damaged"] if gone else []


async def host_failed(
    threads: Threads, state: State, metrics: Metrics, vm: Vm, latest: PointDetail | None
) -> list[str]:
    """Why the VM's host may have failed unseen since its newest restore point, which therefore is not built on.

    Looked at before each run, and settled by the restore point of a run: nothing of it is remembered besides.
    """
    if latest is None:
        return []
    rows = await settled(
        threads.state,
        state.rows,
        "SELECT happened_at, type FROM events WHERE vm = ? AND type IN (?, ?) AND happened_at >= ?",
        [vm.id, EventType.POWERED_ON.value, EventType.POWERED_OFF.value, stamp(latest.head.taken_at - TOLERANCE)],
    )
    told = [(at, row[1] == EventType.POWERED_ON.value) for row in rows if (at := aware(row[0])) is not None]
    why = unseen_stop(vm, latest, told)
    if why:
        metrics.tracking_distrusted("host_failed")
    return [why] if why else []


async def distrust_disks(
    threads: Threads, state: State, metrics: Metrics, vm: VmId, kind: str, reason: str, now: datetime
) -> None:
    """The next run of the VM reads all its disks in full, whatever its policies say; `reason` is a sentence about it.

    Durable on return. Whoever is about to write to a VM's disks calls this before the first byte, so that a process
    that dies in between leaves no restore point behind that trusts change tracking. StorageError when it cannot be
    written: nothing may be written to the disks then.
    """
    await settled(threads.state, state.apply, Change(distrust=(Distrust(vm, reason, "", now),)), now=now)
    metrics.tracking_distrusted(kind)
