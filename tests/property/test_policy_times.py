"""Times of policies: rules as dateutil reads them, calendars as they are written, every text in bounded time, and runs
that are neither lost nor doubled when clocks jump, change, or blackouts close."""

from __future__ import annotations

import re
import time
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import islice
from zoneinfo import ZoneInfo

from dateutil.rrule import rrulestr
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from policies.blackouts import parse_blackout, stretches
from policies.calendarfile import parse_calendar
from policies.errors import PolicyError, Unusable
from policies.hours import Hours, next_open, open_at
from policies.loading import load_texts
from policies.policy import Timing
from policies.recurrence import days_of_year, times_of
from policies.rrule import WEEK, parse_rule
from policies.schedule import next_due
from policies.times import slots_around
from policies.windows import open_at as window_open_at
from policies.windows import parse_window

ZONES = (
    "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/St_Johns", "America/Havana",
    "Africa/Casablanca", "Pacific/Chatham", "UTC",
)  # fmt: skip
EDGES = [
    datetime(2026, month, day, tzinfo=UTC)
    for month, day in ((2, 15), (3, 8), (3, 22), (3, 29), (4, 5), (9, 27), (10, 4), (10, 25), (11, 1), (12, 31))
]
LIMIT_S = 0.5
"""Ten times what one text may take, as the machine that runs the tests is shared."""


@lru_cache(maxsize=1)
def zones() -> tuple[ZoneInfo, ...]:
    return tuple(ZoneInfo(name) for name in ZONES)


def a_zone() -> st.SearchStrategy[ZoneInfo]:
    return st.sampled_from(range(len(ZONES))).map(lambda number: zones()[number])


def numbers(least: int, most: int, *, signed: bool = False) -> st.SearchStrategy[str]:
    one = st.integers(least, most)
    either = one | one.map(lambda number: -number) if signed else one
    return st.lists(either, min_size=1, max_size=3).map(lambda some: ",".join(str(number) for number in some))


@st.composite
def a_rule(draw: st.DrawFn) -> str:
    frequency = draw(st.sampled_from(["YEARLY", "MONTHLY", "WEEKLY", "DAILY", "HOURLY"]))
    parts = [f"FREQ={frequency}"]

    def maybe(name: str, value: st.SearchStrategy[str], *, among: str = "") -> None:
        if (not among or frequency in among) and draw(st.integers(0, 3)) == 0:
            parts.append(f"{name}={draw(value)}")

    maybe("INTERVAL", st.integers(1, 5).map(str))
    maybe("BYMONTH", numbers(1, 12))
    maybe("BYMONTHDAY", numbers(1, 31, signed=True), among="YEARLY MONTHLY DAILY HOURLY")
    maybe("BYYEARDAY", numbers(1, 366, signed=True), among="YEARLY")
    number = draw(st.sampled_from(["", "", "1", "2", "5", "-1"])) if frequency in ("YEARLY", "MONTHLY") else ""
    by_day = st.lists(st.sampled_from(WEEK), min_size=1, max_size=3).map(
        lambda days: ",".join(number + d for d in days)
    )
    maybe("BYDAY", by_day)
    maybe("BYHOUR", numbers(0, 23))
    maybe("BYMINUTE", numbers(0, 59))
    # dateutil counts the positions of a first week from the start and not from where the week begins.
    maybe("BYSETPOS", numbers(1, 4, signed=True), among="YEARLY MONTHLY DAILY")
    maybe("WKST", st.sampled_from(WEEK))
    return ";".join(parts)


@settings(max_examples=150)
@given(a_rule(), st.integers(0, 400), st.integers(0, 1439))
def test_a_rule_comes_when_dateutil_says_so(text: str, days: int, minutes: int) -> None:
    start = datetime(2024, 1, 1) + timedelta(days=days, minutes=minutes)  # noqa: DTZ001
    try:
        rule = parse_rule(text, start)
    except Unusable:
        assume(False)
    found = (at for year in range(2024, 2032) for day in days_of_year(rule, year) for at in times_of(rule, day))
    first = list(islice(found, 60))
    # Where a rule never comes, dateutil would look for it until the year 9999.
    assume(first)
    assert list(islice(iter(rrulestr(text, dtstart=start)), len(first))) == first


