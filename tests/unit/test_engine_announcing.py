"""Runs are told to the bus in order and once, whenever it is there, and never wait for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from connectors.errors import Unreachable
from connectors.messages import Subjects
from engine import announcing, sources
from engine.announcing import Announcer
from engine.attempts import Attempt
from engine.jobs import Abandoned, Done, Failed, Job, JobId, JobKind, RunId, mint, minted_at
from engine.ports import BusMessage
from policies.facts import Address, Consistency, PointId, Vm, VmId

NOW = datetime(2026, 11, 22, 12, 30, 45, tzinfo=UTC)
VM = VmId("vm-1")
JOB = Job(
    id=JobId("job-1"), key="key-1", kind=JobKind.BACKUP, vm=VM, policy="gold", rule="rpo", reason="because",
    created_at=NOW, not_before=NOW, attempts=1, run=RunId("20261122T123045c0ffee01"),
)  # fmt: skip
DONE = Done(PointId("p-1"), VM, NOW, Consistency.CRASH, ())


class Shelf:
    """A bus that stores each key once, and is away for as many calls as it is told to."""

    def __init__(self, away: int = 0) -> None:
        self.away = away
        self.stored: dict[str, tuple[str, bytes]] = {}
        self.changed = asyncio.Event()

    def messages(self) -> AsyncIterator[BusMessage]:
        raise NotImplementedError

    async def publish(self, subject: str, data: bytes, *, key: str) -> None:
        if self.away:
            self.away -= 1
            raise Unreachable("nobody is there")
        self.stored.setdefault(key, (subject, data))
        self.changed.set()

    async def aclose(self) -> None: ...

    async def holds(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.stored) < count:
                self.changed.clear()
                await self.changed.wait()


def announcer() -> Announcer:
    return Announcer(Subjects("lab"), lambda: NOW, lambda vm: "web-1")


def attempt() -> Attempt:
    return Attempt(JOB, Vm(VM, Address("vc", "vm-7"), "web-1"), RunId("r"))


async def told(telling: Announcer, bus: Shelf, count: int) -> list[tuple[str, dict[str, object]]]:
    async with asyncio.TaskGroup() as group:
        loop = group.create_task(telling.run(bus))
        await bus.holds(count)
        loop.cancel()
    return [(subject, json.loads(data)["data"]) for subject, data in bus.stored.values()]


async def test_a_run_tells_that_it_started_and_what_it_made() -> None:
    telling = announcer()
    telling.began(attempt())
    telling.ended(JOB, DONE)
    [(first, started), (second, done)] = await told(telling, Shelf(), 2)
    assert first == "backstay.v1.lab.run.20261122t123045c0ffee01.started"
    assert second == "backstay.v1.lab.run.20261122t123045c0ffee01.done"
    assert (started["vm"], started["run"], started["policy"]) == ("web-1", JOB.run, "gold")
    assert (done["point"], done["consistency"], done["partial"]) == ("p-1", "crash", False)


async def test_a_failed_run_tells_why_and_when_it_is_tried_again() -> None:
    telling = announcer()
    telling.ended(JOB, Failed("a cable is loose", "retry", 6, retry_at=NOW))
    telling.ended(replace(JOB, run=RunId("r2")), Failed("a cable is gone", "fail", 6))
    [(_, first), (_, second)] = await told(telling, Shelf(), 2)
    assert (first["error"], first["retry_at"]) == ("a cable is loose", "2026-11-22T12:30:45Z")
    assert second["retry_at"] == ""


async def test_what_is_no_run_is_not_told() -> None:
    telling = announcer()
    telling.ended(JOB, Abandoned("not due any more"))
    telling.ended(replace(JOB, kind=JobKind.HOLD), DONE)
    telling.ended(replace(JOB, run=None), DONE)
    assert not telling.waiting


async def test_a_bus_that_is_away_gets_everything_later_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FIRST_PAUSE", 0.0)
    telling = announcer()
    for number in range(3):
        telling.ended(replace(JOB, run=RunId(f"r{number}")), DONE)
    bus = Shelf(away=4)
    pauses = [sources.Patience(seconds=0.0)]
    monkeypatch.setattr(announcing, "Patience", pauses.pop)
    subjects = [subject for subject, _ in await told(telling, bus, 3)]
    assert subjects == [f"backstay.v1.lab.run.r{number}.done" for number in range(3)]


def test_what_waits_is_bounded_and_the_oldest_go_first() -> None:
    telling = announcer()
    for number in range(announcing.MOST_WAITING + 5):
        telling.ended(replace(JOB, run=RunId(f"r{number}")), DONE)
    assert len(telling.waiting) == announcing.MOST_WAITING
    assert telling.waiting[0].key == "r5.done"


def test_the_id_of_a_run_tells_when_it_was_made() -> None:
    run = mint("", lambda: NOW)()
    assert minted_at(run) == NOW
    assert minted_at("run-1") is None
