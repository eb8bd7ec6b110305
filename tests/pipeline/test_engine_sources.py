"""A message is acknowledged when its effect is written, and not before; what is none of ours goes aside."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from connectors.errors import Unreachable
from tests.pipeline.hypervisor_in_memory import HypervisorInMemory
from tests.pipeline.running import Running, configure, running
from tests.pipeline.test_engine_first_contact import SlowToShow


@dataclass
class Message:
    """A message that notes what the journal held when it was acknowledged."""

    engine: Running
    data: bytes
    key: str
    subject: str = "backstay.v1.lab.cmd.hold"
    journaled: list[bool] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    answer: Exception | None = None

    async def done(self) -> None:
        self.journaled.append(self.key in await self.engine.event_keys())
        if self.answer is not None:
            raise self.answer

    async def refuse(self, reason: str) -> None:
        self.refused.append(reason)


class Deliveries:
    """A bus that delivers some messages and then nothing more."""

    def __init__(self, *messages: Message) -> None:
        self._messages = messages
        self.delivered = asyncio.Event()

    async def messages(self) -> AsyncIterator[Message]:
        for message in self._messages:
            yield message
        self.delivered.set()
        await asyncio.Event().wait()

    async def publish(self, subject: str, data: bytes, *, key: str) -> None:
        raise AssertionError("nothing is published here")

    async def aclose(self) -> None:
        return


def hold(vm: str, id: str = "1", command: str = "hold") -> bytes:
    said = {"vm": {"name": vm}, "reason": "a test asks"}
    kind = f"io.backstay.command.{command}.v1"
    return json.dumps({"specversion": "1.0", "id": id, "source": "/tests", "type": kind, "data": said}).encode()


@pytest.fixture
def hypervisor(tmp_path: Path) -> HypervisorInMemory:
    (tmp_path / "disks").mkdir()
    return HypervisorInMemory(tmp_path / "disks")


async def read(engine: Running, *messages: Message) -> None:
    """Let the engine read these messages."""
    bus = Deliveries(*messages)
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(engine.parts.sources.read_bus(bus))
        await bus.delivered.wait()
        reading.cancel()


async def test_a_message_is_acknowledged_after_the_journal_write(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        message = Message(engine, hold("web"), "nats-id:1")
        await read(engine, message)
        assert message.journaled == [True]


async def test_a_request_that_comes_before_the_inventory_is_known_is_not_taken_for_one_about_a_vm_that_left(
    tmp_path: Path,
) -> None:
    hypervisor = SlowToShow(tmp_path)
    hypervisor.released.set()
    hypervisor.add("web")
    config = configure(tmp_path)
    async with running(tmp_path, hypervisor, config) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
    hypervisor.released.clear()
    async with running(tmp_path, hypervisor, config) as engine:
        data, subject = hold("web", command="backup"), "backstay.v1.lab.cmd.backup"
        early = Message(engine, data, "nats-id:1", subject)
        await read(engine, early)
        assert (early.journaled, early.refused) == ([], [])
        hypervisor.released.set()
        await engine.until(lambda: engine.parts.world.complete)
        again = Message(engine, data, "nats-id:1", subject)
        await read(engine, again)
        assert again.journaled == [True]
        await engine.until(lambda: engine.points_of("web") == 2)


async def test_a_hold_needs_no_vcenter(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        hypervisor.fail_vm = Unreachable("vCenter is away")
        message = Message(engine, hold("web"), "nats-id:1")
        await read(engine, message)
        assert message.journaled == [True]
        [vm] = engine.parts.world.named("web")
        await engine.until(lambda: engine.parts.world.points[vm][0].holds)


async def test_an_acknowledgement_that_is_lost_leads_to_one_effect(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        first = Message(engine, hold("web"), "nats-id:1", answer=Unreachable("no answer"))
        again = Message(engine, hold("web"), "nats-id:1")
        await read(engine, first, again)
        assert again.journaled == [True]
        assert (await engine.event_keys()).count("nats-id:1") == 1
        [vm] = engine.parts.world.named("web")
        await engine.until(lambda: engine.parts.world.points[vm][0].holds)
        assert len(engine.parts.world.points[vm][0].holds) == 1


@pytest.mark.parametrize(
    ("data", "subject"),
    [
        (b"this is not JSON", "backstay.v1.lab.cmd.hold"),
        (hold("web"), "backstay.v1.lab.cmd.expire"),
        (hold("web").replace(b"hold.v1", b"expire.v1"), "backstay.v1.lab.cmd.hold"),
    ],
)
async def test_a_message_that_is_none_of_ours_goes_aside_with_the_reason_and_changes_nothing(
    tmp_path: Path, hypervisor: HypervisorInMemory, data: bytes, subject: str
) -> None:
    hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        before = await engine.event_keys()
        message = Message(engine, data, "nats-id:1", subject)
        await read(engine, message)
        assert len(message.refused) == 1
        assert message.journaled == []
        assert await engine.event_keys() == before
        assert engine.points_of("web") == 1