@given(
    a_zone(), st.sampled_from(EDGES), st.integers(-48 * 12, 48 * 12), st.integers(0, 23), st.sampled_from((0, 15, 59))
)
def test_a_rule_and_a_cron_expression_that_mean_the_same_come_at_the_same_instants(
    zone: ZoneInfo, edge: datetime, fives: int, hour: int, minute: int
) -> None:
    at = edge + timedelta(minutes=5 * fives)
    for cron, rule in (
        (f"{minute} {hour} * * *", f"FREQ=DAILY;BYHOUR={hour};BYMINUTE={minute}"),
        (f"{minute} {hour} * * mon,sun", f"FREQ=WEEKLY;BYDAY=MO,SU;BYHOUR={hour};BYMINUTE={minute}"),
        (f"{minute} {hour} L * *", f"FREQ=MONTHLY;BYMONTHDAY=-1;BYHOUR={hour};BYMINUTE={minute}"),
        (f"{minute} * * * *", f"FREQ=HOURLY;BYMINUTE={minute}"),
    ):
        assert slots_around(cron, zone, at) == slots_around(f"RRULE:{rule}", zone, at), (cron, rule)


FIXED = (
    "30 2 * * *", "0 0 * * *", "RRULE:FREQ=DAILY;BYHOUR=2;BYMINUTE=15", "RRULE:FREQ=DAILY;BYHOUR=1,13;BYMINUTE=59",
    "30 0,6,12,18 * * *",
)  # fmt: skip


class Clockwork:
    """An engine reduced to what counts here: ticks, a memory of keys, and restore points where the clock stood."""

    def __init__(self, timing: Timing, now: datetime) -> None:
        self.timing = timing
        self.now = now
        self.good = [now - timedelta(days=1)]
        self.runs: list[tuple[str, datetime, datetime]] = []

    def tick(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)
        last = max((at for at in self.good if at <= self.now), default=None)
        due = next_due(self.timing, last, True, self.now)
        assert due is not None
        assert due == next_due(self.timing, last, True, self.now)
        if due.at <= self.now and (due.rule, due.slot) not in {(rule, slot) for rule, slot, _ in self.runs}:
            self.runs.append((due.rule, due.slot, self.now))
            self.good.append(self.now)


@settings(max_examples=60)
@given(
    a_zone(),
    st.sampled_from(EDGES),
    st.sampled_from(FIXED),
    st.lists(st.tuples(st.integers(1, 60), st.integers(-72, 72)), max_size=4),
)
def test_clock_jumps_neither_lose_nor_double_a_fixed_time(
    zone: ZoneInfo, edge: datetime, text: str, jumps: list[tuple[int, int]]
) -> None:
    clockwork = Clockwork(Timing(None, (text,), zone), edge - timedelta(days=1))
    for ticks, hours in jumps:
        for _ in range(ticks):
            clockwork.tick(20)
        clockwork.now += timedelta(hours=hours, minutes=7)
    since = clockwork.now
    for _ in range(3 * 72):
        clockwork.tick(20)
    slots = [slot for _, slot, _ in clockwork.runs]
    assert len(slots) == len(set(slots))
    at = since
    while (following := slots_around(text, zone, at)[1] or clockwork.now) <= clockwork.now - timedelta(minutes=20):
        next_slot = slots_around(text, zone, following)[1] or clockwork.now
        # It ran, now or before the clock went back, or there is a restore point of just then from before.
        assert following in slots or any(following <= good < next_slot for good in clockwork.good)
        at = following


@settings(max_examples=60)
@given(a_zone(), st.sampled_from(EDGES), st.sampled_from(FIXED))
def test_a_fixed_time_runs_once_a_local_period_at_both_changes_of_clocks(
    zone: ZoneInfo, edge: datetime, text: str
) -> None:
    begin = edge - timedelta(days=3)
    clockwork = Clockwork(Timing(None, (text,), zone), begin)
    for _ in range(6 * 144):
        clockwork.tick(10)
    local = [(slot.astimezone(zone).date(), index) for index, (_, slot, _) in enumerate(clockwork.runs)]
    expected = {"30 0,6,12,18 * * *": 4, FIXED[3]: 2}.get(text, 1)
    counts = [sum(day == one for day, _ in local) for one in {day for day, _ in local}]
    # First and last day are begun in the middle.
    assert sorted(counts)[2:] == [expected] * len(counts[2:])


BLACKOUTS = (
    "2026-03-28..2026-03-29", "12-24 18:00..12-31 06:00", "03-29 02:30", "03-01..04-10", "sun 01:30-02:30",
    "fri 16:00-18:00", "10-25 02:00..10-25 03:00", "22:00-04:00",
)  # fmt: skip
WINDOWS = ("18:00-06:00", "sat,sun 00:00-24:00", "01:30-02:30", "00:00-24:00")


