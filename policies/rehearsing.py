"""What a policy asks of rehearsals: `[policy.NAME.rehearse]`. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field

from policies.errors import Unusable, quoted
from policies.tables import WINDOW_PATTERN, Duration, Table, readable, text_like
from policies.tables import key as _key
from policies.units import parse_duration, span
from policies.windows import Window, parse_window

SHORTEST = timedelta(days=1)
"""A rehearsal writes and reads a whole VM."""

HEARTBEAT_WITHIN = timedelta(minutes=10)
"""Where nobody says how long a guest may take to start."""

_BOUNDS = (timedelta(seconds=10), timedelta(hours=2))

_Name = Annotated[str, Field(min_length=1, max_length=256)]


def _often(text: str) -> str:
    if parse_duration(text) < SHORTEST:
        raise Unusable(f"nothing is rehearsed every {quoted(text)}", 'write at least "1d"')
    return text


def _bounded(text: str) -> str:
    if not _BOUNDS[0] <= parse_duration(text) <= _BOUNDS[1]:
        raise Unusable(f"{quoted(text)} is out of bounds", 'write "10s" to "2h"')
    return text


class RehearseTable(Table):
    """How often the last good restore point of each VM is restored into a trial VM, which is removed again."""

    every: Annotated[Duration, AfterValidator(_often)] | None = _key(
        None,
        "Each VM is rehearsed at least this often; of all policies that select it the one with the shortest time"
        " counts, with all its keys. Without it nothing is rehearsed.",
        "30d",
    )
    window: list[Annotated[str, readable(parse_window), text_like(f"^{WINDOW_PATTERN}$")]] | None = _key(
        None,
        "When rehearsals may start, in the policy's `timezone`; inside `maintenance.window` of the engine's"
        " configuration without it.",
        ["sat,sun 00:00-24:00"],
    )
    heartbeat: bool | None = _key(
        None,
        "`true` switches the trial VM on, without any network card, and waits until its VMware Tools say that the"
        " guest lives, where the VM runs such; `false` without this key.",
        True,
    )
    heartbeat_within: Annotated[Duration, AfterValidator(_bounded)] | None = _key(
        None, "How long the guest may take for that, `10s` to `2h`; `10m` without this key.", "15m"
    )
    datastore: _Name | None = _key(
        None, "Where the trial VM lies; of the VM's own datastores the one with most room without it.", "rehearsals"
    )
    pool: _Name | None = _key(None, "Its resource pool; the VM's own without it.", "test")


@dataclass(frozen=True, slots=True)
class Rehearse:
    """What a policy asks: how often, when, and how the trial VM is tried. Empty names take what the VM has."""

    every: timedelta
    zone: ZoneInfo
    windows: tuple[Window, ...] = ()
    heartbeat: bool = False
    heartbeat_within: timedelta = HEARTBEAT_WITHIN
    datastore: str = ""
    pool: str = ""


def rehearse_of(table: RehearseTable | None, zone: ZoneInfo) -> Rehearse | None:
    """What the table asks; None when it does not say how often."""
    if table is None or table.every is None:
        return None
    return Rehearse(
        every=parse_duration(table.every),
        windows=tuple(parse_window(text) for text in table.window or ()),
        zone=zone,
        heartbeat=bool(table.heartbeat),
        heartbeat_within=parse_duration(table.heartbeat_within) if table.heartbeat_within else HEARTBEAT_WITHIN,
        datastore=table.datastore or "",
        pool=table.pool or "",
    )


def most_frequent(several: Iterable[Rehearse | None]) -> Rehearse | None:
    """The one that asks most often, the first of equals; None when none asks."""
    asking = [one for one in several if one is not None]
    return min(asking, key=_every, default=None)


def _every(one: Rehearse) -> timedelta:
    return one.every


def less_rehearsed(was: Rehearse | None, will: Rehearse | None) -> bool:
    """Whether VMs are tried less often, or less is looked at."""
    if was is None:
        return False
    return will is None or will.every > was.every or (was.heartbeat and not will.heartbeat)


def rehearse_words(rehearse: Rehearse) -> str:
    """Such as "every 30 d, heartbeat within 10 m, on datastore test"."""
    words = [f"every {span(rehearse.every)}"]
    words += [f"{window.text} {rehearse.zone.key}" for window in rehearse.windows]
    if rehearse.heartbeat:
        words.append(f"heartbeat within {span(rehearse.heartbeat_within)}")
    words += [f"on datastore {rehearse.datastore}"] if rehearse.datastore else []
    words += [f"in pool {rehearse.pool}"] if rehearse.pool else []
    return ", ".join(words)
