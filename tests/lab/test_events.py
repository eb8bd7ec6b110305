"""Following a vCenter's events: every one once, along one chain of cursors, whatever goes away in between."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import timedelta

from connectors.errors import Unreachable
from connectors.hypervisor import Cursor, EventBatch
from connectors.vsphere.hypervisor import VCenter
from policies.facts import Event, EventType
from tests.lab.connect import connected, until
from tests.lab.vcenter import Lab

Start = Callable[..., Lab]

FOLLOWED = frozenset(
    (
        "VmPoweredOnEvent", "VmPoweredOffEvent", "VmSuspendedEvent", "VmMigratedEvent", "DrsVmMigratedEvent",
        "VmRelocatedEvent", "VmCreatedEvent", "VmClonedEvent", "VmRemovedEvent", "VmReconfiguredEvent",
        "VmRenamedEvent", "VmRegisteredEvent", "DrsVmPoweredOnEvent",
    )
)  # fmt: skip


class Journal:
    """What an engine would keep: the events that it handled, and the last cursor."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.gaps: list[str] = []
        self.cursor: Cursor | None = None

    def keep(self, batch: EventBatch) -> None:
        self.events.extend(batch.events)
        self.cursor = batch.cursor
        if batch.gap:
            self.gaps.append(batch.gap)

    def keys(self) -> list[int]:
        return [int(event.detail["vcenter_key"]) for event in self.events]

    async def follow(self, vcenter: VCenter, holds: Callable[["Journal"], bool], *, seconds: float = 20) -> None:
        async with aclosing(vcenter.events(self.cursor)) as batches:
            async with asyncio.timeout(seconds):
                async for batch in batches:
                    self.keep(batch)
                    if holds(self):
                        return

    async def started(self, vcenter: VCenter) -> None:
        """Fix the cursor at the present."""
        await self.follow(vcenter, lambda journal: journal.cursor is not None)


def posted(lab: Lab, after: int = 0) -> list[int]:
    """The keys of the events that Backstay follows, by the lab's own log."""
    return [e.key for e in lab.event_log() if e.type in FOLLOWED and e.key > after]


def newest(lab: Lab) -> int:
    return max((e.key for e in lab.event_log()), default=0)


@asynccontextmanager
async def patient(lab: Lab) -> AsyncIterator[VCenter]:
    """Connected, as soon as vCenter answers."""
    async with AsyncExitStack() as stack:
        async with asyncio.timeout(20):
            while True:
                try:
                    vcenter = await stack.enter_async_context(connected(lab))
                    break
                except Unreachable:
                    await asyncio.sleep(0.05)
        yield vcenter


async def test_what_people_and_drs_do_arrives_as_what_it_is(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=3, content=False)
    journal = Journal()
    async with connected(lab) as vcenter:
        await journal.started(vcenter)
        start = newest(lab)
        before = lab.vm("web-01").host
        manual = lab.migrate("web-01")
        drs = lab.drs_move("web-01")
        lab.relocate("web-01", "bulk-1")
        lab.power_off("web-01")
        lab.power_on("web-01")
        lab.suspend("app-02")
        lab.create_vm("fresh-1")
        lab.clone_vm("fresh-1", "copy-1")
        lab.rename("copy-1", "copy-2")
        lab.reconfigure("copy-2", annotation="x")
        path = lab.unregister("copy-2")
        lab.register(path)
        lab.remove_vm("fresh-1")
        await journal.follow(vcenter, lambda j: len(j.events) >= len(posted(lab, start)))
    assert journal.keys() == posted(lab, start)
    of = {event.type: event for event in journal.events}
    assert set(of) == {
        EventType.MIGRATED, EventType.RELOCATED, EventType.POWERED_OFF, EventType.POWERED_ON, EventType.SUSPENDED,
        EventType.CREATED, EventType.CLONED, EventType.RENAMED, EventType.RECONFIGURED, EventType.REMOVED,
        EventType.REGISTERED,
    }  # fmt: skip
    moves = [e for e in journal.events if e.type is EventType.MIGRATED]
    assert [(e.cause, e.from_host, e.to_host) for e in moves] == [("manual", before, manual), ("drs", manual, drs)]
    assert of[EventType.RELOCATED].detail["to_datastore"] == "bulk-1"
    assert of[EventType.CLONED].detail["source_vm"] == "fresh-1"
    assert of[EventType.RENAMED].detail["new_name"] == "copy-2"
    assert all(e.address is not None and e.vm_name and e.at.tzinfo is not None for e in journal.events)
    assert moves[0].user == lab.admin


