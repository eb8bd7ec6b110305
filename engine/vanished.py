"""How many restore points expired lately because their VMs left or are not selected any more: the audit knows.

VMs that vanish by mistake a few at a time, as when permissions or tags go, are no mass in any single run of retention.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from engine.journal import stamp
from engine.parts import Parts
from engine.threads import settled
from policies.leaving import REMOVED, UNSELECTED

LONGEST = timedelta(days=3660)
"""Back to here the audit is asked at most."""


def who_of(copy: str = "") -> str:
    """As whom the audit knows the retention of the first repository, or of a second copy."""
    return f"copy {copy}" if copy else "retention"


async def expired_lately(parts: Parts, now: datetime, copy: str = "") -> int:
    """How many went in the last `guard.add_up_over`, in the first repository or in a second copy."""
    since = now - min(parts.rulebook.in_force.guard.add_up_over, LONGEST)

    def count() -> int:
        [(number,)] = parts.state.rows(
            "SELECT count(*) FROM audit WHERE who = ? AND action = 'expire' AND done_at > ?"
            " AND (starts_with(detail, ?) OR starts_with(detail, ?))",
            [who_of(copy), stamp(since), REMOVED, UNSELECTED],
        )
        return int(number)

    return await settled(parts.threads.state, count)
