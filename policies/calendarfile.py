"""Calendar files (iCalendar) in, their events out. Pure: the text is an argument.

icalendar reads lines, values and names of zones; rules are read and followed by this package, where every search is
bounded. It takes a while to load: import this module only where there is a calendar to read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

from icalendar import Component, Event, vDDDTypes, vText
from icalendar.prop import TypesFactory
from icalendar.timezone import tzp
from icalendar.timezone.zoneinfo import ZONEINFO

from policies.calendars import Calendar, Entry, a_year
from policies.errors import Unusable, printable, quoted
from policies.recurrence import FIRST_YEAR, LAST_YEAR
from policies.rrule import LONGEST_RULE, parse_rule
from policies.windows import wall_time

LARGEST_CALENDAR = 524_288
MOST_LINES = 20_000
MOST_EVENTS = 1000
MOST_RECURRING = 200
MOST_LISTED = 4000
MOST_A_YEAR = 4000
LONGEST_RECURRING = timedelta(days=366)
"""A calendar beyond these bounds is not one of holidays and freezes, and would slow every decision down."""

_LONGEST_ZONE = 100
_LONGEST_SAID = 200
_WANTED = ("UID", "STATUS", "DTSTART", "DTEND", "DURATION", "RRULE", "EXDATE", "RDATE", "RECURRENCE-ID")
_ZONED = ("DTSTART", "DTEND", "EXDATE", "RDATE", "RECURRENCE-ID")
_BEGIN = re.compile(r"^BEGIN[^:\n]*:[ \t]*VEVENT[ \t]*\r?$", re.MULTILINE | re.IGNORECASE)
_BROKEN_LINE = re.compile(r"Content line could not be parsed into parts: '(.{,40})", re.DOTALL)
_CHECK = "correct the calendar there"

_FAILURES = (
    ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, OSError, RecursionError,
)  # fmt: skip
"""icalendar raises ValueError, and lets the others through where a value is of a kind that it did not expect."""


@cache
def _known_zones() -> frozenset[str]:
    """Thousands of names that are none would be looked for on disk, one by one."""
    return frozenset(available_timezones())


class _Zones(ZONEINFO):
    """Time zones by name only.

    A definition of a zone inside a calendar is not used: icalendar follows its rules with dateutil, without bound,
    and keeps it for the process, so that a calendar would mean something else after another one was read.
    """

    def knows_timezone_id(self, tzid: str) -> bool:
        return True

    def timezone(self, name: str) -> ZoneInfo | None:
        if len(name) > _LONGEST_ZONE:
            raise ValueError(f"{quoted(name)} is not a time zone")
        # Some programs put themselves before the name of the zone: "/example.org/Europe/Berlin".
        words = name.split("/")[-3:]
        tries = ("/".join(words[begin:]) for begin in range(len(words)))
        return next((ZoneInfo(tried) for tried in tries if tried in _known_zones()), None)


tzp.use(_Zones())


class _File(Component):
    """A reader that leaves rules as they are written."""

    types_factory = TypesFactory()


_File.types_factory["recur"] = vText


def parse_calendar(name: str, text: str) -> Calendar:
    """The events of an iCalendar text; raises Unusable, which names the event."""
    events = _events(name, text)
    listed = 0
    changed: dict[str, list[Event]] = {}
    for number, event in enumerate(events, 1):
        with _located(name, number, event):
            _check(event)
            listed += len(event.rdates) + len(event.exdates)
            if "RECURRENCE-ID" in event:
                changed.setdefault(_text(event, "UID"), []).append(event)
    if listed > MOST_LISTED:
        raise Unusable(f"calendar {quoted(name)} lists more than {MOST_LISTED} dates", "leave old ones out")
    entries: list[Entry] = []
    for number, event in enumerate(events, 1):
        with _located(name, number, event):
            uid = _text(event, "UID")
            entries.extend(_entries(event, changed.get(uid, ()) if uid else ()))
    if sum(a_year(entry) for entry in entries) > MOST_A_YEAR:
        raise Unusable(f"events of calendar {quoted(name)} come more than {MOST_A_YEAR} times a year", _CHECK)
    said = "\n".join(sorted(repr(entry) for entry in entries))
    digest = hashlib.blake2b(said.encode(), digest_size=16).hexdigest()
    return Calendar(name, tuple(entries), digest)


def _events(name: str, text: str) -> list[Event]:
    """What the file has, within the bounds; what would take long to read is refused before."""
    lines = text.count("\n") - text.count("\n ") - text.count("\n\t")
    begun = sum(1 for _ in _BEGIN.finditer(text))
    for much, most, what in (
        (len(text), LARGEST_CALENDAR, f"is larger than {LARGEST_CALENDAR} bytes"),
        (lines, MOST_LINES, f"has more than {MOST_LINES} lines"),
        (begun, MOST_EVENTS, f"has more than {MOST_EVENTS} events"),
    ):
        if much > most:
            raise Unusable(f"calendar {quoted(name)} {what}", "leave old events out")
    try:
        # icalendar takes a text of one line for the path of a file.
        components = _File.from_ical(text.removeprefix("\ufeff") + "\n", multiple=True)
    except _FAILURES as error:
        raise Unusable(f"calendar {quoted(name)} cannot be read ({_said(error)})", "export it again") from None
    calendars = [component for component in components if component.name == "VCALENDAR"]
    if not calendars:
        raise Unusable(f"calendar {quoted(name)} is not an iCalendar file, or is cut off", "export it again")
    events = [one for calendar in calendars for one in calendar.subcomponents if isinstance(one, Event)]
    if len(events) != begun:
        raise Unusable(f"calendar {quoted(name)} is cut off, or ends what did not begin", "export it again")
    if sum("RRULE" in event for event in events) > MOST_RECURRING:
        what = f"calendar {quoted(name)} has more than {MOST_RECURRING} recurring events"
        raise Unusable(what, "name several calendars")
    return events


@contextmanager
def _located(name: str, number: int, event: Event) -> Iterator[None]:
    try:
        yield
    except Unusable as error:
        what = f"calendar {quoted(name)}, {_named(number, event)}: {printable(error.what)}"
        raise Unusable(what, error.instead) from None
    except _FAILURES as error:
        raise Unusable(f"calendar {quoted(name)}, {_named(number, event)}: {_said(error)}", _CHECK) from None


def _named(number: int, event: Event) -> str:
    label = _text(event, "SUMMARY") or _text(event, "UID")
    start = event.get("DTSTART")
    on = start.dt.isoformat()[:10] if isinstance(start, vDDDTypes) and isinstance(start.dt, date) else ""
    return f"event {quoted(label, 40) if label else number}" + (f" of {on}" if on else "")


def _said(error: BaseException) -> str:
    """What icalendar says, which may quote a line however long it is."""
    if not isinstance(error, ValueError):
        return "a value is of the wrong kind or out of bounds"
    text = str(error).rstrip(".")
    return printable(text if len(text) <= _LONGEST_SAID else text[: _LONGEST_SAID - 1] + "…")


def _text(event: Event, key: str) -> str:
    found = event.get(key, "")
    return str(found[0] if isinstance(found, list) else found).strip()


def _check(event: Event) -> None:
    """That all that counts here was understood: icalendar goes on where a property of an event is broken."""
    for key, said in event.errors:
        if key in _WANTED or (key is None and _may_matter(said)):
            raise Unusable(f"{key or 'a line'} cannot be read ({_said(ValueError(said))})", _CHECK)
    if "EXRULE" in event:
        raise Unusable("EXRULE is not followed", "write EXDATE")
    if "RECURRENCE-ID" in event and "RANGE" in event["RECURRENCE-ID"].params:
        raise Unusable("a change of all later times is not followed", "end the event there and write a new one")
    for key in _ZONED:
        found = event.get(key, [])
        for one in found if isinstance(found, list) else [found]:
            zone = one.params.get("TZID")
            if zone and tzp.timezone(zone) is None:
                raise Unusable(f"{quoted(zone)} is not a time zone", 'write an IANA name such as "Europe/Berlin"')


def _may_matter(said: str) -> bool:
    """Whether a line that is none may be one of those wanted; some programs break long lines of their own in two."""
    found = _BROKEN_LINE.match(said)
    return found is None or re.sub(r"\s", "", found[1]).upper().startswith((*_WANTED, "BEGIN", "END"))


def _entries(event: Event, changed: Sequence[Event]) -> Iterator[Entry]:
    """None where it is cancelled or takes no time. `changed` are single times of it that are elsewhere."""
    if _text(event, "STATUS").upper() == "CANCELLED":
        return
    if "DTSTART" not in event:
        raise Unusable("the event has no DTSTART", _CHECK)
    begin = event.start
    zone = _zone(begin)
    start, end = _local(begin, zone), _local(_end(event), zone)
    if end < start:
        raise Unusable("the event ends before it begins", _CHECK)
    if end == start:
        return
    entry = Entry(start, end, zone)
    if "RECURRENCE-ID" in event or not ("RRULE" in event or "RDATE" in event):
        yield entry
        return
    if end - start > LONGEST_RECURRING:
        raise Unusable("the event recurs and is longer than a year", _CHECK)
    if isinstance(event.get("RRULE"), list):
        raise Unusable("the event has several RRULE", "make an event of each")
    text = _text(event, "RRULE").upper()
    if len(text) > LONGEST_RULE:
        raise Unusable(f"the rule is longer than {LONGEST_RULE} characters", "write a simpler rule")
    rule = parse_rule(text, start) if "RRULE" in event else None
    if rule is not None and rule.frequency == "HOURLY":
        raise Unusable("the event recurs by the hour", "write FREQ=DAILY;BYHOUR=8,9,10")
    without = {_local(at, zone) for at in (*event.exdates, *(one.RECURRENCE_ID for one in changed))}
    added = [(_local(at, zone), None if until is None else _local(until, zone)) for at, until in event.rdates]
    extra = {at for at, until in added if until is None}
    yield replace(entry, rule=rule, extra=(start, *sorted(extra)), without=tuple(sorted(without)))
    for at, until in added:
        if until is not None and not {at, at.replace(hour=0, minute=0)} & without:
            if until < at:
                raise Unusable("a period of RDATE ends before it begins", _CHECK)
            yield Entry(at, until, zone)


def _end(event: Event) -> date:
    duration = event.DURATION
    if duration is not None and duration < timedelta():
        raise Unusable("DURATION is negative", 'write it such as "PT2H" or "P1D"')
    if "DTEND" not in event and duration is None and event["DTSTART"].params.get("VALUE", "").upper() == "DATE":
        # A date beside a TZID is read as its midnight.
        return event.start + timedelta(days=1)
    return event.end


def _zone(at: date) -> ZoneInfo | None:
    zone = at.tzinfo if isinstance(at, datetime) else None
    return zone if isinstance(zone, ZoneInfo) else None


def _local(at: date, wanted: ZoneInfo | None) -> datetime:
    """A moment to the minute, in the zone of its event; a date is its midnight."""
    if at.year < FIRST_YEAR:
        raise Unusable(f"{quoted(at)} is before {FIRST_YEAR}", "write a later year")
    zone = _zone(at)
    hour, minute = (at.hour, at.minute) if isinstance(at, datetime) else (0, 0)
    local = wall_time(at.year, at.month, at.day, hour, minute)
    local = min(local, wall_time(LAST_YEAR, 1, 1))
    if zone is None or wanted is None or zone == wanted:
        return local
    return local.replace(tzinfo=zone).astimezone(wanted).replace(tzinfo=None)