async def test_a_first_start_follows_from_now_on_and_says_so(lab: Lab) -> None:
    lab.post_event("VmPoweredOnEvent", "web-01", count=5)
    journal = Journal()
    async with connected(lab) as vcenter:
        await journal.started(vcenter)
        start = newest(lab)
        lab.post_event("VmPoweredOnEvent", "web-01", count=2)
        await journal.follow(vcenter, lambda j: len(j.events) >= 2)
    assert journal.keys() == posted(lab, start)
    assert "from now on" in journal.gaps[0]
    assert len(journal.gaps) == 1


async def test_a_quiet_vcenter_still_gives_signs_of_life(lab: Lab) -> None:
    async with connected(lab) as vcenter, aclosing(vcenter.events(None)) as batches:
        async with asyncio.timeout(5):
            told = [await anext(batches) for _ in range(4)]
    assert all(batch.events == () for batch in told)
    assert [bool(batch.gap) for batch in told] == [True, False, False, False]


async def test_thousands_of_events_across_restarts_and_lost_sessions_arrive_once_each(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=3, content=False)
    journal = Journal()
    async with connected(lab) as vcenter:
        await journal.started(vcenter)
    start = newest(lab)
    kinds = ("VmPoweredOnEvent", "VmPoweredOffEvent", "VmStartingEvent", "VmSuspendedEvent", "VmRegisteredEvent")

    def trouble() -> None:
        for turn in range(12):
            for kind in kinds:
                lab.post_event(kind, "web-01", count=40)
            if turn in (3, 7):
                lab.kill_sessions()
            if turn == 9:
                lab.restart(0.3)

    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.to_thread(trouble))
        for share in (300, 900, 1500):  # each follower is another life of the engine
            async with patient(lab) as vcenter:
                await journal.follow(vcenter, lambda j, share=share: len(j.events) >= share, seconds=60)  # type: ignore[misc]
    async with connected(lab) as vcenter:
        expected = len(posted(lab, start))
        await journal.follow(vcenter, lambda j: len(j.events) >= expected, seconds=60)
        await journal.follow(vcenter, lambda j: True)
    assert len(posted(lab, start)) == 12 * 4 * 40
    assert journal.keys() == posted(lab, start)
    assert len({event.key for event in journal.events}) == len(journal.events)
    assert len(journal.gaps) == 1


async def test_events_of_while_nobody_followed_are_told_afterwards(lab: Lab) -> None:
    journal = Journal()
    async with connected(lab) as vcenter:
        await journal.started(vcenter)
    start = newest(lab)
    lab.post_event("VmPoweredOffEvent", "web-01", count=1200)
    async with connected(lab) as vcenter:
        await journal.follow(vcenter, lambda j: len(j.events) >= 1200)
    assert journal.keys() == posted(lab, start)


async def test_an_event_that_a_host_reports_late_is_told_once(lab: Lab) -> None:
    journal = Journal()
    async with connected(lab) as vcenter:
        await journal.started(vcenter)
        lab.post_event("VmPoweredOnEvent", "web-01")
        await journal.follow(vcenter, lambda j: len(j.events) == 1)
    lab.post_event("VmPoweredOffEvent", "web-01", age_seconds=120)
    async with connected(lab) as vcenter:
        await journal.follow(vcenter, lambda j: len(j.events) == 2)
    assert [e.type for e in journal.events] == [EventType.POWERED_ON, EventType.POWERED_OFF]
    assert journal.events[1].at < journal.events[0].at - timedelta(seconds=60)


