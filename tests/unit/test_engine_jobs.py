"""From decisions to jobs, and which job runs next."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from engine.drafting import Draft
from engine.jobqueue import JobQueue
from engine.jobs import JobId, JobKind, JobState
from engine.records import RunRow
from engine.world import World
from policies.decision import BackUp, DistrustTracking, HoldPoints, Retire
from policies.facts import Address, Consistency, Event, EventType, Vm, VmId
from policies.limits import Limits
from tests.policies.building import policies

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
WEB = VmId("web")


def decision(key: str = "k", vm: VmId = WEB, **more: object) -> BackUp:
    return replace(BackUp(key, vm, "gold", "rpo", "it was time", NOW), **more)  # type: ignore[arg-type]


def event(key: str = "vc:1") -> Event:
    return Event(key, EventType.MIGRATED, NOW, "vcenter", vm=WEB)


def world(*vms: Vm) -> World:
    numbers = itertools.count()
    known = World(mint=lambda: VmId(f"id-{next(numbers)}"))
    for vm in vms:
        known.vms[vm.id] = vm
    return known


def drafts(of: World) -> Callable[[], Draft]:
    numbers = itertools.count(1)
    return lambda: Draft(of, NOW, lambda: JobId(f"job-{next(numbers)}"))


def test_two_decisions_of_one_key_are_one_job() -> None:
    known = world()
    draft = drafts(known)()
    draft.take(event("vc:1"), [decision()])
    draft.take(event("vc:2"), [decision()])
    assert len(draft.change().jobs) == 1
    assert {ruling.job for effect in draft.effects for ruling in effect.rulings} == {JobId("job-1")}


def test_a_second_decision_for_a_waiting_vm_joins_its_job() -> None:
    known = world()
    draft = drafts(known)()
    later = NOW + timedelta(minutes=10)
    draft.take(event(), [decision("a", not_before=later, rule="trigger[0]")])
    draft.take(event("vc:2"), [decision("b", deadline=NOW, consistency=Consistency.FILESYSTEM)])
    [job] = draft.change().jobs
    assert (job.key, job.not_before, job.deadline) == ("a", NOW, NOW)
    assert job.consistency is Consistency.FILESYSTEM
    assert draft.change().fired == {("gold", "trigger[0]", WEB): NOW}


def test_a_vm_that_is_being_backed_up_gets_a_second_job() -> None:
    known = world()
    new = drafts(known)
    first = new()
    first.take(event(), [decision("a")])
    [job] = first.change().jobs
    known.set_job(replace(job, state=JobState.RUNNING))
    second = Draft(known, NOW, lambda: JobId("job-2"))
    second.take(event("vc:2"), [decision("b")])
    assert [job.id for job in second.change().jobs] == [JobId("job-2")]
    assert known.history[WEB].running
    assert known.history[WEB].pending


def test_retiring_a_vm_gives_up_what_waits_and_distrust_is_written() -> None:
    known = world()
    draft = drafts(known)()
    draft.take(event(), [decision(), DistrustTracking(WEB, "relocated", "vc:1")])
    draft.take(event("vc:2"), [Retire(WEB, "removed", "vc:2")])
    change = draft.change()
    assert [job.state for job in change.jobs] == [JobState.ABANDONED]
    assert [one.reason for one in change.distrust] == ["relocated"]
    assert known.jobs == {}


def test_a_vm_that_comes_back_is_due_again_though_its_leaving_gave_up_the_same_run() -> None:
    known = world()
    new = drafts(known)
    new().take(event(), [decision("slot")])
    leaving = new()
    leaving.take(event("vc:2"), [Retire(WEB, "it left", "vc:2")])
    back = new()
    back.take(event("vc:3"), [decision("slot")])
    assert [job.state for job in back.change().jobs] == [JobState.PENDING]
    back.undo()
    leaving.undo()
    assert known.job_keys == {"slot": JobId("job-1")}
    assert known.jobs[JobId("job-1")].state is JobState.PENDING


def test_a_hold_is_a_job_once_per_message() -> None:
    draft = drafts(world())()
    for _ in range(2):
        draft.take(event(), [HoldPoints(WEB, "legal asked", "vc:1")])
    [job] = draft.change().jobs
    assert job.kind is JobKind.HOLD


async def taken(queue: JobQueue) -> str | None:
    try:
        async with asyncio.timeout(0.05):
            return (await queue.take()).vm
    except TimeoutError:
        return None


def vm(name: str, host: str) -> Vm:
    return Vm(VmId(name), Address("vc", name), name, host=host, datastores=("ds",))


async def test_the_most_urgent_job_runs_first_and_limits_hold() -> None:
    known = world(vm("a", "h1"), vm("b", "h1"), vm("c", "h2"))
    draft = drafts(known)()
    soon, late = NOW + timedelta(hours=1), NOW + timedelta(hours=2)
    for name, deadline in (("a", late), ("b", soon), ("c", late)):
        draft.take(event(f"vc:{name}"), [decision(name, VmId(name), deadline=deadline)])
    queue = JobQueue(known, Limits(running=2, per_host=1, per_datastore=2), lambda: NOW)
    assert await taken(queue) == "b"
    assert await taken(queue) == "c"
    assert await taken(queue) is None
    assert "2 places" in queue.waiting[0].reason


async def test_a_job_waits_for_its_time_and_wakes_the_queue() -> None:
    known = world(vm("a", "h1"))
    clock = [NOW]
    queue = JobQueue(known, Limits(), lambda: clock[0])
    draft = drafts(known)()
    draft.take(event(), [decision("k", VmId("a"), not_before=NOW + timedelta(seconds=1))])
    assert await taken(queue) is None
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(queue.take())
        await asyncio.sleep(0)
        clock[0] = NOW + timedelta(seconds=1)
        queue.changed()
        job = await waiting
    assert (job.vm, job.state, job.attempts) == ("a", JobState.RUNNING, 1)


async def test_a_job_of_an_earlier_engine_waits_for_the_inventory_before_its_vm_counts_as_gone() -> None:
    known = world()
    known.vcenters = 1
    queue = JobQueue(known, Limits(), lambda: NOW)
    draft = drafts(known)()
    draft.take(event(), [decision("k", VmId("a"))])
    assert await taken(queue) is None
    assert queue.waiting[0].reason == "waits until the inventory is known"
    known.complete["vc"] = NOW
    assert await taken(queue) == "a"


async def test_a_job_of_an_earlier_engine_starts_when_its_vm_is_seen_whatever_else_is_still_unknown() -> None:
    known = world()
    known.vcenters = 2
    queue = JobQueue(known, Limits(), lambda: NOW)
    seen = known.sight(vm("a", "h1"), NOW).vm
    known.leave(seen.address, NOW)
    draft = drafts(known)()
    draft.take(event(), [decision("k", seen.id)])
    assert await taken(queue) is None
    known.sight(vm("a", "h1"), NOW)
    assert await taken(queue) == seen.id


async def test_the_queue_tells_its_load_what_is_late_and_that_it_is_paused() -> None:
    known = world(vm("a", "h1"), vm("b", "h2"))
    queue = JobQueue(known, Limits(per_repository=2), lambda: NOW)
    draft = drafts(known)()
    for name in "ab":
        draft.take(event(f"vc:{name}"), [decision(name, VmId(name), deadline=NOW - timedelta(hours=1))])
    assert queue.late() == {"gold": 2}
    assert (queue.load.ready, queue.load.late, queue.load.overloaded) == (2, 2, False)
    queue.paused = True
    assert await taken(queue) is None
    assert {one.reason for one in queue.waiting} == {"the queue is paused"}
    queue.paused = False
    with queue.using_repository(), queue.using_repository():
        assert await taken(queue) is not None
        assert await taken(queue) is None
        assert queue.waiting[0].reason == "2 backups and tasks use the repository"
    assert await taken(queue) is not None
    queue.took(60.0)
    assert queue.line.typical < timedelta(minutes=5)


async def test_limits_of_policies_hold_from_the_reload_on() -> None:
    found = [policies('[policy.gold]\nselect.all = ["*"]\nlimits.running = 1'), policies()]
    known = world(vm("a", "h1"), vm("b", "h2"))
    queue = JobQueue(known, Limits(), lambda: NOW, lambda: found[0])
    draft = drafts(known)()
    for name in "ab":
        draft.take(event(f"vc:{name}"), [decision(name, VmId(name))])
    assert await taken(queue) is not None
    assert await taken(queue) is None
    found.pop(0)
    assert await taken(queue) is not None


def test_history_counts_failures_and_knows_restore_points_alone() -> None:
    known = world()
    known.set_run(RunRow(WEB, last_attempt=NOW, last_failure="no cable", consecutive_failures=2))
    assert known.history[WEB].consecutive_failures == 2
    assert known.history[WEB].last_success is None


def test_a_draft_that_could_not_be_written_leaves_no_job_and_no_cooldown() -> None:
    known = world()
    new = drafts(known)
    first = new()
    first.take(event(), [decision("a")])
    written = known.jobs[JobId("job-1")]
    lost = new()
    soon = NOW - timedelta(minutes=1)
    lost.take(event("vc:2"), [decision("b", rule="trigger[0]", not_before=soon)])
    lost.take(event("vc:3"), [decision("c", VmId("db"))])
    lost.undo()
    assert known.jobs == {JobId("job-1"): written}
    assert known.fired == {}
    assert known.job_keys == {"a": JobId("job-1")}
    assert not known.history[VmId("db")].pending
    again = new()
    again.take(event("vc:3"), [decision("c", VmId("db"))])
    assert [job.vm for job in again.change().jobs] == [VmId("db")]


def test_a_job_that_was_taken_before_the_write_failed_runs_on_once() -> None:
    known = world()
    lost = drafts(known)()
    lost.take(event(), [decision("a")])
    [job] = lost.change().jobs
    running = replace(job, state=JobState.RUNNING, attempts=1)
    known.set_job(running)
    lost.undo()
    assert known.jobs == {job.id: running}
    again = Draft(known, NOW, lambda: JobId("job-9"))
    again.take(event(), [decision("a")])
    assert again.change().jobs == ()
