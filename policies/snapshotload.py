"""How many backups, each of which opens a snapshot, would start on each datastore: by the hour and by window. Pure.

An estimate: every VM is backed up when it is next due, its run succeeds at once, and so on from there. Triggers are
not foreseen, nor what limits on running backups would put off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from policies.facts import Facts, Vm, instant_text
from policies.policy import Policy, Timing
from policies.policyset import PolicySet
from policies.protection import Protection, due_of, protection, refusal_of
from policies.schedule import next_due
from policies.windows import open_at

HOURS = 7 * 24
"""How far ahead: a week has every window once."""

GRAIN = timedelta(minutes=1)
"""Starts are rounded down to this, so that VMs of one policy share the work."""

HOUR = timedelta(hours=1)


Opened = tuple[str, str]
"""A window of a policy, such as "mon..fri 18:00-06:00 Europe/Berlin", and a datastore; "" is all of them together."""


@dataclass(frozen=True, slots=True)
class Peak:
    """The fullest hour of a datastore, or the fullest time for which a window is open."""

    at: datetime
    starts: int


@dataclass(frozen=True, slots=True)
class SnapshotLoad:
    """Starts per hour from `begin` on, before and after the change; a datastore of "" is all of them together.

    A VM with disks on several datastores counts on each. `windows` has, by the window of a policy and a datastore,
    the fullest of its openings.
    """

    begin: datetime
    before: Mapping[str, tuple[int, ...]]
    after: Mapping[str, tuple[int, ...]]
    windows: tuple[Mapping[Opened, Peak], Mapping[Opened, Peak]] = ({}, {})

    @property
    def datastores(self) -> tuple[str, ...]:
        """All of them, without the sum."""
        return tuple(sorted({*self.before, *self.after} - {""}))

    def peaks(self, datastore: str) -> tuple[Peak, Peak]:
        """Its fullest hour before and after."""
        return self._peak(self.before.get(datastore, ())), self._peak(self.after.get(datastore, ()))

    @property
    def runs(self) -> tuple[int, int]:
        """How many start in all, before and after."""
        return sum(self.before.get("", ())), sum(self.after.get("", ()))

    def _peak(self, hours: tuple[int, ...]) -> Peak:
        most = max(hours, default=0)
        return Peak(self.begin + HOUR * (hours.index(most) if most else 0), most)

    def as_json(self) -> dict[str, Any]:
        """For `--json`: the fullest hours of each datastore, and the hours of those that change."""
        return {
            "begin": instant_text(self.begin),
            "hours": HOURS,
            "runs_before": self.runs[0],
            "runs_after": self.runs[1],
            "datastores": [self._row(name) for name in self.datastores],
            "all": self._row(""),
            "windows": [
                {
                    "window": window,
                    "datastore": datastore,
                    "fullest_before": {"at": instant_text(before.at), "starts": before.starts},
                    "fullest_after": {"at": instant_text(after.at), "starts": after.starts},
                }
                for window, datastore, before, after in self.openings()
            ],
        }

    def openings(self) -> Iterator[tuple[str, str, Peak, Peak]]:
        """For each window and datastore its fullest opening, before and after; without any starts that of `begin`."""
        none, (before, after) = Peak(self.begin, 0), self.windows
        for window, datastore in sorted({*before, *after}):
            key = window, datastore
            yield window, datastore, before.get(key, none), after.get(key, none)

    def _row(self, name: str) -> dict[str, Any]:
        before, after = self.peaks(name)
        row: dict[str, Any] = {
            "datastore": name,
            "peak_before": {"at": instant_text(before.at), "starts": before.starts},
            "peak_after": {"at": instant_text(after.at), "starts": after.starts},
        }
        if self.before.get(name) != self.after.get(name):
            row["before"] = [*self.before.get(name, (0,) * HOURS)]
            row["after"] = [*self.after.get(name, (0,) * HOURS)]
        return row


def snapshot_load(old: PolicySet, new: PolicySet, facts: Facts) -> SnapshotLoad:
    """The load of the days to come under both."""
    begin = facts.now.replace(minute=0, second=0, microsecond=0)
    sides: tuple[dict[str, list[int]], dict[str, list[int]]] = ({}, {})
    openings: tuple[_Openings, _Openings] = ({}, {})
    ahead = _Ahead(begin + HOUR * HOURS)
    for vm in facts.vms.values():
        before, after = protection(old, vm), protection(new, vm)
        starts = ahead.starts(before, vm, facts)
        _count(sides[0], vm, starts, begin)
        ahead.count_openings(openings[0], before, vm, starts)
        if before is not after:
            starts = ahead.starts(after, vm, facts)
        _count(sides[1], vm, starts, begin)
        ahead.count_openings(openings[1], after, vm, starts)
    before_hours, after_hours = ({name: tuple(hours) for name, hours in side.items()} for side in sides)
    was, will = ({key: _fullest(counts) for key, counts in side.items()} for side in openings)
    return SnapshotLoad(begin, before_hours, after_hours, (was, will))


@lru_cache(maxsize=4096)
def window_name(timing: Timing) -> str:
    """What people call the windows of a policy."""
    return f"{', '.join(window.text for window in timing.windows)} {timing.zone.key}"


_Openings = dict[Opened, dict[datetime, int]]


def _fullest(counts: Mapping[datetime, int]) -> Peak:
    most = max(counts.values())
    return Peak(min(at for at, number in counts.items() if number == most), most)


def _count(side: dict[str, list[int]], vm: Vm, starts: list[datetime], begin: datetime) -> None:
    if not starts:
        return
    hours = [int((start - begin).total_seconds()) // 3600 for start in starts]
    for name in ("", *vm.datastores):
        counted = side.get(name)
        if counted is None:
            counted = side[name] = [0] * HOURS
        for hour in hours:
            counted[hour] += 1


@dataclass(slots=True)
class _Ahead:
    """Remembers what follows on a run of some policies at some minute."""

    end: datetime
    _known: dict[tuple[tuple[Policy, ...], datetime, str], datetime | None] = field(default_factory=dict)
    _openings: dict[tuple[Timing, datetime], datetime | None] = field(default_factory=dict)

    def starts(self, effective: Protection, vm: Vm, facts: Facts) -> list[datetime]:
        """When a VM would be backed up; never, where it cannot be."""
        if refusal_of(effective, vm):
            return []
        first = due_of(effective, vm.id, facts)
        at = max(first[1].at, facts.now) if first is not None else None
        spread = any(policy.timing.spread for policy in effective.scheduling)
        found = []
        while at is not None and at < self.end:
            found.append(at)
            at = self._after(effective.scheduling, at.replace(second=0, microsecond=0), vm.id if spread else "")
        return found

    def count_openings(self, side: _Openings, effective: Protection, vm: Vm, starts: list[datetime]) -> None:
        """Add a VM's starts to the openings of the window that they are in."""
        timing = next((one.timing for one in effective.scheduling if one.timing.windows), None)
        if timing is None or not starts:
            return
        name, opened = window_name(timing), [self._opened(timing, at) for at in starts]
        for datastore in ("", *vm.datastores):
            counts = side.setdefault((name, datastore), {})
            for at in opened:
                if at is not None:
                    counts[at] = counts.get(at, 0) + 1
            if not counts:
                del side[name, datastore]

    def _opened(self, timing: Timing, start: datetime) -> datetime | None:
        """When the window opened that a start is in."""
        key = (timing, start.replace(second=0, microsecond=0))
        if key not in self._openings:
            segment = open_at(timing.windows, timing.zone, start)
            self._openings[key] = segment[0] if segment is not None else None
        return self._openings[key]

    def _after(self, scheduling: tuple[Policy, ...], good: datetime, vm: str) -> datetime | None:
        key = (scheduling, good, vm)
        if key not in self._known:
            due = [due.at for one in scheduling if (due := next_due(one.timing, good, True, good, vm)) is not None]
            self._known[key] = max(min(due), good + GRAIN) if due else None
        return self._known[key]