@st.composite
def some_hours(draw: st.DrawFn) -> Hours:
    texts = draw(st.lists(st.sampled_from([one for one in BLACKOUTS if one != "03-29 02:30"]), max_size=3))
    windows = draw(st.lists(st.sampled_from(WINDOWS), max_size=2))
    return Hours(
        tuple(parse_window(text) for text in windows), tuple(parse_blackout(text) for text in texts), draw(a_zone())
    )


@given(some_hours(), st.sampled_from(EDGES), st.integers(-40 * 24, 10 * 24), st.integers(0, 59))
def test_hours_are_open_where_a_window_is_and_no_blackout(
    hours: Hours, edge: datetime, offset: int, minute: int
) -> None:
    at = edge + timedelta(hours=offset, minutes=minute)

    def is_open(then: datetime) -> bool:
        held = any(
            start <= then < end
            for one in hours.blackouts
            for year in (2025, 2026, 2027)
            for start, end in stretches(one, hours.zone, year)
        )
        return not held and window_open_at(hours.windows, hours.zone, then) is not None

    assert (open_at(hours, at) is not None) == is_open(at)
    found = next_open(hours, at)
    assert found >= at
    if found - at < timedelta(days=100):
        assert is_open(found)
        steps = min(int((found - at) / timedelta(minutes=15)), 400)
        assert not any(is_open(at + timedelta(minutes=15 * step)) for step in range(steps))
        assert found == at or not is_open(found - timedelta(seconds=1))


@given(
    some_hours(),
    st.sampled_from(EDGES),
    st.integers(-48 * 12, 48 * 12),
    st.sampled_from([None, timedelta(hours=4), timedelta(hours=24), timedelta(days=30)]),
    st.sampled_from([None, timedelta(minutes=30), timedelta(hours=5)]),
    st.integers(0, 2000),
)
def test_what_is_due_is_never_in_the_past_and_never_in_a_blackout(
    hours: Hours, edge: datetime, fives: int, rpo: timedelta | None, within: timedelta | None, age: int
) -> None:
    now = edge + timedelta(minutes=5 * fives)
    times = () if rpo else FIXED[:3]
    timing = Timing(rpo, times, hours.zone, hours.windows, blackouts=hours.blackouts, start_within=within)
    found = next_due(timing, now - timedelta(hours=age), True, now, "vm")
    assert found is not None
    assert found.at >= now
    assert found.why
    far = found.at - now > timedelta(days=300)
    assert far or open_at(hours, found.at) is not None
    if within is not None and found.rule == "schedule" and not far and found.at > now:
        assert found.at <= found.slot + within or found.at - now > timedelta(days=30)


@settings(max_examples=50)
@given(
    st.integers(2, 72),
    st.integers(1, 60),
    st.integers(0, 200),
)
def test_a_goal_is_met_over_every_blackout_that_leaves_it_time(rpo: int, closed: int, offset: int) -> None:
    goal = timedelta(hours=rpo)
    length = timedelta(hours=closed)
    tick = timedelta(minutes=5)
    assume(length + goal / 8 + 2 * tick <= goal)
    begin = datetime(2026, 11, 20, tzinfo=UTC) + timedelta(minutes=17 * offset)
    end = begin + length
    blackout = parse_blackout(f"{begin:%Y-%m-%d %H:%M}..{end:%Y-%m-%d %H:%M}")
    timing = Timing(goal, (), ZoneInfo("UTC"), blackouts=(blackout,))
    now = begin - 3 * goal
    last = now
    while now < end + 2 * goal:
        now += tick
        due = next_due(timing, last, True, now)
        assert due is not None
        if due.at <= now:
            assert not begin <= now < end
            last = now
        assert now - last <= goal


PIECES = [
    "RRULE:", "DTSTART:", "FREQ=", "YEARLY", "MONTHLY", "WEEKLY", "DAILY", "HOURLY", "SECONDLY", ";", ",", "=", "-",
    "BYDAY=", "BYMONTH=", "BYMONTHDAY=", "BYSETPOS=", "BYHOUR=", "BYMINUTE=", "BYWEEKNO=", "BYYEARDAY=", "INTERVAL=",
    "COUNT=", "UNTIL=", "WKST=", "MO", "2SA", "-1FR", "20260101T010000", "20260101", "Z", "0", "1", "2", "31", "366",
    "99999", " ", "\n", "2026-12-24", "12-24", "..", "18:00", "fri ", "-06:00", ":", "é", "\0", "TZID=",
]  # fmt: skip


