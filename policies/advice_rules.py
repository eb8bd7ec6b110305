"""What a policy's retention and triggers say that has no effect, or hardly the meant one. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from policies.advice import Advice, Advise
from policies.advice_timing import interval
from policies.closest import closest
from policies.errors import quoted
from policies.facts import EventType, PowerState
from policies.policy import Policy, Retention, Trigger
from policies.terms import glob_matches
from policies.units import span

PERIODS = {
    "last": timedelta(),
    "hourly": timedelta(hours=1),
    "daily": timedelta(days=1),
    "weekly": timedelta(days=7),
    "monthly": timedelta(days=30),
    "quarterly": timedelta(days=91),
    "yearly": timedelta(days=365),
}

SHORTEST_REACH = timedelta(days=1)
"""What is broken in a guest is rarely noticed within a day: restore points should reach back further."""

MOVES = frozenset({EventType.MIGRATED, EventType.RELOCATED})
"""The events that know the host that a VM left."""

CAUSES = frozenset({
    "drs", "manual", "ha", "guest", "template", "discovered", "vcenter", "reload", "hardware upgrade", "identity",
    "resource pool", "emigrating",
})  # fmt: skip
"""The causes that events of vCenter have; a message over NATS may tell others."""

_POWER_AFTER = {
    EventType.POWERED_ON: PowerState.ON,
    EventType.POWERED_OFF: PowerState.OFF,
    EventType.SUSPENDED: PowerState.SUSPENDED,
}


def retention_advice(policy: Policy, advise: Advise, now: datetime) -> Iterable[Advice]:
    """Warnings about what is kept."""
    yield from _kept_advice(policy, policy.retention, ("retention",), "", advise, now)
    for copy, retention in policy.kept_in_copies:
        yield from _kept_advice(policy, retention, ("copy", copy, "retention"), f" in the copy {copy}", advise, now)


def _kept_advice(
    policy: Policy, retention: Retention, at: tuple[str, ...], where: str, advise: Advise, now: datetime
) -> Iterable[Advice]:
    if retention.empty:
        what = f"has no retention rule{where} and keeps everything"
        yield advise(at, what, "write keep_daily = 14 or the like")
        return
    apart = interval(policy.timing, now)
    rule, reach = furthest(retention, apart)
    path = (*at, rule)
    if policy.timing.rpo is not None and reach < policy.timing.rpo:
        what = f"keeps restore points{where} for less than its rpo of {span(policy.timing.rpo)}"
        yield advise(path, what, f'write keep_within = "{_twice(policy.timing.rpo)}" or keep_last = 2 at least')
    elif apart is not None and reach < SHORTEST_REACH:
        what = f"keeps restore points{where} of the last {span(reach)} only ({rule}, one every {span(apart)})"
        yield advise(path, what, "write keep_daily = 7 or the like beside it")
    if not retention.grace:
        what = f"has no grace{where}: what a mistaken change lets go expires at once"
        yield advise((*at, "grace"), what, 'write grace = "7d" or leave the key out')
    if apart is not None and retention.lock > max(reach, timedelta()) and rule != "keep_within":
        what = f"locks restore points{where} for {span(retention.lock)}, but its rules keep them for some {span(reach)}"
        yield advise((*at, "lock"), what, "write a shorter lock, or rules that keep as long")
    only = [number for name, number in retention.counts if name == "last"]
    if len(retention.counts) == 1 and only and retention.keep_within is None and retention.min_good > only[0]:
        what = f"keeps {retention.min_good} restore points{where} by min_good: keep_last = {only[0]} has no effect"
        yield advise((*at, "keep_last"), what, "write keep_last higher than min_good")


def furthest(retention: Retention, apart: timedelta | None) -> tuple[str, timedelta]:
    """The rule that reaches back furthest, and how far about, with backups so far apart."""
    step = apart or timedelta()
    reaches = [(number * max(PERIODS[rule], step), f"keep_{rule}") for rule, number in retention.counts]
    if retention.keep_within is not None:
        reaches.append((retention.keep_within, "keep_within"))
    reach, rule = max(reaches, default=(timedelta(), "keep_last"))
    return rule, reach


def _twice(duration: timedelta) -> str:
    hours = max(1, round(2 * duration / timedelta(hours=1)))
    return f"{hours // 24}d" if hours % 24 == 0 else f"{hours}h"


def trigger_advice(policy: Policy, advise: Advise) -> Iterable[Advice]:
    """Warnings about what events lead to."""
    for index, trigger in enumerate(policy.triggers):
        yield from _never(policy, trigger, index, advise)
        goal = policy.timing.rpo
        if goal is not None and trigger.settle >= goal:
            what = f"settles {span(trigger.settle)} in {trigger.rule}, and its rpo asks for a run sooner"
            yield advise(("trigger", index, "settle"), what, f"write less than {span(goal)}")
        if trigger.cooldown and trigger.cooldown <= trigger.settle:
            what = f"has a cooldown of {span(trigger.cooldown)} in {trigger.rule} that is over before the run starts"
            yield advise(("trigger", index, "cooldown"), what, f"write more than the settle of {span(trigger.settle)}")
        twin = next((one for one in policy.triggers[:index] if _same(one, trigger)), None)
        if twin is not None:
            what = f"has {trigger.rule} that fires only when {twin.rule} does, which comes first"
            yield advise(("trigger", index), what, "remove one of them")


def _never(policy: Policy, trigger: Trigger, index: int, advise: Advise) -> Iterable[Advice]:
    if trigger.from_host and not trigger.on & MOVES:
        what = f"has from_host in {trigger.rule}, but none of its events is a move: it never fires"
        yield advise(("trigger", index, "from_host"), what, 'write on = "vm.migrated", or leave the key out')
    if trigger.action == "hold" and trigger.on == {EventType.HOLD_REQUESTED}:
        what = f"holds in {trigger.rule} what a hold.requested holds without it"
        yield advise(("trigger", index, "action"), what, "leave action out for a restore point more, or remove it")
    if trigger.cause and not any(glob_matches(trigger.cause, cause) for cause in CAUSES):
        close = closest(trigger.cause, CAUSES)
        what = f"has the cause {quoted(trigger.cause)} in {trigger.rule}, which no event of vCenter has"
        instead = f'write "{close}"' if close else f"write one of {', '.join(sorted(CAUSES))}"
        yield advise(("trigger", index, "cause"), what, instead)
    for term in policy.selection.all:
        if term.property == "power" and trigger.on <= _POWER_AFTER.keys():
            after = {_POWER_AFTER[kind] for kind in trigger.on}
            if not any(term.matches(power.value) for power in after):
                what = f"selects {quoted(term.text)}, but after {' or '.join(sorted(trigger.on))} the VM is "
                what += f"{' or '.join(sorted(after))}: {trigger.rule} never fires"
                yield advise(("trigger", index, "on"), what, "remove the term, or write another event")


def _same(first: Trigger, later: Trigger) -> bool:
    """Whether the later one fires only when the first does, for the same."""
    globs = ((first.cause, later.cause), (first.from_host, later.from_host), (first.to_host, later.to_host))
    conditions = first.when is None or (later.when is not None and first.when.text == later.when.text)
    return (
        later.on <= first.on
        and first.action == later.action
        and conditions
        and not first.cooldown
        and all(not wide or wide == narrow for wide, narrow in globs)
    )
