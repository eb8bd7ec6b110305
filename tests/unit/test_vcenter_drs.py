"""Who may move the proxy: the cluster's level, and the override that a VM has there."""

from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim

from connectors.vsphere.drs import may_move

Behavior = vim.cluster.DrsConfigInfo.DrsBehavior


def cluster(
    *overrides: vim.cluster.DrsVmConfigInfo, enabled: bool = True, level: str = "fullyAutomated", heeded: bool = True
) -> Any:
    drs = vim.cluster.DrsConfigInfo(enabled=enabled, defaultVmBehavior=level, enableVmBehaviorOverrides=heeded)
    return vim.cluster.ConfigInfoEx(drsConfig=drs, drsVmConfig=list(overrides))


def override(vm: str = "vm-1", **said: Any) -> vim.cluster.DrsVmConfigInfo:
    return vim.cluster.DrsVmConfigInfo(key=vim.VirtualMachine(vm), **said)


@pytest.mark.parametrize(
    ("configuration", "moves"),
    [
        (cluster(), True),
        (cluster(enabled=False), False),
        (cluster(level="partiallyAutomated"), False),
        (cluster(override(behavior="manual")), False),
        (cluster(override(enabled=False)), False),
        (cluster(override(behavior="manual"), heeded=False), True),
        (cluster(override("vm-2", behavior="manual")), True),
        (cluster(override(behavior="fullyAutomated"), level="manual"), True),
        (cluster(override(enabled=True)), True),
        (None, False),
    ],
    ids=[
        "as the cluster", "DRS off", "recommends only", "by hand", "left alone", "overrides not heeded", "of another",
        "moved all the same", "nothing of its own", "not told",
    ],
)  # fmt: skip
def test_drs_moves_what_its_cluster_and_the_vm_s_override_let_it(configuration: Any, moves: bool) -> None:
    assert may_move(configuration, "vm-1") is moves
