"""Times in which no run starts: dates, years, weeks and calendars, and what they do to goals, times and triggers."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from policies.blackouts import Blackout, parse_blackout, stretches
from policies.calendarfile import LARGEST_CALENDAR, MOST_EVENTS, parse_calendar
from policies.decision import BackUp, Skip
from policies.errors import PolicyError, Unusable
from policies.evaluation import evaluate
from policies.facts import EventType
from policies.hours import HORIZON, Hours, last_open_before, next_open, open_at
from policies.loading import load, load_texts
from policies.needed import held_until
from policies.policy import Timing
from policies.schedule import Due, next_due
from policies.windows import parse_window
from tests.policies.building import a_point, a_vm, an_event, facts, policies

BERLIN, NEW_YORK = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def closed(text: str, year: int = 2026, zone: ZoneInfo = BERLIN) -> list[tuple[str, str]]:
    """Those that touch the year, as local times."""
    blackout: Blackout = parse_blackout(text)
    return shown(blackout, year, zone)


def shown(blackout: Blackout, year: int, zone: ZoneInfo) -> list[tuple[str, str]]:
    found = [
        (start.astimezone(zone), end.astimezone(zone))
        for start, end in stretches(blackout, zone, year)
        if start.year <= year <= end.year
    ]
    return [(f"{start:%Y-%m-%d %H:%M}", f"{end:%Y-%m-%d %H:%M}") for start, end in found]


@pytest.mark.parametrize(
    ("text", "year", "expected"),
    [
        ("2026-12-24 18:00..2026-12-27 06:00", 2026, [("2026-12-24 18:00", "2026-12-27 06:00")]),
        ("2026-12-24..2026-12-26", 2026, [("2026-12-24 00:00", "2026-12-27 00:00")]),
        ("2026-05-01", 2026, [("2026-05-01 00:00", "2026-05-02 00:00")]),
        ("2026-05-01 .. 2026-05-02", 2026, [("2026-05-01 00:00", "2026-05-03 00:00")]),
        ("12-24..12-26", 2031, [("2031-12-24 00:00", "2031-12-27 00:00")]),
        ("10-03", 2027, [("2027-10-03 00:00", "2027-10-04 00:00")]),
        ("12-24 18:00..01-02 06:00", 2026, [("2025-12-24 18:00", "2026-01-02 06:00"),
                                            ("2026-12-24 18:00", "2027-01-02 06:00")]),
        ("02-29", 2028, [("2028-02-29 00:00", "2028-03-01 00:00")]),
        ("02-29", 2027, []),
        ("02-27..02-29", 2027, [("2027-02-27 00:00", "2027-03-01 00:00")]),
        ("02-29..03-02", 2027, [("2027-03-01 00:00", "2027-03-03 00:00")]),
        ("2026-12-31 22:00..2026-12-31 24:00", 2026, [("2026-12-31 22:00", "2027-01-01 00:00")]),
    ],
)  # fmt: skip
def test_dates_close_the_local_days_that_they_name(text: str, year: int, expected: list[tuple[str, str]]) -> None:
    assert closed(text, year) == expected


def test_a_weekly_blackout_is_written_like_a_window() -> None:
    found = closed("fri 16:00-18:00")
    assert ("2026-11-20 16:00", "2026-11-20 18:00") in found
    assert len(found) == 52
    assert closed("08:00-09:00")[:1] == [("2026-01-01 08:00", "2026-01-01 09:00")]


def test_a_blackout_whose_beginning_is_skipped_begins_at_the_next_valid_instant_and_a_repeated_end_is_the_last() -> (
    None
):
    spring = parse_blackout("2026-03-29 02:30..2026-03-29 05:00")
    assert stretches(spring, BERLIN, 2026) == ((utc("2026-03-29T03:00+02:00"), utc("2026-03-29T05:00+02:00")),)
    autumn = parse_blackout("2026-10-25 01:00..2026-10-25 02:30")
    assert stretches(autumn, BERLIN, 2026) == ((utc("2026-10-25T01:00+02:00"), utc("2026-10-25T02:30+01:00")),)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("12-24 18:00..12-24 18:00", "is empty"),
        ("1850-12-24..1850-12-26", 'has no such time as "1850-12-24"'),
        ("12-24 25:00..12-26", 'has no such time as "12-24 25:00"'),
        ("12-24 10:60..12-26", 'has no such time as "12-24 10:60"'),
        ("2027-02-29", 'has no such time as "2027-02-29"'),
        ("fri 16:00-16:00", "is empty"),
        ("12-24..", "is not a blackout"),
        ("1" * 300, "is not a blackout"),
    ],
)
def test_a_blackout_that_is_no_time_is_refused(text: str, what: str) -> None:
    with pytest.raises(Unusable) as caught:
        parse_blackout(text)
    assert what in caught.value.what


def test_years_beyond_all_dates_are_open() -> None:
    assert stretches(parse_blackout("12-24..12-26"), BERLIN, 2300) == ()


def hours(*blackouts: str, windows: tuple[str, ...] = ()) -> Hours:
    return Hours(
        tuple(parse_window(text) for text in windows), tuple(parse_blackout(text) for text in blackouts), BERLIN
    )


def test_hours_are_the_windows_without_the_blackouts() -> None:
    nights = hours("fri 20:00-22:00", windows=("mon..fri 18:00-06:00",))
    assert next_open(nights, utc("2026-11-20T17:00+01:00")) == utc("2026-11-20T18:00+01:00")
    assert next_open(nights, utc("2026-11-20T20:00+01:00")) == utc("2026-11-20T22:00+01:00")
    assert open_at(nights, utc("2026-11-20T21:00+01:00")) is None
    assert open_at(nights, utc("2026-11-20T19:00+01:00")) == (
        utc("2026-11-20T18:00+01:00"),
        utc("2026-11-20T20:00+01:00"),
    )
    assert open_at(hours(), utc("2026-11-20T19:00+01:00")) is not None
    assert last_open_before(hours(), utc("2026-11-20T19:00+01:00")) is None
    assert next_open(hours(), utc("2026-11-20T19:00+01:00")) == utc("2026-11-20T19:00+01:00")


def test_an_opening_is_found_beyond_a_blackout_of_months() -> None:
    long = hours("2026-06-01..2026-11-30")
    assert next_open(long, utc("2026-06-05T12:00Z")) == utc("2026-12-01T00:00+01:00")
    assert last_open_before(long, utc("2026-11-05T12:00Z")) is not None
    assert last_open_before(long, utc("2026-11-05T12:00Z"))[1] == utc("2026-06-01T00:00+02:00")  # type: ignore[index]
    every_day = hours("2026-06-01..2026-11-30", windows=("00:00-24:00",))
    for begin in ("2026-06-05T12:00Z", "2026-06-05T23:00Z", "2026-10-31T12:00Z", "2026-11-29T12:00Z"):
        assert next_open(every_day, utc(begin)) == utc("2026-12-01T00:00+01:00")


def test_where_nothing_opens_the_search_ends() -> None:
    for never in (hours("1990-01-01..2199-12-31"), hours("1990-01-01..2199-12-31", windows=("sat 01:00-02:00",))):
        assert next_open(never, utc("2026-06-05T12:00Z")) >= utc("2026-06-05T12:00Z") + HORIZON - timedelta(days=1)
        assert last_open_before(never, utc("2026-06-05T12:00Z")) is None


def timing(*blackouts: str, rpo: int = 0, cron: str = "", windows: tuple[str, ...] = (), **more: timedelta) -> Timing:
    return Timing(
        timedelta(hours=rpo) if rpo else None,
        (cron,) if cron else (),
        BERLIN,
        tuple(parse_window(text) for text in windows),
        blackouts=tuple(parse_blackout(text) for text in blackouts),
        **more,
    )


def due(when: Timing, last: str, now: str) -> Due:
    found = next_due(when, utc(last), True, utc(now))
    assert found is not None
    return found


def test_a_goal_that_would_be_missed_in_a_blackout_is_pursued_before_it() -> None:
    christmas = timing("12-24..12-26", rpo=24)
    found = due(christmas, "2026-12-23T12:00+01:00", "2026-12-23T13:00+01:00")
    assert found.at == utc("2026-12-23T21:00+01:00")  # an eighth of the goal before the blackout
    held = due(christmas, "2026-12-23T21:10+01:00", "2026-12-24T20:00+01:00")
    assert held.at == utc("2026-12-27T00:00+01:00")
    assert held.why.endswith('RPO is 1 d; blackout "12-24..12-26" until 2026-12-27 00:00 CET')


def test_a_goal_waits_for_a_short_blackout_when_there_is_time_after_it() -> None:
    short = timing("2026-11-20 07:00..2026-11-20 08:00", rpo=24)
    assert due(short, "2026-11-19T10:00+01:00", "2026-11-20T06:00+01:00").at == utc("2026-11-20T08:00+01:00")


def test_a_vm_that_was_never_backed_up_waits_for_the_end_of_the_blackout() -> None:
    found = next_due(timing("12-24..12-26", rpo=4), None, False, utc("2026-12-25T12:00Z"))
    assert found is not None
    assert found.at == utc("2026-12-27T00:00+01:00")
    assert found.why == 'never backed up; RPO is 4 h; blackout "12-24..12-26" until 2026-12-27 00:00 CET'


def test_a_fixed_time_in_a_blackout_runs_at_its_end_when_a_window_is_open_then() -> None:
    nightly = timing("2026-12-24 20:00..2026-12-25 02:00", cron="0 22 * * *", windows=("18:00-06:00",))
    found = due(nightly, "2026-12-23T22:10+01:00", "2026-12-24T22:30+01:00")
    assert (found.at, found.slot) == (utc("2026-12-25T02:00+01:00"), utc("2026-12-24T22:00+01:00"))
    assert "blackout" in found.why
    longer = timing("2026-12-24 20:00..2026-12-25 08:00", cron="0 22 * * *", windows=("18:00-06:00",))
    found = due(longer, "2026-12-23T22:10+01:00", "2026-12-24T22:30+01:00")
    assert found.at == utc("2026-12-25T18:00+01:00")
    ahead = due(nightly, "2026-12-23T22:10+01:00", "2026-12-24T12:00+01:00")
    assert ahead.at == utc("2026-12-25T02:00+01:00")
    assert ahead.why == (
        'next scheduled time is 22:00 CET; blackout "2026-12-24 20:00..2026-12-25 02:00" until 2026-12-25 02:00 CET'
    )


def test_after_a_blackout_of_days_only_the_latest_fixed_time_is_caught_up() -> None:
    nightly = timing("12-24..12-26", cron="0 22 * * *")
    found = due(nightly, "2026-12-23T22:10+01:00", "2026-12-27T00:00+01:00")
    assert (found.at, found.slot) == (utc("2026-12-27T00:00+01:00"), utc("2026-12-26T22:00+01:00"))


def test_start_within_gives_a_fixed_time_up_and_says_so() -> None:
    punctual = timing(cron="0 22 * * *", start_within=timedelta(hours=2))
    in_time = due(punctual, "2026-11-20T22:10+01:00", "2026-11-21T23:59+01:00")
    assert in_time.slot == utc("2026-11-21T22:00+01:00")
    missed = due(punctual, "2026-11-20T22:10+01:00", "2026-11-22T00:01+01:00")
    assert missed.slot == missed.at == utc("2026-11-22T22:00+01:00")
    assert missed.why == (
        "next scheduled time is 22:00 CET; 2026-11-21 22:00 CET was missed: no run could start within 2 h"
    )
    done = due(punctual, "2026-11-21T22:10+01:00", "2026-11-22T09:00+01:00")
    assert done.why == "next scheduled time is 22:00 CET"


def test_start_within_looks_ahead_over_blackouts_and_closed_windows() -> None:
    over_christmas = timing("12-24..12-26", cron="0 22 * * *", start_within=timedelta(hours=1))
    found = due(over_christmas, "2026-12-23T22:10+01:00", "2026-12-23T23:00+01:00")
    assert found.at == utc("2026-12-27T22:00+01:00")
    assert found.why == (
        "next scheduled time is 2026-12-27 22:00 CET; 2026-12-24 22:00 CET is left out: no run can start within 1 h"
    )
    weekly = timing(cron="0 12 * * *", windows=("sun 11:30-14:00",), start_within=timedelta(hours=1))
    assert due(weekly, "2026-11-22T12:10+01:00", "2026-11-23T09:00+01:00").at == utc("2026-11-29T12:00+01:00")
    never = timing(cron="0 12 * * *", windows=("20:00-21:00",), start_within=timedelta(hours=1))
    assert due(never, "2026-11-22T12:10+01:00", "2026-11-23T09:00+01:00").why


def test_start_within_keeps_the_spread_inside_it() -> None:
    spread = timing(cron="0 22 * * *", start_within=timedelta(minutes=10), spread=timedelta(hours=5))
    starts = [
        next_due(spread, utc("2026-11-20T22:10+01:00"), True, utc("2026-11-21T12:00+01:00"), f"vm-{number}")
        for number in range(50)
    ]
    assert {one.slot for one in starts if one} == {utc("2026-11-21T22:00+01:00")}
    assert max(one.at for one in starts if one) < utc("2026-11-21T22:10+01:00")


def test_start_within_of_a_rule_that_ends_leaves_nothing() -> None:
    ended = timing(cron="DTSTART:20261120T220000 RRULE:FREQ=DAILY;COUNT=2", start_within=timedelta(hours=1))
    assert next_due(ended, utc("2026-11-20T22:10+01:00"), True, utc("2026-11-22T12:00+01:00")) is None
    closed = timing(
        "2026-11-21", cron="DTSTART:20261120T220000 RRULE:FREQ=DAILY;COUNT=2", start_within=timedelta(hours=1)
    )
    assert due(closed, "2026-11-20T22:10+01:00", "2026-11-21T12:00+01:00").at == utc("2026-11-22T00:00+01:00")


def test_the_last_time_of_a_rule_has_a_day_for_its_deadline() -> None:
    ended = timing(cron="DTSTART:20261120T220000 RRULE:FREQ=DAILY;COUNT=2")
    found = due(ended, "2026-11-20T22:10+01:00", "2026-11-22T12:00+01:00")
    assert (found.at, found.deadline) == (utc("2026-11-22T12:00+01:00"), utc("2026-11-22T22:00+01:00"))


def test_start_within_does_not_apply_to_goals() -> None:
    late = timing(rpo=4, start_within=timedelta(minutes=1))
    assert due(late, "2026-11-20T22:10+01:00", "2026-11-22T00:01+01:00").at == utc("2026-11-22T00:01+01:00")


def test_finish_within_is_the_deadline_when_it_is_sooner() -> None:
    nightly = timing(cron="0 22 * * *", finish_within=timedelta(hours=3))
    assert due(nightly, "2026-11-20T22:10+01:00", "2026-11-21T12:00+01:00").deadline == utc("2026-11-22T01:00+01:00")
    late = due(nightly, "2026-11-20T22:10+01:00", "2026-11-22T12:00+01:00")
    assert late.deadline == utc("2026-11-22T01:00+01:00")
    waiting = timing(cron="0 12 * * *", windows=("18:00-06:00",), finish_within=timedelta(hours=3))
    assert due(waiting, "2026-11-20T22:10+01:00", "2026-11-21T14:00+01:00").deadline == utc("2026-11-21T21:00+01:00")
    goal = timing(rpo=24, finish_within=timedelta(hours=1))
    assert due(goal, "2026-11-20T22:00+01:00", "2026-11-21T12:00+01:00").deadline == utc("2026-11-21T20:00+01:00")
    overdue = due(goal, "2026-11-20T22:00+01:00", "2026-11-21T23:00+01:00")
    assert (overdue.at, overdue.deadline) == (utc("2026-11-21T23:00+01:00"), utc("2026-11-21T20:00+01:00"))
    roomy = timing(rpo=24, finish_within=timedelta(hours=10))
    assert due(roomy, "2026-11-20T22:00+01:00", "2026-11-21T12:00+01:00").deadline == utc("2026-11-21T22:00+01:00")


TRIGGERED = """
[policy.p]
select.all = ["*"]
timezone = "Europe/Berlin"
{keys}
[[policy.p.trigger]]
on = "vm.migrated"
{trigger}
"""


def triggered(keys: str, trigger: str = "", *, now: str = "2026-12-25T12:00+01:00") -> BackUp:
    vm = a_vm()
    found = policies(TRIGGERED.format(keys=keys, trigger=trigger))
    at = utc(now)
    said = evaluate(found, an_event(EventType.MIGRATED, vm, at=at), facts(vm, now=at))
    return next(one for one in said if isinstance(one, BackUp))


def test_a_trigger_waits_for_the_end_of_a_blackout_also_where_it_may_run_at_any_time() -> None:
    for trigger in ("", "any_time = true"):
        run = triggered('blackout = "12-24..12-26"', trigger)
        assert run.not_before == utc("2026-12-27T00:00+01:00")
        assert run.reason.endswith('at 2026-12-27 00:00 CET after blackout "12-24..12-26" until 2026-12-27 00:00 CET')
    outside = triggered(
        'blackout = "12-24..12-26"\nwindow = ["18:00-06:00"]', "any_time = true", now="2026-11-20T12:00Z"
    )
    assert outside.not_before == utc("2026-11-20T12:00Z")


def test_finish_within_is_the_deadline_of_a_triggered_run_too() -> None:
    now = "2026-11-20T12:00+01:00"
    assert triggered('finish_within = "3h"', now=now).deadline == utc("2026-11-20T15:00+01:00")
    assert triggered('finish_within = "3h"\nrpo = "1h"', now=now).deadline == utc(now)


def test_requests_by_people_and_messages_run_in_a_blackout() -> None:
    vm = a_vm()
    at = utc("2026-12-25T12:00Z")
    found = policies('[policy.p]\nselect.all = ["*"]\nrpo = "4h"\nblackout = "12-24..12-26"')
    said = evaluate(found, an_event(EventType.BACKUP_REQUESTED, vm, at=at), facts(vm, now=at))
    assert [one.not_before for one in said if isinstance(one, BackUp)] == [at]
    swept = evaluate(found, an_event(EventType.CLOCK, at=at), facts(vm, now=at))
    assert isinstance(swept[0], Skip)
    assert swept[0].reason == (
        "web-3 is due at 2026-12-27 00:00 UTC: never backed up; RPO is 4 h; "
        'blackout "12-24..12-26" until 2026-12-27 00:00 UTC'
    )
    fresh = evaluate(found, an_event(EventType.CREATED, vm, at=at), facts(vm, now=at))
    assert isinstance(fresh[0], BackUp)
    assert fresh[0].reason.endswith("policy p backs it up, at 2026-12-27 00:00 UTC")


def test_a_schedule_that_is_over_says_so() -> None:
    vm = a_vm()
    rule = "DTSTART:20260101T010000 RRULE:FREQ=DAILY;COUNT=3"
    found = policies(f'[policy.p]\nselect.all = ["*"]\nschedule = "{rule}"')
    [said] = evaluate(found, an_event(EventType.CLOCK), facts(vm))
    assert said.reason == "the times of policy p are over: web-3 waits for its triggers"


# Calendars


def calendar(*events: str) -> str:
    bodies = "".join(
        f"BEGIN:VEVENT\r\n{event.strip().replace(chr(10), chr(13) + chr(10))}\r\nEND:VEVENT\r\n" for event in events
    )
    return f"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//test\r\n{bodies}END:VCALENDAR\r\n"


def days(*events: str, year: int = 2026, zone: ZoneInfo = BERLIN) -> list[tuple[str, str]]:
    return shown(parse_calendar("c.ics", calendar(*events)), year, zone)


def test_whole_days_and_floating_times_are_in_the_zone_of_the_policy() -> None:
    assert days("DTSTART;VALUE=DATE:20261225\nDTEND;VALUE=DATE:20261227\nTRANSP:TRANSPARENT") == [
        ("2026-12-25 00:00", "2026-12-27 00:00")
    ]
    assert days("DTSTART;VALUE=DATE:20261225", zone=NEW_YORK) == [("2026-12-25 00:00", "2026-12-26 00:00")]
    assert days("DTSTART;VALUE=DATE;TZID=America/New_York:20261225") == [("2026-12-25 06:00", "2026-12-26 06:00")]
    assert days("DTSTART:20261225T080000\nDURATION:PT2H30M") == [("2026-12-25 08:00", "2026-12-25 10:30")]


@pytest.mark.parametrize(
    "zone",
    [
        "DTSTART;TZID=America/New_York:20261225T080000\nDTEND;TZID=America/New_York:20261225T090000",
        "DTSTART;TZID=/example.org/America/New_York:20261225T080000\nDTEND;TZID=America/New_York:20261225T090000",
        'DTSTART;TZID="Eastern Standard Time":20261225T080000\nDURATION:PT1H',
        "dtstart;tzid=Eastern Standard Time:20261225T080000\ndtend;tzid=America/New_York:20261225T090000",
        "DTSTART:20261225T130000Z\nDTEND:20261225T140000Z",
        "DTSTART;TZID=America/New_York:20261225T080000\nDTEND:20261225T140000Z",
        "DTSTART;TZID=Ame\n rica/New_York:20261225T080000\nDURATION:PT\n\t1H",
    ],
)
def test_an_event_has_its_own_time_zone(zone: str) -> None:
    assert days(zone) == [("2026-12-25 14:00", "2026-12-25 15:00")]


def test_events_recur_and_single_ones_are_left_out_added_and_moved() -> None:
    weekly = "UID:1\nDTSTART;TZID=Europe/Berlin:20261201T080000\nDTEND;TZID=Europe/Berlin:20261201T090000\n"
    rule = "RRULE:FREQ=WEEKLY;COUNT=4\nEXDATE;TZID=Europe/Berlin:20261208T080000\nRDATE:20261210T080000\n"
    moved = "UID:1\nRECURRENCE-ID:20261215T070000Z\nDTSTART:20261216T080000\nDTEND:20261216T090000"
    gone = "UID:1\nRECURRENCE-ID:20261222T070000Z\nSTATUS:CANCELLED\nDTSTART:20261222T080000\nDTEND:20261222T090000"
    assert [start for start, _ in days(weekly + rule, moved, gone)] == [
        "2026-12-01 08:00",
        "2026-12-10 08:00",
        "2026-12-16 08:00",
    ]


def test_a_period_that_is_added_has_its_own_length() -> None:
    event = "DTSTART:20261201T080000\nDURATION:PT1H\nEXDATE:20261204T080000\n"
    added = "RDATE;VALUE=PERIOD:20261202T080000/PT3H,20261203T080000/20261203T100000,20261204T080000/PT3H"
    assert days(event + added) == [
        ("2026-12-01 08:00", "2026-12-01 09:00"),
        ("2026-12-02 08:00", "2026-12-02 11:00"),
        ("2026-12-03 08:00", "2026-12-03 10:00"),
    ]


def test_lines_that_do_not_matter_may_be_broken() -> None:
    event = "DTSTART:20261225\nX-STRUCTURED-LOCATION;X-ADDRESS=1\nMain Street;X-RADIUS=4:geo:1,2\nGEO:x\nDTSTAMP:soon"
    assert days(event) == [("2026-12-25 00:00", "2026-12-26 00:00")]


def test_a_definition_of_a_zone_changes_neither_what_its_name_means_nor_another_calendar() -> None:
    event = "DTSTART;TZID={}:20261225T080000\nDURATION:PT1H"
    defined = (
        "BEGIN:VTIMEZONE\r\nTZID:{0}\r\nBEGIN:STANDARD\r\nDTSTART:19700101T000000\r\nTZOFFSETFROM:+0900\r\n"
        "TZOFFSETTO:+0900\r\nRRULE:FREQ=SECONDLY\r\nEND:STANDARD\r\nEND:VTIMEZONE\r\nBEGIN:VEVENT"
    )
    for zone in ("America/New_York", "Eastern Standard Time"):
        text = calendar(event.format(zone)).replace("BEGIN:VEVENT", defined.format(zone), 1)
        assert shown(parse_calendar("c.ics", text), 2026, BERLIN) == [("2026-12-25 14:00", "2026-12-25 15:00")]
    alone = calendar(event.format("Ours"))
    for text in (alone.replace("BEGIN:VEVENT", defined.format("Ours"), 1), alone):
        with pytest.raises(Unusable, match='"Ours" is not a time zone'):
            parse_calendar("c.ics", text)


def test_a_text_that_is_the_path_of_a_file_is_not_read_from_there(tmp_path: Path) -> None:
    (tmp_path / "c.ics").write_text(calendar("DTSTART:20261225"))
    with pytest.raises(Unusable, match="cannot be read"):
        parse_calendar("c.ics", str(tmp_path / "c.ics"))


def test_icalendar_is_loaded_only_where_a_policy_names_a_calendar() -> None:
    script = (
        "import sys\nfrom policies.loading import load_texts\n"
        "load_texts({'a.toml': 'schema = 1\\n[policy.p]\\nrpo = \"4h\"\\n', 'c.ics': 'x'})\n"
        "assert 'icalendar' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, cwd=Path(__file__).parents[2])


def test_a_yearly_event_comes_every_year_since_it_began_and_until_it_ends() -> None:
    birthday = "DTSTART;VALUE=DATE:20200503\nRRULE:FREQ=YEARLY;UNTIL=20281231T225959Z"
    assert [len(days(birthday, year=year)) for year in (2019, 2020, 2026, 2028, 2029)] == [0, 1, 1, 1, 0]


def test_what_takes_no_time_closes_nothing() -> None:
    assert not days("DTSTART:20261225T080000")
    assert not days("DTSTART:20261225T080000\nDTEND:20261225T080000")
    assert not days("DTSTART:20261225T080000\nDURATION:PT1H\nSTATUS:CANCELLED")
    assert parse_calendar("c.ics", calendar()).entries == ()


def test_alarms_tasks_and_zones_in_a_calendar_are_no_events() -> None:
    text = calendar(
        "DTSTART:20261225T080000\nDTEND:20261225T090000\n"
        "BEGIN:VALARM\nTRIGGER:-PT15M\nDURATION:PT24H\nDTSTART:20300101\nEND:VALARM\nSUMMARY:x"
    ).replace(
        "BEGIN:VEVENT",
        "BEGIN:VTIMEZONE\r\nTZID:x\r\nBEGIN:STANDARD\r\nDTSTART:19701025T030000\r\nRRULE:FREQ=YEARLY\r\nEND:STANDARD\r\n"
        "END:VTIMEZONE\r\nBEGIN:VTODO\r\nDTSTART:20260101\r\nEND:VTODO\r\nBEGIN:VEVENT",
        1,
    )
    assert shown(parse_calendar("c.ics", text), 2026, BERLIN) == [("2026-12-25 08:00", "2026-12-25 09:00")]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is not an iCalendar file"),
        ("BEGIN:VEVENT\nEND:VEVENT\n", "is not an iCalendar file"),
        ("BEGIN:VCALENDAR\n", "is not an iCalendar file, or is cut off"),
        ("BEGIN:VCALENDAR\nBEGIN:VEVENT\nDTSTART:20261225\n", "is not an iCalendar file, or is cut off"),
        ("END:VCALENDAR\n", "cannot be read (END encountered without"),
        ("BEGIN:VCALENDAR\n" + "BEGIN:X\n" * 9, "is not an iCalendar file, or is cut off"),
        (calendar("SUMMARY:x"), 'event "x": the event has no DTSTART'),
        (calendar("DTSTART;TZID=x"), "event 1: DTSTART cannot be read"),
        (calendar("DTSTART;VALUE=DATE:2026122"), "event 1: DTSTART cannot be read (Expected time, got: 2026122)"),
        (calendar("DTSTART;TZID=Mars/Base:20261225T080000"), '"Mars/Base" is not a time zone'),
        (calendar("DTSTART:20261225T080000\nDTEND:20261224T080000"), "the event ends before it begins"),
        (
            calendar("DTSTART:20261225T080000\nDURATION:tomorrow"),
            "2026-12-25: DURATION cannot be read (Wrong date format tomorrow)",
        ),
        (calendar("DTSTART:20261225T080000\nDURATION:-PT1H"), "event 1 of 2026-12-25: DURATION is negative"),
        (calendar("DTSTART:20261225\nRRULE:FREQ=SECONDLY"), "FREQ=SECONDLY cannot be used"),
        (calendar("DTSTART:20261225\nRRULE:FREQ=DAILY\nEXRULE:FREQ=WEEKLY"), "EXRULE is not followed"),
        (
            calendar("DTSTART:20261225\nRECURRENCE-ID;RANGE=THISANDFUTURE:20261225"),
            "a change of all later times",
        ),
        (calendar("DTSTART:20261225\nRECURRENCE-ID:20261225\nRECURRENCE-ID:20261226"), "of the wrong kind"),
        (calendar("DTSTART:20261225\nRRULE:FREQ=" + "X" * 90_000), "the rule is longer than 400 characters"),
        (calendar("DTSTART:20261225\nRRULE:FREQ=DAILY\nRRULE:FREQ=WEEKLY"), "the event has several RRULE"),
        (calendar("DTSTART:20261225\nDTEND:20281225\nRRULE:FREQ=YEARLY"), "recurs and is longer than a year"),
        (calendar("DTSTART:18001225"), "is before 1900"),
        ("X" * (LARGEST_CALENDAR + 1), f"is larger than {LARGEST_CALENDAR} bytes"),
        (calendar(*["DTSTART:20261225"] * (MOST_EVENTS + 1)), f"has more than {MOST_EVENTS} events"),
        (calendar("DTSTART:20261225\nRDATE:" + ",".join(["20261226"] * 5000)), "lists more than 4000 dates"),
        (calendar(*["DTSTART:20261225\nRRULE:FREQ=YEARLY"] * 201), "has more than 200 recurring events"),
        (calendar(*["DTSTART:20261225T100000\nDURATION:PT1M\nRRULE:FREQ=DAILY"] * 20), "more than 4000 times a year"),
        (calendar("DTSTART:20261225T100000\nDURATION:PT1M\nRRULE:FREQ=HOURLY"), "the event recurs by the hour"),
        ("BEGIN:VCALENDAR\n" + "A:\n" * 100_000, "has more than 20000 lines"),
        (calendar("DTSTART:20261225", "BEGIN:VEVENT\nDTSTART:20261226\nEND:VEVENT"), "is cut off, or ends what did"),
        (calendar("DTSTART:20261225") * 2 + calendar("DTSTART:20261225")[:-20], "is cut off, or ends what did"),
        (calendar("DTSTART:20261225\nDTSTART:20261226"), "event 1: Multiple DTSTART defined"),
        (calendar("DTSTART:20261225\nDTEND:20261225T100000"), "DTSTART and DTEND must be of the same type"),
        (calendar("DTSTART;TZID=a,b:20261225T100000"), "DTSTART cannot be read"),
        (calendar("DTSTART;TZID=a,b:20261225"), "cannot be read (a value is of the wrong kind or"),
        (calendar(f"DTSTART;TZID=/{'a/' * 50_000}:20261225T100000"), "DTSTART cannot be read"),
        (calendar("".join(f"RDATE;TZID=/a/b{n}/c:20261201T080000\n" for n in range(11_000))), '"/a/b0/c" is not'),
        (calendar("DTSTART;TZID=Europe:20261225T100000"), '"Europe" is not a time zone'),
        (calendar("DTSTART:20261225\nDURATION:P999999999W"), "DURATION cannot be read (Impractical"),
        (calendar("DTSTART:20261225\nDURATION:P999999999D"), "out of bounds"),
        (calendar("SUMMARY:Freeze\\, all\nDTSTART:20261225\nEXDATE:2026"), 'event "Freeze, all" of 2026-12-25: EXDATE'),
        (
            calendar("UID:7@x\nDTSTART:20261225\nRRULE:FREQ=DAILY;COUNT"),
            'event "7@x" of 2026-12-25: "COUNT" is not',
        ),
        (
            calendar("DTSTART:20261225\nRDATE:20261228T100000/20261227T100000"),
            "a period of RDATE ends before it",
        ),
        (calendar("DTSTART:20261225\nEND;VALARM"), "a line cannot be read (Content line could not be parsed"),
        (calendar("DTSTART:20261225").replace("VERSION:2.0", "VERSION"), "cannot be read (Content line could not"),
    ],
)
def test_a_calendar_that_cannot_be_used_is_refused_with_its_event_soon(text: str, what: str) -> None:
    started = time.process_time()
    with pytest.raises(Unusable) as caught:
        parse_calendar("c.ics", text)
    assert what in caught.value.what
    assert caught.value.what.startswith(('calendar "c.ics"', 'events of calendar "c.ics"'))
    assert time.process_time() - started < 1


def test_the_largest_calendar_is_read_and_asked_soon() -> None:
    events = [
        f"UID:{n}\nDTSTART;VALUE=DATE:2026{n % 12 + 1:02}{n % 28 + 1:02}\nSUMMARY:{'x' * 60}"
        for n in range(MOST_EVENTS)
    ]
    started = time.process_time()
    found = parse_calendar("c.ics", calendar(*events))
    stretches(found, BERLIN, 2026)
    assert time.process_time() - started < 1


CHRISTMAS = calendar("DTSTART;VALUE=DATE:20261224\nDTEND;VALUE=DATE:20261227")
NAMING = 'schema = 1\n[policy.p]\nrpo = "4h"\nblackout = ["01-01", "team/holidays.ics"]\n'


def test_a_calendar_beside_the_policies_is_part_of_what_they_are_made_from(tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    (tmp_path / "a.toml").write_text(NAMING)
    (tmp_path / "team" / "holidays.ics").write_bytes(CHRISTMAS.encode())
    (tmp_path / "unused.ics").write_bytes(b"\xff not a calendar")
    found = load(tmp_path)
    assert set(found.texts) == {"a.toml", "team/holidays.ics"}
    assert load_texts(found.texts).hash == found.hash
    timing = found.policies[0].timing
    assert next_open(timing.hours, utc("2026-12-25T00:00Z")) == utc("2026-12-27T00:00Z")


def test_the_hash_follows_what_a_calendar_says_and_not_how_it_is_written() -> None:
    def hash_of(text: str) -> str:
        return load_texts({"a.toml": NAMING, "team/holidays.ics": text}).hash

    again = CHRISTMAS.replace("DTSTART", "DTSTAMP:20260101T000000Z\r\nSUMMARY:Weihnachten\r\nDTSTART")
    assert hash_of(CHRISTMAS) == hash_of(again) != hash_of(CHRISTMAS.replace("20261227", "20261228"))


def test_what_a_calendar_says_has_the_same_digest_in_every_process() -> None:
    dates = ",".join(f"202612{day:02}T080000" for day in range(1, 28))
    found = parse_calendar(
        "c.ics", calendar(f"DTSTART:20261201T080000\nDURATION:PT1H\nRRULE:FREQ=DAILY\nEXDATE:{dates}")
    )
    assert found.digest == "325ede7508d227b92f1f32f15ee49a3e"


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, '4:22: there is no calendar "team/holidays.ics", put the file into the directory of policies'),
        ({"team/holiday.ics": CHRISTMAS}, '4:22: there is no calendar "team/holidays.ics", write "team/holiday.ics"'),
        (
            {"team/holidays.ics": b"\xff"},
            '4:22: calendar "team/holidays.ics" is not UTF-8 text, save the file as UTF-8',
        ),
        (
            {"team/holidays.ics": CHRISTMAS.replace("20261227", "20261223")},
            '4:22: calendar "team/holidays.ics", event 1 of 2026-12-24: the event ends before it begins, '
            "correct the calendar there",
        ),
    ],
)
def test_a_missing_or_broken_calendar_is_a_problem_of_the_policy_that_names_it(
    files: dict[str, str | bytes], problem: str
) -> None:
    with pytest.raises(PolicyError) as caught:
        load_texts({"a.toml": NAMING, **files})
    assert str(caught.value) == f"a.toml:{problem}"


def test_a_template_names_a_calendar_for_its_policies_and_a_policy_may_have_none() -> None:
    text = 'schema = 1\n[template.t]\nblackout = "c.ics"\n[policy.p]\ntemplate = "t"\n'
    text += '[policy.q]\ntemplate = "t"\nblackout = []\n'
    found = load_texts({"a.toml": text, "c.ics": CHRISTMAS})
    assert [len(policy.timing.blackouts) for policy in found.policies] == [1, 0]
    with pytest.raises(PolicyError) as caught:
        load_texts({"a.toml": text})
    assert [(problem.line, problem.column) for problem in caught.value.problems] == [(3, 12)]


def test_a_triggered_run_that_waited_into_a_blackout_waits_for_its_end() -> None:
    vm, begin = a_vm(), utc("2026-12-23T23:00:00+01:00")
    found = policies(TRIGGERED.format(keys='blackout = "12-24..12-26"', trigger="any_time = true"))
    [run] = evaluate(found, an_event(EventType.MIGRATED, vm, at=begin), facts(vm, now=begin))
    assert isinstance(run, BackUp)
    in_time, late = facts(vm, now=begin), facts(vm, now=begin + timedelta(hours=2))
    end = utc("2026-12-27T00:00+01:00")
    assert held_until(run, vm, found, in_time, asked=False) is None
    assert held_until(run, vm, found, late, asked=False) == end
    assert held_until(run, vm, found, late, asked=True) is None
    assert held_until(replace(run, rule="rpo"), vm, found, late, asked=False) is None
    scheduled = policies(
        TRIGGERED.format(keys='blackout = "12-24..12-26"', trigger=""), '[policy.q]\nselect.all = ["*"]\nrpo = "4h"'
    )
    assert held_until(run, vm, scheduled, late, asked=False) is None
    assert held_until(run, vm, scheduled, replace(late, points={vm.id: (a_point(vm, late.now),)}), asked=False) == (
        late.now + timedelta(hours=3.5)
    )
