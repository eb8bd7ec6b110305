"""Recurrence rules in a schedule: when they come, at both changes of clocks too, and which are refused, soon."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from policies.errors import Unusable
from policies.rrule import MOST_COUNTED, parse_moment, parse_recurrence
from policies.times import check_time, slots_around

BERLIN, NEW_YORK = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def on(days: str, clock: str = "010000") -> str:
    return f"DTSTART:{days}T{clock}"


SECOND_SATURDAY = "RRULE:FREQ=MONTHLY;BYDAY=2SA;BYHOUR=1;BYMINUTE=0"
NIGHTLY = "RRULE:FREQ=DAILY;BYHOUR=2;BYMINUTE=30"


@pytest.mark.parametrize(
    ("rule", "zone", "at", "before", "after"),
    [
        (SECOND_SATURDAY, BERLIN, "2026-11-22T12:00Z", "2026-11-14T01:00+01:00", "2026-12-12T01:00+01:00"),
        (SECOND_SATURDAY, BERLIN, "2026-12-12T00:00Z", "2026-12-12T01:00+01:00", "2027-01-09T01:00+01:00"),
        ("RRULE:FREQ=MONTHLY;BYMONTHDAY=-1", BERLIN, "2026-02-10T00:00Z", "2026-01-31T00:00+01:00",
         "2026-02-28T00:00+01:00"),
        ("RRULE:FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1;BYHOUR=22", BERLIN, "2026-11-22T12:00Z",
         "2026-10-30T22:00+01:00", "2026-11-30T22:00+01:00"),
        ("RRULE:FREQ=YEARLY;BYWEEKNO=1;BYDAY=MO", BERLIN, "2026-11-22T12:00Z", "2025-12-29T00:00+01:00",
         "2027-01-04T00:00+01:00"),
        ("RRULE:FREQ=YEARLY;BYYEARDAY=-1;BYHOUR=23", BERLIN, "2026-11-22T12:00Z", "2025-12-31T23:00+01:00",
         "2026-12-31T23:00+01:00"),
        ("RRULE:FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29", BERLIN, "2026-11-22T12:00Z", "2024-02-29T00:00+01:00",
         "2028-02-29T00:00+01:00"),
        ("RRULE:FREQ=MONTHLY;BYDAY=TU,1SA", BERLIN, "2026-11-08T00:00Z", "2026-11-07T00:00+01:00",
         "2026-11-10T00:00+01:00"),
        # Every second week counts from the start.
        (f"{on('20260103')} RRULE:FREQ=WEEKLY;INTERVAL=2", BERLIN, "2026-11-22T12:00Z", "2026-11-21T01:00+01:00",
         "2026-12-05T01:00+01:00"),
        (f"{on('20260103')}\nRRULE:FREQ=WEEKLY;INTERVAL=2", BERLIN, "2026-11-28T12:00Z", "2026-11-21T01:00+01:00",
         "2026-12-05T01:00+01:00"),
        (f"{on('20260131')} RRULE:FREQ=MONTHLY;INTERVAL=3", BERLIN, "2026-11-22T12:00Z", "2026-10-31T01:00+01:00",
         "2027-01-31T01:00+01:00"),
        (f"{on('20260101', '050000')} RRULE:FREQ=HOURLY;INTERVAL=36", BERLIN, "2026-01-03T12:00Z",
         "2026-01-02T17:00+01:00", "2026-01-04T05:00+01:00"),
        # A time that is skipped comes at the next valid instant, a repeated one once.
        (NIGHTLY, BERLIN, "2026-03-28T12:00Z", "2026-03-28T02:30+01:00", "2026-03-29T03:00+02:00"),
        (NIGHTLY, BERLIN, "2026-10-25T01:10Z", "2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"),
        (NIGHTLY, NEW_YORK, "2026-03-08T07:00Z", "2026-03-08T03:00-04:00", "2026-03-09T02:30-04:00"),
        ("RRULE:FREQ=DAILY;BYHOUR=2;BYMINUTE=15", LORD_HOWE, "2026-10-03T15:30Z", "2026-10-04T02:30+11:00",
         "2026-10-05T02:15+11:00"),
        # What follows the clock hour by hour does so in both of two repeated hours.
        ("RRULE:FREQ=HOURLY;BYMINUTE=30", BERLIN, "2026-10-25T01:10Z", "2026-10-25T02:30+02:00",
         "2026-10-25T02:30+01:00"),
        ("RRULE:FREQ=HOURLY;BYMINUTE=30", BERLIN, "2026-03-29T01:10Z", "2026-03-29T01:30+01:00",
         "2026-03-29T03:30+02:00"),
    ],
)  # fmt: skip
def test_a_rule_comes_around_an_instant(rule: str, zone: ZoneInfo, at: str, before: str, after: str) -> None:
    assert check_time(rule) == rule
    assert slots_around(rule, zone, utc(at)) == (utc(before), utc(after))


def test_a_rule_that_has_not_begun_or_has_ended_has_no_time_on_that_side() -> None:
    thrice = f"{on('20260105')} RRULE:FREQ=DAILY;COUNT=3"
    assert slots_around(thrice, BERLIN, utc("2026-01-01T00:00Z")) == (None, utc("2026-01-05T01:00+01:00"))
    assert slots_around(thrice, BERLIN, utc("2026-01-06T12:00Z"))[1] == utc("2026-01-07T01:00+01:00")
    assert slots_around(thrice, BERLIN, utc("2027-01-06T12:00Z")) == (utc("2026-01-07T01:00+01:00"), None)


@pytest.mark.parametrize(
    ("until", "last"),
    [
        ("20261224", "2026-12-24T22:00+01:00"),
        ("20261224T220000", "2026-12-24T22:00+01:00"),
        ("20261224T215900", "2026-12-23T22:00+01:00"),
        ("20261224T210000Z", "2026-12-24T22:00+01:00"),
        ("20261224T205900Z", "2026-12-23T22:00+01:00"),
        ("99991231T235959Z", None),
    ],
)
def test_a_rule_ends_with_until(until: str, last: str | None) -> None:
    slots = slots_around(f"RRULE:FREQ=DAILY;BYHOUR=22;UNTIL={until}", BERLIN, utc("2030-01-01T00:00Z"))
    assert (slots[0] == utc(last) and slots[1] is None) if last else slots[1] == utc("2030-01-01T22:00+01:00")


def test_a_rule_is_read_in_small_letters_and_with_a_semicolon_at_the_end() -> None:
    assert parse_recurrence("rrule:freq=daily;byhour=3;") == parse_recurrence("RRULE:FREQ=DAILY;BYHOUR=3")


def test_a_library_that_walks_loses_where_a_rule_never_comes_and_here_it_is_refused_soon() -> None:
    hostile = [
        "RRULE:FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30",
        "RRULE:FREQ=HOURLY;BYMONTH=4;BYMONTHDAY=31;BYMINUTE=1,2,3",
        "RRULE:FREQ=WEEKLY;BYDAY=MO,TU;BYSETPOS=5",
        "RRULE:FREQ=YEARLY;BYWEEKNO=1;BYDAY=MO;BYMONTH=6",
        "RRULE:FREQ=YEARLY;BYYEARDAY=366;BYMONTH=1",
        f"{on('20260101')} RRULE:FREQ=YEARLY;INTERVAL=1000;BYMONTH=2;BYMONTHDAY=30;COUNT={MOST_COUNTED}",
        "RRULE:FREQ=YEARLY;BYMONTHDAY=" + ",".join(str(day) for day in range(1, 32)) + ";BYYEARDAY=400",
        "RRULE:FREQ=DAILY;BYHOUR=" + ",".join(["1"] * 300),
    ]
    started = time.process_time()
    for rule in hostile:
        with pytest.raises(Unusable):
            parse_recurrence(rule)
    assert time.process_time() - started < 0.5 * len(hostile)


def test_the_longest_count_is_worked_out_soon() -> None:
    started = time.process_time()
    found = parse_recurrence(
        f"{on('19010101')} RRULE:FREQ=YEARLY;BYDAY=SA;BYMONTHDAY=29;BYMONTH=2;COUNT={MOST_COUNTED}"
    )
    assert found.count == 0
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    ("rule", "what"),
    [
        ("RRULE:FREQ=MINUTELY", "FREQ=MINUTELY cannot be used"),
        ("RRULE:FREQ=FORTNIGHTLY", "FREQ=FORTNIGHTLY cannot be used"),
        ("RRULE:FREQ=HOURLY;BYMINUTE=" + ",".join(str(n) for n in range(60)), "comes 1440 times a day"),
        ("RRULE:FREQ=DAILY;BYSECOND=30", "BYSECOND is not 0"),
        ("RRULE:FREQ=DAILY;BYYEARDAY=1", "BYYEARDAY stands with FREQ=DAILY"),
        ("RRULE:FREQ=MONTHLY;BYWEEKNO=1;BYDAY=MO", "BYWEEKNO stands with FREQ=MONTHLY"),
        ("RRULE:FREQ=YEARLY;BYWEEKNO=1", "BYWEEKNO stands without BYDAY"),
        ("RRULE:FREQ=WEEKLY;BYMONTHDAY=1", "BYMONTHDAY stands with FREQ=WEEKLY"),
        ("RRULE:FREQ=HOURLY;BYSETPOS=1", "BYSETPOS stands with FREQ=HOURLY"),
        ("RRULE:FREQ=DAILY;COUNT=3", "COUNT counts from a start"),
        ("RRULE:FREQ=DAILY;COUNT=1", "COUNT counts from a start"),
        (f"{on('20260101')} RRULE:FREQ=DAILY;COUNT=0", "COUNT=0 is out of bounds"),
        (f"{on('20260101')} RRULE:FREQ=DAILY;INTERVAL=X", "INTERVAL=X is out of bounds"),
        ("RRULE:FREQ=DAILY;WKST=XX", "WKST=XX is not a day of the week"),
        ("RRULE:FREQ=MONTHLY;BYDAY=99MO", 'BYDAY has "99MO"'),
        ("RRULE:FREQ=MONTHLY;BYMONTHDAY=0", 'BYMONTHDAY has "0"'),
        ("RRULE:FREQ=DAILY;UNTIL=2026", '"2026" is not a date or time'),
        ("RRULE:FREQ=DAILY;UNTIL=18991231", "is before 1900"),
        ("DTSTART:20260101T010030 RRULE:FREQ=DAILY", "DTSTART has seconds"),
        ("DTSTART:20260101T010000Z RRULE:FREQ=DAILY", "DTSTART is in UTC"),
        ("EXDATE:20260101 RRULE:FREQ=DAILY", "does not belong before a rule"),
        ("RRULE:" + "X" * 500, "is longer than 400 characters"),
        ("RRULE:", '"" is not a part of a rule'),
        ("RRULE:FREQ=DAILY;BYHOUR=1;BYHOUR=2", "BYHOUR stands twice"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused(rule: str, what: str) -> None:
    with pytest.raises(Unusable, match=r".") as caught:
        check_time(rule)
    assert what in caught.value.what
    assert caught.value.instead


def test_one_that_counts_from_the_start_with_interval_one_needs_none() -> None:
    assert parse_recurrence("RRULE:FREQ=DAILY;INTERVAL=1").interval == 1


def test_a_moment_far_beyond_is_moved_to_the_bound() -> None:
    assert parse_moment("99990101")[0].year == 2200
