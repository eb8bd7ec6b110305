"""When a scheduled backup is due: goals, fixed times, windows, and both changes of the clocks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from policies.hours import Hours, last_open_before
from policies.policy import Timing
from policies.schedule import Due, next_due
from policies.times import slots_around
from policies.units import clock, counted, parse_duration, parse_share, span
from policies.windows import instant, next_open, open_at, parse_window

BERLIN, NEW_YORK = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def timing(rpo: str = "", *, cron: str = "", zone: ZoneInfo = BERLIN, windows: tuple[str, ...] = ()) -> Timing:
    return Timing(
        rpo=parse_duration(rpo) if rpo else None,
        times=(cron,) if cron else (),
        zone=zone,
        windows=tuple(parse_window(text) for text in windows),
    )


def due(when: Timing, last: str | None, now: str, *, attempted: bool = True) -> Due:
    found = next_due(when, utc(last) if last else None, attempted, utc(now))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("zone", "cron", "at", "before", "after"),
    [
        # Clocks go forward: 02:30 does not exist and runs at 03:00.
        (BERLIN, "30 2 * * *", "2026-03-28T12:00Z", "2026-03-28T02:30+01:00", "2026-03-29T03:00+02:00"),
        (BERLIN, "30 2 * * *", "2026-03-29T12:00Z", "2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"),
        (NEW_YORK, "30 2 * * *", "2026-03-08T06:59Z", "2026-03-07T02:30-05:00", "2026-03-08T03:00-04:00"),
        (NEW_YORK, "30 2 * * *", "2026-03-08T07:00Z", "2026-03-08T03:00-04:00", "2026-03-09T02:30-04:00"),
        # Clocks go back: 02:30 and 01:30 exist twice and run the first time only.
        (BERLIN, "30 2 * * *", "2026-10-25T00:29Z", "2026-10-24T02:30+02:00", "2026-10-25T02:30+02:00"),
        (BERLIN, "30 2 * * *", "2026-10-25T00:30Z", "2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"),
        (BERLIN, "30 2 * * *", "2026-10-25T01:10Z", "2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"),
        (BERLIN, "30 2 * * *", "2026-10-25T01:30Z", "2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"),
        (NEW_YORK, "30 1 * * *", "2026-11-01T05:29Z", "2026-10-31T01:30-04:00", "2026-11-01T01:30-04:00"),
        (NEW_YORK, "30 1 * * *", "2026-11-01T06:30Z", "2026-11-01T01:30-04:00", "2026-11-02T01:30-05:00"),
        # Times that recur within the hour follow the clock, both times.
        (BERLIN, "*/30 * * * *", "2026-10-25T01:10Z", "2026-10-25T02:00+01:00", "2026-10-25T02:30+01:00"),
        # Not on the second.
        (BERLIN, "5 * * * *", "2026-11-22T12:05:00.5Z", "2026-11-22T12:05Z", "2026-11-22T13:05Z"),
        (BERLIN, "5 * * * *", "2026-11-22T12:04:59.999999Z", "2026-11-22T11:05Z", "2026-11-22T12:05Z"),
        # The year ends.
        (BERLIN, "59 23 31 12 *", "2026-12-31T23:30Z", "2026-12-31T23:59+01:00", "2027-12-31T23:59+01:00"),
        (NEW_YORK, "0 0 1 1 *", "2027-01-01T04:59Z", "2026-01-01T00:00-05:00", "2027-01-01T00:00-05:00"),
    ],
)
def test_fixed_times_around_an_instant(zone: ZoneInfo, cron: str, at: str, before: str, after: str) -> None:
    assert slots_around(cron, zone, utc(at)) == (utc(before), utc(after))


@pytest.mark.parametrize(
    ("window", "zone", "at", "opens", "closes"),
    [
        ("mon..fri 18:00-06:00", BERLIN, "2026-11-20T20:00+01:00", "2026-11-20T18:00+01:00", "2026-11-21T06:00+01:00"),
        ("mon..fri 18:00-06:00", BERLIN, "2026-11-21T05:59+01:00", "2026-11-20T18:00+01:00", "2026-11-21T06:00+01:00"),
        ("sat..mon 00:00-24:00", BERLIN, "2026-11-22T12:00+01:00", "2026-11-21T00:00+01:00", "2026-11-24T00:00+01:00"),
        ("22:00-02:00", NEW_YORK, "2026-12-31T23:59-05:00", "2026-12-31T22:00-05:00", "2027-01-01T02:00-05:00"),
        # The night in which the clocks go forward is an hour shorter, the other an hour longer.
        ("01:00-05:00", BERLIN, "2026-03-29T04:00+02:00", "2026-03-29T01:00+01:00", "2026-03-29T05:00+02:00"),
        ("02:30-05:00", BERLIN, "2026-03-29T04:00+02:00", "2026-03-29T03:00+02:00", "2026-03-29T05:00+02:00"),
        ("01:00-05:00", BERLIN, "2026-10-25T02:30+01:00", "2026-10-25T01:00+02:00", "2026-10-25T05:00+01:00"),
        ("01:00-02:30", BERLIN, "2026-10-25T02:15+01:00", "2026-10-25T01:00+02:00", "2026-10-25T02:30+01:00"),
        ("02:30-05:00", NEW_YORK, "2026-03-08T03:30-04:00", "2026-03-08T03:00-04:00", "2026-03-08T05:00-04:00"),
        ("00:30-01:30", NEW_YORK, "2026-11-01T01:15-05:00", "2026-11-01T00:30-04:00", "2026-11-01T01:30-05:00"),
    ],
)
def test_a_window_around_an_instant(window: str, zone: ZoneInfo, at: str, opens: str, closes: str) -> None:
    assert open_at((parse_window(window),), zone, utc(at)) == (utc(opens), utc(closes))


def test_a_closed_window_opens_next_and_its_end_is_closed() -> None:
    windows = (parse_window("mon..fri 18:00-06:00"),)
    assert open_at(windows, BERLIN, utc("2026-11-21T06:00+01:00")) is None
    assert next_open(windows, BERLIN, utc("2026-11-21T06:00+01:00")) == utc("2026-11-23T18:00+01:00")
    assert next_open(windows, BERLIN, utc("2026-11-23T19:00+01:00")) == utc("2026-11-23T19:00+01:00")
    assert last_open_before(Hours(windows, (), BERLIN), utc("2026-11-22T12:00+01:00")) == (
        utc("2026-11-20T18:00+01:00"),
        utc("2026-11-21T06:00+01:00"),
    )


def test_a_window_that_the_change_of_clocks_swallows_opens_a_week_later() -> None:
    windows = (parse_window("sun 02:00-03:00"),)
    assert next_open(windows, BERLIN, utc("2026-03-23T00:00Z")) == utc("2026-04-05T02:00+02:00")
    assert last_open_before(Hours(windows, (), BERLIN), utc("2026-03-22T00:30Z")) is not None


def test_adjacent_windows_are_one_stretch_and_no_window_is_always_open() -> None:
    windows = (parse_window("fri 18:00-24:00"), parse_window("sat,sun 00:00-24:00"))
    assert open_at(windows, BERLIN, utc("2026-11-21T12:00Z")) == (
        utc("2026-11-20T18:00+01:00"),
        utc("2026-11-23T00:00+01:00"),
    )
    assert open_at((), BERLIN, utc("2026-11-21T12:00Z")) is not None


def test_a_skipped_local_time_is_the_next_valid_instant_and_a_repeated_one_has_two() -> None:
    spring, autumn = datetime(2026, 3, 29).date(), datetime(2026, 10, 25).date()  # noqa: DTZ001
    assert instant(spring, 150, BERLIN) == utc("2026-03-29T03:00+02:00")
    assert instant(autumn, 150, BERLIN) == utc("2026-10-25T02:30+02:00")
    assert instant(autumn, 150, BERLIN, last=True) == utc("2026-10-25T02:30+01:00")


def test_a_goal_asks_for_a_run_when_an_eighth_of_it_is_left() -> None:
    found = due(timing("8h"), "2026-11-22T00:00Z", "2026-11-22T03:00Z")
    assert (found.at, found.deadline) == (utc("2026-11-22T07:00Z"), utc("2026-11-22T08:00Z"))
    assert found.why == "last good restore point is 3 h old; RPO is 8 h"


def test_a_vm_that_was_never_backed_up_is_due_at_once_with_a_key_for_each_period() -> None:
    first = due(timing("4h"), None, "2026-11-22T03:00Z", attempted=False)
    again = due(timing("4h"), None, "2026-11-22T03:59Z")
    later = due(timing("4h"), None, "2026-11-22T04:00Z")
    assert first.at == utc("2026-11-22T03:00Z")
    assert first.why == "never backed up; RPO is 4 h"
    assert first.slot == again.slot != later.slot


def test_a_missed_goal_says_since_when_and_gets_a_new_slot_each_period() -> None:
    found = due(timing("4h"), "2026-11-22T00:00Z", "2026-11-22T06:00Z")
    assert found.at == utc("2026-11-22T06:00Z")
    assert found.why == "last good restore point is 6 h old; RPO is 4 h, missed since 05:00 CET"
    slots = {due(timing("4h"), "2026-11-22T00:00Z", f"2026-11-22T{hour:02}:30Z").slot for hour in range(4, 16)}
    assert slots == {utc("2026-11-22T04:00Z"), utc("2026-11-22T08:00Z"), utc("2026-11-22T12:00Z")}


def test_a_goal_waits_for_the_window() -> None:
    nightly = timing("24h", windows=("18:00-06:00",))
    found = due(nightly, "2026-11-21T19:00+01:00", "2026-11-22T16:30+01:00")
    assert found.at == utc("2026-11-22T18:00+01:00")


def test_before_a_long_closing_the_run_comes_at_the_end_of_the_last_window() -> None:
    working = timing("24h", windows=("mon..fri 18:00-06:00",))
    found = due(working, "2026-11-20T18:10+01:00", "2026-11-20T20:00+01:00")
    assert found.at == utc("2026-11-21T03:00+01:00")
    assert due(working, "2026-11-20T18:10+01:00", "2026-11-21T04:00+01:00").at == utc("2026-11-21T04:00+01:00")
    after_that_run = due(working, "2026-11-21T03:20+01:00", "2026-11-21T04:00+01:00")
    assert after_that_run.at == utc("2026-11-23T18:00+01:00")
    too_late = due(working, "2026-11-20T18:10+01:00", "2026-11-21T07:00+01:00")
    assert too_late.at == utc("2026-11-23T18:00+01:00")


def test_a_window_that_never_opens_before_the_deadline_does_not_loop() -> None:
    weekly = timing("1h", windows=("sun 02:00-03:00",))
    assert due(weekly, "2026-11-18T12:00Z", "2026-11-18T12:10Z").at == utc("2026-11-22T02:00+01:00")


def test_a_point_from_the_future_does_not_stop_the_backups() -> None:
    assert due(timing("4h"), "2027-11-22T00:00Z", "2026-11-22T06:00Z").why.startswith("never backed up")


def test_a_fixed_time_is_due_until_it_is_done() -> None:
    nightly = timing(cron="0 22 * * *")
    missed = due(nightly, "2026-11-20T22:10+01:00", "2026-11-22T09:00+01:00")
    assert missed.at == utc("2026-11-22T09:00+01:00")
    assert missed.slot == utc("2026-11-21T22:00+01:00")
    assert missed.deadline == utc("2026-11-22T22:00+01:00")
    assert missed.why == "scheduled for 2026-11-21 22:00 CET and not done since"
    done = due(nightly, "2026-11-21T22:10+01:00", "2026-11-22T09:00+01:00")
    assert done.at == utc("2026-11-22T22:00+01:00")
    assert done.why == "next scheduled time is 22:00 CET"


def test_after_an_outage_of_days_only_the_latest_fixed_time_is_caught_up() -> None:
    nightly = timing(cron="0 22 * * *")
    assert due(nightly, "2026-11-10T22:10+01:00", "2026-11-22T09:00+01:00").slot == utc("2026-11-21T22:00+01:00")


def test_a_new_policy_at_noon_does_not_start_last_nights_runs() -> None:
    nightly = timing(cron="0 22 * * *")
    fresh = due(nightly, None, "2026-11-22T12:00+01:00", attempted=False)
    assert fresh.at == utc("2026-11-22T22:00+01:00")
    on_time = due(nightly, None, "2026-11-22T22:20+01:00", attempted=False)
    assert on_time.at == utc("2026-11-22T22:20+01:00")
    assert on_time.why == "scheduled for 22:00 CET"
    failed = due(nightly, None, "2026-11-23T08:00+01:00", attempted=True)
    assert failed.slot == utc("2026-11-22T22:00+01:00")


def test_a_vm_that_was_never_tried_waits_for_the_window_of_its_first_fixed_time() -> None:
    evenings = timing(cron="0 12 * * *", windows=("18:00-06:00",))
    for now in ("2026-11-22T12:30+01:00", "2026-11-22T17:00+01:00", "2026-11-22T18:30+01:00"):
        waits = due(evenings, None, now, attempted=False)
        assert waits.slot == utc("2026-11-22T12:00+01:00")
        assert waits.at == max(utc(now), utc("2026-11-22T18:00+01:00"))
    assert due(evenings, None, "2026-11-22T19:01+01:00", attempted=False).slot == utc("2026-11-23T12:00+01:00")


def test_a_repeated_hour_runs_a_fixed_time_once() -> None:
    nightly = timing(cron="30 2 * * *")
    again = due(nightly, "2026-10-25T02:35+02:00", "2026-10-25T02:31+01:00")
    assert again.at == utc("2026-10-26T02:30+01:00")


def test_goal_and_fixed_times_together_take_what_comes_first() -> None:
    both = timing("4h", cron="0 22 * * *")
    assert due(both, "2026-11-22T12:00+01:00", "2026-11-22T13:00+01:00").rule == "rpo"
    assert due(both, "2026-11-22T21:00+01:00", "2026-11-22T22:00+01:00").rule == "schedule"


def test_without_goal_and_fixed_times_nothing_is_due() -> None:
    assert next_due(timing(), None, False, utc("2026-11-22T12:00Z")) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (45, "45 s"), (600, "10 m"), (5400, "1 h 30 m"), (90_061, "1 d 1 h"), (86_460, "1 d"), (3601, "1 h")],
)
def test_a_span_has_its_two_greatest_units(seconds: int, words: str) -> None:
    assert span(timedelta(seconds=seconds)) == words


def test_units_are_read() -> None:
    assert parse_duration("1h 30m") == timedelta(minutes=90)
    assert parse_duration("2w") == timedelta(days=14)
    assert parse_share("2.5%") == 0.025


def test_a_time_on_another_day_is_shown_with_its_date() -> None:
    now = utc("2026-11-22T23:10Z")
    assert clock(utc("2026-11-22T23:30Z"), BERLIN, now) == "00:30 CET"
    assert clock(utc("2026-11-22T20:30Z"), BERLIN, now) == "2026-11-22 21:30 CET"


def test_one_thing_is_told_as_one() -> None:
    assert counted(1, "restore point") == "1 restore point"
    assert counted(0, "VM") == "0 VMs"
    assert (counted(1, "policy"), counted(2, "policy")) == ("1 policy", "2 policies")
