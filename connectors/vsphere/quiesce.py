"""How consistent a snapshot can be made, in which order it is tried, and what was achieved in the end. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pyVmomi import vim

from connectors.vsphere.naming import TreeNode
from policies.facts import CONSISTENCY_ORDER, Consistency, PowerState, Vm

VSS_COPY_BACKUP = 5
"""Microsoft's VSS_BT_COPY: databases keep their logs and their own backup chain."""


@dataclass(frozen=True, slots=True)
class Step:
    """One way to make the snapshot: the spec to pass, and the best that it can achieve."""

    best: Consistency
    spec: Any


@dataclass(frozen=True, slots=True)
class Ladder:
    """The ways to try in order, and why the first one is not more. No steps: what was asked for is out of reach."""

    steps: tuple[Step, ...]
    reason: str = ""


def ladder(vm: Vm, want: Consistency, fallback: Consistency, *, timeout: timedelta) -> Ladder:
    """The ways to a snapshot of at most `want` and at least `fallback`; what is out of the VM's reach is not tried."""
    if vm.power is PowerState.OFF:
        return Ladder((Step(want, None),), vm.reach_why)
    reachable = vm.reach or Consistency.APPLICATION
    wanted = [level for level in CONSISTENCY_ORDER if _rank(fallback) <= _rank(level) <= _rank(want)]
    steps = tuple(Step(level, _spec(level, timeout)) for level in reversed(wanted) if _rank(level) <= _rank(reachable))
    return Ladder(steps, vm.reach_why if _rank(want) > _rank(reachable) else "")


def achieved(step: Step, vm: Vm, node: TreeNode) -> tuple[Consistency, str]:
    """What the snapshot that vSphere made really is, and why it is less than the step could give, if it is.

    `vm` is as it was while the snapshot was made.
    """
    if vm.power is PowerState.OFF or step.best is Consistency.CRASH:
        return step.best, ""
    if step.spec is None:
        return Consistency.CRASH, "it may have been powered on before the snapshot was made"
    if not node.quiesced:
        return Consistency.CRASH, "vSphere did not quiesce the guest, though it was asked to"
    if step.best is Consistency.APPLICATION and not node.manifest:
        return Consistency.FILESYSTEM, "the guest's VSS writers left no manifest"
    return step.best, ""


def at_least(level: Consistency, floor: Consistency) -> bool:
    """True when the level is the floor or better."""
    return _rank(level) >= _rank(floor)


def _spec(level: Consistency, timeout: timedelta) -> Any:
    minutes = round(timeout.total_seconds() / 60)
    match level:
        case Consistency.CRASH:
            return None
        case Consistency.FILESYSTEM:
            return vim.vm.GuestQuiesceSpec(timeout=minutes)
        case Consistency.APPLICATION:
            return vim.vm.WindowsQuiesceSpec(
                timeout=minutes,
                vssBackupType=VSS_COPY_BACKUP,
                vssBootableSystemState=True,
                vssPartialFileSupport=False,
                vssBackupContext="ctx_auto",
            )


def _rank(level: Consistency) -> int:
    return CONSISTENCY_ORDER.index(level)
