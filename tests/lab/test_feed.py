"""Events by two ways: what the bus and vCenter tell happens once, and a tag is read when an event tells of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import nats
from pyVmomi import vim, vmodl

from engine.threads import settled
from policies.facts import EventType
from tests.lab.nats import nats_server
from tests.lab.test_engine_end_to_end import command, config_for
from tests.lab.vcenter import MIB, Lab
from tests.pipeline.running import engine_of

Start = Callable[..., Lab]

TRIGGERED = """
schema = 1
[policy.moved]
select.all = ["*"]
consistency = { want = "crash", fallback = "crash" }
[[policy.moved.trigger]]
on = ["vm.powered_off"]
"""


def tell_of_tag(lab: Lab, what: str, tag: str, name: str) -> None:
    """Post the event that vCenter posts when a tag is attached or detached."""
    told = {"Tag": tag, "Object": name, "User": lab.admin}
    event = vim.event.EventEx(
        key=0, chainId=0, createdTime=datetime.now(UTC), userName=lab.admin, severity="info",
        eventTypeId=f"com.vmware.cis.tagging.{what}",
        arguments=[vmodl.KeyAnyValue(key=key, value=value) for key, value in told.items()],
    )  # fmt: skip
    lab._act(lambda si: si.content.eventManager.PostEvent(event))


async def test_an_event_that_the_bus_tells_too_has_one_effect(fresh_lab: Start, tmp_path: Path) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=4 * MIB)
    [vm] = lab.vms()
    with nats_server(tmp_path / "nats") as server:
        more = f'[bus]\nservers = "{server.url}"\nsite = "lab"\n'
        config = config_for(lab, tmp_path / "engine", TRIGGERED, more=more)
        async with engine_of(config) as engine:
            await engine.until(lambda: engine.parts.bus is not None and engine.parts.world.complete, seconds=30)
            await engine.until(lambda: f"{lab.instance_uuid}/events" in engine.parts.sources.alive)
            lab.power_off(vm.name)
            [off] = [event for event in lab.event_log() if event.type == "VmPoweredOffEvent"]
            own = f"vc:{lab.instance_uuid}:{int(off.time.timestamp())}:{off.key}"
            await engine.until_journaled({own})
            client = await nats.connect(server.url)
            try:
                stream = client.jetstream()
                body = {
                    "Key": off.key,
                    "CreatedTime": off.time.isoformat(),
                    "Vm": {"Name": vm.name, "Vm": {"Type": "VirtualMachine", "Value": vm.moref}},
                }
                headers = {
                    "ce-specversion": "1.0",
                    "ce-source": f"https://{lab.host}:{lab.port}/sdk",
                    "ce-type": "com.vmware.event.router/event",
                    "ce-subject": "VmPoweredOffEvent",
                    "content-type": "application/json",
                }
                for id in ("first", "of another router"):
                    message = {**headers, "ce-id": id}
                    await stream.publish("backstay.v1.lab.event.veba", json.dumps(body).encode(), headers=message)
                elsewhere = {**headers, "ce-id": "third", "ce-source": "https://elsewhere.example.com/sdk"}
                await stream.publish("backstay.v1.lab.event.veba", json.dumps(body).encode(), headers=elsewhere)
                await engine.until(lambda: engine.points_of(vm.name) == 1, seconds=60)
                await stream.publish("backstay.v1.lab.cmd.hold", command("hold", vm.name, "h-1"))
                [vm_id] = engine.parts.world.named(vm.name)
                await engine.until(lambda: engine.parts.world.points[vm_id][0].holds, seconds=30)
                dead = await stream.stream_info("BACKSTAY_LAB_DEAD")
                assert dead.state.messages == 1
            finally:
                await client.close()
            assert [key for key in await engine.event_keys() if f":{off.key}" in key] == [own]
            assert engine.points_of(vm.name) == 1


async def test_a_tag_that_an_event_tells_of_is_read_at_once(fresh_lab: Start, tmp_path: Path) -> None:
    lab = fresh_lab(vms=1, content=False, disk_bytes=MIB)
    name = lab.vms()[0].name
    gold = 'schema = 1\n[policy.gold]\nselect.all = ["tag:backup=gold"]\n'
    async with engine_of(config_for(lab, tmp_path / "engine", gold)) as engine:
        world = engine.parts.world
        await engine.until(
            lambda: world.complete and f"{lab.instance_uuid}/events" in engine.parts.sources.alive, seconds=60
        )
        [vm] = world.named(name)
        lab.tag(name, "backup", "gold")
        tell_of_tag(lab, "attach", "gold", name)
        tell_of_tag(lab, "attach", "gold", "a datastore")
        await engine.until(lambda: world.vms[vm].tags == {"backup=gold"}, seconds=60)
        # What else changes of the VM brings no older tags back.
        lab.set_attribute(name, "Owner", "dba")
        await engine.until(lambda: world.vms[vm].attributes.get("Owner") == "dba", seconds=60)
        assert world.vms[vm].tags == {"backup=gold"}
        told = await settled(engine.parts.threads.state, engine.parts.state.events)
        assert [row[1] for row in told if row[1] == EventType.RETAGGED.value] == ["vm.retagged"]
        assert not engine.parts.dispatcher.missed
