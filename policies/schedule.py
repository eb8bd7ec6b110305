"""When a VM's next scheduled backup may start, and by when it should be done. Pure: now is an argument.

A goal (`rpo`) asks for a run some time before the newest good restore point gets as old as the goal. Fixed times
(`schedule`) ask for a run at each; after an outage only the latest missed one is caught up, and none later than
`start_within` allows. Windows and blackouts only constrain: a run waits for the next opening.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from policies.errors import quoted
from policies.hours import blackout_at, last_open_before, next_open, open_at
from policies.policy import Timing
from policies.sealing import maker
from policies.spreading import delay
from policies.times import slots_around
from policies.units import clock, span

LEAD_SHARE = 8
"""A run starts when an eighth of the goal is left, so that it is done before the goal is missed."""

FIRST_RUN_GRACE = timedelta(hours=1)
"""How long after a fixed time could first start a VM that was never tried may still start: a new policy at noon shall
not start last night's runs, and an engine that restarts at the wrong minute shall not lose them."""

LAST_TIME = timedelta(days=1)
"""By when the last run of a rule that ends should be done: there is no next time to be its deadline."""

MOST_LEFT_OUT = 100
"""Closed hours that the search for a time that can start looks beyond."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_STEP = timedelta(seconds=1)
_TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Due:
    """The next scheduled run. It is due now when `at` is not after now.

    `slot` identifies it: the same until there is a good restore point or its time is over. `deadline` is when the
    goal is missed, or the next fixed time, or the policy's `finish_within` is over, whichever comes first.
    """

    rule: str
    slot: datetime
    at: datetime
    deadline: datetime
    why: str


_make_due = maker(Due)


def next_due(
    timing: Timing, last_good: datetime | None, attempted: bool, now: datetime, vm: str = "", *, words: bool = True
) -> Due | None:
    """The next run of a goal or a fixed time, whichever may start first; None without either.

    `attempted` tells whether a run of this VM was ever tried; its id decides where in the policy's `spread` it starts.
    Without `words` a goal does not say why, which takes half of the time.
    """
    # A point from the future means that a clock was wrong: it must not stop the backups until then.
    known = last_good if last_good is not None and last_good <= now else None
    best = _by_goal(timing, timing.rpo, known, now, words) if timing.rpo is not None else None
    for text in timing.times:
        due = _by_schedule(timing, text, known, attempted, now, vm if timing.spread else "")
        if due is not None and (best is None or _order(due) < _order(best)):
            best = due
    return best


def _order(due: Due) -> tuple[datetime, datetime, str]:
    return (due.at, due.deadline, due.rule)


def due_after(timings: Sequence[Timing]) -> timedelta | None:
    """How long after a good restore point the next run is due, where goals alone decide; else None."""
    if not all(one.rpo is not None and one.hours.always and not one.times for one in timings):
        return None
    return min((one.rpo - one.rpo / LEAD_SHARE for one in timings if one.rpo is not None), default=None)


def opening(timing: Timing, at: datetime, *, any_time: bool = False) -> datetime:
    """The first instant from `at` on at which windows and blackouts let a run start; with any_time, blackouts alone."""
    return next_open(timing.any_hours if any_time else timing.hours, at)


def latest_start(timing: Timing, at: datetime, deadline: datetime, *, any_time: bool = False) -> datetime:
    """The end of the window that is open then or the next blackout, or the deadline when that comes first."""
    segment = open_at(timing.any_hours if any_time else timing.hours, at)
    return deadline if segment is None else min(segment[1], deadline)


def finish_by(timing: Timing, start: datetime, deadline: datetime) -> datetime:
    """The deadline, or when `finish_within` is over for a run whose start is due then."""
    return deadline if timing.finish_within is None else min(deadline, start + timing.finish_within)


def blackout_words(timing: Timing, at: datetime, now: datetime) -> str:
    """The blackout that a time falls into, such as `blackout "12-24..12-26" until 2026-12-27 00:00`; "" for none."""
    found = blackout_at(timing.hours, at)
    return f"blackout {quoted(found[0].text)} until {clock(found[1], timing.zone, now)}" if found else ""


def _by_goal(timing: Timing, rpo: timedelta, last_good: datetime | None, now: datetime, words: bool) -> Due:
    if last_good is None:
        slot = now - (now - _EPOCH) % max(rpo, _EPOCH_STEP)
        why = f"never backed up; RPO is {_words_of(rpo)}{_in_blackout(timing, now, now)}" if words else ""
        return _make_due("rpo", slot, next_open(timing.hours, now), slot, why)
    deadline = last_good + rpo
    lead = rpo / LEAD_SHARE
    planned = deadline - lead
    at = next_open(timing.hours, planned if planned > now else now)
    start = at if planned > now or timing.finish_within is None else next_open(timing.hours, planned)
    slot = deadline
    if now > deadline:
        slot += max(0, (now - last_good) // max(rpo, _EPOCH_STEP) - 1) * rpo
    elif at > deadline > now:
        sooner = _before_closing(timing, deadline, lead, last_good, now)
        if sooner is not None:
            at = start = sooner
    why = ""
    if words:
        why = f"last good restore point is {span(now - last_good)} old; RPO is {_words_of(rpo)}"
        why += f", missed since {clock(deadline, timing.zone, now)}" if now > deadline else ""
        wanted = planned if planned > now else now
        why += _in_blackout(timing, wanted, now) if at > wanted else ""
    return _make_due("rpo", slot, at, finish_by(timing, start, deadline), why)


def _in_blackout(timing: Timing, at: datetime, now: datetime) -> str:
    words = blackout_words(timing, at, now) if timing.blackouts else ""
    return f"; {words}" if words else ""


@lru_cache(maxsize=256)
def _words_of(duration: timedelta) -> str:
    return span(duration)


def _before_closing(
    timing: Timing, deadline: datetime, lead: timedelta, last_good: datetime, now: datetime
) -> datetime | None:
    """A start near the end of the last open time before the deadline, when none is open at the usual time."""
    segment = last_open_before(timing.hours, deadline)
    if segment is None or segment[1] <= now:
        return None
    latest = max(segment[0], segment[1] - lead)
    return max(latest, now) if latest > last_good else None


def _by_schedule(
    timing: Timing, text: str, last_good: datetime | None, attempted: bool, now: datetime, vm: str
) -> Due | None:
    before, after = slots_around(text, timing.zone, now)
    missed = None
    if before is not None and not (last_good is not None and last_good >= before):
        start, deadline, put_off = _at_slot(timing, before, after, vm)
        fresh = now - start <= FIRST_RUN_GRACE
        if fresh or attempted or last_good is not None:
            at = start if start > now else next_open(timing.hours, now)
            if timing.start_within is None or at <= before + timing.start_within:
                shown = clock(before, timing.zone, now)
                why = f"scheduled for {shown}{_words(put_off) if fresh else ' and not done since'}"
                if timing.blackouts and at > now:
                    why += _in_blackout(timing, max(now, before), now)
                return Due("schedule", before, at, deadline, why)
            missed = before
    return None if after is None else _next(timing, text, after, missed, vm, now.astimezone(timing.zone).date())


@lru_cache(maxsize=32_768)
def _next(timing: Timing, text: str, after: datetime, missed: datetime | None, vm: str, today: date) -> Due:
    """The first time to come that can start in time; `missed` is one that could not."""
    slot, within = after, timing.start_within
    for _ in range(MOST_LEFT_OUT):
        start, deadline, put_off = _at_slot(timing, slot, slots_around(text, timing.zone, slot)[1], vm)
        if within is None or start <= slot + within:
            break
        later = slots_around(text, timing.zone, max(slot, start - within - _TICK))[1]
        if later is None:
            break
        slot = later
    why = f"next scheduled time is {_shown(slot, timing.zone, today)}{_words(put_off)}"
    if within is not None and missed is not None:
        why += f"; {_shown(missed, timing.zone, today)} was missed: no run could start within {_words_of(within)}"
    elif within is not None and slot != after:
        why += f"; {_shown(after, timing.zone, today)} is left out: no run can start within {_words_of(within)}"
    elif timing.blackouts and start > slot:
        words = blackout_at(timing.hours, slot)
        why += f"; blackout {quoted(words[0].text)} until {_shown(words[1], timing.zone, today)}" if words else ""
    return Due("schedule", slot, start, deadline, why)


@lru_cache(maxsize=32_768)
def _at_slot(
    timing: Timing, slot: datetime, following: datetime | None, vm: str
) -> tuple[datetime, datetime, timedelta]:
    """The start and the deadline of a fixed time, and how much of the start is this VM's place in the spread."""
    opened = next_open(timing.hours, slot)
    deadline = finish_by(timing, opened, following or opened + LAST_TIME)
    if not timing.spread:
        return opened, deadline, timedelta()
    until = latest_start(timing, opened, following or opened + LAST_TIME)
    if timing.start_within is not None:
        until = min(until, slot + timing.start_within)
    put_off = delay(timing.spread, opened, until, vm, slot.isoformat())
    return opened + put_off, deadline, put_off


def _words(put_off: timedelta) -> str:
    return f" and {span(put_off)} for the spread" if put_off else ""


def _shown(at: datetime, zone: ZoneInfo, today: date) -> str:
    """As `clock` shows it, with a day in place of now."""
    local = at.astimezone(zone)
    return f"{local:%H:%M %Z}" if local.date() == today else f"{local:%Y-%m-%d %H:%M %Z}"
