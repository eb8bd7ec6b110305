"""What is wrong now and worth a person's time, from the parts of a running engine: for those who want to be told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime

from engine import snapshot_report
from engine.parts import Parts
from engine.telling import OF_A_VM, Known, Topic, Trouble
from metrics.labels import VerifyState
from policies.facts import RestorePoint, Vm, VmId
from policies.protection import Protection, protection
from policies.units import counted, span

AT_ONCE = 500
"""VMs that are looked at in one go: some milliseconds."""


async def troubles(parts: Parts) -> list[Trouble]:
    """All that somebody is to be told of, with room for other work meanwhile. What nobody wants to hear is left out."""
    everybody = tuple(sorted(name for name, section in parts.config.notify.items() if section.engine))
    found = [*_of_policies(parts), *(_of_the_engine(parts, everybody) if everybody else ())]
    vms = list(parts.world.vms.values())
    for start in range(0, len(vms), AT_ONCE):
        for vm in vms[start : start + AT_ONCE]:
            found += _of_vm(parts, vm)
        await asyncio.sleep(0)
    points = list(parts.world.points.items())
    for start in range(0, len(points), AT_ONCE):
        for vm_id, listed in points[start : start + AT_ONCE]:
            if damaged := [point for point in listed if point.damaged]:
                found += _damaged(parts, vm_id, damaged, everybody)
        await asyncio.sleep(0)
    return found


def unsure(parts: Parts, known: Known) -> bool:
    """Whether a trouble that is not seen may be there all the same: of a VM, while an inventory is unknown."""
    return known.topic in OF_A_VM and not parts.world.inventory_known


def _of_vm(parts: Parts, vm: Vm) -> Iterator[Trouble]:
    effective = protection(parts.rulebook.in_force, vm)
    if effective.notify:
        yield from _missed(parts, vm, effective, parts.now())
        yield from _failed(parts, vm, effective.notify)
        yield from _rehearsed(parts, vm, effective)


def _missed(parts: Parts, vm: Vm, effective: Protection, now: datetime) -> Iterator[Trouble]:
    goals = [policy.timing.rpo for policy in effective.scheduling if policy.timing.rpo is not None]
    if not goals:
        return
    history, row = parts.world.history.get(vm.id), parts.world.rows.get(vm.id)
    last = history.last_success if history is not None else None
    since = last or (row.first_seen if row is not None else parts.started_at)
    if now - since <= min(goals):
        return
    goal = span(min(goals))
    has = f"its newest restore point is {span(now - last)} old" if last is not None else "it has no restore point"
    yield Trouble(
        f"rpo:{vm.id}",
        Topic.RPO_MISSED,
        f"{vm.name} missed its RPO of {goal}: {has}",
        f"{vm.name} meets its RPO of {goal} again",
        effective.notify,
    )


def _failed(parts: Parts, vm: Vm, targets: tuple[str, ...]) -> Iterator[Trouble]:
    """Failed for good: what is tried again by itself is nobody's business until the RPO is missed."""
    history = parts.world.history.get(vm.id)
    if history is None or not history.consecutive_failures or history.pending or history.running:
        return
    aside = ", and the VM is set aside until somebody has looked" if vm.id in parts.crew.set_aside else ""
    yield Trouble(
        f"run:{vm.id}",
        Topic.RUN_FAILED,
        f"the backup of {vm.name} failed for good{aside}: {history.last_failure}",
        f"{vm.name} is backed up again",
        targets,
    )


def _rehearsed(parts: Parts, vm: Vm, effective: Protection) -> Iterator[Trouble]:
    last = parts.rehearsals.newest.get(vm.id)
    if last is not None and not last.passed and effective.rehearse is not None:
        yield Trouble(
            f"rehearsal:{vm.id}",
            Topic.REHEARSAL_FAILED,
            f"restoring {vm.name} was tried from {last.point}, and failed: {last.why}",
            f"restoring {vm.name} was tried again, and passed",
            effective.notify,
        )


def _damaged(parts: Parts, vm_id: VmId, damaged: list[RestorePoint], everybody: tuple[str, ...]) -> Iterator[Trouble]:
    policies, vm = parts.rulebook.in_force, parts.world.vms.get(vm_id)
    own = policies.policy(damaged[-1].policy)
    named = protection(policies, vm).notify if vm is not None else own.notify if own is not None else ()
    name = damaged[-1].vm_name
    if targets := tuple(dict.fromkeys((*named, *everybody))):
        yield Trouble(
            f"damage:{vm_id}",
            Topic.DAMAGE,
            f"{counted(len(damaged), 'restore point')} of {name} {'is' if len(damaged) == 1 else 'are'} damaged,"
            f" the newest of {damaged[-1].taken_at:%Y-%m-%d %H:%M} UTC; see: backstay verify",
            f"no restore point of {name} is known to be damaged any more",
            targets,
        )


