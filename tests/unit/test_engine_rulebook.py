"""A change of policies in a running engine: confirmed as it was seen, planned beside the loop, recorded with who."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from engine.rulebook import REPLAN_AFTER, Pending, Rulebook, compared
from engine.state import State
from engine.threads import Threads, settled
from policies.facts import Facts
from policies.fleet import synthetic_fleet
from policies.planfile import Planned, planned_of
from policies.planning import plan_reload
from policies.policyset import PolicySet
from storage.errors import NoSpace, Refused
from tests.policies.building import NOW, a_vm, daily_points, facts, policies

ALL = 'schema = 1\n[policy.all]\nrpo = "4h"\nselect.all = ["*"]\n'
SOME = ALL.replace('"*"', '"name:web"')
KNOWN = facts(a_vm("web"), a_vm("db"))


@dataclass
class Desk:
    book: Rulebook
    directory: Path
    state: State
    threads: Threads

    @property
    def waits(self) -> bool:
        return self.book.plan is not None

    def write(self, text: str) -> None:
        (self.directory / "all.toml").write_text(text)

    async def audited(self, who: str) -> str:
        [detail] = [one.detail for one in await settled(self.threads.state, self.state.audited) if one.who == who]
        return detail


@asynccontextmanager
async def desk(root: Path, known: Facts = KNOWN) -> AsyncIterator[Desk]:
    (root / "policies").mkdir()
    state, threads = State(root / "state", now=NOW), Threads()
    try:

        def at(now: datetime) -> Facts:
            return replace(known, now=now)

        book = Rulebook(root / "policies", state, threads, at, lambda: NOW)
        found = Desk(book, root / "policies", state, threads)
        found.write(ALL)
        await book.start(keep_everything=False)
        yield found
    finally:
        threads.close()
        state.close()


def seen(new: str, old: str = ALL) -> Planned:
    return planned_of(
        plan_reload(policies(old.removeprefix("schema = 1")), policies(new.removeprefix("schema = 1")), KNOWN)
    )


async def test_a_plan_takes_effect_as_it_was_seen_and_the_audit_keeps_who_overrode_the_guard(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        here.write(SOME)
        with pytest.raises(Refused, match="a guard refuses it: 1 VM would lose protection"):
            await here.book.apply_plan(seen(SOME), "anna")
        waited = here.waits
        done = await here.book.apply_plan(seen(SOME), "anna", override_guard=True)
        assert done is not None
        assert (waited, here.waits) == (True, False)
        assert here.book.accepted.hash == done.plan.new.hash
        detail = await here.audited("anna")
        assert detail.startswith(f"plan {done.plan.id}: guard overridden (1 VM would lose protection")
        assert "db loses protection" in detail
        assert await here.book.apply_plan(seen(SOME), "anna") is None, "in force already"


async def test_a_plan_of_other_files_or_another_start_is_refused(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        with pytest.raises(Refused, match="not those of the plan, and no change waits"):
            await here.book.apply_plan(seen(SOME), "anna", override_guard=True)
        here.write(SOME)
        with pytest.raises(Refused, match="the policies in force are not those that the plan started from"):
            await here.book.apply_plan(seen(SOME, ALL.replace("4h", "8h")), "anna", override_guard=True)
        here.write("schema = 1\n[policy.all]\nrop = '4h'\n")
        with pytest.raises(Refused, match=r"the policy files cannot be used .*all\.toml:3:1"):
            await here.book.apply_plan(seen(SOME), "anna", override_guard=True)
        assert here.book.accepted.policy("all") is not None
        assert len(here.book.accepted.unprotected(KNOWN.vms.values())) == 0


async def test_a_pending_change_is_confirmed_by_its_id_and_no_other(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        with pytest.raises(Refused, match="no change of policies waits"):
            await here.book.apply("0" * 16, "anna", override_guard=True)
        here.write(SOME)
        with pytest.raises(Refused, match=r"is \w+ by now, not 0000"):
            await here.book.apply("0" * 16, "anna", override_guard=True)
        done = await here.book.apply(seen(SOME).id, "anna", override_guard=True)
        assert [change.name for change in done.plan.losing] == ["db"]


async def test_a_stop_does_not_wait_for_the_plan_of_a_large_fleet(tmp_path: Path) -> None:
    known = synthetic_fleet(1500, now=NOW, points_each=20)
    async with desk(tmp_path, known) as here:
        here.write(ALL + "retention.keep_last = 3\n")
        began, stopped = threading.Event(), threading.Event()
        looks = 0

        def planning(old: PolicySet, new: PolicySet, facts: Facts, look: Callable[[], None]) -> Pending:
            def counted() -> None:
                nonlocal looks
                looks += 1
                began.set()
                stopped.wait(30)
                look()

            return compared(old, new, facts, counted)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("engine.rulebook.compared", planning)
            under_way = asyncio.create_task(here.book.look())
            await asyncio.to_thread(began.wait)
            under_way.cancel()
            await asyncio.sleep(0)
            stopped.set()
            with pytest.raises(asyncio.CancelledError):
                await under_way
        assert looks == 1
        assert not here.waits
        await here.book.look()
        assert here.waits


async def test_the_loop_goes_on_while_a_large_fleet_is_planned(tmp_path: Path) -> None:
    known = synthetic_fleet(1500, now=NOW, points_each=20)
    async with desk(tmp_path, known) as here:
        here.write(ALL + "retention.keep_last = 3\n")
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                await asyncio.sleep(0)
                beats += 1

        async with asyncio.TaskGroup() as group:
            heart = group.create_task(beat())
            await here.book.look()
            heart.cancel()
        assert here.book.plan is not None and len(here.book.plan.expiring) > 10_000
        assert beats > 20


async def test_a_comparison_that_took_long_is_not_made_again_soon(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        here.write(SOME)
        await here.book.look()
        assert not here.book.stale(NOW + REPLAN_AFTER - timedelta(seconds=1))
        assert here.book.stale(NOW + REPLAN_AFTER)
        here.book._took = timedelta(seconds=10)
        assert not here.book.stale(NOW + timedelta(seconds=199))
        assert here.book.stale(NOW + timedelta(seconds=200))


async def test_what_the_audit_keeps_of_a_large_change_is_short(tmp_path: Path) -> None:
    vms = [a_vm(f"vm-{number}") for number in range(400)]
    points = [point for vm in vms for point in daily_points(vm, 5)]
    async with desk(tmp_path, facts(*vms, points=points)) as here:
        here.write(ALL + "retention.keep_last = 1\n")
        await here.book.look()
        assert here.book.plan is not None
        await here.book.apply(here.book.plan.id, "anna", override_guard=True)
        detail = await here.audited("anna")
        assert "1600 restore points of 400 VMs" in detail
        assert len(detail) < 1000


async def test_a_pipe_among_the_policies_is_told_and_holds_nothing_up(tmp_path: Path) -> None:
    async with desk(tmp_path) as found:
        os.mkfifo(found.directory / "pipe.toml")
        async with asyncio.timeout(5):
            await found.book.look()
        [problem] = found.book.problems
        assert (problem.file, problem.what) == ("pipe.toml", "cannot be read (it is no file)")
        assert found.book.accepted.policies
        (found.directory / "pipe.toml").unlink()
        await found.book.look()
        assert not found.book.problems


async def test_a_file_whose_name_is_no_unicode_is_told(tmp_path: Path) -> None:
    async with desk(tmp_path) as found:
        odd = found.directory / os.fsdecode(b"\xff.toml")
        odd.write_text(SOME)
        await found.book.look()
        assert [one.what for one in found.book.problems] == ["has a name that is not UTF-8"]


async def test_policies_that_the_state_could_not_take_are_taken_up_at_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(tmp_path) as found:
        more = ALL.replace('"4h"', '"2h"')
        found.write(more)
        with monkeypatch.context() as patch:

            def full(self: State, files: object, **more: object) -> None:
                raise NoSpace("the disk is full")

            patch.setattr(State, "accept_policies", full)
            with pytest.raises(NoSpace):
                await found.book.look()
        assert await found.book.look()
        assert dict(found.book.accepted.texts) == {"all.toml": more}
