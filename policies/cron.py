"""Cron times in a time zone: a skipped time comes at the next valid instant, a repeated time once."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from policies.errors import Unusable, quoted

_FIELDS = re.compile(r"[0-9A-Za-z*/,#-]+( +[0-9A-Za-z*/,#-]+){4}", re.ASCII)
_EXAMPLE = 'write minute, hour, day of month, month and day of week such as "0 22 * * mon-fri"'

_AROUND = timedelta(hours=3)
"""Longer than any zone's change of clocks: slots are looked for from this far on the other side of `at`."""

_SOME_DAY = datetime(2024, 1, 1, tzinfo=UTC)


def check_cron(text: str) -> str:
    """The expression itself when it has five fields and comes to pass; raises Unusable."""
    if len(text) > 200 or not _FIELDS.fullmatch(text):
        raise Unusable(f"cron {quoted(text)} does not have five fields", _EXAMPLE)
    try:
        next(CronSim(text, _SOME_DAY))
    except CronSimError as error:
        raise Unusable(f"cron {quoted(text)} is not valid ({str(error).lower()})", _EXAMPLE) from None
    except StopIteration:
        raise Unusable(f"cron {quoted(text)} never comes", _EXAMPLE) from None
    return text


@lru_cache(maxsize=4096)
def slots_around(cron: str, zone: ZoneInfo, at: datetime) -> tuple[datetime, datetime]:
    """(the last time at or before `at`, the first after it), both UTC."""
    # cronsim forgets which of two repeated hours it starts in, so start well outside and walk.
    backward = CronSim(cron, (at + _AROUND).astimezone(zone), reverse=True)
    before = next(slot for slot in map(_utc, backward) if slot <= at)
    forward = CronSim(cron, (at - _AROUND).astimezone(zone))
    after = next(slot for slot in map(_utc, forward) if slot > at)
    return before, after


def _utc(local: datetime) -> datetime:
    return local.astimezone(UTC)
