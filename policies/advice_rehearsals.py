"""What a policy says of rehearsals that cannot come true, or means nothing. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from policies.advice import Advice, Advise
from policies.policy import Policy
from policies.rehearsing import Rehearse
from policies.units import span
from policies.windows import next_open, open_at

AHEAD = timedelta(days=15)
"""Windows come again every week; a change of clocks can swallow one."""


def rehearsal_advice(policy: Policy, advise: Advise, now: datetime) -> Iterable[Advice]:
    """Warnings about how a policy has restoring tried."""
    how = policy.rehearse
    if how is None:
        return
    closed = longest_closed(how, now)
    if closed > how.every:
        what = f"wants rehearsals every {span(how.every)}, but their window stays closed for up to {span(closed)}"
        yield advise(("rehearse", "every"), what, "write a longer time or more windows")


def longest_closed(how: Rehearse, now: datetime) -> timedelta:
    """The longest time in which no rehearsal may start."""
    longest, at = timedelta(), now
    while how.windows and at < now + AHEAD:
        opened = next_open(how.windows, how.zone, at)
        longest = max(longest, opened - at)
        segment = open_at(how.windows, how.zone, opened)
        at = segment[1] if segment is not None else now + AHEAD
    return longest
