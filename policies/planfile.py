"""A plan as a file, and whether it still holds: what a person has seen is what takes effect, or nothing does. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from policies.changes import ReloadPlan
from policies.errors import PolicyError, Problem, quoted
from policies.forecast import ChangePlan
from policies.units import counted

FORMAT = 1
"""A plan file with a higher number was written by a newer Backstay."""

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Planned:
    """What a plan file fixes: the policies before and after by their hashes, and what is taken away, with names."""

    id: str
    old: str
    new: str
    losing: Mapping[str, str]
    expiring: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """For the engine's API."""
        return {
            "format": FORMAT,
            "id": self.id,
            "old": self.old,
            "new": self.new,
            "losing": dict(self.losing),
            "expiring": dict(self.expiring),
        }


def plan_file(plan: ChangePlan) -> dict[str, Any]:
    """The document that `policy plan --out` writes: what `planned` reads, and all that the plan says."""
    return {**planned_of(plan.reload).as_json(), "plan": plan.as_json()}


def planned_of(plan: ReloadPlan) -> Planned:
    """What a plan fixes."""
    return Planned(
        plan.id,
        plan.old.hash,
        plan.new.hash,
        {change.vm: change.name for change in plan.losing},
        {change.key: change.name for change in plan.expiring},
    )


def planned(data: object, name: str) -> Planned:
    """The same from a plan file's JSON; PolicyError when it is none."""
    if not isinstance(data, Mapping) or "id" not in data:
        raise _unusable(name, "is no plan", "write it with: backstay policy plan --out FILE")
    found = data.get("format")
    if type(found) is not int or not 1 <= found <= FORMAT:
        raise _unusable(name, f"has the format {quoted(found)}", f"this Backstay reads {FORMAT}: use a newer one")
    texts = [one for key in ("id", "old", "new") if isinstance(one := data.get(key), str)]
    tables = [one for key in ("losing", "expiring") if (one := _names(data.get(key))) is not None]
    if len(texts) != 3 or len(tables) != 2:
        raise _unusable(name, "is not a whole plan", "write it again with: backstay policy plan --out FILE")
    return Planned(texts[0], texts[1], texts[2], tables[0], tables[1])


def _names(table: object) -> Mapping[str, str] | None:
    if not isinstance(table, Mapping) or not all(isinstance(one, str) for pair in table.items() for one in pair):
        return None
    return dict(table)


def _unusable(name: str, what: str, instead: str) -> PolicyError:
    return PolicyError([Problem(name, 1, 1, what, instead)])


def differences(seen: Planned, now: ReloadPlan) -> tuple[str, ...]:
    """Why a plan does not hold any more, in sentences; empty when exactly what was seen would be taken away."""
    is_now = planned_of(now)
    if is_now.id == seen.id:
        return ()
    found = []
    if seen.old != is_now.old:
        found.append("the policies in force are not those that the plan started from")
    if seen.new != is_now.new:
        found.append("the policy files are not those of the plan")
    for was, now_is, noun, verb in (
        (seen.losing, is_now.losing, "VM", "lose protection"),
        (seen.expiring, is_now.expiring, "restore point", "expire"),
    ):
        more = [now_is[key] for key in now_is if key not in was]
        less = [was[key] for key in was if key not in now_is]
        if more:
            found.append(f"{counted(len(more), noun)} more would {verb} ({_some(more)})")
        if less:
            found.append(f"{counted(len(less), noun)} of the plan would not {verb} any more ({_some(less)})")
    return tuple(found) or ("the plan has another id than its content",)


def _some(names: list[str]) -> str:
    known = sorted(set(names))
    shown = ", ".join(known[:_SHOWN])
    return f"{shown} and {len(known) - _SHOWN} more" if len(known) > _SHOWN else shown
