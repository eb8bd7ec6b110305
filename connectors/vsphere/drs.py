"""Whether DRS may move a VM by itself: what its cluster says, and the override that it has there."""

from __future__ import annotations

from typing import Any

from pyVmomi import vim

from connectors.errors import ConnectorError
from connectors.vsphere.session import Session

AUTOMATIC = "fullyAutomated"
"""The only level at which DRS moves running VMs without a person; the others recommend."""


async def who_moves(session: Session, host: Any, moref: str) -> str:
    """The cluster whose DRS may move this VM away from its host; empty where none may, or that is not told."""
    try:
        parent = (await session.properties(host, ["parent"])).get("parent")
        if not isinstance(parent, vim.ClusterComputeResource):
            return ""
        told = await session.properties(parent, ["name", "configurationEx"])
    except ConnectorError:
        return ""
    return str(told.get("name") or parent._moId) if may_move(told.get("configurationEx"), moref) else ""


def may_move(configuration: Any, moref: str) -> bool:
    """What a cluster's configuration (vim.cluster.ConfigInfoEx) says of one VM. Pure."""
    drs = getattr(configuration, "drsConfig", None)
    if drs is None or not drs.enabled:
        return False
    level = drs.defaultVmBehavior
    if drs.enableVmBehaviorOverrides is not False:
        for one in configuration.drsVmConfig or ():
            if one.key._moId == moref:
                if one.enabled is False:
                    return False
                level = one.behavior or level
    return str(level) == AUTOMATIC
