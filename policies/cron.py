"""Cron expressions in a time zone: a skipped time comes at the next valid instant, a repeated time once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from policies.errors import Unusable, quoted

_FIELDS = re.compile(r"[0-9A-Za-z*/,#-]+( +[0-9A-Za-z*/,#-]+){4}", re.ASCII)
_EXAMPLE = 'write minute, hour, day of month, month and day of week such as "0 22 * * mon-fri"'

AROUND = timedelta(hours=3)
"""Longer than any zone's change of clocks: times are looked for from this far on the other side of an instant."""

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


def cron_times(text: str, zone: ZoneInfo, at: datetime, *, backward: bool = False) -> Iterator[datetime]:
    """The times of an expression from `at` on, or back from it, without end, in UTC.

    cronsim forgets which of two repeated hours it starts in: begin `AROUND` outside of what is asked.
    """
    return (local.astimezone(UTC) for local in CronSim(text, at.astimezone(zone), reverse=backward))
