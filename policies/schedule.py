"""When a VM's next scheduled backup may start, and by when it should be done. Pure: now is an argument.

A goal (`rpo`) asks for a run some time before the newest good restore point gets as old as the goal. Fixed times
(`schedule`) ask for a run at each; after an outage only the latest missed one is caught up. Windows only constrain:
a run waits for the next opening.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from policies.cron import slots_around
from policies.policy import Timing
from policies.spreading import delay
from policies.units import clock, span
from policies.windows import last_segment_before, next_open, open_at

LEAD_SHARE = 8
"""A run starts when an eighth of the goal is left, so that it is done before the goal is missed."""

FIRST_RUN_GRACE = timedelta(hours=1)
"""How long after a fixed time a VM that was never tried may still start: a new policy at noon shall not start
last night's runs, and an engine that restarts at the wrong minute shall not lose them."""

_EPOCH_STEP = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Due:
    """The next scheduled run. It is due now when `at` is not after now.

    `slot` identifies it: the same until there is a good restore point or its time is over. `deadline` is when the
    goal is missed, or the next fixed time.
    """

    rule: str
    slot: datetime
    at: datetime
    deadline: datetime
    why: str


def next_due(timing: Timing, last_good: datetime | None, attempted: bool, now: datetime, vm: str = "") -> Due | None:
    """The next run of a goal or a fixed time, whichever may start first; None without either.

    `attempted` tells whether a run of this VM was ever tried; its id decides where in the policy's `spread` it starts.
    """
    # A point from the future means that a clock was wrong: it must not stop the backups until then.
    known = last_good if last_good is not None and last_good <= now else None
    found = [_by_schedule(timing, cron, known, attempted, now, vm) for cron in timing.times]
    if timing.rpo is not None:
        found.append(_by_goal(timing, timing.rpo, known, now))
    return min(found, key=lambda due: (due.at, due.deadline, due.rule), default=None)


def opening(timing: Timing, at: datetime) -> datetime:
    """The first instant from `at` on at which the windows let a run start."""
    return next_open(timing.windows, timing.zone, at)


def latest_start(timing: Timing, at: datetime, deadline: datetime) -> datetime:
    """The end of the window that is open then, or the deadline when that comes first."""
    segment = open_at(timing.windows, timing.zone, at)
    return deadline if segment is None else min(segment[1], deadline)


def _by_goal(timing: Timing, rpo: timedelta, last_good: datetime | None, now: datetime) -> Due:
    goal = span(rpo)
    if last_good is None:
        slot = now - (now - datetime.fromtimestamp(0, now.tzinfo)) % max(rpo, _EPOCH_STEP)
        return Due("rpo", slot, opening(timing, now), slot, f"never backed up; RPO is {goal}")
    deadline = last_good + rpo
    late = max(0, (now - last_good) // max(rpo, _EPOCH_STEP) - 1)
    due = Due("rpo", deadline + late * rpo, deadline - rpo / LEAD_SHARE, deadline, "")
    at = opening(timing, max(due.at, now))
    if at > deadline > now:
        at = _before_closing(timing, due, last_good, now) or at
    age = f"last good restore point is {span(now - last_good)} old; RPO is {goal}"
    missed = f", missed since {clock(deadline, timing.zone, now)}" if now > deadline else ""
    return replace(due, at=at, why=age + missed)


def _before_closing(timing: Timing, due: Due, last_good: datetime, now: datetime) -> datetime | None:
    """A start near the end of the last window before the deadline, when no window is open at the usual time."""
    lead = due.deadline - due.at
    segment = last_segment_before(timing.windows, timing.zone, due.deadline)
    if segment is None or segment[1] <= now:
        return None
    latest = max(segment[0], segment[1] - lead)
    return max(latest, now) if latest > last_good else None


def _by_schedule(timing: Timing, cron: str, last_good: datetime | None, attempted: bool, now: datetime, vm: str) -> Due:
    before, after = slots_around(cron, timing.zone, now)
    done = last_good is not None and last_good >= before
    opened, put_off = _spread(timing, before, after, vm)
    fresh = now - before <= FIRST_RUN_GRACE + put_off
    if done or not (attempted or last_good is not None or fresh):
        shown = clock(after, timing.zone, now)
        following = slots_around(cron, timing.zone, after)[1]
        opened, put_off = _spread(timing, after, following, vm)
        return Due("schedule", after, opened + put_off, following, f"next scheduled time is {shown}{_words(put_off)}")
    shown = clock(before, timing.zone, now)
    why = f"scheduled for {shown}{_words(put_off)}" if fresh else f"scheduled for {shown} and not done since"
    at = opened + put_off if opened + put_off > now else opening(timing, now)
    return Due("schedule", before, at, after, why)


def _spread(timing: Timing, slot: datetime, following: datetime, vm: str) -> tuple[datetime, timedelta]:
    """When the windows first let a fixed time start, and how long after that this VM's place in the spread is."""
    opened = opening(timing, slot)
    if not timing.spread:
        return opened, timedelta()
    until = latest_start(timing, opened, following)
    return opened, delay(timing.spread, opened, until, vm, slot.isoformat())


def _words(put_off: timedelta) -> str:
    return f" and {span(put_off)} for the spread" if put_off else ""
