"""What a simulation found, as data and for a person. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from policies.aging import Aged, Asked, Standing
from policies.assumptions import Assumptions
from policies.errors import printable
from policies.facts import VmId, instant_text
from policies.gauges import ALL, DAY, Overflow, Trace
from policies.mirrored import Mirror
from policies.retention import SMALLEST_MASS
from policies.units import counted, span

SHOWN = 5
"""How many of the worst are shown to a person; the data has all."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What a second copy comes to."""

    mirror: Mirror
    aged: Aged

    def as_json(self, asked: Asked | None) -> dict[str, Any]:
        """For `--json`."""
        mirror, aged = self.mirror, self.aged
        told: dict[str, Any] = {
            "name": mirror.name,
            "known": mirror.known,
            "lacked_points": mirror.lacked,
            "lacked_bytes": mirror.lacked_bytes,
            "runs": sum(aged.runs),
            "storage": _storage(aged, mirror.trace),
            "retention_stops": _stops(aged, mirror.trace),
        }
        return told if asked is None else {**told, "at": _at(aged, asked)}

    def render(self, asked: Asked | None) -> list[str]:
        """For a person."""
        mirror, aged = self.mirror, self.aged
        lines = [f"Second copy {mirror.name}: {counted(sum(aged.runs), 'restore point')} copied"]
        if not mirror.known:
            lines.append("  what it holds is not known: what policies want there is taken to be there")
        elif mirror.lacked:
            lacked = f"{counted(mirror.lacked, 'restore point')} that it lacks ({_size(mirror.lacked_bytes).strip()})"
            lines.append(f"  {lacked} are taken to be there at the beginning")
        lines += [*_render_storage(aged, mirror.trace), *_render_stops(aged, mirror.trace)]
        return lines if asked is None else [*lines, *_render_standing(aged, asked)]


