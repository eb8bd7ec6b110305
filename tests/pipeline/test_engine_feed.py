"""The same event by the bus and by vCenter: one effect, whichever comes first, and nothing is hidden by a message."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from connectors.vcenter_messages import echo_key
from engine.inbox import Rulings, Told
from engine.overview import status
from engine.threads import settled
from policies.decision import BackUp
from policies.facts import Event, EventType, Vm
from tests.pipeline.hypervisor_in_memory import HypervisorInMemory
from tests.pipeline.running import Running, configure, running

TRIGGERED = """
schema = 1
[policy.changed]
select.all = ["*"]
consistency = { want = "crash", fallback = "crash" }
[[policy.changed.trigger]]
on = ["vm.reconfigured"]
"""


@pytest.fixture
def hypervisor(tmp_path: Path) -> HypervisorInMemory:
    return HypervisorInMemory(tmp_path)


def own(vm: Vm, number: int, **detail: str) -> Event:
    """As vCenter tells it."""
    return Event(
        key=f"vc:vc-1:1795348740:{number}", type=EventType.RECONFIGURED, at=datetime.now(UTC), source="vcenter:vc-1",
        vm_name=vm.name, address=vm.address, detail={"class": "VmReconfiguredEvent", **detail},
    )  # fmt: skip


def by_bus(event: Event, *, name: str = "VmReconfiguredEvent") -> Event:
    """As a message tells it."""
    assert event.address is not None
    key = echo_key(event.key, name, event.address.moref)
    detail = {"moref": event.address.moref, "vcenter": "vc-1", "vim_event": name}
    return Event(key=key, type=event.type, at=event.at, source="nats", vm_name=event.vm_name, address=event.address,
                 detail=detail)  # fmt: skip


async def backups(engine: Running, event: Event) -> int:
    rulings: Rulings = await engine.parts.inbox.put(Told(event))
    return sum(isinstance(ruling.decision, BackUp) for ruling in rulings)


async def decided(engine: Running, key: str) -> list[str]:
    """What was decided about an event, by kind."""
    await engine.until_journaled({key})
    [vm] = engine.parts.world.named("web")
    rows = await settled(engine.parts.threads.state, engine.parts.state.decisions_of, vm)
    return [row[1] for row in rows if row[5] == key]


async def test_whichever_comes_first_has_the_effect(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    vm = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path, TRIGGERED)) as engine:
        await engine.until(lambda: engine.parts.world.complete)
        first = own(vm, 1)
        assert await backups(engine, by_bus(first)) == 1
        assert await backups(engine, by_bus(first)) == 0
        hypervisor.events_out.put_nowait(first)
        assert await decided(engine, first.key) == ["skip"]
        second = own(vm, 2)
        hypervisor.events_out.put_nowait(second)
        assert "backup" in await decided(engine, second.key)
        assert await backups(engine, by_bus(second)) == 0
        assert by_bus(second).key not in await engine.event_keys()


async def test_a_message_hides_neither_what_it_does_not_say_nor_what_changes_the_trust_in_tracking(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    vm = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path, TRIGGERED)) as engine:
        await engine.until(lambda: engine.parts.world.complete)
        guessed, extended = own(vm, 1), own(vm, 2, disks="Hard disk 1 extended")
        await backups(engine, by_bus(guessed, name="VmPoweredOffEvent"))
        hypervisor.events_out.put_nowait(guessed)
        assert "backup" in await decided(engine, guessed.key)
        await backups(engine, by_bus(extended))
        hypervisor.events_out.put_nowait(extended)
        assert await decided(engine, extended.key) == ["distrust"]


async def test_status_tells_by_kind_what_no_event_told(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    vm = hypervisor.add("web")
    async with running(tmp_path, hypervisor, configure(tmp_path, TRIGGERED)) as engine:
        await engine.until(lambda: engine.parts.world.complete)
        hypervisor.set(vm, tags=frozenset({"backup=gold"}))
        await engine.until(lambda: engine.parts.dispatcher.missed)
        assert (await status(engine.parts))["missed_events"] == {"vm.retagged": 1}
