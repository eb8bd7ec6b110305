"""What a test of policies expected and what came of it, with the explanation of each difference. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from policies.decision import DistrustTracking, HoldPoints
from policies.evaluation import evaluate
from policies.facts import Event, EventType, Vm
from policies.fixture_tables import Expectation, PlanExpectation
from policies.fixtures import Case
from policies.planning import plan_reload
from policies.policy import Source
from policies.policyset import PolicySet
from policies.protection import Protection, protection
from policies.retention import kept_reasons
from policies.selection import match
from policies.settings import policy_line, settings_of
from policies.trial import Trial, story, try_out
from policies.units import clock, counted, parse_duration, span

MOST_REFUSING = 5
"""How many policies are told that neither select a VM nor are expected to."""

MOST_TOLD = 30
"""Sentences of one explanation before it only counts the rest."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One expectation that did not come true. `why` are the sentences that explain what came instead."""

    source: Source
    vm: str
    key: str
    expected: str
    got: str
    why: tuple[str, ...] = ()

    def __str__(self) -> str:
        place = f"{self.source.file}:{self.source.line}:{self.source.column}"
        of = f" of {self.vm}" if self.vm else ""
        return f"{place}: {self.key}{of}: expected {self.expected}, got {self.got}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one test; it passed when nothing differs."""

    case: Case
    differences: tuple[Difference, ...]
    backups: int
    decisions: int

    @property
    def passed(self) -> bool:
        """Whether all came as expected."""
        return not self.differences


def judge(case: Case, policies: PolicySet) -> Verdict:
    """Carry a test out and compare."""
    trial = try_out(case, policies)
    found: list[Difference] = []
    if trial.unfinished:
        at = span(max((one.at for one in trial.said), default=timedelta()))
        found.append(Difference(case.source, "", "for", "an end", f"no end yet after {at}: shorten the test"))
    for vm_id, (name, expected) in case.expected.items():
        vm = trial.facts.vms.get(vm_id) or case.facts.vms[vm_id]
        found += _Comparison(case, trial, policies, vm, name).all(expected)
    if case.plan is not None:
        found += _plan(case, case.plan, trial, policies)
    return Verdict(case, tuple(found), len(trial.backups), len(trial.said))


