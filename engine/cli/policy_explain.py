"""backstay policy explain VM"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.cli.options import Config as ConfigFile
from engine.cli.options import Json, Repo
from engine.cli.output import printable, say, show, show_json
from engine.cli.reach import running, utc_now
from engine.config import Config, load
from engine.failures import BadInput, NotReachable
from engine.service import connect
from policies.explanation import explain
from policies.facts import Facts, Vm
from policies.loading import load as load_policies


def policy_explain(vm: str, /, *, repo: Repo = None, config: ConfigFile = None, json: Json = False) -> None:
    """Which policies select a VM, what they decide now and why, and what keeps each restore point.

    Where no engine runs, the VM is looked up in vCenter and the policy files are read as they are now; history and
    restore points are then left out.

    Parameters
    ----------
    vm
        Name or id.
    """
    said = _ask(vm, repo, config)
    if json:
        show_json({key: value for key, value in said.items() if key != "text"})
        return
    for line in str(said["text"]).splitlines():
        show(printable(line))
    if said.get("decisions"):
        show("\nlately decided:")
    for one in said.get("decisions", ()):
        where = f"{one['policy']} {one['rule']}".strip()
        show(printable(f"  {str(one['at'])[:19].replace('T', ' ')}  {one['kind']}  {where}: {one['reason']}"))


def _ask(vm: str, repo: str | None, config: Path | None) -> Mapping[str, Any]:
    try:
        return dict(running(repo, config).get("/v1/policies/explain", {"vm": vm}))
    except NotReachable:
        if repo is not None:
            raise
    loaded = load(config)
    if not loaded.vcenter:
        raise NotReachable("no engine runs here and no vCenter is configured", hint="start it with: backstay run")
    say("No engine runs here: history and restore points are left out.")
    return asyncio.run(_look_up(vm, loaded))


async def _look_up(name: str, config: Config) -> Mapping[str, Any]:
    policies = load_policies(config.policies)
    vms: list[Vm] = []
    for key, vcenter in config.vcenter.items():
        hypervisor = await connect(key, vcenter, config)
        try:
            vms += await hypervisor.inventory()
        finally:
            await hypervisor.aclose()
    found = [vm for vm in vms if name in (vm.name, vm.id, vm.address.moref, vm.instance_uuid)]
    if len(found) != 1:
        count = "no VM is" if not found else f"{len(found)} VMs are"
        raise BadInput(f"{count} called {name}", hint="name one by its moRef" if found else "see: backstay look")
    said = explain(policies, found[0], Facts(utc_now(), {vm.id: vm for vm in vms}))
    return {**said.as_json(), "text": said.render()}
