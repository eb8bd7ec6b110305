"""A made-up fleet as large ones look, policies that select it in part, and what happens to it. Pure: seeded.

The same arguments give the same values on every machine, so that figures and decisions can be compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from policies.facts import (
    Address,
    Consistency,
    Disk,
    Event,
    EventType,
    Facts,
    PointId,
    PowerState,
    RestorePoint,
    Vm,
    VmHistory,
    VmId,
)
from policies.sealing import maker

VMS_PER_HOST = 30
VMS_PER_DATASTORE = 40
HOSTS_PER_CLUSTER = 16

APPLICATIONS = (
    "billing", "build", "cache", "crm", "directory", "erp", "files", "gateway", "intranet", "ledger",
    "logs", "mail", "monitor", "orders", "payroll", "portal", "print", "reports", "search", "warehouse",
)  # fmt: skip
_ROLES = ("web", "app", "db", "batch", "queue")
_ENVIRONMENTS = ("prod", "prod", "prod", "test", "dev")
_TIERS = ("gold", "silver", "silver", "silver", "bronze", "bronze", "bronze", "bronze", "none", "never")
_TEAMS = ("platform", "finance", "sales", "logistics", "research", "support")
_GUESTS = ("Ubuntu Linux (64-bit)", "Red Hat Enterprise Linux 9 (64-bit)", "Microsoft Windows Server 2022 (64-bit)")
_GIB = 1 << 30


@dataclass(slots=True)
class Dice:
    """Small numbers drawn from a text: enough for some dozens of rolls."""

    left: int

    @classmethod
    def of(cls, *parts: object) -> Dice:
        """Dice that fall the same for the same parts."""
        return cls.of_text("\0".join(map(str, parts)))

    @classmethod
    def of_text(cls, text: str, size: int = 64) -> Dice:
        """Of one text; a smaller size is enough for fewer rolls, and quicker."""
        return cls(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size).digest(), "big"))

    def roll(self, sides: int) -> int:
        """A number from 0 to sides - 1."""
        self.left, number = divmod(self.left, sides)
        return number


def synthetic_fleet(vms: int, *, now: datetime, points_each: int = 0, seed: int = 0) -> Facts:
    """So many VMs in clusters of 16 hosts with 30 VMs each, with one restore point a day for `points_each` days."""
    fleet = [_vm(number, vms, seed) for number in range(vms)]
    points = {vm.id: _points(vm, now, points_each, seed) for vm in fleet} if points_each else {}
    history = {
        vm: VmHistory(last_success=kept[-1].taken_at, last_attempt=kept[-1].taken_at) for vm, kept in points.items()
    }
    return Facts(now=now, vms={vm.id: vm for vm in fleet}, history=history, points=points)


def _vm(number: int, fleet: int, seed: int) -> Vm:
    dice = Dice.of(seed, "vm", number)
    application = APPLICATIONS[dice.roll(len(APPLICATIONS))]
    role = _ROLES[dice.roll(len(_ROLES))]
    environment = _ENVIRONMENTS[dice.roll(len(_ENVIRONMENTS))]
    tier = _TIERS[dice.roll(len(_TIERS))]
    host = dice.roll(max(1, fleet // VMS_PER_HOST))
    store = dice.roll(max(1, fleet // VMS_PER_DATASTORE))
    store_name = f"vol-{store:03}"
    disks = 1 + (dice.roll(4) == 0) + (dice.roll(10) == 0)
    stores = (store_name, f"vol-{store // 8 * 8:03}") if disks > 1 and store % 8 else (store_name,)
    tags = {f"env={environment}", f"app={application}", f"team={_TEAMS[dice.roll(len(_TEAMS))]}"}
    if tier != "none":
        tags.add(f"backup={tier}")
    name = f"{application}-{role}-{number:05}"
    return Vm(
        id=VmId(f"vm-{seed}-{number:06}"),
        address=Address("synthetic", f"vm-{number}"),
        name=name,
        instance_uuid=f"5000{number:08x}",
        bios_uuid=f"4200{number:08x}",
        datacenter=f"dc-{host // (HOSTS_PER_CLUSTER * 8) + 1}",
        folder=f"/{environment.capitalize()}/{application.capitalize()}/{role}",
        cluster=cluster_of(host),
        host=host_name(host),
        resource_pool=environment,
        datastores=stores,
        networks=(f"vlan-{100 + dice.roll(60)}",),
        tags=frozenset(tags),
        attributes={
            "Owner": f"{_TEAMS[dice.roll(len(_TEAMS))]}-{dice.roll(9)}",
            "Cost centre": str(4000 + dice.roll(99)),
        },
        power=PowerState.ON if dice.roll(12) else PowerState.OFF,
        guest_os=_GUESTS[dice.roll(len(_GUESTS))],
        tools_running=True,
        disks=tuple(
            Disk(
                key=2000 + index,
                label=f"Hard disk {index + 1}",
                capacity_bytes=(20 + 20 * dice.roll(10)) * _GIB,
                uuid=f"6000c29{number:08x}{index}",
                datastore=stores[index % len(stores)],
                file_name=f"[{stores[index % len(stores)]}] {name}/{name}_{index}.vmdk",
                mode="persistent",
            )
            for index in range(disks)
        ),
        tracking_enabled=True,
    )


def host_name(number: int) -> str:
    """The name of a host of a synthetic fleet."""
    return f"esx-{number:03}"


def cluster_of(host: int) -> str:
    """The cluster of a host of a synthetic fleet."""
    return f"cluster-{host // HOSTS_PER_CLUSTER:02}"


def _points(vm: Vm, now: datetime, count: int, seed: int) -> tuple[RestorePoint, ...]:
    dice = Dice.of(seed, "points", vm.id)
    newest = now - timedelta(seconds=1 + dice.roll(86_399))
    size = sum(disk.capacity_bytes for disk in vm.disks)
    changed = change_per_day(vm, seed)
    found = []
    for age in range(count - 1, -1, -1):
        at = newest - timedelta(days=age)
        read = size // 3 if age == count - 1 else changed
        found.append(
            RestorePoint(
                id=PointId(f"{at:%Y%m%dT%H%M%S}-{vm.id}"),
                vm=vm.id,
                vm_name=vm.name,
                taken_at=at,
                consistency=Consistency.FILESYSTEM if (age + dice.left) % 17 else Consistency.CRASH,
                policy="synthetic",
                rule="rpo",
                read_bytes=read,
                stored_bytes=read // 2,
                disk_bytes=size,
            )
        )
    return tuple(found)


def change_per_day(vm: Vm, seed: int = 0) -> int:
    """How much a VM of a synthetic fleet writes a day: most little, some much, as fleets do."""
    dice = Dice.of(seed, "change", vm.id)
    share = (2, 4, 5, 8, 10, 12, 15, 20, 40, 120)[dice.roll(10)]  # in thousandths of its disks
    return sum(disk.capacity_bytes for disk in vm.disks) * share // 1000


def synthetic_policies(count: int) -> str:
    """The text of one file with so many policies, of which each selects a part of a synthetic fleet.

    The first three are tiers by a tag, which together protect most of it; the others select an application, a
    folder, a cluster or names, back up after events, and differ in goals, windows and retention.
    """
    return "\n".join(["schema = 1", *(_policy(number) for number in range(count))]) + "\n"


_GOALS = ("4h", "24h", "24h")
_KEPT = (
    "keep_last = 6\nkeep_daily = 14\nkeep_weekly = 8\nkeep_monthly = 12\nkeep_yearly = 3",
    "keep_daily = 14\nkeep_weekly = 6\nkeep_monthly = 6",
    "keep_daily = 7\nkeep_weekly = 5",
)
_EVENTS = ('"vm.powered_off"', '["vm.migrated", "vm.relocated"]', '["vm.created", "vm.cloned"]', '"vm.renamed"')


def _policy(number: int) -> str:
    if number < len(_GOALS):
        tier = ("gold", "silver", "bronze")[number]
        return (
            f'[policy.tier-{tier}]\npriority = {30 - 10 * number}\nrpo = "{_GOALS[number]}"\n'
            f'consistency = {{ want = "filesystem", fallback = "crash" }}\n'
            f'select.all = ["tag:backup={tier}"]\nselect.none = ["tag:backup=never", "name:*-scratch"]\n'
            f'[policy.tier-{tier}.retention]\n{_KEPT[number]}\nmin_good = 2\ngrace = "7d"\n'
        )
    dice = Dice.of("policy", number)
    application = APPLICATIONS[dice.roll(len(APPLICATIONS))]
    role = _ROLES[dice.roll(len(_ROLES))]
    selected = (
        f'"name:{application}-*", "name:*{number // 4 % 5}"',
        f'"folder:/Prod/{application.capitalize()}/**", "name:*-{role}-*"',
        f'"cluster:{cluster_of(HOSTS_PER_CLUSTER * (number // 4 % 21))}", "tag:team={_TEAMS[dice.roll(len(_TEAMS))]}"',
        f'"host:{host_name(number)}"',
    )[number % 4]
    timing = (
        'rpo = "24h"\nwindow = ["mon..fri 18:00-06:00", "sat,sun 00:00-24:00"]\ntimezone = "Europe/Berlin"',
        f'schedule = "{number % 60} {number % 24} * * *"',
        "",
    )[number % 3]
    return (
        f"[policy.special-{number:03}]\npriority = {number % 7}\n{timing}\n"
        f'select.all = [{selected}]\nselect.none = ["tag:backup=never"]\n'
        f"[[policy.special-{number:03}.trigger]]\non = {_EVENTS[number % len(_EVENTS)]}\n"
        f'settle = "{1 + number % 10}m"\ncooldown = "{1 + number % 12}h"\n'
        f"[policy.special-{number:03}.retention]\n{_KEPT[number % len(_KEPT)]}\n"
    )


_NO_DETAIL: dict[str, str] = {}
_make_event = maker(Event)
_IRRELEVANT = (EventType.POWERED_ON, EventType.SUSPENDED, EventType.RECONFIGURED)


def synthetic_events(facts: Facts, per_second: float, seconds: float, seed: int = 0) -> Iterator[Event]:
    """What happens to a synthetic fleet from `facts.now` on, evenly spread, in order.

    Three of ten events are of a kind that no synthetic policy triggers on. Two of ten change which policies select
    the VM: it moves to another cluster or gets another name; `aftermath.changed_by` gives the VM afterwards. Half
    are moves by DRS within the cluster and machines that are switched off.
    """
    fleet = list(facts.vms.values())
    hosts, now = max(1, len(fleet) // VMS_PER_HOST), facts.now
    for number in range(int(per_second * seconds) if fleet else 0):
        dice = Dice.of_text(f"{seed}/event/{number}", 16)
        vm = fleet[dice.roll(len(fleet))]
        at = now + timedelta(0, 0, round(number * 1e6 / per_second))
        yield _event(vm, f"synthetic:{seed}:{number:08}", at, dice, hosts)


def daily_events(facts: Facts, days: int, per_vm_day: float = 1.0, seed: int = 0) -> Iterator[Event]:
    """The same kinds of events from `facts.now` on, so many a VM and day, in order."""
    rate = len(facts.vms) * per_vm_day / 86_400
    return synthetic_events(facts, rate, days * 86_400, seed) if rate > 0 else iter(())


def _event(vm: Vm, key: str, at: datetime, dice: Dice, hosts: int) -> Event:
    roll = dice.roll(10)
    quiet = _IRRELEVANT[dice.roll(len(_IRRELEVANT))]
    host = int(vm.host[4:])
    if roll < 3:
        kind, cause, origin, goal, detail = quiet, "", "", "", _NO_DETAIL
    elif roll == 3:
        far = dice.roll(hosts)
        detail = {"to_cluster": cluster_of(far)}
        kind, cause, origin, goal = EventType.MIGRATED, "manual", vm.host, host_name(far)
    elif roll == 4:
        new_name = f"{APPLICATIONS[dice.roll(len(APPLICATIONS))]}-{vm.name.partition('-')[2]}"
        detail = {"old_name": vm.name, "new_name": new_name}
        kind, cause, origin, goal = EventType.RENAMED, "", "", ""
    elif roll < 8:
        first = host // HOSTS_PER_CLUSTER * HOSTS_PER_CLUSTER
        size = min(HOSTS_PER_CLUSTER, hosts - first)
        near = first + (host - first + 1 + dice.roll(max(1, size - 1))) % size
        kind, cause, origin, goal, detail = EventType.MIGRATED, "drs", vm.host, host_name(near), _NO_DETAIL
    else:
        kind, cause, origin, goal, detail = EventType.POWERED_OFF, "manual", "", "", _NO_DETAIL
    return _make_event(key, kind, at, "synthetic", vm.id, vm.name, vm.address, cause, origin, goal, "", detail)