class _Comparison:
    """The expectations about one VM against what came of the test."""

    def __init__(self, case: Case, trial: Trial, policies: PolicySet, vm: Vm, name: str) -> None:
        self.case, self.trial, self.policies, self.vm = case, trial, policies, vm
        self.effective: Protection = protection(policies, vm)
        self.backups = trial.backups_of(vm.id)
        self.name = name
        self.found: list[Difference] = []

    def all(self, expected: Expectation) -> list[Difference]:
        for key in type(expected).model_fields:
            value = getattr(expected, key)
            if value is not None:
                _CHECKS[key](self, key, value)
        return self.found

    def differ(self, key: str, expected: object, got: object, why: Iterable[str] = ()) -> None:
        source = self.case.place(("expect", self.name, key))
        told = list(why)
        more = [f"and {len(told) - MOST_TOLD} more"] if len(told) > MOST_TOLD else []
        self.found.append(Difference(source, self.name, key, _shown(expected), _shown(got), (*told[:MOST_TOLD], *more)))

    def equal(self, key: str, expected: object, got: object, why: Callable[[], Iterable[str]]) -> None:
        if expected != got:
            self.differ(key, expected, got, why())

    # who protects it, and how

    def selection(self, named: Iterable[str] = ()) -> list[str]:
        """The policies that select it and those that the test names, then some of the others."""
        wanted = {*named}
        first: list[str] = []
        rest: list[str] = []
        for policy in self.policies.policies:
            found = match(policy, self.vm)
            verb = "selects it" if found.selected else "does not select it"
            told = first if found.selected or policy.name in wanted else rest
            told.append(f"policy {policy_line(policy)} {verb}: {found.why}")
        more = [f"and {len(rest) - MOST_REFUSING} more that do not select it"] if len(rest) > MOST_REFUSING else []
        return [*first, *rest[:MOST_REFUSING], *more]

    def names(self) -> list[str]:
        return [policy.name for policy in self.effective.policies]

    def which(self, key: str, value: Any) -> None:
        match key:
            case "policies":
                self.equal(key, sorted(value), sorted(self.names()), lambda: self.selection(value))
            case "policy":
                winner = self.effective.winner
                self.equal(key, value, winner.name if winner else "no policy", lambda: self.selection([value]))
            case _:
                self.equal(key, value, not self.effective.policies, self.selection)

    def setting(self, key: str, value: Any) -> None:
        effective = self.effective
        goals = [policy.timing.rpo for policy in effective.scheduling if policy.timing.rpo is not None]
        found: Mapping[str, object] = {
            "rpo": min(goals, default=None),
            "consistency": effective.want.value,
            "fallback": effective.fallback.value,
            "transports": [*effective.transports],
            "copies": [*effective.copies],
            "lock": effective.lock,
        }
        wanted = parse_duration(value) if key in ("rpo", "lock") else value
        self.equal(key, wanted, found[key], self.origins)

    def origins(self) -> list[str]:
        said = settings_of(self.effective)
        return [f"{setting} {words}" for setting, words in said.items()] or self.selection()

    # backups

    def told(self) -> tuple[str, ...]:
        said = story(self.trial.about(self.vm.id))
        return said or (self.standing(),)

    def standing(self) -> str:
        """Why nothing was decided."""
        facts = replace(self.trial.facts, vms={self.vm.id: self.vm})
        event = Event(key="end", type=EventType.CLOCK, at=facts.now, source="clock")
        return f"at the end: {evaluate(self.policies, event, facts)[0].reason}"

    def backing_up(self, key: str, value: Any) -> None:
        first = self.backups[0] if self.backups else None
        match key:
            case "no_backup":
                if value is not (not self.backups):
                    got = counted(len(self.backups), "backup") if self.backups else "no backup"
                    self.differ(key, value, got, self.told())
            case "backups":
                self.equal(key, value, len(self.backups), self.told)
            case "backup_by" | "backup_after" if first is None:
                self.differ(key, value, "no backup", self.told())
            case "backup_by" if first is not None and first.starts > parse_duration(value):
                self.differ(key, f"a start within {span(parse_duration(value))}", self.when(first.starts), self.told())
            case "backup_after" if first is not None and first.starts < parse_duration(value):
                self.differ(key, f"none before {span(parse_duration(value))}", self.when(first.starts), self.told())
            case "backup_policy" | "backup_rule":
                got = "no backup"
                if first is not None:
                    got = first.decision.policy if key == "backup_policy" else first.decision.rule
                self.equal(key, value, got, self.told)
            case "reason":
                said = [one.decision.reason for one in self.trial.about(self.vm.id)] or [self.standing()]
                reasons = [first.decision.reason] if first is not None else said
                if not any(value in reason for reason in reasons):
                    self.differ(key, f"a sentence with {_shown(value)}", reasons[0], self.told())

    def when(self, starts: timedelta) -> str:
        at = clock(self.case.facts.now + starts, self.zone())
        return f"a start after {span(starts)}, at {at}" if starts else f"a start at once, at {at}"

    def zone(self) -> Any:
        return self.effective.policies[0].timing.zone if self.effective.policies else self.case.facts.now.tzinfo

    def deciding(self, key: str, value: bool) -> None:
        kind = DistrustTracking if key == "full_read" else HoldPoints
        got = any(isinstance(one.decision, kind) for one in self.trial.about(self.vm.id))
        self.equal(key, value, got, self.told)

    # restore points

    def retaining(self, key: str, value: Any) -> None:
        points = self.trial.facts.points.get(self.vm.id, ())
        facts, gone = self.trial.facts, self.vm.id in self.trial.facts.left
        here = None if gone else facts.vms.get(self.vm.id)
        reasons = kept_reasons(points, self.policies.retaining(here, points, removed=gone), facts.now)
        chosen = [point for point in points if (point.id in reasons) is (key == "keeps")]
        got: object = sorted(point.id for point in chosen)
        wanted = sorted(value) if isinstance(value, list) else value
        if wanted == (got if isinstance(value, list) else len(chosen)):
            return
        now = self.trial.facts.now
        listed = set(value) if isinstance(value, list) else set()
        doubtful = [one for one in points if (one in chosen) is not (one.id in listed)]
        why = (
            f"{point.id}, {span(now - point.taken_at)} old: "
            f"{'; '.join(reasons[point.id]) if point.id in reasons else 'no rule and no guard keeps it'}"
            for point in sorted(doubtful, key=lambda one: one.taken_at, reverse=True)
        )
        self.differ(key, value, got if isinstance(value, list) else len(chosen), why)


_CHECKS: Mapping[str, Callable[[_Comparison, str, Any], None]] = {
    **dict.fromkeys(("policies", "policy", "unprotected"), _Comparison.which),
    **dict.fromkeys(("rpo", "consistency", "fallback", "transports", "copies", "lock"), _Comparison.setting),
    **dict.fromkeys(
        ("no_backup", "backups", "backup_by", "backup_after", "backup_policy", "backup_rule", "reason"),
        _Comparison.backing_up,
    ),
    **dict.fromkeys(("full_read", "held"), _Comparison.deciding),
    **dict.fromkeys(("keeps", "expires"), _Comparison.retaining),
}


def _plan(case: Case, expected: PlanExpectation, trial: Trial, policies: PolicySet) -> Iterable[Difference]:
    kept = tuple(policy for policy in policies.policies if policy.name not in expected.without)
    plan = plan_reload(policies, PolicySet(kept, policies.guard), trial.facts)
    changes = [*(one.sentence for one in plan.losing), *(one.sentence for one in plan.expiring)]
    why = (*plan.refusals, *changes)

    def differ(key: str, wanted: object, got: object) -> Difference:
        return Difference(case.place(("plan", key)), "", f"plan.{key}", _shown(wanted), _shown(got), why[:MOST_TOLD])

    if expected.refused is not None and expected.refused is not bool(plan.refusals):
        yield differ("refused", expected.refused, bool(plan.refusals))
    losing = sorted(change.name for change in plan.losing)
    if expected.loses is not None and sorted(expected.loses) != losing:
        yield differ("loses", sorted(expected.loses), losing)
    expiring = sorted(change.point for change in plan.expiring)
    wanted = sorted(expected.expires) if isinstance(expected.expires, list) else expected.expires
    got: object = expiring if isinstance(wanted, list) else len(expiring)
    if wanted is not None and wanted != got:
        yield differ("expires", wanted, got)


def _shown(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case timedelta():
            return span(value)
        case list() | tuple():
            return ", ".join(str(one) for one in value) or "none"
    return str(value)