async def test_keys_that_go_backwards_between_two_lives_are_a_gap_and_lose_no_new_event(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, content=False)
    journal = Journal()
    async with connected(lab) as vcenter:
        await journal.started(vcenter)
        lab.post_event("VmPoweredOnEvent", "web-01", count=50)
        await journal.follow(vcenter, lambda j: len(j.events) == 50)
    lab.roll_back_events(newest(lab) - 40)
    await asyncio.sleep(1.1)  # keys are told apart by the second of their event
    lab.post_event("VmPoweredOffEvent", "web-01", count=5)
    async with connected(lab) as vcenter:
        await journal.follow(vcenter, lambda j: len(j.events) >= 55)
        await journal.follow(vcenter, lambda j: True)
    assert any("went backwards" in gap for gap in journal.gaps)
    assert [e.type for e in journal.events] == [EventType.POWERED_ON] * 50 + [EventType.POWERED_OFF] * 5
    assert len({e.key for e in journal.events}) == 55


async def test_keys_that_go_backwards_while_following_are_a_gap_and_lose_no_new_event(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, content=False)
    journal = Journal()
    async with connected(lab) as vcenter:
        await journal.started(vcenter)
        lab.post_event("VmPoweredOnEvent", "web-01", count=50)
        await journal.follow(vcenter, lambda j: len(j.events) == 50)

        def set_back() -> None:
            lab.roll_back_events(newest(lab) - 40)

        async with asyncio.TaskGroup() as group:
            group.create_task(
                journal.follow(vcenter, lambda j: any("went backwards" in gap for gap in j.gaps), seconds=30)
            )
            await asyncio.sleep(0.5)
            await asyncio.to_thread(set_back)
        await asyncio.sleep(1.1)
        lab.post_event("VmPoweredOffEvent", "web-01", count=5)
        await journal.follow(vcenter, lambda j: len(j.events) >= 55)
    assert [e.type for e in journal.events] == [EventType.POWERED_ON] * 50 + [EventType.POWERED_OFF] * 5


async def test_keys_that_overflowed_are_a_gap(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, content=False)
    journal = Journal()
    async with connected(lab) as vcenter:
        await journal.started(vcenter)
        lab.next_event_key(-2147483000)
        lab.post_event("VmPoweredOffEvent", "web-01", count=3)
        await journal.follow(vcenter, lambda j: any("overflowed" in gap for gap in j.gaps), seconds=30)


async def test_a_cursor_older_than_vcenters_memory_is_a_gap(lab: Lab) -> None:
    journal = Journal()
    async with connected(lab) as vcenter:
        await journal.started(vcenter)
        assert journal.cursor is not None
        journal.cursor = Cursor(vcenter.vcenter, journal.cursor.at - timedelta(days=40), 1)
        await journal.follow(vcenter, lambda j: any("does not keep events" in gap for gap in j.gaps))


async def test_a_cursor_of_another_vcenter_is_a_gap(lab: Lab) -> None:
    journal = Journal()
    async with connected(lab) as vcenter:
        await journal.started(vcenter)
        assert journal.cursor is not None
        journal.cursor = Cursor("another", journal.cursor.at, 1)
        await journal.follow(vcenter, lambda j: any("another vCenter" in gap for gap in j.gaps))


async def test_leaving_no_collector_behind(lab: Lab) -> None:
    async with connected(lab) as vcenter:
        journal = Journal()
        await journal.started(vcenter)
        made, ended = (lab.calls().get(m, 0) for m in ("CreateCollectorForEvents", "DestroyCollector"))
        await journal.follow(vcenter, lambda j: bool(j.cursor))
        await until(
            lambda: lab.calls().get("DestroyCollector", 0) - ended == lab.calls()["CreateCollectorForEvents"] - made
        )
