"""What a simulation comes to in a second copy: which restore points get there, and whose retention counts. Pure.

A copy is never away in it: what policies want there is there as soon as it is made, and nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache

from policies.copied import in_copy, own_retention
from policies.facts import PointId, RestorePoint, VmId
from policies.gauges import Made, Trace
from policies.keeping import rows_of, unkept
from policies.policy import Policy
from policies.policyset import PolicySet


@dataclass(frozen=True, slots=True)
class Mirror:
    """A second copy over the time of a simulation, as a trace of its own.

    `lacked` are the restore points that are copied at the beginning; where nobody knows what the copy holds then
    (`known` is False), it is taken for what the policies want there.
    """

    name: str
    trace: Trace
    lacked: int
    lacked_bytes: int
    known: bool


def copies_named(policies: PolicySet) -> tuple[str, ...]:
    """The second copies that any policy asks for, in order."""
    return tuple(sorted({copy for policy in policies.policies for copy in policy.copies}))


@lru_cache(maxsize=16_384)
def _there(policy: Policy, copy: str) -> Policy:
    """The policy as it counts in the copy; the lock of the first repository comes along, and the longer one counts."""
    own = own_retention(policy, copy)
    if own is None:
        return policy
    return replace(in_copy(policy, copy), retention=replace(own, lock=max(own.lock, policy.retention.lock)))


def mirror(trace: Trace, name: str, held: Mapping[VmId, Sequence[RestorePoint]] | None) -> Mirror:
    """What gets into a copy, and by which policies it stays. `held` is what is there at first, None if not known."""
    initial: dict[VmId, tuple[RestorePoint, ...]] = {}
    lacked: list[RestorePoint] = []
    for vm in dict.fromkeys([*trace.initial, *(held or ())]):
        here = {point.id: point for point in (held or {}).get(vm, ())}
        coming = [point for point in _backlog(trace, name, vm, here.values()) if point.id not in here]
        initial[vm] = (*here.values(), *coming)
        lacked += coming if held is not None else []
    mirrored = replace(
        trace,
        initial=initial,
        made={vm: made for vm in trace.made if (made := _copied(trace, name, vm, bool(initial.get(vm)))) is not None},
        selected={
            vm: [(since, tuple(_there(one, name) for one in several)) for since, several in changes]
            for vm, changes in trace.selected.items()
        },
        by_name={policy: _there(one, name) for policy, one in trace.by_name.items()},
    )
    return Mirror(name, mirrored, len(lacked), sum(point.stored_bytes for point in lacked), held is not None)


def _backlog(trace: Trace, name: str, vm: VmId, held: Iterable[RestorePoint]) -> list[RestorePoint]:
    """What the first repository has at the beginning that the copy would have or keep."""
    points = trace.initial.get(vm, ())
    selecting = _selecting(trace, vm, trace.start)
    wanted = [p for p in points if not p.damaged and _names(trace, selecting, p.policy, name)]
    policies = [_there(one, name) for one in selecting]
    if not any(own_retention(one, name) is not None for one in policies):
        return wanted
    there = {point.id for point in held}
    rows = rows_of([*held, *(point for point in wanted if point.id not in there)])
    going: set[PointId] = {rows[position].point.id for position in unkept(rows, policies, trace.start)}
    return [point for point in wanted if point.id not in going]


def _selecting(trace: Trace, vm: VmId, at: datetime) -> tuple[Policy, ...]:
    found: tuple[Policy, ...] = ()
    for since, several in trace.selected.get(vm, ()):
        if since > at:
            break
        found = several
    return found


def _names(trace: Trace, selecting: Sequence[Policy], maker: str, name: str) -> bool:
    """Whether a restore point belongs in the copy; of a VM that no policy selects, the one that made it says so."""
    if selecting:
        return any(name in policy.copies for policy in selecting)
    made = trace.by_name.get(maker)
    return made is not None and name in made.copies


def _copied(trace: Trace, name: str, vm: VmId, based: bool) -> Made | None:
    """Of the restore points that runs of the VM made those that are copied; None without any."""
    made, changes = trace.made[vm], trace.selected.get(vm, [])
    always = [bool(several) and any(name in policy.copies for policy in several) for _, several in changes]
    if changes and all(always) and (based or not trace.initial.get(vm)):
        return made
    if not any(always) and not any(name in policy.copies for policy in trace.by_name.values()):
        return None
    found, most = Made(), max((point.stored_bytes for point in trace.initial.get(vm, ())), default=0)
    for number in range(len(made)):
        _, listed, _, policy, _, stored = made.point(number)
        maker = trace.policies[policy] if policy < len(trace.policies) else ""
        most = max(most, stored)
        if _names(trace, _selecting(trace, vm, listed), maker, name):
            found.take(made, number, stored=stored if based or len(found) else most)
    return found if len(found) else None
