"""Values for tests of policies: VMs, events, restore points and policies from a few words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from policies.facts import (
    Address,
    Consistency,
    Disk,
    Event,
    EventType,
    Facts,
    PointId,
    RestorePoint,
    Vm,
    VmHistory,
    VmId,
)
from policies.loading import load_texts
from policies.policy import Policy
from policies.policyset import PolicySet

NOW = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)
"""A Sunday."""


def a_vm(name: str = "web-3", **more: Any) -> Vm:
    return Vm(id=VmId(f"id-{name}"), address=Address("vc", f"vm-{name}"), name=name, **more)


def a_disk(key: int, gib: int = 10, label: str = "", **more: Any) -> Disk:
    """Hard disk 1 has the key 2000."""
    named = {"label": label or f"Hard disk {key - 1999}", "uuid": f"uuid-{key}", "datastore": "ssd-1", **more}
    return Disk(key=key, capacity_bytes=gib * 2**30, file_name=f"[ssd-1] {key}.vmdk", mode="persistent", **named)


def an_event(kind: EventType, vm: Vm | None = None, *, key: str = "k1", at: datetime = NOW, **more: Any) -> Event:
    return Event(key=key, type=kind, at=at, source="vcenter", vm=vm.id if vm else None, **more)


def a_point(
    vm: Vm,
    taken_at: datetime,
    consistency: Consistency = Consistency.APPLICATION,
    **more: Any,
) -> RestorePoint:
    point = PointId(f"{taken_at:%Y%m%dT%H%M%S}-{vm.name}")
    return RestorePoint(id=point, vm=vm.id, vm_name=vm.name, taken_at=taken_at, consistency=consistency, **more)


def daily_points(vm: Vm, days: int, newest: datetime = NOW, **more: Any) -> tuple[RestorePoint, ...]:
    """One point a day, newest last."""
    return tuple(a_point(vm, newest - timedelta(days=age), **more) for age in range(days - 1, -1, -1))


def facts(
    *vms: Vm,
    now: datetime = NOW,
    points: Iterable[RestorePoint] = (),
    history: Mapping[VmId, VmHistory] | None = None,
    fired: Mapping[tuple[str, str, VmId], datetime] | None = None,
) -> Facts:
    by_vm: dict[VmId, tuple[RestorePoint, ...]] = {}
    for point in points:
        by_vm[point.vm] = (*by_vm.get(point.vm, ()), point)
    return Facts(now=now, vms={vm.id: vm for vm in vms}, history=history or {}, points=by_vm, fired=fired or {})


def policies(*texts: str) -> PolicySet:
    """A set from the bodies of files; the schema line is added."""
    return load_texts({f"{number}.toml": f"schema = 1\n{text}" for number, text in enumerate(texts)})


def a_policy(body: str, name: str = "gold") -> Policy:
    """One policy that selects every VM, with the given keys (those of sub-tables dotted)."""
    found = policies(f'[policy.{name}]\nselect.all = ["*"]\n{body}').policy(name)
    assert found is not None
    return found
