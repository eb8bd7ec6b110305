"""An account that has the role for restores and nothing else does everything: vCenter refuses it no call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from connectors.privileges import of_role
from engine.commands import BackUpVm, Rehearse, RestoreDisk, RestoreInPlace, RestoreToVm
from tests.lab.test_engine_end_to_end import config_for
from tests.lab.test_storage_policies import give, make_policy, policy_of
from tests.lab.test_whole_vm import nvram_file
from tests.lab.vcenter import MIB, Lab
from tests.pipeline.running import Running, engine_of

FreshLab = Callable[..., Lab]
DISK_BYTES = 4 * MIB
POLICIES = """
schema = 1
[policy.all]
select.all = ["*"]
consistency = { want = "filesystem", fallback = "crash" }
on_migrate = "block"
[policy.hot]
priority = 1
select.all = ["name:web-01"]
transports = ["hotadd"]
[policy.off]
priority = 1
select.all = ["name:db-03"]
transports = ["https"]
[policy.exported]
priority = 1
select.all = ["name:web-04"]
transports = ["export"]
"""
SHOW = "[vcenter.lab.show]\nattributes = true\nevents = true\ntasks = true"


def role_alone(lab: Lab) -> list[str]:
    """Take from the lab's account all that is not in the role; what that was."""

    def known(si: Any) -> list[str]:
        return [str(one.privId) for one in si.content.authorizationManager.privilegeList]

    held = of_role("restore")
    denied = [one for one in lab._act(known) if one not in held and not one.startswith("System.")]
    lab.surroundings(user=lab.user, denied=denied)
    return denied


async def done(engine: Running, task: Any) -> dict[str, Any]:
    report = await engine.finished(await engine.control.submit(task, "test"))
    assert report["state"] == "done", report
    return report


async def test_with_the_role_for_restores_alone_every_way_of_backing_up_and_of_restoring_works(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    lab = fresh_lab(vms=4, disk_bytes=DISK_BYTES, content=False)

    policies: list[str] = []

    def people() -> None:
        lab.tag("app-02", "tier", "gold")
        lab.set_attribute("app-02", "owner", "ledger")
        lab.reconfigure("app-02", annotation="the books")
        policies.append(make_policy(lab, "Gold"))
        policies.append(make_policy(lab, "Silver"))
        give(lab, "app-02", policies[0], {})
        lab.power_off("db-03")

    await asyncio.to_thread(people)
    nvram_file(lab, "app-02").write_bytes(b"boot order")
    assert "VirtualMachine.Provisioning.Clone" in role_alone(lab)
    config = config_for(lab, tmp_path / "engine", POLICIES, proxy="app-02", order='hotadd", "nbd', more=SHOW)
    async with engine_of(config) as engine:
        await engine.until(lambda: all(engine.parts.world.named(vm.name) for vm in lab.vms()), seconds=60)
        ways = {name: await done(engine, BackUpVm(name)) for name in ("web-01", "app-02", "db-03", "web-04")}
        point = ways["app-02"]["id"]
        made = await done(engine, RestoreToVm(point, "app-02-new", storage_policies={"Gold": "Silver"}))
        assert made["warnings"] == []
        assert await asyncio.to_thread(policy_of, lab, "app-02-new") == policies[1]
        imported = await done(engine, RestoreToVm(point, "app-02-imported", transports=("import",)))
        assert [imported["warnings"], imported["disks"][0]["transport"]] == [[], "import"]
        await done(engine, RestoreInPlace(ways["web-01"]["id"], yes=True, power_off=True))
        assert lab.vm("web-01").snapshots == ()
        await done(engine, RestoreDisk(point, "app-02-new", datastore="fast-1"))
        over = lab.vm("app-02-new").disks[0].label
        await done(engine, RestoreDisk(point, "app-02-new", over=over, yes=True, safety=False, discard=True))
        await done(engine, Rehearse(ways["web-01"]["id"], heartbeat=True, heartbeat_seconds=0.2))
    used = {name: [disk["transport"] for disk in way["disks"]] for name, way in ways.items()}
    assert used == {"web-01": ["hotadd"], "app-02": ["nbd"], "db-03": ["https", "https"], "web-04": ["export"]}
    refused = sorted(name.removeprefix("NoPermission ") for name in lab.calls() if name.startswith("NoPermission "))
    assert refused == []
