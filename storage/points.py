"""What is told of restore points: their detail, and what a reference means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from policies.facts import PointId, RestorePoint, VmId
from storage.errors import NoSuchPoint
from storage.manifest import DiskRecord, Manifest, PointHead
from storage.marks import MarkState

LATEST = "latest"
HINT = "see: backstay points"


@dataclass(frozen=True, slots=True)
class PointDetail:
    """One restore point with all that is known of it. `damaged` is a sentence, empty when it is sound."""

    id: PointId
    head: PointHead
    committed_at: datetime
    disks: tuple[DiskRecord, ...]
    unprotected: tuple[tuple[str, str], ...]
    holds: tuple[str, ...]
    locked_until: datetime | None
    expiring_since: datetime | None
    verified_at: datetime | None
    damaged: str
    has_configuration: bool


@dataclass(frozen=True, slots=True)
class RepositorySizes:
    """`stored_bytes` counts packs, `logical_bytes` the capacity of all disks of all restore points.

    `free_bytes` is None when the store cannot tell.
    """

    stored_bytes: int
    chunks: int
    packs: int
    points: int
    logical_bytes: int
    free_bytes: int | None


def detail_of(manifest: Manifest, state: MarkState) -> PointDetail:
    """A manifest and what marks say of it."""
    head = manifest.head
    locks = [until for until in (head.locked_until, state.locked_until) if until is not None]
    return PointDetail(
        id=manifest.id,
        head=replace(head, vm=VmId(state.vm)) if state.vm else head,
        committed_at=manifest.committed_at,
        disks=manifest.disks,
        unprotected=manifest.unprotected,
        holds=state.holds,
        locked_until=max(locks, default=None),
        expiring_since=state.expiring_since,
        verified_at=state.verified_at,
        damaged=state.damaged,
        has_configuration=bool(manifest.configuration),
    )


def resolve(reference: str, ids: set[PointId], points: Callable[[], list[RestorePoint]]) -> PointId:
    """The restore point that an id, the unique beginning of an id, or NAME@latest means; NoSuchPoint."""
    name, _, which = reference.rpartition("@")
    if name and which == LATEST:
        matching = [point for point in points() if name in (point.vm_name, point.vm)]
        vms = sorted({point.vm for point in matching})
        if len(vms) > 1:
            raise NoSuchPoint(
                f"several VMs are called {name}: {', '.join(vms)}", hint="use the VM's id instead of its name"
            )
        if not matching:
            raise NoSuchPoint(f"there is no restore point of {name}", hint=HINT)
        return matching[-1].id
    if reference in ids:
        return PointId(reference)
    found = [point for point in ids if point.startswith(reference)] if reference else []
    if len(found) != 1:
        what = "several restore points begin" if found else "no restore point begins"
        a_vm = not found and any(reference == point.vm_name for point in points())
        raise NoSuchPoint(
            f"{what} with {reference!r}", hint=f"the newest one of this VM is {reference}@latest" if a_vm else HINT
        )
    return found[0]
