"""The hours in which work that loads a repository's store begins and goes on: verification and reclaim."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import PlainValidator

from policies.windows import Window, next_open, open_at, parse_window


def _windows(value: Any) -> Any:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str | Window) for text in texts):
        raise ValueError('write days and times such as "mon..fri 18:00-06:00", or a list of these')
    return tuple(parse_window(text) if isinstance(text, str) else text for text in texts)


OpenHours = Annotated[tuple[Window, ...], PlainValidator(_windows)]


@dataclass(frozen=True, slots=True)
class Hours:
    """Windows in a time zone; open at any time when there are none."""

    windows: tuple[Window, ...]
    zone: ZoneInfo

    def is_open(self, now: datetime) -> bool:
        """Whether work may begin or go on."""
        return open_at(self.windows, self.zone, now) is not None

    def opens(self, now: datetime) -> datetime:
        """The first instant from now on at which work may begin."""
        return next_open(self.windows, self.zone, now)

    def closes(self, now: datetime) -> datetime | None:
        """When the open hours end that go on now, or the next ones; None for never."""
        if not self.windows:
            return None
        found = open_at(self.windows, self.zone, self.opens(now))
        return found[1].astimezone(UTC) if found is not None else None


async def until_open(hours: Hours, now: Callable[[], datetime], sleep: Callable[[float], Awaitable[None]]) -> None:
    """Wait until work may begin, however the clock goes on meanwhile."""
    while (opens := hours.opens(at := now())) > at:
        await sleep((opens - at).total_seconds())
