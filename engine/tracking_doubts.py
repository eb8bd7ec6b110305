"""Doubts about change tracking that no full read settles: how they are known, and kept with a restore point. Pure.

A restore point keeps them, and not the engine's state alone, which may be lost: what was switched on under a snapshot
tells too little for as long as it is not reset (KB 320557), and what called changed blocks unchanged may go on so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

from connectors.hypervisor import Snapshot, TrackingDoubt
from engine.records import Distrust
from storage.repository import PointDetail

KEPT_AS = "tracking_doubt"
"""The attribute of a restore point."""

LIE_KEPT_AS = "tracking_lied"
"""The attribute of a disk whose change tracking was found out in the run that made the restore point."""


def to_reset(doubts: Iterable[Distrust]) -> str:
    """Why tracking is to be reset, of what the state remembers; empty where nothing asks for it."""
    return "; ".join(dict.fromkeys(one.reason for one in doubts if one.reset))


def known_doubt(reason: str, latest: PointDetail | None) -> TrackingDoubt | None:
    """The doubt with which a run begins: that of the newest restore point, and what happened since as `reason`."""
    before = None if latest is None else _read(latest.head.attributes.get(KEPT_AS, "")) or _lied(latest)
    if before is None:
        return TrackingDoubt(reason) if reason else None
    return replace(before, reason=reason or before.reason)


def kept_with_point(doubted: TrackingDoubt | None) -> dict[str, str]:
    """What the restore point remembers of it."""
    if doubted is None:
        return {}
    return {KEPT_AS: json.dumps({"reason": doubted.reason, "identities": sorted(doubted.identities)})}


def doubting(snapshot: Snapshot, latest: PointDetail | None) -> Snapshot:
    """The snapshot, without its change ids where they show that tracking began anew under an older snapshot.

    No event need have told of that: another identity than in the newest restore point, and a snapshot of somebody else
    from before it that still stands. A disk whose files were moved has another one by the move itself.
    """
    if latest is None or snapshot.doubted is not None:
        return snapshot
    older = [one for one in snapshot.vm.snapshots if one.created_at <= latest.head.taken_at]
    if not older:
        return snapshot
    before = {one.head.uuid: one.head for one in latest.disks if one.head.uuid}
    anew = [
        one
        for one in snapshot.disks
        if (base := before.get(one.disk.uuid)) is not None
        and one.change_id
        and _identity(one.change_id) != _identity(base.change_id)
        and base.attributes.get("datastore", "") == one.disk.datastore
    ]
    if not anew:
        return snapshot
    reason = (
        f"change tracking of {', '.join(one.disk.label for one in anew)} began anew while the snapshot "
        f'"{older[0].name}" stood, so what it tells is not believed before it is reset with no snapshot present'
    )
    doubt = TrackingDoubt(reason, frozenset(_identity(one.change_id) for one in snapshot.disks if one.change_id))
    without = tuple(replace(one, change_id="") for one in snapshot.disks)
    return replace(snapshot, disks=without, tracking_reason=reason, doubted=doubt)


def was_tracked(latest: PointDetail | None) -> bool:
    """Whether there is a restore point with a disk whose changes were tracked then."""
    return latest is not None and any(one.head.change_id for one in latest.disks)


def with_reset(distrust: str, snapshot: Snapshot) -> str:
    """The doubt of a run, with what became of the reset that it asks for; that may say it already."""
    if snapshot.doubted is None or not distrust:
        return distrust
    told = snapshot.tracking_reason
    return told if told.startswith(distrust) else f"{distrust}; {told}"


def _lied(latest: PointDetail) -> TrackingDoubt | None:
    """The doubt about tracking that was found out while the restore point was made, whose change ids it has."""
    told = {why: None for one in latest.disks if (why := one.head.attributes.get(LIE_KEPT_AS, ""))}
    if not told:
        return None
    seen = frozenset(_identity(one.head.change_id) for one in latest.disks if one.head.change_id)
    return TrackingDoubt("; ".join(told), seen)


def _identity(change_id: str) -> str:
    return change_id.partition("/")[0]


def _read(kept: str) -> TrackingDoubt | None:
    """What a restore point remembers; a doubt without identities where that cannot be read."""
    if not kept:
        return None
    try:
        told = json.loads(kept)
        return TrackingDoubt(str(told["reason"]), frozenset(str(one) for one in told["identities"]))
    except (ValueError, KeyError, TypeError):
        return TrackingDoubt("the last restore point doubts change tracking, and does not say why")