def quoted(text: str) -> str:
    return '"' + "".join(f"\\U{ord(char):08x}" for char in text) + '"'


@settings(max_examples=400)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | a_rule().map(lambda rule: f"RRULE:{rule}"))
def test_any_text_of_a_time_or_blackout_is_accepted_or_refused_soon_and_then_asked_soon(text: str) -> None:
    for key in ("schedule", "blackout"):
        started = time.process_time()
        try:
            found = load_texts({"a.toml": f"schema = 1\n[policy.p]\n{key} = {quoted(text)}\n"})
        except PolicyError as error:
            assert re.fullmatch(r"a\.toml:3:\d+: .+, .+|a\.toml:3:1: .+", str(error), re.DOTALL), error
        else:
            timing = found.policies[0].timing
            next_due(timing, None, True, datetime(2026, 11, 22, tzinfo=UTC))
            next_open(timing.hours, datetime(2026, 11, 22, tzinfo=UTC))
        assert time.process_time() - started < LIMIT_S


def line(text: str) -> str:
    """A content line as it is folded: no more than 75 octets, the ones after the first behind a space."""
    parts, part = [], ""
    for char in text:
        if len((part + char).encode()) > 74:
            parts.append(part)
            part = ""
        part += char
    return "\r\n ".join([*parts, part]) + "\r\n"


@st.composite
def an_event(draw: st.DrawFn) -> tuple[str, datetime, datetime, ZoneInfo]:
    """The text of an event, and when it is in the zone beside."""
    policy_zone = draw(a_zone())
    begin = draw(st.datetimes(datetime(2026, 1, 2), datetime(2026, 12, 30)))  # noqa: DTZ001
    begin = begin.replace(second=0, microsecond=0)
    summary = draw(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=200))
    escaped = re.sub(r"([\\\\,;])", r"\\\1", summary)
    zone = draw(st.sampled_from([None, *range(len(ZONES))]))
    if draw(st.integers(0, 3)) == 0:
        days = timedelta(draw(st.integers(1, 9)))
        begin = begin.replace(hour=0, minute=0)
        ends = draw(st.sampled_from([f"DTEND;VALUE=DATE:{begin + days:%Y%m%d}", f"DURATION:P{days.days}D"]))
        text = f"DTSTART;VALUE=DATE:{begin:%Y%m%d}\r\n{ends}\r\n{line(f'SUMMARY:{escaped}')}"
        return text, begin, begin + days, policy_zone
    minutes = draw(st.integers(1, 10_000))
    end = begin + timedelta(minutes=minutes)
    own = policy_zone if zone is None else zones()[zone]
    where, mark = ("", "") if zone is None else ("", "Z") if own.key == "UTC" else (f";TZID={own.key}", "")
    ends = draw(
        st.sampled_from([f"DTEND{where}:{end:%Y%m%dT%H%M%S}{mark}", f"DURATION:PT{minutes // 60}H{minutes % 60}M"])
    )
    text = f"{line(f'SUMMARY:{escaped}')}DTSTART{where}:{begin:%Y%m%dT%H%M%S}{mark}\r\n{ends}\r\n"
    begin, end = (at.replace(tzinfo=own).astimezone(policy_zone).replace(tzinfo=None) for at in (begin, end))
    return text, begin, end, policy_zone


@given(an_event())
def test_an_event_is_when_its_text_says(made: tuple[str, datetime, datetime, ZoneInfo]) -> None:
    event, begin, end, zone = made
    found = parse_calendar("c.ics", f"BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\n{event}END:VEVENT\r\nEND:VCALENDAR\r\n")
    expected = tuple(at.replace(tzinfo=zone).astimezone(UTC) for at in (begin, end))
    seen = [segment for year in (2025, 2026, 2027) for segment in stretches(found, zone, year)]
    hour = timedelta(hours=1)
    # An end in a repeated hour is the last of the two, and what is skipped is the next valid instant.
    assert any(abs(start - expected[0]) <= hour and abs(stop - expected[1]) <= hour for start, stop in seen)


