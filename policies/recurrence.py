"""The local days and times on which a recurrence rule of iCalendar (RFC 5545) comes.

Every search is bounded: a year's days are found by looking at each of its days once, and no answer looks further
than `SEARCH_YEARS`. A library that walks from time to time goes on to the year 9999 where a rule never comes.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from itertools import groupby

from policies.windows import wall_time

SEARCH_YEARS = 40
"""How far a rule is searched for its next time: a 29 February that is a Saturday comes after 28 years, or 40."""

FIRST_YEAR, LAST_YEAR = 1900, 2200
"""Dates in policies and calendars lie between; what a calendar says beyond is moved to the bound."""

YEAR = range(1, 13)


@dataclass(frozen=True, slots=True)
class Recurrence:
    """One rule. Empty sets restrict nothing; `week_days` pairs a weekday (0 is Monday) with its number, 0 for each.

    `until` is local unless it has a time zone (UTC), and the last moment that counts.
    """

    frequency: str
    interval: int = 1
    start: datetime | None = None
    count: int = 0
    until: datetime | None = None
    week_start: int = 0
    months: frozenset[int] = frozenset()
    weeks: frozenset[int] = frozenset()
    year_days: frozenset[int] = frozenset()
    month_days: frozenset[int] = frozenset()
    week_days: frozenset[tuple[int, int]] = frozenset()
    hours: tuple[int, ...] = ()
    minutes: tuple[int, ...] = (0,)
    positions: frozenset[int] = frozenset()

    @property
    def hourly(self) -> bool:
        """Whether it follows the clock hour by hour: then it comes in both of two repeated hours."""
        return self.frequency == "HOURLY" and self.interval == 1 and not self.hours


def years_from(rule: Recurrence, year: int, step: int = 1) -> Iterator[tuple[date, ...]]:
    """The days of each year that has some, from this one on, or back with -1; ends after `SEARCH_YEARS` without any."""
    empty = 0
    while FIRST_YEAR <= year < LAST_YEAR and empty < SEARCH_YEARS:
        days = days_of_year(rule, year)
        empty = 0 if days else empty + 1
        if days:
            yield days
        year += step


def times_of(rule: Recurrence, day: date) -> Iterator[datetime]:
    """The local times on a day of the rule, in order."""
    hours: Sequence[int] = rule.hours or range(24)
    if rule.frequency == "HOURLY" and rule.interval > 1 and rule.start is not None:
        since = (day.toordinal() - rule.start.toordinal()) * 24 - rule.start.hour
        counted = range(-since % rule.interval, 24, rule.interval)
        hours = [hour for hour in counted if hour in hours]
    for hour in hours:
        for minute in rule.minutes:
            at = wall_time(day.year, day.month, day.day, hour, minute)
            if (rule.start is None or at >= rule.start) and not _over(rule, at):
                yield at


def _over(rule: Recurrence, at: datetime) -> bool:
    return rule.until is not None and rule.until.tzinfo is None and at > rule.until


@lru_cache(maxsize=16_384)
def days_of_year(rule: Recurrence, year: int) -> tuple[date, ...]:
    """The days of one year on which the rule comes, in order."""
    start = rule.start
    if (start is not None and year < start.year) or (rule.until is not None and year > rule.until.year + 1):
        return ()
    if rule.frequency == "YEARLY" and start is not None and (year - start.year) % rule.interval:
        return ()
    days = _in_turn(rule, _fitting(rule, year))
    first, last = date(year, 1, 1).toordinal(), date(year, 12, 31).toordinal()
    if rule.positions:
        if rule.frequency == "WEEKLY":
            # A week may begin in the year before and end in the next one.
            before = [day for day in _fitting(rule, year - 1) if day > first - 7]
            after = [day for day in _fitting(rule, year + 1) if day < last + 7]
            days = [*_in_turn(rule, before), *days, *_in_turn(rule, after)]
        days = [day for day in _picked(rule, days) if first <= day <= last]
    since = start.toordinal() if start is not None else 0
    return tuple(date.fromordinal(day) for day in days if day >= since)


def _picked(rule: Recurrence, days: list[int]) -> Iterator[int]:
    for _, grouped in groupby(days, lambda day: _period(rule, day)):
        among = list(grouped)
        places = sorted({place - 1 if place > 0 else len(among) + place for place in rule.positions})
        yield from (among[place] for place in places if 0 <= place < len(among))


def _period(rule: Recurrence, day: int) -> int:
    """The number of the year, month, week or day that an ordinal day is in."""
    if rule.frequency == "WEEKLY":
        return (day - 1 - rule.week_start) // 7
    if rule.frequency == "DAILY":
        return day
    at = date.fromordinal(day)
    return at.year if rule.frequency == "YEARLY" else at.year * 12 + at.month


def _in_turn(rule: Recurrence, days: list[int]) -> list[int]:
    """Those whose period counts by the interval since the start; hours are counted by `times_of`."""
    if rule.interval == 1 or rule.start is None or rule.frequency in ("YEARLY", "HOURLY"):
        return days
    begin, interval = _period(rule, rule.start.toordinal()), rule.interval
    return [day for day in days if not (_period(rule, day) - begin) % interval]


def _fitting(rule: Recurrence, year: int) -> list[int]:
    """The ordinal days of the year that every part of the rule allows, whatever the interval."""
    first, last = date(year, 1, 1).toordinal(), date(year, 12, 31).toordinal()
    months = [(date(year, month, 1).toordinal(), monthrange(year, month)[1]) for month in sorted(rule.months) or YEAR]
    days: set[int] = set()
    for begin, length in months:
        if rule.month_days:
            numbers = (number if number > 0 else length + 1 + number for number in rule.month_days)
            days.update(begin + number - 1 for number in numbers if 1 <= number <= length)
        else:
            days.update(range(begin, begin + length))
    if rule.year_days:
        days &= {first + number - 1 if number > 0 else last + 1 + number for number in rule.year_days}
    if rule.weeks:
        days &= {day for near in (year - 1, year, year + 1) for day in _of_weeks(rule, near)}
    if rule.week_days:
        by_month = rule.frequency == "MONTHLY" or bool(rule.months)
        within = [(begin, begin + length - 1) for begin, length in months] if by_month else [(first, last)]
        days &= {day for begin, end in within for day in _of_week_days(rule, begin, end)}
    return sorted(days)


def _of_week_days(rule: Recurrence, first: int, last: int) -> Iterator[int]:
    """The rule's days of the week between two ordinal days, numbered from the first or back from the last."""
    for weekday, number in rule.week_days:
        begin = first + (weekday - (first - 1)) % 7
        end = last - ((last - 1) - weekday) % 7
        if not number:
            yield from range(begin, last + 1, 7)
        elif first <= (day := begin + 7 * (number - 1) if number > 0 else end + 7 * (number + 1)) <= last:
            yield day


def _of_weeks(rule: Recurrence, year: int) -> Iterator[int]:
    """The days of the rule's weeks of a year: its week 1 is the first that has four days in it."""
    first = _first_week(year, rule.week_start)
    total = (_first_week(year + 1, rule.week_start) - first) // 7
    for number in rule.weeks:
        place = number - 1 if number > 0 else total + number
        if 0 <= place < total:
            yield from range(first + 7 * place, first + 7 * place + 7)


def _first_week(year: int, week_start: int) -> int:
    fourth = date(year, 1, 4).toordinal()
    return fourth - (fourth - 1 - week_start) % 7
