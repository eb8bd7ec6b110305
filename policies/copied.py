"""A policy as it counts in a second copy, which may keep restore points by rules of its own. Pure.

Where a policy says nothing about the retention of a copy, its own retention counts there too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache

from policies.policy import Policy, Retention


def own_retention(policy: Policy, copy: str) -> Retention | None:
    """What the policy says of this copy alone; None where its own retention counts."""
    return next((retention for name, retention in policy.kept_in_copies if name == copy), None)


@lru_cache(maxsize=16_384)
def in_copy(policy: Policy, copy: str) -> Policy:
    """The policy with the retention that counts in this copy; in the first repository, which is "", as it is."""
    own = own_retention(policy, copy)
    return policy if own is None else replace(policy, hash=f"{policy.hash}:copy {copy}", retention=own)


def lock_in(policies: Iterable[Policy], copy: str) -> timedelta:
    """How long a restore point is locked in this copy, by what these policies say of it alone."""
    own = (own_retention(policy, copy) for policy in policies)
    return max((retention.lock for retention in own if retention is not None), default=timedelta())


@lru_cache(maxsize=16_384)
def covers(after: Policy, before: Policy) -> bool:
    """Whether whatever restore points there are, one of these policies keeps all of them that the other one does."""
    if _counting(after) != _counting(before):
        return False
    new, old = after.retention, before.retention
    if new.empty or old.empty:
        return new.empty
    numbers, none = dict(new.counts), timedelta()
    return (
        all(numbers.get(rule, 0) >= number for rule, number in old.counts)
        and (new.keep_within or none) >= (old.keep_within or none)
        and new.min_good >= old.min_good
        and new.grace >= old.grace
    )


def _counting(policy: Policy) -> tuple[object, ...]:
    """What besides its retention decides what it keeps."""
    levels = (policy.wanted, policy.weakest_good, policy.timing.zone.key)
    return (*levels, policy.leaving, policy.on_unmatched, policy.on_removed)
