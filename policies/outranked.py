"""What policies say of a VM that does not count, as another policy that selects it too decides otherwise. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from policies.facts import Disk, Vm
from policies.policy import Policy
from policies.protection import Protection, left_out
from policies.quiescing import quiescing_words
from policies.units import span
from policies.weakening import goal_of


@dataclass(frozen=True, slots=True)
class Ineffective:
    """One setting of a policy that does not count for a VM, and the policies that see to that.

    `weakens` says that a goal is lost: the policy asks for an `rpo`, and what counts has none or a longer one.
    """

    policy: Policy
    setting: str
    value: str
    by: tuple[Policy, ...]
    sentence: str
    weakens: bool = False

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "policy": self.policy.name,
            "setting": self.setting,
            "value": self.value,
            "because_of": [one.name for one in self.by],
            "sentence": self.sentence,
        }


def ineffective(protection: Protection, vm: Vm) -> tuple[Ineffective, ...]:
    """Everything that the policies of a VM say in vain; disks last."""
    if len(protection.policies) < 2:
        return ()
    return (*outranked(protection), *disks_kept(protection, vm))


def outranked(protection: Protection) -> Iterator[Ineffective]:
    """Settings of which a policy of higher priority says something else."""
    for policy in protection.policies:
        for setting, say, decides in _SETTINGS:
            by = _deciding(protection, say)
            value = say(policy)
            if not value or policy.priority >= by[0].priority or {say(one) for one in by} == {value}:
                continue
            names = " and ".join(one.name for one in by)
            verb = "decides" if len(by) == 1 else "decide"
            key, goal = setting, False
            if setting == "rpo":
                count, mine = goal_of(protection), policy.timing.rpo
                key = "rpo" if mine is not None else "schedule"
                goal = mine is not None and (count is None or mine < count)
            shown = value if key == "schedule" or setting == "rpo" else f"{key} {value}"
            yield Ineffective(
                policy,
                key,
                value.removeprefix(f"{key} "),
                by,
                f"{shown} of {policy.name} does not count: {names} (priority {by[0].priority}) {verb} {decides}",
                goal,
            )


def _deciding(protection: Protection, say: Callable[[Policy], str]) -> tuple[Policy, ...]:
    saying = [policy for policy in protection.policies if say(policy)]
    return tuple(policy for policy in saying if policy.priority == saying[0].priority)


def _when(policy: Policy) -> str:
    timing = policy.timing
    goal = f"rpo {span(timing.rpo)}" if timing.rpo is not None else ""
    times = f"schedule {', '.join(timing.times)}" if timing.times else ""
    return " and ".join(filter(None, (goal, times)))


def _consistency(policy: Policy) -> str:
    if not policy.says_consistency:
        return ""
    levels = f"{policy.wanted}, at least {policy.weakest_good}"
    return levels if policy.quiescing is None else f"{levels}, {quiescing_words(policy.quiescing)}"


_SETTINGS: tuple[tuple[str, Callable[[Policy], str], str], ...] = (
    ("rpo", _when, "when"),
    ("consistency", _consistency, "the consistency"),
    ("transports", lambda policy: ", ".join(policy.transports), "the transports"),
    ("destination", lambda policy: policy.destination, "where its restore points go"),
    ("on_cbt_invalid", lambda policy: policy.on_cbt_invalid or "", "what a run does without change tracking"),
    (
        "tracking_sample",
        lambda policy: "" if policy.tracking_sample is None else str(policy.tracking_sample),
        "how much of what change tracking calls unchanged is read again",
    ),
    ("on_migrate", lambda policy: policy.on_migrate or "", "what a run does when its VM moves"),
)


def disks_kept(protection: Protection, vm: Vm) -> Iterator[Ineffective]:
    """Terms of `disks.exclude` for disks that another policy wants."""
    for policy in protection.policies:
        for term in policy.excluded_disks:
            meant = [disk for disk in vm.disks if not disk.unprotected and term.matches(disk)]
            kept = [disk for disk in meant if not left_out(protection, disk)]
            if not kept:
                continue
            by = tuple(one for one in protection.policies if any(_wants(one, disk) for disk in kept))
            names = " and ".join(one.name for one in by)
            of = "" if len(kept) == len(meant) else f" on {', '.join(disk.label or str(disk.key) for disk in kept)}"
            verb = "keeps" if len(by) == 1 else "keep"
            noun = "disk" if len(kept) == 1 else "disks"
            said = f"{'policy' if len(by) == 1 else 'policies'} {names} {verb} the {noun}"
            yield Ineffective(policy, "disks", term.text, by, f"{term.text} of {policy.name} has no effect{of}: {said}")


def _wants(policy: Policy, disk: Disk) -> bool:
    return not any(term.matches(disk) for term in policy.excluded_disks)
