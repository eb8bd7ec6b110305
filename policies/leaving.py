"""Whose retention counts for the restore points of a VM that no policy selects any more, or that left the inventory.

Each restore point tells the policy that made it, and what that policy says today (`on_unmatched`, `on_removed`) counts:
"hold" keeps the point, "expire" lets the policy's retention go on, "keep_last_good" keeps the newest good one of the
VM. Both give a grace of a day at least, as VMs that vanish by mistake come back. A point whose policy is gone, or that
no policy made, is held. A policy of which restore points are left always keeps the best one that it made, so that
what it says of the others does not change when its own have expired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache

from policies.facts import RestorePoint
from policies.policy import DEFAULT_GRACE, Leaving, Policy, Retention

REMOVED = "the VM left the inventory"
UNSELECTED = "no policy selects the VM"
"""How the reason of each restore point begins that expires because its VM is no longer protected."""

_NO_GRACE = Retention(grace=timedelta())


def left_with(
    points: Iterable[RestorePoint], policy: Callable[[str], Policy | None], *, removed: bool
) -> tuple[Policy, ...]:
    """The policies that made these restore points, as they treat what they no longer protect; none when all hold."""
    names = {point.policy for point in points}
    found = [_treating(policy(name), name, removed) for name in sorted(names)]
    return tuple(found) if any(one.leaving is not Leaving.HOLD for one in found) else ()


@lru_cache(maxsize=16_384)
def _treating(policy: Policy | None, name: str, removed: bool) -> Policy:
    if policy is None:
        return Policy(name, "gone", retention=_NO_GRACE, leaving=Leaving.HOLD, leaving_why=_gone(name))
    value = policy.on_removed if removed else policy.on_unmatched
    key = f"on_removed = {value}" if removed else f"on_unmatched = {value}"
    retention = replace(policy.retention, grace=max(policy.retention.grace, DEFAULT_GRACE))
    if value is Leaving.HOLD:
        retention = _NO_GRACE
    elif value is Leaving.KEEP_LAST_GOOD:
        retention = Retention(counts=(("last", 1),), grace=retention.grace)
    happened = REMOVED if removed else UNSELECTED
    return replace(
        policy,
        hash=f"{policy.hash}:{key}",
        retention=retention,
        leaving=value,
        leaving_why=f"{happened}, and policy {name}, which made the restore point, says {key}",
    )


def _gone(name: str) -> str:
    return f"policy {name}, which made the restore point, is gone" if name else "no policy made the restore point"
