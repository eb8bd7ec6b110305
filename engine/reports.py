"""What commands and the API show of the repository's larger values."""

from __future__ import annotations

from typing import Any

from storage.reclaim import ReclaimPlan


def plan_row(plan: ReclaimPlan) -> dict[str, Any]:
    """A plan as JSON: packs to drop, packs to write again, packs too young, bytes."""
    return {
        "drop": [{"pack": fate.name.key, "bytes": fate.bytes, "reason": fate.reason} for fate in plan.drop],
        "rewrite": [
            {"pack": fate.name.key, "bytes": fate.bytes, "live_bytes": fate.live_bytes, "reason": fate.reason}
            for fate in plan.rewrite
        ],
        "young": plan.young,
        "total_bytes": plan.total_bytes,
        "freed_bytes": plan.freed_bytes,
    }
