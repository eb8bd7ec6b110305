"""The local days and times on which a recurrence rule of iCalendar (RFC 5545) comes.

Every search is bounded: a year's days are found by looking at each of its days once, and no answer looks further
than `SEARCH_YEARS`. A library that walks from time to time goes on to the year 9999 where a rule never comes.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache
from itertools import groupby

SEARCH_YEARS = 40
"""How far a rule is searched for its next time: a 29 February that is a Saturday comes after 28 years, or 40."""

FIRST_YEAR, LAST_YEAR = 1900, 2200
"""Dates in policies and calendars lie between; what a calendar says beyond is moved to the bound."""


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
    hours = rule.hours or range(24)
    skipped = rule.frequency == "HOURLY" and rule.interval > 1
    for hour in hours:
        if skipped and rule.start and _hours_since(rule.start, day, hour) % rule.interval:
            continue
        for minute in rule.minutes:
            at = datetime(day.year, day.month, day.day, hour, minute)  # noqa: DTZ001
            if (rule.start is None or at >= rule.start) and not _over(rule, at):
                yield at


def _hours_since(start: datetime, day: date, hour: int) -> int:
    return (day.toordinal() - start.toordinal()) * 24 + hour - start.hour


def _over(rule: Recurrence, at: datetime) -> bool:
    return rule.until is not None and rule.until.tzinfo is None and at > rule.until


@lru_cache(maxsize=16_384)
def days_of_year(rule: Recurrence, year: int) -> tuple[date, ...]:
    """The days of one year on which the rule comes, in order."""
    if (rule.start is not None and year < rule.start.year) or (rule.until is not None and year > rule.until.year + 1):
        return ()
    if not rule.positions:
        return tuple(day for day in _fitting(rule, year) if _in_turn(rule, day) and _since_start(rule, day))
    # A week may begin in the year before and end in the next one.
    around = (
        [day for near in (year - 1, year, year + 1) for day in _fitting(rule, near)]
        if (rule.frequency == "WEEKLY")
        else list(_fitting(rule, year))
    )
    found: list[date] = []
    for _, grouped in groupby((day for day in around if _in_turn(rule, day)), lambda day: _period(rule, day)):
        days = list(grouped)
        picked = {place - 1 if place > 0 else len(days) + place for place in rule.positions}
        found.extend(days[index] for index in sorted(picked) if 0 <= index < len(days))
    return tuple(day for day in found if day.year == year and _since_start(rule, day))


def _since_start(rule: Recurrence, day: date) -> bool:
    return rule.start is None or day >= rule.start.date()


def _period(rule: Recurrence, day: date) -> int:
    match rule.frequency:
        case "YEARLY":
            return day.year
        case "MONTHLY":
            return day.year * 12 + day.month
        case "WEEKLY":
            return (day.toordinal() - 1 - rule.week_start) // 7
    return day.toordinal()


def _in_turn(rule: Recurrence, day: date) -> bool:
    """Whether the interval since the start lets the day's period count."""
    if rule.interval == 1 or rule.start is None or rule.frequency == "HOURLY":
        return True
    return not (_period(rule, day) - _period(rule, rule.start.date())) % rule.interval


def _fitting(rule: Recurrence, year: int) -> Iterator[date]:
    """The days of the year that every part of the rule allows, whatever the interval."""
    length = 366 if monthrange(year, 2)[1] == 29 else 365
    tests = _tests(rule, year, length)
    for month in sorted(rule.months) or range(1, 13):
        last = monthrange(year, month)[1]
        wanted = rule.month_days
        numbers = sorted({n if n > 0 else last + 1 + n for n in wanted}) if wanted else range(1, last + 1)
        for number in numbers:
            if 1 <= number <= last:
                day = date(year, month, number)
                if all(test(day) for test in tests):
                    yield day


def _tests(rule: Recurrence, year: int, length: int) -> list[Callable[[date], bool]]:
    tests: list[Callable[[date], bool]] = []
    if rule.week_days:
        tests.append(_week_day_test(rule, length))
    if rule.year_days:
        wanted = {n if n > 0 else length + 1 + n for n in rule.year_days}
        tests.append(lambda day: day.timetuple().tm_yday in wanted)
    if rule.weeks:
        tests.append(lambda day: _in_week(rule, day))
    return tests


def _week_day_test(rule: Recurrence, length: int) -> Callable[[date], bool]:
    each = {day for day, number in rule.week_days if not number}
    numbered = {(day, number) for day, number in rule.week_days if number}
    in_month = rule.frequency == "MONTHLY" or bool(rule.months)

    def fits(day: date) -> bool:
        if day.weekday() in each:
            return True
        if not numbered:
            return False
        place = day.day if in_month else day.timetuple().tm_yday
        last = monthrange(day.year, day.month)[1] if in_month else length
        weekday = day.weekday()
        return (weekday, (place - 1) // 7 + 1) in numbered or (weekday, -((last - place) // 7 + 1)) in numbered

    return fits


def _in_week(rule: Recurrence, day: date) -> bool:
    """Whether the day is in one of the rule's weeks: week 1 of a year is the first that has four days in it."""
    begin = day - timedelta(days=(day.weekday() - rule.week_start) % 7)
    year = (begin + timedelta(days=3)).year
    first = _first_week(year, rule.week_start)
    number = (begin - first).days // 7 + 1
    total = (_first_week(year + 1, rule.week_start) - first).days // 7
    return number in rule.weeks or number - total - 1 in rule.weeks


def _first_week(year: int, week_start: int) -> date:
    fourth = date(year, 1, 4)
    return fourth - timedelta(days=(fourth.weekday() - week_start) % 7)
