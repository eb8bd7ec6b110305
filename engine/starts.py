"""Whether a VM was started since its last restore point without anybody having seen it stop before. Pure.

A host that fails without HA and starts its VMs again by itself leaves no event behind, and change tracking may have
lost then what it held in memory (KB 320557). What tells is `runtime.bootTime`, set when a VM is started from being off,
kept while it is suspended, and left out by old versions once the VM has moved; and of a VM that is off
`runtime.cleanPowerOff`, which is false where its process or its host died.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from engine.plain import show_time
from policies.facts import PowerState, Vm
from storage.repository import PointDetail

TOLERANCE = timedelta(minutes=1)
"""How far the clocks of hosts and of vCenter may be apart, and what a host tells after a move from what it told."""

POWER, BOOT_TIME, NOT_ORDERLY = "power", "boot_time", "off, and not in an orderly way"
"""Attributes of a restore point, and a value of the first."""

Told = tuple[datetime, bool]
"""When an event told that the VM was started (True) or switched off (False)."""


def kept_with_point(vm: Vm) -> dict[str, str]:
    """What a restore point remembers of how its VM ran."""
    boot = {} if vm.boot_time is None else {BOOT_TIME: show_time(vm.boot_time)}
    return {POWER: NOT_ORDERLY if _not_orderly(vm) else vm.power.value, **boot}


def unseen_stop(vm: Vm, latest: PointDetail | None, told: Sequence[Told]) -> str:
    """Why the VM's host may have failed since the last restore point, as a sentence; empty where nothing says so.

    `told` is what events said since then, in any order.
    """
    if latest is None:
        return ""
    before = latest.head.attributes
    was_off = before.get(POWER) in (PowerState.OFF.value, NOT_ORDERLY)
    if vm.power is PowerState.OFF:
        ran = before.get(POWER) != NOT_ORDERLY or any(started for _, started in told)
        if _not_orderly(vm) and ran:
            return "it is off and was not switched off in an orderly way: its host may have failed"
        return ""
    boot = vm.boot_time
    if boot is None or not _later(boot, before, latest.head.taken_at):
        return ""
    since = max((at for at, started in told if started and at < boot - TOLERANCE), default=None)
    if since is None:
        if was_off:
            return ""
        since = latest.head.taken_at
    if any(not started and since - TOLERANCE <= at <= boot + TOLERANCE for at, started in told):
        return ""
    return (
        f"it was started at {boot:%Y-%m-%d %H:%M:%S} UTC and nothing told that it had been switched off before: its "
        "host may have failed"
    )


def _not_orderly(vm: Vm) -> bool:
    return vm.power is PowerState.OFF and vm.clean_power_off is False


def _later(boot: datetime, before: Mapping[str, str], taken_at: datetime) -> bool:
    """Whether this start is another one than that of which the last restore point is."""
    try:
        return boot - datetime.fromisoformat(before[BOOT_TIME]) > TOLERANCE
    except (KeyError, ValueError, TypeError):
        return boot > taken_at
