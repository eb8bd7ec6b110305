"""Which disks of a snapshot go into a restore point, and under which names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from connectors.hypervisor import Snapshot, SnapshotDisk
from policies.facts import Disk


def leaving_out(snapshot: Snapshot, why: Callable[[Disk], str]) -> Snapshot:
    """The snapshot without the disks for which there is a reason; they follow the unprotected ones, with it."""
    reasons = {one.disk.key: reason for one in snapshot.disks if (reason := why(one.disk))}
    if not reasons:
        return snapshot
    others = [replace(one.disk, unprotected=reasons[one.disk.key]) for one in snapshot.disks if one.disk.key in reasons]
    wanted = tuple(one for one in snapshot.disks if one.disk.key not in reasons)
    return replace(snapshot, disks=wanted, unprotected=(*snapshot.unprotected, *others))


def names_of(disks: tuple[SnapshotDisk, ...]) -> list[str]:
    """A name per disk, unique in the restore point: the label, with the device key where two are alike."""
    plain = [d.disk.label or f"disk {d.disk.key}" for d in disks]
    return [n if plain.count(n) == 1 else f"{n} ({d.disk.key})" for n, d in zip(plain, disks, strict=True)]