def _of_policies(parts: Parts) -> Iterator[Trouble]:
    for one in parts.wishes:
        policy = parts.rulebook.in_force.policy(one.policy)
        if one.overdue and policy is not None and policy.notify:
            yield Trouble(
                f"verify:{one.policy}",
                Topic.VERIFY_OVERDUE,
                f"{counted(one.overdue, 'restore point')} under policy {one.policy} not read back"
                f" for longer than the {span(one.every)} that it wants",
                f"the restore points under policy {one.policy} are read back as often as it wants again",
                policy.notify,
            )

    for wish in parts.rehearsals.standing:
        policy = parts.rulebook.in_force.policy(wish.policy)
        if wish.overdue and policy is not None and policy.notify:
            yield Trouble(
                f"rehearsals:{wish.policy}",
                Topic.REHEARSAL_OVERDUE,
                f"no rehearsal of {counted(wish.overdue, 'VM')} under policy {wish.policy} passed"
                f" for longer than the {span(wish.every)} that it wants",
                f"the VMs under policy {wish.policy} are rehearsed as often as it wants again",
                policy.notify,
            )


def _of_the_engine(parts: Parts, targets: tuple[str, ...]) -> Iterator[Trouble]:
    rulebook, verified, load = parts.rulebook, parts.verified, parts.queue.load
    if verified.state is VerifyState.DAMAGED and not _any_damaged(parts):
        yield Trouble(
            "damage",
            Topic.DAMAGE,
            f"verification found {counted(verified.damaged, 'damaged object')} that no restore point needs",
            "verification finds no damaged object any more",
            targets,
        )
    if load.overloaded:
        yield Trouble(
            "overload",
            Topic.OVERLOAD,
            f"more is due than can be done in time: {counted(load.ready, 'backup')} ready, {load.late} of them late,"
            f" places for {load.places}; those of low priority wait",
            "what is due can be done in time again",
            targets,
        )
    for name, why in _away(parts).items():
        yield Trouble(
            f"vcenter:{name}", Topic.VCENTER_AWAY, f"vCenter {name} is away: {why}", f"vCenter {name} is back", targets
        )
    for name, why in sorted({**parts.repositories.silent, **parts.repositories.away}.items()):
        yield Trouble(
            f"repository:{name}",
            Topic.REPOSITORY_AWAY,
            f"repository {name} is away: {why}",
            f"repository {name} is back",
            targets,
        )
    for place, why in snapshot_report.full_datastores(parts).items():
        yield Trouble(
            f"datastore:{place}",
            Topic.DATASTORE_FULL,
            f"{why}, so backups of VMs there wait",
            f"datastore {place} has room for snapshots again",
            targets,
        )
    for vm, why in snapshot_report.to_consolidate(parts):
        yield Trouble(
            f"consolidation:{vm.id}", Topic.CONSOLIDATION, why, f"{vm.name} needs no consolidation any more", targets
        )
    if parts.retention_refused:
        yield Trouble(
            "retention",
            Topic.RETENTION_REFUSED,
            f"retention removes nothing: {parts.retention_refused}",
            "retention goes on",
            targets,
        )
    for name, why in sorted(parts.copies_refused.items()):
        yield Trouble(
            f"retention:{name}",
            Topic.RETENTION_REFUSED,
            f"retention removes nothing in the copy {name}: {why}",
            f"retention goes on in the copy {name}",
            targets,
        )
    if rulebook.plan is not None:
        lost = counted(len(rulebook.plan.losing), "VM")
        gone = counted(len(rulebook.plan.expiring), "restore point")
        yield Trouble(
            f"change:{rulebook.plan.new.hash}",
            Topic.POLICY_CHANGE,
            f"a change of policies waits for confirmation: {lost} would lose protection, {gone} would expire;"
            " look at it: backstay policy apply",
            "the change of policies waits no longer",
            targets,
        )
    if rulebook.problems:
        yield Trouble(
            "policies",
            Topic.POLICY_FILES,
            f"the policy files cannot be used, the old policies stay: {rulebook.problems[0]}",
            "the policy files can be used again",
            targets,
        )


def _away(parts: Parts) -> dict[str, str]:
    """The vCenters that do not answer, by name, with why."""
    found = dict(parts.unreachable)
    for uuid, answers in parts.sources.answering.items():
        if not answers:
            told = (parts.sources.troubles.get(f"{uuid}/{source}", "") for source in ("clock", "inventory", "events"))
            found[parts.names.get(uuid, uuid)] = next(filter(None, told), "it does not answer")
    return found


def _any_damaged(parts: Parts) -> bool:
    return any(point.damaged for points in parts.world.points.values() for point in points)