SEEDS = [
    "BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\nUID:1\r\nDTSTART;TZID=Europe/Berlin:20261225T080000\r\nDTEND:20261225T100000Z\r\n"
    "RRULE:FREQ=WEEKLY;BYDAY=FR;COUNT=9\r\nEXDATE:20261225T070000Z,20270101T070000Z\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n",
    "BEGIN:VCALENDAR\nBEGIN:VEVENT\nDTSTART;VALUE=DATE:20261225\nDURATION:P1D\nRDATE;VALUE=DATE:20261226\nEND:VEVENT\n"
    "END:VCALENDAR\n",
    "BEGIN:VCALENDAR\nBEGIN:VTIMEZONE\nTZID:Ours\nBEGIN:STANDARD\nDTSTART:16010101T000000\nTZOFFSETFROM:+0200\n"
    "TZOFFSETTO:+0100\nRRULE:FREQ=YEARLY;BYDAY=-1SU;BYMONTH=10\nEND:STANDARD\nEND:VTIMEZONE\nBEGIN:VEVENT\n"
    "SUMMARY:a\\, b\nDTSTART;TZID=W. Europe Standard Time:20261225T080000\nDURATION:PT1H\nRRULE:FREQ=DAILY;COUNT=5\n"
    "RDATE;VALUE=PERIOD:20261231T080000/PT2H,20270101T080000/20270101T090000\nBEGIN:VALARM\nTRIGGER:-PT15M\n"
    "END:VALARM\nEND:VEVENT\nEND:VCALENDAR\n",
]
BITS = [
    "\r\n", "\n ", ";", ":", ",", '"', "=", "T", "Z", "9", "0", "BEGIN:VEVENT\n", "END:VEVENT\n", "RRULE:FREQ=DAILY\n",
    "DTSTART:", "P", "-", "\0", "é", "RECURRENCE-ID:20261225T080000\n", "TZID=/", "INTERVAL=2;", "99999999",
    "TZID=a,b:", "VALUE=PERIOD:", "VALUE=DATE", "VALUE=RECUR:", "VALUE=INTEGER:", "\\", "/PT1H", "/", "RDATE:",
    "EXDATE;", "DURATION:", "PT99999999999H", "99991231T235959", "00010101T000000Z", "GEO:", "CATEGORIES:",
    "BEGIN:VTIMEZONE\n", "\u2028", "\ud800", "END:VCALENDAR\n", "\ufeff", "^n", "x" * 20_000, ";A=b" * 5_000,
    "a/" * 5_000, "\n" * 5_000,
]  # fmt: skip


@settings(max_examples=400)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 600), st.integers(0, 12), st.sampled_from(BITS)), max_size=5),
    st.integers(0, 600) | st.none(),
)
def test_a_mutated_calendar_is_accepted_or_refused_soon(
    text: str, changes: list[tuple[int, int, str]], cut_off: int | None
) -> None:
    for at, cut, piece in changes:
        text = text[:at] + piece + text[at + cut :]
    text = text[:cut_off]
    started = time.process_time()
    try:
        found = parse_calendar("c.ics", text)
    except Unusable as error:
        assert error.what.isprintable()
        assert len(error.what) < 600
        assert error.instead
    else:
        for year in (1901, 2026, 2199):
            stretches(found, zones()[0], year)
        assert next_open(Hours((), (found,), zones()[0]), datetime(2026, 12, 25, 9, tzinfo=UTC))
    assert time.process_time() - started < LIMIT_S


@given(
    st.binary(max_size=200)
    | st.tuples(st.sampled_from(SEEDS), st.integers(0, 600), st.binary(max_size=9)).map(
        lambda some: some[0].encode()[: some[1]] + some[2] + some[0].encode()[some[1] :]
    )
)
def test_any_bytes_of_a_calendar_are_accepted_or_are_a_problem_of_the_key_that_names_it(content: bytes) -> None:
    policy = 'schema = 1\n[policy.p]\nrpo = "4h"\nblackout = "c.ics"\n'
    try:
        found = load_texts({"a.toml": policy, "c.ics": content})
    except PolicyError as error:
        assert re.match(r'a\.toml:4:12: (calendar "c\.ics"|events of calendar "c\.ics")', str(error))
    else:
        assert found.policies[0].timing.blackouts


def test_the_days_of_a_rule_do_not_depend_on_what_was_asked_before() -> None:
    rule = parse_rule("FREQ=MONTHLY;INTERVAL=5;BYDAY=-1FR", datetime(2024, 1, 31))  # noqa: DTZ001
    backwards = [days_of_year(rule, year) for year in range(2040, 2023, -1)]
    days_of_year.cache_clear()
    assert [days_of_year(rule, year) for year in range(2024, 2041)] == backwards[::-1]
    assert all(isinstance(day, date) for days in backwards for day in days)