@dataclass(frozen=True, slots=True)
class Simulated:
    """The trace of the runs, what retention made of the restore points, and what was taken for granted."""

    trace: Trace
    aged: Aged
    assumed: Assumptions
    asked: Asked | None = None
    source: str = ""
    copies: tuple[Copied, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        trace, aged = self.trace, self.aged
        told: dict[str, Any] = {
            "from": instant_text(trace.start),
            "until": instant_text(trace.end),
            "source": self.source,
            "assumed": self._assumed(),
            "vms": len(trace.vms),
            "events": trace.events,
            "decisions": dict(sorted(trace.decided.items())),
            "runs": self._runs(),
            "concurrency": self._concurrency(),
            "missed_rpo": self._missed(),
            "window_overflow": self._overflow(),
            "storage": _storage(aged, trace),
            "retention_stops": _stops(aged, trace),
            "copies": [copy.as_json(self.asked) for copy in self.copies],
        }
        if self.asked is not None:
            told["at"] = _at(aged, self.asked)
        return told

    def _assumed(self) -> dict[str, Any]:
        assumed = self.assumed
        return {
            "clock_seconds": assumed.tick.total_seconds(),
            "retention_every_seconds": assumed.retention_every.total_seconds(),
            "bytes_per_second": assumed.bytes_per_second,
            "run_overhead_seconds": assumed.run_overhead.total_seconds(),
            "used_share": assumed.used_share,
            "change_share": assumed.change_share,
            "stored_share": assumed.stored_share,
            "overwritten_share": assumed.overwritten_share,
            "limits": {
                "running": assumed.limits.running,
                "per_host": assumed.limits.per_host,
                "per_datastore": assumed.limits.per_datastore,
            },
        }

    def _runs(self) -> dict[str, Any]:
        trace = self.trace
        rules = [{"policy": p, "rule": r, "runs": number} for (p, r), number in sorted(trace.runs.items())]
        vms = [{"vm": vm, "name": _name(trace, vm), "runs": len(made)} for vm, made in trace.made.items()]
        return {
            "total": sum(trace.runs.values()),
            "given_up": trace.given_up,
            "longest_wait_seconds": round(trace.longest_wait.total_seconds()),
            "by_rule": rules,
            "by_vm": vms,
        }

    def _concurrency(self) -> dict[str, Any]:
        peaks = self.trace.peaks
        return {
            kind: [
                {"name": name, "most": peak.number, "at": instant_text(peak.at)}
                for (kind_of, name), peak in sorted(peaks.items())
                if kind_of == wanted
            ]
            for kind, wanted in (("all", ""), ("hosts", "host"), ("datastores", "datastore"))
        }

    def _missed(self) -> list[dict[str, Any]]:
        by_policy: dict[str, list[tuple[int, VmId]]] = defaultdict(list)
        for (policy, vm), seconds in self.trace.missed.items():
            by_policy[policy].append((seconds, vm))
        return [
            {
                "policy": policy,
                "minutes": _minutes(sum(seconds for seconds, _ in missed)),
                "vms": [
                    {"vm": vm, "name": _name(self.trace, vm), "minutes": _minutes(seconds)}
                    for seconds, vm in sorted(missed, reverse=True)
                ],
            }
            for policy, missed in sorted(by_policy.items())
        ]

    def _overflow(self) -> list[dict[str, Any]]:
        trace = self.trace
        return [
            {
                "policy": one.policy,
                "vm": one.vm,
                "name": _name(trace, one.vm),
                "closed_at": instant_text(one.closed_at),
                "started_at": instant_text(one.started_at) if one.started_at else None,
                "minutes": round(one.by(trace.end).total_seconds() / 60),
            }
            for one in trace.overflows
        ]

    def render(self) -> str:
        """For a person."""
        trace, aged = self.trace, self.aged
        lines = [
            f"{counted(len(trace.vms), 'VM')}, {trace.start:%Y-%m-%d %H:%M} to {trace.end:%Y-%m-%d %H:%M} UTC, "
            f"{counted(trace.events, 'event')}: {counted(sum(trace.runs.values()), 'run')}",
            "",
            "Runs",
            *(
                f"  {number:9,}  {policy or 'no policy'}, {rule}"
                for (policy, rule), number in sorted(trace.runs.items())
            ),
        ]
        if trace.given_up:
            lines.append(f"  {trace.given_up:9,}  given up while they waited: not due any more")
        lines.append(f"  longest wait for a place: {span(trace.longest_wait)}")
        lines += ["", *self._render_places(), "", *self._render_missed(), "", *self._render_overflow()]
        lines += ["", "Repository", *_render_storage(aged, trace), *_render_stops(aged, trace)]
        if self.asked is not None:
            lines += ["", *_render_standing(aged, self.asked)]
        for copy in self.copies:
            lines += ["", *copy.render(self.asked)]
        lines += ["", "Rates are estimates: what is not measured is assumed, failures are not simulated."]
        return "\n".join(map(printable, lines)) + "\n"

    def _render_places(self) -> list[str]:
        peaks = self.trace.peaks
        lines = ["Most at once"]
        top = peaks.get(ALL)
        if top is None:
            return [*lines, "  nothing ran"]
        lines.append(f"  {top.number:9,}  backups, first at {top.at:%Y-%m-%d %H:%M} UTC")
        for kind in ("host", "datastore"):
            worst = max(
                ((peak.number, name, peak.at) for (of, name), peak in sorted(peaks.items()) if of == kind),
                key=lambda one: one[0],
                default=None,
            )
            if worst is not None:
                lines.append(f"  {worst[0]:9,}  on {kind} {worst[1]}, first at {worst[2]:%Y-%m-%d %H:%M} UTC")
        return lines

    def _render_missed(self) -> list[str]:
        lines = ["Missed RPO"]
        for one in self._missed():
            lines.append(f"  {one['minutes']:9,}  minutes of policy {one['policy']}, {counted(len(one['vms']), 'VM')}")
            lines += [f"             {vm['minutes']:9,}  {vm['name']}" for vm in one["vms"][:SHOWN]]
        return lines if len(lines) > 1 else [*lines, "  never"]

    def _render_overflow(self) -> list[str]:
        lines = ["Windows too short"]
        late: dict[str, list[Overflow]] = defaultdict(list)
        for one in self.trace.overflows:
            late[one.policy].append(one)
        for policy, several in sorted(late.items()):
            worst = max(several, key=lambda one: one.by(self.trace.end))
            lines.append(
                f"  {len(several):9,}  runs of policy {policy} did not start before the window closed; the latest by "
                f"{span(worst.by(self.trace.end))} ({_name(self.trace, worst.vm)})"
            )
        return lines if len(lines) > 1 else [*lines, "  never"]


def _storage(aged: Aged, trace: Trace) -> dict[str, Any]:
    days, total, points = [], aged.initial_bytes, aged.initial_points
    for day in range(trace.days):
        total += aged.stored[day] - aged.freed[day]
        points += aged.runs[day] - aged.expired[day]
        days.append(
            {
                "day": _date(trace, day),
                "runs": aged.runs[day],
                "read_bytes": aged.read[day],
                "stored_bytes": aged.stored[day],
                "freed_bytes": aged.freed[day],
                "marked": aged.marked[day],
                "expired": aged.expired[day],
                "points": points,
                "total_bytes": total,
            }
        )
    return {
        "initial_bytes": aged.initial_bytes,
        "final_bytes": total,
        "initial_points": aged.initial_points,
        "final_points": points,
        "days": days,
    }


def _render_storage(aged: Aged, trace: Trace) -> list[str]:
    storage = _storage(aged, trace)
    rows = storage["days"]
    step = max(1, len(rows) // 12)
    initial = f"{_size(storage['initial_bytes'])}{storage['initial_points']:9,}"
    return [
        "         day     runs     stored      freed      total   points",
        f"       start                               {initial}",
        *(
            f"  {day['day']}{day['runs']:9,} {_size(day['stored_bytes'])} {_size(day['freed_bytes'])}"
            f" {_size(day['total_bytes'])}{day['points']:9,}"
            for day in [*rows[step - 1 :: step], *(rows[-1:] if len(rows) % step else ())]
        ),
    ]


def _stops(aged: Aged, trace: Trace) -> list[dict[str, Any]]:
    return [{"day": _date(trace, day), "going": going, "of": total} for day, going, total in stopped(aged, trace)]


def _render_stops(aged: Aged, trace: Trace) -> Iterator[str]:
    for day, going, total in stopped(aged, trace):
        yield (
            f"  On {_date(trace, day)} {going} of {total} restore points go or are marked: in one run of retention the "
            "guard max_expire_share would stop it and ask; the engine has one each hour."
        )


def _at(aged: Aged, asked: Asked) -> dict[str, Any]:
    return {
        "at": instant_text(asked.at),
        "points": sum(one.count for one in aged.standing),
        "kept_by": [
            {"policy": policy, "rule": rule, "points": number}
            for (policy, rule), number in sorted(aged.kept_by.items())
        ],
        "vms": [_standing(one) for one in sorted(aged.standing, key=lambda one: (one.name, one.vm))],
    }


def stopped(aged: Aged, trace: Trace) -> Iterable[tuple[int, int, int]]:
    """Days on which so much goes at once that the guard would stop retention: the day, how many go, of how many."""
    total = aged.initial_points
    for day in range(trace.days):
        going = aged.expired[day] + aged.marked[day]
        if going >= SMALLEST_MASS and going > trace.max_expire_share * total:
            yield day, going, total
        total += aged.runs[day] - aged.expired[day]


def _render_standing(aged: Aged, asked: Asked) -> list[str]:
    points = sum(one.count for one in aged.standing)
    there = sum(1 for one in aged.standing if one.count)
    there_are = f"{counted(points, 'restore point')} of {counted(there, 'VM')}"
    lines = [f"On {asked.at:%Y-%m-%d %H:%M} UTC there are {there_are}; kept by"]
    for (policy, rule), number in sorted(aged.kept_by.items()):
        lines.append(f"  {number:9,}  {f'policy {policy}: {rule}' if policy else rule}")
    for one in sorted(aged.standing, key=lambda one: one.name):
        if one.points:
            lines.append(f"  {one.name}")
            lines += [
                f"    {point.taken_at:%Y-%m-%d %H:%M}  {point.consistency}  {'; '.join(reasons)}"
                for point, reasons in one.points
            ]
    return lines


def _standing(one: Standing) -> dict[str, Any]:
    told: dict[str, Any] = {
        "vm": one.vm,
        "name": one.name,
        "policies": [*one.policies],
        "points": one.count,
        "oldest": instant_text(one.oldest) if one.oldest else None,
        "newest": instant_text(one.newest) if one.newest else None,
    }
    if one.points:
        told["listed"] = [
            {
                "point": point.id,
                "taken_at": instant_text(point.taken_at),
                "consistency": point.consistency.value,
                "policy": point.policy,
                "reasons": [*reasons],
            }
            for point, reasons in one.points
        ]
    return told


def _minutes(seconds: float) -> int:
    """Whole minutes, and one where it was less: a goal that was missed was not missed for 0 minutes."""
    return max(1, round(seconds / 60))


def _name(trace: Trace, vm: VmId) -> str:
    known = trace.vms.get(vm)
    return known.name if known is not None else vm


def _date(trace: Trace, day: int) -> str:
    return f"{trace.start + day * DAY:%Y-%m-%d}"


def _size(count: int) -> str:
    """Such as "  12.3 GiB", ten characters wide."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:6.1f} {unit:3}"
        size /= 1024
    return ""
