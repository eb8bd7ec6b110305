"""What commands and the API show of the repository's larger values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from engine.plain import plain

if TYPE_CHECKING:
    from storage.points import PointDetail
    from storage.reclaim import PackFate, ReclaimPlan
    from storage.verify import VerifyReport


def verify_row(report: VerifyReport) -> dict[str, Any]:
    """A verification as JSON: its fields, `sound`, `complete`, and the names of the VMs that are hit."""
    return {**plain(report), "sound": report.sound, "complete": report.complete, "vms": list(report.vms)}


def point_details(detail: PointDetail, kept: Mapping[str, Any]) -> Mapping[str, Any]:
    """One restore point with all that is recorded of it; `kept` is what it keeps of the VM beside the disks."""
    return {
        "id": detail.id,
        "vm": detail.head.vm_name,
        "vm_id": detail.head.vm,
        "taken_at": detail.head.taken_at,
        "committed_at": detail.committed_at,
        "consistency": detail.head.consistency,
        "attributes": _typed(detail.head.attributes),
        "aliases": dict(detail.head.aliases),
        "disks": [
            {
                "label": record.head.name,
                "capacity_bytes": record.head.capacity_bytes,
                "uuid": record.head.uuid,
                "read_bytes": record.read_bytes,
                "new_bytes": record.new_bytes,
                "stored_bytes": record.stored_bytes,
                "dedup_bytes": record.dedup_bytes,
                "mapped_bytes": record.mapped_bytes,
                "fallbacks": [],
                **_typed(record.head.attributes),
            }
            for record in detail.disks
        ],
        "unprotected": [list(one) for one in detail.unprotected],
        "holds": list(detail.holds),
        "locked_until": detail.locked_until,
        "expiring_since": detail.expiring_since,
        "verified_at": detail.verified_at,
        "damaged": detail.damaged,
        "kept": dict(kept),
    }


def _typed(attributes: Mapping[str, str]) -> dict[str, Any]:
    """Attributes of a restore point or a disk as what they are; one that is not what it should be stays as it is."""
    return {name: _value(name, text) for name, text in attributes.items()}


def _value(name: str, text: str) -> Any:
    if name not in _TYPES:
        return text
    try:
        return _TYPES[name](text)
    except ValueError:
        return text


_TYPES: Mapping[str, Callable[[str], Any]] = {
    "fallbacks": json.loads,
    "tracking_doubt": json.loads,
    "boot_time": datetime.fromisoformat,
    "tracking_sampled_blocks": int,
    "snapshot_seconds": float,
    "stun_creation": json.loads,
    "stun_removal": json.loads,
}
"""What restore points keep as text, as the repository's format has it, and is a list, an object, a number or a time."""


def plan_row(plan: ReclaimPlan) -> dict[str, Any]:
    """A plan as JSON: what happens to which pack and why, and bytes. `until` is when a waiting one may be freed."""
    return {
        "free": [_fate(fate) for fate in plan.free],
        "condemn": [_fate(fate) for fate in plan.condemn],
        "rewrite": [_fate(fate) for fate in plan.rewrite],
        "waiting": [_fate(fate) | {"until": plain(fate.until)} for fate in plan.waiting],
        "take_back": [_fate(fate) for fate in plan.take_back],
        "young": plan.young,
        "total_bytes": plan.total_bytes,
        "freed_bytes": plan.freed_bytes,
        "condemned_bytes": plan.condemned_bytes,
        "at_once": plan.at_once,
        "idle": plan.idle,
    }


def _fate(fate: PackFate) -> dict[str, Any]:
    return {"pack": fate.name.key, "bytes": fate.bytes, "live_bytes": fate.live_bytes, "reason": fate.reason}
