"""The fixed times of a schedule, cron expressions and recurrence rules alike, as instants.

A time that the change to summer time skips comes at the next valid instant, a repeated one once; what follows the
clock hour by hour follows it through a repeated hour too.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from policies.cron import AROUND, check_cron, cron_times
from policies.recurrence import Recurrence, times_of, years_from
from policies.rrule import parse_recurrence
from policies.windows import instant

Slots = tuple[datetime | None, datetime | None]


def is_rule(text: str) -> bool:
    """Whether a text of `schedule` is meant as a recurrence rule."""
    return "RRULE" in (written := text.upper()) or written.lstrip().startswith("DTSTART")


def check_time(text: str) -> str:
    """The text itself when it is a cron expression or a recurrence rule that comes to pass; raises Unusable."""
    if is_rule(text):
        parse_recurrence(text)
        return text
    return check_cron(text)


def slots_around(text: str, zone: ZoneInfo, at: datetime) -> Slots:
    """(the last time at or before `at`, the first after it), both UTC; None where a rule has none."""
    slots = _slots(text, zone, at.astimezone(UTC).toordinal())
    index = bisect_right(slots, at)
    return slots[index - 1] if index else None, slots[index] if index < len(slots) else None


@lru_cache(maxsize=16_384)
def _slots(text: str, zone: ZoneInfo, day: int) -> tuple[datetime, ...]:
    """The times of one UTC day, with the last before it and the first after it."""
    begin = datetime.fromordinal(day).replace(tzinfo=UTC)
    end = begin + timedelta(days=1)
    if is_rule(text):
        return _rule_slots(parse_recurrence(text), zone, begin, end)
    before = next(at for at in cron_times(text, zone, begin + AROUND, backward=True) if at <= begin)
    found = [before]
    for at in cron_times(text, zone, begin - AROUND):
        if at > found[-1]:
            found.append(at)
        if at > end:
            break
    return tuple(found)


def _rule_slots(rule: Recurrence, zone: ZoneInfo, begin: datetime, end: datetime) -> tuple[datetime, ...]:
    found: list[datetime] = []
    for at in _rule_times(rule, zone, (end + AROUND).astimezone(zone).date(), -1):
        if at <= end:
            found.append(at)
        if at <= begin:
            break
    later = _rule_times(rule, zone, (begin - AROUND).astimezone(zone).date(), 1)
    after = next((at for at in later if at > end), None)
    return tuple(sorted({*found, after} if after is not None else {*found}))


def _rule_times(rule: Recurrence, zone: ZoneInfo, from_day: date, step: int) -> Iterator[datetime]:
    """The instants of a rule from a local day on, or back from it with -1."""
    for days in years_from(rule, from_day.year, step):
        near = days[bisect_left(days, from_day) :] if step > 0 else days[: bisect_right(days, from_day)]
        for day in near[::step]:
            instants = {at for local in times_of(rule, day) for at in _instants(rule, zone, local)}
            yield from sorted(instants, reverse=step < 0)


def _instants(rule: Recurrence, zone: ZoneInfo, local: datetime) -> Iterator[datetime]:
    found: Iterator[datetime]
    if rule.hourly:
        both = (local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        found = (at for at in both if at.astimezone(zone).replace(tzinfo=None) == local)
    else:
        found = iter((instant(local.date(), local.hour * 60 + local.minute, zone),))
    until = rule.until if rule.until is not None and rule.until.tzinfo is not None else None
    return (at for at in found if until is None or at <= until)
