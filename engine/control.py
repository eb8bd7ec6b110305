"""What an operator asks of a running engine, carried out: `engine.commands.Control` over the engine's parts."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from engine import explaining, maintenance, operations, outbox, overview, rehearsals, relink, restore_tasks
from engine.commands import (
    BackUpDisk,
    BackUpVm,
    QueryAnswer,
    QueryLimits,
    Reclaim,
    Rehearse,
    RestoreDisk,
    RestoreInPlace,
    RestoreToFile,
    RestoreToVm,
    Task,
    TaskReport,
    Verify,
)
from engine.failures import BadInput, NotYet
from engine.holding import must_be_the_latest
from engine.inbox import Tick
from engine.keptvm import summary_of
from engine.parts import Parts
from engine.plain import plain
from engine.records import Audited
from engine.rehearsal_records import rehearsals_of
from engine.replaying import journal_lines
from engine.reports import point_details
from engine.repository_views import repository_views
from engine.rulebook import standing_still
from engine.sql import select
from engine.state_views import export_views
from engine.statefile import pieces
from engine.tasks import Body
from engine.threads import settled
from metrics.exposition import render
from policies.facts import PointId, RestorePoint, VmId
from policies.planfile import planned
from storage.moments import legible
from storage.points import LATEST
from storage.repository import Repository
from storage.sole import sole_bytes


@dataclass(slots=True)
class Controls:
    """See `engine.commands.Control` for what each method promises."""

    parts: Parts

    async def health(self) -> Mapping[str, Any]:
        found = overview.problems(self.parts)
        return {"ok": not found, "problems": found}

    async def status(self) -> Mapping[str, Any]:
        return await overview.status(self.parts)

    async def points(self, vm: str | None) -> Sequence[RestorePoint]:
        repositories, pool, known = (
            self.parts.repositories,
            self.parts.threads.repository,
            dict(self.parts.world.points),
        )
        if vm is None:
            return await settled(pool, repositories.points, known=known)
        found: list[RestorePoint] = []
        for vm_id in self._named(vm):
            found += await settled(pool, repositories.points, vm_id, known=known)
        return sorted(found, key=lambda point: point.taken_at)

    async def point(self, reference: str) -> Mapping[str, Any]:
        point = await self._find(reference)
        pool, repository = self.parts.threads.repository, await self._home(point)
        detail = await settled(pool, repository.detail, point)
        kept = await settled(pool, summary_of, repository, point)
        rehearsed = await settled(self.parts.threads.state, rehearsals_of, self.parts.state, point)
        name = self.parts.repositories.name_of(repository)
        return {**point_details(detail, kept), "repository": name, "rehearsals": [plain(one) for one in rehearsed]}

    async def hold(self, reference: str, reason: str, who: str) -> None:
        point = await self._find(reference)
        pool, repository = self.parts.threads.repository, await self._home(point)
        await settled(pool, repository.mark_hold, point, reason, self.parts.now())
        await self._did(who, "hold", point, reason)

    async def release(self, reference: str, reason: str | None, who: str) -> None:
        point = await self._find(reference)
        pool, repository = self.parts.threads.repository, await self._home(point)
        await settled(pool, repository.release, point, reason, self.parts.now())
        await self._did(who, "release", point, reason or "all holds")

    async def expire(self, reference: str, reason: str, who: str, *, last: bool = False, lost: bool = False) -> None:
        point = await self._find(reference)
        pool, repository = self.parts.threads.repository, await self._home(point)
        if not last and not lost:  # one that is not lost is refused then
            await settled(pool, maintenance.check_last_good, self.parts.repositories, repository, point)
        await settled(pool, repository.expire, point, reason, self.parts.now(), lost=lost)
        self.parts.metrics.repositories.points_expired(1)
        self.parts.metrics.operation_finished("expire", "done")
        await self._did(who, "expire", point, reason)

    async def submit(self, task: Task, who: str) -> str:
        kind, body = await self._body(task, who)
        return self.parts.tasks.submit(kind, body)

    def _must_know_inventory(self, vm: VmId) -> None:
        """Before every inventory was read, nobody can tell a VM that is gone from one that is not seen yet."""
        if vm not in self.parts.world.vms and not self.parts.world.inventory_known:
            raise NotYet("the inventory is still being read", where=vm, hint="try again in a moment")

    async def _body(self, task: Task, who: str) -> tuple[str, Body]:
        match task:
            case BackUpVm():
                vm = self._one(task.vm)
                self._must_know_inventory(vm)
                return "backup", operations.back_up_vm(self.parts, vm, task, who, secrets.token_hex(6))
            case BackUpDisk():
                return "backup-disk", operations.back_up_disk(self.parts, task)
            case RestoreToFile():
                return "restore-file", operations.restore_file(self.parts, await self._find(task.point), task)
            case RestoreToVm():
                hypervisor = self._hypervisor(task.vcenter)
                return "restore-vm", restore_tasks.restore_to_vm(
                    self.parts, await self._find(task.point), hypervisor, task
                )
            case RestoreInPlace():
                return "restore-in-place", restore_tasks.restore_in_place(
                    self.parts, await self._find(task.point), task
                )
            case RestoreDisk():
                vm = self._one(task.vm)
                self._must_know_inventory(vm)
                return "restore-disk", restore_tasks.restore_disk(self.parts, await self._find(task.point), vm, task)
            case Verify():
                points = [await self._find(reference) for reference in task.points]
                return "verify", operations.verify_repository(self.parts, points, task)
            case Rehearse():
                named = self.parts.world.named(task.point)
                point = (
                    rehearsals.last_good(self.parts, self._one(task.point)) if named else await self._find(task.point)
                )
                hypervisor = await self._hypervisor_of(point, task.vcenter)
                return "rehearse", rehearsals.rehearse_task(self.parts, point, hypervisor, task)
            case Reclaim():
                return "reclaim", operations.reclaim_repository(self.parts, task)

    async def task(self, id: str, wait_seconds: float) -> TaskReport:
        return await self.parts.tasks.report(id, wait_seconds)

    async def cancel(self, id: str, who: str) -> None:
        self.parts.tasks.cancel(id)

    async def explain(self, vm: str) -> Mapping[str, Any]:
        parts, vm_id = self.parts, self._one(vm)
        seen = parts.world.vms.get(vm_id)
        if seen is None:
            raise BadInput(f"{vm} is not in the inventory now", hint="its restore points: backstay points")
        return await explaining.vm_explained(parts, vm_id)

    async def explain_point(self, reference: str) -> Mapping[str, Any]:
        return await explaining.point_explained(self.parts, reference)

    async def try_notify(self, target: str) -> str:
        parts = self.parts
        return await outbox.try_out(parts.config, target, parts.now())

    async def plan_relink(self, old: str, new: str) -> Mapping[str, Any]:
        return await relink.plan(self.parts, old, new)

    async def relink(self, old: str, new: str, who: str) -> Mapping[str, Any]:
        return await relink.carry_out(self.parts, old, new, who)

    async def pending_policies(self) -> Mapping[str, Any]:
        rulebook = self.parts.rulebook
        await rulebook.look()
        await rulebook.replan()
        pending = rulebook.pending
        if pending is None:
            return {}
        plan = pending.plan
        return {
            "digest": plan.id,
            "refused": bool(plan.refusals),
            "sentences": [*pending.sentences, *plan.refusals],
            "text": pending.text,
            "plan": pending.shown,
        }

    async def apply_policies(self, digest: str, who: str, *, override_guard: bool = False) -> Mapping[str, Any]:
        done = await self.parts.rulebook.apply(digest, who, override_guard=override_guard)
        await self.parts.inbox.put(Tick(self.parts.now()))
        return {"digest": done.plan.id, "text": done.text}

    async def apply_plan(self, plan: Mapping[str, Any], who: str, *, override_guard: bool = False) -> Mapping[str, Any]:
        seen = planned(plan, "the plan")
        done = await self.parts.rulebook.apply_plan(seen, who, override_guard=override_guard)
        if done is None:
            return {"digest": seen.id, "text": "", "done": False}
        await self.parts.inbox.put(Tick(self.parts.now()))
        return {"digest": done.plan.id, "text": done.text, "done": True}

    async def sole_bytes(self, points: Sequence[str]) -> int:
        wanted, threads = [PointId(point) for point in points], self.parts.threads
        total = 0
        for _, repository in [*self.parts.repositories.each()]:
            there = await settled(threads.repository, repository.point_ids)
            if here := [point for point in wanted if point in there]:
                total += await settled(threads.long, sole_bytes, repository, here)
        return total

    async def policy_facts(self) -> Iterator[bytes]:
        parts = self.parts
        if not parts.world.inventory_known:
            raise NotYet("the inventory is still being read", hint="try again in a moment")
        return pieces(standing_still(parts.world.facts(parts.now())), parts.rulebook.accepted)

    async def journal(self, since: datetime) -> AsyncIterator[bytes]:
        beyond: int | None = -1
        while beyond is not None:
            page, beyond = await settled(self.parts.threads.state, self.parts.state.recorded, since, beyond)
            yield journal_lines(page)

    async def select(self, query: str, limits: QueryLimits) -> QueryAnswer:
        return await settled(self.parts.threads.long, select, query, self._sources(), limits)

    async def views(self) -> Mapping[str, Sequence[str]]:
        sources = self._sources()
        columns = {}
        for name, read in sources.items():
            table = await settled(self.parts.threads.long, read)
            columns[name] = list(table.schema.names)
        return columns

    def exposition(self, accept: str) -> tuple[bytes, str]:
        shown = render(self.parts.metrics.registry, accept)
        return shown.body, shown.content_type

    def _sources(self) -> dict[str, Any]:
        state = {
            name: (lambda read=read: self.parts.threads.state.submit(read).result())
            for name, read in export_views(self.parts.state).items()
        }
        return {**repository_views(self.parts.repository), **state}

    async def _find(self, reference: str) -> PointId:
        found: PointId = await settled(self.parts.threads.repository, self.parts.repositories.find, reference)
        if reference.endswith(f"@{LATEST}"):
            must_be_the_latest(self.parts.world, self.parts.repositories.away, found)
        return found

    async def _home(self, point: PointId) -> Repository:
        return await settled(self.parts.threads.repository, self.parts.repositories.home, point)

    def _named(self, name: str) -> list[VmId]:
        found = self.parts.world.named(name)
        if not found:
            raise BadInput(f"no VM is known as {name}", hint="see: backstay status")
        return found

    def _one(self, name: str) -> VmId:
        found = self._named(name)
        if len(found) > 1:
            raise BadInput(f"{len(found)} VMs are called {name}: {', '.join(found)}", hint="name one by its id")
        return found[0]

    def _hypervisor(self, name: str) -> Any:
        parts = self.parts
        known = {parts.names.get(uuid, uuid): hypervisor for uuid, hypervisor in parts.hypervisors.items()}
        if name:
            chosen = known.get(name) or parts.hypervisors.get(name)
            if chosen is None:
                raise BadInput(f"no vCenter is called {name}", hint=f"there is: {', '.join(sorted(known)) or 'none'}")
            return chosen
        if len(known) != 1:
            raise BadInput("name the vCenter to restore to", hint=f"there is: {', '.join(sorted(known)) or 'none'}")
        return next(iter(known.values()))

    async def _hypervisor_of(self, point: PointId, name: str) -> Any:
        """The vCenter of the restore point's VM, where it stands and none is named."""
        detail = await settled(self.parts.threads.repository, (await self._home(point)).detail, point)
        vm = self.parts.world.vms.get(detail.head.vm)
        return self._hypervisor(name or (vm.address.vcenter if vm is not None else ""))

    async def _did(self, who: str, action: str, point: PointId, detail: str) -> None:
        parts = self.parts
        entry = Audited(parts.now(), who, action, point, legible(detail))
        await settled(parts.threads.state, parts.state.audit, entry)
        await parts.crew.list_all_points()
