"""What a policy's goal, times and windows say that cannot come true, looked at over the year to come. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import pairwise

from policies.advice import Advice, Advise
from policies.errors import quoted
from policies.hours import Hours, next_open, open_at
from policies.policy import Timing
from policies.times import slots_around
from policies.units import clock, span

AHEAD = timedelta(days=366)
"""Whatever comes every year comes in it."""

_TICK = timedelta(seconds=1)


def timing_advice(timing: Timing, advise: Advise, now: datetime) -> Iterable[Advice]:
    """Warnings about when a policy backs up."""
    if timing.rpo is not None:
        closed, since = longest_closed(timing.hours, now)
        if closed > timing.rpo:
            what = (
                f"has an rpo of {span(timing.rpo)}, but its {_closers(timing)} stay closed for up to {span(closed)}"
                if not timing.blackouts
                else f"has an rpo of {span(timing.rpo)}, but its {_closers(timing)} leave no time to start in for "
                f"{span(closed)}, from {clock(since, timing.zone)} on"
            )
            yield advise(("rpo",), what, "write a longer rpo or more windows")
    if timing.spread and not timing.times:
        yield advise(("spread",), "has a spread, but no schedule that it spreads", "write schedule, or leave it out")
    for index, text in enumerate(timing.times):
        path = ("schedule", index) if len(timing.times) > 1 else ("schedule",)
        if not timing.hours.always and not _falls_inside(timing, text, now):
            said = f"has the time {quoted(text)}, which never falls into its {_closers(timing)}"
            first = slots_around(text, timing.zone, now)[1]
            opened = first and next_open(timing.hours, first)
            if opened and timing.start_within is not None and not _ever_in_time(timing, text, now):
                what = f"{said}, and start_within = {span(timing.start_within)} is over before they open: it never runs"
                yield advise(path, what, "write a time inside a window, or a longer start_within")
            elif opened:
                what = f"{said}: its runs start when they open, such as at {clock(opened, timing.zone)}"
                yield advise(path, what, "write a time inside a window")


def _closers(timing: Timing) -> str:
    return " and ".join(name for name, there in (("windows", timing.windows), ("blackouts", timing.blackouts)) if there)


@lru_cache(maxsize=1024)
def longest_closed(hours: Hours, now: datetime) -> tuple[timedelta, datetime]:
    """The longest time in the year to come in which no run may start, and when it begins."""
    found = (timedelta(), now)
    at = now
    while not hours.always and at < now + AHEAD:
        opened = next_open(hours, at)
        if opened - at > found[0]:
            found = (opened - at, at)
        segment = open_at(hours, opened)
        at = max(segment[1], opened + _TICK) if segment is not None else opened + _TICK
    return found


def _falls_inside(timing: Timing, text: str, now: datetime) -> bool:
    """Whether one of the times of the year to come lies inside the hours."""
    at = now
    while at < now + AHEAD:
        opened = next_open(timing.hours, at)
        segment = open_at(timing.hours, opened)
        end = segment[1] if segment is not None else opened + _TICK
        slot = slots_around(text, timing.zone, opened - _TICK)[1]
        if slot is None:
            return True  # its times are over: that is no matter of windows
        if slot < end:
            return True
        at = max(end, slot)
    return False


def _ever_in_time(timing: Timing, text: str, now: datetime) -> bool:
    within = timing.start_within
    slot = slots_around(text, timing.zone, now)[1]
    for _ in range(400):
        if slot is None or slot > now + AHEAD or within is None:
            return False
        if next_open(timing.hours, slot) <= slot + within:
            return True
        slot = slots_around(text, timing.zone, slot)[1]
    return False


def interval(timing: Timing, now: datetime) -> timedelta | None:
    """How far apart its backups are at most in the usual case; None without a goal or fixed times."""
    found = [timing.rpo] if timing.rpo is not None else []
    for text in timing.times:
        slots = [now]
        while len(slots) < 12 and (later := slots_around(text, timing.zone, slots[-1])[1]) is not None:
            slots.append(later)
        gaps = sorted(after - before for before, after in pairwise(slots[1:]))
        if gaps:
            found.append(gaps[len(gaps) // 2])
    return min(found, default=None)
